//! The desk, by its calls: what each token is worth, once, whatever breaks in between.

use std::path::Path;

use plexus_mesh::enrol::{Desk, IssueError, LocalKey, Token, check};
use plexus_proto::enrol::{
    EnrolAnswer, EnrolAnswerKind, EnrolCall, EnrolCallKind, EnrolRefusalCode as Code, JoinCall, RenewCall,
};
use plexus_proto::id::Role;
use rustls_pki_types::{CertificateDer, UnixTime};

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

/// A renewal as a node asks for it: signed with the key of `shown`, over a chain that may be another's.
fn renewal(shown: &Credentials, chain: &[CertificateDer<'_>]) -> EnrolCall {
    let nonce = vec![5; 16];
    let renew = RenewCall {
        signature: shown.sign(&plexus_mesh::enrol::renewal_message(&nonce)).into(),
        nonce: nonce.into(),
        chain: chain.iter().map(|der| der.to_vec().into()).collect(),
    };
    EnrolCall { kind: Some(EnrolCallKind::Renew(renew)) }
}

#[tokio::test]
async fn a_renewal_that_may_not_be_has_its_word() {
    let house = House::new().await;
    let life = Duration::from_secs(3600);
    let issue = |authority: &CertificateAuthority, name: &str, folder: &str| {
        let out = house.dir.path().join(folder);
        authority.issue(Role::Execution, &name.parse().unwrap(), &out, life).unwrap();
        Credentials::load(&out).unwrap()
    };
    let ca = CertificateAuthority::open(&house.dir.path().join("ca")).unwrap();
    let good = issue(&ca, "node-1", "node-1");
    let members = || async {
        let mut select = sea_query::Query::select();
        select.column("node").from("members").order_by("node", sea_query::Order::Asc);
        let rows = house.enrolment.0.core.all(&select).await.unwrap();
        rows.iter().map(|row| row.value::<String>("node").unwrap()).collect::<Vec<_>>()
    };

    // Another's chain under our own signature, and ours with a bit turned.
    let other = issue(&ca, "node-2", "node-2");
    let borrowed = renewal(&good, &other.chain());
    let mut bent = renewal(&good, &good.chain());
    if let Some(EnrolCallKind::Renew(renew)) = &mut bent.kind {
        renew.nonce = vec![6; 16].into();
    }
    // A chain of an authority that nobody here knows, of no certificate at all, and of a leaf alone.
    let strange = CertificateAuthority::init(
        &house.dir.path().join("strange"),
        &"demo".parse().unwrap(),
        &"main".parse().unwrap(),
    )
    .unwrap();
    let stranger = issue(&strange, "node-1", "stranger");
    // Of this mesh, and of another cluster, which has controllers of its own.
    let elsewhere = ca.intermediate(&"other".parse().unwrap(), &house.dir.path().join("ca-2")).unwrap();
    let foreign = issue(&elsewhere, "node-1", "foreign");
    // Another key that enrolled under this name since, and one whose name was revoked.
    let before = issue(&ca, "node-3", "node-3");
    let (_, token) = house.token("node-3", 1, false).await;
    house.join(&token, "node-3", &house.machine("successor")).await.unwrap();
    let revoked = issue(&ca, "node-4", "node-4");
    let key = plexus_mesh::identity::key_fingerprint(revoked.public_key());
    let mut insert = sea_query::Query::insert();
    insert.into_table("revocations").columns(["node", "key_hash", "revoked_by", "created"]);
    insert.values_panic(["node-4".into(), key.to_vec().into(), "admin".into(), now().into()]);
    let mut tx = house.enrolment.0.core.begin(crate::store::core::Class::Intent).await.unwrap();
    tx.insert(&mut insert).await.unwrap();
    tx.commit().await.unwrap();
    // Of the same cluster, and of a range of addresses that another controller certifies.
    let beside = ca.intermediate(ca.cluster(), &house.dir.path().join("ca-3")).unwrap();
    let neighbour = issue(&beside, "node-5", "neighbour");

    for (what, call, word) in [
        ("another's chain", borrowed, Code::Malformed),
        ("a signature of other bytes", bent, Code::Malformed),
        ("a stranger's chain", renewal(&stranger, &stranger.chain()), Code::Malformed),
        ("no chain", renewal(&good, &[]), Code::Malformed),
        ("half a chain", renewal(&good, &good.chain()[..1]), Code::Malformed),
        ("another cluster", renewal(&foreign, &foreign.chain()), Code::NoAuthority),
        ("another controller's address", renewal(&neighbour, &neighbour.chain()), Code::NoAuthority),
        ("another machine since", renewal(&before, &before.chain()), Code::NameTaken),
        ("a revoked key", renewal(&revoked, &revoked.chain()), Code::Revoked),
    ] {
        let answer = house.enrolment.answer(call, None).await;
        assert_eq!(issued(answer).unwrap_err(), word, "{what}");
    }
    let days = |days: u64| {
        UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + days * 86_400))
    };
    let late = house.enrolment.answer_at(renewal(&good, &good.chain()), None, days(91)).await;
    assert_eq!(issued(late).unwrap_err(), Code::TooLate, "90 days and the hour of its life are over");
    assert_eq!(members().await, ["node-3"], "whoever is refused is no member for it");
    let call = renewal(&good, &good.chain());
    let signed = issued(house.enrolment.answer(call.clone(), None).await).unwrap();
    let verifier = house.enrolment.0.credentials.verifier();
    let checked = check(&verifier, ca.cluster(), &call, good.public_key(), &signed, UnixTime::now()).unwrap();
    assert_eq!(checked.identity, *good.identity(), "name, role and address stay");
    assert_eq!(members().await, ["node-1", "node-3"]);
    // One that has expired is as good, for these 90 days.
    issued(house.enrolment.answer_at(renewal(&good, &good.chain()), None, days(89)).await).unwrap();
}
