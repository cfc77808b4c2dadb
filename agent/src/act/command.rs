//! Runs external tools: argv only, an empty environment, bounded output, a deadline, resource limits, and as a user
//! without rights where the caller says so.
//!
//! No shell ever sees a byte of it. A tool that takes too long is killed with its whole process group and reaped,
//! also when the caller is cancelled, unless it must never be killed. A tool that puts itself into the background (dnsmasq) is done when the
//! process that was started ends; what it left behind is not touched.
//!
//! When the agent itself is killed, tools that only read or write data end with it if their caller says so ([`parent`]); all others
//! run to their end: what they change must not stop half-way.
//!
//! This file decides nothing about what the tools mean: callers read status and output.

mod confinement;
mod limits;
mod parent;
mod private_root;
mod view;

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Child,
};

pub use confinement::{Account, AccountError, Confinement, Network};
pub use limits::Limits;
use parent::Parent;
pub(crate) use view::SYSTEM;
pub use view::{Access, View};

/// Where tools are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a tool may take unless its caller says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How much a tool may print unless its caller says otherwise, in bytes.
const DEFAULT_STDOUT_LIMIT: usize = 1 << 20;
/// How much of the end of its error output is kept, in bytes.
const STDERR_TAIL: usize = 4096;
/// How long output may still arrive after the process ended: a background child can hold the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// Which Debian package a tool comes with.
const PACKAGES: &[(&str, &str)] = &[
    ("blkdiscard", "util-linux"),
    ("dnsmasq", "dnsmasq-base"),
    ("lvm", "lvm2"),
    ("qemu-img", "qemu-utils"),
    ("xorriso", "xorriso"),
];

/// An external tool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program on the host.
    #[error("{program} is not installed on this host{}", package_hint(program))]
    Missing {
        /// The program.
        program: String,
    },
    /// It could not be started.
    #[error("could not start `{}`", line(argv))]
    Start {
        /// The program and its arguments.
        argv: Vec<String>,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It could not be started without rights.
    #[error(
        "could not start `{}` as another user with nothing but its files in sight (mount and network namespaces of its own)",
        line(argv)
    )]
    Confine {
        /// The program and its arguments.
        argv: Vec<String>,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Talking to it, or waiting for it, failed.
    #[error("lost track of `{}`", line(argv))]
    Wait {
        /// The program and its arguments.
        argv: Vec<String>,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("`{}` was killed after {} s{}", line(argv), after.as_secs_f32(), said(stderr))]
    TimedOut {
        /// The program and its arguments.
        argv: Vec<String>,
        /// How long it was given.
        after: Duration,
        /// The end of what it printed as errors.
        stderr: String,
    },
    /// It took too long, and must not be killed.
    #[error("`{}` did not end within {} s and was left running", line(argv), after.as_secs_f32())]
    Unfinished {
        /// The program and its arguments.
        argv: Vec<String>,
        /// How long it was waited for.
        after: Duration,
    },
    /// It was not started: another one that must not be killed still runs.
    #[error("`{}` was not begun within {} s: what was begun before still runs", line(argv), after.as_secs_f32())]
    NotBegun {
        /// The program and its arguments.
        argv: Vec<String>,
        /// How long it was waited for.
        after: Duration,
    },
    /// It was not started: it did not answer when it was asked last, and it is not time to ask again.
    #[error("`{}` was not run: it has not answered since {}", line(argv), since.to_rfc3339_opts(SecondsFormat::Secs, true))]
    NotAsked {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Since when.
        since: DateTime<Utc>,
    },
    /// It printed more than its caller wants to hold in memory.
    #[error("`{}` printed more than {limit} bytes and was killed", line(argv))]
    TooMuchOutput {
        /// The program and its arguments.
        argv: Vec<String>,
        /// What was allowed.
        limit: usize,
    },
    /// It ended with a status other than 0, or by a signal.
    #[error("`{}` failed ({status}){}", line(argv), said(stderr))]
    Failed {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Its exit code or signal.
        status: ExitStatus,
        /// The end of what it printed as errors.
        stderr: String,
    },
}

impl CommandError {
    /// The end of what the tool printed as errors; empty where it never ran.
    #[must_use]
    pub fn stderr(&self) -> &str {
        match self {
            Self::TimedOut { stderr, .. } | Self::Failed { stderr, .. } => stderr,
            Self::Missing { .. }
            | Self::Start { .. }
            | Self::Confine { .. }
            | Self::Wait { .. }
            | Self::Unfinished { .. }
            | Self::NotBegun { .. }
            | Self::NotAsked { .. }
            | Self::TooMuchOutput { .. } => "",
        }
    }
}

/// For people: the command as one line.
fn line(argv: &[String]) -> String {
    argv.join(" ")
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

fn package_hint(program: &str) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    PACKAGES
        .iter()
        .find(|(tool, _)| *tool == name)
        .map_or_else(String::new, |(_, package)| {
            format!("; Debian has it in the package {package}")
        })
}

/// What a tool that succeeded printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The end of its error output.
    pub stderr: String,
}

/// What becomes of a tool that takes too long, or that nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Abandoned {
    /// It is killed with its process group. If the agent is killed meanwhile, it runs to its end.
    Killed,
    /// It is killed with its process group, and ends with the agent, however that ends.
    KilledWithAgent,
    /// It runs to its end: it has no deadline.
    Left,
}

impl Abandoned {
    const fn is_killed(self) -> bool {
        match self {
            Self::Killed | Self::KilledWithAgent => true,
            Self::Left => false,
        }
    }
}

/// Whether a tool may leave a core file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cores {
    /// It would hold a tenant's data.
    Never,
    /// If the agent itself may.
    Inherited,
}

/// An external tool with its arguments and bounds.
#[derive(Debug, Clone)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    directory: PathBuf,
    timeout: Duration,
    abandoned: Abandoned,
    stdout_limit: usize,
    cores: Cores,
    limits: Limits,
    confinement: Option<Confinement>,
    malloc_arenas: Option<u8>,
    input: Vec<u8>,
}

impl Command {
    /// A tool by name (looked for in the system's own directories) or absolute path.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            directory: PathBuf::from("/"),
            timeout: DEFAULT_TIMEOUT,
            abandoned: Abandoned::Killed,
            stdout_limit: DEFAULT_STDOUT_LIMIT,
            cores: Cores::Never,
            limits: Limits::default(),
            confinement: None,
            malloc_arenas: None,
            input: Vec::new(),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// The directory it works in; `/` otherwise.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// How long it may take; 30 s otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// It is never killed: not for taking too long, and not for nobody waiting for it any more.
    #[must_use]
    pub fn never_killed(mut self) -> Self {
        self.abandoned = Abandoned::Left;
        self
    }

    /// It does not outlive the agent, also when that is killed: nobody would watch how long it works, and what it takes. For what
    /// reads and writes data, and changes nothing that must not stay half-way.
    #[must_use]
    pub fn ends_with_agent(mut self) -> Self {
        self.abandoned = Abandoned::KilledWithAgent;
        self
    }

    /// How many bytes it may print; 1 MiB otherwise.
    #[must_use]
    pub fn stdout_limit(mut self, bytes: usize) -> Self {
        self.stdout_limit = bytes;
        self
    }

    /// It reads nothing of a tenant's, so a core file of it may be left as one of the agent may. Without limits there is nothing to do
    /// between fork and exec then, and it is started without a copy of the agent's page tables: that matters for what runs often.
    #[must_use]
    pub fn reads_nothing_of_tenants(mut self) -> Self {
        self.cores = Cores::Inherited;
        self
    }

    /// What it may use.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who it becomes; the agent's own user otherwise.
    #[must_use]
    pub fn confined(mut self, confinement: Confinement) -> Self {
        self.confinement = Some(confinement);
        self
    }

    /// How many pools of memory its threads share; as many as glibc likes otherwise. Each takes 64 MiB of address
    /// space, more while it is made, and that is what is limited.
    #[must_use]
    pub fn malloc_arenas(mut self, count: u8) -> Self {
        self.malloc_arenas = Some(count);
        self
    }

    /// What it reads from its standard input; nothing otherwise.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Program and arguments as texts, for messages.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        std::iter::once(&self.program)
            .chain(&self.args)
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect()
    }

    /// Runs it to its end. Dropping the future kills it, unless it is never killed.
    ///
    /// # Errors
    /// [`CommandError`]: it is missing, cannot be started, fails, takes too long or prints too much.
    pub async fn run(&self) -> Result<Output, CommandError> {
        self.run_heard(&mut |_| ()).await
    }

    /// Runs it to its end, and tells what it prints meanwhile, piece by piece. Dropping the future kills it.
    ///
    /// # Errors
    /// [`CommandError`]: it is missing, cannot be started, fails, takes too long or prints too much.
    pub async fn run_heard(
        &self,
        heard: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<Output, CommandError> {
        let (_parent, mut child) = self.start().await?;
        let group = if self.abandoned.is_killed() {
            Group::of(&child)
        } else {
            Group(None)
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let wait = |source| CommandError::Wait {
            argv: self.argv(),
            source,
        };
        let mut errors = Tail::default();
        // It holds the buffers that are read into. Whoever runs a command holds this, and so do all that wait for them.
        let work = Box::pin(self.attend(&mut child, stdout, stderr, &mut errors, heard));
        let ended = if self.abandoned.is_killed() {
            tokio::time::timeout(self.timeout, work).await
        } else {
            Ok(work.await)
        };
        let result = match ended {
            Ok(Ended::Exit(status, output)) => Ok((status, output)),
            Ok(Ended::TooMuch) => Err(CommandError::TooMuchOutput {
                argv: self.argv(),
                limit: self.stdout_limit,
            }),
            Ok(Ended::Lost(source)) => Err(wait(source)),
            Err(_) => Err(CommandError::TimedOut {
                argv: self.argv(),
                after: self.timeout,
                stderr: errors.text(),
            }),
        };
        match result {
            Ok((status, stdout)) => {
                group.leave_alone();
                if status.success() {
                    Ok(Output {
                        stdout,
                        stderr: errors.text(),
                    })
                } else {
                    Err(CommandError::Failed {
                        argv: self.argv(),
                        status,
                        stderr: errors.text(),
                    })
                }
            }
            Err(error) => {
                drop(group);
                child.wait().await.map_err(wait)?;
                Err(error)
            }
        }
    }

    /// Starts it. The parent, if it has one of its own, must last until the child has ended.
    async fn start(&self) -> Result<(Option<Parent>, Child), CommandError> {
        let mut command = self.prepared()?;
        let started = match self.abandoned {
            Abandoned::KilledWithAgent => {
                let started = Parent::start(command).await;
                started.map(|(parent, child)| (Some(parent), child))
            }
            Abandoned::Killed | Abandoned::Left => command.spawn().map(|child| (None, child)),
        };
        started.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound if self.directory.is_dir() => CommandError::Missing {
                program: self.program.to_string_lossy().into_owned(),
            },
            _ => self.not_started(source),
        })
    }

    fn prepared(&self) -> Result<tokio::process::Command, CommandError> {
        let found = match self.cores {
            Cores::Never => None,
            Cores::Inherited => found(&self.program),
        };
        let program = found.as_deref().unwrap_or(&self.program);
        let mut command = std::process::Command::new(program);
        command
            .args(&self.args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", PATH)
            .current_dir(&self.directory)
            .stdin(self.standard_input()?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        {
            use std::os::unix::process::CommandExt as _;
            command.arg0(&self.program).process_group(0);
        }
        if let Some(count) = self.malloc_arenas {
            command.env("MALLOC_ARENA_MAX", count.to_string());
        }
        if self.cores == Cores::Never || self.limits != Limits::default() {
            self.limits.impose_on(&mut command);
        }
        if let Some(confinement) = &self.confinement {
            let imposed = confinement.impose_on(&mut command, &self.directory);
            imposed.map_err(|source| self.not_started(source))?;
        }
        if self.abandoned == Abandoned::KilledWithAgent {
            parent::end_with_parent(&mut command);
        }
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(self.abandoned.is_killed());
        Ok(command)
    }

    /// A file in memory that nobody else sees, so that nobody has to write while the child reads.
    fn standard_input(&self) -> Result<Stdio, CommandError> {
        if self.input.is_empty() {
            return Ok(Stdio::null());
        }
        let file = || -> io::Result<File> {
            let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
            let mut file = File::from(nix::sys::memfd::memfd_create("input", flags)?);
            file.write_all(&self.input)?;
            file.rewind()?;
            Ok(file)
        };
        file()
            .map(Stdio::from)
            .map_err(|source| CommandError::Start {
                argv: self.argv(),
                source,
            })
    }

    fn not_started(&self, source: io::Error) -> CommandError {
        let argv = self.argv();
        match self.confinement {
            Some(_) => CommandError::Confine { argv, source },
            None => CommandError::Start { argv, source },
        }
    }

    /// Reads what the child prints until it ended and its pipes are empty.
    async fn attend(
        &self,
        child: &mut Child,
        stdout: Option<tokio::process::ChildStdout>,
        stderr: Option<tokio::process::ChildStderr>,
        errors: &mut Tail,
        heard: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Ended {
        let mut output = Bounded {
            bytes: Vec::new(),
            limit: self.stdout_limit,
            heard,
        };
        let status = {
            let pipes =
                async { tokio::try_join!(drain(stdout, &mut output), drain(stderr, errors)) };
            tokio::pin!(pipes);
            let mut pipes_done = false;
            loop {
                tokio::select! {
                    ended = &mut pipes, if !pipes_done => match ended {
                        Ok(_) => pipes_done = true,
                        Err(Stop::TooMuch) => return Ended::TooMuch,
                        Err(Stop::Io(error)) => return Ended::Lost(error),
                    },
                    status = child.wait() => match status {
                        Err(error) => return Ended::Lost(error),
                        Ok(status) => {
                            if !pipes_done {
                                match tokio::time::timeout(DRAIN, &mut pipes).await {
                                    Ok(Err(Stop::TooMuch)) => return Ended::TooMuch,
                                    Ok(Err(Stop::Io(error))) => return Ended::Lost(error),
                                    Ok(Ok(_)) | Err(_) => {}
                                }
                            }
                            break status;
                        }
                    },
                }
            }
        };
        Ended::Exit(status, output.bytes)
    }
}

/// Where a tool is, by its path: it takes a fork to look for it in a `PATH` that is not the agent's own.
fn found(program: &OsStr) -> Option<OsString> {
    let mut places = PATH.split(':').map(|place| Path::new(place).join(program));
    places.find(|path| path.is_file()).map(OsString::from)
}

/// How attending a child ended.
enum Ended {
    Exit(ExitStatus, Vec<u8>),
    TooMuch,
    Lost(io::Error),
}

/// Why reading a pipe stopped early.
enum Stop {
    TooMuch,
    Io(io::Error),
}

/// Takes what a pipe brings.
trait Sink {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Stop>;
}

/// Everything, up to a limit.
struct Bounded<'a> {
    bytes: Vec<u8>,
    limit: usize,
    heard: &'a mut (dyn FnMut(&[u8]) + Send),
}

impl Sink for Bounded<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        if self.bytes.len().saturating_add(bytes.len()) > self.limit {
            return Err(Stop::TooMuch);
        }
        self.bytes.extend_from_slice(bytes);
        (self.heard)(bytes);
        Ok(())
    }
}

/// The end of it.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}

impl Sink for Tail {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.bytes.extend_from_slice(bytes);
        let surplus = self.bytes.len().saturating_sub(STDERR_TAIL);
        self.bytes.drain(..surplus);
        Ok(())
    }
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>, sink: &mut impl Sink) -> Result<(), Stop> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = [0_u8; 8192];
    loop {
        match pipe.read(&mut buffer).await.map_err(Stop::Io)? {
            0 => return Ok(()),
            count => sink.take(&buffer[..count])?,
        }
    }
}

/// A process group that is killed when this is dropped, unless it was told to leave it alone. Only the group's
/// leader is a child; as long as it is not reaped, its id cannot belong to anything else.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .map(Pid::from_raw),
        )
    }

    fn leave_alone(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may have ended by itself in the same moment.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests;
