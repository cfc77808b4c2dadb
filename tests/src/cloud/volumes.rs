//! Volumes: asking for them, and waiting until they are as they shall be, also as the guest sees it.

use std::time::Duration;

use berth_common::{
    document::{DiskBus, VolumeAccess, VolumeFormat, VolumeLimits},
    ids::{InstanceId, VolumeId},
    message::{
        request::{
            VolumeAttach, VolumeCreate, VolumeCreateSource, VolumeDelete, VolumeDetach,
            VolumeExtend, VolumeList, VolumeShow,
        },
        view::{InstanceView, VolumeStatus, VolumeView},
    },
    names::PoolName,
    units::DiskGb,
};

use super::{CONVERGE_LIMIT, TestCloud, guest::Kept};
use crate::wait::{Seen, wait_for};

/// How long a guest may take to notice what was plugged in or out.
const GUEST_NOTICES_LIMIT: Duration = Duration::from_secs(90);

/// What of a new volume differs between tests.
#[derive(Debug, Clone)]
pub struct VolumeOptions {
    /// Its size in GiB.
    pub size_gb: u64,
    /// How it is stored.
    pub format: VolumeFormat,
    /// What is on it at first; zeros unless said otherwise.
    pub source: Option<VolumeCreateSource>,
    /// The hypervisor it shall be on.
    pub host: Option<String>,
    /// The storage pool there that it shall be in.
    pub pool: PoolName,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            size_gb: 1,
            format: VolumeFormat::Qcow2,
            source: None,
            host: None,
            pool: PoolName::default(),
        }
    }
}

/// The request to attach a volume to an instance.
#[must_use]
pub fn attach(volume: VolumeId, instance: InstanceId, access: VolumeAccess) -> VolumeAttach {
    VolumeAttach {
        volume: volume.to_string(),
        instance: instance.to_string(),
        project: Default::default(),
        access,
        disk_bus: DiskBus::Virtio,
    }
}

/// The request to detach a volume.
#[must_use]
pub fn detach(volume: VolumeId) -> VolumeDetach {
    VolumeDetach {
        volume: volume.to_string(),
        project: Default::default(),
        instance: None,
    }
}

impl TestCloud {
    /// Asks for a volume, which must be granted.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create_volume(
        &self,
        name: &str,
        options: &VolumeOptions,
    ) -> anyhow::Result<VolumeView> {
        let request = VolumeCreate {
            id: VolumeId::new(),
            name: name.parse()?,
            project: Default::default(),
            size_gb: DiskGb::new(options.size_gb)?,
            format: Some(options.format),
            pool: Some(options.pool.clone()),
            source: options.source.clone(),
            limits: VolumeLimits::default(),
            host: options.host.clone(),
        };
        self.call(&request).await
    }

    /// The volume as it is now.
    ///
    /// # Errors
    /// There is none.
    pub async fn show_volume(&self, id: VolumeId) -> anyhow::Result<VolumeView> {
        self.call(&VolumeShow {
            volume: id.to_string(),
            project: Default::default(),
        })
        .await
    }

    /// Waits until a volume has a status.
    ///
    /// # Errors
    /// It is in error instead, or does not have it in time.
    pub async fn wait_volume(
        &self,
        id: VolumeId,
        status: VolumeStatus,
    ) -> anyhow::Result<VolumeView> {
        let what = format!("volume {id} to be {}", status.as_str());
        wait_for(&what, CONVERGE_LIMIT, async || {
            let view = self.show_volume(id).await?;
            let seen = format!(
                "{}, progress {:?}, fault {:?}, generation {}/{}",
                view.status.as_str(),
                view.progress,
                view.fault,
                view.observed_generation,
                view.generation
            );
            Ok(if view.status == status {
                Seen::Done(view)
            } else if view.status == VolumeStatus::Error {
                Seen::Never(seen)
            } else {
                Seen::NotYet(seen)
            })
        })
        .await
    }

    /// Attaches a volume for reading and writing, and waits until the instance has it.
    ///
    /// # Errors
    /// It is refused, or does not have it in time.
    pub async fn attach(
        &self,
        volume: VolumeId,
        instance: &InstanceView,
    ) -> anyhow::Result<VolumeView> {
        self.call(&attach(volume, instance.id, VolumeAccess::ReadWrite))
            .await?;
        self.wait_volume(volume, VolumeStatus::InUse).await
    }

    /// Detaches a volume, and waits until it is free.
    ///
    /// # Errors
    /// It is refused, or not free in time.
    pub async fn detach(&self, volume: VolumeId) -> anyhow::Result<VolumeView> {
        self.call(&detach(volume)).await?;
        self.wait_volume(volume, VolumeStatus::Available).await
    }

    /// Makes a volume larger, and waits until it is.
    ///
    /// # Errors
    /// It is refused, or not larger in time.
    pub async fn extend_volume(
        &self,
        volume: VolumeId,
        size_gb: u64,
        status: VolumeStatus,
    ) -> anyhow::Result<VolumeView> {
        let request = VolumeExtend {
            volume: volume.to_string(),
            project: Default::default(),
            size_gb: DiskGb::new(size_gb)?,
        };
        self.call(&request).await?;
        self.wait_volume(volume, status).await
    }

    /// Asks for the end of a volume.
    ///
    /// # Errors
    /// It is refused.
    pub async fn delete_volume(&self, id: VolumeId) -> anyhow::Result<VolumeView> {
        self.call(&VolumeDelete {
            volume: id.to_string(),
            project: Default::default(),
        })
        .await
    }

    /// All volumes that are not deleted.
    ///
    /// # Errors
    /// No answer.
    pub async fn volumes(&self) -> anyhow::Result<Vec<VolumeView>> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self
                .call(&VolumeList {
                    limit: 1000,
                    after,
                    ..VolumeList::default()
                })
                .await?;
            after = page.volumes.last().map(|view| view.id);
            all.extend(page.volumes);
            if !page.more {
                break;
            }
        }
        all.retain(|view| view.status != VolumeStatus::Deleted);
        Ok(all)
    }

    /// Waits until the guest has a disk of this size, and returns what is kept there.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn guest_has(
        &self,
        instance: &InstanceView,
        disk: &str,
        size_gb: u64,
    ) -> anyhow::Result<Kept> {
        let what = format!("the guest to have {disk} with {size_gb} GiB");
        wait_for(&what, GUEST_NOTICES_LIMIT, async || {
            let kept = self.kept(instance, disk).await?;
            Ok(if kept.there && kept.bytes == size_gb << 30 {
                Seen::Done(kept)
            } else {
                Seen::NotYet(format!("{kept:?}"))
            })
        })
        .await
    }

    /// The disks that libvirt says a guest has now (`vda`, `vdb`), or would have at its next boot if it is off.
    ///
    /// # Errors
    /// libvirt does not answer, or knows no such guest.
    pub async fn live_disks(&self, instance: &InstanceView) -> anyhow::Result<Vec<String>> {
        let domain = format!("berth-{}", instance.id);
        let hypervisor = self.hypervisor_of(instance)?;
        let text = hypervisor
            .text(&["virsh", "-q", "domblklist", &domain])
            .await?;
        let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
        Ok(text.lines().filter_map(name).collect())
    }
}
