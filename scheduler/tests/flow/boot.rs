//! What instances boot from: which rescues and rebuilds are granted, what the host is told, and what the instance looks like
//! meanwhile.

use berth_common::{
    document::{DesiredPower, Document, ImageFormat, ImageRef, InstanceSpec, OnCrash},
    ids::{InstanceId, Nonce},
    message::{
        report::{ConvergeStatus, FaultCode, PowerState},
        request::{
            InstancePause, InstanceRebuild, InstanceRescue, InstanceResize, InstanceSet,
            InstanceShow, InstanceStart, InstanceStop, InstanceSuspend, InstanceUnpause,
            InstanceUnrescue, Method, VolumeAttach,
        },
        view::{InstanceView, PendingSize, SizePart, TakesEffect, TaskState, VmState},
    },
    refusal::RefusalCode,
    units::Generation,
};
use serde_json::json;

use crate::{
    ask::{instance, volume},
    cloud::Cloud,
    host::{Host, key, resource, running_with},
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
    image: ImageRef,
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
            image: request.image.unwrap(),
        };
        lab.becomes(PowerState::Running, VmState::Active).await;
        lab
    }

    async fn refused<M: Method>(&self, request: M, words: &str) {
        self.cloud
            .refused(request, RefusalCode::Conflict, words)
            .await;
    }

    async fn granted<M: Method<Reply = InstanceView>>(
        &self,
        request: M,
        task: Option<TaskState>,
    ) -> InstanceView {
        let view = self.cloud.ok(request).await;
        assert_eq!(view.task_state, task, "{view:?}");
        view
    }

    /// What the host was told last; older documents may come again.
    async fn newest(&mut self) -> (Document, Generation) {
        let wanted = self.cloud.show(self.id).await.generation;
        loop {
            let document = self.host.next_about(self.id).await;
            if document.generation() >= wanted {
                return (document, wanted);
            }
        }
    }

    /// The host carries out what it was told last, and says so.
    async fn becomes(&mut self, power: PowerState, state: VmState) -> InstanceSpec {
        let (document, wanted) = self.newest().await;
        self.host.carry_out(&document, power).await;
        let settled = |view: &InstanceView| {
            view.vm_state == state
                && view.task_state.is_none()
                && view.observed_generation >= wanted
        };
        self.cloud
            .wait_for_instance(self.id, state.as_str(), settled)
            .await;
        let Document::Instance(document) = document else {
            panic!("{document:?}")
        };
        document.spec.unwrap()
    }

    async fn show(&self) -> InstanceView {
        self.cloud.ok(about!(InstanceShow)).await
    }
}

fn other_image() -> ImageRef {
    ImageRef {
        url: "file:///srv/other.qcow2".parse().unwrap(),
        sha256: "cd".repeat(32).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

fn rescue(image: Option<ImageRef>) -> InstanceRescue {
    InstanceRescue {
        instance: "web-1".to_owned(),
        project: Default::default(),
        image,
        nonce: Nonce::new(),
    }
}

fn rebuild() -> InstanceRebuild {
    InstanceRebuild {
        instance: "web-1".to_owned(),
        project: Default::default(),
        image: other_image(),
        nonce: Nonce::new(),
    }
}

fn resize(vcpus: u64, disk_gb: u64) -> InstanceResize {
    serde_json::from_value(json!({
        "instance": "web-1",
        "flavor": { "vcpus": vcpus, "memory_mb": 512, "disk_gb": disk_gb },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_rescued_until_it_is_unrescued() {
    let mut lab = Lab::new().await;
    let wish = rescue(Some(other_image()));
    let view = lab.granted(wish.clone(), Some(TaskState::Rescuing)).await;
    assert!(view.rescued);
    let spec = lab.becomes(PowerState::Running, VmState::Active).await;
    let told = spec.rescue.unwrap();
    assert_eq!((told.nonce, told.image), (wish.nonce, other_image()));
    assert_eq!(spec.disks[0].incarnation, None);

    // The same wish again is granted, another one is not.
    let generation = lab.show().await.generation;
    lab.granted(wish, None).await;
    lab.refused(rescue(None), "is rescued; unrescue it first")
        .await;
    lab.refused(rebuild(), "is rescued; unrescue it first")
        .await;
    lab.refused(about!(InstancePause), "is rescued; unrescue it first")
        .await;
    lab.refused(about!(InstanceSuspend), "is rescued; unrescue it first")
        .await;
    lab.refused(resize(1, 9), "is rescued; unrescue it first")
        .await;
    let volume = volume("data", 1, json!({}));
    lab.cloud.ok(volume).await;
    let attach: VolumeAttach =
        serde_json::from_value(json!({ "volume": "data", "instance": "web-1" })).unwrap();
    lab.refused(attach, "is rescued; unrescue it first").await;
    assert_eq!(lab.show().await.generation, generation);

    // It is stopped and started, and stays rescued.
    lab.granted(about!(InstanceStop), Some(TaskState::PoweringOff))
        .await;
    let spec = lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    assert!(spec.rescue.is_some());
    lab.granted(about!(InstanceStart), Some(TaskState::PoweringOn))
        .await;
    let spec = lab.becomes(PowerState::Running, VmState::Active).await;
    assert!(spec.rescue.is_some());

    let view = lab
        .granted(about!(InstanceUnrescue), Some(TaskState::Unrescuing))
        .await;
    assert!(!view.rescued);
    let spec = lab.becomes(PowerState::Running, VmState::Active).await;
    assert_eq!(spec.rescue, None);
    lab.granted(about!(InstanceUnrescue), None).await;

    // One that is off is powered on, from the image it was made from unless another is named.
    lab.granted(about!(InstanceStop), Some(TaskState::PoweringOff))
        .await;
    lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    let view = lab.granted(rescue(None), Some(TaskState::Rescuing)).await;
    assert_eq!(view.desired_power, DesiredPower::Running);
    let spec = lab.becomes(PowerState::Running, VmState::Active).await;
    assert_eq!(spec.rescue.unwrap().image, lab.image);
    // Stopped before it is unrescued, it stays off.
    lab.granted(about!(InstanceStop), Some(TaskState::PoweringOff))
        .await;
    lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    lab.granted(about!(InstanceUnrescue), Some(TaskState::Unrescuing))
        .await;
    let spec = lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    assert_eq!(spec.power, DesiredPower::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_disk_is_made_anew_once_for_each_wish() {
    let mut lab = Lab::new().await;
    let before = lab.show().await;
    let wish = rebuild();
    let view = lab.granted(wish.clone(), Some(TaskState::Rebuilding)).await;
    assert_eq!(
        (view.image, view.host, view.ports),
        (Some(other_image()), before.host, before.ports)
    );
    let spec = lab.becomes(PowerState::Running, VmState::Active).await;
    let told = spec.disks[0].incarnation.unwrap();
    assert_eq!(told.nonce, wish.nonce);

    let generation = lab.show().await.generation;
    lab.granted(wish.clone(), None).await;
    assert_eq!(lab.show().await.generation, generation);
    // A scheduler that reads everything anew still knows the wish.
    lab.cloud.crash_scheduler().await;
    lab.granted(wish, None).await;
    assert_eq!(lab.show().await.generation, generation);

    lab.granted(about!(InstancePause), Some(TaskState::Pausing))
        .await;
    lab.refused(rebuild(), "is paused; unpause it first").await;
    lab.refused(rescue(None), "is paused; unpause it first")
        .await;
    lab.granted(about!(InstanceUnpause), None).await;
    lab.becomes(PowerState::Running, VmState::Active).await;

    // Off, it stays off.
    lab.granted(about!(InstanceStop), Some(TaskState::PoweringOff))
        .await;
    lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    lab.granted(rebuild(), Some(TaskState::Rebuilding)).await;
    let spec = lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    assert!(spec.disks[0].incarnation.unwrap().number > told.number);
    assert_eq!(spec.power, DesiredPower::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_failed_can_be_asked_for_with_another_image() {
    let mut lab = Lab::new().await;
    lab.granted(rebuild(), Some(TaskState::Rebuilding)).await;
    let (document, _) = lab.newest().await;
    let Document::Instance(first) = &document else {
        panic!("{document:?}")
    };
    let first = first.spec.as_ref().unwrap().disks[0].incarnation.unwrap();
    lab.host
        .fail(&document, FaultCode::ImageChecksum, "not what it should be")
        .await;
    let view = lab
        .cloud
        .wait_for_instance(lab.id, "in error", |view| view.vm_state == VmState::Error)
        .await;
    assert!(
        view.fault
            .unwrap()
            .message
            .contains("not what it should be")
    );
    let better = InstanceRebuild {
        image: lab.image.clone(),
        ..rebuild()
    };
    lab.granted(better, Some(TaskState::Rebuilding)).await;
    let spec = lab.becomes(PowerState::Running, VmState::Active).await;
    assert!(spec.disks[0].incarnation.unwrap().number > first.number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_of_a_running_instance_grows() {
    let mut lab = Lab::new().await;
    let before = lab.cloud.show_host("hv1").await.used_max;
    let view = lab.granted(resize(1, 3), None).await;
    assert_eq!(view.flavor.disk_gb.get(), 3);
    let after = lab.cloud.show_host("hv1").await.used_max;
    assert_eq!(after.saturating_sub(before).disk_gb.get(), 2);
    let spec = lab.becomes(PowerState::Running, VmState::Active).await;
    assert_eq!(spec.disks[0].size_gb.get(), 3);
    lab.granted(about!(InstanceSuspend), Some(TaskState::Suspending))
        .await;
    lab.refused(resize(1, 4), "its memory knows the size it has")
        .await;
}

fn sized(vcpus: u64, memory_mb: u64) -> InstanceResize {
    serde_json::from_value(json!({
        "instance": "web-1",
        "flavor": { "vcpus": vcpus, "memory_mb": memory_mb, "disk_gb": 1 },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_instance_gets_more_and_hears_what_waits_for_its_next_start() {
    let mut lab = Lab::new().await;
    let running = lab.show().await.running.unwrap();
    assert_eq!((running.vcpus.get(), running.vcpus_max.get()), (1, 2));
    let before = lab.cloud.show_host("hv1").await.used_max;
    let pending = |part, running, wanted, takes_effect| PendingSize {
        part,
        running,
        wanted,
        takes_effect,
    };

    // It has room for both: the answer says so, and the host says when it has them.
    let view = lab.granted(sized(2, 1024), None).await;
    assert_eq!(
        view.pending,
        [
            pending(SizePart::Vcpus, 1, 2, TakesEffect::Live),
            pending(SizePart::MemoryMb, 512, 1024, TakesEffect::Live),
        ]
    );
    let after = lab.cloud.show_host("hv1").await.used_max;
    let grown = after.saturating_sub(before);
    assert_eq!((grown.vcpus.get(), grown.memory_mb.get()), (1, 512));
    let spec = lab.becomes(PowerState::Running, VmState::Active).await;
    assert_eq!(spec.flavor, view.flavor);
    let view = lab.show().await;
    assert_eq!(
        (view.pending, view.running.unwrap().vcpus.get()),
        (vec![], 2)
    );

    // There is no room for so many, and none for an odd amount of memory: what is wanted is claimed, and waits.
    let view = lab.granted(sized(3, 1100), None).await;
    let waiting = [
        pending(SizePart::Vcpus, 2, 3, TakesEffect::NextStart),
        pending(SizePart::MemoryMb, 1024, 1100, TakesEffect::NextStart),
    ];
    assert_eq!(view.pending, waiting);
    let after = lab.cloud.show_host("hv1").await.used_max;
    let grown = after.saturating_sub(before);
    assert_eq!((grown.vcpus.get(), grown.memory_mb.get()), (2, 588));
    let (document, _) = lab.newest().await;
    lab.host
        .carry_out_with(&document, PowerState::Running, running_with(2, 1024))
        .await;
    let generation = document.generation();
    let confirmed = |view: &InstanceView| view.observed_generation >= generation;
    let view = lab
        .cloud
        .wait_for_instance(lab.id, "confirmed", confirmed)
        .await;
    assert_eq!((view.pending, view.task_state), (waiting.to_vec(), None));
    // Nothing is pending of one that will be off.
    let view = lab
        .granted(about!(InstanceStop), Some(TaskState::PoweringOff))
        .await;
    assert_eq!(view.pending, []);
    lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    assert_eq!(lab.show().await.running, None);
    lab.granted(about!(InstanceStart), Some(TaskState::PoweringOn))
        .await;
    lab.becomes(PowerState::Running, VmState::Active).await;
    let view = lab.show().await;
    assert_eq!(
        (view.pending, view.running.unwrap().vcpus.get()),
        (vec![], 3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_instance_never_gets_less_or_more_than_its_host_has() {
    let mut lab = Lab::new().await;
    let before = lab.cloud.show_host("hv1").await.used_max;
    let less = "while it is on it gets more, never less";
    lab.refused(sized(1, 256), less).await;
    lab.granted(sized(2, 512), None).await;
    lab.refused(sized(1, 1024), less).await;
    let claimed = lab.cloud.show_host("hv1").await.used_max;
    assert_eq!(claimed.saturating_sub(before).vcpus.get(), 1);
    let words = "1000 vCPUs wanted, the host has";
    lab.cloud
        .refused(sized(1000, 512), RefusalCode::NoValidHost, words)
        .await;
    assert_eq!(lab.cloud.show_host("hv1").await.used_max, claimed);

    // A host that does not tell what its guest has (an older agent) cannot be told of a live resize either.
    let (document, _) = lab.newest().await;
    let silent = resource(
        document.key(),
        document.generation(),
        ConvergeStatus::Converged,
        PowerState::Running,
    );
    lab.host.say(silent).await;
    lab.cloud
        .wait_for_instance(lab.id, "untold", |view| view.running.is_none())
        .await;
    lab.refused(sized(3, 512), "has not said yet what its guest has")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_still_switches_off_gets_no_less_than_its_guest_has() {
    let mut lab = Lab::new().await;
    let off = Some(TaskState::PoweringOff);
    lab.granted(about!(InstanceStop), off).await;
    let words = "is still switching off, and its guest has 1 vCPU and 512 MB of memory";
    lab.refused(sized(1, 256), words).await;
    // More takes nothing from it, nor does a larger disk.
    lab.granted(sized(2, 1024), off).await;
    lab.refused(sized(1, 256), words).await;
    lab.granted(sized(1, 512), off).await;
    lab.becomes(PowerState::Shutdown, VmState::Stopped).await;
    let view = lab.granted(sized(1, 256), None).await;
    assert_eq!(view.flavor.memory_mb.get(), 256);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_has_not_looked_at_yet_is_as_it_was_said_last() {
    let mut lab = Lab::new().await;
    lab.granted(rescue(None), Some(TaskState::Rescuing)).await;
    lab.becomes(PowerState::Running, VmState::Active).await;
    let before = lab.show().await;
    assert!(before.running.is_some());

    // The agent was started anew, and has not asked libvirt yet.
    let mut unseen = resource(
        key(lab.id),
        before.generation,
        ConvergeStatus::Converging,
        PowerState::Nostate,
    );
    unseen.power_state = None;
    unseen.progress = Some("looking".to_owned());
    lab.host.say(unseen).await;
    let told = |view: &InstanceView| view.progress.is_some();
    let view = lab.cloud.wait_for_instance(lab.id, "told", told).await;
    assert_eq!(view.power_state, PowerState::Running);
    assert_eq!(view.running, before.running);
    // It still boots from its rescue disk, so nothing is being done to it.
    assert_eq!(view.task_state, None);

    // One that has looked is believed, also that there is nothing.
    lab.host
        .report(
            key(lab.id),
            before.generation,
            ConvergeStatus::Converging,
            PowerState::Shutdown,
        )
        .await;
    let off = |view: &InstanceView| view.power_state == PowerState::Shutdown;
    let view = lab.cloud.wait_for_instance(lab.id, "off", off).await;
    assert_eq!(
        (view.running, view.task_state),
        (None, Some(TaskState::Rescuing))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_called_and_described_differently_while_it_runs() {
    let mut lab = Lab::new().await;
    let set = |instance: &str, change: serde_json::Value| -> InstanceSet {
        let mut request = change;
        request["instance"] = json!(instance);
        serde_json::from_value(request).unwrap()
    };
    let other = instance("web-9", 512, json!([]));
    lab.cloud.call(other).await.unwrap();
    lab.refused(
        set("web-1", json!({ "name": "web-9" })),
        "has an instance web-9 already",
    )
    .await;
    let change = json!({ "name": "web-2", "metadata": { "team": "shop" }, "on_crash": "stop" });
    let view = lab.cloud.ok(set("web-1", change)).await;
    assert_eq!((view.name.as_str(), view.id), ("web-2", lab.id));
    let (document, _) = lab.newest().await;
    let Document::Instance(wish) = &document else {
        panic!("{document:?}")
    };
    let spec = wish.spec.as_ref().unwrap();
    assert_eq!(
        (spec.name.as_str(), spec.on_crash, spec.power),
        ("web-2", OnCrash::Stop, DesiredPower::Running)
    );
    lab.host.carry_out(&document, PowerState::Running).await;

    // The old name is free, and the same again changes nothing.
    let id = lab.id.to_string();
    let again = lab.cloud.ok(set(&id, json!({ "name": "web-2" }))).await;
    assert_eq!(again.generation, view.generation);
    let shown: Vec<_> = again.metadata.into_iter().collect();
    assert_eq!(shown, [("team".parse().unwrap(), "shop".parse().unwrap())]);
    lab.cloud
        .call(instance("web-1", 512, json!([])))
        .await
        .unwrap();
    let unset = json!({ "metadata": { "team": null } });
    let view = lab.cloud.ok(set("web-2", unset)).await;
    assert!(view.metadata.is_empty());
    let many: serde_json::Map<_, _> = (0..129).map(|n| (format!("k{n}"), json!("x"))).collect();
    lab.cloud
        .refused(
            set("web-2", json!({ "metadata": many })),
            RefusalCode::Invalid,
            "metadata must be at most 128",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_crashed_and_stays_off_is_in_error_until_it_is_started() {
    let mut lab = Lab::new().await;
    let stop: InstanceSet =
        serde_json::from_value(json!({ "instance": "web-1", "on_crash": "stop" })).unwrap();
    lab.cloud.ok(stop).await;
    lab.becomes(PowerState::Running, VmState::Active).await;
    let generation = lab.show().await.generation;
    lab.host
        .report(
            key(lab.id),
            generation,
            ConvergeStatus::Converged,
            PowerState::Crashed,
        )
        .await;
    let view = lab
        .cloud
        .wait_for_instance(lab.id, "in error", |view| view.vm_state == VmState::Error)
        .await;
    let fault = view.fault.unwrap();
    assert!(fault.message.contains("crashed, and its on_crash is stop"));
    lab.granted(about!(InstanceStart), Some(TaskState::PoweringOn))
        .await;
    lab.becomes(PowerState::Running, VmState::Active).await;
}
