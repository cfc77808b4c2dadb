//! Runs LVM's own tools, and `blkdiscard`: argv only, with a deadline and limits.
//!
//! What changes something is never killed, not with the agent either: between suspending a device and resuming it that would
//! freeze it, and the guest that has it. Past its deadline, or when nobody waits for it any more, it is left alone; what comes after waits for it, so
//! that nobody takes what it is about to make for not there.
//!
//! LVM is told to look for volume groups on everything but logical volumes: what a guest writes to its disk may well look
//! like a volume group, with the name or the id of one of the host's, and must never be looked at, let alone activated.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_common::telemetry::error_chain;
use chrono::Utc;
use tokio::sync::RwLock;

use super::super::StorageOptions;
use crate::{
    act::command::{Command, CommandError, Limits},
    decide::breaker::{Admission, Breaker, BreakerLimits},
};

/// What LVM is told, whatever the host's own configuration says.
const NO_GUESTS: &str = "devices { scan_lvs=0 }";
/// What it is told where no udev makes the devices: to make them itself.
const NO_UDEV: &str = "devices { scan_lvs=0 obtain_device_list_from_udev=0 external_device_info_source=\"none\" } \
                       activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 }";
/// Where udev listens, if it runs.
const UDEV: &str = "/run/udev/control";
/// How long a volume group that did not answer is left alone.
const UNASKED: Duration = Duration::from_secs(15);
/// Address space in bytes: LVM keeps all its memory resident while it changes devices.
const ADDRESS_SPACE: u64 = 1 << 30;

/// LVM, as it is run here.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    lvm: PathBuf,
    blkdiscard: PathBuf,
    deadline: Duration,
    discard_deadline: Duration,
    /// Held for writing by what changes something, until it has ended.
    changes: Arc<RwLock<()>>,
    /// Whether looking is tried: an operator's command may hold LVM's locks for long, and every look would wait for it.
    looks: Arc<Mutex<Breaker>>,
}

impl Tool {
    pub(super) fn new(options: &StorageOptions) -> Self {
        Self {
            lvm: options.lvm.clone(),
            blkdiscard: options.blkdiscard.clone(),
            deadline: options.create_deadline,
            discard_deadline: options.copy_deadline,
            changes: Arc::default(),
            looks: Arc::new(Mutex::new(Breaker::new(BreakerLimits {
                misses: 1,
                pause: UNASKED,
                probe: options.create_deadline,
            }))),
        }
    }

    fn command(&self, command: &str, args: &[&str]) -> Command {
        let config = if Path::new(UDEV).exists() {
            NO_GUESTS
        } else {
            NO_UDEV
        };
        Command::new(&self.lvm)
            .args([command, "--config", config])
            .args(args)
    }

    /// Runs one of LVM's commands that changes something.
    pub(super) async fn change(&self, command: &str, args: &[&str]) -> Result<(), CommandError> {
        let run = self.command(command, args).limits(Limits {
            address_space: Some(ADDRESS_SPACE),
            cpu_seconds: None,
            file_size: None,
        });
        let run = run.never_killed();
        let after = self.deadline;
        let argv = run.argv();
        let changes = Arc::clone(&self.changes);
        let Ok(alone) = tokio::time::timeout(after, changes.write_owned()).await else {
            return Err(CommandError::NotBegun { argv, after });
        };
        let task = tokio::spawn(async move {
            let result = run.run().await;
            if let Err(error) = &result {
                // Perhaps nobody waits for it any more.
                tracing::debug!(error = %error_chain(error), "lvm");
            }
            drop(alone);
            result
        });
        match tokio::time::timeout(after, task).await {
            Ok(Ok(result)) => result.map(drop),
            Ok(Err(lost)) => Err(CommandError::Wait {
                argv,
                source: io::Error::other(lost),
            }),
            Err(_) => Err(CommandError::Unfinished { argv, after }),
        }
    }

    /// Nothing that runs under this lock can panic half-way, so a poisoned one is as good as any.
    fn looks(&self) -> MutexGuard<'_, Breaker> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a report, as JSON in bytes. After one that got no answer in time, only one at a time waits for the next one, and
    /// all others are refused at once.
    pub(super) async fn report(
        &self,
        command: &str,
        fields: &str,
        group: &str,
    ) -> Result<Vec<u8>, CommandError> {
        let admission = self.looks().admit(Instant::now());
        if let Admission::Refused(since) = admission {
            let argv = vec![command.to_owned(), group.to_owned()];
            return Err(CommandError::NotAsked { argv, since });
        }
        let report = self.ask(command, fields, group).await;
        match &report {
            Err(CommandError::TimedOut { .. } | CommandError::NotBegun { .. }) => {
                self.looks().missed(Instant::now(), Utc::now());
            }
            // One that says no is there as well.
            Ok(_) | Err(_) => self.looks().answered(),
        }
        report
    }

    async fn ask(&self, command: &str, fields: &str, group: &str) -> Result<Vec<u8>, CommandError> {
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
        let run = self
            .command(command, &args)
            .limits(Limits {
                address_space: Some(ADDRESS_SPACE),
                cpu_seconds: Some(self.deadline.as_secs()),
                file_size: None,
            })
            .timeout(self.deadline)
            .stdout_limit(16 << 20)
            .ends_with_agent();
        let Ok(_unchanged) = tokio::time::timeout(self.deadline, self.changes.read()).await else {
            return Err(CommandError::NotBegun {
                argv: run.argv(),
                after: self.deadline,
            });
        };
        run.run().await.map(|output| output.stdout)
    }

    /// Gives a part of a block device back to what is below it.
    pub(super) async fn discard(
        &self,
        device: &Path,
        part: &Range<u64>,
    ) -> Result<(), CommandError> {
        let length = part.end.saturating_sub(part.start);
        Command::new(&self.blkdiscard)
            .args(["--offset", &part.start.to_string()])
            .args(["--length", &length.to_string()])
            .arg("--")
            .arg(device)
            .timeout(self.discard_deadline)
            .ends_with_agent()
            .run()
            .await
            .map(drop)
    }
}
