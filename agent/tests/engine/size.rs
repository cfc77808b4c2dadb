//! A guest that is on gets a larger size through the whole agent, as far as there is room, and what it has is told.

use berth_common::message::report::RunningSize;

use super::*;

fn size(vcpus: u64, memory_mb: u64) -> impl Fn(&mut InstanceSpec) + Copy {
    move |spec: &mut InstanceSpec| {
        spec.flavor.vcpus = Vcpus::clamped(vcpus);
        spec.flavor.memory_mb = MemoryMb::clamped(memory_mb);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_running_guest_has_is_reported_and_nothing_of_one_that_is_off() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let larger = wish.instance(2, size(4, 128));
    lab.send(&larger).await;
    let report = lab.wait_status(&larger, ConvergeStatus::Converged).await;
    let has = |running: RunningSize| {
        (
            running.vcpus.get(),
            running.vcpus_max.get(),
            running.memory_mb.get(),
        )
    };
    assert_eq!(report.running.map(has), Some((4, 8, 128)));
    assert_eq!(lab.host.lives(wish.instance).starts, 1);

    // There is no room for so many: the guest runs on with what it has.
    let too_large = wish.instance(3, size(12, 128));
    lab.send(&too_large).await;
    let report = lab.wait_status(&too_large, ConvergeStatus::Converged).await;
    assert_eq!(report.running.map(has), Some((4, 8, 128)));

    let off = wish.instance(4, |spec| {
        size(12, 128)(spec);
        spec.power = DesiredPower::Stopped;
    });
    lab.send(&off).await;
    let report = lab.wait_status(&off, ConvergeStatus::Converged).await;
    assert_eq!(report.running, None);
    let on = wish.instance(5, size(12, 128));
    lab.send(&on).await;
    let report = lab.wait_status(&on, ConvergeStatus::Converged).await;
    assert_eq!(report.running.map(has), Some((12, 16, 128)));
}
