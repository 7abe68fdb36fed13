//! How machines become members here: tokens, the desk that redeems them, renewals, revocations.
//!
//! Everything that must hold across crashes is a row, written in one transaction before anything is answered. Making
//! a certificate has no effect until its row is committed, so a crash in between costs a number at most.

mod desk;
mod revocations;
mod tokens;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_mesh::ca::CertificateAuthority;
use plexus_mesh::identity::Credentials;
use tokio::sync::Mutex;

pub use revocations::{Revocation, RevokeError};
pub(crate) use tokens::field;
pub use tokens::{NewToken, Pending, TokenRow, Wanted};

use crate::store::core::{CoreDb, Error as StoreError};
use crate::vault::{self, Vault};

/// What goes wrong at the desk or behind its API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This controller has no intermediate.
    #[error(
        "this controller has no authority to issue certificates: set ca_dir in [enrolment] of its configuration"
    )]
    NoAuthority,
    /// The intermediate does not open, or does not issue.
    #[error("the authority in {} cannot issue", dir.display())]
    Authority {
        /// Where it is.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: plexus_mesh::ca::Error,
    },
    /// No token, or no request, of this id.
    #[error("there is no such {0}")]
    Missing(&'static str),
    /// It was decided before.
    #[error("it is {0} already")]
    Decided(String),
    /// The database.
    #[error("cannot reach the enrolment tables")]
    Store(#[from] StoreError),
    /// A sealed secret does not open.
    #[error("a token's secret does not open")]
    Sealed(#[source] vault::DecryptError),
    /// A row that is not as it was written.
    #[error("a row of the enrolment tables is damaged")]
    Damaged,
    /// No random numbers.
    #[error("the system gives no random numbers")]
    NoEntropy,
}

/// Tokens, desk and revocations of this controller. Cheap to clone.
#[derive(Clone)]
pub struct Enrolment(Arc<Shared>);

struct Shared {
    core: CoreDb,
    vault: Vault,
    credentials: Credentials,
    ca_dir: Option<PathBuf>,
    /// What tokens name unless told otherwise.
    addresses: Vec<String>,
    validity: Duration,
    /// One redemption at a time: the database would refuse the second one too, but later and with more words.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Enrolment(..)")
    }
}

impl Enrolment {
    /// Takes the authority in `ca_dir`, if there is one.
    pub fn new(
        core: CoreDb,
        vault: Vault,
        credentials: Credentials,
        ca_dir: Option<PathBuf>,
        addresses: Vec<String>,
        validity: Duration,
    ) -> Self {
        let turn = Mutex::new(());
        Self(Arc::new(Shared { core, vault, credentials, ca_dir, addresses, validity, turn }))
    }

    /// Decides on calls that reach `mesh`, and publishes what was revoked before.
    ///
    /// # Errors
    /// The service is offered already, or the database fails.
    pub async fn start(&self, mesh: &Mesh) -> anyhow::Result<()> {
        if self.0.ca_dir.is_some() {
            // A wrong directory should be heard of now, not when the first machine joins.
            self.authority()?;
        }
        mesh.serve_enrolment(Arc::new(self.clone()))?;
        // A new number, so that the list goes around again under a fresh signature.
        self.renumber_revocations().await?;
        self.publish_revocations(mesh).await?;
        Ok(())
    }

    /// Opened anew for each use: a root may be rolled over beside us.
    fn authority(&self) -> Result<CertificateAuthority, Error> {
        let dir = self.0.ca_dir.as_ref().ok_or(Error::NoAuthority)?;
        CertificateAuthority::open(dir).map_err(|source| Error::Authority { dir: dir.clone(), source })
    }

    fn issue_error(&self, source: plexus_mesh::ca::Error) -> Error {
        Error::Authority { dir: self.0.ca_dir.clone().unwrap_or_default(), source }
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
