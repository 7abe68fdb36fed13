//! From what git, svn and others say in a hundred ways to a few reasons that people can act on. Pure.

use serde_json::Value;

/// Exit codes of our own programs: what they were given is not acceptable, and gpg is missing.
const REFUSED: i64 = 3;
const LACKS_GPG: i64 = 4;

const NOTHING_THERE: &str =
    "there is no such repository or file at this address, or the credential may not see it";

/// What went wrong in one sentence, from the data of the task that failed in `image`; empty when nothing is known that the
/// output does not say better. What git, svn and curl say in a hundred ways comes to few reasons that people can act on.
pub fn explain(event_data: &str, image: &str) -> String {
    let data: Value = serde_json::from_str(event_data).unwrap_or_default();
    let text = |name: &str| data["res"][name].as_str().unwrap_or_default().to_owned();
    // Where get_url says why is `response`.
    let said = [text("msg"), text("response"), text("stderr"), text("stdout")].join("\n");
    let low = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| low.contains(word));
    let task = data["task"].as_str().unwrap_or_default();
    let exit = data["res"]["rc"].as_i64().unwrap_or_default();
    // Our own programs say in one line what is wrong and what to do.
    match (task, exit) {
        ("Check the signature of the content", LACKS_GPG) => {
            return lacks(image, "gpg", "checks the signature of its content");
        }
        ("Check the signature of the content", REFUSED) => {
            return format!("The project was fetched and not accepted: {}.", text("stderr").trim());
        }
        ("Unpack", REFUSED) => return format!("The project was not fetched: {}.", text("stderr").trim()),
        _ => {}
    }
    if let Some(tool) = task.strip_prefix("Look for ")
        // What exactly went wrong, a newer Ansible keeps to itself.
        && has(&["no such file", "not found", "error executing command"])
    {
        return lacks(image, tool, "fetches it");
    }
    if let Some(tool) = low.split("could not find/use ").nth(1).and_then(|rest| rest.split([',', ' ']).next())
    {
        return lacks(image, tool, "fetches roles or collections that it requires");
    }
    let words = if task.starts_with("Install ") {
        "roles or collections that it requires cannot be installed"
    } else if has(&["e210005", "e170000", "w170000", "e160013", "url non-existent"]) {
        NOTHING_THERE
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
        "http error 404",
        "404 not found",
    ]) {
        NOTHING_THERE
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

/// Which tool, which image, and what to do.
fn lacks(image: &str, tool: &str, does: &str) -> String {
    format!(
        "The project was not fetched: execution environment {image} lacks {tool}, which {does}: add {tool} to the image, or \
         choose one that has it as the project's default environment."
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_image_and_what_to_do() {
        let older = json!({"task": "Look for svn", "res": {"msg": "[Errno 2] No such file or directory: b'svn'", "rc": 2}});
        let newer = json!({"task": "Look for svn", "res": {"msg": "Error executing command.", "rc": 2, "stderr": ""}});
        for data in [older, newer] {
            let sentence = explain(&data.to_string(), "ee:1");
            assert!(
                sentence.contains("execution environment ee:1 lacks svn, which fetches it: add svn"),
                "{sentence}"
            );
        }
        let gpg = json!({"task": "Check the signature of the content", "res": {"rc": 4, "stderr": "gpg is missing"}});
        assert!(explain(&gpg.to_string(), "ee:1").contains("execution environment ee:1 lacks gpg"));
        let words =
            "ERROR! could not find/use git, it is required to continue with installing http://h/a.git";
        let role = json!({"task": "Install roles", "res": {"msg": "non-zero return code", "stderr": words, "rc": 1}});
        assert!(explain(&role.to_string(), "ee:1").contains("lacks git, which fetches roles"));
    }

    #[test]
    fn our_own_programs_are_quoted() {
        let said = |task: &str, stderr: &str| {
            explain(&json!({"task": task, "res": {"rc": 3, "stderr": stderr}}).to_string(), "ee:1")
        };
        let sentence = said("Check the signature of the content", "files are not signed: a.yml");
        assert_eq!(sentence, "The project was fetched and not accepted: files are not signed: a.yml.");
        assert_eq!(said("Unpack", "it is no archive"), "The project was not fetched: it is no archive.");
    }

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
            ("svn: E170013: Unable to connect\nsvn: E000111: Can't connect", "cannot be reached"),
            ("svn: E170013: Unable to connect\nsvn: E170001: Authentication error", "refused the login"),
            (
                "svn: E170013: Unable to connect\nsvn: E210005: No repository found in 'svn://h/a'",
                "no such repository",
            ),
            ("svn: E160006: No such revision 99", "no such branch"),
            ("fatal: repository 'http://h/b.git/' not found", "no such repository"),
        ] {
            let data = json!({"task": "Fetch and check out", "res": {"msg": said}}).to_string();
            let sentence = explain(&data, "ee:1");
            assert!(sentence.contains(words), "{said}: {sentence}");
        }
        assert_eq!(explain("{}", "ee:1"), "");
    }
}
