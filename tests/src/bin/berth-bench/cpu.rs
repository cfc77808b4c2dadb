//! Processor time of the processes that share a machine with what is measured: where a rate goes.

use std::{str::FromStr, time::Duration};

use anyhow::Context;
use nix::unistd::{SysconfVar, sysconf};

/// A process with a name of its own.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// What it is called.
    pub(crate) name: String,
    pid: i32,
}

impl FromStr for Process {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, pid) = text.split_once('=').context("it is NAME=PID")?;
        Ok(Self {
            name: name.to_owned(),
            pid: pid.parse()?,
        })
    }
}

impl Process {
    /// This one.
    pub(crate) fn this(name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            pid: i32::try_from(std::process::id())?,
        })
    }

    /// What it has used so far, in user and kernel mode: fields 14 and 15 of proc_pid_stat(5).
    pub(crate) fn used(&self) -> anyhow::Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .with_context(|| format!("{} does not run", self.name))?;
        let (_, fields) = text.rsplit_once(')').context("a stat without a name")?;
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = times.map(str::parse::<u64>).sum::<Result<_, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(Duration::from_millis(
            ticks * 1000 / u64::try_from(per_second)?,
        ))
    }
}

/// Sums of several processes, over spans that are added one by one.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    processes: &'a [Process],
    sums: Vec<Duration>,
    count: u64,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(processes: &'a [Process]) -> Self {
        Self {
            processes,
            sums: vec![Duration::ZERO; processes.len()],
            count: 0,
        }
    }

    /// What all have used so far.
    pub(crate) fn look(&self) -> anyhow::Result<Vec<Duration>> {
        self.processes.iter().map(Process::used).collect()
    }

    /// Ends a span that began with a look, in which so much was done.
    pub(crate) fn add(&mut self, begin: &[Duration], count: u64) -> anyhow::Result<()> {
        let end = self.look()?;
        let spans = begin.iter().zip(end);
        for (sum, (begin, end)) in self.sums.iter_mut().zip(spans) {
            *sum += end.saturating_sub(*begin);
        }
        self.count += count;
        Ok(())
    }

    /// Each process with its microseconds for one of what was done.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&str, f64)> {
        let count = u32::try_from(self.count.max(1)).unwrap_or(u32::MAX);
        let names = self.processes.iter().map(|process| process.name.as_str());
        let micros = move |sum: &Duration| sum.as_secs_f64() * 1e6 / f64::from(count);
        names.zip(self.sums.iter().map(micros))
    }
}
