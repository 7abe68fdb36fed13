//! Ansible's PLAY RECAP, read back from a job's output.

use std::collections::BTreeMap;

/// Counts of one host, zero ones included: `ok`, `changed`, `unreachable`, `failed`, `skipped`, `rescued`, `ignored`.
pub type HostRecap = BTreeMap<String, u32>;

/// The recap of a job: hosts and their counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recap(pub BTreeMap<String, HostRecap>);

impl Recap {
    /// Reads the last recap in a job's output, with or without colours. Empty when there is none.
    pub fn parse(output: &str) -> Self {
        let text = plain(output);
        let Some(start) = text.rfind("PLAY RECAP") else { return Self::default() };
        let hosts = text[start..]
            .lines()
            .skip(1)
            .map_while(|line| {
                let (host, counts) = line.split_once(" : ")?;
                let counts = counts
                    .split_whitespace()
                    .map(|pair| {
                        let (name, count) = pair.split_once('=')?;
                        Some((name.to_owned(), count.parse().ok()?))
                    })
                    .collect::<Option<HostRecap>>()?;
                Some((host.trim().to_owned(), counts))
            })
            .collect();
        Self(hosts)
    }

    /// A recap from text as the playbooks' README writes it: `web1: ok=1 failed=1; web2: ok=2`. Counts left out are 0.
    pub fn expected(text: &str) -> Self {
        let hosts = text
            .split(';')
            .filter_map(|part| part.split_once(':'))
            .map(|(host, counts)| {
                let mut recap: HostRecap =
                    ["ok", "changed", "unreachable", "failed", "skipped", "rescued", "ignored"]
                        .into_iter()
                        .map(|name| (name.to_owned(), 0))
                        .collect();
                for pair in counts.split_whitespace() {
                    if let Some((name, count)) = pair.split_once('=') {
                        recap.insert(name.to_owned(), count.parse().unwrap_or(u32::MAX));
                    }
                }
                (host.trim().to_owned(), recap)
            })
            .collect();
        Self(hosts)
    }
}

/// Text without ANSI colour sequences.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..start]);
        let sequence = &rest[start + 2..];
        let end = sequence.find(|c: char| c.is_ascii_alphabetic()).map_or(sequence.len(), |at| at + 1);
        rest = &sequence[end..];
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "PLAY RECAP *****\r\n\u{1b}[0;33mweb1\u{1b}[0m    : \u{1b}[0;32mok=9   \u{1b}[0m \u{1b}[0;33mchanged=5   \u{1b}[0m \
         unreachable=0    failed=0    skipped=0    rescued=0    ignored=0   \r\n\
         web2    : ok=1 changed=0 unreachable=0 failed=1 skipped=0 rescued=0 ignored=0\r\n\r\n";

    #[test]
    fn coloured_recap_is_read() {
        assert_eq!(Recap::parse(OUTPUT), Recap::expected("web1: ok=9 changed=5; web2: ok=1 failed=1"));
    }

    #[test]
    fn output_without_recap_is_empty() {
        assert_eq!(Recap::parse("ERROR! no such playbook"), Recap::default());
    }
}
