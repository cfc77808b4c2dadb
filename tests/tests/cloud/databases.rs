//! The scheduler on a database server instead of a file.

use berth_common::{document::DesiredPower, message::view::VmState};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions, Store},
    with_cloud,
};

#[test]
fn an_instance_comes_and_goes_with_the_scheduler_on_postgresql() {
    check(Store::Postgres);
}

#[test]
fn an_instance_comes_and_goes_with_the_scheduler_on_mariadb() {
    check(Store::MariaDb);
}

fn check(store: Store) {
    with_cloud(TestCloud::builder().store(store), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            power: DesiredPower::Stopped,
            ..InstanceOptions::default()
        };
        let request = cloud.instance_request("first", &options)?;
        cloud.call(&request).await?;
        cloud
            .wait_state(request.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        // What was written is there for the next scheduler.
        cloud.scheduler.kill()?;
        cloud.scheduler.start()?;
        cloud.wait_all_up().await?;
        assert_eq!(cloud.call(&request).await?.id, request.id);
        assert_eq!(cloud.instances().await?.len(), 1);
        cloud.delete_and_wait(request.id).await
    });
}
