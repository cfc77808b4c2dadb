//! The law of all operations of compute and storage over hosts in memory: whatever befalls the agent, libvirtd or the host at
//! whatever step, in whatever order and number documents come, each operation ends as its documents say, a guest that should have
//! stayed on did, nobody's data is lost, and of what is deleted nothing is left.
//!
//! One table of operations, and one schedule for every operation, way to store volumes, disturbance and step, up to the step that
//! there is none of any more; and walks from operation to operation on one host. A schedule is named by its words, and runs alone
//! by them; walks have a seed:
//!
//! ```text
//!   BERTH_LAW='attach/lvm/the agent ends after a step/2' cargo test --workspace --test engine law::
//!   BERTH_LAW='walks/7' cargo test --workspace --test engine law::
//! ```
//!
//! [`table`] is the table; [`world`] says what must come of it. `laws.rs` has the same law on a real host, for a few dozen.

#[path = "law/table.rs"]
mod table;
#[path = "law/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_agent::act::fake::{FakeHost, Guest, Mishap};
use berth_common::{
    document::{Document, DocumentKey},
    message::report::ConvergeStatus,
};
use proptest::{
    prelude::any,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use self::{
    table::{OPERATIONS, Operation, operation},
    world::{Becomes, Store, World, mix},
};
use super::{LIMIT, Lab, have_pools};

/// How long a step takes: others are done meanwhile.
const PACE: Duration = Duration::from_millis(20);
/// How often the host is looked at: seldom, because nothing may depend on it.
const RESYNC_EVERY: Duration = Duration::from_secs(60);
/// How long libvirtd is away.
const AWAY: Duration = Duration::from_secs(15);
/// How long what was told to be done may still be on its way: a guest is watched for its stop timeout, a limit follows its tap.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// How long after everything is done it is looked at once more.
const LATER: Duration = Duration::from_secs(320);
/// How many older documents are mixed in.
const OUTDATED: usize = 4;

/// What a schedule is disturbed by.
struct Disturbance {
    name: &'static str,
    mishap: Mishap,
    then: Then,
    /// Whether every step there is meets it; else those that can be left half done.
    meets: Meets,
}

/// What happens after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    /// The agent is started anew.
    Restart,
    /// The same, without its journal.
    RestartForgetful,
    /// libvirtd comes back.
    LibvirtReturns,
    /// The same is wished again, in newer documents.
    WishedAgain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meets {
    EveryStep,
    Halves,
}

const DISTURBANCES: [Disturbance; 11] = [
    Disturbance {
        name: "a step fails",
        mishap: Mishap::StepFails,
        then: Then::Nothing,
        meets: Meets::EveryStep,
    },
    Disturbance {
        name: "an answer is lost",
        mishap: Mishap::AnswerIsLost,
        then: Then::Nothing,
        meets: Meets::EveryStep,
    },
    Disturbance {
        name: "the agent ends before a step",
        mishap: Mishap::AgentEndsBefore,
        then: Then::Restart,
        meets: Meets::EveryStep,
    },
    Disturbance {
        name: "the agent ends in a step",
        mishap: Mishap::AgentEndsWithin,
        then: Then::Restart,
        meets: Meets::Halves,
    },
    Disturbance {
        name: "the agent ends after a step",
        mishap: Mishap::AgentEndsAfter,
        then: Then::Restart,
        meets: Meets::EveryStep,
    },
    Disturbance {
        name: "the agent ends and its journal is lost",
        mishap: Mishap::AgentEndsAfter,
        then: Then::RestartForgetful,
        meets: Meets::EveryStep,
    },
    Disturbance {
        name: "libvirtd ends before a step",
        mishap: Mishap::LibvirtEndsBefore,
        then: Then::LibvirtReturns,
        meets: Meets::EveryStep,
    },
    Disturbance {
        name: "libvirtd ends in a step",
        mishap: Mishap::LibvirtEndsWithin,
        then: Then::LibvirtReturns,
        meets: Meets::Halves,
    },
    Disturbance {
        name: "power fails",
        mishap: Mishap::PowerFails,
        then: Then::Restart,
        meets: Meets::EveryStep,
    },
    Disturbance {
        name: "the same is wished again",
        mishap: Mishap::Nothing,
        then: Then::WishedAgain,
        meets: Meets::EveryStep,
    },
    // Last: it is what nothing else is compared with.
    Disturbance {
        name: "nothing",
        mishap: Mishap::Nothing,
        then: Then::Nothing,
        meets: Meets::EveryStep,
    },
];

/// How documents come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    InOrder,
    Reversed,
    /// Each twice.
    Twice,
    /// Each with older ones before and after it.
    WithOutdated,
    /// Each twice, with older ones, in any order.
    Shuffled,
}

const DELIVERIES: [Delivery; 5] = [
    Delivery::InOrder,
    Delivery::Reversed,
    Delivery::Twice,
    Delivery::WithOutdated,
    Delivery::Shuffled,
];

/// Numbers that look like any others, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        let bound = u64::try_from(bound.max(1)).unwrap();
        usize::try_from(mix(self.0) % bound).unwrap()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

impl Delivery {
    fn of(
        self,
        documents: &[Document],
        outdated: &[Document],
        random: &mut Random,
    ) -> Vec<Document> {
        let newest = outdated.len().saturating_sub(OUTDATED);
        let outdated = &outdated[newest..];
        let documents = documents.iter().cloned();
        match self {
            Self::InOrder => documents.collect(),
            Self::Reversed => documents.rev().collect(),
            Self::Twice => documents.flat_map(|it| [it.clone(), it]).collect(),
            Self::WithOutdated => documents
                .flat_map(|it| [outdated, &[it], outdated].concat())
                .collect(),
            Self::Shuffled => {
                let twice = documents.flat_map(|it| [it.clone(), it]);
                let mut all: Vec<_> = twice.chain(outdated.iter().cloned()).collect();
                random.shuffle(&mut all);
                all
            }
        }
    }
}

/// One way for an operation to go.
#[derive(Clone, Copy)]
struct Schedule {
    operation: &'static Operation,
    store: Store,
    disturbance: &'static Disturbance,
    step: u64,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operation, store) = (self.operation.name, self.store.word());
        let (disturbance, step) = (self.disturbance.name, self.step);
        write!(f, "{operation}/{store}/{disturbance}/{step}")
    }
}

impl Schedule {
    /// How its documents come: each way in turn, and so every way at some step.
    fn delivery(&self) -> Delivery {
        let mut disturbances = DISTURBANCES.iter();
        let nth = disturbances.position(|it| it.name == self.disturbance.name);
        let step = usize::try_from(self.step).unwrap();
        DELIVERIES[(step + nth.unwrap()) % DELIVERIES.len()]
    }

    fn random(&self) -> Random {
        let name = self.to_string();
        Random(
            name.bytes()
                .fold(7, |seed, byte| mix(seed ^ u64::from(byte))),
        )
    }
}

/// Says which schedule it was, if that fails.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the law was broken by: {}", self.0);
        }
    }
}

/// A state directory in memory: thousands of schedules would wait for a disk most of the time.
fn state() -> TempDir {
    let memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("berth-law-");
    if memory.is_dir() {
        builder.tempdir_in(memory).unwrap()
    } else {
        builder.tempdir().unwrap()
    }
}

/// A host and what is wished of it.
struct Run {
    lab: Lab,
    world: World,
    random: Random,
}

impl Run {
    /// A host with nothing on it.
    async fn new(store: Store, random: Random) -> Self {
        let host = FakeHost::new();
        have_pools(&host);
        host.set_pace(PACE);
        let lab = Lab::on(host, state(), RESYNC_EVERY).await;
        let world = World::new(lab.host_id, store);
        Self { lab, world, random }
    }

    /// The same once more: another host that is as this one is, with an agent that has just been started.
    async fn twin(&self, random: Random) -> Self {
        let copy = state();
        link_files(self.lab.state.path(), copy.path());
        let lab = Lab::on(self.lab.host.twin(), copy, RESYNC_EVERY).await;
        let twin = Self {
            lab,
            world: self.world.clone(),
            random,
        };
        // What is gone is told when somebody asks.
        let ended = twin.world.newest().filter(|it| it.is_tombstone());
        let ended: Vec<Document> = ended.cloned().collect();
        twin.send(&ended).await;
        twin.settled().await;
        twin
    }

    async fn send(&self, documents: &[Document]) {
        for document in documents {
            self.lab.send(document).await;
        }
    }

    /// What the host has not said to be so.
    fn unsettled(&self) -> Vec<DocumentKey> {
        let known = self.lab.known.lock().unwrap();
        let told = self.world.newest().filter(|document| {
            let status = if document.is_tombstone() {
                ConvergeStatus::Gone
            } else {
                ConvergeStatus::Converged
            };
            let report = known.get(&document.key()).and_then(|it| it.last());
            !report.is_some_and(|report| {
                report.generation == document.generation() && report.status == status
            })
        });
        told.map(Document::key).collect()
    }

    /// Waits until the host says that everything is as it was told.
    async fn settled(&self) {
        let end = Instant::now() + LIMIT;
        loop {
            let unsettled = self.unsettled();
            if unsettled.is_empty() {
                return;
            }
            if Instant::now() > end {
                let told: Vec<_> = unsettled.iter().map(|key| self.lab.newest(*key)).collect();
                panic!("not done in time: {unsettled:?}; last seen: {told:#?}");
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Goes through an operation, with one disturbance after the other; answers how many there were, and how many steps it took.
    async fn operate(
        &mut self,
        operation: &Operation,
        disturbances: &[(&Disturbance, u64)],
        delivery: Delivery,
    ) -> (usize, u64) {
        let lab = &self.lab;
        let steps = disturbances.iter().map(|(_, step)| step % 6);
        let any: u64 = steps.sum();
        let guest = match any % 2 {
            0 => Guest::Obeys,
            _ => Guest::Takes(2),
        };
        lab.host.set_guest(self.world.instance, guest);
        if let Some(event) = operation.event {
            event(&lab.host, &self.world);
            // Sooner or later it is noticed.
            sleep(Duration::from_secs(any % 3 * 30)).await;
        }
        let before = lab.host.steps_done();
        self.befall(disturbances.first());
        let mut wished = Vec::new();
        for (nth, wish) in operation.wishes.iter().enumerate() {
            if nth > 0 {
                // What was wished before is known, and not done.
                sleep(Duration::from_secs(3)).await;
            }
            let outdated = self.world.outdated().to_vec();
            wished = self.world.wish(wish);
            let documents = delivery.of(&wished, &outdated, &mut self.random);
            self.send(&documents).await;
        }
        let (mut met, mut power_cuts) = (0, 0);
        while let Some((disturbance, _)) = disturbances.get(met)
            && self.is_disturbed().await
        {
            met += 1;
            power_cuts += u32::from(disturbance.mishap == Mishap::PowerFails);
            self.befall(disturbances.get(met));
            self.recover(disturbance.then, delivery, &wished).await;
        }
        self.befall(None);
        self.settled().await;
        if operation.wishes.is_empty() {
            // That everything is as it was told says nothing: nothing new was told.
            sleep(SETTLES_WITHIN).await;
        }
        self.end(operation.guest, power_cuts).await;
        (met, self.lab.host.steps_done() - before)
    }

    /// What goes wrong next.
    fn befall(&self, disturbance: Option<&(&Disturbance, u64)>) {
        let (mishap, steps) =
            disturbance.map_or((Mishap::Nothing, u64::MAX), |(by, step)| (by.mishap, *step));
        self.lab.host.befall(mishap, steps);
    }

    /// Waits until something goes wrong, or everything is done.
    async fn is_disturbed(&self) -> bool {
        let done = async {
            self.settled().await;
            // Something may still be done after that.
            sleep(Duration::from_secs(3)).await;
        };
        tokio::select! {
            biased;
            () = self.lab.host.befallen() => true,
            () = done => false,
        }
    }

    async fn recover(&mut self, then: Then, delivery: Delivery, wished: &[Document]) {
        match then {
            Then::Nothing => {}
            Then::Restart => {
                self.lab.restart().await;
                let told = self.world.told();
                // As the scheduler does in a new session.
                let documents = delivery.of(&told, self.world.outdated(), &mut self.random);
                self.send(&documents).await;
            }
            Then::RestartForgetful => {
                self.lab.kill().await;
                self.lab.host.restart_agent();
                let journal = self.lab.state.path().join("journal");
                std::fs::remove_dir_all(journal).unwrap();
                self.lab.start();
                // An older document would be as good as any.
                let documents = delivery.of(&self.world.told(), &[], &mut self.random);
                self.send(&documents).await;
            }
            Then::LibvirtReturns => {
                sleep(AWAY).await;
                self.lab.host.libvirt_is_back();
            }
            Then::WishedAgain => {
                let again = self.world.wish_again(wished);
                let documents = delivery.of(&again, self.world.outdated(), &mut self.random);
                self.send(&documents).await;
            }
        }
    }

    /// Compares the host with what must be there, and lets the guest work.
    async fn end(&mut self, becomes: Becomes, power_cuts: u32) {
        let Self { lab, world, .. } = self;
        if let Err(error) = world.expect(becomes, power_cuts, &lab.host) {
            panic!("{error}");
        }
        self.right().await;
        let Self { lab, world, .. } = self;
        world.work(&lab.host);
    }

    /// Waits until the host is as it must be.
    async fn right(&self) {
        let end = Instant::now() + SETTLES_WITHIN;
        while let Err(error) = self.world.check(&self.lab.host).await {
            assert!(Instant::now() < end, "{error}");
            sleep(Duration::from_secs(2)).await;
        }
    }

    /// Whether it stays so, and nobody does anything any more.
    async fn stays(&self) {
        let lives = self.lab.host.lives(self.world.instance);
        sleep(SETTLES_WITHIN).await;
        let steps = self.lab.host.steps_done();
        sleep(LATER).await;
        if let Err(error) = self.world.check(&self.lab.host).await {
            panic!("later: {error}");
        }
        assert_eq!(self.lab.host.steps_done(), steps, "something is still done");
        assert_eq!(self.lab.host.lives(self.world.instance), lives);
    }

    /// Deletes everything, in any order.
    async fn delete_everything(mut self, delivery: Delivery) {
        let outdated = self.world.outdated().to_vec();
        let mut tombstones = self.world.wish(World::delete_everything);
        self.random.shuffle(&mut tombstones);
        let documents = delivery.of(&tombstones, &outdated, &mut self.random);
        self.send(&documents).await;
        self.settled().await;
        assert_eq!(self.lab.host.leftovers(), [""; 0]);
        assert_eq!(self.lab.host.unfiltered_legs(), []);
        assert_eq!(self.lab.host.open_tunnels(), []);
        assert_eq!(self.lab.dead().await, []);
        self.lab.kill().await;
    }
}

/// Links what is in one directory into another one. The agent replaces files and never changes them.
fn link_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&copy).unwrap();
            link_files(&path, &copy);
        } else if entry.file_name() != "lock" {
            std::fs::hard_link(&path, &copy).unwrap();
        }
    }
}

/// What came of all schedules.
#[derive(Debug, Default)]
struct Count {
    /// Steps of an operation that nothing befell.
    steps: u64,
    schedules: u64,
    disturbed: BTreeMap<&'static str, u64>,
}

/// All schedules of an operation.
async fn schedules(of: &'static Operation, store: Store, filter: &str, count: &mut Count) {
    let mut schedule = Schedule {
        operation: of,
        store,
        disturbance: DISTURBANCES.last().unwrap(),
        step: u64::MAX,
    };
    // Its own words, so that it is found by what it begins with.
    let begins = format!("{}/{}/", of.name, store.word());
    if !begins.starts_with(filter) && !filter.starts_with(&begins) {
        return;
    }
    let mut base = Run::new(store, schedule.random()).await;
    {
        // How it comes to where it begins.
        let _named = Named(format!("{}/{} (before it)", of.name, store.word()));
        for before in of.after {
            let before = operation(before);
            assert!(
                before.can_begin(&base.world),
                "{} cannot begin",
                before.name
            );
            base.operate(before, &[], Delivery::InOrder).await;
        }
        assert!(of.can_begin(&base.world), "it cannot begin");
        base.lab.kill().await;
    }
    for disturbance in &DISTURBANCES {
        schedule.disturbance = disturbance;
        for step in 0.. {
            schedule.step = step;
            if !schedule.to_string().starts_with(filter) {
                if step > 1000 {
                    break;
                }
                continue;
            }
            let _named = Named(format!(
                "{schedule}\nit alone: BERTH_LAW='{schedule}' cargo test --workspace --test engine law::"
            ));
            let mut run = base.twin(schedule.random()).await;
            let delivery = schedule.delivery();
            let (met, steps) = run.operate(of, &[(disturbance, step)], delivery).await;
            let disturbed = met > 0;
            count.schedules += 1;
            let is_quiet =
                disturbance.mishap == Mishap::Nothing && disturbance.then == Then::Nothing;
            if is_quiet {
                run.stays().await;
                count.steps += steps;
                assert!(steps > 0, "nothing is done");
            }
            run.delete_everything(delivery).await;
            if disturbed && !is_quiet {
                *count.disturbed.entry(disturbance.name).or_default() += 1;
            }
            if !disturbed || is_quiet {
                let met = step > 0 || is_quiet || disturbance.meets == Meets::Halves;
                assert!(met, "no step was disturbed");
                break;
            }
        }
    }
}

/// Runs work in paused time.
fn in_paused_time<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(work)
}

fn filter() -> String {
    std::env::var("BERTH_LAW").unwrap_or_default()
}

#[test]
fn every_operation_ends_as_its_documents_say_whatever_goes_wrong_at_whatever_step() {
    let filter = filter();
    if filter.starts_with("walks/") {
        return;
    }
    let cases: Vec<(&'static Operation, Store)> = OPERATIONS
        .iter()
        .flat_map(|operation| {
            operation
                .stores
                .iter()
                .map(move |store| (operation, *store))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let (total, broken) = (Mutex::new(Count::default()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let work = || {
            while let Some((operation, store)) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                let mut count = Count::default();
                let case = || in_paused_time(schedules(operation, *store, &filter, &mut count));
                // The others are worth knowing too.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(case)).is_err() {
                    let name = format!("{}/{}", operation.name, store.word());
                    broken.lock().unwrap().push(name);
                    continue;
                }
                let mut total = total.lock().unwrap();
                total.steps += count.steps;
                total.schedules += count.schedules;
                for (name, times) in count.disturbed {
                    *total.disturbed.entry(name).or_default() += times;
                }
            }
        };
        for _ in 0..threads.min(4) {
            scope.spawn(work);
        }
    });
    let Count {
        steps,
        schedules,
        disturbed,
    } = total.into_inner().unwrap();
    println!(
        "law: operations={} stored={} steps={steps} schedules={schedules}",
        OPERATIONS.len(),
        cases.len()
    );
    for (name, times) in &disturbed {
        println!("law: disturbed={times} by={name:?}");
    }
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "broken: {broken:#?}");
    if filter.is_empty() {
        assert!(schedules >= 7500, "{schedules}");
        // All but the one that is nothing.
        assert_eq!(disturbed.len(), DISTURBANCES.len() - 1);
    }
}

/// One move of a walk: any numbers, taken modulo what there is to choose from.
type Move = (u8, [(u8, u8); 2], u8);

/// Goes from operation to operation on one host, with up to two disturbances in each.
async fn walk(store: Store, moves: &[Move], disturbed: &AtomicUsize) {
    let seed = moves.len().try_into().unwrap_or_default();
    let mut run = Run::new(store, Random(seed)).await;
    let mut named = Named(store.word().to_owned());
    for (which, by, delivery) in moves {
        let choices: Vec<&Operation> = OPERATIONS
            .iter()
            .filter(|it| it.can_begin(&run.world))
            .collect();
        let operation = choices[usize::from(*which) % choices.len()];
        let by = by.map(|(disturbance, step)| {
            let disturbance = &DISTURBANCES[usize::from(disturbance) % DISTURBANCES.len()];
            (disturbance, u64::from(step % 5))
        });
        let delivery = DELIVERIES[usize::from(*delivery) % DELIVERIES.len()];
        let words = by.map(|(disturbance, step)| format!("/{}/{step}", disturbance.name));
        let (name, words) = (operation.name, words.concat());
        named.0 = format!("{} > {name}{words}/{delivery:?}", named.0);
        let (met, _) = run.operate(operation, &by, delivery).await;
        disturbed.fetch_add(met, Ordering::SeqCst);
    }
    run.delete_everything(Delivery::Shuffled).await;
}

/// How many walks there are, of so many operations at most.
const WALKS: u32 = 300;
const LONGEST: usize = 12;

#[test]
fn operations_follow_one_another_in_any_order_whatever_goes_wrong() {
    let given = filter();
    let seed: u8 = match given.strip_prefix("walks/") {
        Some(seed) => seed.parse().unwrap(),
        None if given.is_empty() => 1,
        // Schedules of the table are wanted.
        None => return,
    };
    let config = Config {
        cases: WALKS,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let moves = proptest::collection::vec(any::<Move>(), 1..=LONGEST);
    let (operations, disturbed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stores = [
        Store::Qcow2,
        Store::Raw,
        Store::Dir,
        Store::Lvm,
        Store::Thin,
    ];
    let result = runner.run(&(0..stores.len(), moves), |(store, moves)| {
        operations.fetch_add(moves.len(), Ordering::SeqCst);
        in_paused_time(walk(stores[store], &moves, &disturbed));
        Ok(())
    });
    if let Err(error) = result {
        panic!("with BERTH_LAW=walks/{seed}: {error}");
    }
    let (operations, disturbed) = (operations.into_inner(), disturbed.into_inner());
    println!("law: walks={WALKS} operations={operations} disturbed={disturbed}");
    assert!(disturbed > operations / 3);
}
