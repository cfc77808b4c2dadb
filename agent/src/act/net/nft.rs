//! berth's tables of nftables: one `nft -j -f -` for each change, and a list only when something else changed the ruleset.
//!
//! The kernel counts the changes of a namespace's ruleset. What is in our tables is remembered with that number: as long as it is
//! the same, nothing was changed; if it is one more after our own transaction, then that was the only one. So a pass costs what it
//! changes, and not what there is.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use berth_common::ids::NetworkId;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        setsockopt, socket, sockopt::ReceiveTimeout,
    },
    time::{TimeVal, TimeValLike},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{error::NetError, nft_command::run};
use crate::{
    act::command::CommandError,
    decide::filter::{
        Base, Change, FilterObserved, Reason, Stateful, Tables, base,
        nft::{Family, Field, Op, Operand, Rule, Statement, TABLE},
        tables,
    },
};

/// How often a list is made anew because the ruleset changed meanwhile.
const LISTS: usize = 5;
/// How long the kernel may take to tell its number.
const ANSWER_SECONDS: i64 = 5;

/// The packet filter of the calling thread's network namespace. Clones share what is remembered.
#[derive(Debug, Clone, Default)]
pub(super) struct Nft {
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    /// How connections are tracked, once they are.
    stateful: Option<Stateful>,
    /// What is in the tables, while the kernel's number is this.
    tables: Option<(u32, Tables)>,
}

impl Nft {
    /// What is there for a network.
    pub(super) async fn observe(&self, network: NetworkId) -> Result<FilterObserved, NetError> {
        let mut memory = self.memory.lock().await;
        let stateful = memory.stateful().await?;
        let tables = memory.tables().await?;
        Ok(tables.observed(network, stateful))
    }

    /// The networks of which something is there.
    pub(super) async fn networks(&self) -> Result<Vec<NetworkId>, NetError> {
        let mut memory = self.memory.lock().await;
        Ok(memory.tables().await?.networks.iter().copied().collect())
    }

    /// Carries out a change.
    pub(super) async fn change(&self, change: &Change) -> Result<(), NetError> {
        let mut memory = self.memory.lock().await;
        // What goes with the last network depends on what is there now.
        let commands = match change.base {
            Base::Goes => memory.tables().await?.commands(change),
            Base::Made(_) | Base::Stays => change.commands(),
        };
        let before = generation()?;
        let remembered = memory.tables.take();
        if let Err(error) = run(&commands, &[]).await {
            // What is repeated has nothing left to remove: it is done if nothing of it is missing.
            let there = memory.tables().await?.clone();
            let mut wanted = there.clone();
            wanted.apply(change);
            return if wanted == there { Ok(()) } else { Err(error) };
        }
        let after = generation()?;
        memory.tables = remembered
            .filter(|(generation, _)| *generation == before && before.wrapping_add(1) == after)
            .map(|(_, mut tables)| {
                tables.apply(change);
                (after, tables)
            });
        Ok(())
    }

    /// The packets dropped so far, by tap and reason.
    pub(super) async fn drops(&self) -> Result<BTreeMap<(String, Reason), u64>, NetError> {
        // Before the first network there are no sets.
        if self.memory.lock().await.tables().await?.base.is_empty() {
            return Ok(BTreeMap::new());
        }
        let sets = json!({ "family": Family::Bridge.as_str(), "table": TABLE });
        let listed = run(&json!({ "nftables": [{ "list": { "sets": sets } }] }), &[]).await?;
        Ok(understood(&listed)?.drops)
    }
}

impl Memory {
    /// How this kernel tracks connections. That it does not is found out again each time: a module can be loaded at any time.
    async fn stateful(&mut self) -> Result<Stateful, NetError> {
        if let Some(stateful) = self.stateful {
            return Ok(stateful);
        }
        let stateful = stateful().await?;
        if stateful != Stateful::No {
            tracing::info!(
                ?stateful,
                "the packet filter tracks connections in this way"
            );
            self.stateful = Some(stateful);
        }
        Ok(stateful)
    }

    /// What is in the tables now.
    async fn tables(&mut self) -> Result<&Tables, NetError> {
        let mut generation_now = generation()?;
        let known = self.tables.as_ref().map(|(generation, _)| *generation);
        if known != Some(generation_now) {
            for _ in 0..LISTS {
                let listed = list().await?;
                let before = generation_now;
                generation_now = generation()?;
                self.tables = Some((before, listed));
                if before == generation_now {
                    break;
                }
            }
        }
        match &self.tables {
            Some((_, tables)) => Ok(tables),
            None => Err(NetError::ThreadLost),
        }
    }
}

/// How the kernel tracks connections in bridges, in the calling thread's network namespace.
pub(super) async fn stateful() -> Result<Stateful, NetError> {
    // If not even this can be done, it is nft that does not work.
    let plain = json!({ "nftables": base::commands(Stateful::No) });
    run(&plain, &["-c"]).await?;
    let stateful = if takes(&state_rule()).await?
        && takes(&json!({ "nftables": base::commands(Stateful::Bridge) })).await?
    {
        Stateful::Bridge
    } else if Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
        && takes(&json!({ "nftables": base::commands(Stateful::BrNetfilter) })).await?
    {
        Stateful::BrNetfilter
    } else {
        Stateful::No
    };
    Ok(stateful)
}

/// A rule that only a bridge takes that tracks connections.
fn state_rule() -> Value {
    let table = json!({ "family": Family::Bridge.as_str(), "name": TABLE });
    let chain = json!({ "family": Family::Bridge.as_str(), "table": TABLE, "name": "probe" });
    let rule = Rule {
        statements: vec![
            Statement::Match(Field::Ct("state"), Op::Has, Operand::text("established")),
            Statement::Accept,
        ],
        whose: "host".to_owned(),
    };
    json!({ "nftables": [
        { "add": { "table": table } },
        { "add": { "chain": chain } },
        rule.add(Family::Bridge, "probe"),
    ] })
}

/// Whether the kernel would take these commands.
async fn takes(commands: &Value) -> Result<bool, NetError> {
    match run(commands, &["-c"]).await {
        Ok(_) => Ok(true),
        Err(NetError::Command(CommandError::Failed { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is in berth's tables. One run of nft lists one table: of several it sees only the last.
async fn list() -> Result<Tables, NetError> {
    let listed = run(
        &json!({ "nftables": [{ "list": { "tables": null } }] }),
        &[],
    )
    .await?;
    let mut objects = Vec::new();
    for family in [Family::Bridge, Family::Inet].map(Family::as_str) {
        if has_table(&listed, family) {
            let table = json!({ "family": family, "name": TABLE });
            let command = json!({ "nftables": [{ "list": { "table": table } }] });
            let listed = run(&command, &[]).await?;
            objects.extend(listed["nftables"].as_array().cloned().unwrap_or_default());
        }
    }
    understood(&json!({ "nftables": objects }))
}

fn has_table(listed: &Value, family: &str) -> bool {
    let objects = listed["nftables"].as_array();
    objects.into_iter().flatten().any(|object| {
        object["table"]["family"] == json!(family) && object["table"]["name"] == json!(TABLE)
    })
}

fn understood(listed: &Value) -> Result<Tables, NetError> {
    tables(listed).map_err(|error| NetError::Filter {
        what: error.to_string(),
    })
}

/// How often the ruleset of this namespace was changed (`NFT_MSG_GETGEN`).
fn generation() -> Result<u32, NetError> {
    /// The subsystem of nftables in the upper byte, and the message in the lower one.
    const GET_GENERATION: u16 = (10 << 8) | 16;
    const HEADER: usize = 16;
    const SUBHEADER: usize = 4;
    /// The attribute with the number, big-endian.
    const NUMBER: u16 = 1;
    let what = "ask the kernel for the ruleset's number";
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .map_err(NetError::system(what))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))
        .map_err(NetError::system(what))?;
    let mut request = Vec::with_capacity(HEADER + SUBHEADER);
    request.extend(20_u32.to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend(1_u16.to_ne_bytes());
    request.extend([0_u8; 12]);
    sendto(
        socket.as_raw_fd(),
        &request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )
    .map_err(NetError::system(what))?;
    let mut answer = [0_u8; 512];
    let len =
        recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(NetError::system(what))?;
    let mut attributes = answer.get(HEADER + SUBHEADER..len).unwrap_or_default();
    while let [a, b, c, d, rest @ ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        if u16::from_ne_bytes([*c, *d]) == NUMBER
            && let [a, b, c, d, ..] = rest
        {
            return Ok(u32::from_be_bytes([*a, *b, *c, *d]));
        }
        let next = length.max(4).next_multiple_of(4);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    Err(NetError::Filter {
        what: "the kernel does not tell the number of its ruleset: it lacks nftables".to_owned(),
    })
}
