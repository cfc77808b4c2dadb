//! Makes a disk, a qcow2 overlay over a cached image, and makes it larger.
//!
//! The image's header is inspected here again, as the format this document states. `qemu-img` does not open the image:
//! all it has to know of it is told. It is a user without rights who sees one file and nothing else: a disk that is grown was
//! a guest's to write, and its header may name any file of the host.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::Arc,
};

use berth_common::{
    document::{DiskFormat, ImageFormat},
    units::ByteCount,
};
use nix::fcntl::OFlag;

use super::{
    Inner, cache,
    convert::{here, lent, take_back},
    evict::{Lease, touch},
    fault::StorageFault,
    instances, sight,
    temporary::Temporary,
    volume::with_tables,
};
use crate::{
    act::command::{Account, Command, Confinement, Limits, Network, View},
    decide::instance::{DiskName, DiskPlan, LargerDisk},
};

/// What `qemu-img create` may use: it writes tables, not data. Far above what it needs, far below what hurts.
const LIMITS: Limits = Limits {
    address_space: Some(1 << 30),
    cpu_seconds: Some(30),
    file_size: Some(256 << 20),
};
/// libvirt gives the disk to QEMU's user when the domain starts.
pub(super) const DISK_MODE: u32 = 0o600;

/// Makes a disk, unless it is there.
pub(super) async fn create(inner: &Arc<Inner>, plan: &DiskPlan) -> Result<(), StorageFault> {
    let (shared, planned) = (Arc::clone(inner), plan.clone());
    let Some(making) = inner.files.run(move || prepare(&shared, &planned)).await? else {
        return Ok(());
    };

    Command::new(&inner.options.qemu_img)
        .args([
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            making.image_format.as_str(),
            "-b",
        ])
        .arg(&making.image)
        .arg("--")
        .arg(here(making.temporary.path()))
        .arg(plan.size.get().to_string())
        .directory(inner.paths.instance(plan.instance))
        // A network of its own takes the kernel a while to make, and nothing of a stranger's is read here.
        .confined(Confinement {
            account: making.account,
            network: Network::Host,
            view: making.view,
        })
        .limits(LIMITS)
        .malloc_arenas(1)
        .timeout(inner.options.create_deadline)
        .ends_with_agent()
        .run()
        .await
        .map_err(|source| StorageFault::Create {
            what: "make",
            disk: plan.name,
            path: plan.path.clone(),
            source,
        })?;

    let path = plan.path.clone();
    inner
        .files
        .run(move || {
            let done = finish(making.temporary, path);
            // The image may go once the disk has its name.
            drop(making.lease);
            done
        })
        .await
}

/// A disk that is being made.
struct Making {
    account: Account,
    view: View,
    lease: Lease,
    temporary: Temporary,
    image: PathBuf,
    image_format: ImageFormat,
}

/// Everything that can be refused is refused here, before anything exists. `None`: the disk is there.
fn prepare(inner: &Inner, plan: &DiskPlan) -> Result<Option<Making>, StorageFault> {
    let DiskFormat::Qcow2 = plan.format;
    let expected = inner.paths.disk(plan.instance, plan.name, plan.format);
    if plan.path != expected {
        return Err(StorageFault::WrongPlace {
            disk: plan.name,
            expected,
            path: plan.path.clone(),
        });
    }
    if instances::is_file(&plan.path)? {
        return Ok(None);
    }
    let lease = inner.uses.lease(&plan.image);
    let facts =
        cache::facts(&inner.paths, &plan.image)?.ok_or_else(|| StorageFault::NotCached {
            sha256: plan.image.sha256.clone(),
        })?;
    if plan.size < facts.virtual_size {
        let (disk, size) = (plan.name, plan.size.get());
        return Err(StorageFault::DiskTooSmall {
            disk,
            size,
            needed: facts.virtual_size,
        });
    }
    let image = inner.paths.image(&plan.image);
    touch(&image);
    // The overlay's header keeps this path: it must not depend on anybody's working directory.
    let image =
        std::path::absolute(&image).map_err(|source| StorageFault::io("find", &image, source))?;
    let account = Account::named(&inner.options.qemu_img_user)?;
    instances::make(&inner.paths, plan.instance)?;
    let purpose = match plan.name {
        DiskName::Own { index, .. } => format!("disk{index}"),
        DiskName::Rescue(_) => "rescue".to_owned(),
    };
    let temporary = inner
        .temporaries
        .claim(&inner.paths.instance(plan.instance), &purpose)?;
    lent(temporary.path(), account)?;
    Ok(Some(Making {
        account,
        view: sight::with_new(sight::system(&inner.options)?, temporary.path())?,
        lease,
        temporary,
        image,
        image_format: plan.image.format.cached(),
    }))
}

/// Puts the complete disk on the medium, then gives it its name.
pub(super) fn finish(temporary: Temporary, path: PathBuf) -> Result<(), StorageFault> {
    let failed = |source| StorageFault::io("write to disk", temporary.path(), source);
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(temporary.path())
        .map_err(failed)?;
    take_back(&file, temporary.path(), DISK_MODE)?;
    file.sync_all().map_err(failed)?;
    temporary.publish(&path)
}

/// Makes a disk larger that no guest has open, unless it is. Its image is not opened: nothing of it changes.
pub(super) async fn grow(inner: &Arc<Inner>, plan: &LargerDisk) -> Result<(), StorageFault> {
    let (shared, planned) = (Arc::clone(inner), plan.clone());
    let prepare = move || {
        if size_of(&shared, &planned)? >= planned.size {
            return Ok(None);
        }
        let account = Account::named(&shared.options.qemu_img_user)?;
        let view = sight::with_disk(sight::system(&shared.options)?, &planned.path)?;
        let length = fs::metadata(&planned.path)
            .map_err(|source| StorageFault::io("read", &planned.path, source))?
            .len();
        Ok(Some((account, view, length)))
    };
    let Some((account, view, length)) = inner.files.run(prepare).await? else {
        return Ok(());
    };
    let file = here(&plan.path);
    let alone = serde_json::json!({
        "driver": "qcow2",
        "file": { "driver": "file", "filename": file },
        "backing": null,
    });
    Command::new(&inner.options.qemu_img)
        .args(["resize", "-q", "--"])
        .arg(format!("json:{alone}"))
        .arg(plan.size.get().to_string())
        .directory(inner.paths.instance(plan.instance))
        .confined(Confinement {
            account,
            network: Network::None,
            view,
        })
        // Larger tables are written behind all that the guest has written.
        .limits(Limits {
            file_size: Some(with_tables(length.max(plan.size.get()))),
            ..LIMITS
        })
        .malloc_arenas(1)
        .timeout(inner.options.create_deadline)
        .ends_with_agent()
        .run()
        .await
        .map_err(|source| StorageFault::Create {
            what: "grow",
            disk: plan.name,
            path: plan.path.clone(),
            source,
        })?;
    let path = plan.path.clone();
    inner
        .files
        .run(move || {
            fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|source| StorageFault::io("write to disk", &path, source))
        })
        .await
}

fn size_of(inner: &Inner, plan: &LargerDisk) -> Result<ByteCount, StorageFault> {
    let expected = inner.paths.disk(plan.instance, plan.name, plan.format);
    if plan.path != expected {
        return Err(StorageFault::WrongPlace {
            disk: plan.name,
            expected,
            path: plan.path.clone(),
        });
    }
    instances::virtual_size(&plan.path)?.ok_or_else(|| StorageFault::NotOurs {
        path: plan.path.clone(),
    })
}
