//! The broker goes away, with or without its vhost: messages are hints, the database is the truth.

use std::time::{Duration, Instant};

use berth_common::{
    document::DesiredPower,
    ids::{InstanceId, NetworkId},
    message::{
        request::{InstanceCreate, Method},
        view::VmState,
    },
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions, builder::Broker},
    figure,
    wait::{Seen, moment, wait_for},
    with_cloud,
};
use tokio::task::JoinSet;

/// Between two requests while the vhost goes: fast while its deletion starts, then slow, so that requests are under way
/// whenever it happens, and a machine on which it takes long gets no more of them than it can carry.
const PACES: [(usize, Duration); 2] = [
    (6, Duration::from_millis(40)),
    (10, Duration::from_millis(500)),
];
/// How long their senders wait for answers.
const PATIENCE: Duration = Duration::from_secs(2);
const NOTICE_LIMIT: Duration = Duration::from_secs(40);

#[test]
fn deleting_the_vhost_under_way_loses_nothing_that_was_accepted_and_duplicates_nothing() {
    // Many small instances: the number of processors shall not be what limits them.
    let builder = TestCloud::builder().scheduler_config("placement.cpu_allocation_ratio", "64.0");
    with_cloud(builder, async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let (requests, unanswered) = ask_while_the_vhost_goes(cloud, network.id).await?;
        assert!(
            unanswered > 0,
            "all {} requests were answered: nothing was under way",
            requests.len()
        );
        cloud.vhost.add().await?;
        let back = Instant::now();

        // Whoever got no answer asks again; whoever got one may ask again too.
        for request in &requests {
            wait_for(
                &format!("an answer for {}", request.name),
                CONVERGE_LIMIT,
                async || {
                    let answer = cloud.try_call(request, Duration::from_secs(5)).await?;
                    Ok(answer.map_or_else(
                        |refusal| Seen::Never(refusal.to_string()),
                        |_| Seen::Done(()),
                    ))
                },
            )
            .await?;
        }
        for request in &requests {
            let state = if request.power == DesiredPower::Running {
                VmState::Active
            } else {
                VmState::Stopped
            };
            cloud.wait_state(request.id, state, CONVERGE_LIMIT).await?;
        }
        figure(&format!(
            "recovery seconds={:.2} requests={} unanswered={unanswered}",
            back.elapsed().as_secs_f64(),
            requests.len()
        ));
        assert_eq!(cloud.instances().await?.len(), requests.len());
        assert_eq!(cloud.hv1().domains().await?.len(), requests.len());
        assert_eq!(
            cloud.host("hv1").await?.instances,
            u64::try_from(requests.len())?
        );
        Ok(())
    });
}

/// Asks for instances, in [`PACES`], from before the vhost goes until after; answers what was asked for, and how many
/// got no answer. Every tenth instance runs.
async fn ask_while_the_vhost_goes(
    cloud: &TestCloud,
    network: NetworkId,
) -> anyhow::Result<(Vec<InstanceCreate>, usize)> {
    let options = InstanceOptions {
        networks: vec![network],
        power: DesiredPower::Stopped,
        ..InstanceOptions::default()
    };
    let template = cloud.instance_request("template", &options)?;
    let mut requests = Vec::new();
    let mut answers = JoinSet::new();
    let mut ask = || -> anyhow::Result<()> {
        let number = requests.len();
        let mut request = InstanceCreate {
            id: InstanceId::new(),
            name: format!("r{number}").parse()?,
            ..template.clone()
        };
        if number % 10 == 0 {
            request.power = DesiredPower::Running;
        }
        requests.push(request.clone());
        let rpc = cloud.rpc.clone();
        answers.spawn(async move {
            rpc.call(
                InstanceCreate::NAME,
                InstanceCreate::VERSION,
                &request,
                PATIENCE,
            )
            .await
            .is_ok()
        });
        Ok(())
    };
    let mut deleted = std::pin::pin!(cloud.vhost.delete());
    let mut paces = PACES
        .iter()
        .flat_map(|(count, pace)| std::iter::repeat_n(*pace, *count));
    loop {
        let Some(pace) = paces.next() else {
            break (&mut deleted).await?;
        };
        ask()?;
        tokio::select! {
            result = &mut deleted => break result?,
            () = moment(pace) => {}
        }
    }
    // The last one finds no vhost.
    ask()?;
    let mut unanswered = 0;
    while let Some(answered) = answers.join_next().await {
        unanswered += usize::from(!answered?);
    }
    Ok((requests, unanswered))
}

#[test]
fn services_started_without_a_broker_say_so_wait_and_carry_on() {
    let builder = TestCloud::builder().broker(Broker::Absent);
    with_cloud(builder, async |cloud| {
        both_complain(cloud).await?;
        cloud.wire.plug().await?;
        cloud.wait_all_up().await?;
        cloud.wait_agent_healthy(cloud.hv1()).await?;

        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let instance = cloud
            .wait_active(cloud.create_instance("survivor", &options).await?.id)
            .await?;
        cloud.guest_answers(&instance).await?;
        let qemu = cloud.hv1().pids_of("qemu-system-x86_64")?;

        // Gone, with the guest running: first cut off, then silent, which only missing heartbeats tell.
        for silent in [false, true] {
            if silent {
                cloud.wire.silence();
            } else {
                cloud.wire.cut().await;
            }
            both_complain(cloud).await?;
            cloud.guest_answers(&instance).await?;
            cloud.wire.cut().await;
            cloud.wire.plug().await?;
            cloud.wait_all_up().await?;
            cloud.wait_agent_healthy(cloud.hv1()).await?;
            cloud.wait_active(instance.id).await?;
            assert_eq!(cloud.hv1().pids_of("qemu-system-x86_64")?, qemu);
        }
        Ok(())
    });
}

/// Waits until scheduler and agent both name the bus as what is wrong.
async fn both_complain(cloud: &TestCloud) -> anyhow::Result<()> {
    wait_for(
        "the scheduler to miss the broker",
        NOTICE_LIMIT,
        async || {
            let (status, body) = cloud.scheduler.healthz().await?;
            Ok(Seen::when(status == 503 && misses_the_bus(&body), body))
        },
    )
    .await?;
    wait_for("the agent to miss the broker", NOTICE_LIMIT, async || {
        let (status, body) = TestCloud::agent_healthz(cloud.hv1()).await?;
        Ok(Seen::when(status == 503 && misses_the_bus(&body), body))
    })
    .await
}

fn misses_the_bus(body: &str) -> bool {
    let Ok(health) = serde_json::from_str::<serde_json::Value>(body) else {
        return false;
    };
    let bus = &health["components"]["bus"];
    bus["status"] == "degraded"
        && bus["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("not connected since"))
}
