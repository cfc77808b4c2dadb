//! What commands on an instance ask for, in which order, and what they make of the answers.

use std::time::Duration;

use berth_common::{message::view::VmState, refusal::RefusalCode};
use serde_json::{Value, json};

use super::*;
use crate::{
    commands::asking::Patience,
    progress::Progress,
    testing::{self, Play, Scheduler, instance as running},
    wait::{Limits, Pace},
};

pub(super) struct Quiet;

impl Progress for Quiet {
    fn show(&mut self, _: &str) {}
    fn note(&mut self, _: &str) {}
}

fn context(script: impl IntoIterator<Item = Play>) -> Context<Scheduler> {
    testing::context(None, script)
}

pub(in crate::commands) fn patient() -> Option<Patience> {
    let pace = Pace {
        first: Duration::from_millis(1),
        last: Duration::from_millis(2),
    };
    Some(Patience {
        limits: Limits::from_now(pace, Duration::from_secs(1), Duration::from_secs(30)),
        progress: Box::new(Quiet),
    })
}

async fn delete(
    context: &Context<Scheduler>,
    patience: Option<Patience>,
) -> Result<InstanceView, CtlError> {
    let meant = Change {
        name: "web-1".to_owned(),
        project: ProjectName::default(),
        goal: Goal::Deleted,
    };
    changed(
        &mut Asking::with(context, patience),
        meant,
        |instance, project| InstanceDelete { instance, project },
    )
    .await
}

/// The name is asked for once; everything after that names the id.
fn assert_asked(context: &Context<Scheduler>, after: &[&str]) {
    let id = running().id;
    let mut expected = vec!["instance.show web-1".to_owned()];
    expected.extend(after.iter().map(|method| format!("{method} {id}")));
    assert_eq!(*context.caller.asked.borrow(), expected);
}

#[tokio::test]
async fn a_deletion_that_was_carried_out_unheard_is_a_success_and_never_hits_another() {
    for patience in [None, patient()] {
        let context = context([Play::view(&running()), Play::Refuse(RefusalCode::NotFound)]);
        let gone = delete(&context, patience).await.unwrap();
        assert_eq!((gone.id, gone.vm_state), (running().id, VmState::Deleted));
        assert_asked(&context, &["instance.delete"]);
    }
    let context = context([
        Play::view(&running()),
        Play::Silence,
        Play::Silence,
        Play::Refuse(RefusalCode::NotFound),
    ]);
    let gone = delete(&context, patient()).await.unwrap();
    assert_eq!(gone.vm_state, VmState::Deleted);
    assert_asked(&context, &["instance.delete"; 3]);
}

#[tokio::test]
async fn the_wait_after_a_change_looks_at_the_same_id() {
    let deleted = InstanceView {
        vm_state: VmState::Deleted,
        ..running()
    };
    let context = context([
        Play::view(&running()),
        Play::Silence,
        Play::view(&running()),
        Play::view(&deleted),
    ]);
    assert_eq!(delete(&context, patient()).await.unwrap(), deleted);
    assert_asked(
        &context,
        &["instance.delete", "instance.delete", "instance.show"],
    );
}

#[tokio::test]
async fn a_name_that_nobody_has_changes_nothing() {
    for patience in [None, patient()] {
        let context = context([Play::Refuse(RefusalCode::NotFound)]);
        let error = delete(&context, patience).await.unwrap_err();
        assert!(matches!(error, CtlError::Refused(_)), "{error}");
        assert_asked(&context, &[]);
    }
}

#[tokio::test]
async fn silence_is_told_by_what_may_have_happened() {
    let before = context([Play::Silence]);
    let error = delete(&before, None).await.unwrap_err().to_string();
    assert!(error.contains("Nothing was changed."), "{error}");

    let after = context([Play::view(&running()), Play::Silence]);
    let error = delete(&after, None).await.unwrap_err().to_string();
    let hint = format!(
        "as `berthctl instance delete {}` is harmless.",
        running().id
    );
    assert!(error.contains("may still be carried out"), "{error}");
    assert!(error.contains(&hint), "{error}");
}

#[tokio::test]
async fn a_repeated_start_of_what_is_gone_is_no_success() {
    let context = context([Play::view(&running()), Play::Refuse(RefusalCode::NotFound)]);
    let meant = Change {
        name: "web-1".to_owned(),
        project: ProjectName::default(),
        goal: Goal::Running,
    };
    let outcome = changed(
        &mut Asking::with(&context, patient()),
        meant,
        |instance, project| InstanceStart { instance, project },
    )
    .await;
    assert!(matches!(outcome, Err(CtlError::Refused(_))), "{outcome:?}");
}

#[tokio::test]
async fn no_host_ends_a_creation_at_once_with_the_id_to_go_on_with() {
    let template: Value = serde_json::to_value(running()).unwrap();
    let request: InstanceCreate = serde_json::from_value(json!({
        "id": template["id"],
        "name": template["name"],
        "flavor": template["flavor"],
        "image": template["image"],
    }))
    .unwrap();
    for (patience, silent) in [(None, false), (patient(), false), (patient(), true)] {
        let refusal = Play::Refuse(RefusalCode::NoValidHost);
        let script = silent.then_some(Play::Silence).into_iter().chain([refusal]);
        let context = context(script);
        let error = created(&mut Asking::with(&context, patience), &request)
            .await
            .unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let hint = format!("with --id {} to try again", request.id);
        assert!(error.to_string().contains(&hint), "{error}");
    }
}

/// Runs a command line, and returns what was asked for.
async fn asked(line: &str, script: impl IntoIterator<Item = Play>) -> Vec<String> {
    let context = context(script);
    let crate::cli::Command::Instance(command) = testing::parsed(line).command else {
        panic!("{line}")
    };
    let prepared = prepare(command, None).unwrap();
    run(&context, prepared).await.unwrap();
    context.caller.asked.into_inner()
}

#[tokio::test]
async fn rescue_unrescue_and_rebuild_are_asked_for_by_id() {
    let id = running().id;
    let view = || Play::view(&running());
    let show = format!("instance.show {id}");
    let image = format!(
        "--image-url file:///srv/x.qcow2 --image-sha256 {} --image-format qcow2",
        "b".repeat(64)
    );
    let rescue = asked(&format!("instance rescue web-1 {image}"), [view(), view()]).await;
    assert_eq!(
        rescue,
        [
            "instance.show web-1".to_owned(),
            format!("instance.rescue {id}")
        ]
    );
    for (command, method) in [
        ("unrescue", "instance.unrescue"),
        ("rebuild", "instance.rebuild"),
    ] {
        let asked = asked(
            &format!("instance {command} web-1"),
            [view(), view(), view()],
        )
        .await;
        let expected = [
            "instance.show web-1".to_owned(),
            show.clone(),
            format!("{method} {id}"),
        ];
        assert_eq!(asked, expected);
    }
}

#[tokio::test]
async fn the_wait_for_a_rebuild_ends_when_the_new_disk_is_the_one_it_runs_from() {
    let rebuilding = InstanceView {
        task_state: Some(berth_common::message::view::TaskState::Rebuilding),
        ..running()
    };
    let context = context([
        Play::view(&running()),
        Play::Silence,
        Play::view(&rebuilding),
        Play::view(&rebuilding),
        Play::view(&running()),
    ]);
    let power = running().desired_power;
    let meant = Change {
        name: "web-1".to_owned(),
        project: ProjectName::default(),
        goal: Goal::Rebuilt(power),
    };
    let nonce = Nonce::new();
    let done = changed(
        &mut Asking::with(&context, patient()),
        meant,
        |instance, project| InstanceRebuild {
            instance,
            project,
            image: running().image.unwrap(),
            nonce,
        },
    )
    .await
    .unwrap();
    assert_eq!(done, running());
    assert_asked(
        &context,
        &[
            "instance.rebuild",
            "instance.rebuild",
            "instance.show",
            "instance.show",
        ],
    );
}

#[tokio::test]
async fn what_an_instance_is_called_changes_by_its_id() {
    let view = || Play::view(&running());
    let line =
        "instance set web-1 --name web-2 --metadata team=shop --unset-metadata old --on-crash stop";
    let found = asked(line, [view(), view(), view()]).await;
    let id = running().id;
    let expected = [
        "instance.show web-1".to_owned(),
        format!("instance.show {id}"),
        format!("instance.set {id}"),
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_guest_that_switched_itself_off_stays_off_and_the_wait_knows_it() {
    let off = InstanceView {
        vm_state: VmState::Stopped,
        power_state: berth_common::message::report::PowerState::Shutdown,
        desired_power: berth_common::document::DesiredPower::Stopped,
        ..running()
    };
    // Before the request, it was to run.
    let context = context([Play::view(&running()), Play::view(&off), Play::view(&off)]);
    let meant = Change {
        name: "web-1".to_owned(),
        project: ProjectName::default(),
        goal: Goal::Built(running().desired_power),
    };
    let done = changed(
        &mut Asking::with(&context, patient()),
        meant,
        |instance, project| InstanceResize {
            instance,
            project,
            flavor: running().flavor,
        },
    )
    .await
    .unwrap();
    assert_eq!(done, off);
}
