//! What tests of the network share: a copy of the test in namespaces of its own, programs that are run and must succeed, and
//! bounded waits.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Set, to the test's name, for the copy that runs in its own namespaces.
pub(crate) const INSIDE: &str = "BERTH_TEST_INSIDE";
/// Below this the tests keep their files, in a `/run` of their own.
pub(crate) const STATE_DIR: &str = "/run/state";

/// How many times as long as usual everything takes here: an emulated machine takes ten times as long, a busy one several times.
/// Measured by what each test does dozens of times, the start of a program; limits are multiplied by it.
pub(crate) fn slowness() -> u32 {
    /// What it takes on a machine that has nothing else to do, or little, in milliseconds.
    const USUAL: u128 = 30;
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    *SLOWNESS.get_or_init(|| {
        let start = Instant::now();
        run("unshare", &["--net", "true"]);
        let times = u32::try_from(start.elapsed().as_millis() / USUAL).unwrap();
        times.clamp(1, 10)
    })
}

/// How long something may take that must come about, from seconds on a machine that is not slow. What must not come about is waited for
/// in vain, and so for no longer than it takes.
pub(crate) fn limit(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds * slowness()))
}

/// Whether it is so at last: what asks for an answer once may lose it on its way.
pub(crate) fn in_tries(mut look: impl FnMut() -> bool) -> bool {
    (0..5 * slowness()).any(|_| look())
}

/// Runs a test in namespaces of its own, within a limit in seconds on a machine that is not slow. The shell there is process 1 and collects orphans, as an
/// init does.
pub(crate) fn isolated(test: &str, seconds: u32, body: impl AsyncFnOnce()) {
    if std::env::var(INSIDE).as_deref() == Ok(test) {
        private_run();
        block_on(body());
        return;
    }
    // A name that is no test's would run none, and all would be well.
    let thread = std::thread::current();
    let own = thread.name().filter(|name| *name != "main");
    assert_eq!(own.unwrap_or(test), test, "the test has another name");
    let me = std::env::current_exe().unwrap();
    let status = Command::new("timeout")
        .args(["-k", "5", &limit(seconds).as_secs().to_string()])
        .args([
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
        .arg(me)
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, test)
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
}

/// A `/run` of the test's own, with its state directory, which everybody may pass.
pub(crate) fn private_run() {
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
    fs::create_dir(STATE_DIR).unwrap();
    fs::set_permissions(STATE_DIR, fs::Permissions::from_mode(0o711)).unwrap();
}

/// Writes the script that a DHCP client runs.
pub(crate) fn client_script(text: &str) {
    fs::write("/run/script", text).unwrap();
    fs::set_permissions("/run/script", fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

pub(crate) fn try_run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// What a program prints, which must succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = try_run(program, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(args: &str) -> String {
    run("ip", &args.split(' ').collect::<Vec<_>>())
}

/// Waits until a veth pair lets frames through: the end that is in a bridge forwards, and the other one, in a namespace, has a carrier.
/// The kernel sees to both some time after `ip` is back, and drops what is sent before.
pub(crate) fn wait_passes(link: &str, namespace: &str, other: &str) {
    wait_forwards(link);
    wait_for("a link to have a carrier", limit(30), || {
        let args = ["-n", namespace, "-j", "link", "show", "dev", other];
        let state = state_of(other, &run("ip", &args), "operstate");
        (state.as_deref() == Some("UP"), state)
    });
}

/// Waits until a bridge forwards what comes by a link in it.
pub(crate) fn wait_forwards(link: &str) {
    wait_for("a link to forward", limit(30), || {
        let shown = run("bridge", &["-j", "link", "show", "dev", link]);
        let state = state_of(link, &shown, "state");
        (state.as_deref() == Some("forwarding"), state)
    });
}

/// What is shown of a link under this name.
fn state_of(link: &str, shown: &str, what: &str) -> Option<String> {
    let links: serde_json::Value = serde_json::from_str(shown).unwrap();
    let mut links = links.as_array().unwrap().iter();
    let found = links.find(|it| it["ifname"] == link)?;
    found[what].as_str().map(str::to_owned)
}

/// Waits until a condition holds, and tells the last state it saw if it never does.
pub(crate) fn wait_for<T: std::fmt::Debug>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> (bool, T),
) {
    let deadline = Instant::now() + limit;
    loop {
        let (done, state) = look();
        if done {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "waited {limit:?} for {what}; last seen: {state:?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
