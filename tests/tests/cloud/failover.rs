//! Two schedulers, one that leads and one that stands by: whatever becomes of the first, the second places soon,
//! nothing that was accepted is lost, and nothing is placed twice. How soon is printed; `make bench-failover` measures
//! it.
//!
//! Each test asks for instances all the while, every few milliseconds, so that requests, commits, documents and reports
//! are under way at the moment of the fault. Placed twice would show as a second claim, as an instance that two hosts
//! were told of, or as more domains than instances.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use berth_common::{
    bus::{Bus as _, Message, RpcClient, Target},
    ids::InstanceId,
    message::{
        request::{HostEnable, InstanceCreate, Method, Reply},
        view::{InstanceView, VmState},
    },
    refusal::{Refusal, RefusalCode},
};
use berth_tests::{
    TestCloud,
    cloud::{InstanceOptions, Scheduler, Sims, Store, imaginary_image},
    figure,
    lab::Wire,
    wait::{Seen, moment, wait_for},
    with_cloud,
};
use tokio::task::{JoinHandle, JoinSet};

/// From the fault to the first request, sent after it, that is granted: twice what is promised, since the load and the
/// simulated hosts take their share of the same machine.
const FAILOVER_LIMIT: Duration = Duration::from_secs(20);
/// Between two requests.
const PACE: Duration = Duration::from_millis(20);
/// Requests at most: more than are sent until the standby leads.
const MOST: usize = 1200;
/// How long most of their senders wait for answers: longer than anybody should have to.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long every fourth of them waits: not long enough for some.
const IMPATIENCE: Duration = Duration::from_secs(2);
/// Requests answered before the fault.
const BEFORE: usize = 60;
/// Requests answered by the new leader before the load ends.
const AFTER: usize = 60;
/// How long a leader that was frozen may take to see that it leads no more.
const FENCED_LIMIT: Duration = Duration::from_secs(15);
/// How long all instances may take to be active at the end.
const ACTIVE_LIMIT: Duration = Duration::from_secs(60);
/// How long a leader without its database may hold on, when another one could lead.
const GIVES_WAY_LIMIT: Duration = Duration::from_secs(60);
/// How long the standby may take when the leader ends in order.
const HANDOVER_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL.
    Killed,
    /// SIGSTOP, and SIGCONT when the other one leads.
    Frozen,
}

#[test]
fn a_leader_killed_under_load_is_followed_and_nothing_is_lost_or_doubled_on_postgresql() {
    check(Store::Postgres, Fault::Killed);
}

#[test]
fn a_leader_killed_under_load_is_followed_and_nothing_is_lost_or_doubled_on_mariadb() {
    check(Store::MariaDb, Fault::Killed);
}

#[test]
fn a_leader_frozen_under_load_is_followed_and_fenced_when_it_wakes_up_on_postgresql() {
    check(Store::Postgres, Fault::Frozen);
}

#[test]
fn a_leader_frozen_under_load_is_followed_and_fenced_when_it_wakes_up_on_mariadb() {
    check(Store::MariaDb, Fault::Frozen);
}

/// A cloud with room for all that is asked for.
fn cloud(store: Store) -> berth_tests::Builder {
    let sims = Sims {
        vcpus: 256,
        memory_mb: 1 << 20,
        disk_gb: 10_000,
        ..Sims::of(10)
    };
    TestCloud::builder().agents(0).sims(sims).store(store)
}

fn check(store: Store, fault: Fault) {
    with_cloud(cloud(store), async |cloud| {
        wait_leads(&cloud.scheduler, 1).await?;
        cloud.start_standby().await?;
        stands_by(cloud.standby()?).await?;

        let load = Load::start(cloud.rpc.clone(), template(cloud)?);
        load.wait_granted_since(load.start, BEFORE).await?;
        let moment_of_fault = Instant::now();
        match fault {
            Fault::Killed => cloud.scheduler.kill()?,
            Fault::Frozen => cloud.scheduler.freeze()?,
        }
        load.wait_granted_since(moment_of_fault, AFTER).await?;
        wait_leads(cloud.standby()?, 2).await?;
        let asked = load.end().await?;
        let first = asked
            .iter()
            .filter(|asked| asked.sent > moment_of_fault)
            .filter_map(Asked::granted_at)
            .min()
            .context("nothing was granted after the fault")?;
        let taken = first - moment_of_fault;
        figure(&format!(
            "failover store={store:?} fault={fault:?} seconds={:.2} requests={} unanswered={}",
            taken.as_secs_f64(),
            asked.len(),
            asked.iter().filter(|asked| asked.answer.is_none()).count()
        ));
        assert!(
            taken <= FAILOVER_LIMIT,
            "the standby was placing after {taken:?}"
        );

        let places = everything_accepted_is_there_once(cloud, &asked).await?;
        if fault == Fault::Frozen {
            the_one_that_wakes_up_is_fenced(cloud, &places).await?;
        }
        // The first one, started anew, stands by; and takes over when the second ends.
        cloud.scheduler.start()?;
        cloud.scheduler.wait_stands_by().await?;
        stands_by(&cloud.scheduler).await?;
        wait_leads(cloud.standby()?, 2).await?;
        cloud.standby()?.terminate().await?;
        wait_leads(&cloud.scheduler, 3).await?;
        cloud.wait_all_up().await
    });
}

/// Its connection is gone, and requests that it held were served by the other one: it must not serve them too.
///
/// It ends by itself also when it only looks who leads, which it does every few seconds; so what it may not do is asked
/// of the database: not one row was changed through a connection that it had when it was frozen.
async fn the_one_that_wakes_up_is_fenced(
    cloud: &mut TestCloud,
    places: &BTreeMap<InstanceId, String>,
) -> anyhow::Result<()> {
    let sessions = cloud.sessions_of(&cloud.scheduler).await?;
    cloud.note_writers().await?;
    let start = Instant::now();
    cloud.scheduler.thaw()?;
    let status = cloud.scheduler.wait_ended(FENCED_LIMIT).await?;
    figure(&format!(
        "fenced seconds={:.2} status={status}",
        start.elapsed().as_secs_f64()
    ));
    assert_eq!(status.code(), Some(1), "{status}");
    let log = std::fs::read_to_string(cloud.scheduler.log())?;
    let last = log
        .lines()
        .rfind(|line| line.starts_with("berth-scheduler: "))
        .context("it ended without a word")?;
    assert!(
        last.contains("another scheduler took over from this one, which was leader number 1"),
        "{last}"
    );
    // The new one writes, and that is noted.
    let host = cloud.hosts().await?.pop().context("no hosts")?.name;
    cloud
        .call(&HostEnable {
            host: host.to_string(),
        })
        .await?;
    let writers = cloud.writers().await?;
    assert!(!writers.is_empty());
    let by_the_old: Vec<_> = writers
        .iter()
        .filter(|(_, port)| sessions.contains(port))
        .collect();
    assert!(by_the_old.is_empty(), "{by_the_old:?}");
    cloud.wait_all_run(u64::try_from(places.len())?).await?;
    assert_eq!(*places, where_they_are(cloud).await?);
    Ok(())
}

/// Every request that was accepted is an instance that is active, on the host of its answer, with one claim and one
/// domain; and so is every request that was repeated because nobody answered. Answers who is where.
async fn everything_accepted_is_there_once(
    cloud: &TestCloud,
    asked: &[Asked],
) -> anyhow::Result<BTreeMap<InstanceId, String>> {
    let mut places = BTreeMap::new();
    for asked in asked {
        let view = match &asked.answer {
            Some((_, answer)) => answer.clone(),
            None => cloud.call(&asked.request).await?,
        };
        let host = view.host.context("it has no host")?;
        places.insert(asked.request.id, host.to_string());
    }
    // Asking again for what was granted is harmless.
    for asked in asked.iter().step_by(20) {
        let host = cloud.call(&asked.request).await?.host;
        assert_eq!(
            host.as_ref().map(ToString::to_string).as_ref(),
            places.get(&asked.request.id)
        );
    }
    cloud.wait_all_run(u64::try_from(asked.len())?).await?;
    wait_for("all of them to be active", ACTIVE_LIMIT, async || {
        let states: Vec<_> = cloud
            .instances()
            .await?
            .into_iter()
            .filter(|view| view.vm_state != VmState::Active)
            .map(|view| (view.name, view.vm_state, view.fault))
            .collect();
        Ok(Seen::when(states.is_empty(), states))
    })
    .await?;
    let found = where_they_are(cloud).await?;
    for (id, host) in &places {
        assert_eq!(found.get(id), Some(host), "{id}");
    }
    assert_eq!(found.len(), asked.len());
    Ok(found)
}

/// Who is where, by the scheduler's list, which must be what the hosts have been told.
async fn where_they_are(cloud: &TestCloud) -> anyhow::Result<BTreeMap<InstanceId, String>> {
    let told = cloud.told_once()?;
    let listed: BTreeMap<InstanceId, String> = cloud
        .instances()
        .await?
        .into_iter()
        .filter_map(|view| Some((view.id, view.host?.to_string())))
        .collect();
    let by_text: BTreeMap<String, String> = listed
        .iter()
        .map(|(id, host)| (id.to_string(), host.clone()))
        .collect();
    ensure!(
        told == by_text,
        "hosts were told {told:?}, and the list says {by_text:?}"
    );
    Ok(listed)
}

#[test]
fn a_standby_that_idles_leads_at_once_when_the_leader_is_told_to_end() {
    with_cloud(cloud(Store::Postgres), async |cloud| {
        cloud.start_standby().await?;
        // Some probes of its own must not wake it.
        moment(Duration::from_secs(4)).await;
        stands_by(cloud.standby()?).await?;
        let request = template(cloud)?;
        let start = Instant::now();
        cloud.scheduler.terminate().await?;
        let ended = start.elapsed();
        let view = cloud.call(&request).await?;
        let taken = start.elapsed();
        figure(&format!(
            "handover seconds={:.2} the_leader_ended_after={:.2}",
            taken.as_secs_f64(),
            ended.as_secs_f64()
        ));
        assert!(taken <= HANDOVER_LIMIT, "{taken:?}");
        wait_leads(cloud.standby()?, 2).await?;
        cloud.wait_active(view.id).await?;
        Ok(())
    });
}

/// The network between the leader and the database breaks; the broker hears both schedulers well.
#[test]
fn a_leader_that_loses_its_database_gives_way_to_one_that_has_it() {
    with_cloud(cloud(Store::Postgres), async |cloud| {
        let direct = cloud.database_url().to_owned();
        let server = cloud.services.postgres_socket()?;
        let mut wire = Wire::new(SocketAddr::from((cloud.site.address(1), 5432)), server);
        wire.plug().await?;
        let listen = format!("{}:5432", cloud.site.address(1));
        let through = direct.replace(&server.to_string(), &listen);
        ensure!(through != direct, "{direct} is not at {server}");
        cloud.scheduler.configure("store.url", through);
        cloud.scheduler.restart().await?;
        wait_leads(&cloud.scheduler, 2).await?;
        let before = InstanceCreate {
            name: "before".parse()?,
            ..template(cloud)?
        };
        let before = cloud.call(&before).await?;

        // Alone it stays, and says what is wrong, also while a request waits that wants no answer.
        wire.silence();
        let unanswered = InstanceCreate {
            name: "unanswered".parse()?,
            ..template(cloud)?
        };
        let message = Message::new(
            InstanceCreate::NAME,
            InstanceCreate::VERSION,
            "tests",
            &unanswered,
        )?;
        cloud
            .bus
            .publish(Target::queue("scheduler"), message)
            .await?;
        let refusal = wait_refused(cloud, RefusalCode::Unavailable).await?;
        ensure!(refusal.message.contains("database"), "{refusal}");
        let mut standby = cloud.scheduler.second();
        standby.configure("store.url", direct.clone());
        let start = Instant::now();
        standby.start()?;
        cloud.standby = Some(standby);
        let status = cloud.scheduler.wait_ended(GIVES_WAY_LIMIT).await?;
        let view = cloud.call(&template(cloud)?).await?;
        figure(&format!(
            "gives-way seconds={:.2}",
            start.elapsed().as_secs_f64()
        ));
        assert_eq!(status.code(), Some(1), "{status}");
        let log = std::fs::read_to_string(cloud.scheduler.log())?;
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("this one gives way"), "{last}");
        wait_leads(cloud.standby()?, 3).await?;
        for id in [before.id, unanswered.id, view.id] {
            cloud.wait_active(id).await?;
        }
        // Started anew it waits for its database, and stands by when that is back.
        cloud.scheduler.start()?;
        wire.cut().await;
        wire.plug().await?;
        cloud.scheduler.wait_stands_by().await?;
        wait_leads(cloud.standby()?, 3).await?;
        cloud.standby()?.terminate().await?;
        wait_leads(&cloud.scheduler, 4).await?;
        // The wire ends here.
        cloud.scheduler.configure("store.url", direct);
        cloud.scheduler.restart().await
    });
}

/// Asks until there is a refusal of this kind.
async fn wait_refused(cloud: &TestCloud, code: RefusalCode) -> anyhow::Result<Refusal> {
    wait_for("a refusal", ACTIVE_LIMIT, async || {
        let answer = cloud.try_call(&template(cloud)?, PATIENCE).await?;
        Ok(match answer {
            Err(refusal) if refusal.code == code => Seen::Done(refusal),
            other => Seen::NotYet(format!("{other:?}")),
        })
    })
    .await
}

#[test]
fn a_second_scheduler_on_a_sqlite_file_is_refused_and_told_what_would_be_right() {
    with_cloud(cloud(Store::Sqlite), async |cloud| {
        let mut second = cloud.scheduler.second();
        second.start()?;
        let status = second.wait_ended(FENCED_LIMIT).await?;
        assert_eq!(status.code(), Some(1), "{status}");
        let log = std::fs::read_to_string(second.log())?;
        let last = log.lines().last().unwrap_or_default();
        for part in [
            "another scheduler is running on this database",
            "scheduler.db",
            "use PostgreSQL or MariaDB for a standby",
        ] {
            assert!(last.contains(part), "no {part:?} in {last:?}");
        }
        // The first one does not mind.
        let view = cloud.call(&template(cloud)?).await?;
        cloud.wait_active(view.id).await?;
        wait_leads(&cloud.scheduler, 1).await
    });
}

fn template(cloud: &TestCloud) -> anyhow::Result<InstanceCreate> {
    let options = InstanceOptions {
        image: Some(imaginary_image()?),
        ..InstanceOptions::default()
    };
    cloud.instance_request("template", &options)
}

/// Waits until a scheduler's metrics say that it leads, as the leader with this number.
async fn wait_leads(scheduler: &Scheduler, epoch: u32) -> anyhow::Result<()> {
    wait_for("a scheduler to lead", FAILOVER_LIMIT, async || {
        let leads = scheduler.metric("berth_scheduler_leader").await?;
        let seen = scheduler.metric("berth_scheduler_epoch").await?;
        let holds = (leads - 1.0).abs() < 0.5 && (seen - f64::from(epoch)).abs() < 0.5;
        Ok(Seen::when(holds, (leads, seen)))
    })
    .await
}

/// A scheduler's metrics say that it never led.
async fn stands_by(scheduler: &Scheduler) -> anyhow::Result<()> {
    for name in ["berth_scheduler_leader", "berth_scheduler_epoch"] {
        let value = scheduler.metric(name).await?;
        ensure!(value.abs() < 0.5, "{name} is {value}");
    }
    Ok(())
}

/// A request, and its answer if there was one.
#[derive(Debug, Clone)]
struct Asked {
    request: InstanceCreate,
    sent: Instant,
    answer: Option<(Instant, InstanceView)>,
}

impl Asked {
    fn granted_at(&self) -> Option<Instant> {
        self.answer.as_ref().map(|(at, _)| *at)
    }
}

/// Asks for one instance after the other, whether or not anybody answers.
struct Load {
    start: Instant,
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Load {
    fn start(rpc: RpcClient, template: InstanceCreate) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(send(rpc, template, stop.clone(), asked.clone()));
        Self {
            start: Instant::now(),
            stop,
            asked,
            task,
        }
    }

    /// Waits until so many requests that were sent after a moment are granted.
    async fn wait_granted_since(&self, since: Instant, count: usize) -> anyhow::Result<()> {
        let what = format!("{count} requests to be granted");
        wait_for(&what, 3 * FAILOVER_LIMIT, async || {
            let asked = lock(&self.asked);
            let since = asked.iter().filter(|asked| asked.sent >= since);
            let granted = since.filter(|asked| asked.answer.is_some()).count();
            Ok(Seen::when(
                granted >= count,
                format!("{granted} of {} in all", asked.len()),
            ))
        })
        .await
    }

    /// Sends no more, waits for the last answers, and tells them all.
    async fn end(self) -> anyhow::Result<Vec<Asked>> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await??;
        Ok(lock(&self.asked).clone())
    }
}

fn lock(asked: &Mutex<Vec<Asked>>) -> std::sync::MutexGuard<'_, Vec<Asked>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send(
    rpc: RpcClient,
    template: InstanceCreate,
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
) -> anyhow::Result<()> {
    let mut calls = JoinSet::new();
    for number in 0..MOST {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let request = InstanceCreate {
            id: InstanceId::new(),
            name: format!("r{number}").parse()?,
            ..template.clone()
        };
        let (rpc, asked) = (rpc.clone(), asked.clone());
        let patience = if number % 4 == 0 {
            IMPATIENCE
        } else {
            PATIENCE
        };
        calls.spawn(async move {
            let one = ask(&rpc, request, patience).await?;
            lock(&asked).push(one);
            anyhow::Ok(())
        });
        moment(PACE).await;
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    Ok(())
}

/// Asks once. No answer is one of the things that may happen; a refusal is not, for there is room.
async fn ask(
    rpc: &RpcClient,
    request: InstanceCreate,
    patience: Duration,
) -> anyhow::Result<Asked> {
    let sent = Instant::now();
    let called = rpc.call(
        InstanceCreate::NAME,
        InstanceCreate::VERSION,
        &request,
        patience,
    );
    let answer = match called.await {
        Err(_) => None,
        Ok(message) => match Result::from(message.decode::<Reply<InstanceView>>()?) {
            Ok(view) => Some((Instant::now(), view)),
            Err(refusal) => anyhow::bail!("{} was refused: {refusal}", request.name),
        },
    };
    Ok(Asked {
        request,
        sent,
        answer,
    })
}
