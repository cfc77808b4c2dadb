//! Images that are not what they say, cannot be had, or would read other files of the host: the instance is in
//! error with a reason, nothing of it is left on the host, and the next instance is built.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path};

use berth_common::{
    document::{DesiredPower, ImageFormat, ImageRef},
    message::{report::FaultCode, view::VmState},
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions},
    image,
    wait::{Seen, wait_for},
    with_cloud,
};

#[test]
fn an_unusable_image_is_a_fault_with_a_reason_and_leaves_nothing_half_made() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let folder = cloud.site.dir().to_owned();
        let guest = image::of_file(&cloud.services.guest_image)?;
        let secret = folder.join("secret");
        std::fs::write(&secret, "the host's own secret\n".repeat(100))?;

        let wrong_sum = ImageRef {
            sha256: "ab".repeat(32).parse()?,
            ..guest.clone()
        };
        let told = check(
            cloud,
            "wrong-sum",
            wrong_sum,
            FaultCode::ImageChecksum,
            &["abababab", "does not have the sha256"],
        )
        .await?;
        // Whoever learns the sum of a file of the host could ask for that file as an image.
        assert!(!told.contains(guest.sha256.as_str()), "{told}");

        let private = folder.join("private");
        std::fs::write(&private, "only root may read this")?;
        std::fs::set_permissions(&private, Permissions::from_mode(0o600))?;
        check(
            cloud,
            "private",
            image::of_file(&private)?,
            FaultCode::ImageUnreachable,
            &["chmod o+r"],
        )
        .await?;

        // Port 9 of this cloud's own bridge: nobody listens there.
        let nobody = format!("http://{}:9/guest.qcow2", cloud.site.address(1));
        let unreachable = ImageRef {
            url: nobody.parse()?,
            ..fresh(&folder, &guest, "unreachable")?
        };
        check(
            cloud,
            "unreachable",
            unreachable,
            FaultCode::ImageUnreachable,
            &[nobody.as_str()],
        )
        .await?;

        let absent = format!("file://{}", folder.join("absent.qcow2").display());
        let absent_image = ImageRef {
            url: absent.parse()?,
            ..fresh(&folder, &guest, "absent")?
        };
        check(
            cloud,
            "absent",
            absent_image,
            FaultCode::ImageUnreachable,
            &["absent.qcow2"],
        )
        .await?;

        let backing = image::of_file(&image::with_backing_file(&folder, &secret).await?)?;
        check(
            cloud,
            "backing",
            backing,
            FaultCode::ImageRefused,
            &["backing file"],
        )
        .await?;

        let data = image::of_file(&image::with_data_file(&folder).await?)?;
        check(cloud, "data", data, FaultCode::ImageRefused, &["data file"]).await?;

        let text = ImageRef {
            format: ImageFormat::Qcow2,
            ..image::of_file(&secret)?
        };
        check(cloud, "text", text, FaultCode::ImageRefused, &["qcow2"]).await?;

        refuse_other_tools_images(cloud, &folder, &secret).await?;

        let options = InstanceOptions {
            power: DesiredPower::Stopped,
            ..InstanceOptions::default()
        };
        let good = cloud.create_instance("good", &options).await?;
        cloud
            .wait_state(good.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        for format in CONVERTED {
            let path = image::converted(&cloud.services.guest_image, &folder, format).await?;
            let options = InstanceOptions {
                image: Some(ImageRef {
                    format,
                    ..image::of_file(&path)?
                }),
                power: DesiredPower::Stopped,
                ..InstanceOptions::default()
            };
            let name = format!("good-{}", format.as_str());
            let good = cloud.create_instance(&name, &options).await?;
            cloud
                .wait_state(good.id, VmState::Stopped, CONVERGE_LIMIT)
                .await?;
        }
        Ok(())
    });
}

/// Formats that are converted on the host.
const CONVERTED: [ImageFormat; 3] = [ImageFormat::Vmdk, ImageFormat::Vdi, ImageFormat::Vhdx];

/// Images in formats of other tools that lead to other files, or lie.
async fn refuse_other_tools_images(
    cloud: &TestCloud,
    folder: &Path,
    secret: &Path,
) -> anyhow::Result<()> {
    let guest = &cloud.services.guest_image;
    let descriptor = folder.join("descriptor.vmdk");
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 4 FLAT \"{}\" 0\n",
        secret.display()
    );
    std::fs::write(&descriptor, text)?;
    let mut cases = vec![(
        "descriptor",
        descriptor,
        ImageFormat::Vmdk,
        "a VMDK descriptor",
    )];
    let vmdk = image::converted(guest, folder, ImageFormat::Vmdk).await?;
    let vdi = image::converted(guest, folder, ImageFormat::Vdi).await?;
    let vhdx = image::converted(guest, folder, ImageFormat::Vhdx).await?;
    // A capacity of 0: QEMU would believe the descriptor. A parent's id. A region table with another sum.
    let patches = [
        (
            "no-capacity",
            &vmdk,
            12,
            &[0; 8][..],
            ImageFormat::Vmdk,
            "the capacity is 0",
        ),
        (
            "child",
            &vdi,
            0x1b8,
            &[1; 16][..],
            ImageFormat::Vdi,
            "the difference to a parent",
        ),
        (
            "regions",
            &vhdx,
            196_612,
            &[1; 4][..],
            ImageFormat::Vhdx,
            "region table is not intact",
        ),
    ];
    for (name, good, at, bytes, format, part) in patches {
        cases.push((name, image::patched(good, name, at, bytes)?, format, part));
    }
    cases.push((
        "mislabelled",
        vmdk,
        ImageFormat::Raw,
        "declared raw, but it is a VMDK image",
    ));
    for (name, path, format, part) in cases {
        let hostile = ImageRef {
            format,
            ..image::of_file(&path)?
        };
        check(cloud, name, hostile, FaultCode::ImageRefused, &[part]).await?;
    }
    Ok(())
}

/// An image of its own checksum, which no host has.
fn fresh(folder: &Path, guest: &ImageRef, name: &str) -> anyhow::Result<ImageRef> {
    let path = folder.join(format!("{name}.txt"));
    std::fs::write(&path, name)?;
    Ok(ImageRef {
        sha256: image::sha256(&path)?.parse()?,
        ..guest.clone()
    })
}

async fn check(
    cloud: &TestCloud,
    name: &str,
    image: ImageRef,
    code: FaultCode,
    says: &[&str],
) -> anyhow::Result<String> {
    let options = InstanceOptions {
        image: Some(image),
        ..InstanceOptions::default()
    };
    let instance = cloud.create_instance(name, &options).await?;
    let fault = wait_for(
        &format!("{name} to be in error"),
        CONVERGE_LIMIT,
        async || {
            let view = cloud.show(instance.id).await?;
            let seen = format!(
                "{:?}, progress {:?}, fault {:?}",
                view.vm_state, view.progress, view.fault
            );
            Ok(match view.fault {
                Some(fault) if view.vm_state == VmState::Error => Seen::Done(fault),
                _ if view.vm_state == VmState::Active => Seen::Never(seen),
                _ => Seen::NotYet(seen),
            })
        },
    )
    .await?;
    assert_eq!(fault.code, code, "{name}: {}", fault.message);
    for part in says {
        assert!(
            fault.message.contains(part),
            "{name}: no {part:?} in {:?}",
            fault.message
        );
    }
    assert!(
        cloud.hv1().domains().await?.is_empty(),
        "{name}: a domain was made"
    );
    cloud.delete_and_wait(instance.id).await?;
    let remains = cloud.hv1().remains().await?;
    assert!(remains.is_empty(), "{name}: {remains:?}");
    let images = std::fs::read_dir(cloud.hv1().state_dir().join("images"))?.count();
    assert_eq!(images, 0, "{name}: the cache has kept something");
    Ok(fault.message)
}
