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
mod snapshot;
mod tool;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_common::{
    document::VolumeFormat, ids::VolumeId, names::PoolName, telemetry::error_chain,
    units::ByteCount,
};

pub(super) use self::snapshot::Reading;
use self::{snapshot::Readers, tool::Tool};
use super::{
    Inner, LvmPoolOptions, PoolOptions, StorageOptions, VolumeWipe,
    fault::StorageFault,
    original::{self, Original},
    volume::on_wipe_thread,
    wipe::Wiping,
};
use crate::{
    act::{Progress, command::CommandError},
    decide::{
        lvm::{
            self, FIELDS, GROUP_FIELDS, GROWN, LogicalVolume, Owner, PoolContent, ROLES,
            ReportError, Role,
        },
        volume::{Content, LargerVolume, NewVolume, VolumeFile, VolumeFiles},
    },
};

/// The kernel's door to its device mapper.
const DEVICE_MAPPER: &str = "/dev/mapper/control";

/// How much of a thin volume is overwritten at a time, in bytes, before that is given back. LVM writes what it has in common
/// with others elsewhere, so it takes this much room at most to wipe it.
const THIN_PIECE: u64 = 128 << 20;

/// A storage pool of logical volumes.
#[derive(Debug, Clone)]
pub(super) struct LvmPool {
    name: PoolName,
    options: LvmPoolOptions,
    tool: Tool,
    readers: Readers,
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
    let pool = LvmPool::new(name, pool, options);
    pool.look().await.map(drop).map_err(|it| error_chain(&it))
}

impl LvmPool {
    /// All that are configured.
    pub(super) fn all(options: &StorageOptions) -> BTreeMap<PoolName, Self> {
        let pools = options.pools.iter();
        pools
            .filter_map(|(name, pool)| match pool {
                PoolOptions::Lvm(pool) => Some((name.clone(), Self::new(name, pool, options))),
                PoolOptions::Dir(_) => None,
            })
            .collect()
    }

    fn new(name: &PoolName, pool: &LvmPoolOptions, options: &StorageOptions) -> Self {
        Self {
            name: name.clone(),
            options: pool.clone(),
            tool: Tool::new(options),
            readers: Readers::default(),
        }
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

    /// Removes what was to become a volume and did not; answers why some of it stays. What was to become a snapshot stays: a
    /// backup job may be at it, and its document knows what to do.
    pub(super) async fn sweep(&self) -> Result<Vec<StorageFault>, StorageFault> {
        let content = self.look().await?;
        let mut stay = Vec::new();
        for (owner, role, volume) in content.own() {
            match (owner, role) {
                (Owner::Volume(id), Role::Partial) => {
                    tracing::info!(volume = %id, pool = %self.name, "removing a leftover");
                    // One that something still has open must not keep the others from going.
                    stay.extend(self.remove(owner, &volume.name).await.err());
                }
                // Whoever read it is gone.
                (Owner::Snapshot(id), Role::Whole) if volume.active => self.rest(id).await,
                (Owner::Volume(_) | Owner::Snapshot(_), _) => {}
            }
        }
        Ok(stay)
    }

    /// Refuses to remove, or to wipe before that, what an operator's snapshot needs: LVM would remove both.
    fn check_alone(
        &self,
        content: &PoolContent,
        owner: Owner,
        name: &str,
    ) -> Result<(), StorageFault> {
        match content.goes_with(name) {
            None => Ok(()),
            Some(snapshot) => Err(StorageFault::ForeignSnapshot {
                owner,
                device: self.full(name),
                snapshot: self.full(&snapshot.name),
            }),
        }
    }

    async fn remove(&self, owner: Owner, name: &str) -> Result<(), StorageFault> {
        self.check_alone(&self.look().await?, owner, name)?;
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
        self.clear_way(&content, plan.id.into()).await?;
        // Everything that can be refused is refused before anything exists.
        let original = match &plan.content {
            Content::Snapshot(source) if self.thin_source(plan).is_some() => {
                self.check_source(&content, plan, source.id)?;
                None
            }
            _ => original::of(inner, plan).await?,
        };
        self.check_thin_room(&content, original.as_ref())?;
        let made = self.make(inner, plan, original, progress).await;
        self.clean_up(plan.id.into(), made).await
    }

    /// Sees that nothing is in the way of what is to be made: what is not berth's is refused, and what was begun before is
    /// removed.
    async fn clear_way(&self, content: &PoolContent, owner: Owner) -> Result<(), StorageFault> {
        for role in ROLES {
            if let Some(foreign) = content.in_the_way(owner, role) {
                return Err(StorageFault::ForeignVolume {
                    owner,
                    device: self.full(&foreign.name),
                });
            }
        }
        if content.find(owner, Role::Partial).is_some() {
            self.remove(owner, &Role::Partial.name(owner)).await?;
        }
        Ok(())
    }

    /// Removes what was begun and did not get through.
    async fn clean_up(
        &self,
        owner: Owner,
        made: Result<(), StorageFault>,
    ) -> Result<(), StorageFault> {
        if made.is_err()
            && let Err(fault) = self.remove(owner, &Role::Partial.name(owner)).await
        {
            // It never was there, or goes when it is tried again, or when its owner is deleted, or the agent starts.
            tracing::debug!(%owner, error = %error_chain(&fault), "a part of it stays");
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
        let tag = Owner::Volume(plan.id).tag();
        if let Some(source) = self.thin_source(plan) {
            self.clone_of(plan, &source, (&partial, &tag)).await?;
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
                    owner: plan.id.into(),
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

    /// The logical volume in this thin pool that a volume can share its extents with from the beginning: another volume, or a
    /// snapshot.
    fn thin_source(&self, plan: &NewVolume) -> Option<String> {
        match &plan.content {
            _ if self.options.thin_pool.is_none() => None,
            Content::Volume(source) if source.pool == self.name => {
                Some(Role::Whole.name(source.id))
            }
            Content::Snapshot(source) if source.pool == self.name => {
                Some(Role::Whole.name(source.id))
            }
            Content::Volume(_) | Content::Snapshot(_) | Content::Image(_) | Content::Zeros => None,
        }
    }

    /// A logical volume that begins as another one is now.
    async fn clone_of(
        &self,
        plan: &NewVolume,
        source: &str,
        (name, tag): (&str, &str),
    ) -> Result<(), StorageFault> {
        let what = format!("clone logical volume {source} as {name}");
        let args = [
            "--yes",
            "--snapshot",
            "--permission",
            "rw",
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

    async fn deactivate(&self, name: &str) -> Result<(), StorageFault> {
        let what = format!("deactivate logical volume {name}");
        self.change(
            &what,
            "lvchange",
            &["--activate", "n", "--", &self.full(name)],
        )
        .await
    }

    /// Takes the name from a volume or a snapshot; answers the names of what is to be wiped before it is removed. `None`:
    /// nothing of it is in this pool.
    pub(super) async fn take_name(
        &self,
        owner: Owner,
        wipe: VolumeWipe,
    ) -> Result<Option<Vec<String>>, StorageFault> {
        let content = self.look().await?;
        let there: Vec<Role> = ROLES
            .into_iter()
            .filter(|role| content.find(owner, *role).is_some())
            .collect();
        if there.is_empty() {
            return Ok(None);
        }
        for role in &there {
            self.check_alone(&content, owner, &role.name(owner))?;
        }
        let mut left = Vec::new();
        for role in there {
            let name = role.name(owner);
            match (wipe, role, owner) {
                (VolumeWipe::None, ..) | (_, Role::Partial, Owner::Volume(_)) => {
                    self.remove(owner, &name).await?;
                }
                (_, Role::Leaving, _) => left.push(name),
                // One that is on its way out already is finished first: it must not be replaced.
                (_, Role::Whole | Role::Partial, _)
                    if content.find(owner, Role::Leaving).is_some() || !left.is_empty() => {}
                // A part of a snapshot holds of its volume what the whole one does.
                (_, Role::Whole | Role::Partial, _) => {
                    let leaving = Role::Leaving.name(owner);
                    self.rename(&name, &leaving).await?;
                    left.push(leaving);
                }
            }
        }
        Ok(Some(left))
    }

    /// Wipes what was a volume or a snapshot, and removes it.
    pub(super) async fn wipe(
        &self,
        inner: &Arc<Inner>,
        owner: Owner,
        name: &str,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        let content = self.look().await?;
        self.check_alone(&content, owner, name)?;
        let found = content.find(owner, Role::Leaving);
        let size = found.map_or(0, |volume| volume.size.get());
        if found.is_some_and(|volume| volume.read_only) {
            self.let_write(name).await?;
        }
        let device = self.device(name);
        if !device.exists() {
            self.activate_named(name).await?;
        }
        let is_thin = self.options.thin_pool.is_some();
        let can_discard = can_discard(inner, owner, &device).await?;
        match (inner.options.volume_wipe, owner) {
            (VolumeWipe::None, _) => {}
            // LVM would write elsewhere what it has in common with others, and keep that room until it is removed: the pool
            // could fill under its guests. Nothing tells cheaply what is shared, since clones name no origin that is gone.
            // Removing it gives all back, and the pool fills extents with zeros before somebody gets them.
            (VolumeWipe::Zero | VolumeWipe::Discard, _) if is_thin && !can_discard => {}
            // What a snapshot has in common with others is theirs, and of the rest LVM would write zeros elsewhere.
            (VolumeWipe::Zero | VolumeWipe::Discard, Owner::Snapshot(_)) if is_thin => {
                self.discard(name, &(0..size), progress).await?;
            }
            (VolumeWipe::Discard, _) if can_discard => {
                self.discard(name, &(0..size), progress).await?;
            }
            (VolumeWipe::Zero | VolumeWipe::Discard, _) if is_thin => {
                self.wipe_thin(inner, owner, (name, size), progress).await?;
            }
            (VolumeWipe::Zero | VolumeWipe::Discard, _) => {
                let work = move |wiping: &Wiping| {
                    fill::zero(&device, 0, wiping)
                        .map_err(|source| StorageFault::not_wiped(owner, device, source))
                };
                on_wipe_thread(inner, work, progress).await?;
            }
        }
        self.remove(owner, name).await
    }

    /// Overwrites a thin volume and gives it back, piece by piece; a piece that the pool may have no room for is only given
    /// back. Pieces that were given back before read as zeros, and are not written again.
    async fn wipe_thin(
        &self,
        inner: &Arc<Inner>,
        owner: Owner,
        (name, size): (&str, u64),
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        let mut begin = 0;
        while begin < size {
            let part = begin..size.min(begin + THIN_PIECE);
            let has_room = self.look().await?.has_thin_room(part.end - begin);
            begin = part.end;
            let is_left = !has_room
                || self
                    .overwrite(inner, owner, (name, &part), progress)
                    .await?;
            if is_left {
                self.discard(name, &part, progress).await?;
            }
        }
        Ok(())
    }

    /// Overwrites a part of a thin volume; answers whether there was anything.
    async fn overwrite(
        &self,
        inner: &Arc<Inner>,
        owner: Owner,
        (name, part): (&str, &Range<u64>),
        progress: &Progress,
    ) -> Result<bool, StorageFault> {
        let (device, part) = (self.device(name), part.clone());
        let found = Arc::new(AtomicBool::new(false));
        let was_found = Arc::clone(&found);
        let work = move |wiping: &Wiping| {
            let overwritten = fill::overwrite(&device, &part, wiping);
            was_found.store(
                overwritten.map_err(|source| StorageFault::not_wiped(owner, device, source))?,
                Ordering::Relaxed,
            );
            Ok(())
        };
        on_wipe_thread(inner, work, progress).await?;
        Ok(found.load(Ordering::Relaxed))
    }

    async fn discard(
        &self,
        name: &str,
        part: &Range<u64>,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        progress.send_replace(Some("discarding it".to_owned()));
        let what = format!("discard logical volume {name}");
        let device = self.device(name);
        let discard = self.tool.discard(&device, part);
        discard.await.map_err(self.failed(what))
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
    owner: Owner,
    device: &Path,
) -> Result<bool, StorageFault> {
    let device = device.to_owned();
    let look = move || {
        fill::can_discard(&device).map_err(|source| StorageFault::not_wiped(owner, device, source))
    };
    inner.files.run(look).await
}
