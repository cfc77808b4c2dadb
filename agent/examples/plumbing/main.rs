//! Measures, for `bench/plumbing.sh`, what the agent's network code costs beside the same by hand, and how a change of a security
//! group's rules grows with the ports. In network, mount and process namespaces of its own, with a `/run` of its own.
//!
//!   bench plumbing ports=… networks=… berth_ms=… by_hand_ms=… ratio=… berth_build_ms=… berth_remove_ms=… …
//!   bench rules ports=… update_ms=… member_ms=… port_ms=… nft_ms=…
//!
//! - [`lab`]: documents, and what the engine does with them;
//! - [`plumbing`]: building and removing; [`by_hand`]: the same with `ip -batch` and `nft -f`;
//! - [`state`]: what is there, to be compared;
//! - [`rules`]: changes of rules.

#![allow(
    clippy::print_stdout,
    reason = "what is measured is what it is run for"
)]

mod by_hand;
mod lab;
mod plumbing;
mod rules;
mod state;

use std::{path::Path, time::Duration};

use anyhow::Context as _;

const USAGE: &str =
    "usage: plumbing DIRECTORY build NETWORKS PORTS PAIRS | plumbing DIRECTORY rules PORTS";

/// The middle one, in milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.as_secs_f64() * 1000.0
}

// The agent's own runtime has as many threads.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [directory, "build", networks, ports, pairs] => {
            let shape = plumbing::Shape {
                networks: networks.parse().context(USAGE)?,
                ports: ports.parse().context(USAGE)?,
                pairs: pairs.parse().context(USAGE)?,
            };
            plumbing::measure(Path::new(directory), shape).await
        }
        [directory, "rules", ports] => {
            rules::measure(Path::new(directory), ports.parse().context(USAGE)?).await
        }
        _ => anyhow::bail!(USAGE),
    }
}
