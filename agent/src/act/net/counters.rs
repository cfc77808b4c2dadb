//! What is counted of ports by the metadata services of networks. Read only.

use std::collections::BTreeMap;

use berth_common::ids::NetworkId;

use super::{KernelNet, error::NetError, metadata::Service, with_files};
use crate::decide::metadata::ForgedCounts;

impl KernelNet {
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
