//! What a libvirtd that died in the middle of an attachment leaves in QEMU, at each of its stages, and that the volume can
//! be attached all the same.

use serde_json::json;

use super::*;

/// How far the attachment had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    File,
    Format,
    Device,
}

/// Does what libvirt does, without libvirt noting it.
fn leave(hypervisor: &Hypervisor, domain: &str, volume: &Path, stage: Stage) {
    let (storage, format) = (
        format!("left-{stage:?}-storage"),
        format!("left-{stage:?}-format"),
    );
    let ask = |command: serde_json::Value| {
        let answer = hypervisor.virsh(&["qemu-monitor-command", domain, &command.to_string()]);
        assert!(answer.contains("\"return\""), "{answer}");
    };
    ask(json!({"execute": "blockdev-add", "arguments": {
        "driver": "file", "filename": volume, "node-name": storage,
        "auto-read-only": true, "discard": "unmap",
    }}));
    if stage == Stage::File {
        return;
    }
    ask(json!({"execute": "blockdev-add", "arguments": {
        "driver": "qcow2", "file": storage, "node-name": format, "read-only": false,
    }}));
    if stage == Stage::Format {
        return;
    }
    ask(json!({"execute": "device_add", "arguments": {
        "driver": "virtio-blk-pci", "bus": "pci.5", "drive": format, "id": "virtio-disk1",
    }}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_attached_over_what_an_interrupted_attachment_left() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let config = booted(&hypervisor, &libvirt).await;
    let id = config.id;
    for stage in [Stage::File, Stage::Format, Stage::Device] {
        let path = config.disks[0]
            .path
            .with_file_name(format!("{stage:?}.qcow2"));
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg("64M")
            .status()
            .unwrap();
        assert!(made.success());
        // As libvirt does for the QEMU it gives a file to.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let disk = DomainDisk {
            path: path.clone(),
            backing: Vec::new(),
            target: "vdb".to_owned(),
            serial: "left".to_owned(),
            ..config.disks[0].clone()
        };
        leave(&hypervisor, &names::domain(id), &path, stage);
        let attach = DomainStep::Attach {
            instance: id,
            disk: Box::new(disk),
        };
        let first = libvirt.apply(&attach).await;
        if stage == Stage::Device {
            // The guest has it and is asked to give it back, when it likes. Power off, it has nothing.
            let error = first.expect_err("the guest has it");
            assert!(error.retryable, "{}", chain(&error));
            twice(&libvirt, DomainStep::Destroy(id)).await;
            twice(&libvirt, DomainStep::Start(id)).await;
            wait_for_console(&config, BOOTED, 2);
            libvirt.apply(&attach).await.unwrap();
        } else {
            first.unwrap_or_else(|error| panic!("{stage:?}: {}", chain(&error)));
        }
        let live = |domain: &DomainObserved| domain.disks.live.iter().any(|it| it.path == path);
        assert!(live(&observed(&libvirt, id).await), "{stage:?}");
        let file = DiskFile {
            path: path.clone(),
            target: "vdb".to_owned(),
        };
        libvirt
            .apply(&DomainStep::Detach {
                instance: id,
                disk: file,
            })
            .await
            .unwrap();
        let gone = async {
            while live(&observed(&libvirt, id).await) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(LIMIT, gone)
            .await
            .expect("the guest gives the disk back");
    }
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}
