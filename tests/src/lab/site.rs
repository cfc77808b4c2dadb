//! The room and the cable: a folder, a bridge with a /24 of its own, and a number that makes both unique on this
//! machine. The kernel keeps the numbers apart: a bridge's name can be had once.

use std::{net::Ipv4Addr, path::PathBuf, sync::Mutex, time::Duration};

use anyhow::{Context, bail};

use super::service::MARK;
use crate::{
    run,
    wait::{Seen, wait_for_blocking},
};

/// One test process looks for a number at a time.
static NUMBERING: Mutex<()> = Mutex::new(());
const LAST: u8 = 250;
/// How long what was ended may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A folder and a bridge.
#[derive(Debug)]
pub struct Site {
    number: u8,
    dir: PathBuf,
    closed: bool,
}

impl Site {
    /// Takes the first free number.
    ///
    /// # Errors
    /// None is free, or the bridge cannot be made: these tests need root.
    pub fn open() -> anyhow::Result<Self> {
        let _one = NUMBERING
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for number in 1..=LAST {
            let bridge = bridge(number);
            if run::text_blocking(&["ip", "link", "add", &bridge, "type", "bridge"]).is_err() {
                if !is_orphan(&bridge) {
                    continue;
                }
                run::text_blocking(&["ip", "link", "del", &bridge])?;
                run::text_blocking(&["ip", "link", "add", &bridge, "type", "bridge"])?;
            }
            let site = Self {
                number,
                dir: PathBuf::from(format!("/tmp/berth-lab-{number}")),
                closed: false,
            };
            site.furnish()?;
            return Ok(site);
        }
        bail!("no number from 1 to {LAST} is free for a test site; are there leftovers (ip link)?")
    }

    fn furnish(&self) -> anyhow::Result<()> {
        let bridge = self.bridge();
        let owner = format!("berth-tests {}", std::process::id());
        run::text_blocking(&["ip", "link", "set", &bridge, "alias", &owner])?;
        run::text_blocking(&[
            "ip",
            "addr",
            "add",
            &format!("{}/24", self.address(1)),
            "dev",
            &bridge,
        ])?;
        run::text_blocking(&["ip", "link", "set", &bridge, "up"])?;
        if self.dir.exists() {
            std::fs::remove_dir_all(&self.dir)
                .with_context(|| format!("cannot clear {}", self.dir.display()))?;
        }
        std::fs::create_dir(&self.dir)?;
        Ok(())
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its folder, on a short path: sockets lie below it.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// An address on its cable; 1 is this side.
    #[must_use]
    pub fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, self.number, host)
    }

    /// Its bridge.
    #[must_use]
    pub fn bridge(&self) -> String {
        bridge(self.number)
    }

    /// The end of a hypervisor's cable that is on this side.
    #[must_use]
    pub fn cable(&self, hypervisor: u8) -> String {
        format!("lab{}h{hypervisor}", self.number)
    }

    /// Takes everything down, and says what could not be taken down or should not be there.
    pub fn close(&mut self) -> Vec<String> {
        self.closed = true;
        let mut wrong = Vec::new();
        let ended = wait_for_blocking("all processes of the site to end", END_LIMIT, || {
            let processes = marked_processes(&self.number.to_string());
            Ok(Seen::when(processes.is_empty(), processes))
        });
        wrong.extend(ended.err().map(|error| format!("{error:#}")));
        // The kernel takes a namespace apart in the background, and a busy machine takes its time over that: a link
        // of one that is going is no leak, one that stays is.
        let clean = wait_for_blocking("nothing to be left behind", END_LIMIT, || {
            let leftovers = self.leftovers()?;
            Ok(Seen::when(leftovers.is_empty(), leftovers))
        });
        wrong.extend(clean.err().map(|error| format!("{error:#}")));
        if std::env::var_os("BERTH_TEST_KEEP").is_none()
            && let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            wrong.push(format!("{} cannot be removed: {error}", self.dir.display()));
        }
        // The bridge last: it is what holds the number, and everything above bears that number.
        let removed = run::text_blocking(&["ip", "link", "del", &self.bridge()]);
        wrong.extend(removed.err().map(|error| format!("{error:#}")));
        wrong
    }

    /// Whether this site's services ever spoke of an id.
    fn logs_mention(&self, id: &str) -> anyhow::Result<bool> {
        if id.is_empty() {
            return Ok(false);
        }
        for folder in std::iter::once(self.dir.clone())
            .chain((1..=9).map(|index| self.dir.join(format!("hv{index}"))))
        {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "log")
                    && String::from_utf8_lossy(&std::fs::read(&path)?).contains(id)
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        for name in links()? {
            if name.starts_with(&format!("lab{}h", self.number)) {
                wrong.push(format!("link {name} is left on this machine"));
            }
        }
        for (object, owner) in berth_objects()? {
            if self.logs_mention(&owner)? {
                wrong.push(format!("{object} was made outside of the hypervisors"));
            }
        }
        let prefix = format!("{}/", self.dir.display());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        wrong.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&prefix))
                .map(|line| format!("mount left: {line}")),
        );
        Ok(wrong)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !self.closed {
            self.close();
        }
    }
}

/// The id at the end of a text such as `berth bridge <id>`.
fn last_word(text: &str) -> String {
    text.split_whitespace()
        .last()
        .unwrap_or_default()
        .to_owned()
}

fn bridge(number: u8) -> String {
    format!("lab{number}")
}

/// Whether a bridge belongs to a test process that is gone.
fn is_orphan(bridge: &str) -> bool {
    let alias =
        std::fs::read_to_string(format!("/sys/class/net/{bridge}/ifalias")).unwrap_or_default();
    let owner = alias.trim().strip_prefix("berth-tests ");
    owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
}

fn links() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Links and namespaces of berth in the machine's own network namespace, each with the id it was made for. A berth
/// that is none of ours may run here; the tests must make none there.
fn berth_objects() -> anyhow::Result<Vec<(String, String)>> {
    let mut objects = Vec::new();
    for name in links()?.into_iter().filter(|name| name.starts_with("bt")) {
        let alias = std::fs::read_to_string(format!("/sys/class/net/{name}/ifalias"));
        objects.push((
            format!("link {name}"),
            last_word(&alias.unwrap_or_default()),
        ));
    }
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(id) = name.strip_prefix("berth-") {
            objects.push((format!("namespace {name}"), id.to_owned()));
        }
    }
    Ok(objects)
}

/// Processes with this site's mark in their environment, except those that are dead already.
fn marked_processes(number: &str) -> Vec<String> {
    let mark = format!("{MARK}={number}");
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            let marked = environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes());
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            marked.then(|| format!("{} {command}", entry.file_name().to_string_lossy()))
        })
        .collect()
}
