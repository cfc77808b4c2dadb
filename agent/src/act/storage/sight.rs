//! What `qemu-img` sees while it works: the system's programs and libraries, what it reads and what it writes. Blocking.

use std::{
    env,
    path::{Path, PathBuf},
};

use berth_common::telemetry::error_chain;

use super::{
    fault::StorageFault,
    options::StorageOptions,
    original::{Original, Written},
};
use crate::act::command::{
    Access, Account, Command, CommandError, Confinement, Network, PATH, SYSTEM, View,
};

/// Why `qemu-img` cannot be run as somebody without rights who sees nothing else, if it is there at all.
///
/// # Errors
/// What is wrong.
pub async fn check(options: &StorageOptions) -> Result<(), String> {
    let tell = |fault| error_chain(&fault);
    let account = Account::named(&options.qemu_img_user).map_err(|fault| error_chain(&fault))?;
    let confinement = Confinement {
        account,
        network: Network::None,
        view: system(options).map_err(tell)?,
    };
    let version = Command::new(&options.qemu_img)
        .arg("--version")
        .ends_with_agent()
        .confined(confinement);
    match version.run().await {
        Ok(_) => Ok(()),
        // That the host has none is said elsewhere.
        Err(CommandError::Missing { .. }) => match on_host(&options.qemu_img) {
            None => Ok(()),
            Some(path) => Err(unseen(&path)),
        },
        Err(error) => Err(error_chain(&error)),
    }
}

/// Where a program is that is named by its path, or looked for in the system's directories.
fn on_host(program: &Path) -> Option<PathBuf> {
    let mut found = env::split_paths(PATH).map(|directory| directory.join(program));
    found.find(|path| path.is_file())
}

/// Why a program that is there cannot be started where it sees the system and nothing else.
fn unseen(path: &Path) -> String {
    format!(
        "{} is there, but cannot be started as somebody who sees no more than the system's programs and libraries ({}): it, or \
         the loader that it needs, is a link to somewhere else, or lies elsewhere. Install it as a real file in one of these \
         directories, or as a link to one within them",
        path.display(),
        SYSTEM.join(", ")
    )
}

/// The directory of the system's that `qemu-img` sees all of and that this one lies in.
#[must_use]
pub fn seen_with_the_system(directory: &Path) -> Option<&'static str> {
    let directory = directory.canonicalize().ok()?;
    let is_in = |seen: &&str| {
        Path::new(seen)
            .canonicalize()
            .is_ok_and(|seen| directory.starts_with(seen))
    };
    SYSTEM.iter().copied().find(is_in)
}

/// What it sees before it is shown anything to work on.
pub(super) fn system(options: &StorageOptions) -> Result<View, StorageFault> {
    let system = View::of_system();
    let mut view = shown(Path::new("/"), system)?;
    for path in &options.qemu_img_sees {
        view = shown(path, view.with_tree(path))?;
    }
    Ok(view)
}

/// And a new file, which is its own.
pub(super) fn with_new(view: View, path: &Path) -> Result<View, StorageFault> {
    shown(path, view.with_file(path, Access::Write))
}

/// And a disk or a volume to grow, which is root's or QEMU's.
pub(super) fn with_disk(view: View, path: &Path) -> Result<View, StorageFault> {
    shown(path, view.with_private_file(path, Access::Write))
}

/// And a block device to write.
pub(super) fn with_device(view: View, path: &Path) -> Result<View, StorageFault> {
    shown(path, view.with_device(path, Access::Write))
}

/// And an image to read, which everybody may.
pub(super) fn with_image(view: View, path: &Path) -> Result<View, StorageFault> {
    shown(path, view.with_file(path, Access::Read))
}

/// And what to copy: everybody may read an image, and only root a volume or a snapshot.
pub(super) fn with_original(view: View, original: &Original) -> Result<View, StorageFault> {
    let path = &original.path;
    let view = match (original.written, &original.lease) {
        (Written::Sectors(_), _) => view.with_device(path, Access::Read),
        (Written::At(..), Some(_)) => view.with_file(path, Access::Read),
        (Written::At(..), None) => view.with_private_file(path, Access::Read),
    };
    shown(path, view)
}

fn shown(path: &Path, view: std::io::Result<View>) -> Result<View, StorageFault> {
    view.map_err(|source| StorageFault::io("show to qemu-img", path, source))
}
