//! Revocations as rows, and the signed list that the mesh is told.

use jiff::Timestamp;
use plexus_mesh::Mesh;
use plexus_mesh::revocation::{self, Entry, List};
use plexus_proto::id::NodeId;
use rustls_pki_types::UnixTime;
use sea_query::{Expr, ExprTrait, Order, Query};

use super::{Enrolment, Error, now};
use crate::store::core::{Class, WriteTx};

/// Setting that holds the number of the list last published.
const NUMBER: &str = "revocation_number";

/// A revocation that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// The tables.
    #[error(transparent)]
    Enrolment(#[from] Error),
    /// It is this controller itself.
    #[error("{0} is this controller; revoke it from another one")]
    Myself(NodeId),
    /// The list cannot be signed.
    #[error("cannot sign the list of revocations")]
    Sign(#[from] revocation::Error),
    /// Nobody of that name is known here.
    #[error("no node {0} is known here; revoke the name itself, whatever key shows it, with every_key")]
    Unknown(NodeId),
}

impl From<crate::store::core::Error> for RevokeError {
    fn from(error: crate::store::core::Error) -> Self {
        Self::Enrolment(Error::Store(error))
    }
}

/// A revocation as it is listed.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// Whose certificates.
    pub node: String,
    /// SHA-256 of the key; none: every key.
    pub key_hash: Option<Vec<u8>>,
    /// Who did it.
    pub by: String,
    /// When.
    pub at: i64,
}

impl Enrolment {
    /// Refuses the certificates of `node` in the whole mesh from now on. Without `every_key` those of the key it has
    /// now, so that the name can be enrolled again with another.
    ///
    /// # Errors
    /// See [`RevokeError`]. When this returns `Ok` it is committed, and published to every neighbour.
    pub async fn revoke_node(
        &self,
        mesh: &Mesh,
        node: &NodeId,
        every_key: bool,
        by: &str,
    ) -> Result<(), RevokeError> {
        if *node == self.0.credentials.identity().node {
            return Err(RevokeError::Myself(node.clone()));
        }
        let mut tx = self.0.core.begin(Class::Intent).await?;
        let key = match every_key {
            true => None,
            false => {
                let mut select = Query::select();
                select.column("key_hash").from("members").and_where(Expr::col("node").eq(node.as_str()));
                match tx.optional(&select).await? {
                    Some(row) => Some(row.value::<Vec<u8>>("key_hash")?),
                    // Enrolled by hand: the mesh has seen its certificate.
                    None => {
                        Some(mesh.key_of(node).ok_or_else(|| RevokeError::Unknown(node.clone()))?.to_vec())
                    }
                }
            }
        };
        let mut known = Query::select();
        known.column("id").from("revocations").and_where(Expr::col("node").eq(node.as_str()));
        known.and_where(match &key {
            Some(key) => Expr::col("key_hash").eq(key.clone()),
            None => Expr::col("key_hash").is_null(),
        });
        if tx.optional(&known).await?.is_none() {
            let mut insert = Query::insert();
            insert.into_table("revocations").columns(["node", "key_hash", "revoked_by", "created"]);
            insert.values_panic([node.as_str().into(), key.into(), by.into(), now().into()]);
            tx.insert(&mut insert).await?;
            next_number(&mut tx).await?;
        }
        tx.commit().await?;
        tracing::warn!(%node, every_key, by, "node revoked");
        self.publish_revocations(mesh).await
    }

    /// Takes every revocation of `node` back.
    ///
    /// # Errors
    /// None there, or the database.
    pub async fn restore_node(&self, mesh: &Mesh, node: &NodeId, by: &str) -> Result<(), RevokeError> {
        let mut delete = Query::delete();
        delete.from_table("revocations").and_where(Expr::col("node").eq(node.as_str()));
        let mut tx = self.0.core.begin(Class::Intent).await?;
        if tx.execute(delete).await? == 0 {
            return Err(Error::Missing("revocation").into());
        }
        next_number(&mut tx).await?;
        tx.commit().await?;
        tracing::warn!(%node, by, "revocation taken back");
        self.publish_revocations(mesh).await
    }

    /// All revocations, the newest first.
    ///
    /// # Errors
    /// The database.
    pub async fn revocations(&self) -> Result<Vec<Revocation>, Error> {
        let mut select = Query::select();
        select.columns(["node", "key_hash", "revoked_by", "created"]).from("revocations");
        select.order_by("id", Order::Desc);
        let rows = self.0.core.all(&select).await?;
        let read = |row: &crate::store::core::Row| {
            Ok(Revocation {
                node: row.value("node")?,
                key_hash: row.value("key_hash")?,
                by: row.value("revoked_by")?,
                at: row.value("created")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Gives the list a new number, if there ever was one.
    ///
    /// # Errors
    /// The database.
    pub(super) async fn renumber_revocations(&self) -> Result<(), RevokeError> {
        if self.0.core.setting(NUMBER).await?.is_some() {
            let mut tx = self.0.core.begin(Class::Bookkeeping).await?;
            next_number(&mut tx).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// Signs the list as it is, and floods it. Nothing happens while nothing was ever revoked.
    ///
    /// # Errors
    /// The database, or a list that cannot be signed.
    pub async fn publish_revocations(&self, mesh: &Mesh) -> Result<(), RevokeError> {
        let number = self.0.core.setting(NUMBER).await?.and_then(|text| text.parse().ok()).unwrap_or(0);
        if number == 0 {
            return Ok(());
        }
        let entries = self.revocations().await?.into_iter().filter_map(|row| {
            let key = row.key_hash.map(|key| key.try_into()).transpose().ok()?;
            let at = Timestamp::from_microsecond(row.at).ok()?;
            Some((row.node.parse().ok()?, Entry { key, at }))
        });
        let entries: Vec<_> = entries.collect();
        let list = List::sign(&self.0.credentials, number, &entries, UnixTime::now())?;
        mesh.publish_revocations(list).await;
        Ok(())
    }
}

async fn next_number(tx: &mut WriteTx) -> Result<(), RevokeError> {
    let mut select = Query::select();
    select.column("value").from("settings").and_where(Expr::col("key").eq(NUMBER));
    let last: u64 = match tx.optional(&select).await? {
        Some(row) => row.value::<String>("value")?.parse().unwrap_or(0),
        None => 0,
    };
    tx.set_setting(NUMBER, &(last + 1).to_string()).await?;
    Ok(())
}
