//! The filters, in the order in which they are asked; each says no with numbers.
//!
//! These functions are the specification. Over a whole table the same questions are asked by column
//! ([`super::scan`]), which is faster and says the same: a property test holds the two together. What is told of a
//! single host always comes from here.

use std::fmt;

use berth_common::message::view::HostState as Liveness;

use super::{
    amounts::Resource,
    host::{Admission, Host},
    rejection::Rejection,
    request::{GroupPolicy, Need, NetworkNeeds, Request},
    settings::Settings,
};

macro_rules! filters {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $function:path;)*) => {
        /// The filters, in order. A host that fails a later one came nearer to fitting.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum FilterName {
            $($(#[$doc])* $name,)*
        }

        impl FilterName {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name, as operators read it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Its place in the order, from 0.
            #[must_use]
            pub(super) const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            /// The filter itself.
            fn function(self) -> fn(&Question<'_>) -> Result<(), Rejection> {
                match self { $(Self::$name => $function,)* }
            }
        }
    };
}

filters! {
    /// The host is enabled by its operator, and not being drained.
    Enabled = 0, "enabled", enabled;
    /// The host's heartbeats arrive.
    Alive = 1, "alive", alive;
    /// vCPUs, with overcommit.
    Cpu = 2, "cpu", cpu;
    /// Memory, with overcommit.
    Ram = 3, "ram", ram;
    /// Disk, with overcommit.
    Disk = 4, "disk", disk;
    /// Countable resources, never overcommitted.
    CountableResources = 5, "countable_resources", countable_resources;
    /// The availability zone.
    AvailabilityZone = 6, "availability_zone", availability_zone;
    /// The properties of the host's aggregates.
    AggregateProperties = 7, "aggregate_properties", aggregate_properties;
    /// What the image needs: architecture, and how guests are run.
    ImageProperties = 8, "image_properties", image_properties;
    /// The host that was asked for.
    RequestedHost = 9, "requested_host", requested_host;
    /// Away from the hosts of given instances.
    DifferentHost = 10, "different_host", different_host;
    /// On a host of given instances.
    SameHost = 11, "same_host", same_host;
    /// The hard policies of the server group, and its limit per host.
    ServerGroup = 12, "server_group", server_group;
    /// The host reaches the volume, or has room for it in its storage pool.
    VolumeLocality = 13, "volume_locality", volume_locality;
    /// The host is connected to the physical networks, can build networks of the kinds, can filter if a port is secured, and has no
    /// `nat` network with the addresses of another one.
    NetworkReachability = 14, "network_reachability", network_reachability;
    /// This request has not failed there, and not too many builds have lately.
    FailedRecently = 15, "failed_recently", failed_recently;
}

/// How many filters there are.
pub(super) const COUNT: usize = FilterName::ALL.len();

impl fmt::Display for FilterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One request, one host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) request: &'a Request,
    pub(super) host: &'a Host,
    pub(super) settings: &'a Settings,
    /// How many instances of just this request's size are imagined on the host besides those it has.
    pub(super) imagined: u64,
}

/// Asks every filter in order.
///
/// # Errors
/// The first filter that says no, and why.
pub(super) fn check(question: &Question<'_>) -> Result<(), (FilterName, Rejection)> {
    for name in FilterName::ALL {
        name.function()(question).map_err(|rejection| (*name, rejection))?;
    }
    Ok(())
}

fn enabled(question: &Question<'_>) -> Result<(), Rejection> {
    match question.host.facts().admission {
        Admission::Enabled => Ok(()),
        Admission::Draining => Err(Rejection::Draining),
        Admission::Disabled => Err(Rejection::Disabled),
    }
}

fn alive(question: &Question<'_>) -> Result<(), Rejection> {
    match question.host.facts().liveness {
        Liveness::Up => Ok(()),
        Liveness::Down => Err(Rejection::Down),
    }
}

fn cpu(question: &Question<'_>) -> Result<(), Rejection> {
    fits(question, Resource::Vcpus)
}

fn ram(question: &Question<'_>) -> Result<(), Rejection> {
    fits(question, Resource::MemoryMb)
}

fn disk(question: &Question<'_>) -> Result<(), Rejection> {
    fits(question, Resource::DiskGb)
}

/// Whether one resource suffices: physically for this instance, and with overcommit for all of them.
fn fits(question: &Question<'_>, resource: Resource) -> Result<(), Rejection> {
    let needed = resource.of(&question.request.resources);
    let physical = question.host.physical(resource);
    let imagined = needed.saturating_mul(question.imagined);
    let free = question.host.free(resource).saturating_sub(imagined);
    if needed > physical {
        return Err(Rejection::LargerThanHost {
            resource,
            needed,
            physical,
            free,
        });
    }
    if needed > free {
        return Err(Rejection::Full {
            resource,
            needed,
            free,
            capacity: question.host.capacity(resource),
        });
    }
    Ok(())
}

fn countable_resources(question: &Question<'_>) -> Result<(), Rejection> {
    for (class, needed) in &question.request.countables {
        let imagined = needed.saturating_mul(question.imagined);
        let free = question.host.countable_free(class).saturating_sub(imagined);
        if *needed > free {
            return Err(Rejection::TooFew {
                class: class.clone(),
                needed: *needed,
                free,
                capacity: question.host.countable_capacity(class),
            });
        }
    }
    Ok(())
}

fn availability_zone(question: &Question<'_>) -> Result<(), Rejection> {
    let (needed, found) = (&question.request.zone, &question.host.facts().zone);
    match needed {
        Some(needed) if Some(needed) != found.as_ref() => Err(Rejection::OtherZone {
            needed: needed.clone(),
            found: found.clone(),
        }),
        _ => Ok(()),
    }
}

fn aggregate_properties(question: &Question<'_>) -> Result<(), Rejection> {
    let found = &question.host.facts().properties;
    for (key, needed) in &question.request.properties {
        if !found.contains(&(key.clone(), needed.clone())) {
            let values = found.iter().filter(|(other, _)| other == key);
            return Err(Rejection::NoProperty {
                key: key.clone(),
                needed: needed.clone(),
                found: values.map(|(_, value)| value.clone()).collect(),
            });
        }
    }
    Ok(())
}

fn image_properties(question: &Question<'_>) -> Result<(), Rejection> {
    let (needs, facts) = (&question.request.image, question.host.facts());
    if let Some(needed) = &needs.architecture
        && *needed != facts.architecture
    {
        return Err(Rejection::OtherArchitecture {
            needed: needed.clone(),
            found: facts.architecture.clone(),
        });
    }
    if let Some(needed) = &needs.virt_type
        && !facts.virt_types.contains(needed)
    {
        return Err(Rejection::OtherVirtType {
            needed: needed.clone(),
            found: facts.virt_types.iter().cloned().collect(),
        });
    }
    Ok(())
}

fn requested_host(question: &Question<'_>) -> Result<(), Rejection> {
    match question.request.requested_host {
        Some(requested) if requested != question.host.facts().id => {
            Err(Rejection::NotRequested { requested })
        }
        _ => Ok(()),
    }
}

fn different_host(question: &Question<'_>) -> Result<(), Rejection> {
    if question
        .request
        .different_hosts
        .contains(&question.host.facts().id)
    {
        Err(Rejection::HoldsOther)
    } else {
        Ok(())
    }
}

fn same_host(question: &Question<'_>) -> Result<(), Rejection> {
    let hosts = &question.request.same_hosts;
    if hosts.is_empty() || hosts.contains(&question.host.facts().id) {
        Ok(())
    } else {
        Err(Rejection::HoldsNone)
    }
}

fn server_group(question: &Question<'_>) -> Result<(), Rejection> {
    let Some(group) = &question.request.group else {
        return Ok(());
    };
    let here = group.on(question.host.facts().id);
    if group.policy == GroupPolicy::Affinity && here == 0 && group.has_members() {
        return Err(Rejection::GroupElsewhere);
    }
    match group.limit() {
        Some(limit) if here >= limit => Err(Rejection::GroupFull {
            members: here,
            limit,
        }),
        _ => Ok(()),
    }
}

fn volume_locality(question: &Question<'_>) -> Result<(), Rejection> {
    let id = question.host.facts().id;
    let Some(hosts) = &question.request.volume_hosts else {
        return Ok(());
    };
    if hosts.contains(&id) {
        return Ok(());
    }
    let Some(room) = &question.request.volume_room else {
        return Err(Rejection::VolumeOutOfReach);
    };
    let pool = room.pool.clone();
    Err(match room.lacking.get(&id) {
        None if room.unfit.contains(&id) => Rejection::PoolFormat {
            pool,
            needed: room.format.to_owned(),
        },
        None => Rejection::NoPool { needed: pool },
        Some((free, total)) => Rejection::PoolFull {
            pool,
            needed: room.needed,
            free: *free,
            total: *total,
        },
    })
}

fn network_reachability(question: &Question<'_>) -> Result<(), Rejection> {
    reaches_networks(question.request, question.host)
}

/// Whether a host can build the networks of a request, and those that routers join to them, beside those that it has.
///
/// # Errors
/// What it lacks.
pub fn reaches_networks(request: &Request, host: &Host) -> Result<(), Rejection> {
    can_build(&request.networks, host)?;
    for routed in &request.routed {
        can_build(&routed.needs, host).map_err(|reason| Rejection::Routed {
            router: routed.router.clone(),
            network: routed.network.clone(),
            reason: Box::new(reason),
        })?;
    }
    match request.nat.taken.get(&host.facts().id) {
        Some(rejection) => Err(rejection.clone()),
        None => Ok(()),
    }
}

fn can_build(needs: &NetworkNeeds, host: &Host) -> Result<(), Rejection> {
    let found = &host.facts().physical_networks;
    let needed = &needs.physical_networks;
    if let Some(network) = needed.iter().find(|network| !found.contains(*network)) {
        return Err(Rejection::NoPhysicalNetwork {
            needed: network.clone(),
            found: found.iter().cloned().collect(),
        });
    }
    let able = &host.facts().network;
    if needs.vlan == Need::Asked && !able.vlan {
        return Err(Rejection::NoVlan);
    }
    if needs.vxlan == Need::Asked {
        if !able.vxlan {
            return Err(Rejection::NoVxlan);
        }
        if able.tunnel_ip.is_none() {
            return Err(Rejection::NoTunnelIp);
        }
    }
    if needs.stateful_filter == Need::Asked && !able.stateful_filter {
        return Err(Rejection::NoStatefulFilter);
    }
    Ok(())
}

fn failed_recently(question: &Question<'_>) -> Result<(), Rejection> {
    if question
        .request
        .excluded_hosts
        .contains(&question.host.facts().id)
    {
        return Err(Rejection::FailedThisRequest);
    }
    let settings = question.settings;
    let failures = question.host.failures();
    let failures = failures.decayed(question.request.now, settings.failure_half_life);
    if failures > settings.max_failures {
        return Err(Rejection::FailedRecently {
            failures,
            limit: settings.max_failures,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_places_in_the_order() {
        for (place, filter) in FilterName::ALL.iter().enumerate() {
            assert_eq!(usize::from(filter.code()), place);
        }
        assert!(FilterName::ALL.is_sorted());
    }
}
