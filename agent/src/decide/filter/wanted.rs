//! How the packet filter shall be for a network: its document → chains, sets and elements of maps.
//!
//! ```text
//!  guest ▶ s_<port>  whose it is: Ethernet and IP source, ARP, or no address yet (q_<network>); then n_<network>: what holds for all
//!                    its guests
//!        ▶ e_<port>  what it may send: no DHCP server, no router, no foreign neighbour; what finds neighbours and berth's services
//!                    (d_<network>); then its groups ge_<group>
//!        ▶ i_<port>  what it may receive: berth's services, answers, then its groups gi_<group>; a_<network> without security
//!  uplink ▶ u_<network>     ▶ o_<network> uplink: no VLAN tags; berth's own services are the same on every host, and stay on it
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_common::{
    document::{NetworkPort, NetworkSpec, NetworkType, PortSecurity, RuleDirection},
    ids::{NetworkId, SecurityGroupId},
    names::MacAddress,
};
use ipnet::{IpNet, Ipv6Net};

use super::{
    base::{
        ASKED, DHCP_ASKS, EGRESS, FOREIGN, INGRESS, INVALID, KNOWN, LLDP, NEIGHBOURS, RECEIVED,
        ROGUES, SENT, SERVICES, SOURCE, STRANGERS, Stateful, TAGS, TO_HOST, TUNNELS, UNTAGGED,
        ZONES, asks_for_address, bit, drop_as, finds_neighbours, icmp6, tracking_family,
    },
    group, names,
    nft::{
        ABOVE, ETHER_TYPE, Family, Field, IN, L4, MAC_FROM, MAC_TO, OUT, Op, Operand, Rule,
        Statement, TCP_TO, UDP_FROM, UDP_TO, VLAN, is, number, word, words,
    },
    part::{AddressSet, Version, Wanted},
    reason::Reason,
    tunnel::Guarded,
};
use crate::decide::{dhcp, metadata, names as link_names, network::Link};

/// Any address of IPv6.
const EVERYBODY_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));
/// The types of `ICMPv6` that a guest sends before it has an address: it tells of groups, and asks for routers and addresses.
pub(super) const EARLY_ICMP6: [u32; 4] = [131, 133, 135, 143];
/// The types that concern one link alone: routers, neighbours, redirects.
const NEIGHBOUR_ICMP6: [u32; 5] = [133, 134, 135, 136, 137];

/// What is around a network on this host and is not in its document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Surroundings {
    /// The links in its bridge by which it reaches other hosts.
    pub uplinks: BTreeSet<String>,
    /// Of a VXLAN: who may send into it, unless everybody may.
    pub tunnel: Option<Guarded>,
    /// The legs that routers have in it on this host.
    pub legs: Vec<RouterLeg>,
    /// The Ethernet address that legs send with to other hosts.
    pub host_mac: [u8; 6],
}

/// A router's leg in a network: the same on each host, and never seen from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterLeg {
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// Its addresses.
    pub ip_addresses: Vec<IpAddr>,
}

impl RouterLeg {
    /// One that was found, by its Ethernet address alone.
    #[must_use]
    pub const fn found(mac_address: MacAddress) -> Self {
        Self {
            mac_address,
            ip_addresses: Vec::new(),
        }
    }
}

/// Who beyond a network's uplinks may advertise a router of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RoutersOutside {
    /// Nobody: the network's routers are legs, and those are on each host.
    None,
    /// A machine on the wire that a subnet names as its gateway, of which guests know by its advertisements alone.
    Gateway,
    /// Whoever does: nobody of berth's tells guests anything there.
    Whoever,
}

/// The addresses a guest may send from with one Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) mac: String,
    pub(super) v4: BTreeSet<IpNet>,
    pub(super) v6: BTreeSet<IpNet>,
}

impl Identity {
    /// Those of the version of this one.
    pub(super) const fn of(&self, address: IpAddr) -> &BTreeSet<IpNet> {
        match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }
}

/// The smallest prefixes that cover the same addresses: what is within another is left out, as nft takes no overlaps.
pub(super) fn minimal(nets: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let mut all: Vec<IpNet> = nets.into_iter().map(|net| net.trunc()).collect();
    // Prefixes overlap only by one being within the other, which then comes later.
    all.sort_unstable_by_key(|net| (net.addr(), net.prefix_len()));
    all.dedup_by(|net, before| before.contains(&*net));
    all.into_iter().collect()
}

/// Who a guest may be.
pub(super) fn identities(port: &NetworkPort, security: &PortSecurity) -> Vec<Identity> {
    let mut nets: BTreeMap<MacAddress, Vec<IpNet>> = BTreeMap::new();
    nets.insert(port.mac_address, port.addresses().collect());
    for pair in &security.allowed_address_pairs {
        let mac = pair.mac_address.unwrap_or(port.mac_address);
        nets.entry(mac).or_default().push(pair.ip_address.net());
    }
    nets.into_iter()
        .map(|(mac, nets)| identity(mac, nets))
        .collect()
}

/// Who has this Ethernet address and these addresses: also the one that it makes itself.
fn identity(mac: MacAddress, nets: impl IntoIterator<Item = IpNet>) -> Identity {
    let link_local = IpNet::from(IpAddr::V6(metadata::link_local(mac)));
    let nets: Vec<IpNet> = nets.into_iter().chain([link_local]).collect();
    let of = |version| {
        let nets = nets.iter().copied();
        minimal(nets.filter(|net| Version::of(*net) == version))
    };
    Identity {
        mac: mac.to_string(),
        v4: of(Version::V4),
        v6: of(Version::V6),
    }
}

/// Whether a guest may send from, or tell its neighbours of, what is not the port's own alone. What its own is, everybody else's
/// chains take care of.
pub(super) fn may_be_others(port: &NetworkPort) -> bool {
    let security = port.security.as_ref();
    security.is_none_or(|security| !security.allowed_address_pairs.is_empty())
}

/// By what the metadata service knows a port: nobody else has these.
pub(super) fn known_by(port: &NetworkPort) -> Identity {
    identity(port.mac_address, port.addresses())
}

fn hex_mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

/// That an address is one of these; nothing, if that is any.
pub(super) fn within(field: Field, nets: &BTreeSet<IpNet>) -> Option<Statement> {
    let any = nets.iter().any(|net| net.prefix_len() == 0);
    (!any).then(|| {
        let nets = nets.iter().copied().map(Operand::Net).collect();
        is(field, Operand::one_of(nets))
    })
}

/// Through a chain of the host's.
fn jump(chain: &str) -> Statement {
    Statement::Jump(chain.to_owned())
}

/// That a frame is for the Ethernet address of the NIC it came in by, which its bridge has as well where it has the host's addresses.
fn for_its_address() -> Statement {
    word(Field::Meta("pkttype"), "host")
}

/// That a frame has a VLAN tag, also one that tells only a priority.
fn tagged() -> Statement {
    is(ETHER_TYPE, words(TAGS))
}

/// That the target of neighbour discovery is one of these.
fn targets(nets: &BTreeSet<IpNet>) -> Vec<Vec<Statement>> {
    let mut by_length: BTreeMap<u8, Vec<Operand>> = BTreeMap::new();
    for net in nets {
        if let IpNet::V6(net) = net {
            let bits = u128::from(net.network());
            let value = bits.checked_shr(u32::from(128 - net.prefix_len()));
            let operand = Operand::Text(format!("{:#x}", value.unwrap_or_default()));
            by_length.entry(net.prefix_len()).or_default().push(operand);
        }
    }
    by_length
        .into_iter()
        .map(|(len, operands)| match len {
            0 => Vec::new(),
            len => vec![is(
                Field::Transport(64, u16::from(len)),
                Operand::one_of(operands),
            )],
        })
        .collect()
}

/// What the filter of a network is made from.
pub(super) struct Filter<'a> {
    id: NetworkId,
    spec: &'a NetworkSpec,
    around: &'a Surroundings,
    stateful: Stateful,
    zone: Option<u16>,
    wanted: Wanted,
}

/// All but the port itself that its chains say something of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Common {
    network: NetworkId,
    is_served: bool,
    groups: BTreeSet<SecurityGroupId>,
}

/// The type of frames of the reverse address resolution protocol (RFC 903).
const RARP: u32 = 0x8035;

impl<'a> Filter<'a> {
    pub(super) fn new(
        id: NetworkId,
        spec: &'a NetworkSpec,
        around: &'a Surroundings,
        stateful: Stateful,
        zone: u16,
    ) -> Self {
        Self {
            id,
            spec,
            around,
            stateful,
            // What a `nat` network's guests exchange with the world passes the host's IP stack, where answers are looked for in no
            // zone.
            zone: (spec.network_type != NetworkType::Nat).then_some(zone),
            wanted: Wanted::default(),
        }
    }

    pub(super) fn common(&self) -> Common {
        Common {
            network: self.id,
            is_served: self.is_served(),
            groups: self
                .spec
                .security_groups
                .iter()
                .map(|group| group.id)
                .collect(),
        }
    }

    pub(super) const fn ports(&self) -> &'a [NetworkPort] {
        self.spec.ports.as_slice()
    }

    /// What is the network's and its groups'.
    pub(super) fn of_network(&mut self) -> Wanted {
        self.network();
        self.groups();
        mem::take(&mut self.wanted)
    }

    /// What is a port's: it follows from the port and from [`Self::common`].
    pub(super) fn of_port(&mut self, port: &NetworkPort) -> Wanted {
        self.port(port);
        mem::take(&mut self.wanted)
    }
}

impl Filter<'_> {
    fn chain(&mut self, family: Family, name: String, whose: &str, rules: Vec<Vec<Statement>>) {
        let rules = rules.into_iter().map(|statements| Rule {
            statements,
            whose: whose.to_owned(),
        });
        self.wanted.chains.insert((family, name), rules.collect());
    }

    fn link(&mut self, map: &str, link: &str, chain: String) {
        let key = (Family::Bridge, map.to_owned(), link.to_owned());
        self.wanted.links.insert(key, chain);
    }

    fn name(&self, kind: &str) -> String {
        names::of_network(kind, self.id)
    }

    /// Whether berth's own DHCP, name and metadata services are in the network.
    fn is_served(&self) -> bool {
        dhcp::served(self.spec).next().is_some()
    }

    fn serves(&self, version: Version) -> bool {
        dhcp::served(self.spec).any(|(subnet, _)| subnet.cidr.is_ipv6() == (version == Version::V6))
    }

    fn service_mac(&self) -> Option<String> {
        self.is_served()
            .then(|| hex_mac(Link::veth_namespace(self.id).mac()))
    }

    fn leg_macs(&self) -> BTreeSet<MacAddress> {
        let legs = self.around.legs.iter();
        legs.map(|leg| leg.mac_address).collect()
    }

    /// The Ethernet address that what the legs send to other hosts has there, if there are legs.
    fn host_mac(&self) -> Option<String> {
        let has_legs = !self.around.legs.is_empty();
        has_legs.then(|| hex_mac(self.around.host_mac))
    }

    /// The addresses that berth's services and routers have on every host.
    fn own_addresses(&self) -> BTreeSet<IpNet> {
        let services = dhcp::served(self.spec).map(|(_, address)| address);
        let metadata = [
            IpAddr::V4(metadata::ADDRESS_V4),
            IpAddr::V6(metadata::ADDRESS_V6),
        ];
        let legs = self.around.legs.iter();
        // What a leg advertises itself with.
        let of_links = legs
            .clone()
            .map(|leg| metadata::link_local(leg.mac_address));
        services
            .chain(metadata.into_iter().filter(|_| self.is_served()))
            .chain(legs.flat_map(|leg| leg.ip_addresses.iter().copied()))
            .chain(of_links.map(IpAddr::V6))
            .map(IpNet::from)
            .collect()
    }

    /// What holds for all its guests, its uplinks and berth's own links in it.
    fn network(&mut self) {
        let whose = format!("network {}", self.id);
        let macs: Vec<String> = self
            .service_mac()
            .into_iter()
            .chain(self.leg_macs().iter().map(ToString::to_string))
            .chain(self.host_mac())
            .collect();
        let mut guests = Vec::new();
        // Out of a NIC it would be in a VLAN that is somebody else's, or, behind the network's own tag, at a switch that takes off one.
        if !self.around.uplinks.is_empty() {
            guests.push(vec![jump(UNTAGGED)]);
        }
        if !macs.is_empty() {
            guests.push(vec![is(MAC_FROM, words(macs)), drop_as(Reason::SpoofedMac)]);
        }
        if let Some(mac) = self.service_mac() {
            if self.around.uplinks.is_empty() {
                // It takes a frame with a priority tag for one without, and what is in it is not looked at here.
                guests.push(vec![word(MAC_TO, &mac), jump(UNTAGGED)]);
            }
            guests.push(vec![
                at_metadata(Version::V4, "daddr"),
                number(TCP_TO, &[80]),
                Statement::SetMac(MAC_TO, mac),
            ]);
        }
        guests.push(vec![Statement::Accept]);
        self.chain(Family::Bridge, self.name("n"), &whose, guests);
        if self.spec.ports.iter().any(|port| port.security.is_some()) {
            let early = self.early();
            self.chain(Family::Bridge, self.name("q"), &whose, early);
            let asked = self.asked();
            self.chain(Family::Bridge, self.name("d"), &whose, asked);
        }
        if self.spec.ports.iter().any(|port| port.security.is_none()) {
            let open = vec![vec![Statement::Accept]];
            self.chain(Family::Bridge, self.name("a"), &whose, open);
        }

        if !self.around.uplinks.is_empty() {
            self.uplinks(&whose);
        }
        self.tunnel(&whose);
        if let (Some(family), Some(zone)) = (tracking_family(self.stateful), self.zone) {
            let whose = format!("{whose} zone {zone}");
            let mut rules = self.to_the_host(family);
            rules.push(vec![Statement::SetZone(zone)]);
            self.chain(family, self.name("z"), &whose, rules);
            let key = (family, ZONES.to_owned(), link_names::bridge(self.id));
            self.wanted.links.insert(key, self.name("z"));
        }
    }

    /// What comes to the host itself over the NIC of a `flat` network, whose bridge may have the host's addresses: the host's IP stack
    /// and its own firewall look for its connection in no zone.
    fn to_the_host(&self, family: Family) -> Vec<Vec<Statement>> {
        if self.spec.network_type != NetworkType::Flat {
            return Vec::new();
        }
        match family {
            // There it came in by the bridge, whichever of its links that was.
            Family::Inet => vec![vec![
                bit(TO_HOST),
                // Others on the host may mean something else by it.
                Statement::ClearMarkBits(TO_HOST),
                Statement::Accept,
            ]],
            Family::Bridge => {
                let nics = self.around.uplinks.iter();
                nics.map(|nic| vec![word(IN, nic), for_its_address(), Statement::Accept])
                    .collect()
            }
        }
    }

    /// Which hosts may send into its VXLAN. It is asked before the packet gets to the VTEP, whichever address of the host it is for.
    fn tunnel(&mut self, whose: &str) {
        let Some(tunnel) = &self.around.tunnel else {
            return;
        };
        let version = tunnel.version();
        let (header, set) = match version {
            Version::V4 => ("ip", "h4"),
            Version::V6 => ("ip6", "h6"),
        };
        let members = tunnel.senders.iter().copied().map(IpNet::from).collect();
        let key = format!("{} . {}", tunnel.end.port, tunnel.end.id);
        let [chain, hosts] = ["v", set].map(|kind| self.name(kind));
        let known = is(
            Field::Header(header, "saddr"),
            Operand::Named(hosts.clone()),
        );
        let rules = vec![
            vec![known, Statement::Accept],
            vec![Statement::Count, Statement::Goto(FOREIGN.to_owned())],
        ];
        let family = Family::Inet;
        self.wanted
            .sets
            .insert((family, hosts), AddressSet { version, members });
        self.chain(family, chain.clone(), whose, rules);
        let key = (family, TUNNELS.to_owned(), key);
        self.wanted.links.insert(key, chain);
    }

    fn uplinks(&mut self, whose: &str) {
        let mut inwards = vec![vec![Statement::ClearMarkBits(KNOWN | INVALID | TO_HOST)]];
        if self.spec.network_type == NetworkType::Flat && self.stateful == Stateful::BrNetfilter {
            inwards.push(vec![for_its_address(), Statement::SetMarkBits(TO_HOST)]);
        }
        // From one end of a cable to the other, which is not here.
        inwards.push(vec![word(MAC_TO, LLDP), Statement::Drop]);
        inwards.extend(foreign_tags());
        let mut outwards = vec![vec![tagged(), Statement::Drop]];
        let legs = self.leg_macs();
        if let Some(mac) = self.service_mac() {
            for rules in [&mut inwards, &mut outwards] {
                rules.push(vec![word(MAC_FROM, &mac), Statement::Drop]);
                rules.push(vec![word(MAC_TO, &mac), Statement::Drop]);
            }
        }
        if !legs.is_empty() {
            for rules in [&mut inwards, &mut outwards] {
                let macs = legs.iter().map(ToString::to_string);
                rules.push(vec![is(MAC_TO, words(macs)), Statement::Drop]);
            }
        }
        let both = self.stays_here();
        inwards.extend(both.clone());
        outwards.extend(both);
        let drop = |kinds: &[u32]| {
            let [icmp, kind] = icmp6(kinds);
            vec![icmp, kind, Statement::Drop]
        };
        match self.routers_outside() {
            RoutersOutside::Whoever => {}
            RoutersOutside::Gateway => {
                inwards.push(drop(&[133, 137]));
                outwards.push(drop(&[134, 137]));
            }
            RoutersOutside::None => {
                inwards.push(drop(&[133, 134, 137]));
                outwards.push(drop(&[133, 134, 137]));
            }
        }
        if let Some(host) = self.host_mac() {
            let macs = || words(legs.iter().map(ToString::to_string));
            inwards.push(vec![is(MAC_FROM, macs()), Statement::Drop]);
            // What other hosts tell switches, and no guest.
            inwards.push(vec![number(ABOVE, &[RARP]), Statement::Drop]);
            outwards.extend(routed(&macs(), &host));
        }
        inwards.push(vec![Statement::Accept]);
        outwards.push(vec![Statement::Accept]);
        let [from, to] = [self.name("u"), self.name("o")];
        self.chain(Family::Bridge, from.clone(), whose, inwards);
        self.chain(Family::Bridge, to.clone(), whose, outwards);
        for link in self.around.uplinks.clone() {
            self.link(SOURCE, &link, from.clone());
            self.link(INGRESS, &link, to.clone());
        }
    }

    /// What crosses no uplink, in neither direction.
    fn stays_here(&self) -> Vec<Vec<Statement>> {
        let mut rules = Vec::new();
        let own = self.own_addresses();
        let of = |version| -> BTreeSet<IpNet> {
            let own = own.iter().copied();
            own.filter(|net| Version::of(*net) == version).collect()
        };
        let v4 = of(Version::V4);
        if !v4.is_empty() {
            for field in ["saddr ip", "daddr ip"] {
                let mut rule = vec![word(ABOVE, "arp")];
                rule.extend(within(Field::Header("arp", field), &v4));
                rules.push(rule);
            }
        }
        for target in targets(&of(Version::V6)) {
            let mut rule = icmp6(&[135, 136]).to_vec();
            rule.extend(target);
            rules.push(rule);
        }
        // Whichever port it comes from: some clients look only at where it goes.
        if self.serves(Version::V4) {
            rules.push(vec![number(UDP_TO, &[67, 68])]);
        }
        if self.serves(Version::V6) {
            rules.push(vec![number(UDP_TO, &[546, 547])]);
        }
        for rule in &mut rules {
            rule.push(Statement::Drop);
        }
        rules
    }

    /// Who beyond the uplinks may advertise a router of IPv6.
    fn routers_outside(&self) -> RoutersOutside {
        // A subnet may say that nobody here does.
        let is_whoevers = self.spec.subnets.iter().any(|subnet| {
            subnet.cidr.is_ipv6() && subnet.dhcp_ip.is_none() && subnet.ipv6_address_mode.is_none()
        });
        if is_whoevers {
            return RoutersOutside::Whoever;
        }
        let is_physical = match self.spec.network_type {
            NetworkType::Flat | NetworkType::Vlan => true,
            NetworkType::Local | NetworkType::Nat | NetworkType::Vxlan => false,
        };
        let is_leg = |address: &IpAddr| {
            let mut legs = self.around.legs.iter();
            legs.any(|leg| leg.ip_addresses.contains(address))
        };
        let gateways = self.spec.subnets.iter().filter_map(|it| it.gateway_ip);
        let mut gateways = gateways.filter(IpAddr::is_ipv6);
        if is_physical && gateways.any(|gateway| !is_leg(&gateway)) {
            RoutersOutside::Gateway
        } else {
            RoutersOutside::None
        }
    }

    /// What a guest sends before it has an address; the rest goes back.
    fn early(&self) -> Vec<Vec<Statement>> {
        let pass = || Statement::Goto(self.name("n"));
        let [icmp, kind] = icmp6(&EARLY_ICMP6);
        vec![
            vec![
                word(Field::Header("ip", "saddr"), "0.0.0.0"),
                number(UDP_FROM, &[68]),
                number(UDP_TO, &[67]),
                pass(),
            ],
            vec![
                word(Field::Header("ip6", "saddr"), "::"),
                icmp,
                kind,
                pass(),
            ],
        ]
    }

    /// What a guest may send whatever its groups say: what finds its neighbours, and what it asks of berth's own services or, where
    /// there are none, of a DHCP server in the network. The rest goes back.
    fn asked(&self) -> Vec<Vec<Statement>> {
        let of = |version, is_unserved: bool| -> BTreeSet<IpNet> {
            let subnets = self.spec.subnets.iter();
            let subnets = subnets.filter(|it| !is_unserved || it.dhcp_ip.is_none());
            let nets = subnets.map(|subnet| subnet.cidr.net());
            minimal(nets.filter(|net| Version::of(*net) == version))
        };
        let mut rules = vec![vec![jump(NEIGHBOURS)]];
        let accept = |mut rule: Vec<Statement>| {
            rule.push(Statement::Accept);
            rule
        };
        let neighbours = of(Version::V6, false);
        let legs = self.leg_macs();
        if !legs.is_empty() && !neighbours.is_empty() {
            rules.push(accept(finds_neighbours(&[135, 136], neighbours)));
        }
        // Addresses of pairs, and of others on the wire, may be in no subnet: what no router gets stays on the link.
        let mut on_link = finds_neighbours(&[135, 136], BTreeSet::from([EVERYBODY_V6]));
        if !legs.is_empty() {
            let macs = words(legs.iter().map(ToString::to_string));
            on_link.push(Statement::Match(MAC_TO, Op::IsNot, macs));
        }
        rules.push(accept(on_link));
        if self.is_served() {
            let services = word(OUT, &link_names::veth_host(self.id));
            rules.push(vec![services, jump(ASKED)]);
        }
        let [v4, v6] = DHCP_ASKS;
        // To have an address for longer, it asks the server that gave it.
        for (asks, header, version) in [(v4, "ip", Version::V4), (v6, "ip6", Version::V6)] {
            let nets = of(version, true);
            if !nets.is_empty() {
                rules.push(accept(asks_for_address(asks, header, nets)));
            }
        }
        rules
    }

    fn port(&mut self, port: &NetworkPort) {
        let tap = link_names::tap(port.id);
        self.wanted.counted.insert(tap.clone());
        let is_held = self.is_served() && may_be_others(port);
        let held = |rules: Vec<Vec<Statement>>| if is_held { rules } else { Vec::new() };
        let answered = held(answered_itself(port));
        let chains = if let Some(security) = &port.security {
            let identities = identities(port, security);
            let asks = held(asks_as_itself(port, Some(&identities), &self.name("n")));
            vec![
                (SOURCE, "s", self.source(asks, &identities)),
                (EGRESS, "e", self.egress(&identities, security)),
                (INGRESS, "i", self.ingress(answered, &identities, security)),
            ]
        } else if is_held {
            let asks = asks_as_itself(port, None, &self.name("n"));
            let goes_on = |mut rules: Vec<Vec<Statement>>, chain| {
                rules.push(vec![Statement::Goto(self.name(chain))]);
                rules
            };
            vec![
                (SOURCE, "s", goes_on(asks, "n")),
                (INGRESS, "i", goes_on(answered, "a")),
            ]
        } else {
            self.link(SOURCE, &tap, self.name("n"));
            self.link(INGRESS, &tap, self.name("a"));
            return;
        };
        let whose = format!("port {} of network {}", port.id, self.id);
        for (map, kind, rules) in chains {
            let name = names::of_port(kind, self.id, port.id);
            self.chain(Family::Bridge, name.clone(), &whose, rules);
            self.link(map, &tap, name);
        }
    }

    /// Whose a frame of a guest is. What may pass is said; what is left is told apart only to be counted.
    fn source(
        &self,
        metadata: Vec<Vec<Statement>>,
        identities: &[Identity],
    ) -> Vec<Vec<Statement>> {
        let pass = || Statement::Goto(self.name("n"));
        let mut rules = vec![vec![jump(UNTAGGED)]];
        rules.extend(metadata);
        for identity in identities {
            let from = || word(MAC_FROM, &identity.mac);
            // A probe for an address that is about to be used (RFC 5227). A rule of its own: with the only address it would be a set.
            let probe = IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let of_arp = [&identity.v4, &BTreeSet::from([probe])];
            for nets in of_arp.into_iter().filter(|nets| !nets.is_empty()) {
                let mut arp = vec![
                    word(ETHER_TYPE, "arp"),
                    from(),
                    word(Field::Header("arp", "saddr ether"), &identity.mac),
                ];
                arp.extend(within(Field::Header("arp", "saddr ip"), nets));
                arp.push(pass());
                rules.push(arp);
            }
            for (header, nets) in [("ip", &identity.v4), ("ip6", &identity.v6)] {
                if !nets.is_empty() {
                    let mut rule = vec![word(ETHER_TYPE, header), from()];
                    rule.extend(within(Field::Header(header, "saddr"), nets));
                    rule.push(pass());
                    rules.push(rule);
                }
            }
            rules.push(vec![from(), Statement::Jump(self.name("q"))]);
        }
        let macs = identities.iter().map(|identity| identity.mac.clone());
        rules.push(vec![
            Statement::Match(MAC_FROM, Op::IsNot, words(macs)),
            drop_as(Reason::SpoofedMac),
        ]);
        rules.push(vec![Statement::Goto(STRANGERS.to_owned())]);
        rules
    }

    /// What a guest may send. Fragments are joined by now.
    fn egress(&self, identities: &[Identity], security: &PortSecurity) -> Vec<Vec<Statement>> {
        let asked = self.name("d");
        let mut rules = vec![vec![jump(ROGUES)]];
        rules.extend(neighbours(identities, &asked));
        rules.extend([vec![jump(SENT)], vec![jump(&asked)]]);
        rules.extend(self.jumps("ge", security));
        rules.push(vec![drop_as(Reason::DeniedEgress)]);
        rules
    }

    /// What a guest may receive.
    fn ingress(
        &self,
        metadata: Vec<Vec<Statement>>,
        identities: &[Identity],
        security: &PortSecurity,
    ) -> Vec<Vec<Statement>> {
        let macs = identities.iter().map(|identity| identity.mac.clone());
        let mut rules = vec![
            // A frame to somebody else: the bridge does not know where that is, and asks everybody.
            vec![
                word(Field::GroupBit, "00:00:00:00:00:00"),
                Statement::Match(MAC_TO, Op::IsNot, words(macs)),
                Statement::Drop,
            ],
        ];
        rules.extend(metadata);
        if self.is_served() {
            let services = word(IN, &link_names::veth_host(self.id));
            rules.push(vec![services, jump(SERVICES)]);
        }
        rules.push(vec![jump(RECEIVED)]);
        rules.extend(self.jumps("gi", security));
        rules.push(vec![drop_as(Reason::DeniedIngress)]);
        rules
    }

    /// The way through the groups that have a chain.
    fn jumps(&self, kind: &str, security: &PortSecurity) -> Vec<Vec<Statement>> {
        let groups: BTreeSet<_> = security.security_groups.iter().copied().collect();
        groups
            .into_iter()
            .filter(|group| {
                self.spec
                    .security_groups
                    .iter()
                    .any(|known| known.id == *group)
            })
            .map(|group| vec![Statement::Jump(names::of_group(kind, self.id, group))])
            .collect()
    }

    /// The chains of the groups, and the sets of members that their rules ask.
    fn groups(&mut self) {
        for group in &self.spec.security_groups {
            let whose = format!("group {} in network {}", group.id, self.id);
            for (kind, direction) in [
                ("gi", RuleDirection::Ingress),
                ("ge", RuleDirection::Egress),
            ] {
                let rules = group::rules(self.id, group, direction);
                let name = names::of_group(kind, self.id, group.id);
                self.chain(Family::Bridge, name, &whose, rules);
            }
            for remote in group::remotes(group) {
                let members = self.spec.group_members.get(&remote);
                let nets: Vec<IpNet> = members
                    .into_iter()
                    .flatten()
                    .map(|prefix| prefix.net())
                    .collect();
                for version in [Version::V4, Version::V6] {
                    let nets = nets.iter().copied();
                    let set = AddressSet {
                        version,
                        members: minimal(nets.filter(|net| Version::of(*net) == version)),
                    };
                    let name = group::set_name(self.id, remote, version);
                    self.wanted.sets.insert((Family::Bridge, name), set);
                }
            }
        }
    }
}

/// What comes in by an uplink with a tag that it has still: the tag of a network's own VLAN is off by then, so it is of a VLAN that is
/// somebody else's. A tag that names no VLAN tells a priority, and what it is on is this network's, as if it were without.
fn foreign_tags() -> [Vec<Statement>; 3] {
    [
        vec![word(ETHER_TYPE, "8021ad"), Statement::Drop],
        vec![
            Statement::Match(VLAN, Op::IsNot, Operand::Number(0)),
            Statement::Drop,
        ],
        // One behind another.
        vec![is(ABOVE, words(TAGS)), Statement::Drop],
    ]
}

/// What crosses an uplink of what legs send: packets to ports on other hosts, whose places documents tell. There the legs have the
/// same Ethernet addresses, and to switches they would be in many places, so it is sent with the host's own one. Everything else
/// that a leg sends is for this host.
fn routed(legs: &Operand, host: &str) -> Vec<Vec<Statement>> {
    let from = || is(MAC_FROM, legs.clone());
    let [icmp, kind] = icmp6(&NEIGHBOUR_ICMP6);
    vec![
        vec![from(), icmp, kind, Statement::Drop],
        vec![
            from(),
            word(Field::GroupBit, "00:00:00:00:00:00"),
            is(ETHER_TYPE, words(["ip", "ip6"])),
            Statement::SetMac(MAC_FROM, host.to_owned()),
            Statement::Accept,
        ],
        vec![from(), Statement::Drop],
    ]
}

/// That a packet is for the metadata service, or from it: by which field that is.
fn at_metadata(version: Version, field: &'static str) -> Statement {
    let address = match version {
        Version::V4 => IpAddr::V4(metadata::ADDRESS_V4),
        Version::V6 => IpAddr::V6(metadata::ADDRESS_V6),
    };
    let address = Operand::Net(IpNet::from(address));
    is(Field::Header(version.header(), field), address)
}

/// What of that is looked at. No port, as only one fragment of several tells it; and the address in IPv6 is also the one by which
/// guests find DHCP, and it them, from whichever address they have.
fn is_told_apart(version: Version) -> Option<Statement> {
    (version == Version::V6).then(|| word(L4, "tcp"))
}

/// The metadata service tells a guest what is its own, and knows it by its address: so it is asked from the port's own ones alone,
/// whatever else the guest may send from.
fn asks_as_itself(
    port: &NetworkPort,
    identities: Option<&[Identity]>,
    pass: &str,
) -> Vec<Vec<Statement>> {
    let own = known_by(port);
    let mut rules = Vec::new();
    for (version, nets) in [(Version::V4, &own.v4), (Version::V6, &own.v6)] {
        let asked = || {
            let mut rule = vec![at_metadata(version, "daddr")];
            rule.extend(is_told_apart(version));
            rule
        };
        if !nets.is_empty() {
            let mut rule = asked();
            rule.push(word(MAC_FROM, &own.mac));
            rule.extend(within(Field::Header(version.header(), "saddr"), nets));
            rule.push(Statement::Goto(pass.to_owned()));
            rules.push(rule);
        }
        let mut rule = asked();
        // Any other Ethernet address is counted as such.
        rule.extend(identities.map(|identities| {
            let macs = identities.iter().map(|identity| identity.mac.clone());
            is(MAC_FROM, words(macs))
        }));
        rule.push(drop_as(Reason::SpoofedIp));
        rules.push(rule);
    }
    rules
}

/// What the metadata service answers goes to the address that asked: a guest that tells the service that this address is where itself
/// is gets nothing of it.
fn answered_itself(port: &NetworkPort) -> Vec<Vec<Statement>> {
    let own = known_by(port);
    let rules = [(Version::V4, own.v4), (Version::V6, own.v6)].into_iter();
    let rules = rules.map(|(version, nets)| {
        let mut rule = vec![at_metadata(version, "saddr")];
        rule.extend(is_told_apart(version));
        if !nets.is_empty() {
            let nets = nets.into_iter().map(Operand::Net).collect();
            let to = Field::Header(version.header(), "daddr");
            rule.push(Statement::Match(to, Op::IsNot, Operand::one_of(nets)));
        }
        rule.push(Statement::Drop);
        rule
    });
    rules.collect()
}

/// A guest tells its neighbours nothing about addresses of others: neither that it has them, nor where they are. What it tells of its own
/// goes to these alone.
fn neighbours(identities: &[Identity], to_neighbours: &str) -> Vec<Vec<Statement>> {
    /// An option of one unit of eight bytes that tells the target's Ethernet address.
    const TARGET_MAC: u32 = 0x0201;
    let mut rules = Vec::new();
    let length = Field::Header("ip6", "length");
    for identity in identities {
        let mac = Operand::Text(format!("0x{}", identity.mac.replace(':', "")));
        for target in targets(&identity.v6) {
            let advertises = || {
                let mut rule = icmp6(&[136]).to_vec();
                rule.push(word(MAC_FROM, &identity.mac));
                rule.extend(target.clone());
                rule
            };
            let mut bare = advertises();
            bare.extend([number(length, &[24]), jump(to_neighbours)]);
            let mut with_option = advertises();
            with_option.extend([
                number(length, &[32]),
                number(Field::Transport(192, 16), &[TARGET_MAC]),
                is(Field::Transport(208, 48), mac.clone()),
                jump(to_neighbours),
            ]);
            rules.extend([bare, with_option]);
        }
    }
    let [icmp, kind] = icmp6(&[136]);
    rules.push(vec![icmp, kind, drop_as(Reason::SpoofedNd)]);
    for identity in identities {
        let mac = Operand::Text(format!("0x{}", identity.mac.replace(':', "")));
        let [icmp, kind] = icmp6(&[135]);
        // An option that tells the sender's Ethernet address, after the target of a solicitation.
        rules.push(vec![
            icmp,
            kind,
            word(MAC_FROM, &identity.mac),
            number(Field::Transport(192, 8), &[1]),
            Statement::Match(Field::Transport(208, 48), Op::IsNot, mac),
            drop_as(Reason::SpoofedNd),
        ]);
    }
    rules
}
