//! What a change costs the database: as much as what it concerns, however many other routers and hosts there are.

use std::collections::BTreeMap;

use berth_common::{
    ids::{InstanceId, NetworkId, PortId},
    message::{
        network::NetworkCreate,
        report::{ConvergeStatus, PowerState, Report},
        request::InstanceCreate,
        router::{RouterAddInterface, RouterRemoveInterface},
    },
    units::Generation,
};
use berth_scheduler::{
    claim::{
        instances::{
            change::{self, Change},
            create,
        },
        routers::{self, floating},
    },
    context::{Context, Writing},
    report::apply,
};
use berth_store::{Tally, documents};
use serde_json::json;

use crate::{
    ask::instance,
    cloud::Cloud,
    host::{Host, key, resource, resources},
    routers::{add, floating as float, give, request, router, set},
};

/// A host with the router of the network `mine` and another one, beside a number of hosts that have the first one too, by another
/// network, and one of their own each.
struct World {
    cloud: Cloud,
    here: Host,
    first: InstanceId,
    port: PortId,
}

async fn network(cloud: &Cloud, name: &str, cidr: &str) {
    let network = json!({
        "id": NetworkId::new(),
        "name": name,
        "cidr": cidr,
        "gateway_ip": cidr.replace(".0/", ".1/").split('/').next(),
        "external": name == "public",
    });
    cloud.ok(request::<NetworkCreate>(network)).await;
}

fn on(name: &str, network: &str, host: &str) -> InstanceCreate {
    let mut wanted = instance(name, 64, json!([{ "network": network }]));
    wanted.hints.host = Some(host.to_owned());
    wanted
}

async fn world(others: usize) -> World {
    let cloud = Cloud::start().await;
    let roomy = |host: &mut Host| host.total = resources(64, 65_536, 1_000);
    let here = Host::join_with(&cloud, "here", roomy).await;
    network(&cloud, "public", "198.18.0.0/16").await;
    for (name, cidr) in [
        ("mine", "10.0.1.0/24"),
        ("far", "10.0.2.0/24"),
        ("side", "10.0.3.0/24"),
        ("extra", "10.0.4.0/24"),
    ] {
        network(&cloud, name, cidr).await;
    }
    for (name, inside) in [("r-mine", vec!["mine", "far"]), ("r-side", vec!["side"])] {
        let out = json!({ "external_network": "public" });
        cloud.ok(router(name, out)).await;
        for network in inside {
            cloud.ok(add(name, network)).await;
        }
    }
    let first = cloud.ok(on("first", "mine", "here")).await;
    let side = cloud.ok(on("first-side", "side", "here")).await;
    for number in 0..others {
        let host = format!("other-{number}");
        drop(Host::join_with(&cloud, &host, roomy).await);
        let own = format!("own-{number}");
        network(&cloud, &own, &format!("10.1.{number}.0/24")).await;
        let leading = format!("r-{number}");
        let out = json!({ "external_network": "public" });
        cloud.ok(router(&leading, out)).await;
        cloud.ok(add(&leading, &own)).await;
        cloud.ok(on(&format!("far-{number}"), "far", &host)).await;
        cloud.ok(on(&format!("vm-{number}"), &own, &host)).await;
    }
    cloud.ok(float(Some("198.18.9.9"))).await;
    World {
        cloud,
        here,
        first: first.id,
        port: side.ports[0].id,
    }
}

/// What something costs, up to the documents that follow; then it is taken back.
async fn cost(context: &Context, what: impl AsyncFnOnce(&mut Writing<'_>)) -> Tally {
    let mut writing = context.begin().await.unwrap();
    let before = context.store.tally();
    what(&mut writing).await;
    writing.derive().await.unwrap();
    since(before, context.store.tally())
}

fn since(before: Tally, after: Tally) -> Tally {
    Tally {
        statements: after.statements - before.statements,
        rows: after.rows - before.rows,
    }
}

/// The costs of changes that concern one host, by what is done.
async fn costs(others: usize) -> BTreeMap<&'static str, Tally> {
    let World {
        mut cloud,
        here,
        first,
        port,
    } = world(others).await;
    let context = cloud.stand_still().await;
    let mut costs = BTreeMap::new();

    let wanted = on("second", "mine", "here");
    let spent = cost(&context, async |writing| {
        let answers = create::create(writing, std::slice::from_ref(&wanted)).await;
        answers.unwrap().remove(0).unwrap();
    });
    costs.insert("create", spent.await);
    let spent = cost(&context, async |writing| {
        let project = Default::default();
        let first = first.to_string();
        let gone = change::change(writing, &project, &first, Change::Delete);
        gone.await.unwrap();
    });
    costs.insert("delete", spent.await);
    let renamed = set("r-side", json!({ "name": "r-aside" }));
    let spent = cost(&context, async |writing| {
        routers::set(writing, &renamed).await.unwrap();
    });
    costs.insert("rename a router", spent.await);
    let inward = set("r-side", json!({ "external_gateway": "none" }));
    let spent = cost(&context, async |writing| {
        routers::set(writing, &inward).await.unwrap();
    });
    costs.insert("clear a gateway", spent.await);
    let more: RouterAddInterface = add("r-side", "extra");
    let spent = cost(&context, async |writing| {
        routers::add_interface(writing, &more).await.unwrap();
    });
    costs.insert("add an interface", spent.await);
    let less = json!({ "router": "r-side", "subnet": "side" });
    let less: RouterRemoveInterface = request(less);
    let spent = cost(&context, async |writing| {
        routers::remove_interface(writing, &less).await.unwrap();
    });
    costs.insert("remove an interface", spent.await);
    let given = give("198.18.9.9", Some(port));
    let spent = cost(&context, async |writing| {
        floating::set(writing, &given).await.unwrap();
    });
    costs.insert("give a floating IP", spent.await);

    // The host says that nothing is left of an instance that was deleted.
    let mut writing = context.begin().await.unwrap();
    let project = Default::default();
    let name = first.to_string();
    let gone = change::change(&mut writing, &project, &name, Change::Delete);
    gone.await.unwrap();
    writing.commit().await.unwrap();
    let told = documents::get(context.store.pool(), here.id, key(first)).await;
    let generation: Generation = told.unwrap().unwrap().generation;
    let gone = ConvergeStatus::Gone;
    let report = Report {
        host_id: here.id,
        host: "here".parse().unwrap(),
        session: 1,
        sequence: 1_000,
        resources: vec![resource(key(first), generation, gone, PowerState::Nostate)],
    };
    let before = context.store.tally();
    apply::reports(&context, &[report]).await.unwrap();
    costs.insert("bury", since(before, context.store.tally()));
    costs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_routers_and_hosts_cost_nothing() {
    let (few, many) = (costs(2).await, costs(12).await);
    for (what, few) in &few {
        assert!(few.rows > 0 && few.statements > 0, "{what}: {few:?}");
        assert_eq!(many[what], *few, "{what}");
    }
}

/// The first port that needs a router on a host costs an address of the network outside, for which those in use are read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_is_new_on_a_host_costs_as_many_statements() {
    let spent = async |others| {
        let World { mut cloud, .. } = world(others).await;
        let context = cloud.stand_still().await;
        // One of the others has this router already.
        let wanted = on("apart", "own-1", "other-0");
        cost(&context, async |writing| {
            let answers = create::create(writing, std::slice::from_ref(&wanted)).await;
            answers.unwrap().remove(0).unwrap();
        })
        .await
        .statements
    };
    assert_eq!(spent(2).await, spent(12).await);
}
