//! Tokens, what was redeemed with them, who is a member, and whose certificates count no more.

use sea_query::{Expr, ExprTrait};

use super::dsl::{Gone, Schema};

pub(super) fn build(schema: &mut Schema) {
    schema
        .table("enrolment_tokens")
        .id()
        .bytes("token_id")
        .texts(&["role", "name"])
        // Sealed by the vault: the HMAC of a request is verified with the secret itself, so a hash would not do.
        .text("secret")
        .ints(&["uses", "used"])
        .flag("approve", false)
        .text("addresses")
        .time("expires")
        .opt_time("revoked")
        .text("created_by")
        .stamped();
    schema.unique("enrolment_tokens", &["token_id"]);

    // One row for each key that a token was shown with. The row is the redemption: it is written in the transaction
    // that counts the use, and what was issued is kept in it, so the same key gets the same certificate again.
    schema
        .table("enrolments")
        .id()
        .reference("enrolment_token_id", "enrolment_tokens", Gone::Refuse)
        .bytes("key_hash")
        .bytes("public_key")
        .texts(&["node", "role", "state", "decided_by"])
        .opt_text("chain")
        .opt_time("expires")
        .stamped();
    schema.unique("enrolments", &["enrolment_token_id", "key_hash"]);
    schema.index_where("enrolments", &["state"], Expr::col("state").eq("pending"));

    schema
        .table("members")
        .id()
        .texts(&["node", "role"])
        .int("address", 0)
        .bytes("key_hash")
        .time("expires")
        .stamped();
    schema.unique("members", &["node"]);

    schema.table("revocations").id().text("node").opt_bytes("key_hash").text("revoked_by").time("created");
    schema.index("revocations", &["node"]);
}
