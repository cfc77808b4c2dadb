//! What a hypervisor says of a guest, as tables.

use std::path::PathBuf;

use berth_common::{
    ids::InstanceId,
    message::question::{Endpoint, Endpoints, GuestAgent},
    names::HostName,
};
use serde::Serialize;

use super::table::{Width, fields};

/// What was saved, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Saved {
    /// The instance.
    pub(crate) instance_id: InstanceId,
    /// Its hypervisor.
    pub(crate) host: HostName,
    /// Where the picture is.
    pub(crate) file: PathBuf,
    /// What it is.
    pub(crate) media_type: String,
    /// How large it is.
    pub(crate) bytes: usize,
}

/// Whether a guest agent is there.
pub(crate) fn agent(agent: &GuestAgent, width: Width) -> String {
    let properties = vec![
        ("Instance", agent.instance_id.to_string()),
        ("Host", agent.host.to_string()),
        ("Guest agent", agent.state.as_str().to_owned()),
        ("Detail", agent.detail.clone()),
    ];
    fields(properties, width)
}

/// How to reach a guest.
pub(crate) fn endpoints(endpoints: &Endpoints, width: Width) -> String {
    let mut properties = vec![
        ("Instance", endpoints.instance_id.to_string()),
        ("Host", endpoints.host.to_string()),
        ("Domain", endpoints.domain.clone()),
        ("Power", endpoints.power_state.as_str().to_owned()),
    ];
    for Endpoint {
        kind,
        address,
        reach,
    } in &endpoints.endpoints
    {
        properties.push((kind.as_str(), address.clone()));
        properties.push(("", reach.clone()));
    }
    fields(properties, width)
}

/// What was saved where.
pub(crate) fn saved(saved: &Saved) -> String {
    let named = saved.file.extension().and_then(|it| it.to_str());
    let expected: &[&str] = match saved.media_type.as_str() {
        "image/png" => &["png"],
        "image/x-portable-pixmap" => &["ppm", "pnm"],
        _ => &[],
    };
    let is_odd = !expected.is_empty()
        && !named.is_some_and(|named| {
            expected
                .iter()
                .any(|expected| named.eq_ignore_ascii_case(expected))
        });
    let remark = if is_odd {
        " (whose name says otherwise)"
    } else {
        ""
    };
    format!(
        "{}, {} bytes, in {}{remark}\n",
        saved.media_type,
        saved.bytes,
        saved.file.display()
    )
}
