//! dnsmasq of one network: its files and its process.
//!
//! The process is nobody's child: it puts itself into the background and outlives the agent, which finds it again
//! by its command line and its namespace. What it has read is recorded only after it was told to read it, so a
//! crash in between means that it is told again.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::User};
use serde::{Deserialize, Serialize};

use super::{error::NetError, netns, process::Process};
use crate::{
    act::command::Command,
    decide::{
        dhcp::DhcpFiles,
        network::{DhcpObserved, DhcpProcess},
    },
};

/// How long dnsmasq may take to start.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end when it is asked to, and when it is made to.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long a started one may take to be found: it is up when the command returns.
const APPEAR_LIMIT: Duration = Duration::from_secs(2);
/// Whom it runs as, the first that exists; it opens its sockets before it becomes that user.
const USERS: [&str; 2] = ["dnsmasq", "nobody"];

/// The DHCP server of one network.
#[derive(Debug, Clone)]
pub(super) struct Dnsmasq {
    directory: PathBuf,
    namespace: String,
}

/// What a process has read.
#[derive(Debug, Serialize, Deserialize)]
struct Loaded {
    pid: i32,
    born: u64,
    config: String,
    hosts: String,
}

impl Dnsmasq {
    /// The server with its files in this directory, in the namespace of this name.
    pub(super) fn new(directory: PathBuf, namespace: String) -> Self {
        Self {
            directory,
            namespace,
        }
    }

    fn config(&self) -> PathBuf {
        self.directory.join("dnsmasq.conf")
    }

    fn hosts(&self) -> PathBuf {
        self.directory.join("hosts")
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.join("dnsmasq.pid")
    }

    fn record(&self) -> PathBuf {
        self.directory.join("loaded.json")
    }

    /// The argument by which its process is known.
    fn mark(&self) -> PathBuf {
        argument("--conf-file=", &self.config())
    }

    /// What is there of it.
    pub(super) fn observe(&self) -> Result<DhcpObserved, NetError> {
        let directory = self
            .directory
            .try_exists()
            .map_err(NetError::file("look at", &self.directory))?;
        let here = netns::look(&self.namespace)?;
        let process = self.find()?.map(|process| DhcpProcess {
            loaded: self.loaded_by(process),
            in_namespace: is_in(process, here),
        });
        Ok(DhcpObserved {
            directory,
            files: self.files()?,
            process,
        })
    }

    /// Its files, if both are there.
    fn files(&self) -> Result<Option<DhcpFiles>, NetError> {
        Ok(match (read(&self.config())?, read(&self.hosts())?) {
            (Some(config), Some(hosts)) => Some(DhcpFiles { config, hosts }),
            _ => None,
        })
    }

    /// Writes its files.
    pub(super) fn write(&self, files: &DhcpFiles) -> Result<(), NetError> {
        // dnsmasq reads its hosts again when it is no longer root, so all this is for everybody to read.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.directory)
            .map_err(NetError::file("make directory", &self.directory))?;
        for directory in self
            .directory
            .parent()
            .into_iter()
            .chain([self.directory.as_path()])
        {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
                .map_err(NetError::file("set the mode of", directory))?;
        }
        replace(&self.hosts(), &files.hosts)?;
        replace(&self.config(), &files.config)
    }

    /// Starts it, unless it runs with these very files. The calling thread must be in its namespace.
    pub(super) async fn start(&self) -> Result<(), NetError> {
        let files = self.files()?.ok_or_else(|| NetError::Dhcp {
            what: "has no files to start with".to_owned(),
        })?;
        if let Some(process) = self.find()? {
            if is_in(process, netns::look(&self.namespace)?)
                && self.loaded_by(process).as_ref() == Some(&files)
            {
                return Ok(());
            }
            self.stop().await?;
        }
        let command = Command::new("dnsmasq")
            .arg(self.mark())
            .arg(argument("--pid-file=", &self.pid_file()))
            .arg(argument("--dhcp-hostsfile=", &self.hosts()))
            .arg(format!("--user={}", self.user()?))
            .timeout(START_LIMIT);
        command.run().await?;
        let process = self.appears().await?;
        self.write_record(process, files)
    }

    /// Makes it read its hosts again.
    pub(super) fn reload(&self) -> Result<(), NetError> {
        let gone = || NetError::Dhcp {
            what: "does not run, so it cannot read its hosts again".to_owned(),
        };
        let process = self.find()?.ok_or_else(gone)?;
        let now = self.files()?.ok_or_else(|| NetError::Dhcp {
            what: "has no files to read".to_owned(),
        })?;
        // The configuration it has is the one it started with.
        let Some(before) = self.loaded_by(process) else {
            return Err(NetError::Dhcp {
                what: "runs with an unknown configuration".to_owned(),
            });
        };
        if !process.signal(Signal::SIGHUP)? {
            return Err(gone());
        }
        self.write_record(
            process,
            DhcpFiles {
                config: before.config,
                hosts: now.hosts,
            },
        )
    }

    /// Ends it, and waits until it has ended.
    pub(super) async fn stop(&self) -> Result<(), NetError> {
        while let Some(process) = self.find()? {
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                process.signal(signal)?;
                if process.ends_within(STOP_LIMIT).await {
                    break;
                }
            }
            if process.is_alive() {
                return Err(NetError::Dhcp {
                    what: format!("(process {}) does not end", process.pid),
                });
            }
        }
        remove(&self.record())?;
        remove(&self.pid_file())
    }

    /// Removes its directory.
    pub(super) fn remove_files(&self) -> Result<(), NetError> {
        match fs::remove_dir_all(&self.directory) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(NetError::file("remove", &self.directory)(error)),
        }
    }

    /// The process, if it runs: the one its pid file or our record names, else any one that looks like it.
    fn find(&self) -> Result<Option<Process>, NetError> {
        let record = self.read_record();
        let here = netns::look(&self.namespace)?;
        let mark = self.mark();
        // The command line alone could be that of another agent's server, in other namespaces with the same
        // paths. So the process must be in our namespace, or be the very one that we recorded.
        let is_ours = |process: &Process| {
            let recorded = record
                .as_ref()
                .is_some_and(|record| record.process() == *process);
            (recorded || is_in(*process, here)) && process.has_argument(&mark)
        };
        let named = read(&self.pid_file())?.and_then(|text| text.trim().parse().ok());
        let known = [named, record.as_ref().map(|record| record.pid)];
        let found = known
            .into_iter()
            .flatten()
            .filter_map(Process::of)
            .find(is_ours);
        if found.is_some() || !matches!(here, netns::Name::Present(_)) {
            return Ok(found);
        }
        Ok(Process::all()?
            .into_iter()
            .filter_map(Process::of)
            .find(is_ours))
    }

    async fn appears(&self) -> Result<Process, NetError> {
        let deadline = tokio::time::Instant::now() + APPEAR_LIMIT;
        loop {
            if let Some(process) = self.find()? {
                return Ok(process);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(NetError::Dhcp {
                    what: "ended right after its start; its log has the reason".to_owned(),
                });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn read_record(&self) -> Option<Loaded> {
        // A record that cannot be read is none: the server starts afresh.
        serde_json::from_slice(&fs::read(self.record()).ok()?).ok()
    }

    fn loaded_by(&self, process: Process) -> Option<DhcpFiles> {
        let record = self
            .read_record()
            .filter(|record| record.process() == process)?;
        Some(DhcpFiles {
            config: record.config,
            hosts: record.hosts,
        })
    }

    fn write_record(&self, process: Process, files: DhcpFiles) -> Result<(), NetError> {
        let Process { pid, born } = process;
        let record = Loaded {
            pid,
            born,
            config: files.config,
            hosts: files.hosts,
        };
        let text = serde_json::to_string(&record)
            .map_err(|error| NetError::file("write", self.record())(io::Error::other(error)))?;
        replace(&self.record(), &text)
    }

    /// Whom it shall run as: a user without rights, if such a one can reach the hosts file.
    fn user(&self) -> Result<&'static str, NetError> {
        for directory in self.directory.ancestors() {
            let mode = fs::metadata(directory)
                .map_err(NetError::file("look at", directory))?
                .permissions()
                .mode();
            if mode & 0o001 == 0 {
                tracing::warn!(
                    directory = %directory.display(),
                    "dnsmasq runs as root, because no other user can pass through this directory"
                );
                return Ok("root");
            }
        }
        for user in USERS {
            if User::from_name(user)
                .map_err(NetError::system(format!("look up user {user}")))?
                .is_some()
            {
                return Ok(user);
            }
        }
        Ok("root")
    }
}

impl Loaded {
    const fn process(&self) -> Process {
        Process {
            pid: self.pid,
            born: self.born,
        }
    }
}

fn is_in(process: Process, name: netns::Name) -> bool {
    match name {
        netns::Name::Present(inode) => process.namespace() == Some(inode),
        netns::Name::Absent | netns::Name::Empty => false,
    }
}

fn argument(option: &str, path: &Path) -> PathBuf {
    let mut argument = std::ffi::OsString::from(option);
    argument.push(path);
    PathBuf::from(argument)
}

fn read(path: &Path) -> Result<Option<String>, NetError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not text: not what we wrote.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(error) => Err(NetError::file("read", path)(error)),
    }
}

fn remove(path: &Path) -> Result<(), NetError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(NetError::file("remove", path)(error)),
    }
}

/// Replaces a file at once. It is not forced onto the disk: what a power cut takes is written anew.
fn replace(path: &Path, text: &str) -> Result<(), NetError> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).map_err(NetError::file("write", &temporary))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))
        .map_err(NetError::file("set the mode of", &temporary))?;
    fs::rename(&temporary, path).map_err(NetError::file("replace", path))
}
