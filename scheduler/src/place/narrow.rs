//! The filters that only some requests ask, each as a set of hosts taken out of those that remain.

use super::{
    countables,
    features::Feature,
    filter::FilterName,
    request::{GroupPolicy, Request},
    scan::Scratch,
    survey::Survey,
    table::HostTable,
};

/// The filters that only some requests ask.
pub(super) struct Narrowing<'a> {
    pub(super) request: &'a Request,
    pub(super) table: &'a HostTable,
    pub(super) scratch: &'a mut Scratch,
    pub(super) survey: &'a mut Survey,
}

impl Narrowing<'_> {
    pub(super) fn by_every_asked_filter(mut self) {
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
        let routed = request.routed.iter().map(|routed| &routed.needs);
        let networks = std::iter::once(&request.networks).chain(routed);
        let networks = networks.flat_map(Feature::needed);
        self.keep_features(FilterName::NetworkReachability, networks);
        if !request.nat.taken.is_empty() {
            self.fill(request.nat.taken.keys());
            self.drop_set(FilterName::NetworkReachability);
        }
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
