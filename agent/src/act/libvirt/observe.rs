//! What libvirt says of its domains.

use std::collections::BTreeMap;

use berth_common::{ids::InstanceId, message::report::PowerState};

use super::{
    error::{failed, is_gone},
    power,
    rpc::{Connection, Domain, Error, constants},
};
use crate::{
    act::ActError,
    decide::{
        domain::{
            DiskError, DomainDisks, DomainNics, DomainObserved, JobProgress, LeftOff, OffReason,
        },
        domain_xml::{self, DomainFacts},
    },
};

/// All domains, running or only defined. One that vanishes meanwhile is left out.
pub(super) async fn all(connection: &Connection) -> Result<Vec<DomainObserved>, ActError> {
    let listed = connection.list_all_domains(0).await;
    let domains = listed.map_err(|error| failed("listing the domains".to_owned(), error))?;
    let mut all = Vec::with_capacity(domains.len());
    for domain in &domains {
        all.extend(of(domain).await?);
    }
    Ok(all)
}

/// The domain with an instance's UUID.
pub(super) async fn one(
    connection: &Connection,
    instance: InstanceId,
) -> Result<Option<DomainObserved>, ActError> {
    match lookup(connection, instance).await? {
        Some(domain) => of(&domain).await,
        None => Ok(None),
    }
}

/// libvirt's handle of the domain with an instance's UUID.
pub(super) async fn lookup(
    connection: &Connection,
    instance: InstanceId,
) -> Result<Option<Domain>, ActError> {
    match connection.lookup_by_uuid(instance.as_uuid()).await {
        Ok(domain) => Ok(Some(domain)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(failed(
            format!("looking for the domain of instance {instance}"),
            error,
        )),
    }
}

/// A domain as it is; `None`: it is gone.
pub(super) async fn of(domain: &Domain) -> Result<Option<DomainObserved>, ActError> {
    match query(domain).await {
        Ok(observed) => Ok(Some(observed)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(failed(
            format!("looking at domain {:?}", domain.get_name()),
            error,
        )),
    }
}

async fn query(domain: &Domain) -> Result<DomainObserved, Error> {
    let uuid = domain.get_uuid();
    let (state, reason) = domain.get_state().await?;
    let power = power::read(state, reason);
    let has_memory = domain.has_managed_save().await?;
    let is_starting = power::is_starting(state, reason);
    let is_off = power.state == PowerState::Shutdown;
    // Over a boot of the host libvirt forgets why a domain is off, but not the memory it saved.
    let power = if is_off && has_memory {
        power::saved()
    } else {
        power
    };
    // The definition that is kept: it tells what was written last, and never waits for QEMU.
    let facts = domain_xml::read(
        &domain
            .get_xml_desc(constants::VIR_DOMAIN_XML_INACTIVE)
            .await?,
    );
    let mut running = None;
    let live = if domain.is_active().await? {
        // libvirt answers this from its own memory as well.
        let now = domain_xml::read(&domain.get_xml_desc(0).await?);
        running = (!is_off).then(|| now.running());
        now
    } else if power.off == Some(OffReason::Saved) {
        // Memory that cannot be read is nobody's disk either; what was defined is the best guess.
        let saved = domain.managed_save_get_xml_desc().await;
        saved.map_or_else(|_| facts.clone(), |xml| domain_xml::read(&xml))
    } else {
        DomainFacts::default()
    };
    // A copy of a domain (`virt-clone`) carries its metadata along, but another UUID: it is nobody's instance.
    let metadata = facts
        .metadata
        .filter(|metadata| metadata.instance_id.as_uuid() == uuid);
    let noted = metadata.as_ref().and_then(|metadata| metadata.left_off);
    Ok(DomainObserved {
        uuid,
        name: domain.get_name().to_owned(),
        power_state: power.state,
        off_reason: LeftOff::recall(power.off, noted),
        // While libvirt restores it, its memory is still where it was saved.
        leftover_memory: has_memory && !is_off && !is_starting,
        is_starting,
        is_halted: power::is_halted(state, reason),
        reason: power.text,
        persistent: domain.is_persistent().await?,
        vcpus: facts.vcpus,
        memory_mb: facts.memory_mb,
        running,
        metadata,
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

/// The disks that a domain's QEMU could not read or write, by the guest's names.
pub(super) async fn disk_errors(
    connection: &Connection,
    instance: InstanceId,
) -> Result<BTreeMap<String, DiskError>, ActError> {
    let Some(domain) = lookup(connection, instance).await? else {
        return Ok(BTreeMap::new());
    };
    let errors = domain.get_disk_errors().await.map_err(|error| {
        let what = format!("asking which disks of instance {instance} fail");
        failed(what, error)
    })?;
    let failing = errors.into_iter().filter_map(|it| match it.error {
        constants::VIR_DOMAIN_DISK_ERROR_NONE => None,
        constants::VIR_DOMAIN_DISK_ERROR_NO_SPACE => Some((it.disk, DiskError::NoSpace)),
        _ => Some((it.disk, DiskError::Other)),
    });
    Ok(failing.collect())
}

/// How far the operation that runs on a domain is, if one does.
pub(super) async fn job(
    connection: &Connection,
    instance: InstanceId,
) -> Result<Option<JobProgress>, ActError> {
    let Some(domain) = lookup(connection, instance).await? else {
        return Ok(None);
    };
    // Of one that is off libvirt does not say that nothing is done to it: it refuses the question.
    let asked = match domain.is_active().await {
        Ok(true) => domain.get_job_info().await.map(Some),
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    match asked {
        Ok(None) => Ok(None),
        Ok(Some(info)) if info.kind == constants::VIR_DOMAIN_JOB_NONE => Ok(None),
        Ok(Some(info)) => Ok(Some(JobProgress {
            done: info.data_processed,
            total: info.data_total,
        })),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(failed(
            format!("asking how far instance {instance} is"),
            error,
        )),
    }
}
