//! The section [hints] of an instance file: where the instance may be placed, and where not.

use std::str::FromStr;

use berth_common::{
    ids::InstanceId,
    message::placement::SchedulerHints,
    names::{HostName, PropertyKey, PropertyValue, ResourceClass, ServerGroupName, ZoneName},
};
use toml::de::DeValue;

use super::{
    ALL_KEYS, one_of,
    reader::{Entries, Reader, Section, string, whole_number},
    word,
};

/// Instances that one list names at most.
const MAX_INSTANCES: usize = 64;
/// Properties at most.
const MAX_PROPERTIES: usize = 64;
/// Countable resources at most.
const MAX_RESOURCES: usize = 16;
/// The largest integer that TOML promises to carry.
const MAX_AMOUNT: u64 = i64::MAX.unsigned_abs();
/// How hypervisors run guests.
const VIRT_TYPES: [(&str, &str); 2] = [("kvm", "kvm"), ("qemu", "qemu")];

/// The hints of a file; none, where it has no such section.
pub(super) fn read<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> SchedulerHints {
    let Some(mut section) = reader.section(root, "hints") else {
        return SchedulerHints::default();
    };
    let section = &mut section;
    let hints = SchedulerHints {
        availability_zone: reader
            .text(section, "availability_zone", word::<ZoneName>)
            .value(),
        // An id has the grammar of a name.
        host: reader
            .text(section, "host", word::<HostName>)
            .value()
            .map(String::from),
        same_host: reader.texts(section, "same_host", MAX_INSTANCES, instance),
        different_host: reader.texts(section, "different_host", MAX_INSTANCES, instance),
        server_group: reader
            .text(section, "server_group", word::<ServerGroupName>)
            .value()
            .map(String::from),
        architecture: reader.text(section, "architecture", architecture).value(),
        virt_type: reader
            .text(section, "virt_type", |text| one_of(text, &VIRT_TYPES))
            .value()
            .map(str::to_owned),
        properties: reader.entries(section, "properties", &PROPERTIES),
        resources: reader.entries(section, "resources", &RESOURCES),
    };
    if let Some(both) = hints
        .different_host
        .iter()
        .find(|id| hints.same_host.contains(id))
    {
        let what = format!("must name no instance that same_host names; found {both} in both");
        reader.reject(section, "different_host", what);
    }
    reader.end(section, &ALL_KEYS);
    hints
}

const PROPERTIES: Entries<PropertyKey, PropertyValue> = Entries {
    most: MAX_PROPERTIES,
    key: word::<PropertyKey>,
    value: |value| {
        match value {
        DeValue::Table(_) => Err(
            "must be a string; a key with a dot in its name is written in quotes, like \"disk.type\" = \"ssd\""
                .to_owned(),
        ),
        value => string(value).and_then(word::<PropertyValue>),
    }
    },
};

const RESOURCES: Entries<ResourceClass, u64> = Entries {
    most: MAX_RESOURCES,
    key: word::<ResourceClass>,
    value: |value| whole_number(value, &(1..=MAX_AMOUNT), ""),
};

fn instance(text: &str) -> Result<InstanceId, String> {
    InstanceId::from_str(text)
        .map_err(|_| "must be the id of an instance (`berthctl instance list` shows it)".to_owned())
}

fn architecture(text: &str) -> Result<String, String> {
    let is_word = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_word {
        Ok(text.to_owned())
    } else {
        Err(
            "must be a processor architecture in libvirt's words, like \"x86_64\" or \"aarch64\""
                .to_owned(),
        )
    }
}
