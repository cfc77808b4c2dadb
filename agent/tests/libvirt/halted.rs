//! A guest whose disk is full, with a real one.

use std::collections::BTreeMap;

use berth_agent::decide::domain::DiskError;

use super::{shell::Shell, *};

/// Bytes of the volume: more than the small disk has.
const SIZE: u64 = 96 << 20;

/// Waits until the guest stands still for its disks.
async fn halted(libvirt: &Libvirt, id: InstanceId) -> DomainObserved {
    let look = async {
        loop {
            let domain = observed(libvirt, id).await;
            if domain.is_halted {
                return domain;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let last = tokio::time::timeout(LIMIT, look).await;
    last.unwrap_or_else(|_| panic!("instance {id} does not stand still in time"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_disk_is_full_stands_still_says_for_what_and_goes_on_with_room() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let mut config = instance(&hypervisor);
    let id = config.id;
    let folder = hypervisor.path().join("pool");
    fs::create_dir(&folder).unwrap();
    let mount = folder.to_str().unwrap();
    hypervisor.run(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=8m,mode=755",
        "small",
        mount,
    ]);
    let path = folder.join("volume.raw");
    let file = path.to_str().unwrap();
    hypervisor.run(&["truncate", "--size", &SIZE.to_string(), file]);
    config.disks.push(raw_volume(&path));
    config.metadata.digest = config.digest();
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);
    assert!(!observed(&libvirt, id).await.is_halted);
    assert_eq!(libvirt.disk_errors(id).await.unwrap(), BTreeMap::new());

    let shell = Shell::open(&hypervisor, &config);
    shell.expect("test -b /dev/vdb && echo there", "there");
    shell.type_line(
        "yes 0123456 | head -c 16777216 | dd of=/dev/vdb bs=64k conv=fsync; echo written-$((6 * 7))",
    );
    let full = BTreeMap::from([("vdb".to_owned(), DiskError::NoSpace)]);
    let domain = halted(&libvirt, id).await;
    assert_eq!(domain.power_state, PowerState::Paused, "{domain:?}");
    assert_eq!(libvirt.disk_errors(id).await.unwrap(), full);

    // Let go on in vain, it stands still again; and a libvirtd that is started anew says the same.
    libvirt.apply(&DomainStep::Resume(id)).await.unwrap();
    halted(&libvirt, id).await;
    assert_eq!(libvirt.disk_errors(id).await.unwrap(), full);
    hypervisor.kill_libvirtd();
    hypervisor.start_libvirtd();
    hypervisor.wait_libvirtd();
    halted(&libvirt, id).await;
    assert_eq!(libvirt.disk_errors(id).await.unwrap(), full);
    assert!(!console(&config).contains("written-42"));

    // With room it goes on, and nothing of what it wrote is lost.
    hypervisor.run(&["mount", "-o", "remount,size=128m", mount]);
    libvirt.apply(&DomainStep::Resume(id)).await.unwrap();
    wait_for_console(&config, "written-42", 1);
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.power_state, PowerState::Running, "{domain:?}");
    assert!(!domain.is_halted);
    let script = "yes 0123456 | head -c 16777216 | cmp --bytes=16777216 - \"$1\"";
    hypervisor.run(&["sh", "-c", script, "sh", file]);
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}
