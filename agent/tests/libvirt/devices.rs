//! Block devices of the host, as logical volumes are, given to a guest that runs: it writes to one, sees it grow and gives it back,
//! and another guest finds what was written. Loop devices stand for logical volumes here, whose own tests need another kernel.

use super::{shell::Shell, *};

/// A file that is a block device. Dropped, it is none any more.
struct Loop {
    file: PathBuf,
    device: PathBuf,
}

impl Loop {
    /// One of this size, which the hypervisor sees as well.
    fn new(hypervisor: &Hypervisor, name: &str, size: u64) -> Self {
        let file = hypervisor.path().join(name);
        fs::File::create(&file).unwrap().set_len(size).unwrap();
        let device = losetup(&["--find", "--show", file.to_str().unwrap()]);
        let made = Self {
            file,
            device: PathBuf::from(device.trim()),
        };
        let node = fs::metadata(&made.device).unwrap().rdev();
        let [major, minor] = [nix::sys::stat::major(node), nix::sys::stat::minor(node)];
        let path = made.device.to_str().unwrap();
        hypervisor.run(&[
            "mknod",
            "-m",
            "666",
            path,
            "b",
            &major.to_string(),
            &minor.to_string(),
        ]);
        made
    }

    fn grow(&self, size: u64) {
        let file = fs::OpenOptions::new().write(true).open(&self.file).unwrap();
        file.set_len(size).unwrap();
        losetup(&["--set-capacity", self.device.to_str().unwrap()]);
    }

    /// What is on it.
    fn content(&self) -> Vec<u8> {
        fs::read(&self.device).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        losetup(&["--detach", self.device.to_str().unwrap()]);
    }
}

fn losetup(arguments: &[&str]) -> String {
    let output = Command::new("losetup").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_writes_to_a_block_device_that_grows_and_another_one_finds_it() {
    const MIB: u64 = 1 << 20;
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let device = Loop::new(&hypervisor, "device", 4 * MIB);
    let disk = raw_volume(&device.device);
    let file = DiskFile {
        path: disk.path.clone(),
        target: disk.target.clone(),
    };
    let attach = |config: &DomainConfig| DomainStep::Attach {
        instance: config.id,
        disk: Box::new(disk.clone()),
    };
    let is_there = "test -b /dev/vdb && echo there; cat /sys/class/block/vdb/size";

    let first = booted(&hypervisor, &libvirt).await;
    twice(&libvirt, attach(&first)).await;
    let xml = hypervisor.virsh(&["dumpxml", &names::domain(first.id)]);
    assert!(xml.contains("<disk type='block'"), "{xml}");
    let shell = Shell::open(&hypervisor, &first);
    shell.expect(is_there, "8192");
    shell.expect(
        "echo written-$((6 * 7)) >/dev/vdb; sync; head -c 10 /dev/vdb",
        "written-42",
    );

    device.grow(8 * MIB);
    let grow = DomainStep::GrowDisk {
        instance: first.id,
        disk: file.clone(),
        size: ByteCount::clamped(8 * MIB),
    };
    twice(&libvirt, grow).await;
    shell.expect(is_there, "16384");
    shell.expect(
        "echo behind-$((6 * 7)) | dd of=/dev/vdb bs=512 seek=16000 conv=sync,fsync; echo $?",
        "0",
    );

    // A copy on another device, while the guest writes: what it had written before is in it, where it was.
    let kept = Loop::new(&hypervisor, "snapshot", 8 * MIB);
    let backup = DomainStep::Backup(BackupPlan {
        instance: first.id,
        snapshot: SnapshotId::new(),
        disk: file.clone(),
        file: kept.device.clone(),
        format: VolumeFormat::Raw,
    });
    shell.type_line(
        "while [ ! -e /run/enough ]; do dd if=/dev/zero of=/dev/vdb bs=64k seek=32 count=16 conv=fsync 2>/dev/null; \
         touch /run/written; done &",
    );
    shell.expect("test -e /run/written && echo wrote", "wrote");
    libvirt.apply(&backup).await.unwrap();
    assert_eq!(libvirt.backups().await.unwrap(), []);
    shell.expect("touch /run/enough; echo enough-$((6 * 7))", "enough-42");
    let copy = kept.content();
    assert_eq!(copy.len(), usize::try_from(8 * MIB).unwrap());
    assert!(copy.starts_with(b"written-42"), "{:?}", &copy[..16]);
    assert!(copy[16_000 * 512..].starts_with(b"behind-42"));
    let now = device.content();
    let quiet = 2 * 1024 * 1024;
    assert!(copy[..quiet] == now[..quiet] && copy[2 * quiet..] == now[2 * quiet..]);

    let detach = DomainStep::Detach {
        instance: first.id,
        disk: file.clone(),
    };
    let given_back = async {
        while observed(&libvirt, first.id)
            .await
            .disks
            .live
            .contains(&file)
        {
            libvirt.apply(&detach).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(LIMIT, given_back).await.unwrap();
    shell.expect("test -b /dev/vdb || echo gone", "gone");

    let second = booted(&hypervisor, &libvirt).await;
    twice(&libvirt, attach(&second)).await;
    let shell = Shell::open(&hypervisor, &second);
    shell.expect(is_there, "16384");
    shell.expect("head -c 10 /dev/vdb", "written-42");
    shell.expect(
        "dd if=/dev/vdb bs=512 skip=16000 count=1 2>/dev/null | head -c 9",
        "behind-42",
    );
    for id in [first.id, second.id] {
        twice(&libvirt, DomainStep::Destroy(id)).await;
        twice(&libvirt, DomainStep::Undefine(id)).await;
    }
}
