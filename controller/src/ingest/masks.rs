//! Command and environment of a run, made readable: what is secret is masked before anything is stored.

use std::borrow::Cow;

/// What stands for a secret. Of no use to anybody, and of no telling length.
pub const MASK: &str = "**********";

/// Parts of a variable's name that make its value a secret, by AWX's rule.
const SECRET_NAMES: [&str; 5] = ["API", "TOKEN", "KEY", "SECRET", "PASS"];
/// Shortest secret that is masked within other text. A shorter one is masked where it is the whole value: within text
/// it would mask half the alphabet, and tell more by where it does than it hides.
const WITHIN_MIN: usize = 4;

/// Masks the values it knows.
pub(super) struct Masks {
    /// Longest first, so that a secret within another leaves no rest of it.
    secrets: Vec<String>,
}

impl Masks {
    pub(super) fn new(secrets: &[String]) -> Self {
        let mut secrets: Vec<String> = secrets.iter().filter(|secret| !secret.is_empty()).cloned().collect();
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self { secrets }
    }

    /// A word of the command.
    pub(super) fn argument(&self, word: &str) -> String {
        self.text(word).into_owned()
    }

    /// The value of a variable.
    pub(super) fn variable(&self, name: &str, value: &str) -> String {
        if is_secret_name(name) && !value.is_empty() {
            return MASK.to_owned();
        }
        self.text(value).into_owned()
    }

    /// Whether a secret long enough to be told from other text is in here.
    pub(super) fn finds(&self, text: &str) -> bool {
        self.secrets.iter().filter(|secret| secret.len() >= WITHIN_MIN).any(|secret| {
            let quoted = serde_json::to_string(secret).unwrap_or_default();
            text.contains(secret.as_str()) || text.contains(quoted.trim_matches('"'))
        })
    }

    fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.secrets.iter().any(|secret| secret == text) {
            return Cow::Borrowed(MASK);
        }
        let mut masked = mask_urls(text);
        for secret in self.secrets.iter().filter(|secret| secret.len() >= WITHIN_MIN) {
            if masked.contains(secret.as_str()) {
                masked = Cow::Owned(masked.replace(secret.as_str(), MASK));
            }
            // As it stands in JSON, which extra variables are passed as.
            let quoted = serde_json::to_string(secret).unwrap_or_default();
            let inner = quoted.trim_matches('"');
            if inner != secret && masked.contains(inner) {
                masked = Cow::Owned(masked.replace(inner, MASK));
            }
        }
        masked
    }
}

/// By AWX's rule: Ansible's own settings and the public half of an AWS key are no secrets, galaxy and network ones are.
fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    if name == "AWS_ACCESS_KEY_ID" {
        return false;
    }
    if name.starts_with("ANSIBLE_")
        && !name.starts_with("ANSIBLE_NET")
        && !name.starts_with("ANSIBLE_GALAXY_SERVER")
    {
        return false;
    }
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// Masks `pass` in every `scheme://user:pass@host`.
fn mask_urls(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, authority) = rest.split_at(at + 3);
        out.push_str(before);
        let end =
            authority.find(|c: char| c == '/' || c.is_whitespace() || c == '"').unwrap_or(authority.len());
        // The last `@` ends the password, which may hold others.
        match authority[..end].rfind('@').and_then(|host| Some((authority[..host].find(':')?, host))) {
            Some((colon, host)) => {
                out.push_str(&authority[..=colon]);
                out.push_str(MASK);
                rest = &authority[host..];
            }
            None => rest = authority,
        }
    }
    if out.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(out + rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let masks = Masks::new(&[
            "hunter22".into(),
            "hunter22-long".into(),
            "x".into(),
            "a\"b\\c".into(),
            String::new(),
        ]);
        assert_eq!(masks.argument(text), expected);
    }

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        check("hunter22", MASK);
        check("--password=hunter22 -v", &format!("--password={MASK} -v"));
        check("hunter22-long", MASK);
        check("{\"p\": \"hunter22-long\"}", &format!("{{\"p\": \"{MASK}\"}}"));
        check("{\"p\": \"a\\\"b\\\\c\"}", &format!("{{\"p\": \"{MASK}\"}}"));
        check("x", MASK);
        check("exit", "exit");
        check("", "");
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        check("https://user:pw@host/x?a=b://c", &format!("https://user:{MASK}@host/x?a=b://c"));
        check(
            "git+ssh://u:p@q@host and http://a:b@c",
            &format!("git+ssh://u:{MASK}@host and http://a:{MASK}@c"),
        );
        check("https://host:8043/path@x", "https://host:8043/path@x");
        check("https://user@host", "https://user@host");
    }

    #[test]
    fn names_tell_secrets() {
        let masks = Masks::new(&[]);
        for name in [
            "API_URL",
            "my_token",
            "SSH_KEY",
            "SECRET",
            "DB_PASSWORD",
            "ANSIBLE_NET_PASSWORD",
            "ANSIBLE_GALAXY_SERVER_TOKEN",
        ] {
            assert_eq!(masks.variable(name, "value"), MASK, "{name}");
        }
        for name in ["PATH", "ANSIBLE_HOST_KEY_CHECKING", "AWS_ACCESS_KEY_ID", "HOME"] {
            assert_eq!(masks.variable(name, "value"), "value", "{name}");
        }
    }
}
