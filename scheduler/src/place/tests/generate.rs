//! Small random clouds and requests, with every kind of constraint, from small vocabularies so that they often meet.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    message::{heartbeat::NetworkCapabilities, view::HostState},
    units::AllocationRatio,
};
use proptest::{collection::vec, option::weighted, prelude::*};

use super::{super::*, *};

/// A host with everything that is known of it.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) facts: HostFacts,
    pub(super) claimed: Demand,
    pub(super) builds: u64,
    pub(super) failures: FailureHistory,
}

/// A cloud, and a request to it.
#[derive(Debug, Clone)]
pub(super) struct Cloud {
    pub(super) hosts: Vec<Model>,
    pub(super) request: Request,
    pub(super) settings: Settings,
}

impl Cloud {
    pub(super) fn table(&self) -> HostTable {
        let mut table = HostTable::new(self.settings);
        for model in &self.hosts {
            let id = model.facts.id;
            table.upsert(model.facts.clone());
            table.claim(id, &model.claimed).unwrap();
            table.set_builds_in_flight(id, model.builds).unwrap();
            table.set_failures(id, model.failures).unwrap();
        }
        table
    }
}

pub(super) const CLASSES: [&str; 2] = ["HUGEPAGES_2048K", "PCI_gpu"];

fn countables(most: u64) -> impl Strategy<Value = BTreeMap<ResourceClass, u64>> {
    vec((0..CLASSES.len(), 0..=most), 0..3).prop_map(|pairs| {
        let pairs = pairs.into_iter();
        pairs
            .map(|(class, amount)| (CLASSES[class].into(), amount))
            .collect()
    })
}

fn word(stem: &'static str, words: u8) -> impl Strategy<Value = String> {
    (0..words).prop_map(move |word| format!("{stem}{word}"))
}

fn words(stem: &'static str, words: u8) -> impl Strategy<Value = BTreeSet<String>> {
    vec(word(stem, words), 0..4).prop_map(BTreeSet::from_iter)
}

fn ratio() -> impl Strategy<Value = AllocationRatio> {
    (250_u32..4_500).prop_map(|ratio| AllocationRatio::from_thousandths(ratio).unwrap())
}

fn amounts(vcpus: u64, memory_mb: u64, disk_gb: u64) -> impl Strategy<Value = Resources> {
    (0..vcpus, 0..memory_mb, 0..disk_gb)
        .prop_map(|(vcpus, memory_mb, disk_gb)| resources(vcpus, memory_mb, disk_gb))
}

pub(super) fn any_facts() -> impl Strategy<Value = HostFacts> {
    let standing = (0_u8..12, 0_u8..12, 0_u8..5);
    let sizes = (
        amounts(9, 9_000, 50),
        amounts(2, 600, 3),
        amounts(2, 600, 1),
    );
    let ratios = (ratio(), ratio(), ratio());
    let place = (
        weighted(0.8, word("z", 2)),
        words("v", 3),
        word("arch", 2),
        words("virt", 2),
        (words("net", 2), any_network()),
    );
    (standing, sizes, ratios, place, countables(6)).prop_map(
        |(standing, (total, reserved, foreign), ratios, place, countables)| {
            let mut facts = host(1, total);
            facts.admission = match standing.0 {
                0 => Admission::Disabled,
                1 => Admission::Draining,
                _ => Admission::Enabled,
            };
            facts.liveness = if standing.1 == 0 {
                HostState::Down
            } else {
                HostState::Up
            };
            facts.reserved = reserved;
            facts.foreign = foreign;
            facts.ailing = u64::from(standing.2.saturating_sub(2));
            (facts.ratios.cpu, facts.ratios.ram, facts.ratios.disk) = ratios;
            let (zone, values, architecture, virt_types, networks) = place;
            facts.zone = zone;
            facts.properties = values
                .into_iter()
                .map(|value| ("k".to_owned(), value))
                .collect();
            facts.architecture = architecture;
            facts.virt_types = virt_types;
            (facts.physical_networks, facts.network) = networks;
            facts.countables = countables
                .into_iter()
                .map(|(class, total)| (class, Inventory { total, reserved: 1 }))
                .collect();
            facts
        },
    )
}

fn any_network() -> impl Strategy<Value = NetworkCapabilities> {
    (any::<[bool; 3]>(), any::<bool>()).prop_map(|([vlan, vxlan, stateful_filter], has_tunnel)| {
        NetworkCapabilities {
            vlan,
            vxlan,
            stateful_filter,
            tunnel_ip: has_tunnel.then(|| std::net::IpAddr::from([192, 0, 2, 1])),
        }
    })
}

fn any_need() -> impl Strategy<Value = Need> {
    weighted(0.1, Just(())).prop_map(|asked| asked.map_or(Need::None, |()| Need::Asked))
}

fn any_networks() -> impl Strategy<Value = NetworkNeeds> {
    let networks = weighted(0.15, words("net", 2));
    (networks, any_need(), any_need(), any_need()).prop_map(
        |(networks, vlan, vxlan, stateful_filter)| NetworkNeeds {
            physical_networks: networks.unwrap_or_default(),
            vlan,
            vxlan,
            stateful_filter,
        },
    )
}

fn any_routed() -> impl Strategy<Value = Vec<RoutedNetwork>> {
    let one = (word("r", 2), word("n", 2), any_networks());
    let one = one.prop_map(|(router, network, needs)| RoutedNetwork {
        router,
        network,
        needs,
    });
    let some = weighted(0.1, vec(one, 1..3));
    some.prop_map(Option::unwrap_or_default)
}

fn any_nat(hosts: usize) -> impl Strategy<Value = NatNeeds> {
    let some = weighted(0.1, some_hosts(hosts));
    some.prop_map(|hosts| NatNeeds {
        asked: Vec::from_iter(hosts.as_ref().map(|_| "10.0.0.0/24".to_owned())),
        taken: hosts
            .unwrap_or_default()
            .into_iter()
            .map(|host| {
                let rejection = Rejection::NatAddresses {
                    needed: "10.0.0.0/24".to_owned(),
                    network: "n0".to_owned(),
                    found: "10.0.0.0/16".to_owned(),
                };
                (host, rejection)
            })
            .collect(),
    })
}

fn any_model() -> impl Strategy<Value = Model> {
    let claimed = (amounts(7, 4_000, 20), countables(3));
    let failures = (weighted(0.2, (0_u64..9_000, 0_u64..3_000)), 0_u64..3);
    (any_facts(), claimed, failures).prop_map(
        |(facts, (resources, countables), (failures, builds))| Model {
            facts,
            claimed: Demand {
                resources,
                countables,
            },
            builds,
            failures: failures.map_or_else(FailureHistory::default, |(count, at)| FailureHistory {
                count: FailureCount(count),
                at: Millis(at),
            }),
        },
    )
}

/// Ids in an order that has nothing to do with that of the hosts; number 99 is nobody's.
pub(super) fn id_of(number: usize) -> HostId {
    host_id(u128::from(
        (u64::try_from(number).unwrap() + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
    ))
}

fn some_hosts(hosts: usize) -> impl Strategy<Value = BTreeSet<HostId>> {
    let number = prop_oneof![9 => 0..hosts.max(1), 1 => Just(99)];
    vec(number, 0..4).prop_map(|numbers| numbers.into_iter().map(id_of).collect())
}

fn any_group(hosts: usize) -> impl Strategy<Value = ServerGroup> {
    let policy = prop_oneof![
        Just(GroupPolicy::Affinity),
        Just(GroupPolicy::AntiAffinity),
        Just(GroupPolicy::SoftAffinity),
        Just(GroupPolicy::SoftAntiAffinity),
    ];
    let members = vec((0..hosts.max(1), 0_u64..3), 0..4);
    (policy, weighted(0.4, 0_u64..4), members).prop_map(|(policy, max_per_host, members)| {
        ServerGroup {
            policy,
            max_per_host,
            members: members
                .into_iter()
                .map(|(number, count)| (id_of(number), count))
                .collect(),
        }
    })
}

pub(super) fn any_request(hosts: usize) -> impl Strategy<Value = Request> {
    let size = (amounts(5, 3_000, 15), weighted(0.15, countables(2)));
    let place = (
        weighted(0.15, word("z", 3)),
        weighted(0.15, words("v", 3)),
        weighted(0.15, word("arch", 2)),
        weighted(0.15, word("virt", 2)),
        (any_networks(), any_routed(), any_nat(hosts)),
    );
    let hosts = (
        weighted(0.05, 0..hosts.max(1)),
        weighted(0.1, some_hosts(hosts)),
        weighted(0.1, some_hosts(hosts)),
        weighted(0.4, any_group(hosts)),
        weighted(0.1, some_hosts(hosts)),
        weighted(0.1, some_hosts(hosts)),
    );
    (size, place, hosts, any::<u64>(), 0_u64..4_000).prop_map(|(size, place, hosts, seed, now)| {
        let (zone, values, architecture, virt_type, (networks, routed, nat)) = place;
        let (requested, different, same, group, volume_hosts, excluded) = hosts;
        let values: Vec<_> = values.unwrap_or_default().into_iter().collect();
        Request {
            countables: size.1.unwrap_or_default(),
            zone,
            // One key has one value in a request.
            properties: values
                .first()
                .map(|value| ("k".to_owned(), value.clone()))
                .into_iter()
                .collect(),
            image: ImageNeeds {
                architecture,
                virt_type,
            },
            networks,
            routed,
            nat,
            requested_host: requested.map(id_of),
            different_hosts: different.unwrap_or_default(),
            same_hosts: same.unwrap_or_default(),
            group,
            volume_hosts,
            volume_room: None,
            excluded_hosts: excluded.unwrap_or_default(),
            seed,
            now: Millis(now),
            ..Request::of(size.0)
        }
    })
}

pub(super) fn any_settings() -> impl Strategy<Value = Settings> {
    let multiplier = || prop_oneof![Just(0_i64), -3_000_i64..3_000, -1_i64..2];
    let multipliers = (
        multiplier(),
        multiplier(),
        multiplier(),
        multiplier(),
        multiplier(),
        multiplier(),
        multiplier(),
    );
    let weights = prop_oneof![
        Just(Weights::default()),
        multipliers.prop_map(|(ram, cpu, disk, io_ops, soft, anti, failures)| Weights {
            ram: Multiplier::thousandths(ram),
            cpu: Multiplier::thousandths(cpu),
            disk: Multiplier::thousandths(disk),
            io_ops: Multiplier::thousandths(io_ops),
            soft_affinity: Multiplier::thousandths(soft * 1000),
            soft_anti_affinity: Multiplier::thousandths(anti * 1000),
            build_failures: Multiplier::thousandths(failures * 1000),
        })
    ];
    (weights, 0_u64..2_000).prop_map(|(weights, half_life)| Settings {
        weights,
        failure_half_life: Millis(half_life),
        ..Settings::default()
    })
}

/// A cloud of so many hosts.
pub(super) fn any_cloud(hosts: std::ops::Range<usize>) -> impl Strategy<Value = Cloud> {
    vec(any_model(), hosts).prop_flat_map(|mut hosts| {
        for (number, model) in hosts.iter_mut().enumerate() {
            model.facts.id = id_of(number);
            model.facts.name = format!("hv{number}").parse().unwrap();
        }
        (any_request(hosts.len()), any_settings()).prop_map(move |(request, settings)| Cloud {
            hosts: hosts.clone(),
            request,
            settings,
        })
    })
}

/// A test that never meets a filter proves nothing of it.
#[test]
fn generated_clouds_meet_every_filter_and_often_have_an_answer() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeMap::new();
    let mut chosen = 0;
    for _ in 0..2_000 {
        let cloud = any_cloud(0..8).new_tree(&mut runner).unwrap().current();
        let decision = decide(&cloud.request, &cloud.table());
        chosen += usize::from(decision.chosen.is_some());
        for removed in decision.filters {
            *met.entry(removed.filter).or_insert(0) += removed.hosts;
        }
    }
    for filter in FilterName::ALL {
        assert!(
            met.get(filter).is_some_and(|hosts| *hosts >= 10),
            "{filter}: {met:?}"
        );
    }
    assert!(chosen >= 400, "{chosen} of 2000 found a host");
}
