//! `berth-metadata`: tells the guests of one network their metadata. `berth-agent` starts it in the network's namespace; it is
//! nobody's child, and outlives the agent.

use std::process::ExitCode;

use berth_agent::{
    metadata_service::{self, Options},
    process,
};
use clap::Parser;

fn main() -> ExitCode {
    process::exit("berth-metadata", metadata_service::run(&Options::parse()))
}
