//! The sections [config_drive] and [guest_data] of an instance file: what cloud-init finds at the first boot, on a CD and by the
//! metadata service, or by that alone.

use berth_common::{
    document::ConfigDrive,
    names::{KeyName, PropertyKey, PropertyValue, PublicKey, UserData},
};

use super::{
    ALL_KEYS,
    reader::{Entries, Reader, Section, string},
    word,
};

/// One of the two sections of a file; none, where it has no such section.
pub(super) fn read<'t>(
    reader: &mut Reader<'t>,
    root: &mut Section<'t>,
    name: &'static str,
) -> Option<ConfigDrive> {
    let mut section = reader.section(root, name)?;
    let section = &mut section;
    let drive = ConfigDrive {
        user_data: reader.text(section, "user_data", word::<UserData>).value(),
        public_keys: reader.entries(section, "public_keys", &PUBLIC_KEYS),
        metadata: reader.entries(section, "metadata", &METADATA),
    };
    reader.end(section, &ALL_KEYS);
    Some(drive)
}

const PUBLIC_KEYS: Entries<KeyName, PublicKey> = Entries {
    most: ConfigDrive::MAX_PUBLIC_KEYS,
    key: word::<KeyName>,
    value: |value| string(value).and_then(word::<PublicKey>),
};

const METADATA: Entries<PropertyKey, PropertyValue> = Entries {
    most: ConfigDrive::MAX_METADATA,
    key: word::<PropertyKey>,
    value: |value| string(value).and_then(word::<PropertyValue>),
};
