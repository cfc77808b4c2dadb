//! The words of `berthctl subnet …`.

use std::{net::IpAddr, str::FromStr};

use berth_common::{
    document::{Ipv6AddressMode, Route},
    ids::SubnetId,
    message::{network::AllocationPool, request::Change},
    names::{Cidr, SubnetName},
};
use clap::{Args, Subcommand, ValueEnum};

/// Commands on subnets.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Subnet {
    /// Create a subnet in a network.
    Create(SubnetCreateArgs),
    /// List subnets.
    List {
        /// Only those of this network, by name or id.
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
    },
    /// Show a subnet.
    Show {
        /// Name or id of the subnet.
        name: String,
    },
    /// Change a subnet.
    Set(SubnetSetArgs),
    /// Delete a subnet in which no port has an address.
    Delete {
        /// Name or id of the subnet.
        name: String,
    },
}

/// A new subnet.
#[derive(Debug, Clone, Args)]
pub(crate) struct SubnetCreateArgs {
    /// Its name, unique in the network.
    pub(crate) name: SubnetName,
    /// Name or id of its network.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: String,
    /// Its addresses, like 10.0.0.0/24 or fd00:1::/64.
    #[arg(long = "subnet-range", alias = "cidr", value_name = "CIDR")]
    pub(crate) cidr: Cidr,
    /// A router's address in it, handed to guests as default route; auto: the first address; or none.
    #[arg(long, value_name = "IP", default_value = "auto")]
    pub(crate) gateway: Gateway,
    /// Addresses that ports get unless they ask for another; may be repeated. Default: all.
    #[arg(long, value_name = "start=IP,end=IP", value_parser = pool)]
    pub(crate) allocation_pool: Vec<AllocationPool>,
    /// A name server handed to guests; up to 3.
    #[arg(long = "dns-nameserver", alias = "dns", value_name = "IP")]
    pub(crate) dns: Vec<IpAddr>,
    /// A route handed to guests; may be repeated.
    #[arg(long, value_name = "destination=CIDR,gateway=IP", value_parser = route)]
    pub(crate) host_route: Vec<Route>,
    /// berth's DHCP server and metadata service do not answer in it.
    #[arg(long)]
    pub(crate) no_dhcp: bool,
    /// Of IPv6: how guests get their address. Default: they are not told.
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) ipv6_address_mode: Option<AddressMode>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<SubnetId>,
}

/// What of a subnet shall change; lists are replaced whole.
#[derive(Debug, Clone, Args)]
pub(crate) struct SubnetSetArgs {
    /// Name or id of the subnet.
    pub(crate) subnet: String,
    /// Its new name, unique in the network.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<SubnetName>,
    /// A router's address in it, or none.
    #[arg(long, value_name = "IP", value_parser = another_gateway)]
    pub(crate) gateway: Option<Change<IpAddr>>,
    /// Addresses that ports get unless they ask for another, instead of those of before; may be repeated.
    #[arg(long, value_name = "start=IP,end=IP", value_parser = pool)]
    pub(crate) allocation_pool: Vec<AllocationPool>,
    /// Ports get any address.
    #[arg(long, conflicts_with = "allocation_pool")]
    pub(crate) no_allocation_pool: bool,
    /// A name server handed to guests, instead of those of before; up to 3.
    #[arg(long = "dns-nameserver", alias = "dns", value_name = "IP")]
    pub(crate) dns: Vec<IpAddr>,
    /// No name server.
    #[arg(long, conflicts_with = "dns")]
    pub(crate) no_dns_nameservers: bool,
    /// A route handed to guests, instead of those of before; may be repeated.
    #[arg(long, value_name = "destination=CIDR,gateway=IP", value_parser = route)]
    pub(crate) host_route: Vec<Route>,
    /// No routes.
    #[arg(long, conflicts_with = "host_route")]
    pub(crate) no_host_route: bool,
}

/// A router's address in a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gateway {
    /// The first address.
    Auto,
    /// There is none.
    None,
    /// This one.
    At(IpAddr),
}

impl Gateway {
    /// The address in a subnet.
    pub(crate) fn of(self, cidr: Cidr) -> Option<IpAddr> {
        match self {
            Self::Auto => cidr
                .net()
                .hosts()
                .find(|address| cidr.is_host_address(*address)),
            Self::None => None,
            Self::At(address) => Some(address),
        }
    }
}

impl FromStr for Gateway {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            text => text
                .parse()
                .map(Self::At)
                .map_err(|_| "must be an address, auto or none".to_owned()),
        }
    }
}

/// A gateway that is told: what the first address would be, only a new subnet says.
fn another_gateway(text: &str) -> Result<Change<IpAddr>, String> {
    if text == "none" {
        return Ok(Change::Clear);
    }
    text.parse()
        .map(Change::Set)
        .map_err(|_| "must be an address or none".to_owned())
}

/// How guests get their IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AddressMode {
    /// They make it themselves, of the prefix and their Ethernet address.
    Slaac,
    /// DHCPv6 gives it to them.
    Dhcpv6Stateful,
}

impl From<AddressMode> for Ipv6AddressMode {
    fn from(mode: AddressMode) -> Self {
        match mode {
            AddressMode::Slaac => Self::Slaac,
            AddressMode::Dhcpv6Stateful => Self::Dhcpv6Stateful,
        }
    }
}

/// The values of two keys, in any order: `start=…,end=…`.
fn pair<A: FromStr, B: FromStr>(
    text: &str,
    first: &str,
    second: &str,
    expected: &str,
) -> Result<(A, B), String> {
    let refuse = || format!("must be like {expected}");
    let mut values = (None, None);
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(refuse)?;
        let place = if key == first {
            &mut values.0
        } else if key == second {
            &mut values.1
        } else {
            return Err(refuse());
        };
        if place.replace(value).is_some() {
            return Err(refuse());
        }
    }
    let (Some(a), Some(b)) = values else {
        return Err(refuse());
    };
    let a = a.parse().map_err(|_| refuse())?;
    let b = b.parse().map_err(|_| refuse())?;
    Ok((a, b))
}

fn pool(text: &str) -> Result<AllocationPool, String> {
    let (start, end) = pair(text, "start", "end", "start=10.0.0.10,end=10.0.0.99")?;
    Ok(AllocationPool { start, end })
}

/// A route as `destination=10.9.0.0/16,gateway=10.0.0.1`.
pub(super) fn route(text: &str) -> Result<Route, String> {
    let expected = "destination=10.9.0.0/16,gateway=10.0.0.1";
    let (destination, nexthop) = pair(text, "destination", "gateway", expected)?;
    Ok(Route {
        destination,
        nexthop,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_and_routes_are_written_as_openstack_writes_them() {
        let found = pool("end=10.0.0.20,start=10.0.0.10").unwrap();
        assert_eq!(
            (found.start, found.end),
            ([10, 0, 0, 10].into(), [10, 0, 0, 20].into())
        );
        let found = route("destination=0.0.0.0/0,gateway=10.0.0.1").unwrap();
        assert_eq!(found.destination.to_string(), "0.0.0.0/0");
        assert_eq!(
            found,
            route("gateway=10.0.0.1,destination=0.0.0.0/0").unwrap()
        );
        for bad in [
            "",
            "via=1",
            "destination=192.0.2.0/24",
            "gateway=x,destination=192.0.2.0/24",
            "gateway=10.0.0.1,gateway=10.0.0.2,destination=192.0.2.0/24",
        ] {
            assert!(
                route(bad)
                    .unwrap_err()
                    .contains("must be like destination=")
            );
        }
        for bad in [
            "",
            "start=10.0.0.1",
            "start=10.0.0.1,start=10.0.0.2",
            "start=10.0.0.1,end=x",
            "start=10.0.0.1,end=10.0.0.2,more=1",
        ] {
            assert!(pool(bad).unwrap_err().contains("must be like start="));
        }
    }

    #[test]
    fn a_gateway_is_the_first_address_unless_it_is_said() {
        let check = |text: &str, cidr: &str, expected: Option<&str>| {
            let gateway: Gateway = text.parse().unwrap();
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(gateway.of(cidr.parse().unwrap()), expected);
        };
        check("auto", "10.0.0.0/24", Some("10.0.0.1"));
        check("auto", "fd00:1::/64", Some("fd00:1::1"));
        check("none", "10.0.0.0/24", None);
        check("10.0.0.254", "10.0.0.0/24", Some("10.0.0.254"));
        assert!("10.0.0".parse::<Gateway>().is_err());
    }
}
