//! One mixing function, for everything that must look random and never be: ties between hosts, and the table of ids.
//!
//! Nothing here draws randomness: the seed comes from the caller.

use std::hash::{BuildHasherDefault, Hasher};

use berth_common::ids::HostId;

/// Mixes every bit of a word into every other: the finaliser of `SplitMix64` (Steele, Lea, Flood 2014).
pub(super) const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// A host id as one well-mixed word: what ties are decided by, together with the seed of the request.
pub(super) fn mixed_id(id: HostId) -> u64 {
    let (high, low) = id.as_uuid().as_u64_pair();
    mix(high ^ mix(low.wrapping_add(0x9E37_79B9_7F4A_7C15)))
}

/// Which of two equally good hosts wins: the one with the lower number, another for every seed.
pub(super) const fn tie(seed: u64, mixed_id: u64) -> u64 {
    mix(seed ^ mixed_id)
}

/// Hashes host ids without any state of its own, so that the same table is the same in every process.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct IdHasher(u64);

/// How the table of ids builds its hashers.
pub(super) type BuildIdHasher = BuildHasherDefault<IdHasher>;

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
    }
}
