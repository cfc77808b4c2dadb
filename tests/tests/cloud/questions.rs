//! Questions about a real guest, over a real broker: what it said, what it shows, whether its agent is there, how to
//! reach it; and what becomes of them when agent or libvirt do not answer. The agent looks at its host so rarely here that whatever
//! happens to the guest is known by libvirt's events alone.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_common::{
    message::{
        counters::{LinkCounts, PortCounters},
        question::{
            EndpointKind, GuestAgentState, InstanceConsoleOutput, InstanceEndpoints,
            InstancePingGuestAgent, InstanceScreenshot,
        },
        report::PowerState,
        view::{InstanceView, VmState},
    },
    refusal::RefusalCode,
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, GuestOptions},
    ctl::Berthctl,
    wait::{Seen, wait_for},
    with_cloud,
};

/// How long whoever asks is made to wait at most: the default patience.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the agent looks at its host: longer than anything is waited for.
const RESYNC_SECONDS: u64 = 600;

fn console(instance: &InstanceView) -> InstanceConsoleOutput {
    InstanceConsoleOutput {
        instance: instance.id.to_string(),
        project: Default::default(),
        lines: 1000,
        after: None,
    }
}

fn screenshot(instance: &InstanceView) -> InstanceScreenshot {
    InstanceScreenshot {
        instance: instance.id.to_string(),
        project: Default::default(),
    }
}

#[test]
fn a_guest_is_looked_at_from_anywhere() {
    let builder = TestCloud::builder().agent_config("host.resync_seconds", RESYNC_SECONDS);
    with_cloud(builder, async |cloud| {
        let (instance, key) = booted(cloud).await?;
        the_console_says_what_the_guest_wrote(cloud, &instance).await?;
        the_display_is_a_picture(cloud, &instance).await?;
        the_guest_agent_is_there_silent_or_absent(cloud, &instance, &key).await?;
        the_endpoints_are_there(cloud, &instance).await?;
        the_counters_are_those_of_its_tap(cloud, &instance).await?;
        libvirt_that_hangs_is_told_in_time(cloud, &instance).await?;
        it_is_off_once_its_guest_is(cloud, &instance).await?;
        what_is_off_has_only_its_log(cloud, &instance).await?;
        an_agent_that_is_gone_is_told_at_once(cloud, &instance).await
    });
}

/// A guest that answers, and the key that opens it.
async fn booted(cloud: &TestCloud) -> anyhow::Result<(InstanceView, PathBuf)> {
    let network = cloud.create_network("front", 1).await?;
    let wanted = GuestOptions::in_network("web-1", "hv1", network.id);
    let [guest] = cloud.guests([wanted]).await?;
    Ok((guest.view, guest.key))
}

async fn the_console_says_what_the_guest_wrote(
    cloud: &TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    let ready = "berth-guest: ready address=";
    let output = cloud.call(&console(instance)).await?;
    ensure!(output.text.contains(ready), "{output:?}");
    ensure!(
        output.text.contains("press Enter for a shell") && !output.cut,
        "{output:?}"
    );
    // Whoever goes on there sees nothing twice.
    let mut later = console(instance);
    later.after = output.next;
    let rest = cloud.call(&later).await?;
    ensure!(!rest.text.contains(ready), "{rest:?}");

    let ctl = Berthctl::new(cloud)?;
    let shown = ctl.text(&["instance", "console", "web-1"]).await?;
    ensure!(shown.contains(ready), "{shown}");
    ensure!(
        !shown
            .chars()
            .any(|c| c.is_control() && c != '\n' && c != '\t'),
        "{shown:?}"
    );
    Ok(())
}

async fn the_display_is_a_picture(
    cloud: &TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    let file = cloud.site.dir().join("web-1.png");
    let name = file.display().to_string();
    let ctl = Berthctl::new(cloud)?;
    let saved = ctl
        .json(&["instance", "screenshot", "web-1", "--file", &name])
        .await?;
    let picture = std::fs::read(&file)?;
    ensure!(saved["bytes"] == picture.len(), "{saved}");
    let (width, height) = match saved["media_type"].as_str() {
        Some("image/png") => {
            ensure!(picture.starts_with(b"\x89PNG\r\n\x1a\n"), "no PNG: {saved}");
            let size = |at: usize| -> anyhow::Result<u32> {
                let bytes = picture.get(at..at + 4).context("it is too short")?;
                Ok(u32::from_be_bytes(bytes.try_into()?))
            };
            (size(16)?, size(20)?)
        }
        Some("image/x-portable-pixmap") => {
            ensure!(picture.starts_with(b"P6"), "no PPM: {saved}");
            let head = String::from_utf8_lossy(picture.get(..40).unwrap_or_default());
            let mut words = head.split_ascii_whitespace().skip(1);
            let mut size = || anyhow::Ok(words.next().context("it is too short")?.parse()?);
            (size()?, size()?)
        }
        other => anyhow::bail!("{other:?} is no picture"),
    };
    ensure!(
        (320..=4096).contains(&width) && (200..=4096).contains(&height),
        "{width}×{height}"
    );
    let answer = cloud.call(&screenshot(instance)).await?;
    ensure!(answer.host == "hv1".parse()?, "{answer:?}");
    Ok(())
}

/// The real agent of a real guest, which answers, stands still, goes on, and is gone.
async fn the_guest_agent_is_there_silent_or_absent(
    cloud: &TestCloud,
    instance: &InstanceView,
    key: &Path,
) -> anyhow::Result<()> {
    let ping = InstancePingGuestAgent {
        instance: instance.id.to_string(),
        project: Default::default(),
    };
    for (signal, expected) in [
        (None, GuestAgentState::Present),
        (Some("STOP"), GuestAgentState::Silent),
        (Some("CONT"), GuestAgentState::Present),
        (Some("KILL"), GuestAgentState::Absent),
    ] {
        if let Some(signal) = signal {
            let script = format!("killall -{signal} qemu-ga");
            cloud.in_guest(instance, key, &script).await?;
        }
        let what = format!("the guest agent to be {expected:?} after {signal:?}");
        wait_for(&what, CONVERGE_LIMIT, async || {
            let asked = Instant::now();
            let agent = cloud.call(&ping).await?;
            let waited = asked.elapsed();
            if waited >= PATIENCE {
                return Ok(Seen::Never(format!("{agent:?} after {waited:?}")));
            }
            Ok(Seen::when(agent.state == expected, agent))
        })
        .await?;
    }
    Ok(())
}

/// What a viewer of displays is greeted with.
const GREETED: &str = "
import socket, sys
viewer = socket.socket(socket.AF_UNIX)
viewer.settimeout(20)
viewer.connect(sys.argv[1])
print(viewer.recv(12).decode(), end='')
";

/// What the shell on a terminal answers.
const ANSWERED: &str = "
import os, select, sys, time, tty
terminal = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
tty.setraw(terminal)
said = b''
until = time.monotonic() + 20
while b'42-berth' not in said and time.monotonic() < until:
    os.write(terminal, b'\\necho $((6 * 7))-berth\\n')
    while select.select([terminal], [], [], 1)[0]:
        said += os.read(terminal, 4096)
print(said.decode(errors='replace'))
";

async fn the_endpoints_are_there(cloud: &TestCloud, instance: &InstanceView) -> anyhow::Result<()> {
    let answer = cloud
        .call(&InstanceEndpoints {
            instance: instance.id.to_string(),
            project: Default::default(),
        })
        .await?;
    ensure!(answer.power_state == PowerState::Running, "{answer:?}");
    let kinds: Vec<_> = answer.endpoints.iter().map(|it| it.kind).collect();
    let expected = [
        EndpointKind::Vnc,
        EndpointKind::Serial,
        EndpointKind::ConsoleLog,
        EndpointKind::GuestAgent,
    ];
    ensure!(kinds == expected, "{answer:?}");
    for endpoint in &answer.endpoints {
        let (sort, path) = endpoint.address.split_once(':').context("no address")?;
        let test = match sort {
            "unix" => "-S",
            "pty" => "-c",
            "file" => "-f",
            other => anyhow::bail!("{other}: something is open to the network: {endpoint:?}"),
        };
        cloud.hv1().text(&["test", test, path]).await?;
        let tried = match endpoint.kind {
            EndpointKind::Vnc => Some((GREETED, "RFB 003.")),
            EndpointKind::Serial => Some((ANSWERED, "42-berth")),
            EndpointKind::ConsoleLog | EndpointKind::GuestAgent => None,
        };
        if let Some((program, expected)) = tried {
            let argv = ["python3", "-c", program, path];
            let said = cloud.hv1().text(&argv).await?;
            ensure!(said.contains(expected), "{endpoint:?} says {said:?}");
        }
    }
    Ok(())
}

async fn the_counters_are_those_of_its_tap(
    cloud: &TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    let hv1 = cloud.hv1();
    let port = instance.ports.first().context("no port")?;
    let tap = hv1.first_link(&format!("berth-{}", instance.id)).await?;
    // It receives more than it sends.
    let address = TestCloud::address_of(instance)?.to_string();
    let ping = ["ping", "-c", "5", "-i", "0.2", "-s", "1200", &address];
    let echo = hv1.exec_in_network(port.network_id, &ping).await?;
    ensure!(echo.status.success(), "{echo:?}");
    let everybody = ["-b", "10.77.1.255"];
    hv1.exec_in_network(port.network_id, &[&ping[..7], &everybody].concat())
        .await?;
    // Of the guest: what the tap transmits is what it receives.
    let statistics = async || -> anyhow::Result<[LinkCounts; 2]> {
        let directory = format!("/sys/class/net/{tap}/statistics");
        let read = async |direction: &str| -> anyhow::Result<LinkCounts> {
            let files = ["bytes", "packets", "dropped", "errors"]
                .map(|what| format!("{directory}/{direction}_{what}"));
            let argv = [&["cat"][..], &files.each_ref().map(String::as_str)].concat();
            let text = hv1.text(&argv).await?;
            let numbers: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
            let [bytes, packets, dropped_packets, errors] =
                <[u64; 4]>::try_from(numbers).map_err(|numbers| anyhow::anyhow!("{numbers:?}"))?;
            Ok(LinkCounts {
                bytes,
                packets,
                dropped_packets,
                errors,
            })
        };
        Ok([read("tx").await?, read("rx").await?])
    };
    let before = statistics().await?;
    let counted = cloud.call(&PortCounters { port: port.id }).await?;
    let after = statistics().await?;
    let told = [counted.received, counted.sent];
    let lies_between = |what: &dyn Fn(&LinkCounts) -> u64| {
        let [before, told, after] =
            [&before, &told, &after].map(|counts| counts.each_ref().map(what));
        before
            .iter()
            .zip(&told)
            .all(|(before, told)| before <= told)
            && told.iter().zip(&after).all(|(told, after)| told <= after)
    };
    ensure!(
        lies_between(&|it| it.bytes)
            && lies_between(&|it| it.packets)
            && lies_between(&|it| it.dropped_packets)
            && lies_between(&|it| it.errors),
        "{before:?}, {told:?}, {after:?}"
    );
    // So that they cannot be taken for one another.
    let [received, sent] = before;
    ensure!(
        after[1].bytes < received.bytes || after[0].bytes < sent.bytes,
        "{before:?}, {after:?}"
    );
    ensure!(sent.packets >= 5 && sent.bytes >= 5 * 1200, "{sent:?}");
    ensure!(
        counted.tap == tap && counted.host == "hv1".parse()?,
        "{counted:?}"
    );
    ensure!(
        counted.filter_dropped_packets.get("spoofed_mac") == Some(&0)
            && counted.forged_metadata_requests == Some(0),
        "{counted:?}"
    );

    let ctl = Berthctl::new(cloud)?;
    let id = port.id.to_string();
    let table = ctl.text(&["port", "counters", &id]).await?;
    ensure!(
        table.contains(&tap) && table.contains("Guest sent"),
        "{table}"
    );
    let json = ctl.json(&["port", "counters", &id]).await?;
    let sent_now = json["sent"]["bytes"].as_u64();
    ensure!(sent_now >= Some(counted.sent.bytes), "{json}");
    Ok(())
}

/// The agent says so while whoever asked still waits, and goes on with everything else.
async fn libvirt_that_hangs_is_told_in_time(
    cloud: &TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    let libvirtd: Vec<String> = cloud
        .hv1()
        .pids_of("libvirtd")?
        .into_iter()
        .map(|pid| pid.to_string())
        .collect();
    let signal = async |signal: &str| -> anyhow::Result<()> {
        let mut argv = vec!["kill", signal];
        argv.extend(libvirtd.iter().map(String::as_str));
        cloud.hv1().text(&argv).await.map(drop)
    };
    signal("-STOP").await?;
    let asked = Instant::now();
    let refusal = cloud.refused(&screenshot(instance)).await;
    let waited = asked.elapsed();
    let console = cloud.call(&console(instance)).await;
    let host = cloud.host("hv1").await;
    signal("-CONT").await?;
    let refusal = refusal?;
    ensure!(refusal.code == RefusalCode::Unavailable, "{refusal}");
    ensure!(refusal.message.contains("does not answer"), "{refusal}");
    ensure!(waited < PATIENCE, "{waited:?}");
    // A console is a file.
    ensure!(!console?.text.is_empty());
    ensure!(host?.last_heartbeat_seconds.is_some_and(|age| age < 30));
    wait_for("pictures to be taken again", CONVERGE_LIMIT, async || {
        let answer = cloud.try_call(&screenshot(instance), PATIENCE).await?;
        Ok(Seen::when(answer.is_ok(), answer))
    })
    .await?;
    Ok(())
}

/// The power button, pressed by somebody else than berth, is what a guest's own `poweroff` looks like. Nobody looks at it now.
async fn it_is_off_once_its_guest_is(
    cloud: &TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    let domain = format!("berth-{}", instance.id);
    let hypervisor = cloud.hv1();
    hypervisor
        .text(&["virsh", "-q", "shutdown", &domain, "--mode", "acpi"])
        .await?;
    cloud
        .wait_state(instance.id, VmState::Stopped, CONVERGE_LIMIT)
        .await?;
    Ok(())
}

async fn what_is_off_has_only_its_log(
    cloud: &TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    let refusal = cloud.refused(&screenshot(instance)).await?;
    ensure!(refusal.code == RefusalCode::Conflict, "{refusal}");
    ensure!(refusal.message.contains("does not run"), "{refusal}");
    let port = instance.ports.first().context("no port")?.id;
    let refusal = cloud.refused(&PortCounters { port }).await?;
    ensure!(refusal.code == RefusalCode::Conflict, "{refusal}");
    ensure!(refusal.message.contains("has no tap"), "{refusal}");
    let output = cloud.call(&console(instance)).await?;
    ensure!(output.text.contains("power button pressed"), "{output:?}");
    let answer = cloud
        .call(&InstanceEndpoints {
            instance: instance.id.to_string(),
            project: Default::default(),
        })
        .await?;
    let kinds: Vec<_> = answer.endpoints.iter().map(|it| it.kind).collect();
    ensure!(kinds == [EndpointKind::ConsoleLog], "{answer:?}");
    Ok(())
}

async fn an_agent_that_is_gone_is_told_at_once(
    cloud: &mut TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    cloud.hv1_mut().kill_agent()?;
    let asked = Instant::now();
    let refusal = cloud.refused(&console(instance)).await?;
    let waited = asked.elapsed();
    ensure!(refusal.code == RefusalCode::Unavailable, "{refusal}");
    ensure!(refusal.message.contains("hypervisor hv1"), "{refusal}");
    ensure!(waited < PATIENCE, "{waited:?}");
    cloud.hv1_mut().spawn_agent().await?;
    wait_for("the agent to answer again", CONVERGE_LIMIT, async || {
        let answer = cloud.try_call(&console(instance), PATIENCE).await?;
        Ok(Seen::when(answer.is_ok(), answer))
    })
    .await?;
    Ok(())
}
