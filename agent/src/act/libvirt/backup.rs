//! Backup jobs: QEMU copies a disk of a guest that is on into a file of its own, as the disk is when the job begins.
//!
//! ```text
//!   begin ──▶ running ──▶ ended: the statistics of the last job say whether it succeeded
//! ```
//!
//! libvirt forgets these statistics when it is restarted, and when they were read. So only who saw a job run and then end
//! well may trust the file. The `virt` crate has no functions for this; the unsafe code here does nothing but ask and copy.

#![expect(
    unsafe_code,
    reason = "the virt crate has no functions for backup jobs, and frees what libvirt allocated its own way"
)]

use std::{
    ffi::{CStr, CString},
    ptr,
};

use berth_common::{
    ids::InstanceId,
    message::report::{FaultCode, PowerState},
};
use nix::libc;
use virt::{
    connect::Connect,
    domain::Domain,
    error::{Error, ErrorNumber},
    sys,
};

use super::{
    error::{failed, is_gone},
    observe,
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
pub(super) fn all(connection: &Connect) -> Result<Vec<BackupJob>, ActError> {
    let listing = |error| failed("looking for backup jobs".to_owned(), error);
    let on = connection
        .list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        .map_err(listing)?;
    let mut jobs = Vec::new();
    for domain in &on {
        let Some(xml) = description(domain).map_err(listing)? else {
            continue;
        };
        let (uuid, name) = match (domain.get_uuid(), domain.get_name()) {
            (Ok(uuid), Ok(name)) => (uuid, name),
            (Err(error), _) | (_, Err(error)) if is_gone(&error) => continue,
            (Err(error), _) | (_, Err(error)) => return Err(listing(error)),
        };
        if let Ok(instance) = InstanceId::try_from(uuid) {
            jobs.push(BackupJob {
                instance,
                domain: name,
                files: domain_xml::read_backup(&xml),
            });
        }
    }
    Ok(jobs)
}

/// Begins a job, unless one that writes the same file runs.
pub(super) fn begin(connection: &Connect, plan: &BackupPlan, what: &str) -> Result<(), ActError> {
    let xml = domain_xml::write_backup(plan)
        .map_err(|error| ActError {
            what: what.to_owned(),
            code: FaultCode::Hypervisor,
            retryable: false,
            source: Some(Box::new(error)),
        })
        .and_then(|xml| {
            // Escaped text holds no zero byte.
            CString::new(xml).map_err(|error| ActError::retryable(FaultCode::Internal, what, error))
        })?;
    let failed = |error| failed(what.to_owned(), error);
    let domain = own(connection, plan.instance, what)?;
    // What is told of the last job is told of this one afterwards.
    last(&domain).map_err(failed)?;
    // SAFETY: the domain is open as long as it is borrowed, and libvirt copies the text.
    let begun = unsafe { sys::virDomainBackupBegin(domain.as_ptr(), xml.as_ptr(), ptr::null(), 0) };
    if begun == 0 {
        Ok(())
    } else {
        Err(failed(Error::last_error()))
    }
}

/// How far the job is that was begun last.
pub(super) fn look(
    connection: &Connect,
    instance: InstanceId,
    what: &str,
) -> Result<Seen, ActError> {
    let failed = |error| failed(what.to_owned(), error);
    let gone = |why: &str| Seen::Failed {
        why: why.to_owned(),
    };
    let Some(domain) = observe::lookup(connection, instance)? else {
        return Ok(gone("the domain is gone"));
    };
    if description(&domain).map_err(failed)?.is_some() {
        return Ok(Seen::Running);
    }
    if !domain.is_active().map_err(failed)? {
        return Ok(gone("the guest went off"));
    }
    let Some(ended) = last(&domain).map_err(failed)? else {
        return Ok(gone("libvirt does not know how it ended"));
    };
    let is_backup = u32::try_from(ended.operation) == Ok(sys::VIR_DOMAIN_JOB_OPERATION_BACKUP);
    let is_done = u32::try_from(ended.kind) == Ok(sys::VIR_DOMAIN_JOB_COMPLETED);
    if is_backup && is_done && ended.success {
        return Ok(Seen::Succeeded);
    }
    Ok(Seen::Failed {
        why: ended.message.unwrap_or_else(|| "it was ended".to_owned()),
    })
}

/// Ends the job that writes a file, if it runs.
pub(super) fn abort(
    connection: &Connect,
    instance: InstanceId,
    file: &std::path::Path,
    what: &str,
) -> Result<(), ActError> {
    let failed = |error| failed(what.to_owned(), error);
    let Some(domain) = observe::lookup(connection, instance)? else {
        return Ok(());
    };
    let is_ours = |xml: String| domain_xml::read_backup(&xml).iter().any(|it| it == file);
    if !description(&domain).map_err(failed)?.is_some_and(is_ours) {
        return Ok(());
    }
    // SAFETY: the domain is open as long as it is borrowed.
    if unsafe { sys::virDomainAbortJob(domain.as_ptr()) } == 0 {
        return Ok(());
    }
    let error = Error::last_error();
    // It may have ended just now.
    match description(&domain) {
        Ok(None) => Ok(()),
        _ => Err(failed(error)),
    }
}

/// Whether a job that writes a file runs.
pub(super) fn writes(
    connection: &Connect,
    instance: InstanceId,
    file: &std::path::Path,
) -> Result<bool, ActError> {
    let jobs = all(connection)?;
    Ok(jobs
        .iter()
        .any(|job| job.instance == instance && job.files.iter().any(|it| it == file)))
}

/// berth's own domain of an instance, which is on.
fn own(connection: &Connect, instance: InstanceId, what: &str) -> Result<Domain, ActError> {
    let off = || ActError {
        what: format!("{what}: its guest is not on"),
        code: FaultCode::Hypervisor,
        retryable: true,
        source: None,
    };
    let domain = observe::lookup(connection, instance)?.ok_or_else(off)?;
    let observed = observe::of(&domain)?.ok_or_else(off)?;
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
fn description(domain: &Domain) -> Result<Option<String>, Error> {
    // SAFETY: the domain is open as long as it is borrowed; what is answered is ours to free.
    let xml = unsafe { sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0) };
    if xml.is_null() {
        let error = Error::last_error();
        return match error.code() {
            // It has none, is gone, or is off.
            ErrorNumber::NoDomainBackup | ErrorNumber::NoDomain | ErrorNumber::OperationInvalid => {
                Ok(None)
            }
            _ => Err(error),
        };
    }
    // SAFETY: libvirt answers a text that ends with zero, and it is freed once, after it was copied.
    unsafe {
        let text = CStr::from_ptr(xml).to_string_lossy().into_owned();
        libc::free(xml.cast());
        Ok(Some(text))
    }
}

/// How a job ended.
#[derive(Debug, Default)]
struct Ended {
    kind: i32,
    operation: i32,
    success: bool,
    message: Option<String>,
}

/// What libvirt tells of the last job of a domain, once; `None`: nothing.
fn last(domain: &Domain) -> Result<Option<Ended>, Error> {
    let mut ended = Ended::default();
    let mut params: sys::virTypedParameterPtr = ptr::null_mut();
    let mut count = 0;
    // SAFETY: the domain is open as long as it is borrowed, and the three places are there for the answer.
    let result = unsafe {
        sys::virDomainGetJobStats(
            domain.as_ptr(),
            &mut ended.kind,
            &mut params,
            &mut count,
            sys::VIR_DOMAIN_JOB_STATS_COMPLETED,
        )
    };
    if result != 0 {
        return Err(Error::last_error());
    }
    if ended.kind == 0 || params.is_null() {
        return Ok(None);
    }
    let mut success = 1;
    // SAFETY: `params` holds so many parameters until it is freed, once, at the end; texts are copied before that. A
    // value that is not there leaves its place alone.
    unsafe {
        sys::virTypedParamsGetInt(
            params,
            count,
            sys::VIR_DOMAIN_JOB_OPERATION.as_ptr(),
            &mut ended.operation,
        );
        sys::virTypedParamsGetBoolean(
            params,
            count,
            sys::VIR_DOMAIN_JOB_SUCCESS.as_ptr(),
            &mut success,
        );
        let mut text: *const libc::c_char = ptr::null();
        sys::virTypedParamsGetString(
            params,
            count,
            sys::VIR_DOMAIN_JOB_ERRMSG.as_ptr(),
            &mut text,
        );
        if !text.is_null() {
            ended.message = Some(CStr::from_ptr(text).to_string_lossy().into_owned());
        }
        sys::virTypedParamsFree(params, count);
    }
    ended.success = success != 0;
    Ok(Some(ended))
}
