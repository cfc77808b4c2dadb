//! The words of the command line, as clap types. It parses; it does nothing.

mod aggregate;
mod host;
mod instance;
mod network;
mod placement;
mod port;
mod router;
mod security_group;
mod server_group;
mod snapshot;
mod subnet;
mod trace;
mod volume;

use std::{ffi::OsString, fmt::Display, path::PathBuf, str::FromStr, time::Duration};

use berth_common::{message::request::Change, names::ProjectName};
use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::{
    aggregate::{Aggregate, AggregateCreateArgs, AggregateSetArgs, Member},
    host::{Host, HostSetArgs, WithReason},
    instance::{ConsoleArgs, Instance, InstanceCreateArgs},
    network::{Network, NetworkCreateArgs, NetworkSetArgs},
    placement::{CapacityArgs, ExplainArgs, PlaceArgs},
    port::{AddNetworkArgs, Port, PortCreateArgs, PortSetArgs},
    router::{
        FloatingIp, FloatingIpCreateArgs, Router, RouterAdd, RouterCreateArgs, RouterRemove,
        RouterSetArgs,
    },
    security_group::{SecurityGroup, SecurityGroupRuleCommand, SecurityGroupRuleCreateArgs},
    server_group::{Policy, ServerGroup, ServerGroupCreateArgs},
    snapshot::Snapshot,
    subnet::{Subnet, SubnetCreateArgs, SubnetSetArgs},
    trace::PortTraceArgs,
    volume::{Volume, VolumeCreateArgs},
};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused, or an instance, a volume or a snapshot is in error
  2    a mistake in the command, the configuration or the instance file
  3    the message broker or the scheduler cannot be reached, or did not answer
  4    --wait ended before it was there; berth goes on with it
  5    place: such an instance fits nowhere now
  130  ended by Ctrl-C; what was accepted goes on";

/// Drive berth: hypervisors, networks and instances, and where instances are placed.
#[derive(Debug, Clone, Parser)]
#[command(name = "berthctl", version, about, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Address of the message broker, like amqp://user:password@host:5672/vhost. Without it, the
    /// key `url` of section [bus] in the configuration file says it.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "BERTH_BUS__URL",
        hide_env_values = true
    )]
    pub(crate) url: Option<String>,

    /// The configuration file. Default: /etc/berth/berthctl.toml.
    #[arg(long, global = true, value_name = "FILE", env = "BERTHCTL_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// How long to wait for the broker and for each answer, 1 to 3600 seconds.
    #[arg(
        long, global = true, value_name = "SECONDS", env = "BERTHCTL_TIMEOUT", default_value = "30",
        value_parser = seconds
    )]
    pub(crate) timeout: Duration,

    /// How results are printed. With json, errors are JSON as well and no progress is shown.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        env = "BERTHCTL_OUTPUT",
        default_value = "table"
    )]
    pub(crate) output: Output,

    /// The project that names are looked up in, and that lists are limited to. Default: "default" for
    /// names, every project for lists, and what the file says for a new instance.
    #[arg(long, global = true, value_name = "NAME", env = "BERTHCTL_PROJECT")]
    pub(crate) project: Option<ProjectName>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs: the scheduler's answer as it is.
    Json,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Hypervisors.
    #[command(subcommand)]
    Host(Host),
    /// Networks.
    #[command(subcommand)]
    Network(Network),
    /// Subnets: the addresses of networks.
    #[command(subcommand)]
    Subnet(Subnet),
    /// Ports: virtual NICs with their addresses, by themselves.
    #[command(subcommand)]
    Port(Port),
    /// Security groups: what ports may send and receive.
    #[command(subcommand)]
    SecurityGroup(SecurityGroup),
    /// Routers: they join networks of a project, and lead out to an external one.
    #[command(subcommand)]
    Router(Router),
    /// Floating IPs: addresses of an external network, each for a port inside.
    #[command(subcommand)]
    FloatingIp(FloatingIp),
    /// Virtual machines.
    #[command(subcommand)]
    Instance(Instance),
    /// Volumes: disks of their own, which outlive the instances they are attached to.
    #[command(subcommand)]
    Volume(Volume),
    /// Snapshots: what volumes held at one moment, to make new volumes from.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Host aggregates: hypervisors with an availability zone, properties or ratios in common.
    #[command(subcommand)]
    Aggregate(Aggregate),
    /// Server groups: instances that shall be together, or apart.
    #[command(subcommand)]
    ServerGroup(ServerGroup),
    /// Tell why an instance is where it is, or why it is nowhere; the newest decision first.
    Explain(ExplainArgs),
    /// Tell where such an instance would be placed now, and change nothing. Ends with 5 when it fits nowhere.
    Place(PlaceArgs),
    /// Tell how many such instances would fit now, and what runs out first. Nothing is changed.
    Capacity(CapacityArgs),
    /// Print the completion script of a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

/// Shells with a completion script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// source <(berthctl completion bash)
    Bash,
    /// berthctl completion zsh > "${fpath[1]}/_berthctl"
    Zsh,
    /// berthctl completion fish > ~/.config/fish/completions/berthctl.fish
    Fish,
}

/// Whether and how long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct Wait {
    /// Wait until it is done, and show the progress.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait at most, 1 to 86400 seconds.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = long_seconds, requires = "wait")]
    pub(crate) wait_timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    within(text, 3600)
}

fn long_seconds(text: &str) -> Result<Duration, String> {
    within(text, 86_400)
}

fn within(text: &str, most: u64) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (1..=most).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!(
            "must be a whole number of seconds from 1 to {most}"
        )),
    }
}

/// A value, or the word that clears it.
fn value_or<T: FromStr<Err: Display>>(clear: &str, text: &str) -> Result<Change<T>, String> {
    if text == clear {
        return Ok(Change::Clear);
    }
    text.parse()
        .map(Change::Set)
        .map_err(|error: T::Err| format!("{error}; or `{clear}`"))
}

/// Whether a command line that could not be parsed asked for JSON.
pub(crate) fn asks_for_json(arguments: &[OsString]) -> bool {
    let words: Vec<_> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy())
        .collect();
    words
        .iter()
        .enumerate()
        .any(|(index, word)| match word.as_ref() {
            "-o" | "--output" => words.get(index + 1).is_some_and(|next| next == "json"),
            "-ojson" | "-o=json" | "--output=json" => true,
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("berthctl").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_every_command_may_stand_anywhere() {
        let check = |line: &str| {
            let cli = parse(line).unwrap();
            assert_eq!(cli.global.output, Output::Json, "{line}");
            assert_eq!(cli.global.timeout, Duration::from_secs(5), "{line}");
            assert_eq!(cli.global.project, Some("lab".parse().unwrap()), "{line}");
        };
        check("-o json --timeout 5 --project lab instance list");
        check("instance list -o json --timeout 5 --project lab");
        check("instance --timeout 5 list --output=json --project lab");
    }

    #[test]
    fn what_cannot_be_right_is_refused_before_anything_is_sent() {
        let check = |line: &str, expected: &str| {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(expected), "{line}: {error}");
        };
        check(
            "volume attach data web --disk-bus ide",
            "[possible values: virtio, scsi]",
        );
        check(
            "network create a;b --cidr 10.0.0.0/24",
            "a network name must be",
        );
        check(
            "network create net0 --cidr 10.0.0.1/24",
            "a subnet's CIDR must be",
        );
        check(
            "network create net0 --cidr 10.0.0.0/24 --mtu 100",
            "576..=9216",
        );
        check("network create net0 --gateway 10.0.0.1", "--cidr");
        check("subnet set s --gateway auto", "must be an address or none");
        for protocol in ["tcp", "udp"] {
            check(
                &format!(
                    "port trace 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11 egress --source 10.0.0.10 --destination 10.0.0.11 \
                     --protocol {protocol}"
                ),
                "--port-number",
            );
        }
        check(
            "router set r --route destination=192.0.2.0/24,gateway=10.0.0.1,gateway=10.0.0.2",
            "must be like destination=",
        );
        check(
            "subnet create s --network net0 --subnet-range 10.0.0.0/24 --gateway first",
            "must be an address, auto or none",
        );
        check("network set net0 --external --internal", "cannot be used");
        check("instance create -f x --id 1", "instance id must be a UUID");
        check("instance start web-1 --wait-timeout 5", "--wait");
        check(
            "instance start web-1 --wait --wait-timeout 0",
            "from 1 to 86400",
        );
        check("instance console web-1 --lines 0", "1..=10000");
        check(
            "instance console web-1 --local --follow",
            "cannot be used with",
        );
        check("instance screenshot web-1", "--file");
        check("--timeout 0 host list", "from 1 to 3600");
        check("instance sotp web-1", "stop");
        check(
            "host set hv1 --cpu-allocation-ratio 0",
            "a decimal from 0.001 to 1000",
        );
        check("host set hv1 --reserved-cpus none", "or `default`");
        check("aggregate set ssd --zone a;b", "or `none`");
        check("aggregate create ssd --property disk", "KEY=VALUE");
        check("aggregate create ssd --property =ssd", "a property must be");
        check(
            "server-group create db --policy anti_affinity",
            "soft-anti-affinity",
        );
        check(
            "server-group create db --policy anti-affinity --max-server-per-host 0",
            "--max-server-per-host",
        );
        check("capacity -f x --most 0", "1..=100000");
        check("instance create -f x --count 257", "1..=256");
        check("instance create -f x --best-effort", "--count");
        check("volume create a/b --size 1", "a volume name must be");
        check("volume create data", "--size");
        check(
            "volume create data --size 1 --image-url file:///x",
            "--image-sha256",
        );
        check(
            "volume create data --size 1 --from a --image-url file:///x",
            "cannot be used with",
        );
        check("volume create data --size 1 --iops 0", "--iops");
        check(
            "volume create data --size 1 --from a --snapshot b",
            "cannot be used with",
        );
        check("volume attach data", "INSTANCE");
        check("snapshot create monday", "--volume");
        check(
            "snapshot create a/b --volume data",
            "a snapshot name must be",
        );
    }

    #[test]
    fn a_value_is_set_or_cleared_or_stays() {
        let cli = parse("host set hv1 --cpu-allocation-ratio default --reserved-cpus 2").unwrap();
        let Command::Host(Host::Set(set)) = cli.command else {
            panic!("{cli:?}");
        };
        assert_eq!(set.cpu_allocation_ratio, Some(Change::Clear));
        assert_eq!(set.ram_allocation_ratio, None);
        assert_eq!(set.reserved_cpus, Some(Change::Set("2".parse().unwrap())));
    }

    #[test]
    fn json_is_known_from_a_line_that_cannot_be_parsed() {
        let check = |line: &str, expected| {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            assert_eq!(asks_for_json(&words), expected, "{line}");
        };
        check("-o json nonsense", true);
        check("nonsense --output=json", true);
        check("nonsense -ojson", true);
        check("-o table json", false);
        check("nonsense -o", false);
    }
}
