//! Makes a config drive: a small CD, written by `xorriso` from files that exist only while it works.

use std::{
    ffi::OsString,
    fs::{OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::Arc,
};

use super::{Inner, fault::StorageFault, instances, temporary::Temporary};
use crate::{
    act::command::{Command, Limits},
    decide::{config_drive::LABEL, instance::ConfigDrivePlan},
};

/// What `xorriso` may use: a config drive is smaller than a megabyte.
const LIMITS: Limits = Limits {
    address_space: Some(1 << 30),
    cpu_seconds: Some(30),
    file_size: Some(16 << 20),
};
/// It may hold secrets. libvirt gives it to QEMU's user when the domain starts.
const MODE: u32 = 0o600;

/// Makes a config drive, unless it is there.
pub(super) async fn create(inner: &Arc<Inner>, plan: &ConfigDrivePlan) -> Result<(), StorageFault> {
    let (shared, planned) = (Arc::clone(inner), plan.clone());
    let Some(making) = inner.files.run(move || prepare(&shared, &planned)).await? else {
        return Ok(());
    };
    Command::new(&inner.options.xorriso)
        .args(["-as", "mkisofs", "-quiet", "-V", LABEL, "-J", "-R", "-o"])
        .arg(making.image.path())
        .arg("-graft-points")
        .args(making.grafts())
        .limits(LIMITS)
        .timeout(inner.options.create_deadline)
        .ends_with_agent()
        .run()
        .await
        .map_err(|source| StorageFault::ConfigDrive {
            path: plan.path.clone(),
            source,
        })?;
    let path = plan.path.clone();
    inner.files.run(move || finish(making, path)).await
}

/// A config drive that is being made.
struct Making {
    image: Temporary,
    files: Vec<(&'static str, Temporary)>,
}

impl Making {
    /// `openstack/latest/user_data=/var/…`. Both sides are names that berth made; neither holds a `=` or a backslash.
    fn grafts(&self) -> Vec<OsString> {
        let graft = |(path, file): &(&'static str, Temporary)| {
            let mut graft = OsString::from(path);
            graft.push("=");
            graft.push(file.path());
            graft
        };
        self.files.iter().map(graft).collect()
    }
}

/// `None`: it is there.
fn prepare(inner: &Inner, plan: &ConfigDrivePlan) -> Result<Option<Making>, StorageFault> {
    if instances::is_file(&plan.path)? {
        return Ok(None);
    }
    instances::make(&inner.paths, plan.instance)?;
    let directory = inner.paths.instance(plan.instance);
    let mut files = Vec::with_capacity(plan.files.len());
    for file in &plan.files {
        let temporary = inner.temporaries.claim(&directory, "config-file")?;
        let failed = |source| StorageFault::io("write", temporary.path(), source);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(temporary.path())
            .and_then(|mut opened| opened.write_all(file.content.as_bytes()))
            .map_err(failed)?;
        files.push((file.path, temporary));
    }
    Ok(Some(Making {
        image: inner.temporaries.claim(&directory, "config")?,
        files,
    }))
}

/// Puts the complete drive on the medium, then gives it its name.
fn finish(making: Making, path: PathBuf) -> Result<(), StorageFault> {
    let failed = |source| StorageFault::io("write to disk", making.image.path(), source);
    let file = OpenOptions::new()
        .write(true)
        .open(making.image.path())
        .map_err(failed)?;
    file.set_permissions(Permissions::from_mode(MODE))
        .map_err(failed)?;
    file.sync_all().map_err(failed)?;
    making.image.publish(&path)
}
