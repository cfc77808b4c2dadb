//! Finds the programs under test: those that cargo built next to this test.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The path of one of berth's programs.
///
/// # Errors
/// It was not built; with what to do.
pub fn path(name: &str) -> anyhow::Result<PathBuf> {
    // target/debug/deps/cloud-0123456789abcdef and target/release/berth-bench: target/debug, target/release
    let this = std::env::current_exe().context("where is this test?")?;
    let folder = this
        .parent()
        .and_then(|folder| match folder.file_name() {
            Some(name) if name == "deps" => folder.parent(),
            _ => Some(folder),
        })
        .context("this test lies in no target directory")?;
    let program = folder.join(name);
    ensure!(
        program.is_file(),
        "{} is not there: run `cargo build --workspace` before the tests",
        program.display()
    );
    Ok(program)
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}
