//! VLANs on a kernel that has 802.1Q: two hosts on one trunk, real packets, the tags counted on the wire.
//!
//! Not among what `cargo test` runs by itself: it needs a kernel that the machine may not have, and fails where that is
//! missing. `scripts/stock-kernel.sh` boots one. As root. Each test is in namespaces of its own, so that what one of them leaves is not
//! in the way of the next.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test, a panic is a failed assertion"
)]

use berth_agent::{
    act::net::features::Features,
    decide::{
        names,
        network::{NetThen, uplink::Feature},
    },
};
use berth_common::{
    document::{NetworkPort, NetworkSpec, NetworkType, PortQos},
    ids::{InstanceId, NetworkId, PortId},
};
use serde_json::Value;

use self::{
    fabric::{Capture, HostOnWire, TRUNK, bare, break_off_everywhere, cut_wires, inside, wires},
    isolation::{ip, run, try_run},
};

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "net/fabric.rs"]
mod fabric;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod isolation;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "net/routed.rs"]
mod routed;

/// How long one test may take, in seconds.
const TEST_LIMIT: u32 = 300;

fn isolated(test: &str, body: fn()) {
    isolation::isolated(test, TEST_LIMIT, async || body());
}

fn vlan(id: u32) -> NetworkSpec {
    bare(NetworkType::Vlan, Some(id))
}

/// Counts the pings that pass the trunk, by tag.
struct Tags;

impl Tags {
    fn count() -> Self {
        let rules = "add table bridge seen; add chain bridge seen through { type filter hook forward priority 0; }; \
                     add rule bridge seen through vlan id 10 ip protocol icmp counter comment \"10\"; \
                     add rule bridge seen through vlan id 20 ip protocol icmp counter comment \"20\"; \
                     add rule bridge seen through ether type ip ip protocol icmp counter comment \"none\"";
        run("nft", &[rules]);
        Self
    }

    /// How many had this tag so far.
    fn of(&self, tag: &str) -> u64 {
        let listed = run("nft", &["-j", "list", "chain", "bridge", "seen", "through"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let objects = listed["nftables"].as_array().unwrap();
        let rule = objects
            .iter()
            .find(|object| object["rule"]["comment"] == tag)
            .unwrap();
        let expressions = rule["rule"]["expr"].as_array().unwrap();
        expressions
            .iter()
            .find_map(|expression| expression["counter"]["packets"].as_u64())
            .unwrap()
    }
}

impl Drop for Tags {
    fn drop(&mut self) {
        try_run("nft", &["delete", "table", "bridge", "seen"]);
    }
}

fn mac(n: u8) -> String {
    format!("52:54:00:00:00:{n:02x}")
}

#[test]
fn the_kernel_has_what_networks_need() {
    let features = Features::of_this_kernel();
    for feature in [
        Feature::Vlan,
        Feature::Vxlan,
        Feature::Nat,
        Feature::StatefulFilter,
    ] {
        assert!(
            features.has(feature),
            "{feature:?}: run me with scripts/stock-kernel.sh: {:?}",
            features.lacks()
        );
    }
}

#[test]
fn vlans_reach_across_hosts_and_never_one_another() {
    isolated("vlans_reach_across_hosts_and_never_one_another", || {
        wires();
        let hosts = [1, 2].map(HostOnWire::new);
        let [red, blue, green] = [NetworkId::new(), NetworkId::new(), NetworkId::new()];
        let flat = bare(NetworkType::Flat, None);
        ip("-n host1 link set eth1 down");
        for host in &hosts {
            for (network, spec) in [(red, &vlan(10)), (blue, &vlan(20)), (green, &flat)] {
                assert_eq!(host.converge(network, Some(spec)), NetThen::Converged);
            }
        }
        // Three tenants with the same addresses, of Ethernet too, on one NIC of each host.
        let plug = |host: u8, network, name: &str, n: u8| {
            let address = format!("10.0.0.{n}/24");
            hosts[usize::from(host) - 1].guest(network, name, &mac(n), &address)
        };
        let near = [(red, "red"), (blue, "blue"), (green, "green")]
            .map(|(network, name)| plug(1, network, &format!("{name}1"), 1));
        let far = [(red, "red"), (blue, "blue"), (green, "green")]
            .map(|(network, name)| plug(2, network, &format!("{name}2"), 2));
        let alone = plug(2, blue, "blue3", 3);
        let tags = Tags::count();

        assert!(near[0].ping("10.0.0.2"));
        let red_packets = tags.of("10");
        assert_eq!((tags.of("20"), tags.of("none")), (0, 0));
        assert!(red_packets > 0);
        assert!(near[1].ping("10.0.0.2"));
        assert!(tags.of("20") > 0 && tags.of("10") == red_packets && tags.of("none") == 0);
        assert!(near[2].ping("10.0.0.2"));
        assert!(tags.of("none") > 0);
        assert!(near[1].ping("10.0.0.3"));
        assert!(near[0].cannot_ping("10.0.0.3"), "it is on blue alone");
        assert!(near[2].cannot_ping("10.0.0.3"), "it is on blue alone");

        // A tag of the guest's own inside of its network's tag leads into no other network.
        ip("-n red1 link add link eth0 name tagged type vlan id 20");
        ip("-n red1 link set tagged up");
        ip("-n red1 address flush dev eth0");
        ip("-n red1 address add 10.0.0.1/24 dev tagged");
        let blue_packets = tags.of("20");
        assert!(near[0].cannot_ping("10.0.0.3"));
        assert_eq!(tags.of("20"), blue_packets);
        ip("-n red1 link del tagged");
        ip("-n red1 address add 10.0.0.1/24 dev eth0");

        let shown = hosts[0].ip_json(&format!("link show dev {}", names::vlan(red)));
        assert_eq!(shown[0]["linkinfo"]["info_data"]["id"], Value::from(10));
        assert_eq!(
            shown[0]["linkinfo"]["info_data"]["protocol"],
            Value::from("802.1Q")
        );
        assert_eq!(shown[0]["link"], Value::from("eth1"));
        assert_eq!(shown[0]["mtu"], Value::from(1450));

        // A VLAN is one network's on a host; another id rebuilds the sub-interface, and only that.
        let then = hosts[0].converge(NetworkId::new(), Some(&vlan(20)));
        assert!(
            matches!(&then, NetThen::Refused(fault) if fault.message.contains("VLAN 20 of eth1")),
            "{then:?}"
        );
        let bridge = |host: &HostOnWire| {
            host.ip_json(&format!("link show dev {}", names::bridge(red)))[0]["ifindex"].clone()
        };
        let before = bridge(&hosts[0]);
        assert_eq!(hosts[0].converge(red, Some(&vlan(30))), NetThen::Converged);
        assert!(near[0].cannot_ping("10.0.0.2"));
        assert_eq!(hosts[1].converge(red, Some(&vlan(30))), NetThen::Converged);
        // It was asked for in vain just now, which is kept for a while.
        ip("-n red1 neigh flush all");
        assert!(near[0].ping("10.0.0.2"));
        assert_eq!(bridge(&hosts[0]), before);

        drop(tags);
        near.into_iter()
            .chain(far)
            .chain([alone])
            .for_each(|guest| guest.unplug());
        for host in hosts {
            for network in [red, blue, green] {
                assert_eq!(host.converge(network, None), NetThen::Gone);
            }
            host.end();
        }
        assert!(ip(&format!("link show master {TRUNK}")).is_empty());
        cut_wires();
    });
}

/// How many frames with tags were dropped of a port.
fn tagged(host: &HostOnWire, port: PortId) -> u64 {
    let set = ["-j", "list", "set", "bridge", "berth", "dropped-tagged"];
    let listed = inside(&host.namespace, || run("nft", &set));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let objects = listed["nftables"].as_array().unwrap().iter();
    let elements = objects.filter_map(|object| object["set"]["elem"].as_array());
    let mut elements = elements.flatten().map(|element| &element["elem"]);
    let element = elements.find(|element| element["val"] == names::tap(port).as_str());
    element.unwrap()["counter"]["packets"].as_u64().unwrap()
}

/// How many frames from an Ethernet address there are.
fn from(frames: &[Vec<u8>], mac: &str) -> usize {
    let hex = |octets: &[u8]| -> Vec<String> {
        octets.iter().map(|octet| format!("{octet:02x}")).collect()
    };
    frames
        .iter()
        .filter(|frame| hex(&frame[6..12]).join(":") == mac)
        .count()
}

#[test]
fn tags_lead_a_guest_without_port_security_into_no_other_network() {
    isolated(
        "tags_lead_a_guest_without_port_security_into_no_other_network",
        || {
            wires();
            let hosts = [1, 2].map(HostOnWire::new);
            let port = |n: u8| NetworkPort {
                id: PortId::new(),
                instance_id: InstanceId::new(),
                mac_address: mac(n).parse().unwrap(),
                hostname: format!("open{n}").parse().unwrap(),
                fixed_ips: Vec::new(),
                security: None,
                qos: PortQos::default(),
                mirrors: Vec::new(),
            };
            let [red, green, blue] = [NetworkId::new(), NetworkId::new(), NetworkId::new()];
            let open = [
                (green, "green", bare(NetworkType::Flat, None), 12_u8),
                (red, "red", vlan(10), 11),
            ];
            // Blue is on the other host alone, so that its tag comes up to this one's NIC, and no further.
            assert_eq!(hosts[1].converge(blue, Some(&vlan(20))), NetThen::Converged);
            let victim = hosts[1].guest(blue, "blue2", &mac(20), "10.0.0.20/24");
            let mut plugged = vec![];
            for (network, name, spec, n) in open {
                assert_eq!(hosts[1].converge(network, Some(&spec)), NetThen::Converged);
                let far = hosts[1].guest(network, &format!("{name}2"), &mac(2), "10.0.0.2/24");
                let port = port(n);
                let spec = NetworkSpec {
                    ports: vec![port.clone()],
                    ..spec
                };
                let then = hosts[0].converge(network, Some(&spec));
                assert!(
                    matches!(then, NetThen::Converged | NetThen::Wait(_)),
                    "{then:?}"
                );
                let tap = names::tap(port.id);
                let bad =
                    hosts[0].guest_at(network, &tap, name, &mac(n), &format!("10.0.0.{n}/24"));
                assert!(bad.ping("10.0.0.2"), "without tags");
                assert_eq!(tagged(&hosts[0], port.id), 0);

                ip(&format!(
                    "-n {name} link add link eth0 name tagged type vlan id 20"
                ));
                ip(&format!("-n {name} link set tagged up"));
                ip(&format!("-n {name} address flush dev eth0"));
                ip(&format!("-n {name} address add 10.0.0.{n}/24 dev tagged"));
                let heard = inside("blue2", Capture::start);
                assert!(bad.cannot_ping("10.0.0.20"), "{name}");
                assert_eq!(from(&heard.frames(), &mac(n)), 0, "{name}");
                assert!(tagged(&hosts[0], port.id) > 0, "{name}");
                // The other way round: nobody has this address, so everybody is asked.
                let heard = inside(name, Capture::start);
                assert!(victim.cannot_ping("10.0.0.99"));
                assert_eq!(from(&heard.frames(), &mac(20)), 0, "{name}");
                plugged.extend([far, bad]);
            }
            plugged.push(victim);
            plugged.into_iter().for_each(|guest| guest.unplug());
            for host in hosts {
                for network in [red, green, blue] {
                    assert_eq!(host.converge(network, None), NetThen::Gone);
                }
                host.end();
            }
            cut_wires();
        },
    );
}

#[test]
fn ports_on_different_hosts_reach_each_other_over_vlans() {
    isolated(
        "ports_on_different_hosts_reach_each_other_over_vlans",
        || {
            routed::ports_on_different_hosts_reach_each_other(routed::Kind::Vlan);
        },
    );
}

#[test]
fn a_broken_off_vlan_is_finished_or_removed() {
    isolated("a_broken_off_vlan_is_finished_or_removed", || {
        wires();
        let mut host = HostOnWire::new(1);
        break_off_everywhere(&mut host, NetworkId::new(), &vlan(10));
        let spec = NetworkSpec {
            mtu: 9000,
            ..vlan(10)
        };
        let then = host.converge(NetworkId::new(), Some(&spec));
        assert!(
            matches!(&then, NetThen::Refused(fault) if fault.message.contains("9000") && fault.message.contains("1500")),
            "{then:?}"
        );
        host.end();
        cut_wires();
    });
}
