//! The epoch of this node's announcements: a counter on disk, one higher at each start, never a clock.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::StartError;

/// File in the state folder that holds the epoch last used, in decimal.
pub(crate) const EPOCH_FILE: &str = "epoch";

/// Takes the next epoch; it is on disk, synced, when this returns.
///
/// # Errors
/// The folder or file cannot be read or written, or holds something else.
pub(crate) fn next(state_dir: &Path) -> Result<u64, StartError> {
    let path = state_dir.join(EPOCH_FILE);
    let failed = |source| StartError::Epoch { path: path.clone(), source };
    fs::create_dir_all(state_dir).map_err(failed)?;
    let last = match fs::read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            let content =
                |_| StartError::EpochContent { path: path.clone(), found: text.chars().take(40).collect() };
            text.parse::<u64>().map_err(content)?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(failed(error)),
    };
    let epoch = last.saturating_add(1);
    replace(state_dir, &path, format!("{epoch}\n").as_bytes()).map_err(failed)?;
    Ok(epoch)
}

/// Writes the whole file beside the old one and puts it in its place, so that a crash leaves one of both.
fn replace(folder: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_is_one_higher() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("made/here");
        assert_eq!([next(&state).unwrap(), next(&state).unwrap(), next(&state).unwrap()], [1, 2, 3]);
    }

    #[test]
    fn what_is_no_epoch_is_named_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EPOCH_FILE);
        for content in ["", "seven", "-1", "99999999999999999999"] {
            fs::write(&path, content).unwrap();
            let error = next(folder.path()).unwrap_err();
            assert!(matches!(error, StartError::EpochContent { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_had_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(next(&file.join("below")), Err(StartError::Epoch { .. })));
    }
}
