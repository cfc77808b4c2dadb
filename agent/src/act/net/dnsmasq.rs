//! dnsmasq of one network: its files and its process.
//!
//! The process is nobody's child: it puts itself into the background and outlives the agent, which finds it again
//! by its command line and its namespace. What it has read is recorded only after it was told to read it, so a
//! crash in between means that it is told again.

use std::{fs, io, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{
    error::NetError,
    files::{argument, make_directory, read, remove, replace},
    netns,
    process::{Known, Process},
};
use crate::{
    act::{account, command::Command},
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
    #[serde(default)]
    names: String,
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

    fn names(&self) -> PathBuf {
        self.directory.join("names")
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
            in_namespace: process.is_in(here),
        });
        Ok(DhcpObserved {
            directory,
            files: self.files()?,
            process,
        })
    }

    /// Its files, if all are there.
    fn files(&self) -> Result<Option<DhcpFiles>, NetError> {
        let [config, hosts, names] = [self.config(), self.hosts(), self.names()];
        Ok(match (read(&config)?, read(&hosts)?, read(&names)?) {
            (Some(config), Some(hosts), Some(names)) => Some(DhcpFiles {
                config,
                hosts,
                names,
            }),
            _ => None,
        })
    }

    /// Writes its files.
    pub(super) fn write(&self, files: &DhcpFiles) -> Result<(), NetError> {
        // dnsmasq reads them again when it is no longer root, so all this is for everybody to read.
        make_directory(&self.directory)?;
        replace(&self.names(), &files.names)?;
        replace(&self.hosts(), &files.hosts)?;
        replace(&self.config(), &files.config)
    }

    /// Starts it, unless it runs with these very files. The calling thread must be in its namespace.
    pub(super) async fn start(&self) -> Result<(), NetError> {
        let files = self.files()?.ok_or_else(|| NetError::Dhcp {
            what: "has no files to start with".to_owned(),
        })?;
        if let Some(process) = self.find()? {
            if process.is_in(netns::look(&self.namespace)?)
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
            .arg(argument("--addn-hosts=", &self.names()))
            .arg(format!("--user={}", self.user()?))
            .timeout(START_LIMIT);
        command.run().await?;
        let process = self.appears().await?;
        self.write_record(process, files)
    }

    /// Makes it read its hosts and names again.
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
                ..now
            },
        )
    }

    /// Ends it, and waits until it has ended.
    pub(super) async fn stop(&self) -> Result<(), NetError> {
        while let Some(process) = self.find()? {
            if !process.stop(STOP_LIMIT).await? {
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
        let named = read(&self.pid_file())?.and_then(|text| text.trim().parse().ok());
        Process::find(&Known {
            recorded: self.read_record().map(|record| record.process()),
            named,
            namespace: netns::look(&self.namespace)?,
            mark: self.mark(),
        })
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
            names: record.names,
        })
    }

    fn write_record(&self, process: Process, files: DhcpFiles) -> Result<(), NetError> {
        let Process { pid, born } = process;
        let record = Loaded {
            pid,
            born,
            config: files.config,
            hosts: files.hosts,
            names: files.names,
        };
        let text = serde_json::to_string(&record)
            .map_err(|error| NetError::file("write", self.record())(io::Error::other(error)))?;
        replace(&self.record(), &text)
    }

    /// Whom it shall run as: a user without rights, if such a one can reach its files.
    fn user(&self) -> Result<&'static str, NetError> {
        account::without_rights(&USERS, &self.directory)
            .map_err(NetError::system("choose the user that dnsmasq becomes"))
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
