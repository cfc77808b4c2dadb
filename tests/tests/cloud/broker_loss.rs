//! The broker goes away, with or without its vhost: messages are hints, the database is the truth.

use std::time::{Duration, Instant};

use berth_common::{
    document::DesiredPower,
    message::{
        request::{InstanceCreate, Method},
        view::VmState,
    },
};
use berth_tests::{
    TestCloud,
    cloud::{InstanceOptions, builder::Broker},
    wait::{Seen, moment, wait_for},
    with_cloud,
};

/// Requests under way when the vhost goes.
const REQUESTS: usize = 8;
/// How long everything accepted may take once the broker is back.
const RECOVERY: Duration = Duration::from_secs(30);
const NOTICE_LIMIT: Duration = Duration::from_secs(40);

#[test]
fn deleting_the_vhost_under_way_loses_nothing_that_was_accepted_and_duplicates_nothing() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            power: DesiredPower::Stopped,
            ..InstanceOptions::default()
        };
        let mut requests = Vec::new();
        for number in 0..REQUESTS {
            let mut request = cloud.instance_request(&format!("r{number}"), &options)?;
            if number == 0 {
                request.power = DesiredPower::Running;
            }
            requests.push(request);
        }
        let first_half = requests.iter().take(REQUESTS / 2);
        for request in first_half {
            cloud.call(request).await?;
        }
        // The second half is asked for while the vhost goes; nobody minds the answers.
        let asked: Vec<_> = requests
            .iter()
            .skip(REQUESTS / 2)
            .cloned()
            .map(|request| {
                let rpc = cloud.rpc.clone();
                tokio::spawn(async move {
                    let limit = Duration::from_secs(2);
                    rpc.call(
                        InstanceCreate::NAME,
                        InstanceCreate::VERSION,
                        &request,
                        limit,
                    )
                    .await
                    .is_ok()
                })
            })
            .collect();
        cloud.vhost.delete().await?;
        for asked in asked {
            // Answered or not: an answer may have gone with the vhost.
            asked.await?;
        }
        cloud.vhost.add().await?;
        let back = Instant::now();

        // Whoever got no answer asks again; whoever got one may ask again too.
        for request in &requests {
            wait_for(
                &format!("an answer for {}", request.name),
                RECOVERY,
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
            cloud
                .wait_state(request.id, state, RECOVERY.saturating_sub(back.elapsed()))
                .await?;
        }
        let taken = back.elapsed();
        assert!(taken <= RECOVERY, "{taken:?} after the broker was back");
        assert_eq!(cloud.instances().await?.len(), REQUESTS);
        assert_eq!(cloud.hv1().domains().await?.len(), REQUESTS);
        assert_eq!(cloud.host("hv1").await?.instances, u64::try_from(REQUESTS)?);
        Ok(())
    });
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

        // Gone for a while, with the guest running.
        cloud.wire.cut().await;
        both_complain(cloud).await?;
        moment(Duration::from_secs(5)).await;
        assert_eq!(cloud.hv1().pids_of("qemu-system-x86_64")?, qemu);
        cloud.guest_answers(&instance).await?;
        cloud.wire.plug().await?;
        cloud.wait_all_up().await?;
        cloud.wait_agent_healthy(cloud.hv1()).await?;
        cloud.wait_active(instance.id).await?;
        assert_eq!(cloud.hv1().pids_of("qemu-system-x86_64")?, qemu);
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
