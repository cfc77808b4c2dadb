//! Each setter changes its own columns and no others: what is desired and what is observed never mix.

use std::sync::Arc;

use berth_common::{
    document::{DesiredPower, Reboot, RebootKind},
    ids::{InstanceId, Nonce},
    message::report::{ConvergeStatus, Fault, FaultCode, PowerState},
    units::Generation,
};
use berth_store::{
    StoreError,
    instances::{self, InstanceObserved},
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    each_setter_changes_its_own_columns,
    setting_the_unknown_is_an_error
);

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

    expected.placement_fault = Some(Fault {
        code: FaultCode::NoValidHost,
        message: "0 of 3 hosts fit".to_owned(),
    });
    instances::set_placement_fault(db, id, expected.placement_fault.as_ref(), time(3))
        .await
        .unwrap();
    expected.updated_at = time(3);
    assert_eq!(
        instances::get(db, id).await.unwrap().as_ref(),
        Some(&expected)
    );

    expected.observed = InstanceObserved {
        status: Some(ConvergeStatus::Converging),
        generation: Generation(4),
        power_state: PowerState::Running,
        reboot_nonce: Some(Nonce::new()),
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
    instances::set_placement_fault(db, id, None, time(6))
        .await
        .unwrap();
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
        instances::set_placement_fault(db, id, None, time(1)).await,
        instances::set_observed(db, id, &InstanceObserved::default(), time(1)).await,
    ];
    for result in results {
        assert!(
            matches!(&result, Err(StoreError::NotFound { id: named, .. }) if *named == id.to_string()),
            "{result:?}"
        );
    }
}
