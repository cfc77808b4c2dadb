//! What a host can do for guests: the evidence, and what follows from it.

use std::{
    fs::{self, OpenOptions},
    path::Path,
    str::FromStr,
};

use crate::decide::domain::VirtType;

/// What the operator wants guests to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VirtTypeChoice {
    /// KVM where it works, emulation elsewhere.
    #[default]
    Auto,
    /// KVM, whatever the evidence says.
    Kvm,
    /// Emulation.
    Qemu,
}

/// A virt type was none of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a virt type is `auto`, `kvm` or `qemu`; got {0:?}")]
pub struct UnknownVirtType(pub String);

impl FromStr for VirtTypeChoice {
    type Err = UnknownVirtType;
    fn from_str(text: &str) -> Result<Self, UnknownVirtType> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "qemu" => Ok(Self::Qemu),
            _ => Err(UnknownVirtType(text.to_owned())),
        }
    }
}

/// What speaks for KVM. The device alone proves nothing: inside a virtual machine it can open, and guests then
/// hang for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvmEvidence {
    /// `/dev/kvm` opens for reading and writing.
    pub device_opens: bool,
    /// A processor in `/proc/cpuinfo` shows `vmx` or `svm`.
    pub processor_has_it: bool,
}

impl KvmEvidence {
    /// Looks at this machine.
    #[must_use]
    pub fn gather() -> Self {
        Self {
            device_opens: OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_ok(),
            processor_has_it: processor_virtualises(
                &fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            ),
        }
    }
}

/// What guests run on.
#[must_use]
pub(super) fn virt_type(choice: VirtTypeChoice, evidence: KvmEvidence) -> VirtType {
    match choice {
        VirtTypeChoice::Kvm => VirtType::Kvm,
        VirtTypeChoice::Qemu => VirtType::Qemu,
        VirtTypeChoice::Auto if evidence.device_opens && evidence.processor_has_it => VirtType::Kvm,
        VirtTypeChoice::Auto => VirtType::Qemu,
    }
}

fn processor_virtualises(cpuinfo: &str) -> bool {
    let flags = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags");
    flags
        .flat_map(|(_, flags)| flags.split_whitespace())
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// Whether libvirt can weigh guests: the kernel has the cgroup controller `cpu` mounted, and libvirt's QEMU
/// configuration does not forbid its use.
#[must_use]
pub(super) fn has_cpu_controller(qemu_conf: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let mounted =
        mounts_cpu_controller(&mounts) || unified.split_whitespace().any(|name| name == "cpu");
    mounted && allows_cpu_controller(&fs::read_to_string(qemu_conf).unwrap_or_default())
}

/// Whether `/proc/mounts` shows a version 1 hierarchy with the controller.
fn mounts_cpu_controller(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(2);
        fields.next() == Some("cgroup")
            && fields
                .next()
                .is_some_and(|options| options.split(',').any(|o| o == "cpu"))
    })
}

/// Whether `qemu.conf` lets libvirt use the controller: it does unless `cgroup_controllers` leaves it out.
fn allows_cpu_controller(qemu_conf: &str) -> bool {
    let bare: String = qemu_conf
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .collect();
    let Some((_, rest)) = bare.split_once("cgroup_controllers") else {
        return true;
    };
    let list = rest.split(']').next().unwrap_or_default();
    list.split('"').any(|word| word == "cpu")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_both_the_device_and_the_processor() {
        let check = |device_opens, cpuinfo: &str, expected| {
            let evidence = KvmEvidence {
                device_opens,
                processor_has_it: processor_virtualises(cpuinfo),
            };
            assert_eq!(
                virt_type(VirtTypeChoice::Auto, evidence),
                expected,
                "{evidence:?}"
            );
        };
        check(true, "flags\t\t: fpu vmx sse2\n", VirtType::Kvm);
        check(true, "processor: 0\nflags : fpu svm\n", VirtType::Kvm);
        check(false, "flags : fpu vmx\n", VirtType::Qemu);
        check(
            true,
            "flags : fpu avx512_vmx_like\nvmx flags : vnmi\nbugs : svm\n",
            VirtType::Qemu,
        );
        check(true, "", VirtType::Qemu);
        let none = KvmEvidence {
            device_opens: false,
            processor_has_it: false,
        };
        assert_eq!(virt_type(VirtTypeChoice::Kvm, none), VirtType::Kvm);
    }

    #[test]
    fn the_cpu_controller_can_be_missing_or_forbidden() {
        assert!(mounts_cpu_controller(
            "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n"
        ));
        assert!(!mounts_cpu_controller(
            "cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n"
        ));
        assert!(!mounts_cpu_controller(
            "cgroup2 /sys/fs/cgroup cgroup2 rw,cpu 0 0\n"
        ));
        assert!(allows_cpu_controller(
            "# cgroup_controllers = [ ]\nuser = \"root\"\n"
        ));
        assert!(allows_cpu_controller(
            "cgroup_controllers = [ \"memory\",\n \"cpu\" ]\n"
        ));
        assert!(!allows_cpu_controller(
            "cgroup_controllers = []\nx = \"cpu\"\n"
        ));
        assert!(!allows_cpu_controller(
            "cgroup_controllers = [ \"cpuset\" ]\n"
        ));
    }
}
