//! Users: names, passwords, who may do everything.

use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use crate::auth;
use crate::registry::read::Record;
use crate::registry::write::Draft;
use crate::store::core::WriteTx;
use crate::vault::ENCRYPTED;

/// Longest password.
const MAX_PASSWORD: usize = 1024;

/// Whether the password is there and empty: that is what `awx import` sends, because an export holds no passwords. Such a user
/// cannot log in until an administrator gives them one.
fn is_imported(call: &Call) -> bool {
    call.object().is_ok_and(|body| body.get("password").and_then(Value::as_str) == Some(""))
}

pub(super) struct Users;

impl Rules for Users {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let user = call.user()?;
            if draft.has("username") {
                let name = draft.text("username");
                if !name.chars().all(|c| c.is_alphanumeric() || "@.+-_".contains(c)) {
                    let words = "Enter a valid username. This value may contain only letters, numbers, and @/./+/-/_ characters.";
                    return Err(ApiError::field("username", words));
                }
            }
            if !user.is_superuser {
                // People may change what is theirs, but not what they may do.
                for name in ["is_superuser", "is_system_auditor"] {
                    let new = draft.value(name).and_then(Value::as_bool);
                    if new.is_some_and(|new| before.is_none_or(|before| before.flag(name) != new)) {
                        return Err(ApiError::forbidden());
                    }
                }
            }
            let password = draft.take("password").unwrap_or_default();
            let password = password.as_str().filter(|text| !text.is_empty() && *text != ENCRYPTED);
            match (password, before) {
                (Some(password), _) if password.len() > MAX_PASSWORD => {
                    let words = format!("Ensure this field has no more than {MAX_PASSWORD} characters.");
                    return Err(ApiError::field("password", words));
                }
                (Some(password), _) => {
                    let hash = call.app.auth.hash(password).await?;
                    draft.aside.insert("password_hash".to_owned(), hash.into());
                }
                (None, None) if is_imported(call) => {
                    let (nobody_knows, _) = auth::new_token()?;
                    let hash = call.app.auth.hash(&nobody_knows).await?;
                    draft.aside.insert("password_hash".to_owned(), hash.into());
                }
                (None, None) => return Err(ApiError::field("password", "Password required for new User.")),
                (None, Some(_)) => {}
            }
            Ok(())
        })
    }

    fn written<'a>(&'a self, _: &'a Call, tx: &'a mut WriteTx, id: i64, draft: &'a Draft) -> Rule<'a> {
        Box::pin(async move {
            let Some(hash) = draft.aside.get("password_hash").and_then(Value::as_str) else { return Ok(()) };
            let mut update = Query::update();
            update.table("users").value("password_hash", hash).and_where(Expr::col("id").eq(id));
            tx.execute(&update).await?;
            // Whoever knew the old password is out.
            let mut gone = Query::delete();
            tx.execute(gone.from_table("sessions").and_where(Expr::col("user_id").eq(id))).await?;
            Ok(())
        })
    }

    fn fill<'a>(&'a self, _: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            for record in records {
                record.set("auth", json!([]));
            }
            Ok(())
        })
    }

    fn may_delete<'a>(&'a self, call: &'a Call, record: &'a Record) -> Rule<'a> {
        Box::pin(async move {
            let user = call.user()?;
            if !user.is_superuser || user.id == record.id {
                return Err(ApiError::forbidden());
            }
            Ok(())
        })
    }

    fn own_changes(&self) -> bool {
        true
    }
}
