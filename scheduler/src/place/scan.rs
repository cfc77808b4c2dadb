//! All filters and weighers over a whole table, by column: the fast form of [`Survey::by_host`], with the same answer.
//!
//! 1. Every host gets a code: of the first of the filters up to disk that rejects it, or [`FITS`]. This loop has no
//!    branches and compiles to vector instructions; counting the codes does too.
//! 2. The hosts that are left are a set, and each further filter *that the request asks* takes a set of hosts out.
//! 3. The scores of those that remain are a column, but for the few hosts that have adjustments. Whole blocks of
//!    hosts are passed over when the best of them is not among the best so far.
//! 4. The nearest misses are sought among the hosts with the highest codes only.

use std::cmp::Reverse;

use super::{
    amounts::{PerResource, Resource},
    columns::{Columns, FITS},
    filter::{COUNT, FilterName},
    host_set::HostSet,
    narrow::Narrowing,
    nearest,
    request::{GroupPolicy, Request},
    survey::Survey,
    table::HostTable,
    weigh,
};

/// Memory that decisions are made in; kept by the caller from one decision to the next, without any meaning.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    /// The code of every host, by the filters that every request asks.
    pub(super) codes: Vec<u8>,
    /// The hosts that no filter has rejected yet.
    pub(super) remaining: HostSet,
    /// The hosts that each further filter has rejected, by its code.
    pub(super) rejected: [HostSet; COUNT],
    /// The hosts one filter lets pass, or does not.
    pub(super) set: HostSet,
}

/// Looks at every host.
pub(super) fn survey(request: &Request, table: &HostTable, scratch: &mut Scratch) -> Survey {
    let needed = PerResource::from_fn(|resource| {
        i32::try_from(resource.of(&request.resources)).unwrap_or(i32::MAX)
    });
    if Resource::ALL
        .into_iter()
        .any(|resource| i32::try_from(resource.of(&request.resources)).is_err())
    {
        // Nobody has ever asked for 2 PiB of memory; whoever does gets the exact answer, slowly.
        return Survey::by_host(request, table, |_| 0);
    }
    let mut survey = Survey::new();
    code(&table.columns, needed, &mut scratch.codes);
    count(&scratch.codes, &mut survey);
    scratch.remaining.set_from_high_bits(&scratch.codes);
    scratch.rejected.iter_mut().for_each(HostSet::clear);
    Narrowing {
        request,
        table,
        scratch,
        survey: &mut survey,
    }
    .by_every_asked_filter();
    rank(request, table, scratch, &mut survey);
    nearest::seek(request, table, needed, scratch, &mut survey);
    survey
}

/// The filters that every request asks, up to the disk's: the code of the first that rejects each host.
fn code(columns: &Columns, needed: PerResource<i32>, codes: &mut Vec<u8>) {
    const CPU: u8 = FilterName::Cpu.code();
    const RAM: u8 = FilterName::Ram.code();
    const DISK: u8 = FilterName::Disk.code();
    /// The code where the filter rejects, else [`FITS`], which is all ones.
    fn reject_if(short: bool, code: u8) -> u8 {
        code | u8::from(short).wrapping_sub(1)
    }

    codes.resize(columns.standing.len(), FITS);
    let resources = columns
        .vcpus
        .iter()
        .zip(&columns.memory_mb)
        .zip(&columns.disk_gb);
    let rows = columns.standing.iter().zip(resources);
    for (code, (standing, ((vcpus, memory_mb), disk_gb))) in codes.iter_mut().zip(rows) {
        *code = (*standing)
            .min(reject_if(needed.vcpus > *vcpus, CPU))
            .min(reject_if(needed.memory_mb > *memory_mb, RAM))
            .min(reject_if(needed.disk_gb > *disk_gb, DISK));
    }
}

/// Counts the codes that [`code`] gives.
fn count(codes: &[u8], survey: &mut Survey) {
    /// As many as can be counted in a byte, in whole vectors.
    const BLOCK: usize = 240;
    for block in codes.chunks(BLOCK) {
        for filter in [
            FilterName::Enabled,
            FilterName::Alive,
            FilterName::Cpu,
            FilterName::Ram,
            FilterName::Disk,
        ] {
            let wanted = filter.code();
            let found: u8 = block.iter().map(|code| u8::from(*code == wanted)).sum();
            survey.removed[usize::from(wanted)] += usize::from(found);
        }
    }
}

/// Offers the hosts that remain, by score.
fn rank(request: &Request, table: &HostTable, scratch: &mut Scratch, survey: &mut Survey) {
    let remaining = &mut scratch.remaining;
    // Those whose score is more than the column come first, by themselves.
    let soft = request.group.as_ref().filter(|group| {
        matches!(
            group.policy,
            GroupPolicy::SoftAffinity | GroupPolicy::SoftAntiAffinity
        )
    });
    let members = soft.into_iter().flat_map(|group| group.members.keys());
    let members = members.filter_map(|host| table.slot(*host));
    let base = &table.columns.base;
    for slot in table.failing.iter().copied().chain(members) {
        if remaining.contains(slot) {
            remaining.remove(slot);
            let adjustment = weigh::adjustment(request, table.at(slot), table.settings());
            let score = base[slot.0].saturating_add(adjustment);
            survey.fits(request, table, slot, score);
        }
    }
    let mut bar = i64::MIN;
    for (block, highest) in table.columns.highest.iter().enumerate() {
        if *highest < bar {
            continue;
        }
        for slot in remaining.block(block) {
            let score = base[slot.0];
            if score >= bar {
                survey.fits(request, table, slot, score);
                if let Some((Reverse(score), ..)) = survey.best.bar() {
                    bar = *score;
                }
            }
        }
    }
}

#[cfg(test)]
impl Scratch {
    /// The code of the first filter that rejected a host in the last decision, or [`FITS`].
    pub(super) fn code_of(&self, slot: super::host_set::HostIndex) -> u8 {
        let further = FilterName::ALL.iter().map(|filter| filter.code());
        let mut further = further.filter(|code| self.rejected[usize::from(*code)].contains(slot));
        match self.codes[slot.0] {
            FITS => further.next().unwrap_or(FITS),
            code => code,
        }
    }
}
