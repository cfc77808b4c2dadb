//! Temporary files: each is owned by the step that made it and removed with it, whatever way the step ends. What a
//! killed agent left behind is swept, and recognized by name alone.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

use super::{atomic::TEMPORARY_PREFIX, fault::StorageFault, instances};
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
        })
    }

    fn owns(&self, path: &Path) -> bool {
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
}

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file, which is complete and on disk, its final name; durable when this returns.
    pub(super) fn publish(self, path: &Path) -> Result<(), StorageFault> {
        fs::rename(&self.path, path)
            .map_err(|source| StorageFault::io("give its final name to", path, source))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        super::atomic::sync_directory(directory)
            .map_err(|source| StorageFault::io("write to disk the directory", directory, source))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "a temporary file stays until the next start");
            }
        }
        self.owned.lock().remove(&self.path);
    }
}

/// Removes temporary files that no step of this process owns.
pub(super) fn sweep(paths: &Paths, owned: &Temporaries) -> Result<(), StorageFault> {
    let mut directories = vec![paths.images.clone(), paths.instances.clone()];
    directories.extend(
        instances::list(paths)?
            .into_iter()
            .map(|id| paths.instance(id)),
    );
    for directory in directories {
        let Some(entries) = instances::entries(&directory)? else {
            continue;
        };
        for entry in entries {
            let path = directory.join(&entry);
            let leftover = [PARTIAL, TMP, TEMPORARY_PREFIX]
                .iter()
                .any(|prefix| entry.starts_with(prefix));
            if !leftover || owned.owns(&path) {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "removed what an interrupted step left")
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(StorageFault::io("remove the leftover", &path, source)),
            }
        }
    }
    Ok(())
}
