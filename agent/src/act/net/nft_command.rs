//! One run of `nft`, in the network namespace of the calling thread: commands as JSON, carried out all or none.

use std::time::Duration;

use serde_json::Value;

use super::error::NetError;
use crate::act::command::Command;

/// How long it may take: a list of thousands of chains takes a second or two on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// How much it may list: some ten thousand ports.
const LIST_LIMIT: usize = 256 << 20;

/// Has nft carry out commands, all of them or none; answers what it lists.
pub(super) async fn run(commands: &Value, options: &[&str]) -> Result<Value, NetError> {
    run_text(commands.to_string(), options).await
}

/// The same, of commands as text.
pub(super) async fn run_text(commands: String, options: &[&str]) -> Result<Value, NetError> {
    let command = Command::new("nft")
        .args(options)
        // As "-" it would open /dev/stdin, which not every host has.
        .args(["-j", "-f", "/proc/self/fd/0"])
        .input(commands.into_bytes())
        .timeout(LIMIT)
        .stdout_limit(LIST_LIMIT);
    let output = command.run().await?;
    if output.stdout.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).map_err(|error| NetError::Filter {
        what: format!("nft printed something else than JSON: {error}"),
    })
}
