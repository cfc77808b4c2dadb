//! libvirt's figures of all running domains, copied out of its memory.
//!
//! The `virt` crate hands out bare pointers here, and leaks what they point to; so this asks libvirt itself. Its
//! unsafe code does nothing but copy: [`super::stats`] says what the figures mean.

#![expect(
    unsafe_code,
    reason = "the virt crate has no safe way to read the figures of all domains"
)]

use std::{collections::BTreeMap, ffi::CStr, ptr, slice};

use uuid::Uuid;
use virt::{connect::Connect, error::Error, sys};

/// What libvirt tells of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Record {
    /// Its UUID.
    pub(super) uuid: Uuid,
    /// libvirt's number of this start of it; `None`: it does not run.
    pub(super) run: Option<u32>,
    /// The figures by libvirt's names for them (`block.0.rd.bytes`).
    pub(super) figures: BTreeMap<String, Figure>,
}

/// A figure. What is neither is left out: nothing here counts in fractions, or below zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Figure {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
}

/// Asks for these groups of figures of all domains that the flags choose.
pub(super) fn all(connection: &Connect, groups: u32, flags: u32) -> Result<Vec<Record>, Error> {
    let mut list = List(ptr::null_mut());
    // SAFETY: the connection is open for as long as it is borrowed, and `list.0` is a place for the answer.
    let count = unsafe {
        sys::virConnectGetAllDomainStats(connection.as_ptr(), groups, &mut list.0, flags)
    };
    let count = usize::try_from(count).map_err(|_| Error::last_error())?;
    if list.0.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: libvirt said that so many records are there, and they stay until the list is dropped.
    let records = unsafe { slice::from_raw_parts(list.0, count) };
    let read = records.iter().filter_map(|record| {
        // SAFETY: each record of the list is valid until the list is dropped.
        unsafe { record.as_ref() }.and_then(read)
    });
    Ok(read.collect())
}

/// libvirt's list of records, which is given back whatever happens.
struct List(*mut sys::virDomainStatsRecordPtr);

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: it is a list that libvirt made, or null, which libvirt takes as well; nothing of it is used after this.
        unsafe { sys::virDomainStatsRecordListFree(self.0) }
    }
}

fn read(record: &sys::_virDomainStatsRecord) -> Option<Record> {
    let mut uuid = [0_u8; 16];
    // SAFETY: a record's domain is valid as long as the record, and libvirt writes 16 bytes (`VIR_UUID_BUFLEN`).
    if unsafe { sys::virDomainGetUUID(record.dom, uuid.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: as above; it reads what the handle holds already.
    let run = unsafe { sys::virDomainGetID(record.dom) };
    let count = usize::try_from(record.nparams).unwrap_or_default();
    let parameters = if record.params.is_null() {
        &[]
    } else {
        // SAFETY: libvirt says that so many parameters are there; they belong to the record.
        unsafe { slice::from_raw_parts(record.params, count) }
    };
    Some(Record {
        uuid: Uuid::from_bytes(uuid),
        run: (run != u32::MAX).then_some(run),
        figures: parameters
            .iter()
            .filter_map(|parameter| Some((name(parameter)?, figure(parameter)?)))
            .collect(),
    })
}

fn name(parameter: &sys::_virTypedParameter) -> Option<String> {
    let bytes: Vec<u8> = parameter
        .field
        .iter()
        .map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()))
        .collect();
    let name = CStr::from_bytes_until_nul(&bytes).ok()?;
    Some(name.to_str().ok()?.to_owned())
}

fn figure(parameter: &sys::_virTypedParameter) -> Option<Figure> {
    let value = &parameter.value;
    // SAFETY: the type says which of the union's fields libvirt has set; a text is valid as long as its record.
    unsafe {
        match u32::try_from(parameter.type_).ok()? {
            sys::VIR_TYPED_PARAM_INT => u64::try_from(value.i).ok().map(Figure::Number),
            sys::VIR_TYPED_PARAM_UINT => Some(Figure::Number(u64::from(value.ui))),
            sys::VIR_TYPED_PARAM_LLONG => u64::try_from(value.l).ok().map(Figure::Number),
            sys::VIR_TYPED_PARAM_ULLONG => Some(Figure::Number(value.ul)),
            sys::VIR_TYPED_PARAM_STRING if !value.s.is_null() => {
                let text = CStr::from_ptr(value.s).to_string_lossy().into_owned();
                Some(Figure::Text(text))
            }
            _ => None,
        }
    }
}
