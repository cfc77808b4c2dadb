//! Networks that span hypervisors, with real guests: who is reached, whom an SSH key of the metadata service lets in, what a hostile
//! guest gets through, and what a guest's connection notices of agents that are killed, upgraded and told of other rules. Nothing in
//! a guest's path depends on the agent.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use berth_common::{
    document::{EtherType, NetworkType, PortRange, RuleDirection, RuleProtocol},
    ids::{NetworkId, SecurityGroupRuleId},
    message::{request::NetworkCreate, security_group::SecurityGroupRuleCreate, view::NetworkView},
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, Guest, GuestOptions, NOT_LOGGED_IN},
    ctl::Berthctl,
    http,
    lab::{Hypervisor, hypervisor::interrupt},
    wait::{Seen, wait_for},
    with_cloud,
};

use crate::hostile_frames::{self, Sender};

/// What the hostile guest pretends to be.
const FORGED_MAC: &str = "52:54:00:66:66:66";
/// An address of the network that nobody has.
const FORGED_IP: &str = "10.77.1.250";
/// The gateway of the network.
const GATEWAY: &str = "10.77.1.254";
/// How much of a transfer shows that it goes on.
const MORE_BYTES: u64 = 8 << 10;

/// Two tenants' networks, with the same addresses.
async fn networks(cloud: &TestCloud) -> anyhow::Result<[NetworkView; 2]> {
    // This one only opens the default group.
    cloud.create_network("local", 9).await?;
    let create = async |name: &str| {
        let request = NetworkCreate {
            id: NetworkId::new(),
            name: name.parse()?,
            project: Default::default(),
            network_type: NetworkType::Vxlan,
            physical_network: None,
            segmentation_id: None,
            external: false,
            cidr: Some("10.77.1.0/24".parse()?),
            gateway_ip: Some(GATEWAY.parse()?),
            dns_nameservers: Vec::new(),
            mtu: None,
        };
        cloud.call(&request).await
    };
    Ok([create("red").await?, create("blue").await?])
}

/// What the hypervisor's bridges hand to a guest, counted by what it is.
struct Heard<'a> {
    hypervisor: &'a Hypervisor,
}

impl<'a> Heard<'a> {
    async fn count(
        hypervisor: &'a Hypervisor,
        guest: &Guest,
        from: Sender,
        claimed: &str,
    ) -> anyhow::Result<Self> {
        let link = tap(hypervisor, guest).await?;
        let own = format!("ether saddr {}", from.mac);
        let mut rules = "add table bridge heard; add chain bridge heard by { type filter hook postrouting priority 300; }".to_owned();
        for (what, is) in [
            ("legitimate", format!("ip saddr {}", from.ip)),
            ("mac", format!("ether saddr {FORGED_MAC}")),
            ("ip", format!("ip saddr {FORGED_IP}")),
            (
                "arp",
                format!("ether type arp arp saddr ip {{ {claimed} }}"),
            ),
            ("offer", format!("ip saddr {} udp dport 68", from.ip)),
            ("tag", "ether type { 8021q, 8021ad }".to_owned()),
            // What it sends as itself.
            ("server", format!("{own} udp dport {{ 68, 546 }}")),
            (
                "router",
                format!("{own} icmpv6 type {{ nd-router-advert, nd-redirect }}"),
            ),
            (
                "router of IPv4",
                format!("{own} icmp type {{ redirect, router-advertisement }}"),
            ),
            (
                "neighbour",
                format!("{own} ip6 daddr ff02::1 icmpv6 type nd-neighbor-advert"),
            ),
        ] {
            rules += &format!(
                "; add rule bridge heard by oifname {link} {is} counter comment \"{what}\""
            );
        }
        hypervisor.text(&["nft", &rules]).await?;
        Ok(Self { hypervisor })
    }

    /// How many of each, in the order of the rules.
    async fn packets(&self) -> anyhow::Result<Vec<u64>> {
        let argv = ["nft", "-j", "list", "chain", "bridge", "heard", "by"];
        let listed: serde_json::Value = serde_json::from_str(&self.hypervisor.text(&argv).await?)?;
        let objects = listed["nftables"].as_array().context("no list")?;
        let rules = objects.iter().filter_map(|object| object.get("rule"));
        let counters = rules.filter_map(|rule| {
            let expressions = rule["expr"].as_array()?;
            let mut packets = expressions
                .iter()
                .map(|it| it["counter"]["packets"].as_u64());
            packets.find_map(|packets| packets)
        });
        Ok(counters.collect())
    }
}

/// A guest as one that sends.
fn sender(guest: &Guest) -> anyhow::Result<Sender> {
    let port = guest.view.ports.first().context("no port")?;
    Sender::new(port.mac_address, guest.address()?)
}

/// The tap of a guest.
async fn tap(hypervisor: &Hypervisor, guest: &Guest) -> anyhow::Result<String> {
    let domains = hypervisor.domains().await?;
    let id = guest.view.id.to_string();
    let domain = domains.iter().find(|name| name.contains(&id));
    hypervisor
        .first_link(domain.with_context(|| format!("no domain among {domains:?}"))?)
        .await
}

/// One guest takes another MAC, another IP, and the addresses of its neighbour and of the gateway, is a DHCP server and a router, and tags
/// frames, once and twice; before, it claims to the metadata service that it is its neighbour.
async fn nothing_hostile_is_heard(
    cloud: &TestCloud,
    [bad, neighbour]: [&Guest; 2],
) -> anyhow::Result<()> {
    let other = neighbour.address()?;
    let claimed = format!("{other}, {GATEWAY}");
    let beyond = cloud.hypervisor_of(&neighbour.view)?;
    let [sender, victim] = [sender(bad)?, sender(neighbour)?];
    let heard = Heard::count(beyond, neighbour, sender, &claimed).await?;
    // In the background: with another MAC it cannot be spoken to.
    let script = format!(
        "ping -c 1 -W 5 {other} || exit 1
        wget -q -O /dev/null --header \"X-Forwarded-For: {other}\" http://169.254.169.254/ || exit 1
        setsid sh -c '
            own=$(cat /sys/class/net/eth0/address)
            ip link set eth0 address {FORGED_MAC}
            ping -c 1 -W 1 {other}
            ip link set eth0 address $own
            # The MAC of the neighbour went with its own.
            ping -c 1 -W 5 {other}
            ip addr add {FORGED_IP}/32 dev eth0
            ping -c 1 -W 1 -I {FORGED_IP} {other}
            ip addr del {FORGED_IP}/32 dev eth0
            for it in {other} {GATEWAY}; do
                ip addr add $it/32 dev eth0
                arping -U -c 1 -w 5 -I eth0 -s $it $it
                arping -A -c 1 -w 5 -I eth0 -s $it $it
                ip addr del $it/32 dev eth0
            done
            # Its probes go to one port after the other.
            traceroute -n -m 1 -q 3 -w 1 -p 66 {other}
            modprobe 8021q
            ip link add link eth0 name eth0.5 type vlan id 5
            ip link set eth0.5 up
            ip addr add {FORGED_IP}/32 dev eth0.5
            arping -U -c 1 -w 5 -I eth0.5 -s {FORGED_IP} {FORGED_IP}
            ip link del eth0.5
        ' >/run/hostile 2>&1 </dev/null &"
    );
    let crafted = sender.everything(victim)?;
    bad.run(cloud, &hostile_frames::script("eth0", &crafted)?)
        .await?;
    // Before its tools make such ones as well.
    for kind in &crafted {
        let all = f64::from(u32::try_from(kind.frames.len())?);
        dropped(cloud, bad, kind.reason, all).await?;
    }
    bad.run(cloud, &script).await?;
    let of_dhcp = crafted.iter().find(|kind| kind.reason == "rogue_dhcp");
    let of_dhcp = of_dhcp.map_or(0, |kind| kind.frames.len());
    for (reason, at_least) in [
        ("spoofed_mac", 1.0),
        ("spoofed_ip", 1.0),
        ("spoofed_arp", 4.0),
        ("rogue_dhcp", f64::from(u32::try_from(of_dhcp)?) + 1.0),
    ] {
        if let Err(error) = dropped(cloud, bad, reason, at_least).await {
            let log = bad.run(cloud, "cat /run/hostile").await?;
            return Err(error.context(format!("the guest says: {log}")));
        }
    }
    their_counters_tell(cloud, [bad, neighbour]).await?;
    // It is its old self, and what passes now comes after all of that.
    bad.run(cloud, &format!("ping -c 1 -W 5 {other}")).await?;
    let packets = heard.packets().await?;
    ensure!(
        packets.first().is_some_and(|legitimate| *legitimate >= 2)
            && packets.get(1..) == Some(&[0; 9]),
        "the neighbour heard {packets:?}"
    );
    Ok(())
}

/// Waits until so many packets of a guest were dropped for a reason.
async fn dropped(
    cloud: &TestCloud,
    guest: &Guest,
    reason: &str,
    at_least: f64,
) -> anyhow::Result<()> {
    let port = guest.view.ports.first().context("no port")?.id;
    let telemetry = cloud.hypervisor_of(&guest.view)?.telemetry();
    let series = format!(
        "berth_port_dropped_packets_total{{port_id=\"{port}\",instance_id=\"{}\",reason=\"{reason}\"}}",
        guest.view.id
    );
    wait_for(&series, Duration::from_secs(60), async || {
        let dropped = http::metric(telemetry, &series).await?;
        Ok(Seen::when(
            dropped.is_some_and(|dropped| dropped >= at_least),
            dropped,
        ))
    })
    .await
}

/// What the guest did is counted of its port, where operators look, and nothing of the neighbour's.
async fn their_counters_tell(
    cloud: &TestCloud,
    [bad, neighbour]: [&Guest; 2],
) -> anyhow::Result<()> {
    let ctl = Berthctl::new(cloud)?;
    let counters = async |guest: &Guest| -> anyhow::Result<[Option<u64>; 4]> {
        let port = guest.view.ports.first().context("no port")?.id.to_string();
        let told = ctl.json(&["port", "counters", &port]).await?;
        let dropped = &told["filter_dropped_packets"];
        Ok([
            dropped["spoofed_mac"].as_u64(),
            dropped["spoofed_ip"].as_u64(),
            dropped["spoofed_arp"].as_u64(),
            told["forged_metadata_requests"].as_u64(),
        ])
    };
    let [mac, ip, arp, forged] = counters(bad).await?;
    ensure!(
        mac >= Some(1) && ip >= Some(1) && arp >= Some(4) && forged == Some(1),
        "{mac:?}, {ip:?}, {arp:?}, {forged:?}"
    );
    let told = counters(neighbour).await?;
    ensure!(told == [Some(0); 4], "{told:?}");
    let port = bad.view.ports.first().context("no port")?.id;
    let series = format!(
        "berth_port_forged_metadata_requests_total{{port_id=\"{port}\",instance_id=\"{}\"}}",
        bad.view.id
    );
    let telemetry = cloud.hypervisor_of(&bad.view)?.telemetry();
    wait_for(&series, Duration::from_secs(60), async || {
        let forged = http::metric(telemetry, &series).await?;
        Ok(Seen::when(forged == Some(1.0), forged))
    })
    .await
}

/// Asks for a rule that lets a port in, and waits until it is in the packet filter of all hypervisors.
async fn a_rule_comes(cloud: &TestCloud, port: u16) -> anyhow::Result<()> {
    cloud
        .call(&SecurityGroupRuleCreate {
            id: SecurityGroupRuleId::new(),
            security_group: "default".to_owned(),
            project: Default::default(),
            direction: RuleDirection::Ingress,
            ethertype: EtherType::IPv4,
            protocol: Some(RuleProtocol::Tcp {
                ports: Some(PortRange {
                    min: port,
                    max: port,
                }),
            }),
            remote_ip_prefix: Some("192.0.2.0/24".parse()?),
            remote_group: None,
        })
        .await?;
    for hypervisor in &cloud.hypervisors {
        let what = format!("the rule on {}", hypervisor.name());
        wait_for(&what, CONVERGE_LIMIT, async || {
            let table = hypervisor
                .text(&["nft", "list", "table", "bridge", "berth"])
                .await?;
            Ok(Seen::when(
                table.contains(&format!("dport {port} ")),
                "it is not there",
            ))
        })
        .await?;
    }
    Ok(())
}

/// A TCP connection from one guest to another, over which lines go until it is told to stop.
struct Transfer<'a> {
    from: &'a Guest,
    to: &'a Guest,
    /// The tap of the guest that gets it.
    tap: String,
}

impl<'a> Transfer<'a> {
    async fn start(cloud: &TestCloud, [from, to]: [&'a Guest; 2]) -> anyhow::Result<Self> {
        let tap = tap(cloud.hypervisor_of(&to.view)?, to).await?;
        // It ends when there is nothing more to read, on either side: on this one, never.
        let listen = "setsid sh -c 'tail -f /dev/null | nc -l -p 9000 >/run/got' >/dev/null 2>/run/error </dev/null &";
        to.run(cloud, listen).await?;
        // Every line tells its number, and is 1000 bytes long.
        let send = format!(
            "setsid sh -c '
                i=0
                while [ ! -e /run/stop ]; do
                    printf \"%0999d\\n\" $i
                    i=$((i + 1))
                    usleep 20000
                done | tee /run/sent | nc {} 9000
                touch /run/ended
            ' >/dev/null 2>/run/error </dev/null &",
            to.address()?
        );
        from.run(cloud, &send).await?;
        let transfer = Self { from, to, tap };
        transfer.goes_on(cloud).await?;
        Ok(transfer)
    }

    /// Waits until more of it has come.
    async fn goes_on(&self, cloud: &TestCloud) -> anyhow::Result<()> {
        let hypervisor = cloud.hypervisor_of(&self.to.view)?;
        let before = hypervisor.sent_bytes(&self.tap)?;
        wait_for(
            "the transfer to go on",
            Duration::from_secs(60),
            async || {
                let more = hypervisor.sent_bytes(&self.tap)? - before;
                Ok(Seen::when(more >= MORE_BYTES, more))
            },
        )
        .await
    }

    /// Ends it; what came is what was sent.
    async fn lost_nothing(self, cloud: &TestCloud) -> anyhow::Result<()> {
        let sent = "touch /run/stop
            for i in $(seq 100); do [ -e /run/ended ] && break; usleep 100000; done
            cat /run/error; wc -c </run/sent; md5sum </run/sent";
        let sent = self.from.run(cloud, sent).await?;
        let got = "for i in $(seq 100); do pidof nc >/dev/null || break; usleep 100000; done
            cat /run/error; wc -c </run/got; md5sum </run/got";
        let got = self.to.run(cloud, got).await?;
        ensure!(sent == got, "sent {sent}, and got {got}");
        Ok(())
    }
}

/// What carries a hypervisor's guests.
#[derive(Debug, PartialEq)]
struct Processes {
    qemu: Vec<u32>,
    dnsmasq: Vec<u32>,
    /// How many: that of another version is replaced, as it remembers nothing.
    metadata: usize,
}

/// Those of all hypervisors.
fn processes(cloud: &TestCloud) -> anyhow::Result<Vec<Processes>> {
    let hypervisors = cloud.hypervisors.iter();
    hypervisors
        .map(|it| {
            Ok(Processes {
                qemu: it.pids_of("qemu-system-x86_64")?,
                dnsmasq: it.pids_of("dnsmasq")?,
                metadata: it.pids_of("berth-metadata")?.len(),
            })
        })
        .collect()
}

/// Of what `ping` sent, everything was answered.
fn no_reply_is_missing(log: &str) -> anyhow::Result<()> {
    let numbers: BTreeSet<u64> = log
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once("icmp_seq=")?;
            rest.split(' ').next()?.parse().ok()
        })
        .collect();
    let last = numbers.last().copied().unwrap_or_default();
    let missing: Vec<u64> = (1..=last)
        .filter(|number| !numbers.contains(number))
        .collect();
    ensure!(
        missing.is_empty(),
        "of {last} packets these are lost: {missing:?}"
    );
    ensure!(last >= 100, "only {last} packets were sent");
    Ok(())
}

#[test]
fn guests_on_two_hypervisors_reach_their_own_network_whatever_becomes_of_agents_and_neighbours() {
    with_cloud(TestCloud::builder().agents(2), async |cloud| {
        let [red, blue] = networks(cloud).await?;
        let wanted = [
            ("one", &red, "hv1"),
            ("two", &red, "hv2"),
            ("other", &blue, "hv2"),
        ];
        let wanted =
            wanted.map(|(name, network, host)| GuestOptions::in_network(name, host, network.id));
        let [one, two, other] = cloud.guests(wanted).await?;
        let (at_one, at_two) = (one.address()?, two.address()?);
        ensure!(
            at_one == other.address()?,
            "the tenants have the same addresses"
        );

        two.run(cloud, &format!("ping -c 1 -W 5 {at_one}")).await?;
        let answer = two.ask(cloud, at_one).await?;
        ensure!(answer.contains("\"hostname\":\"one\""), "{answer}");
        let silence = format!("! ping -c 2 -W 1 {at_two}");
        other.run(cloud, &silence).await?;
        let crossed = cloud.log_in(&two.view, &one.key, "hostname").await?;
        ensure!(
            crossed.status.code() == Some(NOT_LOGGED_IN),
            "the key of one opened the other: {crossed:?}"
        );

        nothing_hostile_is_heard(cloud, [&one, &two]).await?;

        let before = processes(cloud)?;
        let log = cloud.site.dir().join("ping.log");
        let argv = ["ping", "-n", "-i", "0.02", &at_one.to_string()];
        let mut ping = cloud.hv1().start_in_network(red.id, &argv, &log).await?;
        let transfer = Transfer::start(cloud, [&one, &two]).await?;
        for hypervisor in &mut cloud.hypervisors {
            hypervisor.kill_agent()?;
        }
        transfer.goes_on(cloud).await?;
        for hypervisor in &mut cloud.hypervisors {
            hypervisor.spawn_agent().await?;
        }
        a_rule_comes(cloud, 4001).await?;
        transfer.goes_on(cloud).await?;

        // An upgrade: another program, which takes over what the one before left.
        for hypervisor in &mut cloud.hypervisors {
            hypervisor.install_agent()?;
            hypervisor.terminate_agent().await?;
            hypervisor.spawn_agent().await?;
        }
        a_rule_comes(cloud, 4002).await?;
        transfer.goes_on(cloud).await?;
        for hypervisor in &cloud.hypervisors {
            cloud.wait_agent_healthy(hypervisor).await?;
        }
        transfer.lost_nothing(cloud).await?;
        interrupt(&ping)?;
        wait_for("ping to end", Duration::from_secs(60), async || {
            Ok(Seen::when(ping.exited()?.is_some(), "it runs"))
        })
        .await?;
        no_reply_is_missing(&std::fs::read_to_string(&log)?)?;
        wait_for("the same processes", CONVERGE_LIMIT, async || {
            let now = processes(cloud)?;
            Ok(Seen::when(now == before, (now, &before)))
        })
        .await
    });
}
