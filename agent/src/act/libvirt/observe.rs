//! What libvirt says of its domains.

use berth_common::{ids::InstanceId, message::report::PowerState};
use virt::{connect::Connect, domain::Domain, error::Error, sys};

use super::{
    error::{failed, is_gone},
    power, saved,
};
use crate::{
    act::ActError,
    decide::{
        domain::{DomainDisks, DomainNics, DomainObserved, JobProgress, OffReason},
        domain_xml::{self, DomainFacts},
    },
};

/// All domains, running or only defined. One that vanishes meanwhile is left out.
pub(super) fn all(connection: &Connect) -> Result<Vec<DomainObserved>, ActError> {
    let domains = connection
        .list_all_domains(0)
        .map_err(|error| failed("listing the domains".to_owned(), error))?;
    domains
        .iter()
        .filter_map(|domain| of(domain).transpose())
        .collect()
}

/// The domain with an instance's UUID.
pub(super) fn one(
    connection: &Connect,
    instance: InstanceId,
) -> Result<Option<DomainObserved>, ActError> {
    match lookup(connection, instance)? {
        Some(domain) => of(&domain),
        None => Ok(None),
    }
}

/// libvirt's handle of the domain with an instance's UUID.
pub(super) fn lookup(
    connection: &Connect,
    instance: InstanceId,
) -> Result<Option<Domain>, ActError> {
    match Domain::lookup_by_uuid(connection, instance.as_uuid()) {
        Ok(domain) => Ok(Some(domain)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(failed(
            format!("looking for the domain of instance {instance}"),
            error,
        )),
    }
}

/// A domain as it is; `None`: it is gone.
pub(super) fn of(domain: &Domain) -> Result<Option<DomainObserved>, ActError> {
    match query(domain) {
        Ok(observed) => Ok(Some(observed)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(failed(
            format!(
                "looking at domain {:?}",
                domain.get_name().unwrap_or_default()
            ),
            error,
        )),
    }
}

fn query(domain: &Domain) -> Result<DomainObserved, Error> {
    let uuid = domain.get_uuid()?;
    let (state, reason) = domain.get_state()?;
    let (power, has_memory) = (power::read(state, reason), domain.has_managed_save(0)?);
    let is_off = power.state == PowerState::Shutdown;
    // Over a boot of the host libvirt forgets why a domain is off, but not the memory it saved.
    let power = if is_off && has_memory {
        power::saved()
    } else {
        power
    };
    // The definition that is kept: it tells what was written last, and never waits for QEMU.
    let facts = domain_xml::read(&domain.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?);
    let mut running = None;
    let live = if domain.is_active()? {
        // libvirt answers this from its own memory as well.
        let now = domain_xml::read(&domain.get_xml_desc(0)?);
        running = (!is_off).then(|| now.running());
        now
    } else if power.off == Some(OffReason::Saved) {
        // Memory that cannot be read is nobody's disk either; what was defined is the best guess.
        saved::xml(domain).map_or_else(|_| facts.clone(), |xml| domain_xml::read(&xml))
    } else {
        DomainFacts::default()
    };
    Ok(DomainObserved {
        uuid,
        name: domain.get_name()?,
        power_state: power.state,
        off_reason: power.off,
        // While libvirt restores it, its memory is still where it was saved.
        leftover_memory: has_memory && !is_off && !power::is_starting(state, reason),
        reason: power.text,
        persistent: domain.is_persistent()?,
        vcpus: facts.vcpus,
        memory_mb: facts.memory_mb,
        running,
        // A copy of a domain (`virt-clone`) carries its metadata along, but another UUID: it is nobody's instance.
        metadata: facts
            .metadata
            .filter(|metadata| metadata.instance_id.as_uuid() == uuid),
        disks: DomainDisks {
            live: live.disks,
            kept: facts.disks,
            scsi_controller: live.scsi_controller,
        },
        nics: DomainNics {
            live: live.nics,
            kept: facts.nics,
        },
    })
}

/// How far the operation that runs on a domain is, if one does.
pub(super) fn job(
    connection: &Connect,
    instance: InstanceId,
) -> Result<Option<JobProgress>, ActError> {
    let Some(domain) = lookup(connection, instance)? else {
        return Ok(None);
    };
    // Of one that is off libvirt does not say that nothing is done to it: it refuses the question.
    let asked = domain.is_active().and_then(|active| {
        if active {
            domain.get_job_info().map(Some)
        } else {
            Ok(None)
        }
    });
    match asked {
        Ok(None) => Ok(None),
        Ok(Some(info))
            if info.r#type == i32::try_from(sys::VIR_DOMAIN_JOB_NONE).unwrap_or_default() =>
        {
            Ok(None)
        }
        Ok(Some(info)) => Ok(Some(JobProgress {
            done: info.data_processed.unwrap_or_default(),
            total: info.data_total.unwrap_or_default(),
        })),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(failed(
            format!("asking how far instance {instance} is"),
            error,
        )),
    }
}
