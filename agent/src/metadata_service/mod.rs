//! The program `berth-metadata`: tells the guests of one network who they are, what their keys are and what to do at their first
//! boot, at 169.254.169.254 and fe80::a9fe:a9fe.
//!
//! ```text
//!   listen ▶ give up all rights ▶ into the background ▶ for each connection:
//!     source address ──sources──▶ instance ──its file──▶ answer
//!                                     └── claims to be somebody ──▶ counts, a file every few seconds
//! ```
//!
//! Who asks is told by the address that the question comes from, and by nothing that is in it: the packet filter lets no guest
//! use another one's address. It reads its files for every request and remembers nothing but how many claimed to be somebody, so
//! nobody has to tell it of changes; it writes no file but that of its counts, and connects to nobody.

mod connections;
pub mod counts;
mod http;

use std::{
    fs::File,
    io::{self, Read as _},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use berth_common::telemetry::logging::{self, LogConfig, LogFormat};
use clap::Parser;
use nix::{
    net::if_::if_nametoindex,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{User, chdir, daemon, setgid, setgroups, setuid},
};

use crate::decide::metadata::{ADDRESS_V4, ADDRESS_V6, PORT};

/// Open files at most: connections, and a few.
const FILES: u64 = 512;
/// It is not there on a kernel without IPv6.
const IPV6: &str = "/proc/sys/net/ipv6";
/// What the journal is told.
const LOG: &str = "warn";

/// The file of a network that tells whose questions come from which address.
pub const SOURCES_FILE: &str = "metadata.json";

/// What the program is told on its command line.
#[derive(Debug, Clone, Parser)]
#[command(name = "berth-metadata", version, about)]
pub struct Options {
    /// The directory of the network, with its metadata.json.
    #[arg(long)]
    pub network: PathBuf,
    /// The directory with one file for each instance.
    #[arg(long)]
    pub instances: PathBuf,
    /// The link whose addresses it listens on.
    #[arg(long)]
    pub link: String,
    /// The user it becomes once it listens.
    #[arg(long)]
    pub user: String,
}

/// Listens, gives up its rights, and serves from the background for ever. The calling process ends once all that is done.
///
/// # Errors
/// The addresses are not there or in use, or the user is unknown. Nothing of it is left in the background then.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let listeners = listen(options)?;
    let user = user(options)?;
    let counts = counts::prepare(&options.network, &user);
    give_up_rights(&user)?;
    logging::init(&LogConfig {
        filter: LOG.to_owned(),
        format: LogFormat::Journald,
    })?;
    daemon(true, false).context("could not go into the background")?;
    if let Err(error) = counts {
        tracing::warn!(network = %options.network.display(), %error, "requests with forged headers will not be counted");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let files = Files {
        sources: options.network.join(SOURCES_FILE),
        instances: options.instances.clone(),
        counts: counts::file(&options.network),
    };
    runtime.block_on(connections::serve(listeners, files))?;
    Ok(())
}

fn listen(options: &Options) -> anyhow::Result<Vec<std::net::TcpListener>> {
    let link = options.link.as_str();
    let index = if_nametoindex(link).with_context(|| format!("link {link} is not there"))?;
    let mut addresses = vec![SocketAddr::V4(SocketAddrV4::new(ADDRESS_V4, PORT))];
    if Path::new(IPV6).exists() {
        addresses.push(SocketAddr::V6(SocketAddrV6::new(
            ADDRESS_V6, PORT, 0, index,
        )));
    }
    addresses
        .into_iter()
        .map(|address| {
            let listener = std::net::TcpListener::bind(address)
                .with_context(|| format!("could not listen on {address}"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .collect()
}

/// Whom it becomes.
fn user(options: &Options) -> anyhow::Result<User> {
    let name = options.user.as_str();
    User::from_name(name)
        .with_context(|| format!("could not look up user {name}"))?
        .with_context(|| format!("there is no user {name}"))
}

/// Becomes a user without rights, with nothing of root's left, and no way back.
fn give_up_rights(user: &User) -> anyhow::Result<()> {
    chdir("/")?;
    setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).context("could not bound open files")?;
    prctl::set_no_new_privs().context("could not forbid itself new rights")?;
    let become_it = || {
        setgroups(&[user.gid])?;
        setgid(user.gid)?;
        setuid(user.uid)
    };
    become_it().with_context(|| format!("could not become user {}", user.name))
}

/// Where what is told lies.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// Whose questions come from which address.
    pub(crate) sources: PathBuf,
    /// One file for each instance.
    pub(crate) instances: PathBuf,
    /// What was counted.
    pub(crate) counts: PathBuf,
}

/// Reads a file that is no larger than it may be; `None`: it is not there.
fn read_bounded(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(Some(bytes))
}
