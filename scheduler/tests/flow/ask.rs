//! Requests, each in a line.

use berth_common::{
    ids::{AggregateId, InstanceId, NetworkId, ServerGroupId, SnapshotId, VolumeId},
    message::request::{
        AggregateCreate, CreateMode, InstanceCreate, InstanceCreateMany, InstanceDelete,
        NetworkCreate, PlacementCapacity, PlacementPlace, ServerGroupCreate, SnapshotCreate,
        SnapshotDelete, SnapshotShow, VolumeAttach, VolumeCreate, VolumeDelete, VolumeDetach,
        VolumeExtend, VolumeShow,
    },
};
use serde_json::{Value, json};

/// An instance of 1 vCPU and 1 GB of disk.
pub(crate) fn instance(name: &str, memory_mb: u64, networks: Value) -> InstanceCreate {
    let mut body = body(name, json!({}));
    body["flavor"]["memory_mb"] = json!(memory_mb);
    body["networks"] = networks;
    serde_json::from_value(body).unwrap()
}

/// An instance of 1 vCPU, 64 MB and 1 GB of disk, as JSON.
pub(crate) fn body(name: &str, hints: Value) -> Value {
    json!({
        "id": InstanceId::new(),
        "name": name,
        "flavor": { "vcpus": 1, "memory_mb": 64, "disk_gb": 1 },
        "image": { "url": "file:///image", "sha256": "0".repeat(64), "format": "qcow2" },
        "hints": hints,
    })
}

/// A small instance with hints.
pub(crate) fn hinted(name: &str, hints: Value) -> InstanceCreate {
    serde_json::from_value(body(name, hints)).unwrap()
}

pub(crate) fn small(name: &str) -> InstanceCreate {
    hinted(name, json!({}))
}

/// Small instances with the same hints.
pub(crate) fn several(prefix: &str, count: usize, hints: &Value) -> Vec<InstanceCreate> {
    (0..count)
        .map(|n| hinted(&format!("{prefix}-{n}"), hints.clone()))
        .collect()
}

pub(crate) fn many(mode: CreateMode, instances: Vec<InstanceCreate>) -> InstanceCreateMany {
    InstanceCreateMany { instances, mode }
}

pub(crate) fn network(name: &str, cidr: &str) -> NetworkCreate {
    serde_json::from_value(json!({ "id": NetworkId::new(), "name": name, "cidr": cidr })).unwrap()
}

pub(crate) fn delete(id: InstanceId) -> InstanceDelete {
    InstanceDelete {
        instance: id.to_string(),
        project: Default::default(),
    }
}

/// An aggregate, with what else is said of it.
pub(crate) fn aggregate(name: &str, mut more: Value) -> AggregateCreate {
    more["id"] = json!(AggregateId::new());
    more["name"] = json!(name);
    serde_json::from_value(more).unwrap()
}

pub(crate) fn server_group(name: &str, policy: &str) -> ServerGroupCreate {
    let id = ServerGroupId::new();
    serde_json::from_value(json!({ "id": id, "name": name, "policy": policy })).unwrap()
}

/// A volume of zeros, with what else is said of it.
pub(crate) fn volume(name: &str, size_gb: u64, mut more: Value) -> VolumeCreate {
    more["id"] = json!(VolumeId::new());
    more["name"] = json!(name);
    more["size_gb"] = json!(size_gb);
    serde_json::from_value(more).unwrap()
}

/// A volume of an image, with what else is said of it.
pub(crate) fn bootable(name: &str, size_gb: u64, mut more: Value) -> VolumeCreate {
    more["source"] = json!({ "image": {
        "url": "file:///image", "sha256": "0".repeat(64), "format": "qcow2",
    }});
    volume(name, size_gb, more)
}

/// A small instance that boots from a volume.
pub(crate) fn rooted(name: &str, volume: &str, hints: Value) -> InstanceCreate {
    let mut body = body(name, hints);
    body["image"] = Value::Null;
    body["block_devices"] = json!([{ "volume": volume }]);
    serde_json::from_value(body).unwrap()
}

pub(crate) fn show_volume(volume: &str) -> VolumeShow {
    VolumeShow {
        volume: volume.to_owned(),
        project: Default::default(),
    }
}

pub(crate) fn attach(volume: &str, instance: &str) -> VolumeAttach {
    VolumeAttach {
        volume: volume.to_owned(),
        instance: instance.to_owned(),
        project: Default::default(),
        access: Default::default(),
        disk_bus: Default::default(),
    }
}

pub(crate) fn detach(volume: &str) -> VolumeDetach {
    VolumeDetach {
        volume: volume.to_owned(),
        instance: None,
        project: Default::default(),
    }
}

pub(crate) fn extend(volume: &str, size_gb: u64) -> VolumeExtend {
    let request = json!({ "volume": volume, "size_gb": size_gb });
    serde_json::from_value(request).unwrap()
}

pub(crate) fn delete_volume(volume: &str) -> VolumeDelete {
    VolumeDelete {
        volume: volume.to_owned(),
        project: Default::default(),
    }
}

/// A snapshot of a volume.
pub(crate) fn snapshot(name: &str, volume: &str) -> SnapshotCreate {
    SnapshotCreate {
        id: SnapshotId::new(),
        name: name.parse().unwrap(),
        project: Default::default(),
        volume: volume.to_owned(),
    }
}

pub(crate) fn show_snapshot(snapshot: &str) -> SnapshotShow {
    SnapshotShow {
        snapshot: snapshot.to_owned(),
        project: Default::default(),
    }
}

pub(crate) fn delete_snapshot(snapshot: &str) -> SnapshotDelete {
    SnapshotDelete {
        snapshot: snapshot.to_owned(),
        project: Default::default(),
    }
}

/// Where would this instance go?
pub(crate) fn place(like: &InstanceCreate) -> PlacementPlace {
    PlacementPlace {
        project: like.project.clone(),
        flavor: like.flavor,
        hints: like.hints.clone(),
        networks: like.networks.clone(),
    }
}

/// How many of this instance would fit?
pub(crate) fn capacity(like: &InstanceCreate) -> PlacementCapacity {
    PlacementCapacity {
        project: like.project.clone(),
        flavor: like.flavor,
        hints: like.hints.clone(),
        networks: like.networks.clone(),
        most: 1000,
    }
}
