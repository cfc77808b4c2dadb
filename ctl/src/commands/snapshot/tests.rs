//! What commands on snapshots ask for, in which order, and what they make of the answers.

use berth_common::message::{
    report::{Fault, FaultCode},
    view::SnapshotStatus,
};

use super::*;
use crate::{
    commands::instance::tests::patient,
    testing::{self, Play, snapshot as monday},
};

fn with(status: SnapshotStatus) -> SnapshotView {
    SnapshotView { status, ..monday() }
}

fn request() -> SnapshotCreate {
    SnapshotCreate {
        id: monday().id,
        name: monday().name,
        project: monday().project,
        volume: "data".to_owned(),
    }
}

fn show() -> SnapshotShow {
    SnapshotShow {
        snapshot: "monday".to_owned(),
        project: monday().project,
    }
}

#[tokio::test]
async fn a_new_snapshot_is_asked_for_again_with_the_same_id_and_waited_for() {
    let script = [
        Play::Silence,
        Play::view(&with(SnapshotStatus::Creating)),
        Play::view(&with(SnapshotStatus::Available)),
    ];
    let context = testing::context(None, script);
    let mut asking = Asking::with(&context, patient());
    let view = created(&mut asking, &request()).await.unwrap();
    assert_eq!(view.status, SnapshotStatus::Available);
    assert_eq!(
        *context.caller.asked.borrow(),
        [
            "snapshot.create data".to_owned(),
            "snapshot.create data".to_owned(),
            format!("snapshot.show {}", monday().id),
        ]
    );
}

#[tokio::test]
async fn a_snapshot_that_fails_ends_the_wait_with_its_fault() {
    let broken = SnapshotView {
        fault: Some(Fault {
            code: FaultCode::DiskFull,
            message: "no space left".to_owned(),
        }),
        ..with(SnapshotStatus::Error)
    };
    let script = [
        Play::view(&with(SnapshotStatus::Creating)),
        Play::view(&broken),
    ];
    let context = testing::context(None, script);
    let mut asking = Asking::with(&context, patient());
    let error = created(&mut asking, &request()).await.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(
        error.to_string(),
        format!(
            "snapshot monday ({}) is in error (disk_full): no space left",
            monday().id
        )
    );
    assert!(
        error.json().contains("snapshot_in_error"),
        "{}",
        error.json()
    );
}

#[tokio::test]
async fn a_deletion_speaks_of_the_id_and_is_a_success_when_it_was_carried_out_unheard() {
    let script = [
        Play::view(&monday()),
        Play::Silence,
        Play::Refuse(RefusalCode::NotFound),
    ];
    let context = testing::context(None, script);
    let mut asking = Asking::with(&context, patient());
    let gone = deleted(&mut asking, &show()).await.unwrap();
    assert_eq!(gone.status, SnapshotStatus::Deleted);
    assert_eq!(
        *context.caller.asked.borrow(),
        [
            "snapshot.show monday".to_owned(),
            format!("snapshot.delete {}", monday().id),
            format!("snapshot.delete {}", monday().id),
        ]
    );
}
