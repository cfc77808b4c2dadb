//! A set of hosts by their slot in the table, as one bit per host.

/// Where a host is in the table. Slots are dense and move when a host is removed, so they never leave `place`, and
/// no answer depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct HostIndex(pub(super) usize);

/// A set of hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct HostSet {
    words: Vec<u64>,
}

impl HostSet {
    const fn place(host: HostIndex) -> (usize, u64) {
        (host.0 / 64, 1 << (host.0 % 64))
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
        self.words.fill(0);
    }

    /// Keeps only what is in the other too.
    pub(super) fn intersect(&mut self, other: &Self) {
        for (index, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(index).copied().unwrap_or(0);
        }
    }

    /// Becomes a copy of the other, in the memory it has.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.words.clone_from(&other.words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
