//! Small files of the processes in networks' namespaces, as several of them need them.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::error::NetError;

/// An option with a path as its value, as one argument.
pub(super) fn argument(option: &str, path: &Path) -> PathBuf {
    let mut argument = OsString::from(option);
    argument.push(path);
    PathBuf::from(argument)
}

/// Makes the directory of a network, with the one above it, for everybody to read.
pub(super) fn make_directory(directory: &Path) -> Result<(), NetError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(NetError::file("make directory", directory))?;
    for directory in directory.parent().into_iter().chain([directory]) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
            .map_err(NetError::file("set the mode of", directory))?;
    }
    Ok(())
}

/// What is in a file; `None`: it is not there.
pub(super) fn read(path: &Path) -> Result<Option<String>, NetError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not text: not what we wrote.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(error) => Err(NetError::file("read", path)(error)),
    }
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), NetError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(NetError::file("remove", path)(error)),
    }
}

/// Replaces a file at once. It is not forced onto the disk: what a power cut takes is written anew.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), NetError> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).map_err(NetError::file("write", &temporary))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))
        .map_err(NetError::file("set the mode of", &temporary))?;
    fs::rename(&temporary, path).map_err(NetError::file("replace", path))
}
