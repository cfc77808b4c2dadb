//! What is counted of a port: by the kernel for its tap, by the packet filter, and by the metadata service of its network. Read
//! only.

use std::collections::BTreeMap;

use berth_common::ids::{NetworkId, PortId};

use super::{
    KernelNet, error::NetError, links::Links, metadata::Service, with_files, worker::Workers,
};
use crate::{
    act::{ActError, inspect::PortCounts},
    decide::{metadata::ForgedCounts, names},
};

impl KernelNet {
    /// The same network with threads of its own: whoever looks by it holds up nobody else.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self {
            workers: Workers::new(),
            ..self.clone()
        }
    }

    /// What is counted of a port in a network; `None`: it has no tap here.
    ///
    /// # Errors
    /// The kernel, nft or the file of the metadata service does not tell.
    pub async fn port_counts(
        &self,
        network: NetworkId,
        port: PortId,
    ) -> Result<Option<PortCounts>, ActError> {
        let counts = self.counts(network, names::tap(port)).await;
        counts.map_err(|error| {
            error.into_act_of(Some(format!("port {port}")), "read what is counted of it")
        })
    }

    async fn counts(
        &self,
        network: NetworkId,
        tap: String,
    ) -> Result<Option<PortCounts>, NetError> {
        let nft = self.nft.clone();
        let service = self.metadata(network);
        self.workers
            .run("port-counters", async move || {
                let Some(found) = Links::open()?.find_counted(&tap).await? else {
                    return Ok(None);
                };
                let Some((received, sent)) = found.traffic() else {
                    return Err(NetError::Uncounted { link: tap });
                };
                let drops = nft.drops().await?.into_iter();
                let dropped = drops.filter(|((of, _), _)| *of == tap);
                Ok(Some(PortCounts {
                    // The tap receives what the guest sends.
                    received: sent,
                    sent: received,
                    dropped: dropped.map(|((_, why), packets)| (why, packets)).collect(),
                    forged: service.forged()?,
                }))
            })
            .await
    }

    /// What the metadata services of all networks counted. One whose file cannot be read says nothing: it is not the host's fault
    /// alone, as another user writes it.
    pub(super) async fn all_forged(&self) -> Result<BTreeMap<NetworkId, ForgedCounts>, NetError> {
        let directory = self.directory.clone();
        let this = self.clone();
        self.workers
            .plain("metadata-counts", move || {
                let networks = with_files::<NetworkId>(&directory)?.into_iter();
                let services = networks.map(|network| (network, this.metadata(network)));
                Ok(services.filter_map(counted).collect())
            })
            .await
    }
}

fn counted((network, service): (NetworkId, Service)) -> Option<(NetworkId, ForgedCounts)> {
    match service.forged() {
        Ok(counts) => Some((network, counts?)),
        Err(error) => {
            tracing::debug!(%network, %error, "what its metadata service counted cannot be read");
            None
        }
    }
}
