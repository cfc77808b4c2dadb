//! How many more of the same would fit, and what runs out then: the dry run of [`super::place()`].
//!
//! Placing the same request again and again ends when no host passes the filters any more. Each placement uses up
//! one place of one host and none of any other, so the number is the sum over hosts of how many fit there, whatever
//! the order in which the weighers would have filled them. Only a hard affinity without members ties the hosts
//! together: all then go where the first goes.

use super::{
    amounts::Resource,
    decision::Decision,
    filter::{self, FilterName, Question},
    host_set::HostIndex,
    request::{GroupPolicy, Request},
    scan::{self, Scratch},
    survey::Survey,
    table::HostTable,
};

/// How many more of the same fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityAnswer {
    /// How many fit, placed one after the other; at most what was asked.
    pub fits: u64,
    /// Whether even more would.
    pub more: bool,
    /// What refuses the next one once nothing more fits anywhere; none where nothing ever runs out.
    pub then: Option<Decision>,
    /// The filter that stops most of the hosts that could still take one (of all hosts, if none could).
    pub runs_out: Option<FilterName>,
}

/// How many more instances of a request fit on a host: none where a filter rejects it, `u64::MAX` without a limit.
fn fits_on(request: &Request, table: &HostTable, slot: HostIndex) -> u64 {
    let host = table.at(slot);
    let question = Question {
        request,
        host,
        settings: table.settings(),
        imagined: 0,
    };
    if filter::check(&question).is_err() {
        return 0;
    }
    let resources = Resource::ALL
        .into_iter()
        .map(|resource| (resource.of(&request.resources), host.free(resource)));
    let countables = request
        .countables
        .iter()
        .map(|(class, needed)| (*needed, host.countable_free(class)));
    // Without a need nothing runs out.
    let fits = resources
        .chain(countables)
        .filter_map(|(needed, free)| free.checked_div(needed))
        .min();
    let group = request.group.as_ref();
    let group =
        group.and_then(|group| Some(group.limit()?.saturating_sub(group.on(host.facts().id))));
    fits.unwrap_or(u64::MAX).min(group.unwrap_or(u64::MAX))
}

/// How many more of the same request fit when they are placed one after the other, up to `most`, and what runs out.
#[must_use]
pub fn capacity(
    request: &Request,
    table: &HostTable,
    most: u64,
    scratch: &mut Scratch,
) -> CapacityAnswer {
    let mut fits: Vec<u64> = table
        .all_slots()
        .map(|slot| fits_on(request, table, slot))
        .collect();
    if let Some(group) = &request.group
        && group.policy == GroupPolicy::Affinity
        && !group.has_members()
    {
        let survey = scan::survey(request, table, scratch);
        let first = survey.best.values().next().copied();
        for (slot, fits) in fits.iter_mut().enumerate() {
            if Some(HostIndex(slot)) != first {
                *fits = 0;
            }
        }
    }
    let total = fits
        .iter()
        .fold(0_u64, |sum, fits| sum.saturating_add(*fits));
    let then = (!fits.contains(&u64::MAX)).then(|| Exhausted::imagine(request, table, &fits));
    CapacityAnswer {
        fits: total.min(most),
        more: total > most,
        runs_out: then.as_ref().and_then(|then| then.runs_out(&fits)),
        then: then.map(|then| then.decision()),
    }
}

/// The table, imagined full of a request's like.
struct Exhausted<'a> {
    request: Request,
    table: &'a HostTable,
    imagined: &'a [u64],
}

impl<'a> Exhausted<'a> {
    fn imagine(request: &Request, table: &'a HostTable, imagined: &'a [u64]) -> Self {
        let mut request = request.clone();
        if request.group.is_some() {
            for (slot, count) in table
                .all_slots()
                .zip(imagined)
                .filter(|(_, count)| **count > 0)
            {
                request.count_placed(table.at(slot).facts().id, *count);
            }
        }
        Self {
            request,
            table,
            imagined,
        }
    }

    fn imagined(&self, HostIndex(slot): HostIndex) -> u64 {
        self.imagined.get(slot).copied().unwrap_or(0)
    }

    fn decision(&self) -> Decision {
        let survey = Survey::by_host(&self.request, self.table, |slot| self.imagined(slot));
        Decision::of(&survey, &self.request, self.table, |slot| {
            self.imagined(slot)
        })
    }

    fn runs_out(&self, fits: &[u64]) -> Option<FilterName> {
        let none = fits.iter().all(|fits| *fits == 0);
        let mut stopped = [0_usize; filter::COUNT];
        for slot in self.table.all_slots() {
            if none || self.imagined(slot) > 0 {
                let question = Question {
                    request: &self.request,
                    host: self.table.at(slot),
                    settings: self.table.settings(),
                    imagined: self.imagined(slot),
                };
                if let Err((filter, _)) = filter::check(&question) {
                    stopped[usize::from(filter.code())] += 1;
                }
            }
        }
        let filters = FilterName::ALL.iter().copied().zip(stopped);
        filters
            .filter(|(_, hosts)| *hosts > 0)
            .max_by_key(|(filter, hosts)| (*hosts, *filter))
            .map(|(filter, _)| filter)
    }
}
