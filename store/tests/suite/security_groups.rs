//! Security groups, their rules, and the addresses of those who have them.

use std::{collections::BTreeSet, sync::Arc};

use berth_common::{
    document::{
        AddressPair, EtherType, NetworkType, PortRange, RuleDirection, RuleProtocol, RuleRemote,
    },
    ids::{SecurityGroupId, SecurityGroupRuleId},
};
use berth_store::{
    StoreError, UniqueWhat,
    claims::{self, ClaimRole},
    instances, networks, ports, security_groups,
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    groups_and_their_rules_are_read_back,
    a_rule_is_in_a_group_once,
    a_group_goes_with_its_rules_and_not_while_a_port_has_it,
    members_are_those_with_port_security_in_the_network,
    documents_that_depend_on_a_group_are_found,
);

async fn groups_and_their_rules_are_read_back(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut group = sample::security_group("web");
    group.description = "what the world may reach".to_owned();
    let other = sample::security_group("db");
    for group in [&group, &other] {
        security_groups::insert(db, group).await.unwrap();
    }
    let range = |min, max| Some(PortRange { min, max });
    let protocols = [
        None,
        Some(RuleProtocol::Tcp { ports: None }),
        Some(RuleProtocol::Tcp {
            ports: range(1, u16::MAX),
        }),
        Some(RuleProtocol::Udp {
            ports: range(53, 53),
        }),
        Some(RuleProtocol::Icmp {
            kind: None,
            code: None,
        }),
        Some(RuleProtocol::Icmp {
            kind: Some(8),
            code: None,
        }),
        Some(RuleProtocol::Icmp {
            kind: Some(8),
            code: Some(0),
        }),
        Some(RuleProtocol::Number { number: 255 }),
    ];
    let remotes = [
        None,
        Some(RuleRemote::Group(group.id)),
        Some(RuleRemote::Group(other.id)),
        Some(RuleRemote::Prefix(
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
                .parse()
                .unwrap(),
        )),
    ];
    let mut rules = vec![];
    for direction in [RuleDirection::Ingress, RuleDirection::Egress] {
        for ethertype in [EtherType::IPv4, EtherType::IPv6] {
            for protocol in protocols {
                for remote in remotes {
                    let mut row = sample::ingress(group.id, None);
                    row.rule.direction = direction;
                    row.rule.ethertype = ethertype;
                    row.rule.protocol = protocol;
                    row.rule.remote = remote;
                    row.created_at = time(i64::try_from(rules.len()).unwrap());
                    rules.push(row);
                }
            }
        }
    }
    security_groups::insert_rules(db, &rules).await.unwrap();
    let read = security_groups::rules_of(db, &[group.id, other.id]).await;
    assert_eq!(read.unwrap(), rules);
    let one = security_groups::rule(db, rules[7].rule.id).await.unwrap();
    assert_eq!(one.as_ref(), Some(&rules[7]));
    let none = security_groups::rule(db, SecurityGroupRuleId::new()).await;
    assert_eq!(none.unwrap(), None);
    security_groups::delete_rule(db, rules[7].rule.id)
        .await
        .unwrap();
    security_groups::delete_rule(db, rules[7].rule.id)
        .await
        .unwrap();
    assert_eq!(
        security_groups::rule(db, rules[7].rule.id).await.unwrap(),
        None
    );
    group.name = "www".parse().unwrap();
    group.description = String::new();
    security_groups::set(db, group.id, &group.name, "")
        .await
        .unwrap();
    let named = security_groups::find_by_name(db, &group.project, &group.name).await;
    assert_eq!(named.unwrap(), Some(group.clone()));
    let missing = security_groups::set(db, SecurityGroupId::new(), &other.name, "").await;
    assert!(
        matches!(missing, Err(StoreError::NotFound { .. })),
        "{missing:?}"
    );
    let taken = security_groups::set(db, group.id, &other.name, "").await;
    assert!(
        matches!(
            &taken,
            Err(StoreError::Unique {
                constraint: UniqueWhat::SecurityGroupName,
                ..
            })
        ),
        "{taken:?}"
    );
    let project = "nobody".parse().unwrap();
    assert_eq!(
        security_groups::list(db, Some(&project), None, 9)
            .await
            .unwrap(),
        []
    );
    let page = async |after, limit| security_groups::list(db, None, after, limit).await.unwrap();
    let all = page(None, 9).await;
    assert_eq!(all.len(), 2);
    assert_eq!(page(None, 1).await, all[..1]);
    assert_eq!(page(Some(all[0].id), 9).await, all[1..]);
}

async fn a_rule_is_in_a_group_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (one, two) = (sample::security_group("one"), sample::security_group("two"));
    for group in [&one, &two] {
        security_groups::insert(db, group).await.unwrap();
    }
    let rule = sample::ingress(one.id, Some(one.id));
    let elsewhere = sample::ingress(two.id, Some(one.id));
    security_groups::insert_rules(db, &[rule.clone(), elsewhere])
        .await
        .unwrap();
    for (row, what) in [
        (
            sample::ingress(one.id, Some(one.id)),
            UniqueWhat::SecurityGroupRule,
        ),
        (
            berth_store::security_groups::SecurityGroupRuleRow {
                group_id: two.id,
                ..rule
            },
            UniqueWhat::SecurityGroupRule,
        ),
    ] {
        let refused = security_groups::insert_rules(db, &[row]).await;
        assert!(
            matches!(&refused, Err(StoreError::Unique { constraint, .. })
                if *constraint == what || *constraint == UniqueWhat::Id),
            "{refused:?}"
        );
    }
    assert_eq!(
        security_groups::referring(db, one.id).await.unwrap(),
        BTreeSet::from([two.id])
    );
}

async fn a_group_goes_with_its_rules_and_not_while_a_port_has_it(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let (one, two) = (sample::security_group("one"), sample::security_group("two"));
    for group in [&one, &two] {
        security_groups::insert(db, group).await.unwrap();
    }
    let rules = [
        sample::ingress(one.id, None),
        sample::ingress(two.id, Some(one.id)),
        sample::ingress(two.id, None),
    ];
    security_groups::insert_rules(db, &rules).await.unwrap();
    let mut port = sample::port(&instance, &network, 5);
    port.wishes.security_groups.insert(one.id);
    ports::insert(db, &port).await.unwrap();
    let refused = security_groups::delete(db, one.id).await;
    assert!(
        matches!(refused, Err(StoreError::ForeignKey { .. })),
        "{refused:?}"
    );
    let counts = security_groups::port_counts(db, &[one.id, two.id])
        .await
        .unwrap();
    assert_eq!(counts, [(one.id, 1)].into());
    assert_eq!(
        security_groups::some_ports(db, one.id, 5).await.unwrap(),
        [port.id]
    );
    ports::delete(db, port.id).await.unwrap();
    security_groups::delete(db, one.id).await.unwrap();
    assert_eq!(security_groups::get(db, one.id).await.unwrap(), None);
    let left = security_groups::rules_of(db, &[one.id, two.id])
        .await
        .unwrap();
    assert_eq!(left, rules[2..]);
}

async fn members_are_those_with_port_security_in_the_network(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let green = sample::add_network(db, "green").await;
    let (web, bare) = (
        sample::security_group("web"),
        sample::security_group("bare"),
    );
    for group in [&web, &bare] {
        security_groups::insert(db, group).await.unwrap();
    }
    // The third has no port security, the fourth another group, the fifth is in another network.
    for last in 1..=5 {
        let on = if last == 5 { &green } else { &network };
        let mut port = sample::port(&instance, on, last);
        port.attachment = None;
        port.wishes.port_security_enabled = last != 3;
        let group = if last == 4 { bare.id } else { web.id };
        port.wishes.security_groups.insert(group);
        if last == 2 {
            port.wishes.allowed_address_pairs = vec![AddressPair {
                ip_address: "10.9.0.0/16".parse().unwrap(),
                mac_address: None,
            }];
        }
        ports::insert(db, &port).await.unwrap();
    }
    let wanted = BTreeSet::from([(network.id, web.id), (green.id, bare.id)]);
    let expected = ["10.0.0.1/32", "10.0.0.2/32", "10.9.0.0/16"];
    let expected: BTreeSet<_> = expected.iter().map(|text| text.parse().unwrap()).collect();
    let members = security_groups::members(db, &wanted).await.unwrap();
    assert_eq!(members, [((network.id, web.id), expected)].into());
    let nobody = security_groups::members(db, &BTreeSet::new())
        .await
        .unwrap();
    assert!(nobody.is_empty());
}

async fn documents_that_depend_on_a_group_are_found(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, local, instance) = sample::populate(&store).await;
    let mut network = sample::network("wide");
    network.network_type = NetworkType::Vlan;
    networks::insert(db, &network).await.unwrap();
    let other_host = sample::add_host(db, "hv2").await;
    let second = sample::instance("db");
    instances::insert(db, &second).await.unwrap();
    for (row, host) in [(&instance, host), (&second, other_host)] {
        let claim = sample::claim(row, host, ClaimRole::Current);
        claims::insert(db, &claim).await.unwrap();
    }
    let (web, behind) = (
        sample::security_group("web"),
        sample::security_group("behind"),
    );
    for group in [&web, &behind] {
        security_groups::insert(db, group).await.unwrap();
    }
    let rule = sample::ingress(behind.id, Some(web.id));
    security_groups::insert_rules(db, &[rule]).await.unwrap();
    for (row, last, group) in [(&instance, 5, &web), (&second, 6, &behind)] {
        let mut port = sample::port(row, &network, last);
        port.wishes.security_groups.insert(group.id);
        ports::insert(db, &port).await.unwrap();
        let mut beside = sample::port(row, &local, last);
        sample::put_at(&mut beside, 1);
        beside.wishes.security_groups.insert(group.id);
        ports::insert(db, &beside).await.unwrap();
    }
    let with = security_groups::places_with(db, &BTreeSet::from([web.id])).await;
    let both = BTreeSet::from([(host, network.id), (host, local.id)]);
    assert_eq!(with.unwrap(), both);
    let changed = BTreeSet::from([(network.id, web.id), (local.id, web.id)]);
    let naming = security_groups::places_that_name(db, &changed).await;
    assert_eq!(naming.unwrap(), BTreeSet::from([(other_host, network.id)]));
    let unnamed = BTreeSet::from([(network.id, behind.id)]);
    let naming = security_groups::places_that_name(db, &unnamed).await;
    assert_eq!(naming.unwrap(), BTreeSet::new());
}
