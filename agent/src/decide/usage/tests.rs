//! What two looks say, against what really happened.

use berth_common::{
    document::Desired,
    ids::{HostId, VolumeId},
    message::report::PowerState,
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use proptest::prelude::*;

use super::*;
use crate::decide::domain::{DomainDisks, DomainMetadata};

/// What a domain does between two looks.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// It works.
    Works(u32),
    /// It is started anew, and works.
    Starts(u32),
    /// It is off.
    Off,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<u32>().prop_map(Event::Works),
        1 => any::<u32>().prop_map(Event::Starts),
        1 => Just(Event::Off),
    ]
}

/// A domain with one disk and one NIC, all of whose counters stand at `counter`.
fn usage(uuid: Uuid, run: u32, counter: u64) -> DomainUsage {
    let transfer = Some(Transfer {
        bytes: counter,
        requests: counter,
    });
    let traffic = Some(Traffic {
        bytes: counter,
        packets: counter,
        drops: counter,
        errors: counter,
    });
    let disk = DiskUsage {
        read: transfer,
        written: transfer,
    };
    let nic = NicUsage {
        tap: "btt000000000000".to_owned(),
        received: traffic,
        sent: traffic,
    };
    DomainUsage {
        uuid,
        run: Some(run),
        cpu: Some(Duration::from_millis(counter)),
        disks: BTreeMap::from([("vda".to_owned(), disk)]),
        nics: BTreeMap::from([(0, nic)]),
        ..DomainUsage::default()
    }
}

fn sample(second: u64, domains: &[DomainUsage]) -> Sample {
    let domains = domains.iter().map(|it| (it.uuid, it.clone()));
    Sample {
        at: Duration::from_secs(second),
        domains: domains.collect(),
    }
}

fn foreign(uuid: Uuid) -> DomainObserved {
    DomainObserved {
        uuid,
        name: "theirs".to_owned(),
        power_state: PowerState::Running,
        off_reason: None,
        leftover_memory: false,
        is_starting: false,
        is_halted: false,
        reason: "running".to_owned(),
        persistent: true,
        vcpus: Vcpus::clamped(1),
        memory_mb: MemoryMb::clamped(1),
        running: None,
        disks: DomainDisks::default(),
        metadata: None,
        nics: Default::default(),
    }
}

fn own(instance: InstanceId) -> DomainObserved {
    DomainObserved {
        name: "ours".to_owned(),
        metadata: Some(DomainMetadata {
            instance_id: instance,
            generation: Generation(1),
            reboot_nonce: None,
            digest: String::new(),
            left_off: None,
        }),
        ..foreign(instance.as_uuid())
    }
}

proptest! {
    /// However several foreign domains work, stop and start: their sum is what they really did after the first look,
    /// and it never falls.
    #[test]
    fn the_sum_of_foreign_domains_is_what_they_did(
        events in prop::collection::vec(prop::collection::vec(event(), 3), 1..20),
    ) {
        let uuids = [1, 2, 3].map(Uuid::from_u128);
        let observed = uuids.map(foreign);
        let mut history = History::default();
        let (mut run, mut counters) = (0, [Some(5_u64), None, Some(7)]);
        let (mut expected, mut shown) = (0_u64, 0_u64);
        let mut look = |second: u64, runs: &[u32; 3], counters: &[Option<u64>; 3]| {
            let on = (0..3).filter_map(|i| Some(usage(uuids[i], runs[i], counters[i]?)));
            let sample = sample(second, &on.collect::<Vec<_>>());
            history.add(sample, &observed, &BTreeMap::new()).foreign
        };
        let mut runs = [0_u32; 3];
        prop_assert_eq!(look(0, &runs, &counters).done, Activity::default());
        for (second, row) in (1..).zip(events) {
            for (i, event) in row.into_iter().enumerate() {
                match (event, counters[i]) {
                    (Event::Works(work), Some(counter)) => {
                        counters[i] = Some(counter + u64::from(work));
                        expected += u64::from(work);
                    }
                    (Event::Works(_), None) => {}
                    (Event::Starts(work), _) => {
                        run += 1;
                        runs[i] = run;
                        counters[i] = Some(u64::from(work));
                        expected += u64::from(work);
                    }
                    (Event::Off, _) => counters[i] = None,
                }
            }
            let seen = look(second, &runs, &counters);
            prop_assert_eq!(seen.domains, counters.iter().flatten().count());
            let done = seen.done.read.unwrap_or_default();
            prop_assert_eq!(done.bytes, expected);
            prop_assert_eq!(seen.done.cpu.unwrap_or_default(), Duration::from_millis(expected));
            prop_assert_eq!(seen.done.sent.unwrap_or_default().drops, expected);
            prop_assert!(done.bytes >= shown);
            shown = done.bytes;
        }
    }

    /// No counter, however it jumps, makes a rate that is negative, infinite or no number.
    #[test]
    fn rates_are_finite_and_never_negative(
        before in any::<u64>(), now in any::<u64>(), runs in any::<(bool, bool)>(), seconds in 0_u64..100_000,
    ) {
        let uuid = Uuid::from_u128(1);
        let before = sample(0, &[usage(uuid, u32::from(runs.0), before)]);
        let rates = activity(Some(&before), &usage(uuid, u32::from(runs.1), now))
            .per(Duration::from_secs(seconds));
        let figures = [
            rates.cpu_cores,
            rates.read.map(|rate| rate.bytes),
            rates.written.map(|rate| rate.requests),
            rates.received.map(|rate| rate.packets),
            rates.sent.map(|rate| rate.bytes),
        ];
        for figure in figures {
            prop_assert_eq!(figure.is_some(), seconds > 0);
            prop_assert!(figure.is_none_or(|it| it.is_finite() && it >= 0.0));
        }
    }

    #[test]
    fn whole_numbers_stay_what_they_are(value in 0_u64..1 << 53) {
        prop_assert_eq!(decimal(value).to_string(), value.to_string());
    }
}

#[test]
fn rates_are_differences_over_the_time_between() {
    let instance = InstanceId::new();
    let uuid = instance.as_uuid();
    let mut history = History::default();
    let mut look = |second, usage: DomainUsage| {
        let picture = history.add(sample(second, &[usage]), &[own(instance)], &BTreeMap::new());
        assert_eq!(picture.foreign, ForeignUsage::default());
        picture.own.into_iter().next().unwrap().rates
    };
    assert_eq!(look(10, usage(uuid, 1, 1000)), Rates::default());
    let rates = look(20, usage(uuid, 1, 6000));
    assert_eq!(rates.cpu_cores, Some(0.5));
    assert_eq!(rates.read.unwrap().bytes, 500.0);
    assert_eq!(rates.sent.unwrap().packets, 500.0);
    // It was started anew, and is further than it was before already.
    let rates = look(30, usage(uuid, 2, 8000));
    assert_eq!(rates.read.unwrap().bytes, 800.0);
    // A counter that falls began anew as well: a disk was taken out and put in.
    let rates = look(40, usage(uuid, 2, 10));
    assert_eq!(rates.read.unwrap().bytes, 1.0);
}

#[test]
fn what_is_not_told_makes_no_rate_and_no_zero() {
    let uuid = Uuid::from_u128(1);
    let whole = usage(uuid, 1, 100);
    let busy = DomainUsage {
        disks: BTreeMap::from([("vda".to_owned(), DiskUsage::default())]),
        ..whole.clone()
    };
    let done = activity(Some(&sample(0, std::slice::from_ref(&whole))), &busy);
    assert_eq!((done.read, done.written), (None, None));
    assert_eq!(done.cpu, Some(Duration::ZERO));
    // How far it had come while it was busy is not known either.
    let done = activity(Some(&sample(0, &[busy])), &whole);
    assert_eq!((done.read, done.written), (None, None));
    // A second disk came in between: all it counted was since then.
    let mut more = whole.clone();
    more.disks.insert("vdb".to_owned(), whole.disks["vda"]);
    let done = activity(Some(&sample(0, &[whole])), &more);
    assert_eq!(done.read.unwrap().bytes, 100);
}

#[test]
fn a_domain_is_shown_while_it_is_there_and_known_and_as_its_own_only_with_the_mark() {
    let (ours, theirs) = (InstanceId::new(), Uuid::from_u128(9));
    let unknown = Uuid::from_u128(10);
    let observed = [own(ours), foreign(theirs)];
    let everybody = [ours.as_uuid(), theirs, unknown].map(|uuid| usage(uuid, 1, 1));
    let mut history = History::default();
    let picture = history.add(sample(0, &everybody), &observed, &BTreeMap::new());
    let shown: Vec<_> = picture.own.iter().map(|own| own.instance).collect();
    assert_eq!((shown, picture.foreign.domains), (vec![ours], 1));
    let picture = history.add(sample(1, &[]), &observed, &BTreeMap::new());
    assert_eq!((picture.own, picture.foreign.domains), (Vec::new(), 0));
}

#[test]
fn provisioned_is_what_all_documents_may_take() {
    let volume = |spec| {
        Document::Volume(Desired {
            id: VolumeId::new(),
            generation: Generation(1),
            host_id: HostId::new(),
            spec,
        })
    };
    let spec = berth_common::document::VolumeSpec {
        name: "data".parse().unwrap(),
        project: "p".parse().unwrap(),
        size_gb: DiskGb::clamped(3),
        format: berth_common::document::VolumeFormat::Raw,
        pool: Default::default(),
        source: None,
    };
    let fast = berth_common::document::VolumeSpec {
        pool: "fast".parse().unwrap(),
        ..spec.clone()
    };
    let documents = [
        volume(Some(spec.clone())),
        volume(None),
        volume(Some(spec)),
        volume(Some(fast.clone())),
    ];
    for (pool, gb) in [(PoolName::default(), 6), (fast.pool, 3)] {
        assert_eq!(
            provisioned(documents.iter(), &pool),
            ByteCount::from_gb(DiskGb::clamped(gb))
        );
    }
    assert!(labels(documents.iter()).is_empty());
}

#[test]
fn a_nic_is_told_from_others_by_its_tap_when_some_are_plugged_in_and_out() {
    let uuid = Uuid::from_u128(1);
    let nic = |tap: &str, count: u64| NicUsage {
        tap: tap.to_owned(),
        received: Some(Traffic {
            bytes: count,
            ..Traffic::default()
        }),
        sent: Some(Traffic::default()),
    };
    let with = |nics: Vec<NicUsage>| DomainUsage {
        uuid,
        run: Some(1),
        nics: nics.into_iter().enumerate().collect(),
        ..DomainUsage::default()
    };
    let last = Sample {
        domains: BTreeMap::from([(uuid, with(vec![nic("a", 10), nic("b", 1000)]))]),
        at: Duration::ZERO,
    };
    // The first one is gone, and the second in its place.
    let now = with(vec![nic("b", 1005)]);
    let done = activity(Some(&last), &now);
    assert_eq!(done.received.map(|it| it.bytes), Some(5));
}
