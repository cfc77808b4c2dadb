//! What looking at every host gave: how many each filter removed, the best of the others, and the nearest misses.
//!
//! [`Survey::by_host`] asks the filters and weighers of one host after the other. It is slow and obviously right:
//! the specification of [`super::scan`], and what imagined states are looked at with.

use std::cmp::Reverse;

use super::{
    filter::{self, COUNT, FilterName, Question},
    host_set::HostIndex,
    mix,
    podium::Podium,
    request::Request,
    table::HostTable,
    weigh,
};

/// How many nearest misses a decision names.
pub(super) const NEAREST: usize = 3;

/// The order of hosts that fit: highest score, then the lot that the seed draws, then the id.
pub(super) type BestKey = (Reverse<i64>, u64, u128);

/// The order of hosts that do not: rejected latest, then least missing, then the id.
pub(super) type NearKey = (Reverse<u8>, u64, u128);

/// What looking at every host gave.
#[derive(Debug, Clone)]
pub(super) struct Survey {
    /// How many hosts each filter removed, by its code.
    pub(super) removed: [usize; COUNT],
    /// The best hosts that fit: the chosen one, and the runner-up.
    pub(super) best: Podium<BestKey, HostIndex>,
    /// The hosts that came nearest to fitting.
    pub(super) nearest: Podium<NearKey, HostIndex>,
}

impl Survey {
    pub(super) fn new() -> Self {
        Self {
            removed: [0; COUNT],
            best: Podium::new(2),
            nearest: Podium::new(NEAREST),
        }
    }

    /// Asks host after host; `imagined`: how many instances of this request's size are imagined on it besides.
    pub(super) fn by_host(
        request: &Request,
        table: &HostTable,
        imagined: impl Fn(HostIndex) -> u64,
    ) -> Self {
        let mut survey = Self::new();
        for slot in table.all_slots() {
            let question = Question {
                request,
                host: table.at(slot),
                settings: table.settings(),
                imagined: imagined(slot),
            };
            match filter::check(&question) {
                Ok(()) => {
                    let parts = weigh::parts(request, question.host, question.settings);
                    survey.fits(request, table, slot, parts.total());
                }
                Err((name, rejection)) => {
                    survey.removed[usize::from(name.code())] += 1;
                    survey.misses(table, slot, name.code(), rejection.missing());
                }
            }
        }
        survey
    }

    /// A host fits, with a score.
    pub(super) fn fits(
        &mut self,
        request: &Request,
        table: &HostTable,
        slot: HostIndex,
        score: i64,
    ) {
        let tie = mix::tie(request.seed, table.columns.mixed_id[slot.0]);
        let key = (Reverse(score), tie, table.columns.id[slot.0]);
        self.best.offer(key, slot);
    }

    /// A host was rejected by the filter of a code, with so much missing.
    pub(super) fn misses(&mut self, table: &HostTable, slot: HostIndex, code: u8, missing: u64) {
        let key = (Reverse(code), missing, table.columns.id[slot.0]);
        self.nearest.offer(key, slot);
    }

    /// The filters with the number of hosts each removed, in order.
    pub(super) fn removed(&self) -> impl Iterator<Item = (FilterName, usize)> {
        let names = FilterName::ALL.iter().copied();
        names.zip(self.removed)
    }
}
