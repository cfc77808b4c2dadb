//! Figures of this process, read from `/proc` at each scrape, under the names that every
//! Prometheus client library uses. A figure that cannot be read keeps its last value.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use prometheus::core::{Collector, Desc};
use prometheus::{Counter, IntGauge, proto};

/// Collects the `process_*` metrics.
pub(super) struct ProcessCollector {
    resident: IntGauge,
    open_files: IntGauge,
    threads: IntGauge,
    started: IntGauge,
    /// Locked so that two scrapes at once do not add the same time twice.
    cpu: Mutex<Counter>,
    descs: Vec<Desc>,
}

impl ProcessCollector {
    pub(super) fn new() -> prometheus::Result<Self> {
        let resident = IntGauge::new(
            "process_resident_memory_bytes",
            "Memory of this process that is in RAM.",
        )?;
        let open_files = IntGauge::new("process_open_fds", "Open file descriptors.")?;
        let threads = IntGauge::new("process_threads", "Threads of this process.")?;
        let started = IntGauge::new(
            "process_start_time_seconds",
            "When this process started, in seconds since 1970-01-01 UTC.",
        )?;
        let cpu = Counter::new(
            "process_cpu_seconds_total",
            "CPU time used by this process, user and system together.",
        )?;
        let descs = [
            resident.desc(),
            open_files.desc(),
            threads.desc(),
            started.desc(),
            cpu.desc(),
        ]
        .concat()
        .into_iter()
        .cloned()
        .collect();
        Ok(ProcessCollector {
            resident,
            open_files,
            threads,
            started,
            cpu: Mutex::new(cpu),
            descs,
        })
    }

    fn update(&self, usage: &Usage, cpu: &Counter) {
        self.resident.set(usage.resident_bytes);
        self.threads.set(usage.threads);
        if let Some(started) = usage.started {
            self.started.set(started);
        }
        cpu.inc_by((usage.cpu.as_secs_f64() - cpu.get()).max(0.0));
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let cpu = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = read_usage() {
            self.update(&usage, &cpu);
        }
        if let Some(open) = count_open_files() {
            self.open_files.set(open);
        }
        let mut families = cpu.collect();
        for gauge in [
            &self.resident,
            &self.open_files,
            &self.threads,
            &self.started,
        ] {
            families.extend(gauge.collect());
        }
        families
    }
}

/// What `/proc/self/stat` says, in real units.
#[derive(Debug, PartialEq)]
struct Usage {
    cpu: Duration,
    threads: i64,
    resident_bytes: i64,
    /// Seconds since 1970; `None` if the time of boot is unknown.
    started: Option<i64>,
}

/// The units that `/proc/self/stat` counts in, and the start of its clock.
struct Units {
    ticks_per_second: u64,
    page_bytes: i64,
    booted: Option<i64>,
}

fn read_usage() -> Option<Usage> {
    let units = Units {
        ticks_per_second: system_value(SysconfVar::CLK_TCK)?,
        page_bytes: system_value(SysconfVar::PAGE_SIZE)?,
        booted: fs::read_to_string("/proc/stat")
            .ok()
            .as_deref()
            .and_then(boot_time),
    };
    parse_stat(&fs::read_to_string("/proc/self/stat").ok()?, &units)
}

fn system_value<T: TryFrom<i64>>(variable: SysconfVar) -> Option<T> {
    T::try_from(sysconf(variable).ok()??).ok()
}

/// Without the descriptor that the counting itself holds open.
fn count_open_files() -> Option<i64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    i64::try_from(entries).ok().map(|count| count - 1)
}

/// The fields are those of proc_pid_stat(5), which counts them from 1. The name in parentheses
/// (field 2) may itself hold blanks and parentheses, so counting starts after the last one.
fn parse_stat(text: &str, units: &Units) -> Option<Usage> {
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (user, system, threads, start) = (field(14)?, field(15)?, field(20)?, field(22)?);
    let start_seconds = i64::try_from(start.checked_div(units.ticks_per_second)?).ok()?;
    Some(Usage {
        cpu: ticks(user.checked_add(system)?, units.ticks_per_second)?,
        threads: i64::try_from(threads).ok()?,
        resident_bytes: i64::try_from(field(24)?)
            .ok()?
            .checked_mul(units.page_bytes)?,
        started: units.booted.map(|booted| booted + start_seconds),
    })
}

fn ticks(count: u64, per_second: u64) -> Option<Duration> {
    let nanos_per_tick = 1_000_000_000_u64.checked_div(per_second)?;
    let rest = Duration::from_nanos((count % per_second) * nanos_per_tick);
    Some(Duration::from_secs(count / per_second) + rest)
}

/// The time of boot in `/proc/stat`, in seconds since 1970.
fn boot_time(text: &str) -> Option<i64> {
    text.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stat_line_is_read_past_any_process_name() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194560 3 0 0 0 150 25 0 0 20 0 7 0 1000 99999 \
                    300 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0";
        let units = Units {
            ticks_per_second: 100,
            page_bytes: 4096,
            booted: boot_time("cpu 1 2\nbtime 1700000000\nprocesses 5\n"),
        };
        let expected = Usage {
            cpu: Duration::from_millis(1750),
            threads: 7,
            resident_bytes: 300 * 4096,
            started: Some(1_700_000_010),
        };
        assert_eq!(parse_stat(stat, &units), Some(expected));
        assert_eq!(parse_stat("42 (a", &units), None);
        assert_eq!(parse_stat("42 (a) S 1", &units), None);
    }

    #[test]
    fn this_process_is_measured() {
        let collector = ProcessCollector::new().unwrap();
        let families = collector.collect();
        assert_eq!(families.len(), 5);
        assert!(
            collector.resident.get() > 100_000,
            "{}",
            collector.resident.get()
        );
        assert!(
            collector.open_files.get() >= 3,
            "{}",
            collector.open_files.get()
        );
        assert!(collector.threads.get() >= 1);
        let now = chrono::Utc::now().timestamp();
        let age = now - collector.started.get();
        assert!((-2..86_400).contains(&age), "started {age} s ago");
    }
}
