//! A guest that is on gets a larger size through the whole agent, whatever step the agent dies after.

use berth_common::message::report::RunningSize;

use super::*;

fn size(vcpus: u64, memory_mb: u64) -> impl Fn(&mut InstanceSpec) + Copy {
    move |spec: &mut InstanceSpec| {
        spec.flavor.vcpus = Vcpus::clamped(vcpus);
        spec.flavor.memory_mb = MemoryMb::clamped(memory_mb);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_killed_at_any_step_of_a_live_resize_gives_the_size_once() {
    for steps in 0.. {
        let mut lab = Lab::new().await;
        let (wish, ..) = running(&lab).await;
        let first = wish.instance(2, |spec| {
            size(1, 1024)(spec);
            spec.reboot = Some(Reboot {
                nonce: Nonce::new(),
                kind: RebootKind::Hard,
            });
        });
        lab.send(&first).await;
        lab.wait_status(&first, ConvergeStatus::Converged).await;
        let Document::Instance(first) = first else {
            panic!("{first:?}")
        };
        let reboot = first.spec.unwrap().reboot;
        let starts = lab.host.lives(wish.instance).starts;
        let document = wish.instance(3, |spec| {
            size(4, 2048)(spec);
            spec.reboot = reboot;
        });
        lab.host.crash_after(steps);
        lab.send(&document).await;
        let done = || {
            lab.newest(document.key()).is_some_and(|report| {
                report.generation == document.generation()
                    && report.status == ConvergeStatus::Converged
            })
        };
        lab.wait_until("the crash or the end", || lab.host.is_crashed() || done())
            .await;
        let crashed = lab.host.is_crashed();
        lab.restart().await;
        let report = lab.wait_status(&document, ConvergeStatus::Converged).await;
        let running = report.running.unwrap();
        let has = (running.vcpus.get(), running.memory_mb.get());
        assert_eq!(has, (4, 2048), "after {steps} steps");
        let now = lab.host.lives(wish.instance).starts;
        assert_eq!(now, starts, "after {steps} steps");
        lab.kill().await;
        if !crashed {
            assert!(steps >= 3, "nothing was done");
            return;
        }
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
