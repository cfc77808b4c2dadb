//! Creating, changing and deleting subnets.

use std::net::IpAddr;

use berth_common::{
    document::{Ipv6AddressMode, Route},
    ids::{NetworkId, SubnetId},
    message::{
        network::{
            AllocationPool, SubnetCreate, SubnetDelete, SubnetList, SubnetListReply, SubnetSet,
        },
        request::Change,
        view::SubnetView,
    },
    names::{Cidr, ProjectName, SubnetName},
};
use berth_store::{
    Executor, StoreError, UniqueWhat, networks as network_rows,
    networks::NetworkRow,
    ports,
    subnets::{self, SubnetRow},
};

use super::{
    ClaimError, conflict, fingerprint, invalid, nat, networks, not_found,
    routers::{routes, uses},
};
use crate::{context::Writing, report::view};

/// What a DHCP reply can carry without being cut.
const MAX_NAMESERVERS: usize = 3;
/// As many as Neutron allows (`max_subnet_host_routes`).
const MAX_HOST_ROUTES: usize = 20;
/// The most allocation pools; a subnet in more pieces is several subnets.
const MAX_POOLS: usize = 32;
/// What IPv6 demands of every link (RFC 8200, 5).
pub const MIN_MTU_IPV6: u16 = 1280;

/// What a subnet shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish<'a> {
    /// Its addresses.
    pub cidr: Cidr,
    /// The router's address.
    pub gateway_ip: Option<IpAddr>,
    /// The addresses that ports get.
    pub allocation_pools: &'a [AllocationPool],
    /// Name servers.
    pub dns_nameservers: &'a [IpAddr],
    /// Further routes.
    pub host_routes: &'a [Route],
    /// How guests get their IPv6 address.
    pub ipv6_address_mode: Option<Ipv6AddressMode>,
}

impl Wish<'_> {
    /// Everything that can be said of it without looking at any row.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if let Some(gateway) = self.gateway_ip
            && !self.cidr.is_host_address(gateway)
        {
            mistakes.push(format!(
                "gateway_ip {gateway} is not an address for a machine in {}",
                self.cidr
            ));
        }
        self.pool_mistakes(&mut mistakes);
        self.nameserver_mistakes(&mut mistakes);
        self.route_mistakes(&mut mistakes);
        let mode = self.ipv6_address_mode;
        mistakes.extend(mode.and_then(|mode| mode.mistake(self.cidr)));
        mistakes
    }

    fn pool_mistakes(&self, mistakes: &mut Vec<String>) {
        let pools = self.allocation_pools;
        if pools.len() > MAX_POOLS {
            mistakes.push(format!(
                "allocation_pools must be at most {MAX_POOLS}; got {}",
                pools.len()
            ));
        }
        for (place, AllocationPool { start, end }) in pools.iter().enumerate() {
            for address in [start, end] {
                if !self.cidr.is_host_address(*address) {
                    mistakes.push(format!(
                        "{address} in allocation_pools is not an address for a machine in {}",
                        self.cidr
                    ));
                }
            }
            if start > end {
                mistakes.push(format!(
                    "the allocation pool {start} to {end} ends before it begins"
                ));
            }
            let meets = |other: &&AllocationPool| *start <= other.end && other.start <= *end;
            if let Some(other) = pools.iter().take(place).find(meets) {
                mistakes.push(format!(
                    "the allocation pools {} to {} and {start} to {end} overlap",
                    other.start, other.end
                ));
            }
        }
    }

    fn nameserver_mistakes(&self, mistakes: &mut Vec<String>) {
        let servers = self.dns_nameservers;
        if servers.len() > MAX_NAMESERVERS {
            mistakes.push(format!(
                "dns_nameservers must be at most {MAX_NAMESERVERS}; got {}",
                servers.len()
            ));
        }
        let unusable = |address: &IpAddr| {
            let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
            address.is_unspecified() || address.is_multicast() || is_broadcast
        };
        if let Some(address) = servers.iter().find(|address| unusable(address)) {
            mistakes.push(format!(
                "{address} in dns_nameservers is no server's address"
            ));
        }
        if let Some(address) = servers.iter().find(|address| !self.is_family_of(**address)) {
            mistakes.push(format!(
                "{address} in dns_nameservers is not of the family of {}: guests ask each by its own",
                self.cidr
            ));
        }
    }

    fn route_mistakes(&self, mistakes: &mut Vec<String>) {
        let routes = self.host_routes;
        if routes.len() > MAX_HOST_ROUTES {
            mistakes.push(format!(
                "host_routes must be at most {MAX_HOST_ROUTES}; got {}",
                routes.len()
            ));
        }
        for (place, route) in routes.iter().enumerate() {
            let Route {
                destination,
                nexthop,
            } = route;
            if destination.is_ipv6() != self.cidr.is_ipv6() || !self.is_family_of(*nexthop) {
                mistakes.push(format!(
                    "the route to {destination} by {nexthop} in host_routes is not of the family of {}",
                    self.cidr
                ));
            }
            if nexthop.is_unspecified() || nexthop.is_multicast() || nexthop.is_loopback() {
                mistakes.push(format!("{nexthop} in host_routes is no router's address"));
            }
            if routes
                .iter()
                .take(place)
                .any(|other| other.destination == *destination)
            {
                mistakes.push(format!("host_routes has two routes to {destination}"));
            }
        }
    }

    const fn is_family_of(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.cidr.is_ipv6()
    }
}

/// The DHCP server's address: the second of the subnet, as people know it from Neutron, or the first when the
/// gateway has the second.
///
/// # Errors
/// A refusal if there is no address left.
pub fn dhcp_address(cidr: Cidr, gateway: Option<IpAddr>) -> Result<IpAddr, ClaimError> {
    let mut hosts = cidr
        .net()
        .hosts()
        .filter(|address| cidr.is_host_address(*address));
    match (hosts.next(), hosts.next()) {
        (Some(first), Some(second)) => Ok(if gateway == Some(second) {
            first
        } else {
            second
        }),
        _ => Err(invalid(format!("{cidr} has no address left for DHCP"))),
    }
}

/// Creates a subnet in a network.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &mut Writing<'_>,
    request: &SubnetCreate,
) -> Result<SubnetView, ClaimError> {
    let wish = Wish {
        cidr: request.cidr,
        gateway_ip: request.gateway_ip,
        allocation_pools: &request.allocation_pools,
        dns_nameservers: &request.dns_nameservers,
        host_routes: &request.host_routes,
        ipv6_address_mode: request.ipv6_address_mode,
    };
    let mut mistakes = wish.mistakes();
    if request.ipv6_address_mode.is_some() && !request.enable_dhcp {
        mistakes.push(
            "ipv6_address_mode needs enable_dhcp: berth's own server tells guests about it"
                .to_owned(),
        );
    }
    if !mistakes.is_empty() {
        return Err(invalid(mistakes.join("; ")));
    }
    let fingerprint = fingerprint(request)?;
    let txn = writing.txn();
    if let Some(existing) = subnets::get(txn, request.id).await? {
        if existing.fingerprint != fingerprint {
            return Err(conflict(format!(
                "subnet {} exists already and was asked for with another content; use a new id for a new subnet",
                existing.id
            )));
        }
        return Ok(view::subnet(&existing));
    }
    let network = networks::resolve(txn, &request.project, &request.network).await?;
    check_room(txn, &network, request).await?;
    uses::refuse_overlap_inside(txn, &network, request.cidr).await?;
    let dhcp_ip = request
        .enable_dhcp
        .then(|| dhcp_address(request.cidr, request.gateway_ip))
        .transpose()?;
    let row = SubnetRow {
        id: request.id,
        network_id: network.id,
        name: request.name.clone(),
        cidr: request.cidr,
        gateway_ip: request.gateway_ip,
        dhcp_ip,
        allocation_pools: request.allocation_pools.clone(),
        dns_nameservers: request.dns_nameservers.clone(),
        host_routes: request.host_routes.clone(),
        ipv6_address_mode: request.ipv6_address_mode,
        fingerprint,
        created_at: writing.now,
        deleted_at: None,
    };
    routes::refuse_clash_outside(txn, &network, &row).await?;
    subnets::insert(txn, &row)
        .await
        .map_err(|error| name_taken(error, &network, request.name.as_ref()))?;
    writing.touch_everywhere(network.id);
    let by_host = row.gateway_ip.map(|_| row.cidr);
    nat::changed(writing, network.id, by_host).await?;
    Ok(view::subnet(&row))
}

/// Whether a network can have one more such subnet.
async fn check_room(
    db: &impl Executor,
    network: &NetworkRow,
    request: &SubnetCreate,
) -> Result<(), ClaimError> {
    let (net, cidr) = (request.cidr.net(), request.cidr);
    let meets = |other: &&SubnetRow| {
        let other = other.cidr.net();
        other.contains(&net) || net.contains(&other)
    };
    if let Some(other) = network.subnets.iter().find(meets) {
        return Err(conflict(format!(
            "{cidr} overlaps with {}, another subnet of network {}; only different networks may have the same addresses",
            other.cidr, network.name
        )));
    }
    if cidr.is_ipv6() && network.mtu < MIN_MTU_IPV6 {
        return Err(conflict(format!(
            "network {} has an MTU of {}; IPv6 needs {MIN_MTU_IPV6}",
            network.name, network.mtu
        )));
    }
    if request.ipv6_address_mode == Some(Ipv6AddressMode::Slaac) {
        let ports = network_rows::port_count(db, network.id).await?;
        if ports > 0 {
            return Err(conflict(format!(
                "network {} has {ports} ports, whose guests would make themselves addresses in {cidr} that nobody gave them; \
                 create a subnet with ipv6_address_mode slaac before there are ports",
                network.name
            )));
        }
    }
    Ok(())
}

fn name_taken(error: StoreError, network: &NetworkRow, name: Option<&SubnetName>) -> ClaimError {
    match (error, name) {
        (
            StoreError::Unique {
                constraint: UniqueWhat::SubnetName,
                ..
            },
            Some(name),
        ) => conflict(format!(
            "network {} already has a subnet named {name}",
            network.name
        )),
        (error, _) => error.into(),
    }
}

/// Changes a subnet.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn set(writing: &mut Writing<'_>, request: &SubnetSet) -> Result<SubnetView, ClaimError> {
    let nothing = SubnetSet {
        subnet: request.subnet.clone(),
        project: request.project.clone(),
        ..SubnetSet::default()
    };
    if *request == nothing {
        return Err(invalid(
            "nothing to change: name one of name, gateway_ip, allocation_pools, dns_nameservers, host_routes",
        ));
    }
    let txn = writing.txn();
    let before = living(txn, &request.project, &request.subnet).await?;
    let network = network_rows::get(txn, before.network_id).await?;
    let network = network.ok_or_else(|| unknown(&request.project, &request.subnet))?;
    let mut row = before.clone();
    row.name = request.name.clone().apply(row.name);
    row.gateway_ip = request.gateway_ip.apply(row.gateway_ip);
    if let Some(pools) = &request.allocation_pools {
        row.allocation_pools.clone_from(pools);
    }
    if let Some(servers) = &request.dns_nameservers {
        row.dns_nameservers.clone_from(servers);
    }
    if let Some(routes) = &request.host_routes {
        row.host_routes.clone_from(routes);
    }
    let wish = Wish {
        cidr: row.cidr,
        gateway_ip: row.gateway_ip,
        allocation_pools: &row.allocation_pools,
        dns_nameservers: &row.dns_nameservers,
        host_routes: &row.host_routes,
        ipv6_address_mode: row.ipv6_address_mode,
    };
    let mistakes = wish.mistakes();
    if !mistakes.is_empty() {
        return Err(invalid(mistakes.join("; ")));
    }
    if let Change::Set(gateway) = request.gateway_ip
        && before.gateway_ip != Some(gateway)
    {
        if row.dhcp_ip == Some(gateway) {
            return Err(conflict(format!(
                "{gateway} is the DHCP server of {}; the gateway needs another address",
                row.cidr
            )));
        }
        if ports::addresses_in_use(txn, row.id)
            .await?
            .contains(&gateway)
        {
            return Err(conflict(format!(
                "{gateway} is used by a port in {}; the gateway needs another address",
                row.cidr
            )));
        }
        uses::refuse_as_gateway(txn, &network, &row, gateway).await?;
        routes::refuse_clash_outside(txn, &network, &row).await?;
    }
    if row != before {
        subnets::update(txn, &row)
            .await
            .map_err(|error| name_taken(error, &network, row.name.as_ref()))?;
        writing.touch_everywhere(row.network_id);
        let had_none = before.gateway_ip.is_none();
        let by_host = row.gateway_ip.filter(|_| had_none).map(|_| row.cidr);
        nat::changed(writing, row.network_id, by_host).await?;
    }
    Ok(view::subnet(&row))
}

/// Deletes a subnet in which no port and no router has an address.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &SubnetDelete,
) -> Result<SubnetView, ClaimError> {
    let txn = writing.txn();
    let row = resolve(txn, &request.project, &request.subnet).await?;
    if row.deleted_at.is_some() {
        return Ok(view::subnet(&row));
    }
    let addresses = subnets::address_count(txn, row.id).await?;
    if addresses > 0 {
        return Err(conflict(format!(
            "subnet {} is used by {addresses} ports; delete their instances first",
            row.cidr
        )));
    }
    uses::refuse_use_of_subnet(txn, &row).await?;
    subnets::mark_deleted(txn, row.id, writing.now).await?;
    // Where hosts have addresses of it for a router, they give them back with that.
    writing.touch_everywhere(row.network_id);
    nat::changed(writing, row.network_id, None).await?;
    // Who asks for an address next, maybe in the same transaction and of a subnet that takes this one's place, knows then whom to wait
    // for.
    writing.derive().await?;
    Ok(view::subnet(&row))
}

/// All subnets asked for.
///
/// # Errors
/// A refusal if the network named is not there, or a failure of the database.
pub async fn list(db: &impl Executor, request: &SubnetList) -> Result<SubnetListReply, ClaimError> {
    let rows = match &request.network {
        Some(network) => {
            let project = request.project.clone().unwrap_or_default();
            vec![networks::living(db, &project, network).await?]
        }
        None => network_rows::list(db, request.project.as_ref()).await?,
    };
    let subnets = rows.iter().flat_map(|network| &network.subnets);
    Ok(SubnetListReply {
        subnets: subnets.map(view::subnet).collect(),
    })
}

/// The living subnet a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none or several have the name, or a failure of the database.
pub async fn living(
    db: &impl Executor,
    project: &ProjectName,
    subnet: &str,
) -> Result<SubnetRow, ClaimError> {
    let row = resolve(db, project, subnet).await?;
    let network = network_rows::get(db, row.network_id).await?;
    let is_there = network.is_some_and(|network| network.deleted_at.is_none());
    if row.deleted_at.is_some() || !is_there {
        return Err(unknown(project, subnet));
    }
    Ok(row)
}

async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    subnet: &str,
) -> Result<SubnetRow, ClaimError> {
    if let Ok(id) = subnet.parse::<SubnetId>()
        && let Some(row) = subnets::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = subnet.parse::<SubnetName>() {
        let mut rows = subnets::find_by_name(db, project, &name).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => return Ok(row),
            (Some(_), others) => {
                return Err(conflict(format!(
                    "{} subnets of project {project} are named {name}; name one by its id",
                    others + 1
                )));
            }
            (None, _) => {}
        }
    }
    Err(unknown(project, subnet))
}

fn unknown(project: &ProjectName, subnet: &str) -> ClaimError {
    let shown: String = subnet.chars().take(80).collect();
    not_found(format!(
        "project {project} has no subnet {shown:?}, neither by id nor by name"
    ))
}

/// The first subnet of a network, which comes with it.
pub(super) fn first_id(network: NetworkId) -> Result<SubnetId, ClaimError> {
    SubnetId::try_from(uuid::Uuid::new_v5(&network.as_uuid(), b"subnet 0"))
        .map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dhcp_server_never_sits_on_the_gateway() {
        let check = |cidr: &str, gateway: Option<&str>, expected: &str| {
            let gateway = gateway.map(|address| address.parse().unwrap());
            let found = dhcp_address(cidr.parse().unwrap(), gateway).unwrap();
            assert_eq!(found, expected.parse::<IpAddr>().unwrap());
        };
        check("10.0.0.0/24", None, "10.0.0.2");
        check("10.0.0.0/24", Some("10.0.0.1"), "10.0.0.2");
        check("10.0.0.0/24", Some("10.0.0.2"), "10.0.0.1");
        check("10.0.0.0/24", Some("10.0.0.254"), "10.0.0.2");
        check("fd00:1::/64", Some("fd00:1::1"), "fd00:1::2");
        check("fd00:1::/64", Some("fd00:1::2"), "fd00:1::1");
    }

    #[test]
    fn all_mistakes_of_a_subnet_are_told_at_once() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let pool = |start: &str, end: &str| AllocationPool {
            start: address(start),
            end: address(end),
        };
        let route = |destination: &str, nexthop: &str| Route {
            destination: destination.parse().unwrap(),
            nexthop: address(nexthop),
        };
        let pools = [
            pool("10.0.0.10", "10.0.0.20"),
            pool("10.0.0.20", "10.0.0.30"),
            pool("10.0.0.50", "10.0.0.40"),
            pool("10.0.0.60", "10.0.0.255"),
        ];
        let routes = [
            route("10.9.0.0/16", "10.0.0.3"),
            route("10.9.0.0/16", "0.0.0.0"),
            route("fd00::/64", "10.0.0.3"),
        ];
        let servers = ["10.0.0.53", "fd00::53", "224.0.0.1", "10.0.0.54"].map(address);
        let wish = Wish {
            cidr: "10.0.0.0/24".parse().unwrap(),
            gateway_ip: Some(address("10.0.1.1")),
            allocation_pools: &pools,
            dns_nameservers: &servers,
            host_routes: &routes,
            ipv6_address_mode: Some(Ipv6AddressMode::Slaac),
        };
        let found = wish.mistakes().join("\n");
        for words in [
            "gateway_ip 10.0.1.1 is not an address for a machine in 10.0.0.0/24",
            "the allocation pools 10.0.0.10 to 10.0.0.20 and 10.0.0.20 to 10.0.0.30 overlap",
            "the allocation pool 10.0.0.50 to 10.0.0.40 ends before it begins",
            "10.0.0.255 in allocation_pools is not an address",
            "dns_nameservers must be at most 3; got 4",
            "224.0.0.1 in dns_nameservers is no server's address",
            "fd00::53 in dns_nameservers is not of the family",
            "host_routes has two routes to 10.9.0.0/16",
            "0.0.0.0 in host_routes is no router's address",
            "the route to fd00::/64 by 10.0.0.3 in host_routes is not of the family",
            "ipv6_address_mode slaac is for IPv6",
        ] {
            assert!(found.contains(words), "{words}\n{found}");
        }
        for (cidr, mode, words) in [
            ("fd00:1::/80", Ipv6AddressMode::Slaac, "must have 64 bits"),
            (
                "fd00::/48",
                Ipv6AddressMode::Dhcpv6Stateful,
                "must have at least 64 bits",
            ),
        ] {
            let wish = Wish {
                cidr: cidr.parse().unwrap(),
                gateway_ip: None,
                allocation_pools: &[],
                dns_nameservers: &[],
                host_routes: &[],
                ipv6_address_mode: Some(mode),
            };
            let found = wish.mistakes();
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(words), "{found:?}");
        }
    }
}
