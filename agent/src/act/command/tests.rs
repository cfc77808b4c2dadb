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
async fn what_reads_nothing_of_tenants_runs_as_any_other() {
    let run = async |command: Command| {
        let output = command.reads_nothing_of_tenants().run().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let told = run(sh("pwd; echo $0; ulimit -c; cat").input("in\n")).await;
    let core = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).unwrap();
    let core = match core.0 {
        nix::libc::RLIM_INFINITY => "unlimited".to_owned(),
        bytes => (bytes / 512).to_string(),
    };
    assert_eq!(told, format!("/\nsh\n{core}\nin\n"));
    let limits = Limits {
        file_size: Some(1024),
        ..Limits::default()
    };
    assert_eq!(
        run(sh("ulimit -f; ulimit -c").limits(limits)).await,
        "2\n0\n"
    );
    let error = Command::new("no-such-tool").reads_nothing_of_tenants();
    assert!(matches!(
        error.run().await,
        Err(CommandError::Missing { program }) if program == "no-such-tool"
    ));
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

/// The environment variable that makes the test binary an agent to be killed: where its tools work.
const VICTIM: &str = "BERTH_TEST_TOOLS";

/// Not a test of its own: the agent that [`tools_that_only_read_and_write_end_with_a_killed_agent`] kills.
#[tokio::test]
#[ignore = "the victim of another test, which runs it with its environment"]
async fn victim() {
    let Some(directory) = std::env::var_os(VICTIM).map(PathBuf::from) else {
        return;
    };
    let tool = |name: &str, then: &str| {
        sh(&format!("echo $$ > {name}; {then}"))
            .directory(&directory)
            .timeout(Duration::from_secs(600))
    };
    let confined = |name: &str, view: View| {
        let path = directory.join(name);
        let view = view.with_file(&path, Access::Write).unwrap();
        tool(name, "exec sleep 600")
            .confined(Confinement {
                account: Account::named("nobody").unwrap(),
                network: Network::None,
                view,
            })
            .ends_with_agent()
    };
    let system = View::of_system().unwrap();
    let private = directory.join("private");
    let with_private = system.clone().with_private_file(&private, Access::Read);
    let tools = [
        tool("tied", "exec sleep 600").ends_with_agent(),
        tool("limited", "exec sleep 600")
            .limits(Limits {
                cpu_seconds: Some(600),
                ..Limits::default()
            })
            .ends_with_agent(),
        confined("confined", system),
        confined("capable", with_private.unwrap()),
        tool("free", "exec sleep 600"),
        tool("never", "exec sleep 600").never_killed(),
    ];
    let mut running: tokio::task::JoinSet<_> = tools
        .into_iter()
        .map(|tool| async move { tool.run().await })
        .collect();
    panic!("a tool ended: {:?}", running.join_next().await);
}

#[test]
fn tools_that_only_read_and_write_end_with_a_killed_agent() {
    const TIED: [&str; 4] = ["tied", "limited", "confined", "capable"];
    const FREE: [&str; 2] = ["free", "never"];
    let directory = tempfile::tempdir().unwrap();
    let nobody = Account::named("nobody").unwrap();
    for name in ["confined", "capable", "private"] {
        let path = directory.path().join(name);
        std::fs::write(&path, "").unwrap();
        std::os::unix::fs::chown(&path, Some(nobody.uid()), Some(nobody.gid())).unwrap();
    }
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "act::command::tests::victim", "--ignored"])
        .env(VICTIM, directory.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let limit = Instant::now() + Duration::from_secs(20);
    let pid = |name: &str| loop {
        let text = std::fs::read_to_string(directory.path().join(name)).unwrap_or_default();
        if let Some(pid) = text.strip_suffix('\n') {
            break pid.to_owned();
        }
        assert!(Instant::now() < limit, "{name} was not started");
        std::thread::yield_now();
    };
    let (tied, free) = (TIED.map(pid), FREE.map(pid));
    for pid in tied.iter().chain(&free) {
        assert!(alive(pid));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    for pid in &tied {
        wait_until_gone(pid);
    }
    for pid in &free {
        assert!(alive(pid), "what changes something goes on");
        nix::sys::signal::kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
}

#[tokio::test]
async fn a_tool_that_ends_with_the_agent_outlives_the_thread_that_asked_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let command = sh("echo x > begun; sleep 0.5; echo said")
        .directory(directory.path())
        .ends_with_agent();
    let mut run = Box::pin(async move { command.run().await });
    let runtime = tokio::runtime::Handle::current();
    let begun = directory.path().join("begun");
    let thread = std::thread::spawn(move || {
        let limit = Instant::now() + Duration::from_secs(5);
        while !begun.exists() {
            assert!(Instant::now() < limit);
            let _entered = runtime.enter();
            let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(run.as_mut().poll(&mut nobody).is_pending());
        }
        run
    });
    let run = thread.join().unwrap();
    assert_eq!(run.await.unwrap().stdout, b"said\n");
}

#[tokio::test]
async fn what_ends_with_the_agent_says_as_others_why_it_cannot_be_started() {
    let error = Command::new("no-such-tool").ends_with_agent();
    assert!(matches!(
        error.run().await,
        Err(CommandError::Missing { program }) if program == "no-such-tool"
    ));
    let task = tokio::spawn(async { sh("sleep 600").ends_with_agent().run().await });
    tokio::task::yield_now().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
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

/// A directory of files: one that the tool's user owns, one of root's alone, and one that is not shown.
fn files(account: Account) -> (tempfile::TempDir, [std::path::PathBuf; 3]) {
    let directory = tempfile::tempdir().unwrap();
    let files = ["own", "private", "hidden"].map(|name| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("it is {name}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    });
    std::os::unix::fs::chown(&files[0], Some(account.uid()), Some(account.gid())).unwrap();
    (directory, files)
}

/// What a confined shell says.
async fn confined(script: &str, directory: &std::path::Path, view: View) -> String {
    let account = Account::named("nobody").unwrap();
    let output = sh(&format!("exec 2>&1; {script}; true"))
        .directory(directory)
        .confined(Confinement {
            account,
            network: Network::None,
            view: view.with_tree(std::path::Path::new("/proc")).unwrap(),
        })
        .run()
        .await
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

const STATUS: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status; \
                      cat /proc/net/dev | tail -n +3 | cut -d: -f1";

/// Checks who somebody is, by [`STATUS`], and that only these capabilities are left.
fn check_status(heard: &str, capabilities: &str) {
    let account = Account::named("nobody").unwrap();
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
        assert_eq!(value(set), [capabilities], "{heard}");
    }
    assert_eq!(value("NoNewPrivs:"), ["1"], "{heard}");
    let links: Vec<_> = heard
        .lines()
        .map(str::trim)
        .filter(|line| !line.contains(':'))
        .collect();
    assert!(links.is_empty() || links == ["lo"], "{heard}");
}

#[tokio::test]
async fn a_confined_tool_has_no_rights_and_sees_what_it_is_shown() {
    let (directory, [own, private, hidden]) = files(Account::named("nobody").unwrap());
    let view = View::of_system()
        .unwrap()
        .with_file(&own, Access::Write)
        .unwrap();
    check_status(
        &confined(STATUS, directory.path(), view.clone()).await,
        "0000000000000000",
    );
    let script = format!(
        "cat own; echo written >> own; ls; ls -a /; ls /etc /dev; cat {hidden}; touch new /new; cat /etc/shadow; echo x \
         > /usr/bin/x",
        hidden = hidden.display()
    );
    let heard = confined(&script, directory.path(), view.clone()).await;
    assert!(heard.starts_with("it is own\nown\n"), "{heard}");
    for part in [
        "hidden: No such file",
        "/etc/shadow: No such file",
        "cannot touch 'new': Read-only file system",
        "cannot touch '/new': Read-only file system",
        "/usr/bin/x: Read-only file system",
        "/etc:\nld.so.cache\n",
        "/dev:\nnull\nurandom\n",
    ] {
        assert!(heard.contains(part), "no {part:?} in: {heard}");
    }
    for name in ["home", "root", "var", "sys"] {
        assert!(!heard.lines().any(|line| line == name), "{name}: {heard}");
    }
    assert_eq!(
        std::fs::read_to_string(&own).unwrap(),
        "it is own\nwritten\n"
    );

    // What only root may read stays so, unless it is shown as that.
    let shown = view.clone().with_file(&private, Access::Read).unwrap();
    let heard = confined("cat private", directory.path(), shown).await;
    assert!(heard.contains("Permission denied"), "{heard}");
    let shown = view.with_private_file(&private, Access::Read).unwrap();
    check_status(
        &confined(STATUS, directory.path(), shown.clone()).await,
        "0000000000000002",
    );
    let script = "cat private; echo x > private; chown 0 private; cat hidden; ls; mount -o remount,rw private";
    let heard = confined(script, directory.path(), shown).await;
    assert!(heard.starts_with("it is private\n"), "{heard}");
    for part in [
        "private: Read-only file system",
        "changing ownership of 'private'",
        "hidden: No such file",
        "own\nprivate\n",
        "mount:",
    ] {
        assert!(heard.contains(part), "no {part:?} in: {heard}");
    }
    for path in [&private, &hidden] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let content = std::fs::read_to_string(path).unwrap();
        assert_eq!(content, format!("it is {name}\n"));
    }
    let host = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!host.contains(directory.path().to_str().unwrap()), "{host}");
}

#[test]
fn what_a_confined_tool_sees_is_no_peer_of_the_hosts_mounts() {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    // Its namespace ends with the thread.
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests run as root");
        let none = None::<&str>;
        for how in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
            mount(none, "/", none, MsFlags::MS_REC | how, none).unwrap();
        }
        let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let before = mounts();
        assert!(before.contains(" shared:"), "{before}");
        let (directory, [own, ..]) = files(Account::named("nobody").unwrap());
        let view = View::of_system()
            .unwrap()
            .with_file(&own, Access::Write)
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let script = "cat /proc/self/mountinfo";
        let heard = runtime.block_on(confined(script, directory.path(), view));
        assert!(heard.contains("/own "), "{heard}");
        for peer in [" shared:", " master:"] {
            assert!(!heard.contains(peer), "{heard}");
        }
        assert_eq!(mounts(), before);
    });
    thread.join().unwrap();
}

#[tokio::test]
async fn what_took_the_place_of_a_file_is_not_shown() {
    let (directory, [own, _, hidden]) = files(Account::named("nobody").unwrap());
    let system = || View::of_system().unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&hidden, &link).unwrap();
    for wrong in [link.as_path(), directory.path(), "/dev/null".as_ref()] {
        system().with_file(wrong, Access::Read).unwrap_err();
        system()
            .with_private_file(wrong, Access::Write)
            .unwrap_err();
        system().with_device(wrong, Access::Read).unwrap_err();
    }
    // It was opened: a later name leads to nothing new.
    let view = system().with_file(&own, Access::Read).unwrap();
    std::fs::rename(&own, directory.path().join("old")).unwrap();
    std::os::unix::fs::symlink(&hidden, &own).unwrap();
    let heard = confined("cat own; echo x > own", directory.path(), view).await;
    assert!(heard.starts_with("it is own\n"), "{heard}");
    assert!(heard.contains("Read-only file system"), "{heard}");
}

#[tokio::test]
async fn a_confined_tool_that_cannot_be_started_says_so() {
    let view = View::of_system().unwrap();
    let confinement = |view| Confinement {
        account: Account::named("nobody").unwrap(),
        network: Network::None,
        view,
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tool");
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    let tool = |view| Command::new(&path).confined(confinement(view));
    let error = tool(view.clone()).run().await.unwrap_err();
    assert!(matches!(error, CommandError::Missing { .. }), "{error}");
    let error = tool(view.with_tree(&path).unwrap())
        .run()
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("as another user with nothing but its files in sight"),
        "{text}"
    );

    for (name, expected) in [
        ("root", "must run as a user without rights"),
        ("no-such-user", "there is no user"),
    ] {
        let text = Account::named(name).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}
