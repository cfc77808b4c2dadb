//! Many decisions one after the other: claims never exceed capacity, and dry runs tell what would really happen.

use berth_common::units::AllocationRatio;
use proptest::prelude::*;

use super::{
    super::*,
    generate::{any_cloud, any_facts, any_request, id_of},
    *,
};

/// What can happen to a cloud.
#[derive(Debug, Clone)]
enum Event {
    Place(Request),
    Release(prop::sample::Index),
    Ratio(usize, u32),
    Facts(usize, HostFacts),
    Admission(usize, Admission),
    Remove(usize),
    Failure(usize),
}

const HOSTS: usize = 5;

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => any_request(HOSTS).prop_map(Event::Place),
        4 => any::<prop::sample::Index>().prop_map(Event::Release),
        2 => (0..HOSTS, 500_u32..3_000).prop_map(|(host, ratio)| Event::Ratio(host, ratio)),
        1 => (0..HOSTS, any_facts()).prop_map(|(host, facts)| Event::Facts(host, facts)),
        1 => (0..HOSTS).prop_map(|host| Event::Admission(host, Admission::Enabled)),
        1 => (0..HOSTS).prop_map(Event::Remove),
        1 => (0..HOSTS).prop_map(Event::Failure),
    ]
}

fn claim(table: &mut HostTable, id: HostId, demand: &Demand) {
    table.claim(id, demand).unwrap();
    let host = table.host(id).unwrap();
    for resource in Resource::ALL {
        let claimed_any = resource.of(&demand.resources) > 0;
        assert!(!claimed_any || host.used(resource) <= host.capacity(resource));
    }
    for (class, amount) in &demand.countables {
        assert!(*amount == 0 || host.countable_used(class) <= host.countable_capacity(class));
    }
}

/// Gives a host other facts, if it is there.
fn change(table: &mut HostTable, host: usize, change: impl FnOnce(&mut HostFacts)) {
    let Some(mut facts) = table.host(id_of(host)).map(|host| host.facts().clone()) else {
        return;
    };
    change(&mut facts);
    table.upsert(facts);
}

fn is_known<T>(result: Result<T, TableError>) {
    assert!(matches!(result, Ok(_) | Err(TableError::UnknownHost(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn claims_never_exceed_capacity_and_every_column_stays_right(
        events in proptest::collection::vec(any_event(), 1..60),
        facts in proptest::collection::vec(any_facts(), HOSTS),
    ) {
        let mut table = HostTable::default();
        let mut scratch = Scratch::default();
        let mut claims: Vec<(HostId, Demand)> = Vec::new();
        let named = |number: usize, facts: HostFacts| HostFacts { id: id_of(number), ..facts };
        for (number, facts) in facts.into_iter().enumerate() {
            table.upsert(HostFacts { admission: Admission::Enabled, ..named(number, facts) });
        }
        for event in events {
            match event {
                Event::Place(wanted) => {
                    if let Some(id) = place(&wanted, &table, &mut scratch).host_id() {
                        claim(&mut table, id, &wanted.demand());
                        claims.push((id, wanted.demand()));
                    }
                }
                Event::Release(index) if !claims.is_empty() => {
                    let (id, demand) = claims.swap_remove(index.index(claims.len()));
                    table.release(id, &demand).unwrap();
                }
                Event::Release(_) => {}
                Event::Ratio(host, ratio) => {
                    let ratio = AllocationRatio::from_thousandths(ratio).unwrap();
                    change(&mut table, host, |facts| {
                        (facts.ratios.cpu, facts.ratios.ram, facts.ratios.disk) = (ratio, ratio, ratio);
                    });
                }
                Event::Facts(host, facts) => table.upsert(named(host, facts)),
                Event::Admission(host, admission) => {
                    change(&mut table, host, |facts| facts.admission = admission);
                }
                Event::Remove(host) => {
                    claims.retain(|(id, _)| *id != id_of(host));
                    is_known(table.remove(id_of(host)));
                }
                Event::Failure(host) => is_known(table.record_failure(id_of(host), Millis(0))),
            }
            table.debug_validate().unwrap();
        }
        for (id, demand) in claims {
            table.release(id, &demand).unwrap();
        }
        for host in table.hosts() {
            for resource in Resource::ALL {
                prop_assert_eq!(host.used(resource), resource.of(&host.facts().foreign));
            }
        }
    }

    #[test]
    fn a_dry_run_tells_what_placing_would_do(cloud in any_cloud(0..7), most in 0_u64..40) {
        let mut wanted = cloud.request.clone();
        wanted.resources.memory_mb = wanted.resources.memory_mb.max(
            berth_common::units::MemoryMb::new(300).unwrap(),
        );
        let table = cloud.table();
        let mut scratch = Scratch::default();
        let answer = capacity(&wanted, &table, most, &mut scratch);
        table.debug_validate().unwrap();

        let mut really = table.clone();
        let mut next = wanted.clone();
        let mut placed = 0;
        let last = loop {
            let decision = place(&next, &really, &mut scratch);
            let Some(id) = decision.host_id() else { break decision };
            claim(&mut really, id, &wanted.demand());
            next.count_placed(id, 1);
            placed += 1;
        };
        prop_assert_eq!(answer.fits, placed.min(most));
        prop_assert_eq!(answer.more, placed > most);
        let then = answer.then.unwrap();
        prop_assert_eq!(&then, &last);
        let stopped = then.filters.iter().find(|removed| Some(removed.filter) == answer.runs_out);
        prop_assert_eq!(stopped.is_some(), !cloud.hosts.is_empty());
    }
}

#[test]
fn a_group_that_must_be_together_stays_where_its_first_goes() {
    let total = resources(8, 4_608, 100);
    let mut table = table([
        (host(1, total), Resources::default()),
        (host(2, total), resources(0, 1_000, 0)),
    ]);
    let mut wanted = Request {
        group: Some(ServerGroup {
            policy: GroupPolicy::Affinity,
            max_per_host: None,
            members: std::collections::BTreeMap::new(),
        }),
        ..request(1, 2_000, 10)
    };
    let mut scratch = Scratch::default();
    let answer = capacity(&wanted, &table, 40, &mut scratch);
    assert_eq!((answer.fits, answer.more), (3, false));
    assert_eq!(answer.runs_out, Some(FilterName::Ram));
    let mut hosts = vec![];
    while let Some(id) = place(&wanted, &table, &mut scratch).host_id() {
        claim(&mut table, id, &wanted.demand());
        wanted.count_placed(id, 1);
        hosts.push(id);
    }
    assert_eq!(hosts, [host_id(1); 3]);
}
