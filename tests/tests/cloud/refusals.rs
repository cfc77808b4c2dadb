//! Requests that are well-formed and cannot be granted: a typed refusal that says why, and nothing half-made.

use anyhow::Context;
use berth_common::{
    document::DesiredPower,
    ids::{InstanceId, NetworkId},
    message::{
        request::{
            HostShow, InstanceCreate, InstanceShow, InstanceStart, NetworkCreate, NetworkDelete,
        },
        view::{NetworkView, VmState},
    },
    refusal::RefusalCode,
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions},
    with_cloud,
};

#[test]
fn what_cannot_be_granted_is_refused_with_a_reason_and_leaves_nothing_half_made() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            power: DesiredPower::Stopped,
            ..InstanceOptions::default()
        };
        let mut first = cloud.instance_request("first", &options)?;
        first.networks[0].ip_address = Some("10.77.1.50".parse()?);
        first.networks[0].mac_address = Some("52:54:00:00:00:50".parse()?);
        cloud.call(&first).await?;

        addresses_are_given_once(cloud, &network, &first).await?;
        names_are_given_once(cloud, &first).await?;
        repeated_requests_are_one(cloud, &first).await?;
        what_is_unknown_is_not_found(cloud, &options).await?;
        sizes_have_limits(cloud, &options).await?;
        used_networks_stay(cloud, &network).await?;

        let instances = cloud.instances().await?;
        assert_eq!(instances.len(), 1, "something half-made: {instances:?}");
        cloud
            .wait_state(first.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        assert_eq!(cloud.hv1().domains().await?.len(), 1);
        deleted_instances_obey_nobody(cloud, first.id).await
    });
}

async fn check<M: berth_common::message::request::Method>(
    cloud: &TestCloud,
    request: &M,
    code: RefusalCode,
    says: &str,
) -> anyhow::Result<()> {
    let refusal = cloud
        .refused(request)
        .await
        .map_err(|error| error.context(format!("expected: {says}")))?;
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(
        refusal.message.contains(says),
        "no {says:?} in {:?}",
        refusal.message
    );
    Ok(())
}

async fn addresses_are_given_once(
    cloud: &TestCloud,
    network: &NetworkView,
    first: &InstanceCreate,
) -> anyhow::Result<()> {
    let wish = |address: Option<&str>, mac: Option<&str>| -> anyhow::Result<InstanceCreate> {
        let mut request = first.clone();
        request.id = InstanceId::new();
        request.name = "second".parse()?;
        request.networks[0].ip_address = address.map(str::parse).transpose()?;
        request.networks[0].mac_address = mac.map(str::parse).transpose()?;
        Ok(request)
    };
    let taken = "10.77.1.50 is already used by another port in 10.77.1.0/24";
    check(
        cloud,
        &wish(Some("10.77.1.50"), None)?,
        RefusalCode::Conflict,
        taken,
    )
    .await?;
    let taken = "52:54:00:00:00:50 is already used by another port of network front";
    check(
        cloud,
        &wish(None, Some("52:54:00:00:00:50"))?,
        RefusalCode::Conflict,
        taken,
    )
    .await?;
    let outside = "10.78.0.5 is not an address for a port in 10.77.1.0/24";
    check(
        cloud,
        &wish(Some("10.78.0.5"), None)?,
        RefusalCode::Invalid,
        outside,
    )
    .await?;
    let broadcast = "10.77.1.255 is not an address for a port";
    check(
        cloud,
        &wish(Some("10.77.1.255"), None)?,
        RefusalCode::Invalid,
        broadcast,
    )
    .await?;
    let dhcp = network.subnets[0].dhcp_ip;
    let dhcp = dhcp.context("the subnet has no DHCP server")?.to_string();
    check(
        cloud,
        &wish(Some(&dhcp), None)?,
        RefusalCode::Invalid,
        &dhcp,
    )
    .await
}

async fn names_are_given_once(cloud: &TestCloud, first: &InstanceCreate) -> anyhow::Result<()> {
    let mut same_name = first.clone();
    same_name.id = InstanceId::new();
    same_name.networks.clear();
    check(
        cloud,
        &same_name,
        RefusalCode::Conflict,
        "already has an instance named first",
    )
    .await?;
    let network = NetworkCreate {
        id: NetworkId::new(),
        name: "front".parse()?,
        project: Default::default(),
        network_type: Default::default(),
        physical_network: None,
        segmentation_id: None,
        external: false,
        cidr: Some("10.77.9.0/24".parse()?),
        gateway_ip: None,
        dns_nameservers: Vec::new(),
        mtu: None,
    };
    check(
        cloud,
        &network,
        RefusalCode::Conflict,
        "already has a network named front",
    )
    .await
}

async fn repeated_requests_are_one(
    cloud: &TestCloud,
    first: &InstanceCreate,
) -> anyhow::Result<()> {
    assert_eq!(cloud.call(first).await?.id, first.id);
    let mut other = first.clone();
    other.name = "other".parse()?;
    check(
        cloud,
        &other,
        RefusalCode::Conflict,
        "asked for with another content",
    )
    .await
}

async fn what_is_unknown_is_not_found(
    cloud: &TestCloud,
    options: &InstanceOptions,
) -> anyhow::Result<()> {
    check(
        cloud,
        &HostShow {
            host: "hv99".to_owned(),
        },
        RefusalCode::NotFound,
        "there is no host \"hv99\"",
    )
    .await?;
    let hostile = "<x>'; DROP TABLE hosts; --";
    check(
        cloud,
        &HostShow {
            host: hostile.to_owned(),
        },
        RefusalCode::NotFound,
        "there is no host",
    )
    .await?;
    let project = Default::default();
    let show = InstanceShow {
        instance: "nobody".to_owned(),
        project,
    };
    check(
        cloud,
        &show,
        RefusalCode::NotFound,
        "no instance \"nobody\"",
    )
    .await?;
    let mut nowhere = cloud.instance_request("nowhere", options)?;
    nowhere.networks[0].network = "no-such-net".to_owned();
    check(
        cloud,
        &nowhere,
        RefusalCode::NotFound,
        "no network \"no-such-net\"",
    )
    .await
}

async fn sizes_have_limits(cloud: &TestCloud, options: &InstanceOptions) -> anyhow::Result<()> {
    let mut nothing = cloud.instance_request("nothing", options)?;
    nothing.flavor.vcpus = Default::default();
    nothing.flavor.disk_gb = Default::default();
    nothing.stop_timeout_seconds = 0;
    // All mistakes at once.
    check(
        cloud,
        &nothing,
        RefusalCode::Invalid,
        "flavor.vcpus must be at least 1; flavor.disk_gb must be",
    )
    .await?;
    check(
        cloud,
        &nothing,
        RefusalCode::Invalid,
        "stop_timeout_seconds must be from 1 to 3600; got 0",
    )
    .await?;
    let mut octopus = cloud.instance_request("octopus", options)?;
    octopus.networks = vec![octopus.networks[0].clone(); 9];
    check(
        cloud,
        &octopus,
        RefusalCode::Invalid,
        "networks must be at most 8; got 9",
    )
    .await
}

async fn used_networks_stay(cloud: &TestCloud, network: &NetworkView) -> anyhow::Result<()> {
    let request = NetworkDelete {
        network: network.id.to_string(),
        project: Default::default(),
    };
    check(
        cloud,
        &request,
        RefusalCode::Conflict,
        "network front is used by 1 ports",
    )
    .await
}

async fn deleted_instances_obey_nobody(cloud: &TestCloud, id: InstanceId) -> anyhow::Result<()> {
    cloud.delete_and_wait(id).await?;
    let start = InstanceStart {
        instance: id.to_string(),
        project: Default::default(),
    };
    check(cloud, &start, RefusalCode::Conflict, "is being deleted").await
}
