//! berth's tables of nftables: one `nft -f -` for each change, and a list only when something else changed the ruleset.
//!
//! The kernel counts the changes of a namespace's ruleset. What is in our tables is remembered with that number: as long as it is
//! the same, nothing was changed; if it is one more after our own transaction, then that was the only one. So a pass costs what it
//! changes, and not what there is.
//!
//! nft takes milliseconds to start, and networks are often made several at a time: what comes while it runs waits, and is the next
//! transaction together, as far as that does not become too large: what one takes in the kernel grows faster than what it changes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_common::{ids::NetworkId, telemetry::error_chain};
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        setsockopt, socket, sockopt::ReceiveTimeout,
    },
    time::{TimeVal, TimeValLike},
};
use serde_json::{Value, json};
use tokio::sync::{Mutex as Turn, oneshot};

use super::{
    error::NetError,
    nft_command::{carry_out, run},
};
use crate::{
    act::command::CommandError,
    decide::filter::{
        Base, Change, FilterObserved, Reason, Stateful, Tables,
        base::{self, Tunnels},
        counted,
        nft::{Family, Field, Op, Operand, Rule, Statement, TABLE, transaction},
        part::{Stray, removal},
        tables,
    },
};

/// How often a list is made anew because the ruleset changed meanwhile.
const LISTS: usize = 5;
/// How many objects a transaction of several changes may make, change or remove: as many as some 64 ports have.
const JOINED_OBJECTS: usize = 512;
/// How long the kernel may take to tell its number.
const ANSWER_SECONDS: i64 = 5;

/// The packet filter of the calling thread's network namespace. Clones share what is remembered.
#[derive(Debug, Clone, Default)]
pub(super) struct Nft {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Whose turn it is to run nft.
    turn: Turn<()>,
    memory: Mutex<Memory>,
    /// Changes that wait for a turn: whoever gets it carries out the first of them, until its own was among them.
    waiting: Mutex<VecDeque<Waiting>>,
}

#[derive(Debug, Default)]
struct Memory {
    /// How connections are tracked, once they are.
    stateful: Option<Stateful>,
    /// What is in the tables, while the kernel's number is this.
    tables: Option<(u32, Tables)>,
    /// Whether a transaction of our own is under way. Before it is noted, the kernel's number may be one more already.
    is_changing: bool,
}

/// A change that waits.
#[derive(Debug)]
struct Waiting {
    change: Arc<Change>,
    answer: oneshot::Sender<Result<(), NetError>>,
}

/// What the kernel is told of changes.
#[derive(Debug, Default)]
struct Told {
    /// What they make and remove.
    commands: Vec<String>,
    /// What nobody knows.
    strays: BTreeSet<Stray>,
}

/// A transaction of our own that is under way, until this is dropped.
struct Changing<'a>(&'a Shared);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.memory().is_changing = false;
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How this kernel tracks connections. That it does not is found out again each time: a module can be loaded at any time.
    async fn stateful(&self) -> Result<Stateful, NetError> {
        if let Some(stateful) = self.memory().stateful {
            return Ok(stateful);
        }
        let _turn = self.turn.lock().await;
        if let Some(stateful) = self.memory().stateful {
            return Ok(stateful);
        }
        let stateful = stateful().await?;
        if stateful != Stateful::No {
            tracing::info!(
                ?stateful,
                "the packet filter tracks connections in this way"
            );
            self.memory().stateful = Some(stateful);
        }
        Ok(stateful)
    }

    /// What is in the tables now. A change under way is not waited for: it is not the asker's, who has one at a time.
    async fn tables<T>(&self, ask: impl Fn(&Tables) -> T) -> Result<T, NetError> {
        let known = |now: u32| {
            let memory = self.memory();
            let (number, tables) = memory.tables.as_ref()?;
            let is_current =
                *number == now || (memory.is_changing && number.wrapping_add(1) == now);
            is_current.then(|| ask(tables))
        };
        if let Some(answer) = known(generation()?) {
            return Ok(answer);
        }
        let _turn = self.turn.lock().await;
        if let Some(answer) = known(generation()?) {
            return Ok(answer);
        }
        self.look().await?;
        let memory = self.memory();
        let looked = memory.tables.as_ref().map(|(_, tables)| ask(tables));
        looked.ok_or(NetError::ThreadLost)
    }

    /// Lists the tables and remembers them. The caller has the turn.
    async fn look(&self) -> Result<(), NetError> {
        let mut now = generation()?;
        let mut tables = list().await?;
        for _ in 1..LISTS {
            let before = now;
            now = generation()?;
            if before == now {
                break;
            }
            tables = list().await?;
        }
        self.memory().tables = Some((now, tables));
        Ok(())
    }

    /// What the kernel is told of changes: what goes with the last network depends on what is there now. The caller has the turn.
    async fn told(&self, changes: &[Arc<Change>]) -> Result<Told, NetError> {
        let mut told = Told::default();
        if changes.iter().all(|change| change.base != Base::Goes) {
            for change in changes {
                told.commands.extend(change.commands());
                told.strays.extend(change.strays.iter().cloned());
            }
            return Ok(told);
        }
        let now = generation()?;
        let is_known = |memory: &Memory| memory.tables.as_ref().is_some_and(|(it, _)| *it == now);
        if !is_known(&self.memory()) {
            self.look().await?;
        }
        let mut tables = match &self.memory().tables {
            Some((_, tables)) => tables.clone(),
            None => Tables::default(),
        };
        for change in changes {
            told.commands.extend(tables.commands(change));
            told.strays.extend(change.strays.iter().cloned());
            tables.apply(change);
            if tables.families.is_empty() {
                // They go with the tables.
                told.strays.clear();
            }
        }
        Ok(told)
    }

    /// Carries out changes: as one transaction, and what nobody knows is removed after it. The caller has the turn.
    async fn change(&self, changes: &[Arc<Change>]) -> Result<(), NetError> {
        let Told { commands, strays } = self.told(changes).await?;
        let before = generation()?;
        self.memory().is_changing = true;
        let changing = Changing(self);
        let mut expected = before;
        if !commands.is_empty() {
            carry_out(transaction(&commands), &[]).await?;
            expected = expected.wrapping_add(1);
        }
        if !strays.is_empty() {
            run(&removal(&strays), &[]).await?;
            expected = expected.wrapping_add(1);
        }
        let after = generation()?;
        let mut memory = self.memory();
        memory.tables = memory
            .tables
            .take()
            .filter(|(number, _)| *number == before && expected == after)
            .map(|(_, mut tables)| {
                changes.iter().for_each(|change| tables.apply(change));
                (after, tables)
            });
        drop(memory);
        drop(changing);
        Ok(())
    }

    /// The same with one alone, which may have been carried out before. The caller has the turn.
    async fn change_one(&self, change: &Arc<Change>) -> Result<(), NetError> {
        let Err(error) = self.change(std::slice::from_ref(change)).await else {
            return Ok(());
        };
        // What is repeated has nothing left to remove: it is done if nothing of it is missing.
        let there = list().await?;
        let mut wanted = there.clone();
        wanted.apply(change);
        let is_done = wanted == there;
        self.memory().tables = None;
        if is_done { Ok(()) } else { Err(error) }
    }

    /// Takes the next changes that go into one transaction: one at the least, if any waits.
    fn take_next(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        // Who was broken off does not wait any more.
        waiting.retain(|it| !it.answer.is_closed());
        let mut objects = 0;
        let fits = |it: &&Waiting| {
            objects += it.change.objects();
            objects <= JOINED_OBJECTS
        };
        let count = waiting.iter().take_while(fits).count().max(1);
        let count = count.min(waiting.len());
        waiting.drain(..count).collect()
    }

    /// Carries out the changes that wait, as many as go together. The caller has the turn.
    async fn change_next(&self) {
        let (changes, answers): (Vec<_>, Vec<_>) = self
            .take_next()
            .into_iter()
            .map(|waiting| (waiting.change, waiting.answer))
            .unzip();
        // If they do not go together, the one that is to blame is found alone.
        let mut all_done = false;
        if changes.len() > 1 {
            match self.change(&changes).await {
                Ok(()) => all_done = true,
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::debug!(changes = changes.len(), error, "changes do not go together");
                }
            }
        }
        for (change, answer) in changes.iter().zip(answers) {
            let done = if all_done {
                Ok(())
            } else {
                self.change_one(change).await
            };
            // Who was broken off meanwhile does not hear it.
            let _ = answer.send(done);
        }
    }
}

impl Nft {
    /// What is there for a network.
    pub(super) async fn observe(&self, network: NetworkId) -> Result<FilterObserved, NetError> {
        let stateful = self.shared.stateful().await?;
        let observed = |tables: &Tables| tables.observed(network, stateful);
        self.shared.tables(observed).await
    }

    /// The networks of which something is there.
    pub(super) async fn networks(&self) -> Result<Vec<NetworkId>, NetError> {
        let networks = |tables: &Tables| tables.networks.iter().copied().collect();
        self.shared.tables(networks).await
    }

    /// Carries out a change, together with others that came while nft was busy.
    pub(super) async fn change(&self, change: Change) -> Result<(), NetError> {
        let change = Arc::new(change);
        let (answer, mut answered) = oneshot::channel();
        self.shared.waiting().push_back(Waiting {
            change: Arc::clone(&change),
            answer,
        });
        let _turn = self.shared.turn.lock().await;
        loop {
            match answered.try_recv() {
                Ok(done) => return done,
                // Whoever took it was broken off, before or after nft did it.
                Err(oneshot::error::TryRecvError::Closed) => {
                    return self.shared.change_one(&change).await;
                }
                Err(oneshot::error::TryRecvError::Empty) => self.shared.change_next().await,
            }
        }
    }

    /// The packets dropped so far, by tap and reason.
    pub(super) async fn drops(&self) -> Result<BTreeMap<(String, Reason), u64>, NetError> {
        // Before the first network there are no sets.
        if self.shared.tables(|tables| tables.base.is_empty()).await? {
            return Ok(BTreeMap::new());
        }
        let sets = json!({ "family": Family::Bridge.as_str(), "table": TABLE });
        let listed = run(&json!({ "nftables": [{ "list": { "sets": sets } }] }), &[]).await?;
        Ok(understood(&listed)?.drops)
    }

    /// The packets for VXLANs that were dropped so far, as nobody named their senders; `None`: nobody asks.
    pub(super) async fn tunnel_drops(&self) -> Result<Option<u64>, NetError> {
        let is_asked = |tables: &Tables| base::tunnels(&tables.base) == Tunnels::Guarded;
        if !self.shared.tables(is_asked).await? {
            return Ok(None);
        }
        let chain =
            json!({ "family": Family::Inet.as_str(), "table": TABLE, "name": base::FOREIGN });
        let listed = run(
            &json!({ "nftables": [{ "list": { "chain": chain } }] }),
            &[],
        )
        .await?;
        Ok(Some(counted(&listed)))
    }
}

/// How the kernel tracks connections in bridges, in the calling thread's network namespace.
pub(super) async fn stateful() -> Result<Stateful, NetError> {
    // If not even this can be done, it is nft that does not work.
    let plain = transaction(&base::commands(Stateful::No));
    carry_out(plain, &["-c"]).await?;
    let stateful = if takes(state_rule()).await? && takes(base::commands(Stateful::Bridge)).await? {
        Stateful::Bridge
    } else if Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
        && takes(base::commands(Stateful::BrNetfilter)).await?
    {
        Stateful::BrNetfilter
    } else {
        Stateful::No
    };
    Ok(stateful)
}

/// A rule that only a bridge takes that tracks connections.
fn state_rule() -> Vec<String> {
    let family = Family::Bridge.as_str();
    let rule = Rule {
        statements: vec![
            Statement::Match(Field::Ct("state"), Op::Has, Operand::text("established")),
            Statement::Accept,
        ],
        whose: "host".to_owned(),
    };
    vec![
        format!("add table {family} {TABLE}"),
        format!("add chain {family} {TABLE} probe"),
        rule.add(Family::Bridge, "probe"),
    ]
}

/// Whether the kernel would take these commands.
async fn takes(commands: Vec<String>) -> Result<bool, NetError> {
    match carry_out(transaction(&commands), &["-c"]).await {
        Ok(()) => Ok(true),
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
