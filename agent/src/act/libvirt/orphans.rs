//! Gets rid of what an interrupted attachment left in QEMU, over QEMU's own monitor: libvirt does not know of it.
//!
//! What to remove is decided in [`crate::decide::orphan`]. Only ever called when an attachment failed, and
//! before the memory of a guest is saved that can be given more.

use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::rpc::{Domain, Error};
use crate::decide::{
    domain_xml,
    orphan::{self, BlockDevice, BlockNode, MemoryDevice, MemoryRemoval, QemuObject, Removal},
};

/// The monitor did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum MonitorError {
    /// libvirt did not pass it on, or got no answer.
    #[error("the monitor was not asked")]
    Libvirt(#[source] Error),
    /// QEMU refused.
    #[error("QEMU refused {command}: {why}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        why: String,
    },
    /// libvirt did not tell what it knows of the guest, so nobody can say what it does not know.
    #[error("libvirt does not say what memory its guest has")]
    Unknown(#[source] Error),
    /// The answer has another shape than QEMU documents.
    #[error("QEMU's answer to {command} cannot be read")]
    Shape {
        /// The command.
        command: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// An answer of the monitor: one of the two, beside the question's number.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return", default)]
    value: Value,
    #[serde(default)]
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

/// Removes what is left of a file that is no disk of this domain. Whether it is gone: a guest that has it is only asked to
/// give it back.
pub(super) async fn remove(domain: &Domain, file: &Path) -> Result<Removal, MonitorError> {
    let nodes: Vec<BlockNode> =
        ask(domain, "query-named-block-nodes", &json!({"flat": true})).await?;
    let devices: Vec<BlockDevice> = ask(domain, "query-block", &json!({})).await?;
    let removal = orphan::removal(file, &nodes, &devices);
    match &removal {
        Removal::Nothing => {}
        Removal::AskBack(aliases) => {
            for alias in aliases {
                let _: Value = ask(domain, "device_del", &json!({ "id": alias })).await?;
            }
        }
        Removal::Nodes(names) => {
            for name in names {
                let _: Value = ask(domain, "blockdev-del", &json!({ "node-name": name })).await?;
            }
        }
    }
    Ok(removal)
}

/// Whether there was anything to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// QEMU has no such device.
    Nobody,
    /// The guest was asked, and answers when it likes.
    TheGuest,
}

/// Something in QEMU's object tree.
#[derive(Deserialize)]
struct Object {
    name: String,
}

/// Asks the guest to give back a device that libvirt does not know.
pub(super) async fn ask_back(domain: &Domain, alias: &str) -> Result<Asked, MonitorError> {
    let devices = json!({"path": "/machine/peripheral"});
    let devices: Vec<Object> = ask(domain, "qom-list", &devices).await?;
    if !devices.iter().any(|device| device.name == alias) {
        return Ok(Asked::Nobody);
    }
    let _: Value = ask(domain, "device_del", &json!({ "id": alias })).await?;
    Ok(Asked::TheGuest)
}

/// What was done about what is left of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NicRemoval {
    /// Nothing was left.
    Nothing,
    /// Its guest has the device, and was asked to give it back.
    AskedBack,
    /// Nobody had it: it is gone.
    Removed,
}

/// Removes what is left of a NIC that libvirt does not know: libvirt gives QEMU the open files of the tap first, then the host's
/// end, by the name of the device with `host` before it, and then the device.
pub(super) async fn remove_nic(domain: &Domain, alias: &str) -> Result<NicRemoval, MonitorError> {
    match ask_back(domain, alias).await {
        Ok(Asked::TheGuest) => return Ok(NicRemoval::AskedBack),
        // It was asked before, and answers when it likes.
        Err(MonitorError::Refused { .. }) => return Ok(NicRemoval::AskedBack),
        Ok(Asked::Nobody) => {}
        Err(error) => return Err(error),
    }
    let end = json!({ "id": format!("host{alias}") });
    let mut removed = NicRemoval::Nothing;
    // Before it makes the host's end of its tap, QEMU is given the open files of that by these names, and keeps them, and the
    // tap with them, for as long as it runs.
    for (command, arguments) in [
        ("netdev_del", end),
        ("closefd", json!({ "fdname": format!("tapfd-{alias}0") })),
        ("closefd", json!({ "fdname": format!("vhostfd-{alias}0") })),
    ] {
        match ask::<Value>(domain, command, &arguments).await {
            Ok(_) => removed = NicRemoval::Removed,
            // There is none of this name.
            Err(MonitorError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Removes memory of berth's that QEMU has and libvirt does not know as a device of this domain. Whether it is gone: a
/// guest that has it is only asked to give it back.
pub(super) async fn remove_memory(domain: &Domain) -> Result<MemoryRemoval, MonitorError> {
    let objects: Vec<QemuObject> = ask(domain, "qom-list", &json!({ "path": "/objects" })).await?;
    let devices: Vec<MemoryDevice> = ask(domain, "query-memory-devices", &json!({})).await?;
    // After QEMU: a piece that another call completes meanwhile is known by then, and must not look lost.
    let xml = domain
        .get_xml_desc(0)
        .await
        .map_err(MonitorError::Unknown)?;
    let known = domain_xml::read(&xml).memory_aliases;
    let removal = orphan::memory_removal(&known, &objects, &devices);
    for alias in &removal.held {
        match ask::<Value>(domain, "device_del", &json!({ "id": alias })).await {
            // It was asked before, and answers when it likes.
            Ok(_) | Err(MonitorError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    for object in &removal.unused {
        let _: Value = ask(domain, "object-del", &json!({ "id": object })).await?;
    }
    Ok(removal)
}

async fn ask<T: DeserializeOwned>(
    domain: &Domain,
    command: &'static str,
    arguments: &Value,
) -> Result<T, MonitorError> {
    let question = json!({ "execute": command, "arguments": arguments }).to_string();
    let answer = domain
        .qemu_monitor_command(&question)
        .await
        .map_err(MonitorError::Libvirt)?;
    let shape = |source| MonitorError::Shape { command, source };
    let answer: Answer = serde_json::from_str(&answer).map_err(shape)?;
    match answer.error {
        None => serde_json::from_value(answer.value).map_err(shape),
        Some(refusal) => Err(MonitorError::Refused {
            command,
            why: refusal.desc,
        }),
    }
}
