//! An operator decides where instances go, with `berthctl`: zones, groups, hints, drained hosts, ratios; asks first
//! whether they would fit, and afterwards why they do not.

use std::path::Path;

use anyhow::Context;
use berth_tests::{
    TestCloud,
    cloud::{Sims, imaginary_image},
    ctl::Berthctl,
    with_cloud,
};
use serde_json::Value;

#[test]
fn an_operator_places_by_zone_and_group_and_is_told_in_numbers_what_does_not_fit() {
    let sims = Sims {
        vcpus: 8,
        memory_mb: 16_384,
        disk_gb: 100,
        ..Sims::of(4)
    };
    // (16384 − 512) × 1.5 = 23808 MB may be claimed on each host.
    let builder = TestCloud::builder().agents(0).sims(sims);
    with_cloud(builder, async |cloud| {
        let ctl = Berthctl::new(cloud)?;
        a_rack_becomes_a_zone(&ctl).await?;
        two_of_a_group_fit_in_it(&ctl, cloud.site.dir()).await?;
        memory_runs_out(&ctl, cloud.site.dir()).await?;
        a_drained_host_gets_nothing(&ctl, cloud.site.dir()).await?;
        a_higher_ratio_makes_room(&ctl, cloud.site.dir()).await
    });
}

async fn a_rack_becomes_a_zone(ctl: &Berthctl) -> anyhow::Result<()> {
    ctl.text(&[
        "aggregate",
        "create",
        "rack-1",
        "--zone",
        "rack-1",
        "--property",
        "disk=ssd",
        "--host",
        "sim-0001",
    ])
    .await?;
    ctl.text(&["aggregate", "add-host", "rack-1", "sim-0002"])
        .await?;
    let shown = ctl.text(&["aggregate", "show", "rack-1"]).await?;
    has(&shown, &["rack-1", "disk=ssd", "sim-0001", "sim-0002"]);
    let host = ctl.text(&["host", "show", "sim-0001"]).await?;
    has(&host, &["rack-1"]);
    let (code, text) = ctl
        .fails(&["aggregate", "add-host", "rack-1", "sim-0099"])
        .await?;
    assert_eq!(code, Some(1), "{text}");
    has(&text, &["sim-0099"]);
    ctl.text(&["server-group", "create", "db", "--policy", "anti-affinity"])
        .await?;
    let groups = ctl.text(&["server-group", "list"]).await?;
    has(&groups, &["db", "anti-affinity"]);
    Ok(())
}

async fn two_of_a_group_fit_in_it(ctl: &Berthctl, folder: &Path) -> anyhow::Result<()> {
    let file = instance_file(
        folder,
        "db",
        256,
        "availability_zone = \"rack-1\"\nserver_group = \"db\"\nproperties = { disk = \"ssd\" }\n",
    )?;
    let place = ctl.text(&["place", "-f", &file]).await?;
    has(&place, &["chosen", "runner-up", "availability_zone"]);
    let capacity = ctl.text(&["capacity", "-f", &file]).await?;
    has(&capacity, &["2 more fit", "next limit: server_group"]);

    // All or none.
    let (code, text) = ctl
        .fails(&["instance", "create", "-f", &file, "--count", "3"])
        .await?;
    assert_eq!(code, Some(1), "{text}");
    let list = ctl.text(&["instance", "list"]).await?;
    assert!(!list.contains("db-"), "{list}");

    ctl.text(&["instance", "create", "-f", &file, "--count", "2", "--wait"])
        .await?;
    let mut hosts = Vec::new();
    for name in ["db-1", "db-2"] {
        let shown = ctl.json(&["instance", "show", name]).await?;
        assert_eq!(shown["vm_state"], "active", "{shown}");
        hosts.push(text_of(&shown["host"])?);
    }
    hosts.sort();
    assert_eq!(hosts, ["sim-0001", "sim-0002"]);

    let (code, text) = ctl
        .fails(&["instance", "create", "-f", &file, "--name", "db-3"])
        .await?;
    assert_eq!(code, Some(1), "{text}");
    has(&text, &["the policy of the server group"]);
    assert!(
        !text.contains("sim-"),
        "a host is named to the owner: {text}"
    );
    let explained = ctl.text(&["explain", "db-3"]).await?;
    golden(
        &explained,
        &[
            "1 decision",
            "attempt 1",
            "No valid host was found for 1 vCPU, 256 MB of memory, 1 GB of disk: 4 hosts; availability_zone removed 2; \
             server_group removed 2; nearest miss",
            "| (all hosts) | - | 4 |",
            "| availability_zone | 2 | 2 |",
            "| server_group | 2 | 0 |",
            "Nearest misses:",
            "it holds 1 of the server group, at most 1 may lie on one host",
            "needs availability zone rack-1, it is in nova",
        ],
    );
    let outcome = ctl.outcome(&["place", "-f", &file]).await?;
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    ctl.text(&["instance", "delete", "db-3", "--wait"]).await?;
    Ok(())
}

async fn memory_runs_out(ctl: &Berthctl, folder: &Path) -> anyhow::Result<()> {
    let file = instance_file(folder, "big", 12_000, "")?;
    let capacity = ctl.text(&["capacity", "-f", &file]).await?;
    has(
        &capacity,
        &[
            "4 more fit",
            "next limit: ram",
            "needs 12000 MB of memory, 11808 free of 23808, 192 missing",
        ],
    );
    let outcome = ctl
        .outcome(&[
            "instance",
            "create",
            "-f",
            &file,
            "--count",
            "5",
            "--best-effort",
            "--wait",
        ])
        .await?;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let explained = ctl.text(&["explain", "big-5"]).await?;
    golden(
        &explained,
        &[
            "1 decision",
            "No valid host was found for 1 vCPU, 12000 MB of memory, 1 GB of disk: 4 hosts; ram removed 4; nearest \
             miss sim-000",
            "| (all hosts) | - | 4 |",
            "| ram | 4 | 0 |",
            "| sim-0003 | ram | 192 | needs 12000 MB of memory, 11808 free of 23808, 192 missing |",
            "| sim-0004 | ram | 192 | needs 12000 MB of memory, 11808 free of 23808, 192 missing |",
            "ram | 448 | needs 12000 MB of memory, 11552 free of 23808, 448 missing |",
        ],
    );
    let shown = ctl.json(&["instance", "show", "big-5"]).await?;
    assert_eq!(shown["vm_state"], "error", "{shown}");
    let fault = text_of(&shown["fault"]["message"])?;
    has(&fault, &["not enough memory is free", "192 missing"]);
    assert!(
        !fault.contains("sim-"),
        "a host is named to the owner: {fault}"
    );
    Ok(())
}

async fn a_drained_host_gets_nothing(ctl: &Berthctl, folder: &Path) -> anyhow::Result<()> {
    ctl.text(&["host", "drain", "sim-0003", "--reason", "new disks"])
        .await?;
    let shown = ctl.text(&["host", "show", "sim-0003"]).await?;
    has(&shown, &["draining", "new disks"]);
    let bound = instance_file(folder, "bound", 64, "host = \"sim-0003\"\n")?;
    let outcome = ctl.outcome(&["place", "-f", &bound]).await?;
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    golden(
        &outcome.text,
        &["| enabled | 1 | 3 |", "| requested_host | 3 | 0 |"],
    );
    ctl.text(&["host", "enable", "sim-0003"]).await?;
    let place = ctl.text(&["place", "-f", &bound]).await?;
    golden(&place, &["| chosen | sim-0003 |"]);

    // Beside big-N on sim-0004, wherever that is; and not beside it.
    let list = ctl.json(&["instance", "list"]).await?;
    let neighbour = instance_on(&list, "sim-0004")?;
    let beside = instance_file(
        folder,
        "beside",
        64,
        &format!("same_host = [\"{neighbour}\"]\n"),
    )?;
    golden(
        &ctl.text(&["place", "-f", &beside]).await?,
        &["| same_host | 3 | 1 |", "| chosen | sim-0004 |"],
    );
    let away = instance_file(
        folder,
        "away",
        64,
        &format!("different_host = [\"{neighbour}\"]\n"),
    )?;
    golden(
        &ctl.text(&["place", "-f", &away]).await?,
        &["| different_host | 1 | 3 |"],
    );
    let both = instance_file(
        folder,
        "both",
        64,
        &format!("same_host = [\"{neighbour}\"]\ndifferent_host = [\"{neighbour}\"]\n"),
    )?;
    let (code, text) = ctl.fails(&["place", "-f", &both]).await?;
    assert_eq!(code, Some(2), "{text}");
    has(&text, &["must name no instance that same_host names"]);
    Ok(())
}

/// The refused one is asked for again after the operator has made room, with the id that it has.
async fn a_higher_ratio_makes_room(ctl: &Berthctl, folder: &Path) -> anyhow::Result<()> {
    let refused = ctl.json(&["instance", "show", "big-5"]).await?;
    let id = text_of(&refused["id"])?;
    ctl.text(&["host", "set", "sim-0003", "--ram-allocation-ratio", "1.6"])
        .await?;
    let host = ctl.json(&["host", "show", "sim-0003"]).await?;
    assert_eq!(host["capacity"]["memory_mb"], 25_395, "{host}");
    let file = folder.join("big.toml").display().to_string();
    ctl.text(&[
        "instance", "create", "-f", &file, "--name", "big-5", "--id", &id, "--wait",
    ])
    .await?;
    let shown = ctl.json(&["instance", "show", "big-5"]).await?;
    assert_eq!(shown["host"], "sim-0003", "{shown}");
    // The ratio goes back: nobody is evicted, and nobody else comes.
    ctl.text(&[
        "host",
        "set",
        "sim-0003",
        "--ram-allocation-ratio",
        "default",
    ])
    .await?;
    let shown = ctl.json(&["instance", "show", "big-5"]).await?;
    assert_eq!(shown["host"], "sim-0003", "{shown}");
    let bound = folder.join("bound.toml").display().to_string();
    let outcome = ctl.outcome(&["place", "-f", &bound]).await?;
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    golden(
        &outcome.text,
        &["| ram | 1 | 3 |", "| requested_host | 3 | 0 |"],
    );
    let explained = ctl.text(&["explain", "big-5"]).await?;
    has(&explained, &["2 decisions, the newest first", "chosen"]);
    Ok(())
}

fn instance_on(list: &Value, host: &str) -> anyhow::Result<String> {
    let rows = list.as_array().or_else(|| list["instances"].as_array());
    let found = rows
        .into_iter()
        .flatten()
        .find(|view| view["host"] == host)
        .with_context(|| format!("no instance on {host}: {list}"))?;
    text_of(&found["id"])
}

fn text_of(value: &Value) -> anyhow::Result<String> {
    Ok(value
        .as_str()
        .with_context(|| format!("no text: {value}"))?
        .to_owned())
}

fn instance_file(folder: &Path, name: &str, memory_mb: u64, hints: &str) -> anyhow::Result<String> {
    let image = imaginary_image()?;
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(
        &path,
        format!(
            "name = \"{name}\"\nvcpus = 1\nmemory_mb = {memory_mb}\ndisk_gb = 1\n\n[image]\nurl = \"{}\"\n\
             sha256 = \"{}\"\nformat = \"qcow2\"\n\n[hints]\n{hints}",
            image.url, image.sha256
        ),
    )?;
    Ok(path.display().to_string())
}

/// Words that must be there.
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

/// Words that must be there, however wide the columns are.
fn golden(text: &str, parts: &[&str]) {
    let narrow = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(narrow.contains(part), "no {part:?} in\n{text}");
    }
}
