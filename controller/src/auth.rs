//! Who is asking: passwords, tokens, sessions.
//!
//! Passwords are hashed with Argon2id, which is slow on purpose. Clients send HTTP Basic with every request, so a
//! password that was verified is remembered for a minute as a keyed digest; the digest is bound to the stored hash, so
//! a changed password ends it. Tokens and session keys are long and random: their SHA-256 is enough, and all that is
//! stored.

mod limit;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use sea_query::{Expr, ExprTrait, JoinType, Query, SelectStatement};
use tokio::sync::Semaphore;

use crate::store::core::{Class, CoreDb, Error as StoreError, Row};

/// How long a verified password needs no new hash.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Passwords remembered at most; more would be an attack or a very busy minute, and cost only a hash each.
const MAX_REMEMBERED: usize = 4096;

/// Hashes at a time: each takes 19 MiB and a core.
const HASHERS: usize = 2;

/// Requests that may wait for a hash; what comes on top is told to come back.
const MAX_WAITING: usize = 64;

/// Idle age of a session, as AWX's.
pub const SESSION: Duration = Duration::from_secs(1800);

/// Letters of a token.
const TOKEN_LENGTH: usize = 30;

/// Longest password that is looked at.
const MAX_PASSWORD: usize = 1024;

/// Why nobody could be identified, or a password not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many passwords wait to be verified.
    #[error("too many passwords wait to be verified")]
    Busy,
    /// The database.
    #[error("cannot look up who is asking")]
    Store(#[from] StoreError),
    /// Too many wrong passwords: the next try has to wait.
    #[error("too many wrong passwords; the next is looked at in {} s", .0.as_secs() + 1)]
    Wait(Duration),
    /// No hash could be made.
    #[error("cannot hash a password")]
    Hash,
}

/// A user who was identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub username: String,
    /// Its first name.
    pub first_name: String,
    /// Its last name.
    pub last_name: String,
    /// May do everything.
    pub is_superuser: bool,
    /// May see everything.
    pub is_system_auditor: bool,
}

impl User {
    /// The id of whoever is no user: a machine that calls back.
    pub const NOBODY: i64 = 0;

    /// Its id, where it stands for who did something.
    pub fn author(&self) -> Option<i64> {
        Some(self.id).filter(|id| *id != Self::NOBODY)
    }
}

/// How the user was identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Name and password.
    Basic,
    /// A token.
    Token {
        /// Its id.
        id: i64,
        /// Whether it may change things.
        writes: bool,
    },
    /// A session cookie: changes need the CSRF token too.
    Session,
}

/// Somebody who was identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Who.
    pub user: User,
    /// How.
    pub by: By,
}

/// Verifies passwords and remembers, for a while, which were right. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    shared: Arc<Shared>,
}

struct Shared {
    db: CoreDb,
    hashers: Semaphore,
    waiting: Semaphore,
    key: hmac::Key,
    /// Verified against when there is no such user, so that the answer takes as long.
    nobody: String,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    limit: Mutex<limit::Limit>,
}

struct Remembered {
    user: i64,
    hash: String,
    until: Instant,
}

impl Auth {
    /// Prepares to verify passwords of the users in `db`.
    ///
    /// # Errors
    /// [`Error::Hash`] if there are no random numbers.
    pub fn new(db: CoreDb) -> Result<Self, Error> {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| Error::Hash)?;
        Ok(Self {
            shared: Arc::new(Shared {
                db,
                hashers: Semaphore::new(HASHERS),
                waiting: Semaphore::new(MAX_WAITING),
                key: hmac::Key::new(hmac::HMAC_SHA256, &key),
                nobody: hash(&random_text(16)?)?,
                remembered: Mutex::default(),
                limit: Mutex::default(),
            }),
        })
    }

    /// The user with this name and password, `None` for any other pair; `from` is where they are told. Takes as long for
    /// an unknown name as for a wrong password.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many wait, [`Error::Wait`] after too many wrong ones.
    pub async fn password(
        &self,
        username: &str,
        password: &str,
        from: IpAddr,
    ) -> Result<Option<User>, Error> {
        if password.len() > MAX_PASSWORD || username.len() > MAX_PASSWORD {
            return Ok(None);
        }
        let mut query = select_user();
        query.column(("u", "password_hash")).and_where(Expr::col(("u", "username")).eq(username));
        let found = self.shared.db.optional(&query).await?;
        let (user, stored) = match &found {
            Some(row) => (Some(user(row)?), row.value::<String>("password_hash")?),
            None => (None, self.shared.nobody.clone()),
        };
        let digest = self.digest(username, password);
        if let Some(user) = &user
            && self.remembers(&digest, user.id, &stored)
        {
            return Ok(Some(user.clone()));
        }
        let limit = || self.shared.limit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wait) = limit().wait(username, from, Instant::now()) {
            return Err(Error::Wait(wait));
        }
        let candidate = password.to_owned();
        let checked = stored.clone();
        let right = self.hashing(move || Ok(verify(&candidate, &checked))).await?;
        let Some(user) = user.filter(|_| right) else {
            limit().failed(username, from, Instant::now());
            return Ok(None);
        };
        limit().succeeded(username, from);
        self.remember(digest, user.id, stored);
        Ok(Some(user))
    }

    /// The owner of a token that has not expired.
    ///
    /// # Errors
    /// What the database says.
    pub async fn token(&self, token: &str) -> Result<Option<Principal>, Error> {
        let mut query = select_user();
        query.columns([("t", "id"), ("t", "scope")]);
        query.join_as(JoinType::InnerJoin, "tokens", "t", Expr::col(("t", "user_id")).equals(("u", "id")));
        query.and_where(Expr::col(("t", "token_hash")).eq(token_hash(token)));
        query.and_where(Expr::col(("t", "expires")).gt(now()));
        let Some(row) = self.shared.db.optional(&query).await? else { return Ok(None) };
        let scope: String = row.at(7)?;
        let by = By::Token { id: row.at(6)?, writes: scope.split(' ').any(|word| word == "write") };
        Ok(Some(Principal { user: user(&row)?, by }))
    }

    /// The user of a session that is not over. A session in use is prolonged, at most once a minute.
    ///
    /// # Errors
    /// What the database says.
    pub async fn session(&self, key: &str) -> Result<Option<User>, Error> {
        let mut query = select_user();
        query.column(("s", "expires"));
        query.join_as(JoinType::InnerJoin, "sessions", "s", Expr::col(("s", "user_id")).equals(("u", "id")));
        query.and_where(Expr::col(("s", "key_hash")).eq(token_hash(key)));
        query.and_where(Expr::col(("s", "expires")).gt(now()));
        let Some(row) = self.shared.db.optional(&query).await? else { return Ok(None) };
        let left = row.value::<i64>("expires")? - now();
        if left < micros(SESSION) - micros(Duration::from_secs(60)) {
            let mut tx = self.shared.db.begin(Class::Bookkeeping).await?;
            let mut prolong = Query::update();
            prolong.table("sessions").value("expires", now() + micros(SESSION));
            tx.execute(prolong.and_where(Expr::col("key_hash").eq(token_hash(key)))).await?;
            tx.commit().await?;
        }
        Ok(Some(user(&row)?))
    }

    /// Begins a session and gives its key, which is stored nowhere.
    ///
    /// # Errors
    /// What the database says.
    pub async fn begin_session(&self, user: i64) -> Result<String, Error> {
        let key = random_text(32)?;
        let now = now();
        let mut tx = self.shared.db.begin(Class::Intent).await?;
        let mut old = Query::delete();
        tx.execute(old.from_table("sessions").and_where(Expr::col("expires").lt(now))).await?;
        let mut insert = Query::insert();
        insert.into_table("sessions").columns(["key_hash", "user_id", "created", "expires"]);
        insert.values_panic([
            token_hash(&key).into(),
            user.into(),
            now.into(),
            (now + micros(SESSION)).into(),
        ]);
        tx.execute(insert).await?;
        let mut seen = Query::update();
        seen.table("users").value("last_login", now).and_where(Expr::col("id").eq(user));
        tx.execute(seen).await?;
        tx.commit().await?;
        Ok(key)
    }

    /// Ends a session.
    ///
    /// # Errors
    /// What the database says.
    pub async fn end_session(&self, key: &str) -> Result<(), Error> {
        let mut tx = self.shared.db.begin(Class::Intent).await?;
        let mut gone = Query::delete();
        tx.execute(gone.from_table("sessions").and_where(Expr::col("key_hash").eq(token_hash(key)))).await?;
        Ok(tx.commit().await?)
    }

    /// Whether somebody may try a key of this name, as [`Auth::password`] does with passwords.
    ///
    /// # Errors
    /// [`Error::Wait`] after too many wrong ones.
    pub fn may_guess(&self, name: &str, from: IpAddr) -> Result<(), Error> {
        let limit = self.shared.limit.lock().unwrap_or_else(PoisonError::into_inner);
        limit.wait(name, from, Instant::now()).map_or(Ok(()), |wait| Err(Error::Wait(wait)))
    }

    /// Notes that a key of this name was wrong.
    pub fn guessed_wrong(&self, name: &str, from: IpAddr) {
        let mut limit = self.shared.limit.lock().unwrap_or_else(PoisonError::into_inner);
        limit.failed(name, from, Instant::now());
    }

    /// Hashes a password for storage.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many wait.
    pub async fn hash(&self, password: &str) -> Result<String, Error> {
        let password = password.to_owned();
        self.hashing(move || hash(&password)).await
    }

    async fn hashing<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _place = self.shared.waiting.try_acquire().map_err(|_| Error::Busy)?;
        let _turn = self.shared.hashers.acquire().await.map_err(|_| Error::Busy)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Hash)?
    }

    fn digest(&self, username: &str, password: &str) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.shared.key);
        context.update(&(username.len() as u64).to_be_bytes());
        context.update(username.as_bytes());
        context.update(password.as_bytes());
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    fn remembers(&self, digest: &[u8; 32], user: i64, hash: &str) -> bool {
        let remembered = self.shared.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered
            .get(digest)
            .is_some_and(|entry| entry.user == user && entry.hash == hash && entry.until > Instant::now())
    }

    fn remember(&self, digest: [u8; 32], user: i64, hash: String) {
        let now = Instant::now();
        let mut remembered = self.shared.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, entry| entry.until > now);
            if remembered.len() >= MAX_REMEMBERED {
                remembered.clear();
            }
        }
        remembered.insert(digest, Remembered { user, hash, until: now + REMEMBERED });
    }
}

/// Makes the first user, a superuser called `admin`, if there is no user yet. Without a `password` one is made up and
/// given back, to be shown once.
///
/// # Errors
/// What the database says.
pub async fn ensure_admin(db: &CoreDb, auth: &Auth, password: Option<&str>) -> Result<Option<String>, Error> {
    let mut any = Query::select();
    any.column("id").from("users").limit(1);
    if db.optional(&any).await?.is_some() {
        return Ok(None);
    }
    let (password, shown) = match password {
        Some(password) => (password.to_owned(), None),
        None => {
            let made = random_text(20)?;
            (made.clone(), Some(made))
        }
    };
    let hash = auth.hash(&password).await?;
    let mut tx = db.begin(Class::Intent).await?;
    let mut insert = Query::insert();
    insert.into_table("users").columns(["username", "password_hash", "is_superuser", "created", "modified"]);
    insert.values_panic(["admin".into(), hash.into(), true.into(), now().into(), now().into()]);
    tx.insert(&mut insert).await?;
    tx.commit().await?;
    Ok(shown)
}

/// A new token, and what is stored of it.
///
/// # Errors
/// [`Error::Hash`] if there are no random numbers.
pub fn new_token() -> Result<(String, Vec<u8>), Error> {
    let token = random_text(TOKEN_LENGTH)?;
    let hash = token_hash(&token);
    Ok((token, hash))
}

/// Compares in a time that tells nothing of where they differ.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// What is stored of a token or session key.
pub fn token_hash(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

/// Random letters and digits; each has almost six bits.
///
/// # Errors
/// [`Error::Hash`] if there are no random numbers.
pub fn random_text(length: usize) -> Result<String, Error> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 64];
    while text.len() < length {
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Hash)?;
        // 248 is the highest multiple of 62: what lies above would make some letters likelier.
        let letters = bytes.iter().filter(|&&byte| byte < 248).map(|&byte| LETTERS[usize::from(byte) % 62]);
        text.extend(letters.map(char::from).take(length - text.len()));
    }
    Ok(text)
}

fn hash(password: &str) -> Result<String, Error> {
    let hash = Argon2::default().hash_password(password.as_bytes()).map_err(|_| Error::Hash)?;
    Ok(hash.to_string())
}

fn verify(password: &str, stored: &str) -> bool {
    PasswordHash::new(stored)
        .is_ok_and(|parsed| Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok())
}

fn select_user() -> SelectStatement {
    let columns = ["id", "username", "first_name", "last_name", "is_superuser", "is_system_auditor"];
    Query::select().columns(columns.map(|column| ("u", column))).from_as("users", "u").take()
}

fn user(row: &Row) -> Result<User, StoreError> {
    Ok(User {
        id: row.at(0)?,
        username: row.at(1)?,
        first_name: row.at(2)?,
        last_name: row.at(3)?,
        is_superuser: row.at(4)?,
        is_system_auditor: row.at(5)?,
    })
}

fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn auth() -> (Auth, CoreDb, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let db = CoreDb::open(&dir.path().join("core.sqlite")).await.unwrap();
        let auth = Auth::new(db.clone()).unwrap();
        (auth, db, dir)
    }

    #[tokio::test]
    async fn the_first_start_makes_an_admin_once() {
        let (auth, db, _dir) = auth().await;
        let password = ensure_admin(&db, &auth, None).await.unwrap().unwrap();
        assert_eq!(ensure_admin(&db, &auth, None).await.unwrap(), None);
        let admin = auth.password("admin", &password, HERE).await.unwrap().unwrap();
        assert!(admin.is_superuser);
        assert_eq!(auth.password("admin", "wrong", HERE).await.unwrap(), None);
        assert_eq!(auth.password("nobody", &password, HERE).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_given_password_is_not_shown_again() {
        let (auth, db, _dir) = auth().await;
        assert_eq!(ensure_admin(&db, &auth, Some("mine")).await.unwrap(), None);
        assert!(auth.password("admin", "mine", HERE).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_until_it_changes() {
        let (auth, db, _dir) = auth().await;
        ensure_admin(&db, &auth, Some("old")).await.unwrap();
        auth.password("admin", "old", HERE).await.unwrap().unwrap();
        // With no place to hash, only what is remembered is known.
        let places = auth.shared.waiting.acquire_many(MAX_WAITING as u32).await.unwrap();
        assert!(auth.password("admin", "old", HERE).await.unwrap().is_some());
        assert!(matches!(auth.password("admin", "new", HERE).await, Err(Error::Busy)));
        drop(places);
        let changed = auth.hash("new").await.unwrap();
        let mut tx = db.begin(Class::Intent).await.unwrap();
        tx.execute(Query::update().table("users").value("password_hash", changed).take()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(auth.password("admin", "old", HERE).await.unwrap(), None);
        assert!(auth.password("admin", "new", HERE).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_session_ends_when_told() {
        let (auth, db, _dir) = auth().await;
        ensure_admin(&db, &auth, Some("x")).await.unwrap();
        let key = auth.begin_session(1).await.unwrap();
        assert_eq!(auth.session(&key).await.unwrap().unwrap().username, "admin");
        assert_eq!(auth.session("other").await.unwrap(), None);
        auth.end_session(&key).await.unwrap();
        assert_eq!(auth.session(&key).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_token_is_known_until_it_expires() {
        let (auth, db, _dir) = auth().await;
        ensure_admin(&db, &auth, Some("x")).await.unwrap();
        let (token, hash) = new_token().unwrap();
        assert_eq!(token.len(), 30);
        let mut tx = db.begin(Class::Intent).await.unwrap();
        let mut insert = Query::insert();
        insert.into_table("tokens");
        insert.columns(["user_id", "token_hash", "scope", "expires", "created", "modified"]);
        let expires = now() + 1_000_000_000;
        insert.values_panic([1.into(), hash.into(), "read".into(), expires.into(), 1.into(), 1.into()]);
        let id = tx.insert(&mut insert).await.unwrap();
        tx.commit().await.unwrap();
        let principal = auth.token(&token).await.unwrap().unwrap();
        assert_eq!(principal.by, By::Token { id, writes: false });
        assert_eq!(auth.token("other").await.unwrap(), None);
        let mut tx = db.begin(Class::Intent).await.unwrap();
        tx.execute(Query::update().table("tokens").value("expires", now() - 1).take()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(auth.token(&token).await.unwrap(), None);
    }

    #[test]
    fn random_text_is_of_letters_and_digits() {
        let text = random_text(500).unwrap();
        assert_eq!(text.len(), 500);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(text, random_text(500).unwrap());
    }
}
