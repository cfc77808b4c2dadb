//! The image cache: which file holds which image, and which files go when they are old or in the way.
//!
//! A name tells all there is to know: what was fetched, and what became of it. So no document can meet bytes of
//! another kind than it states. Nothing here looks at files, and what is in use is never chosen.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use berth_common::{
    document::{ImageFormat, ImageRef},
    names::ImageSha256,
    units::ByteCount,
};

/// The name of an image in the cache.
///
/// ```text
///   <sha256>                what was fetched, as it is (raw, qcow2)
///   <sha256>.vmdk.qcow2     what was made of it: it was fetched as a vmdk, and converted
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CachedName {
    sha256: ImageSha256,
    converted_from: Option<ImageFormat>,
}

impl CachedName {
    /// Where the image of a document is, once it is there.
    #[must_use]
    pub fn of(image: &ImageRef) -> Self {
        Self {
            sha256: image.sha256.clone(),
            converted_from: image.format.is_converted().then_some(image.format),
        }
    }

    /// What was fetched.
    #[must_use]
    pub const fn sha256(&self) -> &ImageSha256 {
        &self.sha256
    }

    /// The name of the file.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self.converted_from {
            None => self.sha256.to_string(),
            Some(format) => format!(
                "{}.{}.{}",
                self.sha256,
                format.as_str(),
                format.cached().as_str()
            ),
        }
    }

    /// The image a file's name stands for; `None`: it is not one of the cache's.
    #[must_use]
    pub fn parse(file_name: &str) -> Option<Self> {
        let sum = file_name.split('.').next().unwrap_or_default();
        let sha256: ImageSha256 = sum.parse().ok()?;
        let formats = [ImageFormat::Vmdk, ImageFormat::Vdi, ImageFormat::Vhdx];
        std::iter::once(None)
            .chain(formats.map(Some))
            .map(|converted_from| Self {
                sha256: sha256.clone(),
                converted_from,
            })
            .find(|name| name.file_name() == file_name)
    }
}

/// A file in the cache that could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub file_name: String,
    /// What it is.
    pub kind: EntryKind,
    /// What it takes of the disk.
    pub size: ByteCount,
    /// How long ago it was used last.
    pub unused_for: Duration,
}

/// What a file in the cache is. Those that cost least to do without come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    /// What came of a download that broke off.
    Partial,
    /// A whole image.
    Image,
}

/// When files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionRules {
    /// Images that were not used for so long.
    pub image_max_age: Duration,
    /// Broken downloads that nobody went on with for so long.
    pub partial_max_age: Duration,
    /// For room, only images that were not used for so long: who has just fetched one is about to use it.
    pub settled_after: Duration,
}

/// Why a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It was not used for long.
    Age,
    /// Something else needs its room.
    Space,
}

impl Reason {
    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Space => "space",
        }
    }
}

/// Which files go, in order: all that are too old, then as many more as make so much room, those first that were not
/// used for longest. If all of them together would not make that room, none goes for it: it would help nobody.
#[must_use]
pub fn evictions(
    entries: &[Entry],
    in_use: &BTreeSet<String>,
    rules: &EvictionRules,
    need: ByteCount,
) -> Vec<(String, Reason)> {
    let mut free: Vec<&Entry> = entries
        .iter()
        .filter(|entry| !in_use.contains(&entry.file_name))
        .collect();
    free.sort_unstable_by_key(|entry| {
        (
            entry.kind,
            Reverse(entry.unused_for),
            entry.file_name.clone(),
        )
    });
    let is_old = |entry: &&Entry| {
        entry.unused_for
            >= match entry.kind {
                EntryKind::Partial => rules.partial_max_age,
                EntryKind::Image => rules.image_max_age,
            }
    };
    let is_settled = |entry: &&Entry| {
        entry.kind == EntryKind::Partial || entry.unused_for >= rules.settled_after
    };
    let (old, young): (Vec<&Entry>, Vec<&Entry>) = free.into_iter().partition(is_old);
    let mut room: ByteCount = old.iter().map(|entry| entry.size).sum();
    let mut chosen: Vec<_> = old
        .into_iter()
        .map(|entry| (entry.file_name.clone(), Reason::Age))
        .collect();
    let mut for_room = Vec::new();
    for entry in young.into_iter().filter(is_settled) {
        if room >= need {
            break;
        }
        room = [room, entry.size].into_iter().sum();
        for_room.push((entry.file_name.clone(), Reason::Space));
    }
    if room >= need {
        chosen.extend(for_room);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: EvictionRules = EvictionRules {
        image_max_age: Duration::from_secs(1000),
        partial_max_age: Duration::from_secs(100),
        settled_after: Duration::from_secs(10),
    };

    fn entry(name: &str, kind: EntryKind, size: u64, seconds: u64) -> Entry {
        Entry {
            file_name: name.to_owned(),
            kind,
            size: ByteCount::clamped(size),
            unused_for: Duration::from_secs(seconds),
        }
    }

    fn check(need: u64, in_use: &[&str], expected: &[(&str, Reason)]) {
        let entries = [
            entry("fresh", EntryKind::Image, 10, 9),
            entry("young", EntryKind::Image, 10, 50),
            entry("older", EntryKind::Image, 10, 500),
            entry("ancient", EntryKind::Image, 10, 1000),
            entry("broken", EntryKind::Partial, 5, 5),
            entry("stale", EntryKind::Partial, 5, 100),
        ];
        let in_use = in_use.iter().map(|name| (*name).to_owned()).collect();
        let chosen = evictions(&entries, &in_use, &RULES, ByteCount::clamped(need));
        let chosen: Vec<_> = chosen
            .iter()
            .map(|(name, why)| (name.as_str(), *why))
            .collect();
        assert_eq!(chosen, expected, "{need} bytes, {in_use:?} in use");
    }

    #[test]
    fn what_is_old_goes_and_what_is_needed_goes_oldest_first() {
        use Reason::{Age, Space};
        let old = [("stale", Age), ("ancient", Age)];
        check(0, &[], &old);
        check(15, &[], &old);
        check(16, &[], &[old[0], old[1], ("broken", Space)]);
        check(
            21,
            &[],
            &[old[0], old[1], ("broken", Space), ("older", Space)],
        );
        check(
            40,
            &[],
            &[
                old[0],
                old[1],
                ("broken", Space),
                ("older", Space),
                ("young", Space),
            ],
        );
        // Not even all of it would be enough, and what was used just now is not touched.
        check(41, &[], &old);
        check(
            25,
            &["older"],
            &[old[0], old[1], ("broken", Space), ("young", Space)],
        );
        check(0, &["ancient", "stale"], &[]);
        check(25, &["ancient", "stale", "young"], &[]);
    }

    proptest! {
        #[test]
        fn nothing_in_use_ever_goes_and_room_is_made_or_left_alone(
            files in proptest::collection::vec((0_u64..50, 0_u64..1500, any::<bool>(), any::<bool>()), 0..20),
            need in 0_u64..300,
        ) {
            let kind = |partial| if partial { EntryKind::Partial } else { EntryKind::Image };
            let entries: Vec<_> = files
                .iter()
                .enumerate()
                .map(|(index, (size, age, partial, _))| entry(&format!("{index:02}"), kind(*partial), *size, *age))
                .collect();
            let in_use: BTreeSet<_> = files
                .iter()
                .zip(&entries)
                .filter(|((.., used), _)| *used)
                .map(|(_, entry)| entry.file_name.clone())
                .collect();
            let chosen = evictions(&entries, &in_use, &RULES, ByteCount::clamped(need));
            let find = |name: &str| entries.iter().find(|entry| entry.file_name == name).unwrap();
            prop_assert!(chosen.iter().all(|(name, _)| !in_use.contains(name)));
            let room: u64 = chosen.iter().map(|(name, _)| find(name).size.get()).sum();
            let for_room: Vec<_> = chosen.iter().filter(|(_, why)| *why == Reason::Space).collect();
            prop_assert!(for_room.is_empty() || room >= need);
            if let Some((last, _)) = for_room.last() {
                prop_assert!(room - find(last).size.get() < need, "one too many");
            }
            for (name, _) in &for_room {
                let entry = find(name);
                prop_assert!(entry.kind == EntryKind::Partial || entry.unused_for >= RULES.settled_after);
            }
        }
    }

    #[test]
    fn names_are_read_back_and_never_shared_by_two_formats() {
        let image = |format| ImageRef {
            url: "file:///a".parse().unwrap(),
            sha256: "ab".repeat(32).parse().unwrap(),
            format,
        };
        let sum = "ab".repeat(32);
        for (format, expected) in [
            (ImageFormat::Raw, sum.clone()),
            (ImageFormat::Qcow2, sum.clone()),
            (ImageFormat::Vmdk, format!("{sum}.vmdk.qcow2")),
            (ImageFormat::Vdi, format!("{sum}.vdi.qcow2")),
            (ImageFormat::Vhdx, format!("{sum}.vhdx.qcow2")),
        ] {
            let name = CachedName::of(&image(format));
            assert_eq!(name.file_name(), expected);
            assert_eq!(CachedName::parse(&expected), Some(name));
        }
        for other in [
            "",
            ".partial-x",
            "abc",
            &format!("{sum}.qcow2"),
            &format!("{sum}.raw.qcow2"),
            &format!("{sum}."),
        ] {
            assert_eq!(CachedName::parse(other), None, "{other}");
        }
    }
}
