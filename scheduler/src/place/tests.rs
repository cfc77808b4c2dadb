//! Placement against a brute-force oracle, and its words.

use berth_common::units::AllocationRatio;
use proptest::prelude::*;

use super::*;

fn resources(vcpus: u64, memory_mb: u64, disk_gb: u64) -> Resources {
    Resources {
        vcpus: Vcpus::new(vcpus).unwrap(),
        memory_mb: MemoryMb::new(memory_mb).unwrap(),
        disk_gb: DiskGb::new(disk_gb).unwrap(),
    }
}

fn request(vcpus: u64, memory_mb: u64, disk_gb: u64) -> Request {
    let Resources {
        vcpus,
        memory_mb,
        disk_gb,
    } = resources(vcpus, memory_mb, disk_gb);
    Request {
        flavor: Flavor {
            vcpus,
            memory_mb,
            disk_gb,
        },
    }
}

fn host(name: &str, total: Resources, used: Resources) -> Candidate {
    Candidate {
        id: HostId::new(),
        name: name.parse().unwrap(),
        enabled: true,
        alive: true,
        total,
        reserved: resources(0, 512, 0),
        ratios: AllocationRatios {
            cpu: "4.0".parse().unwrap(),
            ram: "1.5".parse().unwrap(),
            disk: AllocationRatio::ONE,
        },
        used,
    }
}

#[test]
fn the_host_with_most_free_memory_wins() {
    let hosts = [
        host("hv1", resources(8, 8_192, 100), resources(0, 4_096, 0)),
        host("hv2", resources(8, 8_192, 100), resources(0, 1_024, 0)),
        host("hv3", resources(2, 4_096, 100), Resources::default()),
    ];
    assert_eq!(
        place(request(1, 512, 10), &hosts).unwrap().host.as_str(),
        "hv2"
    );
}

#[test]
fn overcommit_is_of_the_sum_and_exact_to_the_last_unit() {
    // Capacity: 2 × 4.0 = 8 vCPU, (2048 − 512) × 1.5 = 2304 MB.
    let with_used = |used| [host("hv1", resources(2, 2_048, 100), used)];
    assert!(place(request(1, 256, 1), &with_used(resources(7, 2_048, 0))).is_ok());
    assert!(place(request(1, 257, 1), &with_used(resources(7, 2_048, 0))).is_err());
    assert!(place(request(1, 1, 1), &with_used(resources(8, 0, 0))).is_err());
    // Three vCPUs would fit the sum, but not the physical host.
    let refused = place(request(3, 256, 1), &with_used(Resources::default())).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "No valid host was found for 3 vCPU, 256 MB of memory, 1 GB of disk: 1 host; cpu removed 1; nearest miss \
         hv1: needs 3 vCPU, the whole host has 2 (one instance is never overcommitted)"
    );
}

#[test]
fn a_refusal_names_each_filter_and_the_nearest_miss_in_numbers() {
    let mut disabled = host("hv1", resources(8, 8_192, 100), Resources::default());
    disabled.enabled = false;
    let mut down = host("hv2", resources(8, 8_192, 100), Resources::default());
    down.alive = false;
    let hosts = [
        disabled,
        down,
        host("hv3", resources(8, 4_096, 100), resources(0, 4_000, 0)),
        host("hv4", resources(8, 4_096, 100), resources(0, 4_500, 0)),
    ];
    assert_eq!(
        place(request(1, 2_048, 10), &hosts)
            .unwrap_err()
            .to_string(),
        "No valid host was found for 1 vCPU, 2048 MB of memory, 10 GB of disk: 4 hosts; enabled removed 1; alive \
         removed 1; ram removed 2; nearest miss hv3: needs 2048 MB of memory, 1376 free of 5376, 672 missing"
    );
    assert!(
        place(request(1, 1, 1), &[])
            .unwrap_err()
            .to_string()
            .ends_with("no host has ever sent a heartbeat")
    );
}

fn any_host() -> impl Strategy<Value = Candidate> {
    (
        0_u64..9,
        0_u64..9_000,
        0_u64..50,
        0_u64..40,
        0_u64..9_000,
        0_u64..50,
        any::<(bool, bool)>(),
        any::<u128>(),
    )
        .prop_map(
            |(vcpus, memory, disk, used_vcpus, used_memory, used_disk, (enabled, alive), id)| {
                let mut host = host(
                    "hv",
                    resources(vcpus, memory, disk),
                    resources(used_vcpus, used_memory, used_disk),
                );
                host.id = HostId::try_from(uuid::Uuid::from_u128(id | 1)).unwrap();
                host.enabled = enabled;
                host.alive = alive;
                host
            },
        )
}

proptest! {
    #[test]
    fn placement_equals_a_brute_force_search(
        mut hosts in proptest::collection::vec(any_host(), 0..8),
        (vcpus, memory, disk) in (1_u64..6, 1_u64..4_000, 1_u64..20),
        turn in any::<usize>(),
    ) {
        let wanted = request(vcpus, memory, disk);
        let fits = |host: &&Candidate| {
            let physical = |total: u64, reserved: u64, needed: u64| total >= reserved + needed;
            host.enabled && host.alive
                && host.total.vcpus.get() >= vcpus && host.used.vcpus.get() + vcpus <= host.total.vcpus.get() * 4
                && physical(host.total.memory_mb.get(), 512, memory)
                && (host.used.memory_mb.get() + memory) * 2 <= (host.total.memory_mb.get().saturating_sub(512)) * 3
                && host.total.disk_gb.get() >= disk && host.used.disk_gb.get() + disk <= host.total.disk_gb.get()
        };
        let expected = hosts.iter().filter(fits).max_by_key(|host| {
            let free = host.free();
            (free.memory_mb, free.vcpus, free.disk_gb, std::cmp::Reverse(host.id))
        }).map(|host| host.id);

        let answer = place(wanted, &hosts);
        prop_assert_eq!(answer.as_ref().ok().map(|decision| decision.host_id), expected);
        if let Err(refused) = &answer {
            prop_assert_eq!(refused.removed.values().sum::<usize>(), hosts.len());
        }
        if !hosts.is_empty() {
            let turn = turn % hosts.len();
            hosts.rotate_left(turn);
        }
        prop_assert_eq!(place(wanted, &hosts), answer);
    }
}
