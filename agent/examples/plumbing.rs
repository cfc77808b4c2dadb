//! Measures, for `bench/plumbing.sh`: how long a change of a security group's rules takes on a host, as its ports grow. In network
//! and mount namespaces of its own: `unshare --net --mount target/release/examples/plumbing`.
//!
//!   bench rules ports=… update_ms=… member_ms=… port_ms=… nft_ms=…
//!
//! `update_ms` is look, plan and apply of one more rule; `member_ms` of one member of a remote group; `port_ms` of one port more. `nft_ms`
//! is nft alone, on an empty transaction beside the same tables. Medians.

#![allow(
    clippy::print_stdout,
    reason = "what is measured is what it is run for"
)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_agent::{
    act::{Net as _, net::KernelNet},
    decide::network::plan,
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

/// How often each change is measured.
const TIMES: u16 = 9;
/// On how many ports.
const PORTS: [u16; 3] = [10, 100, 1000];

struct Lab {
    net: KernelNet,
    id: NetworkId,
    subnet: SubnetId,
    group: SecurityGroupId,
    host: HostId,
}

impl Lab {
    fn port(&self, n: u16) -> anyhow::Result<NetworkPort> {
        let [high, low] = n.to_be_bytes();
        Ok(NetworkPort {
            id: PortId::new(),
            instance_id: InstanceId::new(),
            mac_address: MacAddress::from_octets([0x52, 0x54, 0, 0, high, low])?,
            hostname: format!("vm{n}").parse::<InstanceName>()?,
            fixed_ips: vec![FixedIp {
                subnet_id: self.subnet,
                ip_address: IpAddr::V4(Ipv4Addr::new(10, 0, high.saturating_add(1), low)),
            }],
            security: Some(PortSecurity {
                allowed_address_pairs: Vec::new(),
                security_groups: vec![self.group],
            }),
            qos: PortQos::default(),
            mirrors: Vec::new(),
        })
    }

    fn rule(direction: RuleDirection, port: Option<u16>) -> SecurityGroupRule {
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

    fn spec(&self, ports: u16) -> anyhow::Result<NetworkSpec> {
        let mut rules = vec![
            Self::rule(RuleDirection::Egress, None),
            Self::rule(RuleDirection::Ingress, Some(22)),
        ];
        rules.push(SecurityGroupRule {
            remote: Some(RuleRemote::Group(self.group)),
            ..Self::rule(RuleDirection::Ingress, None)
        });
        let ports = (0..ports).map(|n| self.port(n));
        let ports: Vec<NetworkPort> = ports.collect::<anyhow::Result<_>>()?;
        let members = ports.iter().flat_map(|port| &port.fixed_ips);
        let members = members.map(|fixed| fixed.ip_address.into()).collect();
        Ok(NetworkSpec {
            name: "net".parse()?,
            project: "default".parse()?,
            network_type: NetworkType::Local,
            physical_network: None,
            segmentation_id: None,
            mtu: 1450,
            subnets: vec![SubnetSpec {
                id: self.subnet,
                cidr: "10.0.0.0/16".parse()?,
                gateway_ip: None,
                dhcp_ip: None,
                dns_nameservers: Vec::new(),
                host_routes: Vec::new(),
                ipv6_address_mode: None,
            }],
            ports,
            remote_ports: Vec::new(),
            security_groups: vec![SecurityGroupSpec {
                id: self.group,
                rules,
            }],
            group_members: BTreeMap::from([(self.group, members)]),
        })
    }

    /// Look, plan, apply. The files of the DHCP server are no part of what is measured, but have to be written.
    async fn converge(&self, spec: Option<&NetworkSpec>) -> anyhow::Result<Duration> {
        let desired = Desired {
            id: self.id,
            generation: Generation(1),
            host_id: self.host,
            spec: spec.cloned(),
        };
        let started = Instant::now();
        let observed = self.net.observe(self.id).await?;
        let steps = plan(&desired, &observed).steps;
        ensure!(!steps.is_empty(), "nothing to measure");
        for step in &steps {
            self.net.apply(step).await?;
        }
        Ok(started.elapsed())
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.as_secs_f64() * 1000.0
}

/// nft without anything to do.
fn bare() -> anyhow::Result<Duration> {
    let started = Instant::now();
    let status = Command::new("nft")
        .args(["add", "table", "bridge", "berth"])
        .status()
        .context("nft is needed")?;
    ensure!(status.success(), "nft: {status}");
    Ok(started.elapsed())
}

async fn measure(state: &Path, ports: u16) -> anyhow::Result<()> {
    let lab = Lab {
        net: KernelNet::new(state),
        id: NetworkId::new(),
        subnet: SubnetId::new(),
        group: SecurityGroupId::new(),
        host: HostId::new(),
    };
    let mut spec = lab.spec(ports)?;
    lab.converge(Some(&spec)).await?;
    let (mut rules, mut members, mut more, mut alone) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..TIMES {
        let rule = Lab::rule(RuleDirection::Ingress, Some(1000 + n));
        spec.security_groups[0].rules.push(rule);
        rules.push(lab.converge(Some(&spec)).await?);
        let member = IpAddr::V4(Ipv4Addr::new(10, 9, 0, u8::try_from(n)?));
        spec.group_members
            .entry(lab.group)
            .or_default()
            .push(member.into());
        members.push(lab.converge(Some(&spec)).await?);
        spec.ports.push(lab.port(2000 + n)?);
        more.push(lab.converge(Some(&spec)).await?);
    }
    // Last: a change that is not berth's makes it list everything.
    for _ in 0..TIMES {
        alone.push(bare()?);
    }
    lab.converge(None).await?;
    println!(
        "bench rules ports={ports} update_ms={:.1} member_ms={:.1} port_ms={:.1} nft_ms={:.1}",
        median(rules),
        median(members),
        median(more),
        median(alone)
    );
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let state = std::env::args()
        .nth(1)
        .context("usage: plumbing DIRECTORY")?;
    for ports in PORTS {
        measure(Path::new(&state), ports).await?;
    }
    Ok(())
}
