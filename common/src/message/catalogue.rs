//! All messages in one table: what `docs/messages.md` is generated from, and what the golden fingerprints guard.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use sha2::{Digest, Sha256};

use super::trace::PortTrace;
use super::{
    counters::PortCounters,
    heartbeat::{HEARTBEAT_TYPE, HEARTBEAT_VERSION, Heartbeat},
    port::{
        InstanceAttachInterface, InstanceDetachInterface, PortCreate, PortDelete, PortList,
        PortSet, PortShow,
    },
    question::{
        InstanceConsoleOutput, InstanceEndpoints, InstancePingGuestAgent, InstanceScreenshot,
        QUESTION_TYPE, QUESTION_VERSION, Question,
    },
    report::{REPORT_TYPE, REPORT_VERSION, Report},
    request::{
        AggregateAddHost, AggregateCreate, AggregateDelete, AggregateList, AggregateRemoveHost,
        AggregateSet, HostDelete, HostDisable, HostDrain, HostEnable, HostList, HostSet, HostShow,
        InstanceCreate, InstanceCreateMany, InstanceDelete, InstanceList, InstancePause,
        InstanceReboot, InstanceRebuild, InstanceRescue, InstanceResize, InstanceResume,
        InstanceSet, InstanceShow, InstanceStart, InstanceStop, InstanceSuspend, InstanceUnpause,
        InstanceUnrescue, Method, NetworkCreate, NetworkDelete, NetworkList, NetworkSet,
        NetworkShow, PlacementCapacity, PlacementExplain, PlacementPlace, Reply, ServerGroupCreate,
        ServerGroupDelete, ServerGroupList, SnapshotCreate, SnapshotDelete, SnapshotList,
        SnapshotShow, SubnetCreate, SubnetDelete, SubnetList, SubnetSet, SubnetShow, VolumeAttach,
        VolumeCreate, VolumeDelete, VolumeDetach, VolumeExtend, VolumeList, VolumeShow,
    },
    router::{
        FloatingIpCreate, FloatingIpDelete, FloatingIpList, FloatingIpSet, FloatingIpShow,
        RouterAddInterface, RouterCreate, RouterDelete, RouterList, RouterRemoveInterface,
        RouterSet, RouterShow,
    },
    security_group::{
        SecurityGroupCreate, SecurityGroupDelete, SecurityGroupList, SecurityGroupRuleCreate,
        SecurityGroupRuleDelete, SecurityGroupSet, SecurityGroupShow,
    },
};
use crate::document::{DOCUMENT_VERSION, Document, Kind};

/// One message: where it goes, what its `type` and version are, and the JSON Schema of its body.
#[derive(Debug, Clone)]
pub struct MessageType {
    /// The AMQP property `type`.
    pub name: String,
    /// The header `x-berth-version`.
    pub version: u32,
    /// Where it is sent.
    pub route: Route,
    /// The body.
    pub body: Schema,
    /// The body of the reply, of requests.
    pub reply: Option<Schema>,
}

/// Where a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To queue `scheduler`, from clients.
    Request,
    /// To queue `compute.<host>`, from the scheduler.
    Document,
    /// To queue `ask.<host>`, from the scheduler.
    Question,
    /// To topic `report.<host id>`, from agents.
    Report,
    /// To topic `heartbeat.<host id>`, from agents.
    Heartbeat,
}

impl MessageType {
    /// SHA-256 over everything a peer can notice of this message, in hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let text = serde_json::json!({
            "name": self.name, "version": self.version, "body": self.body, "reply": self.reply,
        })
        .to_string();
        Sha256::digest(text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// The `type` property of the document of a kind: `document.instance` and so on.
#[must_use]
pub fn document_type(kind: Kind) -> String {
    format!("document.{kind}")
}

/// Every message there is.
#[must_use]
pub fn all() -> Vec<MessageType> {
    let mut types = vec![
        request::<InstanceCreate>(),
        request::<InstanceCreateMany>(),
        request::<InstanceDelete>(),
        request::<InstanceStart>(),
        request::<InstanceStop>(),
        request::<InstancePause>(),
        request::<InstanceUnpause>(),
        request::<InstanceSuspend>(),
        request::<InstanceResume>(),
        request::<InstanceReboot>(),
        request::<InstanceResize>(),
        request::<InstanceRescue>(),
        request::<InstanceUnrescue>(),
        request::<InstanceRebuild>(),
        request::<InstanceSet>(),
        request::<InstanceShow>(),
        request::<InstanceList>(),
        request::<InstanceConsoleOutput>(),
        request::<InstanceScreenshot>(),
        request::<InstancePingGuestAgent>(),
        request::<InstanceEndpoints>(),
        request::<PortTrace>(),
        request::<PortCounters>(),
        request::<VolumeCreate>(),
        request::<VolumeDelete>(),
        request::<VolumeShow>(),
        request::<VolumeList>(),
        request::<VolumeExtend>(),
        request::<VolumeAttach>(),
        request::<VolumeDetach>(),
        request::<SnapshotCreate>(),
        request::<SnapshotDelete>(),
        request::<SnapshotShow>(),
        request::<SnapshotList>(),
        request::<NetworkCreate>(),
        request::<NetworkSet>(),
        request::<NetworkDelete>(),
        request::<NetworkShow>(),
        request::<NetworkList>(),
        request::<SubnetCreate>(),
        request::<SubnetSet>(),
        request::<SubnetDelete>(),
        request::<SubnetShow>(),
        request::<SubnetList>(),
        request::<PortCreate>(),
        request::<PortSet>(),
        request::<PortDelete>(),
        request::<PortShow>(),
        request::<PortList>(),
        request::<InstanceAttachInterface>(),
        request::<InstanceDetachInterface>(),
        request::<SecurityGroupCreate>(),
        request::<SecurityGroupSet>(),
        request::<SecurityGroupDelete>(),
        request::<SecurityGroupShow>(),
        request::<SecurityGroupList>(),
        request::<SecurityGroupRuleCreate>(),
        request::<SecurityGroupRuleDelete>(),
        request::<RouterCreate>(),
        request::<RouterSet>(),
        request::<RouterDelete>(),
        request::<RouterShow>(),
        request::<RouterList>(),
        request::<RouterAddInterface>(),
        request::<RouterRemoveInterface>(),
        request::<FloatingIpCreate>(),
        request::<FloatingIpSet>(),
        request::<FloatingIpDelete>(),
        request::<FloatingIpShow>(),
        request::<FloatingIpList>(),
        request::<HostList>(),
        request::<HostShow>(),
        request::<HostEnable>(),
        request::<HostDisable>(),
        request::<HostDrain>(),
        request::<HostSet>(),
        request::<HostDelete>(),
        request::<AggregateCreate>(),
        request::<AggregateSet>(),
        request::<AggregateDelete>(),
        request::<AggregateList>(),
        request::<AggregateAddHost>(),
        request::<AggregateRemoveHost>(),
        request::<ServerGroupCreate>(),
        request::<ServerGroupDelete>(),
        request::<ServerGroupList>(),
        request::<PlacementExplain>(),
        request::<PlacementPlace>(),
        request::<PlacementCapacity>(),
    ];
    types.push(MessageType {
        name: "document.<kind>".to_owned(),
        version: DOCUMENT_VERSION,
        route: Route::Document,
        body: schema::<Document>(),
        reply: None,
    });
    types.push(MessageType {
        name: QUESTION_TYPE.to_owned(),
        version: QUESTION_VERSION,
        route: Route::Question,
        body: schema::<Question>(),
        reply: None,
    });
    types.push(MessageType {
        name: REPORT_TYPE.to_owned(),
        version: REPORT_VERSION,
        route: Route::Report,
        body: schema::<Report>(),
        reply: None,
    });
    types.push(MessageType {
        name: HEARTBEAT_TYPE.to_owned(),
        version: HEARTBEAT_VERSION,
        route: Route::Heartbeat,
        body: schema::<Heartbeat>(),
        reply: None,
    });
    types
}

fn request<M: Method>() -> MessageType {
    MessageType {
        name: M::NAME.to_owned(),
        version: M::VERSION,
        route: Route::Request,
        body: schema::<M>(),
        reply: Some(schema::<Reply<M::Reply>>()),
    }
}

fn schema<T: JsonSchema>() -> Schema {
    SchemaGenerator::new(SchemaSettings::draft2020_12()).into_root_schema_for::<T>()
}
