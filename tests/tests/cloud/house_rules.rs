//! What ARCHITECTURE.md says is never there: the sources are read and searched.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

/// The parts that decide: no async, no I/O, no clock, no chance.
const PURE: [&str; 5] = [
    "scheduler/src/place",
    "scheduler/src/derive",
    "scheduler/src/report/view.rs",
    "scheduler/src/report/volume_view.rs",
    "agent/src/decide",
];

const IMPURE: [&str; 15] = [
    "async fn",
    ".await",
    "tokio::",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "Utc::now",
    "now_v7",
    "rand::",
    "nix::",
    "rtnetlink",
];

/// Who may depend on which part of berth.
const DEPENDENCIES: [(&str, &[&str]); 5] = [
    ("common", &[]),
    ("store", &["berth-common"]),
    ("scheduler", &["berth-common", "berth-store"]),
    ("agent", &["berth-common"]),
    ("ctl", &["berth-common"]),
];

#[test]
fn what_decides_does_nothing_else() -> anyhow::Result<()> {
    for place in PURE {
        let files = sources(&root().join(place))?;
        ensure!(!files.is_empty(), "{place} has no sources");
        for (path, text) in files {
            for word in IMPURE {
                ensure!(!has(&text, word), "{} has {word:?}", path.display());
            }
        }
    }
    Ok(())
}

/// Whether a text has a word that is not the end of a longer name: `Operand::` is not `rand::`.
fn has(text: &str, word: &str) -> bool {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).any(|(at, _)| {
        let begins = word.starts_with(is_name);
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        !(begins && before.is_some_and(is_name))
    })
}

#[test]
fn a_word_is_found_where_it_begins() {
    assert!(has("use rand::Rng;", "rand::") && has("rand::random()", "rand::"));
    assert!(has("let x = f().await;", ".await"));
    assert!(!has("Operand::text(name)", "rand::"));
}

#[test]
fn libraries_stay_where_they_belong() -> anyhow::Result<()> {
    for (library, home) in [
        ("lapin::", "common/src/bus/rabbit"),
        ("sea_orm", "store/src"),
        ("rtnetlink::", "agent/src"),
    ] {
        for part in DEPENDENCIES.map(|(part, _)| part) {
            for (path, text) in sources(&root().join(part).join("src"))? {
                let path = path.strip_prefix(root())?.display().to_string();
                ensure!(
                    path.starts_with(home) || !text.contains(library),
                    "{path} names {library}"
                );
            }
        }
    }
    Ok(())
}

/// What tests are built with has features that the product is not built with: it would compile in tests alone.
#[test]
fn the_product_stops_no_clock() -> anyhow::Result<()> {
    for part in DEPENDENCIES.map(|(part, _)| part) {
        let files = sources(&root().join(part).join("src"))?;
        ensure!(!files.is_empty(), "{part} has no sources");
        for (path, text) in files {
            for word in [
                "time::pause",
                "time::advance",
                "time::resume",
                "start_paused(true",
            ] {
                ensure!(!has(&text, word), "{} has {word:?}", path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn parts_depend_on_nothing_but_what_the_map_says() -> anyhow::Result<()> {
    for (part, allowed) in DEPENDENCIES {
        let manifest = std::fs::read_to_string(root().join(part).join("Cargo.toml"))?;
        let named = manifest
            .lines()
            .filter_map(|line| line.split(['.', '=', ' ']).next());
        for name in named.filter(|name| name.starts_with("berth-")) {
            ensure!(allowed.contains(&name), "{part} depends on {name}");
        }
        if part == "agent" {
            ensure!(
                !manifest.contains("sea-orm") && !manifest.contains("sqlx"),
                "the agent has a database"
            );
        }
    }
    Ok(())
}

#[test]
fn every_file_says_what_it_is_for() -> anyhow::Result<()> {
    let parts = ["common", "store", "scheduler", "agent", "ctl", "tests"];
    for part in parts {
        for (path, text) in whole_sources(&root().join(part))? {
            ensure!(
                text.starts_with("//!"),
                "{} does not begin with //!",
                path.display()
            );
        }
    }
    Ok(())
}

/// The sources below a path, without their tests and comments.
fn sources(path: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let files = whole_sources(path)?;
    Ok(files
        .into_iter()
        .filter(|(path, _)| {
            let of_tests = path
                .parent()
                .is_some_and(|folder| folder.file_name().is_some_and(|name| name == "tests"));
            let is_tests = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().ends_with("tests.rs"));
            !of_tests && !is_tests
        })
        .map(|(path, text)| {
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code = product
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect::<Vec<_>>()
                .join("\n");
            (path, code)
        })
        .collect())
}

fn whole_sources(path: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    if path.is_file() {
        let text = std::fs::read_to_string(path)?;
        found.insert(path.to_owned(), text);
        return Ok(found);
    }
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        let path = entry?.path();
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        if path.is_dir() || is_rust {
            found.append(&mut whole_sources(&path)?);
        }
    }
    Ok(found)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
