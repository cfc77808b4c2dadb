//! Config drives as files: written by the real xorriso, read back, and never taken for whole when they are not.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, a panic is a failed assertion"
)]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use berth_agent::{
    act::{
        Progress, Storage as _,
        storage::{DirStorage, StorageOptions},
    },
    decide::{
        config_drive::DriveFile,
        instance::{ConfigDrivePlan, InstanceFiles, MetadataPlan, Paths, StorageStep},
    },
};
use berth_common::{ids::InstanceId, message::report::FaultCode};
use tempfile::TempDir;

const FILES: [(&str, &str); 3] = [
    ("ec2/latest/user-data", "#cloud-config\n"),
    (
        "openstack/latest/meta_data.json",
        "{\"hostname\": \"web-1\"}\n",
    ),
    (
        "openstack/latest/user_data",
        "#!/bin/sh\necho 'a = b' \\ ü\n",
    ),
];

struct Host {
    paths: Paths,
    storage: DirStorage,
    folder: TempDir,
}

impl Host {
    fn new(xorriso: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        let mut options = StorageOptions::default();
        if let Some(xorriso) = xorriso {
            options.xorriso = xorriso.to_owned();
        }
        Self {
            storage: DirStorage::new(paths.clone(), options),
            paths,
            folder,
        }
    }

    fn plan(&self, id: InstanceId) -> StorageStep {
        let file = |(path, content): (&'static str, &str)| DriveFile {
            path,
            content: content.to_owned(),
        };
        StorageStep::CreateConfigDrive(ConfigDrivePlan {
            instance: id,
            path: self.paths.config_drive(id, None),
            files: FILES.map(file).into(),
        })
    }

    fn names(&self, id: InstanceId) -> Vec<String> {
        let entries = fs::read_dir(self.paths.instance(id)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn xorriso(image: &Path, arguments: &[&str]) -> String {
    let output = Command::new("xorriso")
        .args(["-indev", image.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout) + &text(&output.stderr)
}

#[tokio::test]
async fn a_guest_finds_every_file_under_the_label_that_cloud_init_looks_for() {
    let host = Host::new(None);
    let id = InstanceId::new();
    for _ in 0..2 {
        host.storage
            .apply(&host.plan(id), &Progress::new(None))
            .await
            .unwrap();
    }
    let files = host.storage.observe(id).await.unwrap();
    assert!(files.directory && files.config_drives.contains(&None) && files.disks.is_empty());
    assert_eq!(host.names(id), ["config.iso"], "nothing else is left");
    let image = host.paths.config_drive(id, None);
    let mode = fs::metadata(&image).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "it may hold secrets");

    let about = xorriso(&image, &["-pvd_info"]);
    assert!(about.contains("Volume Id    : config-2"), "{about}");
    let target = host.folder.path().join("read");
    xorriso(
        &image,
        &["-osirrox", "on", "-extract", "/", target.to_str().unwrap()],
    );
    for (path, content) in FILES {
        assert_eq!(fs::read_to_string(target.join(path)).unwrap(), content);
    }

    let remove = StorageStep::RemoveInstance(id);
    host.storage
        .apply(&remove, &Progress::new(None))
        .await
        .unwrap();
    assert!(!host.paths.instance(id).exists());
}

#[tokio::test]
async fn what_the_metadata_service_tells_is_replaced_as_a_whole_and_goes_with_the_instance() {
    let host = Host::new(None);
    let id = InstanceId::new();
    let apply = async |step: StorageStep| {
        host.storage
            .apply(&step, &Progress::new(None))
            .await
            .unwrap();
    };
    for content in ["{}", "{\"latest/user-data\": \"ü\"}"] {
        apply(StorageStep::WriteMetadata(MetadataPlan {
            instance: id,
            content: content.to_owned(),
        }))
        .await;
        let told = InstanceFiles {
            metadata: Some(content.to_owned()),
            ..InstanceFiles::default()
        };
        assert_eq!(host.storage.observe(id).await.unwrap(), told);
    }
    let about = fs::metadata(host.paths.metadata_file(id)).unwrap();
    assert_eq!(
        about.permissions().mode() & 0o7777,
        0o640,
        "it may hold secrets"
    );
    assert_eq!(about.uid(), 0);
    assert_ne!(about.gid(), 0, "the service's group reads it");
    assert_eq!(fs::read_dir(&host.paths.metadata).unwrap().count(), 1);
    // Even what nothing else is left of is found, and removed.
    assert_eq!(host.storage.instances_with_files().await.unwrap(), [id]);
    fs::write(host.paths.metadata.join(".tmp-metadata-1"), "half").unwrap();
    host.storage.sweep().await.unwrap();
    for _ in 0..2 {
        apply(StorageStep::RemoveInstance(id)).await;
        assert_eq!(
            host.storage.observe(id).await.unwrap(),
            InstanceFiles::default()
        );
        assert_eq!(fs::read_dir(&host.paths.metadata).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_tool_that_is_missing_or_fails_leaves_nothing_and_is_told() {
    let check = async |xorriso: PathBuf, words: &str| {
        let host = Host::new(Some(&xorriso));
        let id = InstanceId::new();
        let error = host
            .storage
            .apply(&host.plan(id), &Progress::new(None))
            .await
            .unwrap_err();
        assert_eq!((error.code, error.retryable), (FaultCode::Internal, true));
        let chain = berth_common::telemetry::error_chain(&error);
        assert!(chain.contains(words), "{chain}");
        assert!(chain.contains("could not make the config drive"), "{chain}");
        assert!(host.names(id).is_empty(), "{:?}", host.names(id));
        let files = host.storage.observe(id).await.unwrap();
        assert!(files.config_drives.is_empty());
    };
    check(
        "/nonexistent/xorriso".into(),
        "is not installed on this host",
    )
    .await;
    check("/bin/false".into(), "/bin/false").await;
}
