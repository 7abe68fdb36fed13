//! The desk, by its calls: what each token is worth, once, whatever breaks in between.

use std::path::Path;

use plexus_mesh::enrol::{Desk, IssueError, LocalKey, Token, check};
use plexus_proto::enrol::{
    EnrolAnswer, EnrolAnswerKind, EnrolCall, EnrolCallKind, EnrolRefusalCode as Code, JoinCall,
};
use plexus_proto::id::Role;
use rustls_pki_types::UnixTime;

use super::*;

struct House {
    dir: tempfile::TempDir,
    enrolment: Enrolment,
}

impl House {
    async fn new() -> Self {
        plexus_mesh::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let (mesh, cluster) = ("demo".parse().unwrap(), "main".parse().unwrap());
        let authority = CertificateAuthority::init(&dir.path().join("ca"), &mesh, &cluster).unwrap();
        let own = dir.path().join("controller");
        let life = Duration::from_secs(3600);
        authority.issue(Role::Controller, &"controller".parse().unwrap(), &own, life).unwrap();
        let enrolment = Self::open(dir.path(), &own).await;
        Self { dir, enrolment }
    }

    async fn open(dir: &Path, own: &Path) -> Enrolment {
        let core = CoreDb::open(&dir.join("core.sqlite")).await.unwrap();
        let vault = Vault::open(&dir.join("secret")).unwrap();
        let credentials = Credentials::load(own).unwrap();
        let addresses = vec!["hop:7323".to_owned()];
        Enrolment::new(core, vault, credentials, Some(dir.join("ca")), addresses, Duration::from_secs(3600))
    }

    /// The controller is gone and started again, on the same files.
    async fn restart(self) -> Self {
        self.enrolment.0.core.close().await;
        let Self { dir, enrolment } = self;
        drop(enrolment);
        let enrolment = Self::open(dir.path(), &dir.path().join("controller")).await;
        Self { dir, enrolment }
    }

    async fn token(&self, name: &str, uses: u32, approve: bool) -> (i64, Token) {
        let (role, ttl) = (Role::Execution, Duration::from_secs(600));
        let wanted = Wanted { role, name: name.parse().unwrap(), ttl, uses, approve, addresses: vec![] };
        let made = self.enrolment.create_token(wanted, "admin").await.unwrap();
        (made.row.id, Token::parse(&made.text).unwrap())
    }

    fn machine(&self, folder: &str) -> LocalKey {
        let dir = self.dir.path().join(folder);
        std::fs::create_dir_all(&dir).unwrap();
        LocalKey::open_or_make(&dir).unwrap()
    }

    async fn join(
        &self,
        token: &Token,
        node: &str,
        key: &LocalKey,
    ) -> Result<plexus_mesh::enrol::Checked, Code> {
        let call = call(token, node, key);
        let answer = self.enrolment.answer(call.clone(), None).await;
        let signed = issued(answer)?;
        let verifier = self.enrolment.0.credentials.verifier();
        let checked =
            check(&verifier, &token.cluster, &call, key.public(), &signed, UnixTime::now()).unwrap();
        assert_eq!(checked.identity.node.as_str(), node);
        Ok(checked)
    }
}

fn call(token: &Token, node: &str, key: &LocalKey) -> EnrolCall {
    let csr = key.request(&node.parse().unwrap()).unwrap();
    let join = JoinCall {
        token_id: token.id.to_vec().into(),
        cluster: token.cluster.to_string(),
        mac: token.secret.mac(&csr).into(),
        csr: csr.to_vec().into(),
    };
    EnrolCall { kind: Some(EnrolCallKind::Join(join)) }
}

fn issued(answer: EnrolAnswer) -> Result<plexus_proto::enrol::SignedIssue, Code> {
    match answer.kind.unwrap() {
        EnrolAnswerKind::Issued(signed) => Ok(signed),
        EnrolAnswerKind::Refused(refused) => Err(refused.code()),
        EnrolAnswerKind::Pending(_) => Err(Code::Unspecified),
    }
}

#[tokio::test]
async fn a_token_is_redeemed_once_and_the_same_key_gets_the_same_certificate() {
    let house = House::new().await;
    let (_, token) = house.token("node-*", 1, false).await;
    let (one, other) = (house.machine("one"), house.machine("other"));
    let first = house.join(&token, "node-1", &one).await.unwrap();
    let again = house.join(&token, "node-1", &one).await.unwrap();
    assert_eq!(first.chain, again.chain);
    assert_eq!(house.join(&token, "node-2", &other).await.unwrap_err(), Code::TokenUsed);
    assert_eq!(house.join(&token, "node-2", &one).await.unwrap_err(), Code::WrongName);
    let house = house.restart().await;
    assert_eq!(house.join(&token, "node-1", &one).await.unwrap().chain, first.chain);
    assert_eq!(house.join(&token, "node-2", &other).await.unwrap_err(), Code::TokenUsed);
}

#[tokio::test]
async fn many_machines_at_once_share_exactly_the_uses_there_are() {
    let house = House::new().await;
    let (_, token) = house.token("node-*", 3, false).await;
    let machines: Vec<_> =
        (0..8).map(|at| (format!("node-{at}"), house.machine(&format!("m{at}")))).collect();
    let joins = machines.iter().map(|(name, key)| house.join(&token, name, key));
    let outcomes = futures_util::future::join_all(joins).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 3);
    let mut addresses: Vec<_> = outcomes.iter().flatten().map(|checked| checked.identity.address).collect();
    addresses.dedup();
    assert_eq!(addresses.len(), 3, "no address twice");
}

#[tokio::test]
async fn whoever_lacks_the_secret_learns_nothing() {
    let house = House::new().await;
    let (id, token) = house.token("node-1", 1, false).await;
    let key = house.machine("m");
    let mut guess = token.clone();
    guess.secret = plexus_mesh::enrol::token::Secret::new(vec![0; 32]);
    assert_eq!(house.join(&guess, "node-1", &key).await.unwrap_err(), Code::UnknownToken);
    house.enrolment.revoke_token(id).await.unwrap();
    assert_eq!(house.join(&guess, "node-1", &key).await.unwrap_err(), Code::UnknownToken);
    guess.id = [0; 16];
    assert_eq!(house.join(&guess, "node-1", &key).await.unwrap_err(), Code::UnknownToken);
    // A forwarder that puts its own request under another's proof.
    let mut spliced = call(&token, "node-1", &key);
    let own = house.machine("mallory").request(&"node-1".parse().unwrap()).unwrap();
    if let Some(EnrolCallKind::Join(join)) = &mut spliced.kind {
        join.csr = own.to_vec().into();
    }
    assert_eq!(issued(house.enrolment.answer(spliced, None).await).unwrap_err(), Code::UnknownToken);
}

#[tokio::test]
async fn each_trouble_with_a_token_has_a_word_of_its_own() {
    let house = House::new().await;
    let key = house.machine("m");
    let (_, token) = house.token("node-*", 1, false).await;
    assert_eq!(house.join(&token, "hop-1", &key).await.unwrap_err(), Code::WrongName);
    let (id, revoked) = house.token("node-*", 1, false).await;
    house.enrolment.revoke_token(id).await.unwrap();
    house.enrolment.revoke_token(id).await.unwrap();
    assert_eq!(house.join(&revoked, "node-1", &key).await.unwrap_err(), Code::TokenRevoked);
    assert!(matches!(house.enrolment.revoke_token(99).await, Err(Error::Missing(_))));
    let (id, late) = house.token("node-*", 1, false).await;
    let mut update = sea_query::Query::update();
    update.table("enrolment_tokens").value("expires", now() - 1);
    update.and_where(sea_query::ExprTrait::eq(sea_query::Expr::col("id"), id));
    let mut tx = house.enrolment.0.core.begin(crate::store::core::Class::Intent).await.unwrap();
    tx.execute(update).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(house.join(&late, "node-1", &key).await.unwrap_err(), Code::TokenExpired);
    house.join(&token, "node-1", &key).await.unwrap();
    let (_, second) = house.token("node-*", 1, false).await;
    let other = house.machine("other");
    assert_eq!(house.join(&second, "node-1", &other).await.unwrap_err(), Code::NameTaken);
    let states: Vec<_> = house.enrolment.tokens().await.unwrap().iter().map(|row| row.state(now())).collect();
    assert_eq!(states, ["usable", "expired", "revoked", "used"], "the newest first");
}

#[tokio::test]
async fn an_operator_confirms_or_turns_away() {
    let house = House::new().await;
    let (_, token) = house.token("node-*", 2, true).await;
    let (good, bad) = (house.machine("good"), house.machine("bad"));
    assert_eq!(house.join(&token, "node-1", &good).await.unwrap_err(), Code::Unspecified, "it waits");
    assert_eq!(house.join(&token, "node-1", &good).await.unwrap_err(), Code::Unspecified, "it still does");
    assert_eq!(house.join(&token, "node-2", &bad).await.unwrap_err(), Code::Unspecified);
    let house = house.restart().await;
    let waiting = house.enrolment.requests().await.unwrap();
    assert_eq!(waiting.len(), 2);
    for request in waiting {
        house.enrolment.decide(request.id, request.node == "node-1", "admin").await.unwrap();
        let again = house.enrolment.decide(request.id, request.node != "node-1", "admin").await;
        assert!(matches!(again, Err(Error::Decided(_))));
    }
    let first = house.join(&token, "node-1", &good).await.unwrap();
    assert_eq!(house.join(&token, "node-1", &good).await.unwrap().chain, first.chain);
    assert_eq!(house.join(&token, "node-2", &bad).await.unwrap_err(), Code::Rejected);
    assert_eq!(house.enrolment.tokens().await.unwrap()[0].used, 2);
}

#[tokio::test]
async fn an_answer_is_for_its_call_and_from_a_controller_only() {
    let house = House::new().await;
    let (_, token) = house.token("node-*", 1, false).await;
    let key = house.machine("m");
    let asked = call(&token, "node-1", &key);
    let signed = issued(house.enrolment.answer(asked.clone(), None).await).unwrap();
    let verifier = house.enrolment.0.credentials.verifier();
    let judge = |call: &EnrolCall, signed: &_| {
        check(&verifier, &token.cluster, call, key.public(), signed, UnixTime::now()).map(drop)
    };
    judge(&asked, &signed).unwrap();
    let other = call(&token, "node-9", &key);
    assert!(matches!(judge(&other, &signed), Err(IssueError::OtherCall)));
    let mut altered = signed.clone();
    let mut body = altered.body.to_vec();
    body.push(0);
    altered.body = body.into();
    assert!(matches!(judge(&asked, &altered), Err(IssueError::Signer(_))));
    // A node of the same cluster, properly certified, is no controller.
    let out = house.dir.path().join("node-7");
    let authority = CertificateAuthority::open(&house.dir.path().join("ca")).unwrap();
    authority.issue(Role::Execution, &"node-7".parse().unwrap(), &out, Duration::from_secs(60)).unwrap();
    let node = Credentials::load(&out).unwrap();
    let issue: plexus_proto::enrol::Issue = prost::Message::decode(&signed.body[..]).unwrap();
    let forged = plexus_mesh::enrol::sign(&node, &issue);
    assert!(matches!(judge(&asked, &forged), Err(IssueError::NotAController(_))));
}

#[tokio::test]
async fn without_an_authority_nothing_is_issued_and_the_reason_is_told() {
    let house = House::new().await;
    let (_, token) = house.token("node-1", 1, false).await;
    let shared = &house.enrolment.0;
    let bare = Enrolment::new(
        shared.core.clone(),
        shared.vault.clone(),
        shared.credentials.clone(),
        None,
        vec![],
        shared.validity,
    );
    let answer = bare.answer(call(&token, "node-1", &house.machine("m")), None).await;
    assert_eq!(issued(answer).unwrap_err(), Code::NoAuthority);
}
