//! libvirt's calls, by the names of its API.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    connection::Connection,
    constants,
    error::Error,
    procedures::{
        self as ask, Dom, DomainEvent, DomainStatsRecord, Flags, RemoteDiskError, RemoteJobInfo,
        RemoteNodeInfo, TypedParam,
    },
};

/// What libvirt says of its host (`virNodeInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeInfo {
    /// The processor's architecture.
    pub(crate) model: String,
}

impl From<RemoteNodeInfo> for NodeInfo {
    /// Each character takes four bytes, and a zero ends them.
    fn from(info: RemoteNodeInfo) -> Self {
        let last = info.model.iter().skip(3).step_by(4);
        let text: Vec<u8> = last.copied().take_while(|byte| *byte != 0).collect();
        Self {
            model: String::from_utf8_lossy(&text).into_owned(),
        }
    }
}

/// How far the job of a domain is (`virDomainJobInfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JobInfo {
    /// `virDomainJobType`.
    pub(crate) kind: i32,
    /// Bytes in all.
    pub(crate) data_total: u64,
    /// Those that are done.
    pub(crate) data_processed: u64,
}

impl From<RemoteJobInfo> for JobInfo {
    fn from(info: RemoteJobInfo) -> Self {
        let (data_total, data_processed, _) = info.data;
        Self {
            kind: info.kind,
            data_total,
            data_processed,
        }
    }
}

/// What libvirt tells of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobStats {
    /// `virDomainJobType`.
    pub(crate) kind: i32,
    /// Figures.
    pub(crate) params: Vec<TypedParam>,
}

impl DomainStatsRecord {
    /// The domain's UUID.
    pub(crate) fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.dom.uuid)
    }

    /// libvirt's number of this start of it; `None`: it is off.
    pub(crate) fn id(&self) -> Option<u32> {
        u32::try_from(self.dom.id).ok()
    }
}

impl Connection {
    pub(crate) async fn get_node_info(&self) -> Result<NodeInfo, Error> {
        self.call(&ask::NODE_GET_INFO, ()).await.map(NodeInfo::from)
    }

    /// libvirt's version: 1,000,000 × major + 1,000 × minor + release.
    pub(crate) async fn get_lib_version(&self) -> Result<u64, Error> {
        self.call(&ask::CONNECT_GET_LIB_VERSION, ()).await
    }

    /// QEMU's version, counted the same way.
    pub(crate) async fn get_hyp_version(&self) -> Result<u64, Error> {
        self.call(&ask::CONNECT_GET_VERSION, ()).await
    }

    pub(crate) async fn list_all_domains(&self, flags: Flags) -> Result<Vec<Domain>, Error> {
        // The first number says that the domains are wanted, and not only how many there are.
        let (domains, _count) = self
            .call(&ask::CONNECT_LIST_ALL_DOMAINS, (1, flags))
            .await?;
        Ok(domains.into_iter().map(|dom| self.domain(dom)).collect())
    }

    /// Groups of figures of all domains that the flags choose.
    pub(crate) async fn get_all_domain_stats(
        &self,
        groups: u32,
        flags: Flags,
    ) -> Result<Vec<DomainStatsRecord>, Error> {
        let question = (Vec::new(), groups, flags);
        self.call(&ask::CONNECT_GET_ALL_DOMAIN_STATS, question)
            .await
    }

    pub(crate) async fn lookup_by_uuid(&self, uuid: Uuid) -> Result<Domain, Error> {
        let question = (uuid.into_bytes(),);
        let dom = self.call(&ask::DOMAIN_LOOKUP_BY_UUID, question).await?;
        Ok(self.domain(dom))
    }

    pub(crate) async fn lookup_by_name(&self, name: &str) -> Result<Domain, Error> {
        let question = (name.to_owned(),);
        let dom = self.call(&ask::DOMAIN_LOOKUP_BY_NAME, question).await?;
        Ok(self.domain(dom))
    }

    pub(crate) async fn define_xml_flags(&self, xml: &str, flags: Flags) -> Result<Domain, Error> {
        let question = (xml.to_owned(), flags);
        let dom = self.call(&ask::DOMAIN_DEFINE_XML_FLAGS, question).await?;
        Ok(self.domain(dom))
    }

    /// Asks to be told of an event of any domain, on this connection and for as long as it is open.
    pub(super) async fn domain_event_register_any(&self, event: DomainEvent) -> Result<(), Error> {
        let register = &ask::CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY;
        // The number under which it could be asked to stop.
        self.call(register, (event.id, None)).await.map(drop)
    }

    fn domain(&self, dom: Dom) -> Domain {
        Domain {
            connection: self.clone(),
            dom,
        }
    }
}

/// A domain of a connection. It may be gone by the time it is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Domain {
    connection: Connection,
    dom: Dom,
}

impl Domain {
    pub(crate) fn get_name(&self) -> &str {
        &self.dom.name
    }

    pub(crate) fn get_uuid(&self) -> Uuid {
        Uuid::from_bytes(self.dom.uuid)
    }

    fn dom(&self) -> Dom {
        Arc::clone(&self.dom)
    }

    /// Its state and the reason for it.
    pub(crate) async fn get_state(&self) -> Result<(i32, i32), Error> {
        let question = (self.dom(), 0);
        self.connection.call(&ask::DOMAIN_GET_STATE, question).await
    }

    pub(crate) async fn is_active(&self) -> Result<bool, Error> {
        let question = (self.dom(),);
        let answer = self.connection.call(&ask::DOMAIN_IS_ACTIVE, question);
        Ok(answer.await? != 0)
    }

    pub(crate) async fn is_persistent(&self) -> Result<bool, Error> {
        let question = (self.dom(),);
        let answer = self.connection.call(&ask::DOMAIN_IS_PERSISTENT, question);
        Ok(answer.await? != 0)
    }

    pub(crate) async fn get_xml_desc(&self, flags: Flags) -> Result<String, Error> {
        let question = (self.dom(), flags);
        self.connection
            .call(&ask::DOMAIN_GET_XML_DESC, question)
            .await
    }

    pub(crate) async fn create_with_flags(&self, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), flags);
        let started = self
            .connection
            .call(&ask::DOMAIN_CREATE_WITH_FLAGS, question);
        // Another number of its start, which nothing here goes by.
        started.await.map(drop)
    }

    pub(crate) async fn suspend(&self) -> Result<(), Error> {
        self.connection
            .call(&ask::DOMAIN_SUSPEND, (self.dom(),))
            .await
    }

    pub(crate) async fn resume(&self) -> Result<(), Error> {
        self.connection
            .call(&ask::DOMAIN_RESUME, (self.dom(),))
            .await
    }

    pub(crate) async fn shutdown_flags(&self, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), flags);
        self.connection
            .call(&ask::DOMAIN_SHUTDOWN_FLAGS, question)
            .await
    }

    pub(crate) async fn destroy_flags(&self, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), flags);
        self.connection
            .call(&ask::DOMAIN_DESTROY_FLAGS, question)
            .await
    }

    pub(crate) async fn undefine_flags(&self, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), flags);
        self.connection
            .call(&ask::DOMAIN_UNDEFINE_FLAGS, question)
            .await
    }

    pub(crate) async fn managed_save(&self, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), flags);
        self.connection
            .call(&ask::DOMAIN_MANAGED_SAVE, question)
            .await
    }

    pub(crate) async fn has_managed_save(&self) -> Result<bool, Error> {
        let question = (self.dom(), 0);
        let answer = self
            .connection
            .call(&ask::DOMAIN_HAS_MANAGED_SAVE_IMAGE, question);
        Ok(answer.await? != 0)
    }

    pub(crate) async fn managed_save_remove(&self) -> Result<(), Error> {
        let question = (self.dom(), 0);
        self.connection
            .call(&ask::DOMAIN_MANAGED_SAVE_REMOVE, question)
            .await
    }

    /// The definition that lies in its saved memory: what its guest will have when it goes on, whatever was defined since.
    pub(crate) async fn managed_save_get_xml_desc(&self) -> Result<String, Error> {
        let question = (self.dom(), 0);
        self.connection
            .call(&ask::DOMAIN_MANAGED_SAVE_GET_XML_DESC, question)
            .await
    }

    pub(crate) async fn attach_device_flags(&self, xml: &str, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), xml.to_owned(), flags);
        self.connection
            .call(&ask::DOMAIN_ATTACH_DEVICE_FLAGS, question)
            .await
    }

    pub(crate) async fn detach_device_flags(&self, xml: &str, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), xml.to_owned(), flags);
        self.connection
            .call(&ask::DOMAIN_DETACH_DEVICE_FLAGS, question)
            .await
    }

    pub(crate) async fn update_device_flags(&self, xml: &str, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), xml.to_owned(), flags);
        self.connection
            .call(&ask::DOMAIN_UPDATE_DEVICE_FLAGS, question)
            .await
    }

    pub(crate) async fn block_resize(
        &self,
        disk: &str,
        size: u64,
        flags: Flags,
    ) -> Result<(), Error> {
        let question = (self.dom(), disk.to_owned(), size, flags);
        self.connection
            .call(&ask::DOMAIN_BLOCK_RESIZE, question)
            .await
    }

    pub(crate) async fn set_vcpus_flags(&self, count: u32, flags: Flags) -> Result<(), Error> {
        let question = (self.dom(), count, flags);
        self.connection
            .call(&ask::DOMAIN_SET_VCPUS_FLAGS, question)
            .await
    }

    pub(crate) async fn set_scheduler_parameters_flags(
        &self,
        params: Vec<TypedParam>,
        flags: Flags,
    ) -> Result<(), Error> {
        let question = (self.dom(), params, flags);
        let set = &ask::DOMAIN_SET_SCHEDULER_PARAMETERS_FLAGS;
        self.connection.call(set, question).await
    }

    /// The disks that QEMU could not read or write, by the guest's names, each with `virDomainDiskErrorCode`.
    pub(crate) async fn get_disk_errors(&self) -> Result<Vec<RemoteDiskError>, Error> {
        let question = (self.dom(), constants::REMOTE_DOMAIN_DISK_ERRORS_MAX, 0);
        let answer = self.connection.call(&ask::DOMAIN_GET_DISK_ERRORS, question);
        // And how many they are.
        answer.await.map(|(errors, _count)| errors)
    }

    pub(crate) async fn get_job_info(&self) -> Result<JobInfo, Error> {
        let question = (self.dom(),);
        let info = self.connection.call(&ask::DOMAIN_GET_JOB_INFO, question);
        info.await.map(JobInfo::from)
    }

    pub(crate) async fn get_job_stats(&self, flags: Flags) -> Result<JobStats, Error> {
        let question = (self.dom(), flags);
        let stats = self.connection.call(&ask::DOMAIN_GET_JOB_STATS, question);
        let (kind, params) = stats.await?;
        Ok(JobStats { kind, params })
    }

    pub(crate) async fn abort_job(&self) -> Result<(), Error> {
        self.connection
            .call(&ask::DOMAIN_ABORT_JOB, (self.dom(),))
            .await
    }

    pub(crate) async fn backup_begin(&self, xml: &str) -> Result<(), Error> {
        let question = (self.dom(), xml.to_owned(), None, 0);
        self.connection
            .call(&ask::DOMAIN_BACKUP_BEGIN, question)
            .await
    }

    pub(crate) async fn backup_get_xml_desc(&self) -> Result<String, Error> {
        let question = (self.dom(), 0);
        self.connection
            .call(&ask::DOMAIN_BACKUP_GET_XML_DESC, question)
            .await
    }

    /// A picture of its first display: the media type and the bytes, of which there may be so many.
    pub(crate) async fn screenshot(&self, most: usize) -> Result<(Option<String>, Vec<u8>), Error> {
        let question = (self.dom(), 0, 0);
        self.connection
            .download(&ask::DOMAIN_SCREENSHOT, question, most)
            .await
    }

    /// What QEMU's monitor answers.
    pub(crate) async fn qemu_monitor_command(&self, command: &str) -> Result<String, Error> {
        let question = (self.dom(), command.to_owned(), 0);
        self.connection
            .call(&ask::DOMAIN_MONITOR_COMMAND, question)
            .await
    }

    /// What the guest's agent answers within so many seconds.
    pub(crate) async fn qemu_agent_command(
        &self,
        command: &str,
        seconds: i32,
    ) -> Result<Option<String>, Error> {
        let question = (self.dom(), command.to_owned(), seconds, 0);
        self.connection
            .call(&ask::DOMAIN_AGENT_COMMAND, question)
            .await
    }
}
