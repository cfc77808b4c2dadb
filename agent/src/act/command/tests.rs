//! Real processes, short ones.

use std::time::{Duration, Instant};

use super::*;

/// A shell as the tool under test, because it can do anything; the product never runs one.
fn sh(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn wait_until_gone(pid: &str) {
    let limit = Instant::now() + Duration::from_secs(5);
    while alive(pid) {
        assert!(Instant::now() < limit, "process {pid} is still there");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn output_and_status_come_back() {
    let output = sh("echo out; echo err >&2").run().await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_str()),
        (&b"out\n"[..], "err")
    );

    let error = sh("echo reason >&2; exit 3").run().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "`sh -c echo reason >&2; exit 3` failed (exit status: 3): reason"
    );
    assert!(matches!(&error, CommandError::Failed { status, .. } if status.code() == Some(3)));
}

#[tokio::test]
async fn arguments_reach_the_tool_untouched_and_the_environment_is_empty() {
    let output = Command::new("printf")
        .args(["%s|", "a b", "$(id)", "", ";x"])
        .run()
        .await
        .unwrap();
    assert_eq!(output.stdout, b"a b|$(id)||;x|");
    let environment = String::from_utf8(Command::new("env").run().await.unwrap().stdout).unwrap();
    let mut lines: Vec<_> = environment.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["LC_ALL=C", &format!("PATH={PATH}")]);
}

#[tokio::test]
async fn a_missing_tool_names_its_package() {
    let error = Command::new("/nowhere/qemu-img").run().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nowhere/qemu-img is not installed on this host; Debian has it in the package qemu-utils"
    );
}

#[tokio::test]
async fn a_tool_that_hangs_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let script = "sleep 600 & echo $! > pid; echo stuck >&2; wait";
    let error = sh(script)
        .directory(directory.path())
        .timeout(Duration::from_secs(2))
        .run()
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CommandError::TimedOut { stderr, .. } if stderr == "stuck"),
        "{error}"
    );
    wait_until_gone(
        std::fs::read_to_string(directory.path().join("pid"))
            .unwrap()
            .trim(),
    );
}

#[tokio::test]
async fn dropping_the_caller_kills_the_tool() {
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("pid");
    let command =
        sh("sleep 600 & echo $! $$ > .pid; mv .pid pid; wait").directory(directory.path());
    let task = tokio::spawn(async move { command.run().await });
    let limit = Instant::now() + Duration::from_secs(5);
    while !pid_file.exists() {
        assert!(Instant::now() < limit);
        tokio::task::yield_now().await;
    }
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    for pid in std::fs::read_to_string(pid_file)
        .unwrap()
        .split_whitespace()
    {
        wait_until_gone(pid);
    }
}

#[tokio::test]
async fn a_tool_that_is_never_killed_outlives_its_deadline_and_its_caller() {
    let directory = tempfile::tempdir().unwrap();
    let (begun, ended) = (
        directory.path().join("begun"),
        directory.path().join("ended"),
    );
    let script = format!(
        "echo $$ >{0}; sleep 1; echo said; echo x >{1}",
        begun.display(),
        ended.display()
    );
    let command = sh(&script)
        .timeout(Duration::from_millis(10))
        .never_killed();
    let waited = tokio::time::timeout(Duration::from_millis(500), command.run()).await;
    assert!(waited.is_err(), "{waited:?}");
    let pid = std::fs::read_to_string(&begun).unwrap();
    assert!(alive(pid.trim()) && !ended.exists());
    let limit = Instant::now() + Duration::from_secs(10);
    while alive(pid.trim()) {
        assert!(Instant::now() < limit, "it still runs");
        std::thread::yield_now();
    }
    assert_eq!(command.run().await.unwrap().stdout, b"said\n");
}

#[tokio::test]
async fn a_tool_that_goes_to_the_background_is_done_and_stays() {
    let output = sh("sleep 600 & echo $!").run().await.unwrap();
    let pid = String::from_utf8(output.stdout).unwrap();
    assert!(alive(pid.trim()));
    nix::sys::signal::kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn endless_output_is_cut_off() {
    let error = Command::new("yes")
        .stdout_limit(10_000)
        .run()
        .await
        .unwrap_err();
    assert!(
        matches!(error, CommandError::TooMuchOutput { limit: 10_000, .. }),
        "{error}"
    );
    let error = sh("yes padding | head -c 100000 >&2; echo end >&2; exit 1")
        .run()
        .await
        .unwrap_err();
    assert!(
        error.stderr().ends_with("end") && error.stderr().len() <= STDERR_TAIL,
        "{error}"
    );
}

#[tokio::test]
async fn limits_bind() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits {
        address_space: Some(1 << 30),
        cpu_seconds: Some(7),
        file_size: Some(4096),
    };
    let output = sh("ulimit -v; ulimit -t; ulimit -f; ulimit -c")
        .limits(limits)
        .run()
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "1048576\n7\n8\n0\n"
    );
    let error = Command::new("dd")
        .args(["if=/dev/zero", "of=file", "bs=8192", "count=1"])
        .directory(directory.path())
        .limits(limits)
        .run()
        .await
        .unwrap_err();
    assert!(matches!(error, CommandError::Failed { .. }), "{error}");
    assert!(
        std::fs::metadata(directory.path().join("file"))
            .unwrap()
            .len()
            <= 4096
    );
}

#[tokio::test]
async fn a_confined_tool_has_no_rights_and_no_network() {
    let account = Account::named("nobody").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("inside");
    std::fs::write(&file, "").unwrap();
    std::os::unix::fs::chown(&file, Some(account.uid()), Some(account.gid())).unwrap();
    let script = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status; cat /proc/net/dev | tail -n +3 | cut -d: -f1; echo x > inside; cat /etc/shadow";
    let confined = |network| {
        sh(script)
            .directory(directory.path())
            .confined(Confinement { account, network })
    };
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .unwrap();
    let mut heard = Vec::new();
    let error = confined(Network::None)
        .run_heard(&mut |bytes| heard.extend_from_slice(bytes))
        .await
        .unwrap_err();
    assert!(
        error.stderr().contains("/etc/shadow: Permission denied"),
        "{error}"
    );
    let heard = String::from_utf8(heard).unwrap();
    let value = |name: &str| {
        let line = heard.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':')
            .unwrap()
            .1
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    let (uid, gid) = (account.uid().to_string(), account.gid().to_string());
    assert_eq!(value("Uid:"), [uid.as_str(); 4], "{heard}");
    assert_eq!(value("Gid:"), [gid.as_str(); 4], "{heard}");
    assert_eq!(value("Groups:"), [""; 0], "{heard}");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(value(set), ["0000000000000000"], "{heard}");
    }
    assert_eq!(value("NoNewPrivs:"), ["1"], "{heard}");
    let links: Vec<_> = heard
        .lines()
        .map(str::trim)
        .filter(|line| !line.contains(':'))
        .collect();
    assert!(links.is_empty() || links == ["lo"], "{heard}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x\n");

    for (name, expected) in [
        ("root", "must run as a user without rights"),
        ("no-such-user", "there is no user"),
    ] {
        let text = Account::named(name).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}
