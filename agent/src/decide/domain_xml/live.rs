//! Reads where a domain's display and consoles are out of libvirt's XML of it.
//!
//! What is unknown or malformed is left out: this is for people who want to reach a guest, and decides nothing.

use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};

/// Deeper XML than this is nobody's domain.
const MAX_DEPTH: usize = 64;
/// The name of the channel that the QEMU guest agent listens to.
pub(super) const GUEST_AGENT: &str = "org.qemu.guest_agent.0";

/// What of a domain can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LiveDevices {
    /// Its displays over VNC.
    pub vnc: Vec<VncAddress>,
    /// The terminal of its first serial console (`/dev/pts/3`), while it runs.
    pub serial: Option<String>,
    /// The file that has what the serial console said.
    pub console_log: Option<String>,
    /// Its guest agent's channel.
    pub guest_agent: Option<GuestAgentChannel>,
}

/// Where a display is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VncAddress {
    /// A socket on its host, which only root and QEMU reach.
    Unix(String),
    /// A port, which berth gives to no domain of its own.
    Tcp {
        /// The address.
        address: String,
        /// The port.
        port: u16,
    },
}

/// The channel of a guest agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAgentChannel {
    /// Its socket on the host, while the domain runs.
    pub path: Option<String>,
    /// Whether something in the guest has opened it.
    pub state: AgentChannel,
}

/// Whether something in a guest has opened the channel of the guest agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentChannel {
    /// It has.
    Connected,
    /// It has not, or the domain is off.
    Disconnected,
}

/// The devices that are read.
#[derive(Debug, Default)]
struct Device {
    name: String,
    kind: Option<String>,
    path: Option<String>,
    log: Option<String>,
    socket: Option<String>,
    port: Option<u16>,
    address: Option<String>,
    target: Option<String>,
    is_connected: bool,
}

/// Reads a domain's XML.
#[must_use]
pub fn read_live(xml: &str) -> LiveDevices {
    let mut live = LiveDevices::default();
    let mut reader = Reader::from_str(xml);
    let mut depth: Vec<String> = Vec::new();
    let mut device = Device::default();
    while let Ok(event) = reader.read_event() {
        match event {
            Event::Start(start) => {
                if depth.len() >= MAX_DEPTH {
                    break;
                }
                enter(&mut device, &depth, &start);
                depth.push(name(&start));
            }
            Event::Empty(start) => {
                enter(&mut device, &depth, &start);
                if is_device(&depth) {
                    note(&mut live, std::mem::take(&mut device));
                }
            }
            Event::End(_) => {
                depth.pop();
                if is_device(&depth) {
                    note(&mut live, std::mem::take(&mut device));
                }
            }
            Event::Eof | Event::DocType(_) => break,
            _ => {}
        }
    }
    live
}

fn name(start: &BytesStart<'_>) -> String {
    start.name().as_ref().to_owned()
}

/// Whether what stands below this path is a device.
fn is_device(path: &[String]) -> bool {
    matches!(path, [domain, devices] if domain == "domain" && devices == "devices")
}

/// Takes what an element says of the device it is, or is in.
fn enter(device: &mut Device, path: &[String], start: &BytesStart<'_>) {
    let value = |name: &str| -> Option<String> {
        let attribute = start.try_get_attribute(name).ok()??;
        let value = attribute.normalized_value(XmlVersion::Explicit1_0).ok()?;
        Some(value.into_owned())
    };
    let name = name(start);
    if is_device(path) {
        *device = Device {
            name,
            kind: value("type"),
            socket: value("socket"),
            port: value("port").and_then(|port| port.parse().ok()),
            address: value("listen"),
            ..Device::default()
        };
        return;
    }
    let [domain, devices, _] = path else { return };
    if domain != "domain" || devices != "devices" {
        return;
    }
    match name.as_str() {
        "source" => device.path = value("path"),
        "log" => device.log = value("file"),
        "target" => {
            device.target = value("name");
            device.is_connected = value("state").as_deref() == Some("connected");
        }
        "listen" => {
            device.socket = device.socket.take().or_else(|| value("socket"));
            device.address = device.address.take().or_else(|| value("address"));
        }
        _ => {}
    }
}

/// Keeps what can be reached.
fn note(live: &mut LiveDevices, device: Device) {
    match (device.name.as_str(), device.kind.as_deref()) {
        ("graphics", Some("vnc")) => {
            let address = match (device.socket, device.port) {
                (Some(socket), _) => VncAddress::Unix(socket),
                (None, Some(port)) => VncAddress::Tcp {
                    address: device.address.unwrap_or_else(|| "127.0.0.1".to_owned()),
                    port,
                },
                (None, None) => return,
            };
            live.vnc.push(address);
        }
        ("serial", _) if live.serial.is_none() && live.console_log.is_none() => {
            live.serial = device.path;
            live.console_log = device.log;
        }
        ("channel", _) if device.target.as_deref() == Some(GUEST_AGENT) => {
            live.guest_agent = Some(GuestAgentChannel {
                path: device.path,
                state: if device.is_connected {
                    AgentChannel::Connected
                } else {
                    AgentChannel::Disconnected
                },
            });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RUNNING: &str = r#"<domain type='qemu' id='1'>
        <name>berth-x</name>
        <metadata><graphics type='vnc' socket='/not/this'/></metadata>
        <devices>
          <disk type='file'><source file='/disk'/><target dev='vda'/></disk>
          <serial type='pty'>
            <source path='/dev/pts/3'/>
            <log file='/srv/a&amp;b/console.log' append='on'/>
            <target type='isa-serial' port='0'><model name='isa-serial'/></target>
            <alias name='serial0'/>
          </serial>
          <console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/></console>
          <channel type='unix'>
            <source mode='bind' path='/var/lib/libvirt/qemu/channel/agent.0'/>
            <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
          </channel>
          <graphics type='vnc' socket='/var/lib/libvirt/qemu/vnc.sock'>
            <listen type='socket' socket='/var/lib/libvirt/qemu/vnc.sock'/>
          </graphics>
        </devices>
      </domain>"#;

    #[test]
    fn all_that_can_be_reached_is_found() {
        let expected = LiveDevices {
            vnc: vec![VncAddress::Unix(
                "/var/lib/libvirt/qemu/vnc.sock".to_owned(),
            )],
            serial: Some("/dev/pts/3".to_owned()),
            console_log: Some("/srv/a&b/console.log".to_owned()),
            guest_agent: Some(GuestAgentChannel {
                path: Some("/var/lib/libvirt/qemu/channel/agent.0".to_owned()),
                state: AgentChannel::Connected,
            }),
        };
        assert_eq!(read_live(RUNNING), expected);
    }

    #[test]
    fn what_is_off_has_a_log_and_what_somebody_else_made_may_have_a_port() {
        let off = "<domain><devices><serial type='pty'><log file='/log'/></serial>\
                   <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
                   <graphics type='vnc'><listen type='socket'/></graphics></devices></domain>";
        let live = read_live(off);
        assert_eq!(live.console_log.as_deref(), Some("/log"));
        assert_eq!((live.serial, live.vnc), (None, vec![]));
        assert_eq!(live.guest_agent.unwrap().state, AgentChannel::Disconnected);
        let tcp = "<domain><devices><graphics type='vnc' port='5901' listen='10.0.0.1'/></devices></domain>";
        let address = VncAddress::Tcp {
            address: "10.0.0.1".to_owned(),
            port: 5901,
        };
        assert_eq!(read_live(tcp).vnc, [address]);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(cut in 0_usize..1300, text in any::<String>()) {
            let cut = RUNNING.floor_char_boundary(cut.min(RUNNING.len()));
            let whole = read_live(RUNNING);
            let part = read_live(&RUNNING[..cut]);
            prop_assert!(part.vnc.len() <= whole.vnc.len());
            let spoilt = read_live(&format!("{}{text}", &RUNNING[..cut]));
            prop_assert!(spoilt.vnc.len() <= 1);
        }
    }
}
