//! The running scheduler: connects everything and ends it in order.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use berth_common::{
    bus::{Bus, BusError, BusHealth, Consumer, Delivery, QueueDecl, RabbitBus, RabbitConfig},
    message::app,
    telemetry::{
        error_chain,
        health::{Component, Health},
        http,
        registry::Metrics,
    },
};
use berth_store::{
    ExclusiveLock, Store, StoreConfig, StoreError, decisions, documents, hosts, leadership, nonces,
};
use chrono::{TimeDelta, Utc};
use futures::FutureExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    claim::{
        ClaimError,
        routers::{self, supply::Supplied},
    },
    config::Config,
    context::Context,
    dispatch::{self, Fresh},
    inbox, leader, liveness,
    metrics::SchedulerMetrics,
    report::order::ReportOrder,
};

/// How often the database is asked whether it is there, and the gauges are set.
const CHECK: Duration = Duration::from_secs(2);
/// How often what nobody can ask for any more is forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);
/// How soon after a takeover for the first time.
const FIRST_HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How soon it is seen to that a host got no address of an external subnet.
const FIRST_SUPPLY: Duration = Duration::from_secs(2);
/// How often that is tried at the least, while it lacks one.
const LAST_SUPPLY: Duration = Duration::from_secs(60);
/// Rows deleted in one transaction.
const SWEPT_AT_ONCE: u32 = 1000;
/// How long the document of something that is gone is kept: twice as long as an agent keeps its tombstone, so that
/// its generation never starts anew while a host could know a later one.
const KEEP_TOMBSTONES: TimeDelta = TimeDelta::days(14);
/// How long a reboot's nonce is remembered: no client repeats a request after that.
const KEEP_NONCES: TimeDelta = TimeDelta::days(30);

/// Runs a scheduler until cancelled: stands by until it is its turn, then leads.
///
/// # Errors
/// What waiting cannot mend: a bad address, a schema that is newer than this program, another scheduler on the
/// same SQLite file, another scheduler that took over. An absent broker or database is waited for.
pub async fn run(config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::new("scheduler", env!("CARGO_PKG_VERSION"))?;
    let scheduler_metrics = SchedulerMetrics::new(&metrics)?;
    let health = Health::new();
    health.export(&metrics)?;
    let listener = http::bind(config.listen).await?;
    tracing::info!(listen = %config.listen, version = env!("CARGO_PKG_VERSION"), "scheduler starts");
    let server = tokio::spawn(http::serve(
        listener,
        metrics,
        health.clone(),
        cancel.clone(),
    ));

    let bus: Arc<dyn Bus> = Arc::new(RabbitBus::start(RabbitConfig {
        heartbeat: config.bus_heartbeat,
        ..RabbitConfig::new(config.bus_url.expose(), app::SCHEDULER)
    })?);
    let mut tasks = JoinSet::new();
    tasks.spawn(unfailing(watch_bus(
        bus.health(),
        health.component("bus"),
        cancel.clone(),
    )));

    // Waiting for a database, and for its turn, is part of a scheduler's work, not of its start.
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
    let outcome = stand_by_and_lead(config, &bus, &health, scheduler_metrics, tasks, &cancel).await;
    cancel.cancel();
    bus.close().await;
    server.await??;
    tracing::info!("scheduler ends");
    outcome
}

async fn stand_by_and_lead(
    config: Config,
    bus: &Arc<dyn Bus>,
    health: &Health,
    metrics: SchedulerMetrics,
    mut tasks: JoinSet<Result<(), TaskError>>,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let Some((store, _lock)) = open_store(&config, health, cancel).await? else {
        return Ok(());
    };
    tasks.spawn(unfailing(watch_store(
        store.clone(),
        health.component("store"),
        cancel.clone(),
    )));
    let mut requests = bus
        .consume(&QueueDecl::scheduler(), inbox::requests::PREFETCH)
        .await?;
    tracing::info!("standing by");
    let Some(first) = leader::wait(bus.as_ref(), &store, &mut requests, cancel).await else {
        return Ok(());
    };
    let Some((context, fresh)) = take_over(config, store, bus, metrics, cancel).await? else {
        return Ok(());
    };
    let context = Arc::new(context);
    watch(&mut tasks, &context, health.component("hosts"), cancel);
    let flow = Flow {
        requests,
        first: Some(first),
        fresh,
    };
    flow.spawn(&mut tasks, &context, cancel);

    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            .context("a task of the scheduler panicked")?
            .context("the scheduler cannot go on")
        {
            outcome = outcome.and(Err(error));
            cancel.cancel();
        }
    }
    outcome
}

/// Becomes the leader, with the rows as they are then in memory, however long the database is out of reach; `None` when
/// cancelled.
async fn take_over(
    config: Config,
    store: Store,
    bus: &Arc<dyn Bus>,
    metrics: SchedulerMetrics,
    cancel: &CancellationToken,
) -> anyhow::Result<Option<(Context, Fresh)>> {
    let holder = format!(
        "{} process {}",
        nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        std::process::id()
    );
    // Whoever is elected without a database must not keep the others from being it.
    let mut gives_way = std::pin::pin!(leader::gives_way(bus.as_ref(), &store));
    loop {
        let taken = async {
            let epoch = leadership::take(store.pool(), &holder, Utc::now()).await?;
            let (context, fresh) = Context::take_over(
                config.clone(),
                store.clone(),
                Arc::clone(bus),
                metrics.clone(),
                epoch,
            )
            .await?;
            seed_liveness(&context).await?;
            Ok::<_, StoreError>((context, fresh))
        };
        let taken = tokio::select! {
            taken = taken => taken,
            silence = &mut gives_way => return Err(TaskError::GivesWay { silence }.into()),
        };
        let error = match taken {
            Ok((context, fresh)) => {
                let epoch = context.epoch.get();
                context.metrics.leads(epoch);
                tracing::info!(epoch, "this scheduler leads");
                return Ok(Some((context, fresh)));
            }
            Err(error) => error,
        };
        if !error.retryable() {
            return Err(error).context("the database cannot be used");
        }
        tracing::warn!(error = %error_chain(&error), "the lead cannot be taken yet; trying again");
        tokio::select! {
            () = cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(CHECK) => {}
        }
    }
}

/// What takes messages in, and what publishes documents.
pub struct Flow {
    /// The requests.
    pub requests: Consumer,
    /// What was taken off their queue already.
    pub first: Option<Delivery>,
    /// What is committed and to be published.
    pub fresh: Fresh,
}

impl Flow {
    /// Runs all of it.
    pub fn spawn(
        self,
        tasks: &mut JoinSet<Result<(), TaskError>>,
        context: &Arc<Context>,
        cancel: &CancellationToken,
    ) {
        tasks.spawn(unfailing(dispatch::run(
            Arc::clone(context),
            cancel.clone(),
        )));
        tasks.spawn(unfailing(dispatch::run_fresh(
            Arc::clone(context),
            self.fresh,
            cancel.clone(),
        )));
        let consumers = [
            inbox::requests::run(
                Arc::clone(context),
                self.requests,
                self.first,
                cancel.clone(),
            )
            .boxed(),
            inbox::reports::run(Arc::clone(context), cancel.clone()).boxed(),
            inbox::heartbeats::run(Arc::clone(context), cancel.clone()).boxed(),
        ];
        for consumer in consumers {
            tasks.spawn(async { consumer.await.map_err(TaskError::Bus) });
        }
    }
}

/// What a leader does beside serving messages: judges hosts, learns that another took over, keeps house.
pub fn watch(
    tasks: &mut JoinSet<Result<(), TaskError>>,
    context: &Arc<Context>,
    hosts: Component,
    cancel: &CancellationToken,
) {
    let shared = || Arc::clone(context);
    tasks.spawn(watch_hosts(shared(), hosts, cancel.clone()));
    tasks.spawn(watch_reach(shared(), cancel.clone()));
    tasks.spawn(unfailing(watch_listening(shared(), cancel.clone())));
    tasks.spawn(unfailing(housekeeping(shared(), cancel.clone())));
    tasks.spawn(unfailing(supply_addresses(shared(), cancel.clone())));
    tasks.spawn(unfailing(declare_host_queues(shared(), cancel.clone())));
}

/// Why a scheduler cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A queue cannot be consumed.
    #[error("a queue cannot be consumed")]
    Bus(#[source] BusError),
    /// Another scheduler leads.
    #[error(
        "another scheduler took over from this one, which was leader number {ours}; started anew, it stands by"
    )]
    Fenced {
        /// Which leader this one was.
        ours: u64,
    },
    /// The database is out of reach, and another scheduler could lead.
    #[error(
        "the database has not answered for {} s, and another scheduler stands by that reaches it: this one gives way; \
         started anew, it stands by", silence.as_secs()
    )]
    GivesWay {
        /// For how long it has not answered.
        silence: Duration,
    },
}

/// A task that has no way to fail, among those that have.
async fn unfailing(task: impl Future<Output = ()>) -> Result<(), TaskError> {
    task.await;
    Ok(())
}

/// Connects to the database, brings its schema up to date and claims it for this scheduler, however long that takes;
/// `None` when cancelled.
async fn open_store(
    config: &Config,
    health: &Health,
    cancel: &CancellationToken,
) -> anyhow::Result<Option<(Store, Option<ExclusiveLock>)>> {
    let component = health.component("store");
    let store_config = StoreConfig {
        url: config.store_url.expose().clone(),
        max_connections: config.store_max_connections,
    };
    let mut told = false;
    loop {
        let opened = async {
            let store = Store::connect(&store_config).await?;
            let lock = store.try_lock_exclusive()?;
            store.migrate().await?;
            Ok::<_, StoreError>((store, lock))
        };
        let error = match opened.await {
            Ok(opened) => {
                component.ok();
                return Ok(Some(opened));
            }
            Err(error) => error,
        };
        if !error.retryable() {
            return Err(error).context("the database cannot be used");
        }
        let reason = error_chain(&error);
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(store = %config.store_url.redacted_url(), reason, "waiting for the database");
        }
        component.degraded(reason);
        tokio::select! {
            () = cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(CHECK) => {}
        }
    }
}

/// Hosts that were alive when a scheduler last listened count as alive until they prove otherwise.
///
/// # Errors
/// When the database is out of reach.
pub async fn seed_liveness(context: &Context) -> Result<(), StoreError> {
    let rows = hosts::all(context.store.pool()).await?;
    let now = Instant::now();
    let last: Vec<_> = rows
        .iter()
        .map(|host| (host.id, host.last_heartbeat_at))
        .collect();
    let alive = liveness::alive_at_the_end(&last, context.config.patience.timeout);
    context.liveness(|liveness| {
        for host in alive {
            liveness.heard(host, now);
        }
    });
    Ok(())
}

/// Ends a leader that should give way.
async fn watch_reach(context: Arc<Context>, cancel: CancellationToken) -> Result<(), TaskError> {
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        silence = leader::gives_way(context.bus.as_ref(), &context.store) => {
            Err(TaskError::GivesWay { silence })
        }
    }
}

/// Tells the liveness of hosts when nobody can be heard.
async fn watch_listening(context: Arc<Context>, cancel: CancellationToken) {
    let mut health = context.bus.health();
    loop {
        let hears = health.borrow_and_update().is_connected();
        context.liveness(|liveness| {
            if hears {
                liveness.hears_again(Instant::now());
            } else {
                liveness.goes_deaf(Instant::now());
            }
        });
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = health.changed() => if changed.is_err() { return },
        }
    }
}

/// Forgets what nobody can ask for any more.
async fn housekeeping(context: Arc<Context>, cancel: CancellationToken) {
    let mut pause = FIRST_HOUSEKEEPING;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = HOUSEKEEPING;
        context.order(ReportOrder::clear);
        for what in Litter::ALL {
            if let Err(error) = sweep(&context, &cancel, what).await {
                tracing::warn!(
                    what = what.as_str(), error = %error_chain(&error), "housekeeping failed; trying again later"
                );
            }
        }
    }
}

/// Gives hosts the addresses of external subnets that they lack, when there are any: nothing is asked while none lacks one.
async fn supply_addresses(context: Arc<Context>, cancel: CancellationToken) {
    let mut pause = FIRST_SUPPLY;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if !context.took_lack_of_addresses() {
            pause = FIRST_SUPPLY;
            continue;
        }
        let lacks = routers::supply::supply(&context).await;
        if let Err(error) = &lacks {
            tracing::warn!(error = %error_chain(error), "hosts that lack addresses get none; trying again later");
        }
        pause = match lacks {
            Ok(Supplied::All) => FIRST_SUPPLY,
            Ok(Supplied::Batch) => {
                context.lack_addresses();
                FIRST_SUPPLY
            }
            Ok(Supplied::Rest) | Err(_) => {
                context.lack_addresses();
                (pause * 2).min(LAST_SUPPLY)
            }
        };
    }
}

/// Rows that grow old.
#[derive(Debug, Clone, Copy)]
enum Litter {
    Tombstones,
    Nonces,
    Decisions,
}

impl Litter {
    const ALL: [Self; 3] = [Self::Tombstones, Self::Nonces, Self::Decisions];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Tombstones => "tombstones",
            Self::Nonces => "nonces",
            Self::Decisions => "decisions",
        }
    }
}

/// Deletes old rows of a kind, never many in one transaction: requests want their turn.
async fn sweep(
    context: &Context,
    cancel: &CancellationToken,
    what: Litter,
) -> Result<(), ClaimError> {
    while !cancel.is_cancelled() {
        let writing = context.begin().await?;
        let (txn, now, most) = (writing.txn(), writing.now, SWEPT_AT_ONCE);
        let gone = match what {
            Litter::Tombstones => {
                documents::delete_settled_tombstones(txn, now - KEEP_TOMBSTONES, most).await?
            }
            Litter::Nonces => nonces::forget_before(txn, now - KEEP_NONCES, most).await?,
            Litter::Decisions => {
                decisions::delete_before(txn, now - context.config.keep_decisions, most).await?
            }
        };
        writing.commit().await?;
        if gone < u64::from(SWEPT_AT_ONCE) {
            break;
        }
    }
    Ok(())
}

/// Declares the queue of every known host, so that a document has somewhere to go while its agent is away.
async fn declare_host_queues(context: Arc<Context>, cancel: CancellationToken) {
    let hosts = match hosts::all(context.store.pool()).await {
        Ok(hosts) => hosts,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "host queues are declared when they are first used");
            return;
        }
    };
    for host in hosts {
        if cancel.is_cancelled() {
            return;
        }
        if let Err(error) = context
            .bus
            .declare(&QueueDecl::compute(host.name.as_str()))
            .await
        {
            tracing::warn!(host = %host.name, error = %error_chain(&error), "the queue of a host could not be declared");
        }
    }
}

async fn watch_bus(
    mut health: tokio::sync::watch::Receiver<BusHealth>,
    component: Component,
    cancel: CancellationToken,
) {
    loop {
        let now = health.borrow_and_update().clone();
        match &now {
            BusHealth::Connected => component.ok(),
            BusHealth::Connecting {
                last_error: None, ..
            } => component.starting("connecting"),
            other => component.degraded(other.to_string()),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = health.changed() => if changed.is_err() { return },
        }
    }
}

/// Watches the database.
async fn watch_store(store: Store, component: Component, cancel: CancellationToken) {
    loop {
        match store.ping().await {
            Ok(()) => component.ok(),
            Err(error) => component.degraded(error_chain(&error)),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(CHECK) => {}
        }
    }
}

/// Judges which hosts are down, and whether this scheduler still leads.
async fn watch_hosts(
    context: Arc<Context>,
    component: Component,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let patience = context.config.patience;
    loop {
        let known = match context.image().await {
            Ok(image) => image.table().len(),
            Err(error) => {
                tracing::debug!(error = %error_chain(&error), "the hosts cannot be counted now");
                0
            }
        };
        let count = context.liveness(|liveness| liveness.judge(patience, known, Instant::now()));
        context.metrics.hosts(count);
        context.metrics.database(context.store.tally());
        if count.suspected > 0 {
            component.degraded(format!(
                "{} of {} hosts fell silent at once: the fault may be this scheduler's or the broker's; none of them is \
                 declared down, and none gets new instances",
                count.suspected,
                count.suspected.saturating_add(count.up)
            ));
        } else {
            component.ok();
        }
        match leadership::current(context.store.pool()).await {
            Ok(Some(leader)) if leader.epoch > context.epoch => context.fenced.cancel(),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = %error_chain(&error), "who leads cannot be asked now");
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = context.fenced.cancelled() => return Err(TaskError::Fenced { ours: context.epoch.get() }),
            () = tokio::time::sleep(CHECK) => {}
        }
    }
}
