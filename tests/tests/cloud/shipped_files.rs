//! What is shipped beside the programs: sample configurations, units, and the map in ARCHITECTURE.md.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use berth_tests::{binaries, run};

#[tokio::test]
async fn every_sample_configuration_is_taken_by_its_program() -> anyhow::Result<()> {
    for (sample, program) in [
        ("scheduler.toml", "berth-scheduler"),
        ("agent.toml", "berth-agent"),
    ] {
        let path = systemd().join(sample);
        ensure!(path.is_file(), "{} is not there", path.display());
        let program = binaries::path(program)?.display().to_string();
        run::text(&[
            &program,
            "--check-config",
            "--config",
            &path.display().to_string(),
        ])
        .await?;
    }
    // No sample without a program that was tried on it.
    let samples: Vec<PathBuf> = with_extension(&systemd(), "toml")?;
    ensure!(
        samples.len() == 2 + usize::from(systemd().join("berthctl.toml").is_file()),
        "samples: {samples:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_all_its_mistakes() -> anyhow::Result<()> {
    let file = std::env::temp_dir().join(format!("berth-wrong-{}.toml", std::process::id()));
    std::fs::write(
        &file,
        "[bus]\nurl = \"http://x\"\n[telemetry]\nlisten = \"nowhere\"\n[colour]\nred = 1\n",
    )?;
    for program in ["berth-scheduler", "berth-agent"] {
        let program = binaries::path(program)?.display().to_string();
        let output = run::output(&[
            &program,
            "--check-config",
            "--config",
            &file.display().to_string(),
        ])
        .await?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{program} takes it");
        for part in ["bus.url", "telemetry.listen", "colour"] {
            ensure!(
                text.contains(part),
                "{program} does not complain about {part}:\n{text}"
            );
        }
    }
    Ok(std::fs::remove_file(&file)?)
}

#[tokio::test]
async fn every_unit_passes_systemd_analyze() -> anyhow::Result<()> {
    let units = with_extension(&systemd(), "service")?;
    ensure!(units.len() >= 2, "units: {units:?}");
    // The units name installed programs: a root of links to those of this build has them.
    let root = std::env::temp_dir().join(format!("berth-units-{}", std::process::id()));
    std::fs::create_dir_all(root.join("units"))?;
    for unit in &units {
        let text = std::fs::read_to_string(unit)?;
        let folder = binaries::path("berth-agent")?
            .parent()
            .context("no folder")?
            .display()
            .to_string();
        let text = text
            .replace("/usr/bin/berth", &format!("{folder}/berth"))
            .replace("/usr/sbin/berth", &format!("{folder}/berth"));
        std::fs::write(
            root.join("units")
                .join(unit.file_name().context("no name")?),
            text,
        )?;
    }
    for unit in &units {
        let copy = root
            .join("units")
            .join(unit.file_name().context("no name")?)
            .display()
            .to_string();
        let argv = ["systemd-analyze", "verify", "--man=no", &copy];
        let output = run::output(&argv).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = unit
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let about: Vec<&str> = said.lines().filter(|line| line.contains(&name)).collect();
        ensure!(about.is_empty(), "systemd-analyze says of {name}:\n{said}");
        run::checked(&argv, &output)?;
    }
    Ok(std::fs::remove_dir_all(&root)?)
}

#[test]
fn every_path_that_the_architecture_names_exists() -> anyhow::Result<()> {
    let root = binaries::repository();
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md"))
        .context("ARCHITECTURE.md is not there")?;
    let paths = paths_in(&text);
    ensure!(paths.len() >= 10, "only these look like paths: {paths:?}");
    let absent: Vec<&String> = paths
        .iter()
        .filter(|path| !root.join(path).exists())
        .collect();
    ensure!(
        absent.is_empty(),
        "ARCHITECTURE.md names what is not there: {absent:?}"
    );
    Ok(())
}

#[test]
fn the_documents_that_users_look_for_are_there() -> anyhow::Result<()> {
    let root = binaries::repository();
    let wanted = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SPECIFICATION.md",
        "LICENSE",
        "Makefile",
        "docs/messages.md",
        "docs/operations.md",
        "docs/instance.sample.toml",
        "docs/adr",
    ];
    let absent: Vec<&str> = wanted
        .into_iter()
        .filter(|path| !root.join(path).exists())
        .collect();
    ensure!(absent.is_empty(), "missing: {absent:?}");
    Ok(())
}

#[test]
fn operators_find_every_state_and_fault_explained_and_no_key_that_is_not_there()
-> anyhow::Result<()> {
    let read = |path: &str| {
        std::fs::read_to_string(binaries::repository().join(path)).context(path.to_owned())
    };
    let (operations, messages) = (read("docs/operations.md")?, read("docs/messages.md")?);
    let quoted: Vec<&str> = operations.split('`').skip(1).step_by(2).collect();
    let words: Vec<&str> = messages
        .lines()
        .filter(|line| {
            [
                "| `code` | `\"no_v",
                "| `vm_state` |",
                "| `status` | `\"creating",
            ]
            .iter()
            .any(|start| line.starts_with(start))
        })
        .flat_map(|line| line.split('`').filter_map(|word| word.strip_prefix('"')))
        .map(|word| word.trim_end_matches('"'))
        .collect();
    ensure!(
        words.len() > 20,
        "only these are states and faults: {words:?}"
    );
    let absent: Vec<&&str> = words.iter().filter(|word| !quoted.contains(word)).collect();
    ensure!(absent.is_empty(), "docs/operations.md lacks {absent:?}");

    let keys = keys_in(&(read("systemd/agent.toml")? + &read("systemd/scheduler.toml")?));
    let sections: Vec<&str> = keys
        .iter()
        .filter_map(|key| key.split('.').next())
        .collect();
    let looks_like_a_key = |word: &&&str| {
        let section = word.split_once('.').map(|(section, _)| section);
        section.is_some_and(|section| sections.contains(&section))
    };
    let named: Vec<&&str> = quoted.iter().filter(looks_like_a_key).collect();
    ensure!(named.len() > 8, "only these look like keys: {named:?}");
    let unknown: Vec<&&&str> = named
        .iter()
        .filter(|word| !keys.iter().any(|key| key == **word))
        .collect();
    ensure!(unknown.is_empty(), "docs/operations.md has {unknown:?}");
    Ok(())
}

/// The keys of sample configurations, with their sections, also those that show a default.
fn keys_in(samples: &str) -> Vec<String> {
    let mut section = "";
    let mut keys = Vec::new();
    for line in samples.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, _)) = line.trim_start_matches("#: ").split_once(" = ") {
            keys.push(format!("{section}.{key}"));
        }
    }
    keys
}

/// What stands in backquotes and looks like a path of this repository: a folder (`common/`) or a file in one.
fn paths_in(text: &str) -> Vec<String> {
    let tops = [
        "agent",
        "bench",
        "common",
        "ctl",
        "docs",
        "scheduler",
        "scripts",
        "store",
        "systemd",
        "tests",
    ];
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|quoted| {
            tops.iter()
                .any(|top| quoted.starts_with(&format!("{top}/")))
        })
        .filter(|quoted| !quoted.contains(['*', '<', ' ', '{']))
        .map(|path| path.trim_end_matches('/').to_owned())
        .collect()
}

fn systemd() -> PathBuf {
    binaries::repository().join("systemd")
}

fn with_extension(folder: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
