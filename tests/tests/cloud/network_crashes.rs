//! `kill -9` at many different moments while networks of each type that this kernel has, ports, routers and floating IPs are built for
//! running instances, and removed from under them: all of it comes about by itself, and leaves nothing.
//!
//! Moments and victims are spread as in [`super::crashes`]. Guests boot in the last round only, and answer in all their networks.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use berth_common::{
    bus::RpcClient,
    document::{ImageRef, NetworkType},
    ids::{FloatingIpId, NetworkId, PortId, RouterId, SubnetId},
    message::{
        network::{AllocationPool, SubnetCreate},
        port::{PortCreate, PortDelete},
        report::ConvergeStatus,
        request::{
            InstanceCreate, InstanceDelete, InstanceShow, Method, NetworkCreate, NetworkDelete,
        },
        router::{
            FloatingIpCreate, FloatingIpDelete, FloatingIpList, FloatingIpSet, RouterAddInterface,
            RouterCreate, RouterDelete, RouterRemoveInterface, RouterShow,
        },
        view::{InstanceView, VmState},
    },
    names::ProjectName,
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, Guest, GuestOptions, insist, insist_on_end},
    image,
    lab::outside,
    wait::{Seen, moment, wait_for},
    with_cloud,
};
use rand::{SeedableRng, rngs::StdRng};

use super::crashes::{Victim, kill_and_restart, random_moment};

/// Rounds, each with a kill while all is built and one while all is removed.
const ROUNDS: u32 = 5;
/// The seed of the moments.
const SEED: u64 = 20_260_102;
/// Who is killed, one after the other: in each round another one while all is removed than while it is built.
const VICTIMS: [Victim; 3] = [Victim::Agent(0), Victim::Scheduler, Victim::Agent(1)];

/// What a round builds: instances on both hypervisors, in two networks that a router joins and leads out of, and one that is behind
/// its host and in a network of that alone.
#[derive(Clone)]
struct Estate {
    rpc: RpcClient,
    networks: Vec<NetworkCreate>,
    outside: SubnetCreate,
    ports: Vec<PortCreate>,
    instances: Vec<InstanceCreate>,
    router: RouterCreate,
    floating: FloatingIpCreate,
}

impl Estate {
    /// Everything that is asked for, with ids. `image`: what the instances run instead of the guest; the keys of those.
    async fn plan(
        cloud: &TestCloud,
        image: Option<&ImageRef>,
    ) -> anyhow::Result<(Self, Vec<PathBuf>)> {
        let project = ProjectName::default;
        let network = |name: &str, network_type, number: Option<u8>| -> anyhow::Result<_> {
            let address = |part: &str| number.map(|n| format!("10.77.{n}.{part}"));
            Ok(NetworkCreate {
                id: NetworkId::new(),
                name: name.parse()?,
                project: project(),
                network_type,
                physical_network: None,
                segmentation_id: None,
                external: false,
                cidr: address("0/24").map(|it| it.parse()).transpose()?,
                gateway_ip: address("1").map(|it| it.parse()).transpose()?,
                dns_nameservers: Vec::new(),
                mtu: None,
            })
        };
        let mut out = network("out", NetworkType::Flat, None)?;
        out.external = true;
        out.physical_network = Some(outside::PHYSICAL_NETWORK.parse()?);
        let mut alone = network("alone", NetworkType::Local, Some(4))?;
        alone.gateway_ip = None;
        let red = network("red", NetworkType::Vxlan, Some(1))?;
        let blue = network("blue", NetworkType::Vxlan, Some(2))?;
        let behind = network("behind", NetworkType::Nat, Some(3))?;
        let outside = SubnetCreate {
            id: SubnetId::new(),
            network: out.id.to_string(),
            project: project(),
            name: None,
            cidr: outside::NETWORK.parse()?,
            gateway_ip: Some(outside::ADDRESS.into()),
            allocation_pools: vec![AllocationPool {
                start: "203.0.113.100".parse()?,
                end: "203.0.113.199".parse()?,
            }],
            dns_nameservers: Vec::new(),
            host_routes: Vec::new(),
            enable_dhcp: false,
            ipv6_address_mode: None,
        };
        let port = |network: &NetworkCreate| PortCreate {
            id: PortId::new(),
            name: None,
            project: project(),
            network: network.id.to_string(),
            ip_address: None,
            mac_address: None,
            admin_state_up: true,
            port_security_enabled: true,
            security_groups: None,
            allowed_address_pairs: Vec::new(),
            qos: Default::default(),
            mirrors: Vec::new(),
        };
        let ports = vec![port(&red), port(&blue)];
        let mut three = GuestOptions::in_network("three", "hv1", behind.id);
        three
            .networks
            .extend(GuestOptions::in_network("three", "hv1", alone.id).networks);
        let (mut instances, mut keys) = (Vec::new(), Vec::new());
        for wanted in [
            GuestOptions::with_port("one", "hv1", ports[0].id),
            GuestOptions::with_port("two", "hv2", ports[1].id),
            three,
        ] {
            let (mut request, key) = cloud.guest_request(wanted).await?;
            if let Some(image) = image {
                request.image = Some(image.clone());
            }
            instances.push(request);
            keys.push(key);
        }
        let estate = Self {
            rpc: cloud.rpc.clone(),
            outside,
            ports,
            instances,
            router: RouterCreate {
                id: RouterId::new(),
                name: "edge".parse()?,
                project: project(),
                admin_state_up: true,
                external_network: Some(out.id.to_string()),
                enable_snat: true,
            },
            floating: FloatingIpCreate {
                id: FloatingIpId::new(),
                project: project(),
                network: out.id.to_string(),
                ip_address: None,
            },
            networks: vec![out, red, blue, behind, alone],
        };
        Ok((estate, keys))
    }

    async fn ask<M: Method>(&self, request: &M) -> anyhow::Result<M::Reply> {
        insist(&self.rpc, request).await
    }

    /// The two networks that the router joins.
    fn joined(&self) -> impl Iterator<Item = String> {
        self.networks[1..3]
            .iter()
            .map(|network| network.id.to_string())
    }

    /// Asks for all of it, the router last, and waits until the instances run.
    async fn build(self) -> anyhow::Result<Vec<InstanceView>> {
        for network in &self.networks {
            self.ask(network).await?;
        }
        self.ask(&self.outside).await?;
        for port in &self.ports {
            self.ask(port).await?;
        }
        for instance in &self.instances {
            self.ask(instance).await?;
        }
        let router = self.router.id.to_string();
        self.ask(&self.router).await?;
        for subnet in self.joined() {
            self.ask(&RouterAddInterface {
                router: router.clone(),
                project: Default::default(),
                subnet,
                ip_address: None,
            })
            .await?;
        }
        self.ask(&self.floating).await?;
        self.ask(&FloatingIpSet {
            floating_ip: self.floating.id.to_string(),
            project: Default::default(),
            port_id: Some(self.ports[0].id),
            fixed_ip_address: None,
        })
        .await?;
        let mut views = Vec::new();
        for instance in &self.instances {
            views.push(self.wait_state(instance, VmState::Active).await?);
        }
        wait_for("the router on both hosts", CONVERGE_LIMIT, async || {
            let show = RouterShow {
                router: router.clone(),
                project: Default::default(),
            };
            let hosts = self.ask(&show).await?.hosts;
            let done = hosts.len() == 2
                && hosts
                    .iter()
                    .all(|host| host.status == Some(ConvergeStatus::Converged));
            Ok(Seen::when(done, hosts))
        })
        .await?;
        Ok(views)
    }

    /// Asks for the end of all of it: first of the router, under instances that run.
    async fn remove(self) -> anyhow::Result<()> {
        let (router, project) = (self.router.id.to_string(), Default::default);
        let floating_ip = self.floating.id.to_string();
        let floating = FloatingIpDelete {
            floating_ip,
            project: project(),
        };
        insist_on_end(&self.rpc, &floating).await?;
        for subnet in self.joined() {
            self.ask(&RouterRemoveInterface {
                router: router.clone(),
                project: Default::default(),
                subnet,
            })
            .await?;
        }
        let project = Default::default();
        self.ask(&RouterDelete { router, project }).await?;
        for instance in &self.instances {
            self.ask(&InstanceDelete {
                instance: instance.id.to_string(),
                project: Default::default(),
            })
            .await?;
        }
        for instance in &self.instances {
            self.wait_state(instance, VmState::Deleted).await?;
        }
        for port in &self.ports {
            let port = PortDelete {
                port: port.id.to_string(),
                project: Default::default(),
            };
            insist_on_end(&self.rpc, &port).await?;
        }
        for network in &self.networks {
            self.ask(&NetworkDelete {
                network: network.id.to_string(),
                project: Default::default(),
            })
            .await?;
        }
        Ok(())
    }

    async fn wait_state(
        &self,
        instance: &InstanceCreate,
        state: VmState,
    ) -> anyhow::Result<InstanceView> {
        let what = format!("{} to be {}", instance.name, state.as_str());
        wait_for(&what, CONVERGE_LIMIT, async || {
            let show = InstanceShow {
                instance: instance.id.to_string(),
                project: Default::default(),
            };
            let view = self.ask(&show).await?;
            let is_so = view.vm_state == state && view.task_state.is_none();
            Ok(match (is_so, view.vm_state) {
                (true, _) => Seen::Done(view),
                (false, VmState::Error) => Seen::Never(format!("{view:?}")),
                (false, _) => Seen::NotYet(format!("{view:?}")),
            })
        })
        .await
    }
}

#[test]
fn services_killed_at_any_moment_of_building_and_removing_networks_finish_both() {
    with_cloud(TestCloud::builder().agents(2).outside(), async |cloud| {
        cloud.open_default_group().await?;
        let halts = image::that_halts(cloud.site.dir())?;
        let (estate, _) = Estate::plan(cloud, Some(&halts)).await?;
        let start = Instant::now();
        estate.clone().build().await?;
        let build_takes = start.elapsed();
        let start = Instant::now();
        estate.remove().await?;
        nothing_is_left(cloud).await?;
        let remove_takes = start.elapsed();

        let mut random = StdRng::seed_from_u64(SEED);
        let victims = VICTIMS.iter().copied().cycle();
        let victims = victims.clone().zip(victims.skip(1));
        for (part, (builder, remover)) in (0..ROUNDS).zip(victims) {
            let is_last = part + 1 == ROUNDS;
            let (estate, keys) = Estate::plan(cloud, (!is_last).then_some(&halts)).await?;
            let after = random_moment(&mut random, build_takes, part, ROUNDS);
            let views = killed(cloud, builder, after, estate.clone().build())
                .await
                .with_context(|| {
                    format!("{builder:?} killed after {after:?} of building, round {part}")
                })?;
            if is_last {
                guests_answer(cloud, views, keys).await?;
            }
            let after = random_moment(&mut random, remove_takes, ROUNDS - part - 1, ROUNDS);
            let removed = async {
                killed(cloud, remover, after, estate.remove()).await?;
                nothing_is_left(cloud).await
            };
            removed.await.with_context(|| {
                format!("{remover:?} killed after {after:?} of removing, round {part}")
            })?;
        }
        Ok(())
    });
}

/// Something that goes on while somebody is killed, and comes to its end.
async fn killed<T>(
    cloud: &mut TestCloud,
    victim: Victim,
    after: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let kill = async {
        moment(after).await;
        kill_and_restart(cloud, victim).await
    };
    let (done, killed) = tokio::join!(work, kill);
    killed?;
    done
}

async fn nothing_is_left(cloud: &TestCloud) -> anyhow::Result<()> {
    for hypervisor in &cloud.hypervisors {
        let what = format!("nothing to be left on {}", hypervisor.name());
        wait_for(&what, CONVERGE_LIMIT, async || {
            let remains = hypervisor.remains().await?;
            Ok(Seen::when(remains.is_empty(), remains))
        })
        .await?;
    }
    Ok(())
}

/// In their own networks, across the router, and from outside.
async fn guests_answer(
    cloud: &TestCloud,
    views: Vec<InstanceView>,
    keys: Vec<PathBuf>,
) -> anyhow::Result<()> {
    let guests = views.into_iter().zip(keys);
    let guests: Vec<Guest> = guests.map(|(view, key)| Guest { view, key }).collect();
    for guest in &guests {
        guest.is_up(cloud).await?;
        cloud.guest_answers(&guest.view).await?;
    }
    let [one, two, three] = <[Guest; 3]>::try_from(guests)
        .map_err(|guests| anyhow::anyhow!("{} of them", guests.len()))?;
    one.reaches(cloud, two.address()?, "two").await?;
    let all = cloud.call(&FloatingIpList::default()).await?.floating_ips;
    let floating = all.first().context("no floating IP")?.ip_address;
    cloud.is_reached_from_outside(floating, "one").await?;
    one.is_seen_outside_as(cloud, floating).await?;
    let has = three.run(cloud, "ip -4 addr show dev eth1").await?;
    ensure!(has.contains("inet 10.77.4."), "{has}");
    Ok(())
}
