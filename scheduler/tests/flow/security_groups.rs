//! Security groups: who gets them, who hears of their changes, and what is refused.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{Document, Kind, NetworkSpec, NetworkType, RuleDirection},
    ids::{SecurityGroupId, SecurityGroupRuleId},
    message::{
        port::PortSet,
        report::PowerState,
        request::NetworkCreate,
        security_group::{
            SecurityGroupCreate, SecurityGroupDelete, SecurityGroupList, SecurityGroupRuleCreate,
            SecurityGroupRuleDelete, SecurityGroupSet, SecurityGroupShow,
        },
    },
    refusal::RefusalCode,
};
use serde_json::json;

use crate::{
    ask::{delete, instance, network},
    cloud::Cloud,
    host::Host,
    networks::able,
    ports::port,
};

fn group(name: &str) -> SecurityGroupCreate {
    SecurityGroupCreate {
        id: SecurityGroupId::new(),
        name: name.parse().unwrap(),
        project: Default::default(),
        description: String::new(),
    }
}

fn rule(group: &str, more: serde_json::Value) -> SecurityGroupRuleCreate {
    let mut request = json!({
        "id": SecurityGroupRuleId::new(), "security_group": group, "direction": "ingress", "ethertype": "IPv4",
    });
    let fields = request.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    serde_json::from_value(request).unwrap()
}

fn show(group: &str) -> SecurityGroupShow {
    SecurityGroupShow {
        security_group: group.to_owned(),
        project: Default::default(),
    }
}

async fn network_of(host: &mut Host) -> NetworkSpec {
    let documents = host.next_of(&[Kind::Network]).await;
    let document = &documents[&Kind::Network];
    host.carry_out(document, PowerState::Running).await;
    let Document::Network(network) = document else {
        panic!()
    };
    network.spec.clone().unwrap()
}

/// What a host is told of a network, until it is as it should be.
async fn until(host: &mut Host, is: impl Fn(&NetworkSpec) -> bool) -> NetworkSpec {
    loop {
        let spec = network_of(host).await;
        if is(&spec) {
            return spec;
        }
    }
}

fn members(spec: &NetworkSpec, group: SecurityGroupId) -> BTreeSet<String> {
    let members = spec.group_members.get(&group).into_iter().flatten();
    members.map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_has_the_default_group_of_its_project_and_hears_of_its_members_on_all_hosts() {
    let cloud = Cloud::start().await;
    let mut hosts = BTreeMap::new();
    for (last, name) in [(1, "hv1"), (2, "hv2")] {
        hosts.insert(name, Host::join_with(&cloud, name, able(last)).await);
    }
    cloud
        .ok(NetworkCreate {
            network_type: NetworkType::Vxlan,
            ..network("wide", "10.0.0.0/24")
        })
        .await;
    let on = |name: &str, host: &str| {
        let mut request = instance(name, 512, json!([{ "network": "wide" }]));
        request.hints.host = Some(host.to_owned());
        request
    };
    let web = cloud.ok(on("web", "hv1")).await;
    let default = web.ports[0].security_groups[0].clone();
    assert_eq!(default.name.as_str(), "default");
    let one = hosts.get_mut("hv1").unwrap();
    let spec = network_of(one).await;
    assert_eq!(spec.security_groups.len(), 1);
    assert_eq!(spec.security_groups[0].rules.len(), 4);
    assert_eq!(
        members(&spec, default.id),
        ["10.0.0.1/32".to_owned()].into()
    );

    // A member more, elsewhere.
    let db = cloud.ok(on("db", "hv2")).await;
    assert_eq!(db.ports[0].security_groups[0].id, default.id);
    let both: BTreeSet<String> = ["10.0.0.1/32", "10.0.0.3/32"].map(str::to_owned).into();
    let one = hosts.get_mut("hv1").unwrap();
    until(one, |spec| members(spec, default.id) == both).await;
    let two = hosts.get_mut("hv2").unwrap();
    until(two, |spec| members(spec, default.id) == both).await;

    // Without port security it is a member no more, and a port of none is one.
    let set = PortSet {
        port: db.ports[0].id.to_string(),
        port_security_enabled: Some(false),
        ..PortSet::default()
    };
    cloud.ok(set).await;
    let one = hosts.get_mut("hv1").unwrap();
    until(one, |spec| members(spec, default.id).len() == 1).await;
    cloud
        .ok(port(
            "wide",
            json!({ "allowed_address_pairs": [{ "ip_address": "10.9.0.0/16" }] }),
        ))
        .await;
    let one = hosts.get_mut("hv1").unwrap();
    let spec = until(one, |spec| members(spec, default.id).len() == 3).await;
    assert!(members(&spec, default.id).contains("10.9.0.0/16"));

    // Its rules reach those who have it, and no others.
    let ssh = rule(
        "default",
        json!({ "protocol": { "name": "tcp", "ports": { "min": 22, "max": 22 } } }),
    );
    let view = cloud.ok(ssh.clone()).await;
    assert_eq!(view.rules.len(), 5);
    let one = hosts.get_mut("hv1").unwrap();
    until(one, |spec| spec.security_groups[0].rules.len() == 5).await;
    cloud.ok(SecurityGroupRuleDelete { id: ssh.id }).await;
    until(one, |spec| spec.security_groups[0].rules.len() == 4).await;

    // A member less.
    cloud.ok(delete(web.id)).await;
    hosts.get_mut("hv1").unwrap().bury(&cloud, &[web.id]).await;
    let view = cloud.ok(show("default")).await;
    assert_eq!(view.ports, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_hears_nothing_of_members_elsewhere_in_a_network_that_does_not_reach_them() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    for (name, host) in [("web", "hv1"), ("db", "hv2"), ("app", "hv1")] {
        let mut request = instance(name, 512, json!([{ "network": "blue" }]));
        request.hints.host = Some(host.to_owned());
        cloud.ok(request).await;
    }
    let default = cloud.ok(show("default")).await.id;
    let one = hosts.get_mut("hv1").unwrap();
    let spec = until(one, |spec| spec.ports.len() == 2).await;
    let own: BTreeSet<String> = ["10.0.0.1/32", "10.0.0.4/32"].map(str::to_owned).into();
    assert_eq!(members(&spec, default), own);
    let two = hosts.get_mut("hv2").unwrap();
    let spec = network_of(two).await;
    assert_eq!(members(&spec, default), ["10.0.0.3/32".to_owned()].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_and_rules_are_made_changed_and_refused() {
    let cloud = Cloud::start().await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let (conflict, invalid) = (RefusalCode::Conflict, RefusalCode::Invalid);
    let web = group("web");
    let view = cloud.ok(web.clone()).await;
    assert!(
        view.rules
            .iter()
            .all(|rule| rule.direction == RuleDirection::Egress)
            && view.rules.len() == 2
    );
    assert_eq!(cloud.ok(web.clone()).await, view);
    cloud
        .refused(group("web"), conflict, "already has a security group")
        .await;
    cloud
        .refused(group("default"), conflict, "of its own")
        .await;
    let other = SecurityGroupCreate {
        description: "x".to_owned(),
        ..web.clone()
    };
    cloud.refused(other, conflict, "with another content").await;

    let http = rule("web", json!({ "remote_ip_prefix": "10.0.0.0/8" }));
    let with = cloud.ok(http.clone()).await;
    assert_eq!(cloud.ok(http.clone()).await, with);
    let twice = SecurityGroupRuleCreate {
        id: SecurityGroupRuleId::new(),
        ..http.clone()
    };
    cloud
        .refused(twice, conflict, "allows that already, by rule")
        .await;
    let changed = SecurityGroupRuleCreate {
        remote_ip_prefix: None,
        ..http.clone()
    };
    cloud
        .refused(changed, conflict, "with another content")
        .await;
    let wrong = rule(
        "web",
        json!({
            "remote_ip_prefix": "fd00::/8", "remote_group": "web",
            "protocol": { "name": "tcp", "ports": { "min": 9, "max": 1 } },
        }),
    );
    let refusal = cloud.refused(wrong, invalid, "exclude each other").await;
    for words in [
        "not of the rule's ethertype",
        "the first not above the last",
    ] {
        assert!(refusal.message.contains(words), "{refusal}");
    }
    for (protocol, words) in [
        (json!({ "name": "icmp", "code": 1 }), "needs protocol.type"),
        (json!({ "name": "number", "number": 6 }), "say tcp"),
    ] {
        cloud
            .refused(rule("web", json!({ "protocol": protocol })), invalid, words)
            .await;
    }

    let taken = cloud
        .ok(port(
            "blue",
            json!({ "name": "uplink", "security_groups": ["web", "default"] }),
        ))
        .await;
    assert_eq!(taken.security_groups.len(), 2);
    let gone = SecurityGroupDelete {
        security_group: "web".to_owned(),
        project: Default::default(),
    };
    cloud
        .refused(gone.clone(), conflict, "on 1 ports (uplink)")
        .await;
    let default = SecurityGroupDelete {
        security_group: "default".to_owned(),
        ..gone.clone()
    };
    cloud.refused(default, conflict, "stays").await;
    let named = SecurityGroupSet {
        security_group: "web".to_owned(),
        name: Some("www".parse().unwrap()),
        description: Some("for all".to_owned()),
        ..SecurityGroupSet::default()
    };
    let view = cloud.ok(named).await;
    assert_eq!(
        (view.name.as_str(), view.description.as_str()),
        ("www", "for all")
    );
    let renamed = SecurityGroupSet {
        security_group: "default".to_owned(),
        name: Some("x".parse().unwrap()),
        ..SecurityGroupSet::default()
    };
    cloud.refused(renamed, conflict, "keeps its name").await;
    let unknown = port("blue", json!({ "security_groups": ["nobody"] }));
    cloud
        .refused(unknown, RefusalCode::NotFound, "no security group")
        .await;
    let set: PortSet =
        serde_json::from_value(json!({ "port": "uplink", "security_groups": [] })).unwrap();
    cloud.ok(set).await;
    let gone = SecurityGroupDelete {
        security_group: "www".to_owned(),
        ..gone
    };
    cloud.ok(gone.clone()).await;
    cloud
        .refused(gone, RefusalCode::NotFound, "no security group")
        .await;
    let missing = SecurityGroupRuleDelete { id: http.id };
    cloud
        .refused(missing, RefusalCode::NotFound, "no security group rule")
        .await;
    let all = cloud
        .ok(SecurityGroupList {
            project: None,
            after: None,
            limit: 10,
        })
        .await;
    assert_eq!(all.security_groups.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_has_a_hundred_rules_at_most() {
    let cloud = Cloud::start().await;
    cloud.ok(group("web")).await;
    for number in 0..98_u16 {
        let ports = json!({ "min": 1000 + number, "max": 1000 + number });
        let one = rule(
            "web",
            json!({ "protocol": { "name": "udp", "ports": ports } }),
        );
        cloud.ok(one).await;
    }
    cloud
        .refused(
            rule("web", json!({})),
            RefusalCode::Conflict,
            "has 100 rules",
        )
        .await;
}
