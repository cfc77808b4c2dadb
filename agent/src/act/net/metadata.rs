//! The metadata service of one network: the file that tells who may ask, and the process (`berth-metadata`).
//!
//! As dnsmasq, it puts itself into the background and outlives the agent, which finds it again by its command line and its
//! namespace. It remembers nothing that it would have to be told again.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::{
    error::NetError,
    files::{argument, make_directory, read, remove, replace},
    netns,
    process::{Known, Process},
};
use crate::{
    act::{
        account::{self, METADATA_USERS},
        command::Command,
    },
    decide::{
        metadata::ForgedCounts,
        network::{MetadataObserved, MetadataProcess},
    },
    metadata_service::{SOURCES_FILE, counts},
};

/// The program.
pub(crate) const PROGRAM: &str = "berth-metadata";
/// How long it may take to start.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end when it is asked to, and when it is made to.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long a started one may take to be found: it listens when the command returns.
const APPEAR_LIMIT: Duration = Duration::from_secs(2);
/// How large the file of its counts may be: some thousands of ports. Another user writes it, and those of all networks are read at once.
const COUNTS_MAX: u64 = 256 << 10;
/// How its last argument begins.
const USER: &str = "--user=";

/// Where the program is unless somebody says otherwise: beside the running one; or one directory above, where cargo puts it for
/// those that run tests.
#[must_use]
pub fn default_program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let directory = own.parent().unwrap_or(Path::new("/usr/bin"));
    let beside = directory.join(PROGRAM);
    let above = directory.parent().map(|above| above.join(PROGRAM));
    match above {
        Some(above) if !beside.exists() && above.exists() => above,
        _ => beside,
    }
}

/// The metadata service of one network.
#[derive(Debug, Clone)]
pub(super) struct Service {
    /// The program.
    pub(super) program: PathBuf,
    /// The directory of the network's files.
    pub(super) directory: PathBuf,
    /// The directory with one file for each instance.
    pub(super) instances: PathBuf,
    /// The name of the namespace.
    pub(super) namespace: String,
    /// The link in it.
    pub(super) link: String,
}

/// Which process was started.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pid: i32,
    born: u64,
}

impl Service {
    fn sources(&self) -> PathBuf {
        self.directory.join(SOURCES_FILE)
    }

    fn record(&self) -> PathBuf {
        self.directory.join("metadata-process.json")
    }

    /// What it is started with; only whom it becomes is left out.
    fn arguments(&self) -> Vec<OsString> {
        [
            self.mark(),
            argument("--instances=", &self.instances),
            argument("--link=", Path::new(&self.link)),
        ]
        .map(PathBuf::into_os_string)
        .into()
    }

    /// The argument by which its process is known.
    fn mark(&self) -> PathBuf {
        argument("--network=", &self.directory)
    }

    /// What is there of it.
    pub(super) fn observe(&self) -> Result<MetadataObserved, NetError> {
        let here = netns::look(&self.namespace)?;
        let process = self.find()?.map(|process| MetadataProcess {
            is_current: self.is_current(process),
            in_namespace: process.is_in(here),
        });
        Ok(MetadataObserved {
            sources: read(&self.sources())?,
            process,
        })
    }

    /// Writes who may ask.
    pub(super) fn write_sources(&self, sources: &str) -> Result<(), NetError> {
        make_directory(&self.directory)?;
        replace(&self.sources(), sources)
    }

    /// Starts it, unless it runs as it should. The calling thread must be in its namespace.
    pub(super) async fn start(&self) -> Result<(), NetError> {
        if let Some(process) = self.find()? {
            if process.is_in(netns::look(&self.namespace)?) && self.is_current(process) {
                return self.write_record(process);
            }
            self.stop().await?;
        }
        make_directory(&self.directory)?;
        let user = account::without_rights(&METADATA_USERS, &self.directory).map_err(
            NetError::system("choose the user that the metadata service becomes"),
        )?;
        Command::new(&self.program)
            .args(self.arguments())
            .arg(format!("{USER}{user}"))
            .timeout(START_LIMIT)
            .run()
            .await?;
        let process = self.appears().await?;
        self.write_record(process)
    }

    /// How many requests with forged headers it got, by where they came from; `None`: it does not count, or is not there. Another
    /// user writes the file, so nothing but a small regular one is read.
    pub(super) fn forged(&self) -> Result<Option<ForgedCounts>, NetError> {
        let path = counts::file(&self.directory);
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut options = fs::OpenOptions::new();
        let file = match options.read(true).custom_flags(flags.bits()).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(NetError::file("open", path)(error)),
        };
        let mut bytes = Vec::new();
        let read = file.metadata().and_then(|metadata| {
            if !metadata.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            file.take(COUNTS_MAX).read_to_end(&mut bytes)
        });
        let counts = read.and_then(|_| Ok(serde_json::from_slice(&bytes)?));
        counts.map(Some).map_err(NetError::file("read", path))
    }

    /// Ends it, and waits until it has ended. Its counts end with it.
    pub(super) async fn stop(&self) -> Result<(), NetError> {
        while let Some(process) = self.find()? {
            if !process.stop(STOP_LIMIT).await? {
                return Err(NetError::Metadata {
                    what: format!("(process {}) does not end", process.pid),
                });
            }
        }
        remove(&counts::file(&self.directory))?;
        remove(&self.record())
    }

    /// Whether it is the installed program, started as it is now.
    fn is_current(&self, process: Process) -> bool {
        let is_user = |argument: &OsStr| argument.as_bytes().starts_with(USER.as_bytes());
        let arguments = process.arguments();
        let told = arguments.into_iter().filter(|argument| !is_user(argument));
        told.eq(self.arguments()) && process.runs(&self.program)
    }

    fn find(&self) -> Result<Option<Process>, NetError> {
        Process::find(&Known {
            recorded: self.read_record(),
            named: None,
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
                return Err(NetError::Metadata {
                    what: "ended right after its start; the journal has the reason".to_owned(),
                });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn read_record(&self) -> Option<Process> {
        // A record that cannot be read is none: the process is looked for.
        let Record { pid, born } = serde_json::from_slice(&fs::read(self.record()).ok()?).ok()?;
        Some(Process { pid, born })
    }

    fn write_record(&self, process: Process) -> Result<(), NetError> {
        let Process { pid, born } = process;
        let text = serde_json::to_string(&Record { pid, born })
            .map_err(|error| NetError::file("write", self.record())(io::Error::other(error)))?;
        replace(&self.record(), &text)
    }
}
