//! What `instance create --count` asks for, and what it makes of the answers.

use berth_common::message::view::VmState;
use serde_json::{Value, json};

use super::*;
use crate::{
    commands::instance::tests::patient,
    testing::{self, Play, instance as running},
};

fn pattern() -> InstanceCreate {
    let template: Value = serde_json::to_value(running()).unwrap();
    serde_json::from_value(json!({
        "id": template["id"],
        "name": "web",
        "flavor": template["flavor"],
        "image": template["image"],
        "networks": [{ "network": "net0" }],
    }))
    .unwrap()
}

fn prepared(mode: CreateMode) -> Prepared {
    Prepared {
        request: InstanceCreateMany {
            instances: instances(&pattern(), 3).unwrap(),
            mode,
        },
        first: pattern().id,
        goal: Goal::Built(pattern().power),
        wait: Wait {
            wait: false,
            wait_timeout: std::time::Duration::from_secs(1),
        },
    }
}

/// An answer: of each instance its view, or the code of its refusal.
fn answer(outcomes: &[Result<VmState, RefusalCode>]) -> Play {
    let asked = instances(&pattern(), 3).unwrap();
    let result = |(outcome, asked): (&Result<VmState, RefusalCode>, InstanceCreate)| {
        let outcome = match outcome {
            Ok(vm_state) => Reply::Ok(InstanceView {
                id: asked.id,
                name: asked.name,
                vm_state: *vm_state,
                ..running()
            }),
            Err(code) => Reply::Error(Refusal::new(*code, "needs 8 vCPU, 2 free")),
        };
        InstanceCreateResult {
            id: asked.id,
            outcome,
        }
    };
    Play::view(&InstanceCreateManyReply {
        results: outcomes.iter().zip(asked).map(result).collect(),
    })
}

fn missing(created: &Created) -> Vec<&str> {
    created
        .missing
        .iter()
        .map(|missing| missing.instance.as_str())
        .collect()
}

#[test]
fn names_and_ids_count_up() {
    let made = instances(&pattern(), 3).unwrap();
    let names: Vec<_> = made.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["web-1", "web-2", "web-3"]);
    let ids: Vec<_> = made.iter().map(|one| one.id.to_string()).collect();
    assert_eq!(
        ids,
        [
            "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11",
            "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a12",
            "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a13",
        ]
    );
    let check = |first: &str, expected: &str| {
        let second = numbered_id(first.parse().unwrap(), 2).unwrap();
        assert_eq!(second.to_string(), expected);
    };
    // The version, the time and the variant stay.
    check(
        "0191e7a0-7c1f-7b5e-bfff-ffffffffffff",
        "0191e7a0-7c1f-7b5e-8000-000000000000",
    );
}

#[test]
fn what_only_one_instance_can_have_is_refused() {
    let check = |change: fn(&mut InstanceCreate), expected: &str| {
        let mut pattern = pattern();
        change(&mut pattern);
        let error = instances(&pattern, 12).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(
        |pattern| pattern.networks[0].ip_address = Some([10, 0, 0, 5].into()),
        "sets ip_address of a network",
    );
    check(
        |pattern| pattern.networks[0].mac_address = Some("52:54:00:12:34:56".parse().unwrap()),
        "sets mac_address of a network",
    );
    check(
        |pattern| pattern.name = "x".repeat(61).parse().unwrap(),
        "-10 would be longer than the 63 characters of a name",
    );
}

#[tokio::test]
async fn all_or_nothing_says_that_none_was_created() {
    let check = |code, mode, expected: bool| async move {
        let context = testing::context(None, [Play::Refuse(code)]);
        let mut asking = Asking::with(&context, None);
        let error = created(&mut asking, &prepared(mode)).await.err().unwrap();
        assert_eq!(error.exit_code(), 1);
        let told = error.to_string().contains("None of the 3 instances");
        assert_eq!(told, expected, "{error}");
    };
    check(RefusalCode::NoValidHost, CreateMode::AllOrNothing, true).await;
    check(RefusalCode::Unavailable, CreateMode::AllOrNothing, false).await;
    check(RefusalCode::Invalid, CreateMode::BestEffort, false).await;
}

#[tokio::test]
async fn best_effort_keeps_those_that_are_there_and_names_the_others() {
    let script = [answer(&[
        Ok(VmState::Building),
        Err(RefusalCode::NoValidHost),
        Ok(VmState::Building),
    ])];
    let context = testing::context(None, script);
    let mut asking = Asking::with(&context, None);
    let outcome = created(&mut asking, &prepared(CreateMode::BestEffort)).await;
    let outcome = outcome.unwrap();
    assert_eq!(missing(&outcome), ["web-2"]);
    assert_eq!(outcome.reply.results.iter().filter_map(view).count(), 2);
}

#[tokio::test]
async fn all_that_are_accepted_are_waited_for_and_seen_last() {
    let asked = instances(&pattern(), 3).unwrap();
    let seen = |number: usize, vm_state| {
        Play::view(&InstanceView {
            id: asked[number].id,
            vm_state,
            ..running()
        })
    };
    let script = [
        Play::Silence,
        answer(&[
            Ok(VmState::Building),
            Err(RefusalCode::Conflict),
            Ok(VmState::Building),
        ]),
        seen(0, VmState::Error),
        seen(2, VmState::Building),
        seen(2, VmState::Active),
    ];
    let context = testing::context(None, script);
    let mut asking = Asking::with(&context, patient());
    let outcome = created(&mut asking, &prepared(CreateMode::BestEffort)).await;
    let outcome = outcome.unwrap();
    assert_eq!(missing(&outcome), ["web-1", "web-2"]);
    let last: Vec<_> = outcome.reply.results.iter().filter_map(view).collect();
    assert_eq!(last[0].vm_state, VmState::Error);
    assert_eq!(last[1].vm_state, VmState::Active);
    let show = |number: usize| format!("instance.show {}", asked[number].id);
    assert_eq!(
        *context.caller.asked.borrow(),
        [
            "instance.create_many -".to_owned(),
            "instance.create_many -".to_owned(),
            show(0),
            show(2),
            show(2),
        ]
    );
}

#[tokio::test]
async fn an_answer_about_others_is_nonsense() {
    let context = testing::context(None, [answer(&[Ok(VmState::Building)])]);
    let mut asking = Asking::with(&context, None);
    let outcome = created(&mut asking, &prepared(CreateMode::BestEffort)).await;
    assert!(matches!(outcome, Err(CtlError::Nonsense { .. })));
}

#[tokio::test]
async fn silence_is_told_with_the_id_of_the_first() {
    let context = testing::context(None, [Play::Silence]);
    let mut asking = Asking::with(&context, None);
    let outcome = created(&mut asking, &prepared(CreateMode::AllOrNothing)).await;
    let error = outcome.err().unwrap().to_string();
    assert!(
        error.contains(&format!("with --id {}", pattern().id)),
        "{error}"
    );
}
