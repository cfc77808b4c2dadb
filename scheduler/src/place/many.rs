//! Several instances of one request, each placed with the others in place.

use super::{decision::Decision, place, request::Request, scan::Scratch, table::HostTable};

/// Places so many instances of a request one after the other, each seeing the claims and the group members of those
/// before, and takes every claim back: the table is as before.
///
/// Ends at the first that finds no host; that refusal is then the last decision. Whether fewer than asked are
/// welcome is the caller's to say.
#[must_use]
pub fn place_many(
    request: &Request,
    count: usize,
    table: &mut HostTable,
    scratch: &mut Scratch,
) -> Vec<Decision> {
    let mut request = request.clone();
    let demand = request.demand();
    let mut decisions = Vec::new();
    while decisions.len() < count {
        let decision = place(&request, table, scratch);
        let host = decision.host_id();
        decisions.push(decision);
        let Some(host) = host else { break };
        if table.claim(host, &demand).is_err() {
            break; // Not possible: the host was just found there.
        }
        request.count_placed(host, 1);
    }
    for host in decisions.iter().rev().filter_map(Decision::host_id) {
        // It was claimed above, so it can be released.
        let released = table.release(host, &demand);
        debug_assert_eq!(released, Ok(()));
    }
    decisions
}
