//! What the tables hold for the whole host: the chains at the kernel's hooks, the named maps that lead from a link to its chains,
//! and a chain and a set for each reason to drop. They are made once; a packet's way through them does not grow with the ports.
//!
//! What is the same for all ports is here as well, in chains that theirs go through: a rule in each port's chain that names several
//! types or numbers would be a set for each, and the kernel looks at all sets for each new one, as nft does before each change.
//!
//! ```text
//!  bridge prerouting -300  iifname ▶ map source   who sends: s_ (port), u_ (uplink)
//!  bridge forward     100  iifname ▶ map egress   e_ (port): what it may send        (also input: to the host)
//!  bridge forward     110  oifname ▶ map ingress  i_ (port): what it may receive, o_ (uplink)  (also output)
//!
//!  prerouting        -301  bridge ▶ map zones     z_ (network): where connections are looked for; in the family that tracks them
//!  inet prerouting   -150  what is known of the connection ▶ bits of the mark, where the bridge itself cannot track them
//!
//!  inet input        -150  UDP port, VNI ▶ map tunnels    v_ (network): which hosts may send into a VXLAN; once there is one
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::{IpNet, Ipv6Net};

use super::{
    nft::{
        ABOVE, ETHER_TYPE, Family, Field, ICMP4, ICMP6, IN, L4, MAC_TO, OUT, Op, Operand, Rule,
        Statement, TABLE, TCP_FROM, TCP_TO, UDP_FROM, UDP_TO, is, named, number, word, words,
    },
    part::{Name, Stray},
    reason::Reason,
    wanted::within,
};

/// How this kernel tells what belongs to a known connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Stateful {
    /// The bridge tracks connections itself (`nf_conntrack_bridge`).
    Bridge,
    /// `br_netfilter` shows bridged packets to the IP stack's hooks, which mark them.
    BrNetfilter,
    /// It cannot.
    #[default]
    No,
}

/// Whether it is asked who sends into VXLANs. Nothing of it is on a host that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Tunnels {
    /// Nobody asks.
    #[default]
    Open,
    /// What comes for a VXLAN of berth's is asked for.
    Guarded,
}

/// What the host's part of the tables depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Setup {
    /// How connections are tracked.
    pub stateful: Stateful,
    /// Whether it is asked who sends into VXLANs.
    pub tunnels: Tunnels,
}

/// Without VXLANs.
impl From<Stateful> for Setup {
    fn from(stateful: Stateful) -> Self {
        Self {
            stateful,
            tunnels: Tunnels::Open,
        }
    }
}

/// The packet answers to something that was allowed. Bits of the mark, for [`Stateful::BrNetfilter`].
pub const KNOWN: u32 = 0x1_0000;
/// It belongs to no connection and begins none.
pub const INVALID: u32 = 0x2_0000;
/// It came over a NIC and is for the host itself.
pub const TO_HOST: u32 = 0x4_0000;

/// The map of links that something comes in by.
pub const SOURCE: &str = "source";
/// The map of links that guests send by.
pub const EGRESS: &str = "egress";
/// The map of links that something goes out by.
pub const INGRESS: &str = "ingress";
/// The map of bridges to their zones.
pub const ZONES: &str = "zones";
/// The map of UDP ports and VNIs to who may send there.
pub const TUNNELS: &str = "tunnels";
/// Where it is asked.
const TUNNEL: &str = "tunnel";
/// What nobody named may send into a VXLAN ends here, and is counted.
pub const FOREIGN: &str = "drop-foreign_tunnel";
/// What berth's own services may always send to a guest.
pub const SERVICES: &str = "services";
/// Frames with VLAN tags end here; others go on.
pub const UNTAGGED: &str = "untagged";
/// What a guest sent from none of its addresses ends here, told apart only to be counted.
pub const STRANGERS: &str = "strangers";
/// ARP passes, and who plays DHCP server or router ends here; others go on.
pub const ROGUES: &str = "rogues";
/// What each guest may send; the rest goes on.
pub const SENT: &str = "sent";
/// What each guest may ask of berth's own services; the rest goes on.
pub const ASKED: &str = "asked";
/// What finds neighbours and routers on the link itself, whoever they are; the rest goes on.
pub const NEIGHBOURS: &str = "neighbours";
/// What each guest may receive; the rest goes on.
pub const RECEIVED: &str = "received";

/// What frames say they carry that have a VLAN tag.
pub const TAGS: [&str; 2] = ["8021q", "8021ad"];

/// The types of `ICMPv6` by which a guest tells which groups it hears. They go to groups (RFC 2710, RFC 3810).
pub const GROUPS_ICMP6: [u32; 3] = [131, 132, 143];
/// The types by which it asks for routers and neighbours, and tells that it is one: of these, only its own addresses.
pub const NEIGHBOURS_ICMP6: [u32; 3] = [133, 135, 136];
/// The types that it receives whatever its groups say: who asks for groups, and tells of them.
pub const RECEIVED_GROUPS_ICMP6: [u32; 4] = [130, 131, 132, 143];
/// The same of routers and neighbours.
pub const RECEIVED_NEIGHBOURS_ICMP6: [u32; 3] = [134, 135, 136];
/// The types by which a router tells that it is one.
pub const ROUTER_ICMP6: [u32; 2] = [134, 137];
/// The same in IPv4.
pub const ROUTER_ICMP4: [u32; 2] = [5, 9];

/// The Ethernet addresses that no bridge forwards (IEEE 802.1D): the first of a block of 16. Linux takes most of them for its own without
/// asking where the rules of [`SOURCE`] are, and one of them, that of LLDP, without asking anybody, unless it is told to forward it
/// ([`crate::decide::network::BridgeOptions::WANTED`]).
const RESERVED: &str = "01:80:c2:00:00:00";
/// That of LLDP, which is for whoever is at the other end of the cable, as for each of a bridge's ports.
pub const LLDP: &str = "01:80:c2:00:00:0e";

/// What tells of groups has this hop limit, so that no router sends it on.
pub const GROUPS_HOPS: u32 = 1;
/// What finds neighbours and routers has this hop limit, so that none has sent it on (RFC 4861, 11.2).
pub const NEIGHBOURS_HOPS: u32 = 255;

/// Every group of receivers in IPv6.
pub const GROUPS_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
    8,
));
/// Groups of receivers on the link.
pub const LINK_GROUPS_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0),
    16,
));
/// Addresses that no router leads to.
pub const LINK_LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    10,
));
/// Everybody on the link who serves DHCPv6, or passes it on.
pub const DHCPV6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// From and to which port a guest asks for addresses: by DHCP and by DHCPv6.
pub const DHCP_ASKS: [(u32, u32); 2] = [(68, 67), (546, 547)];
/// From which ports DHCP servers answer.
pub const DHCP_FROM_SERVERS: [u32; 2] = [67, 547];
/// To which ports they answer. Some clients look at nothing else.
pub const DHCP_TO_CLIENTS: [u32; 2] = [68, 546];

/// Links with names like these are taps of berth's; those that no map knows get and send nothing.
const TAPS: &str = "btt*";
/// Links of berth's of any kind.
const LINKS: &str = "bt*";
/// Bridges of berth's.
const BRIDGES: &str = "btb*";

/// A chain at a hook.
struct Hook {
    family: Family,
    name: &'static str,
    hook: &'static str,
    priority: i32,
}

const fn hook(family: Family, name: &'static str, hook: &'static str, priority: i32) -> Hook {
    Hook {
        family,
        name,
        hook,
        priority,
    }
}

const BRIDGE_HOOKS: [Hook; 5] = [
    hook(Family::Bridge, "from", "prerouting", -300),
    hook(Family::Bridge, "egress-forward", "forward", 100),
    hook(Family::Bridge, "egress-input", "input", 100),
    hook(Family::Bridge, "ingress-forward", "forward", 110),
    hook(Family::Bridge, "ingress-output", "output", 110),
];

const TRACKING_BRIDGE_HOOKS: [Hook; 1] = [hook(Family::Bridge, "zone", "prerouting", -301)];

const INET_HOOKS: [Hook; 3] = [
    hook(Family::Inet, "zone", "prerouting", -301),
    hook(Family::Inet, "mark-bridge", "prerouting", -150),
    hook(Family::Inet, "mark-host", "postrouting", -150),
];

/// What a packet is for is known there, and its fragments are together but for those of IPv6.
const TUNNEL_HOOKS: [Hook; 1] = [hook(Family::Inet, TUNNEL, "input", -150)];

fn hooks(setup: Setup) -> impl Iterator<Item = &'static Hook> {
    let more: &[Hook] = match setup.stateful {
        Stateful::BrNetfilter => &INET_HOOKS,
        Stateful::Bridge => &TRACKING_BRIDGE_HOOKS,
        Stateful::No => &[],
    };
    let of_tunnels: &[Hook] = match setup.tunnels {
        Tunnels::Open => &[],
        Tunnels::Guarded => &TUNNEL_HOOKS,
    };
    BRIDGE_HOOKS.iter().chain(more).chain(of_tunnels)
}

fn rule(statements: Vec<Statement>) -> Rule {
    Rule {
        statements,
        whose: "host".to_owned(),
    }
}

/// The chains of the host with their rules.
fn chains(Setup { stateful, tunnels }: Setup) -> BTreeMap<Name, Vec<Rule>> {
    let mut chains: BTreeMap<Name, Vec<Rule>> = BTreeMap::new();
    let mut chain = |family, name: &str, rules: Vec<Vec<Statement>>| {
        let rules = rules.into_iter().map(rule).collect();
        chains.insert((family, name.to_owned()), rules);
    };
    let bridge = Family::Bridge;
    let unknown = |link| vec![word(link, TAPS), Statement::Count, Statement::Drop];
    chain(
        bridge,
        "from",
        vec![
            vec![
                word(IN, LINKS),
                Statement::ClearMarkBits(KNOWN | INVALID | TO_HOST),
            ],
            vec![
                word(MAC_TO, LLDP),
                word(IN, TAPS),
                drop_as(Reason::Reserved),
            ],
            vec![Statement::Vmap(IN, SOURCE)],
            unknown(IN),
        ],
    );
    let sent_by = || vec![Statement::Vmap(IN, EGRESS)];
    chain(bridge, "egress-forward", vec![sent_by()]);
    let reserved = vec![
        word(Field::Block, RESERVED),
        word(IN, TAPS),
        drop_as(Reason::Reserved),
    ];
    chain(bridge, "egress-input", vec![reserved, sent_by()]);
    for name in ["ingress-forward", "ingress-output"] {
        chain(
            bridge,
            name,
            vec![vec![Statement::Vmap(OUT, INGRESS)], unknown(OUT)],
        );
    }
    chain(bridge, SERVICES, services());
    chain(bridge, UNTAGGED, untagged());
    chain(bridge, STRANGERS, strangers());
    chain(bridge, ROGUES, rogues());
    chain(bridge, NEIGHBOURS, neighbours());
    chain(bridge, SENT, sent(stateful));
    chain(bridge, ASKED, asked());
    chain(bridge, RECEIVED, received(stateful));
    for reason in Reason::ALL {
        let link = if reason.is_of_receiver() { OUT } else { IN };
        let counted = Operand::Named(reason.set());
        chain(
            bridge,
            &reason.chain(),
            vec![
                vec![Statement::Match(link, Op::Is, counted), Statement::Drop],
                vec![Statement::Drop],
            ],
        );
    }
    if stateful == Stateful::Bridge {
        let of_bridge = Field::Meta("ibrname");
        let zone = vec![vec![Statement::Vmap(of_bridge, ZONES)]];
        chain(bridge, "zone", zone);
    }
    if stateful == Stateful::BrNetfilter {
        let inet = Family::Inet;
        chain(inet, "zone", vec![vec![Statement::Vmap(IN, ZONES)]]);
        chain(inet, "mark-bridge", marks(IN));
        chain(inet, "mark-host", marks(OUT));
    }
    if tunnels == Tunnels::Guarded {
        chain(Family::Inet, TUNNEL, into_tunnels());
        let dropped = vec![vec![Statement::Count, Statement::Drop]];
        chain(Family::Inet, FOREIGN, dropped);
    }
    chains
}

/// What is for a VXLAN of berth's goes to the network's own chain; what is for another passes. A first fragment of IPv6 that ends before
/// the VNI could be for any: no host sends such ones.
fn into_tunnels() -> Vec<Vec<Statement>> {
    let first_fragment = || {
        let offset = Field::Header("frag", "frag-off");
        vec![word(L4, "udp"), number(offset, &[0])]
    };
    // The whole header of a VXLAN is there, whatever is in it.
    let is_readable = Statement::Match(
        Field::Transport(64, 64),
        Op::IsNot,
        Operand::text("0xffffffffffffffff"),
    );
    vec![
        vec![Statement::Vmap(Field::Tunnel, TUNNELS)],
        then(
            first_fragment().into_iter().chain([is_readable]),
            Statement::Accept,
        ),
        then(first_fragment(), Statement::Goto(FOREIGN.to_owned())),
    ]
}

/// Tells the bridge what the IP stack knows of the connection.
fn marks(link: Field) -> Vec<Vec<Statement>> {
    known_matches()
        .into_iter()
        .map(|known| (known, KNOWN))
        .chain([(vec![state("invalid")], INVALID)])
        .map(|(matches, bit)| {
            let mut rule = vec![word(link, BRIDGES)];
            rule.extend(matches);
            rule.push(Statement::SetMarkBits(bit));
            rule
        })
        .collect()
}

/// That a bit of the mark is set.
pub(super) fn bit(bit: u32) -> Statement {
    Statement::Match(Field::MarkBits(bit), Op::Is, Operand::Number(bit))
}

fn state(state: &str) -> Statement {
    Statement::Match(Field::Ct("state"), Op::Has, Operand::text(state))
}

/// What a packet is that answers to something allowed. Packets in the direction of the first one are never known: they are allowed
/// for as long as a rule allows them.
fn known_matches() -> [Vec<Statement>; 2] {
    let reply = Statement::Match(Field::Ct("direction"), Op::Is, Operand::text("reply"));
    [vec![state("established"), reply], vec![state("related")]]
}

/// The rules that let pass what is known, and drop what is invalid.
fn by_connection(stateful: Stateful, invalid: Reason) -> Vec<Vec<Statement>> {
    let dropped = Statement::Goto(invalid.chain());
    match stateful {
        Stateful::No => Vec::new(),
        Stateful::BrNetfilter => vec![
            vec![bit(KNOWN), Statement::Accept],
            vec![bit(INVALID), dropped],
        ],
        Stateful::Bridge => {
            let mut rules: Vec<_> = known_matches()
                .into_iter()
                .map(|mut known| {
                    known.push(Statement::Accept);
                    known
                })
                .collect();
            rules.push(vec![state("invalid"), dropped]);
            rules
        }
    }
}

/// The types of ICMP that berth's own services may always send: answers to pings and errors.
pub const SERVICES_ICMP4: [u32; 4] = [0, 3, 11, 12];
/// The same in IPv6, where addresses are found by it too.
pub const SERVICES_ICMP6: [u32; 8] = [1, 2, 3, 4, 129, 134, 135, 136];

/// That a packet is of ICMP, and of one of these types.
fn icmp4(types: &[u32]) -> [Statement; 2] {
    [word(L4, "icmp"), number(ICMP4, types)]
}

/// That a packet is of `ICMPv6`, and of one of these types.
pub(super) fn icmp6(types: &[u32]) -> [Statement; 2] {
    [word(L4, "ipv6-icmp"), number(ICMP6, types)]
}

/// Counts and drops.
pub(super) fn drop_as(reason: Reason) -> Statement {
    Statement::Goto(reason.chain())
}

fn then(matches: impl IntoIterator<Item = Statement>, verdict: Statement) -> Vec<Statement> {
    matches.into_iter().chain([verdict]).collect()
}

/// DHCP, name service, metadata, and what makes addresses usable.
fn services() -> Vec<Vec<Statement>> {
    [
        vec![number(UDP_FROM, &[67]), number(UDP_TO, &[68])],
        vec![number(UDP_FROM, &[547]), number(UDP_TO, &[546])],
        vec![number(UDP_FROM, &[53])],
        vec![number(TCP_FROM, &[53, 80])],
        icmp4(&SERVICES_ICMP4).to_vec(),
        icmp6(&SERVICES_ICMP6).to_vec(),
    ]
    .into_iter()
    .map(|rule| then(rule, Statement::Accept))
    .collect()
}

fn untagged() -> Vec<Vec<Statement>> {
    vec![vec![is(ETHER_TYPE, words(TAGS)), drop_as(Reason::Tagged)]]
}

fn strangers() -> Vec<Vec<Statement>> {
    vec![
        vec![word(ETHER_TYPE, "arp"), drop_as(Reason::SpoofedArp)],
        vec![
            is(ETHER_TYPE, words(["ip", "ip6"])),
            drop_as(Reason::SpoofedIp),
        ],
        vec![drop_as(Reason::Ethertype)],
    ]
}

fn rogues() -> Vec<Vec<Statement>> {
    vec![
        vec![word(ABOVE, "arp"), Statement::Accept],
        vec![
            number(UDP_FROM, &DHCP_FROM_SERVERS),
            drop_as(Reason::RogueDhcp),
        ],
        vec![number(UDP_TO, &DHCP_TO_CLIENTS), drop_as(Reason::RogueDhcp)],
        then(icmp6(&ROUTER_ICMP6), drop_as(Reason::RogueRa)),
        then(icmp4(&ROUTER_ICMP4), drop_as(Reason::RogueRa)),
    ]
}

/// That a packet is for one of these.
pub(super) fn to(header: &'static str, nets: impl IntoIterator<Item = IpNet>) -> Option<Statement> {
    within(Field::Header(header, "daddr"), &nets.into_iter().collect())
}

/// That a packet of `ICMPv6` has this hop limit.
fn hops(limit: u32) -> Statement {
    number(Field::Header("ip6", "hoplimit"), &[limit])
}

/// That neighbour discovery is for one of these, and comes from the link.
pub(super) fn finds_neighbours(types: &[u32], nets: BTreeSet<IpNet>) -> Vec<Statement> {
    let mut rule = icmp6(types).to_vec();
    rule.push(hops(NEIGHBOURS_HOPS));
    rule.extend(to("ip6", nets));
    rule
}

/// That a guest asks a DHCP server for an address: from and to these ports, and at one of these.
pub(super) fn asks_for_address(
    (from, port): (u32, u32),
    header: &'static str,
    nets: BTreeSet<IpNet>,
) -> Vec<Statement> {
    let mut rule: Vec<Statement> = to(header, nets).into_iter().collect();
    rule.extend([number(UDP_FROM, &[from]), number(UDP_TO, &[port])]);
    rule
}

/// What stays on the link by the address it is for.
fn neighbours() -> Vec<Vec<Statement>> {
    let link = BTreeSet::from([LINK_GROUPS_V6, LINK_LOCAL_V6]);
    vec![then(
        finds_neighbours(&NEIGHBOURS_ICMP6, link),
        Statement::Accept,
    )]
}

/// What tells of addresses was asked for before.
fn sent(stateful: Stateful) -> Vec<Vec<Statement>> {
    let [v4, v6] = DHCP_ASKS;
    let everybody = IpNet::from(IpAddr::V4(Ipv4Addr::BROADCAST));
    let servers = IpNet::from(IpAddr::V6(DHCPV6_SERVERS));
    let dhcp = [
        asks_for_address(v4, "ip", BTreeSet::from([everybody])),
        asks_for_address(v6, "ip6", BTreeSet::from([servers, LINK_LOCAL_V6])),
    ];
    let mut groups = icmp6(&GROUPS_ICMP6).to_vec();
    groups.push(hops(GROUPS_HOPS));
    groups.extend(to("ip6", [GROUPS_V6]));
    let mut rules = vec![
        vec![Statement::Jump(NEIGHBOURS.to_owned())],
        then(groups, Statement::Accept),
    ];
    rules.extend(by_connection(stateful, Reason::InvalidEgress));
    rules.extend(dhcp.map(|rule| then(rule, Statement::Accept)));
    rules
}

/// Addresses, names and metadata.
fn asked() -> Vec<Vec<Statement>> {
    let dhcp = DHCP_ASKS
        .map(|(from, to)| vec![number(UDP_FROM, &[from]), number(UDP_TO, &[to])])
        .into_iter();
    dhcp.chain([vec![number(UDP_TO, &[53])], vec![number(TCP_TO, &[53, 80])]])
        .map(|rule| then(rule, Statement::Accept))
        .collect()
}

fn received(stateful: Stateful) -> Vec<Vec<Statement>> {
    let of = |types: &[u32], limit| then(icmp6(types), hops(limit));
    let mut rules = vec![
        vec![word(ABOVE, "arp"), Statement::Accept],
        then(of(&RECEIVED_GROUPS_ICMP6, GROUPS_HOPS), Statement::Accept),
        then(
            of(&RECEIVED_NEIGHBOURS_ICMP6, NEIGHBOURS_HOPS),
            Statement::Accept,
        ),
    ];
    rules.extend(by_connection(stateful, Reason::InvalidIngress));
    rules
}

/// The family that tracks connections, and so has zones.
#[must_use]
pub const fn tracking_family(stateful: Stateful) -> Option<Family> {
    match stateful {
        Stateful::Bridge => Some(Family::Bridge),
        Stateful::BrNetfilter => Some(Family::Inet),
        Stateful::No => None,
    }
}

fn maps(Setup { stateful, tunnels }: Setup) -> Vec<(Family, &'static str)> {
    let mut maps = vec![
        (Family::Bridge, SOURCE),
        (Family::Bridge, EGRESS),
        (Family::Bridge, INGRESS),
    ];
    maps.extend(tracking_family(stateful).map(|family| (family, ZONES)));
    if tunnels == Tunnels::Guarded {
        maps.push((Family::Inet, TUNNELS));
    }
    maps
}

/// Whether anything of what asks who sends into VXLANs is there.
#[must_use]
pub fn tunnels(base: &BTreeMap<Name, Vec<String>>) -> Tunnels {
    if base.keys().any(is_of_tunnels) {
        Tunnels::Guarded
    } else {
        Tunnels::Open
    }
}

/// Whether something of the host is there for VXLANs alone.
pub(super) fn is_of_tunnels((family, name): &Name) -> bool {
    *family == Family::Inet && [TUNNEL, TUNNELS, FOREIGN].contains(&name.as_str())
}

/// Something of the host as what is to be removed.
#[must_use]
pub fn stray((family, name): &Name) -> Stray {
    let kind = if [SOURCE, EGRESS, INGRESS, ZONES, TUNNELS].contains(&name.as_str()) {
        "map"
    } else if Reason::of_set(name).is_some() {
        "set"
    } else {
        "chain"
    };
    Stray {
        family: *family,
        kind,
        name: name.clone(),
    }
}

/// Everything of the host as it is listed once it is made. It follows from nothing else, and every plan asks for it.
#[must_use]
pub fn wanted(setup: impl Into<Setup>) -> &'static BTreeMap<Name, Vec<String>> {
    type Listed = BTreeMap<Name, Vec<String>>;
    static NOTHING: Listed = BTreeMap::new();
    static ALL: LazyLock<BTreeMap<Setup, Listed>> = LazyLock::new(|| {
        let ways = [Stateful::Bridge, Stateful::BrNetfilter, Stateful::No];
        let setups = ways.into_iter().flat_map(|stateful| {
            [Tunnels::Open, Tunnels::Guarded].map(|tunnels| Setup { stateful, tunnels })
        });
        setups.map(|setup| (setup, listed(setup))).collect()
    });
    ALL.get(&setup.into()).unwrap_or(&NOTHING)
}

fn listed(setup: Setup) -> BTreeMap<Name, Vec<String>> {
    let chains = chains(setup).into_iter();
    let mut wanted: BTreeMap<Name, Vec<String>> = chains
        .map(|(name, rules)| (name, rules.iter().map(Rule::comment).collect()))
        .collect();
    let sets = Reason::ALL.map(|reason| (Family::Bridge, reason.set()));
    let maps = maps(setup).into_iter();
    let named = maps.map(|(family, name)| (family, name.to_owned()));
    wanted.extend(sets.into_iter().chain(named).map(|name| (name, Vec::new())));
    wanted
}

/// The families that have a table then.
#[must_use]
pub const fn families(setup: Setup) -> &'static [Family] {
    match (setup.stateful, setup.tunnels) {
        (Stateful::BrNetfilter, _) | (_, Tunnels::Guarded) => &[Family::Bridge, Family::Inet],
        (Stateful::Bridge | Stateful::No, Tunnels::Open) => &[Family::Bridge],
    }
}

/// The commands that make all of it, whatever is there of it.
#[must_use]
pub fn commands(setup: impl Into<Setup>) -> Vec<String> {
    let setup = setup.into();
    let mut commands: Vec<String> = Vec::new();
    for family in families(setup).iter().copied().map(Family::as_str) {
        commands.push(format!("add table {family} {TABLE}"));
    }
    for Hook {
        family,
        name,
        hook,
        priority,
    } in hooks(setup)
    {
        commands.push(format!(
            "{} {{ type filter hook {hook} priority {priority}; policy accept; }}",
            named("add chain", *family, name)
        ));
    }
    let chains = chains(setup);
    for (family, name) in chains.keys() {
        if hooks(setup).all(|hook| (hook.family, hook.name) != (*family, name.as_str())) {
            commands.push(named("add chain", *family, name));
        }
        commands.push(named("flush chain", *family, name));
    }
    for (family, name) in maps(setup) {
        let map = named("add map", family, name);
        let key = match name {
            TUNNELS => "typeof udp dport . @th,96,24",
            _ => "type ifname",
        };
        commands.push(format!("{map} {{ {key} : verdict; }}"));
    }
    for reason in Reason::ALL {
        let set = named("add set", Family::Bridge, &reason.set());
        commands.push(format!("{set} {{ type ifname; counter; }}"));
    }
    for ((family, name), rules) in &chains {
        commands.extend(rules.iter().map(|rule| rule.add(*family, name)));
    }
    commands
}
