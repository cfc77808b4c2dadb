//! A set of hosts by their slot in the table, as one bit per host.

/// Where a host is in the table. Slots are dense and move when a host is removed, so they never leave `place`, and
/// no answer depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct HostIndex(pub(super) usize);

/// How many slots are looked after together.
pub(super) const BLOCK: usize = 64;

/// A set of hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct HostSet {
    words: Vec<u64>,
}

impl HostSet {
    const fn place(host: HostIndex) -> (usize, u64) {
        (host.0 / BLOCK, 1 << (host.0 % BLOCK))
    }

    /// Adds a host.
    pub(super) fn insert(&mut self, host: HostIndex) {
        let (word, bit) = Self::place(host);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
    }

    /// Takes a host out.
    pub(super) fn remove(&mut self, host: HostIndex) {
        let (word, bit) = Self::place(host);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
    }

    /// Whether a host is in it.
    #[inline]
    pub(super) fn contains(&self, host: HostIndex) -> bool {
        let (word, bit) = Self::place(host);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Takes everything out, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.words.clear();
    }

    /// Keeps only what is in the other too.
    pub(super) fn intersect(&mut self, other: &Self) {
        for (index, word) in self.words.iter_mut().enumerate() {
            *word &= other.word(index);
        }
    }

    /// Becomes a copy of the other, in the memory it has.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.words.clone_from(&other.words);
    }

    /// Its hosts, in the order of their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = HostIndex> {
        (0..self.words.len()).flat_map(|block| self.block(block))
    }

    /// Its hosts among the [`BLOCK`] in a block of slots.
    pub(super) fn block(&self, block: usize) -> impl Iterator<Item = HostIndex> + use<> {
        hosts_of(block, self.word(block))
    }

    /// Moves the hosts that are in the other set to a third; returns how many.
    pub(super) fn move_those_in(&mut self, other: &Self, to: &mut Self) -> usize {
        self.move_words(to, |index| other.word(index))
    }

    /// Moves the hosts that are not in the other set to a third; returns how many.
    pub(super) fn move_those_not_in(&mut self, other: &Self, to: &mut Self) -> usize {
        self.move_words(to, |index| !other.word(index))
    }

    fn move_words(&mut self, to: &mut Self, those: impl Fn(usize) -> u64) -> usize {
        to.words.resize(self.words.len(), 0);
        let mut moved = 0;
        for (index, (word, to)) in self.words.iter_mut().zip(&mut to.words).enumerate() {
            let those = *word & those(index);
            *word ^= those;
            *to |= those;
            moved += usize::try_from(those.count_ones()).unwrap_or(0);
        }
        moved
    }

    /// Becomes the set of hosts whose byte has its highest bit set.
    pub(super) fn set_from_high_bits(&mut self, bytes: &[u8]) {
        self.words.clear();
        self.words.extend(bytes.chunks(BLOCK).map(word_of));
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }
}

/// The hosts of one word of a set.
pub(super) fn hosts_of(block: usize, mut word: u64) -> impl Iterator<Item = HostIndex> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = usize::try_from(word.trailing_zeros()).ok()?;
        word &= word - 1;
        Some(HostIndex(block * BLOCK + bit))
    })
}

/// The answers for the hosts of a block, as one word of a set.
#[inline]
pub(super) fn word_of_answers(answers: impl Iterator<Item = bool>) -> u64 {
    let mut bytes = [0; BLOCK];
    for (byte, yes) in bytes.iter_mut().zip(answers) {
        *byte = u8::from(yes).wrapping_neg();
    }
    word_of(&bytes)
}

/// The highest bits of up to [`BLOCK`] bytes, as one word.
fn word_of(bytes: &[u8]) -> u64 {
    let mut word = 0;
    for (index, eight) in bytes.chunks(8).enumerate() {
        word |= high_bits(eight) << (index * 8);
    }
    word
}

/// The highest bits of up to eight bytes, as one byte.
fn high_bits(eight: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    match eight.try_into() {
        Ok(all) => bytes = all,
        Err(_) => bytes
            .iter_mut()
            .zip(eight)
            .for_each(|(to, from)| *to = *from),
    }
    // Bit 7 + 8i moves to bit 56 + i; no two products meet in a bit, so nothing carries.
    let high = u64::from_le_bytes(bytes) & 0x8080_8080_8080_8080;
    high.wrapping_mul(0x0002_0408_1020_4081) >> 56
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sets_of_bytes_are_split_exactly(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            other in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let indices = |bytes: &[u8]| -> std::collections::BTreeSet<HostIndex> {
                let high = bytes.iter().enumerate().filter(|(_, byte)| **byte >= 128);
                high.map(|(index, _)| HostIndex(index)).collect()
            };
            let (mut ours, mut theirs) = (HostSet::default(), HostSet::default());
            ours.set_from_high_bits(&bytes);
            theirs.set_from_high_bits(&other);
            prop_assert_eq!(ours.iter().collect::<std::collections::BTreeSet<_>>(), indices(&bytes));

            let (mut rest, mut moved) = (ours.clone(), HostSet::default());
            let count = rest.move_those_in(&theirs, &mut moved);
            let both = indices(&bytes).intersection(&indices(&other)).count();
            prop_assert_eq!((count, moved.iter().count()), (both, both));
            let count = rest.move_those_not_in(&theirs, &mut moved);
            prop_assert_eq!(count + both, ours.iter().count());
            prop_assert!(rest.is_empty());
            prop_assert_eq!(moved.iter().count(), ours.iter().count());
        }
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set = HostSet::default();
        set.insert(HostIndex(3));
        set.insert(HostIndex(200));
        assert!(set.contains(HostIndex(3)) && set.contains(HostIndex(200)));
        assert!(!set.contains(HostIndex(67)) && !set.contains(HostIndex(1000)));
        let mut other = HostSet::default();
        other.insert(HostIndex(3));
        set.intersect(&other);
        assert!(set.contains(HostIndex(3)) && !set.contains(HostIndex(200)));
        set.remove(HostIndex(3));
        set.remove(HostIndex(1000));
        assert!(set.is_empty());
    }
}
