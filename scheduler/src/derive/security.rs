//! What the ports of a network on a host may send and receive: their groups, and whom the rules of these mean by a group.
//!
//! Of a network that reaches beyond the host, the members of a group are all ports that have it, wherever they are. Of one that
//! does not, only the host's own ports can be meant: others never send anything there, and so a host hears nothing of them.
//!
//! Those in networks that a router joins to it are meant as well, with their addresses in the subnets that the router is in. Where
//! one of the two ends at the host, again only the host's own: what others send finds no way back.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{PortSecurity, SecurityGroupSpec},
    ids::SecurityGroupId,
    names::{Cidr, IpPrefix},
};
use berth_store::{host_rows::HostRows, networks::NetworkRow, ports::PortRow};

/// What is held against a port; none without port security.
pub(super) fn of_port(port: &PortRow) -> Option<PortSecurity> {
    port.wishes.port_security_enabled.then(|| PortSecurity {
        allowed_address_pairs: port.wishes.allowed_address_pairs.clone(),
        security_groups: port.groups_in_force().collect(),
    })
}

/// The host's own ports in a network.
fn ports<'a>(network: &NetworkRow, rows: &'a HostRows) -> impl Iterator<Item = &'a PortRow> {
    let id = network.id;
    rows.instances
        .iter()
        .flat_map(|(_, ports)| ports)
        .filter(move |port| port.network_id == id)
}

fn groups_in(network: &NetworkRow, rows: &HostRows) -> BTreeSet<SecurityGroupId> {
    ports(network, rows)
        .flat_map(PortRow::groups_in_force)
        .collect()
}

/// The groups of a network's ports on the host, by id, each with its rules by id.
pub(super) fn groups(network: &NetworkRow, rows: &HostRows) -> Vec<SecurityGroupSpec> {
    groups_in(network, rows)
        .into_iter()
        .map(|id| {
            let mut rules = rows.security.groups.get(&id).cloned().unwrap_or_default();
            rules.sort();
            SecurityGroupSpec { id, rules }
        })
        .collect()
}

/// The addresses of those whom the rules of these groups mean by a group, in the network and in those that a router joins to it.
pub(super) fn members(
    network: &NetworkRow,
    rows: &HostRows,
) -> BTreeMap<SecurityGroupId, Vec<IpPrefix>> {
    let named: BTreeSet<SecurityGroupId> = groups_in(network, rows)
        .into_iter()
        .flat_map(|group| rows.security.named_by(group))
        .collect();
    let joined: Vec<(&NetworkRow, Vec<Cidr>)> = rows
        .joined_to(network.id)
        .into_iter()
        .filter_map(|(id, cidrs)| {
            let other = rows.networks.iter().find(|other| other.id == id)?;
            Some((other, cidrs))
        })
        .collect();
    named
        .into_iter()
        .map(|group| {
            let mut addresses = meant(network, network, group, rows);
            for (other, cidrs) in &joined {
                let leads_there = |address: &IpPrefix| {
                    let net = address.net();
                    cidrs.iter().any(|cidr| cidr.net().contains(&net))
                };
                let there = meant(network, other, group, rows).into_iter();
                addresses.extend(there.filter(leads_there));
            }
            (group, addresses.into_iter().collect())
        })
        .collect()
}

/// The addresses of those in the second network whom a rule in the first one means by a group.
fn meant(
    network: &NetworkRow,
    from: &NetworkRow,
    group: SecurityGroupId,
    rows: &HostRows,
) -> BTreeSet<IpPrefix> {
    let span_hosts = [network, from].map(|of| of.network_type.spans_hosts());
    if span_hosts == [true, true] {
        let known = rows.security.members.get(&(from.id, group));
        return known.cloned().unwrap_or_default();
    }
    ports(from, rows)
        .filter(|port| port.groups_in_force().any(|of| of == group))
        .flat_map(addresses)
        .collect()
}

/// The addresses that a port may use: its own, and its pairs.
fn addresses(port: &PortRow) -> impl Iterator<Item = IpPrefix> {
    let own = port.fixed_ips.iter().map(|fixed| fixed.ip_address.into());
    let pairs = port.wishes.allowed_address_pairs.iter();
    own.chain(pairs.map(|pair| pair.ip_address))
}

#[cfg(test)]
mod tests {
    use berth_common::{
        document::{
            DesiredPower, EtherType, FixedIp, Flavor, NetworkType, OnCrash, RuleDirection,
            RuleRemote, SecurityGroupRule,
        },
        ids::{InstanceId, NetworkId, PortId, SecurityGroupRuleId, SubnetId},
        message::view::RootVolume,
        names::MacAddress,
        units::{DiskGb, MemoryMb, Vcpus},
    };
    use berth_store::{
        instances::{BootSource, InstanceObserved, InstanceRow},
        ports::{AttachmentState, PortAttachment, PortWishes},
        subnets::SubnetRow,
    };
    use chrono::DateTime;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn id(number: usize) -> Uuid {
        Uuid::from_u128(u128::try_from(number).unwrap() + 1)
    }

    fn group(number: usize) -> SecurityGroupId {
        SecurityGroupId::try_from(id(number)).unwrap()
    }

    fn network(network_type: NetworkType) -> NetworkRow {
        let id = NetworkId::new();
        NetworkRow {
            id,
            project: Default::default(),
            name: "blue".parse().unwrap(),
            network_type,
            mtu: 1500,
            created_at: DateTime::UNIX_EPOCH,
            deleted_at: None,
            fingerprint: String::new(),
            physical_network: None,
            segmentation_id: None,
            external: false,
            subnets: vec![SubnetRow {
                id: SubnetId::new(),
                network_id: id,
                name: None,
                cidr: "10.0.0.0/24".parse().unwrap(),
                gateway_ip: None,
                dhcp_ip: Some([10, 0, 0, 2].into()),
                allocation_pools: vec![],
                dns_nameservers: vec![],
                host_routes: vec![],
                ipv6_address_mode: None,
                fingerprint: String::new(),
                created_at: DateTime::UNIX_EPOCH,
                deleted_at: None,
            }],
        }
    }

    fn instance() -> InstanceRow {
        InstanceRow {
            id: InstanceId::new(),
            project: Default::default(),
            name: "web".parse().unwrap(),
            flavor: Flavor {
                vcpus: Vcpus::clamped(1),
                memory_mb: MemoryMb::clamped(64),
                disk_gb: DiskGb::clamped(1),
            },
            boot_source: BootSource::Volume(RootVolume {
                id: berth_common::ids::VolumeId::new(),
                delete_on_termination: false,
            }),
            stop_timeout_seconds: 60,
            fingerprint: String::new(),
            desired_power: DesiredPower::Running,
            desired_reboot: None,
            desired_deleted: false,
            placement_fault: None,
            observed: InstanceObserved::default(),
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            deleted_at: None,
            hints: Default::default(),
            server_group_id: None,
            attempt: 1,
            failed_hosts: vec![],
            config_drive: None,
            guest_data: None,
            desired_rescue: None,
            desired_incarnation: None,
            metadata: Default::default(),
            on_crash: OnCrash::default(),
        }
    }

    /// The groups of a port, and whether it has port security.
    type Port = (BTreeSet<usize>, bool);

    fn port(network: &NetworkRow, number: usize, (groups, enabled): &Port) -> PortRow {
        let last = u8::try_from(number).unwrap() + 10;
        PortRow {
            id: PortId::try_from(id(number)).unwrap(),
            project: Default::default(),
            name: None,
            network_id: network.id,
            attachment: Some(PortAttachment {
                instance_id: InstanceId::new(),
                position: last,
                state: AttachmentState::Attached,
            }),
            delete_with_instance: true,
            mac_address: MacAddress::from_octets([0x52, 0x54, 0, 0, 0, last]).unwrap(),
            fixed_ips: vec![FixedIp {
                subnet_id: network.subnets[0].id,
                ip_address: [10, 0, 0, last].into(),
            }],
            wishes: PortWishes {
                port_security_enabled: *enabled,
                security_groups: groups.iter().map(|of| group(*of)).collect(),
                ..PortWishes::default()
            },
            fingerprint: String::new(),
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    fn rule(number: usize, remote: usize) -> SecurityGroupRule {
        SecurityGroupRule {
            id: SecurityGroupRuleId::try_from(id(number)).unwrap(),
            direction: RuleDirection::Ingress,
            ethertype: EtherType::IPv4,
            protocol: None,
            remote: Some(RuleRemote::Group(group(remote))),
        }
    }

    proptest! {
        /// Whoever a rule of a port names by a group is in the document, nobody else is, and the order of rows means nothing.
        #[test]
        fn the_members_of_a_group_are_those_whom_rules_name(
            ports in prop::collection::vec((prop::collection::btree_set(0..4_usize, 0..3), any::<bool>()), 0..12),
            rules in prop::collection::vec((0..4_usize, 0..4_usize), 0..8),
        ) {
            let network = network(NetworkType::Local);
            let mut rows = HostRows {
                instances: vec![(
                    instance(),
                    ports.iter().enumerate().map(|(at, of)| port(&network, at, of)).collect(),
                )],
                networks: vec![network.clone()],
                ..HostRows::default()
            };
            let in_force: BTreeSet<usize> =
                ports.iter().filter(|(_, on)| *on).flat_map(|(groups, _)| groups).copied().collect();
            for of in &in_force {
                let of_group = rules.iter().enumerate().filter(|(_, (group, _))| group == of);
                let of_group = of_group.map(|(at, (_, remote))| rule(at, *remote)).collect();
                rows.security.groups.insert(group(*of), of_group);
            }
            let mut expected: BTreeMap<SecurityGroupId, Vec<IpPrefix>> = BTreeMap::new();
            for (from, remote) in &rules {
                if in_force.contains(from) {
                    let addresses = ports.iter().enumerate();
                    let addresses = addresses.filter(|(_, (groups, on))| *on && groups.contains(remote));
                    let addresses = addresses.map(|(at, _)| {
                        let last = u8::try_from(at).unwrap() + 10;
                        format!("10.0.0.{last}/32").parse().unwrap()
                    });
                    expected.insert(group(*remote), addresses.collect());
                }
            }
            prop_assert_eq!(members(&network, &rows), expected);
            let (before, of_groups) = (members(&network, &rows), groups(&network, &rows));
            prop_assert_eq!(of_groups.len(), in_force.len());
            rows.instances[0].1.reverse();
            rows.security.groups.values_mut().for_each(|rules| rules.reverse());
            prop_assert_eq!(members(&network, &rows), before);
            prop_assert_eq!(groups(&network, &rows), of_groups);
        }
    }

    #[test]
    fn a_port_without_port_security_is_held_to_nothing() {
        let network = network(NetworkType::Vlan);
        let of = |on| of_port(&port(&network, 0, &(BTreeSet::from([1]), on)));
        assert_eq!(of(false), None);
        assert_eq!(of(true).unwrap().security_groups, [group(1)]);
    }
}
