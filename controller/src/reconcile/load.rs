//! Reads what a job was launched with and turns rows into a payload: what all kinds share here, what each kind is made of
//! in a module of its own.

mod ad_hoc;
mod inventory_update;
mod meta;
mod playbook;
mod project_update;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use plexus_proto::work::{PullPolicy, RegistryAuth};
use plexus_tree::store;
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value};
use tokio::task::JoinHandle;

use super::Context;
use crate::http::settings;
use crate::job::{self, CredentialError};
use crate::kind::Kind;
use crate::payload;
use crate::payload::injectors::{self, Injected, Inputs};
use crate::payload::private::{Limits, Run};
use crate::payload::tree::{self, Digest, Tree};
use crate::project_update::Unusable;
use crate::registry::write::parse_variables;
use crate::store::core::Error as StoreError;

/// Why a job cannot be prepared. All but the database's are the job's own fault and end it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the database did not answer")]
    Store(#[from] StoreError),
    #[error("the job has no project")]
    NoProject,
    #[error("project directory {0:?} is not a name below the projects' root")]
    Outside(String),
    #[error("project directory {0:?} does not exist on the controller")]
    NoDirectory(PathBuf),
    #[error("playbook {playbook:?} is not in the project")]
    NoPlaybook { playbook: String },
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error("{what} is neither a JSON nor a YAML mapping: {detail}")]
    Variables { what: String, detail: String },
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("credential {name:?} cannot be put into the job")]
    Injector {
        name: String,
        #[source]
        source: injectors::Error,
    },
    #[error(transparent)]
    Kept(#[from] store::Error),
    #[error("the project's tree is not in this controller's data directory any more; update the project")]
    TreeGone,
    #[error("the project has no revision: it was never updated, or no update was successful")]
    NoRevision,
    #[error("the project cannot be updated")]
    Update(#[from] Unusable),
    #[error("the inventory source cannot be updated")]
    Inventory(#[from] payload::inventory_update::Unusable),
    #[error("inline Jinja variables are not allowed in arguments of ad hoc commands")]
    Jinja,
    #[error("the job has no execution environment")]
    NoImage,
}

impl Error {
    /// Trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Credential(CredentialError::Store { .. }))
    }
}

/// What stands in a credential for "ask at launch".
const ASK: &str = "ASK";

/// What a kind makes of its row.
struct Made {
    tree: Source,
    run: Run,
}

/// Where the tree of a unit comes from.
enum Source {
    /// It is being read, beside all else that a job needs.
    Read(JoinHandle<Result<Arc<Tree>, Error>>),
    /// Nothing yet: the unit fills it.
    Empty,
}

impl Source {
    /// A directory of a manual project, as it is now.
    fn directory(context: &Context, root: PathBuf) -> Self {
        let trees = Arc::clone(&context.trees);
        Self::Read(tokio::task::spawn_blocking(move || Ok(trees.read(&root)?)))
    }

    /// A tree that an update brought.
    fn stored(context: &Context, digest: Digest) -> Self {
        let store = Arc::clone(&context.store);
        let read = move || store.tree(&digest)?.map(Arc::new).ok_or(Error::TreeGone);
        Self::Read(tokio::task::spawn_blocking(read))
    }
}

/// A job of whatever kind, ready to be sent.
pub(super) struct Loaded {
    pub(super) image: String,
    pub(super) pull: PullPolicy,
    pub(super) organization: String,
    pub(super) registry: Option<RegistryAuth>,
    pub(super) run: Run,
    tree: Source,
}

impl Loaded {
    /// The tree as it was when it was read; to be asked for once.
    pub(super) async fn tree(&mut self) -> Result<Arc<Tree>, Error> {
        match &mut self.tree {
            Source::Read(reading) => reading.await.expect("reading a tree does not panic"),
            Source::Empty => Ok(Arc::new(Tree::empty())),
        }
    }
}

/// What ingest must know of a job before its first record, at any time of the job's life.
pub(super) struct Shown {
    pub(super) image: Option<String>,
    pub(super) secrets: Vec<String>,
}

/// Reads a job's image and the secrets to mask: those of its credentials, whatever its kind.
pub(super) async fn shown(context: &Context, job: i64) -> Result<Shown, Error> {
    let mut select = Query::select();
    select.column("image").from("unified_jobs").and_where(Expr::col("id").eq(job));
    let image = match context.core.optional(select).await? {
        Some(row) => row.value::<Option<String>>("image")?,
        None => None,
    };
    let credentials = job::credentials(&context.core, &context.vault, job).await?;
    let mut secrets = playbook::asked_secrets(context, job, &credentials).await?;
    for credential in &credentials {
        let own = credential.secrets().filter(|secret| !secret.is_empty() && *secret != ASK);
        secrets.extend(own.map(str::to_owned));
    }
    let survey = job::survey_passwords(&context.core, &context.vault, job).await?;
    secrets
        .extend(survey.values().map(|secret| secret.expose().to_owned()).filter(|secret| !secret.is_empty()));
    Ok(Shown { image, secrets })
}

/// Reads everything a job was launched with.
pub(super) async fn everything(context: &Context, id: i64) -> Result<Loaded, Error> {
    let mut select = Query::select();
    select.columns(["kind", "image", "pull", "organization_id"]).from("unified_jobs");
    select.and_where(Expr::col("id").eq(id));
    let row = context.core.optional(select).await?.ok_or(StoreError::Reference)?;
    let kind = Kind::parse(&row.value::<String>("kind")?).ok_or(StoreError::Reference)?;
    let made = async {
        match kind {
            Kind::Job => playbook::load(context, id).await,
            Kind::ProjectUpdate => project_update::load(context, id).await,
            Kind::InventoryUpdate => inventory_update::load(context, id).await,
            Kind::AdHocCommand => ad_hoc::load(context, id).await,
        }
    };
    let (made, registry) = tokio::try_join!(made, registry(context, id))?;
    let organization: Option<i64> = row.value("organization_id")?;
    let image: Option<String> = row.value("image")?;
    Ok(Loaded {
        image: image.filter(|image| !image.is_empty()).ok_or(Error::NoImage)?,
        pull: pull(row.value::<Option<String>>("pull")?.as_deref()),
        organization: organization.map(|id| id.to_string()).unwrap_or_default(),
        registry,
        run: made.run,
        tree: made.tree,
    })
}

fn pull(policy: Option<&str>) -> PullPolicy {
    match policy.unwrap_or_default() {
        "always" => PullPolicy::Always,
        "missing" => PullPolicy::Missing,
        "never" => PullPolicy::Never,
        _ => PullPolicy::Unspecified,
    }
}

/// Variables as people type them: JSON, YAML, or nothing.
fn variables(what: &str, text: &str) -> Result<Map<String, Value>, Error> {
    parse_variables(text).map_err(|detail| Error::Variables { what: what.to_owned(), detail })
}

/// What all of a job's credentials bring, and the variables that every job has.
async fn inject(context: &Context, credentials: &[job::Credential]) -> Result<Injected, Error> {
    let mut injected = Injected { env: task_environment(context).await?, ..Injected::default() };
    for credential in credentials {
        let values = credential.values();
        let inputs = Inputs { id: credential.id, fields: &credential.fields, values: &values };
        let own = match credential.namespace.as_deref() {
            Some(namespace) => injectors::builtin(namespace, inputs, &mut injected),
            None => Ok(false),
        };
        let added =
            own.and_then(|own| if own { Ok(()) } else { injected.add(&credential.injectors, inputs) });
        added.map_err(|source| Error::Injector { name: credential.name.clone(), source })?;
    }
    Ok(injected)
}

/// Variables that every job's environment has, by the setting `AWX_TASK_ENV`.
async fn task_environment(context: &Context) -> Result<BTreeMap<String, String>, StoreError> {
    let text = context.core.setting(&job::setting("AWX_TASK_ENV")).await?.unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

/// How long a job may take: by its `own` row, by the setting of its kind where that says 0, and by the one for all.
async fn limits(context: &Context, own: i64, setting: &str) -> Result<Limits, StoreError> {
    let of_kind = settings::setting(&context.core, setting);
    let idle = settings::setting(&context.core, "DEFAULT_JOB_IDLE_TIMEOUT");
    let (of_kind, idle) = tokio::try_join!(of_kind, idle)?;
    let seconds = |value: Value| value.as_i64().unwrap_or(0);
    Ok(Limits::of(own, seconds(of_kind), seconds(idle)))
}

/// The credential for the registry of the job's image.
async fn registry(context: &Context, id: i64) -> Result<Option<RegistryAuth>, Error> {
    let found = job::registry(&context.core, &context.vault, id).await?;
    Ok(found.map(|found| {
        let text =
            |name: &str| found.inputs.get(name).map(|text| text.expose().to_owned()).unwrap_or_default();
        RegistryAuth {
            host: text("host"),
            username: text("username"),
            password: text("password"),
            insecure: !found.flags.get("verify_ssl").copied().unwrap_or(true),
        }
    }))
}
