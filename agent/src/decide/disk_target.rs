//! What a guest's disks are called, and what a name says: the bus a disk is on, and its place there.
//!
//! ```text
//!   virtio   vda, vdb, … vdz, vdaa, …   each in a PCI port that libvirt chooses
//!   scsi     sdb, sdc, …                target 1, 2, … of the controller; target 0, sda, is the config drive's
//! ```
//!
//! libvirt and the guest's kernel have the same names. The guest counts its SCSI disks on its own: what is `sdb` here may
//! be its `sda`.

use berth_common::document::DiskBus;

/// The config drive, a CD.
pub const CONFIG_DRIVE: &str = "sda";

/// The name of the disk at a position: 0 is the first.
#[must_use]
pub fn name(bus: DiskBus, position: u8) -> String {
    let letter = |n: u8| char::from(b'a' + n % 26);
    let prefix = bus.prefix();
    match position / 26 {
        0 => format!("{prefix}{}", letter(position)),
        tens => format!("{prefix}{}{}", letter(tens - 1), letter(position)),
    }
}

/// The bus that a disk is on.
#[must_use]
pub fn bus(name: &str) -> DiskBus {
    if name.starts_with(DiskBus::Scsi.prefix()) {
        DiskBus::Scsi
    } else {
        DiskBus::Virtio
    }
}

/// Which target of its controller a disk on the bus scsi is; `None`: it is on another one, or it is no name of these.
#[must_use]
pub fn scsi_target(name: &str) -> Option<u8> {
    let letters = name.strip_prefix(DiskBus::Scsi.prefix())?;
    let mut position = 0_u16;
    for letter in letters.bytes() {
        let digit = letter.checked_sub(b'a').filter(|digit| *digit < 26)?;
        position = position
            .checked_mul(26)?
            .checked_add(u16::from(digit) + 1)?;
    }
    u8::try_from(position.checked_sub(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_the_kernel_names_them() {
        for (position, letters) in [
            (0, "a"),
            (25, "z"),
            (26, "aa"),
            (51, "az"),
            (52, "ba"),
            (255, "iv"),
        ] {
            assert_eq!(name(DiskBus::Virtio, position), format!("vd{letters}"));
            assert_eq!(name(DiskBus::Scsi, position), format!("sd{letters}"));
        }
    }

    #[test]
    fn a_name_says_where_the_disk_is() {
        for position in 0..=u8::MAX {
            let virtio = name(DiskBus::Virtio, position);
            assert_eq!(
                (bus(&virtio), scsi_target(&virtio)),
                (DiskBus::Virtio, None)
            );
            let scsi = name(DiskBus::Scsi, position);
            assert_eq!(
                (bus(&scsi), scsi_target(&scsi)),
                (DiskBus::Scsi, Some(position))
            );
        }
        for wrong in ["sd", "sdA", "sd1", "sdiw", "sdzzzzzz", "hda", ""] {
            assert_eq!(scsi_target(wrong), None, "{wrong}");
        }
        assert_eq!(scsi_target(CONFIG_DRIVE), Some(0));
    }
}
