//! libvirt's figures of a domain, by name. [`super::stats`] says what they mean.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::rpc::{DomainStatsRecord, TypedValue};

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

/// Reads libvirt's record.
pub(super) fn read(record: DomainStatsRecord) -> Record {
    let (uuid, run) = (record.uuid(), record.id());
    let params = record.params.into_iter();
    Record {
        uuid,
        run,
        figures: params
            .filter_map(|param| Some((param.field, figure(param.value)?)))
            .collect(),
    }
}

fn figure(value: TypedValue) -> Option<Figure> {
    match value {
        TypedValue::Int(value) => u64::try_from(value).ok().map(Figure::Number),
        TypedValue::Uint(value) => Some(Figure::Number(value.into())),
        TypedValue::Llong(value) => u64::try_from(value).ok().map(Figure::Number),
        TypedValue::Ullong(value) => Some(Figure::Number(value)),
        TypedValue::String(value) => Some(Figure::Text(value)),
        TypedValue::Double(_) | TypedValue::Boolean(_) => None,
    }
}
