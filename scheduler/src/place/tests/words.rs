//! What operators and tenants read.

use berth_common::message::view::HostState;

use super::*;

#[test]
fn overcommit_is_of_the_sum_and_exact_to_the_last_unit() {
    // Capacity: 2 × 4.0 = 8 vCPU, (2048 − 512) × 1.5 = 2304 MB.
    let with_used = |used| table([(host(1, resources(2, 2_048, 100)), used)]);
    assert!(chosen(&request(1, 256, 1), &with_used(resources(7, 2_048, 0))).is_some());
    assert!(chosen(&request(1, 257, 1), &with_used(resources(7, 2_048, 0))).is_none());
    assert!(chosen(&request(1, 1, 1), &with_used(resources(8, 0, 0))).is_none());
    // Three vCPUs would fit the sum, but not the physical host.
    let refused = decide(&request(3, 256, 1), &with_used(Resources::default()));
    assert_eq!(
        refused.operator_text(),
        "No valid host was found for 3 vCPU, 256 MB of memory, 1 GB of disk: 1 host; cpu removed 1; nearest miss \
         hv1: needs 3 vCPU, the whole host has 2 (one instance is never overcommitted)"
    );
}

/// hv1 is disabled, hv2 is down, hv3 and hv4 are nearly full.
fn hosts_that_refuse() -> HostTable {
    let total = resources(8, 8_192, 100);
    let mut disabled = host(1, total);
    disabled.admission = Admission::Disabled;
    let mut down = host(2, total);
    down.liveness = HostState::Down;
    table([
        (disabled, Resources::default()),
        (down, Resources::default()),
        (host(3, resources(8, 4_096, 100)), resources(0, 4_000, 0)),
        (host(4, resources(8, 4_096, 100)), resources(0, 4_500, 0)),
    ])
}

#[test]
fn a_refusal_names_each_filter_and_the_nearest_miss_in_numbers() {
    let refused = decide(&request(1, 2_048, 10), &hosts_that_refuse());
    assert_eq!(
        refused.operator_text(),
        "No valid host was found for 1 vCPU, 2048 MB of memory, 10 GB of disk: 4 hosts; enabled removed 1; alive \
         removed 1; ram removed 2; nearest miss hv3: needs 2048 MB of memory, 1376 free of 5376, 672 missing"
    );
    assert_eq!(
        refused.tenant_text(),
        "No valid host was found for 1 vCPU, 2048 MB of memory, 10 GB of disk: not enough memory is free on any \
         host that fits otherwise"
    );
    let nobody = decide(&request(1, 1, 1), &HostTable::default());
    assert!(
        nobody
            .operator_text()
            .ends_with("no host has ever sent a heartbeat")
    );
    assert!(
        nobody
            .tenant_text()
            .ends_with("no host is available at present")
    );
}

#[test]
fn whoever_asks_for_a_host_is_told_what_is_wrong_with_that_one() {
    let wanted = Request {
        requested_host: Some(host_id(4)),
        ..request(1, 1_024, 10)
    };
    let refused = decide(&wanted, &hosts_that_refuse());
    assert!(
        refused
            .operator_text()
            .ends_with("nearest miss hv4: needs 1024 MB of memory, 876 free of 5376, 148 missing"),
        "{refused}"
    );
    // hv3 was rejected later, by being another one, and comes after.
    let hosts: Vec<_> = refused.nearest.iter().map(|near| near.host_id).collect();
    assert_eq!(hosts, [host_id(4), host_id(3), host_id(2)]);
}

#[test]
fn a_choice_names_its_score_and_the_runner_up() {
    let mut table = hosts_that_refuse();
    table.set_builds_in_flight(host_id(3), 2).unwrap();
    let chosen = decide(&request(1, 512, 10), &table);
    assert_eq!(
        chosen.operator_text(),
        "hv4 was chosen for 1 vCPU, 512 MB of memory, 10 GB of disk: 4 hosts; enabled removed 1; alive removed 1; \
         score 908.100; runner-up hv3 with 896.100"
    );
}

#[test]
fn every_constraint_refuses_in_words() {
    let mut facts = host(1, resources(8, 8_192, 100));
    facts.zone = Some("west".to_owned());
    facts.properties = [("ssd".to_owned(), "false".to_owned())].into();
    facts.architecture = "x86_64".to_owned();
    facts.virt_types = ["qemu".to_owned()].into();
    let table = table([(facts, Resources::default())]);
    let plain = || request(1, 512, 10);
    let group = |policy, members: &[u128]| ServerGroup {
        policy,
        max_per_host: None,
        members: members.iter().map(|host| (host_id(*host), 1)).collect(),
    };
    let check = |wanted: Request, filter, words: &str| {
        let refused = decide(&wanted, &table);
        let near = &refused.nearest[0];
        assert_eq!(
            (near.filter, near.rejection.to_string().as_str()),
            (filter, words)
        );
    };
    let zone = Some("east".to_owned());
    check(
        Request { zone, ..plain() },
        FilterName::AvailabilityZone,
        "needs availability zone east, it is in west",
    );
    let properties = [("ssd".to_owned(), "true".to_owned())].into();
    check(
        Request {
            properties,
            ..plain()
        },
        FilterName::AggregateProperties,
        "needs property ssd = true, its aggregates have false",
    );
    let mut arm = plain();
    arm.image.architecture = Some("aarch64".to_owned());
    check(
        arm,
        FilterName::ImageProperties,
        "the image needs architecture aarch64, it has x86_64",
    );
    let mut kvm = plain();
    kvm.image.virt_type = Some("kvm".to_owned());
    check(
        kvm,
        FilterName::ImageProperties,
        "the image needs hypervisor type kvm, it has qemu",
    );
    let mut wired = NetworkNeeds::NONE;
    wired.physical_networks.insert("physnet1".to_owned());
    let mut vlan = NetworkNeeds::NONE;
    vlan.vlan = Need::Asked;
    let mut vxlan = NetworkNeeds::NONE;
    vxlan.vxlan = Need::Asked;
    let mut secured = NetworkNeeds::NONE;
    secured.stateful_filter = Need::Asked;
    for (networks, words) in [
        (
            wired.clone(),
            "needs physical network physnet1, it is connected to none",
        ),
        (vlan, "needs VLANs: its kernel lacks them (802.1Q)"),
        (vxlan, "needs VXLAN: its kernel lacks it"),
        (
            secured,
            "needs connection tracking in bridges, for port security: its kernel lacks it (nf_conntrack_bridge or \
             br_netfilter)",
        ),
    ] {
        let wanted = Request {
            networks,
            ..plain()
        };
        check(wanted, FilterName::NetworkReachability, words);
    }
    let mut leads_to = plain();
    for (network, needs) in [("near", NetworkNeeds::NONE), ("far", wired)] {
        leads_to.routed.push(RoutedNetwork {
            router: "r1".to_owned(),
            network: network.to_owned(),
            needs,
        });
    }
    check(
        leads_to,
        FilterName::NetworkReachability,
        "router r1 joins network far, which needs physical network physnet1, it is connected to none",
    );
    let taken = Rejection::NatAddresses {
        needed: "10.0.0.0/24".to_owned(),
        network: "home".to_owned(),
        found: "10.0.0.0/16".to_owned(),
    };
    let nat = NatNeeds {
        asked: vec!["10.0.0.0/24 for nat network lab alone".to_owned()],
        taken: [(host_id(1), taken)].into(),
    };
    check(
        Request { nat, ..plain() },
        FilterName::NetworkReachability,
        "needs 10.0.0.0/24 for itself, as a nat network does, and nat network home has 10.0.0.0/16 there",
    );
    check(
        Request {
            requested_host: Some(host_id(2)),
            ..plain()
        },
        FilterName::RequestedHost,
        "host 00000000-0000-0000-0000-000000000002 was asked for",
    );
    check(
        Request {
            different_hosts: [host_id(1)].into(),
            ..plain()
        },
        FilterName::DifferentHost,
        "it holds an instance that this one must be kept away from",
    );
    check(
        Request {
            same_hosts: [host_id(2)].into(),
            ..plain()
        },
        FilterName::SameHost,
        "it holds none of the instances that this one must lie beside",
    );
    let anti = Some(group(GroupPolicy::AntiAffinity, &[1]));
    check(
        Request {
            group: anti,
            ..plain()
        },
        FilterName::ServerGroup,
        "it holds 1 of the server group, at most 1 may lie on one host",
    );
    let together = Some(group(GroupPolicy::Affinity, &[2]));
    check(
        Request {
            group: together,
            ..plain()
        },
        FilterName::ServerGroup,
        "the members of the server group are elsewhere",
    );
    check(
        Request {
            volume_hosts: Some([host_id(2)].into()),
            ..plain()
        },
        FilterName::VolumeLocality,
        "it does not reach the volume",
    );
    let room = |lacking: &[(u128, (u64, u64))], unfit: &[u128]| Request {
        volume_hosts: Some([].into()),
        volume_room: Some(VolumeRoom {
            pool: "fast".to_owned(),
            needed: 30,
            lacking: lacking
                .iter()
                .map(|(id, lack)| (host_id(*id), *lack))
                .collect(),
            format: "qcow2",
            unfit: unfit.iter().map(|id| host_id(*id)).collect(),
        }),
        ..plain()
    };
    check(
        room(&[], &[1]),
        FilterName::VolumeLocality,
        "its storage pool fast holds raw volumes only, and the volume shall be qcow2",
    );
    check(
        room(&[(1, (12, 20))], &[]),
        FilterName::VolumeLocality,
        "needs 30 GB in storage pool fast for the volume, 12 free of 20, 18 missing",
    );
    check(
        room(&[(2, (12, 20))], &[2]),
        FilterName::VolumeLocality,
        "it has no storage pool fast",
    );
    check(
        Request {
            excluded_hosts: [host_id(1)].into(),
            ..plain()
        },
        FilterName::FailedRecently,
        "this request has failed there already",
    );
}
