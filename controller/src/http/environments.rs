//! Execution environments: images that jobs run in.

use axum::http::StatusCode;
use sea_query::{Expr, ExprTrait, Query};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use crate::registry::read::Record;
use crate::registry::write::Draft;

pub(super) struct Environments;

impl Rules for Environments {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            if let Some(before) = before {
                if before.flag("managed") {
                    let others = draft.resource.fields.iter().filter(|field| field.name != "pull");
                    for field in others {
                        let old = before.fields.get(field.name);
                        if draft.value(field.name).is_some_and(|new| Some(new) != old) {
                            let words =
                                "Only the 'pull' field can be edited for managed execution environments.";
                            return Err(ApiError::Detail(StatusCode::FORBIDDEN, words.to_owned()));
                        }
                    }
                }
                let old = before.int("organization");
                if draft.has("organization")
                    && draft.int("organization").is_some_and(|new| old.is_some_and(|old| old != new))
                {
                    let words = "Cannot change the organization of an execution environment";
                    return Err(ApiError::field("organization", words));
                }
            }
            if draft.has("image") {
                let image = draft.text("image").trim().to_owned();
                check_image(&image).map_err(|words| ApiError::field("image", words))?;
                draft.set("image", image);
            }
            if let Some(credential) = draft.int("credential") {
                let mut query = Query::select();
                query.column(("t", "kind")).from_as("credentials", "c").join_as(
                    sea_query::JoinType::InnerJoin,
                    "credential_types",
                    "t",
                    Expr::col(("t", "id")).equals(("c", "credential_type_id")),
                );
                query.and_where(Expr::col(("c", "id")).eq(credential));
                let row = call.app.db.optional(&query).await?;
                let kind = row.map(|row| row.at::<String>(0)).transpose()?;
                if kind.as_deref() != Some("registry") {
                    let words =
                        "Only Container Registry credentials can be associated with an Execution Environment";
                    return Err(ApiError::field("credential", words));
                }
            }
            Ok(())
        })
    }

    fn may_delete<'a>(&'a self, _: &'a Call, record: &'a Record) -> Rule<'a> {
        Box::pin(async move {
            if record.flag("managed") {
                let words = "Managed execution environments cannot be deleted.";
                return Err(ApiError::Detail(StatusCode::FORBIDDEN, words.to_owned()));
            }
            Ok(())
        })
    }
}

/// Checks that a text is an image reference: `[registry[:port]/]path[:tag][@digest]`. It goes into a command line on
/// a node, so nothing that could be an option or a second word passes.
pub(super) fn check_image(image: &str) -> Result<(), String> {
    let wrong =
        || Err(format!("{image:?} is not a valid container image name, such as quay.io/org/name:tag."));
    // Local archives and such, as the runtimes take them, are a node's own business.
    let name = image.strip_prefix("docker://").unwrap_or(image);
    if name.is_empty() || name.len() > 1024 {
        return wrong();
    }
    let (name, digest) = name.split_once('@').map_or((name, None), |(name, digest)| (name, Some(digest)));
    if let Some(digest) = digest {
        let (algorithm, hex) = digest.split_once(':').unwrap_or((digest, ""));
        let known = !algorithm.is_empty()
            && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b));
        if !known || hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return wrong();
        }
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    };
    if let Some(registry) = registry {
        let (host, port) =
            registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
        let host_is = host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        });
        if !host_is || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return wrong();
        }
    }
    let (path, tag) = path.rsplit_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
    if let Some(tag) = tag {
        let begins = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !begins
            || tag.len() > 128
            || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        {
            return wrong();
        }
    }
    let part_is = |part: &str| {
        let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(part.bytes().next())
            && edge(part.bytes().last())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
    };
    if path.split('/').all(part_is) { Ok(()) } else { wrong() }
}

#[cfg(test)]
mod tests {
    use super::check_image;

    #[test]
    fn images_are_references() {
        for good in [
            "quay.io/ansible/awx-ee:24.6.1",
            "localhost/plexus-ee:test",
            "localhost:5000/ee",
            "ee",
            "ubuntu:22.04",
            "docker://docker.io/library/ubuntu",
            "registry.example.org:5000/a/b-c/d_e:v1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(check_image(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "not an image!",
            "--privileged",
            "quay.io/",
            "quay.io/Org/x",
            "a:b:c",
            "x@sha256:12",
            "a//b",
            "x:-tag",
            "../x",
            "reg:port/x",
            "ä",
            "x;y",
            "-x/y",
        ] {
            assert!(check_image(bad).is_err(), "{bad}");
        }
    }
}
