//! Runs LVM's own tools, and `blkdiscard`: argv only, with a deadline and limits.
//!
//! LVM is told to look for volume groups on everything but logical volumes: what a guest writes to its disk may well look
//! like a volume group, with the name or the id of one of the host's, and must never be looked at, let alone activated.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::super::StorageOptions;
use crate::act::command::{Command, CommandError, Limits};

/// What LVM is told, whatever the host's own configuration says.
const NO_GUESTS: &str = "devices { scan_lvs=0 }";
/// What it is told where no udev makes the devices: to make them itself.
const NO_UDEV: &str = "devices { scan_lvs=0 obtain_device_list_from_udev=0 external_device_info_source=\"none\" } \
                       activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 }";
/// Where udev listens, if it runs.
const UDEV: &str = "/run/udev/control";
/// Address space in bytes: LVM keeps all its memory resident while it changes devices.
const ADDRESS_SPACE: u64 = 1 << 30;

/// LVM, as it is run here.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    lvm: PathBuf,
    blkdiscard: PathBuf,
    deadline: Duration,
    discard_deadline: Duration,
}

impl Tool {
    pub(super) fn new(options: &StorageOptions) -> Self {
        Self {
            lvm: options.lvm.clone(),
            blkdiscard: options.blkdiscard.clone(),
            deadline: options.create_deadline,
            discard_deadline: options.copy_deadline,
        }
    }

    /// Runs one of LVM's commands; answers what it printed.
    pub(super) async fn run(&self, command: &str, args: &[&str]) -> Result<Vec<u8>, CommandError> {
        let config = if Path::new(UDEV).exists() {
            NO_GUESTS
        } else {
            NO_UDEV
        };
        let run = Command::new(&self.lvm)
            .args([command, "--config", config])
            .args(args)
            .limits(Limits {
                address_space: Some(ADDRESS_SPACE),
                cpu_seconds: Some(self.deadline.as_secs()),
                file_size: None,
            })
            .timeout(self.deadline)
            .stdout_limit(16 << 20)
            .run()
            .await?;
        Ok(run.stdout)
    }

    /// Reads a report, as JSON in bytes.
    pub(super) async fn report(
        &self,
        command: &str,
        fields: &str,
        group: &str,
    ) -> Result<Vec<u8>, CommandError> {
        let args = [
            "--reportformat",
            "json",
            "--units",
            "b",
            "--nosuffix",
            "--options",
            fields,
            "--",
            group,
        ];
        self.run(command, &args).await
    }

    /// Gives all of a block device back to what is below it.
    pub(super) async fn discard(&self, device: &Path) -> Result<(), CommandError> {
        Command::new(&self.blkdiscard)
            .arg("--")
            .arg(device)
            .timeout(self.discard_deadline)
            .run()
            .await
            .map(drop)
    }
}
