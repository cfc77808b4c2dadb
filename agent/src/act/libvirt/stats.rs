//! What all running domains have used, in one call.
//!
//! A domain on which another operation runs is not waited for: libvirt then tells only what it knows without asking
//! QEMU. Names and units of the figures are those of libvirt's `virConnectGetAllDomainStats`.

use std::{collections::BTreeMap, time::Duration};

use berth_common::units::ByteCount;

use super::{
    error::failed,
    records::{self, Figure, Record},
    rpc::{Connection, constants},
};
use crate::{
    act::ActError,
    decide::usage::{DiskUsage, DomainUsage, MemoryUsage, NicUsage, Traffic, Transfer},
};

/// How many disks, and how many NICs, are read of a domain: more than berth gives one.
const MOST_DEVICES: u64 = 64;

/// The figures that are asked for.
const GROUPS: u32 = constants::VIR_DOMAIN_STATS_CPU_TOTAL
    | constants::VIR_DOMAIN_STATS_BALLOON
    | constants::VIR_DOMAIN_STATS_INTERFACE
    | constants::VIR_DOMAIN_STATS_BLOCK;
/// Of whom: those that run, and none is waited for.
const FLAGS: u32 = constants::VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    | constants::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;

/// All running domains, paused ones included.
pub(super) async fn all(connection: &Connection) -> Result<Vec<DomainUsage>, ActError> {
    let records = connection
        .get_all_domain_stats(GROUPS, FLAGS)
        .await
        .map_err(|error| failed("measuring the domains".to_owned(), error))?;
    Ok(records
        .into_iter()
        .map(|record| of(&records::read(record)))
        .collect())
}

/// One domain's figures.
fn of(record: &Record) -> DomainUsage {
    DomainUsage {
        uuid: record.uuid,
        run: record.run,
        cpu: number(record, "cpu.time").map(Duration::from_nanos),
        memory: MemoryUsage {
            maximum: kib(record, "balloon.maximum"),
            balloon: kib(record, "balloon.current"),
            resident: kib(record, "balloon.rss"),
            guest_available: kib(record, "balloon.available"),
            guest_unused: kib(record, "balloon.unused"),
            guest_usable: kib(record, "balloon.usable"),
        },
        disks: disks(record),
        nics: nics(record),
    }
}

fn disks(record: &Record) -> BTreeMap<String, DiskUsage> {
    let disk = |position: u64| {
        let prefix = format!("block.{position}");
        let Some(Figure::Text(target)) = record.figures.get(&format!("{prefix}.name")) else {
            return None;
        };
        let transfer = |direction: &str| {
            Some(Transfer {
                bytes: number(record, &format!("{prefix}.{direction}.bytes"))?,
                requests: number(record, &format!("{prefix}.{direction}.reqs"))?,
            })
        };
        let usage = DiskUsage {
            read: transfer("rd"),
            written: transfer("wr"),
        };
        Some((target.clone(), usage))
    };
    count(record, "block.count").filter_map(disk).collect()
}

fn nics(record: &Record) -> BTreeMap<usize, NicUsage> {
    let nic = |position: u64| {
        let traffic = |direction: &str| {
            let figure = |name: &str| number(record, &format!("net.{position}.{direction}.{name}"));
            Some(Traffic {
                bytes: figure("bytes")?,
                packets: figure("pkts")?,
                drops: figure("drop").unwrap_or_default(),
                errors: figure("errs").unwrap_or_default(),
            })
        };
        let tap = match record.figures.get(&format!("net.{position}.name")) {
            Some(Figure::Text(name)) => name.clone(),
            Some(Figure::Number(_)) | None => format!("#{position}"),
        };
        let usage = NicUsage {
            tap,
            received: traffic("rx"),
            sent: traffic("tx"),
        };
        Some((usize::try_from(position).ok()?, usage))
    };
    count(record, "net.count").filter_map(nic).collect()
}

/// The positions of devices of one sort.
fn count(record: &Record, name: &str) -> std::ops::Range<u64> {
    0..number(record, name).unwrap_or_default().min(MOST_DEVICES)
}

fn number(record: &Record, name: &str) -> Option<u64> {
    match record.figures.get(name)? {
        Figure::Number(number) => Some(*number),
        Figure::Text(_) => None,
    }
}

/// libvirt counts memory in KiB.
fn kib(record: &Record, name: &str) -> Option<ByteCount> {
    number(record, name).map(|kib| ByteCount::clamped(kib.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn record(lines: &str) -> Record {
        let figures = lines.lines().map(|line| {
            let (name, value) = line.trim().split_once('=').unwrap();
            let figure = value
                .parse()
                .map_or_else(|_| Figure::Text(value.to_owned()), Figure::Number);
            (name.to_owned(), figure)
        });
        Record {
            uuid: Uuid::from_u128(7),
            run: Some(3),
            figures: figures.collect(),
        }
    }

    #[test]
    fn figures_are_read_with_their_units() {
        let usage = of(&record(
            "cpu.time=1500000000
             balloon.current=524288
             balloon.maximum=1048576
             balloon.rss=2048
             balloon.available=500000
             balloon.unused=400000
             balloon.usable=450000
             net.count=1
             net.0.name=btt000000000000
             net.0.rx.bytes=10
             net.0.rx.pkts=2
             net.0.rx.drop=1
             net.0.rx.errs=4
             net.0.tx.bytes=20
             net.0.tx.pkts=3
             net.0.tx.drop=0
             block.count=2
             block.0.name=vda
             block.0.rd.reqs=5
             block.0.rd.bytes=4096
             block.0.wr.reqs=6
             block.0.wr.bytes=8192
             block.1.name=sda",
        ));
        assert_eq!(usage.run, Some(3));
        assert_eq!(usage.cpu, Some(Duration::from_millis(1500)));
        let memory = usage.memory;
        assert_eq!(memory.balloon, Some(ByteCount::clamped(512 << 20)));
        assert_eq!(memory.maximum, Some(ByteCount::clamped(1 << 30)));
        assert_eq!(memory.resident, Some(ByteCount::clamped(2 << 20)));
        assert_eq!(memory.guest_unused, Some(ByteCount::clamped(409_600_000)));
        let written = Transfer {
            bytes: 8192,
            requests: 6,
        };
        assert_eq!(usage.disks["vda"].written, Some(written));
        assert_eq!(usage.disks["sda"], DiskUsage::default());
        let received = Traffic {
            bytes: 10,
            packets: 2,
            drops: 1,
            errors: 4,
        };
        assert_eq!(usage.nics[&0].received, Some(received));
        assert_eq!(usage.nics[&0].tap, "btt000000000000");
    }

    #[test]
    fn what_a_busy_domain_does_not_tell_is_missing_and_devices_are_bounded() {
        let usage = of(&record(
            "balloon.current=1\nblock.count=18446744073709551615\nnet.count=70",
        ));
        assert_eq!(usage.cpu, None);
        assert_eq!(usage.memory.resident, None);
        assert!(usage.disks.is_empty());
        assert_eq!(usage.nics.len(), 64);
    }
}
