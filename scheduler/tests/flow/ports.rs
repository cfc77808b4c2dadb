//! Ports: by themselves, of instances, plugged in and unplugged.

use berth_common::{
    document::{
        BandwidthLimit, Document, InstanceSpec, Kind, MirrorDirection, MirrorTarget, NetworkPort,
        NetworkSpec, PortLink, PortMirror, PortQos,
    },
    ids::PortId,
    message::{
        port::{
            InstanceAttachInterface, InstanceDetachInterface, NewPort, PortCreate, PortDelete,
            PortList, PortSet, PortShow, PortStatus,
        },
        report::{ConvergeStatus, PowerState},
        request::InstanceSuspend,
        view::{InstanceView, PortView, VmState},
    },
    refusal::RefusalCode,
};
use serde_json::json;

use crate::{
    ask::{delete, instance, network},
    cloud::Cloud,
    host::{Host, resource},
    networks::{NO_FILTER, able, unable},
    reached_groups,
    soundness::assert_sound,
};

/// A request for a port with what is in `more`.
pub(crate) fn port(network: &str, more: serde_json::Value) -> PortCreate {
    let mut request = json!({ "id": PortId::new(), "network": network });
    let fields = request.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    serde_json::from_value(request).unwrap()
}

fn show(id: PortId) -> PortShow {
    PortShow {
        port: id.to_string(),
        project: Default::default(),
    }
}

fn attach(instance: &InstanceView, port: PortId) -> InstanceAttachInterface {
    InstanceAttachInterface {
        instance: instance.id.to_string(),
        project: Default::default(),
        port: Some(port.to_string()),
        new_port: None,
    }
}

fn detach(instance: &InstanceView, port: PortId) -> InstanceDetachInterface {
    InstanceDetachInterface {
        instance: instance.id.to_string(),
        project: Default::default(),
        port: port.to_string(),
    }
}

fn set(id: PortId) -> PortSet {
    PortSet {
        port: id.to_string(),
        ..PortSet::default()
    }
}

async fn wait_for_port(cloud: &Cloud, id: PortId, status: PortStatus) -> PortView {
    let deadline = std::time::Instant::now() + crate::cloud::LIMIT;
    loop {
        let view = cloud.ok(show(id)).await;
        if view.status == status {
            return view;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "not {status:?}: {view:#?}"
        );
        tokio::task::yield_now().await;
    }
}

/// Carries out what comes until the documents of the instance and of its network are so; what was told before may come again.
async fn until(
    host: &mut Host,
    instance: impl Fn(&InstanceSpec) -> bool,
    network: impl Fn(&NetworkSpec) -> bool,
) -> (InstanceSpec, NetworkSpec) {
    let (mut of_instance, mut of_network) = (None, None);
    loop {
        let document = host.next().await;
        host.carry_out(&document, PowerState::Running).await;
        match document {
            Document::Instance(document) => {
                of_instance = document.spec.filter(&instance).or(of_instance);
            }
            Document::Network(document) => {
                of_network = document.spec.filter(&network).or(of_network);
            }
            _ => {}
        }
        if let (Some(instance), Some(network)) = (&of_instance, &of_network) {
            return (instance.clone(), network.clone());
        }
    }
}

/// The document of the instance with so many ports, not carried out.
async fn with_ports(host: &mut Host, instance: &InstanceView, count: usize) -> Document {
    loop {
        let document = host.next_about(instance.id).await;
        if let Document::Instance(wanted) = &document
            && wanted.spec.as_ref().unwrap().ports.len() == count
        {
            return document;
        }
    }
}

/// What the host is told of the network, until it is so.
async fn network_until(host: &mut Host, is: impl Fn(&NetworkSpec) -> bool) -> NetworkSpec {
    loop {
        let told = host.next_of(&[Kind::Network]).await;
        if let Document::Network(document) = &told[&Kind::Network]
            && let Some(spec) = document.spec.clone().filter(&is)
        {
            return spec;
        }
    }
}

/// A cloud of one host with a running instance in network `blue`.
async fn running() -> (Cloud, Host, InstanceView) {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let view = cloud
        .ok(instance("web", 512, json!([{ "network": "blue" }])))
        .await;
    assert_eq!(view.ports[0].status, PortStatus::Attaching);
    assert!(view.ports[0].port_security_enabled && view.ports[0].delete_with_instance);
    until(&mut host, |_| true, |_| true).await;
    let view = cloud
        .wait_for_instance(view.id, "active", |view| {
            view.vm_state == VmState::Active && view.ports[0].status == PortStatus::Active
        })
        .await;
    (cloud, host, view)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_plugged_in_and_free_only_when_its_host_saw_it_gone() {
    let (cloud, mut host, web) = running().await;
    let request = port(
        "blue",
        json!({ "name": "uplink", "ip_address": "10.0.0.50" }),
    );
    let made = cloud.ok(request.clone()).await;
    assert_eq!((made.status, made.instance_id), (PortStatus::Down, None));
    assert_eq!(
        cloud.ok(request.clone()).await,
        made,
        "idempotent on its id"
    );
    let other = PortCreate {
        ip_address: None,
        ..request
    };
    let conflict = RefusalCode::Conflict;
    cloud.refused(other, conflict, "with another content").await;

    let view = cloud.ok(attach(&web, made.id)).await;
    assert_eq!(view.ports[1].status, PortStatus::Attaching);
    let repeated = cloud.ok(attach(&web, made.id)).await;
    assert_eq!(repeated.generation, view.generation);
    let two = |instance: &InstanceSpec| instance.ports.len() == 2;
    let (instance_spec, _) = until(&mut host, two, |network| network.ports.len() == 2).await;
    assert_eq!(instance_spec.ports[1].id, made.id);
    wait_for_port(&cloud, made.id, PortStatus::Active).await;

    let gone = PortDelete {
        port: "uplink".to_owned(),
        project: Default::default(),
    };
    cloud
        .refused(gone.clone(), conflict, "unplug it there first")
        .await;

    let view = cloud.ok(detach(&web, made.id)).await;
    assert_eq!(view.ports[1].status, PortStatus::Detaching);
    cloud
        .refused(attach(&web, made.id), conflict, "is being unplugged")
        .await;
    let document = &with_ports(&mut host, &web, 1).await;
    // It is still there: an old domain's word, and that of an agent that does not tell, free nothing.
    let told = (document.key(), document.generation());
    for (ports, status) in [
        (None, ConvergeStatus::Converged),
        (
            Some(vec![web.ports[0].id, made.id]),
            ConvergeStatus::Converging,
        ),
    ] {
        let mut report = resource(told.0, told.1, status, PowerState::Running);
        report.ports = ports;
        report.progress = Some(format!("{status:?}"));
        host.say(report).await;
        cloud
            .wait_for_instance(web.id, "reported", |view| {
                view.progress.as_deref() == Some(format!("{status:?}").as_str())
            })
            .await;
        let view = cloud.ok(show(made.id)).await;
        assert_eq!(view.status, PortStatus::Detaching);
    }
    host.carry_out(document, PowerState::Running).await;
    let view = wait_for_port(&cloud, made.id, PortStatus::Down).await;
    assert_eq!(view.instance_id, None);
    // The network forgets it only now.
    network_until(&mut host, |network| network.ports.len() == 1).await;
    cloud.ok(gone).await;
    cloud
        .refused(show(made.id), RefusalCode::NotFound, "has no port")
        .await;
}

/// A port is somewhere once it is plugged in, and nowhere once it is free: tunnels lead nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_hosts_are_told_where_a_port_is_that_was_there_before_it_is_plugged_in() {
    let cloud = Cloud::start().await;
    let mut one = Host::join_with(&cloud, "hv1", able(1)).await;
    let two = Host::join_with(&cloud, "hv2", able(2)).await;
    let red = reached_groups::network(&cloud, "red", "vxlan", 1).await;
    let web = reached_groups::on(&cloud, "web", "red", "hv1").await;
    reached_groups::on(&cloud, "db", "red", "hv2").await;
    until(&mut one, |_| true, |_| true).await;
    wait_for_port(&cloud, web.ports[0].id, PortStatus::Active).await;
    let seen = async || {
        let (_, spec) = reached_groups::told(&cloud, &two, red).await;
        spec.remote_ports.len()
    };
    assert_eq!(seen().await, 1);
    let made = cloud.ok(port("red", json!({}))).await;
    assert_eq!(seen().await, 1);

    cloud.ok(attach(&web, made.id)).await;
    assert_eq!(seen().await, 2);
    assert_sound(&cloud).await;
    let plugged = |instance: &InstanceSpec| instance.ports.len() == 2;
    until(&mut one, plugged, |network| network.ports.len() == 2).await;
    wait_for_port(&cloud, made.id, PortStatus::Active).await;

    cloud.ok(detach(&web, made.id)).await;
    let document = with_ports(&mut one, &web, 1).await;
    one.carry_out(&document, PowerState::Running).await;
    wait_for_port(&cloud, made.id, PortStatus::Down).await;
    assert_eq!(seen().await, 1);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_was_made_for_an_instance_goes_when_it_is_unplugged() {
    let (cloud, mut host, web) = running().await;
    let request = InstanceAttachInterface {
        instance: "web".to_owned(),
        project: Default::default(),
        port: None,
        new_port: Some(NewPort {
            id: PortId::new(),
            network: "blue".to_owned(),
            ip_address: None,
            mac_address: None,
            port_security_enabled: false,
            security_groups: None,
        }),
    };
    let view = cloud.ok(request.clone()).await;
    assert_eq!(cloud.ok(request.clone()).await.ports, view.ports);
    let id = view.ports[1].id;
    let two = |network: &NetworkSpec| network.ports.len() == 2;
    let (_, network) = until(&mut host, |instance| instance.ports.len() == 2, two).await;
    let theirs = network.ports.iter().find(|port| port.id == id).unwrap();
    assert_eq!(theirs.security, None, "it has no port security");
    wait_for_port(&cloud, id, PortStatus::Active).await;
    cloud.ok(detach(&web, id)).await;
    let document = with_ports(&mut host, &web, 1).await;
    host.carry_out(&document, PowerState::Running).await;
    cloud
        .wait_for_instance(web.id, "unplugged", |view| view.ports.len() == 1)
        .await;
    cloud
        .refused(show(id), RefusalCode::NotFound, "has no port")
        .await;
    cloud
        .refused(
            InstanceAttachInterface {
                port: Some("x".to_owned()),
                ..request
            },
            RefusalCode::Invalid,
            "exactly one",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_created_with_a_port_that_outlives_it() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let made = cloud.ok(port("blue", json!({ "name": "uplink" }))).await;
    let request = instance(
        "web",
        512,
        json!([{ "network": "blue" }, { "port": "uplink" }]),
    );
    let web = cloud.ok(request.clone()).await;
    assert_eq!(web.ports[1].id, made.id);
    assert_eq!(web.ports[1].fixed_ips, made.fixed_ips);
    assert_eq!(cloud.ok(request).await.ports, web.ports);
    let second = instance("db", 512, json!([{ "port": made.id.to_string() }]));
    let conflict = RefusalCode::Conflict;
    cloud
        .refused(second.clone(), conflict, "is of instance web")
        .await;
    let both_named = instance(
        "x",
        512,
        json!([{ "port": "uplink", "network": "blue" }, {}]),
    );
    let invalid = RefusalCode::Invalid;
    let refusal = cloud.refused(both_named, invalid, "name one of them").await;
    assert!(refusal.message.contains("must name a network or a port"));
    until(&mut host, |_| true, |_| true).await;
    let listed = cloud
        .ok(PortList {
            project: None,
            network: Some("blue".to_owned()),
            instance: Some("web".to_owned()),
            after: None,
            limit: 10,
        })
        .await;
    assert_eq!(listed.ports.len(), 2);
    cloud.ok(delete(web.id)).await;
    host.bury(&cloud, &[web.id]).await;
    let left = cloud.ok(show(made.id)).await;
    assert_eq!(
        (left.status, left.fixed_ips),
        (PortStatus::Down, made.fixed_ips)
    );
    cloud
        .refused(show(web.ports[0].id), RefusalCode::NotFound, "has no port")
        .await;
    cloud.ok(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_of_a_port_reaches_its_host() {
    let (cloud, mut host, web) = running().await;
    let id = web.ports[0].id;
    let view = cloud
        .ok(PortSet {
            admin_state_up: Some(false),
            name: serde_json::from_value::<PortSet>(json!({ "port": "x", "name": "uplink" }))
                .unwrap()
                .name,
            allowed_address_pairs: Some(
                serde_json::from_value(json!([{ "ip_address": "10.0.0.100" }])).unwrap(),
            ),
            ..set(id)
        })
        .await;
    assert_eq!(view.name.as_ref().unwrap().as_str(), "uplink");
    let down = |instance: &InstanceSpec| instance.ports[0].link == PortLink::Down;
    let paired = |network: &NetworkSpec| {
        let security = network.ports[0].security.as_ref();
        security.is_some_and(|security| {
            security.allowed_address_pairs.len() == 1 && security.security_groups.len() == 1
        })
    };
    until(&mut host, down, paired).await;

    let off = PortSet {
        port_security_enabled: Some(false),
        ..set(id)
    };
    let view = cloud.ok(off.clone()).await;
    assert_eq!(view.security_groups.len(), 1, "they are kept");
    network_until(&mut host, |network| network.ports[0].security.is_none()).await;

    let wrong: PortSet = serde_json::from_value(json!({
        "port": id,
        "security_groups": vec!["default"; 17],
        "allowed_address_pairs": [{ "ip_address": "224.0.0.0/4" }],
        "qos_egress": { "max_kbps": 0 },
    }))
    .unwrap();
    let refusal = cloud
        .refused(wrong, RefusalCode::Invalid, "at most 16")
        .await;
    for words in [
        "need port security",
        "multicast",
        "max_kbps must be at least 1",
    ] {
        assert!(refusal.message.contains(words), "{refusal}");
    }
    let unknown = PortSet {
        mirrors: Some(
            serde_json::from_value(json!([
                { "direction": "both", "to": { "port": PortId::new() } }
            ]))
            .unwrap(),
        ),
        ..set(id)
    };
    cloud
        .refused(unknown, RefusalCode::NotFound, "to mirror to")
        .await;
}

/// What a host is told of a port.
fn of_port(network: &NetworkSpec, id: PortId) -> Option<&NetworkPort> {
    network.ports.iter().find(|port| port.id == id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_mirrors_of_a_port_reach_its_host() {
    let (cloud, mut host, web) = running().await;
    let first = web.ports[0].id;
    let limit = |max_kbps, max_burst_kbps| BandwidthLimit {
        max_kbps,
        max_burst_kbps,
    };
    let wanted = |id, qos: PortQos, mirrors: Vec<PortMirror>| {
        move |network: &NetworkSpec| {
            of_port(network, id).is_some_and(|port| (port.qos, &port.mirrors) == (qos, &mirrors))
        }
    };

    // As it is made.
    let made = cloud
        .ok(port(
            "blue",
            json!({
                "qos": { "egress": { "max_kbps": 8000, "max_burst_kbps": 500 } },
                "mirrors": [{ "direction": "egress", "to": { "interface": "eth9" } }],
            }),
        ))
        .await;
    cloud.ok(attach(&web, made.id)).await;
    let qos = PortQos {
        egress: Some(limit(8000, 500)),
        ingress: None,
    };
    let mirrors = vec![PortMirror {
        direction: MirrorDirection::Egress,
        to: MirrorTarget::Interface("eth9".parse().unwrap()),
    }];
    assert_eq!((made.qos, &made.mirrors), (qos, &mirrors));
    let plugged = |instance: &InstanceSpec| instance.ports.len() == 2;
    let (_, spec) = until(&mut host, plugged, wanted(made.id, qos, mirrors)).await;
    let other = of_port(&spec, first).unwrap();
    assert_eq!((other.qos, &other.mirrors), (PortQos::default(), &vec![]));

    // As it is changed while the guest runs; what is not named stays.
    let change: PortSet = serde_json::from_value(json!({
        "port": made.id,
        "qos_ingress": { "max_kbps": 2000 },
        "mirrors": [{ "direction": "both", "to": { "port": first } }],
    }))
    .unwrap();
    cloud.ok(change).await;
    let qos = PortQos {
        ingress: Some(limit(2000, 0)),
        ..qos
    };
    let mirrors = vec![PortMirror {
        direction: MirrorDirection::Both,
        to: MirrorTarget::Port(first),
    }];
    network_until(&mut host, wanted(made.id, qos, mirrors)).await;

    let nothing: PortSet = serde_json::from_value(json!({
        "port": made.id, "qos_egress": null, "qos_ingress": null, "mirrors": [],
    }))
    .unwrap();
    cloud.ok(nothing).await;
    network_until(&mut host, wanted(made.id, PortQos::default(), vec![])).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_not_secured_where_nothing_can_be_filtered() {
    let cloud = Cloud::start().await;
    let mut host = Host::join_with(&cloud, "hv1", unable).await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let open = json!([{ "network": "blue", "port_security_enabled": false }]);
    let web = cloud.ok(instance("web", 512, open)).await;
    until(&mut host, |_| true, |_| true).await;
    cloud
        .wait_for_instance(web.id, "active", |view| view.vm_state == VmState::Active)
        .await;

    let secured = cloud.ok(port("blue", json!({ "name": "uplink" }))).await;
    let new = InstanceAttachInterface {
        port: None,
        new_port: serde_json::from_value(json!({ "id": PortId::new(), "network": "blue" }))
            .unwrap(),
        ..attach(&web, secured.id)
    };
    let why = format!("host hv1 cannot build network blue: {NO_FILTER}");
    for wish in [attach(&web, secured.id), new] {
        cloud.refused(wish, RefusalCode::Conflict, &why).await;
    }
    let security = |id, enabled| PortSet {
        port_security_enabled: Some(enabled),
        ..set(id)
    };
    cloud.ok(security(secured.id, false)).await;
    cloud.ok(attach(&web, secured.id)).await;
    let why = format!("host hv1 cannot filter what port uplink sends and receives: {NO_FILTER}");
    cloud
        .refused(security(secured.id, true), RefusalCode::Conflict, &why)
        .await;

    able(1)(&mut host);
    host.tell(&cloud).await;
    cloud.ok(security(secured.id, true)).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_has_eight_ports_at_most_and_is_not_suspended_while_they_change() {
    let (cloud, _host, web) = running().await;
    for _ in 1..8 {
        let made = cloud.ok(port("blue", json!({}))).await;
        cloud.ok(attach(&web, made.id)).await;
    }
    let ninth = cloud.ok(port("blue", json!({}))).await;
    let conflict = RefusalCode::Conflict;
    cloud
        .refused(attach(&web, ninth.id), conflict, "has 8 ports")
        .await;
    let suspend = InstanceSuspend {
        instance: "web".to_owned(),
        project: Default::default(),
    };
    cloud
        .refused(suspend, conflict, "is being plugged into")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_id_of_a_new_port_is_of_one_port() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let mut made = Vec::new();
    for name in ["web", "db"] {
        let vm = instance(name, 512, json!([{ "network": "blue" }]));
        cloud.ok(vm.clone()).await;
        host.converge_instance(PowerState::Running).await;
        made.push(
            cloud
                .wait_for_instance(vm.id, "active", |view| view.vm_state == VmState::Active)
                .await,
        );
    }
    let new: PortId = PortId::new();
    let attach = |instance: &InstanceView| -> InstanceAttachInterface {
        serde_json::from_value(json!({
            "instance": instance.id, "new_port": { "id": new, "network": "blue" },
        }))
        .unwrap()
    };
    let view = cloud.ok(attach(&made[0])).await;
    assert_eq!(cloud.ok(attach(&made[0])).await.generation, view.generation);
    let conflict = RefusalCode::Conflict;
    cloud
        .refused(
            attach(&made[1]),
            conflict,
            "is of instance web; unplug it there first",
        )
        .await;
    cloud.ok(detach(&made[0], new)).await;
    for instance in &made {
        cloud
            .refused(
                attach(instance),
                conflict,
                "is being unplugged from instance web",
            )
            .await;
    }
    assert_sound(&cloud).await;
}
