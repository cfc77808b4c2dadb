//! Routers in the kernel: looks, and carries out one step at a time. No decisions here.
//!
//! - `announce`: frames that tell where an address is now;
//! - `flows`: the translations that flows have;
//! - `nft`: the packet filter.

pub(super) mod announce;
mod flows;
mod nft;

use std::{collections::BTreeSet, io, path::Path};

use berth_common::ids::{NetworkId, RouterId};

use super::{
    KernelNet, NetError,
    dnsmasq::Dnsmasq,
    links::{Links, legs::write_switch},
    netns::{self, Name},
    with_files,
};
use crate::decide::{
    names,
    network::Link,
    router::{
        End, Leg, LegLink, LegSwitch, RouterContent, RouterNamespace, RouterObserved, RouterStep,
        RouterSwitch, rules,
    },
};

impl KernelNet {
    fn advertiser(&self, router: RouterId) -> Dnsmasq {
        Dnsmasq::new(
            self.routers.join(router.to_string()),
            names::router_namespace(router),
        )
    }

    pub(super) async fn observe_router_all(
        &self,
        router: RouterId,
        legs: BTreeSet<Leg>,
    ) -> Result<RouterObserved, NetError> {
        let advertiser = self.advertiser(router);
        let (mut observed, name) = self
            .workers
            .run("router-observe", async move || {
                let links = Links::open()?;
                let own = links.all_host_ends().await?;
                let own = own.into_iter().filter(|leg| leg.router == router);
                let asked: BTreeSet<LegLink> =
                    own.chain(legs.iter().copied()).map(Leg::host_end).collect();
                let mut observed = RouterObserved {
                    advertiser: advertiser.observe()?,
                    ..RouterObserved::default()
                };
                for link in asked {
                    let found = links.observe_leg(link).await?;
                    observed.host_ends.extend(found.map(|found| (link, found)));
                }
                let networks: BTreeSet<NetworkId> = legs.iter().map(|leg| leg.network).collect();
                for network in networks {
                    let bridge = Link::bridge(network);
                    let found = links.observe(bridge).await?;
                    if found.is_some_and(|found| found.is_own(bridge)) {
                        observed.bridges.insert(network);
                    }
                }
                Ok((observed, netns::look(&names::router_namespace(router))?))
            })
            .await?;
        observed.namespace = match name {
            Name::Absent => RouterNamespace::Absent,
            Name::Empty => RouterNamespace::Empty,
            Name::Present(_) => RouterNamespace::Present(self.observe_within(router).await?),
        };
        Ok(observed)
    }

    async fn observe_within(&self, router: RouterId) -> Result<RouterContent, NetError> {
        self.within("router-observe", router, async || {
            let links = Links::open()?;
            Ok(RouterContent {
                loopback_up: links.is_loopback_up().await?,
                unsettled: unsettled()?,
                links: links.links_within(&LegSwitch::IN_NAMESPACE).await?,
                routes: links.routes().await?,
                rules: nft::look().await?,
                flows: flows::translations()?,
            })
        })
        .await
    }

    async fn within<T, F>(
        &self,
        name: &'static str,
        router: RouterId,
        work: F,
    ) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: AsyncFnOnce() -> Result<T, NetError> + Send + 'static,
    {
        self.workers
            .run_in(name, netns::path(&names::router_namespace(router)), work)
            .await
    }

    /// Does something with a router's link, in the namespace it is in.
    async fn at_leg<F>(&self, link: LegLink, work: F) -> Result<(), NetError>
    where
        F: AsyncFnOnce(Links) -> Result<(), NetError> + Send + 'static,
    {
        let work = async move || work(Links::open()?).await;
        match link.end {
            End::Host => self.workers.run("router-apply", work).await,
            End::Namespace => self.within("router-apply", link.leg.router, work).await,
        }
    }

    pub(super) async fn carry_out_router(&self, step: RouterStep) -> Result<(), NetError> {
        let router = step.router();
        let workers = &self.workers;
        let name = names::router_namespace(router);
        let advertiser = self.advertiser(router);
        match step {
            RouterStep::CreateNamespace(_) => {
                workers
                    .plain("router-create", move || netns::create(&name).map(drop))
                    .await
            }
            RouterStep::DeleteNamespace(_) => {
                workers
                    .plain("router-delete", move || netns::delete(&name))
                    .await
            }
            RouterStep::LoopbackUp(_) => {
                self.within("router-apply", router, async || {
                    Links::open()?.loopback_up().await
                })
                .await
            }
            RouterStep::SetRules { rules, .. } => {
                self.within("router-rules", router, async move || {
                    nft::apply(&rules.transaction()).await
                })
                .await
            }
            RouterStep::CreateLeg { leg, mac, mtu } => {
                let namespace = netns::path(&name);
                self.at_leg(leg.host_end(), async move |links| {
                    links.create_leg(leg, mac, mtu, &namespace).await
                })
                .await
            }
            RouterStep::Mark(link) => {
                self.at_leg(link, async move |links| links.mark_leg(link).await)
                    .await
            }
            RouterStep::Settle { link, switches } => {
                self.at_leg(link, async move |links| {
                    links.settle_leg(link, &switches).await
                })
                .await
            }
            RouterStep::SetMtu { link, mtu } => {
                self.at_leg(link, async move |links| links.set_leg_mtu(link, mtu).await)
                    .await
            }
            RouterStep::Plug(leg) => {
                self.at_leg(leg.host_end(), async move |links| links.plug_leg(leg).await)
                    .await
            }
            RouterStep::Anchor { leg, mac } => {
                self.at_leg(leg.host_end(), async move |links| {
                    links.anchor_leg(leg, mac).await
                })
                .await
            }
            RouterStep::AddAddress { leg, address } => {
                let link = leg.namespace_end();
                self.at_leg(link, async move |links| {
                    links.add_leg_address(link, address).await
                })
                .await
            }
            RouterStep::RemoveAddress { leg, address } => {
                let link = leg.namespace_end();
                self.at_leg(link, async move |links| {
                    links.remove_leg_address(link, address).await
                })
                .await
            }
            RouterStep::SetUp(link) => {
                self.at_leg(link, async move |links| links.set_leg_up(link).await)
                    .await
            }
            RouterStep::ChangeNeighbours { leg, set, unset } => {
                let link = leg.namespace_end();
                self.at_leg(link, async move |links| {
                    links.change_neighbours(link, &set, &unset).await
                })
                .await
            }
            RouterStep::AddRoute { route, .. } => {
                self.within("router-apply", router, async move || {
                    Links::open()?.add_route(&route).await
                })
                .await
            }
            RouterStep::RemoveRoute { route, .. } => {
                self.within("router-apply", router, async move || {
                    Links::open()?.remove_route(&route).await
                })
                .await
            }
            RouterStep::Switch { switches, .. } => {
                self.within("router-apply", router, async move || {
                    // In their order: forwarding last.
                    let mut wanted = RouterSwitch::ALL.iter().filter(|it| switches.contains(it));
                    wanted.try_for_each(|switch| write_switch(switch.path(), switch.value()))
                })
                .await
            }
            RouterStep::Announce {
                leg,
                mac,
                addresses,
                announced,
            } => {
                self.within("router-announce", router, async move || {
                    announce::announce(&leg.namespace_end().name(), mac, &addresses)?;
                    nft::apply(&rules::announced(announced.iter())).await
                })
                .await
            }
            RouterStep::ForgetFlows { flows, .. } => {
                self.within("router-flows", router, async move || flows::forget(&flows))
                    .await
            }
            RouterStep::WriteAdvertiser { files, .. } => {
                workers
                    .plain("advertiser-write", move || advertiser.write(&files))
                    .await
            }
            RouterStep::StartAdvertiser(_) => {
                self.within("advertiser-start", router, async move || {
                    advertiser.start().await
                })
                .await
            }
            RouterStep::StopAdvertiser(_) => {
                workers
                    .run("advertiser-stop", async move || advertiser.stop().await)
                    .await
            }
            RouterStep::RemoveFiles(_) => {
                workers
                    .plain("advertiser-remove", move || advertiser.remove_files())
                    .await
            }
            RouterStep::RemoveLink { name: link, .. } => {
                self.within("router-apply", router, async move || {
                    Links::open()?.remove_within(&link).await
                })
                .await
            }
            RouterStep::RemoveHostEnd(link) => {
                self.at_leg(link, async move |links| links.remove_host_end(link).await)
                    .await
            }
        }
    }

    pub(super) async fn all_routers(&self) -> Result<BTreeSet<RouterId>, NetError> {
        let directory = self.routers.clone();
        self.workers
            .run("router-list", async move || {
                let ends = Links::open()?.all_host_ends().await?;
                let mut routers: BTreeSet<RouterId> = ends.iter().map(|leg| leg.router).collect();
                let names = netns::names()?;
                routers.extend(
                    names
                        .iter()
                        .filter_map(|name| names::router_of_namespace(name)),
                );
                routers.extend(with_files::<RouterId>(&directory)?);
                Ok(routers)
            })
            .await
    }
}

/// The switches of the namespace that are not as they shall be.
fn unsettled() -> Result<BTreeSet<RouterSwitch>, NetError> {
    let mut unsettled = BTreeSet::new();
    for switch in RouterSwitch::ALL {
        let path = Path::new("/proc/sys/net").join(switch.path());
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim() == switch.value() => {}
            Ok(_) => {
                unsettled.insert(switch);
            }
            // The kernel lacks IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NetError::file("read", path)(error)),
        }
    }
    Ok(unsettled)
}
