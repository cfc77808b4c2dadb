//! Logical volumes as plain data: what `lvs` and `vgs` report, and what berth's names and tags on it mean.
//!
//! ```text
//!   berth-tmp-<id>  ──filled, renamed──▶  berth-<id>  ──deleted, renamed──▶  berth-wipe-<id>
//!                                             │ tags while it grows:
//!                                             └ berth.grow=<bytes> ──zeros written──▶ berth.grown ──guest told──▶ none
//! ```
//!
//! Those of snapshots are called `berth-snap-…` in the same way; they never grow, and have no device unless one is copied.
//!
//! A logical volume is berth's only if it has one of these names *and* carries the tag with the same id. Whatever else is in
//! the volume group is foreign: it counts as used and is never touched.

use std::{collections::BTreeSet, fmt, str::FromStr};

use berth_common::{
    ids::{SnapshotId, VolumeId},
    message::heartbeat::{PoolKind, PoolReport},
    names::PoolName,
    units::ByteCount,
};
use serde::Deserialize;

use super::{names, volume::VolumeContent};

/// What [`group`] reads, in one report: of the volume group, and of each logical volume in it.
pub const FIELDS: &str = "vg_size,vg_free,vg_extent_size,lv_name,lv_size,lv_tags,lv_active,lv_layout,pool_lv,data_percent,\
                          metadata_percent,zero,origin,lv_permissions";
/// What [`group`] reads where that is empty: LVM says nothing of a volume group without logical volumes then.
pub const GROUP_FIELDS: &str = "vg_size,vg_free,vg_extent_size";
/// On a volume that grew: a guest that has it may not know.
pub const GROWN: &str = "berth.grown";
/// On a volume that grows: its size before, in bytes, up to which it holds what it should.
const GROW: &str = "berth.grow=";
const WHOSE: &str = "berth.volume=";
const WHOSE_SNAPSHOT: &str = "berth.snapshot=";

/// The tag of a volume that grows from this size.
#[must_use]
pub fn grow_tag(from: ByteCount) -> String {
    format!("{GROW}{}", from.get())
}

/// Name of a volume group or a thin pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LvmName(String);

/// The text names nothing of LVM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a name of LVM's: 1 to 100 letters, digits, '_', '.', '+' and '-', starting with a letter, digit or '_'"
)]
pub struct InvalidLvmName;

impl LvmName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LvmName {
    type Err = InvalidLvmName;

    fn from_str(text: &str) -> Result<Self, InvalidLvmName> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let valid = (1..=100).contains(&text.len())
            && text.bytes().next().is_some_and(is_plain)
            && text
                .bytes()
                .all(|byte| is_plain(byte) || b".+-".contains(&byte));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidLvmName)
        }
    }
}

/// A volume group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Its size.
    pub size: ByteCount,
    /// What no logical volume has of it.
    pub free: ByteCount,
    /// What it is shared out in.
    pub extent: ByteCount,
}

/// A logical volume, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Its name within the volume group.
    pub name: String,
    /// Its virtual size.
    pub size: ByteCount,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether its device is there.
    pub active: bool,
    /// The thin pool it takes its extents of.
    pub thin_pool: Option<String>,
    /// What it is if others take their extents of it.
    pub pool: Option<ThinPool>,
    /// The logical volume that it is a snapshot of.
    pub origin: Option<String>,
    /// Whether nobody may write to it.
    pub read_only: bool,
}

/// A thin pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinPool {
    /// How full it is, in hundredths of a percent.
    pub data: u64,
    /// How full its tables are, in hundredths of a percent.
    pub metadata: u64,
    /// Whether extents are filled with zeros before somebody gets them.
    pub zeroes: bool,
}

/// All, in hundredths of a percent.
const ALL: u64 = 10_000;
/// With fuller tables than this nothing new is begun: a thin pool whose tables are full has to be repaired.
const FULL_METADATA: u64 = 9_500;

impl ThinPool {
    /// Whether nothing more may be begun in it.
    #[must_use]
    pub const fn is_full(self) -> bool {
        self.data >= ALL || self.metadata >= FULL_METADATA
    }
}

/// Whose a logical volume of berth's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A volume.
    Volume(VolumeId),
    /// A snapshot of one.
    Snapshot(SnapshotId),
}

impl From<VolumeId> for Owner {
    fn from(id: VolumeId) -> Self {
        Self::Volume(id)
    }
}

impl From<SnapshotId> for Owner {
    fn from(id: SnapshotId) -> Self {
        Self::Snapshot(id)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
        }
    }
}

impl Owner {
    /// The tag that its logical volumes carry.
    #[must_use]
    pub fn tag(self) -> String {
        match self {
            Self::Volume(id) => names::volume_tag(id),
            Self::Snapshot(id) => names::snapshot_tag(id),
        }
    }

    /// Who carries this tag, if it is one of these.
    fn of_tag(tag: &str) -> Option<Self> {
        if let Some(id) = tag.strip_prefix(WHOSE) {
            return id.parse().ok().map(Self::Volume);
        }
        let id = tag.strip_prefix(WHOSE_SNAPSHOT)?;
        id.parse().ok().map(Self::Snapshot)
    }
}

/// What a logical volume of berth's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A volume or a snapshot.
    Whole,
    /// One that is being made, or a leftover of that.
    Partial,
    /// One that was deleted, and whose bytes are being wiped.
    Leaving,
}

impl Role {
    /// The name of somebody's logical volume in this role.
    #[must_use]
    pub fn name(self, owner: impl Into<Owner>) -> String {
        match (owner.into(), self) {
            (Owner::Volume(id), Self::Whole) => names::logical_volume(id),
            (Owner::Volume(id), Self::Partial) => names::partial_volume(id),
            (Owner::Volume(id), Self::Leaving) => names::leaving_volume(id),
            (Owner::Snapshot(id), Self::Whole) => names::logical_snapshot(id),
            (Owner::Snapshot(id), Self::Partial) => names::partial_snapshot(id),
            (Owner::Snapshot(id), Self::Leaving) => names::leaving_snapshot(id),
        }
    }
}

/// Every role.
pub const ROLES: [Role; 3] = [Role::Whole, Role::Partial, Role::Leaving];

impl LogicalVolume {
    /// Whose it is, and what; `None`: it is foreign.
    #[must_use]
    pub fn owner(&self) -> Option<(Owner, Role)> {
        let owners = self.tags.iter().filter_map(|tag| Owner::of_tag(tag));
        owners.into_iter().find_map(|owner| {
            let role = ROLES
                .into_iter()
                .find(|role| role.name(owner) == self.name)?;
            Some((owner, role))
        })
    }

    /// From which size it grows, if it does.
    #[must_use]
    pub fn grows_from(&self) -> Option<ByteCount> {
        let sizes = self.tags.iter().filter_map(|tag| tag.strip_prefix(GROW));
        sizes
            .filter_map(|size| size.parse().ok())
            .map(ByteCount::clamped)
            .min()
    }

    /// What a volume's logical volume holds.
    #[must_use]
    pub fn content(&self) -> VolumeContent {
        if !self.active {
            return VolumeContent::Inactive;
        }
        match self.grows_from() {
            Some(from) if self.size > from => VolumeContent::Growing(from),
            _ if self.tags.iter().any(|tag| tag == GROWN) => VolumeContent::Grown(self.size),
            _ => VolumeContent::Size(self.size),
        }
    }
}

/// What a report of LVM's cannot be read for.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is no JSON of the known shape.
    #[error("LVM's report is not what it should be")]
    Json(#[source] serde_json::Error),
    /// A number is none.
    #[error("LVM reports {field} as {text:?}, which is no number")]
    Number {
        /// The field.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// There is no volume group in it.
    #[error("LVM reports no volume group")]
    Empty,
}

#[derive(Deserialize)]
struct Report {
    report: Vec<Groups>,
}

#[derive(Deserialize)]
struct Groups {
    vg: Vec<Row>,
}

/// A volume group, and one of its logical volumes if the report is of these.
#[derive(Deserialize)]
struct Row {
    vg_size: String,
    vg_free: String,
    vg_extent_size: String,
    #[serde(default)]
    lv_name: String,
    #[serde(default)]
    lv_size: String,
    #[serde(default)]
    lv_tags: String,
    #[serde(default)]
    lv_active: String,
    #[serde(default)]
    lv_layout: String,
    #[serde(default)]
    pool_lv: String,
    #[serde(default)]
    data_percent: String,
    #[serde(default)]
    metadata_percent: String,
    #[serde(default)]
    zero: String,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    lv_permissions: String,
}

/// The volume group and its logical volumes in what `vgs` printed as JSON, in bytes without a suffix; `None`: nothing is in
/// the report.
///
/// # Errors
/// It cannot be read.
pub fn group(json: &[u8]) -> Result<Option<(VolumeGroup, Vec<LogicalVolume>)>, ReportError> {
    let report: Report = serde_json::from_slice(json).map_err(ReportError::Json)?;
    let rows: Vec<Row> = report.report.into_iter().flat_map(|part| part.vg).collect();
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let group = VolumeGroup {
        size: bytes("vg_size", &first.vg_size)?,
        free: bytes("vg_free", &first.vg_free)?,
        extent: bytes("vg_extent_size", &first.vg_extent_size)?,
    };
    // LVM has a row for each segment where it is asked for anything of segments.
    let mut seen = BTreeSet::new();
    let rows = rows
        .into_iter()
        .filter(|row| !row.lv_name.is_empty() && seen.insert(row.lv_name.clone()));
    let volumes = rows.map(volume).collect::<Result<Vec<_>, _>>()?;
    Ok(Some((group, volumes)))
}

fn volume(raw: Row) -> Result<LogicalVolume, ReportError> {
    let is_pool = raw.lv_layout.split(',').any(|word| word == "pool")
        && raw.lv_layout.split(',').any(|word| word == "thin");
    let pool = if is_pool {
        Some(ThinPool {
            data: hundredths("data_percent", &raw.data_percent)?,
            metadata: hundredths("metadata_percent", &raw.metadata_percent)?,
            zeroes: raw.zero == "zero",
        })
    } else {
        None
    };
    Ok(LogicalVolume {
        size: bytes("lv_size", &raw.lv_size)?,
        name: raw.lv_name,
        tags: raw
            .lv_tags
            .split(',')
            .filter(|tag| !tag.is_empty())
            .map(str::to_owned)
            .collect(),
        active: raw.lv_active == "active",
        thin_pool: Some(raw.pool_lv).filter(|pool| !pool.is_empty()),
        pool,
        origin: Some(raw.origin).filter(|origin| !origin.is_empty()),
        read_only: raw.lv_permissions.starts_with("read-only"),
    })
}

fn bytes(field: &'static str, text: &str) -> Result<ByteCount, ReportError> {
    text.parse()
        .map(ByteCount::clamped)
        .map_err(|_| ReportError::Number {
            field,
            text: text.to_owned(),
        })
}

/// `12.34` is 1234; nothing is nothing: an inactive pool does not tell.
fn hundredths(field: &'static str, text: &str) -> Result<u64, ReportError> {
    let refuse = || ReportError::Number {
        field,
        text: text.to_owned(),
    };
    if text.is_empty() {
        return Ok(0);
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let whole: u64 = whole.parse().map_err(|_| refuse())?;
    let part: u64 = format!("{part:0<2.2}").parse().map_err(|_| refuse())?;
    Ok(whole.saturating_mul(100).saturating_add(part))
}

/// A volume group as a storage pool, or a thin pool in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolContent {
    /// The volume group.
    pub group: VolumeGroup,
    /// All its logical volumes.
    pub volumes: Vec<LogicalVolume>,
    /// The thin pool, if the storage pool is one.
    pub thin_pool: Option<String>,
}

/// What keeps a volume group from being a storage pool, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub fix: String,
}

impl PoolContent {
    /// Those that lie in this pool. Of a thick one not those of thin pools of the same volume group.
    fn members(&self) -> impl Iterator<Item = &LogicalVolume> {
        let pool = self.thin_pool.as_deref();
        self.volumes
            .iter()
            .filter(move |volume| volume.thin_pool.as_deref() == pool)
    }

    /// Somebody's logical volume in this role.
    #[must_use]
    pub fn find(&self, owner: impl Into<Owner>, role: Role) -> Option<&LogicalVolume> {
        let owner = owner.into();
        self.members()
            .find(|volume| volume.owner() == Some((owner, role)))
    }

    /// What has the name of somebody's logical volume and is not it.
    #[must_use]
    pub fn in_the_way(&self, owner: impl Into<Owner>, role: Role) -> Option<&LogicalVolume> {
        let owner = owner.into();
        let name = role.name(owner);
        let named = self.volumes.iter().find(|volume| volume.name == name)?;
        (self.find(owner, role) != Some(named)).then_some(named)
    }

    /// A foreign snapshot that LVM would remove with this logical volume. Snapshots in the thin pool of their origin are not
    /// such: they have all that they need.
    #[must_use]
    pub fn goes_with(&self, name: &str) -> Option<&LogicalVolume> {
        let origin = self.volumes.iter().find(|volume| volume.name == name)?;
        self.volumes.iter().find(|volume| {
            volume.origin.as_deref() == Some(name)
                && volume.owner().is_none()
                && (volume.thin_pool.is_none() || volume.thin_pool != origin.thin_pool)
        })
    }

    /// Berth's logical volumes in this pool, each with what it is.
    pub fn own(&self) -> impl Iterator<Item = (Owner, Role, &LogicalVolume)> {
        self.members()
            .filter_map(|volume| volume.owner().map(|(owner, role)| (owner, role, volume)))
    }

    /// The thin pool, if the storage pool is one.
    #[must_use]
    pub fn thin(&self) -> Option<(&LogicalVolume, ThinPool)> {
        let name = self.thin_pool.as_deref()?;
        let volume = self.volumes.iter().find(|volume| volume.name == name)?;
        Some((volume, volume.pool?))
    }

    /// What can still be written to a thin pool, in bytes.
    #[must_use]
    pub fn thin_free(&self) -> Option<ByteCount> {
        let (volume, pool) = self.thin()?;
        Some(volume.size.saturating_sub(share_of(volume.size, pool.data)))
    }

    /// Whether so many bytes can be written to the thin pool with a hundredth of it to spare: guests write meanwhile, and LVM
    /// rounds what it says. What is thick has its room already.
    #[must_use]
    pub fn has_thin_room(&self, needed: u64) -> bool {
        let (Some((volume, pool)), Some(free)) = (self.thin(), self.thin_free()) else {
            return true;
        };
        let spare = volume.size.get() / 100;
        !pool.is_full() && free.get() >= needed.saturating_add(spare)
    }

    /// Why this cannot be a storage pool.
    ///
    /// # Errors
    /// The first thing that is wrong, with what would be right.
    pub fn check(&self, group: &LvmName) -> Result<(), Unfit> {
        let unfit = |what, fix| Err(Unfit { what, fix });
        let group = group.as_str();
        let extent = self.group.extent.get();
        if !(1_u64 << 30).is_multiple_of(extent) {
            return unfit(
                format!("volume group {group} has extents of {extent} bytes, and sizes of volumes are whole GiB"),
                "make the volume group with extents that divide 1 GiB: vgcreate --physicalextentsize 4m".to_owned(),
            );
        }
        let Some(name) = &self.thin_pool else {
            return Ok(());
        };
        match self.thin() {
            None => unfit(
                format!("volume group {group} has no thin pool {name}"),
                format!(
                    "make it: lvcreate --type thin-pool --name {name} --size SIZE {group}; or name another one"
                ),
            ),
            Some((volume, _)) if !volume.active => unfit(
                format!("thin pool {name} of volume group {group} is not active"),
                format!("activate it: lvchange --activate y {group}/{name}"),
            ),
            Some((_, pool)) if !pool.zeroes => unfit(
                format!(
                    "thin pool {name} of volume group {group} does not fill extents with zeros: a volume would show what \
                     somebody else had there"
                ),
                format!("let it: lvchange --zero y {group}/{name}"),
            ),
            Some(_) => Ok(()),
        }
    }

    /// What the scheduler is told of it.
    #[must_use]
    pub fn report(&self, name: &PoolName) -> PoolReport {
        // Also what is being wiped: its claim is kept until it is gone.
        let provisioned = self.own().map(|(_, _, volume)| volume.size).sum();
        let (kind, total, used, metadata) = match self.thin() {
            None => {
                let used = self.group.size.saturating_sub(self.group.free);
                (PoolKind::Lvm, self.group.size, used, None)
            }
            Some((volume, pool)) => (
                PoolKind::LvmThin,
                volume.size,
                share_of(volume.size, pool.data),
                u8::try_from(pool.metadata.div_ceil(100)).ok(),
            ),
        };
        PoolReport {
            name: name.clone(),
            kind,
            total_bytes: total,
            used_bytes: used,
            provisioned_bytes: provisioned,
            metadata_percent: metadata,
        }
    }
}

/// So many hundredths of a percent of a size.
fn share_of(size: ByteCount, hundredths: u64) -> ByteCount {
    let part = u128::from(size.get()) * u128::from(hundredths) / u128::from(ALL);
    ByteCount::clamped(u64::try_from(part).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use berth_common::units::DiskGb;

    use super::{super::names::snapshot_tag, *};

    const ID: &str = "0191e7a0-7c1f-7b5e-9d2a-000000000001";

    fn id() -> VolumeId {
        ID.parse().unwrap()
    }

    fn gb(gb: u64) -> ByteCount {
        ByteCount::from_gb(DiskGb::clamped(gb))
    }

    fn volume(name: &str, size: u64, tags: &[&str]) -> LogicalVolume {
        LogicalVolume {
            name: name.to_owned(),
            size: gb(size),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            active: true,
            thin_pool: None,
            pool: None,
            origin: None,
            read_only: false,
        }
    }

    fn content(volumes: Vec<LogicalVolume>, thin_pool: Option<&str>) -> PoolContent {
        PoolContent {
            group: VolumeGroup {
                size: gb(100),
                free: gb(60),
                extent: ByteCount::clamped(4 << 20),
            },
            volumes,
            thin_pool: thin_pool.map(str::to_owned),
        }
    }

    #[test]
    fn a_thin_pool_has_room_with_a_hundredth_to_spare() {
        let of = |data, metadata| {
            let pool = LogicalVolume {
                pool: Some(ThinPool {
                    data,
                    metadata,
                    zeroes: true,
                }),
                ..volume("tp", 100, &[])
            };
            content(vec![pool], Some("tp"))
        };
        // Half of it is free.
        assert!(of(5_000, 0).has_thin_room(gb(49).get()));
        assert!(!of(5_000, 0).has_thin_room(gb(49).get() + 1));
        assert!(!of(5_000, FULL_METADATA).has_thin_room(1));
        assert!(!of(ALL, 0).has_thin_room(0));
        assert!(content(Vec::new(), None).has_thin_room(u64::MAX));
    }

    #[test]
    fn reports_are_read_as_lvm_writes_them() {
        let json = br#"{"report": [{"vg": [
            {"vg_size":"10", "vg_free":"4", "vg_extent_size":"2",
             "lv_name":"tp", "lv_size":"1073741824", "lv_tags":"", "lv_active":"active", "lv_layout":"thin,pool",
             "pool_lv":"", "data_percent":"12.50", "metadata_percent":"10.9", "zero":"zero"},
            {"vg_size":"10", "vg_free":"4", "vg_extent_size":"2",
             "lv_name":"root", "lv_size":"4194304", "lv_tags":"a,b", "lv_active":"", "lv_layout":"linear",
             "pool_lv":"", "data_percent":"", "metadata_percent":"", "zero":"unknown"},
            {"vg_size":"10", "vg_free":"4", "vg_extent_size":"2",
             "lv_name":"t1", "lv_size":"8", "lv_tags":"", "lv_active":"active", "lv_layout":"thin,sparse",
             "pool_lv":"tp", "data_percent":"0.00", "metadata_percent":"", "zero":"", "origin":"root",
             "lv_permissions":"read-only"}
        ]}]}"#;
        let (of, found) = group(json).unwrap().unwrap();
        assert_eq!(
            [of.size, of.free, of.extent].map(ByteCount::get),
            [10, 4, 2]
        );
        let pool = ThinPool {
            data: 1250,
            metadata: 1090,
            zeroes: true,
        };
        assert_eq!(found[0].pool, Some(pool));
        assert_eq!(found[1].tags, ["a", "b"]);
        assert!(!found[1].active && found[1].pool.is_none() && found[1].thin_pool.is_none());
        assert_eq!(found[2].thin_pool.as_deref(), Some("tp"));
        assert!(found[2].read_only && !found[1].read_only);
        assert_eq!(
            (found[1].origin.as_deref(), found[2].origin.as_deref()),
            (None, Some("root"))
        );
        let bare = br#"{"report":[{"vg":[{"vg_size":"10","vg_free":"4","vg_extent_size":"2"}]}]}"#;
        assert_eq!(group(bare).unwrap().unwrap().1, []);
        let nothing = br#"{"report":[{"vg":[]}]}"#;
        assert_eq!(group(nothing).unwrap(), None);
        let nonsense =
            br#"{"report":[{"vg":[{"vg_size":"1g","vg_free":"4","vg_extent_size":"2"}]}]}"#;
        assert!(group(nonsense).unwrap_err().to_string().contains("vg_size"));
        assert!(group(b"").is_err());
    }

    #[test]
    fn a_volume_of_two_segments_is_one() {
        let row = format!(
            r#"{{"vg_size":"10", "vg_free":"4", "vg_extent_size":"2", "lv_name":"berth-{ID}", "lv_size":"4",
                "lv_tags":"berth.volume={ID}", "lv_active":"active", "lv_layout":"linear", "zero":"unknown"}}"#
        );
        let json = format!(r#"{{"report": [{{"vg": [{row}, {row}]}}]}}"#);
        let (group, volumes) = group(json.as_bytes()).unwrap().unwrap();
        assert_eq!(volumes.len(), 1);
        let content = PoolContent {
            group,
            volumes,
            thin_pool: None,
        };
        let report = content.report(&"fast".parse().unwrap());
        assert_eq!(report.provisioned_bytes.get(), 4);
    }

    #[test]
    fn what_goes_with_a_volume_is_a_foreign_snapshot_that_needs_it() {
        let tag = format!("berth.volume={ID}");
        let whole = format!("berth-{ID}");
        let thin = Some("tp");
        for (of, pool, snapshot, origin, expected) in [
            (None, None, "backup", whole.as_str(), true),
            (None, None, "backup", "root", false),
            // Of a thin volume both kinds can be made: one with room of its own needs it, one of its pool does not.
            (thin, None, "backup", &whole, true),
            (thin, thin, "backup", &whole, false),
            // With an external origin a thin volume needs what is not in its pool.
            (None, thin, "backup", &whole, true),
            // What berth made itself is no obstacle.
            (None, None, &format!("berth-wipe-{ID}"), &whole, false),
        ] {
            let mut volume_of_berth = volume(&whole, 1, &[&tag]);
            volume_of_berth.thin_pool = of.map(str::to_owned);
            let tags: &[&str] = if snapshot == "backup" { &[] } else { &[&tag] };
            let mut copy = volume(snapshot, 1, tags);
            copy.thin_pool = pool.map(str::to_owned);
            copy.origin = Some(origin.to_owned());
            let content = content(vec![volume_of_berth, copy], of);
            let found = content.goes_with(&whole).map(|it| it.name.as_str());
            assert_eq!(
                found,
                expected.then_some(snapshot),
                "{of:?} {pool:?} {origin}"
            );
        }
    }

    #[test]
    fn only_a_name_with_its_tag_is_berths() {
        let tag = format!("berth.volume={ID}");
        let other = "berth.volume=0191e7a0-7c1f-7b5e-9d2a-000000000002";
        let whole = format!("berth-{ID}");
        for (name, tags, expected) in [
            (whole.as_str(), vec![tag.as_str()], Some(Role::Whole)),
            (&whole, vec!["x", &tag], Some(Role::Whole)),
            (&whole, vec![], None),
            (&whole, vec![other], None),
            ("root", vec![&tag], None),
            (&format!("berth-tmp-{ID}"), vec![&tag], Some(Role::Partial)),
            (&format!("berth-wipe-{ID}"), vec![&tag], Some(Role::Leaving)),
        ] {
            let owner = volume(name, 1, &tags).owner();
            let expected = expected.map(|role| (Owner::Volume(id()), role));
            assert_eq!(owner, expected, "{name} {tags:?}");
        }
        let foreign = content(vec![volume(&whole, 1, &[])], None);
        assert!(foreign.find(id(), Role::Whole).is_none());
        assert!(foreign.in_the_way(id(), Role::Whole).is_some());
        let own = content(vec![volume(&whole, 1, &[&tag])], None);
        assert!(own.in_the_way(id(), Role::Whole).is_none());
    }

    #[test]
    fn a_snapshot_is_no_volume_even_with_the_same_id() {
        let snapshot: SnapshotId = ID.parse().unwrap();
        let [of_volume, of_snapshot] = [format!("berth.volume={ID}"), snapshot_tag(snapshot)];
        for (role, name) in [
            (Role::Whole, format!("berth-snap-{ID}")),
            (Role::Partial, format!("berth-snap-tmp-{ID}")),
            (Role::Leaving, format!("berth-snap-wipe-{ID}")),
        ] {
            assert_eq!(role.name(snapshot), name);
            let own = volume(&name, 1, &[&of_snapshot]);
            assert_eq!(own.owner(), Some((Owner::Snapshot(snapshot), role)));
            // The tag of a volume makes it nobody's.
            assert_eq!(volume(&name, 1, &[&of_volume]).owner(), None);
            let all = content(vec![own], None);
            assert!(all.find(snapshot, role).is_some());
            assert!(all.find(id(), role).is_none() && all.in_the_way(id(), role).is_none());
        }
        // What it takes counts as what volumes take does.
        let all = vec![
            volume(&format!("berth-{ID}"), 10, &[&of_volume]),
            volume(&format!("berth-snap-{ID}"), 10, &[&of_snapshot]),
        ];
        let report = content(all, None).report(&"fast".parse().unwrap());
        assert_eq!(report.provisioned_bytes, gb(20));
    }

    #[test]
    fn a_volume_that_grows_is_only_as_large_as_what_holds_zeros() {
        let from = grow_tag(gb(1));
        for (size, tags, expected) in [
            (2, vec![], VolumeContent::Size(gb(2))),
            // It was noted, and there was no room.
            (1, vec![from.as_str()], VolumeContent::Size(gb(1))),
            (2, vec![&from], VolumeContent::Growing(gb(1))),
            (2, vec![GROWN], VolumeContent::Grown(gb(2))),
            (
                3,
                vec![GROWN, &grow_tag(gb(2))],
                VolumeContent::Growing(gb(2)),
            ),
            (
                2,
                vec![GROWN, &grow_tag(gb(2))],
                VolumeContent::Grown(gb(2)),
            ),
        ] {
            assert_eq!(volume("v", size, &tags).content(), expected, "{tags:?}");
        }
        let mut asleep = volume("v", 2, &[&from]);
        asleep.active = false;
        assert_eq!(asleep.content(), VolumeContent::Inactive);
    }

    #[test]
    fn what_others_have_counts_as_used_and_what_is_wiped_stays_provisioned() {
        let tag = format!("berth.volume={ID}");
        let all = vec![
            volume("root", 20, &[]),
            volume(&format!("berth-{ID}"), 10, &[&tag]),
            volume(&format!("berth-wipe-{ID}"), 10, &[&tag]),
        ];
        let report = content(all, None).report(&"fast".parse().unwrap());
        let sizes = [
            report.total_bytes,
            report.used_bytes,
            report.provisioned_bytes,
        ];
        assert_eq!(sizes, [gb(100), gb(40), gb(20)]);
    }

    #[test]
    fn a_thin_pool_is_reported_as_what_it_has() {
        let tag = format!("berth.volume={ID}");
        let mut pool = volume("tp", 40, &[]);
        pool.pool = Some(ThinPool {
            data: 2_500,
            metadata: 1_201,
            zeroes: true,
        });
        let mut thin = volume(&format!("berth-{ID}"), 100, &[&tag]);
        thin.thin_pool = Some("tp".to_owned());
        let content = content(vec![pool.clone(), thin], Some("tp"));
        let report = content.report(&"thin".parse().unwrap());
        assert_eq!(report.kind, PoolKind::LvmThin);
        let sizes = [
            report.total_bytes,
            report.used_bytes,
            report.provisioned_bytes,
        ];
        assert_eq!(sizes, [gb(40), gb(10), gb(100)]);
        assert_eq!(report.metadata_percent, Some(13));
        assert_eq!(content.thin_free(), Some(gb(30)));
    }

    #[test]
    fn what_cannot_be_a_pool_is_said_with_what_would_be_right() {
        let group: LvmName = "vg0".parse().unwrap();
        let mut odd = content(vec![], None);
        odd.group.extent = ByteCount::clamped(3 << 20);
        assert!(
            odd.check(&group)
                .unwrap_err()
                .what
                .contains("extents of 3145728")
        );
        let missing = content(vec![], Some("tp")).check(&group).unwrap_err();
        assert!(missing.what.contains("has no thin pool tp") && missing.fix.contains("lvcreate"));
        let mut pool = volume("tp", 40, &[]);
        pool.pool = Some(ThinPool {
            data: 0,
            metadata: 0,
            zeroes: false,
        });
        let stale = content(vec![pool], Some("tp")).check(&group).unwrap_err();
        assert!(stale.fix.contains("--zero y vg0/tp"));
        assert_eq!(content(vec![], None).check(&group), Ok(()));
    }

    #[test]
    fn names_of_lvm_are_harmless() {
        for bad in ["", "-x", ".", "a/b", "a b", "a@b", "é", &"x".repeat(101)] {
            assert!(bad.parse::<LvmName>().is_err(), "{bad:?}");
        }
        for good in ["vg0", "_x", "a.b+c-d_e"] {
            assert!(good.parse::<LvmName>().is_ok(), "{good:?}");
        }
    }
}
