//! `nat` networks go out by the routes of their hosts: on one host, no two may have the same addresses.

use berth_common::{ids::NetworkId, names::Cidr};
use berth_store::networks::{self, NetworkRow};

use super::{
    ClaimError,
    cloud::nat::{NatNetwork, Nats},
    conflict,
};
use crate::{
    context::Writing,
    place::{Rejection, Request},
};

/// A network that a host would get.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The network.
    pub network: &'a NetworkRow,
    /// The router that joins it to those of the ports, if no port is in it.
    pub router: Option<&'a str>,
}

/// Asks a host that the addresses of those of some networks that are of type `nat` are nobody else's there.
///
/// # Errors
/// A refusal if they are each other's: then no host will do.
pub fn demand(nats: &Nats, asked: &[Asked<'_>], request: &mut Request) -> Result<(), ClaimError> {
    let of_nat: Vec<(&Asked<'_>, NatNetwork)> = asked
        .iter()
        .filter_map(|asked| Some((asked, NatNetwork::of(asked.network)?)))
        .collect();
    for (at, (one, network)) in of_nat.iter().enumerate() {
        for (other, beside) in of_nat.iter().take(at) {
            let is_other = one.network.id != other.network.id;
            if let Some((own, its)) = network.meets(beside).filter(|_| is_other) {
                return Err(conflict(format!(
                    "nat networks {} ({its}) and {} ({own}) have the same addresses, and no host can have both",
                    beside.name, network.name
                )));
            }
        }
        for cidr in &network.subnets {
            let words = format!("{cidr} for nat network {} alone", network.name);
            if !request.nat.asked.contains(&words) {
                request.nat.asked.push(words);
            }
        }
        for (host, rejection) in nats.newly_taken(one.network.id, network) {
            let rejection = match one.router {
                None => rejection,
                Some(router) => Rejection::Routed {
                    router: router.to_owned(),
                    network: network.name.to_string(),
                    reason: Box::new(rejection),
                },
            };
            request.nat.taken.entry(host).or_insert(rejection);
        }
    }
    Ok(())
}

/// A network that hosts may have is other than it was, and maybe has these addresses now.
///
/// # Errors
/// A refusal if another `nat` network on one of its hosts has them, or a failure of the database.
pub async fn changed(
    writing: &mut Writing<'_>,
    network: NetworkId,
    more: Option<Cidr>,
) -> Result<(), ClaimError> {
    let hosts: Vec<_> = writing.cloud.nats().hosts_of(network).collect();
    if hosts.is_empty() {
        return Ok(());
    }
    let Some(row) = networks::get(writing.txn(), network).await? else {
        return Ok(());
    };
    if let Some(mut after) = NatNetwork::of(&row) {
        after.subnets.retain(|cidr| Some(*cidr) == more);
        let taken = writing.cloud.nats().taken(network, &after);
        let clash = hosts
            .iter()
            .find_map(|host| Some((writing.cloud.table().host(*host)?, taken.get(host)?)));
        if let Some((host, rejection)) = clash {
            return Err(conflict(format!(
                "network {} is on host {}, and {}",
                row.name,
                host.facts().name,
                rejection.for_owner()
            )));
        }
    }
    writing.cloud.know_nat(&row);
    Ok(())
}
