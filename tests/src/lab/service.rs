//! A process under test: started with its own log file, stopped politely or killed, never left behind.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::{Seen, wait_for, wait_for_blocking};

/// How long a service may take to end after SIGTERM.
pub const STOP_LIMIT: Duration = Duration::from_secs(15);
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// The variable by which every process of a site is found again.
pub const MARK: &str = "BERTH_LAB";

/// A running process, or what became of it.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    /// The process itself; the child may only be the door to its namespaces.
    pid: Pid,
}

impl Service {
    /// Starts a program. It dies with this test.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, argv: &[&str], log: &Path, mark: &str) -> anyhow::Result<Self> {
        let output = open_log(log)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(argv)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("RUST_BACKTRACE", "1")
            .env(MARK, mark)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{name} does not start"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        Ok(Self {
            name: name.to_owned(),
            child,
            pid,
        })
    }

    /// Starts a program through one that forks it, such as `nsenter` or `unshare`: signals go to the program.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start_inside(
        name: &str,
        argv: &[&str],
        log: &Path,
        mark: &str,
    ) -> anyhow::Result<Self> {
        let mut service = Self::start(name, argv, log, mark)?;
        let outer = service.pid;
        service.pid = wait_for(&format!("{name} to start"), KILL_LIMIT, async || {
            if let Some(status) = service.child.try_wait()? {
                return Ok(Seen::Never(format!("{status}; see {}", log.display())));
            }
            Ok(child_of(outer).map_or_else(|| Seen::NotYet("no child".to_owned()), Seen::Done))
        })
        .await?;
        Ok(service)
    }

    /// The process id, seen from outside all namespaces.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The system does not say.
    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.exited()?.is_none() {
            match kill(self.pid, Signal::SIGKILL) {
                // The process has ended, and the door to it is about to.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => Err(error).with_context(|| format!("cannot kill {}", self.name))?,
            }
        }
        let (name, child) = (&self.name, &mut self.child);
        wait_for_blocking(&format!("{name} to be gone"), KILL_LIMIT, || {
            Ok(child
                .try_wait()?
                .map_or_else(|| Seen::NotYet("it runs".to_owned()), |_| Seen::Done(())))
        })
    }

    /// SIGTERM, and waits for an orderly end.
    ///
    /// # Errors
    /// It does not end, or not with success.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.exited()? {
            bail!("{} has ended before it was told to: {status}", self.name);
        }
        kill(self.pid, Signal::SIGTERM)?;
        let (name, child) = (&self.name, &mut self.child);
        let status = wait_for(
            &format!("{name} to end after SIGTERM"),
            STOP_LIMIT,
            async || {
                Ok(child
                    .try_wait()?
                    .map_or_else(|| Seen::NotYet("it runs".to_owned()), Seen::Done))
            },
        )
        .await?;
        anyhow::ensure!(status.success(), "{name} ended after SIGTERM with {status}");
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The only child of a process.
fn child_of(parent: Pid) -> Option<Pid> {
    let children =
        std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children
        .split_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Pid::from_raw)
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}
