//! What commands on volumes ask for, in which order, and what they make of the answers.

use berth_common::{
    document::VolumeFormat,
    message::{
        report::{Fault, FaultCode},
        view::VolumeStatus,
    },
};

use super::*;
use crate::{
    cli::{Command, Volume},
    commands::instance::tests::patient,
    testing::{self, Play, instance, volume as data},
};

fn with(status: VolumeStatus) -> VolumeView {
    VolumeView { status, ..data() }
}

fn meant(goal: VolumeGoal) -> Change {
    Change {
        name: "data".to_owned(),
        project: ProjectName::default(),
        goal,
    }
}

fn asked_for(line: &str) -> VolumeCreate {
    let Command::Volume(Volume::Create(arguments)) = testing::parsed(line).command else {
        panic!("{line}");
    };
    request(arguments, ProjectName::default())
}

#[test]
fn a_command_line_says_all_of_a_volume() {
    let plain = asked_for("volume create data --size 5");
    assert_eq!(
        (plain.size_gb.get(), plain.format, plain.source, plain.host),
        (5, None, None, None)
    );
    assert!(plain.limits.is_unlimited());
    let copy = asked_for("volume create data --size 5 --from golden --format raw --host hv1");
    assert_eq!(
        copy.source,
        Some(VolumeCreateSource::Volume("golden".to_owned()))
    );
    assert_eq!(
        (copy.format, copy.host.as_deref()),
        (Some(VolumeFormat::Raw), Some("hv1"))
    );
    let kept = asked_for("volume create data --size 5 --snapshot monday");
    assert_eq!(
        kept.source,
        Some(VolumeCreateSource::Snapshot("monday".to_owned()))
    );
    let sha256 = "ab".repeat(32);
    let image = asked_for(&format!(
        "volume create data --size 5 --image-url file:///x --image-sha256 {sha256} --image-format raw --iops 100 \
         --bytes-per-second 1000000"
    ));
    let Some(VolumeCreateSource::Image(from)) = image.source else {
        panic!("{:?}", image.source)
    };
    assert_eq!(
        (from.url.as_str(), from.format.as_str()),
        ("file:///x", "raw")
    );
    assert_eq!(
        (image.limits.total_iops, image.limits.total_bytes_per_second),
        (Some(100), Some(1_000_000))
    );
}

#[test]
fn a_volume_can_be_made_from_every_format_that_images_may_have() {
    let sha256 = "ab".repeat(32);
    for format in ["qcow2", "raw", "vmdk", "vdi", "vhdx"] {
        let asked = asked_for(&format!(
            "volume create data --size 5 --image-url file:///x --image-sha256 {sha256} --image-format {format}"
        ));
        let Some(VolumeCreateSource::Image(from)) = asked.source else {
            panic!("{format}: {:?}", asked.source)
        };
        assert_eq!(from.format.as_str(), format);
    }
}

#[tokio::test]
async fn silence_on_a_creation_is_told_with_the_id_to_repeat_it_with() {
    let request = asked_for("volume create data --size 5");
    let context = testing::context(None, [Play::Silence]);
    let error = created(&mut Asking::with(&context, None), &request).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains(&format!("with --id {}", request.id)),
        "{error}"
    );
}

#[tokio::test]
async fn an_attachment_is_asked_for_and_waited_for_by_ids() {
    let free = VolumeView {
        attachment: None,
        ..with(VolumeStatus::Available)
    };
    let context = testing::context(
        None,
        [
            Play::view(&instance()),
            Play::view(&free),
            Play::Silence,
            Play::view(&with(VolumeStatus::Attaching)),
            Play::view(&with(VolumeStatus::InUse)),
        ],
    );
    let mut asking = Asking::with(&context, patient());
    let given = Given {
        access: VolumeAccess::ReadOnly,
        disk_bus: DiskBus::Scsi,
    };
    let view = attached(
        &mut asking,
        meant(VolumeGoal::Attached),
        "web-1".to_owned(),
        given,
    )
    .await
    .unwrap();
    assert_eq!(view.status, VolumeStatus::InUse);
    let (id, with) = (data().id, instance().id);
    assert_eq!(
        *context.caller.asked.borrow(),
        [
            "instance.show web-1".to_owned(),
            "volume.show data".to_owned(),
            format!("volume.attach {id} of {with} on scsi"),
            format!("volume.attach {id} of {with} on scsi"),
            format!("volume.show {id}"),
        ]
    );
}

#[tokio::test]
async fn a_volume_that_fails_ends_the_wait_with_its_fault() {
    let fault = Fault {
        code: FaultCode::DiskFull,
        message: "no space left".to_owned(),
    };
    let broken = VolumeView {
        fault: Some(fault),
        ..with(VolumeStatus::Error)
    };
    let context = testing::context(
        None,
        [
            Play::view(&data()),
            Play::view(&with(VolumeStatus::Extending)),
            Play::view(&broken),
        ],
    );
    let extended = changed(
        &mut Asking::with(&context, patient()),
        meant(VolumeGoal::Extended),
        |volume, project| VolumeExtend {
            volume,
            project,
            size_gb: data().size_gb,
        },
    )
    .await;
    let error = extended.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(
        error.to_string(),
        format!(
            "volume data ({}) is in error (disk_full): no space left",
            data().id
        )
    );
    assert!(error.json().contains("volume_in_error"), "{}", error.json());
}

#[tokio::test]
async fn a_deletion_that_was_carried_out_unheard_is_a_success() {
    let script = [Play::view(&data()), Play::Refuse(RefusalCode::NotFound)];
    let context = testing::context(None, script);
    let gone = changed(
        &mut Asking::with(&context, None),
        meant(VolumeGoal::Deleted),
        |volume, project| VolumeDelete { volume, project },
    )
    .await
    .unwrap();
    assert_eq!(gone.status, VolumeStatus::Deleted);
}

#[tokio::test]
async fn a_detachment_names_the_instance_that_had_the_volume() {
    let free = VolumeView {
        attachment: None,
        ..with(VolumeStatus::Available)
    };
    let script = [
        Play::view(&data()),
        Play::Silence,
        Play::view(&with(VolumeStatus::Detaching)),
        Play::view(&free),
    ];
    let context = testing::context(None, script);
    let mut asking = Asking::with(&context, patient());
    let view = detached(&mut asking, meant(VolumeGoal::Detached)).await;
    assert_eq!(view.unwrap(), free);
    let (id, web) = (data().id, instance().id);
    assert_eq!(
        *context.caller.asked.borrow(),
        [
            "volume.show data".to_owned(),
            format!("volume.detach {id} of {web}"),
            format!("volume.detach {id} of {web}"),
            format!("volume.show {id}"),
        ]
    );

    // Of nothing it need not be detached, and by the time it was asked for somebody may have it.
    let context = testing::context(None, [Play::view(&free)]);
    let mut asking = Asking::with(&context, None);
    let view = detached(&mut asking, meant(VolumeGoal::Detached)).await;
    assert_eq!(view.unwrap(), free);
}
