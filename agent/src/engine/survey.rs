//! The regular look at the whole host: one call for all domains, the space on the disk, and what has berth's mark but
//! no document, or only a tombstone that was carried out.
//!
//! ```text
//!   every few seconds ──▶ domains, space, and now and then the unclaimed; beside them the pools, one look at a time
//!   the host has news ──▶ domains, soon, but never for more than a tenth of the time
//! ```
//!
//! It runs beside the passes, so that a libvirt that hangs holds up nothing but this. It changes nothing on the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use berth_common::{
    document::{DocumentKey, Kind},
    telemetry::{error_chain, health::Component},
};
use chrono::Utc;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until},
};

use super::{Event, tools::Tools};
use crate::{decide::domain::DomainObserved, report::glance::Glances};

/// How often files, volumes, snapshots and networks without a document are looked for, and old tombstones are forgotten.
const RARELY: Duration = Duration::from_secs(300);
/// How soon a failed look is repeated.
const SOON: Duration = Duration::from_secs(2);
/// The shortest time from the end of a look to one that news are the reason for.
const NEWS_PAUSE: Duration = Duration::from_millis(200);
/// The same, in times of how long that look took: a guest can make news all the time, and on a host with many a look is not cheap.
const NEWS_PAUSE_FACTOR: u32 = 9;

/// What the survey needs.
pub(super) struct Survey {
    pub(super) tools: Arc<Tools>,
    pub(super) glances: Glances,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) libvirt: Component,
    pub(super) every: Duration,
    pub(super) unclaimed: Unclaimed,
}

/// What has berth's mark but no document, as it was found last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unclaimed {
    domains: BTreeSet<DocumentKey>,
    files: BTreeSet<DocumentKey>,
    networks: BTreeSet<DocumentKey>,
    routers: BTreeSet<DocumentKey>,
    volumes: BTreeSet<DocumentKey>,
    snapshots: BTreeSet<DocumentKey>,
}

/// Why the host is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// It is time to.
    Time,
    /// Something may have happened to a domain.
    News,
}

async fn look_at_pools(tools: Arc<Tools>, glances: Glances) {
    let pools = tools.host.storage.pools().await;
    tools.metrics.pools(&pools);
    glances.update(|glance| glance.pools = pools);
}

/// How long news wait after a look that took so long.
fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(NEWS_PAUSE_FACTOR).max(NEWS_PAUSE)
}

impl Survey {
    /// Looks again and again. Ends when the engine does.
    pub(super) async fn run(mut self) {
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rarely_at = Instant::now();
        let mut news_from = Instant::now();
        let mut pools = JoinSet::new();
        loop {
            let reason = tokio::select! {
                biased;
                _ = ticks.tick() => Reason::Time,
                () = self.news(news_from) => Reason::News,
            };
            if reason == Reason::Time {
                self.look_at_space().await;
            }
            let since = Instant::now();
            let domains = self.look_at_domains().await;
            news_from = Instant::now() + pause_after(since.elapsed());
            if domains.is_err() && self.every > SOON {
                ticks.reset_after(SOON);
            }
            let event = Event::Seen { since, domains };
            if self.events.send(event).await.is_err() {
                return;
            }
            if reason == Reason::News {
                continue;
            }
            // A pool may take long to answer: whatever else asks for it waits until that is known.
            while pools.try_join_next().is_some() {}
            let all_answered = pools.is_empty();
            if all_answered {
                pools.spawn(look_at_pools(Arc::clone(&self.tools), self.glances.clone()));
            }
            if all_answered && Instant::now() >= rarely_at {
                rarely_at = Instant::now() + RARELY;
                self.look_for_unclaimed().await;
                self.prune().await;
            }
        }
    }

    /// Waits for news of the host, and then until it may be looked for them. Given up in between they are forgotten: whoever gives up
    /// looks at everything.
    async fn news(&self, from: Instant) {
        self.tools.host.compute.news().await;
        sleep_until(from).await;
    }

    async fn look_at_space(&self) {
        match self.tools.host.storage.space().await {
            Ok(space) => self.glances.update(|glance| {
                glance.space = Some(space);
                glance.storage_error = None;
            }),
            Err(error) => self
                .glances
                .update(|glance| glance.storage_error = Some(error_chain(&error))),
        }
    }

    async fn look_at_domains(&mut self) -> Result<Arc<Vec<DomainObserved>>, ()> {
        match self.tools.host.compute.observe().await {
            Ok(domains) => {
                let domains = Arc::new(domains);
                self.glances.update(|glance| {
                    glance.domains = Some((Instant::now(), Arc::clone(&domains)));
                    glance.libvirt_error = None;
                });
                self.libvirt.ok();
                self.tools.metrics.domains(&count(&domains));
                self.claim_domains(&domains);
                Ok(domains)
            }
            Err(error) => {
                let reason = error_chain(&error);
                self.libvirt.degraded(reason.clone());
                self.glances
                    .update(|glance| glance.libvirt_error = Some(reason));
                Err(())
            }
        }
    }

    fn claim_domains(&mut self, domains: &[DomainObserved]) {
        let ours = domains.iter().filter_map(|domain| domain.metadata.as_ref());
        let keys = ours.map(|metadata| DocumentKey {
            kind: Kind::Instance,
            id: metadata.instance_id.as_uuid(),
        });
        let found = self.without_document(keys);
        self.tools.metrics.unclaimed("domain", found.len());
        tell("domain", &self.unclaimed.domains, &found);
        self.unclaimed.domains = found;
    }

    async fn look_for_unclaimed(&mut self) {
        if let Ok(ids) = self.tools.host.storage.instances_with_files().await {
            let keys: Vec<_> = ids
                .iter()
                .map(|id| DocumentKey {
                    kind: Kind::Instance,
                    id: id.as_uuid(),
                })
                .collect();
            self.tell_reappeared(&keys).await;
            let found = self.without_document(keys.into_iter());
            self.tools.metrics.unclaimed("files", found.len());
            tell("directory of an instance", &self.unclaimed.files, &found);
            self.unclaimed.files = found;
        }
        if let Ok(ids) = self.tools.host.storage.volumes_with_files().await {
            let keys: Vec<_> = ids
                .iter()
                .map(|id| DocumentKey {
                    kind: Kind::Volume,
                    id: id.as_uuid(),
                })
                .collect();
            self.tell_reappeared(&keys).await;
            let found = self.without_document(keys.into_iter());
            self.tools.metrics.unclaimed("volume", found.len());
            tell("volume", &self.unclaimed.volumes, &found);
            self.unclaimed.volumes = found;
        }
        if let Ok(ids) = self.tools.host.storage.snapshots_with_files().await {
            let keys: Vec<_> = ids
                .iter()
                .map(|id| DocumentKey {
                    kind: Kind::Snapshot,
                    id: id.as_uuid(),
                })
                .collect();
            self.tell_reappeared(&keys).await;
            let found = self.without_document(keys.into_iter());
            self.tools.metrics.unclaimed("snapshot", found.len());
            tell("snapshot", &self.unclaimed.snapshots, &found);
            self.unclaimed.snapshots = found;
        }
        if let Ok(ids) = self.tools.host.net.networks_present().await {
            let keys: Vec<_> = ids
                .iter()
                .map(|id| DocumentKey {
                    kind: Kind::Network,
                    id: id.as_uuid(),
                })
                .collect();
            self.tell_reappeared(&keys).await;
            let found = self.without_document(keys.into_iter());
            self.tools.metrics.unclaimed("network", found.len());
            tell("network", &self.unclaimed.networks, &found);
            self.unclaimed.networks = found;
        }
        if let Ok(ids) = self.tools.host.net.routers_present().await {
            let keys: Vec<_> = ids
                .iter()
                .map(|id| DocumentKey {
                    kind: Kind::Router,
                    id: id.as_uuid(),
                })
                .collect();
            self.tell_reappeared(&keys).await;
            let found = self.without_document(keys.into_iter());
            self.tools.metrics.unclaimed("router", found.len());
            tell("router", &self.unclaimed.routers, &found);
            self.unclaimed.routers = found;
        }
    }

    /// Tells the engine what is here although its tombstone was carried out. (Domains it sees itself.)
    async fn tell_reappeared(&self, keys: &[DocumentKey]) {
        for key in keys {
            let entry = self.tools.journal.get(*key);
            if entry.is_some_and(|entry| entry.gone_at.is_some()) {
                // The engine is gone: the next one looks again.
                let _ = self.events.send(Event::Reappeared(*key)).await;
            }
        }
    }

    fn without_document(&self, keys: impl Iterator<Item = DocumentKey>) -> BTreeSet<DocumentKey> {
        keys.filter(|key| self.tools.journal.get(*key).is_none())
            .collect()
    }

    async fn prune(&self) {
        let journal = Arc::clone(&self.tools.journal);
        match tokio::task::spawn_blocking(move || journal.prune(Utc::now())).await {
            Ok(Ok(keys)) => {
                for key in keys {
                    // The engine is gone: so is what it should forget.
                    let _ = self.events.send(Event::Forgotten(key)).await;
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %error_chain(&error), "old tombstones stay in the journal")
            }
            Err(error) => tracing::error!(%error, "forgetting old tombstones failed"),
        }
        self.tools.metrics.journal(self.tools.journal.len());
    }
}

/// Says once what is new among the unclaimed.
fn tell(what: &str, before: &BTreeSet<DocumentKey>, found: &BTreeSet<DocumentKey>) {
    for key in found.difference(before) {
        tracing::warn!(
            resource = %key,
            "there is a {what} with berth's mark but without a document; it is left alone until the scheduler sends one"
        );
    }
}

/// Domains by owner and power state.
fn count(domains: &[DomainObserved]) -> BTreeMap<(&'static str, &'static str), usize> {
    let mut counts = BTreeMap::new();
    for domain in domains {
        let owner = if domain.metadata.is_some() {
            "berth"
        } else {
            "foreign"
        };
        *counts
            .entry((owner, domain.power_state.as_str()))
            .or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_looked_for_soon_and_for_no_more_than_a_tenth_of_the_time() {
        for (took, pause) in [(0, 200), (20, 200), (100, 900), (3000, 27_000)] {
            let took = Duration::from_millis(took);
            assert_eq!(pause_after(took), Duration::from_millis(pause));
        }
        assert_eq!(pause_after(Duration::MAX), Duration::MAX);
    }
}
