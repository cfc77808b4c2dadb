//! A host whose agent or libvirtd dies at steps: each step of each operation meets its death once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use berth_agent::{
    act::{ActError, Compute, PoolState, Progress, Storage, libvirt::Libvirt, storage::DirStorage},
    decide::{
        domain::{DiskError, DomainObserved, DomainStep, JobProgress},
        instance::{InstanceFiles, StorageStep},
        snapshot::{BackupJob, SnapshotFiles},
        volume::VolumeFiles,
    },
};
use berth_common::{
    document::ImageRef,
    ids::{InstanceId, SnapshotId, VolumeId},
    names::PoolName,
    units::ByteCount,
};
use tokio::sync::Notify;

use crate::support::Hypervisor;

/// How long a step has run when somebody dies in it.
const WITHIN: Duration = Duration::from_millis(15);

/// Who dies, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// The agent, when a step was done and nobody has noted it.
    AgentAfter,
    /// The agent, while a step runs. libvirt and the file system go on with it.
    AgentWithin,
    /// libvirtd, before a step. It comes back at once.
    LibvirtdBefore,
    /// libvirtd, while a step runs.
    LibvirtdWithin,
}

/// Where death waits.
pub(crate) struct Trap {
    death: Death,
    hypervisor: Arc<Hypervisor>,
    operation: Mutex<&'static str>,
    met: Mutex<BTreeSet<(&'static str, String)>>,
    /// Two steps may meet their deaths at once, and libvirtd dies one at a time.
    restarts: tokio::sync::Mutex<usize>,
    /// The agent must be ended now.
    pub(crate) sprung: Notify,
}

impl Trap {
    pub(crate) fn new(death: Death, hypervisor: Arc<Hypervisor>) -> Self {
        Self {
            death,
            hypervisor,
            operation: Mutex::new(""),
            met: Mutex::default(),
            restarts: tokio::sync::Mutex::default(),
            sprung: Notify::new(),
        }
    }

    /// Another operation begins.
    pub(crate) fn begin(&self, operation: &'static str) {
        *self.operation.lock().unwrap() = operation;
    }

    /// The steps that met their death, with their operations.
    pub(crate) fn met(&self) -> BTreeSet<(&'static str, String)> {
        self.met.lock().unwrap().clone()
    }

    /// Whether this step is due to meet it.
    fn strikes(&self, step: &str) -> bool {
        let operation = *self.operation.lock().unwrap();
        let name = step.split(|letter: char| !letter.is_alphanumeric()).next();
        let name = name.unwrap_or_default().to_owned();
        self.met.lock().unwrap().insert((operation, name))
    }

    async fn run<F>(&self, step: String, work: F) -> Result<(), ActError>
    where
        F: Future<Output = Result<(), ActError>>,
    {
        if !self.strikes(&step) {
            return work.await;
        }
        let mut work = std::pin::pin!(work);
        match self.death {
            Death::AgentAfter => {
                work.await?;
                self.die().await
            }
            Death::AgentWithin => tokio::select! {
                // One that is done so soon has not been noted either.
                result = &mut work => {
                    result?;
                    self.die().await
                }
                () = tokio::time::sleep(WITHIN) => self.die().await,
            },
            Death::LibvirtdBefore => {
                self.restart_libvirtd().await;
                work.await
            }
            Death::LibvirtdWithin => {
                let death = async {
                    tokio::time::sleep(WITHIN).await;
                    self.restart_libvirtd().await;
                };
                tokio::join!(work, death).0
            }
        }
    }

    /// The agent does nothing any more, until it is ended.
    async fn die(&self) -> Result<(), ActError> {
        self.sprung.notify_one();
        std::future::pending().await
    }

    async fn restart_libvirtd(&self) {
        let mut restarts = self.restarts.lock().await;
        let hypervisor = Arc::clone(&self.hypervisor);
        let restart = tokio::task::spawn_blocking(move || {
            hypervisor.kill_libvirtd();
            hypervisor.start_libvirtd();
        });
        restart.await.unwrap();
        *restarts += 1;
    }

    /// How often libvirtd was started again.
    pub(crate) async fn restarts(&self) -> usize {
        *self.restarts.lock().await
    }
}

/// Something real, with death waiting at its steps.
pub(crate) struct Deadly<T> {
    pub(crate) real: T,
    pub(crate) trap: Arc<Trap>,
}

#[async_trait]
impl Compute for Deadly<Libvirt> {
    async fn observe(&self) -> Result<Vec<DomainObserved>, ActError> {
        Compute::observe(&self.real).await
    }

    async fn observe_one(&self, instance: InstanceId) -> Result<Option<DomainObserved>, ActError> {
        self.real.observe_one(instance).await
    }

    async fn apply(&self, step: &DomainStep) -> Result<(), ActError> {
        let work = Compute::apply(&self.real, step);
        self.trap.run(format!("{step:?}"), work).await
    }

    async fn job(&self, instance: InstanceId) -> Result<Option<JobProgress>, ActError> {
        self.real.job(instance).await
    }

    async fn disk_errors(
        &self,
        instance: InstanceId,
    ) -> Result<BTreeMap<String, DiskError>, ActError> {
        self.real.disk_errors(instance).await
    }

    async fn backups(&self) -> Result<Vec<BackupJob>, ActError> {
        self.real.backups().await
    }

    async fn news(&self) {
        self.real.news().await;
    }
}

#[async_trait]
impl Storage for Deadly<DirStorage> {
    async fn observe(&self, instance: InstanceId) -> Result<InstanceFiles, ActError> {
        Storage::observe(&self.real, instance).await
    }

    async fn has_image(&self, image: &ImageRef) -> Result<bool, ActError> {
        self.real.has_image(image).await
    }

    async fn apply(&self, step: &StorageStep, progress: &Progress) -> Result<(), ActError> {
        let work = Storage::apply(&self.real, step, progress);
        self.trap.run(format!("{step:?}"), work).await
    }

    async fn space(&self) -> Result<(ByteCount, ByteCount), ActError> {
        self.real.space().await
    }

    async fn instances_with_files(&self) -> Result<Vec<InstanceId>, ActError> {
        self.real.instances_with_files().await
    }

    async fn observe_volume(
        &self,
        volume: VolumeId,
        pool: Option<&PoolName>,
    ) -> Result<VolumeFiles, ActError> {
        self.real.observe_volume(volume, pool).await
    }

    async fn pools(&self) -> Vec<PoolState> {
        self.real.pools().await
    }

    async fn volumes_with_files(&self) -> Result<Vec<VolumeId>, ActError> {
        self.real.volumes_with_files().await
    }

    async fn observe_snapshot(
        &self,
        snapshot: SnapshotId,
        pool: Option<&PoolName>,
    ) -> Result<SnapshotFiles, ActError> {
        self.real.observe_snapshot(snapshot, pool).await
    }

    async fn snapshots_with_files(&self) -> Result<Vec<SnapshotId>, ActError> {
        self.real.snapshots_with_files().await
    }

    async fn check_snapshot_room(&self, snapshot: SnapshotId) -> Result<(), ActError> {
        self.real.check_snapshot_room(snapshot).await
    }

    fn release_snapshot_room(&self, snapshot: SnapshotId) {
        self.real.release_snapshot_room(snapshot);
    }

    async fn sweep(&self) -> Result<(), ActError> {
        self.real.sweep().await
    }

    async fn fetch_image(&self, image: &ImageRef, progress: &Progress) -> Result<(), ActError> {
        self.real.fetch_image(image, progress).await
    }
}
