//! The page: whole, bounded, and gone when it is too old.

use std::collections::BTreeSet;

use berth_common::ids::{InstanceId, PortId};
use prometheus::Registry;

use super::*;
use crate::{
    act::machine::memory::{HugePages, Ksm},
    decide::usage::{
        DiskUsage, DomainUsage, InstanceLabel, MemoryUsage, NicUsage, Rates, TrafficRate,
        TransferRate,
    },
};

/// A domain with two disks and two NICs of which everything is known.
fn known() -> OwnUsage {
    let bytes = Some(ByteCount::clamped(1));
    let disk = DiskUsage {
        read: Some(Transfer::default()),
        written: Some(Transfer::default()),
    };
    let port = PortId::new();
    let nic = NicUsage {
        tap: "btt000000000000".to_owned(),
        received: Some(Traffic::default()),
        sent: Some(Traffic::default()),
    };
    let instance = InstanceId::new();
    OwnUsage {
        instance,
        label: Some(InstanceLabel {
            name: "web".parse().unwrap(),
            project: "shop".parse().unwrap(),
            ports: [("btt000000000000".to_owned(), port)].into(),
        }),
        usage: DomainUsage {
            uuid: instance.as_uuid(),
            run: Some(1),
            cpu: Some(Duration::from_secs(1)),
            memory: MemoryUsage {
                maximum: bytes,
                balloon: bytes,
                resident: bytes,
                guest_available: bytes,
                guest_unused: bytes,
                guest_usable: bytes,
            },
            disks: ["vda", "vdb"].map(|it| (it.to_owned(), disk)).into(),
            nics: [0, 1].map(|it| (it, nic.clone())).into(),
        },
        rates: Rates {
            cpu_cores: Some(1.0),
            read: Some(TransferRate::default()),
            written: Some(TransferRate::default()),
            received: Some(TrafficRate::default()),
            sent: Some(TrafficRate::default()),
        },
    }
}

fn figures(for_how_long: Duration) -> UsageFigures {
    let figures = UsageFigures::default();
    let foreign = ForeignUsage {
        domains: 1,
        balloon: Some(ByteCount::ZERO),
        resident: Some(ByteCount::ZERO),
        done: Activity {
            cpu: Some(Duration::ZERO),
            read: Some(Transfer::default()),
            written: Some(Transfer::default()),
            received: Some(Traffic::default()),
            sent: Some(Traffic::default()),
        },
    };
    let picture = Picture {
        own: vec![known()],
        foreign,
    };
    figures.domains(Some(picture), for_how_long);
    let pool = Pool {
        metadata_percent: Some(1),
        ..Pool::default()
    };
    figures.pools(vec![pool], for_how_long);
    let memory = Memory {
        ksm: Some(Ksm::default()),
        huge_pages: vec![HugePages {
            size: ByteCount::clamped(1),
            total: 1,
            free: 1,
        }],
        ..Memory::default()
    };
    figures.memory(memory, for_how_long);
    let dropped = PortDrops {
        port: PortId::new(),
        instance: InstanceId::new(),
        reason: Reason::SpoofedArp,
        packets: 3,
    };
    figures.drops(Some(vec![dropped]), for_how_long);
    figures.tunnel_drops(Some(4), for_how_long);
    let forged = PortForged {
        port: PortId::new(),
        instance: InstanceId::new(),
        requests: 2,
    };
    figures.forged(Some(vec![forged]), for_how_long);
    figures
}

#[test]
fn a_page_has_all_that_is_known_and_a_bounded_part_of_it_for_each_domain() {
    let registry = Registry::new();
    let figures = figures(Duration::from_secs(60));
    registry
        .register(Box::new(UsageCollector::new(figures).unwrap()))
        .unwrap();
    let page = registry.gather();
    let shown: BTreeSet<&str> = page.iter().map(|family| family.name()).collect();
    let named: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(shown, named);
    let series = page.iter().flat_map(|family| family.get_metric());
    let of_a_domain = |metric: &&Metric| {
        let mut labels = metric.get_label().iter();
        labels.any(|label| label.name() == "instance_id")
    };
    // And two of ports: why packets were dropped, and who claimed to be somebody.
    assert_eq!(series.filter(of_a_domain).count(), 43 + 2);
}

#[test]
fn what_is_too_old_is_not_shown() {
    assert_eq!(figures(Duration::ZERO).page(Instant::now()).families(), []);
    let lasting = figures(Duration::from_secs(60));
    let later = Instant::now() + Duration::from_secs(61);
    assert_eq!(lasting.page(later).families(), []);
    let known = lasting.page(Instant::now()).families().len();
    lasting.domains(None, Duration::from_secs(60));
    let left = lasting.page(Instant::now()).families().len();
    assert!(0 < left && left < known, "{left} of {known}");
}
