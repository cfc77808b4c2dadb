//! Writes small files so that a crash at any instant leaves the old content or the new one, never a mixture.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// Mode of files written here: they hold what berth knows, and nobody else needs it.
const MODE: u32 = 0o600;

/// What the names of temporary files start with; leftovers of a killed process can be recognized by it.
pub(crate) const TEMPORARY_PREFIX: &str = ".new-";

/// Writes `bytes` to `path`, durably: temporary file, fsync, rename, fsync of the directory. When this returns, the
/// new content survives a power cut; when it fails, the old content is still there.
///
/// # Errors
/// Those of the file system, as they are.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = directory_of(path);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut temporary_name =
        std::ffi::OsString::from(format!("{TEMPORARY_PREFIX}{}-", Uuid::new_v4().simple()));
    temporary_name.push(name);
    let temporary = directory.join(temporary_name);
    let written = write_new(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is what counts; the leftover is recognizable by its name.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(&directory)
}

/// Removes a file durably; one that is not there is no error.
///
/// # Errors
/// Those of the file system, as they are.
pub fn remove_durably(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(&directory_of(path)),
    }
}

/// Makes the names in a directory survive a power cut.
///
/// # Errors
/// Those of the file system, as they are.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn content_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("document.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(names(directory.path()), ["document.json"]);
        remove_durably(&path).unwrap();
        remove_durably(&path).unwrap();
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_failure_keeps_the_old_content_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(
            write_atomically(&path, b"x").is_err(),
            "a directory is in the way"
        );
        assert_eq!(names(directory.path()), ["taken"]);
        assert!(write_atomically(&directory.path().join("absent/file"), b"x").is_err());
    }
}
