//! Snapshots of volumes: asking for them, and waiting until they are as they shall be.

use berth_common::{
    ids::{SnapshotId, VolumeId},
    message::{
        request::{SnapshotCreate, SnapshotDelete, SnapshotList, SnapshotShow},
        view::{SnapshotStatus, SnapshotView},
    },
};

use super::{CONVERGE_LIMIT, TestCloud};
use crate::wait::{Seen, wait_for};

impl TestCloud {
    /// Asks for a snapshot, which must be granted.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create_snapshot(
        &self,
        name: &str,
        volume: VolumeId,
    ) -> anyhow::Result<SnapshotView> {
        self.call(&SnapshotCreate {
            id: SnapshotId::new(),
            name: name.parse()?,
            project: Default::default(),
            volume: volume.to_string(),
        })
        .await
    }

    /// The snapshot as it is now.
    ///
    /// # Errors
    /// There is none.
    pub async fn show_snapshot(&self, id: SnapshotId) -> anyhow::Result<SnapshotView> {
        self.call(&SnapshotShow {
            snapshot: id.to_string(),
            project: Default::default(),
        })
        .await
    }

    /// Waits until a snapshot has a status.
    ///
    /// # Errors
    /// It is in error instead, or does not have it in time.
    pub async fn wait_snapshot(
        &self,
        id: SnapshotId,
        status: SnapshotStatus,
    ) -> anyhow::Result<SnapshotView> {
        let what = format!("snapshot {id} to be {}", status.as_str());
        wait_for(&what, CONVERGE_LIMIT, async || {
            let view = self.show_snapshot(id).await?;
            let seen = format!(
                "{}, progress {:?}, fault {:?}",
                view.status.as_str(),
                view.progress,
                view.fault
            );
            Ok(if view.status == status {
                Seen::Done(view)
            } else if view.status == SnapshotStatus::Error {
                Seen::Never(seen)
            } else {
                Seen::NotYet(seen)
            })
        })
        .await
    }

    /// Asks for the end of a snapshot.
    ///
    /// # Errors
    /// It is refused.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> anyhow::Result<SnapshotView> {
        self.call(&SnapshotDelete {
            snapshot: id.to_string(),
            project: Default::default(),
        })
        .await
    }

    /// All snapshots that are not deleted.
    ///
    /// # Errors
    /// No answer.
    pub async fn snapshots(&self) -> anyhow::Result<Vec<SnapshotView>> {
        let list = SnapshotList {
            limit: 1000,
            ..SnapshotList::default()
        };
        Ok(self.call(&list).await?.snapshots)
    }
}
