//! Storage pools of logical volumes, thick or in a thin pool.
//!
//! A volume is made under a name that says that it is not whole, and gets its own name by a rename, which LVM commits as one
//! change of its metadata. So a name says everything there is to know after a crash, as with files. A thick one is filled
//! with zeros before that: its extents show what somebody else once had there. What a volume is, and how its names and tags
//! are read, is [`crate::decide::lvm`]'s business.
//!
//! Nothing here ever touches a logical volume without berth's tag.

mod copy;
mod fill;
mod tool;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_common::{
    document::VolumeFormat, ids::VolumeId, names::PoolName, telemetry::error_chain,
    units::ByteCount,
};

use self::tool::Tool;
use super::{
    Inner, LvmPoolOptions, StorageOptions, VolumeWipe,
    fault::StorageFault,
    original::{self, Original},
    volume::on_wipe_thread,
    wipe::Wiping,
};
use crate::{
    act::{Progress, command::CommandError},
    decide::{
        lvm::{
            self, FIELDS, GROUP_FIELDS, GROWN, LogicalVolume, PoolContent, ROLES, ReportError, Role,
        },
        names,
        volume::{Content, LargerVolume, NewVolume, VolumeFile, VolumeFiles},
    },
};

/// The kernel's door to its device mapper.
const DEVICE_MAPPER: &str = "/dev/mapper/control";

/// A storage pool of logical volumes.
#[derive(Debug)]
pub(super) struct LvmPool {
    name: PoolName,
    options: LvmPoolOptions,
    tool: Tool,
}

/// Why a pool of logical volumes cannot be used.
///
/// # Errors
/// What is wrong, with what would be right.
pub async fn check(
    name: &PoolName,
    pool: &LvmPoolOptions,
    options: &StorageOptions,
) -> Result<(), String> {
    let pool = LvmPool {
        name: name.clone(),
        options: pool.clone(),
        tool: Tool::new(options),
    };
    pool.look().await.map(drop).map_err(|it| error_chain(&it))
}

impl LvmPool {
    /// All that are configured.
    pub(super) fn all(options: &StorageOptions) -> BTreeMap<PoolName, Self> {
        let pools = options.pools.iter().map(|(name, pool)| {
            let pool = Self {
                name: name.clone(),
                options: pool.clone(),
                tool: Tool::new(options),
            };
            (name.clone(), pool)
        });
        pools.collect()
    }

    fn group(&self) -> &str {
        self.options.volume_group.as_str()
    }

    /// `group/name`, as LVM's commands want it.
    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.group())
    }

    fn device(&self, name: &str) -> PathBuf {
        self.options.devices().join(name)
    }

    fn failed(&self, what: impl Into<String>) -> impl FnOnce(CommandError) -> StorageFault {
        let (pool, what) = (self.name.clone(), what.into());
        move |source| StorageFault::Lvm { pool, what, source }
    }

    /// Runs a command of LVM's that changes something.
    async fn change(&self, what: &str, command: &str, args: &[&str]) -> Result<(), StorageFault> {
        tracing::debug!(pool = %self.name, command, ?args, "lvm");
        let run = self.tool.change(command, args).await;
        run.map_err(self.failed(what))
    }

    /// All that is there, if it can be used.
    pub(super) async fn look(&self) -> Result<PoolContent, StorageFault> {
        if !Path::new(DEVICE_MAPPER).exists() {
            return Err(StorageFault::PoolUnfit {
                pool: self.name.clone(),
                what: format!("the kernel has no device mapper ({DEVICE_MAPPER} is missing)"),
                fix: "load the module dm_mod, or use a kernel that has it".to_owned(),
            });
        }
        let look = || self.failed(format!("look at volume group {}", self.group()));
        let read = |source| StorageFault::LvmReport {
            pool: self.name.clone(),
            source,
        };
        let mut found = None;
        for fields in [FIELDS, GROUP_FIELDS] {
            let report = self.tool.report("vgs", fields, self.group()).await;
            found = lvm::group(&report.map_err(look())?).map_err(read)?;
            if found.is_some() {
                break;
            }
        }
        let (group, volumes) = found.ok_or(ReportError::Empty).map_err(read)?;
        let thin_pool = self.options.thin_pool.as_ref();
        let content = PoolContent {
            group,
            volumes,
            thin_pool: thin_pool.map(|name| name.as_str().to_owned()),
        };
        match content.check(&self.options.volume_group) {
            Ok(()) => Ok(content),
            Err(unfit) => Err(StorageFault::PoolUnfit {
                pool: self.name.clone(),
                what: unfit.what,
                fix: unfit.fix,
            }),
        }
    }

    /// Adds what is there of a volume.
    pub(super) async fn observe(
        &self,
        id: VolumeId,
        found: &mut VolumeFiles,
    ) -> Result<(), StorageFault> {
        let content = self.look().await?;
        if let Some(volume) = content.find(id, Role::Whole) {
            found.files.push(VolumeFile {
                pool: self.name.clone(),
                format: VolumeFormat::Raw,
                content: volume.content(),
            });
        }
        found.leaving |= content.find(id, Role::Leaving).is_some();
        found.partial |= content.find(id, Role::Partial).is_some();
        Ok(())
    }

    /// Removes what was to become a volume and did not.
    pub(super) async fn sweep(&self) -> Result<(), StorageFault> {
        let content = self.look().await?;
        for (id, role, volume) in content.own() {
            if role == Role::Partial {
                tracing::info!(volume = %id, pool = %self.name, "removing a leftover");
                self.remove(id, &volume.name).await?;
            }
        }
        Ok(())
    }

    /// Refuses to remove, or to wipe before that, what an operator's snapshot needs: LVM would remove both.
    fn check_alone(
        &self,
        content: &PoolContent,
        id: VolumeId,
        name: &str,
    ) -> Result<(), StorageFault> {
        match content.goes_with(name) {
            None => Ok(()),
            Some(snapshot) => Err(StorageFault::ForeignSnapshot {
                id,
                device: self.full(name),
                snapshot: self.full(&snapshot.name),
            }),
        }
    }

    async fn remove(&self, id: VolumeId, name: &str) -> Result<(), StorageFault> {
        self.check_alone(&self.look().await?, id, name)?;
        let what = format!("remove logical volume {name}");
        self.change(&what, "lvremove", &["--yes", "--", &self.full(name)])
            .await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), StorageFault> {
        let what = format!("rename logical volume {from} to {to}");
        self.change(&what, "lvrename", &["--", self.group(), from, to])
            .await
    }

    /// Makes a volume, unless it is there.
    pub(super) async fn create(
        &self,
        inner: &Arc<Inner>,
        plan: &NewVolume,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        self.in_place(plan.id, &plan.path)?;
        let content = self.look().await?;
        if content.find(plan.id, Role::Whole).is_some() {
            return Ok(());
        }
        for role in ROLES {
            if let Some(foreign) = content.in_the_way(plan.id, role) {
                return Err(StorageFault::ForeignVolume {
                    id: plan.id,
                    device: self.full(&foreign.name),
                });
            }
        }
        let partial = Role::Partial.name(plan.id);
        if content.find(plan.id, Role::Partial).is_some() {
            self.remove(plan.id, &partial).await?;
        }
        // Everything that can be refused is refused before anything exists.
        let original = original::of(inner, plan).await?;
        self.check_thin_room(&content, original.as_ref())?;
        let made = self.make(inner, plan, original, progress).await;
        if made.is_err()
            && let Err(fault) = self.remove(plan.id, &partial).await
        {
            // It never was there, or goes when it is tried again, or when the volume is deleted, or the agent starts.
            tracing::debug!(volume = %plan.id, error = %error_chain(&fault), "a part of a volume stays");
        }
        made
    }

    /// Makes it under the name of what is not whole, and lets it be whole.
    async fn make(
        &self,
        inner: &Arc<Inner>,
        plan: &NewVolume,
        original: Option<Original>,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        let partial = Role::Partial.name(plan.id);
        let tag = names::volume_tag(plan.id);
        if let Some(source) = self.thin_source(plan) {
            self.snapshot(plan, &source, (&partial, &tag)).await?;
        } else {
            self.allocate(plan.size, (&partial, &tag)).await?;
            let filled = self
                .fill(inner, plan, original, &self.device(&partial), progress)
                .await;
            if let Err(fault) = filled {
                // What a full thin pool makes of writes is an error of input and output, if it is anything.
                self.check_thin_room(&self.look().await?, None)?;
                return Err(fault);
            }
        }
        self.rename(&partial, &Role::Whole.name(plan.id)).await
    }

    /// A new logical volume with whatever is on it.
    async fn allocate(
        &self,
        size: ByteCount,
        (name, tag): (&str, &str),
    ) -> Result<(), StorageFault> {
        let what = format!("make logical volume {name}");
        let size = format!("{}b", size.get());
        let common = [
            "--yes",
            "--wipesignatures",
            "n",
            "--setactivationskip",
            "n",
            "--addtag",
            tag,
            "--name",
            name,
        ];
        let mut args = common.to_vec();
        match &self.options.thin_pool {
            None => args.extend(["--zero", "n", "--size", &size]),
            Some(pool) => args.extend([
                "--type",
                "thin",
                "--thinpool",
                pool.as_str(),
                "--virtualsize",
                &size,
            ]),
        }
        args.extend(["--", self.group()]);
        self.change(&what, "lvcreate", &args).await
    }

    /// Gives a new logical volume what shall be on it at first, durably.
    async fn fill(
        &self,
        inner: &Arc<Inner>,
        plan: &NewVolume,
        original: Option<Original>,
        device: &Path,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        let is_thin = self.options.thin_pool.is_some();
        let copied = match original {
            None => 0,
            Some(original) => {
                let size = original.size.get();
                let job = copy::Job {
                    id: plan.id,
                    device,
                    size: plan.size,
                    is_thin,
                };
                copy::copy(inner, self, &job, original, progress).await?;
                size
            }
        };
        // What a thin volume was never given reads as zeros.
        if is_thin {
            return Ok(());
        }
        self.zero(inner, device, copied, progress).await
    }

    /// Fills a thick logical volume with zeros from a position on.
    async fn zero(
        &self,
        inner: &Arc<Inner>,
        device: &Path,
        from: u64,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        progress.send_replace(Some("filling the volume with zeros".to_owned()));
        let device = device.to_owned();
        let wiping = Arc::new(Wiping::default());
        // Nobody waits any more if this is dropped, and the thread ends at the next piece.
        let _stop = super::volume::StopWipe(Arc::clone(&wiping));
        inner
            .zeros
            .run(move || {
                fill::zero(&device, from, &wiping)
                    .map_err(|source| StorageFault::io("write zeros to", &device, source))
            })
            .await
    }

    /// The logical volume in this thin pool that a volume can share its extents with from the beginning.
    fn thin_source(&self, plan: &NewVolume) -> Option<String> {
        match &plan.content {
            Content::Volume(source)
                if source.pool == self.name && self.options.thin_pool.is_some() =>
            {
                Some(Role::Whole.name(source.id))
            }
            Content::Volume(_) | Content::Snapshot(_) | Content::Image(_) | Content::Zeros => None,
        }
    }

    /// A logical volume that begins as another one is now.
    async fn snapshot(
        &self,
        plan: &NewVolume,
        source: &str,
        (name, tag): (&str, &str),
    ) -> Result<(), StorageFault> {
        let what = format!("clone logical volume {source} as {name}");
        let args = [
            "--yes",
            "--snapshot",
            "--setactivationskip",
            "n",
            "--activate",
            "y",
            "--ignoreactivationskip",
            "--addtag",
            tag,
            "--name",
            name,
            "--",
            &self.full(source),
        ];
        self.change(&what, "lvcreate", &args).await?;
        let content = self.look().await?;
        match content.find(plan.id, Role::Partial) {
            Some(made) if made.size < plan.size => self.extend(name, plan.size).await,
            Some(_) => Ok(()),
            None => Err(StorageFault::VolumeNotThere {
                id: plan.id,
                path: self.device(name),
            }),
        }
    }

    async fn extend(&self, name: &str, size: ByteCount) -> Result<(), StorageFault> {
        let what = format!("extend logical volume {name}");
        let size = format!("{}b", size.get());
        self.change(
            &what,
            "lvextend",
            &["--yes", "--size", &size, "--", &self.full(name)],
        )
        .await
    }

    /// Refuses to begin what a thin pool has no room for.
    pub(super) fn check_thin_room(
        &self,
        content: &PoolContent,
        original: Option<&Original>,
    ) -> Result<(), StorageFault> {
        let Some((_, pool)) = content.thin() else {
            return Ok(());
        };
        if pool.is_full() {
            return Err(StorageFault::ThinPoolFull {
                pool: self.name.clone(),
                data: pool.data / 100,
                metadata: pool.metadata / 100,
            });
        }
        // What is cloned takes nothing.
        let needed = original.and_then(|original| original.allocated);
        match (original, needed, content.thin_free()) {
            (Some(original), Some(needed), Some(free)) if needed > free.get() => {
                Err(StorageFault::NoThinRoom {
                    pool: self.name.clone(),
                    what: original.what.clone(),
                    needed,
                    free: free.get(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Makes a volume larger, and its new part hold zeros. A guest that has it does not see that until it is told.
    pub(super) async fn grow(
        &self,
        inner: &Arc<Inner>,
        plan: &LargerVolume,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        self.in_place(plan.id, &plan.path)?;
        let content = self.look().await?;
        let volume = self.whole(&content, plan.id)?;
        let size = volume.size;
        // A size that was noted when there was no room is that of today.
        let from = volume.grows_from().unwrap_or(size);
        if size >= plan.size && volume.grows_from().is_none() {
            return Ok(());
        }
        let (name, full) = (volume.name.as_str(), self.full(&volume.name));
        let tag = lvm::grow_tag(from);
        let what = format!("note that logical volume {name} grows");
        self.change(&what, "lvchange", &["--addtag", &tag, "--", &full])
            .await?;
        if size < plan.size {
            self.extend(name, plan.size).await?;
        }
        if self.options.thin_pool.is_none() {
            self.zero(inner, &self.device(name), from.get(), progress)
                .await?;
        }
        let what = format!("note that logical volume {name} grew");
        let args = ["--deltag", &tag, "--addtag", GROWN, "--", &full];
        self.change(&what, "lvchange", &args).await
    }

    /// Notes that whoever has a volume knows its size.
    pub(super) async fn settle(&self, id: VolumeId) -> Result<(), StorageFault> {
        let name = Role::Whole.name(id);
        let what = format!("note that the size of logical volume {name} is known");
        let args = ["--deltag", GROWN, "--", &self.full(&name)];
        self.change(&what, "lvchange", &args).await
    }

    /// Makes the device of a volume appear.
    pub(super) async fn activate(&self, id: VolumeId) -> Result<(), StorageFault> {
        self.activate_named(&Role::Whole.name(id)).await
    }

    async fn activate_named(&self, name: &str) -> Result<(), StorageFault> {
        let what = format!("activate logical volume {name}");
        let args = [
            "--activate",
            "y",
            "--ignoreactivationskip",
            "--",
            &self.full(name),
        ];
        self.change(&what, "lvchange", &args).await
    }

    /// Takes the name from a volume; answers the names of what is to be wiped before it is removed. `None`: nothing of it is
    /// in this pool.
    pub(super) async fn take_name(
        &self,
        id: VolumeId,
        wipe: VolumeWipe,
    ) -> Result<Option<Vec<String>>, StorageFault> {
        let content = self.look().await?;
        let there: Vec<Role> = ROLES
            .into_iter()
            .filter(|role| content.find(id, *role).is_some())
            .collect();
        if there.is_empty() {
            return Ok(None);
        }
        for role in &there {
            self.check_alone(&content, id, &role.name(id))?;
        }
        let mut left = Vec::new();
        for role in there {
            let name = role.name(id);
            match (wipe, role) {
                (VolumeWipe::None, _) | (_, Role::Partial) => self.remove(id, &name).await?,
                (_, Role::Leaving) => left.push(name),
                // One that is on its way out already is finished first: it must not be replaced.
                (_, Role::Whole) if content.find(id, Role::Leaving).is_some() => {}
                (_, Role::Whole) => {
                    let leaving = Role::Leaving.name(id);
                    self.rename(&name, &leaving).await?;
                    left.push(leaving);
                }
            }
        }
        Ok(Some(left))
    }

    /// Wipes what was a volume, and removes it.
    pub(super) async fn wipe(
        &self,
        inner: &Arc<Inner>,
        id: VolumeId,
        name: &str,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        self.check_alone(&self.look().await?, id, name)?;
        let device = self.device(name);
        if !device.exists() {
            self.activate_named(name).await?;
        }
        let is_thin = self.options.thin_pool.is_some();
        let how = match inner.options.volume_wipe {
            VolumeWipe::Discard if !can_discard(inner, id, &device).await? => VolumeWipe::Zero,
            how => how,
        };
        match how {
            VolumeWipe::None => {}
            VolumeWipe::Zero => {
                let work = move |wiping: &Wiping| {
                    let wiped = if is_thin {
                        fill::overwrite(&device, wiping)
                    } else {
                        fill::zero(&device, 0, wiping)
                    };
                    wiped.map_err(|source| StorageFault::Wipe {
                        id,
                        path: device,
                        source,
                    })
                };
                on_wipe_thread(inner, work, progress).await?;
            }
            VolumeWipe::Discard => {
                progress.send_replace(Some("discarding the volume".to_owned()));
                let what = format!("discard logical volume {name}");
                self.tool
                    .discard(&device)
                    .await
                    .map_err(self.failed(what))?;
            }
        }
        self.remove(id, name).await
    }

    fn whole<'a>(
        &self,
        content: &'a PoolContent,
        id: VolumeId,
    ) -> Result<&'a LogicalVolume, StorageFault> {
        let found = content.find(id, Role::Whole);
        found.ok_or_else(|| StorageFault::VolumeNotThere {
            id,
            path: self.device(&Role::Whole.name(id)),
        })
    }

    fn in_place(&self, id: VolumeId, path: &Path) -> Result<(), StorageFault> {
        let expected = self.device(&Role::Whole.name(id));
        if path == expected {
            return Ok(());
        }
        Err(StorageFault::VolumePlace {
            id,
            expected,
            path: path.to_owned(),
        })
    }
}

/// Whether what is below a block device takes back what is not needed any more.
async fn can_discard(
    inner: &Arc<Inner>,
    id: VolumeId,
    device: &Path,
) -> Result<bool, StorageFault> {
    let device = device.to_owned();
    let look = move || {
        fill::can_discard(&device).map_err(|source| StorageFault::Wipe {
            id,
            path: device,
            source,
        })
    };
    inner.files.run(look).await
}
