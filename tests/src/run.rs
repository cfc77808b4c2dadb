//! Runs programs: argv, a limit, and an error that has everything.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};

/// How long a program may take unless said otherwise.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Runs a program to its end and hands over whatever came out, success or not.
///
/// # Errors
/// It cannot be started, or takes longer than [`LIMIT`] (then it is killed).
pub async fn output(argv: &[&str]) -> anyhow::Result<Output> {
    output_within(LIMIT, argv).await
}

/// [`output`] of a program that itself waits for something.
///
/// # Errors
/// As there, with this limit.
pub async fn output_within(limit: Duration, argv: &[&str]) -> anyhow::Result<Output> {
    let (program, arguments) = argv.split_first().context("an empty argv")?;
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    tokio::time::timeout(limit, command.output())
        .await
        .with_context(|| format!("{argv:?} took longer than {} s", limit.as_secs()))?
        .with_context(|| format!("{argv:?} does not start"))
}

/// Runs a program that must succeed, and returns what it printed.
///
/// # Errors
/// It fails; the error has status and standard error.
pub async fn text(argv: &[&str]) -> anyhow::Result<String> {
    checked(argv, &output(argv).await?)
}

/// [`text`] of a program that itself waits for something.
///
/// # Errors
/// As there, with this limit.
pub async fn text_within(limit: Duration, argv: &[&str]) -> anyhow::Result<String> {
    checked(argv, &output_within(limit, argv).await?)
}

/// [`text`] where no runtime may be entered.
///
/// # Errors
/// As there.
pub fn text_blocking(argv: &[&str]) -> anyhow::Result<String> {
    let (program, arguments) = argv.split_first().context("an empty argv")?;
    let output = std::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{argv:?} does not start"))?;
    checked(argv, &output)
}

/// The text of an output that must be a success.
///
/// # Errors
/// It is not; the error has status and standard error.
pub fn checked(argv: &[&str], output: &Output) -> anyhow::Result<String> {
    ensure!(
        output.status.success(),
        "{argv:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
