//! The desk: redeems tokens and renews certificates, each exactly once in the database.

use std::pin::Pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use plexus_mesh::ca::{self, Issued};
use plexus_mesh::enrol::token::{Pattern, Secret};
use plexus_mesh::enrol::{self, Desk, Request, refusal};
use plexus_mesh::identity::{self, Standing, key_fingerprint};
use plexus_proto::enrol::{
    EnrolAnswer, EnrolAnswerKind, EnrolCall, EnrolCallKind, EnrolPending, EnrolRefusalCode as Code, Issue,
    JoinCall, RenewCall,
};
use plexus_proto::id::{Identity, NodeId, Role};
use rustls_pki_types::{CertificateDer, UnixTime};
use sea_query::{Expr, ExprTrait, OnConflict, Query};
use zeroize::Zeroizing;

use super::tokens::field;
use super::{Enrolment, Error, now};
use crate::crash::Point;
use crate::store::core::{Class, WriteTx};

/// How soon a machine that waits for an operator asks again.
const ASK_AGAIN_MS: u32 = 2000;

/// Either an answer, or a refusal that the caller may hear.
enum No {
    Refused(Code, String),
    Failed(Error),
}

impl From<Error> for No {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<crate::store::core::Error> for No {
    fn from(error: crate::store::core::Error) -> Self {
        Self::Failed(Error::Store(error))
    }
}

fn no(code: Code, message: impl Into<String>) -> No {
    No::Refused(code, message.into())
}

impl Desk for Enrolment {
    fn answer(
        &self,
        call: EnrolCall,
        via: Option<Identity>,
    ) -> Pin<Box<dyn Future<Output = EnrolAnswer> + Send + '_>> {
        Box::pin(self.answer_at(call, via, UnixTime::now()))
    }
}

/// A token as the desk needs it.
struct Known {
    id: i64,
    role: Role,
    name: Pattern,
    secret: Secret,
    uses: i64,
    used: i64,
    approve: bool,
    expires: i64,
    revoked: bool,
}

impl Enrolment {
    /// Answers a call; certificates are judged as of `at`.
    pub(super) async fn answer_at(
        &self,
        call: EnrolCall,
        via: Option<Identity>,
        at: UnixTime,
    ) -> EnrolAnswer {
        let outcome = match &call.kind {
            Some(EnrolCallKind::Join(join)) => self.join(&call, join).await,
            Some(EnrolCallKind::Renew(renew)) => self.renew(&call, renew, at).await,
            None => Err(no(Code::Malformed, "the call is of no kind that is known here")),
        };
        let via = via.as_ref().map(|via| via.node.as_str());
        match outcome {
            Ok(answer) => answer,
            Err(No::Refused(code, message)) => {
                tracing::info!(?code, message, via, "call for a certificate refused");
                refusal(code, message)
            }
            Err(No::Failed(error @ Error::NoAuthority)) => refusal(Code::NoAuthority, error.to_string()),
            Err(No::Failed(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    via,
                    "cannot answer a call for a certificate"
                );
                // What exactly failed is for our log alone.
                refusal(Code::Internal, "the controller failed; its log says why")
            }
        }
    }

    async fn join(&self, call: &EnrolCall, join: &JoinCall) -> Result<EnrolAnswer, No> {
        self.authority()?;
        let request = Request::parse(&join.csr).map_err(|error| no(Code::Malformed, error.to_string()))?;
        let key_hash = key_fingerprint(&request.key);
        let _turn = self.0.turn.lock().await;
        let mut tx = self.0.core.begin(Class::Intent).await?;
        // Whoever does not know the secret learns nothing of the token, not even that it exists.
        let unknown = || no(Code::UnknownToken, "there is no such token");
        let token = self.token(&mut tx, &join.token_id).await?.ok_or_else(unknown)?;
        if !token.secret.verifies(&join.csr, &join.mac) {
            return Err(unknown());
        }
        if let Some(before) = redeemed(&mut tx, token.id, &key_hash).await? {
            if before.node != request.node.as_str() {
                let text = format!("this key was enrolled as {} with this token", before.node);
                return Err(no(Code::WrongName, text));
            }
            match before.state.as_str() {
                "issued" => return self.again(call, &before),
                "rejected" => return Err(no(Code::Rejected, "an operator has turned this machine away")),
                "approved" => {}
                _ if token.revoked => return Err(no(Code::TokenRevoked, "the token was revoked")),
                _ => return Ok(pending(before.id)),
            }
            self.check_name(&mut tx, &request.node, &token, &key_hash).await?;
            return self.issue(call, tx, &token, &request, Some(before.id)).await;
        }
        if token.revoked {
            return Err(no(Code::TokenRevoked, "the token was revoked"));
        }
        if token.expires <= now() {
            return Err(no(Code::TokenExpired, "the token has expired"));
        }
        if token.used >= token.uses {
            return Err(no(Code::TokenUsed, "the token was used by another machine"));
        }
        if !token.name.matches(&request.node) {
            let text = format!("the token is for names like {}, not for {}", token.name, request.node);
            return Err(no(Code::WrongName, text));
        }
        self.check_name(&mut tx, &request.node, &token, &key_hash).await?;
        if !token.approve {
            return self.issue(call, tx, &token, &request, None).await;
        }
        count_use(&mut tx, &token).await?;
        let id = insert(&mut tx, &token, &request, "pending", None).await?;
        tx.commit().await?;
        tracing::warn!(request = id, node = %request.node, "a machine waits for approval: plexus token approve {id}");
        Ok(pending(id))
    }

    async fn token(&self, tx: &mut WriteTx, token_id: &[u8]) -> Result<Option<Known>, No> {
        if token_id.len() != 16 {
            return Ok(None);
        }
        let mut select = Query::select();
        let columns = ["id", "role", "name", "secret", "uses", "used", "approve", "expires", "revoked"];
        select
            .columns(columns)
            .from("enrolment_tokens")
            .and_where(Expr::col("token_id").eq(token_id.to_vec()));
        let Some(row) = tx.optional(&select).await? else { return Ok(None) };
        let sealed: String = row.value("secret")?;
        let opened =
            self.0.vault.decrypt("enrolment_tokens", 0, &field(token_id), &sealed).map_err(Error::Sealed)?;
        let secret = Zeroizing::new(STANDARD_NO_PAD.decode(opened.expose()).map_err(|_| Error::Damaged)?);
        let (role, name): (String, String) = (row.value("role")?, row.value("name")?);
        Ok(Some(Known {
            id: row.value("id")?,
            role: role.parse().map_err(|_| Error::Damaged)?,
            name: name.parse().map_err(|()| Error::Damaged)?,
            secret: Secret::new(secret.to_vec()),
            uses: row.value("uses")?,
            used: row.value("used")?,
            approve: row.value("approve")?,
            expires: row.value("expires")?,
            revoked: row.value::<Option<i64>>("revoked")?.is_some(),
        }))
    }

    /// A name belongs to one key until that is revoked.
    async fn check_name(
        &self,
        tx: &mut WriteTx,
        node: &NodeId,
        token: &Known,
        key_hash: &[u8; 32],
    ) -> Result<(), No> {
        if revoked(tx, node, key_hash).await? {
            return Err(no(Code::Revoked, format!("{node} with this key was revoked")));
        }
        let mut select = Query::select();
        select.columns(["role", "key_hash"]).from("members").and_where(Expr::col("node").eq(node.as_str()));
        let Some(row) = tx.optional(&select).await? else { return Ok(()) };
        let (role, known): (String, Vec<u8>) = (row.value("role")?, row.value("key_hash")?);
        if role != token.role.as_str() {
            let text = format!("{node} is enrolled with role {role}; names are unique in a mesh");
            return Err(no(Code::NameTaken, text));
        }
        let known: [u8; 32] = known.try_into().map_err(|_| Error::Damaged)?;
        if known != *key_hash && !revoked(tx, node, &known).await? {
            return Err(no(Code::NameTaken, format!("another machine is enrolled as {node}")));
        }
        Ok(())
    }

    /// Certifies the key, and commits that it was: the token's use, what was issued, and the member, in one
    /// transaction.
    async fn issue(
        &self,
        call: &EnrolCall,
        mut tx: WriteTx,
        token: &Known,
        request: &Request,
        known: Option<i64>,
    ) -> Result<EnrolAnswer, No> {
        Point::TokenChecked.hit();
        let authority = self.authority()?;
        let issued = authority
            .certify(token.role, &request.node, None, &request.key, self.0.validity)
            .map_err(|error| self.refused(error))?;
        Point::Certified.hit();
        match known {
            Some(id) => {
                let mut update = Query::update();
                update.table("enrolments").value("state", "issued").value("modified", now());
                update.value("chain", text(&issued.chain)).value("expires", issued.expires.as_microsecond());
                tx.execute(update.and_where(Expr::col("id").eq(id))).await?;
            }
            None => {
                count_use(&mut tx, token).await?;
                insert(&mut tx, token, request, "issued", Some(&issued)).await?;
            }
        }
        member(&mut tx, &issued, &request.key).await?;
        Point::EnrolmentWritten.hit();
        tx.commit().await?;
        Point::Enrolled.hit();
        tracing::info!(node = %request.node, role = %token.role, token = token.id, "machine enrolled");
        self.signed(call, issued.chain)
    }

    /// The same key again gets the same certificate.
    fn again(&self, call: &EnrolCall, before: &Redeemed) -> Result<EnrolAnswer, No> {
        let chain = before.chain.as_deref().and_then(chain).ok_or(Error::Damaged)?;
        self.signed(call, chain)
    }

    async fn renew(&self, call: &EnrolCall, renew: &RenewCall, at: UnixTime) -> Result<EnrolAnswer, No> {
        let authority = self.authority()?;
        let chain: Vec<CertificateDer<'_>> =
            renew.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
        let verifier = self.0.credentials.verifier();
        let (identity, standing) = verifier.standing(&chain, at).map_err(|error| match error {
            identity::Error::Revoked { .. } => no(Code::Revoked, error.to_string()),
            identity::Error::Expired { .. } => {
                no(Code::TooLate, format!("{error}, more than 90 days ago: join again with a token"))
            }
            error => no(Code::Malformed, error.to_string()),
        })?;
        verifier
            .verify_signature(&chain, &enrol::renewal_message(&renew.nonce), &renew.signature)
            .map_err(|error| no(Code::Malformed, error.to_string()))?;
        if identity.cluster != *authority.cluster() {
            let text = format!("{} is of cluster {}", identity.node, identity.cluster);
            return Err(no(Code::NoAuthority, text));
        }
        let key = identity::raw_public_key(&chain[0]).ok_or_else(|| no(Code::Malformed, "no public key"))?;
        let key_hash = key_fingerprint(&key);
        let mut tx = self.0.core.begin(Class::Bookkeeping).await?;
        if revoked(&mut tx, &identity.node, &key_hash).await? {
            return Err(no(Code::Revoked, format!("{} with this key was revoked", identity.node)));
        }
        let mut select = Query::select();
        select.column("key_hash").from("members").and_where(Expr::col("node").eq(identity.node.as_str()));
        if let Some(row) = tx.optional(&select).await?
            && row.value::<Vec<u8>>("key_hash")? != key_hash
        {
            let text = format!("another machine has been enrolled as {} since", identity.node);
            return Err(no(Code::NameTaken, text));
        }
        let issued = authority
            .certify(identity.role, &identity.node, Some(identity.address), &key, self.0.validity)
            .map_err(|error| self.refused(error))?;
        member(&mut tx, &issued, &key).await?;
        tx.commit().await?;
        let expired = matches!(standing, Standing::Expired { .. });
        tracing::info!(node = %identity.node, until = %issued.expires, expired, "certificate renewed");
        self.signed(call, issued.chain)
    }

    fn refused(&self, error: ca::Error) -> No {
        match error {
            ca::Error::OtherRole { .. } => no(Code::NameTaken, error.to_string()),
            ca::Error::OutOfRange { .. } => no(Code::NoAuthority, error.to_string()),
            error => No::Failed(self.issue_error(error)),
        }
    }

    fn signed(&self, call: &EnrolCall, chain: Vec<CertificateDer<'static>>) -> Result<EnrolAnswer, No> {
        let authority = self.authority()?;
        let wire = |ders: &[CertificateDer<'_>]| ders.iter().map(|der| der.to_vec().into()).collect();
        let issue = Issue {
            chain: wire(&chain),
            roots: wire(authority.roots()),
            call: enrol::call_digest(call).into(),
            endorsements: wire(authority.endorsements()),
        };
        let signed = enrol::sign(&self.0.credentials, &issue);
        Ok(EnrolAnswer { kind: Some(EnrolAnswerKind::Issued(signed)) })
    }
}

/// What a key has redeemed with a token before.
struct Redeemed {
    id: i64,
    node: String,
    state: String,
    chain: Option<String>,
}

async fn redeemed(tx: &mut WriteTx, token: i64, key_hash: &[u8; 32]) -> Result<Option<Redeemed>, No> {
    let mut select = Query::select();
    select.columns(["id", "node", "state", "chain"]).from("enrolments");
    select.and_where(Expr::col("enrolment_token_id").eq(token));
    select.and_where(Expr::col("key_hash").eq(key_hash.to_vec()));
    let Some(row) = tx.optional(&select).await? else { return Ok(None) };
    Ok(Some(Redeemed {
        id: row.value("id")?,
        node: row.value("node")?,
        state: row.value("state")?,
        chain: row.value("chain")?,
    }))
}

/// Counts one use; whoever comes too late in another controller finds none left.
async fn count_use(tx: &mut WriteTx, token: &Known) -> Result<(), No> {
    let mut update = Query::update();
    update.table("enrolment_tokens").value("used", Expr::col("used").add(1)).value("modified", now());
    update.and_where(Expr::col("id").eq(token.id)).and_where(Expr::col("used").lt(token.uses));
    match tx.execute(update).await? {
        1 => Ok(()),
        _ => Err(no(Code::TokenUsed, "the token was used by another machine")),
    }
}

async fn insert(
    tx: &mut WriteTx,
    token: &Known,
    request: &Request,
    state: &str,
    issued: Option<&Issued>,
) -> Result<i64, No> {
    let at = now();
    let mut insert = Query::insert();
    let columns = [
        "enrolment_token_id",
        "key_hash",
        "public_key",
        "node",
        "role",
        "state",
        "chain",
        "expires",
        "created",
        "modified",
    ];
    insert.into_table("enrolments").columns(columns).values_panic([
        token.id.into(),
        key_fingerprint(&request.key).to_vec().into(),
        request.key.clone().into(),
        request.node.as_str().into(),
        token.role.as_str().into(),
        state.into(),
        issued.map(|issued| text(&issued.chain)).into(),
        issued.map(|issued| issued.expires.as_microsecond()).into(),
        at.into(),
        at.into(),
    ]);
    Ok(tx.insert(&mut insert).await?)
}

async fn member(tx: &mut WriteTx, issued: &Issued, key: &[u8]) -> Result<(), No> {
    let at = now();
    let mut insert = Query::insert();
    let columns = ["node", "role", "address", "key_hash", "expires", "created", "modified"];
    let conflict = OnConflict::column("node")
        .update_columns(["role", "address", "key_hash", "expires", "modified"])
        .to_owned();
    insert.into_table("members").columns(columns).on_conflict(conflict).values_panic([
        issued.identity.node.as_str().into(),
        issued.identity.role.as_str().into(),
        i64::from(issued.identity.address.0).into(),
        key_fingerprint(key).to_vec().into(),
        issued.expires.as_microsecond().into(),
        at.into(),
        at.into(),
    ]);
    tx.execute(insert).await?;
    Ok(())
}

async fn revoked(tx: &mut WriteTx, node: &NodeId, key_hash: &[u8; 32]) -> Result<bool, No> {
    let mut select = Query::select();
    select.column("id").from("revocations").and_where(Expr::col("node").eq(node.as_str()));
    let same = Expr::col("key_hash").eq(key_hash.to_vec());
    select.and_where(Expr::col("key_hash").is_null().or(same));
    Ok(tx.optional(&select).await?.is_some())
}

fn pending(request: i64) -> EnrolAnswer {
    let message = format!("an operator has to confirm: plexus token approve {request}");
    EnrolAnswer { kind: Some(EnrolAnswerKind::Pending(EnrolPending { retry_ms: ASK_AGAIN_MS, message })) }
}

/// A chain as a column.
fn text(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|der| STANDARD_NO_PAD.encode(der)).collect::<Vec<_>>().join(" ")
}

fn chain(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    text.split(' ').map(|der| STANDARD_NO_PAD.decode(der).ok().map(CertificateDer::from)).collect()
}
