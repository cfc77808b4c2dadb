//! The document of a router on one host.

use berth_common::{
    document::{GatewayAddress, RouterFloatingIp, RouterGateway, RouterInterface, RouterSpec},
    ids::{HostId, NetworkId, RouterId},
    names::MacAddress,
};
use berth_store::{
    host_rows::{HostRouter, HostRows},
    networks::NetworkRow,
};

/// What a host needs of a router, whose networks are all among the host's.
pub(super) fn router_spec(host: HostId, of_host: &HostRouter, rows: &HostRows) -> RouterSpec {
    let router = &of_host.router;
    let mut interfaces: Vec<RouterInterface> = of_host
        .interfaces
        .iter()
        .filter_map(|leg| {
            let network = network(rows, leg.network_id)?;
            let subnet = network
                .subnets
                .iter()
                .find(|subnet| subnet.id == leg.subnet_id)?;
            Some(RouterInterface {
                network_id: leg.network_id,
                subnet_id: leg.subnet_id,
                cidr: subnet.cidr,
                ip_address: leg.ip_address,
                mac_address: leg.mac_address,
                mtu: network.mtu,
                ipv6_address_mode: subnet.ipv6_address_mode,
            })
        })
        .collect();
    interfaces.sort_by_key(|interface| (interface.network_id, interface.subnet_id));
    let external = router.external_network_id.and_then(|id| network(rows, id));
    let external_gateway = external.map(|network| RouterGateway {
        network_id: network.id,
        mac_address: gateway_mac(router.id, host),
        addresses: network
            .subnets
            .iter()
            .map(|subnet| GatewayAddress {
                cidr: subnet.cidr,
                ip_address: of_host
                    .gateways
                    .iter()
                    .find(|gateway| gateway.subnet_id == subnet.id)
                    .map(|gateway| gateway.ip_address),
                gateway_ip: subnet.gateway_ip,
            })
            .collect(),
        enable_snat: router.enable_snat,
        mtu: network.mtu,
    });
    let mut floating_ips: Vec<RouterFloatingIp> = of_host
        .floating_ips
        .iter()
        .filter(|floating| Some(floating.network_id) == external.map(|network| network.id))
        .filter_map(|floating| {
            let association = floating.association?;
            Some(RouterFloatingIp {
                id: floating.id,
                floating_ip_address: floating.ip_address,
                fixed_ip_address: association.fixed_ip_address,
                port_id: association.port_id,
            })
        })
        .collect();
    floating_ips.sort_by_key(|floating| floating.id);
    RouterSpec {
        name: router.name.clone(),
        project: router.project.clone(),
        interfaces,
        external_gateway,
        floating_ips,
        routes: router.routes.clone(),
    }
}

/// The Ethernet address of a router's leg outside, on one host. It follows from nothing else and is stored nowhere, so it has enough bits
/// for the legs of all routers and hosts in one external network, and is in none of the ranges of ports.
fn gateway_mac(router: RouterId, host: HostId) -> MacAddress {
    let both = [router.as_uuid().into_bytes(), host.as_uuid().into_bytes()];
    MacAddress::of_own_link(&both.concat())
}

fn network(rows: &HostRows, id: NetworkId) -> Option<&NetworkRow> {
    rows.networks.iter().find(|network| network.id == id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_legs_of_all_routers_and_hosts_outside_have_addresses_of_their_own() {
        let [routers, hosts] = [100, 200];
        let routers: Vec<RouterId> = (0..routers).map(|_| RouterId::new()).collect();
        let hosts: Vec<HostId> = (0..hosts).map(|_| HostId::new()).collect();
        let of_router = |router: &RouterId| {
            let macs = hosts.iter().map(|host| gateway_mac(*router, *host));
            macs.collect::<Vec<_>>()
        };
        let all: Vec<MacAddress> = routers.iter().flat_map(of_router).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        // Locally administered, of one receiver, and not of a port.
        for mac in all {
            let octets = mac.octets();
            assert_eq!(octets[0] & 0x03, 0x02, "{mac}");
            assert_ne!(octets[..3], MacAddress::derived(b"a port").octets()[..3]);
        }
        let [router, host] =
            [0x11, 0x12].map(|n| format!("0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a{n:02x}"));
        assert_eq!(
            gateway_mac(router.parse().unwrap(), host.parse().unwrap()).to_string(),
            "02:de:bc:14:3f:d4",
            "another one would interrupt who is connected"
        );
    }
}
