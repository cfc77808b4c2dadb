//! What is changed of the ports of guests that run: how fast they are, who gets copies, whether there is a cable, and whether they are
//! there at all. [`super::uplinks`] has the guests.

use anyhow::{Context, ensure};
use berth_common::ids::NetworkId;
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, Guest},
    ctl::Berthctl,
    lab::Hypervisor,
    wait::{Seen, wait_for},
};
use serde_json::Value;

use super::uplinks::ask;

/// The address of the port that is plugged in and out.
const SIDE: &str = "10.77.3.20";

/// All of it: the port that is plugged into the second guest gets copies of what the first one sends and receives.
pub(super) async fn ports_change(
    cloud: &TestCloud,
    ctl: &Berthctl,
    [first, second]: [&Guest; 2],
) -> anyhow::Result<()> {
    limits_are_set_changed_and_removed(cloud, ctl, first).await?;
    let plugged = Plugged::in_a_running_guest(cloud, ctl, second).await?;
    plugged.loses_its_cable_and_gets_it_back().await?;
    plugged.hears_what_another_sends_and_receives(first).await?;
    plugged.is_free_only_once_gone().await
}

/// The bytes a second that what goes out by a link is limited to, if it is.
async fn limit(hypervisor: &Hypervisor, link: &str) -> anyhow::Result<Option<u64>> {
    let argv = ["tc", "-j", "qdisc", "show", "dev", link, "root"];
    let listed: Value = serde_json::from_str(&hypervisor.text(&argv).await?)?;
    let mut limits = listed.as_array().into_iter().flatten();
    let limit = limits.find(|qdisc| qdisc["kind"] == "tbf");
    Ok(limit.and_then(|limit| limit["options"]["rate"].as_u64()))
}

/// The link that what a guest sends goes through, if one is limited.
async fn slowed_in(hypervisor: &Hypervisor) -> anyhow::Result<Option<String>> {
    let argv = ["ip", "-j", "link", "show", "type", "ifb"];
    let listed: Value = serde_json::from_str(&hypervisor.text(&argv).await?)?;
    let mut names = listed.as_array().into_iter().flatten();
    let own = names.find_map(|link| {
        link["ifname"]
            .as_str()
            .filter(|name| name.starts_with("bti"))
    });
    Ok(own.map(str::to_owned))
}

async fn limits_are_set_changed_and_removed(
    cloud: &TestCloud,
    ctl: &Berthctl,
    guest: &Guest,
) -> anyhow::Result<()> {
    let hypervisor = cloud.hypervisor_of(&guest.view)?;
    let port = guest.port()?.id;
    let counted = ask(ctl, &format!("port counters {port}")).await?;
    let tap = counted["tap"].as_str().context("no tap")?;
    for (set, received, sent) in [
        (
            "--ingress-limit 8000,800 --egress-limit 4000",
            Some(1_000_000),
            Some(500_000),
        ),
        ("--ingress-limit 16000", Some(2_000_000), Some(500_000)),
        (
            "--ingress-limit none --egress-limit 2000",
            None,
            Some(250_000),
        ),
        ("--egress-limit none", None, None),
    ] {
        ask(ctl, &format!("port set {port} {set}")).await?;
        wait_for(
            &format!("the limits after {set}"),
            CONVERGE_LIMIT,
            async || {
                let through = slowed_in(hypervisor).await?;
                let sends = match &through {
                    Some(link) => limit(hypervisor, link).await?,
                    None => None,
                };
                let found = (limit(hypervisor, tap).await?, sends);
                Ok(Seen::when(found == (received, sent), (found, through)))
            },
        )
        .await?;
        cloud.guest_answers(&guest.view).await?;
    }
    let left = slowed_in(hypervisor).await?;
    ensure!(left.is_none(), "{left:?}");
    Ok(())
}

/// A port that was plugged into a guest while it ran.
struct Plugged<'a> {
    cloud: &'a TestCloud,
    ctl: &'a Berthctl,
    guest: &'a Guest,
    /// Its id.
    port: String,
    /// Its network.
    network: NetworkId,
    /// What the guest calls it.
    nic: String,
}

impl<'a> Plugged<'a> {
    /// The guest sees it, gets its address by DHCP, and answers there.
    async fn in_a_running_guest(
        cloud: &'a TestCloud,
        ctl: &'a Berthctl,
        guest: &'a Guest,
    ) -> anyhow::Result<Self> {
        let network = ask(ctl, "network create side --cidr 10.77.3.0/24").await?;
        let create = format!("port create side --network side --ip-address {SIDE}");
        let port = ask(ctl, &create).await?;
        let add = format!("instance add-port {} side --wait", guest.view.name);
        let added = ask(ctl, &add).await?;
        ensure!(added["status"] == "active", "{added}");
        let mac = port["mac_address"].as_str().context("no MAC")?;
        let found = format!("cd /sys/class/net && grep -l {mac} */address");
        let found = guest.until(cloud, "the NIC", &found).await?;
        let nic = found.trim().trim_end_matches("/address").to_owned();
        ensure!(nic.starts_with("eth") && nic != "eth0", "{found}");
        let dhcp = format!(
            "ip link set {nic} up && udhcpc -n -q -i {nic} -s /etc/udhcpc.script && ip -4 addr show dev {nic}"
        );
        let has = guest.run(cloud, &dhcp).await?;
        ensure!(has.contains(&format!("inet {SIDE}/24 ")), "{has}");
        let plugged = Self {
            cloud,
            ctl,
            guest,
            port: port["id"].as_str().context("no id")?.to_owned(),
            network: network["id"].as_str().context("no id")?.parse()?,
            nic,
        };
        ensure!(plugged.answers().await?, "it does not answer at {SIDE}");
        Ok(plugged)
    }

    fn hypervisor(&self) -> anyhow::Result<&Hypervisor> {
        self.cloud.hypervisor_of(&self.guest.view)
    }

    /// Whether the guest answers HTTP at the port's address.
    async fn answers(&self) -> anyhow::Result<bool> {
        let url = format!("http://{SIDE}/cgi-bin/status");
        let argv = ["curl", "-sS", "--fail", "--max-time", "3", &url];
        let output = self
            .hypervisor()?
            .exec_in_network(self.network, &argv)
            .await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let own = format!("\"hostname\":\"{}\"", self.guest.view.name);
        Ok(output.status.success() && text.contains(&own))
    }

    async fn set(&self, wishes: &str) -> anyhow::Result<()> {
        let set = format!("port set {} {wishes}", self.port);
        ask(self.ctl, &set).await.map(drop)
    }

    async fn loses_its_cable_and_gets_it_back(&self) -> anyhow::Result<()> {
        for (wish, carrier) in [("--disable", 0), ("--enable", 1)] {
            self.set(wish).await?;
            let look = format!("[ $(cat /sys/class/net/{}/carrier) = {carrier} ]", self.nic);
            let what = format!("a carrier of {carrier}");
            self.guest.until(self.cloud, &what, &look).await?;
            ensure!(self.answers().await? == (carrier == 1), "after {wish}");
        }
        Ok(())
    }

    /// One guest tells everybody its address, and is told that of its DHCP server: neither is in the network of this port, and what
    /// its guest believes of them it can have by copies alone.
    async fn hears_what_another_sends_and_receives(&self, other: &Guest) -> anyhow::Result<()> {
        let believe = format!("echo 1 >/proc/sys/net/ipv4/conf/{}/arp_accept", self.nic);
        self.guest.run(self.cloud, &believe).await?;
        let sent = Told::by_guest(other)?;
        let received = Told::by_server(self.hypervisor()?, other.port()?.network_id).await?;
        let heard = async || -> anyhow::Result<[bool; 2]> {
            sent.again(self.cloud, other).await?;
            received.again(self.cloud, other).await?;
            let table = self.guest.run(self.cloud, "cat /proc/net/arp").await?;
            Ok([&sent, &received].map(|it| it.is_in(&table, &self.nic)))
        };
        ensure!(heard().await? == [false; 2], "it hears without a mirror");
        let port = other.port()?.id;
        for (wish, expected) in [
            (format!("--mirror in,port,{}", self.port), [false, true]),
            (format!("--mirror both,port,{}", self.port), [true; 2]),
            ("--no-mirror".to_owned(), [false; 2]),
        ] {
            ask(self.ctl, &format!("port set {port} {wish}")).await?;
            wait_for(
                &format!("copies after {wish}"),
                CONVERGE_LIMIT,
                async || {
                    let forget = format!("ip neigh flush dev {}", self.nic);
                    self.guest.run(self.cloud, &forget).await?;
                    let heard = heard().await?;
                    Ok(Seen::when(heard == expected, heard))
                },
            )
            .await?;
        }
        Ok(())
    }

    /// A guest that stands still does not give it back, and until it does nobody else gets it.
    async fn is_free_only_once_gone(&self) -> anyhow::Result<()> {
        let (ctl, name) = (self.ctl, self.guest.view.name.as_str());
        let domain = format!("berth-{}", self.guest.view.id);
        let links = async || self.hypervisor()?.links(&domain).await;
        ensure!(links().await?.len() == 2);
        ask(ctl, &format!("instance pause {name} --wait")).await?;
        ask(ctl, &format!("instance remove-port {name} side")).await?;
        let shown = ask(ctl, "port show side").await?;
        ensure!(shown["status"] == "detaching", "{shown}");
        let (_, refused) = ctl.fails(&["port", "delete", "side"]).await?;
        ensure!(refused.contains(name), "{refused}");
        ensure!(
            links().await?.len() == 2,
            "a guest that stands still gave it back"
        );
        ask(ctl, &format!("instance unpause {name} --wait")).await?;
        ask(ctl, &format!("instance remove-port {name} side --wait")).await?;
        let links = links().await?;
        ensure!(links.len() == 1, "{links:?}");
        let gone = format!("[ ! -e /sys/class/net/{} ]", self.nic);
        self.guest.run(self.cloud, &gone).await?;
        let shown = ask(ctl, "port show side").await?;
        ensure!(
            shown["status"] == "down" && shown["instance_id"].is_null(),
            "{shown}"
        );
        for command in ["port delete side", "network delete side"] {
            ask(ctl, command).await?;
        }
        Ok(())
    }
}

/// What is told to everybody in a network: who has an address.
struct Told {
    address: String,
    mac: String,
    /// By whom: by the DHCP server of the network, with the name of its link there, or else by the guest.
    server: Option<(NetworkId, String)>,
}

impl Told {
    fn by_guest(guest: &Guest) -> anyhow::Result<Self> {
        Ok(Self {
            address: guest.address()?.to_string(),
            mac: guest.port()?.mac_address.to_string(),
            server: None,
        })
    }

    async fn by_server(hypervisor: &Hypervisor, network: NetworkId) -> anyhow::Result<Self> {
        let argv = ["ip", "-j", "-4", "addr", "show"];
        let listed = hypervisor.text_in_network(network, &argv).await?;
        let listed: Value = serde_json::from_str(&listed)?;
        let is_own = |link: &&Value| {
            link["ifname"]
                .as_str()
                .is_some_and(|it| it.starts_with("btn"))
        };
        let link = listed.as_array().into_iter().flatten().find(is_own);
        let link = link.with_context(|| format!("no link of berth in {listed}"))?;
        let name = link["ifname"].as_str().context("no name")?.to_owned();
        let addresses = link["addr_info"].as_array().into_iter().flatten();
        let mut addresses = addresses.filter_map(|address| address["local"].as_str());
        let address = addresses
            .find(|it| *it != "169.254.169.254")
            .context("no address")?;
        let mac = format!("/sys/class/net/{name}/address");
        let mac = hypervisor.text_in_network(network, &["cat", &mac]).await?;
        Ok(Self {
            address: address.to_owned(),
            mac: mac.trim().to_owned(),
            server: Some((network, name)),
        })
    }

    async fn again(&self, cloud: &TestCloud, guest: &Guest) -> anyhow::Result<()> {
        let address = &self.address;
        let tell = |link: &str| format!("arping -U -c 1 -w 3 -I {link} -s {address} {address}");
        match &self.server {
            None => guest.run(cloud, &tell("eth0")).await.map(drop),
            Some((network, link)) => {
                let command = format!("busybox {}", tell(link));
                let argv: Vec<&str> = command.split(' ').collect();
                let hypervisor = cloud.hypervisor_of(&guest.view)?;
                hypervisor.text_in_network(*network, &argv).await.map(drop)
            }
        }
    }

    /// Whether it is in the table of a guest's kernel, heard by one of its NICs.
    fn is_in(&self, table: &str, nic: &str) -> bool {
        table.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let found = [words.first(), words.get(3), words.last()];
            found
                == [
                    Some(&self.address.as_str()),
                    Some(&self.mac.as_str()),
                    Some(&nic),
                ]
        })
    }
}
