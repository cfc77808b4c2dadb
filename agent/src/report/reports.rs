//! Reports: tells the scheduler how far this host is with each document.
//!
//! ```text
//!   engine ──tell──▶ newest state per resource ──(changed; at most every 200 ms)──▶ report.<host id>
//!                              └──────────────(all of them, every minute)────────────▶
//! ```
//!
//! Only the newest state of a resource matters, so a slow or absent broker costs no memory: what was not sent stays
//! marked as changed. It decides nothing about resources.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_common::{
    bus::{Bus, Message, Target, report_key},
    document::DocumentKey,
    ids::HostId,
    message::{
        app,
        report::{ConvergeStatus, REPORT_TYPE, REPORT_VERSION, Report, ResourceReport},
    },
    names::HostName,
    telemetry::error_chain,
    units::Generation,
};
use chrono::Utc;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{metrics::AgentMetrics, spread::phase};

/// Changes within this time go into one report.
const GATHER: Duration = Duration::from_millis(200);
/// How often everything is told again: what was lost on the way heals.
const TELL_ALL: Duration = Duration::from_secs(60);
/// Resources in one report, as the message allows.
const PER_REPORT: usize = 100;
/// How often the end of a resource is told again with everything else.
const REPEAT_GONE: u8 = 3;
/// Pause after a report that could not be sent.
const RETRY: Duration = Duration::from_secs(1);
/// How long the last reports of an ending agent may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// Longer texts of faults are cut: they are for people, and a report must fit into a message.
const MAX_TEXT: usize = 2000;

/// Who reports.
#[derive(Debug, Clone)]
pub struct Sender {
    /// The host.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// How often its agent has started.
    pub session: u64,
}

/// The newest state of every resource. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    states: Mutex<States>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct States {
    newest: BTreeMap<DocumentKey, Told>,
    changed: BTreeSet<DocumentKey>,
}

#[derive(Debug)]
struct Told {
    report: ResourceReport,
    /// Of resources that are gone: how often it will still be told.
    repeats: u8,
}

impl Reports {
    /// The state of a resource, from now on. Telling the same again is no change.
    pub fn tell(&self, mut report: ResourceReport) {
        cut(&mut report);
        let key = report.key;
        let mut states = self.states();
        if states
            .newest
            .get(&key)
            .is_some_and(|told| same(&told.report, &report))
        {
            return;
        }
        states.newest.insert(
            key,
            Told {
                report,
                repeats: REPEAT_GONE,
            },
        );
        states.changed.insert(key);
        drop(states);
        self.shared.changed.notify_one();
    }

    /// The state of a resource shall be sent again although it did not change: somebody does not know it.
    pub fn repeat(&self, report: ResourceReport) {
        let key = report.key;
        let mut states = self.states();
        states.newest.entry(key).or_insert(Told {
            report,
            repeats: REPEAT_GONE,
        });
        states.changed.insert(key);
        drop(states);
        self.shared.changed.notify_one();
    }

    /// What is being done about a resource just now. Leaves a resource alone that is at another generation meanwhile.
    pub fn progress(&self, key: DocumentKey, generation: Generation, text: String) {
        let told = self
            .states()
            .newest
            .get(&key)
            .map(|told| told.report.clone());
        let report = told.unwrap_or(ResourceReport {
            key,
            generation,
            status: ConvergeStatus::Converging,
            progress: None,
            fault: None,
            power_state: None,
            reboot_nonce: None,
            boot_disk: None,
            running: None,
            ports: None,
            volumes: None,
            observed_at: Utc::now(),
        });
        if report.generation == generation {
            self.tell(ResourceReport {
                progress: Some(text),
                status: ConvergeStatus::Converging,
                observed_at: Utc::now(),
                ..report
            });
        }
    }

    /// Sends what changes until cancelled, then once more what is left.
    pub async fn send(
        self,
        bus: Arc<dyn Bus>,
        sender: Sender,
        metrics: AgentMetrics,
        cancel: CancellationToken,
    ) {
        let mut outbox = Outbox {
            reports: self,
            bus,
            sender,
            metrics,
            sequence: 0,
            failing: false,
        };
        // Hosts that started together tell everything at moments of their own.
        let half = TELL_ALL / 2;
        let mut tell_all_at = Instant::now() + half + phase(outbox.sender.host_id, half);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = outbox.reports.shared.changed.notified() => {}
                () = sleep_until(tell_all_at) => {
                    outbox.reports.mark_all();
                    tell_all_at = Instant::now() + TELL_ALL;
                }
            }
            // What changes in a moment goes along.
            tokio::select! {
                () = cancel.cancelled() => break,
                () = sleep(GATHER) => {}
            }
            if !outbox.flush(&cancel).await {
                break;
            }
        }
        // Bounded, and not to be cancelled any more: a broker that is away must not hold up the end.
        if tokio::time::timeout(FAREWELL, outbox.flush(&CancellationToken::new()))
            .await
            .is_err()
        {
            tracing::info!(
                "the last reports could not be sent; the next start of the agent tells everything again"
            );
        }
    }

    fn mark_all(&self) {
        let mut guard = self.states();
        let states = &mut *guard;
        states
            .newest
            .retain(|_, told| told.report.status != ConvergeStatus::Gone || told.repeats > 0);
        for (key, told) in &mut states.newest {
            if told.report.status == ConvergeStatus::Gone {
                told.repeats = told.repeats.saturating_sub(1);
            }
            states.changed.insert(*key);
        }
    }

    /// Up to so many states that were not sent.
    fn take(&self) -> Vec<ResourceReport> {
        let mut guard = self.states();
        let states = &mut *guard;
        let keys: Vec<DocumentKey> = states.changed.iter().take(PER_REPORT).copied().collect();
        for key in &keys {
            states.changed.remove(key);
        }
        keys.iter()
            .filter_map(|key| states.newest.get(key))
            .map(|told| told.report.clone())
            .collect()
    }

    /// These were not sent after all.
    fn give_back(&self, resources: &[ResourceReport]) {
        self.states()
            .changed
            .extend(resources.iter().map(|resource| resource.key));
    }

    /// Nothing that runs under this lock can panic half-way, so a poisoned one is as good as any.
    fn states(&self) -> MutexGuard<'_, States> {
        self.shared
            .states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way out.
struct Outbox {
    reports: Reports,
    bus: Arc<dyn Bus>,
    sender: Sender,
    metrics: AgentMetrics,
    sequence: u64,
    failing: bool,
}

impl Outbox {
    /// Sends all that changed, however long that takes; `false`: cancelled meanwhile.
    async fn flush(&mut self, cancel: &CancellationToken) -> bool {
        loop {
            let resources = self.reports.take();
            if resources.is_empty() {
                return true;
            }
            let sent = tokio::select! {
                () = cancel.cancelled() => None,
                result = self.publish(&resources) => Some(result),
            };
            match sent {
                Some(Ok(())) => self.sent(),
                Some(Err(reason)) => {
                    self.reports.give_back(&resources);
                    self.not_sent(&reason);
                    tokio::select! {
                        () = cancel.cancelled() => return false,
                        () = sleep(RETRY) => {}
                    }
                }
                None => {
                    self.reports.give_back(&resources);
                    return false;
                }
            }
        }
    }

    async fn publish(&mut self, resources: &[ResourceReport]) -> Result<(), String> {
        self.sequence += 1;
        let report = Report {
            host_id: self.sender.host_id,
            host: self.sender.host.clone(),
            session: self.sender.session,
            sequence: self.sequence,
            resources: resources.to_vec(),
        };
        let message = Message::new(REPORT_TYPE, REPORT_VERSION, app::AGENT, &report)
            .map_err(|error| error_chain(&error))?;
        let target = Target::topic(report_key(self.sender.host_id));
        self.bus
            .publish(target, message)
            .await
            .map_err(|error| error_chain(&error))
    }

    fn sent(&mut self) {
        self.metrics.report(Ok(()));
        if std::mem::take(&mut self.failing) {
            tracing::info!("reports reach the scheduler again");
        }
    }

    fn not_sent(&mut self, reason: &str) {
        self.metrics.report(Err(()));
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                reason,
                "reports do not reach the scheduler; trying again until they do"
            );
        }
    }
}

/// Whether two reports say the same, whenever they were made.
fn same(a: &ResourceReport, b: &ResourceReport) -> bool {
    *a == ResourceReport {
        observed_at: a.observed_at,
        ..b.clone()
    }
}

fn cut(report: &mut ResourceReport) {
    let texts = report
        .progress
        .iter_mut()
        .chain(report.fault.as_mut().map(|fault| &mut fault.message));
    for text in texts {
        if let Some((at, _)) = text.char_indices().nth(MAX_TEXT) {
            text.truncate(at);
            text.push('…');
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_common::{
        bus::{Consumer, LocalBroker, QueueDecl},
        document::Kind,
        ids::InstanceId,
        telemetry::registry::Metrics,
    };

    use super::*;

    struct Setup {
        broker: LocalBroker,
        incoming: Consumer,
        reports: Reports,
        cancel: CancellationToken,
    }

    async fn setup() -> Setup {
        let broker = LocalBroker::new(1);
        let incoming = broker.connect();
        let consumer = incoming.consume(&QueueDecl::reports(), 100).await.unwrap();
        std::mem::forget(incoming);
        let reports = Reports::default();
        let cancel = CancellationToken::new();
        let sender = Sender {
            host_id: HostId::new(),
            host: "hv1".parse().unwrap(),
            session: 7,
        };
        let metrics = AgentMetrics::new(&Metrics::new("test", "1").unwrap()).unwrap();
        let bus = Arc::new(
            broker
                .connect()
                .with_publish_timeout(Duration::from_secs(1)),
        );
        tokio::spawn(reports.clone().send(bus, sender, metrics, cancel.clone()));
        Setup {
            broker,
            incoming: consumer,
            reports,
            cancel,
        }
    }

    fn state(id: InstanceId, generation: u64, status: ConvergeStatus) -> ResourceReport {
        ResourceReport {
            key: DocumentKey {
                kind: Kind::Instance,
                id: id.as_uuid(),
            },
            generation: Generation(generation),
            status,
            progress: None,
            fault: None,
            power_state: None,
            reboot_nonce: None,
            boot_disk: None,
            running: None,
            ports: None,
            volumes: None,
            observed_at: Utc::now(),
        }
    }

    async fn next(setup: &mut Setup) -> Report {
        let delivery = setup.incoming.next().await.unwrap();
        let report = delivery.message.decode().unwrap();
        delivery.ack().await;
        report
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_gathered_and_the_newest_wins() {
        let mut setup = setup().await;
        let id = InstanceId::new();
        setup.reports.tell(state(id, 1, ConvergeStatus::Converging));
        setup.reports.tell(state(id, 1, ConvergeStatus::Converged));
        setup
            .reports
            .tell(state(InstanceId::new(), 1, ConvergeStatus::Failed));
        let report = next(&mut setup).await;
        assert_eq!(
            (report.session, report.sequence, report.resources.len()),
            (7, 1, 2)
        );
        let mine = report
            .resources
            .iter()
            .find(|resource| resource.key.id == id.as_uuid())
            .unwrap();
        assert_eq!(mine.status, ConvergeStatus::Converged);
        setup.reports.tell(state(id, 1, ConvergeStatus::Converged));
        let before = Instant::now();
        assert_eq!(next(&mut setup).await.sequence, 2);
        assert!(
            before.elapsed() > Duration::from_secs(25),
            "nothing had changed: this is the minutely report"
        );
        setup.cancel.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_sent_is_sent_later_in_its_newest_state() {
        let mut setup = setup().await;
        setup.broker.stop();
        let id = InstanceId::new();
        setup.reports.tell(state(id, 1, ConvergeStatus::Converging));
        sleep(Duration::from_secs(5)).await;
        setup.reports.tell(state(id, 2, ConvergeStatus::Converged));
        setup.broker.start();
        // A report that was on its way may come first.
        while next(&mut setup).await.resources[0].generation != Generation(2) {}
        setup.cancel.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_take_several_reports() {
        let mut setup = setup().await;
        for _ in 0..250 {
            setup
                .reports
                .tell(state(InstanceId::new(), 1, ConvergeStatus::Converged));
        }
        for expected in [100, 100, 50] {
            assert_eq!(next(&mut setup).await.resources.len(), expected);
        }
        setup.cancel.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_resource_is_repeated_a_few_times_and_then_forgotten() {
        let mut setup = setup().await;
        setup
            .reports
            .tell(state(InstanceId::new(), 1, ConvergeStatus::Gone));
        for _ in 0..=REPEAT_GONE {
            assert_eq!(
                next(&mut setup).await.resources[0].status,
                ConvergeStatus::Gone
            );
        }
        sleep(TELL_ALL * 3).await;
        assert!(setup.reports.states().newest.is_empty());
        setup.cancel.cancel();
    }
}
