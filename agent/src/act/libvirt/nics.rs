//! NICs of a guest that is on: plugged in, asked back, and their cables.

use berth_common::{document::PortLink, ids::InstanceId, telemetry::error_chain};

use super::{
    observe,
    orphans::{self, NicRemoval},
    rpc::{Domain, Error, constants},
    steps::{Job, ask_to_give_back, attach_live, is_on},
};
use crate::{
    act::ActError,
    decide::{
        domain::{DomainNic, DomainObserved, NicObserved},
        domain_xml, names,
    },
};

impl Job<'_> {
    /// Plugs in a NIC, unless it is there.
    pub(super) async fn attach_nic(&self, id: InstanceId, nic: &DomainNic) -> Result<(), ActError> {
        let xml = self.written(domain_xml::write_nic(nic))?;
        let needed = |domain: &DomainObserved| is_on(domain) && !has_tap(domain, &nic.tap);
        let attach = async |domain: Domain| attach(&domain, &xml, nic).await;
        let attached = self.act(id, needed, attach).await;
        attached.map(drop).map_err(|error| self.explained(error))
    }

    /// Asks the guest to give back a NIC, if it has it.
    pub(super) async fn detach_nic(
        &self,
        id: InstanceId,
        nic: &NicObserved,
    ) -> Result<(), ActError> {
        let xml = self.written(domain_xml::write_nic_observed(nic, nic.link))?;
        let needed = |domain: &DomainObserved| {
            let is_it =
                |found: &NicObserved| found.tap == nic.tap && found.mac_address == nic.mac_address;
            is_on(domain) && domain.nics.live.iter().any(is_it)
        };
        let ask = async |domain: Domain| ask_to_give_back(&domain, &xml).await;
        self.act(id, needed, ask).await.map(drop)
    }

    /// Plugs in the cable of a NIC, or pulls it.
    pub(super) async fn set_link(
        &self,
        id: InstanceId,
        nic: &NicObserved,
        link: PortLink,
    ) -> Result<(), ActError> {
        let xml = self.written(domain_xml::write_nic_observed(nic, link))?;
        let needed = |domain: &DomainObserved| {
            let is_other = |found: &NicObserved| found.tap == nic.tap && found.link != link;
            is_on(domain) && domain.nics.live.iter().any(is_other)
        };
        let flags = constants::VIR_DOMAIN_AFFECT_LIVE;
        let set = async |domain: Domain| domain.update_device_flags(&xml, flags).await;
        self.act(id, needed, set).await.map(drop)
    }

    /// What libvirt says when no place is left does not tell what to do.
    fn explained(&self, mut error: ActError) -> ActError {
        if error_chain(&error).contains("No more available PCI slots") {
            error.what = format!(
                "{}: its guest was started with too few places for NICs and disks; its next start gives it more",
                self.what
            );
        }
        error
    }
}

fn has_tap(domain: &DomainObserved, tap: &str) -> bool {
    domain.nics.live.iter().any(|found| found.tap == tap)
}

/// A libvirtd that died while it plugged in the NIC has left parts of it in QEMU, which keep its name and its tap.
async fn attach(domain: &Domain, xml: &str, nic: &DomainNic) -> Result<(), Error> {
    let Err(error) = attach_live(domain, xml).await else {
        return Ok(());
    };
    // Another call, whose caller gave up, may have plugged it in meanwhile: then it is no orphan.
    if !matches!(observe::of(domain).await, Ok(Some(now)) if !has_tap(&now, &nic.tap)) {
        return Err(error);
    }
    let port = nic.port;
    match orphans::remove_nic(domain, &names::nic_alias(port)).await {
        Ok(NicRemoval::Nothing) => Err(error),
        Ok(NicRemoval::Removed) => {
            tracing::warn!(%port, "removed what an interrupted attachment of a NIC had left in QEMU");
            attach_live(domain, xml).await
        }
        Ok(NicRemoval::AskedBack) => {
            tracing::warn!(
                %port,
                "an interrupted attachment has left a NIC with the guest; it was asked to give it back"
            );
            Err(error)
        }
        Err(second) => {
            tracing::warn!(
                %port, error = %error_chain(&second),
                "what is left of an attachment of a NIC in QEMU could not be looked for"
            );
            Err(error)
        }
    }
}
