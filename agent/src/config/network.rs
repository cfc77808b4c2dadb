//! `[network]`: what this host's networks go out by.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use berth_common::{
    config::{Reader, parse},
    names::{LinkName, PhysicalNetworkName},
};

use crate::{
    act::net::{UplinkOptions, VXLAN_PORT, features::Features},
    decide::network::uplink::FlatAddressPolicy,
};

/// What this host's networks go out by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `network.physical_networks`: the physical networks this host is plugged into, and the NIC of each.
    pub nics: BTreeMap<PhysicalNetworkName, LinkName>,
    /// `network.tunnel_ip`: this host's address for VXLANs.
    pub tunnel_ip: Option<IpAddr>,
    /// `network.vxlan_port`: the UDP port of VXLANs.
    pub vxlan_port: u16,
    /// `network.flat_address_policy`: `refuse` or `move`.
    pub flat_addresses: FlatAddressPolicy,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            nics: BTreeMap::new(),
            tunnel_ip: None,
            vxlan_port: VXLAN_PORT,
            flat_addresses: FlatAddressPolicy::default(),
        }
    }
}

/// A physical network and its NIC.
#[derive(Debug, Clone)]
struct Plugged {
    network: PhysicalNetworkName,
    nic: LinkName,
}

/// The text names no physical network with its NIC.
#[derive(Debug, thiserror::Error)]
#[error("no physical network with its NIC")]
struct NotPlugged;

impl FromStr for Plugged {
    type Err = NotPlugged;

    fn from_str(text: &str) -> Result<Self, NotPlugged> {
        let (network, nic) = text.split_once(':').ok_or(NotPlugged)?;
        Ok(Self {
            network: network.parse().map_err(|_| NotPlugged)?,
            nic: nic.parse().map_err(|_| NotPlugged)?,
        })
    }
}

const PLUGGED: &str = "a physical network and its NIC, such as physnet1:eth1";
const NICS: &str = "network.physical_networks";
/// What came before it, and told no NICs.
const BEFORE: &str = "host.physical_networks";

impl NetworkConfig {
    pub(super) fn read(c: &mut Reader) -> Self {
        if c.maybe(BEFORE, parse::strings).is_some() {
            c.reject(
                BEFORE,
                format!("is {NICS} now, with the NIC of each: [\"physnet1:eth1\"]"),
            );
        }
        let plugged = c.optional(
            NICS,
            parse::list(parse::from_str::<Plugged>(PLUGGED)),
            Vec::new(),
        );
        let mut nics = BTreeMap::<PhysicalNetworkName, LinkName>::new();
        for Plugged { network, nic } in plugged {
            if let Some((other, _)) = nics.iter().find(|(_, other)| **other == nic) {
                let what = format!("must not put NIC {nic} into both {other} and {network}");
                c.reject(NICS, what);
            } else if let Some(other) = nics.get(&network) {
                let what = format!(
                    "must name one NIC for {network}, not both {other} and {nic}: bond them"
                );
                c.reject(NICS, what);
            } else {
                nics.insert(network, nic);
            }
        }
        Self {
            nics,
            tunnel_ip: c.maybe(
                "network.tunnel_ip",
                parse::from_str("an IP address of this host"),
            ),
            vxlan_port: c.optional(
                "network.vxlan_port",
                parse::integer(1..=u16::MAX),
                VXLAN_PORT,
            ),
            flat_addresses: c.optional(
                "network.flat_address_policy",
                parse::from_str("\"refuse\" or \"move\""),
                FlatAddressPolicy::default(),
            ),
        }
    }

    /// The same for the part of the agent that acts.
    #[must_use]
    pub fn uplinks(&self, features: Features) -> UplinkOptions {
        UplinkOptions {
            nics: self.nics.clone(),
            tunnel_ip: self.tunnel_ip,
            vxlan_port: self.vxlan_port,
            flat_addresses: self.flat_addresses,
            features,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NetworkConfig, String> {
        let mut reader = Reader::from_text("agent.toml", text, [], "BERTH");
        let config = NetworkConfig::read(&mut reader);
        reader
            .finish(|| Some(config))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_need_be_said() {
        let config = read("").unwrap();
        assert_eq!(config, NetworkConfig::default());
        assert_eq!(config.vxlan_port, 4789);
    }

    #[test]
    fn everything_can_be_said() {
        let config = read(
            "[network]\nphysical_networks = [\"physnet1:eth1\", \"b:bond0.7\"]\ntunnel_ip = \"fd00::1\"\nvxlan_port = 8472\n\
             flat_address_policy = \"move\"\n",
        )
        .unwrap();
        let nics: Vec<String> = config
            .nics
            .iter()
            .map(|(network, nic)| format!("{network}={nic}"))
            .collect();
        assert_eq!(nics, ["b=bond0.7", "physnet1=eth1"]);
        assert_eq!(config.flat_addresses, FlatAddressPolicy::Move);
        assert_eq!(
            (config.tunnel_ip, config.vxlan_port),
            ("fd00::1".parse().ok(), 8472)
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let errors = read(
            "[network]\ntunnel_ip = \"eth0\"\nvxlan_port = 0\nflat_address_policy = \"keep\"\n\
             [host]\nphysical_networks = [\"physnet1\"]\n",
        )
        .unwrap_err();
        for part in [
            "network.tunnel_ip",
            "network.vxlan_port",
            "\"refuse\" or \"move\"",
            "is network.physical_networks now",
        ] {
            assert!(errors.contains(part), "{part} is missing in:\n{errors}");
        }
        let nics =
            |list: &str| read(&format!("[network]\nphysical_networks = [{list}]\n")).unwrap_err();
        assert!(nics("\"physnet1\"").contains("such as physnet1:eth1"));
        assert!(nics("\"a:eth1\", \"b:eth1\"").contains("both a and b"));
        assert!(nics("\"a:eth1\", \"a:eth2\"").contains("both eth1 and eth2"));
    }
}
