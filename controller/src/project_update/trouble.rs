//! From what git, svn and others say in a hundred ways to a few reasons that people can act on. Pure.

use serde_json::Value;

/// What went wrong in one sentence, from the data of the task that failed; empty when nothing is known that the output does
/// not say better. What git, svn and curl say in a hundred ways comes to few reasons that people can act on.
pub fn explain(event_data: &str) -> String {
    let data: Value = serde_json::from_str(event_data).unwrap_or_default();
    let text = |name: &str| data["res"][name].as_str().unwrap_or_default().to_owned();
    let said = [text("msg"), text("stderr"), text("stdout")].join("\n");
    let low = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| low.contains(word));
    let task = data["task"].as_str().unwrap_or_default();
    let words = if task == "Look for gpg" {
        "the execution environment lacks gpg, which checks the signature of the content; choose another one for the project"
    } else if task.starts_with("Check ") || task == "Read what is signed" {
        "its content is not signed by the key of its signature validation credential"
    } else if task.starts_with("Install ") {
        "roles or collections that it requires cannot be installed"
    } else if has(&[
        "no such file or directory: b'git'",
        "no such file or directory: b'svn'",
        "failed to find required executable",
    ]) || task.starts_with("Look for ") && has(&["no such file"])
    {
        "the execution environment lacks the program that fetches this kind of project; choose another one for the project"
    } else if has(&[
        "authentication failed",
        "could not read username",
        "could not read password",
        "permission denied (publickey",
        "permission denied, please try again",
        "invalid username or password",
        "http basic: access denied",
        "error: 403",
        "error: 401",
        "error 401",
        "http error 401",
        "http error 403",
        "authorization failed",
        "e170001",
        "e215004",
    ]) {
        "the server refused the login: check the project's source control credential"
    } else if has(&[
        "could not resolve host",
        "name or service not known",
        "temporary failure in name resolution",
        "connection refused",
        "connection timed out",
        "no route to host",
        "network is unreachable",
        "could not connect to server",
        "failed to connect to",
        "e670002",
        "e170013",
        "e000111",
    ]) {
        "the server cannot be reached from the node that ran the update"
    } else if has(&[
        "could not find remote branch",
        "pathspec",
        "remote branch",
        "couldn't find remote ref",
        "failed to checkout",
        "unknown revision",
        "e160006",
        "no such revision",
    ]) {
        "the repository has no such branch, tag or commit"
    } else if has(&[
        "repository not found",
        "does not appear to be a git repository",
        "' not found",
        "e160013",
        "http error 404",
        "404 not found",
    ]) {
        "there is no such repository at this address, or the credential may not see it"
    } else if has(&["no space left on device"]) {
        "a disk of the node was full"
    } else {
        return String::new();
    };
    let mut sentence = format!("The project was not fetched: {words}.");
    if let Some(line) = said.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        let line: String = line.chars().take(300).collect();
        sentence.push_str(&format!(" The last words were: {line}"));
    }
    sentence
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_trouble_is_told_from_the_others() {
        for (said, words) in [
            ("fatal: Authentication failed for 'http://h/a.git/'", "refused the login"),
            (
                "git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.",
                "refused the login",
            ),
            ("fatal: unable to access 'http://h/': Failed to connect to h port 1", "cannot be reached"),
            ("ssh: Could not resolve hostname h: Name or service not known", "cannot be reached"),
            ("Failed to checkout nosuch", "no such branch"),
            ("fatal: repository 'http://h/b.git/' not found", "no such repository"),
        ] {
            let data = json!({"task": "Fetch and check out", "res": {"msg": said}}).to_string();
            let sentence = explain(&data);
            assert!(sentence.contains(words), "{said}: {sentence}");
        }
        assert_eq!(explain("{}"), "");
    }
}
