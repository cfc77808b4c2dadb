//! One hypervisor whose only way out is a NIC that carries its own address: guests behind it (`nat`) and beside it (`flat`), a network
//! that its kernel cannot build, and what is changed of the ports of guests that run ([`super::plugging`]).

use anyhow::ensure;
use berth_common::refusal::RefusalCode;
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, Guest, GuestOptions, InstanceOptions},
    ctl::Berthctl,
    lab::outside,
    wait::{Seen, wait_for},
    with_cloud,
};
use serde_json::Value;

use super::plugging;

/// The hypervisor's own address on the wire.
const OWN: &str = "203.0.113.11";

/// Types a command, word by word.
pub(super) async fn ask(ctl: &Berthctl, command: &str) -> anyhow::Result<Value> {
    let words: Vec<&str> = command.split(' ').collect();
    ctl.json(&words).await
}

#[test]
fn guests_behind_a_nic_and_beside_it_get_out_and_their_ports_change_while_they_run() {
    let builder = TestCloud::builder()
        .outside()
        .agent_config("network.flat_address_policy", "move");
    with_cloud(builder, async |cloud| {
        let nic = outside::NIC;
        let gateway = outside::ADDRESS.to_string();
        for command in [
            format!("ip addr add {OWN}/24 dev {nic}"),
            format!("ip link set {nic} up"),
            format!("ip route add default via {gateway}"),
        ] {
            let argv: Vec<&str> = command.split(' ').collect();
            cloud.hv1().text(&argv).await?;
        }
        let ctl = Berthctl::new(cloud)?;
        let (network, pool) = (outside::NETWORK, outside::POOL);
        let physical = outside::PHYSICAL_NETWORK;
        for command in [
            "network create behind --type nat --cidr 10.77.1.0/24 --gateway 10.77.1.1".to_owned(),
            format!("network create beside --type flat --physical-network {physical}"),
            format!(
                "subnet create beside --network beside --subnet-range {network} --gateway {gateway} --allocation-pool {pool}"
            ),
            "security-group rule create default".to_owned(),
        ] {
            ask(&ctl, &command).await?;
        }
        let [behind, beside] = cloud
            .guests(["behind", "beside"].map(|name| GuestOptions::in_network(name, "hv1", name)))
            .await?;

        the_nic_is_in_a_bridge_with_the_hosts_address(cloud, &beside).await?;
        behind.is_seen_outside_as(cloud, OWN).await?;
        beside.is_seen_outside_as(cloud, beside.address()?).await?;
        cloud
            .is_reached_from_outside(beside.address()?, "beside")
            .await?;
        what_the_kernel_cannot_build_is_refused(cloud, &ctl).await?;
        plugging::ports_change(cloud, &ctl, [&behind, &beside]).await?;

        cloud.delete_and_wait(beside.view.id).await?;
        ask(&ctl, "network delete beside").await?;
        the_nic_is_as_it_was(cloud).await?;
        behind.is_seen_outside_as(cloud, OWN).await
    });
}

/// The IPv4 addresses of a link of the hypervisor, and the link that its default route goes by.
async fn ways(cloud: &TestCloud, link: &str) -> anyhow::Result<(Vec<String>, String)> {
    let json = async |argv: &[&str]| -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&cloud.hv1().text(argv).await?)?)
    };
    let links = json(&["ip", "-j", "-4", "addr", "show", "dev", link]).await?;
    let addresses = links[0]["addr_info"].as_array().into_iter().flatten();
    let addresses = addresses.filter_map(|address| address["local"].as_str());
    let routes = json(&["ip", "-j", "route", "show", "default"]).await?;
    let by = routes[0]["dev"].as_str().unwrap_or_default();
    Ok((addresses.map(str::to_owned).collect(), by.to_owned()))
}

async fn the_nic_is_in_a_bridge_with_the_hosts_address(
    cloud: &TestCloud,
    beside: &Guest,
) -> anyhow::Result<()> {
    let domain = format!("berth-{}", beside.view.id);
    let tap = cloud.hv1().first_link(&domain).await?;
    let links = ["ip", "-j", "link", "show"];
    let links: Value = serde_json::from_str(&cloud.hv1().text(&links).await?)?;
    let bridge_of = |name: &str| {
        let mut links = links.as_array().into_iter().flatten();
        let link = links.find(|link| link["ifname"] == name);
        link.and_then(|link| link["master"].as_str())
    };
    let bridge = bridge_of(outside::NIC).unwrap_or_default();
    ensure!(
        bridge.starts_with("btb") && bridge_of(&tap) == Some(bridge),
        "{links}"
    );
    let (addresses, by) = ways(cloud, bridge).await?;
    ensure!(
        addresses == [OWN] && by == bridge,
        "{addresses:?}, and out by {by}"
    );
    let (addresses, _) = ways(cloud, outside::NIC).await?;
    ensure!(addresses.is_empty(), "the NIC has {addresses:?}");
    cloud
        .outside()?
        .text(&["ping", "-n", "-c", "1", "-W", "5", OWN])
        .await?;
    Ok(())
}

async fn the_nic_is_as_it_was(cloud: &TestCloud) -> anyhow::Result<()> {
    wait_for("the NIC as it was", CONVERGE_LIMIT, async || {
        let (addresses, by) = ways(cloud, outside::NIC).await?;
        let is_so = addresses == [OWN] && by == outside::NIC;
        Ok(Seen::when(is_so, (addresses, by)))
    })
    .await
}

/// No guest and no port comes to a VLAN where the kernel has none, and it is said what is missing. Where it has, they do.
async fn what_the_kernel_cannot_build_is_refused(
    cloud: &TestCloud,
    ctl: &Berthctl,
) -> anyhow::Result<()> {
    let vlan = [
        "ip",
        "link",
        "add",
        "link",
        outside::NIC,
        "name",
        "try",
        "type",
        "vlan",
        "id",
        "7",
    ];
    let can = cloud.hv1().exec(&vlan).await?.status.success();
    if can {
        cloud.hv1().text(&["ip", "link", "del", "try"]).await?;
    }
    let told = cloud.host("hv1").await?.network.vlan;
    ensure!(
        told == can,
        "the agent says {told} of VLANs, and the kernel {can}"
    );
    let physical = outside::PHYSICAL_NETWORK;
    let create = format!(
        "network create tagged --type vlan --physical-network {physical} --segment 7 --cidr 10.77.7.0/24"
    );
    ask(ctl, &create).await?;
    let options = InstanceOptions::default();
    let mut request = cloud.instance_request("tagged", &options)?;
    request.networks = GuestOptions::in_network("tagged", "hv1", "tagged").networks;
    if can {
        cloud.call(&request).await?;
        cloud.wait_active(request.id).await?;
    } else {
        let refusal = cloud.refused(&request).await?;
        ensure!(refusal.code == RefusalCode::NoValidHost, "{refusal}");
        let explained = ask(ctl, "explain tagged").await?;
        ensure!(
            explained["decisions"][0]["filters"]
                == serde_json::json!([{"filter": "network_reachability", "removed": 1}]),
            "{explained}"
        );
        let add = ["instance", "add-network", "behind", "tagged"];
        for text in [refusal.message, ctl.fails(&add).await?.1] {
            ensure!(text.contains("VLAN"), "{text}");
        }
    }
    cloud.delete_and_wait(request.id).await?;
    ask(ctl, "network delete tagged").await.map(drop)
}
