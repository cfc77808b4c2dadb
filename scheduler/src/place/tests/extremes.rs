//! Numbers nobody should send: nothing overflows, nothing panics, and the answer is still right.

use berth_common::units::AllocationRatio;

use super::{super::survey::Survey, *};

/// As many as 64 bits hold, of everything.
fn endless() -> Resources {
    let mut sum = resources(1, 1, 1);
    for _ in 0..64 {
        sum = sum.saturating_add(sum);
    }
    assert_eq!(sum.memory_mb.get(), u64::MAX);
    sum
}

fn endless_host(number: u128, ratio: u32) -> HostFacts {
    let mut facts = host(number, endless());
    facts.reserved = Resources::default();
    let ratio = AllocationRatio::from_thousandths(ratio).unwrap();
    (facts.ratios.cpu, facts.ratios.ram, facts.ratios.disk) = (ratio, ratio, ratio);
    facts.countables = [(
        "PCI_gpu".into(),
        Inventory {
            total: u64::MAX,
            reserved: 0,
        },
    )]
    .into();
    facts
}

fn endless_demand() -> Demand {
    Demand {
        resources: endless(),
        countables: [("PCI_gpu".into(), u64::MAX)].into(),
    }
}

fn extreme_settings() -> Settings {
    let (least, most) = (
        Multiplier::thousandths(i64::MIN),
        Multiplier::thousandths(i64::MAX),
    );
    Settings {
        weights: Weights {
            ram: most,
            cpu: most,
            disk: least,
            io_ops: least,
            soft_affinity: most,
            soft_anti_affinity: least,
            build_failures: least,
        },
        failure_half_life: Millis(u64::MAX),
        max_failures: FailureCount(u64::MAX),
    }
}

#[test]
fn absurd_numbers_do_not_overflow() {
    let mut table = HostTable::new(extreme_settings());
    for number in 1..=4 {
        table.upsert(endless_host(
            number,
            if number % 2 == 0 { 1 } else { 1_000_000 },
        ));
        table
            .set_builds_in_flight(host_id(number), u64::MAX)
            .unwrap();
        let failures = FailureHistory {
            count: FailureCount(u64::MAX),
            at: Millis(u64::MAX),
        };
        table.set_failures(host_id(number), failures).unwrap();
        table.record_failure(host_id(number), Millis(1)).unwrap();
    }
    for _ in 0..3 {
        table.claim(host_id(1), &endless_demand()).unwrap();
        table.claim(host_id(2), &endless_demand()).unwrap();
    }
    table.debug_validate().unwrap();
    let group = ServerGroup {
        policy: GroupPolicy::SoftAffinity,
        max_per_host: Some(u64::MAX),
        members: [(host_id(3), u64::MAX - 1), (host_id(4), u64::MAX)].into(),
    };
    let requests = [
        request(1, 1, 1),
        request(0, 0, 0),
        Request::of(endless()),
        Request {
            countables: endless_demand().countables,
            group: Some(group),
            seed: u64::MAX,
            now: Millis(u64::MAX),
            ..request(1, 1, 1)
        },
    ];
    let mut scratch = Scratch::default();
    for wanted in requests {
        let decision = place(&wanted, &table, &mut scratch);
        let slow = Survey::by_host(&wanted, &table, |_| 0);
        assert_eq!(decision, Decision::of(&slow, &wanted, &table, |_| 0));
        assert!(!decision.to_string().is_empty());
        let answer = capacity(&wanted, &table, u64::MAX, &mut scratch);
        assert_eq!(answer.fits > 0, decision.chosen.is_some());
        table.debug_validate().unwrap();
    }
    // Sums beyond 64 bits are kept, so what was claimed can be given back.
    for _ in 0..3 {
        table.release(host_id(1), &endless_demand()).unwrap();
    }
    assert_eq!(
        table.release(host_id(1), &endless_demand()),
        Err(TableError::NotClaimed(host_id(1)))
    );
    assert_eq!(table.host(host_id(1)).unwrap().used(Resource::MemoryMb), 0);
}

#[test]
fn what_needs_nothing_never_runs_out() {
    let table = table([(host(1, resources(1, 1_000, 1)), Resources::default())]);
    let answer = capacity(&request(0, 0, 0), &table, 40, &mut Scratch::default());
    assert_eq!((answer.fits, answer.more, answer.then), (40, true, None));
}

#[test]
fn a_request_beyond_the_columns_is_answered_exactly() {
    let mut facts = host(1, resources(8, 1 << 36, 100));
    facts.reserved = Resources::default();
    facts.ratios.ram = AllocationRatio::ONE;
    let table = table([(facts, Resources::default())]);
    assert!(chosen(&request(1, 1 << 36, 1), &table).is_some());
    let mut used = table;
    used.claim(host_id(1), &demand(resources(0, 1, 0))).unwrap();
    let refused = decide(&request(1, 1 << 36, 1), &used);
    assert_eq!(refused.nearest[0].rejection.missing(), 1);
    assert!(chosen(&request(1, (1 << 36) - 1, 1), &used).is_some());
}
