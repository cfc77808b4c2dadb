//! Guests whose QEMU hangs, more of them than once were enough to keep libvirt from being asked at all, beside one that is well.

use super::*;

/// How many are asked for something in vain.
const ASKED: usize = 9;
/// How many are saved in vain: as many as are saved at once.
const SAVED: usize = 2;

/// An instance with nothing that could boot, which runs.
async fn tiny(hypervisor: &Hypervisor, libvirt: &Libvirt) -> InstanceId {
    let mut config = instance(hypervisor);
    config.disks.clear();
    config.nics.clear();
    config.memory_mb = MemoryMb::clamped(32);
    config.room = Room::none(config.vcpus, config.memory_mb);
    config.metadata.digest = config.digest();
    let id = config.id;
    twice(libvirt, DomainStep::Define(Box::new(config))).await;
    twice(libvirt, DomainStep::Start(id)).await;
    id
}

/// Signals the QEMUs of all guests; not those that libvirt asks what QEMU can do.
fn signal_qemus(hypervisor: &Hypervisor, signal: &str) {
    let script = format!("kill -s {signal} \"$(cat \"$1\")\"");
    let pids = ["find", "/run/libvirt/qemu", "-name", "berth-*.pid"];
    let each = ["-exec", "sh", "-c", &script, "sh", "{}", ";"];
    hypervisor.run(&[&pids[..], &each].concat());
}

fn wait_for_stuck(libvirt: &Libvirt, expected: usize) {
    wait_for("calls to come back", || match libvirt.stuck_calls() {
        stuck if stuck == expected => Ok(()),
        stuck => Err(format!("{stuck} hang, not {expected}")),
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_that_hang_are_asked_once_each_and_all_others_notice_nothing() {
    let hypervisor = Hypervisor::start();
    let options = Options {
        // Guests are asked one after the other, and the last of them is to be asked in time also by a slow machine.
        ask_deadline: Duration::from_secs(8),
        guest_deadline: Duration::from_secs(3),
        observe_deadline: Duration::from_secs(10),
        ..Options::default()
    };
    let libvirt = Libvirt::start(&hypervisor.address(), options);
    let mut ill = Vec::new();
    for _ in 0..ASKED + SAVED {
        ill.push(tiny(&hypervisor, &libvirt).await);
    }
    let (asked, saved) = ill.split_at(ASKED);
    signal_qemus(&hypervisor, "STOP");

    // Each is asked, and that is all: what comes after is not tried as long as the first hangs.
    let requests: Vec<_> = asked.iter().map(|id| DomainStep::Shutdown(*id)).collect();
    let begin = Instant::now();
    let answers = requests.iter().map(|step| libvirt.apply(step));
    for answer in futures::future::join_all(answers).await {
        // The guest hears it when QEMU goes on.
        answer.unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(libvirt.stuck_calls(), ASKED);
    for id in asked {
        let begin = Instant::now();
        libvirt.apply(&DomainStep::Shutdown(*id)).await.unwrap();
        assert_eq!(libvirt.stuck_calls(), ASKED);
        let error = libvirt.apply(&DomainStep::Pause(*id)).await.unwrap_err();
        let told = chain(&error);
        assert!(
            error.retryable && told.contains("QEMU does not answer"),
            "{told}"
        );
        assert!(told.contains(&id.to_string()), "{told}");
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}: {told}");
    }
    assert_eq!(libvirt.stuck_calls(), ASKED);

    // Memory that is not saved gives up its place.
    let saves: Vec<_> = saved.iter().map(|id| DomainStep::Save(*id)).collect();
    let begin = Instant::now();
    let answers = saves.iter().map(|step| libvirt.apply(step));
    for answer in futures::future::join_all(answers).await {
        let told = chain(&answer.unwrap_err());
        assert!(!told.contains("libvirt at"), "{told}");
    }
    assert!(begin.elapsed() < Duration::from_secs(60));

    // One that is well is seen, started, saved, restored, stopped by its guest, and switched off.
    let well = booted(&hypervisor, &libvirt).await;
    assert_eq!(libvirt.observe().await.unwrap().len(), ASKED + SAVED + 1);
    twice(&libvirt, DomainStep::Save(well.id)).await;
    wait_for_state(&libvirt, well.id, PowerState::Shutdown).await;
    twice(&libvirt, DomainStep::Restore(well.id)).await;
    libvirt.apply(&DomainStep::Shutdown(well.id)).await.unwrap();
    wait_for_state(&libvirt, well.id, PowerState::Shutdown).await;
    assert!(console(&well).contains(super::ASKED));
    twice(&libvirt, DomainStep::Start(well.id)).await;
    twice(&libvirt, DomainStep::Destroy(well.id)).await;
    assert_eq!(libvirt.breaker_state(), BreakerState::Closed);

    // The way out is open for one that hangs, and what hung of it comes back.
    let stuck = libvirt.stuck_calls();
    let (first, others) = asked.split_first().unwrap();
    twice(&libvirt, DomainStep::Destroy(*first)).await;
    wait_for("its call to come back", || match libvirt.stuck_calls() {
        left if left < stuck => Ok(()),
        left => Err(format!("{left} hang")),
    });
    twice(&libvirt, DomainStep::Start(*first)).await;

    signal_qemus(&hypervisor, "CONT");
    wait_for_stuck(&libvirt, 0);
    for id in others.iter().chain([first]) {
        twice(&libvirt, DomainStep::Pause(*id)).await;
        wait_for_state(&libvirt, *id, PowerState::Paused).await;
    }
    // libvirt went on with what nobody waited for.
    for id in saved {
        let domain = wait_for_state(&libvirt, *id, PowerState::Shutdown).await;
        assert_eq!(domain.off_reason, Some(OffReason::Saved), "{domain:?}");
    }
    for id in ill.iter().chain([&well.id]) {
        twice(&libvirt, DomainStep::Destroy(*id)).await;
        twice(&libvirt, DomainStep::Undefine(*id)).await;
    }
    assert_eq!(libvirt.observe().await.unwrap(), []);
}
