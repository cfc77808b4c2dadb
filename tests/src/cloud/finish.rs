//! The end of a cloud: everything is deleted, and nothing may be left of it, anywhere.

use std::time::Duration;

use berth_common::bus::Bus;
use futures::{StreamExt, TryStreamExt};

use super::{TestCloud, sim::SimAgents};
use crate::{
    raw::RawClient,
    wait::{Seen, wait_for},
};

/// How long anything may take to converge, on a machine that emulates several.
pub const CONVERGE_LIMIT: Duration = Duration::from_secs(90);
const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// Instances whose deletion is asked for at once.
const DELETIONS: usize = 32;

impl TestCloud {
    /// Checks metrics, deletes all instances, volumes, snapshots and what belongs to networks, checks that hypervisors and queues are
    /// empty, and ends all services in order.
    ///
    /// # Errors
    /// Something is left, in words.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        self.everything_runs().await?;
        self.pages_are_sound().await?;
        self.delete_all().await?;
        wait_for("all instances to be gone", CONVERGE_LIMIT, async || {
            // Few words first: there may be a thousand instances.
            let claims: u64 = self.hosts().await?.iter().map(|host| host.instances).sum();
            if claims > 0 {
                return Ok(Seen::NotYet(format!("{claims} have claims")));
            }
            let left: Vec<_> = self
                .instances()
                .await?
                .into_iter()
                .map(|view| {
                    (
                        view.name,
                        view.vm_state,
                        view.task_state,
                        view.progress,
                        view.fault,
                    )
                })
                .collect();
            Ok(Seen::when(left.is_empty(), left))
        })
        .await?;
        wait_for("all volumes to be gone", CONVERGE_LIMIT, async || {
            let left = self.volumes().await?;
            Ok(Seen::when(left.is_empty(), left))
        })
        .await?;
        wait_for("all snapshots to be gone", CONVERGE_LIMIT, async || {
            let left = self.snapshots().await?;
            Ok(Seen::when(left.is_empty(), left))
        })
        .await?;
        self.delete_networks().await?;
        for hypervisor in &self.hypervisors {
            wait_for(
                &format!("nothing to be left on {}", hypervisor.name()),
                CONVERGE_LIMIT,
                async || {
                    let remains = hypervisor.remains().await?;
                    Ok(Seen::when(remains.is_empty(), remains))
                },
            )
            .await?;
        }
        self.claims_are_gone().await?;
        self.nothing_runs_on_simulated_hosts().await?;
        self.queues_are_empty().await?;
        self.stop_in_order().await
    }

    /// Asks for the end of all instances, volumes and snapshots. A volume of an instance that is being deleted goes after it.
    ///
    /// # Errors
    /// One is refused.
    pub async fn delete_all(&self) -> anyhow::Result<()> {
        let instances = self.instances().await?;
        futures::stream::iter(&instances)
            .map(|instance| self.delete(instance.id))
            .buffer_unordered(DELETIONS)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await?;
        for volume in self.volumes().await? {
            self.delete_volume(volume.id).await?;
        }
        for snapshot in self.snapshots().await? {
            self.delete_snapshot(snapshot.id).await?;
        }
        Ok(())
    }

    /// They are told of nothing any more, and say that nothing runs.
    async fn nothing_runs_on_simulated_hosts(&self) -> anyhow::Result<()> {
        if self.sims.is_empty() {
            return Ok(());
        }
        self.wait_all_run(0).await?;
        let told = self.told_once()?;
        anyhow::ensure!(told.is_empty(), "simulated hosts still have {told:?}");
        Ok(())
    }

    /// A test may end with killed services: the end of everything else is theirs to bring about.
    async fn everything_runs(&mut self) -> anyhow::Result<()> {
        self.wire.plug().await?;
        if !self.scheduler.is_started() {
            self.scheduler.start()?;
        }
        for hypervisor in &mut self.hypervisors {
            if !hypervisor.has_agent() {
                hypervisor.spawn_agent().await?;
            }
        }
        self.wait_all_up().await
    }

    async fn claims_are_gone(&self) -> anyhow::Result<()> {
        for host in self.hosts().await? {
            anyhow::ensure!(
                host.instances == 0 && host.projects.is_empty(),
                "{} still has {} claims: {:?}",
                host.name,
                host.instances,
                host.projects
            );
        }
        Ok(())
    }

    async fn queues_are_empty(&self) -> anyhow::Result<()> {
        let computes = self
            .hypervisors
            .iter()
            .map(|hypervisor| hypervisor.name().to_owned())
            .chain(self.sims.iter().flat_map(SimAgents::host_names))
            .map(|host| format!("compute.{host}"));
        let queues: Vec<String> = ["scheduler", "scheduler.reports"]
            .into_iter()
            .map(str::to_owned)
            .chain(computes)
            .collect();
        wait_for("all queues to be empty", QUIET_LIMIT, async || {
            let mut depths = Vec::new();
            for queue in &queues {
                let depth = self.bus.queue_depth(queue).await?.unwrap_or_default();
                depths.push((queue.as_str(), depth));
            }
            let dead = self
                .bus
                .queue_depth("berth.dead")
                .await?
                .unwrap_or_default();
            depths.push(("berth.dead", dead));
            let empty = depths
                .iter()
                .all(|(queue, depth)| *queue == "berth.dead" || *depth == 0);
            if dead > self.expected_dead {
                return Ok(Seen::Never(format!("{depths:?}; {}", self.dead().await?)));
            }
            Ok(Seen::when(empty && dead == self.expected_dead, depths))
        })
        .await?;
        let questions = queues
            .iter()
            .filter_map(|queue| queue.strip_prefix("compute."))
            .map(|host| format!("ask.{host}"));
        let known: Vec<String> = queues
            .iter()
            .cloned()
            .chain(questions)
            .chain(["scheduler.heartbeats", "scheduler.standby", "berth.dead"].map(str::to_owned))
            .collect();
        let strange: Vec<String> = self
            .vhost
            .queues()
            .await?
            .into_iter()
            // Reply queues of clients that are still connected.
            .filter(|name| !known.contains(name) && !name.starts_with("amq.gen-"))
            .collect();
        anyhow::ensure!(strange.is_empty(), "queues that nobody knows: {strange:?}");
        Ok(())
    }

    /// What is in `berth.dead`, in words.
    async fn dead(&self) -> anyhow::Result<String> {
        let client = RawClient::connect(&self.broker_url()).await?;
        let mut dead = Vec::new();
        while let Some(message) = client.take_dead().await? {
            dead.push(message);
        }
        Ok(format!("{dead:?}"))
    }

    async fn stop_in_order(&mut self) -> anyhow::Result<()> {
        for hypervisor in &mut self.hypervisors {
            hypervisor.terminate_agent().await?;
        }
        for sims in &mut self.sims {
            sims.terminate().await?;
        }
        if let Some(standby) = self.standby.as_mut().filter(|it| it.is_started()) {
            standby.terminate().await?;
        }
        self.scheduler.terminate().await
    }

    /// Switches everything off and removes it, and says what could not be removed or should not be there.
    pub(super) fn tear_down(&mut self) -> Vec<String> {
        self.closed = true;
        let mut wrong = Vec::new();
        for scheduler in std::iter::once(&mut self.scheduler).chain(&mut self.standby) {
            if scheduler.is_started() {
                wrong.extend(scheduler.kill().err().map(|error| format!("{error:#}")));
            }
        }
        for sims in &mut self.sims {
            wrong.extend(sims.remove().err().map(|error| format!("{error:#}")));
        }
        if let Some(outside) = &mut self.outside {
            wrong.extend(outside.end().err().map(|error| format!("{error:#}")));
        }
        for hypervisor in &mut self.hypervisors {
            wrong.extend(
                hypervisor
                    .power_cut()
                    .err()
                    .map(|error| format!("{error:#}")),
            );
        }
        // The site last: the wire's address, vhost and database bear its number, which is the next test's as soon as it
        // is closed.
        for removed in [
            self.wire.cut_blocking(),
            self.vhost.remove(),
            self.database.remove(),
        ] {
            wrong.extend(removed.err().map(|error| format!("{error:#}")));
        }
        wrong.extend(self.site.close());
        wrong
    }
}
