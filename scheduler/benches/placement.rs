//! How long one placement decision takes: `make bench-placement`.
//!
//! A cloud with a random load is kept at about that load: each decision is followed by its claim, and once the cloud
//! is as full as it may be, every claim is preceded by the release of the oldest one. What is measured is the
//! decision, with its explanation, and the claim. Prints one line per size and kind, and asserts nothing.
//!
//! The times are those of the clock, so on a machine that does other things too they tell of these as well;
//! `cpu_us` is the processor time of a decision, which hardly does.

#![expect(
    clippy::print_stdout,
    reason = "the lines it prints are what a benchmark is for"
)]

use std::{
    collections::VecDeque,
    hint::black_box,
    time::{Duration, Instant},
};

use berth_common::{
    ids::HostId,
    message::view::Resources,
    units::{AllocationRatio, DiskGb, MemoryMb, Vcpus},
};
use berth_scheduler::place::{
    Demand, GroupPolicy, HostFacts, HostTable, Inventory, Request, Scratch, ServerGroup, Settings,
    capacity, place,
};
use uuid::Uuid;

/// Every run is the same run.
const SEED: u64 = 42;
/// How long each point is measured, after a tenth of that to warm up.
const MEASURED: Duration = Duration::from_secs(3);
/// What part of the memory of the hosts that can be chosen is claimed, in percent.
const LOAD_PERCENT: u64 = 80;
const ZONES: u64 = 3;
const RACKS: u64 = 4;

/// A small generator (`SplitMix64`), so that the stream is the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A number from `least` to `most`.
    fn among(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }
}

fn resources(vcpus: u64, memory_mb: u64, disk_gb: u64) -> Resources {
    Resources {
        vcpus: Vcpus::clamped(vcpus),
        memory_mb: MemoryMb::clamped(memory_mb),
        disk_gb: DiskGb::clamped(disk_gb),
    }
}

/// Hosts of four sizes, in zones and racks; every eighth has huge pages, a few are disabled or have failed.
fn cloud(hosts: u64, random: &mut Random) -> HostTable {
    let mut table = HostTable::new(Settings::default());
    for number in 0..hosts {
        let (high, low) = (random.next(), random.next() | 1);
        let id = HostId::try_from(Uuid::from_u64_pair(high, low)).expect("it is not nil");
        let name = format!("hv{number}").parse().expect("it is a label");
        let size = random.among(1, 4);
        let total = resources(32 * size, 131_072 * size, 2_000 * size);
        let mut facts = HostFacts::new(id, name, total);
        facts.reserved = resources(0, 512, 0);
        facts.ratios.cpu = AllocationRatio::DEFAULT_CPU;
        facts.ratios.ram = AllocationRatio::DEFAULT_RAM;
        facts.zone = Some(format!("zone{}", number % ZONES));
        facts.properties = [
            ("ssd".to_owned(), (number % 2 == 0).to_string()),
            ("rack".to_owned(), (number % RACKS).to_string()),
        ]
        .into();
        facts.architecture = "x86_64".to_owned();
        facts.virt_types = ["kvm".to_owned(), "qemu".to_owned()].into();
        facts.physical_networks = ["physnet1".to_owned()].into();
        if number % 8 == 0 {
            let total = 65_536;
            facts.countables =
                [("HUGEPAGES_2048K".into(), Inventory { total, reserved: 0 })].into();
        }
        if number % 50 == 7 {
            facts.admission = berth_scheduler::place::Admission::Disabled;
        }
        table.upsert(facts);
        if number % 100 == 11 {
            let now = berth_scheduler::place::Millis(0);
            table.record_failure(id, now).expect("it was just added");
        }
    }
    table
}

fn request(random: &mut Random) -> Request {
    let size = resources(
        random.among(1, 8),
        1024 * random.among(1, 16),
        random.among(10, 80),
    );
    Request {
        seed: random.next(),
        ..Request::of(size)
    }
}

/// A request with a zone, properties, an image, a network, and a group that has members already.
fn constrained(random: &mut Random, ids: &[HostId]) -> Request {
    let mut members = std::collections::BTreeMap::new();
    for _ in 0..8 {
        let place = random.among(0, u64::try_from(ids.len()).unwrap_or(1) - 1);
        let place = usize::try_from(place).unwrap_or(0);
        members.insert(ids[place], 1);
    }
    let policy = match random.among(0, 1) {
        0 => GroupPolicy::AntiAffinity,
        _ => GroupPolicy::SoftAntiAffinity,
    };
    let mut wanted = request(random);
    wanted.zone = Some(format!("zone{}", random.among(0, ZONES - 1)));
    wanted.properties = [
        ("ssd".to_owned(), "true".to_owned()),
        ("rack".to_owned(), (2 * random.among(0, 1)).to_string()),
    ]
    .into();
    wanted.image.architecture = Some("x86_64".to_owned());
    wanted.image.virt_type = Some("kvm".to_owned());
    wanted.networks.physical_networks = ["physnet1".to_owned()].into();
    wanted.group = Some(ServerGroup {
        policy,
        max_per_host: None,
        members,
    });
    if random.among(0, 3) == 0 {
        wanted.countables = [("HUGEPAGES_2048K".into(), 512)].into();
    }
    wanted
}

/// A cloud at its steady load.
struct Run {
    table: HostTable,
    scratch: Scratch,
    claims: VecDeque<(HostId, Demand)>,
    claimed_mb: u64,
    limit_mb: u64,
    refused: u64,
}

impl Run {
    fn new(hosts: u64, load_percent: u64, random: &mut Random) -> Self {
        let table = cloud(hosts, random);
        let capacity = table.hosts().map(|host| host.facts().capacity());
        let capacity_mb: u64 = capacity.map(|capacity| capacity.memory_mb.get()).sum();
        let mut run = Self {
            table,
            scratch: Scratch::default(),
            claims: VecDeque::new(),
            claimed_mb: 0,
            limit_mb: capacity_mb / 100 * load_percent,
            refused: 0,
        };
        run.load(random);
        run
    }

    /// Random claims on random hosts, so that hosts are unevenly loaded.
    fn load(&mut self, random: &mut Random) {
        let ids: Vec<_> = self.table.hosts().map(|host| host.facts().id).collect();
        let mut tries = 0;
        while self.claimed_mb < self.limit_mb && tries < 100 * ids.len() {
            tries += 1;
            let mut wanted = request(random);
            let place = random.next() % u64::try_from(ids.len()).unwrap_or(1);
            wanted.requested_host = ids.get(usize::try_from(place).unwrap_or(0)).copied();
            let decision = place_quickly(&wanted, &self.table);
            if let Some(host) = decision {
                self.claim(host, wanted.demand());
            }
        }
    }

    fn claim(&mut self, host: HostId, demand: Demand) {
        self.claimed_mb += demand.resources.memory_mb.get();
        self.table
            .claim(host, &demand)
            .expect("the host was just found");
        self.claims.push_back((host, demand));
    }

    /// Makes room, as VMs that end do.
    fn keep_load(&mut self) {
        while self.claimed_mb > self.limit_mb {
            self.release_oldest();
        }
    }

    fn release_oldest(&mut self) {
        if let Some((host, demand)) = self.claims.pop_front() {
            self.claimed_mb -= demand.resources.memory_mb.get();
            self.table.release(host, &demand).expect("it was claimed");
        }
    }

    /// One decision and its claim, timed.
    fn step(&mut self, wanted: &Request) -> Duration {
        self.keep_load();
        let demand = wanted.demand();
        let start = Instant::now();
        let decision = black_box(place(black_box(wanted), &self.table, &mut self.scratch));
        if let Some(host) = decision.host_id() {
            self.claim(host, demand);
        } else {
            self.refused += 1;
            self.release_oldest();
        }
        start.elapsed()
    }
}

/// Whether the one requested host has room: for loading only, without a scan.
fn place_quickly(wanted: &Request, table: &HostTable) -> Option<HostId> {
    use berth_scheduler::place::{Admission, Resource};
    let host = table.host(wanted.requested_host?)?;
    let fits = Resource::ALL
        .into_iter()
        .all(|resource| resource.of(&wanted.resources) <= host.free(resource));
    let enabled = host.facts().admission == Admission::Enabled;
    (fits && enabled).then_some(host.facts().id)
}

/// Nanoseconds this thread has been on a processor; zero where the kernel does not say.
fn on_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default()
}

/// Whether the command line names a point, or none: `-- 'placement hosts=10000'`.
fn is_wanted(point: &str) -> bool {
    let mut words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    words.next().is_none_or(|word| point == word)
}

/// Measures one kind of request on one size of cloud.
fn point(
    name: &str,
    hosts: u64,
    load_percent: u64,
    make: impl Fn(&mut Random, &[HostId]) -> Request,
) {
    if !is_wanted(&format!("{name} hosts={hosts}")) {
        return;
    }
    let mut random = Random(SEED);
    let mut run = Run::new(hosts, load_percent, &mut random);
    let ids: Vec<_> = run.table.hosts().map(|host| host.facts().id).collect();
    let requests: Vec<_> = (0..4096).map(|_| make(&mut random, &ids)).collect();
    let mut stream = requests.iter().cycle();

    let warm = Instant::now();
    while warm.elapsed() < MEASURED / 10 {
        let _ = stream.next().map(|wanted| run.step(wanted));
    }
    run.refused = 0;
    let mut times = Vec::with_capacity(4_000_000);
    let (start, cpu) = (Instant::now(), on_cpu());
    while start.elapsed() < MEASURED {
        times.extend(stream.next().map(|wanted| run.step(wanted)));
    }
    let cpu = Duration::from_nanos(on_cpu().saturating_sub(cpu));
    let spent: Duration = times.iter().sum();
    times.sort_unstable();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let decisions = f64::from(u32::try_from(times.len()).unwrap_or(u32::MAX));
    let rate = decisions / spent.as_secs_f64();
    println!(
        "bench {name} hosts={hosts} decisions_per_s={rate:.0} p50_us={:.1} p99_us={:.1} cpu_us={:.1} \
         decisions={decisions} refused={}",
        micros(percentile(&times, 50)),
        micros(percentile(&times, 99)),
        micros(cpu) / decisions,
        run.refused,
    );
    run.table.debug_validate().expect("the columns are right");
}

/// Measures a dry run: how many more of one size fit.
fn dry_run(hosts: u64) {
    if !is_wanted(&format!("placement_capacity hosts={hosts}")) {
        return;
    }
    let mut random = Random(SEED);
    let mut run = Run::new(hosts, LOAD_PERCENT, &mut random);
    let wanted = request(&mut random);
    let start = Instant::now();
    let runs = 20;
    let mut fits = 0;
    for _ in 0..runs {
        fits = black_box(capacity(&wanted, &run.table, u64::MAX, &mut run.scratch)).fits;
    }
    let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(runs);
    println!("bench placement_capacity hosts={hosts} fits={fits} us={each:.0}");
}

/// Every request refused by every host, which asks most of the search for the nearest misses.
fn refused(random: &mut Random) -> Request {
    Request {
        seed: random.next(),
        ..Request::of(resources(1, 1024 * 800, 10))
    }
}

fn main() {
    for hosts in [100, 1_000, 10_000] {
        point("placement", hosts, LOAD_PERCENT, |random, _| {
            request(random)
        });
        // The properties leave every other host, so half as much is as full.
        point(
            "placement_constrained",
            hosts,
            LOAD_PERCENT / 2,
            constrained,
        );
    }
    point("placement_refused", 10_000, LOAD_PERCENT, |random, _| {
        refused(random)
    });
    dry_run(10_000);
}
