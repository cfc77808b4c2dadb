//! The names of everything the agent makes on a host: deterministic functions of ids, with one prefix.
//!
//! Link names are `bt`, a letter for the role, and 12 hex digits of the SHA-256 of the id: 15 bytes, the most
//! the kernel takes. A hash can collide, so each link also carries its full id as `ifalias`
//! ([`link_alias`]); a link whose alias is another's is a collision and is refused, never reused.

use berth_common::{
    ids::{HostId, InstanceId, NetworkId, PortId, RouterId, SnapshotId, VolumeId},
    units::MemoryMb,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Every link, namespace and domain of berth starts with this.
pub const LINK_PREFIX: &str = "bt";
/// Every namespace and domain of berth starts with this.
pub const NAME_PREFIX: &str = "berth-";
/// The aliases of memory that guests were given while they were on start with this. libvirt takes no others from outside than
/// those that start with `ua-`.
pub const MEMORY_ALIAS: &str = "ua-berth-memory-";
/// The aliases of NICs start with this, and end with the port's id.
const NIC_ALIAS: &str = "ua-berth-port-";
/// What follows it in the name of a logical volume that is being made.
const PARTIAL: &str = "tmp-";
/// What follows it in the name of one that is being wiped.
const LEAVING: &str = "wipe-";
/// What comes before all that in the name of one that is a snapshot.
const SNAPSHOT: &str = "snap-";
/// What follows the prefix in the name of a router's namespace.
const ROUTER: &str = "r-";

/// The alias of the piece of memory that a guest is given when it has so much. While a guest is on it only gets more, so it has
/// each size once: a second piece for the same size, of a call that everybody gave up or lost on the way, collides instead of
/// adding to it.
#[must_use]
pub fn memory_alias(before: MemoryMb) -> String {
    format!("{MEMORY_ALIAS}{}", before.get())
}

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkRole {
    /// The bridge of a network.
    Bridge,
    /// The end in the bridge of the veth pair to the network's namespace.
    VethHost,
    /// The end in the namespace.
    VethNamespace,
    /// The tap of a port.
    Tap,
    /// The VLAN sub-interface of a NIC that is in the network's bridge.
    Vlan,
    /// The end of the network's VXLAN on this host (VTEP).
    Vxlan,
    /// The end in a network's bridge of a router's veth pair.
    RouterLegHost,
    /// The end in the router's namespace.
    RouterLegNamespace,
    /// The end in an external network's bridge of a router's veth pair.
    RouterGatewayHost,
    /// The end in the router's namespace.
    RouterGatewayNamespace,
    /// The link that what a port's guest sends is slowed down in.
    Ifb,
}

impl LinkRole {
    const fn letter(self) -> char {
        match self {
            Self::Bridge => 'b',
            Self::VethHost => 'v',
            Self::VethNamespace => 'n',
            Self::Tap => 't',
            Self::Vlan => 'l',
            Self::Vxlan => 'x',
            Self::RouterLegHost => 'q',
            Self::RouterLegNamespace => 'r',
            Self::RouterGatewayHost => 'e',
            Self::RouterGatewayNamespace => 'f',
            Self::Ifb => 'i',
        }
    }

    const fn noun(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::VethHost => "veth",
            Self::VethNamespace => "dhcp",
            Self::Tap => "port",
            Self::Vlan => "vlan",
            Self::Vxlan => "vxlan",
            Self::RouterLegHost => "router-leg",
            Self::RouterLegNamespace => "router-leg-inside",
            Self::RouterGatewayHost => "router-gateway",
            Self::RouterGatewayNamespace => "router-gateway-inside",
            Self::Ifb => "qos",
        }
    }
}

/// The logical volume of a volume that is whole.
#[must_use]
pub fn logical_volume(volume: VolumeId) -> String {
    format!("{NAME_PREFIX}{volume}")
}

/// The logical volume of a volume that is being made: a leftover, unless somebody is at it.
#[must_use]
pub fn partial_volume(volume: VolumeId) -> String {
    format!("{NAME_PREFIX}{PARTIAL}{volume}")
}

/// The logical volume of a volume that was deleted and is being wiped.
#[must_use]
pub fn leaving_volume(volume: VolumeId) -> String {
    format!("{NAME_PREFIX}{LEAVING}{volume}")
}

/// The tag that says whose a logical volume is: without it, it is foreign, whatever its name.
#[must_use]
pub fn volume_tag(volume: VolumeId) -> String {
    format!("berth.volume={volume}")
}

/// The volume whose whole logical volume has this name.
#[must_use]
pub fn volume_of(name: &str) -> Option<VolumeId> {
    let id = name.strip_prefix(NAME_PREFIX)?;
    let parsed: VolumeId = id.parse().ok()?;
    (parsed.to_string() == id).then_some(parsed)
}

/// The logical volume of a snapshot that is whole.
#[must_use]
pub fn logical_snapshot(snapshot: SnapshotId) -> String {
    format!("{NAME_PREFIX}{SNAPSHOT}{snapshot}")
}

/// The logical volume of a snapshot that is being made.
#[must_use]
pub fn partial_snapshot(snapshot: SnapshotId) -> String {
    format!("{NAME_PREFIX}{SNAPSHOT}{PARTIAL}{snapshot}")
}

/// The logical volume of a snapshot that was deleted, and whose bytes are not gone yet.
#[must_use]
pub fn leaving_snapshot(snapshot: SnapshotId) -> String {
    format!("{NAME_PREFIX}{SNAPSHOT}{LEAVING}{snapshot}")
}

/// The same as [`volume_tag`], of a snapshot.
#[must_use]
pub fn snapshot_tag(snapshot: SnapshotId) -> String {
    format!("berth.snapshot={snapshot}")
}

/// The bridge of a network.
#[must_use]
pub fn bridge(network: NetworkId) -> String {
    link(LinkRole::Bridge, network.as_uuid())
}

/// The end of the veth pair that is in the network's bridge.
#[must_use]
pub fn veth_host(network: NetworkId) -> String {
    link(LinkRole::VethHost, network.as_uuid())
}

/// The end of the veth pair that is in the network's namespace.
#[must_use]
pub fn veth_namespace(network: NetworkId) -> String {
    link(LinkRole::VethNamespace, network.as_uuid())
}

/// The VLAN sub-interface in the network's bridge.
#[must_use]
pub fn vlan(network: NetworkId) -> String {
    link(LinkRole::Vlan, network.as_uuid())
}

/// The VTEP in the network's bridge.
#[must_use]
pub fn vxlan(network: NetworkId) -> String {
    link(LinkRole::Vxlan, network.as_uuid())
}

/// The nftables table of a `nat` network, of the `inet` family.
#[must_use]
pub fn nat_table(network: NetworkId) -> String {
    format!("{NAME_PREFIX}nat-{network}")
}

/// The tap of a port.
#[must_use]
pub fn tap(port: PortId) -> String {
    link(LinkRole::Tap, port.as_uuid())
}

/// The link that what a port's guest sends is slowed down in.
#[must_use]
pub fn ifb(port: PortId) -> String {
    link(LinkRole::Ifb, port.as_uuid())
}

/// Whether a name can be that of a tap of ours: a port cannot be told from it.
#[must_use]
pub fn is_tap(name: &str) -> bool {
    is_of(name, LinkRole::Tap)
}

/// Whether a name can be that of a link that a limit needs.
#[must_use]
pub fn is_ifb(name: &str) -> bool {
    is_of(name, LinkRole::Ifb)
}

fn is_of(name: &str, role: LinkRole) -> bool {
    is_link(name)
        && name
            .strip_prefix(LINK_PREFIX)
            .is_some_and(|rest| rest.starts_with(role.letter()))
}

/// Whether a name can be that of a link of ours, whatever it is for.
#[must_use]
pub fn is_link(name: &str) -> bool {
    let role_and_hex = name.strip_prefix(LINK_PREFIX).map(str::as_bytes);
    role_and_hex.is_some_and(|rest| match rest {
        [role, hex @ ..] => {
            role.is_ascii_lowercase()
                && hex.len() == 12
                && hex
                    .iter()
                    .all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(it))
        }
        [] => false,
    })
}

/// The alias of a port's NIC in its domain: it tells which port it is, which its tap does not.
#[must_use]
pub fn nic_alias(port: PortId) -> String {
    format!("{NIC_ALIAS}{port}")
}

/// The port whose NIC has this alias.
#[must_use]
pub fn port_of_alias(alias: &str) -> Option<PortId> {
    let port = alias.strip_prefix(NIC_ALIAS)?.parse().ok()?;
    (nic_alias(port) == alias).then_some(port)
}

/// The alias that tells whose a link is: `berth bridge <id>`.
#[must_use]
pub fn link_alias(role: LinkRole, id: Uuid) -> String {
    format!("berth {} {id}", role.noun())
}

/// The namespace that holds a network's DHCP: `berth-<id>`.
#[must_use]
pub fn namespace(network: NetworkId) -> String {
    format!("{NAME_PREFIX}{network}")
}

/// The namespace of a router: `berth-r-<id>`.
#[must_use]
pub fn router_namespace(router: RouterId) -> String {
    format!("{NAME_PREFIX}{ROUTER}{router}")
}

/// The router that a namespace of this name is of.
#[must_use]
pub fn router_of_namespace(name: &str) -> Option<RouterId> {
    let id = name.strip_prefix(NAME_PREFIX)?.strip_prefix(ROUTER)?;
    let parsed: RouterId = id.parse().ok()?;
    (parsed.to_string() == id).then_some(parsed)
}

/// A link of a router's leg in a network.
#[must_use]
pub fn router_link(role: LinkRole, router: RouterId, network: NetworkId) -> String {
    let both = [
        router.as_uuid().into_bytes(),
        network.as_uuid().into_bytes(),
    ]
    .concat();
    hashed(role, &both)
}

/// The alias that tells whose it is: `berth router-leg <router> <network>`.
#[must_use]
pub fn router_alias(role: LinkRole, router: RouterId, network: NetworkId) -> String {
    format!("berth {} {router} {network}", role.noun())
}

/// The router and the network of a link with this alias, if it is of this role.
#[must_use]
pub fn of_router_alias(role: LinkRole, alias: &str) -> Option<(RouterId, NetworkId)> {
    let mut words = alias.rsplit(' ');
    let network = words.next()?.parse().ok()?;
    let router = words.next()?.parse().ok()?;
    (router_alias(role, router, network) == alias).then_some((router, network))
}

/// The libvirt name of an instance's domain: `berth-<id>`.
#[must_use]
pub fn domain(instance: InstanceId) -> String {
    format!("{NAME_PREFIX}{instance}")
}

fn link(role: LinkRole, id: Uuid) -> String {
    hashed(role, id.as_bytes())
}

fn hashed(role: LinkRole, id: &[u8]) -> String {
    format!("{LINK_PREFIX}{}{}", role.letter(), digits(id))
}

/// Twelve hexadecimal digits that stand for an id in names that are too short for it.
pub(super) fn digits(id: &[u8]) -> String {
    let digest = Sha256::digest(id);
    let first = digest.iter().take(6);
    first.map(|byte| format!("{byte:02x}")).collect()
}

/// The Ethernet address of a link of berth's own, locally administered and outside of what guests get: a function of its alias.
/// It is set in the same call that makes the link, so it tells whose a link is before it has an alias.
#[must_use]
pub fn own_mac(alias: &str) -> [u8; 6] {
    let digest = Sha256::digest(alias.as_bytes());
    [0x02, digest[0], digest[1], digest[2], digest[3], digest[4]]
}

/// The Ethernet address that routers' legs send with to ports on other hosts: of this host alone, while the legs' own ones are the
/// same on all. It has 40 bits of a digest: of 10,000 hosts two have the same one in one of 20,000 installations, and as nobody ever
/// sends to it, all that follows is that switches see it in two places.
#[must_use]
pub fn host_mac(host: HostId) -> [u8; 6] {
    own_mac(&format!("berth host {host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_the_kernel_and_differ_by_role() {
        let id = NetworkId::new();
        let names = [
            bridge(id),
            veth_host(id),
            veth_namespace(id),
            vlan(id),
            vxlan(id),
        ];
        assert!(
            names
                .iter()
                .all(|name| name.len() == 15 && name.starts_with(LINK_PREFIX)),
            "{names:?}"
        );
        assert_eq!(
            names
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            names.len()
        );
        assert_eq!(bridge(id), bridge(id));
    }

    #[test]
    fn a_host_has_an_ethernet_address_of_its_own() {
        let hosts: Vec<HostId> = (0..1000).map(|_| HostId::new()).collect();
        let macs: std::collections::BTreeSet<_> = hosts.iter().copied().map(host_mac).collect();
        assert_eq!(macs.len(), hosts.len());
        // Locally administered, and of one receiver.
        assert!(macs.iter().all(|mac| mac[0] & 0x03 == 0x02));
        let host: HostId = "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11".parse().unwrap();
        assert_eq!(
            host_mac(host),
            [0x02, 0x07, 0xd9, 0x39, 0xcc, 0xb9],
            "hosts of two versions work together"
        );
    }

    #[test]
    fn memory_is_named_after_what_the_guest_had_before() {
        assert_eq!(
            memory_alias(MemoryMb::clamped(1024)),
            "ua-berth-memory-1024"
        );
    }

    #[test]
    fn a_nics_alias_tells_its_port_and_a_taps_name_that_it_is_one() {
        let port = PortId::new();
        assert_eq!(port_of_alias(&nic_alias(port)), Some(port));
        for other in ["net0", "ua-berth-port-", "ua-berth-port-x", "ua-other"] {
            assert_eq!(port_of_alias(other), None, "{other}");
        }
        assert_eq!(port_of_alias(&nic_alias(port).to_uppercase()), None);
        assert!(is_tap(&tap(port)));
        assert!(is_ifb(&ifb(port)) && is_link(&ifb(port)) && !is_ifb(&tap(port)));
        for other in ["btt", "tap0", &bridge(NetworkId::new()), "bttABCDEF012345"] {
            assert!(!is_tap(other), "{other}");
        }
    }

    #[test]
    fn ids_made_at_the_same_time_get_different_names() {
        let names: std::collections::BTreeSet<_> = (0..1000).map(|_| tap(PortId::new())).collect();
        assert_eq!(names.len(), 1000);
    }
}
