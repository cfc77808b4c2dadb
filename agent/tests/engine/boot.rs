//! Rescue and rebuild through the whole agent, beyond the law of every operation: whatever older documents an agent without its
//! journal is told, and in whatever order wishes come, a disk is made once for a wish, and no old content comes back.

use berth_common::document::{ConfigDrive, Incarnation, OnCrash, Rescue};

use super::*;

fn other_image() -> ImageRef {
    ImageRef {
        url: "http://images.example.org/other.qcow2".parse().unwrap(),
        sha256: "cd".repeat(32).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

fn rebuild(number: u32, nonce: Nonce) -> impl Fn(&mut InstanceSpec) + Copy {
    move |spec: &mut InstanceSpec| {
        spec.disks[0].incarnation = Some(Incarnation { number, nonce });
        spec.disks[0].source = DiskSource::Image(other_image());
    }
}

fn rescue(nonce: Nonce) -> impl Fn(&mut InstanceSpec) + Copy {
    move |spec: &mut InstanceSpec| {
        spec.rescue = Some(Rescue {
            nonce,
            image: other_image(),
            size_gb: None,
        });
    }
}

fn contents(lab: &Lab, wish: &Wish) -> Vec<String> {
    let disks = lab.host.disks(wish.instance).into_values();
    disks.map(|disk| disk.content).collect()
}

fn image(sha: &str) -> String {
    format!("image {}", sha.repeat(32))
}

#[tokio::test(start_paused = true)]
async fn what_a_guest_wrote_after_a_rebuild_outlives_every_repetition() {
    for steps in 0.. {
        let mut lab = Lab::new().await;
        let (wish, _, first) = running(&lab).await;
        lab.host.guest_writes(wish.instance, "vda", "old");
        let wanted = wish.instance(2, rebuild(1, Nonce::new()));
        lab.host.crash_after(steps);
        lab.send(&wanted).await;
        let done = || {
            lab.newest(wanted.key()).is_some_and(|report| {
                report.generation == wanted.generation()
                    && report.status == ConvergeStatus::Converged
            })
        };
        lab.wait_until("the crash or the end", || lab.host.is_crashed() || done())
            .await;
        let crashed = lab.host.is_crashed();
        // The journal is lost with the agent: it is told everything again, older documents too.
        lab.kill().await;
        lab.host.restart_agent();
        let journal = lab.state.path().join("journal");
        assert!(journal.is_dir());
        std::fs::remove_dir_all(journal).unwrap();
        lab.start();
        lab.send(&wish.network(1, &[wish.port])).await;
        lab.send(&wanted).await;
        lab.wait_status(&wanted, ConvergeStatus::Converged).await;
        assert_eq!(contents(&lab, &wish), [image("cd")], "after {steps} steps");

        lab.host.guest_writes(wish.instance, "vda", "new");
        for _ in 0..2 {
            lab.send(&first).await;
            lab.send(&wanted).await;
            lab.restart().await;
            sleep(Duration::from_secs(60)).await;
        }
        let again = wish.instance(3, |spec| {
            match &wanted {
                Document::Instance(desired) => *spec = desired.spec.clone().unwrap(),
                other => panic!("{other:?}"),
            };
        });
        lab.send(&again).await;
        let report = lab.wait_status(&again, ConvergeStatus::Converged).await;
        assert!(
            matches!(report.boot_disk, Some(BootDisk::Rebuilt(_))),
            "{report:?}"
        );
        let expected = format!("{} + new", image("cd"));
        assert_eq!(contents(&lab, &wish), [expected], "after {steps} steps");
        lab.kill().await;
        if !crashed {
            assert!(steps > 4, "nothing was ever killed");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rebuilds_and_rescues_in_any_order_end_in_the_newest() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    lab.broker.set_faults(Faults {
        duplicate: 0.5,
        delay: 0.5,
        max_delay: Duration::from_secs(20),
        reorder: 0.5,
        ..Faults::NONE
    });
    let (first, second) = (rebuild(1, Nonce::new()), rebuild(2, Nonce::new()));
    let (one, two) = (rescue(Nonce::new()), rescue(Nonce::new()));
    for document in [
        wish.instance(2, one),
        wish.instance(3, first),
        wish.instance(4, |spec| {
            first(spec);
            two(spec);
        }),
        wish.instance(5, first),
        wish.instance(6, second),
    ] {
        lab.send(&document).await;
    }
    let last = wish.instance(7, |spec| {
        second(spec);
        one(spec);
    });
    lab.send(&last).await;
    let report = lab.wait_status(&last, ConvergeStatus::Converged).await;
    assert!(matches!(report.boot_disk, Some(BootDisk::Rescue(_))));
    assert_eq!(contents(&lab, &wish), [image("cd"), image("cd")]);
    lab.broker.set_faults(Faults::NONE);
    lab.send(&last.tombstone()).await;
    lab.wait_status(&last.tombstone(), ConvergeStatus::Gone)
        .await;
    assert!(lab.host.disks(wish.instance).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_rebuild_from_an_image_out_of_reach_leaves_the_guest_as_it_was() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    lab.host.guest_writes(wish.instance, "vda", "old");
    lab.host.image_is_unreachable(other_image().url);
    let bad = wish.instance(2, rebuild(1, Nonce::new()));
    lab.send(&bad).await;
    let report = lab.wait_status(&bad, ConvergeStatus::Failed).await;
    assert_eq!(report.fault.unwrap().code, FaultCode::ImageUnreachable);
    assert_eq!(report.power_state, Some(PowerState::Running));
    assert_eq!(lab.host.lives(wish.instance).asked, 0);
    assert_eq!(
        contents(&lab, &wish),
        [format!("{} + old", image("ab"))],
        "nothing happened to it"
    );
    lab.host.image_is_back(&other_image().url);
    lab.wait_status(&bad, ConvergeStatus::Converged).await;
    assert_eq!(contents(&lab, &wish), [image("cd")]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_shall_not_be_started_after_a_crash_is_told_of_and_stays_off() {
    let mut lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let stays = |spec: &mut InstanceSpec| spec.on_crash = OnCrash::Stop;
    let document = wish.instance(2, stays);
    lab.send(&document).await;
    lab.wait_status(&document, ConvergeStatus::Converged).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
    lab.host.guest_crashes(wish.instance);
    let crashed = |report: &ResourceReport| report.power_state == Some(PowerState::Crashed);
    lab.wait(document.key(), "crashed", crashed).await;
    lab.restart().await;
    lab.send(&document).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
    let start = wish.instance(3, stays);
    lab.send(&start).await;
    lab.wait_status(&start, ConvergeStatus::Converged).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_crashes_after_each_start_is_started_less_and_less_often() {
    const TEN_MINUTES: u64 = 600;
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let runs = || {
        let lives = lab.host.lives(wish.instance);
        lab.host.guest_has(wish.instance).map(|_| lives.starts)
    };
    let mut crashed = 0;
    for _ in 0..TEN_MINUTES {
        if let Some(starts) = runs()
            && starts > crashed
        {
            crashed = starts;
            lab.host.guest_crashes(wish.instance);
            lab.host.tell_news();
        }
        sleep(Duration::from_secs(1)).await;
    }
    // 1 s, 2 s, 4 s … 60 s.
    assert!((8..=20).contains(&crashed), "started {crashed} times");

    // Whoever wishes something new waits for nothing of that.
    let again = wish.instance(2, |_| {});
    lab.send(&again).await;
    lab.wait_until("a start", || runs() > Some(crashed)).await;
    lab.wait_status(&again, ConvergeStatus::Converged).await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(runs(), Some(crashed + 1), "it goes on");

    // One that ran for a while is started at once.
    lab.host.guest_crashes(wish.instance);
    lab.host.tell_news();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(runs(), Some(crashed + 2));
}

#[tokio::test(start_paused = true)]
async fn a_config_drive_waits_for_the_subnets_that_it_tells_of() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    // The host has the network for others, and has not been told of a new subnet yet.
    let mut before = wish.network(1, &[]);
    if let Document::Network(desired) = &mut before {
        desired.spec.as_mut().unwrap().subnets.clear();
    }
    lab.send(&before).await;
    lab.wait_status(&before, ConvergeStatus::Converged).await;
    let instance = wish.instance(1, |spec| spec.config_drive = Some(ConfigDrive::default()));
    lab.send(&instance).await;
    let drives = async || {
        let files = Storage::observe(&lab.host, wish.instance).await.unwrap();
        files.config_drives.len()
    };
    sleep(LIMIT).await;
    assert_eq!(drives().await, 0);
    lab.send(&wish.network(2, &[wish.port])).await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    assert_eq!(drives().await, 1);
}
