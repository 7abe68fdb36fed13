//! The decoders that cargo-fuzz searches (`tests/fuzz`), over their corpus and seeded mutations of it: a few seconds
//! that show that nothing is broken. `PLEXUS_VERIFY=1` takes a hundred times as long.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "the library of another workspace")]
mod fuzz;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use plexus_mesh::testing::{Random, decoders};

/// Mutations of each target in an ordinary run.
const MUTATIONS: usize = 5_000;
/// Longest input.
const LENGTH_MAX: usize = 16 * 1024;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = folder().join("corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Does to `input` what wires, disks and liars do.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => input.truncate(at),
            3 => input.insert(at, random.bits() as u8),
            // A number that promises more than there is.
            4 => {
                let end = (at + 4).min(input.len());
                input.splice(
                    at..end,
                    [[0xff; 4], [0, 0, 0xff, 0xff], [0x7f, 0xff, 0xff, 0xff]][random.below(3)],
                );
            }
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = at + random.below(input.len() - at + 1).min(64);
                let twice = input[at..end].to_vec();
                input.splice(at..at, twice);
            }
        }
        input.truncate(LENGTH_MAX);
    }
}

#[test]
fn no_decoder_panics_over_corpus_and_mutations() {
    let times = if std::env::var_os("PLEXUS_VERIFY").is_some() { 100 } else { 1 };
    for (number, &(name, target)) in fuzz::TARGETS.iter().enumerate() {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has a corpus");
        let run = |input: &[u8]| {
            let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(outcome.is_ok(), "{name} panics over {hex}");
        };
        corpus.iter().for_each(|input| run(input));
        run(&[]);
        let mut random = Random(number as u64);
        for _ in 0..MUTATIONS * times {
            let mut input = corpus[random.below(corpus.len())].clone();
            mutate(&mut input, &corpus, &mut random);
            run(&input);
        }
    }
}

/// A name in the list without a cargo-fuzz target would be searched by nobody. Which decoders there are is no test's to
/// know: whoever writes one for foreign bytes puts it under a name.
#[test]
fn every_name_in_the_list_has_a_cargo_fuzz_target() {
    let names: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let files = std::fs::read_dir(folder().join("fuzz_targets")).unwrap();
    let files = files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    assert_eq!(files.collect::<BTreeSet<_>>(), names);
    let manifest = std::fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    for name in &names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}

/// Where an honest input does not get through, mutations of it are refused at the door and show nothing.
#[test]
fn honest_inputs_go_all_the_way() {
    let read = |name: &str| std::fs::read(folder().join("corpus").join(name)).unwrap();
    let certified = decoders::certificates(fuzz::ROOT, fuzz::NOW, &read("certificate/chain")).unwrap();
    assert_eq!(certified.uri(), "spiffe://demo/main/execution/node-1");
    let answer = read("proxy/yes");
    assert_eq!(decoders::proxy_answer(&answer), Some(answer.len() - 3), "what follows is the neighbour's");
    assert_eq!(decoders::proxy_answer(&read("proxy/no")), None);
}

/// The lint, in two parts so that this file does not count.
const UNSAFE: &str = concat!("unsafe_", "code");

/// `unsafe_code` is denied once, for every crate of the workspace, no crate opts out, and one module asks for one exception.
#[test]
fn unsafe_code_stands_in_one_module() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"deny\"\n"));
    let members = manifest.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let members: Vec<&str> = members.split(',').map(|member| member.trim().trim_matches('"')).collect();
    assert!(members.len() >= 7, "{members:?}");
    for member in members {
        let manifest = std::fs::read_to_string(root.join(member).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member}");
    }
    let mut asking = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_str().unwrap();
            if entry.file_type().unwrap().is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let times =
                    ["allow", "expect"].map(|how| text.matches(&format!("{how}({},", UNSAFE)).count());
                let times = times.iter().sum::<usize>() + text.matches(&format!("({UNSAFE})")).count();
                asking.extend(std::iter::repeat_n(path.strip_prefix(&root).unwrap().to_owned(), times));
            }
        }
    }
    assert_eq!(asking, [PathBuf::from("mesh/src/memory.rs")]);
}
