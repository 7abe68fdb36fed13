//! Tokens as rows: made, listed, revoked; and the requests that wait for an operator.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use jiff::Timestamp;
use plexus_mesh::enrol::token::{Pattern, Secret, Token};
use plexus_proto::id::Role;
use sea_query::{Expr, ExprTrait, Order, Query};
use zeroize::Zeroizing;

use super::{Enrolment, Error, now};
use crate::store::core::{Class, Row};

/// What a token is to be good for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Role of the machines.
    pub role: Role,
    /// Their names.
    pub name: Pattern,
    /// How long it can be used.
    pub ttl: Duration,
    /// How often.
    pub uses: u32,
    /// Whether an operator confirms each machine.
    pub approve: bool,
    /// Members to ask, instead of the configured ones.
    pub addresses: Vec<String>,
}

/// A token just made.
pub struct NewToken {
    /// Its row.
    pub row: TokenRow,
    /// As it is handed over; kept nowhere.
    pub text: Zeroizing<String>,
}

/// A token as it is listed.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// Id of the row.
    pub id: i64,
    /// Id in the token.
    pub token_id: Vec<u8>,
    /// Role of the machines.
    pub role: String,
    /// Their names.
    pub name: String,
    /// How often it can be used.
    pub uses: i64,
    /// How often it was.
    pub used: i64,
    /// Whether an operator confirms.
    pub approve: bool,
    /// Its end.
    pub expires: i64,
    /// When it was revoked.
    pub revoked: Option<i64>,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created: i64,
}

impl TokenRow {
    /// `usable`, `used`, `expired` or `revoked`.
    pub fn state(&self, now: i64) -> &'static str {
        match () {
            () if self.revoked.is_some() => "revoked",
            () if self.used >= self.uses => "used",
            () if self.expires <= now => "expired",
            () => "usable",
        }
    }
}

/// A machine that waits for an operator, or was decided on.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Id of the request.
    pub id: i64,
    /// Id of the token's row.
    pub token: i64,
    /// Name the machine asks for.
    pub node: String,
    /// Role of the token.
    pub role: String,
    /// SHA-256 of its public key, to compare with what the machine shows.
    pub key_hash: Vec<u8>,
    /// `pending`, `approved`, `rejected` or `issued`.
    pub state: String,
    /// Who decided.
    pub decided_by: String,
    /// When it asked first.
    pub created: i64,
}

const COLUMNS: [&str; 11] = [
    "id",
    "token_id",
    "role",
    "name",
    "uses",
    "used",
    "approve",
    "expires",
    "revoked",
    "created_by",
    "created",
];

fn token_row(row: &Row) -> Result<TokenRow, Error> {
    Ok(TokenRow {
        id: row.value("id")?,
        token_id: row.value("token_id")?,
        role: row.value("role")?,
        name: row.value("name")?,
        uses: row.value("uses")?,
        used: row.value("used")?,
        approve: row.value("approve")?,
        expires: row.value("expires")?,
        revoked: row.value("revoked")?,
        created_by: row.value("created_by")?,
        created: row.value("created")?,
    })
}

fn pending_row(row: &Row) -> Result<Pending, Error> {
    Ok(Pending {
        id: row.value("id")?,
        token: row.value("enrolment_token_id")?,
        node: row.value("node")?,
        role: row.value("role")?,
        key_hash: row.value("key_hash")?,
        state: row.value("state")?,
        decided_by: row.value("decided_by")?,
        created: row.value("created")?,
    })
}

impl Enrolment {
    /// Makes a token. Its text is in the answer and nowhere else.
    ///
    /// # Errors
    /// No authority here, or the database.
    pub async fn create_token(&self, wanted: Wanted, by: &str) -> Result<NewToken, Error> {
        let authority = self.authority()?;
        let (mut id, mut secret) = ([0; 16], Zeroizing::new(vec![0; 32]));
        aws_lc_rs::rand::fill(&mut id).map_err(|_| Error::NoEntropy)?;
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| Error::NoEntropy)?;
        let created = Timestamp::now();
        let addresses =
            if wanted.addresses.is_empty() { self.0.addresses.clone() } else { wanted.addresses.clone() };
        let token = Token {
            id,
            secret: Secret::new(secret.to_vec()),
            mesh: authority.mesh().clone(),
            cluster: authority.cluster().clone(),
            roots: authority.root_fingerprints(),
            addresses,
            role: wanted.role,
            name: wanted.name,
            created,
            expires: created + wanted.ttl,
        };
        let sealed =
            self.0.vault.encrypt("enrolment_tokens", 0, &field(&id), &STANDARD_NO_PAD.encode(&*secret));
        let at = created.as_microsecond();
        let columns = [
            "token_id",
            "role",
            "name",
            "secret",
            "uses",
            "approve",
            "addresses",
            "expires",
            "created_by",
            "created",
            "modified",
        ];
        let mut insert = Query::insert();
        insert.into_table("enrolment_tokens").columns(columns).values_panic([
            id.to_vec().into(),
            token.role.as_str().into(),
            token.name.to_string().into(),
            sealed.into(),
            i64::from(wanted.uses).into(),
            wanted.approve.into(),
            token.addresses.join(" ").into(),
            token.expires.as_microsecond().into(),
            by.into(),
            at.into(),
            at.into(),
        ]);
        let mut tx = self.0.core.begin(Class::Intent).await?;
        let row = tx.insert(&mut insert).await?;
        tx.commit().await?;
        tracing::info!(token = row, role = %token.role, name = %token.name, by, "enrolment token made");
        let row = TokenRow {
            id: row,
            token_id: id.to_vec(),
            role: token.role.to_string(),
            name: token.name.to_string(),
            uses: wanted.uses.into(),
            used: 0,
            approve: wanted.approve,
            expires: token.expires.as_microsecond(),
            revoked: None,
            created_by: by.to_owned(),
            created: at,
        };
        Ok(NewToken { row, text: token.expose() })
    }

    /// All tokens, the newest first.
    ///
    /// # Errors
    /// The database.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, Error> {
        let mut select = Query::select();
        select.columns(COLUMNS).from("enrolment_tokens").order_by("id", Order::Desc).limit(1000);
        self.0.core.all(&select).await?.iter().map(token_row).collect()
    }

    /// Ends a token; machines that joined with it stay.
    ///
    /// # Errors
    /// No such token, or the database.
    pub async fn revoke_token(&self, id: i64) -> Result<(), Error> {
        let mut update = Query::update();
        update.table("enrolment_tokens").value("revoked", now()).value("modified", now());
        update.and_where(Expr::col("id").eq(id)).and_where(Expr::col("revoked").is_null());
        let mut tx = self.0.core.begin(Class::Intent).await?;
        let changed = tx.execute(update).await?;
        let known =
            Query::select().column("id").from("enrolment_tokens").and_where(Expr::col("id").eq(id)).take();
        if changed == 0 && tx.optional(known).await?.is_none() {
            return Err(Error::Missing("token"));
        }
        tx.commit().await?;
        tracing::info!(token = id, "enrolment token revoked");
        Ok(())
    }

    /// Machines that asked, those that wait first.
    ///
    /// # Errors
    /// The database.
    pub async fn requests(&self) -> Result<Vec<Pending>, Error> {
        let mut select = Query::select();
        let columns =
            ["id", "enrolment_token_id", "node", "role", "key_hash", "state", "decided_by", "created"];
        select.columns(columns).from("enrolments").order_by("id", Order::Desc).limit(1000);
        let mut found: Vec<Pending> =
            self.0.core.all(&select).await?.iter().map(pending_row).collect::<Result<_, _>>()?;
        found.sort_by_key(|request| request.state != "pending");
        Ok(found)
    }

    /// Confirms a machine, or turns it away.
    ///
    /// # Errors
    /// No such request, one that was decided otherwise, or the database.
    pub async fn decide(&self, id: i64, approve: bool, by: &str) -> Result<(), Error> {
        let state = if approve { "approved" } else { "rejected" };
        let mut update = Query::update();
        update.table("enrolments").value("state", state).value("decided_by", by).value("modified", now());
        update.and_where(Expr::col("id").eq(id)).and_where(Expr::col("state").eq("pending"));
        let mut tx = self.0.core.begin(Class::Intent).await?;
        if tx.execute(update).await? == 0 {
            let mut known = Query::select();
            known.column("state").from("enrolments").and_where(Expr::col("id").eq(id));
            let row = tx.optional(known).await?.ok_or(Error::Missing("request"))?;
            let found: String = row.value("state")?;
            // Saying the same again is no trouble.
            if found == state || approve && found == "issued" {
                return Ok(());
            }
            return Err(Error::Decided(found));
        }
        tx.commit().await?;
        tracing::info!(request = id, state, by, "machine decided on");
        Ok(())
    }
}

/// A sealed secret is bound to its token's id.
pub(crate) fn field(token_id: &[u8]) -> String {
    token_id.iter().fold("secret ".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
