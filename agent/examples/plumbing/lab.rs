//! A host with networks: their documents, the taps that libvirt would make, and passes over them as the engine does them.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use berth_agent::{
    act::{Net as _, net::KernelNet},
    decide::{
        filter::Rendered,
        names,
        network::{MetadataStep, NetStep, NetThen, plan_again},
    },
};
use berth_common::{
    document::{
        Desired, EtherType, FixedIp, NetworkPort, NetworkSpec, NetworkType, PortQos, PortRange,
        PortSecurity, RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule,
        SecurityGroupSpec, SubnetSpec,
    },
    ids::{HostId, InstanceId, NetworkId, PortId, SecurityGroupId, SecurityGroupRuleId, SubnetId},
    names::{InstanceName, MacAddress},
    units::Generation,
};
use futures::{StreamExt as _, TryStreamExt as _};

/// How many networks are worked on at once: the agent's own default.
const CONCURRENT: usize = 4;
/// How often a pass plans anew before it counts as going round in circles, as in the engine.
const ROUNDS: usize = 6;

/// A network with ports, one security group and one rule that names it as the other side.
pub(crate) struct Network {
    pub(crate) id: NetworkId,
    pub(crate) group: SecurityGroupId,
    pub(crate) spec: NetworkSpec,
    subnet: SubnetId,
}

/// A rule of the group's.
pub(crate) fn rule(direction: RuleDirection, port: Option<u16>) -> SecurityGroupRule {
    SecurityGroupRule {
        id: SecurityGroupRuleId::new(),
        direction,
        ethertype: EtherType::IPv4,
        protocol: port.map(|port| RuleProtocol::Tcp {
            ports: Some(PortRange {
                min: port,
                max: port,
            }),
        }),
        remote: None,
    }
}

impl Network {
    /// The n-th network of the host.
    pub(crate) fn new(n: u8, ports: u16) -> anyhow::Result<Self> {
        let group = SecurityGroupId::new();
        let subnet = SubnetId::new();
        let rules = vec![
            rule(RuleDirection::Egress, None),
            rule(RuleDirection::Ingress, Some(22)),
            SecurityGroupRule {
                remote: Some(RuleRemote::Group(group)),
                ..rule(RuleDirection::Ingress, None)
            },
        ];
        let spec = NetworkSpec {
            name: format!("net{n}").parse()?,
            project: "default".parse()?,
            network_type: NetworkType::Local,
            physical_network: None,
            segmentation_id: None,
            mtu: 1450,
            subnets: vec![SubnetSpec {
                id: subnet,
                cidr: format!("10.{n}.0.0/16").parse()?,
                gateway_ip: None,
                dhcp_ip: Some(IpAddr::V4(Ipv4Addr::new(10, n, 0, 2))),
                dns_nameservers: Vec::new(),
                host_routes: Vec::new(),
                ipv6_address_mode: None,
            }],
            ports: Vec::new(),
            remote_ports: Vec::new(),
            security_groups: vec![SecurityGroupSpec { id: group, rules }],
            group_members: BTreeMap::new(),
        };
        let mut network = Self {
            id: NetworkId::new(),
            group,
            spec,
            subnet,
        };
        for port in 0..ports {
            network.add_port(n, port)?;
        }
        Ok(network)
    }

    /// One port more, a member of the group.
    pub(crate) fn add_port(&mut self, network: u8, n: u16) -> anyhow::Result<()> {
        let [high, low] = n.to_be_bytes();
        let address = IpAddr::V4(Ipv4Addr::new(10, network, high.saturating_add(1), low));
        self.spec.ports.push(NetworkPort {
            id: PortId::new(),
            instance_id: InstanceId::new(),
            mac_address: MacAddress::from_octets([0x52, 0x54, 0, network, high, low])?,
            hostname: format!("vm{n}").parse::<InstanceName>()?,
            fixed_ips: vec![FixedIp {
                subnet_id: self.subnet,
                ip_address: address,
            }],
            security: Some(PortSecurity {
                allowed_address_pairs: Vec::new(),
                security_groups: vec![self.group],
            }),
            qos: PortQos::default(),
            mirrors: Vec::new(),
        });
        self.add_member(address);
        Ok(())
    }

    /// One member more in the group, here or elsewhere.
    pub(crate) fn add_member(&mut self, address: IpAddr) {
        let members = self.spec.group_members.entry(self.group).or_default();
        members.push(address.into());
    }

    /// The names of its guests' taps.
    pub(crate) fn taps(&self) -> impl Iterator<Item = String> {
        self.spec.ports.iter().map(|port| names::tap(port.id))
    }

    pub(crate) fn wish(&self, present: Present) -> Desired<NetworkId, NetworkSpec> {
        Desired {
            id: self.id,
            generation: Generation(1),
            host_id: HostId::new(),
            spec: match present {
                Present::Yes => Some(self.spec.clone()),
                Present::No => None,
            },
        }
    }
}

/// Whether a network shall be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Present {
    Yes,
    No,
}

/// The processes are left out, here and by hand: a DHCP server takes as long to start, whoever starts it.
fn is_measured(step: &NetStep) -> bool {
    !matches!(
        step,
        NetStep::StartDhcp(_)
            | NetStep::ReloadDhcp(_)
            | NetStep::StopDhcp(_)
            | NetStep::Metadata(MetadataStep::Start(_) | MetadataStep::Stop(_))
    )
}

/// Look, plan, do, and look again, until there is nothing left to do. Answers the steps.
pub(crate) async fn pass(
    net: &KernelNet,
    wish: &Desired<NetworkId, NetworkSpec>,
    rendered: &mut Rendered,
) -> anyhow::Result<Vec<NetStep>> {
    let mut done = Vec::new();
    for _ in 0..ROUNDS {
        let observed = net.observe(wish.id).await?;
        let mut plan = plan_again(wish, &observed, rendered);
        drop(observed);
        plan.steps.retain(is_measured);
        if plan.steps.is_empty() {
            ensure!(
                matches!(plan.then, NetThen::Converged | NetThen::Gone),
                "the plan ends with {:?}",
                plan.then
            );
            return Ok(done);
        }
        for step in &plan.steps {
            net.apply(step).await?;
        }
        done.extend(plan.steps);
    }
    bail!("not settled after {ROUNDS} rounds: {done:?}")
}

/// Passes over all networks, as many at once as the agent does.
pub(crate) async fn passes(
    net: &KernelNet,
    networks: &[Network],
    present: Present,
) -> anyhow::Result<()> {
    futures::stream::iter(networks)
        .map(|network| {
            let (net, wish) = (net.clone(), network.wish(present));
            async move {
                tokio::spawn(async move { pass(&net, &wish, &mut Rendered::default()).await })
                    .await?
            }
        })
        .buffer_unordered(CONCURRENT)
        .try_for_each(async |_| Ok(()))
        .await
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} is needed"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {} {errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Gives a program something to read.
pub(crate) fn feed(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} is needed"))?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(input.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

/// Makes taps that are switched on and in no bridge, as after a bridge was made anew under running guests. libvirt's work.
pub(crate) fn make_taps(directory: &Path, taps: &[String]) -> anyhow::Result<()> {
    let commands = (0_u16..).zip(taps).map(|(n, tap)| {
        let [high, low] = n.to_be_bytes();
        let address = format!("fe:54:00:00:{high:02x}:{low:02x}");
        format!("tuntap add dev {tap} mode tap\nlink set dev {tap} address {address} addrgenmode none up\n")
    });
    batch(directory, &commands.collect::<String>())
}

/// Takes all taps out of their bridges, as guests that end do.
pub(crate) fn unplug_taps(directory: &Path, taps: &[String]) -> anyhow::Result<()> {
    let commands = taps
        .iter()
        .map(|tap| format!("link set dev {tap} nomaster\n"));
    batch(directory, &commands.collect::<String>())
}

fn batch(directory: &Path, commands: &str) -> anyhow::Result<()> {
    let file = directory.join("taps");
    std::fs::write(&file, commands)?;
    run("ip", &["-batch", &file.to_string_lossy()]).map(|_| ())
}
