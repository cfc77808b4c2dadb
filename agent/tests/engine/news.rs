//! What the host says of its domains unasked: it makes the engine look at once, and no more than that.

use std::{sync::atomic::Ordering, time::Duration};

use berth_common::message::report::{ConvergeStatus, PowerState};
use tokio::time::{Instant, sleep};

use super::{Compute, DomainStep, HANG, Lab, running, stopped};

const HOUR: Duration = Duration::from_secs(3600);

/// A host that nobody looks at without a reason.
async fn lab() -> Lab {
    let mut lab = Lab::new().await;
    lab.resync_every = HOUR;
    lab.restart().await;
    lab
}

#[tokio::test(start_paused = true)]
async fn what_a_guest_does_by_itself_is_told_within_a_second_of_the_news() {
    let lab = lab().await;
    let (wish, _, instance) = running(&lab).await;
    lab.host.guest_powers_off(wish.instance);
    sleep(Duration::from_secs(60)).await;
    let report = lab.newest(instance.key());
    assert!(report.is_some_and(|it| it.power_state == Some(PowerState::Running)));
    let told = Instant::now();
    lab.host.tell_news();
    lab.wait(instance.key(), "off", |report| {
        report.power_state == Some(PowerState::Shutdown)
            && report.status == ConvergeStatus::Converged
    })
    .await;
    assert!(
        told.elapsed() <= Duration::from_secs(1),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_news_is_five_looks_a_second_and_looks_go_on_after_it() {
    let lab = lab().await;
    let (wish, _, instance) = running(&lab).await;
    sleep(Duration::from_secs(30)).await;
    let looks = || lab.libvirt.looks.load(Ordering::SeqCst);
    let before = looks();
    for _ in 0..10_000 {
        lab.host.tell_news();
        lab.host.tell_news();
        sleep(Duration::from_millis(1)).await;
    }
    let made = looks() - before;
    assert!((45..=52).contains(&made), "{made} looks in ten seconds");
    // The last of them is heard as well, and none is left after it.
    sleep(Duration::from_secs(1)).await;
    let after = looks();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(looks(), after);
    lab.host.guest_powers_off(wish.instance);
    lab.host.tell_news();
    lab.wait(instance.key(), "off", |report| {
        report.power_state == Some(PowerState::Shutdown)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn news_of_a_libvirt_that_is_away_change_nothing_and_it_is_found_when_it_is_back() {
    let lab = lab().await;
    let (wish, _, instance) = running(&lab).await;
    lab.libvirt.away.store(true, Ordering::SeqCst);
    lab.host.guest_powers_off(wish.instance);
    for _ in 0..100 {
        lab.host.tell_news();
        sleep(Duration::from_millis(100)).await;
    }
    let report = lab.newest(instance.key());
    assert!(report.is_some_and(|it| it.power_state == Some(PowerState::Running)));
    // A look that failed is repeated soon, without any news.
    sleep(Duration::from_secs(1)).await;
    lab.libvirt.away.store(false, Ordering::SeqCst);
    let back = Instant::now();
    lab.wait(instance.key(), "off", |report| {
        report.power_state == Some(PowerState::Shutdown)
    })
    .await;
    assert!(
        back.elapsed() <= Duration::from_secs(3),
        "{:?}",
        back.elapsed()
    );
}

/// News come while a pass does its steps, and a look that they are the reason for sees what the next step changes.
#[tokio::test(start_paused = true)]
async fn what_was_seen_before_a_pass_ended_is_no_reason_for_another_one() {
    let lab = lab().await;
    let (wish, ..) = running(&lab).await;
    lab.libvirt.slow.store(true, Ordering::SeqCst);
    lab.host.tell_news();
    sleep(Duration::from_secs(1)).await;
    let stop = wish.instance(2, stopped);
    lab.send(&stop).await;
    lab.wait_status(&stop, ConvergeStatus::Converged).await;
    let close_looks = || lab.libvirt.close_looks.load(Ordering::SeqCst);
    let before = close_looks();
    sleep(2 * HANG).await;
    assert_eq!(close_looks(), before);
    // What changes after it is a reason all the same.
    Compute::apply(&lab.host, &DomainStep::Start(wish.instance))
        .await
        .unwrap();
    lab.host.tell_news();
    lab.wait_until("a close look", || close_looks() > before)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_hangs_keeps_nobody_from_looking_at_the_domains() {
    let lab = Lab::new().await;
    let (wish, _, instance) = running(&lab).await;
    lab.host.slow_pools(HOUR);
    sleep(2 * lab.resync_every).await;
    // Nobody tells that it did.
    lab.host.guest_powers_off(wish.instance);
    sleep(2 * lab.resync_every).await;
    let report = lab.newest(instance.key());
    assert!(
        report
            .as_ref()
            .is_some_and(|it| it.power_state == Some(PowerState::Shutdown)),
        "{report:?}"
    );
}
