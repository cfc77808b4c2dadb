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
    countables,
    features::Feature,
    filter::{COUNT, FilterName},
    host_set::{self, BLOCK, HostIndex, HostSet},
    request::{GroupPolicy, Request},
    survey::{NEAREST, Survey},
    table::HostTable,
    weigh,
};

/// Memory that decisions are made in; kept by the caller from one decision to the next, without any meaning.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    /// The code of every host, by the filters that every request asks.
    codes: Vec<u8>,
    /// The hosts that no filter has rejected yet.
    remaining: HostSet,
    /// The hosts that each further filter has rejected, by its code.
    rejected: [HostSet; COUNT],
    /// The hosts one filter lets pass, or does not.
    set: HostSet,
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
    let mut survey = Survey::new(table.settings());
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
    seek_nearest(request, table, needed, scratch, &mut survey);
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

/// The filters that only some requests ask.
struct Narrowing<'a> {
    request: &'a Request,
    table: &'a HostTable,
    scratch: &'a mut Scratch,
    survey: &'a mut Survey,
}

impl Narrowing<'_> {
    fn by_every_asked_filter(mut self) {
        self.by_countable_resources();
        self.by_features();
        self.by_named_hosts();
        self.by_server_group();
        self.by_volume_and_network();
        self.by_failures();
    }

    /// Keeps the hosts in the set.
    fn keep_set(&mut self, filter: FilterName) {
        let code = usize::from(filter.code());
        let scratch = &mut *self.scratch;
        let rejected = &mut scratch.rejected[code];
        self.survey.removed[code] += scratch.remaining.move_those_not_in(&scratch.set, rejected);
    }

    /// Keeps the hosts not in the set.
    fn drop_set(&mut self, filter: FilterName) {
        let code = usize::from(filter.code());
        let scratch = &mut *self.scratch;
        let rejected = &mut scratch.rejected[code];
        self.survey.removed[code] += scratch.remaining.move_those_in(&scratch.set, rejected);
    }

    /// Puts hosts into the set; those that the table does not know do not matter.
    fn fill<'b>(&mut self, hosts: impl IntoIterator<Item = &'b berth_common::ids::HostId>) {
        self.scratch.set.clear();
        for slot in hosts.into_iter().filter_map(|id| self.table.slot(*id)) {
            self.scratch.set.insert(slot);
        }
    }

    fn by_countable_resources(&mut self) {
        if self.request.countables.is_empty() {
            return;
        }
        let wanted = self.table.countables.wanted(self.request);
        let Scratch { remaining, set, .. } = &mut *self.scratch;
        set.clear();
        remaining
            .iter()
            .filter(|slot| countables::missing(&wanted, *slot) > 0)
            .for_each(|slot| set.insert(slot));
        self.drop_set(FilterName::CountableResources);
    }

    fn keep_features(&mut self, filter: FilterName, features: impl Iterator<Item = Feature>) {
        let mut features = features.peekable();
        if features.peek().is_some() {
            let set = &mut self.scratch.set;
            self.table.features.intersect(features, set);
            self.keep_set(filter);
        }
    }

    fn by_features(&mut self) {
        let request = self.request;
        let zone = request.zone.iter().cloned().map(Feature::Zone);
        self.keep_features(FilterName::AvailabilityZone, zone);
        let properties = request.properties.iter();
        let properties =
            properties.map(|(key, value)| Feature::Property(key.clone(), value.clone()));
        self.keep_features(FilterName::AggregateProperties, properties);
        let image = &request.image;
        let architecture = image.architecture.iter().cloned();
        let virt_type = image.virt_type.iter().cloned().map(Feature::VirtType);
        let image = architecture.map(Feature::Architecture).chain(virt_type);
        self.keep_features(FilterName::ImageProperties, image);
    }

    fn by_named_hosts(&mut self) {
        let request = self.request;
        if let Some(requested) = &request.requested_host {
            self.fill([requested]);
            self.keep_set(FilterName::RequestedHost);
        }
        if !request.different_hosts.is_empty() {
            self.fill(&request.different_hosts);
            self.drop_set(FilterName::DifferentHost);
        }
        if !request.same_hosts.is_empty() {
            self.fill(&request.same_hosts);
            self.keep_set(FilterName::SameHost);
        }
    }

    fn by_server_group(&mut self) {
        let Some(group) = &self.request.group else {
            return;
        };
        let members = group.members.iter();
        let members = members.filter(|(_, count)| **count > 0);
        if group.policy == GroupPolicy::Affinity && group.has_members() {
            self.fill(members.clone().map(|(host, _)| host));
            self.keep_set(FilterName::ServerGroup);
        }
        match group.limit() {
            Some(0) => {
                self.scratch.set.clear();
                self.keep_set(FilterName::ServerGroup);
            }
            Some(limit) => {
                let full = members.filter(|(_, count)| **count >= limit);
                self.fill(full.map(|(host, _)| host));
                self.drop_set(FilterName::ServerGroup);
            }
            None => {}
        }
    }

    fn by_volume_and_network(&mut self) {
        let request = self.request;
        if let Some(hosts) = &request.volume_hosts {
            self.fill(hosts);
            self.keep_set(FilterName::VolumeLocality);
        }
        let networks = request.physical_networks.iter().cloned();
        let networks = networks.map(Feature::PhysicalNetwork);
        self.keep_features(FilterName::PhysicalNetwork, networks);
    }

    fn by_failures(&mut self) {
        let (request, table) = (self.request, self.table);
        if request.excluded_hosts.is_empty() && table.failing.is_empty() {
            return;
        }
        self.fill(&request.excluded_hosts);
        let settings = table.settings();
        for slot in &table.failing {
            let failures = table.at(*slot).failures();
            let failures = failures.decayed(request.now, settings.failure_half_life);
            if failures > settings.max_failures {
                self.scratch.set.insert(*slot);
            }
        }
        self.drop_set(FilterName::FailedRecently);
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

/// Offers the hosts with the highest codes as nearest misses, until there are enough.
fn seek_nearest(
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

#[cfg(test)]
impl Scratch {
    /// The code of the first filter that rejected a host in the last decision, or [`FITS`].
    pub(super) fn code_of(&self, slot: HostIndex) -> u8 {
        let further = FilterName::ALL.iter().map(|filter| filter.code());
        let mut further = further.filter(|code| self.rejected[usize::from(*code)].contains(slot));
        match self.codes[slot.0] {
            FITS => further.next().unwrap_or(FITS),
            code => code,
        }
    }
}
