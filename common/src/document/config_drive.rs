//! What a guest is told at its first boot, besides its name, its id and its NICs: on its config drive, a small CD from which
//! cloud-init and its like take it without any network, and by the metadata service.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{KeyName, PropertyKey, PropertyValue, PublicKey, UserData};

/// What a guest is told, on its config drive and by the metadata service, besides its name, its id and its NICs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ConfigDrive {
    /// What cloud-init does at the first boot: `#cloud-config`, a script, or a MIME archive of several.
    #[serde(default)]
    pub user_data: Option<UserData>,
    /// SSH keys that may log in, by name; at most 16.
    #[serde(default)]
    pub public_keys: BTreeMap<KeyName, PublicKey>,
    /// Facts for programs in the guest, as they were when the drive was made: the instance's metadata. At most 128.
    #[serde(default)]
    pub metadata: BTreeMap<PropertyKey, PropertyValue>,
}

impl ConfigDrive {
    /// Public keys at most.
    pub const MAX_PUBLIC_KEYS: usize = 16;
    /// Facts at most: Nova's usual quota of metadata items.
    pub const MAX_METADATA: usize = 128;

    /// What is wrong with it as a whole, in this field of a request.
    #[must_use]
    pub fn mistakes(&self, field: &str) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut count = |what: &str, count: usize, most: usize| {
            if count > most {
                mistakes.push(format!(
                    "{field}.{what} must be at most {most}; got {count}"
                ));
            }
        };
        count("public_keys", self.public_keys.len(), Self::MAX_PUBLIC_KEYS);
        count("metadata", self.metadata.len(), Self::MAX_METADATA);
        mistakes
    }
}
