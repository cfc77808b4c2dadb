//! The running scheduler: connects everything and ends it in order.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use berth_common::{
    bus::{Bus, BusError, BusHealth, QueueDecl, RabbitBus, RabbitConfig},
    message::app,
    telemetry::{
        error_chain,
        health::{Component, Health},
        http,
        registry::Metrics,
    },
};
use berth_store::{Store, StoreConfig, hosts};
use chrono::Utc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{config::Config, context::Context, dispatch, inbox, metrics::SchedulerMetrics};

/// How often the database is asked whether it is there, and the gauges are set.
const CHECK: Duration = Duration::from_secs(2);

/// Runs a scheduler until cancelled.
///
/// # Errors
/// What waiting cannot mend: a bad address, a schema that is newer than this program, another scheduler on the
/// same SQLite file. An absent broker or database is waited for.
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

    let bus = Arc::new(RabbitBus::start(RabbitConfig::new(
        config.bus_url.expose(),
        app::SCHEDULER,
    ))?);
    let mut tasks = JoinSet::new();
    tasks.spawn(unfailing(watch_bus(
        bus.health(),
        health.component("bus"),
        cancel.clone(),
    )));

    let Some(store) = open_store(&config, &health, &cancel).await? else {
        return Ok(());
    };
    let _lock = store
        .try_lock_exclusive()
        .await
        .context("this database belongs to another scheduler")?;
    let context = Arc::new(Context::new(config, store, bus, scheduler_metrics));
    seed_liveness(&context).await?;

    tasks.spawn(unfailing(watch_store(
        Arc::clone(&context),
        health.component("store"),
        cancel.clone(),
    )));
    tasks.spawn(unfailing(declare_host_queues(Arc::clone(&context))));
    spawn_flow(&mut tasks, &context, &cancel);
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();

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
    context.bus.close().await;
    server.await??;
    tracing::info!("scheduler ends");
    outcome
}

/// The flow itself: what takes messages in, and what publishes documents.
pub fn spawn_flow(
    tasks: &mut JoinSet<Result<(), BusError>>,
    context: &Arc<Context>,
    cancel: &CancellationToken,
) {
    tasks.spawn(unfailing(dispatch::run(
        Arc::clone(context),
        cancel.clone(),
    )));
    tasks.spawn(inbox::requests::run(Arc::clone(context), cancel.clone()));
    tasks.spawn(inbox::reports::run(Arc::clone(context), cancel.clone()));
    tasks.spawn(inbox::heartbeats::run(Arc::clone(context), cancel.clone()));
}

/// A task that has no way to fail, among those that have.
async fn unfailing(task: impl Future<Output = ()>) -> Result<(), BusError> {
    task.await;
    Ok(())
}

/// Connects to the database and brings its schema up to date, however long that takes; `None` when cancelled.
async fn open_store(
    config: &Config,
    health: &Health,
    cancel: &CancellationToken,
) -> anyhow::Result<Option<Store>> {
    let component = health.component("store");
    let store_config = StoreConfig {
        url: config.store_url.expose().clone(),
        max_connections: config.store_max_connections,
    };
    loop {
        let opened = async {
            let store = Store::connect(&store_config).await?;
            store.migrate().await?;
            Ok::<_, berth_store::StoreError>(store)
        };
        match opened.await {
            Ok(store) => {
                component.ok();
                return Ok(Some(store));
            }
            Err(error) if error.retryable() => {
                let reason = error_chain(&error);
                tracing::warn!(store = %config.store_url.redacted_url(), reason, "the database is out of reach; waiting");
                component.degraded(reason);
                tokio::select! {
                    () = cancel.cancelled() => return Ok(None),
                    () = tokio::time::sleep(CHECK) => {}
                }
            }
            Err(error) => return Err(error).context("the database cannot be used"),
        }
    }
}

/// Hosts that were heard of shortly before this start count as alive until they prove otherwise.
async fn seed_liveness(context: &Context) -> anyhow::Result<()> {
    let now = Instant::now();
    for host in hosts::all(context.store.pool()).await? {
        let ago = (Utc::now() - host.last_heartbeat_at)
            .to_std()
            .unwrap_or_default();
        if let Some(at) = now.checked_sub(ago) {
            context.liveness(|liveness| liveness.heard(host.id, at));
        }
    }
    Ok(())
}

/// Declares the queue of every known host, so that a document has somewhere to go while its agent is away.
async fn declare_host_queues(context: Arc<Context>) {
    let hosts = match hosts::all(context.store.pool()).await {
        Ok(hosts) => hosts,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "host queues are declared when they are first used");
            return;
        }
    };
    for host in hosts {
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

async fn watch_store(context: Arc<Context>, component: Component, cancel: CancellationToken) {
    loop {
        match context.store.ping().await {
            Ok(()) => component.ok(),
            Err(error) => component.degraded(error_chain(&error)),
        }
        let (up, down) = context
            .liveness(|liveness| liveness.count(context.config.heartbeat_timeout, Instant::now()));
        context.metrics.hosts(up, down);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(CHECK) => {}
        }
    }
}
