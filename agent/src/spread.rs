//! Where in a period a host has its turn, so that a thousand hosts do not all speak in the same instant. Pure.

use std::time::Duration;

use berth_common::ids::HostId;
use sha2::{Digest, Sha256};

/// A host's own moment of every period: from nothing to just below the whole, evenly spread over hosts, and always
/// the same for one host.
#[must_use]
pub fn phase(host: HostId, period: Duration) -> Duration {
    let digest: [u8; 32] = Sha256::digest(host.as_uuid().as_bytes()).into();
    let [a, b, ..] = digest;
    period / (1 << 16) * u32::from(u16::from_be_bytes([a, b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_spread_evenly_and_each_keeps_its_moment() {
        let period = Duration::from_secs(10);
        let mut per_second = [0_u32; 10];
        for _ in 0..1000 {
            let host = HostId::new();
            let moment = phase(host, period);
            assert!(moment < period);
            assert_eq!(moment, phase(host, period));
            per_second[usize::try_from(moment.as_secs()).unwrap()] += 1;
        }
        // A hundred each on average, with a deviation of 9.5.
        assert!(
            per_second.iter().all(|count| (40..200).contains(count)),
            "{per_second:?}"
        );
    }
}
