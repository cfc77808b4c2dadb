//! Section `network`: the segments that networks get, and how large their packets may be. Names and grammar are those of
//! Neutron's ML2 plugin.

use std::{fmt, ops::RangeInclusive};

use berth_common::{
    config::{Reader, parse},
    document::NetworkType,
    names::PhysicalNetworkName,
};

/// The ids of VLANs.
pub const VLAN_IDS: RangeInclusive<u32> = 1..=4094;
/// The ids of VXLANs (VNIs).
pub const VNIS: RangeInclusive<u32> = 1..=16_777_215;

/// Ethernet's usual MTU in bytes.
const USUAL_MTU: u16 = 1500;
/// The largest MTU that anybody may ask for: that of jumbo frames.
const LARGEST_MTU: u16 = 9216;

/// Segments and sizes of networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks {
    /// `flat_networks`: the physical networks that may be flat networks.
    pub flat_networks: Vec<PhysicalNetworkName>,
    /// `vlan_ranges`: the physical networks with VLANs, and which of these are given to networks that name none.
    pub vlan_ranges: Vec<VlanRange>,
    /// `vni_ranges`: the VNIs that are given to networks that name none.
    pub vni_ranges: Vec<IdRange>,
    /// `global_physnet_mtu`: the largest packet of the physical networks.
    pub physnet_mtu: u16,
    /// `path_mtu`: the largest packet between hosts, that carries VXLAN's.
    pub path_mtu: u16,
    /// `overlay_ip_version`: between the addresses of hosts for VXLAN.
    pub overlay: Overlay,
}

/// The version of IP that carries VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlay {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Overlay {
    /// What VXLAN takes of a packet: the inner Ethernet header (14), VXLAN's (8), UDP's (8) and IP's (20 or 40), RFC 7348, 5.
    const fn taken(self) -> u16 {
        match self {
            Self::V4 => 50,
            Self::V6 => 70,
        }
    }
}

/// Some ids, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdRange(pub RangeInclusive<u32>);

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.start(), self.0.end())
    }
}

/// A physical network with VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VlanRange {
    /// The physical network.
    pub physical_network: PhysicalNetworkName,
    /// The VLANs that are given to networks that name none; none: networks there name their VLAN.
    pub ids: Option<IdRange>,
}

impl fmt::Display for VlanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.physical_network)?;
        match &self.ids {
            Some(ids) => write!(f, ":{ids}"),
            None => Ok(()),
        }
    }
}

impl Networks {
    /// Takes the section out of a reader, whose mistakes it adds to.
    pub(super) fn read(c: &mut Reader) -> Self {
        let flat_networks = c.optional(
            "network.flat_networks",
            parse::list(parse::from_str("the name of a physical network")),
            Vec::new(),
        );
        let vlan_ranges = c.optional(
            "network.vlan_ranges",
            parse::list(parse::written(
                "a physical network with VLANs, such as \"physnet1:100:199\" or \"physnet1\"",
                vlan_range,
            )),
            Vec::new(),
        );
        let vni_ranges = c.optional(
            "network.vni_ranges",
            parse::list(parse::written("VNIs, such as \"1:16777215\"", |text| {
                id_range(text, &VNIS)
            })),
            vec![IdRange(VNIS)],
        );
        for (key, overlap) in [
            ("network.vlan_ranges", vlan_overlap(&vlan_ranges)),
            ("network.vni_ranges", overlap(vni_ranges.iter())),
        ] {
            if let Some(overlap) = overlap {
                c.reject(key, overlap);
            }
        }
        let physnet_mtu = c.optional(
            "network.global_physnet_mtu",
            parse::integer(1280..=LARGEST_MTU),
            USUAL_MTU,
        );
        let path_mtu = c.optional(
            "network.path_mtu",
            parse::integer(1280..=LARGEST_MTU),
            physnet_mtu,
        );
        let overlay = c.optional(
            "network.overlay_ip_version",
            parse::written("4 or 6", |text| match text {
                "4" => Ok(Overlay::V4),
                "6" => Ok(Overlay::V6),
                _ => Err("there is no other version of IP"),
            }),
            Overlay::V4,
        );
        Self {
            flat_networks,
            vlan_ranges,
            vni_ranges,
            physnet_mtu,
            path_mtu,
            overlay,
        }
    }

    /// The largest MTU that a network of a type can carry.
    #[must_use]
    pub const fn largest_mtu(&self, network_type: NetworkType) -> u16 {
        match network_type {
            NetworkType::Local | NetworkType::Nat => LARGEST_MTU,
            NetworkType::Flat | NetworkType::Vlan => self.physnet_mtu,
            NetworkType::Vxlan => self.path_mtu.saturating_sub(self.overlay.taken()),
        }
    }

    /// The MTU of a network that names none.
    #[must_use]
    pub fn default_mtu(&self, network_type: NetworkType) -> u16 {
        match network_type {
            NetworkType::Local | NetworkType::Nat => USUAL_MTU,
            spanning => self.largest_mtu(spanning),
        }
    }
}

fn vlan_range(text: &str) -> Result<VlanRange, String> {
    let (name, ids) = match text.split_once(':') {
        Some((name, ids)) => (name, Some(id_range(ids, &VLAN_IDS)?)),
        None => (text, None),
    };
    let physical_network = name
        .parse()
        .map_err(|error: berth_common::names::InvalidText| error.to_string())?;
    Ok(VlanRange {
        physical_network,
        ids,
    })
}

fn id_range(text: &str, all: &RangeInclusive<u32>) -> Result<IdRange, String> {
    let ends = text.split_once(':').and_then(|(first, last)| {
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some(first..=last)
    });
    match ends {
        Some(ids) if ids.is_empty() => Err(format!("{text} ends before it begins")),
        Some(ids) if all.contains(ids.start()) && all.contains(ids.end()) => Ok(IdRange(ids)),
        Some(_) => Err(format!(
            "{text} is not within {}:{}",
            all.start(),
            all.end()
        )),
        None => Err(format!("{text:?} is not two numbers with a colon")),
    }
}

/// Two ranges with an id in common would give it out in an order that nobody sees.
fn overlap<'a>(ranges: impl Iterator<Item = &'a IdRange> + Clone) -> Option<String> {
    let mut before = Vec::new();
    for range in ranges {
        let meets =
            |other: &&IdRange| range.0.start() <= other.0.end() && other.0.start() <= range.0.end();
        if let Some(other) = before.iter().copied().find(meets) {
            return Some(format!("the ranges {other} and {range} overlap"));
        }
        before.push(range);
    }
    None
}

fn vlan_overlap(ranges: &[VlanRange]) -> Option<String> {
    ranges.iter().find_map(|range| {
        let same = ranges
            .iter()
            .filter(|other| other.physical_network == range.physical_network);
        let found = overlap(same.filter_map(|other| other.ids.as_ref()))?;
        Some(format!("of {}, {found}", range.physical_network))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(section: &str) -> Result<Networks, String> {
        let text = format!("[network]\n{section}\n");
        let mut c = Reader::from_text("test", &text, [], "BERTH");
        let networks = Networks::read(&mut c);
        c.finish(|| Some(networks))
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn without_a_word_there_are_vxlans_only() {
        let networks = read("").unwrap();
        assert_eq!(networks.vlan_ranges, []);
        assert_eq!(networks.flat_networks, []);
        assert_eq!(networks.vni_ranges, [IdRange(VNIS)]);
        let mtus = |networks: &Networks| {
            [NetworkType::Local, NetworkType::Vlan, NetworkType::Vxlan]
                .map(|kind| (networks.default_mtu(kind), networks.largest_mtu(kind)))
        };
        assert_eq!(mtus(&networks), [(1500, 9216), (1500, 1500), (1450, 1450)]);
        let jumbo = read("global_physnet_mtu = 9000\noverlay_ip_version = 6").unwrap();
        assert_eq!(mtus(&jumbo), [(1500, 9216), (9000, 9000), (8930, 8930)]);
        let path = read("path_mtu = 1550").unwrap();
        assert_eq!(mtus(&path)[2], (1500, 1500));
    }

    #[test]
    fn ranges_are_read_as_neutron_writes_them() {
        let networks =
            read("vlan_ranges = [\"physnet1:100:199\", \"physnet2\", \"physnet1:300:300\"]")
                .unwrap();
        let shown: Vec<String> = networks
            .vlan_ranges
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown, ["physnet1:100:199", "physnet2", "physnet1:300:300"]);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let error = read(
            "flat_networks = [\"a b\"]\nvlan_ranges = [\"p:0:10\", \"p:9:5\", \"p:1\", \"p:1:4095\"]\n\
             vni_ranges = [\"1:10\", \"10:20\"]\noverlay_ip_version = 5\nglobal_physnet_mtu = 100",
        )
        .unwrap_err();
        for words in [
            "a physical network name must be",
            "0:10 is not within 1:4094",
            "9:5 ends before it begins",
            "\"1\" is not two numbers with a colon",
            "1:4095 is not within 1:4094",
            "the ranges 1:10 and 10:20 overlap",
            "there is no other version of IP",
            "global_physnet_mtu",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
        let error = read("vlan_ranges = [\"p:1:10\", \"q:5:6\", \"p:10:12\"]").unwrap_err();
        assert!(
            error.contains("of p, the ranges 1:10 and 10:12 overlap"),
            "{error}"
        );
    }
}
