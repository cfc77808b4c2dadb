//! The answer by brute force, written down once more in the plainest words, and compared.

use std::cmp::Reverse;

use berth_common::message::view::HostState;
use proptest::prelude::*;

use super::{
    super::*,
    generate::{Cloud, Model, any_cloud},
};

fn capacity_of(total: u64, reserved: u64, ratio: berth_common::units::AllocationRatio) -> u64 {
    total.saturating_sub(reserved) * u64::from(ratio.thousandths()) / 1000
}

/// `(physical, capacity, used)` of vCPUs, memory and disk.
fn accounts(model: &Model) -> [(u64, u64, u64); 3] {
    let facts = &model.facts;
    let ratios = [facts.ratios.cpu, facts.ratios.ram, facts.ratios.disk];
    let mut accounts = [(0, 0, 0); 3];
    for ((account, resource), ratio) in accounts.iter_mut().zip(Resource::ALL).zip(ratios) {
        let (total, reserved) = (resource.of(&facts.total), resource.of(&facts.reserved));
        let used = resource.of(&facts.foreign) + resource.of(&model.claimed.resources);
        *account = (
            total.saturating_sub(reserved),
            capacity_of(total, reserved, ratio),
            used,
        );
    }
    accounts
}

fn failures(model: &Model, cloud: &Cloud) -> u64 {
    let half_life = cloud.settings.failure_half_life;
    model.failures.decayed(cloud.request.now, half_life).0
}

/// The first filter that rejects a host.
fn rejected(cloud: &Cloud, model: &Model) -> Option<FilterName> {
    let (request, facts) = (&cloud.request, &model.facts);
    let accounts = accounts(model);
    let has_room = |index: usize| {
        let (physical, capacity, used) = accounts[index];
        let needed = Resource::ALL[index].of(&request.resources);
        needed <= physical && (needed == 0 || used + needed <= capacity)
    };
    let enough_countables = request.countables.iter().all(|(class, needed)| {
        let inventory = facts.countables.get(class).copied().unwrap_or_default();
        let used = model.claimed.countables.get(class).copied().unwrap_or(0);
        *needed == 0 || used + needed + inventory.reserved <= inventory.total
    });
    let group_allows = request.group.as_ref().is_none_or(|group| {
        let here = group.members.get(&facts.id).copied().unwrap_or(0);
        let all: u64 = group.members.values().sum();
        let together = group.policy != GroupPolicy::Affinity || all == 0 || here > 0;
        let apart =
            group.policy != GroupPolicy::AntiAffinity || here < group.max_per_host.unwrap_or(1);
        together && apart && group.max_per_host.is_none_or(|limit| here < limit)
    });
    let has = |key: &String, value: &String| {
        let mut properties = facts.properties.iter();
        properties.any(|property| (&property.0, &property.1) == (key, value))
    };
    let builds = |needs: &NetworkNeeds| {
        let able = &facts.network;
        needs.physical_networks.is_subset(&facts.physical_networks)
            && (needs.vlan == Need::None || able.vlan)
            && (needs.vxlan == Need::None || (able.vxlan && able.tunnel_ip.is_some()))
            && (needs.stateful_filter == Need::None || able.stateful_filter)
    };
    let image = &request.image;
    let answers = [
        (FilterName::Enabled, facts.admission == Admission::Enabled),
        (FilterName::Alive, facts.liveness == HostState::Up),
        (FilterName::Cpu, has_room(0)),
        (FilterName::Ram, has_room(1)),
        (FilterName::Disk, has_room(2)),
        (FilterName::CountableResources, enough_countables),
        (
            FilterName::AvailabilityZone,
            request.zone.is_none() || request.zone == facts.zone,
        ),
        (
            FilterName::AggregateProperties,
            request
                .properties
                .iter()
                .all(|(key, value)| has(key, value)),
        ),
        (
            FilterName::ImageProperties,
            image
                .architecture
                .as_ref()
                .is_none_or(|arch| *arch == facts.architecture)
                && image
                    .virt_type
                    .as_ref()
                    .is_none_or(|virt| facts.virt_types.contains(virt)),
        ),
        (
            FilterName::RequestedHost,
            request.requested_host.is_none_or(|id| id == facts.id),
        ),
        (
            FilterName::DifferentHost,
            !request.different_hosts.contains(&facts.id),
        ),
        (
            FilterName::SameHost,
            request.same_hosts.is_empty() || request.same_hosts.contains(&facts.id),
        ),
        (FilterName::ServerGroup, group_allows),
        (
            FilterName::VolumeLocality,
            request
                .volume_hosts
                .as_ref()
                .is_none_or(|hosts| hosts.contains(&facts.id)),
        ),
        (
            FilterName::NetworkReachability,
            builds(&request.networks)
                && request.routed.iter().all(|routed| builds(&routed.needs))
                && !request.nat.taken.contains_key(&facts.id),
        ),
        (
            FilterName::FailedRecently,
            !request.excluded_hosts.contains(&facts.id)
                && failures(model, cloud) <= cloud.settings.max_failures.0,
        ),
    ];
    answers
        .into_iter()
        .find(|(_, yes)| !yes)
        .map(|(name, _)| name)
}

/// The score, in wide numbers that need no bounds.
fn score(cloud: &Cloud, model: &Model) -> i128 {
    let weights = &cloud.settings.weights;
    let thousandths = |multiplier: &Multiplier| i128::from(multiplier.times(1));
    let [vcpus, memory_mb, disk_gb] =
        accounts(model).map(|(_, capacity, used)| i128::from(capacity.saturating_sub(used)));
    let mut score = memory_mb * thousandths(&weights.ram)
        + vcpus * thousandths(&weights.cpu)
        + disk_gb * thousandths(&weights.disk)
        + i128::from(model.builds) * thousandths(&weights.io_ops)
        + i128::from(model.facts.ailing) * thousandths(&weights.build_failures)
        + i128::from(failures(model, cloud)) * thousandths(&weights.build_failures) / 1000;
    if let Some(group) = &cloud.request.group {
        let here = group.members.get(&model.facts.id).copied().unwrap_or(0);
        score += i128::from(here)
            * match group.policy {
                GroupPolicy::SoftAffinity => thousandths(&weights.soft_affinity),
                GroupPolicy::SoftAntiAffinity => -thousandths(&weights.soft_anti_affinity),
                GroupPolicy::Affinity | GroupPolicy::AntiAffinity => 0,
            };
    }
    score
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn placement_equals_a_brute_force_search(cloud in any_cloud(0..8)) {
        let decision = place(&cloud.request, &cloud.table(), &mut Scratch::default());

        let mut fitting: Vec<_> =
            cloud.hosts.iter().filter(|model| rejected(&cloud, model).is_none()).collect();
        fitting.sort_by_key(|model| {
            let tie = mix::tie(cloud.request.seed, mix::mixed_id(model.facts.id));
            (Reverse(score(&cloud, model)), tie, model.facts.id)
        });
        let ids: Vec<_> = fitting.iter().map(|model| model.facts.id).collect();
        prop_assert_eq!(decision.host_id(), ids.first().copied());
        prop_assert_eq!(decision.runner_up.as_ref().map(|host| host.host_id), ids.get(1).copied());
        if let (Some(chosen), Some(model)) = (&decision.chosen, fitting.first()) {
            prop_assert_eq!(i128::from(chosen.score), score(&cloud, model));
            prop_assert_eq!(chosen.score, chosen.parts.total());
        }

        for filter in FilterName::ALL {
            let expected =
                cloud.hosts.iter().filter(|model| rejected(&cloud, model) == Some(*filter)).count();
            let told = decision.filters.iter().find(|removed| removed.filter == *filter);
            prop_assert_eq!(told.map_or(0, |removed| removed.hosts), expected, "{}", filter);
        }
        let latest = cloud.hosts.iter().filter_map(|model| rejected(&cloud, model)).max();
        // The host that was asked for by name is told first, however early it was rejected.
        // So is the host that the volume is on, if nobody asked for another.
        let volume = cloud.request.volume_hosts.as_ref().filter(|hosts| hosts.len() == 1);
        let volume = volume.and_then(|hosts| hosts.first().copied());
        let requested = cloud.hosts.iter().find(|model| {
            Some(model.facts.id) == cloud.request.requested_host.or(volume)
        });
        let told_first = requested.and_then(|model| rejected(&cloud, model)).or(latest);
        prop_assert_eq!(decision.nearest.first().map(|near| near.filter), told_first);
    }
}
