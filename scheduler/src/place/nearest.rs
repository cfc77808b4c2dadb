//! The nearest misses, sought among the hosts with the highest codes only.

use std::cmp::Reverse;

use super::{
    amounts::PerResource,
    countables,
    filter::FilterName,
    host_set::{self, BLOCK, HostIndex},
    request::Request,
    scan::Scratch,
    survey::{NEAREST, Survey},
    table::HostTable,
};

/// Offers the hosts with the highest codes as nearest misses, until there are enough.
pub(super) fn seek(
    request: &Request,
    table: &HostTable,
    needed: PerResource<i32>,
    scratch: &Scratch,
    survey: &mut Survey,
) {
    let mut wanted = NEAREST;
    for filter in FilterName::ALL.iter().rev() {
        let removed = survey.removed[usize::from(filter.code())];
        if removed == 0 {
            continue;
        }
        let columns = &table.columns;
        let resource = match filter {
            FilterName::Cpu => Some((needed.vcpus, &columns.vcpus)),
            FilterName::Ram => Some((needed.memory_mb, &columns.memory_mb)),
            FilterName::Disk => Some((needed.disk_gb, &columns.disk_gb)),
            _ => None,
        };
        match (filter, resource) {
            (_, Some((needed, room))) => {
                nearest_by_room(table, *filter, needed, room, scratch, survey);
            }
            (FilterName::CountableResources, None) => {
                let wanted = table.countables.wanted(request);
                for slot in scratch.rejected[usize::from(filter.code())].iter() {
                    let missing = countables::missing(&wanted, slot);
                    survey.misses(table, slot, filter.code(), missing);
                }
            }
            (FilterName::Enabled | FilterName::Alive, None) => {
                let code = filter.code();
                for (block, codes) in blocks_with(&scratch.codes, code) {
                    let answers = codes.iter().map(|other| *other == code);
                    let word = host_set::word_of_answers(answers);
                    nearest_by_id(table, code, host_set::hosts_of(block, word), survey);
                }
            }
            (_, None) => {
                let code = filter.code();
                let slots = scratch.rejected[usize::from(code)].iter();
                nearest_by_id(table, code, slots, survey);
            }
        }
        wanted = wanted.saturating_sub(removed);
        if wanted == 0 {
            return;
        }
    }
}

/// Of the hosts that lack a resource, those that lack least.
fn nearest_by_room(
    table: &HostTable,
    filter: FilterName,
    needed: i32,
    room: &[i32],
    scratch: &Scratch,
    survey: &mut Survey,
) {
    let code = filter.code();
    let mut bar = i32::MIN;
    for (block, codes) in blocks_with(&scratch.codes, code) {
        let rooms = room.iter().skip(block * BLOCK);
        let rows = codes.iter().zip(rooms);
        let answers = rows.map(|(other, room)| (*other == code) & (*room >= bar));
        let word = host_set::word_of_answers(answers);
        for slot in host_set::hosts_of(block, word) {
            let missing = u64::try_from(needed.saturating_sub(room[slot.0])).unwrap_or(0);
            survey.misses(table, slot, code, missing);
            if let Some((_, missing, _)) = survey.nearest.bar() {
                bar = i32::try_from(*missing).map_or(i32::MIN, |missing| needed - missing);
            }
        }
    }
}

/// The blocks of codes in which a code occurs, with their numbers.
fn blocks_with(codes: &[u8], code: u8) -> impl Iterator<Item = (usize, &[u8])> {
    let blocks = codes.chunks(BLOCK).enumerate();
    // Not `any`: without leaving early it is a few vector instructions.
    blocks.filter(move |(_, codes)| {
        let found = codes.iter();
        found.fold(false, |found, other| found | (*other == code))
    })
}

/// Of the hosts that lack something that is not counted, those with the lowest ids.
fn nearest_by_id(
    table: &HostTable,
    code: u8,
    hosts: impl Iterator<Item = HostIndex>,
    survey: &mut Survey,
) {
    for slot in hosts {
        let id = table.columns.id[slot.0];
        if survey
            .nearest
            .bar()
            .is_none_or(|bar| (Reverse(code), 0, id) < *bar)
        {
            survey.misses(table, slot, code, 0);
        }
    }
}
