//! What the command line says that a guest is told at its first boot: its keys and its user data, over those of the file.

use std::path::Path;

use berth_common::{
    document::ConfigDrive,
    message::request::InstanceCreate,
    names::{KeyName, PublicKey, UserData},
};

use crate::{cli::InstanceCreateArgs, commands::read, error::CtlError};

/// Adds it to a request.
pub(super) fn add(
    request: &mut InstanceCreate,
    arguments: &InstanceCreateArgs,
) -> Result<(), CtlError> {
    let keys = arguments.keys.iter().map(|file| key(file));
    let keys: Vec<(KeyName, PublicKey)> = keys.collect::<Result<_, _>>()?;
    let user_data = arguments.user_data.as_deref().map(user_data).transpose()?;
    if arguments.config_drive && request.config_drive.is_none() {
        request.config_drive = Some(request.guest_data.take().unwrap_or_default());
    }
    if keys.is_empty() && user_data.is_none() {
        return Ok(());
    }
    let told: &mut ConfigDrive = match &mut request.config_drive {
        Some(drive) => drive,
        None => request.guest_data.get_or_insert_default(),
    };
    told.public_keys.extend(keys);
    if user_data.is_some() {
        told.user_data = user_data;
    }
    Ok(())
}

/// A key with the name of its file: that of `~/.ssh/id_ed25519.pub` is `id_ed25519`.
fn key(file: &Path) -> Result<(KeyName, PublicKey), CtlError> {
    let text = read(file)?;
    let key = text.trim().parse::<PublicKey>();
    let key = key.map_err(|error| wrong(file, &error.to_string()))?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = name.parse::<KeyName>();
    let name = name.map_err(|error| wrong(file, &error.to_string()))?;
    Ok((name, key))
}

fn user_data(file: &Path) -> Result<UserData, CtlError> {
    let parsed = read(file)?.parse::<UserData>();
    parsed.map_err(|error| wrong(file, &error.to_string()))
}

fn wrong(file: &Path, what: &str) -> CtlError {
    CtlError::Usage(format!("{}: {what}", file.display()))
}

#[cfg(test)]
mod tests {
    use berth_common::ids::InstanceId;
    use clap::Parser as _;

    use super::*;
    use crate::instance_file::{self, Overrides};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        create: InstanceCreateArgs,
    }

    fn request(more: &str, args: &[&str]) -> Result<InstanceCreate, CtlError> {
        let text = format!(
            "name = \"web\"\nvcpus = 1\nmemory_mb = 64\ndisk_gb = 1\n[image]\nurl = \"http://x/i.qcow2\"\nsha256 = \"{}\"\n\
             format = \"qcow2\"\n{more}",
            "0".repeat(64)
        );
        let overrides = Overrides {
            id: InstanceId::new(),
            name: None,
            project: None,
            volume: None,
        };
        let mut request = instance_file::parse(Path::new("web.toml"), &text, overrides).unwrap();
        let line = [&["create", "--file", "web.toml"], args].concat();
        add(&mut request, &Line::try_parse_from(line).unwrap().create)?;
        Ok(request)
    }

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me";

    #[test]
    fn keys_and_user_data_are_told_with_or_without_a_config_drive() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (key, script) = (
            file("id_ed25519.pub", &format!("{KEY}\n")),
            file("first", "#!/bin/sh\n"),
        );
        let told = ConfigDrive {
            user_data: Some("#!/bin/sh\n".parse().unwrap()),
            public_keys: [("id_ed25519".parse().unwrap(), KEY.parse().unwrap())].into(),
            metadata: [("role".parse().unwrap(), "front".parse().unwrap())].into(),
        };
        let flags = ["--key", &key, "--user-data", &script];
        let more = "[guest_data.metadata]\nrole = \"front\"\n";
        let plain = request(more, &flags).unwrap();
        assert_eq!(
            (plain.config_drive, plain.guest_data),
            (None, Some(told.clone()))
        );
        let drive = request(more, &[&flags[..], &["--config-drive"]].concat()).unwrap();
        assert_eq!(
            (drive.config_drive, drive.guest_data),
            (Some(told.clone()), None)
        );
        let drive = request("[config_drive.metadata]\nrole = \"front\"\n", &flags).unwrap();
        assert_eq!((drive.config_drive, drive.guest_data), (Some(told), None));
        let bare = request("", &[]).unwrap();
        assert_eq!((bare.config_drive, bare.guest_data), (None, None));
        let empty = request("", &["--config-drive"]).unwrap();
        assert_eq!(empty.config_drive, Some(ConfigDrive::default()));
        let error = request("", &["--key", &script]).unwrap_err().to_string();
        assert!(error.contains("first: "), "{error}");
    }
}
