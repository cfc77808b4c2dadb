//! Temporary files: each is owned by the step that made it and removed with it, whatever way the step ends. What a
//! killed agent left behind is swept, and recognized by name alone.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};
use uuid::Uuid;

use super::{atomic::TEMPORARY_PREFIX, fault::StorageFault, instances, partial::FROM};
use crate::decide::instance::Paths;

/// Prefix of images that are not whole yet.
pub(super) const PARTIAL: &str = ".partial-";
/// Prefix of other files that are not whole yet.
pub(super) const TMP: &str = ".tmp-";

/// The temporary files that steps of this process own.
#[derive(Debug, Clone, Default)]
pub(super) struct Temporaries {
    owned: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Temporaries {
    /// A name in the directory that nothing has; whatever is made there is removed with the returned value.
    pub(super) fn claim(&self, directory: &Path, purpose: &str) -> Result<Temporary, StorageFault> {
        let prefix = if purpose.starts_with('.') { "" } else { TMP };
        let path =
            absolute(directory).join(format!("{prefix}{purpose}-{}", Uuid::new_v4().simple()));
        self.lock().insert(path.clone());
        Ok(Temporary {
            path,
            owned: self.clone(),
            at_end: AtEnd::Remove,
        })
    }

    /// This name in the directory; whatever is there is removed with the returned value. `None`: another step has it.
    pub(super) fn claim_named(&self, directory: &Path, name: &str) -> Option<Temporary> {
        let path = absolute(directory).join(name);
        self.lock().insert(path.clone()).then(|| Temporary {
            path,
            owned: self.clone(),
            at_end: AtEnd::Remove,
        })
    }

    pub(super) fn owns(&self, path: &Path) -> bool {
        self.lock().contains(&absolute(path))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        // A set of paths is whole after every operation, so a panic elsewhere cannot have broken it.
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path from the root, as one way to write it; unchanged if the process has no working directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A temporary file of a step that runs.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    owned: Temporaries,
    at_end: AtEnd,
}

/// What becomes of a temporary file when its step lets go of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Remove,
    Leave,
}

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets go of the file, and leaves it to whoever claims its name next.
    pub(super) fn leave(mut self) {
        self.at_end = AtEnd::Leave;
    }

    /// Gives the file, which is complete and on disk, its final name; durable when this returns. A file that has the name
    /// already stays: a step that was given up may have been faster, and a guest may be writing to what it made.
    pub(super) fn publish(self, path: &Path) -> Result<(), StorageFault> {
        match renameat2(
            AT_FDCWD,
            &self.path,
            AT_FDCWD,
            path,
            RenameFlags::RENAME_NOREPLACE,
        ) {
            Ok(()) | Err(Errno::EEXIST) => {}
            // A file system that cannot do that.
            Err(Errno::EINVAL | Errno::ENOSYS) => fs::rename(&self.path, path)
                .map_err(|source| StorageFault::io("give its final name to", path, source))?,
            Err(errno) => {
                let source = io::Error::from(errno);
                return Err(StorageFault::io("give its final name to", path, source));
            }
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        super::atomic::sync_directory(directory)
            .map_err(|source| StorageFault::io("write to disk the directory", directory, source))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let removed = match self.at_end {
            AtEnd::Remove => fs::remove_file(&self.path),
            AtEnd::Leave => Ok(()),
        };
        match removed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "a temporary file stays until the next start");
            }
        }
        self.owned.lock().remove(&self.path);
    }
}

/// Whether it is one of the two files of a download that can be continued, and that is not older than this.
fn can_go_on(path: &Path, keep: Duration) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    if !name.starts_with(PARTIAL) {
        return false;
    }
    let bytes = path.with_file_name(name.strip_suffix(FROM).unwrap_or(name));
    let mark = path.with_file_name(format!("{}{FROM}", name.strip_suffix(FROM).unwrap_or(name)));
    let is_file = |path: &Path| {
        fs::symlink_metadata(path)
            .ok()
            .filter(fs::Metadata::is_file)
    };
    let young = is_file(&bytes)
        .and_then(|metadata| metadata.modified().ok())
        .is_some_and(|at| at.elapsed().unwrap_or_default() < keep);
    young && is_file(&mark).is_some()
}

/// Removes temporary files that no step of this process owns, except downloads that can be continued and were worked
/// on lately. One that cannot be removed keeps no other one; answers why each of them stays.
pub(super) fn sweep(
    paths: &Paths,
    owned: &Temporaries,
    keep_partial: Duration,
) -> Vec<StorageFault> {
    let mut stay = Vec::new();
    let mut directories = vec![
        paths.images.clone(),
        paths.instances.clone(),
        paths.volumes.clone(),
        paths.snapshots.clone(),
        paths.metadata.clone(),
    ];
    match instances::list(paths) {
        Ok(ids) => directories.extend(ids.into_iter().map(|id| paths.instance(id))),
        Err(fault) => stay.push(fault),
    }
    stay.extend(sweep_in(&directories, owned, keep_partial));
    stay
}

/// The same in these directories, and in no other ones.
pub(super) fn sweep_in(
    directories: &[PathBuf],
    owned: &Temporaries,
    keep_partial: Duration,
) -> Vec<StorageFault> {
    let mut stay = Vec::new();
    for directory in directories {
        let entries = match instances::entries(directory) {
            Ok(entries) => entries,
            Err(fault) => {
                stay.push(fault);
                continue;
            }
        };
        for entry in entries.into_iter().flatten() {
            let path = directory.join(&entry);
            let leftover = [PARTIAL, TMP, TEMPORARY_PREFIX]
                .iter()
                .any(|prefix| entry.starts_with(prefix));
            if !leftover || owned.owns(&path) || can_go_on(&path, keep_partial) {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "removed what an interrupted step left")
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    stay.push(StorageFault::io("remove the leftover", &path, source));
                }
            }
        }
    }
    stay
}
