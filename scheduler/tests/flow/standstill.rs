//! Pauses and suspensions: which are granted, what the host is told, and what the instance looks like meanwhile.

use berth_common::{
    document::{DesiredPower, Document, RebootKind},
    ids::{InstanceId, Nonce},
    message::{
        report::{ConvergeStatus, PowerState},
        request::{
            InstancePause, InstanceReboot, InstanceResize, InstanceResume, InstanceShow,
            InstanceStart, InstanceStop, InstanceSuspend, InstanceUnpause, Method,
        },
        view::{InstanceView, TaskState, VmState},
    },
    refusal::RefusalCode,
};
use serde_json::json;

use crate::{
    ask::instance,
    cloud::Cloud,
    host::{Host, key},
};

macro_rules! about {
    ($request:ident) => {
        $request {
            instance: "web-1".to_owned(),
            project: Default::default(),
        }
    };
}

/// An instance that runs on a host.
struct Lab {
    cloud: Cloud,
    host: Host,
    id: InstanceId,
}

impl Lab {
    async fn new() -> Self {
        let cloud = Cloud::start().await;
        let host = Host::join(&cloud, "hv1").await;
        let request = instance("web-1", 512, json!([]));
        cloud.call(request.clone()).await.unwrap();
        let mut lab = Self {
            cloud,
            host,
            id: request.id,
        };
        lab.becomes(PowerState::Running, VmState::Active).await;
        lab
    }

    async fn refused<M: Method>(&self, request: M, words: &str) {
        self.cloud
            .refused(request, RefusalCode::Conflict, words)
            .await;
    }

    /// A request is granted, and shows this until its host has carried it out.
    async fn granted<M: Method<Reply = InstanceView>>(
        &self,
        request: M,
        task: Option<TaskState>,
        power: DesiredPower,
    ) {
        let view = self.cloud.ok(request).await;
        assert_eq!((view.task_state, view.desired_power), (task, power));
    }

    /// The host carries out what it was told last, and says so.
    async fn becomes(&mut self, power: PowerState, state: VmState) -> DesiredPower {
        let wanted = self.show().await.generation;
        let document = loop {
            let document = self.host.next_about(self.id).await;
            if document.generation() >= wanted {
                break document;
            }
        };
        self.host.carry_out(&document, power).await;
        let settled = |view: &InstanceView| view.vm_state == state && view.task_state.is_none();
        self.cloud
            .wait_for_instance(self.id, state.as_str(), settled)
            .await;
        let Document::Instance(document) = document else {
            panic!("{document:?}")
        };
        document.spec.unwrap().power
    }

    async fn show(&self) -> InstanceView {
        self.cloud.ok(about!(InstanceShow)).await
    }
}

fn reboot(kind: RebootKind) -> InstanceReboot {
    InstanceReboot {
        instance: "web-1".to_owned(),
        project: Default::default(),
        kind,
        nonce: Nonce::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_instance_stands_still_until_somebody_lets_it_go_on() {
    let mut lab = Lab::new().await;
    let pausing = Some(TaskState::Pausing);
    lab.granted(about!(InstancePause), pausing, DesiredPower::Paused)
        .await;
    let power = lab.becomes(PowerState::Paused, VmState::Paused).await;
    assert_eq!(power, DesiredPower::Paused);
    let generation = lab.show().await.generation;

    // Granted once more, and nothing changes.
    lab.granted(about!(InstancePause), None, DesiredPower::Paused)
        .await;
    assert_eq!(lab.show().await.generation, generation);
    lab.refused(about!(InstanceStart), "is paused; unpause it first")
        .await;
    lab.refused(about!(InstanceSuspend), "is paused; unpause it first")
        .await;
    lab.refused(about!(InstanceResume), "is paused; unpause it first")
        .await;
    lab.refused(reboot(RebootKind::Soft), "its guest cannot be asked")
        .await;
    assert_eq!(lab.show().await.generation, generation);

    let unpausing = Some(TaskState::Unpausing);
    lab.granted(about!(InstanceUnpause), unpausing, DesiredPower::Running)
        .await;
    lab.becomes(PowerState::Running, VmState::Active).await;
    lab.granted(about!(InstanceUnpause), None, DesiredPower::Running)
        .await;

    // A paused one can be switched off, and rebooted hard.
    lab.granted(about!(InstancePause), pausing, DesiredPower::Paused)
        .await;
    lab.becomes(PowerState::Paused, VmState::Paused).await;
    let hard = reboot(RebootKind::Hard);
    lab.granted(hard.clone(), unpausing, DesiredPower::Running)
        .await;
    lab.becomes(PowerState::Running, VmState::Active).await;
    lab.granted(about!(InstancePause), pausing, DesiredPower::Paused)
        .await;
    // A repeated reboot does not end the pause that came after it.
    lab.granted(hard, pausing, DesiredPower::Paused).await;
    lab.becomes(PowerState::Paused, VmState::Paused).await;
    let off = Some(TaskState::PoweringOff);
    lab.granted(about!(InstanceStop), off, DesiredPower::Stopped)
        .await;
    lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    for refused in [
        lab.cloud.call(about!(InstancePause)).await,
        lab.cloud.call(about!(InstanceSuspend)).await,
        lab.cloud.call(about!(InstanceUnpause)).await,
        lab.cloud.call(about!(InstanceResume)).await,
    ] {
        let refusal = refused.unwrap_err();
        assert!(
            refusal.message.contains("is stopped; start it first"),
            "{refusal}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_instance_keeps_its_memory_until_somebody_says_otherwise() {
    let mut lab = Lab::new().await;
    let suspending = Some(TaskState::Suspending);
    lab.granted(about!(InstanceSuspend), suspending, DesiredPower::Suspended)
        .await;
    let power = lab.becomes(PowerState::Suspended, VmState::Suspended).await;
    assert_eq!(power, DesiredPower::Suspended);
    lab.granted(about!(InstanceSuspend), None, DesiredPower::Suspended)
        .await;
    lab.refused(about!(InstanceStop), "resume it first, or reboot it hard")
        .await;
    lab.refused(about!(InstanceStart), "is suspended; resume it first")
        .await;
    lab.refused(about!(InstancePause), "is suspended; resume it first")
        .await;
    lab.refused(reboot(RebootKind::Soft), "its guest cannot be asked")
        .await;

    let resuming = Some(TaskState::Resuming);
    lab.granted(about!(InstanceResume), resuming, DesiredPower::Running)
        .await;
    lab.becomes(PowerState::Running, VmState::Active).await;
    lab.granted(about!(InstanceResume), None, DesiredPower::Running)
        .await;

    lab.granted(about!(InstanceSuspend), suspending, DesiredPower::Suspended)
        .await;
    lab.becomes(PowerState::Suspended, VmState::Suspended).await;
    lab.granted(reboot(RebootKind::Hard), resuming, DesiredPower::Running)
        .await;
    let power = lab.becomes(PowerState::Running, VmState::Active).await;
    assert_eq!(power, DesiredPower::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_cannot_be_restored_is_lost_by_a_hard_reboot_and_by_nothing_else() {
    let mut lab = Lab::new().await;
    let suspending = Some(TaskState::Suspending);
    lab.granted(about!(InstanceSuspend), suspending, DesiredPower::Suspended)
        .await;
    lab.becomes(PowerState::Suspended, VmState::Suspended).await;
    let resuming = Some(TaskState::Resuming);
    lab.granted(about!(InstanceResume), resuming, DesiredPower::Running)
        .await;
    // Its host cannot restore it; its owner gives up.
    let off = Some(TaskState::PoweringOff);
    lab.granted(about!(InstanceStop), off, DesiredPower::Stopped)
        .await;
    lab.refused(reboot(RebootKind::Soft), "is stopped; start it instead")
        .await;
    lab.granted(reboot(RebootKind::Hard), resuming, DesiredPower::Running)
        .await;
    lab.becomes(PowerState::Running, VmState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_guest_switched_off_has_nothing_to_pause_or_keep() {
    let mut lab = Lab::new().await;
    let generation = lab.show().await.generation;
    lab.host
        .report(
            key(lab.id),
            generation,
            ConvergeStatus::Converged,
            PowerState::Shutdown,
        )
        .await;
    lab.cloud
        .wait_for_instance(lab.id, "stopped", |view| view.vm_state == VmState::Stopped)
        .await;
    lab.refused(about!(InstancePause), "is powered off; start it first")
        .await;
    lab.refused(about!(InstanceSuspend), "is powered off; start it first")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_instance_gets_another_size_where_its_host_has_room() {
    let mut lab = Lab::new().await;
    let resize = |vcpus: u64, memory_mb: u64, disk_gb: u64| -> InstanceResize {
        serde_json::from_value(json!({
            "instance": "web-1",
            "flavor": { "vcpus": vcpus, "memory_mb": memory_mb, "disk_gb": disk_gb },
        }))
        .unwrap()
    };
    lab.refused(resize(1, 256, 1), "shall be running; stop it first")
        .await;
    // The size it has already is granted.
    lab.granted(resize(1, 512, 1), None, DesiredPower::Running)
        .await;
    let off = Some(TaskState::PoweringOff);
    lab.granted(about!(InstanceStop), off, DesiredPower::Stopped)
        .await;
    lab.becomes(PowerState::Shutdown, VmState::Stopped).await;

    let before = lab.cloud.show_host("hv1").await;
    for (request, code, words) in [
        (
            resize(1, 512, 0),
            RefusalCode::Invalid,
            "a disk never shrinks",
        ),
        (
            resize(0, 512, 2),
            RefusalCode::Invalid,
            "flavor.vcpus must be at least 1",
        ),
        (
            resize(1_000, 512, 1_000_000),
            RefusalCode::NoValidHost,
            "1000 vCPUs wanted, the host has",
        ),
    ] {
        lab.cloud.refused(request, code, words).await;
    }
    assert_eq!(lab.cloud.show_host("hv1").await.used_max, before.used_max);

    let resized = lab.cloud.ok(resize(2, 1024, 3)).await;
    let after = lab.cloud.show_host("hv1").await;
    let grown = after.used_max.saturating_sub(before.used_max);
    assert_eq!(
        (
            grown.vcpus.get(),
            grown.memory_mb.get(),
            grown.disk_gb.get()
        ),
        (1, 512, 2)
    );
    // The same again changes nothing.
    assert_eq!(
        lab.cloud.ok(resize(2, 1024, 3)).await.generation,
        resized.generation
    );
    let document = lab.host.next_about(lab.id).await;
    let Document::Instance(wish) = &document else {
        panic!("{document:?}")
    };
    let spec = wish.spec.as_ref().unwrap();
    assert_eq!(
        (spec.flavor.vcpus.get(), spec.disks[0].size_gb.get()),
        (2, 3)
    );
    lab.host.carry_out(&document, PowerState::Shutdown).await;
    let is_settled = |view: &InstanceView| view.observed_generation == resized.generation;
    lab.cloud
        .wait_for_instance(lab.id, "confirmed", is_settled)
        .await;

    // A scheduler that reads everything anew counts the same.
    lab.cloud.crash_scheduler().await;
    assert_eq!(lab.cloud.show_host("hv1").await.used_max, after.used_max);
    // Smaller in all but its disk, whatever the host has left.
    let smaller = lab.cloud.ok(resize(1, 64, 3)).await;
    assert_eq!(smaller.flavor.memory_mb.get(), 64);
}
