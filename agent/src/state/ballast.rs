//! A file that holds nothing but space: it is given up when the disk is full, so that the documents that would free
//! the disk can still be written down.
//!
//! Whether it is time to give it up or to make it again is decided here; what the space is for is not.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};

/// Room for hundreds of documents.
const SIZE: i64 = 4 << 20;
/// `st_blocks` counts in these, whatever the file system uses.
const BLOCK: u64 = 512;

/// The ballast of a state directory.
#[derive(Debug, Clone)]
pub struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// The ballast in this directory, whether or not it is there.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        Self {
            path: directory.join("ballast"),
        }
    }

    /// Makes it if it is not there and there is room for more than it alone. `false`: there is not.
    ///
    /// # Errors
    /// Those of the file system, as they are.
    pub fn keep(&self) -> io::Result<bool> {
        let size = u64::try_from(SIZE).map_err(io::Error::other)?;
        match fs::symlink_metadata(&self.path) {
            // One that was cut short, or has holes, is worth nothing.
            Ok(metadata) if metadata.blocks().saturating_mul(BLOCK) >= size => return Ok(true),
            Ok(_) => fs::remove_file(&self.path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let status = statvfs(directory_of(&self.path)?)?;
        let free = status
            .blocks_available()
            .saturating_mul(status.fragment_size());
        // What was given up for others is not taken back from them at once.
        if free < size.saturating_mul(2) {
            return Ok(false);
        }
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|file| {
                posix_fallocate(&file, 0, SIZE)?;
                file.sync_all()
            });
        match made {
            Ok(()) => Ok(true),
            Err(error) => {
                self.give_up()?;
                if is_full(&error) {
                    Ok(false)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Writes something; if the disk is full, once more without the ballast.
    ///
    /// # Errors
    /// Those of the write, or that the ballast could not be removed.
    pub fn spend<T>(&self, write: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match write() {
            Err(error) if is_full(&error) && self.give_up()? => {
                tracing::warn!(
                    ballast = %self.path.display(),
                    "the disk is full: the space that was kept for this is given up; it is kept again when there is room"
                );
                write()
            }
            result => result,
        }
    }

    /// Removes it; `false`: there was none.
    fn give_up(&self) -> io::Result<bool> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn directory_of(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Whether an error means that there is no space, for anybody or for this user.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn full() -> io::Error {
        io::ErrorKind::StorageFull.into()
    }

    #[test]
    fn it_is_really_allocated_and_made_again_when_it_was_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let ballast = Ballast::of(directory.path());
        let allocated = || fs::metadata(&ballast.path).unwrap().blocks() * BLOCK;
        assert!(ballast.keep().unwrap());
        assert!(allocated() >= 4 << 20);
        fs::write(&ballast.path, b"").unwrap();
        assert!(ballast.keep().unwrap());
        assert!(allocated() >= 4 << 20);
    }

    #[test]
    fn it_is_given_up_for_a_full_disk_and_for_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let ballast = Ballast::of(directory.path());
        ballast.keep().unwrap();
        let tries = Cell::new(0);
        let write = |error: fn() -> io::Error| {
            tries.set(tries.get() + 1);
            if ballast.path.exists() {
                Err(error())
            } else {
                Ok(())
            }
        };
        ballast
            .spend(|| write(|| io::ErrorKind::PermissionDenied.into()))
            .unwrap_err();
        assert_eq!(tries.replace(0), 1);
        ballast.spend(|| write(full)).unwrap();
        assert_eq!(tries.get(), 2);
        // Once it is gone, a full disk is an error.
        let error = ballast.spend(|| Err::<(), _>(full())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
