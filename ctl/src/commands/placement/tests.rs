//! What the questions to placement ask for.

use std::path::Path;

use super::*;
use crate::{
    cli::Command,
    testing::{parsed, placed, refused},
};

/// The question of a command line in which FILE stands for a file with this text.
fn asked(text: &str, line: &str) -> Result<Question, CtlError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    let path = file.path().to_str().unwrap();
    let line = line.replace("FILE", path);
    let cli = parsed(&line);
    let project = cli.global.project;
    match cli.command {
        Command::Explain(arguments) => Ok(explain(arguments, project)),
        Command::Place(arguments) => place(arguments, project),
        Command::Capacity(arguments) => capacity(arguments, project),
        other => panic!("{other:?}"),
    }
}

const SIZE: &str = "vcpus = 1\nmemory_mb = 256\ndisk_gb = 2\n[hints]\nhost = \"hv1\"\n";

#[test]
fn an_explanation_is_asked_for_in_the_project_that_is_given() {
    let check = |line: &str, project: &str| {
        let expected = PlacementExplain {
            instance: "web-1".to_owned(),
            project: project.parse().unwrap(),
        };
        assert_eq!(
            asked("", line).unwrap(),
            Question::Explain(expected),
            "{line}"
        );
    };
    check("explain web-1", "default");
    check("explain web-1 --project lab", "lab");
}

#[test]
fn a_dry_run_asks_for_the_size_the_hints_and_the_networks_of_the_file() {
    let text = format!("{SIZE}[[networks]]\nnetwork = \"net0\"\nport_security = \"disabled\"\n");
    let Question::Place(request) = asked(&text, "place -f FILE").unwrap() else {
        panic!("another question");
    };
    assert_eq!(request.hints.host.as_deref(), Some("hv1"));
    assert_eq!(request.flavor.memory_mb.get(), 256);
    let networks = request.networks;
    assert_eq!(networks[0].network, "net0");
    assert_eq!(networks[0].port_security_enabled, Some(false));
    let Question::Capacity(request) = asked(&text, "capacity -f FILE --most 40").unwrap() else {
        panic!("another question");
    };
    assert_eq!((request.most, request.networks), (40, networks));
    let whole = include_str!("../../../../docs/instance.sample.toml");
    assert!(asked(whole, "place -f FILE --project lab").is_ok());
}

#[test]
fn mistakes_in_the_file_are_told_before_anybody_is_asked() {
    let error = asked("vcpus = 0\n", "capacity -f FILE").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let nowhere = PlaceArgs {
        file: Path::new("/nonexistent.toml").to_owned(),
    };
    assert_eq!(place(nowhere, None).unwrap_err().exit_code(), 2);
}

#[test]
fn the_exit_code_of_a_dry_run_tells_whether_it_fits() {
    assert!(fits(&placed()).is_ok());
    assert_eq!(fits(&refused()).unwrap_err().exit_code(), 5);
}
