//! What is asked about guests, and what of it reaches a terminal.

use std::cell::RefCell;

use berth_common::{
    message::question::{
        Base64, Endpoint, EndpointKind, Endpoints, GuestAgent, GuestAgentState, Screenshot,
    },
    message::{question::ConsolePlace, report::PowerState},
    refusal::RefusalCode,
};

use super::*;
use crate::{
    print::table::Width,
    testing::{self, Play, Scheduler},
};

fn context(script: impl IntoIterator<Item = Play>) -> Context<Scheduler> {
    let mut context = testing::context(None, script);
    context.output = Output::Table;
    context
}

fn part(text: &str, offset: u64) -> ConsoleOutput {
    ConsoleOutput {
        instance_id: testing::instance().id,
        host: "hv1".parse().unwrap(),
        text: text.to_owned(),
        cut: false,
        more: false,
        next: Some(ConsolePlace { file: 7, offset }),
    }
}

fn request() -> InstanceConsoleOutput {
    InstanceConsoleOutput {
        instance: "web-1".to_owned(),
        project: ProjectName::default(),
        lines: 50,
        after: None,
    }
}

async fn followed(script: impl IntoIterator<Item = Play>, look: Look) -> (String, CtlError) {
    let context = context(script);
    let seen = RefCell::new(String::new());
    let error = follow(&context, request(), look, |text| {
        seen.borrow_mut().push_str(text);
        Ok(Listener::There)
    })
    .await
    .unwrap_err();
    let id = testing::instance().id;
    let asked = context.caller.asked.borrow();
    assert_eq!(asked[0], "instance.console_output web-1");
    let later = format!("instance.console_output {id}");
    assert!(asked[1..].iter().all(|it| *it == later), "{asked:?}");
    (seen.into_inner(), error)
}

#[tokio::test(start_paused = true)]
async fn following_shows_everything_once_over_silence_and_never_drives_the_terminal() {
    let script = || {
        [
            Play::view(&part("boot\r", 5)),
            Play::view(&part("\nlogin: \x1b[2J\u{9b}31m", 20)),
            Play::Silence,
            Play::Refuse(RefusalCode::Unavailable),
            Play::view(&part("", 20)),
            Play::view(&part("\x1b]0;evil\x07\r", 30)),
            Play::view(&part("x\n", 32)),
            Play::Refuse(RefusalCode::NotFound),
        ]
    };
    let (seen, error) = followed(script(), Look::Harmless(Lines::default())).await;
    assert_eq!(seen, "boot\nlogin: ^[[2J<U+009B>31m^[]0;evil^G^Mx\n");
    assert!(matches!(error, CtlError::Refused(_)), "{error}");

    // Asked for as it is, it comes as it is.
    let (seen, _) = followed(script(), Look::Raw).await;
    assert_eq!(seen, "boot\r\nlogin: \x1b[2J\u{9b}31m\x1b]0;evil\x07\rx\n");

    // Programs get the answers, which cannot drive a terminal either.
    let (seen, _) = followed(script(), Look::Json).await;
    assert!(seen.contains(r"\u001b[2J\u009b31m"), "{seen}");
    assert!(!seen.chars().any(|c| c.is_control() && c != '\n'), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn following_ends_when_nobody_reads_it() {
    let context = context([Play::view(&part("a\n", 2)), Play::view(&part("b\n", 4))]);
    let mut written = 0;
    let ended = follow(&context, request(), Look::Raw, |_| {
        written += 1;
        Ok(if written == 2 {
            Listener::Gone
        } else {
            Listener::There
        })
    });
    ended.await.unwrap();
    assert_eq!(written, 2);
}

#[test]
fn what_is_missing_is_told() {
    let mut answer = part("x", 1);
    assert_eq!(remark(&answer), "");
    answer.cut = true;
    assert!(remark(&answer).contains("too much"));
    answer.next = None;
    assert!(remark(&answer).contains("never powered on"));
}

#[tokio::test]
async fn a_picture_is_saved_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let answer = Screenshot {
        instance_id: testing::instance().id,
        host: "hv1".parse().unwrap(),
        media_type: "image/png".to_owned(),
        picture: Base64(b"\x89PNG\r\n\x1a\n...".to_vec()),
    };
    let file = folder.path().join("x.png");
    let context = context([Play::view(&answer), Play::view(&answer)]);
    screenshot(&context, "web-1".to_owned(), file.clone())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), answer.picture.0);
    let nowhere = folder.path().join("no/x.png");
    let error = screenshot(&context, "web-1".to_owned(), nowhere)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("no/x.png cannot be written"),
        "{error}"
    );

    let mut saved = Saved {
        instance_id: answer.instance_id,
        host: answer.host,
        bytes: 11,
        media_type: answer.media_type,
        file: PathBuf::from("x.png"),
    };
    assert_eq!(guest::saved(&saved), "image/png, 11 bytes, in x.png\n");
    saved.file = PathBuf::from("x.ppm");
    assert_eq!(
        guest::saved(&saved),
        "image/png, 11 bytes, in x.ppm (whose name says otherwise)\n"
    );
}

#[test]
fn an_agent_and_endpoints_read_well() {
    let agent = GuestAgent {
        instance_id: testing::instance().id,
        host: "hv1".parse().unwrap(),
        state: GuestAgentState::Absent,
        detail: "nothing in the guest has opened its channel".to_owned(),
    };
    insta::assert_snapshot!(guest::agent(&agent, Width::Unlimited), @r"
    +-------------+---------------------------------------------+
    | Field       | Value                                       |
    +-------------+---------------------------------------------+
    | Instance    | 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11        |
    | Host        | hv1                                         |
    | Guest agent | absent                                      |
    | Detail      | nothing in the guest has opened its channel |
    +-------------+---------------------------------------------+
    ");
    let endpoints = Endpoints {
        instance_id: testing::instance().id,
        host: "hv1".parse().unwrap(),
        domain: "berth-x".to_owned(),
        power_state: PowerState::Running,
        endpoints: vec![Endpoint {
            kind: EndpointKind::Vnc,
            address: "unix:/vnc.sock".to_owned(),
            reach: "ssh -N -L 127.0.0.1:5900:/vnc.sock root@hv1".to_owned(),
        }],
    };
    insta::assert_snapshot!(guest::endpoints(&endpoints, Width::Unlimited), @r"
    +----------+---------------------------------------------+
    | Field    | Value                                       |
    +----------+---------------------------------------------+
    | Instance | 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11        |
    | Host     | hv1                                         |
    | Domain   | berth-x                                     |
    | Power    | running                                     |
    | vnc      | unix:/vnc.sock                              |
    |          | ssh -N -L 127.0.0.1:5900:/vnc.sock root@hv1 |
    +----------+---------------------------------------------+
    ");
}
