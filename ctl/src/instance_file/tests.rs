//! What the instance file promises, on whole files.

use super::*;

const SHA: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn overrides() -> Overrides {
    let id = "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11".parse().unwrap();
    Overrides {
        id,
        name: None,
        project: None,
        volume: None,
    }
}

fn read(text: &str) -> Result<InstanceCreate, FileMistakes> {
    parse(Path::new("web.toml"), text, overrides())
}

fn minimal() -> String {
    format!(
        "name = \"web-1\"\nvcpus = 1\nmemory_mb = 256\ndisk_gb = 1\n\n[image]\nurl = \"/srv/guest.qcow2\"\nsha256 = \
         \"{SHA}\"\nformat = \"qcow2\"\n"
    )
}

#[test]
fn a_port_has_the_rest_already() {
    let keys = [
        "network = \"net0\"",
        "ip_address = \"10.0.0.5\"",
        "mac_address = \"52:54:00:00:00:01\"",
        "security_groups = []",
        "port_security = \"disabled\"",
    ];
    let with = |more: &str| {
        let minimal = minimal();
        read(&format!(
            "{minimal}\n[[networks]]\nport = \"uplink\"\n{more}\n"
        ))
    };
    assert!(with("").is_ok());
    for key in keys {
        let refused = with(key).unwrap_err().to_string();
        assert!(
            refused.contains("must not stand beside port"),
            "{key}: {refused}"
        );
    }
}

#[test]
fn the_documented_sample_is_read() {
    let sample = include_str!("../../../docs/instance.sample.toml");
    let request = parse(Path::new("instance.sample.toml"), sample, overrides()).unwrap();
    assert_eq!(request.name.as_str(), "web-1");
    assert_eq!(request.networks.len(), 1);
    // Uncommented, the optional fields of the sample are right as well.
    let all: String = sample
        .lines()
        .map(|line| match line.strip_prefix("#: ") {
            Some(field) => format!("{field}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    let request = parse(Path::new("instance.sample.toml"), &all, overrides()).unwrap();
    assert_eq!(request.networks.len(), 3);
    assert!(request.networks[0].ip_address.is_some() && request.networks[0].mac_address.is_some());
    let hints = serde_json::to_value(&request.hints).unwrap();
    for key in ALL_KEYS {
        let name = key.rsplit('.').next().unwrap();
        let set = |line: &str| {
            line.starts_with(&format!("{name} ="))
                || line == format!("[[{name}]]")
                || line == format!("[{key}]")
        };
        assert!(all.lines().any(set), "the sample does not document {key}");
        let hint = key.strip_prefix("hints.");
        assert!(
            hint.is_none_or(|hint| !hints[hint].is_null()),
            "the sample's {key} is not read"
        );
    }
}

#[test]
fn the_sample_serves_for_placement_as_well() {
    let sample = include_str!("../../../docs/instance.sample.toml");
    let whole = parse(Path::new("sample"), sample, overrides()).unwrap();
    let placement = parse_placement(Path::new("sample"), sample, None).unwrap();
    assert_eq!(placement.project, whole.project);
    assert_eq!(placement.flavor, whole.flavor);
    assert_eq!(placement.hints, whole.hints);
    assert_eq!(placement.networks, whole.networks);
    assert!(!whole.networks.is_empty());
}

#[test]
fn placement_needs_a_size_only_and_takes_no_mistake_in_the_rest() {
    let size = "vcpus = 1\nmemory_mb = 256\ndisk_gb = 1\n";
    let placement = |text: &str, project: Option<&str>| {
        let project = project.map(|name| name.parse().unwrap());
        parse_placement(Path::new("web.toml"), text, project)
    };
    assert_eq!(placement(size, None).unwrap().project.as_str(), "default");
    let text = format!("project = \"a\"\n{size}");
    assert_eq!(placement(&text, None).unwrap().project.as_str(), "a");
    assert_eq!(placement(&text, Some("b")).unwrap().project.as_str(), "b");
    let wrong = "name = \"web 1\"\nvcpus = 1\ndisk_gb = 1\n[image]\nformat = \"iso\"\n";
    insta::assert_snapshot!(placement(wrong, None).unwrap_err(), @r#"
    5 mistakes in the instance file:
      1. web.toml:1:8: name: must be 1 to 63 letters, digits and hyphens, with no hyphen at either end (it becomes the guest's host name); found the string "web 1"
      2. web.toml:4:1: image.url: is missing; must be an absolute path on the hypervisor, file:///absolute/path, http://… or https://…, of at most 2048 printable characters without spaces
      3. web.toml:4:1: image.sha256: is missing; berth checks every image against it: run `sha256sum FILE` on a copy you trust and write its first word here
      4. web.toml:5:10: image.format: must be "qcow2", "raw", "vmdk", "vdi" or "vhdx"; found the string "iso"
      5. web.toml: memory_mb: is missing; must be an integer from 1 to 68719476736 (MiB); set it at the top of the file, like memory_mb = 512
    "#);
}

#[test]
fn hints_say_where_an_instance_may_be() {
    let text = format!(
        "{}[hints]\navailability_zone = \"rack-1\"\nhost = \"0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11\"\n\
         different_host = [\"0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a12\"]\nproperties = {{ disk = \"ssd\", \"a.b\" = \"c\" }}\n\
         resources = {{ PCI_GPU = 2 }}\n",
        minimal()
    );
    insta::assert_json_snapshot!(read(&text).unwrap().hints, @r#"
    {
      "availability_zone": "rack-1",
      "host": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11",
      "different_host": [
        "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a12"
      ],
      "properties": {
        "a.b": "c",
        "disk": "ssd"
      },
      "resources": {
        "PCI_GPU": 2
      }
    }
    "#);
}

#[test]
fn every_mistake_in_the_hints_is_told_at_once_with_its_line() {
    let text = format!(
        r#"host = "hv1"
{}[hints]
availability_zone = "rack 1"
host = 7
same_host = "web-1"
different_host = ["web-2", 3, "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a12"]
server_grup = "web"
server_group = ""
architecture = "x86-64"
virt_type = "kvn"

[hints.properties]
disk = 1
room.floor = "2"
"a b" = "c"

[hints.resources]
gpu = 1
PCI_GPU = 0
"#,
        minimal()
    );
    insta::assert_snapshot!(read(&text).unwrap_err(), @r#"
    15 mistakes in the instance file:
      1. web.toml:1:1: host: unknown key; did you mean hints.host?
      2. web.toml:12:21: hints.availability_zone: must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit; found the string "rack 1"
      3. web.toml:13:8: hints.host: must be a string; found the integer 7
      4. web.toml:14:13: hints.same_host: must be a list of strings; found the string "web-1"
      5. web.toml:15:19: hints.different_host[1]: must be the id of an instance (`berthctl instance list` shows it); found the string "web-2"
      6. web.toml:15:28: hints.different_host[2]: must be a string; found the integer 3
      7. web.toml:16:1: hints.server_grup: unknown key; did you mean hints.server_group?
      8. web.toml:17:16: hints.server_group: must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit; found the string ""
      9. web.toml:18:16: hints.architecture: must be a processor architecture in libvirt's words, like "x86_64" or "aarch64"; found the string "x86-64"
      10. web.toml:19:13: hints.virt_type: must be "kvm" or "qemu" (did you mean "kvm"?); found the string "kvn"
      11. web.toml:22:8: hints.properties.disk: must be a string; found the integer 1
      12. web.toml:23:1: hints.properties.room: must be a string; a key with a dot in its name is written in quotes, like "disk.type" = "ssd"; found a section
      13. web.toml:24:1: hints.properties.a b: must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit
      14. web.toml:27:1: hints.resources.gpu: must be 1 to 63 upper-case letters, digits and '_', starting with a letter
      15. web.toml:28:11: hints.resources.PCI_GPU: must be an integer from 1 to 9223372036854775807; found the integer 0
    "#);
}

#[test]
fn hints_that_contradict_each_other_or_are_too_many_are_mistakes() {
    let id = "\"0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11\"";
    let many = vec![id; 65].join(", ");
    let resources: String = (0..17).map(|n| format!("R{n} = 1\n")).collect();
    let text = format!(
        "{}[hints]\nsame_host = [{many}]\ndifferent_host = [{id}]\n[hints.resources]\n{resources}",
        minimal()
    );
    insta::assert_snapshot!(read(&text).unwrap_err(), @r#"
    3 mistakes in the instance file:
      1. web.toml:11:13: hints.same_host: must have at most 64 entries; found 65
      2. web.toml:12:18: hints.different_host: must name no instance that same_host names; found 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11 in both
      3. web.toml:13:1: hints.resources: must have at most 16 entries; found 17
    "#);
}

#[test]
fn a_minimal_file_is_enough_and_a_path_becomes_a_url() {
    let request = read(&minimal()).unwrap();
    let image = request.image.unwrap();
    assert_eq!(image.url.as_str(), "file:///srv/guest.qcow2");
    assert_eq!(request.project.as_str(), "default");
    assert_eq!(request.power, DesiredPower::Running);
    assert_eq!(request.stop_timeout_seconds, 60);
    assert!(request.networks.is_empty());
    assert_eq!(request.id, overrides().id);
}

#[test]
fn the_command_line_wins_over_the_file() {
    let given = Overrides {
        name: Some("web-2".parse().unwrap()),
        project: Some("lab".parse().unwrap()),
        ..overrides()
    };
    let text = minimal().replace("vcpus", "project = \"other\"\nvcpus");
    let request = parse(Path::new("web.toml"), &text, given.clone()).unwrap();
    assert_eq!(
        (request.name.as_str(), request.project.as_str()),
        ("web-2", "lab")
    );
    let nameless = text.replace("name = \"web-1\"\n", "");
    assert_eq!(
        parse(Path::new("web.toml"), &nameless, given).unwrap(),
        request
    );
}

#[test]
fn a_volume_takes_the_place_of_the_image_and_needs_no_disk() {
    let volume = BlockDevice {
        volume: "root".to_owned(),
        boot_index: 0,
        delete_on_termination: true,
    };
    let given = Overrides {
        volume: Some(volume.clone()),
        ..overrides()
    };
    let without = minimal().split("[image]").next().unwrap().to_owned();
    let without_disk = without.replace("disk_gb = 1\n", "");
    for (text, disk_gb) in [(minimal(), 1), (without, 1), (without_disk, 0)] {
        let request = parse(Path::new("web.toml"), &text, given.clone()).unwrap();
        assert_eq!(request.image, None);
        assert_eq!(
            request.block_devices.as_slice(),
            [volume.clone()].as_slice()
        );
        assert_eq!(request.flavor.disk_gb.get(), disk_gb);
    }
    // What is wrong is told all the same.
    let wrong = minimal().replace("disk_gb = 1", "disk_gb = 0");
    assert!(parse(Path::new("web.toml"), &wrong, given).is_err());
}

#[test]
fn an_empty_file_names_all_that_is_missing() {
    insta::assert_snapshot!(read("").unwrap_err(), @r#"
    5 mistakes in the instance file:
      1. web.toml: name: is missing; set it at the top of the file, like name = "web-1", or give --name
      2. web.toml: vcpus: is missing; must be an integer from 1 to 1048576; set it at the top of the file, like vcpus = 1
      3. web.toml: memory_mb: is missing; must be an integer from 1 to 68719476736 (MiB); set it at the top of the file, like memory_mb = 512
      4. web.toml: disk_gb: is missing; must be an integer from 1 to 68719476736 (GiB); set it at the top of the file, like disk_gb = 10
      5. web.toml: image: is missing; write a section [image] with url, sha256 and format
    "#);
}

#[test]
fn every_mistake_is_told_at_once_with_its_line() {
    let text = r#"name = "web 1"
vcpu = 2
memory_mb = "512M"
disk_gb = 0
power = "runing"
stop_timeout_seconds = 4000
sha256 = "abc"

[image]
url = "images/guest.qcow2"
fromat = "qcow2"
format = "iso"

[[networks]]
netwrok = "net0"
ip_address = "10.0.0.300"

[[networks]]
network = "net0"
ip_address = "10.0.0.5"
mac_address = "01:00:5e:00:00:01"
"#;
    insta::assert_snapshot!(read(text).unwrap_err(), @r#"
    16 mistakes in the instance file:
      1. web.toml:1:8: name: must be 1 to 63 letters, digits and hyphens, with no hyphen at either end (it becomes the guest's host name); found the string "web 1"
      2. web.toml:2:1: vcpu: unknown key; did you mean vcpus?
      3. web.toml:3:13: memory_mb: must be an integer from 1 to 68719476736 (MiB); found the string "512M"
      4. web.toml:4:11: disk_gb: must be an integer from 1 to 68719476736 (GiB); found the integer 0
      5. web.toml:5:9: power: must be "running" or "stopped" (did you mean "running"?); found the string "runing"
      6. web.toml:6:24: stop_timeout_seconds: must be an integer from 1 to 3600 seconds; found the integer 4000
      7. web.toml:7:1: sha256: unknown key; did you mean image.sha256?
      8. web.toml:9:1: image.sha256: is missing; berth checks every image against it: run `sha256sum FILE` on a copy you trust and write its first word here
      9. web.toml:10:7: image.url: must be an absolute path on the hypervisor, file:///absolute/path, http://… or https://…, of at most 2048 printable characters without spaces; found the string "images/guest.qcow2"
      10. web.toml:11:1: image.fromat: unknown key; did you mean image.format?
      11. web.toml:12:10: image.format: must be "qcow2", "raw", "vmdk", "vdi" or "vhdx"; found the string "iso"
      12. web.toml:14:1: networks[1].network: is missing; must be the name or the id of a network
      13. web.toml:15:1: networks[1].netwrok: unknown key; did you mean networks[1].network?
      14. web.toml:16:14: networks[1].ip_address: must be an IP address, like "10.0.0.10"; found the string "10.0.0.300"
      15. web.toml:21:15: networks[2].mac_address: must be six hexadecimal pairs with colons, of one interface (the first octet is even), like 52:54:00:12:34:56; found the string "01:00:5e:00:00:01"
      16. web.toml: vcpus: is missing; must be an integer from 1 to 1048576; set it at the top of the file, like vcpus = 1
    "#);
}

#[test]
fn ports_that_contradict_each_other_are_mistakes() {
    let port = "[[networks]]\nnetwork = \"n\"\nip_address = \"10.0.0.5\"\nmac_address = \"52:54:00:00:00:01\"\n";
    let text = format!("{}{port}{port}", minimal());
    insta::assert_snapshot!(read(&text).unwrap_err(), @r#"
    2 mistakes in the instance file:
      1. web.toml:16:14: networks[2].ip_address: must be of one port of the network only; found 10.0.0.5 again
      2. web.toml:17:15: networks[2].mac_address: must be of one network only; found 52:54:00:00:00:01 again
    "#);
    let many = format!(
        "{}{}",
        minimal(),
        "[[networks]]\nnetwork = \"n\"\n".repeat(9)
    );
    insta::assert_snapshot!(read(&many).unwrap_err(), @r#"
    1 mistake in the instance file:
      1. web.toml:10:1: networks: must have at most 8 entries; found 9
    "#);
}

#[test]
fn syntax_mistakes_come_with_the_others_and_nothing_is_called_missing() {
    let text = minimal()
        .replace("vcpus = 1", "vcpus = one")
        .replace("disk_gb = 1", "disk_gb = 0");
    let error = read(&text).unwrap_err().to_string();
    assert!(error.contains("web.toml:2:9: not valid TOML: "), "{error}");
    assert!(
        error.contains("web.toml:4:11: disk_gb: must be an integer from 1 to"),
        "{error}"
    );
    assert!(!error.contains("is missing"), "{error}");
}

#[test]
fn sections_of_another_shape_are_mistakes() {
    let check = |text: &str, expected: &str| {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let without_image = minimal().split("[image]").next().unwrap().to_owned();
    check(
        &format!("image = 3\n{without_image}"),
        "web.toml:1:9: image: must be a section, written [image]; found the integer 3",
    );
    check(
        &minimal().replace("vcpus = 1", "vcpus = 1\nnetworks = [\"net0\"]"),
        "networks[1]: must be a list of sections, each written [[networks]]; found the string \"net0\"",
    );
    check(
        &format!("{}[[hints]]\nhost = \"hv1\"\n", minimal()),
        "hints: must be a section, written [hints]; found a list of 1",
    );
    check(
        &minimal().replace("/srv/guest", "ftp://u:hunter2@h/guest"),
        "found the string \"ftp://u:***@h/guest.qcow2\"",
    );
}
