//! `plexus ca`: needs no daemon, only a directory.

use std::path::Path;
use std::time::Duration;

use plexus_mesh::Credentials;
use plexus_mesh::ca::{CertificateAuthority, Error};
use plexus_mesh::status::SCHEMA_VERSION;
use serde_json::json;

use crate::args::{Ca, RolloverStep};
use crate::door::Answer;
use crate::failure::{Exit, Failure};
use crate::output::{Output, Shape};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn run(command: Ca, output: &mut Output) -> Result<Exit, Failure> {
    match command {
        Ca::Init { dir, mesh, cluster } => {
            let authority =
                CertificateAuthority::init(&dir, &mesh, &cluster).map_err(|error| failed(&error))?;
            let (mesh, cluster, dir) = (authority.mesh(), authority.cluster(), dir.display().to_string());
            let text = format!(
                "made the authority of mesh {mesh}, cluster {cluster}, in {dir}\n\
                 keep {dir}/root.key offline: only another cluster needs it\n\
                 next: plexus ca issue --ca {dir} --role controller --name NAME --out DIR\n"
            );
            let document =
                json!({"schema_version": SCHEMA_VERSION, "mesh": mesh, "cluster": cluster, "dir": dir});
            output.show(&Answer(document.to_string()), Shape { items: None, name: "dir" }, &text)?;
        }
        Ca::Sign { ca, role, request, out, days } => {
            let authority = CertificateAuthority::open(&ca).map_err(|error| failed(&error))?;
            let text = std::fs::read_to_string(&request).map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot read {}: {error}", request.display()))
            })?;
            let issued =
                authority.sign_request(role, &text, &out, DAY * days).map_err(|error| failed(&error))?;
            let (dir, identity) = (out.display(), &issued.identity);
            if output.format == crate::args::Format::Json {
                let document = json!({
                    "schema_version": SCHEMA_VERSION,
                    "node": identity.node,
                    "role": identity.role,
                    "address": identity.address.to_string(),
                    "uri": identity.uri(),
                    "certificate_expires": issued.expires.to_string(),
                    "dir": dir.to_string(),
                });
                output.json(&document.to_string())?;
            } else {
                output.write(&format!(
                    "signed {}, address {}, until {}, in {dir}\n\
                     next: carry {dir}/ca.pem and {dir}/node.pem to the machine, beside its node.key\n",
                    identity.uri(),
                    identity.address,
                    issued.expires,
                ))?;
            }
        }
        Ca::Intermediate { ca, cluster, out } => {
            let authority = CertificateAuthority::open(&ca).map_err(|error| failed(&error))?;
            let made = authority.intermediate(&cluster, &out).map_err(|error| failed(&error))?;
            let ((first, last), dir) = (made.range(), out.display());
            if output.format == crate::args::Format::Json {
                let document = json!({
                    "schema_version": SCHEMA_VERSION,
                    "mesh": made.mesh(),
                    "cluster": cluster,
                    "first_address": first.to_string(),
                    "last_address": last.to_string(),
                    "dir": dir.to_string(),
                });
                output.json(&document.to_string())?;
            } else {
                output.write(&format!(
                    "made an intermediate of mesh {}, cluster {cluster}, addresses {first} to {last}, in {dir}\n\
                     next: set ca_dir = \"{dir}\" in [enrolment] of that controller\n",
                    made.mesh(),
                ))?;
            }
        }
        Ca::Rollover { step, ca, others } => {
            let authority = CertificateAuthority::open(&ca).map_err(|error| failed(&error))?;
            let (done, next) = match step {
                RolloverStep::Introduce => (
                    authority.introduce_root(&others),
                    "next: when every member has renewed (at most the life of a certificate), the same with switch",
                ),
                RolloverStep::Switch => (
                    authority.switch_root(&others),
                    "next: when every member has renewed (at most the life of a certificate), the same with retire",
                ),
                RolloverStep::Retire => (
                    authority.retire_root(&others),
                    "next: nothing; the old root's key is of no use any more",
                ),
            };
            let after = done.map_err(|error| failed(&error))?;
            let hex = |print: [u8; 32]| print.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let roots: Vec<_> = after.root_fingerprints().into_iter().map(hex).collect();
            if output.format == crate::args::Format::Json {
                let document = json!({
                    "schema_version": SCHEMA_VERSION,
                    "mesh": after.mesh(),
                    "roots": roots,
                    "dir": ca.display().to_string(),
                });
                output.json(&document.to_string())?;
            } else {
                let shown = roots.join("\n  ");
                let copy = "copy ca_dir of each controller again where it is a copy of these directories";
                output
                    .write(&format!("trusted roots, the present one first:\n  {shown}\n{copy}\n{next}\n"))?;
            }
        }
        Ca::Issue { ca, role, name, out, days } => {
            let authority = CertificateAuthority::open(&ca).map_err(|error| failed(&error))?;
            let identity = authority.issue(role, &name, &out, DAY * days).map_err(|error| failed(&error))?;
            let expires = expires(&out)?;
            let dir = out.display();
            let (uri, address) = (identity.uri(), identity.address);
            let text = format!("issued {uri}, address {address}, until {expires}, in {dir}\n");
            let document = json!({
                "schema_version": SCHEMA_VERSION,
                "node": identity.node,
                "role": identity.role,
                "address": address.to_string(),
                "uri": uri,
                "certificate_expires": expires,
                "dir": dir.to_string(),
            });
            output.show(&Answer(document.to_string()), Shape { items: None, name: "node" }, &text)?;
        }
    }
    Ok(Exit::Ok)
}

/// Reads back what was issued, as the node will.
fn expires(out: &Path) -> Result<String, Failure> {
    let credentials = Credentials::load(out).map_err(|error| Failure::of(Exit::Failed, &error))?;
    Ok(credentials.expires().to_string())
}

fn failed(error: &Error) -> Failure {
    let failure = Failure::of(Exit::Failed, error);
    match error {
        Error::Exists(_) => failure.hint("choose another directory; an authority is never overwritten"),
        Error::OtherRole { .. } => failure.hint("choose another name; names are unique in a mesh"),
        Error::Occupied { .. } => failure.hint("choose another --out; each node has its own directory"),
        _ => failure,
    }
}
