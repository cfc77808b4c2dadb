//! What the loader promises, on whole configurations.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

#[derive(Debug, PartialEq)]
struct Sample {
    url: Secret<String>,
    prefetch: u16,
    heartbeat: Duration,
    listen: SocketAddr,
    state: PathBuf,
    networks: Vec<String>,
    labels: BTreeMap<String, String>,
    ratio: f64,
    quick: bool,
    pools: Vec<(String, PathBuf)>,
}

fn read(mut c: Reader) -> Result<Sample, ConfigErrors> {
    let url = c.required("bus.url", parse::secret(parse::url(&["amqp", "amqps"])));
    let prefetch = c.optional("bus.prefetch", parse::integer(1..=1000), 64);
    let heartbeat = c.optional(
        "bus.heartbeat_seconds",
        parse::seconds(1..=60),
        Duration::from_secs(10),
    );
    let listen = c.required("telemetry.listen", parse::socket_address);
    let state = c.required("agent.state_dir", parse::absolute_path);
    let networks = c.optional("agent.networks", parse::strings, Vec::new());
    let labels = c.optional("agent.labels", parse::string_table, BTreeMap::new());
    let ratio = c.optional(
        "placement.cpu_ratio",
        parse::from_str("a ratio such as 4.0"),
        4.0,
    );
    let quick = c.optional("agent.quick", parse::boolean, false);
    let mut pools = Vec::new();
    for name in c.names_of("storage.pools") {
        let path = c.required(&format!("storage.pools.{name}.path"), parse::absolute_path);
        pools.extend(path.map(|path| (name, path)));
    }
    c.finish(|| {
        Some(Sample {
            url: url?,
            prefetch,
            heartbeat,
            listen: listen?,
            state: state?,
            networks,
            labels,
            ratio,
            quick,
            pools,
        })
    })
}

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Sample, ConfigErrors> {
    let variables = variables
        .iter()
        .map(|(k, v)| (OsString::from(k), OsString::from(v)));
    read(Reader::from_text("berth.toml", text, variables, "BERTH"))
}

fn mistakes(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match load(text, variables) {
        Ok(sample) => panic!("accepted: {sample:?}"),
        Err(errors) => errors.mistakes().iter().map(ToString::to_string).collect(),
    }
}

const GOOD: &str = r#"
[bus]
url = "amqp://berth:hunter2@localhost:5672/berth"
[telemetry]
listen = "127.0.0.1:9101"
[agent]
state_dir = "/var/lib/berth"
networks = ["a", "b"]
labels = { rack = "r1" }
[storage.pools.fast]
path = "/srv/fast"
"#;

#[test]
fn a_good_file_is_read_and_defaults_fill_the_rest() {
    let sample = load(GOOD, &[]).unwrap();
    assert_eq!(sample.prefetch, 64);
    assert_eq!(sample.heartbeat, Duration::from_secs(10));
    assert_eq!(sample.networks, ["a", "b"]);
    assert_eq!(sample.labels["rack"], "r1");
    assert_eq!(
        sample.pools,
        [("fast".to_owned(), PathBuf::from("/srv/fast"))]
    );
    assert_eq!(
        sample.url.redacted_url(),
        "amqp://berth:***@localhost:5672/berth"
    );
    assert!(!format!("{sample:?}").contains("hunter2"));
}

#[test]
fn the_environment_wins_over_the_file() {
    let sample = load(
        GOOD,
        &[
            ("BERTH_BUS__URL", "amqps://elsewhere"),
            ("BERTH_BUS__PREFETCH", "7"),
            ("BERTH_BUS__HEARTBEAT_SECONDS", "3"),
            ("BERTH_AGENT__NETWORKS", "x, y"),
            ("BERTH_AGENT__LABELS", "rack=r2,row=7"),
            ("BERTH_AGENT__QUICK", "true"),
            ("BERTH_PLACEMENT__CPU_RATIO", "2.5"),
            ("BERTH_STORAGE__POOLS__FAST__PATH", "/srv/other"),
            ("BERTH_STORAGE__POOLS__SLOW__PATH", "/srv/slow"),
        ],
    )
    .unwrap();
    assert_eq!(sample.url.expose(), "amqps://elsewhere");
    assert_eq!(sample.prefetch, 7);
    assert_eq!(sample.heartbeat, Duration::from_secs(3));
    assert_eq!(sample.networks, ["x", "y"]);
    assert_eq!(sample.labels["row"], "7");
    assert!(sample.quick);
    assert_eq!(sample.ratio.to_string(), "2.5");
    assert_eq!(
        sample.pools,
        [
            ("fast".to_owned(), PathBuf::from("/srv/other")),
            ("slow".to_owned(), PathBuf::from("/srv/slow"))
        ]
    );
}

#[test]
fn lists_and_tables_in_variables_may_be_toml() {
    let sample = load(
        GOOD,
        &[
            ("BERTH_AGENT__NETWORKS", r#"["with, comma"]"#),
            ("BERTH_AGENT__LABELS", r#"{ "a.b" = "c" }"#),
        ],
    )
    .unwrap();
    assert_eq!(sample.networks, ["with, comma"]);
    assert_eq!(sample.labels["a.b"], "c");
}

#[test]
fn an_empty_file_names_all_that_is_missing_and_how_to_set_it() {
    let expected = "\
3 mistakes in the configuration:
  1. berth.toml: bus.url: is missing; must be a URL of the form amqp://… or amqps://…; set it in [bus] or as BERTH_BUS__URL
  2. berth.toml: telemetry.listen: is missing; must be an IP address and a port, such as \"127.0.0.1:9101\" or \"[::]:9101\"; set it in [telemetry] or as BERTH_TELEMETRY__LISTEN
  3. berth.toml: agent.state_dir: is missing; must be an absolute path, such as \"/var/lib/berth\"; set it in [agent] or as BERTH_AGENT__STATE_DIR";
    assert_eq!(load("", &[]).unwrap_err().to_string(), expected);
}

#[test]
fn every_mistake_is_reported_in_one_run() {
    let text = r#"
[bus]
url = 5
prefech = 10
prefetch = "many"
heartbeat_seconds = 0
[agent]
state_dir = "var/lib"
networks = ["a", 3, ""]
labels = { rack = 1 }
quick = "yes"
[placement]
cpu_ratio = "lots"
listen = "0.0.0.0:1"
[storage]
pools = "fast"
[telemtry]
listen = "127.0.0.1:9101"
"#;
    let expected = "\
14 mistakes in the configuration:
  1. berth.toml:3:7: bus.url: must be a URL of the form amqp://… or amqps://…; found a value that is not shown
  2. berth.toml:4:1: bus.prefech: unknown key; did you mean bus.prefetch?
  3. berth.toml:5:12: bus.prefetch: must be an integer from 1 to 1000; found the string \"many\"
  4. berth.toml:6:21: bus.heartbeat_seconds: must be an integer from 1 to 60 seconds; found the integer 0
  5. berth.toml:8:13: agent.state_dir: must be an absolute path, such as \"/var/lib/berth\"; found the string \"var/lib\"
  6. berth.toml:9:12: agent.networks: must be a list, each item a string that is not empty (item 2 must be a string that is not empty, but is the integer 3; item 3 must be a string that is not empty, but is the string \"\"); found a list of 3
  7. berth.toml:10:10: agent.labels: must be a table, each entry a string (entry \"rack\" must be a string, but is the integer 1); found a table
  8. berth.toml:11:9: agent.quick: must be true or false; found the string \"yes\"
  9. berth.toml:13:13: placement.cpu_ratio: must be a ratio such as 4.0 (invalid float literal); found the string \"lots\"
  10. berth.toml:14:1: placement.listen: unknown key; did you mean telemetry.listen?
  11. berth.toml:16:1: storage.pools: must be a section, written [storage.pools]; found a single value
  12. berth.toml:17:2: telemtry: unknown section; did you mean telemetry?
  13. environment variable BERTH_BUS__PREFETHC: sets no known key; did you mean BERTH_BUS__PREFETCH?
  14. berth.toml: telemetry.listen: is missing; must be an IP address and a port, such as \"127.0.0.1:9101\" or \"[::]:9101\"; set it in [telemetry] or as BERTH_TELEMETRY__LISTEN";
    let errors = load(text, &[("BERTH_BUS__PREFETHC", "5")]).unwrap_err();
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn variables_of_other_services_are_none_of_ours() {
    let variables = [
        ("BERTH_STORE__URL", "sqlite:///x"),
        ("BERTH_CONFIG", "/etc/berth/agent.toml"),
        ("BERTHA_BUS__URL", "x"),
        ("HOME", "/root"),
    ];
    load(GOOD, &variables).unwrap();
}

#[test]
fn slips_in_variable_names_are_reported() {
    let check = |name, hint| {
        let expected = format!("environment variable {name}: sets no known key{hint}");
        assert_eq!(mistakes(GOOD, &[(name, "x")]), [expected]);
    };
    check("BERTH_BUS__UR", "; did you mean BERTH_BUS__URL?");
    check("BERTH_BUSS__URL", "; did you mean BERTH_BUS__URL?");
    check("BERTH_bus__url", "; did you mean BERTH_BUS__URL?");
    check("BERTH_BUS__SOMETHING_ELSE_ALTOGETHER", "");
}

#[test]
fn a_wrong_variable_is_named_and_its_secret_is_not() {
    let check = |name, value, what| {
        let expected = format!("environment variable {name}: {what}");
        assert_eq!(mistakes(GOOD, &[(name, value)]), [expected]);
    };
    check(
        "BERTH_BUS__PREFETCH",
        "1001",
        "bus.prefetch: must be an integer from 1 to 1000; found \"1001\"",
    );
    check(
        "BERTH_BUS__URL",
        "http://u:hunter2@h",
        "bus.url: must be a URL of the form amqp://… or amqps://…; found a string that is not shown",
    );
}

#[test]
fn a_url_that_nobody_declared_secret_is_still_masked() {
    let mut c = Reader::from_text("t", "[image]\nurl = \"ftp://u:hunter2@h/x\"", [], "BERTH");
    let _ = c.required("image.url", parse::url(&["https"]));
    let error = c.finish(|| Some(())).unwrap_err().to_string();
    assert!(error.contains("\"ftp://u:***@h/x\""), "{error}");
}

#[test]
fn a_key_named_password_is_never_shown() {
    let mut c = Reader::from_text("t", "[db]\npassword = 12345", [], "BERTH");
    let _ = c.required("db.password", parse::string);
    let error = c.finish(|| Some(())).unwrap_err().to_string();
    assert!(
        error.ends_with("must be a string; found a value that is not shown"),
        "{error}"
    );
}

#[test]
fn syntax_mistakes_come_together_with_the_others_and_hide_the_text() {
    let text = "[bus]\nurl = amqp://u:hunter2@h\nprefetch = 0\n[agent\nstate_dir = \"/x\"\n";
    let found = mistakes(text, &[]);
    assert!(
        found[0].starts_with("berth.toml:2:7: not valid TOML: "),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|m| m.starts_with("berth.toml:3:12: bus.prefetch:")),
        "{found:#?}"
    );
    assert!(
        found.iter().any(|m| m.starts_with("berth.toml:4:")),
        "{found:#?}"
    );
    // With lines unread, "missing" would be a guess; and the password is not for the log.
    assert!(
        !found.iter().any(|m| m.contains("is missing")),
        "{found:#?}"
    );
    assert!(!found.iter().any(|m| m.contains("hunter2")), "{found:#?}");
}

#[test]
fn a_duplicate_key_is_a_mistake() {
    let found = mistakes("[bus]\nurl = \"amqp://a\"\nurl = \"amqp://b\"\n", &[]);
    assert!(
        found[0].contains("berth.toml:3:1: not valid TOML: duplicate key"),
        "{found:#?}"
    );
}

#[test]
fn a_value_in_place_of_a_section_is_reported_once() {
    let text = GOOD.replace("[bus]", "bus = 3\n[other]");
    let found = mistakes(&text, &[]);
    assert_eq!(
        found,
        [
            "berth.toml:2:1: bus: must be a section, written [bus]; found a single value",
            "berth.toml:3:2: other: unknown section",
        ]
    );
}

#[test]
fn odd_names_of_sections_are_refused() {
    let text = format!("{GOOD}\n[storage.pools.\"a/b\"]\npath = \"/x\"\n");
    let found = mistakes(&text, &[]);
    assert_eq!(
        found,
        [
            "berth.toml:13:16: storage.pools.\"a/b\": a name may hold only letters, digits, \
          \"_\" and \"-\""
        ]
    );
}

#[test]
fn a_mistake_of_the_callers_own_is_shown_at_the_keys_place() {
    let mut c = Reader::from_text("t", "[a]\nmin = 3\nmax = 2\n", [], "BERTH");
    let min = c.optional("a.min", parse::integer(0..=9), 0);
    let max = c.optional("a.max", parse::integer(0..=9), 9);
    if min > max {
        c.reject(
            "a.max",
            format!("must be at least a.min, which is {min}; found {max}"),
        );
    }
    let error = c.finish(|| Some(())).unwrap_err();
    assert_eq!(
        error.mistakes()[0].to_string(),
        "t:3:7: a.max: must be at least a.min, which is 3; found 2"
    );
}

#[test]
fn one_of_suggests_the_word_meant() {
    static MODES: [(&str, u8); 2] = [("pretty", 1), ("journald", 2)];
    let mut c = Reader::from_text("t", "[log]\nformat = \"jornald\"\n", [], "BERTH");
    let _ = c.required("log.format", parse::one_of(&MODES));
    let error = c.finish(|| Some(())).unwrap_err();
    assert_eq!(
        error.mistakes()[0].what,
        "must be one of \"pretty\", \"journald\" (did you mean \"journald\"?); found the string \
         \"jornald\""
    );
}

#[test]
fn paths_that_climb_are_refused() {
    let text = GOOD.replace("/srv/fast", "/srv/../etc");
    let found = mistakes(&text, &[]);
    assert!(
        found[0].contains("must be an absolute path without \"..\""),
        "{found:#?}"
    );
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_a_mistake() {
    use std::os::unix::ffi::OsStringExt;
    let variables = [(
        OsString::from("BERTH_BUS__URL"),
        OsString::from_vec(vec![b'a', 0xff]),
    )];
    let error = read(Reader::from_text("berth.toml", GOOD, variables, "BERTH")).unwrap_err();
    assert_eq!(
        error.mistakes()[0].to_string(),
        "environment variable BERTH_BUS__URL: bus.url: is not UTF-8 text"
    );
}
