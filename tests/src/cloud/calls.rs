//! Asking the cloud for things, and waiting for them.

use std::time::Duration;

use anyhow::{Context, bail};
use berth_common::{
    bus::{RpcClient, RpcError},
    document::{ConfigDrive, DesiredPower, EtherType, Flavor, ImageRef, OnCrash, RuleDirection},
    ids::{InstanceId, NetworkId, SecurityGroupRuleId, VolumeId},
    message::{
        request::{
            BlockDevice, HostList, InstanceCreate, InstanceDelete, InstanceList, InstanceShow,
            Method, NetworkAttachment, NetworkCreate, NetworkList, Reply,
        },
        security_group::SecurityGroupRuleCreate,
        view::{HostView, InstanceView, NetworkView, VmState},
    },
    refusal::{Refusal, RefusalCode},
    units::{DiskGb, MemoryMb, Vcpus},
};

use super::TestCloud;
use crate::{
    image,
    wait::{Seen, wait_for},
};

/// How long an answer may take.
pub const CALL_LIMIT: Duration = Duration::from_secs(15);
/// For how long somebody waits who asks again then.
const PATIENCE: Duration = Duration::from_secs(2);

/// What of a new instance differs between tests.
#[derive(Debug, Clone)]
pub struct InstanceOptions {
    /// Its networks.
    pub networks: Vec<NetworkId>,
    /// Whether it runs.
    pub power: DesiredPower,
    /// Its image; the guest unless said otherwise.
    pub image: Option<ImageRef>,
    /// The volume it boots from instead of an image.
    pub root_volume: Option<VolumeId>,
    /// Its memory in MiB.
    pub memory_mb: u64,
    /// What it finds on its config drive.
    pub config_drive: Option<ConfigDrive>,
    /// What the metadata service tells it, without a config drive.
    pub guest_data: Option<ConfigDrive>,
    /// What becomes of it when its guest crashes.
    pub on_crash: OnCrash,
}

impl Default for InstanceOptions {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            power: DesiredPower::Running,
            image: None,
            root_volume: None,
            memory_mb: 96,
            config_drive: None,
            guest_data: None,
            on_crash: OnCrash::default(),
        }
    }
}

/// Sends a request; the answer may be a refusal.
///
/// # Errors
/// No answer within the limit.
async fn try_call<M: Method>(
    rpc: &RpcClient,
    request: &M,
    limit: Duration,
) -> Result<Result<M::Reply, Refusal>, RpcError> {
    let message = rpc.call(M::NAME, M::VERSION, request, limit).await?;
    match message.decode::<Reply<M::Reply>>() {
        Ok(reply) => Ok(reply.into()),
        // The test cannot go on with an answer that is none; the text says it in its place.
        Err(error) => Ok(Err(Refusal::new(
            RefusalCode::Internal,
            format!("the answer to {} cannot be read: {error:?}", M::NAME),
        ))),
    }
}

/// Sends a request that must be granted, again and again while there is no answer: whoever got none asks the same again.
///
/// # Errors
/// A refusal, or no answer for too long.
pub async fn insist<M: Method>(rpc: &RpcClient, request: &M) -> anyhow::Result<M::Reply> {
    insist_on(rpc, request)
        .await?
        .map_err(|refusal| denied::<M>(&refusal))
}

/// The same for the end of something: who finds nothing has been granted it before.
///
/// # Errors
/// As there.
pub async fn insist_on_end<M: Method>(rpc: &RpcClient, request: &M) -> anyhow::Result<()> {
    match insist_on(rpc, request).await? {
        Err(refusal) if refusal.code != RefusalCode::NotFound => Err(denied::<M>(&refusal)),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn insist_on<M: Method>(
    rpc: &RpcClient,
    request: &M,
) -> anyhow::Result<Result<M::Reply, Refusal>> {
    wait_for(M::NAME, super::CONVERGE_LIMIT, async || {
        let answer = try_call(rpc, request, PATIENCE).await?;
        Ok(match answer {
            Err(refusal) if refusal.code == RefusalCode::Unavailable => {
                Seen::NotYet(refusal.to_string())
            }
            answer => Seen::Done(answer),
        })
    })
    .await
}

fn denied<M: Method>(refusal: &Refusal) -> anyhow::Error {
    anyhow::anyhow!("{} was refused ({:?}): {refusal}", M::NAME, refusal.code)
}

impl TestCloud {
    /// Sends a request; the answer may be a refusal.
    ///
    /// # Errors
    /// No answer within the limit.
    pub async fn try_call<M: Method>(
        &self,
        request: &M,
        limit: Duration,
    ) -> Result<Result<M::Reply, Refusal>, RpcError> {
        try_call(&self.rpc, request, limit).await
    }

    /// Sends a request that must be granted.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub async fn call<M: Method>(&self, request: &M) -> anyhow::Result<M::Reply> {
        let answer = self.try_call(request, CALL_LIMIT).await?;
        answer.map_err(|refusal| denied::<M>(&refusal))
    }

    /// Sends a request that must be refused.
    ///
    /// # Errors
    /// It is granted, or there is no answer.
    pub async fn refused<M: Method>(&self, request: &M) -> anyhow::Result<Refusal> {
        match self.try_call(request, CALL_LIMIT).await? {
            Ok(_) => bail!("{} was granted, and should have been refused", M::NAME),
            Err(refusal) => Ok(refusal),
        }
    }

    /// Makes a network named `name`, `10.77.<number>.0/24`.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create_network(&self, name: &str, number: u8) -> anyhow::Result<NetworkView> {
        let request = NetworkCreate {
            id: NetworkId::new(),
            name: name.parse()?,
            project: Default::default(),
            network_type: Default::default(),
            physical_network: None,
            segmentation_id: None,
            external: false,
            cidr: Some(format!("10.77.{number}.0/24").parse()?),
            gateway_ip: None,
            dns_nameservers: Vec::new(),
            mtu: None,
        };
        let network = self.call(&request).await?;
        self.open_default_group().await?;
        Ok(network)
    }

    /// Lets everything in over IPv4 to ports that have the group `default`, as those have that ask for no other.
    ///
    /// # Errors
    /// It is refused, but for the rule being there.
    pub async fn open_default_group(&self) -> anyhow::Result<()> {
        let request = SecurityGroupRuleCreate {
            id: SecurityGroupRuleId::new(),
            security_group: "default".to_owned(),
            project: Default::default(),
            direction: RuleDirection::Ingress,
            ethertype: EtherType::IPv4,
            protocol: None,
            remote_ip_prefix: None,
            remote_group: None,
        };
        match self.try_call(&request, CALL_LIMIT).await? {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.code == RefusalCode::Conflict => Ok(()),
            Err(refusal) => bail!("the rule was refused: {refusal}"),
        }
    }

    /// The request for an instance of the smallest size that boots the guest.
    ///
    /// # Errors
    /// The name or the guest image is unusable.
    pub fn instance_request(
        &self,
        name: &str,
        options: &InstanceOptions,
    ) -> anyhow::Result<InstanceCreate> {
        let image = match (&options.image, &options.root_volume) {
            (_, Some(_)) => None,
            (Some(image), None) => Some(image.clone()),
            (None, None) => Some(image::of_file(&self.services.guest_image)?),
        };
        let block_devices = options.root_volume.iter().map(|volume| BlockDevice {
            volume: volume.to_string(),
            boot_index: 0,
            delete_on_termination: false,
        });
        let attach = |network: &NetworkId| NetworkAttachment {
            network: network.to_string(),
            ..NetworkAttachment::default()
        };
        Ok(InstanceCreate {
            id: InstanceId::new(),
            name: name.parse()?,
            project: Default::default(),
            flavor: Flavor {
                vcpus: Vcpus::new(1)?,
                memory_mb: MemoryMb::new(options.memory_mb)?,
                disk_gb: DiskGb::new(1)?,
            },
            image,
            block_devices: block_devices.collect(),
            networks: options.networks.iter().map(attach).collect(),
            power: options.power,
            stop_timeout_seconds: 30,
            hints: Default::default(),
            config_drive: options.config_drive.clone(),
            guest_data: options.guest_data.clone(),
            on_crash: options.on_crash,
        })
    }

    /// Asks for an instance, which must be granted.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create_instance(
        &self,
        name: &str,
        options: &InstanceOptions,
    ) -> anyhow::Result<InstanceView> {
        self.call(&self.instance_request(name, options)?).await
    }

    /// The instance as it is now.
    ///
    /// # Errors
    /// There is none.
    pub async fn show(&self, id: InstanceId) -> anyhow::Result<InstanceView> {
        self.call(&InstanceShow {
            instance: id.to_string(),
            project: Default::default(),
        })
        .await
    }

    /// Asks for the end of an instance.
    ///
    /// # Errors
    /// It is refused.
    pub async fn delete(&self, id: InstanceId) -> anyhow::Result<InstanceView> {
        self.call(&InstanceDelete {
            instance: id.to_string(),
            project: Default::default(),
        })
        .await
    }

    /// Waits until what was asked of an instance is done: it is in this state, and its host has said so of what was wished.
    /// Unlike [`TestCloud::wait_state`], being in error meanwhile is no reason to give up: it may be what was asked about before.
    ///
    /// # Errors
    /// It is not so in time.
    pub async fn settled(
        &self,
        asked: &InstanceView,
        state: VmState,
    ) -> anyhow::Result<InstanceView> {
        let what = format!("instance {} to be {}", asked.id, state.as_str());
        wait_for(&what, super::CONVERGE_LIMIT, async || {
            let view = self.show(asked.id).await?;
            let done = view.vm_state == state
                && view.task_state.is_none()
                && view.observed_generation >= asked.generation;
            if done {
                return Ok(Seen::Done(view));
            }
            Ok(Seen::NotYet(format!("{view:?}")))
        })
        .await
    }

    /// Asks for a change of an instance, and waits until it is made.
    ///
    /// # Errors
    /// As for [`TestCloud::call`] and [`TestCloud::settled`].
    pub async fn change<M: Method<Reply = InstanceView>>(
        &self,
        request: M,
        state: VmState,
    ) -> anyhow::Result<InstanceView> {
        let asked = self.call(&request).await?;
        self.settled(&asked, state).await
    }

    /// Waits until an instance is in a state, with nothing being done to it any more.
    ///
    /// # Errors
    /// It is in error instead, or not there in time.
    pub async fn wait_state(
        &self,
        id: InstanceId,
        state: VmState,
        limit: Duration,
    ) -> anyhow::Result<InstanceView> {
        wait_for(
            &format!("instance {id} to be {}", state.as_str()),
            limit,
            async || {
                let view = self.show(id).await?;
                let seen = format!(
                    "{}, task {:?}, power {:?}, progress {:?}, fault {:?}, generation {}/{}",
                    view.vm_state.as_str(),
                    view.task_state,
                    view.power_state,
                    view.progress,
                    view.fault,
                    view.observed_generation,
                    view.generation
                );
                Ok(if view.vm_state == state && view.task_state.is_none() {
                    Seen::Done(view)
                } else if view.vm_state == VmState::Error && state != VmState::Deleted {
                    Seen::Never(seen)
                } else {
                    Seen::NotYet(seen)
                })
            },
        )
        .await
    }

    /// Waits until an instance runs.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn wait_active(&self, id: InstanceId) -> anyhow::Result<InstanceView> {
        self.wait_state(id, VmState::Active, super::CONVERGE_LIMIT)
            .await
    }

    /// Waits until an instance is gone.
    ///
    /// # Errors
    /// It is not in time.
    pub async fn wait_deleted(&self, id: InstanceId) -> anyhow::Result<()> {
        self.wait_state(id, VmState::Deleted, super::CONVERGE_LIMIT)
            .await
            .map(drop)
    }

    /// Deletes an instance and waits until it is gone.
    ///
    /// # Errors
    /// It is refused, or not gone in time.
    pub async fn delete_and_wait(&self, id: InstanceId) -> anyhow::Result<()> {
        self.delete(id).await?;
        self.wait_deleted(id).await
    }

    /// All hypervisors.
    ///
    /// # Errors
    /// No answer.
    pub async fn hosts(&self) -> anyhow::Result<Vec<HostView>> {
        Ok(self.call(&HostList::default()).await?.hosts)
    }

    /// One hypervisor by its name.
    ///
    /// # Errors
    /// There is none.
    pub async fn host(&self, name: &str) -> anyhow::Result<HostView> {
        let found = self
            .hosts()
            .await?
            .into_iter()
            .find(|host| host.name.as_str() == name);
        found.with_context(|| format!("no host {name}"))
    }

    /// All instances that are not deleted.
    ///
    /// # Errors
    /// No answer.
    pub async fn instances(&self) -> anyhow::Result<Vec<InstanceView>> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self
                .call(&InstanceList {
                    limit: 1000,
                    after,
                    ..InstanceList::default()
                })
                .await?;
            after = page.instances.last().map(|view| view.id);
            all.extend(page.instances);
            if !page.more {
                break;
            }
        }
        all.retain(|view| view.vm_state != VmState::Deleted);
        Ok(all)
    }

    /// All networks.
    ///
    /// # Errors
    /// No answer.
    pub async fn networks(&self) -> anyhow::Result<Vec<NetworkView>> {
        Ok(self.call(&NetworkList::default()).await?.networks)
    }
}
