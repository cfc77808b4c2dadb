//! What waiting promises: the decision on single looks, and whole waits against a scripted scheduler.

use std::{cell::RefCell, collections::VecDeque};

use berth_common::{
    message::{report::FaultCode, view::TaskState},
    refusal::Refusal,
    units::Generation,
};

use super::*;
use crate::testing::instance;

fn building() -> InstanceView {
    InstanceView {
        vm_state: VmState::Building,
        task_state: Some(TaskState::Spawning),
        observed_generation: Generation(0),
        progress: Some("downloading the image, 40 %".to_owned()),
        ..instance()
    }
}

fn broken() -> InstanceView {
    let fault = Fault {
        code: FaultCode::DiskFull,
        message: "no space left".to_owned(),
    };
    InstanceView {
        vm_state: VmState::Error,
        task_state: None,
        fault: Some(fault),
        ..instance()
    }
}

#[test]
fn one_look_decides() {
    let active = instance();
    let stopping = InstanceView {
        task_state: Some(TaskState::PoweringOff),
        desired_power: DesiredPower::Stopped,
        generation: Generation(2),
        ..instance()
    };
    let stopped = InstanceView {
        vm_state: VmState::Stopped,
        desired_power: DesiredPower::Stopped,
        ..instance()
    };
    let deleted = InstanceView {
        vm_state: VmState::Deleted,
        ..instance()
    };
    let restarted = InstanceView {
        task_state: Some(TaskState::PoweringOn),
        ..broken()
    };
    let unconfirmed = InstanceView {
        generation: Generation(2),
        ..instance()
    };
    let running = Goal::Built(DesiredPower::Running);
    let check = |view: &InstanceView, goal, expected| {
        assert_eq!(judge(view, goal), expected, "{view:?} {goal:?}")
    };

    check(&building(), running, Verdict::Waiting);
    check(&active, running, Verdict::Reached);
    check(&active, Goal::Running, Verdict::Reached);
    check(&unconfirmed, Goal::Rebooted, Verdict::Waiting);
    check(&active, Goal::Rebooted, Verdict::Reached);
    check(&active, Goal::Deleted, Verdict::Waiting);
    check(&stopping, Goal::Stopped, Verdict::Waiting);
    check(&stopped, Goal::Stopped, Verdict::Reached);
    check(
        &stopped,
        Goal::Built(DesiredPower::Stopped),
        Verdict::Reached,
    );
    check(&deleted, Goal::Deleted, Verdict::Reached);
    check(&broken(), running, Verdict::Failed(broken().fault));
    check(&broken(), Goal::Deleted, Verdict::Failed(broken().fault));
    check(&restarted, Goal::Running, Verdict::Waiting);
    assert!(matches!(judge(&deleted, running), Verdict::Overtaken(_)));
    assert!(matches!(
        judge(&stopped, Goal::Running),
        Verdict::Overtaken(_)
    ));
}

#[test]
fn a_guest_that_goes_off_first_is_not_waited_for() {
    for (power, goal, word) in [
        (DesiredPower::Paused, Goal::Paused, "paused"),
        (DesiredPower::Suspended, Goal::Suspended, "suspended"),
    ] {
        let off = InstanceView {
            vm_state: VmState::Stopped,
            desired_power: power,
            ..instance()
        };
        let reason = format!("it went off before it could be {word}");
        for goal in [goal, Goal::Built(power)] {
            assert_eq!(judge(&off, goal), Verdict::Overtaken(reason.clone()));
        }
        let unconfirmed = InstanceView {
            generation: Generation(2),
            ..off.clone()
        };
        assert_eq!(judge(&unconfirmed, goal), Verdict::Waiting);
        let busy = InstanceView {
            task_state: Some(TaskState::Suspending),
            ..off
        };
        assert_eq!(judge(&busy, goal), Verdict::Waiting);
    }
}

#[test]
fn a_state_is_told_in_a_line() {
    assert_eq!(
        summary(&building()),
        "building, spawning on hv1: downloading the image, 40 %"
    );
    assert_eq!(summary(&instance()), "active on hv1");
}

/// Answers in order; the last one for ever.
struct Script {
    answers: RefCell<VecDeque<Answer>>,
    asked: RefCell<Vec<String>>,
}

#[derive(Clone)]
enum Answer {
    View(Box<InstanceView>),
    Refusal(RefusalCode),
    Silence,
    NoQueue,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self {
            answers: RefCell::new(answers.into_iter().collect()),
            asked: RefCell::default(),
        }
    }
}

fn view(view: InstanceView) -> Answer {
    Answer::View(Box::new(view))
}

impl Caller for Script {
    async fn call<M: Method + Sync>(&self, request: &M, _: Duration) -> Result<M::Reply, CtlError> {
        let request = serde_json::to_value(request).unwrap();
        self.asked.borrow_mut().push(format!(
            "{} {}",
            M::NAME,
            request["instance"].as_str().unwrap()
        ));
        let mut answers = self.answers.borrow_mut();
        let answer = if answers.len() > 1 {
            answers.pop_front()
        } else {
            answers.front().cloned()
        };
        match answer.unwrap() {
            Answer::View(view) => {
                Ok(serde_json::from_value(serde_json::to_value(view).unwrap()).unwrap())
            }
            Answer::Refusal(code) => Err(CtlError::Refused(Refusal::new(code, "refused"))),
            Answer::Silence => Err(CtlError::Unanswered {
                reason: "no answer".to_owned(),
                fate: Fate::Question,
            }),
            Answer::NoQueue => Err(CtlError::NoScheduler {
                address: "amqp://mq".to_owned(),
            }),
        }
    }
}

#[derive(Default)]
struct Seen(Vec<String>);

impl Progress for Seen {
    fn show(&mut self, text: &str) {
        if self.0.last().map(String::as_str) != Some(text) {
            self.0.push(text.to_owned());
        }
    }
    fn note(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

fn limits(whole: Duration) -> Limits {
    let pace = Pace {
        first: Duration::from_millis(1),
        last: Duration::from_millis(2),
    };
    Limits::from_now(pace, Duration::from_secs(1), whole)
}

const LONG: Duration = Duration::from_secs(30);

async fn wait(
    script: &Script,
    goal: Goal,
    whole: Duration,
) -> (Result<InstanceView, CtlError>, Vec<String>) {
    let mut seen = Seen::default();
    let outcome = until(script, building(), goal, limits(whole), &mut seen).await;
    (outcome, seen.0)
}

const BUILT: Goal = Goal::Built(DesiredPower::Running);

#[tokio::test]
async fn a_wait_survives_silence_and_ends_when_the_instance_is_there() {
    let script = Script::new([
        view(building()),
        Answer::Silence,
        Answer::Silence,
        Answer::NoQueue,
        view(instance()),
    ]);
    let (outcome, seen) = wait(&script, BUILT, LONG).await;
    assert_eq!(outcome.unwrap(), instance());
    assert_eq!(
        seen,
        [
            "web-1: building, spawning on hv1: downloading the image, 40 %",
            "web-1: no answer; asking again",
            "web-1: building, spawning on hv1: downloading the image, 40 %",
            "web-1: the broker has no queue `scheduler` just now; asking again",
            "web-1: building, spawning on hv1: downloading the image, 40 %",
            "web-1: active on hv1",
        ]
    );
    assert!(
        script
            .asked
            .borrow()
            .iter()
            .all(|asked| *asked == format!("instance.show {}", instance().id))
    );
}

fn named(name: &str, view: InstanceView) -> InstanceView {
    InstanceView {
        name: name.parse().unwrap(),
        ..view
    }
}

#[tokio::test]
async fn several_are_waited_for_together_and_each_has_its_own_end() {
    let first_round = [
        view(named("web-1", building())),
        view(named("web-2", broken())),
    ];
    // One that gets no answer ends the round: the others would get none either.
    let script = Script::new(first_round.into_iter().chain([
        Answer::Silence,
        view(named("web-1", instance())),
        view(named("web-3", instance())),
    ]));
    let accepted = ["web-1", "web-2"].map(|name| named(name, building()));
    let mut seen = Seen::default();
    let ends = until_all(&script, accepted.to_vec(), BUILT, limits(LONG), &mut seen).await;
    assert_eq!(ends.len(), 2);
    assert_eq!(ends[0].view, named("web-1", instance()));
    assert!(ends[0].end.is_ok());
    assert_eq!(ends[1].view, named("web-2", broken()));
    assert!(matches!(ends[1].end, Err(CtlError::Failed { .. })));
    insta::assert_snapshot!(seen.0.join("\n"), @r#"
    0 of 2 active; web-1: building, spawning on hv1: downloading the image, 40 %; web-2: building, spawning on hv1: downloading the image, 40 %
    0 of 2 active, 1 failed; web-1: building, spawning on hv1: downloading the image, 40 %
    web-1: no answer; asking again
    0 of 2 active, 1 failed; web-1: building, spawning on hv1: downloading the image, 40 %
    1 of 2 active, 1 failed
    "#);
}

#[tokio::test(start_paused = true)]
async fn silence_costs_a_round_one_question_however_many_wait() {
    let script = Script::new([Answer::Silence]);
    let accepted = vec![building(); 200];
    let mut seen = Seen::default();
    let limits = limits(Duration::from_millis(20));
    let ends = until_all(&script, accepted, BUILT, limits, &mut seen).await;
    assert!(
        ends.iter()
            .all(|waited| matches!(waited.end, Err(CtlError::NotYet { .. })))
    );
    // At most one in each round of a millisecond or more.
    let asked = script.asked.borrow().len();
    assert!((1..=20).contains(&asked), "{asked}");
    assert!(seen.0[0].starts_with("0 of 200 active; "), "{:?}", seen.0);
    assert!(seen.0[0].ends_with("; 196 more"), "{:?}", seen.0);
}

#[tokio::test]
async fn a_fault_ends_the_wait_with_its_text() {
    let (outcome, _) = wait(
        &Script::new([view(building()), view(broken())]),
        BUILT,
        LONG,
    )
    .await;
    let error = outcome.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(
        error
            .to_string()
            .ends_with("is in error (disk_full): no space left"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_limit_ends_the_wait_with_the_last_state_and_a_comfort() {
    let (outcome, _) = wait(
        &Script::new([Answer::Silence]),
        BUILT,
        Duration::from_millis(20),
    )
    .await;
    let error = outcome.unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(
        text.contains("is not active after 0 s; last seen building, spawning on hv1"),
        "{text}"
    );
    assert!(
        text.contains("since then: no answer. Nothing is lost"),
        "{text}"
    );
}

#[tokio::test]
async fn an_instance_that_is_not_found_is_deleted_but_never_active() {
    let script = Script::new([Answer::Refusal(RefusalCode::NotFound)]);
    let (outcome, _) = wait(&script, Goal::Deleted, LONG).await;
    assert_eq!(outcome.unwrap().vm_state, VmState::Deleted);
    let (outcome, _) = wait(&script, BUILT, LONG).await;
    assert!(matches!(outcome, Err(CtlError::Refused(_))));
}

fn show() -> InstanceShow {
    InstanceShow {
        instance: "x".to_owned(),
        project: Default::default(),
    }
}

#[tokio::test]
async fn an_unanswered_request_is_sent_again_as_it_was() {
    let script = Script::new([Answer::Silence, Answer::NoQueue, view(building())]);
    let mut seen = Seen::default();
    assert_eq!(
        send(&script, &show(), limits(LONG), &mut seen)
            .await
            .unwrap(),
        building()
    );
    assert_eq!(*script.asked.borrow(), ["instance.show x"; 3]);
    assert_eq!(seen.0.len(), 2);
    assert!(
        seen.0[0].ends_with("; asking again"),
        "{seen:?}",
        seen = seen.0
    );
}

#[test]
fn what_sending_again_does_is_told_as_it_is() {
    let check =
        |method: &str, expected: &str| assert!(again(method).contains(expected), "{method}");
    check(
        "instance.create",
        "the same id: it is carried out only once",
    );
    check(
        "instance.create_many",
        "the same id: it is carried out only once",
    );
    check(
        "instance.reboot",
        "the same nonce: it is carried out only once",
    );
    check("instance.delete", "no other can be meant");
    check("volume.create", "carried out only once");
    check("volume.delete", "with the volume's id: no other");
    check("volume.attach", "only says how the volume shall be");
    check("instance.start", "only says how the instance shall be");
    check("instance.stop", "only says how the instance shall be");
    check("instance.show", "asking again");
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_carried_out_is_told_although_the_last_could_not_be_sent() {
    let script = Script::new([Answer::Silence, Answer::NoQueue]);
    let limits = limits(Duration::from_millis(10));
    let error = send(&script, &show(), limits, &mut Seen::default())
        .await
        .unwrap_err();
    assert!(matches!(error, CtlError::Unanswered { .. }), "{error}");
    assert!(error.to_string().contains("has no queue"), "{error}");
}

#[tokio::test]
async fn a_refusal_and_a_scheduler_that_never_was_end_it_at_once() {
    for (answer, code) in [
        (Answer::Refusal(RefusalCode::NoValidHost), 1),
        (Answer::NoQueue, 3),
    ] {
        let script = Script::new([answer]);
        let error = send(&script, &show(), limits(LONG), &mut Seen::default())
            .await
            .unwrap_err();
        assert_eq!(error.exit_code(), code);
        assert_eq!(script.asked.borrow().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_to_the_end_is_told_as_such() {
    let script = Script::new([Answer::Silence]);
    let outcome = send(
        &script,
        &show(),
        limits(Duration::from_millis(10)),
        &mut Seen::default(),
    )
    .await;
    assert!(matches!(outcome, Err(CtlError::Unanswered { .. })));
}
