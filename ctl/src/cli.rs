//! The words of the command line, as clap types. It parses; it does nothing.

use std::{ffi::OsString, net::Ipv4Addr, path::PathBuf, time::Duration};

use berth_common::{
    ids::{InstanceId, NetworkId},
    names::{Cidr, InstanceName, NetworkName, ProjectName},
};
use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused, or the instance is in error
  2    a mistake in the command, the configuration or the instance file
  3    the message broker or the scheduler cannot be reached, or did not answer
  4    --wait ended before the instance was there; berth goes on with it
  130  ended by Ctrl-C; what was accepted goes on";

/// Drive berth: hypervisors, networks and instances.
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
    /// Virtual machines.
    #[command(subcommand)]
    Instance(Instance),
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

/// Commands on hypervisors.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Host {
    /// List all hypervisors.
    List,
    /// Show one hypervisor: what it has, what is used and claimed, how it is.
    Show {
        /// Name or id of the hypervisor.
        name: String,
    },
    /// Let a hypervisor get new instances again.
    Enable {
        /// Name or id of the hypervisor.
        name: String,
    },
    /// Give a hypervisor no new instances; those it has stay.
    Disable {
        /// Name or id of the hypervisor.
        name: String,
        /// Why, for other operators.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// Commands on networks.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Network {
    /// Create a network with one IPv4 subnet.
    Create(NetworkCreateArgs),
    /// List networks.
    List,
    /// Delete a network that no instance uses.
    Delete {
        /// Name or id of the network.
        name: String,
    },
}

/// A new network.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkCreateArgs {
    /// Its name, unique in the project.
    pub(crate) name: NetworkName,
    /// Its addresses, like 10.0.0.0/24.
    #[arg(long, value_name = "CIDR")]
    pub(crate) cidr: Cidr,
    /// A router's address in it, handed to guests as default route.
    #[arg(long, value_name = "IP")]
    pub(crate) gateway: Option<Ipv4Addr>,
    /// A name server handed to guests; up to 3.
    #[arg(long = "dns", value_name = "IP")]
    pub(crate) dns: Vec<Ipv4Addr>,
    /// Largest packet in bytes, 576 to 9216. Default: 1500.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..=9216))]
    pub(crate) mtu: Option<u16>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<NetworkId>,
}

/// Commands on instances.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Instance {
    /// Create an instance as a file says; `docs/instance.sample.toml` documents every field.
    Create(InstanceCreateArgs),
    /// List instances.
    List,
    /// Show one instance.
    Show {
        /// Name or id of the instance.
        name: String,
    },
    /// Power an instance on.
    Start {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Power an instance off: the guest is asked first, and switched off after its timeout.
    Stop {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Reboot a running instance.
    Reboot {
        /// Name or id of the instance.
        name: String,
        /// Switch it off and on instead of asking the guest.
        #[arg(long)]
        hard: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete an instance, its disks and its ports.
    Delete {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show the end of an instance's serial console. Works on the hypervisor it is on; elsewhere it tells where to
    /// look.
    Console {
        /// Name or id of the instance.
        name: String,
        /// How many lines, up to 10000.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        lines: u32,
        /// The agent's state directory on this machine.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/berth")]
        state_dir: PathBuf,
    },
}

/// A new instance.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstanceCreateArgs {
    /// The instance file.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Its name, instead of the file's.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<InstanceName>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<InstanceId>,
    #[command(flatten)]
    pub(crate) wait: Wait,
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
        check("network create net0", "--cidr");
        check("instance create -f x --id 1", "instance id must be a UUID");
        check("instance start web-1 --wait-timeout 5", "--wait");
        check(
            "instance start web-1 --wait --wait-timeout 0",
            "from 1 to 86400",
        );
        check("instance console web-1 --lines 0", "1..=10000");
        check("--timeout 0 host list", "from 1 to 3600");
        check("instance sotp web-1", "stop");
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
