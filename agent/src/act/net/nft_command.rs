//! One run of `nft`, in the network namespace of the calling thread: commands in its own language or as JSON, carried out all or none.
//! What is large and comes often is told in its own language, which it reads in less time; what it lists is read as JSON.

use std::time::Duration;

use serde_json::Value;

use super::error::NetError;
use crate::act::command::{Command, Output};

/// How long it may take: a list of thousands of chains takes a second or two on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// How much it may list: some ten thousand ports.
const LIST_LIMIT: usize = 256 << 20;

/// Has nft carry out commands of JSON, all of them or none; answers what it lists.
pub(super) async fn run(commands: &Value, options: &[&str]) -> Result<Value, NetError> {
    let output = nft(commands.to_string(), &[options, &["-j"]].concat()).await?;
    if output.stdout.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).map_err(|error| NetError::Filter {
        what: format!("nft printed something else than JSON: {error}"),
    })
}

/// Has nft carry out commands in its own language, all of them or none.
pub(super) async fn carry_out(commands: String, options: &[&str]) -> Result<(), NetError> {
    nft(commands, options).await.map(drop)
}

async fn nft(commands: String, options: &[&str]) -> Result<Output, NetError> {
    let command = Command::new("nft")
        .reads_nothing_of_tenants()
        .args(options)
        // As "-" it would open /dev/stdin, which not every host has.
        .args(["-f", "/proc/self/fd/0"])
        .input(commands.into_bytes())
        .timeout(LIMIT)
        .stdout_limit(LIST_LIMIT);
    Ok(command.run().await?)
}
