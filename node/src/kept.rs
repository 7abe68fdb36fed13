//! Private data directories that are kept for a while after their unit, for who looks for a fault.
//!
//! They stay on tmpfs, without the files that hold keys and passwords, and go when their time is up or the machine restarts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use plexus_proto::work::PrivateFile;

/// Longest time for which anything is kept: it takes memory.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Beside the private directory: files of it that are never kept, one path a line.
const SECRETS: &str = "secrets";
/// What else may hold keys or passwords, in a private directory as ansible-runner uses it. `command` and `env.list` hold the whole
/// environment, `ssh_key_data` is a pipe for a key.
const ALWAYS: [&str; 4] = [".plexus-env", "env/ssh_key", "env/passwords", "env/envvars"];
const OF_A_RUN: [&str; 3] = ["command", "env.list", "ssh_key_data"];
/// Ends the name of the file whose time of change is when the directory beside it goes.
const UNTIL: &str = "until";

/// Notes which files of a private block are secret. Blocks.
///
/// # Errors
/// The file system refuses.
pub fn note(runtime_dir: &Path, files: &[PrivateFile]) -> io::Result<()> {
    let secret = files.iter().filter(|file| file.secret).map(|file| file.path.as_str());
    fs::write(runtime_dir.join(SECRETS), secret.collect::<Vec<_>>().join("\n"))
}

/// Moves the private directory of an ended unit to `to`, until `time` from now has passed, and removes from it what is secret.
/// Blocks.
///
/// # Errors
/// There is none, or what is secret cannot be told or removed; then it is to be removed as ever.
pub fn keep(runtime_dir: &Path, to: &Path, time: Duration) -> io::Result<()> {
    let private = runtime_dir.join("private");
    let noted = fs::read_to_string(runtime_dir.join(SECRETS))?;
    for path in noted.lines().filter(|path| !path.is_empty()).chain(ALWAYS) {
        remove(&private.join(path))?;
    }
    for run in fs::read_dir(private.join("artifacts"))? {
        let run = run?;
        if run.file_type()?.is_dir() {
            for name in OF_A_RUN {
                remove(&run.path().join(name))?;
            }
        }
    }
    // The tree was mounted or linked here, and goes with the unit.
    let project = private.join("project");
    fs::remove_file(&project).or_else(|_| fs::remove_dir(&project)).ok();
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let until = fs::File::create(to.with_extension(UNTIL))?;
    until.set_modified(SystemTime::now() + time)?;
    fs::rename(&private, to)
}

/// Directories below `dir` whose time is up. Blocks.
pub fn expired(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_over = |path: &PathBuf| {
        let until = fs::metadata(path.with_extension(UNTIL)).and_then(|meta| meta.modified());
        path.extension().is_none_or(|end| end != UNTIL) && until.is_ok_and(|until| until <= SystemTime::now())
    };
    entries.filter(is_over).collect()
}

/// Forgets the time of a directory that was removed. Blocks.
pub fn forget(path: &Path) {
    fs::remove_file(path.with_extension(UNTIL)).ok();
}

/// A link in place of a directory on the way would lead elsewhere; what is there then is not removed but refused.
fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) if path.parent().is_some_and(Path::is_symlink) => Err(io::ErrorKind::NotADirectory.into()),
        Ok(_) => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, secret: bool) -> PrivateFile {
        PrivateFile { path: path.to_owned(), secret, ..PrivateFile::default() }
    }

    fn ended() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["env/settings", "env/extravars", "env/ssh_key", "artifacts/1/rc", "artifacts/1/command"]
        {
            let path = dir.path().join("private").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        dir
    }

    #[test]
    fn what_is_kept_holds_no_secrets_and_goes_when_its_time_is_up() {
        let dir = ended();
        note(dir.path(), &[file("env/settings", false), file("env/extravars", true)]).unwrap();
        let kept = dir.path().join("kept/unit-1");
        keep(dir.path(), &kept, Duration::from_secs(60)).unwrap();
        assert!(kept.join("env/settings").exists() && kept.join("artifacts/1/rc").exists());
        for gone in ["env/extravars", "env/ssh_key", "artifacts/1/command"] {
            assert!(!kept.join(gone).exists(), "{gone}");
        }
        assert!(!dir.path().join("private").exists());
        let all = kept.parent().unwrap();
        assert_eq!(expired(all), [""; 0].map(PathBuf::from));
        let until = fs::File::options().write(true).open(kept.with_extension(UNTIL)).unwrap();
        until.set_modified(SystemTime::now()).unwrap();
        assert_eq!(expired(all), std::slice::from_ref(&kept));
        fs::remove_dir_all(&kept).unwrap();
        forget(&kept);
        assert_eq!(fs::read_dir(all).unwrap().count(), 0);
    }

    #[test]
    fn without_word_of_what_is_secret_nothing_is_kept() {
        let dir = ended();
        keep(dir.path(), &dir.path().join("kept/unit-1"), Duration::from_secs(60)).unwrap_err();
        assert!(dir.path().join("private").exists());
    }

    #[test]
    fn a_link_in_place_of_a_directory_leads_nowhere() {
        let dir = ended();
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("ssh_key"), "mine").unwrap();
        note(dir.path(), &[]).unwrap();
        fs::remove_dir_all(dir.path().join("private/env")).unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("private/env")).unwrap();
        keep(dir.path(), &dir.path().join("kept/unit-1"), Duration::from_secs(60)).unwrap_err();
        assert!(other.path().join("ssh_key").exists());
    }
}
