//! The scheduler's configuration: `/etc/berth/scheduler.toml` and the environment.

mod network;

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use berth_common::{
    config::{ConfigErrors, Reader, Secret, parse},
    message::view::{AllocationRatios, Resources},
    telemetry::{http, logging::LogConfig},
    units::{AllocationRatio, DiskGb, MemoryMb, Vcpus},
};
use chrono::TimeDelta;

use crate::{
    liveness::Patience,
    place::{Multiplier, Settings, Weights},
};

pub use network::{IdRange, Networks, Overlay, VLAN_IDS, VNIS, VlanRange};

/// Everything the scheduler can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `bus.url`: the broker and its vhost.
    pub bus_url: Secret<String>,
    /// `store.url`: the database.
    pub store_url: Secret<String>,
    /// `store.max_connections`.
    pub store_max_connections: u32,
    /// `placement`: defaults for every host.
    pub placement: Placement,
    /// `network`: segments and sizes of networks.
    pub networks: Networks,
    /// `placement.max_attempts`: how many hosts are tried before an instance is in error.
    pub max_attempts: u32,
    /// `placement.keep_decisions_days`: how long it can be explained why an instance is where it is.
    pub keep_decisions: TimeDelta,
    /// `hosts.heartbeat_timeout_seconds`: a host not heard of for so long is down; `hosts.suspect_self_percent`: unless
    /// more than this share of them falls silent at once.
    pub patience: Patience,
    /// `bus.heartbeat_seconds`: how often the connection to the broker shows that it lives. A scheduler that says
    /// nothing for two of them loses its turn to one that stands by.
    pub bus_heartbeat: Duration,
    /// `dispatch.republish_seconds`: how long the first confirmation of a document may take before it is
    /// published again; doubled each time, up to ten times as long.
    pub republish_after: Duration,
    /// `telemetry.listen`: where `/metrics` and `/healthz` are served.
    pub listen: SocketAddr,
    /// `log`.
    pub log: LogConfig,
}

/// Overcommit and reserves, for hosts that have none of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// `cpu_allocation_ratio`, `ram_allocation_ratio`, `disk_allocation_ratio`.
    pub ratios: AllocationRatios,
    /// `reserved_host_cpus`, `reserved_host_memory_mb`, `reserved_host_disk_gb`.
    pub reserved: Resources,
    /// The multipliers of the weighers, and how failed builds count.
    pub settings: Settings,
}

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/berth/scheduler.toml";
const DEFAULT_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9781));

impl Config {
    /// Reads the file and the environment.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::read(Reader::from_file_and_env(
            path,
            std::env::vars_os(),
            "BERTH",
        )?)
    }

    /// Takes the configuration out of a reader.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn read(mut c: Reader) -> Result<Self, ConfigErrors> {
        let bus_url = c.required("bus.url", parse::secret(parse::url(&["amqp", "amqps"])));
        let store_url = c.required(
            "store.url",
            parse::secret(parse::url(&[
                "sqlite",
                "postgres",
                "postgresql",
                "mysql",
                "mariadb",
            ])),
        );
        let store_max_connections = c.optional("store.max_connections", parse::integer(1..=200), 8);
        let ratio = |c: &mut Reader, key: &str, default: AllocationRatio| {
            c.optional(key, parse::from_str("a decimal ratio such as 1.5"), default)
        };
        let ratios = AllocationRatios {
            cpu: ratio(
                &mut c,
                "placement.cpu_allocation_ratio",
                AllocationRatio::DEFAULT_CPU,
            ),
            ram: ratio(
                &mut c,
                "placement.ram_allocation_ratio",
                AllocationRatio::DEFAULT_RAM,
            ),
            disk: ratio(
                &mut c,
                "placement.disk_allocation_ratio",
                AllocationRatio::ONE,
            ),
        };
        let reserved = Resources {
            vcpus: Vcpus::clamped(c.optional(
                "placement.reserved_host_cpus",
                parse::integer(0..=4096),
                0_u64,
            )),
            memory_mb: MemoryMb::clamped(c.optional(
                "placement.reserved_host_memory_mb",
                parse::integer(0..=16_777_216),
                512_u64,
            )),
            disk_gb: DiskGb::clamped(c.optional(
                "placement.reserved_host_disk_gb",
                parse::integer(0..=16_777_216),
                0_u64,
            )),
        };
        let settings = settings(&mut c);
        let networks = Networks::read(&mut c);
        let max_attempts = c.optional("placement.max_attempts", parse::integer(1..=16), 3_u32);
        let keep_days = c.optional(
            "placement.keep_decisions_days",
            parse::integer(1..=3650),
            7_i64,
        );
        let patience = Patience {
            timeout: c.optional(
                "hosts.heartbeat_timeout_seconds",
                parse::seconds(2..=3600),
                Duration::from_secs(30),
            ),
            suspect_self_percent: c.optional(
                "hosts.suspect_self_percent",
                parse::integer(10..=100),
                50_u8,
            ),
        };
        let bus_heartbeat = c.optional(
            "bus.heartbeat_seconds",
            parse::seconds(1..=60),
            Duration::from_secs(2),
        );
        let republish_after = c.optional(
            "dispatch.republish_seconds",
            parse::seconds(1..=600),
            Duration::from_secs(5),
        );
        let listen = http::read_listen(&mut c, DEFAULT_LISTEN);
        let log = LogConfig::read(&mut c);
        c.finish(|| {
            Some(Self {
                bus_url: bus_url?,
                store_url: store_url?,
                store_max_connections,
                placement: Placement {
                    ratios,
                    reserved,
                    settings,
                },
                networks,
                max_attempts,
                keep_decisions: TimeDelta::days(keep_days),
                patience,
                bus_heartbeat,
                republish_after,
                listen,
                log,
            })
        })
    }
}

/// The multipliers of the weighers.
fn settings(c: &mut Reader) -> Settings {
    let default = Weights::default();
    let mut multiplier = |name: &str, default: Multiplier| {
        c.optional(
            &format!("placement.{name}_weight_multiplier"),
            parse::from_str("a decimal such as -1.5, at most three places"),
            default,
        )
    };
    Settings {
        weights: Weights {
            ram: multiplier("ram", default.ram),
            cpu: multiplier("cpu", default.cpu),
            disk: multiplier("disk", default.disk),
            io_ops: multiplier("io_ops", default.io_ops),
            soft_affinity: multiplier("soft_affinity", default.soft_affinity),
            soft_anti_affinity: multiplier("soft_anti_affinity", default.soft_anti_affinity),
            build_failures: multiplier("build_failure", default.build_failures),
        },
        ..Settings::default()
    }
}
