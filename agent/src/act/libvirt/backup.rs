//! Backup jobs: QEMU copies a disk of a guest that is on into a file of its own, as the disk is when the job begins.
//!
//! ```text
//!   begin ──▶ running ──▶ ended: the statistics of the last job say whether it succeeded
//! ```
//!
//! libvirt forgets these statistics when it is restarted, and when they were read. So only who saw a job run and then end
//! well may trust the file.

use std::path::Path;

use berth_common::{
    ids::InstanceId,
    message::report::{FaultCode, PowerState},
};

use super::{
    error::failed,
    observe,
    rpc::{Code, Connection, Domain, Error, JobStats, TypedValue, constants},
};
use crate::{
    act::ActError,
    decide::{domain::BackupPlan, domain_xml, snapshot::BackupJob},
};

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is at work.
    Running,
    /// It is done, and all is written.
    Succeeded,
    /// It ended otherwise.
    Failed {
        /// libvirt's words, if it has any.
        why: String,
    },
}

/// The backup jobs of all domains that are on.
pub(super) async fn all(connection: &Connection) -> Result<Vec<BackupJob>, ActError> {
    let listing = |error| failed("looking for backup jobs".to_owned(), error);
    let on = connection
        .list_all_domains(constants::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        .await
        .map_err(listing)?;
    let mut jobs = Vec::new();
    for domain in &on {
        let Some(xml) = description(domain).await.map_err(listing)? else {
            continue;
        };
        if let Ok(instance) = InstanceId::try_from(domain.get_uuid()) {
            jobs.push(BackupJob {
                instance,
                domain: domain.get_name().to_owned(),
                files: domain_xml::read_backup(&xml),
            });
        }
    }
    Ok(jobs)
}

/// Begins a job, unless one that writes the same file runs.
pub(super) async fn begin(
    connection: &Connection,
    plan: &BackupPlan,
    what: &str,
) -> Result<(), ActError> {
    let xml = domain_xml::write_backup(plan).map_err(|error| ActError {
        what: what.to_owned(),
        code: FaultCode::Hypervisor,
        retryable: false,
        source: Some(Box::new(error)),
    })?;
    // libvirt has no word of its own for what passes by itself: a file that is there of a job that runs, a disk that is
    // gone with the guest's next start. Whoever planned this looks again.
    let failed = |error| ActError {
        retryable: true,
        ..failed(what.to_owned(), error)
    };
    let domain = own(connection, plan.instance, what).await?;
    let is_same = |xml: String| domain_xml::read_backup(&xml).contains(&plan.file);
    let runs = description(&domain).await.map_err(failed)?;
    if !runs.is_some_and(is_same) {
        // What is told of the last job is told of this one afterwards.
        last(&domain).await.map_err(failed)?;
        domain.backup_begin(&xml).await.map_err(failed)?;
    }
    check_disk(connection, &domain, plan, what).await
}

/// libvirt names the disks of a job by the guest's names only, and by the time the job began those may have been other
/// disks: as long as it runs they stay what they are, so this is the time to look.
async fn check_disk(
    connection: &Connection,
    domain: &Domain,
    plan: &BackupPlan,
    what: &str,
) -> Result<(), ActError> {
    let observed = observe::of(domain).await?;
    if observed.is_some_and(|it| it.disks.live.contains(&plan.disk)) {
        return Ok(());
    }
    abort(connection, plan.instance, &plan.file, what).await?;
    Err(ActError {
        what: format!("{what}: {} is another disk by now", plan.disk.target),
        code: FaultCode::Hypervisor,
        retryable: true,
        source: None,
    })
}

/// How far the job is that was begun last.
pub(super) async fn look(
    connection: &Connection,
    instance: InstanceId,
    what: &str,
) -> Result<Seen, ActError> {
    let failed = |error| failed(what.to_owned(), error);
    let gone = |why: &str| Seen::Failed {
        why: why.to_owned(),
    };
    let Some(domain) = observe::lookup(connection, instance).await? else {
        return Ok(gone("the domain is gone"));
    };
    if description(&domain).await.map_err(failed)?.is_some() {
        return Ok(Seen::Running);
    }
    if !domain.is_active().await.map_err(failed)? {
        return Ok(gone("the guest went off"));
    }
    let Some(ended) = last(&domain).await.map_err(failed)? else {
        return Ok(gone("libvirt does not know how it ended"));
    };
    let is_backup = ended.operation == constants::VIR_DOMAIN_JOB_OPERATION_BACKUP;
    let is_done = ended.kind == constants::VIR_DOMAIN_JOB_COMPLETED;
    if is_backup && is_done && ended.success {
        return Ok(Seen::Succeeded);
    }
    Ok(Seen::Failed {
        why: ended.message.unwrap_or_else(|| "it was ended".to_owned()),
    })
}

/// Ends the job that writes a file, if it runs.
pub(super) async fn abort(
    connection: &Connection,
    instance: InstanceId,
    file: &Path,
    what: &str,
) -> Result<(), ActError> {
    let failed = |error| failed(what.to_owned(), error);
    let Some(domain) = observe::lookup(connection, instance).await? else {
        return Ok(());
    };
    let is_ours = |xml: String| domain_xml::read_backup(&xml).iter().any(|it| it == file);
    let runs = description(&domain).await.map_err(failed)?;
    if !runs.is_some_and(is_ours) {
        return Ok(());
    }
    let Err(error) = domain.abort_job().await else {
        return Ok(());
    };
    // It may have ended just now.
    match description(&domain).await {
        Ok(None) => Ok(()),
        _ => Err(failed(error)),
    }
}

/// Whether a job that writes a file runs.
pub(super) async fn writes(
    connection: &Connection,
    instance: InstanceId,
    file: &Path,
) -> Result<bool, ActError> {
    let what = || format!("looking at the backup job of instance {instance}");
    let Some(domain) = observe::lookup(connection, instance).await? else {
        return Ok(false);
    };
    let runs = description(&domain).await;
    let job = runs.map_err(|error| failed(what(), error))?;
    Ok(job.is_some_and(|xml| domain_xml::read_backup(&xml).iter().any(|it| it == file)))
}

/// berth's own domain of an instance, which is on.
async fn own(
    connection: &Connection,
    instance: InstanceId,
    what: &str,
) -> Result<Domain, ActError> {
    let off = || ActError {
        what: format!("{what}: its guest is not on"),
        code: FaultCode::Hypervisor,
        retryable: true,
        source: None,
    };
    let domain = observe::lookup(connection, instance)
        .await?
        .ok_or_else(off)?;
    let observed = observe::of(&domain).await?.ok_or_else(off)?;
    if observed.metadata.is_none() {
        return Err(ActError::refused(
            FaultCode::ForeignObject,
            format!(
                "{what}: domain {:?} has the instance's UUID, but berth did not make it; it was left alone",
                observed.name
            ),
        ));
    }
    if observed.power_state == PowerState::Shutdown {
        return Err(off());
    }
    Ok(domain)
}

/// libvirt's XML of the job that runs on a domain; `None`: none does.
async fn description(domain: &Domain) -> Result<Option<String>, Error> {
    match domain.backup_get_xml_desc().await {
        Ok(xml) => Ok(Some(xml)),
        // It has none, is gone, or is off.
        Err(error) if has_none(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn has_none(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(Code::NO_DOMAIN_BACKUP | Code::NO_DOMAIN | Code::OPERATION_INVALID)
    )
}

/// How a job ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ended {
    kind: i32,
    operation: i32,
    success: bool,
    message: Option<String>,
}

/// What libvirt tells of the last job of a domain, once; `None`: nothing.
async fn last(domain: &Domain) -> Result<Option<Ended>, Error> {
    let flags = constants::VIR_DOMAIN_JOB_STATS_COMPLETED;
    Ok(ended(domain.get_job_stats(flags).await?))
}

fn ended(stats: JobStats) -> Option<Ended> {
    if stats.kind == constants::VIR_DOMAIN_JOB_NONE || stats.params.is_empty() {
        return None;
    }
    let mut ended = Ended {
        kind: stats.kind,
        ..Ended::default()
    };
    for param in stats.params {
        match (param.field.as_str(), param.value) {
            (constants::VIR_DOMAIN_JOB_OPERATION, TypedValue::Int(number)) => {
                ended.operation = number
            }
            (constants::VIR_DOMAIN_JOB_SUCCESS, TypedValue::Boolean(number)) => {
                ended.success = number != 0;
            }
            (constants::VIR_DOMAIN_JOB_ERRMSG, TypedValue::String(text)) => {
                ended.message = Some(text)
            }
            _ => {}
        }
    }
    Some(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::libvirt::rpc::TypedParam;

    #[test]
    fn the_end_of_a_job_is_read_whatever_else_is_told_with_it() {
        let param = |field: &str, value| TypedParam {
            field: field.to_owned(),
            value,
        };
        let params = vec![
            param("operation", TypedValue::Int(9)),
            param("disk_total", TypedValue::Ullong(7)),
            param("success", TypedValue::Boolean(1)),
            param("errmsg", TypedValue::String("No space left".to_owned())),
        ];
        let stats = |kind, params| JobStats { kind, params };
        let expected = Ended {
            kind: 3,
            operation: 9,
            success: true,
            message: Some("No space left".to_owned()),
        };
        assert_eq!(ended(stats(3, params.clone())), Some(expected));
        assert_eq!(ended(stats(0, params)), None);
        assert_eq!(ended(stats(3, Vec::new())), None);
    }
}
