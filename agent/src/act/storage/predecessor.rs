//! Tools that an agent before this one left running: they are ended, or waited for, before what they write is swept. A name that is taken from
//! them takes nothing from them: they would go on filling what nobody sees, beside those of this agent.
//!
//! Tools end with their agent ([`Command::ends_with_agent`](crate::act::command::Command::ends_with_agent)). What is found here
//! was started by an agent that did not see to that yet, or by a wrapper, or is what the kernel cannot end before its last
//! bytes are written. LVM's own commands must not be ended; they are waited for, or what one of them is about to make would be
//! there after the sweep.
//!
//! A tool is known by its name, by whom it runs as, and by what it works on. So nobody else's is ended: not an operator's
//! `qemu-img`, and not that of an agent with another state directory.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Uid};
use tokio::time::Instant;

use super::{
    Inner, LvmPoolOptions, PoolOptions, StorageOptions, fault::StorageFault, temporary::TMP,
};
use crate::{
    act::{
        command::Account,
        process::{Look, Process},
    },
    decide::instance::Paths,
};

/// How long their end is waited for: one that was killed may have to write to the medium what it wrote before.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of the name of a program the kernel keeps (`TASK_COMM_LEN`, without its end).
const KEPT_NAME: usize = 15;
/// What the names of logical volumes begin with.
const LOGICAL: &[u8] = b"berth-";
/// More generations than there are between a tool and its agent.
const GENERATIONS: usize = 16;

/// What becomes of a tool that is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Ended,
    Awaited,
}

/// Ends them, but for those that must not be ended, and waits until all have ended.
pub(super) async fn end_tools(inner: &Arc<Inner>) -> Result<(), StorageFault> {
    let mut elsewhere = Vec::new();
    for pool in inner.dirs.values() {
        let place = pool.place.clone();
        let look = move || Ok([both(&place.volumes), both(&place.snapshots)].concat());
        match pool.threads.run(look).await {
            Ok(places) => elsewhere.extend(places),
            // That it is ill is said elsewhere.
            Err(_) => elsewhere.extend([pool.place.volumes.clone(), pool.place.snapshots.clone()]),
        }
    }
    let shared = Arc::clone(inner);
    let find = move || {
        let tools = Tools::of(&shared.paths, &shared.options, elsewhere);
        tools
            .find()
            .map_err(|source| StorageFault::io("list", Path::new("/proc"), source))
    };
    let left = inner.files.run(find).await?;
    for (tool, fate) in &left {
        let (pid, name) = (tool.process.pid, &tool.name);
        tracing::info!(
            pid,
            tool = name,
            ?fate,
            "an agent before this one left a tool running"
        );
        let ended = match fate {
            Fate::Ended => tool.process.send_with_group(Signal::SIGKILL),
            Fate::Awaited => Ok(true),
        };
        if let Err(error) = ended {
            tracing::warn!(pid, tool = name, %error, "it cannot be ended");
        }
    }
    let deadline = Instant::now() + PATIENCE;
    let mut stay = Vec::new();
    for (tool, _) in left {
        let patience = deadline.saturating_duration_since(Instant::now());
        if !tool.process.ends_within(patience).await {
            stay.push(format!("{} (process {})", tool.name, tool.process.pid));
        }
    }
    if stay.is_empty() {
        return Ok(());
    }
    Err(StorageFault::ToolsStay {
        tools: stay.join(", "),
        after: PATIENCE,
    })
}

/// A place as it is called, and where that leads. Blocks.
fn both(place: &Path) -> Vec<PathBuf> {
    let ways = [std::path::absolute(place), place.canonicalize()];
    ways.into_iter().flatten().collect()
}

/// What the tools of this storage are, and where they work.
struct Tools {
    /// The name of each program, whom it runs as, and what becomes of it.
    programs: Vec<(Vec<u8>, Uid, Fate)>,
    /// Where files of the storage lie.
    places: Vec<PathBuf>,
    /// Where its block devices are.
    devices: Vec<PathBuf>,
    /// Its volume groups.
    groups: Vec<String>,
}

impl Tools {
    /// `elsewhere`: where the files of other pools than `local` lie, as [`both`] says.
    fn of(paths: &Paths, options: &StorageOptions, elsewhere: Vec<PathBuf>) -> Self {
        let name = |program: &Path| {
            let name = program.file_name().unwrap_or_default().as_bytes();
            name[..name.len().min(KEPT_NAME)].to_owned()
        };
        let lvm = || {
            let pools = options.pools.values();
            pools.filter_map(|pool| match pool {
                PoolOptions::Lvm(lvm) => Some(lvm),
                PoolOptions::Dir(_) => None,
            })
        };
        let mut programs = vec![
            (name(&options.xorriso), Uid::effective(), Fate::Ended),
            (name(&options.blkdiscard), Uid::effective(), Fate::Ended),
            (name(&options.lvm), Uid::effective(), Fate::Awaited),
        ];
        // Without that user none was ever started.
        if let Ok(account) = Account::named(&options.qemu_img_user) {
            let user = Uid::from_raw(account.uid());
            programs.push((name(&options.qemu_img), user, Fate::Ended));
        }
        let roots = [
            &paths.images,
            &paths.instances,
            &paths.volumes,
            &paths.snapshots,
        ];
        // A tool names, and sees, what it was told of, and the kernel what that leads to.
        let mut places: Vec<_> = roots.into_iter().flat_map(|root| both(root)).collect();
        places.extend(elsewhere);
        places.dedup();
        Self {
            programs,
            places,
            devices: lvm().map(LvmPoolOptions::devices).collect(),
            groups: lvm()
                .map(|pool| pool.volume_group.as_str().to_owned())
                .collect(),
        }
    }

    /// Those that run and that no agent is the parent of: neither this one, nor another one that has a machine of its own in this
    /// one (a container, say) with files at the same places.
    fn find(&self) -> std::io::Result<Vec<(Look, Fate)>> {
        let all: Vec<Look> = Process::all()?.into_iter().filter_map(Look::at).collect();
        let known: HashMap<i32, &Look> = all.iter().map(|look| (look.process.pid, look)).collect();
        let own = nix::unistd::getpid().as_raw();
        let agents = known.get(&own).map(|look| look.name.clone());
        let has_agent = |look: &Look| {
            let parent = |look: &&Look| known.get(&look.parent).copied();
            std::iter::successors(parent(&look), parent)
                .take(GENERATIONS)
                .any(|it| it.process.pid == own || Some(&it.name) == agents.as_ref())
        };
        let left = all.iter().filter_map(|look| {
            let fate = self.fate_of(look).filter(|_| !has_agent(look))?;
            Some((look.clone(), fate))
        });
        Ok(left.collect())
    }

    /// What becomes of it, if it is one of the tools.
    fn fate_of(&self, look: &Look) -> Option<Fate> {
        let name = look.name.as_bytes();
        let (_, user, fate) = self.programs.iter().find(|(it, ..)| it == name)?;
        if !runs_as(look.process, *user) {
            return None;
        }
        let is_ours = match fate {
            Fate::Awaited => self.changes_ours(look.process),
            // An operator works as root, and where he likes.
            Fate::Ended if user.is_root() => self.has_ours(look.process),
            Fate::Ended => self.works_here(look.process) || self.has_ours(look.process),
        };
        is_ours.then_some(*fate)
    }

    /// Whether it works in one of the directories.
    fn works_here(&self, process: Process) -> bool {
        fs::read_link(format!("/proc/{}/cwd", process.pid))
            .is_ok_and(|directory| self.places.iter().any(|it| directory.starts_with(it)))
    }

    /// Whether it was told of something that is not whole, or of a logical volume.
    fn has_ours(&self, process: Process) -> bool {
        let is_ours = |argument: &OsStr| {
            let path = Path::new(argument);
            let name = path.file_name().unwrap_or_default().as_bytes();
            (name.starts_with(TMP.as_bytes()) && self.places.iter().any(|it| path.starts_with(it)))
                || (name.starts_with(LOGICAL)
                    && self.devices.iter().any(|it| path.parent() == Some(it)))
        };
        process.arguments().iter().any(|it| is_ours(it)) && process.is_alive()
    }

    /// Whether it was told of a volume group, or of something in it, and of something with a name as berth gives them.
    fn changes_ours(&self, process: Process) -> bool {
        let is_group = |argument: &OsStr| {
            let group = argument.as_bytes().split(|byte| *byte == b'/').next();
            self.groups.iter().any(|it| Some(it.as_bytes()) == group)
        };
        // An operator's `pvmove` may go on for hours in the same group.
        let is_named = |argument: &OsStr| {
            let name = argument.as_bytes().rsplit(|byte| *byte == b'/').next();
            name.is_some_and(|name| name.starts_with(LOGICAL))
        };
        let arguments = process.arguments();
        arguments.iter().any(|it| is_group(it))
            && arguments.iter().any(|it| is_named(it))
            && process.is_alive()
    }
}

/// Whether a process is this user's.
fn runs_as(process: Process, user: Uid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
    let real = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_ascii_whitespace().next());
    real.and_then(|id| id.parse().ok()) == Some(user.as_raw())
}
