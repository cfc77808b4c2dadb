//! Turns views into text. Pure: nothing here writes, asks or waits.
//!
//! - [`table`]: how tables look; every cell is made harmless for terminals there.
//! - [`json`]: the scheduler's answer as it is, for programs.
//! - [`host`], [`instance`], [`network`] and so on: which columns a resource has.
//! - [`guest`]: what a hypervisor says of a guest.
//! - [`placement`]: how decisions read.

pub(crate) mod aggregate;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod instance;
pub(crate) mod json;
pub(crate) mod network;
pub(crate) mod placement;
pub(crate) mod port;
pub(crate) mod router;
pub(crate) mod security_group;
pub(crate) mod server_group;
pub(crate) mod snapshot;
pub(crate) mod subnet;
pub(crate) mod table;
pub(crate) mod trace;
pub(crate) mod volume;

/// What stands where there is nothing.
const NONE: &str = "-";

/// A value that may be missing.
fn or_none<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// Values with a separator, or the sign for nothing.
fn joined<T: std::fmt::Display>(values: impl IntoIterator<Item = T>, separator: &str) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if values.is_empty() {
        NONE.to_owned()
    } else {
        values.join(separator)
    }
}
