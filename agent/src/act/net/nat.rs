//! The nftables tables of `nat` networks, and the forwarding that their answers need.
//!
//! What was carried out is kept in a file per network: by it the next agent knows what to undo, and networks of other kinds
//! are looked at without asking nftables. The kernel forgets all of it when the machine starts; the file says of which start
//! it tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_common::ids::NetworkId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;

use super::{error::NetError, nft_command::run, uplink::set_forwards};
use crate::{
    act::command::CommandError,
    decide::{
        names,
        network::uplink::{
            Forwards, NatObserved,
            nat::{NatRules, NatShape, no_longer_needed, removal},
        },
    },
};

/// The tables of a host.
#[derive(Debug, Clone)]
pub(super) struct Nat {
    directory: PathBuf,
    /// Who opens and closes forwarding takes turns: what one network closes another may need.
    turn: Arc<Mutex<()>>,
}

/// What was carried out.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    boot: String,
    rules: NatRules,
}

impl Nat {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            turn: Arc::default(),
        }
    }

    fn record(&self, network: NetworkId) -> PathBuf {
        self.directory.join(format!("{network}.json"))
    }

    /// The networks of which anything is known.
    pub(super) fn networks(&self) -> Result<Vec<NetworkId>, NetError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(NetError::file("list", &self.directory)(error)),
        };
        let mut networks = Vec::new();
        for entry in entries {
            let name = entry
                .map_err(NetError::file("list", &self.directory))?
                .file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            networks.extend(id.and_then(|id| id.parse::<NetworkId>().ok()));
        }
        Ok(networks)
    }

    /// The links that forward because other networks need it.
    pub(super) fn opened_by_others(
        &self,
        network: NetworkId,
    ) -> Result<BTreeSet<String>, NetError> {
        let mut opened = BTreeSet::new();
        for other in self.networks()? {
            if other != network
                && let Some(rules) = self.read(other)?
            {
                opened.extend(rules.open);
            }
        }
        Ok(opened)
    }

    /// What was carried out for a network. A file that tells nothing is as good as one that tells of nothing.
    fn read(&self, network: NetworkId) -> Result<Option<NatRules>, NetError> {
        let path = self.record(network);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(NetError::file("read", path)(error)),
        };
        let nothing = NatRules {
            gateways: BTreeSet::new(),
            open: BTreeSet::new(),
            tunnel_port: None,
        };
        let Ok(record) = serde_json::from_slice::<Record>(&text) else {
            return Ok(Some(nothing));
        };
        Ok(Some(if record.boot == boot()? {
            record.rules
        } else {
            // What forwards since then does so because somebody else wants it.
            NatRules {
                open: BTreeSet::new(),
                ..record.rules
            }
        }))
    }

    /// What is there for a network.
    pub(super) async fn observe(
        &self,
        network: NetworkId,
    ) -> Result<Option<NatObserved>, NetError> {
        let Some(rules) = self.read(network)? else {
            return Ok(None);
        };
        let shape = shape(&names::nat_table(network)).await?;
        Ok(Some(NatObserved { rules, shape }))
    }

    /// Closes what this network opened, needs no more, and no other needs. Whoever calls it has the turn, and the record and
    /// the table that told of it are still there: broken off, it is done again.
    fn close(&self, network: NetworkId, needed: &BTreeSet<String>) -> Result<(), NetError> {
        let Some(before) = self.read(network)? else {
            return Ok(());
        };
        let by_others = self.opened_by_others(network)?;
        for link in no_longer_needed(&before.open, needed, &by_others) {
            set_forwards(&link, Forwards::No)?;
        }
        Ok(())
    }

    /// Sets up the table, and opens what answers come in by. The table first: it keeps what is opened from being used for
    /// anything else.
    pub(super) async fn apply(&self, network: NetworkId, rules: &NatRules) -> Result<(), NetError> {
        let _turn = self.turn.lock().await;
        self.close(network, &rules.open)?;
        fs::create_dir_all(&self.directory)
            .map_err(NetError::file("make directory", &self.directory))?;
        let record = Record {
            boot: boot()?,
            rules: rules.clone(),
        };
        let path = self.record(network);
        let text = serde_json::to_vec(&record)
            .map_err(|error| NetError::file("write", &path)(io::Error::other(error)))?;
        let temporary = path.with_extension("new");
        fs::write(&temporary, text).map_err(NetError::file("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(NetError::file("replace", &path))?;
        run(&rules.ruleset(network), &[]).await?;
        for link in &rules.open {
            set_forwards(link, Forwards::Yes)?;
        }
        Ok(())
    }

    /// Closes what nobody needs any more, and removes the table. The file goes last: without it nobody would come back.
    pub(super) async fn remove(&self, network: NetworkId) -> Result<(), NetError> {
        let _turn = self.turn.lock().await;
        let path = self.record(network);
        if !path.exists() {
            return Ok(());
        }
        self.close(network, &BTreeSet::new())?;
        run(&removal(network), &[]).await?;
        for path in [path.with_extension("new"), path] {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(NetError::file("remove", path)(error)),
            }
        }
        Ok(())
    }
}

/// The chains of a table, and how many rules are in each; nothing if there is no such table.
async fn shape(table: &str) -> Result<NatShape, NetError> {
    let table = json!({ "family": "inet", "name": table });
    let list = json!({ "nftables": [{ "list": { "table": table } }] });
    let listed = match run(&list, &[]).await {
        Ok(listed) => listed,
        Err(NetError::Command(CommandError::Failed { stderr, .. }))
            if stderr.contains("No such file") =>
        {
            return Ok(NatShape::default());
        }
        Err(error) => return Err(error),
    };
    let mut shape = BTreeMap::<String, usize>::new();
    for object in listed["nftables"].as_array().into_iter().flatten() {
        if let Some(chain) = object["chain"]["name"].as_str() {
            shape.entry(chain.to_owned()).or_default();
        } else if let Some(chain) = object["rule"]["chain"].as_str() {
            *shape.entry(chain.to_owned()).or_default() += 1;
        }
    }
    Ok(NatShape(shape))
}

/// Which start of the machine this is.
fn boot() -> Result<String, NetError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(NetError::file("read", path))?;
    Ok(text.trim().to_owned())
}
