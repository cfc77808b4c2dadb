//! The document of a router on one host.

use berth_common::{
    document::{GatewayAddress, RouterFloatingIp, RouterGateway, RouterInterface, RouterSpec},
    ids::{HostId, NetworkId, RouterId},
    names::MacAddress,
};
use berth_store::{
    host_rows::{HostRouter, HostRows},
    networks::NetworkRow,
    subnets::SubnetRow,
};

/// What a host needs of a router, whose networks are all among the host's.
pub(super) fn router_spec(host: HostId, of_host: &HostRouter, rows: &HostRows) -> RouterSpec {
    let router = &of_host.router;
    let mut interfaces: Vec<RouterInterface> = of_host
        .interfaces
        .iter()
        .filter_map(|leg| {
            let network = network(rows, leg.network_id)?;
            let subnet = subnets_of(network).find(|subnet| subnet.id == leg.subnet_id)?;
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
        addresses: subnets_of(network)
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

/// The Ethernet address of a router's leg outside, on one host.
fn gateway_mac(router: RouterId, host: HostId) -> MacAddress {
    let both = [router.as_uuid().into_bytes(), host.as_uuid().into_bytes()];
    MacAddress::derived(&both.concat())
}

fn network(rows: &HostRows, id: NetworkId) -> Option<&NetworkRow> {
    rows.networks.iter().find(|network| network.id == id)
}

fn subnets_of(network: &NetworkRow) -> impl Iterator<Item = &SubnetRow> {
    network.subnets.iter()
}
