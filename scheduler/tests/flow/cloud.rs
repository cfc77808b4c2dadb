//! A scheduler, its broker and its database; several may follow one another, or overlap, on the same database.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_common::{
    bus::{Bus, LocalBroker, Message, QueueDecl, RpcClient},
    config::Reader,
    ids::{HostId, InstanceId},
    message::{
        request::{HostShow, InstanceShow, Method, NetworkDelete, PlacementExplain, Reply},
        view::{HostState, HostView, InstanceView},
    },
    refusal::{Refusal, RefusalCode},
    telemetry::{health::Health, registry::Metrics},
};
use berth_scheduler::{
    config::Config,
    context::Context,
    inbox::requests::PREFETCH,
    liveness::Patience,
    metrics::SchedulerMetrics,
    service::{self, Flow, TaskError},
};
use berth_store::{
    Store, StoreConfig,
    claims::{self, ClaimRow},
    leadership,
};
use chrono::Utc;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A scheduler that leads, or did.
pub(crate) struct Scheduler {
    pub(crate) context: Arc<Context>,
    pub(crate) health: Health,
    metrics: Metrics,
    cancel: CancellationToken,
    tasks: JoinSet<Result<(), TaskError>>,
}

impl Scheduler {
    /// Takes the lead and runs everything but the election.
    async fn start(
        broker: &LocalBroker,
        directory: &tempfile::TempDir,
        tweak: fn(&mut Config),
    ) -> Self {
        let url = format!("sqlite://{}/berth.db", directory.path().display());
        let text = format!(
            "[bus]\nurl = \"amqp://nobody@localhost/\"\n[store]\nurl = \"{url}\"\n[dispatch]\nrepublish_seconds = 1\n"
        );
        let mut config = Config::read(Reader::from_text("test", &text, [], "BERTH")).unwrap();
        tweak(&mut config);
        let store = open(url).await;
        let metrics = Metrics::new("scheduler", "test").unwrap();
        let figures = SchedulerMetrics::new(&metrics).unwrap();
        let bus: Arc<dyn Bus> = Arc::new(broker.connect());
        let epoch = leadership::take(store.pool(), "test", Utc::now())
            .await
            .unwrap();
        let (context, fresh) = Context::take_over(config, store, Arc::clone(&bus), figures, epoch)
            .await
            .unwrap();
        let context = Arc::new(context);
        service::seed_liveness(&context).await.unwrap();
        let flow = Flow {
            requests: bus
                .consume(&QueueDecl::scheduler(), PREFETCH)
                .await
                .unwrap(),
            first: None,
            fresh,
        };
        let (cancel, health) = (CancellationToken::new(), Health::new());
        let mut tasks = JoinSet::new();
        service::watch(&mut tasks, &context, health.component("hosts"), &cancel);
        flow.spawn(&mut tasks, &context, &cancel);
        for name in ["scheduler", "scheduler.reports", "scheduler.heartbeats"] {
            wait_until(&format!("queue {name} is declared"), async || {
                broker.queues().iter().any(|queue| queue == name)
            })
            .await;
        }
        Self {
            context,
            health,
            metrics,
            cancel,
            tasks,
        }
    }

    /// How many batches of requests it has gathered.
    fn batches(&self) -> u64 {
        let name = "berth_scheduler_batch_requests_count ";
        let text = self.metrics.render().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().parse().unwrap()
    }

    /// Ends without ceremony.
    pub(crate) async fn crash(&mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.cancel.cancel();
    }

    /// Waits until a task ends it, and answers why; the others are told to end, and do.
    pub(crate) async fn ended(&mut self) -> TaskError {
        let ended = async {
            loop {
                match self.tasks.join_next().await.unwrap().unwrap() {
                    Ok(()) => {}
                    Err(error) => return error,
                }
            }
        };
        let why = tokio::time::timeout(LIMIT, ended)
            .await
            .expect("it goes on");
        self.cancel.cancel();
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(LIMIT, rest)
            .await
            .expect("its tasks do not end");
        why
    }
}

/// The database, as another process would open it.
pub(crate) async fn open(url: String) -> Store {
    let config = StoreConfig {
        url,
        max_connections: 4,
    };
    let store = Store::connect(&config).await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// Waits until something is so.
pub(crate) async fn wait_until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is().await {
        assert!(Instant::now() < deadline, "it never came true: {what}");
        tokio::task::yield_now().await;
    }
}

pub(crate) struct Cloud {
    pub(crate) broker: LocalBroker,
    pub(crate) rpc: RpcClient,
    /// The one that leads.
    pub(crate) scheduler: Scheduler,
    bus: Arc<dyn Bus>,
    directory: tempfile::TempDir,
    tweak: fn(&mut Config),
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(tweak: fn(&mut Config)) -> Self {
        let broker = LocalBroker::new(7);
        // In memory where that can be: nobody pulls the plug, and there are many clouds.
        let directory = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let scheduler = Scheduler::start(&broker, &directory, tweak).await;
        let bus: Arc<dyn Bus> = Arc::new(broker.connect());
        let rpc = RpcClient::start(Arc::clone(&bus), "scheduler", "test")
            .await
            .unwrap();
        Self {
            broker,
            rpc,
            scheduler,
            bus,
            directory,
            tweak,
        }
    }

    /// Where the database is.
    pub(crate) fn url(&self) -> String {
        format!("sqlite://{}/berth.db", self.directory.path().display())
    }

    pub(crate) fn context(&self) -> &Context {
        &self.scheduler.context
    }

    pub(crate) fn pool(&self) -> &berth_store::Pool {
        self.context().store.pool()
    }

    /// Ends the scheduler without ceremony and starts another one on the same database.
    pub(crate) async fn crash_scheduler(&mut self) {
        self.scheduler.crash().await;
        self.scheduler = Scheduler::start(&self.broker, &self.directory, self.tweak).await;
    }

    /// Ends the scheduler without ceremony. What another one would share is left, and nothing runs that would ask the database
    /// for anything by itself.
    pub(crate) async fn stand_still(&mut self) -> Context {
        self.scheduler.crash().await;
        let config = self.context().config.clone();
        let metrics = Metrics::new("scheduler", "test").unwrap();
        let figures = SchedulerMetrics::new(&metrics).unwrap();
        let store = open(self.url()).await;
        let epoch = leadership::take(store.pool(), "test", Utc::now())
            .await
            .unwrap();
        let bus = Arc::clone(&self.bus);
        let (context, _nobody_publishes) = Context::take_over(config, store, bus, figures, epoch)
            .await
            .unwrap();
        service::seed_liveness(&context).await.unwrap();
        context
    }

    /// Another scheduler takes the lead while the first one, which is answered, believes that it has it.
    pub(crate) async fn take_over(&mut self) -> Scheduler {
        let next = Scheduler::start(&self.broker, &self.directory, self.tweak).await;
        std::mem::replace(&mut self.scheduler, next)
    }

    /// All claims there are.
    pub(crate) async fn claims(&self) -> Vec<ClaimRow> {
        let page = claims::page_with_groups(self.pool(), None, u32::MAX).await;
        page.unwrap().into_iter().map(|row| row.claim).collect()
    }

    pub(crate) async fn call<M: Method>(&self, request: M) -> Result<M::Reply, Refusal> {
        let answer = self
            .rpc
            .call(M::NAME, M::VERSION, &request, LIMIT)
            .await
            .unwrap();
        answer.decode::<Reply<M::Reply>>().unwrap().into()
    }

    /// A request that must be granted.
    pub(crate) async fn ok<M: Method>(&self, request: M) -> M::Reply {
        let shown = serde_json::to_string(&request).unwrap();
        match self.call(request).await {
            Ok(reply) => reply,
            Err(refusal) => panic!("{} {shown} was refused: {refusal}", M::NAME),
        }
    }

    /// A request that must be refused, with this code and these words.
    pub(crate) async fn refused<M: Method>(
        &self,
        request: M,
        code: RefusalCode,
        words: &str,
    ) -> Refusal {
        let body = serde_json::to_value(&request).unwrap();
        self.refused_raw(M::NAME, M::VERSION, body, code, words)
            .await
    }

    pub(crate) async fn refused_raw(
        &self,
        method: &str,
        version: u32,
        body: Value,
        code: RefusalCode,
        words: &str,
    ) -> Refusal {
        let shown = body.to_string();
        let message = Message::from_json(method, version, "test", shown.clone());
        let refusal = match answer(&self.rpc, message).await {
            Ok(reply) => panic!("{method} {shown} was granted: {reply}"),
            Err(refusal) => refusal,
        };
        assert_eq!(refusal.code, code, "{method} {shown}: {refusal}");
        assert!(
            refusal.message.contains(words),
            "{method} {shown}: the refusal {:?} does not say {words:?}",
            refusal.message
        );
        refusal
    }

    /// Serves all of these in one batch, in this order.
    pub(crate) async fn in_one_batch(&self, messages: Vec<Message>) -> Vec<Result<Value, Refusal>> {
        let depth = async || self.bus.queue_depth("scheduler").await.unwrap();
        // The scheduler is kept busy until all of them wait: with a batch that nothing is added to any more.
        let turn = self.context().image().await.unwrap();
        let before = self.scheduler.batches();
        let plug = json!({ "network": "there-is-no-such-network" });
        let plug = Message::new(NetworkDelete::NAME, 1, "test", &plug).unwrap();
        assert!(self.broker.inject("scheduler", plug));
        wait_until("the scheduler is busy", async || {
            self.scheduler.batches() > before
        })
        .await;
        let mut answers = Vec::new();
        for (message, waiting) in messages.into_iter().zip(1_u64..) {
            let rpc = self.rpc.clone();
            answers.push(tokio::spawn(async move { answer(&rpc, message).await }));
            wait_until("a request waits", async || depth().await == Some(waiting)).await;
        }
        drop(turn);
        let answers = futures::future::join_all(answers).await;
        answers.into_iter().map(Result::unwrap).collect()
    }

    pub(crate) async fn show(&self, id: InstanceId) -> InstanceView {
        self.ok(InstanceShow {
            instance: id.to_string(),
            project: Default::default(),
        })
        .await
    }

    pub(crate) async fn show_host(&self, host: &str) -> HostView {
        self.ok(HostShow {
            host: host.to_owned(),
        })
        .await
    }

    /// The host an instance has, by name.
    pub(crate) async fn host_of(&self, id: InstanceId) -> String {
        self.show(id).await.host.unwrap().to_string()
    }

    pub(crate) async fn explain(
        &self,
        id: InstanceId,
    ) -> Vec<berth_common::message::placement::DecisionView> {
        self.ok(PlacementExplain {
            instance: id.to_string(),
            project: Default::default(),
        })
        .await
        .decisions
    }

    pub(crate) async fn wait_for_instance(
        &self,
        id: InstanceId,
        what: &str,
        is: impl Fn(&InstanceView) -> bool,
    ) -> InstanceView {
        let deadline = Instant::now() + LIMIT;
        loop {
            let view = self.show(id).await;
            if is(&view) {
                return view;
            }
            assert!(
                Instant::now() < deadline,
                "instance is not {what}: {view:#?}"
            );
            tokio::task::yield_now().await;
        }
    }

    /// These hosts are silent for long, and are down for that.
    pub(crate) async fn lose(&self, hosts: &[HostId]) {
        self.silence(hosts).await;
        let context = self.context();
        let patience = Patience {
            suspect_self_percent: 100,
            ..context.config.patience
        };
        context.liveness(|liveness| liveness.judge(patience, hosts.len(), Instant::now()));
    }

    /// From now on these hosts count as silent for long.
    pub(crate) async fn silence(&self, hosts: &[HostId]) {
        let context = self.context();
        let ago = context.config.patience.timeout * 2;
        let then = Instant::now().checked_sub(ago).unwrap();
        context.liveness(|liveness| {
            for host in hosts {
                liveness.heard(*host, then);
            }
        });
        wait_until("placement knows who is silent", async || {
            let image = context.image().await.unwrap();
            hosts.iter().all(|host| {
                let host = image.table().host(*host).unwrap();
                host.facts().liveness == HostState::Down
            })
        })
        .await;
    }
}

async fn answer(rpc: &RpcClient, message: Message) -> Result<Value, Refusal> {
    let answer = rpc.call_message(message, LIMIT).await.unwrap();
    answer.decode::<Reply<Value>>().unwrap().into()
}

/// A request as it is sent.
pub(crate) fn message<M: Method>(request: &M) -> Message {
    Message::new(M::NAME, M::VERSION, "test", request).unwrap()
}
