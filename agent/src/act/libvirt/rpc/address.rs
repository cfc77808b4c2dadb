//! Where libvirt listens: what a connection URI of libvirt's says, as far as it means a UNIX socket of this host.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where the system's libvirt listens: the one daemon, or the proxy in its place.
const LIBVIRT_SOCKET: &str = "/run/libvirt/libvirt-sock";
/// Or the daemon for QEMU.
const VIRTQEMUD_SOCKET: &str = "/run/libvirt/virtqemud-sock";
/// What the daemon itself is asked to open.
const SYSTEM: &str = "qemu:///system";

/// A libvirt of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    uri: String,
    socket: PathBuf,
    other: Option<PathBuf>,
}

/// A text is no address of a libvirt on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{uri:?} is no libvirt that the agent can speak to: {why}. Right are \"qemu:///system\", and for another socket of this host \
     \"qemu:///system?socket=/run/libvirt/virtqemud-sock\""
)]
pub struct BadAddress {
    /// What was given.
    pub uri: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Default for Address {
    /// The system's libvirtd on this host.
    fn default() -> Self {
        Self {
            uri: SYSTEM.to_owned(),
            socket: PathBuf::from(LIBVIRT_SOCKET),
            other: Some(PathBuf::from(VIRTQEMUD_SOCKET)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl FromStr for Address {
    type Err = BadAddress;
    /// Reads a URI of libvirt's. One that names another hypervisor, another host, another transport, or a libvirt that is not the
    /// system's is refused.
    fn from_str(uri: &str) -> Result<Self, BadAddress> {
        let bad = |why| BadAddress {
            uri: uri.to_owned(),
            why,
        };
        let (scheme, rest) = uri.split_once("://").ok_or_else(|| bad("it is no URI"))?;
        match scheme {
            "qemu" | "qemu+unix" => {}
            _ if scheme.starts_with("qemu+") => {
                return Err(bad("the agent speaks to libvirt over its UNIX socket only"));
            }
            _ => return Err(bad("the agent runs guests of QEMU only")),
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        match place {
            "/system" => {}
            "/session" => {
                return Err(bad(
                    "a libvirt of a user's own has neither networks nor disks of the host",
                ));
            }
            _ if place.starts_with('/') => return Err(bad("it names no libvirt of QEMU's")),
            _ => return Err(bad("it names another host, and an agent works on its own")),
        }
        let mut address = Self {
            uri: uri.to_owned(),
            ..Self::default()
        };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let Some(("socket", path)) = parameter.split_once('=') else {
                return Err(bad(
                    "the only parameter that means something here is `socket`",
                ));
            };
            let path = decoded(path).ok_or_else(|| bad("the socket's path is badly escaped"))?;
            if !path.starts_with('/') {
                return Err(bad("the socket's path does not begin with /"));
            }
            address.socket = PathBuf::from(path);
            address.other = None;
        }
        Ok(address)
    }
}

impl Address {
    /// Where it may listen, the likeliest place first.
    pub fn sockets(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.socket), self.other.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }

    /// What libvirt is asked to open: the address without the way to it.
    pub(super) fn name() -> String {
        SYSTEM.to_owned()
    }
}

/// A text with `%2F` and the like as what they mean.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_system_s_libvirt_is_found_where_it_listens_or_where_it_is_said_to() {
        let at = |uri: &str| {
            let address: Address = uri.parse().unwrap();
            assert_eq!(address.to_string(), uri);
            address.sockets().map(Path::to_owned).collect::<Vec<_>>()
        };
        let usual = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];
        let usual = usual.map(PathBuf::from);
        assert_eq!(Address::default(), SYSTEM.parse().unwrap());
        assert_eq!(at("qemu:///system"), usual);
        assert_eq!(at("qemu+unix:///system"), usual);
        assert_eq!(at("qemu+unix:///system?"), usual);
        for uri in [
            "qemu:///system?socket=/run/my%20sock",
            "qemu+unix:///system?socket=%2frun/my%20sock",
        ] {
            assert_eq!(at(uri), [PathBuf::from("/run/my sock")]);
        }
    }

    #[test]
    fn any_other_address_is_refused_with_what_would_be_right() {
        for (uri, why) in [
            ("qemu", "no URI"),
            ("", "no URI"),
            ("qemu+ssh://root@hv2/system", "UNIX socket only"),
            ("qemu+tls:///system", "UNIX socket only"),
            ("xen:///system", "QEMU only"),
            ("test:///default", "QEMU only"),
            ("qemu:///session", "user's own"),
            ("qemu:///embed?root=/tmp", "no libvirt of QEMU's"),
            ("qemu://hv2/system", "another host"),
            ("qemu:///system?mode=direct", "the only parameter"),
            ("qemu:///system?socket=sock", "begin with /"),
            ("qemu:///system?socket=/a%2", "badly escaped"),
            ("qemu:///system?socket=/a%+1", "badly escaped"),
            ("qemu:///system?socket=/a%00", "badly escaped"),
        ] {
            let error = uri.parse::<Address>().unwrap_err();
            assert!(error.why.contains(why), "{uri}: {error}");
            assert!(
                error.to_string().contains("Right are \"qemu:///system\""),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_none(text: String, query: String) {
            let _ = text.parse::<Address>();
            let _ = format!("qemu:///system?socket=/{query}").parse::<Address>();
        }
    }
}
