//! Changes of a security group's rules in one network with many ports, whose guests' taps are in its bridge.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_agent::{
    act::net::KernelNet,
    decide::{
        filter::{FilterStep, Rendered, nft},
        network::NetStep,
    },
};
use berth_common::document::RuleDirection;

use super::{
    lab::{self, Network, Present},
    median,
};

/// How often each change is measured.
const TIMES: u16 = 9;
/// A port of these is none of those that are there from the beginning.
const MORE_PORTS: u16 = 2000;

/// A whole pass over the network, with the look afterwards that finds nothing left to do; and what it changed in nftables.
async fn converge(
    net: &KernelNet,
    network: &Network,
    rendered: &mut Rendered,
) -> anyhow::Result<(Duration, Vec<NetStep>)> {
    let wish = network.wish(Present::Yes);
    let started = Instant::now();
    let steps = lab::pass(net, &wish, rendered).await?;
    let taken = started.elapsed();
    ensure!(!steps.is_empty(), "nothing to measure");
    Ok((taken, steps))
}

/// What nft was told.
fn transaction(steps: &[NetStep]) -> anyhow::Result<String> {
    let mut changes = steps.iter().filter_map(|step| match step {
        NetStep::Filter(FilterStep::Change(change)) => Some(change),
        _ => None,
    });
    let change = changes.next().context("no rule was changed")?;
    ensure!(changes.next().is_none(), "more than one transaction");
    Ok(nft::transaction(&change.commands()))
}

pub(crate) async fn measure(directory: &Path, ports: u16) -> anyhow::Result<()> {
    let net = KernelNet::new(directory);
    let mut network = Network::new(0, ports)?;
    let mut rendered = Rendered::default();
    let taps: Vec<String> = network.taps().collect();
    lab::make_taps(directory, &taps)?;
    converge(&net, &network, &mut rendered).await?;
    let (mut rules, mut members, mut more) = (Vec::new(), Vec::new(), Vec::new());
    let mut told = Vec::new();
    for n in 0..TIMES {
        let rule = lab::rule(RuleDirection::Ingress, Some(1000 + n));
        network.spec.security_groups[0].rules.push(rule);
        let (taken, steps) = converge(&net, &network, &mut rendered).await?;
        rules.push(taken);
        told.push(transaction(&steps)?);
        let member = IpAddr::V4(Ipv4Addr::new(10, 0, 250, u8::try_from(n)?));
        network.add_member(member);
        members.push(converge(&net, &network, &mut rendered).await?.0);
        network.add_port(0, MORE_PORTS + n)?;
        more.push(converge(&net, &network, &mut rendered).await?.0);
    }
    // Last: a change that is not berth's makes it list everything.
    let mut alone = Vec::new();
    for commands in &told {
        let started = Instant::now();
        lab::feed("nft", &["-f", "/proc/self/fd/0"], commands)?;
        alone.push(started.elapsed());
    }
    let bytes = told.last().map(String::len).unwrap_or_default();
    println!(
        "bench rules ports={ports} update_ms={:.1} member_ms={:.1} port_ms={:.1} nft_ms={:.1} transaction_bytes={bytes}",
        median(rules),
        median(members),
        median(more),
        median(alone)
    );
    Ok(())
}
