//! Each setter changes its own columns and no others: what is desired and what is observed never mix.

use std::sync::Arc;

use berth_common::{
    document::{
        DesiredPower, ImageFormat, ImageRef, Incarnation, OnCrash, Reboot, RebootKind, Rescue,
    },
    ids::{HostId, InstanceId, Nonce},
    message::{
        heartbeat::ResourceInventory,
        report::{BootDisk, ConvergeStatus, Fault, FaultCode, PowerState, RunningSize},
        view::HostStatus,
    },
    units::{AllocationRatio, DiskGb, Generation, MemoryMb, Vcpus},
};
use berth_store::{
    StoreError,
    hosts::{self, HostOverrides, ReservedOverrides},
    instances::{self, BootSource, Description, InstanceObserved, Placement},
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    each_setter_changes_its_own_columns,
    what_operators_decide_about_a_host_is_theirs,
    setting_the_unknown_is_an_error
);

const FIRST: Placement<'_> = Placement {
    attempt: 1,
    failed_hosts: &[],
    fault: None,
};

async fn each_setter_changes_its_own_columns(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut expected = sample::add_instance(db, "web").await;
    sample::add_instance(db, "neighbour").await;
    let id = expected.id;

    instances::set_desired_power(db, id, DesiredPower::Stopped, time(1))
        .await
        .unwrap();
    expected.desired_power = DesiredPower::Stopped;
    expected.updated_at = time(1);
    assert_eq!(
        instances::get(db, id).await.unwrap().as_ref(),
        Some(&expected)
    );

    expected.desired_reboot = Some(Reboot {
        nonce: Nonce::new(),
        kind: RebootKind::Soft,
    });
    instances::set_desired_reboot(db, id, expected.desired_reboot, time(2))
        .await
        .unwrap();
    expected.updated_at = time(2);
    assert_eq!(
        instances::get(db, id).await.unwrap().as_ref(),
        Some(&expected)
    );

    expected.desired_rescue = Some(Rescue {
        nonce: Nonce::new(),
        image: sample::image(),
        size_gb: None,
    });
    instances::set_desired_rescue(db, id, expected.desired_rescue.as_ref(), time(3))
        .await
        .unwrap();
    let incarnation = Incarnation {
        number: u32::MAX,
        nonce: Nonce::new(),
    };
    expected.desired_incarnation = Some(incarnation);
    let image = ImageRef {
        url: "file:///srv/another.raw".parse().unwrap(),
        sha256: "cd".repeat(32).parse().unwrap(),
        format: ImageFormat::Raw,
    };
    expected.boot_source = BootSource::Image(image.clone());
    instances::set_root_disk(db, id, incarnation, &image, time(3))
        .await
        .unwrap();
    expected.updated_at = time(3);
    assert_eq!(
        instances::get(db, id).await.unwrap().as_ref(),
        Some(&expected)
    );
    instances::set_desired_rescue(db, id, None, time(3))
        .await
        .unwrap();
    expected.desired_rescue = None;

    expected.name = "web-two".parse().unwrap();
    expected.metadata = [("team".parse().unwrap(), "shop".parse().unwrap())].into();
    expected.on_crash = OnCrash::Stop;
    let description = |name| Description {
        name,
        metadata: &expected.metadata,
        on_crash: expected.on_crash,
    };
    instances::set_description(db, id, &description(&expected.name), time(3))
        .await
        .unwrap();
    assert_eq!(
        instances::get(db, id).await.unwrap().as_ref(),
        Some(&expected)
    );
    let found = instances::find_by_name(db, &expected.project, &expected.name).await;
    assert_eq!(found.unwrap().as_ref(), Some(&expected));
    let taken = "neighbour".parse().unwrap();
    let refused = instances::set_description(db, id, &description(&taken), time(3)).await;
    assert!(
        matches!(&refused, Err(StoreError::Unique { .. })),
        "{refused:?}"
    );

    let failed = [HostId::new(), HostId::new()];
    let fault = Fault {
        code: FaultCode::Hypervisor,
        message: "2 hosts failed".to_owned(),
    };
    let placement = Placement {
        attempt: 3,
        failed_hosts: &failed,
        fault: Some(&fault),
    };
    instances::set_placement(db, id, &placement, time(4))
        .await
        .unwrap();
    expected.attempt = 3;
    expected.failed_hosts = failed.to_vec();
    expected.placement_fault = Some(fault.clone());
    expected.updated_at = time(4);
    assert_eq!(
        instances::get(db, id).await.unwrap().as_ref(),
        Some(&expected)
    );

    expected.observed = InstanceObserved {
        status: Some(ConvergeStatus::Converging),
        generation: Generation(4),
        power_state: PowerState::Running,
        reboot_nonce: Some(Nonce::new()),
        boot_disk: Some(BootDisk::Rescue(Nonce::new())),
        running: Some(RunningSize {
            vcpus: Vcpus::clamped(2),
            vcpus_max: Vcpus::clamped(8),
            memory_mb: MemoryMb::clamped(1024),
            memory_mb_max: MemoryMb::clamped(4096),
            memory_step_mb: MemoryMb::clamped(128),
        }),
        progress: Some("downloading the image, 40 %".to_owned()),
        fault: Some(Fault {
            code: FaultCode::Hypervisor,
            message: "no".to_owned(),
        }),
        was_active: true,
        at: Some(time(4)),
    };
    instances::set_observed(db, id, &expected.observed, time(5))
        .await
        .unwrap();
    expected.updated_at = time(5);
    assert_eq!(
        instances::get(db, id).await.unwrap().as_ref(),
        Some(&expected)
    );

    instances::set_desired_deleted(db, id, time(6))
        .await
        .unwrap();
    instances::set_placement(db, id, &FIRST, time(6))
        .await
        .unwrap();
    expected.attempt = 1;
    expected.failed_hosts = vec![];
    instances::set_desired_reboot(db, id, None, time(6))
        .await
        .unwrap();
    instances::set_observed(db, id, &InstanceObserved::default(), time(6))
        .await
        .unwrap();
    expected.desired_deleted = true;
    expected.placement_fault = None;
    expected.desired_reboot = None;
    expected.observed = InstanceObserved::default();
    expected.updated_at = time(6);
    assert_eq!(
        instances::get(db, id).await.unwrap().as_ref(),
        Some(&expected)
    );

    let mut neighbour = instances::list(db, None, None, 9).await.unwrap();
    neighbour.retain(|row| row.id != id);
    assert_eq!(
        (neighbour[0].updated_at, neighbour[0].desired_power),
        (time(0), DesiredPower::Running)
    );
}

async fn setting_the_unknown_is_an_error(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let id = InstanceId::new();
    let results = [
        instances::set_desired_power(db, id, DesiredPower::Running, time(1)).await,
        instances::set_desired_reboot(db, id, None, time(1)).await,
        instances::set_desired_deleted(db, id, time(1)).await,
        instances::set_observed(db, id, &InstanceObserved::default(), time(1)).await,
        instances::set_placement(db, id, &FIRST, time(1)).await,
        hosts::set_overrides(
            db,
            HostId::try_from(id.as_uuid()).unwrap(),
            &HostOverrides::default(),
        )
        .await,
    ];
    for result in results {
        assert!(
            matches!(&result, Err(StoreError::NotFound { id: named, .. }) if *named == id.to_string()),
            "{result:?}"
        );
    }
}

async fn what_operators_decide_about_a_host_is_theirs(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut heartbeat = sample::heartbeat("hv1");
    let mut expected = hosts::upsert_heartbeat(db, &heartbeat, time(0))
        .await
        .unwrap();
    assert_eq!(expected.overrides(), HostOverrides::default());
    let neighbour = hosts::upsert_heartbeat(db, &sample::heartbeat("hv2"), time(0))
        .await
        .unwrap();
    for (sequence, status) in (2..).zip([
        HostStatus::Draining,
        HostStatus::Disabled,
        HostStatus::Enabled,
    ]) {
        let largest = sequence == 2;
        let overrides = HostOverrides {
            cpu_ratio: Some(AllocationRatio::DEFAULT_CPU),
            ram_ratio: largest.then_some(AllocationRatio::ONE),
            disk_ratio: None,
            reserved: ReservedOverrides {
                vcpus: Some(if largest { Vcpus::MAX } else { Vcpus::ZERO }),
                memory_mb: largest.then_some(MemoryMb::MAX),
                disk_gb: largest.then_some(DiskGb::MAX),
            },
        };
        hosts::set_overrides(db, expected.id, &overrides)
            .await
            .unwrap();
        hosts::set_status(db, expected.id, status, Some("new disk"))
            .await
            .unwrap();
        expected.cpu_ratio = overrides.cpu_ratio;
        expected.ram_ratio = overrides.ram_ratio;
        expected.disk_ratio = overrides.disk_ratio;
        expected.reserved = overrides.reserved;
        expected.status = status;
        expected.disabled_reason = Some("new disk".to_owned());
        let read = hosts::get(db, expected.id).await.unwrap().unwrap();
        assert_eq!((&read, read.overrides()), (&expected, overrides));

        // What the host says of itself is apart from that.
        heartbeat.sequence = sequence;
        heartbeat.physical_networks = vec!["physnet1".parse().unwrap(), "z".parse().unwrap()];
        heartbeat.resources = vec![ResourceInventory {
            class: "HUGEPAGES_2048K".parse().unwrap(),
            total: u64::MAX,
        }];
        let at = i64::try_from(sequence).unwrap();
        expected = hosts::upsert_heartbeat(db, &heartbeat, time(at))
            .await
            .unwrap();
        assert_eq!(
            (&expected.physical_networks, &expected.resources),
            (&heartbeat.physical_networks, &heartbeat.resources)
        );
        assert_eq!((expected.overrides(), expected.status), (overrides, status));
        assert_eq!(
            hosts::get(db, expected.id).await.unwrap().as_ref(),
            Some(&expected)
        );
    }
    hosts::set_overrides(db, expected.id, &HostOverrides::default())
        .await
        .unwrap();
    let read = hosts::get(db, expected.id).await.unwrap().unwrap();
    assert_eq!(read.overrides(), HostOverrides::default());
    let untouched = hosts::get(db, neighbour.id).await.unwrap();
    assert_eq!(untouched, Some(neighbour));

    let unreadable = HostOverrides {
        reserved: ReservedOverrides {
            vcpus: Some(Vcpus::MAX.saturating_add(Vcpus::MAX)),
            ..ReservedOverrides::default()
        },
        ..HostOverrides::default()
    };
    let refused = hosts::set_overrides(db, expected.id, &unreadable).await;
    assert!(
        matches!(refused, Err(StoreError::Unstorable { .. })),
        "{refused:?}"
    );
}
