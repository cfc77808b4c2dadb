//! Routers with real guests on two hypervisors: networks that are joined, the way out and in, addresses that move from one host to
//! another, projects with the same addresses, and rules whose remote is a group. What berthctl asks for is seen by packets.

use anyhow::{Context, ensure};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, Guest, GuestOptions},
    ctl::Berthctl,
    lab::outside,
    wait::{Seen, wait_for},
    with_cloud,
};
use serde_json::Value;

/// Another project.
const OTHER: &str = "other";
/// Beyond a guest, where only a router's route leads.
const BEYOND: &str = "198.51.100.1";

/// The commands of one project.
struct Project<'a> {
    ctl: &'a Berthctl,
    name: &'a str,
}

impl Project<'_> {
    async fn ask(&self, command: &str) -> anyhow::Result<Value> {
        let mut argv = vec!["--project", self.name];
        argv.extend(command.split(' '));
        self.ctl.json(&argv).await
    }

    /// The two networks, joined by a router that leads out; all that is called or addressed as in another project.
    async fn furnish(&self) -> anyhow::Result<()> {
        for command in [
            "network create red --type vxlan --cidr 10.77.1.0/24 --gateway 10.77.1.1",
            "network create blue --type vxlan --cidr 10.77.2.0/24 --gateway 10.77.2.1",
            "router create edge --external-gateway out",
            "router add subnet edge red",
            "router add subnet edge blue",
            "security-group create door",
            "security-group rule create door --protocol icmp",
            "security-group rule create door --protocol tcp --dst-port 22",
        ] {
            self.ask(command).await?;
        }
        let web = "security-group rule create door --protocol tcp --dst-port 80 --remote-ip";
        self.ask(&format!("{web} {}", outside::NETWORK)).await?;
        Ok(())
    }

    async fn port(&self, command: &str) -> anyhow::Result<String> {
        let port = self.ask(&format!("port create {command}")).await?;
        Ok(port["id"].as_str().context("no id")?.to_owned())
    }

    /// The address of the router outside, on the hypervisor of a guest.
    async fn gateway_of(&self, guest: &Guest) -> anyhow::Result<String> {
        let router = self.ask("router show edge").await?;
        let mut hosts = router["hosts"].as_array().into_iter().flatten();
        let host = guest.view.host.as_ref().context("it is on no host")?;
        let found = hosts.find(|it| it["host"] == host.as_str());
        let address = found.and_then(|it| it["ip_addresses"][0].as_str());
        Ok(address
            .with_context(|| format!("no address on {host}: {router}"))?
            .to_owned())
    }

    /// A floating IP for a port.
    async fn floating_ip(&self, port: &str) -> anyhow::Result<String> {
        let floating = self.ask("floating-ip create out").await?;
        let address = floating["ip_address"].as_str().context("no address")?;
        self.ask(&format!("floating-ip set {address} --port {port}"))
            .await?;
        Ok(address.to_owned())
    }
}

/// Those of this test.
struct Guests {
    /// In the red network, on the first hypervisor; it may call those that are served.
    one: Guest,
    /// In the blue network, on the second hypervisor; it serves callers.
    two: Guest,
    /// In the red network, on the second hypervisor.
    three: Guest,
    /// In the other project's red network, with the address of the first guest, on the same hypervisor.
    stranger: Guest,
}

async fn guests(
    cloud: &TestCloud,
    mine: &Project<'_>,
    other: &Project<'_>,
) -> anyhow::Result<Guests> {
    let one = format!(
        "one --network red --ip-address 10.77.1.10 --security-group door --security-group callers --allowed-address {BEYOND}"
    );
    let one = mine.port(&one).await?;
    let two =
        "two --network blue --ip-address 10.77.2.10 --security-group door --security-group served";
    let two = mine.port(two).await?;
    let three = "three --network red --ip-address 10.77.1.11 --security-group door";
    let three = mine.port(three).await?;
    let stranger = "stranger --network red --ip-address 10.77.1.10 --security-group door";
    let stranger = other.port(stranger).await?;
    let stranger = GuestOptions {
        project: OTHER.parse()?,
        ..GuestOptions::with_port("stranger", "hv1", stranger)
    };
    let wanted = [
        GuestOptions::with_port("one", "hv1", one),
        GuestOptions::with_port("two", "hv2", two),
        GuestOptions::with_port("three", "hv2", three),
        stranger,
    ];
    let [one, two, three, stranger] = cloud.guests(wanted).await?;
    Ok(Guests {
        one,
        two,
        three,
        stranger,
    })
}

#[test]
fn guests_of_two_hypervisors_are_routed_translated_and_reached_from_outside() {
    with_cloud(TestCloud::builder().agents(2).outside(), async |cloud| {
        let ctl = Berthctl::new(cloud)?;
        let [mine, other] = ["default", OTHER].map(|name| Project { ctl: &ctl, name });
        let (network, pool) = (outside::NETWORK, outside::POOL);
        let physical = outside::PHYSICAL_NETWORK;
        for command in [
            format!("network create out --type flat --physical-network {physical} --external"),
            format!(
                "subnet create out --network out --subnet-range {network} --gateway {} --allocation-pool {pool} --no-dhcp",
                outside::ADDRESS
            ),
        ] {
            mine.ask(&command).await?;
        }
        for project in [&mine, &other] {
            project.furnish().await?;
        }
        for command in [
            "security-group create callers",
            "security-group create served",
            "security-group rule create served --protocol tcp --dst-port 80 --remote-group callers",
        ] {
            mine.ask(command).await?;
        }
        let guests = guests(cloud, &mine, &other).await?;

        members_of_a_group_are_let_in_across_hosts_and_networks(cloud, &mine, &guests).await?;
        a_route_leads_beyond_a_guest(cloud, &mine, &guests).await?;
        each_goes_out_by_its_own_router(cloud, &mine, &other, &guests).await?;
        floating_ips_lead_in_and_move(cloud, &mine, &other, &guests).await?;
        routers_go_while_guests_stay(cloud, &mine, &other, &guests).await
    });
}

async fn members_of_a_group_are_let_in_across_hosts_and_networks(
    cloud: &TestCloud,
    mine: &Project<'_>,
    Guests {
        one, two, three, ..
    }: &Guests,
) -> anyhow::Result<()> {
    let served = two.address()?;
    one.reaches(cloud, served, "two").await?;
    // The way is there for everybody, and only members are let in.
    three
        .run(cloud, &format!("ping -c 1 -W 5 {served}"))
        .await?;
    three
        .run(cloud, &format!("! nc -w 2 {served} 80 </dev/null"))
        .await?;
    mine.ask("port set three --security-group door --security-group callers")
        .await?;
    three.reaches(cloud, served, "two").await?;
    mine.ask("port set three --security-group door").await?;
    three.reaches_not(cloud, served).await?;
    let answer = one.ask(cloud, served).await?;
    ensure!(answer.contains("\"hostname\":\"two\""), "{answer}");
    Ok(())
}

/// The answer finds its way although it is routed on the other hypervisor.
async fn a_route_leads_beyond_a_guest(
    cloud: &TestCloud,
    mine: &Project<'_>,
    Guests { one, two, .. }: &Guests,
) -> anyhow::Result<()> {
    one.run(cloud, &format!("ip addr add {BEYOND}/32 dev lo"))
        .await?;
    let route = format!(
        "router set edge --route destination={BEYOND}/32,gateway={}",
        one.address()?
    );
    mine.ask(&route).await?;
    let ping = format!("ping -c 1 -W 1 {BEYOND}");
    two.until(cloud, "the way beyond a guest", &ping).await?;
    mine.ask("router set edge --no-route").await?;
    two.until(cloud, "the end of that", &format!("! {ping}"))
        .await?;
    Ok(())
}

async fn each_goes_out_by_its_own_router(
    cloud: &TestCloud,
    mine: &Project<'_>,
    other: &Project<'_>,
    Guests {
        one, two, stranger, ..
    }: &Guests,
) -> anyhow::Result<()> {
    let at_one = mine.gateway_of(one).await?;
    let at_two = mine.gateway_of(two).await?;
    let at_stranger = other.gateway_of(stranger).await?;
    ensure!(
        at_one != at_two && at_one != at_stranger && at_two != at_stranger,
        "{at_one}, {at_two}, {at_stranger}"
    );
    one.is_seen_outside_as(cloud, &at_one).await?;
    two.is_seen_outside_as(cloud, &at_two).await?;
    stranger.is_seen_outside_as(cloud, &at_stranger).await?;
    // Its router is there, and behind it nobody of the first project.
    let alone = format!(
        "ping -c 1 -W 5 10.77.2.1 && ! ping -c 2 -W 1 {}",
        two.address()?
    );
    stranger.run(cloud, &alone).await?;
    Ok(())
}

async fn floating_ips_lead_in_and_move(
    cloud: &TestCloud,
    mine: &Project<'_>,
    other: &Project<'_>,
    Guests {
        one,
        three,
        stranger,
        ..
    }: &Guests,
) -> anyhow::Result<()> {
    let floating = mine.floating_ip(&one.port()?.id.to_string()).await?;
    let strangers = other.floating_ip(&stranger.port()?.id.to_string()).await?;
    cloud.is_reached_from_outside(&floating, "one").await?;
    cloud
        .is_reached_from_outside(&strangers, "stranger")
        .await?;
    one.is_seen_outside_as(cloud, &floating).await?;
    stranger.is_seen_outside_as(cloud, &strangers).await?;

    // To a guest of another hypervisor: what the machine outside believes of the address is changed by nothing but what is
    // announced.
    let before = cloud.outside()?.neighbour(&floating).await?;
    let port = three.port()?.id;
    mine.ask(&format!("floating-ip set {floating} --port {port}"))
        .await?;
    cloud.is_reached_from_outside(&floating, "three").await?;
    let after = cloud.outside()?.neighbour(&floating).await?;
    ensure!(before != after, "{floating} is still at {before}");
    three.is_seen_outside_as(cloud, &floating).await?;
    let gateway = mine.gateway_of(one).await?;
    one.is_seen_outside_as(cloud, gateway).await?;

    for (project, address) in [(mine, &floating), (other, &strangers)] {
        project
            .ask(&format!("floating-ip delete {address}"))
            .await?;
        cloud.is_silent_outside(address).await?;
    }
    Ok(())
}

/// Whatever of a router is left on a host once its guests are gone as well is found at the end.
async fn routers_go_while_guests_stay(
    cloud: &TestCloud,
    mine: &Project<'_>,
    other: &Project<'_>,
    Guests { one, two, .. }: &Guests,
) -> anyhow::Result<()> {
    let gateways = [mine.gateway_of(one).await?, mine.gateway_of(two).await?];
    for project in [mine, other] {
        for command in [
            "router unset edge --external-gateway",
            "router remove subnet edge red",
            "router remove subnet edge blue",
            "router delete edge",
        ] {
            project.ask(command).await?;
        }
    }
    one.reaches_not(cloud, two.address()?).await?;
    for gateway in gateways {
        cloud.is_silent_outside(gateway).await?;
    }
    for hypervisor in &cloud.hypervisors {
        let what = format!("no router to be left on {}", hypervisor.name());
        wait_for(&what, CONVERGE_LIMIT, async || {
            let mut left = hypervisor.remains().await?;
            left.retain(|line| line.contains("berth-r-") || line.contains("routers/"));
            Ok(Seen::when(left.is_empty(), left))
        })
        .await?;
    }
    mine.ask("network delete out").await?;
    Ok(())
}
