//! The same as the agent makes, by hand: one `ip -batch` for the host's links, in each namespace a shell that sets the switches and
//! runs one `ip -batch`, and one `nft -f`. All that they read is written before.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use anyhow::Context as _;
use berth_agent::decide::{
    metadata, names,
    network::{Link, LinkSetting},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::lab::{Network, run};

type Work = Box<dyn FnOnce() + Send>;

/// A host of its own: a thread in other network and mount namespaces than the rest of the process.
pub(crate) struct Host {
    work: mpsc::Sender<Work>,
}

impl Host {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let (work, orders) = mpsc::channel::<Work>();
        let host = Self { work };
        thread::Builder::new()
            .name("by-hand".to_owned())
            .spawn(move || orders.into_iter().for_each(|work| work()))?;
        host.run(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            let nothing = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(nothing, "/", nothing, private, nothing)?;
            mount(
                Some("tmpfs"),
                "/run",
                Some("tmpfs"),
                MsFlags::empty(),
                nothing,
            )?;
            Ok(())
        })?;
        Ok(host)
    }

    /// Does something on it.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (answer, answered) = mpsc::channel();
        self.work
            .send(Box::new(move || {
                // Who asked has given up.
                let _ = answer.send(work());
            }))
            .ok()
            .context("the other host is gone")?;
        answered.recv().context("the other host is gone")?
    }
}

/// Whether bridges show their packets to the IP stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallsIp {
    Yes,
    No,
}

/// The scripts, written.
#[derive(Debug, Clone)]
pub(crate) struct Scripts {
    directory: PathBuf,
}

impl Scripts {
    /// Writes what makes and removes these networks, with their rules as [`super::state::Rules`] has them.
    pub(crate) fn write(
        directory: &Path,
        networks: &[Network],
        calls_ip: CallsIp,
        rules: &super::state::Rules,
    ) -> anyhow::Result<Self> {
        let path = |name: &str| directory.join(name);
        let shown = |name: &str| path(name).to_string_lossy().into_owned();
        let (mut links, mut gone) = (String::new(), String::new());
        let mut build = format!(
            "set -e\nnft -f {}\nip -batch {}\n",
            shown("rules"),
            shown("links")
        );
        for network in networks {
            let namespace = names::namespace(network.id);
            links += &host_links(network, &namespace, calls_ip)?;
            let [bridge, host, inside] =
                [Link::bridge, Link::veth_host, Link::veth_namespace].map(|link| link(network.id));
            for link in [bridge, host] {
                build += &switches(link)?;
            }
            let within = format!("{namespace}.links");
            fs::write(path(&within), inner_links(network, inside)?)?;
            let script = format!("{namespace}.sh");
            let text = format!(
                "set -e\n{}ip -batch {}\n",
                switches(inside)?,
                shown(&within)
            );
            fs::write(path(&script), text)?;
            writeln!(build, "ip netns exec {namespace} sh {}", shown(&script))?;
            writeln!(
                gone,
                "link del dev {host}\nnetns del {namespace}\nlink del dev {bridge}"
            )?;
        }
        fs::write(path("links"), links)?;
        fs::write(path("rules"), &rules.add)?;
        fs::write(path("build.sh"), build)?;
        fs::write(path("gone"), gone)?;
        fs::write(path("rules-gone"), &rules.remove)?;
        let remove = format!(
            "set -e\nip -batch {}\nnft -f {}\n",
            shown("gone"),
            shown("rules-gone")
        );
        fs::write(path("remove.sh"), remove)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    pub(crate) fn build(&self) -> anyhow::Result<()> {
        run("sh", &[&self.directory.join("build.sh").to_string_lossy()]).map(|_| ())
    }

    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        run("sh", &[&self.directory.join("remove.sh").to_string_lossy()]).map(|_| ())
    }
}

fn mac(link: Link) -> String {
    link.mac().map(|octet| format!("{octet:02x}")).join(":")
}

fn host_links(network: &Network, namespace: &str, calls_ip: CallsIp) -> anyhow::Result<String> {
    let [bridge, host, inside] =
        [Link::bridge, Link::veth_host, Link::veth_namespace].map(|link| link(network.id));
    let mtu = network.spec.mtu;
    let calls = match calls_ip {
        CallsIp::Yes => " nf_call_iptables 1 nf_call_ip6tables 1",
        CallsIp::No => "",
    };
    let mut text = String::new();
    writeln!(text, "netns add {namespace}")?;
    writeln!(
        text,
        "link add name {bridge} address {} mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0{calls}",
        mac(bridge)
    )?;
    writeln!(
        text,
        "link set dev {bridge} alias \"{}\" up",
        bridge.alias()
    )?;
    writeln!(
        text,
        "link add name {host} address {} mtu {mtu} type veth peer name {inside} address {} mtu {mtu} netns {namespace}",
        mac(host),
        mac(inside)
    )?;
    writeln!(
        text,
        "link set dev {host} alias \"{}\" master {bridge} up",
        host.alias()
    )?;
    for tap in network.taps() {
        writeln!(text, "link set dev {tap} master {bridge}")?;
    }
    Ok(text)
}

fn inner_links(network: &Network, inside: Link) -> anyhow::Result<String> {
    let mut text = format!(
        "link set dev lo up\nlink set dev {inside} alias \"{}\"\n",
        inside.alias()
    );
    let subnets = network.spec.subnets.iter();
    let served = subnets.filter_map(|subnet| {
        let prefix = subnet.cidr.net().prefix_len();
        Some(format!("{}/{prefix}", subnet.dhcp_ip?))
    });
    let services = metadata::addresses();
    let addresses: BTreeSet<String> = served
        .chain(services.iter().map(ToString::to_string))
        .collect();
    for address in addresses {
        writeln!(text, "address add {address} dev {inside}")?;
    }
    writeln!(text, "link set dev {inside} up")?;
    Ok(text)
}

/// The switches of a link, in the words of the shell.
fn switches(link: Link) -> anyhow::Result<String> {
    let mut text = String::new();
    for setting in link.settings() {
        writeln!(
            text,
            "echo {} >/proc/sys/net/{}",
            setting.value(),
            LinkSetting::path(*setting, &link.name())
        )?;
    }
    Ok(text)
}
