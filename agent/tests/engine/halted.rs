//! Guests that stand still because their disk is full.

use std::time::Duration;

use berth_common::message::report::{ConvergeStatus, FaultCode, PowerState};
use tokio::time::{Instant, sleep};

use super::{Lab, running};

#[tokio::test(start_paused = true)]
async fn a_guest_whose_disk_is_full_is_let_go_on_every_few_seconds_until_there_is_room() {
    let lab = Lab::new().await;
    let (wish, _, instance) = running(&lab).await;
    let resumes = || lab.host.lives(wish.instance).resumes;
    lab.host.fill_disk(wish.instance);
    lab.host.tell_news();
    let report = lab
        .wait(instance.key(), "a fault", |report| report.fault.is_some())
        .await;
    let fault = report.fault.unwrap();
    assert_eq!(fault.code, FaultCode::DiskFull, "{fault:?}");
    assert!(fault.message.contains("vda"), "{fault:?}");
    assert_eq!(report.status, ConvergeStatus::Failed);

    // Each time that it stands still again is an event, and so is each time that it goes on.
    let told = lab.known.lock().unwrap()[&instance.key()].len();
    let before = resumes();
    for _ in 0..600 {
        lab.host.tell_news();
        sleep(Duration::from_millis(100)).await;
    }
    let tries = resumes() - before;
    assert!((8..=12).contains(&tries), "{tries} in a minute");
    let known = lab.known.lock().unwrap()[&instance.key()].clone();
    let silent: Vec<_> = known[told..]
        .iter()
        .filter(|it| it.fault.is_none())
        .collect();
    assert!(
        silent.is_empty(),
        "it is not told all the time: {silent:#?}"
    );
    let faults: Vec<_> = known[told..]
        .iter()
        .filter_map(|it| it.fault.as_ref())
        .collect();
    assert!(faults.iter().all(|it| **it == fault), "{faults:#?}");

    // It goes on by itself.
    let begin = Instant::now();
    lab.host.make_room(wish.instance);
    let report = lab.wait_status(&instance, ConvergeStatus::Converged).await;
    assert!(
        begin.elapsed() <= Duration::from_secs(12),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(report.power_state, Some(PowerState::Running));
    assert_eq!(report.fault, None);
    let lives = lab.host.lives(wish.instance);
    sleep(Duration::from_secs(700)).await;
    assert_eq!(lab.host.lives(wish.instance), lives);
    assert_eq!((lives.starts, lives.destroys, lives.asked), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_disk_is_full_is_found_by_an_agent_that_was_started_anew() {
    let mut lab = Lab::new().await;
    let (wish, _, instance) = running(&lab).await;
    lab.kill().await;
    lab.host.fill_disk(wish.instance);
    lab.restart().await;
    lab.wait(instance.key(), "a fault", |report| {
        report.fault.as_ref().map(|fault| fault.code) == Some(FaultCode::DiskFull)
    })
    .await;
    lab.host.make_room(wish.instance);
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
}
