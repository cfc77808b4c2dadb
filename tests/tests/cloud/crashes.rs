//! `kill -9` at many different moments: whatever was accepted comes about by itself, once, and leaves nothing.
//!
//! The moments are spread over the time an undisturbed run takes, with some chance within each part, drawn from a
//! fixed seed. Every round uses an image that no host has seen, so that fetching is among what is interrupted.

use std::time::{Duration, Instant};

use berth_common::{
    ids::{InstanceId, NetworkId},
    message::{
        request::{InstanceCreate, InstanceDelete},
        view::VmState,
    },
};
use berth_tests::{
    TestCloud,
    cloud::{CALL_LIMIT, InstanceOptions},
    image,
    wait::{Seen, moment, wait_for},
    with_cloud,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

/// Moments in each of creating and deleting.
const MOMENTS: u32 = 20;
/// The seed of the moments.
const SEED: u64 = 20_260_101;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    /// The agent of the hypervisor with this index.
    Agent(usize),
    Scheduler,
}

#[test]
fn an_agent_killed_at_any_moment_of_create_and_delete_finishes_both_after_its_restart() {
    with_cloud(TestCloud::builder(), async |cloud| {
        kill_everywhere(cloud, Victim::Agent(0)).await
    });
}

#[test]
fn a_scheduler_killed_at_any_moment_of_create_and_delete_finishes_both_after_its_restart() {
    with_cloud(TestCloud::builder(), async |cloud| {
        kill_everywhere(cloud, Victim::Scheduler).await
    });
}

async fn kill_everywhere(cloud: &mut TestCloud, victim: Victim) -> anyhow::Result<()> {
    let network = cloud.create_network("front", 1).await?;
    let (create_takes, delete_takes) = undisturbed(cloud, network.id).await?;
    let mut random = StdRng::seed_from_u64(SEED);
    for part in 0..MOMENTS {
        let request = request(cloud, network.id, &format!("round-{part}")).await?;
        let after = random_moment(&mut random, create_takes, part, MOMENTS);
        create_and_kill(cloud, &request, victim, after)
            .await
            .map_err(|error| {
                error.context(format!(
                    "{victim:?} killed {after:?} after create, round {part}"
                ))
            })?;
        let after = random_moment(&mut random, delete_takes, part, MOMENTS);
        delete_and_kill(cloud, request.id, victim, after)
            .await
            .map_err(|error| {
                error.context(format!(
                    "{victim:?} killed {after:?} after delete, round {part}"
                ))
            })?;
    }
    Ok(())
}

/// How long creating and deleting take when nobody disturbs.
async fn undisturbed(
    cloud: &TestCloud,
    network: NetworkId,
) -> anyhow::Result<(Duration, Duration)> {
    let request = request(cloud, network, "undisturbed").await?;
    let start = Instant::now();
    cloud.call(&request).await?;
    cloud.wait_active(request.id).await?;
    let create_takes = start.elapsed();
    let start = Instant::now();
    cloud.delete_and_wait(request.id).await?;
    Ok((create_takes, start.elapsed()))
}

/// A moment within one of several parts of a time; the parts reach a little beyond its end.
pub(super) fn random_moment(
    random: &mut impl Rng,
    all: Duration,
    part: u32,
    parts: u32,
) -> Duration {
    let width = all.mul_f64(1.1) / parts;
    width * part + width.mul_f64(random.random_range(0.0..1.0))
}

async fn request(
    cloud: &TestCloud,
    network: NetworkId,
    name: &str,
) -> anyhow::Result<InstanceCreate> {
    let file = image::fresh_copy(&cloud.services.guest_image, cloud.site.dir(), name)?;
    let options = InstanceOptions {
        networks: vec![network],
        image: Some(image::of_file(&file)?),
        ..InstanceOptions::default()
    };
    cloud.instance_request(name, &options)
}

pub(super) async fn kill_and_restart(cloud: &mut TestCloud, victim: Victim) -> anyhow::Result<()> {
    match victim {
        Victim::Agent(index) => {
            cloud.hypervisors[index].kill_agent()?;
            cloud.hypervisors[index].spawn_agent().await
        }
        Victim::Scheduler => {
            cloud.scheduler.kill()?;
            cloud.scheduler.start()
        }
    }
}

async fn create_and_kill(
    cloud: &mut TestCloud,
    request: &InstanceCreate,
    victim: Victim,
    after: Duration,
) -> anyhow::Result<()> {
    // The kill may be quicker than the answer: whoever got no answer asks the same again.
    let rpc = cloud.rpc.clone();
    let asked = request.clone();
    let answer = tokio::spawn(async move {
        use berth_common::message::request::Method;
        rpc.call(
            InstanceCreate::NAME,
            InstanceCreate::VERSION,
            &asked,
            CALL_LIMIT,
        )
        .await
    });
    moment(after).await;
    kill_and_restart(cloud, victim).await?;
    let answered = answer.await?.is_ok();
    let again = cloud.call(request).await?;
    assert_eq!(again.id, request.id, "answered the first time: {answered}");
    cloud.wait_active(request.id).await?;

    let domains = cloud.hv1().domains().await?;
    assert_eq!(domains, [format!("berth-{}", request.id)]);
    assert_eq!(cloud.hv1().pids_of("qemu-system-x86_64")?.len(), 1);
    assert_eq!(cloud.hv1().pids_of("dnsmasq")?.len(), 1);
    assert_eq!(cloud.hv1().pids_of("berth-metadata")?.len(), 1);
    assert_eq!(cloud.host("hv1").await?.instances, 1);
    Ok(())
}

async fn delete_and_kill(
    cloud: &mut TestCloud,
    id: InstanceId,
    victim: Victim,
    after: Duration,
) -> anyhow::Result<()> {
    let rpc = cloud.rpc.clone();
    let answer = tokio::spawn(async move {
        use berth_common::message::request::Method;
        let request = InstanceDelete {
            instance: id.to_string(),
            project: Default::default(),
        };
        rpc.call(
            InstanceDelete::NAME,
            InstanceDelete::VERSION,
            &request,
            CALL_LIMIT,
        )
        .await
    });
    moment(after).await;
    kill_and_restart(cloud, victim).await?;
    // An answer is no condition of progress, but one without an answer has to be repeated.
    if answer.await?.is_err() {
        cloud.delete(id).await?;
    }
    cloud.wait_deleted(id).await?;
    wait_for("nothing to be left", Duration::from_secs(30), async || {
        let remains = cloud.hv1().remains().await?;
        Ok(Seen::when(remains.is_empty(), remains))
    })
    .await?;
    assert_eq!(cloud.show(id).await?.vm_state, VmState::Deleted);
    Ok(())
}
