//! A cloud for one test: broker vhost, database, scheduler and agents, all real, all its own.
//!
//! [`with_cloud`] is the way in: it starts the cloud, runs the test, and checks that nothing is left behind.

pub mod builder;
mod calls;
mod database;
mod finish;
mod guest;
mod keyed;
mod networks;
mod pages;
mod power;
mod scheduler;
pub mod sim;
mod snapshots;
pub mod volumes;
mod writers;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use berth_common::bus::{RabbitBus, RpcClient};
use tokio::sync::Semaphore;

use self::{builder::Builder, database::Database, sim::SimAgents};
use crate::{
    broker::Vhost,
    lab::{Hypervisor, Outside, Site, Wire},
    services::Services,
};

pub use calls::{CALL_LIMIT, InstanceOptions, insist, insist_on_end};
pub use database::Store;
pub use finish::CONVERGE_LIMIT;
pub use guest::{GuestStatus, Kept, NOT_LOGGED_IN};
pub use keyed::{Guest, GuestOptions};
pub use scheduler::Scheduler;
pub use sim::{Sims, imaginary_image};
pub use volumes::VolumeOptions;

/// Clouds at once: as many as a small machine bears. More tests wait for their turn.
static CLOUDS: Semaphore = Semaphore::const_new(2);
/// No test takes longer than this.
const TEST_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Lines of each log that a failed test shows.
const LOG_LINES: usize = 60;

/// A running cloud. Its parts are public: tests break them on purpose.
#[derive(Debug)]
pub struct TestCloud {
    /// The bus, not through the wire.
    pub bus: Arc<RabbitBus>,
    /// Requests to the scheduler, not through the wire.
    pub rpc: RpcClient,
    /// The scheduler's process.
    pub scheduler: Scheduler,
    /// Another scheduler on the same broker and database, if the test started one.
    pub standby: Option<Scheduler>,
    /// The simulated hypervisors.
    pub sims: Vec<SimAgents>,
    /// The hypervisors, `hv1` first.
    pub hypervisors: Vec<Hypervisor>,
    /// The machine outside, if the hypervisors have a second NIC.
    outside: Option<Outside>,
    /// Through which scheduler and agents reach the broker.
    pub wire: Wire,
    /// The vhost.
    pub vhost: Vhost,
    /// Folder and network.
    pub site: Site,
    /// The services that all clouds share.
    pub services: Services,
    database: Database,
    /// Messages that this test expects in `berth.dead` at its end.
    expected_dead: u64,
    closed: bool,
}

/// Starts a cloud, runs a test on it, and checks at the end that nothing is left behind. A test that fails shows
/// the ends of all logs.
///
/// # Panics
/// When the test fails: this is for tests.
#[expect(clippy::panic, reason = "a test fails by panicking")]
pub fn with_cloud(builder: Builder, test: impl AsyncFnOnce(&mut TestCloud) -> anyhow::Result<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = runtime.context("no runtime").and_then(|runtime| {
        runtime.block_on(async {
            let _turn = CLOUDS.acquire().await?;
            let mut cloud = builder.start().await?;
            let run = async {
                test(&mut cloud).await?;
                cloud.finish().await
            };
            let result = tokio::time::timeout(TEST_LIMIT, run)
                .await
                .unwrap_or_else(|_| {
                    Err(anyhow::anyhow!(
                        "the test took longer than {} s",
                        TEST_LIMIT.as_secs()
                    ))
                });
            if result.is_err() {
                cloud.show_logs();
            }
            // Whatever happened, the cloud is taken down here; what could not be taken down is a failure too.
            let wrong = cloud.tear_down();
            result?;
            anyhow::ensure!(
                wrong.is_empty(),
                "left behind on this machine:\n{}",
                wrong.join("\n")
            );
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

impl TestCloud {
    /// A cloud of one hypervisor; change what should differ.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a second scheduler on the same broker and database, and waits until it stands by.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_standby(&mut self) -> anyhow::Result<()> {
        let mut standby = self.scheduler.second();
        standby.start()?;
        standby.wait_stands_by().await?;
        self.standby = Some(standby);
        Ok(())
    }

    /// The second scheduler.
    ///
    /// # Errors
    /// There is none.
    pub fn standby(&mut self) -> anyhow::Result<&mut Scheduler> {
        self.standby
            .as_mut()
            .context("there is no second scheduler")
    }

    /// The machine outside.
    ///
    /// # Errors
    /// The cloud was built without.
    pub fn outside(&self) -> anyhow::Result<&Outside> {
        self.outside.as_ref().context("there is nothing outside")
    }

    /// The first hypervisor.
    #[must_use]
    pub fn hv1(&self) -> &Hypervisor {
        &self.hypervisors[0]
    }

    /// The first hypervisor, to do things to.
    #[must_use]
    pub fn hv1_mut(&mut self) -> &mut Hypervisor {
        &mut self.hypervisors[0]
    }

    /// The address of the broker with this cloud's vhost, not through the wire.
    #[must_use]
    pub fn broker_url(&self) -> String {
        format!("{}/{}", self.services.amqp, self.vhost.name())
    }

    /// The address of the scheduler's database.
    #[must_use]
    pub fn database_url(&self) -> &str {
        self.database.url()
    }

    /// Tells the leak check that so many messages in `berth.dead` are meant to be there.
    pub fn expect_dead(&mut self, messages: u64) {
        self.expected_dead = messages;
    }

    /// Prints the ends of all logs, for a test that failed.
    #[expect(clippy::print_stderr, reason = "the output of a test")]
    pub fn show_logs(&self) {
        let schedulers = std::iter::once(&self.scheduler).chain(&self.standby);
        let agents = self.hypervisors.iter().map(Hypervisor::agent_log);
        let sims = self.sims.iter().map(|sims| sims.log().to_owned());
        for path in schedulers.map(Scheduler::log).chain(agents).chain(sims) {
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
            let lines: Vec<&str> = text.lines().collect();
            let start = lines.len().saturating_sub(LOG_LINES);
            eprintln!(
                "--- {} (last {} of {} lines)",
                path.display(),
                lines.len() - start,
                lines.len()
            );
            for line in lines.iter().skip(start) {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for TestCloud {
    fn drop(&mut self) {
        if !self.closed {
            self.show_logs();
            self.tear_down();
        }
    }
}
