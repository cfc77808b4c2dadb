//! A guest that is on gets a larger size: what it is given while it runs, what waits for its next start, and that a crash at any
//! step leaves neither too little nor too much.

use berth_common::message::report::RunningSize;

use sha2::{Digest, Sha256};

use super::*;

fn sized(generation: u64, vcpus: u64, memory_mb: u64) -> Desired<InstanceId, InstanceSpec> {
    let mut wanted = running(generation);
    let flavor = &mut wanted.spec.as_mut().unwrap().flavor;
    flavor.vcpus = Vcpus::clamped(vcpus);
    flavor.memory_mb = MemoryMb::clamped(memory_mb);
    wanted
}

fn now(rig: &Rig) -> RunningSize {
    let domain = rig.host.domain(instance().as_uuid()).unwrap();
    domain.running.unwrap()
}

fn size(rig: &Rig) -> (u64, u64) {
    let now = now(rig);
    (now.vcpus.get(), now.memory_mb.get())
}

fn running_size(vcpus: u64, vcpus_max: u64) -> Option<RunningSize> {
    Some(RunningSize {
        vcpus: Vcpus::clamped(vcpus),
        vcpus_max: Vcpus::clamped(vcpus_max),
        memory_mb: MemoryMb::clamped(128),
        memory_mb_max: MemoryMb::clamped(128),
        memory_step_mb: MemoryMb::clamped(128),
    })
}

#[test]
fn processors_are_given_to_a_guest_that_is_on_and_has_room_for_them() {
    let has = |vcpus, most| {
        given(1, Running, None).domain(move |domain| domain.running = running_size(vcpus, most))
    };
    check(
        has(1, 8),
        &sized(2, 4, 128),
        &["define@2", "vcpus 4"],
        &Converged,
    );
    // Its definition has it already: only the guest does not.
    let defined = has(1, 8).domain(|domain| {
        let config = domain_config(instance(), sized(2, 4, 128).spec.as_ref().unwrap(), &host());
        domain.metadata = Some(DomainMetadata {
            generation: Generation(2),
            ..config.metadata
        });
    });
    check(defined, &sized(2, 4, 128), &["vcpus 4"], &Converged);
    // No room, or less than it has: its next start takes the definition.
    check(has(1, 2), &sized(2, 4, 128), &["define@2"], &Converged);
    check(has(4, 8), &sized(2, 2, 128), &["define@2"], &Converged);
    // It stands still, and gets them all the same.
    let paused = given(1, Paused, None).domain(|domain| domain.running = running_size(1, 8));
    let mut wish = sized(2, 4, 128);
    wish.spec.as_mut().unwrap().power = DesiredPower::Paused;
    check(paused, &wish, &["define@2", "vcpus 4"], &Converged);
    // One that shall be off is given nothing.
    let mut wish = sized(2, 4, 128);
    wish.spec.as_mut().unwrap().power = DesiredPower::Stopped;
    let plan = plan(&wish, &has(1, 8).observed, &host());
    assert!(
        outline(&plan).iter().all(|step| !step.starts_with("vcpus")),
        "{plan:?}"
    );
}

#[test]
fn memory_is_given_to_a_guest_that_is_on_in_whole_steps() {
    let has = |memory_mb, most| {
        given(1, Running, None).domain(move |domain| {
            domain.running = Some(RunningSize {
                memory_mb: MemoryMb::clamped(memory_mb),
                memory_mb_max: MemoryMb::clamped(most),
                ..running_size(1, 8).unwrap()
            });
        })
    };
    check(
        has(1024, 4096),
        &sized(2, 2, 2048),
        &["define@2", "vcpus 2", "memory 1024-2048"],
        &Converged,
    );
    for (given, wanted) in [
        (has(1024, 4096), 1100),
        (has(1024, 2048), 4096),
        (has(2048, 4096), 1024),
        (has(1024, 1024), 1152),
    ] {
        check(given, &sized(2, 1, wanted), &["define@2"], &Converged);
    }
}

#[test]
fn room_is_no_reason_to_define_a_domain_anew() {
    let larger = HostFacts {
        size: HostSize {
            cpus: 64,
            memory_mb: MemoryMb::clamped(1 << 20),
        },
        ..host()
    };
    let of = |vcpus, memory_mb, host: &HostFacts| {
        domain_config(
            instance(),
            sized(1, vcpus, memory_mb).spec.as_ref().unwrap(),
            host,
        )
    };
    let (small, large) = (of(8, 32_768, &host()), of(8, 32_768, &larger));
    assert_ne!(small.room, large.room);
    assert_eq!(small.digest(), large.digest());
    // Room is left out, and why it is off: a definition of before there was any has the digest that it had.
    let mut off = small.clone();
    off.metadata.left_off = Some(LeftOff::Guest);
    assert_eq!(off.digest(), small.digest());
    let mut bare = small.clone();
    bare.metadata.digest.clear();
    let room = format!(" room: {:?},", bare.room);
    let text = format!("{bare:?}").replace(", left_off: None", "");
    let without = text.replace(&room, "");
    assert_eq!(text.len(), without.len() + room.len());
    let digest: String = Sha256::digest(without.as_bytes())
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(small.digest(), digest);
    assert_ne!(
        small.metadata.digest,
        of(9, 32_768, &host()).metadata.digest
    );
}

#[test]
fn a_guest_has_no_more_room_than_its_size_where_room_is_withheld() {
    let withheld = HostFacts {
        room_to_grow: RoomToGrow::Withheld,
        ..host()
    };
    let of = |host: &HostFacts| {
        let wanted = sized(1, 2, 2048);
        domain_config(instance(), wanted.spec.as_ref().unwrap(), host)
    };
    let (roomy, bare) = (of(&host()), of(&withheld));
    assert!(roomy.room.vcpus > roomy.vcpus && roomy.room.memory_mb > roomy.memory_mb);
    assert_eq!(
        (bare.room.vcpus, bare.room.memory_mb),
        (bare.vcpus, bare.memory_mb)
    );
    // Guests that are on keep their definition: the setting is for their next start.
    assert_eq!(roomy.digest(), bare.digest());
}

#[test]
fn a_larger_size_is_there_once_after_every_crash_and_failure() {
    for step in 0..6 {
        for crash in [true, false] {
            let mut rig = Rig::after(&[sized(1, 1, 1024)]);
            if crash {
                rig.host.crash_after(step);
            } else {
                rig.host.fail_after(step);
            }
            rig.converge(&sized(2, 4, 2048));
            assert_eq!(size(&rig), (4, 2048), "{step}, {crash}");
            assert_eq!(rig.lives().starts, 1, "{step}, {crash}");
        }
    }
}

#[test]
fn what_there_is_no_room_for_comes_with_the_next_start_and_nothing_is_left_over_then() {
    let mut rig = Rig::after(&[running(1)]);
    let most = now(&rig).vcpus_max.get();
    rig.converge(&sized(2, most + 1, 192));
    assert_eq!(size(&rig), (1, 128));
    let mut again = sized(3, most + 1, 192);
    again.spec.as_mut().unwrap().reboot = Some(Reboot {
        nonce: id(900),
        kind: RebootKind::Hard,
    });
    rig.converge(&again);
    assert_eq!(size(&rig), (most + 1, 192));

    // One that sleeps has what it had, and gets the rest when it goes on.
    let mut rig = Rig::after(&[running(1), suspended(2)]);
    let mut asleep = sized(3, 4, 128);
    asleep.spec.as_mut().unwrap().power = DesiredPower::Suspended;
    rig.converge(&asleep);
    rig.converge(&sized(4, 4, 128));
    assert_eq!(size(&rig), (4, 128));
    assert_eq!((rig.lives().starts, rig.lives().restores), (1, 1));
}
