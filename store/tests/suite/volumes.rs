//! Volumes, and which instances have them.

use std::sync::Arc;

use berth_common::{
    document::{
        DiskBus, ImageFormat, ImageRef, VolumeAccess, VolumeFormat, VolumeLimits, VolumeRef,
        VolumeSource,
    },
    ids::{HostId, VolumeId},
    message::report::{ConvergeStatus, Fault, FaultCode},
    units::{DiskGb, Generation},
};
use berth_store::{
    StoreError, UniqueWhat,
    attachments::{self, AttachmentState},
    hosts, instances,
    volumes::{self, VolumeClaim, VolumeObserved, VolumeRow},
    whole_millis,
};
use chrono::{DateTime, Utc};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    volumes_are_read_back_at_their_extremes,
    names_of_volumes_are_unique_among_the_living_of_a_project,
    each_setter_changes_its_own_columns_of_a_volume,
    setting_an_unknown_volume_is_an_error,
    volumes_come_page_by_page_in_order_of_creation,
    what_volumes_take_is_the_sum_of_the_living_with_a_host,
    a_volume_has_one_instance_at_most,
    attachments_are_read_back_and_go_with_either_end,
    a_host_with_a_volume_cannot_be_deleted,
    copies_under_way_are_found_by_their_source,
    corrupt_volumes_are_named,
);

fn image() -> ImageRef {
    ImageRef {
        url: "file:///images/guest.qcow2".parse().unwrap(),
        sha256: "ab".repeat(32).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

#[track_caller]
fn taken(result: Result<(), StoreError>, what: &UniqueWhat) {
    assert!(
        matches!(&result, Err(StoreError::Unique { constraint, .. }) if constraint == what),
        "{result:?}"
    );
}

async fn volumes_are_read_back_at_their_extremes(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let mut least = sample::volume("v", None);
    least.size_gb = DiskGb::new(0).unwrap();
    least.created_at = whole_millis(DateTime::<Utc>::MIN_UTC);
    least.fingerprint = String::new();
    let mut most = sample::volume(&"V".repeat(63), Some(host));
    most.project = "p".repeat(63).parse().unwrap();
    most.size_gb = DiskGb::MAX;
    most.format = VolumeFormat::Raw;
    most.source = Some(VolumeSource::Image(image()));
    most.limits = VolumeLimits {
        total_iops: Some(u64::MAX),
        total_bytes_per_second: Some(1),
    };
    most.fingerprint = "é🛳".repeat(20_000);
    most.desired_deleted = true;
    most.observed = VolumeObserved {
        status: Some(ConvergeStatus::Failed),
        generation: Generation(i64::MAX.unsigned_abs()),
        progress: Some("copying, 40 %".to_owned()),
        fault: Some(Fault {
            code: FaultCode::Volume,
            message: "x".repeat(70_000),
        }),
        was_available: true,
        at: Some(whole_millis(DateTime::<Utc>::MAX_UTC)),
    };
    most.deleted_at = Some(whole_millis(DateTime::<Utc>::MAX_UTC));
    let mut copy = sample::volume("copy", Some(host));
    copy.source = Some(VolumeSource::Volume(VolumeRef {
        id: least.id,
        format: VolumeFormat::Raw,
        pool: Default::default(),
    }));
    for volume in [least, most, copy] {
        volumes::insert(db, &volume).await.unwrap();
        let read = volumes::get(db, volume.id).await.unwrap();
        assert_eq!(read, Some(volume));
    }
    assert_eq!(volumes::get(db, VolumeId::new()).await.unwrap(), None);
    let mut unreadable = sample::volume("huge", None);
    unreadable.observed.generation = Generation(u64::MAX);
    let refused = volumes::insert(db, &unreadable).await;
    assert!(
        matches!(refused, Err(StoreError::Unstorable { .. })),
        "{refused:?}"
    );
}

async fn names_of_volumes_are_unique_among_the_living_of_a_project(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let first = sample::volume("data", None);
    volumes::insert(db, &first).await.unwrap();
    let second = sample::volume("data", None);
    taken(volumes::insert(db, &second).await, &UniqueWhat::VolumeName);
    let mut same = sample::volume("other", None);
    same.id = first.id;
    taken(volumes::insert(db, &same).await, &UniqueWhat::Id);
    let mut elsewhere = sample::volume("data", None);
    elsewhere.project = "other".parse().unwrap();
    volumes::insert(db, &elsewhere).await.unwrap();
    let find = async || {
        let found = volumes::find_by_name(db, &first.project, &first.name).await;
        found.unwrap().map(|row| row.id)
    };
    assert_eq!(find().await, Some(first.id));
    // It keeps its name until it is gone.
    volumes::set_desired_deleted(db, first.id, time(1))
        .await
        .unwrap();
    taken(volumes::insert(db, &second).await, &UniqueWhat::VolumeName);
    volumes::mark_deleted(db, first.id, time(2)).await.unwrap();
    volumes::insert(db, &second).await.unwrap();
    assert_eq!(find().await, Some(second.id));
}

async fn each_setter_changes_its_own_columns_of_a_volume(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let neighbour = sample::volume("neighbour", None);
    volumes::insert(db, &neighbour).await.unwrap();
    let mut expected = sample::volume("data", None);
    let id = expected.id;
    volumes::insert(db, &expected).await.unwrap();
    let check = async |expected: &VolumeRow| {
        let read = volumes::get(db, id).await.unwrap();
        assert_eq!(read.as_ref(), Some(expected));
    };
    volumes::set_host(db, id, host, time(1)).await.unwrap();
    expected.host_id = Some(host);
    expected.updated_at = time(1);
    check(&expected).await;

    expected.size_gb = DiskGb::new(77).unwrap();
    expected.updated_at = time(2);
    volumes::set_size(db, id, expected.size_gb, time(2))
        .await
        .unwrap();
    check(&expected).await;

    expected.observed = VolumeObserved {
        status: Some(ConvergeStatus::Converging),
        generation: Generation(4),
        progress: Some("copying, 40 %".to_owned()),
        fault: Some(Fault {
            code: FaultCode::DiskFull,
            message: "no".to_owned(),
        }),
        was_available: true,
        at: Some(time(4)),
    };
    expected.updated_at = time(3);
    volumes::set_observed(db, id, &expected.observed, time(3))
        .await
        .unwrap();
    check(&expected).await;

    volumes::set_desired_deleted(db, id, time(4)).await.unwrap();
    expected.desired_deleted = true;
    expected.updated_at = time(4);
    check(&expected).await;

    volumes::mark_deleted(db, id, time(5)).await.unwrap();
    // The first time is kept.
    volumes::mark_deleted(db, id, time(6)).await.unwrap();
    expected.deleted_at = Some(time(5));
    expected.host_id = None;
    expected.updated_at = time(5);
    check(&expected).await;
    assert_eq!(
        volumes::get(db, neighbour.id).await.unwrap(),
        Some(neighbour)
    );
}

async fn setting_an_unknown_volume_is_an_error(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let id = VolumeId::new();
    let size = DiskGb::new(1).unwrap();
    for result in [
        volumes::set_host(db, id, host, time(1)).await,
        volumes::set_size(db, id, size, time(1)).await,
        volumes::set_desired_deleted(db, id, time(1)).await,
        volumes::set_observed(db, id, &VolumeObserved::default(), time(1)).await,
        volumes::mark_deleted(db, id, time(1)).await,
        attachments::set_state(db, id, AttachmentState::Attached).await,
    ] {
        assert!(
            matches!(&result, Err(StoreError::NotFound { id: named, .. }) if *named == id.to_string()),
            "{result:?}"
        );
    }
    attachments::delete(db, id).await.unwrap();
    let nowhere = sample::volume("data", Some(HostId::new()));
    let refused = volumes::insert(db, &nowhere).await;
    assert!(
        matches!(refused, Err(StoreError::ForeignKey { .. })),
        "{refused:?}"
    );
}

async fn volumes_come_page_by_page_in_order_of_creation(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut rows = vec![];
    for (number, created) in [(0, 5), (1, 1), (2, 5), (3, 1), (4, 3), (5, 5), (6, 2)] {
        let mut row = sample::volume(&format!("v{number}"), None);
        row.created_at = time(created);
        row.project = if number == 4 { "other" } else { "default" }
            .parse()
            .unwrap();
        volumes::insert(db, &row).await.unwrap();
        rows.push(row);
    }
    rows.sort_by_key(|row| (row.created_at, row.id));
    assert_eq!(volumes::list(db, None, None, 100).await.unwrap(), rows);
    let ids: Vec<VolumeId> = rows.iter().rev().map(|row| row.id).collect();
    assert_eq!(volumes::of_ids(db, &ids).await.unwrap(), rows);
    // Paging goes on after a row that was deleted meanwhile.
    volumes::mark_deleted(db, rows[2].id, time(9))
        .await
        .unwrap();
    let mut paged = vec![];
    let mut after = Some(rows[2].id);
    loop {
        let page = volumes::list(db, None, after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        paged.extend(page);
    }
    assert_eq!(paged, rows[3..]);
    let other = "other".parse().unwrap();
    let listed = volumes::list(db, Some(&other), None, 100).await.unwrap();
    assert_eq!(listed.len(), 1);
    let unknown = volumes::list(db, None, Some(VolumeId::new()), 2).await;
    assert!(
        matches!(
            unknown,
            Err(StoreError::NotFound {
                table: "volumes",
                ..
            })
        ),
        "{unknown:?}"
    );
}

async fn what_volumes_take_is_the_sum_of_the_living_with_a_host(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (one, two) = (
        sample::add_host(db, "hv1").await,
        sample::add_host(db, "hv2").await,
    );
    let mut expected = vec![];
    for (number, host) in [Some(one), None, Some(two), Some(one), Some(one)]
        .into_iter()
        .enumerate()
    {
        let row = sample::volume(&format!("v{number}"), host);
        volumes::insert(db, &row).await.unwrap();
        if number == 3 {
            volumes::mark_deleted(db, row.id, time(1)).await.unwrap();
        } else if let Some(host_id) = host {
            expected.push(VolumeClaim {
                volume_id: row.id,
                host_id,
                pool: row.pool,
                size_gb: row.size_gb,
                project: row.project,
            });
        }
    }
    // What shall be gone takes its room until it is.
    volumes::set_desired_deleted(db, expected[0].volume_id, time(1))
        .await
        .unwrap();
    expected.sort_by_key(|claim| claim.volume_id);
    let mut paged = vec![];
    let mut after = None;
    loop {
        let page = volumes::page_of_claims(db, after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.volume_id);
        paged.extend(page);
    }
    assert_eq!(paged, expected);
    let of_both = volumes::claims_of_hosts(db, &[one, two]).await.unwrap();
    assert_eq!(of_both, expected);
    expected.retain(|claim| claim.host_id == two);
    let of_two = volumes::claims_of_hosts(db, &[two]).await.unwrap();
    assert_eq!(of_two, expected);
    assert_eq!(volumes::of_host(db, one).await.unwrap().len(), 2);
}

async fn a_volume_has_one_instance_at_most(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, _, web) = sample::populate(&store).await;
    let other = sample::add_instance(db, "db").await;
    let (first, second) = (
        sample::volume("one", Some(host)),
        sample::volume("two", Some(host)),
    );
    volumes::insert(db, &first).await.unwrap();
    volumes::insert(db, &second).await.unwrap();
    // What it boots from is the one with this position, as any other.
    attachments::insert(db, &sample::attachment(&first, web.id, attachments::ROOT))
        .await
        .unwrap();
    taken(
        attachments::insert(db, &sample::attachment(&first, other.id, 1)).await,
        &UniqueWhat::Id,
    );
    taken(
        attachments::insert(db, &sample::attachment(&second, web.id, attachments::ROOT)).await,
        &UniqueWhat::Other("uq_attachment_position".to_owned()),
    );
    attachments::insert(db, &sample::attachment(&second, web.id, 2))
        .await
        .unwrap();
    let unknown = sample::volume("unknown", None);
    let refused = attachments::insert(db, &sample::attachment(&unknown, web.id, 3)).await;
    assert!(
        matches!(refused, Err(StoreError::ForeignKey { .. })),
        "{refused:?}"
    );
}

async fn attachments_are_read_back_and_go_with_either_end(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, _, web) = sample::populate(&store).await;
    let other = sample::add_instance(db, "db").await;
    let mut rows = vec![];
    for (number, access, disk_bus, instance) in [
        (3_u8, VolumeAccess::ReadOnly, DiskBus::Virtio, web.id),
        (1, VolumeAccess::ReadWrite, DiskBus::Scsi, web.id),
        (u8::MAX, VolumeAccess::ReadWrite, DiskBus::Scsi, other.id),
    ] {
        let volume = sample::volume(&format!("v{number}"), Some(host));
        volumes::insert(db, &volume).await.unwrap();
        let mut row = sample::attachment(&volume, instance, number);
        row.access = access;
        row.disk_bus = disk_bus;
        row.created_at = time(i64::from(number));
        attachments::insert(db, &row).await.unwrap();
        rows.push(row);
    }
    let of_web = attachments::of_instances(db, &[web.id]).await.unwrap();
    assert_eq!(of_web, [rows[1], rows[0]]);
    for state in [
        AttachmentState::Attached,
        AttachmentState::Detaching,
        AttachmentState::Attaching,
    ] {
        attachments::set_state(db, rows[0].volume_id, state)
            .await
            .unwrap();
        rows[0].state = state;
        let read = attachments::of_volume(db, rows[0].volume_id).await.unwrap();
        assert_eq!(read, Some(rows[0]));
    }
    volumes::mark_deleted(db, rows[0].volume_id, time(9))
        .await
        .unwrap();
    instances::mark_deleted(db, other.id, time(9))
        .await
        .unwrap();
    let ids: Vec<VolumeId> = rows.iter().map(|row| row.volume_id).collect();
    let left = attachments::of_volumes(db, &ids).await.unwrap();
    assert_eq!(left, [rows[1]]);
    attachments::delete(db, rows[1].volume_id).await.unwrap();
    assert_eq!(attachments::of_volumes(db, &ids).await.unwrap(), []);
}

async fn a_host_with_a_volume_cannot_be_deleted(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let volume = sample::volume("data", Some(host));
    volumes::insert(db, &volume).await.unwrap();
    let refused = hosts::delete(db, host).await;
    assert!(
        matches!(refused, Err(StoreError::InUse { by: "volumes", .. })),
        "{refused:?}"
    );
    volumes::mark_deleted(db, volume.id, time(1)).await.unwrap();
    hosts::delete(db, host).await.unwrap();
    // Its row stays.
    assert!(volumes::get(db, volume.id).await.unwrap().is_some());
}

async fn copies_under_way_are_found_by_their_source(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let source = sample::volume("golden", Some(host));
    volumes::insert(db, &source).await.unwrap();
    let mut copies = vec![];
    for name in ["going", "there", "leaving", "gone"] {
        let mut copy = sample::volume(name, Some(host));
        copy.source = Some(VolumeSource::Volume(VolumeRef {
            id: source.id,
            format: source.format,
            pool: Default::default(),
        }));
        copy.observed.was_available = name == "there";
        copy.desired_deleted = name == "leaving";
        volumes::insert(db, &copy).await.unwrap();
        if name == "gone" {
            volumes::mark_deleted(db, copy.id, time(1)).await.unwrap();
        }
        copies.push(copy);
    }
    assert_eq!(
        volumes::being_made_from(db, source.id).await.unwrap(),
        copies[..1]
    );
}

async fn corrupt_volumes_are_named(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, _, web) = sample::populate(&store).await;
    let volume = sample::volume("data", Some(host));
    volumes::insert(db, &volume).await.unwrap();
    attachments::insert(db, &sample::attachment(&volume, web.id, 1))
        .await
        .unwrap();
    let id = volume.id.to_string();
    let check = |error: StoreError, table: &str, column: &str| {
        assert!(
            matches!(&error, StoreError::Corrupt { table: named, id: row, what }
                if *named == table && *row == id && what.starts_with(column)),
            "{error:?}"
        );
    };
    for (column, value, right) in [
        ("name", "'-'", "'data'"),
        ("size_gb", "-1", "10"),
        ("format", "'vmdk'", "'qcow2'"),
        ("source", "'{\"disc\":1}'", "NULL"),
        ("source_volume_id", "'x'", "NULL"),
        ("limits", "'7'", "NULL"),
        ("observed_status", "'asleep'", "NULL"),
        ("observed_fault_code", "'volume'", "NULL"),
    ] {
        let set = |value| format!("UPDATE volumes SET {column} = {value}");
        database.execute(&set(value)).await;
        let named = column.strip_suffix("_code").unwrap_or(column);
        check(
            volumes::get(db, volume.id).await.unwrap_err(),
            "volumes",
            named,
        );
        if column == "size_gb" {
            let claims = volumes::claims_of_hosts(db, &[host]).await;
            check(claims.unwrap_err(), "volumes", column);
        }
        database.execute(&set(right)).await;
    }
    for (column, value) in [
        ("position", "256"),
        ("access", "'all'"),
        ("disk_bus", "'ide'"),
        ("state", "'new'"),
    ] {
        let set = format!("UPDATE attachments SET {column} = {value}");
        database.execute(&set).await;
        let read = attachments::of_volume(db, volume.id).await;
        check(read.unwrap_err(), "attachments", column);
        // Mend it: a row made anew has every column right.
        attachments::delete(db, volume.id).await.unwrap();
        attachments::insert(db, &sample::attachment(&volume, web.id, 1))
            .await
            .unwrap();
    }
}
