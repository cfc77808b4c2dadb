//! The kernel's network, and DHCP: looks, and carries out one step at a time. No decisions here.
//!
//! - [`KernelNet`] is the implementation of [`Net`];
//! - `links`: links and addresses, through netlink, with `known` (what is remembered of them from look to look);
//! - `uplink`: what networks reach beyond their bridges by, with `fdb` (forwarding tables of VTEPs), `nic` (NICs of the host),
//!   `nat` (nftables) and `features` (what the kernel can);
//! - `tc`: limits and copies of packets, through netlink;
//! - `netns`: named namespaces;
//! - `nft`: the packet filter; `nft_command` runs the tool, here and for `nat`, `router` and `features`;
//! - `router`: routers and floating IPs;
//! - `dnsmasq`, `metadata`, `process`: the DHCP server and the metadata service, which outlive the agent and are adopted;
//! - `counters`: what is counted of ports;
//! - `worker`: the threads all of it runs on.

mod counters;
mod dnsmasq;
mod error;
mod fdb;
pub mod features;
mod files;
mod links;
pub mod metadata;
mod nat;
mod netns;
mod nft;
mod nft_command;
mod nic;
mod process;
mod router;
mod tc;
mod uplink;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
    str::FromStr,
};

use async_trait::async_trait;
use berth_common::ids::{NetworkId, RouterId};

pub use error::NetError;
pub use uplink::{UplinkOptions, VXLAN_PORT};

use self::{
    dnsmasq::Dnsmasq,
    links::{
        Around, Links,
        known::{Known, Seen},
    },
    nat::Nat,
    netns::{Made, Name},
    nft::Nft,
    uplink::Host,
    worker::Workers,
};
use super::{ActError, Net};
use crate::decide::{
    filter::{FilterStep, Reason},
    metadata::ForgedCounts,
    names,
    network::{
        BridgePort, Herald, Link, MetadataStep, NamespaceContent, NamespaceObserved, NetStep,
        NetworkObserved, Role, tc as tc_plan,
    },
    router::{Leg, RouterObserved, RouterStep},
};

/// Where the kernel's settings of IPv6 are, if it has any.
const IPV6: &str = "/proc/sys/net/ipv6";

/// The network of the kernel the agent runs on.
#[derive(Debug, Clone)]
pub struct KernelNet {
    /// One directory per network is below this.
    directory: PathBuf,
    /// One directory per router is below this.
    routers: PathBuf,
    /// One file per instance, with what its guest may ask, is below this.
    guests: PathBuf,
    /// What answers them.
    metadata_program: PathBuf,
    workers: Workers,
    uplinks: UplinkOptions,
    nat: Nat,
    nft: Nft,
    known: Known,
}

impl KernelNet {
    /// The network of this host; files of DHCP servers are kept below `<state_dir>/networks`. dnsmasq gives up its
    /// rights only if everybody may pass through `state_dir` (mode 0711 or more).
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::with_uplinks(state_dir, UplinkOptions::default())
    }

    /// The same, of a host that is plugged into physical networks.
    #[must_use]
    pub fn with_uplinks(state_dir: &Path, uplinks: UplinkOptions) -> Self {
        // dnsmasq works in the root directory, and its command line tells whose it is: no relative paths.
        let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        Self {
            directory: state_dir.join("networks"),
            routers: state_dir.join("routers"),
            guests: state_dir.join("metadata"),
            metadata_program: metadata::default_program(),
            workers: Workers::new(),
            uplinks,
            nat: Nat::new(state_dir.join("nat")),
            nft: Nft::default(),
            known: Known::default(),
        }
    }

    /// The same with another program that tells guests their metadata.
    #[must_use]
    pub fn with_metadata_program(self, program: PathBuf) -> Self {
        Self {
            metadata_program: program,
            ..self
        }
    }

    fn metadata(&self, network: NetworkId) -> metadata::Service {
        metadata::Service {
            program: self.metadata_program.clone(),
            directory: self.directory.join(network.to_string()),
            instances: self.guests.clone(),
            namespace: names::namespace(network),
            link: names::veth_namespace(network),
        }
    }

    fn dnsmasq(&self, network: NetworkId) -> Dnsmasq {
        Dnsmasq::new(
            self.directory.join(network.to_string()),
            names::namespace(network),
        )
    }

    /// What is there outside of the namespace; and whether there is one.
    async fn observe_host(&self, network: NetworkId) -> Result<(NetworkObserved, Name), NetError> {
        let dnsmasq = self.dnsmasq(network);
        let this = self.clone();
        let nft = self.nft.clone();
        let metadata = self.metadata(network);
        self.workers
            .run("net-observe", async move || {
                let links = Links::open()?;
                let bridge = Link::bridge(network);
                let mut filter = nft.observe(network).await?;
                let veth = Link::veth_host(network);
                let seen = this.known.look(&links, &bridge.name()).await?;
                let host = Host::of(&seen);
                let Seen { links: all, .. } = &seen;
                let found = host.find(&bridge.name());
                filter.calls_ip = found.is_some_and(|found| found.calls_ip());
                filter.legs = links.legs_in(all, found.map(|found| found.index)).await?;
                let around = Around::of(all, &bridge.name());
                let mut members = around.members;
                for link in Link::all(network) {
                    members.remove(&link.name());
                }
                for nic in this.uplinks.nics.values() {
                    members.remove(nic.as_str());
                }
                let tc = links
                    .observe_tc(network, &this.known, all, &members)
                    .await?;
                let observed = NetworkObserved {
                    bridge: host.observe(bridge)?,
                    veth_host: host.observe(veth)?,
                    members,
                    stray_taps: around.stray_taps,
                    namespace: NamespaceObserved::Absent,
                    dhcp: dnsmasq.observe()?,
                    uplink: this.observe_uplink(network, &links, &host).await?,
                    filter,
                    tc,
                    metadata: metadata.observe()?,
                    lacks_ipv6: !Path::new(IPV6).exists(),
                };
                Ok((observed, netns::look(&names::namespace(network))?))
            })
            .await
    }

    async fn observe_namespace(&self, network: NetworkId) -> Result<NamespaceContent, NetError> {
        self.in_namespace("netns-observe", network, async move || {
            let links = Links::open()?;
            let link = Link::veth_namespace(network);
            let mut content = NamespaceContent {
                loopback_up: links.is_loopback_up().await?,
                ..NamespaceContent::default()
            };
            if let Some(found) = links.find(&link.name()).await? {
                content.addresses = links.addresses(&found).await?;
                content.veth = Some(links.describe(&found, link).await?);
            }
            Ok(content)
        })
        .await
    }

    async fn observe_all(&self, network: NetworkId) -> Result<NetworkObserved, NetError> {
        let (mut observed, name) = self.observe_host(network).await?;
        observed.namespace = match name {
            Name::Absent => NamespaceObserved::Absent,
            Name::Empty => NamespaceObserved::Empty,
            Name::Present(_) => NamespaceObserved::Present(self.observe_namespace(network).await?),
        };
        Ok(observed)
    }

    async fn in_namespace<T, F>(
        &self,
        name: &'static str,
        network: NetworkId,
        work: F,
    ) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: AsyncFnOnce() -> Result<T, NetError> + Send + 'static,
    {
        self.workers
            .run_in(name, netns::path(&names::namespace(network)), work)
            .await
    }

    /// Does something with a link, in the namespace it is in.
    async fn at<F>(&self, link: Link, work: F) -> Result<(), NetError>
    where
        F: AsyncFnOnce(Rc<Links>) -> Result<(), NetError> + Send + 'static,
    {
        match link.role {
            Role::Bridge | Role::VethHost | Role::Vlan | Role::Vxlan => {
                let work = async move || Links::kept(work).await;
                self.workers.short(work).await
            }
            Role::VethNamespace => {
                let work = async move || work(Rc::new(Links::open()?)).await;
                self.in_namespace("netns-apply", link.network, work).await
            }
        }
    }

    async fn carry_out(&self, step: NetStep) -> Result<(), NetError> {
        let network = step.network();
        let workers = &self.workers;
        let dnsmasq = self.dnsmasq(network);
        let bridge = Link::bridge(network);
        let ends = [Link::veth_host(network), Link::veth_namespace(network)];
        let [host, inside] = ends;
        match step {
            NetStep::Filter(FilterStep::CallIp(_)) => {
                self.at(bridge, async move |links| links.call_ip(bridge).await)
                    .await
            }
            NetStep::Filter(FilterStep::Change(change)) => {
                let nft = self.nft.clone();
                workers
                    .run("nft-apply", async move || nft.change(*change).await)
                    .await
            }
            NetStep::WriteDhcp { files, .. } => {
                workers
                    .plain("dhcp-write", move || dnsmasq.write(&files))
                    .await
            }
            NetStep::StartDhcp(_) => {
                self.in_namespace("dhcp-start", network, async move || dnsmasq.start().await)
                    .await
            }
            NetStep::ReloadDhcp(_) => workers.plain("dhcp-reload", move || dnsmasq.reload()).await,
            NetStep::StopDhcp(_) => {
                workers
                    .run("dhcp-stop", async move || dnsmasq.stop().await)
                    .await
            }
            NetStep::RemoveFiles(_) => {
                workers
                    .plain("dhcp-remove", move || dnsmasq.remove_files())
                    .await
            }
            NetStep::Metadata(step) => self.metadata_step(step).await,
            NetStep::CreateNamespace(_) => {
                workers
                    .run("netns-create", async move || {
                        match netns::create(&names::namespace(network))? {
                            Made::Now => Links::open()?.loopback_up().await,
                            Made::Before => Ok(()),
                        }
                    })
                    .await
            }
            NetStep::DeleteNamespace(_) => {
                workers
                    .plain("netns-delete", move || {
                        netns::delete(&names::namespace(network))
                    })
                    .await
            }
            NetStep::CreateBridge { mtu, .. } => {
                self.at(bridge, async move |links| {
                    links.create_bridge(bridge, mtu).await
                })
                .await
            }
            NetStep::SetBridgeOptions(_) => {
                self.at(bridge, async move |links| {
                    links.set_bridge_options(bridge).await
                })
                .await
            }
            NetStep::DeleteBridge(_) => {
                self.at(bridge, async move |links| links.delete(bridge).await)
                    .await
            }
            NetStep::CreateVeth { mtu, .. } => {
                let namespace = netns::path(&names::namespace(network));
                self.at(host, async move |links| {
                    links.create_veth(ends, &namespace, mtu).await
                })
                .await
            }
            NetStep::Plug(BridgePort::Veth(_)) => {
                self.at(host, async move |links| links.plug(host, bridge).await)
                    .await
            }
            NetStep::Plug(BridgePort::Uplink(link)) => {
                self.at(link, async move |links| links.plug(link, bridge).await)
                    .await
            }
            NetStep::Uplink(step) => self.carry_out_uplink(step).await,
            NetStep::PlugTaps { ports, .. } => {
                let taps: Vec<String> = ports.into_iter().map(names::tap).collect();
                self.at(bridge, async move |links| {
                    links.plug_taps(&taps, bridge).await
                })
                .await
            }
            NetStep::Tc(step) => {
                self.at(bridge, async move |links| links.apply_tc(&step).await)
                    .await
            }
            NetStep::DeleteVeth(_) => self.delete_veth(network).await,
            NetStep::Mark(link) => {
                self.at(link, async move |links| links.mark(link).await)
                    .await
            }
            NetStep::Settle { link, settings } => {
                self.at(link, async move |links| links.settle(link, &settings).await)
                    .await
            }
            NetStep::SetMtu { link, mtu } => {
                self.at(link, async move |links| links.set_mtu(link, mtu).await)
                    .await
            }
            NetStep::SetUp(link) => {
                self.at(link, async move |links| links.set_up(link).await)
                    .await
            }
            NetStep::LoopbackUp(_) => {
                self.at(inside, async move |links| links.loopback_up().await)
                    .await
            }
            NetStep::ChangeAddresses { remove, add, .. } => {
                self.at(inside, async move |links| {
                    links.change_addresses(inside, &remove, &add).await
                })
                .await
            }
        }
    }

    async fn metadata_step(&self, step: MetadataStep) -> Result<(), NetError> {
        let network = step.network();
        let service = self.metadata(network);
        match step {
            MetadataStep::WriteSources { sources, .. } => {
                self.workers
                    .plain("metadata-write", move || service.write_sources(&sources))
                    .await
            }
            MetadataStep::Start(_) => {
                self.in_namespace("metadata-start", network, async move || {
                    service.start().await
                })
                .await
            }
            MetadataStep::Stop(_) => {
                self.workers
                    .run("metadata-stop", async move || service.stop().await)
                    .await
            }
        }
    }

    /// Removes whichever end of the pair is there; the other one goes with it.
    async fn delete_veth(&self, network: NetworkId) -> Result<(), NetError> {
        let host = Link::veth_host(network);
        let name = names::namespace(network);
        let left = async move |links: Rc<Links>| {
            if links.delete_if_any(host).await? {
                return Ok(Name::Absent);
            }
            netns::look(&name)
        };
        let left = async move || Links::kept(left).await;
        match self.workers.short(left).await? {
            Name::Present(_) => {
                let inside = Link::veth_namespace(network);
                self.at(inside, async move |links| links.delete(inside).await)
                    .await
            }
            Name::Absent | Name::Empty => Ok(()),
        }
    }

    async fn present(&self) -> Result<BTreeSet<NetworkId>, NetError> {
        let directory = self.directory.clone();
        let nat = self.nat.clone();
        let nft = self.nft.clone();
        self.workers
            .run("net-list", async move || {
                let links = Links::open()?.all().await?;
                let mut networks: BTreeSet<NetworkId> = links
                    .iter()
                    .filter_map(|found| of_alias(found.alias.as_deref()?))
                    .collect();
                networks.extend(netns::names()?.iter().filter_map(|name| of_namespace(name)));
                networks.extend(with_files::<NetworkId>(&directory)?);
                networks.extend(nat.networks()?);
                networks.extend(nft.networks().await?);
                Ok(networks)
            })
            .await
    }
}

/// The network a link with this alias belongs to.
fn of_alias(alias: &str) -> Option<NetworkId> {
    if let Some(network) = tc_plan::network_of_ifb(alias) {
        return Some(network);
    }
    let network = alias.rsplit(' ').next()?.parse().ok()?;
    Link::all(network)
        .iter()
        .any(|link| link.alias() == alias)
        .then_some(network)
}

/// The network a namespace of this name belongs to.
fn of_namespace(name: &str) -> Option<NetworkId> {
    name.strip_prefix(names::NAME_PREFIX)?.parse().ok()
}

/// The networks, or routers, that have a directory.
fn with_files<I: FromStr>(directory: &Path) -> Result<Vec<I>, NetError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(NetError::file("list", directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry
            .map_err(NetError::file("list", directory))?
            .file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<I>().ok()));
    }
    Ok(found)
}

#[async_trait]
impl Net for KernelNet {
    async fn observe(&self, network: NetworkId) -> Result<NetworkObserved, ActError> {
        let observed = self.observe_all(network).await;
        observed.map_err(|error| error.into_act(Some(network), "look at what is there of it"))
    }

    async fn apply(&self, step: &NetStep) -> Result<(), ActError> {
        tracing::debug!(network = %step.network(), "{step}");
        let done = self.carry_out(step.clone()).await;
        done.map_err(|error| error.into_act(Some(step.network()), &step.to_string()))
    }

    async fn drops(&self) -> Result<BTreeMap<(String, Reason), u64>, ActError> {
        let nft = self.nft.clone();
        let drops = self
            .workers
            .run("nft-drops", async move || nft.drops().await)
            .await;
        drops.map_err(|error| error.into_act(None, "read how many packets were dropped"))
    }

    async fn tunnel_drops(&self) -> Result<Option<u64>, ActError> {
        let nft = self.nft.clone();
        let drops = self
            .workers
            .run("nft-drops", async move || nft.tunnel_drops().await)
            .await;
        drops.map_err(|error| error.into_act(None, "read how many packets for VXLANs were dropped"))
    }

    async fn forged_requests(&self) -> Result<BTreeMap<NetworkId, ForgedCounts>, ActError> {
        let counted = self.all_forged().await;
        counted.map_err(|error| error.into_act(None, "read what metadata services counted"))
    }

    async fn networks_present(&self) -> Result<Vec<NetworkId>, ActError> {
        let present = self.present().await;
        Ok(present
            .map_err(|error| error.into_act(None, "list the networks"))?
            .into_iter()
            .collect())
    }

    async fn observe_router(
        &self,
        router: RouterId,
        legs: &BTreeSet<Leg>,
    ) -> Result<RouterObserved, ActError> {
        let observed = self.observe_router_all(router, legs.clone()).await;
        observed.map_err(|error| {
            error.into_act_of(
                Some(format!("router {router}")),
                "look at what is there of it",
            )
        })
    }

    async fn apply_router(&self, step: &RouterStep) -> Result<(), ActError> {
        let router = step.router();
        tracing::debug!(%router, "{step}");
        let done = self.carry_out_router(step.clone()).await;
        done.map_err(|error| error.into_act_of(Some(format!("router {router}")), &step.to_string()))
    }

    async fn herald(&self, herald: &Herald) -> Result<(), ActError> {
        let network = herald.network;
        let herald = herald.clone();
        let told = self
            .workers
            .run("net-herald", async move || {
                router::announce::herald(&herald)
            })
            .await;
        told.map_err(|error| {
            error.into_act(
                Some(network),
                "tell the physical network where its ports are",
            )
        })
    }

    async fn routers_present(&self) -> Result<Vec<RouterId>, ActError> {
        let present = self.all_routers().await;
        Ok(present
            .map_err(|error| error.into_act(None, "list the routers"))?
            .into_iter()
            .collect())
    }
}
