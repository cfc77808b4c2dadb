//! The ports of new instances, with every address chosen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
};

use berth_common::{
    document::FixedIp,
    ids::{InstanceId, NetworkId, PortId, SubnetId},
    message::request::{InstanceCreate, NetworkAttachment},
    names::{MacAddress, NetworkName, ProjectName},
};
use berth_store::{
    Executor,
    networks::NetworkRow,
    ports::{self, PortRow},
    routers,
};
use uuid::Uuid;

use super::{ClaimError, address, conflict, invalid, networks};

/// The networks that a batch of requests names, and the addresses that are in use on them: read once, then kept up to
/// date.
#[derive(Debug, Default)]
pub struct Addresses {
    networks: HashMap<(ProjectName, String), NetworkRow>,
    ips: HashMap<SubnetId, BTreeSet<IpAddr>>,
    macs: HashMap<NetworkId, BTreeSet<MacAddress>>,
}

/// The ports of one instance, and their networks in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Planned {
    /// The ports.
    pub ports: Vec<PortRow>,
    /// Their networks.
    pub networks: Vec<NetworkRow>,
}

impl Addresses {
    /// Plans the ports of an instance; their addresses are in use from now on.
    ///
    /// # Errors
    /// A refusal that names the address or network, or a failure of the database; then no address is in use.
    pub async fn plan(
        &mut self,
        db: &impl Executor,
        request: &InstanceCreate,
    ) -> Result<Planned, ClaimError> {
        let mut planned = Planned::default();
        for (position, attachment) in (0_u8..).zip(&request.networks) {
            let port = match self.network(db, &request.project, attachment).await {
                Ok(network) => {
                    let port = self.port(&network, request.id, position, attachment);
                    port.map(|port| (port, network))
                }
                Err(error) => Err(error),
            };
            match port {
                Ok((port, network)) => {
                    planned.ports.push(port);
                    planned.networks.push(network);
                }
                Err(error) => {
                    self.give_back(&planned.ports);
                    return Err(error);
                }
            }
        }
        Ok(planned)
    }

    /// The addresses of these ports are free again.
    pub fn give_back(&mut self, ports: &[PortRow]) {
        for port in ports {
            if let Some(macs) = self.macs.get_mut(&port.network_id) {
                macs.remove(&port.mac_address);
            }
            for ip in &port.fixed_ips {
                if let Some(ips) = self.ips.get_mut(&ip.subnet_id) {
                    ips.remove(&ip.ip_address);
                }
            }
        }
    }

    /// The names of the networks that were looked up.
    #[must_use]
    pub fn names(&self) -> BTreeMap<NetworkId, NetworkName> {
        self.networks
            .values()
            .map(|network| (network.id, network.name.clone()))
            .collect()
    }

    async fn network(
        &mut self,
        db: &impl Executor,
        project: &ProjectName,
        attachment: &NetworkAttachment,
    ) -> Result<NetworkRow, ClaimError> {
        let key = (project.clone(), attachment.network.clone());
        if let Some(network) = self.networks.get(&key) {
            return Ok(network.clone());
        }
        let network = networks::resolve(db, project, &attachment.network).await?;
        // Two names may lead to one network: what is known of its addresses stays.
        if let Entry::Vacant(unknown) = self.ips.entry(network.subnet.id) {
            let mut ips = ports::addresses_in_use(db, network.subnet.id).await?;
            ips.extend(routers::addresses_in_use(db, network.subnet.id).await?);
            unknown.insert(ips);
            let mut macs = ports::macs_in_use(db, network.id).await?;
            macs.extend(routers::macs_in_use(db, network.id).await?);
            self.macs.insert(network.id, macs);
        }
        self.networks.insert(key, network.clone());
        Ok(network)
    }

    fn port(
        &mut self,
        network: &NetworkRow,
        instance: InstanceId,
        position: u8,
        attachment: &NetworkAttachment,
    ) -> Result<PortRow, ClaimError> {
        let ips = self.ips.entry(network.subnet.id).or_default();
        let ip_address = address::choose(&network.subnet, ips, attachment.ip_address)
            .map_err(address_refused)?;
        let macs = self.macs.entry(network.id).or_default();
        let mac_address = match attachment.mac_address {
            Some(mac) if macs.contains(&mac) => {
                return Err(conflict(format!(
                    "{mac} is already used by another port of network {}",
                    network.name
                )));
            }
            Some(mac) => mac,
            None => address::choose_mac(macs, instance, position),
        };
        let id = port_id(instance, position)?;
        ips.insert(ip_address);
        macs.insert(mac_address);
        Ok(PortRow {
            id,
            instance_id: instance,
            network_id: network.id,
            position,
            mac_address,
            fixed_ips: vec![FixedIp {
                subnet_id: network.subnet.id,
                ip_address,
            }],
        })
    }
}

fn address_refused(error: address::AddressError) -> ClaimError {
    match error {
        address::AddressError::Outside { .. } | address::AddressError::Reserved { .. } => {
            invalid(error.to_string())
        }
        address::AddressError::Taken { .. } | address::AddressError::Full { .. } => {
            conflict(error.to_string())
        }
    }
}

/// The id of an instance's port: a function of the instance and the position.
fn port_id(instance: InstanceId, position: u8) -> Result<PortId, ClaimError> {
    let name = format!("port {position}");
    PortId::try_from(Uuid::new_v5(&instance.as_uuid(), name.as_bytes()))
        .map_err(|error| invalid(error.to_string()))
}
