//! What was decided and why, as plain data; [`super::words`] has the words, `report/decision.rs` what is kept and shown.

use berth_common::{ids::HostId, message::view::Resources, names::HostName};

use super::{
    filter::{self, FilterName, Question},
    host_set::HostIndex,
    rejection::Rejection,
    request::Request,
    survey::{NEAREST, Survey},
    table::HostTable,
    weigh::{self, ScoreParts},
};

/// The answer to a request: a host or none, and in both cases why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What was asked for.
    pub asked: Asked,
    /// How many hosts were looked at.
    pub hosts: usize,
    /// The filters that were asked, in order, and how many hosts each removed.
    pub filters: Vec<Removed>,
    /// The host that was chosen; none: no valid host was found.
    pub chosen: Option<ScoredHost>,
    /// The second best.
    pub runner_up: Option<ScoredHost>,
    /// The hosts that came nearest to fitting, nearest first: the one that was asked for by name, then those rejected
    /// by the latest filter, and of these those that lack least.
    pub nearest: Vec<NearMiss>,
}

/// What was asked for, as far as a decision tells it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// vCPUs, memory, disk.
    pub resources: Resources,
    /// Everything else, each in a few words for operators.
    pub constraints: Vec<String>,
}

/// How many hosts a filter removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// The filter.
    pub filter: FilterName,
    /// How many.
    pub hosts: usize,
}

/// A host with its score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoredHost {
    /// Its id.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// Its score, in thousandths of a point.
    pub score: i64,
    /// What each weigher gave.
    pub parts: ScoreParts,
}

/// A host that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// Its id.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// The filter that rejected it.
    pub filter: FilterName,
    /// Why.
    pub rejection: Rejection,
}

impl Decision {
    /// Puts names and numbers to a survey; `imagined` as the survey was made with.
    pub(super) fn of(
        survey: &Survey,
        request: &Request,
        table: &HostTable,
        imagined: impl Fn(HostIndex) -> u64,
    ) -> Self {
        let settings = table.settings();
        let scored = |slot: &HostIndex| {
            let host = table.at(*slot);
            let parts = weigh::parts(request, host, settings);
            ScoredHost {
                host_id: host.facts().id,
                host: host.facts().name.clone(),
                score: parts.total(),
                parts,
            }
        };
        let near_miss = |slot: &HostIndex| {
            let host = table.at(*slot);
            let question = Question {
                request,
                host,
                settings,
                imagined: imagined(*slot),
            };
            let (filter, rejection) = filter::check(&question).err()?;
            Some(NearMiss {
                host_id: host.facts().id,
                host: host.facts().name.clone(),
                filter,
                rejection,
            })
        };
        // Whoever asks for a host wants to know what is wrong with that one: it is told first, though others, wrong
        // only in that they are not it, came further. A volume asks for the host it is on.
        let requested = request
            .requested_host
            .or_else(|| request.host_of_volume())
            .and_then(|host| table.slot(host));
        let others = survey.nearest.values();
        let others = others.filter(|slot| Some(**slot) != requested);
        let asked = survey
            .removed()
            .filter(|(filter, hosts)| *hosts > 0 || filter.is_asked_by(request));
        Self {
            asked: Asked {
                resources: request.resources,
                constraints: request.constraints(table),
            },
            hosts: table.len(),
            filters: asked
                .map(|(filter, hosts)| Removed { filter, hosts })
                .collect(),
            chosen: survey.best.values().next().map(scored),
            runner_up: survey.best.values().nth(1).map(scored),
            nearest: requested
                .iter()
                .chain(others)
                .filter_map(near_miss)
                .take(NEAREST)
                .collect(),
        }
    }

    /// The chosen host's id.
    #[must_use]
    pub fn host_id(&self) -> Option<HostId> {
        self.chosen.as_ref().map(|chosen| chosen.host_id)
    }
}

impl FilterName {
    /// Whether a request gives this filter anything to ask.
    pub(super) fn is_asked_by(self, request: &Request) -> bool {
        match self {
            Self::Enabled
            | Self::Alive
            | Self::Cpu
            | Self::Ram
            | Self::Disk
            | Self::FailedRecently => true,
            Self::CountableResources => !request.countables.is_empty(),
            Self::AvailabilityZone => request.zone.is_some(),
            Self::AggregateProperties => !request.properties.is_empty(),
            Self::ImageProperties => {
                request.image.architecture.is_some() || request.image.virt_type.is_some()
            }
            Self::RequestedHost => request.requested_host.is_some(),
            Self::DifferentHost => !request.different_hosts.is_empty(),
            Self::SameHost => !request.same_hosts.is_empty(),
            Self::ServerGroup => request.group.is_some(),
            Self::VolumeLocality => request.volume_hosts.is_some(),
            Self::NetworkReachability => {
                let needs = [request.routed.is_empty(), request.nat.asked.is_empty()];
                !request.networks.is_none() || needs.contains(&false)
            }
        }
    }
}
