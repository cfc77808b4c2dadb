//! What differs between the documents a host shall have and those it was last told.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{document::DocumentKey, units::Generation};

/// The last word a host was given about a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its generation.
    pub generation: Generation,
    /// Its spec; `None`: a tombstone.
    pub spec_json: Option<String>,
}

/// A new word for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// About which resource.
    pub key: DocumentKey,
    /// Its generation.
    pub generation: Generation,
    /// Its spec; `None`: a tombstone.
    pub spec_json: Option<String>,
}

/// The new words that turn what a host was told into what it shall be, in the order of their keys.
///
/// A key in `again` gets a new generation even if nothing differs: it asks the host to carry its document out
/// anew (to start a guest that powered itself off).
#[must_use]
pub fn diff(
    wanted: &BTreeMap<DocumentKey, String>,
    told: &BTreeMap<DocumentKey, Told>,
    again: &BTreeSet<DocumentKey>,
) -> Vec<Change> {
    let keys: BTreeSet<&DocumentKey> = wanted.keys().chain(told.keys()).collect();
    keys.into_iter()
        .filter_map(|key| {
            let spec_json = wanted.get(key);
            let before = told.get(key);
            let same = before.is_some_and(|before| before.spec_json.as_ref() == spec_json);
            if same && !(again.contains(key) && spec_json.is_some()) {
                return None;
            }
            let generation = before.map_or(Generation::FIRST, |before| before.generation.next());
            Some(Change {
                key: *key,
                generation,
                spec_json: spec_json.cloned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::document::Kind;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn key(id: u8) -> DocumentKey {
        DocumentKey {
            kind: Kind::Instance,
            id: Uuid::from_u128(u128::from(id) + 1),
        }
    }

    fn apply(told: &mut BTreeMap<DocumentKey, Told>, changes: Vec<Change>) {
        for Change {
            key,
            generation,
            spec_json,
        } in changes
        {
            told.insert(
                key,
                Told {
                    generation,
                    spec_json,
                },
            );
        }
    }

    fn wanted() -> impl Strategy<Value = BTreeMap<DocumentKey, String>> {
        proptest::collection::btree_map((0_u8..6).prop_map(key), "[ab]", 0..6)
    }

    proptest! {
        #[test]
        fn after_a_change_nothing_differs_and_generations_only_grow(
            history in proptest::collection::vec(wanted(), 1..8)
        ) {
            let mut told: BTreeMap<DocumentKey, Told> = BTreeMap::new();
            for wanted in history {
                let before = told.clone();
                let changes = diff(&wanted, &told, &BTreeSet::new());
                for change in &changes {
                    let last = before.get(&change.key).map_or(Generation(0), |told| told.generation);
                    prop_assert_eq!(change.generation, last.next());
                }
                apply(&mut told, changes);
                prop_assert!(diff(&wanted, &told, &BTreeSet::new()).is_empty());
                for (key, last) in &told {
                    prop_assert_eq!(last.spec_json.as_ref(), wanted.get(key));
                }
            }
        }
    }

    #[test]
    fn asking_again_makes_a_new_generation_of_the_same_spec_but_never_revives_a_tombstone() {
        let wanted = BTreeMap::from([(key(1), "a".to_owned())]);
        let mut told = BTreeMap::new();
        let first = diff(&wanted, &told, &BTreeSet::new());
        apply(&mut told, first);
        let again = diff(&wanted, &told, &BTreeSet::from([key(1), key(2)]));
        assert_eq!(
            again,
            [Change {
                key: key(1),
                generation: Generation(2),
                spec_json: Some("a".to_owned())
            }]
        );

        let last = diff(&BTreeMap::new(), &told, &BTreeSet::new());
        apply(&mut told, last);
        assert!(told[&key(1)].spec_json.is_none());
        assert!(diff(&BTreeMap::new(), &told, &BTreeSet::from([key(1)])).is_empty());
    }
}
