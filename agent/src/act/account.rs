//! Whom the processes become that the agent leaves in networks' namespaces.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use nix::unistd::{Gid, User};

/// Whom the metadata service becomes, the first that exists. Nobody else may read what it tells guests.
pub(super) const METADATA_USERS: [&str; 2] = ["berth-metadata", "nobody"];
/// Who can do anything.
const ROOT: &str = "root";

/// The first of these users that exists, if any such one can reach a directory; otherwise root.
pub(super) fn without_rights(users: &[&'static str], directory: &Path) -> io::Result<&'static str> {
    for directory in directory.ancestors() {
        let mode = fs::metadata(directory)?.permissions().mode();
        if mode & 0o001 == 0 {
            tracing::warn!(
                directory = %directory.display(),
                "what serves guests runs as root, because no other user can pass through this directory"
            );
            return Ok(ROOT);
        }
    }
    for user in users {
        if User::from_name(user)?.is_some() {
            return Ok(user);
        }
    }
    Ok(ROOT)
}

/// The group of the first of these users that exists; `None`: there is none.
pub(super) fn group_of(users: &[&'static str]) -> io::Result<Option<Gid>> {
    for user in users {
        if let Some(user) = User::from_name(user)? {
            return Ok(Some(user.gid));
        }
    }
    Ok(None)
}
