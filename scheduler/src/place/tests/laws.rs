//! What holds of every decision, whatever the cloud.

use proptest::prelude::*;

use super::{
    super::{
        filter::{Question, check},
        survey::Survey,
        *,
    },
    generate::{Cloud, any_cloud},
    *,
};

/// The fast way and the host-by-host way say the same, of every host and in every number.
fn both_ways_agree(cloud: &Cloud) {
    let table = cloud.table();
    let mut scratch = Scratch::default();
    for _ in 0..2 {
        let fast = place(&cloud.request, &table, &mut scratch);
        let slow = Survey::by_host(&cloud.request, &table, |_| 0);
        let slow = Decision::of(&slow, &cloud.request, &table, |_| 0);
        assert_eq!(fast, slow);
        for slot in table.all_slots() {
            let question = Question {
                request: &cloud.request,
                host: table.at(slot),
                settings: table.settings(),
                imagined: 0,
            };
            let code = check(&question).map_or_else(|(name, _)| name.code(), |()| columns::FITS);
            assert_eq!(scratch.code_of(slot), code, "{:?}", question.host);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_scan_says_what_the_filters_say(cloud in any_cloud(0..12)) {
        both_ways_agree(&cloud);
    }

    #[test]
    fn a_refusal_counts_every_host_once_and_a_choice_all_others(cloud in any_cloud(0..12)) {
        let decision = decide(&cloud.request, &cloud.table());
        let removed: usize = decision.filters.iter().map(|removed| removed.hosts).sum();
        prop_assert_eq!(decision.hosts, cloud.hosts.len());
        if decision.chosen.is_none() {
            prop_assert_eq!(removed, cloud.hosts.len());
        } else {
            prop_assert!(removed < cloud.hosts.len());
        }
        prop_assert_eq!(decision.nearest.len(), removed.min(3));
        prop_assert!(decision.filters.is_sorted_by_key(|removed| removed.filter));
    }

    #[test]
    fn the_order_in_which_hosts_came_does_not_matter(
        cloud in any_cloud(1..10),
        turn in any::<usize>(),
        gone in any::<prop::sample::Index>(),
    ) {
        let expected = decide(&cloud.request, &cloud.table());
        prop_assert_eq!(&decide(&cloud.request, &cloud.table()), &expected);

        let mut turned = cloud.clone();
        let turn = turn % turned.hosts.len();
        turned.hosts.rotate_left(turn);
        turned.hosts.swap(0, turn);
        prop_assert_eq!(&decide(&cloud.request, &turned.table()), &expected);

        // A host that leaves and comes back lies in another slot.
        let mut table = cloud.table();
        let model = gone.get(&cloud.hosts);
        let id = model.facts.id;
        table.remove(id).unwrap();
        table.debug_validate().unwrap();
        prop_assert!(table.host(id).is_none());
        table.upsert(model.facts.clone());
        table.claim(id, &model.claimed).unwrap();
        table.set_builds_in_flight(id, model.builds).unwrap();
        table.set_failures(id, model.failures).unwrap();
        table.debug_validate().unwrap();
        prop_assert_eq!(&decide(&cloud.request, &table), &expected);
    }

    #[test]
    fn forgetting_old_failures_changes_no_answer(cloud in any_cloud(1..10)) {
        let mut table = cloud.table();
        let expected = decide(&cloud.request, &table);
        table.forget_old_failures(cloud.request.now);
        table.debug_validate().unwrap();
        prop_assert_eq!(decide(&cloud.request, &table), expected);
    }

    #[test]
    fn tenants_learn_of_no_host(cloud in any_cloud(0..12)) {
        let decision = decide(&cloud.request, &cloud.table());
        let text = decision.tenant_text();
        prop_assert!(!text.contains("hv"), "{}", text);
        let (_, why) = text.split_once(" GB of disk").unwrap();
        prop_assert!(!why.contains(|letter: char| letter.is_ascii_digit()), "{}", text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn large_tables_are_no_different(cloud in any_cloud(230..500)) {
        both_ways_agree(&cloud);
    }
}

#[test]
fn the_sign_of_the_multiplier_spreads_or_stacks() {
    let total = resources(8, 8_192, 100);
    let hosts = [
        (host(1, total), resources(0, 4_096, 0)),
        (host(2, total), resources(0, 1_024, 0)),
        (host(3, resources(2, 4_096, 100)), Resources::default()),
    ];
    let mut settings = Settings::default();
    for (ram, best) in [
        (settings.weights.ram, "hv2"),
        (Multiplier::whole(-1), "hv3"),
    ] {
        settings.weights.ram = ram;
        let table = table_with(settings, hosts.clone());
        assert_eq!(chosen(&request(1, 512, 10), &table).unwrap(), best);
    }
}

#[test]
fn the_seed_decides_between_equals_and_nothing_else_does() {
    let table = table((1..=8).map(|number| {
        let facts = host(number, resources(8, 8_192, 100));
        (facts, Resources::default())
    }));
    let with_seed = |seed| {
        let wanted = Request {
            seed,
            ..request(1, 512, 10)
        };
        chosen(&wanted, &table).unwrap()
    };
    let winners: std::collections::BTreeSet<_> = (0..100).map(with_seed).collect();
    assert_eq!(winners.len(), 8, "every host wins for some seed");
    assert_eq!(with_seed(7), with_seed(7));
}

#[test]
fn a_host_that_failed_weighs_less_for_a_while_and_gets_nothing_after_many() {
    let total = resources(8, 8_192, 100);
    let mut table = table([
        (host(1, total), Resources::default()),
        (host(2, total), resources(0, 4_096, 0)),
    ]);
    let at = |minutes: u64| Request {
        now: Millis(minutes * 60_000),
        ..request(1, 512, 10)
    };
    assert_eq!(chosen(&at(0), &table).unwrap(), "hv1");
    table.record_failure(host_id(1), Millis(0)).unwrap();
    assert_eq!(chosen(&at(0), &table).unwrap(), "hv2");
    assert_eq!(chosen(&at(24 * 60), &table).unwrap(), "hv1");
    for _ in 0..3 {
        table.record_failure(host_id(1), Millis(0)).unwrap();
    }
    let decision = decide(&at(0), &table);
    assert_eq!(
        decision.nearest[0].rejection.to_string(),
        "4.000 builds have failed there lately, at most 3.000 are tolerated"
    );
    assert_eq!(decide(&at(10), &table).nearest, []);
    let again = Request {
        excluded_hosts: [host_id(2)].into(),
        ..at(0)
    };
    assert_eq!(chosen(&again, &table), None);
}

#[test]
fn soft_policies_prefer_and_never_refuse() {
    let total = resources(8, 8_192, 100);
    let table = table([
        (host(1, total), Resources::default()),
        (host(2, total), resources(0, 4_096, 0)),
    ]);
    let with = |policy, members: &[(u128, u64)]| {
        let group = ServerGroup {
            policy,
            max_per_host: None,
            members: members
                .iter()
                .map(|(host, count)| (host_id(*host), *count))
                .collect(),
        };
        let wanted = Request {
            group: Some(group),
            ..request(1, 512, 10)
        };
        chosen(&wanted, &table).unwrap()
    };
    assert_eq!(with(GroupPolicy::SoftAntiAffinity, &[(1, 1)]), "hv2");
    assert_eq!(
        with(GroupPolicy::SoftAntiAffinity, &[(1, 1), (2, 2)]),
        "hv1"
    );
    assert_eq!(with(GroupPolicy::SoftAffinity, &[(2, 1)]), "hv2");
    assert_eq!(with(GroupPolicy::SoftAffinity, &[(7, 1)]), "hv1");
}
