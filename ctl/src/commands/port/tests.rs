//! What commands on ports ask for, in which order, and what they make of the answers.

use berth_common::{
    document::{BandwidthLimit, MirrorDirection},
    message::{counters::PortCounted, port::PortStatus},
    refusal::RefusalCode,
};

use super::*;
use crate::{
    cli::{Command, Instance},
    commands::instance::tests::patient,
    testing::{self, Play, instance as web, port as uplink},
};

fn in_state(status: PortStatus) -> PortView {
    PortView { status, ..uplink() }
}

fn with_port(status: PortStatus) -> InstanceView {
    InstanceView {
        ports: vec![in_state(status)],
        ..web()
    }
}

#[test]
fn a_command_line_says_all_of_a_port() {
    let Command::Port(Port::Create(arguments)) = testing::parsed(
        "port create uplink --network net0 --security-group web --allowed-address 10.0.0.9,52:54:00:00:01:01 \
         --egress-limit 1000,100 --mirror both,link,eth1 --disable",
    )
    .command
    else {
        panic!("another command")
    };
    let request = create_request(arguments, ProjectName::default());
    assert_eq!(request.security_groups, Some(vec!["web".to_owned()]));
    assert!(request.port_security_enabled && !request.admin_state_up);
    assert_eq!(
        request.qos.egress,
        Some(BandwidthLimit {
            max_kbps: 1000,
            max_burst_kbps: 100
        })
    );
    assert_eq!(request.mirrors[0].direction, MirrorDirection::Both);
    assert_eq!(request.allowed_address_pairs.len(), 1);
    let Command::Port(Port::Set(arguments)) = testing::parsed(
        "port set uplink --no-port-security --no-mirror --ingress-limit none --name none",
    )
    .command
    else {
        panic!("another command")
    };
    let request = set_request(arguments, &uplink());
    assert_eq!(request.port_security_enabled, Some(false));
    assert_eq!(request.mirrors, Some(vec![]));
    assert_eq!(request.allowed_address_pairs, None);
    assert_eq!(
        (request.qos_ingress, request.qos_egress),
        (Change::Clear, Change::Keep)
    );
    assert_eq!(request.name, Change::Clear);
}

#[tokio::test(start_paused = true)]
async fn a_port_is_plugged_in_and_waited_for_by_ids() {
    let context = testing::context(
        None,
        [
            Play::view(&web()),
            Play::view(&in_state(PortStatus::Down)),
            Play::view(&with_port(PortStatus::Attaching)),
            Play::view(&in_state(PortStatus::Attaching)),
            Play::view(&in_state(PortStatus::Active)),
        ],
    );
    let names = ("web-1".to_owned(), "uplink".to_owned());
    let view = add(
        &mut Asking::with(&context, patient()),
        names,
        ProjectName::default(),
    )
    .await;
    assert_eq!(view.unwrap().status, PortStatus::Active);
    let asked = context.caller.asked.borrow();
    assert_eq!(asked[2], format!("instance.attach_interface {}", web().id));
    assert_eq!(asked.len(), 5);
}

#[tokio::test]
async fn counters_are_asked_for_by_id_and_a_refusal_is_told() {
    let counted = PortCounted {
        port_id: uplink().id,
        instance_id: web().id,
        host: "hv1".parse().unwrap(),
        tap: "btt0123456789ab".to_owned(),
        received: Default::default(),
        sent: Default::default(),
        filter_dropped_packets: Default::default(),
        forged_metadata_requests: None,
    };
    let script = [
        Play::view(&uplink()),
        Play::view(&counted),
        Play::view(&uplink()),
        Play::Refuse(RefusalCode::Conflict),
    ];
    let context = testing::context(None, script);
    let command = || match testing::parsed("port counters uplink").command {
        Command::Port(command) => command,
        other => panic!("{other:?}"),
    };
    run(&context, command()).await.unwrap();
    let asked = context.caller.asked.borrow().clone();
    let by_id = format!("port.counters {}", uplink().id);
    assert_eq!(asked, ["port.show uplink".to_owned(), by_id]);
    let error = run(&context, command()).await.unwrap_err();
    assert!(matches!(error, CtlError::Refused(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_port_that_went_with_its_unplugging_is_unplugged() {
    let context = testing::context(
        None,
        [
            Play::view(&web()),
            Play::view(&uplink()),
            Play::view(&with_port(PortStatus::Detaching)),
            Play::Refuse(RefusalCode::NotFound),
        ],
    );
    let names = ("web-1".to_owned(), "uplink".to_owned());
    let view = remove(
        &mut Asking::with(&context, patient()),
        names,
        ProjectName::default(),
    )
    .await;
    assert_eq!(view.unwrap().status, PortStatus::Down);
}

#[tokio::test]
async fn a_network_is_added_with_a_port_of_an_id_that_can_be_repeated() {
    let Command::Instance(Instance::AddNetwork(arguments)) = testing::parsed(&format!(
        "instance add-network web-1 net0 --no-port-security --id {}",
        uplink().id
    ))
    .command
    else {
        panic!("another command")
    };
    let context = testing::context(None, [Play::view(&web()), Play::Silence]);
    let mut asking = Asking::with(&context, None);
    let error = add_network(&mut asking, arguments, ProjectName::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("--id {}", uplink().id)), "{error}");
}
