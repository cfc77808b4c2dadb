//! The few best of many, kept in order: by key, the lowest first.

/// Up to so many entries with the lowest keys. Keys of different entries differ.
#[derive(Debug, Clone)]
pub(super) struct Podium<K, T> {
    places: usize,
    entries: Vec<(K, T)>,
}

impl<K: Ord, T> Podium<K, T> {
    /// An empty one.
    pub(super) fn new(places: usize) -> Self {
        Self {
            places,
            entries: Vec::with_capacity(places),
        }
    }

    /// The key that a new entry must be below, once every place is taken.
    pub(super) fn bar(&self) -> Option<&K> {
        let last = self.places.checked_sub(1)?;
        self.entries.get(last).map(|(key, _)| key)
    }

    /// Offers an entry.
    pub(super) fn offer(&mut self, key: K, value: T) {
        let place = self.entries.partition_point(|(other, _)| *other < key);
        if place >= self.places {
            return;
        }
        if self.entries.len() == self.places {
            self.entries.pop();
        }
        self.entries.insert(place, (key, value));
    }

    /// The values in order.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_podium_holds_the_lowest_in_order(
            mut keys in proptest::collection::vec(any::<u16>(), 0..40),
            places in 0_usize..6,
        ) {
            let mut podium = Podium::new(places);
            for key in &keys {
                podium.offer(*key, *key);
            }
            keys.sort_unstable();
            keys.truncate(places);
            let bar = if keys.len() == places { keys.last() } else { None };
            prop_assert_eq!(podium.bar(), bar);
            prop_assert_eq!(podium.values().copied().collect::<Vec<_>>(), keys);
        }
    }
}
