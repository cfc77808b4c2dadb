//! Builds what the ports of a host need and removes it, in turns with the same by hand.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_agent::{
    act::net::KernelNet,
    decide::filter::{Stateful, base, nft::transaction},
};

use super::{
    by_hand::{CallsIp, Host, Scripts},
    lab::{self, Network, Present},
    median,
    state::{self, Rules},
};

/// What is built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) networks: u8,
    /// Of all networks together.
    pub(crate) ports: u16,
    /// How often.
    pub(crate) pairs: u16,
}

/// How long building and removing took.
#[derive(Debug, Default)]
struct Times {
    build: Vec<Duration>,
    remove: Vec<Duration>,
}

impl Times {
    fn medians(self) -> [f64; 3] {
        let both = self.build.iter().zip(&self.remove);
        let sums = both.map(|(build, remove)| *build + *remove).collect();
        [median(sums), median(self.build), median(self.remove)]
    }
}

pub(crate) async fn measure(directory: &Path, shape: Shape) -> anyhow::Result<()> {
    let Shape {
        networks: count,
        ports,
        pairs,
    } = shape;
    ensure!(
        count > 0 && ports % u16::from(count) == 0,
        "as many ports in each network"
    );
    let networks: Vec<Network> = (0..count)
        .map(|n| Network::new(n, ports / u16::from(count)))
        .collect::<anyhow::Result<_>>()?;
    let ids: Vec<_> = networks.iter().map(|network| network.id).collect();
    let taps: Vec<String> = networks.iter().flat_map(Network::taps).collect();
    let host = Host::new()?;
    let net = KernelNet::new(directory);
    lab::make_taps(directory, &taps)?;

    // What is once for a host is there on both before anything is measured, and stays: a network without ports holds it.
    let rest = [Network::new(count, 0)?];
    lab::passes(&net, &rest, Present::Yes).await?;
    lab::passes(&net, &networks, Present::Yes).await?;
    let all = state::ruleset()?;
    let links = lab::run("ip", &["-d", "link"])?;
    lab::unplug_taps(directory, &taps)?;
    lab::passes(&net, &networks, Present::No).await?;
    let host_rules = state::ruleset()?;
    let (calls_ip, stateful) = if links.contains("nf_call_iptables 1") {
        (CallsIp::Yes, Stateful::BrNetfilter)
    } else {
        (CallsIp::No, Stateful::Bridge)
    };
    let rules = Rules::between(&host_rules, &all)?;
    let [files, files_of_rest] = ["by-hand", "by-hand-rest"].map(|name| directory.join(name));
    fs::create_dir_all(&files)?;
    fs::create_dir_all(&files_of_rest)?;
    let scripts = Scripts::write(&files, &networks, calls_ip, &rules)?;
    {
        let (files, taps) = (files.clone(), taps.clone());
        host.run(move || {
            let base = transaction(&base::commands(stateful));
            lab::feed("nft", &["-f", "/proc/self/fd/0"], &base)?;
            let rules = Rules::between(&state::ruleset()?, &host_rules)?;
            Scripts::write(&files_of_rest, &rest, calls_ip, &rules)?.build()?;
            lab::make_taps(&files, &taps)
        })?;
    }
    let (mut berth, mut by_hand) = (Times::default(), Times::default());
    for turn in 0..pairs {
        // Who comes first changes: what the kernel still does for the one is not always the other's.
        for side in [turn % 2, (turn + 1) % 2] {
            if side == 0 {
                let started = Instant::now();
                lab::passes(&net, &networks, Present::Yes).await?;
                berth.build.push(started.elapsed());
            } else {
                let scripts = scripts.clone();
                by_hand
                    .build
                    .push(host.run(move || timed(|| scripts.build()))?);
            }
        }
        let there = state::of(&ids)?;
        let other = {
            let ids = ids.clone();
            host.run(move || state::of(&ids))?
        };
        state::ensure_same(&there, &other).context("built")?;
        for side in [turn % 2, (turn + 1) % 2] {
            if side == 0 {
                lab::unplug_taps(directory, &taps)?;
                let started = Instant::now();
                lab::passes(&net, &networks, Present::No).await?;
                berth.remove.push(started.elapsed());
            } else {
                let (scripts, taps, files) = (scripts.clone(), taps.clone(), files.clone());
                by_hand.remove.push(host.run(move || {
                    lab::unplug_taps(&files, &taps)?;
                    timed(|| scripts.remove())
                })?);
            }
        }
        let there = state::of(&ids)?;
        let other = {
            let ids = ids.clone();
            host.run(move || state::of(&ids))?
        };
        state::ensure_same(&there, &other).context("removed")?;
    }
    let [berth_ms, berth_build, berth_remove] = berth.medians();
    let [by_hand_ms, hand_build, hand_remove] = by_hand.medians();
    println!(
        "bench plumbing ports={ports} networks={count} berth_ms={berth_ms:.1} by_hand_ms={by_hand_ms:.1} ratio={:.2} \
         berth_build_ms={berth_build:.1} by_hand_build_ms={hand_build:.1} \
         berth_remove_ms={berth_remove:.1} by_hand_remove_ms={hand_remove:.1}",
        berth_ms / by_hand_ms
    );
    Ok(())
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}
