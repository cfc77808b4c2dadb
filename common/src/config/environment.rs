//! The variables that may override the file: which name belongs to which key. Pure: it is
//! handed the variables and never looks at the process's own.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// What separates section and key in a variable's name.
const SEPARATOR: &str = "__";

/// The variables with our prefix and a section.
#[derive(Debug)]
pub(super) struct Environment {
    prefix: String,
    variables: BTreeMap<String, OsString>,
}

impl Environment {
    /// Keeps the variables named `<prefix>_<section>__<key>` and forgets the others.
    pub(super) fn new(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        prefix: &str,
    ) -> Self {
        let start = format!("{prefix}_");
        let variables = variables
            .into_iter()
            .filter_map(|(name, value)| {
                let name = name.to_string_lossy().into_owned();
                let ours = name.strip_prefix(&start)?.contains(SEPARATOR);
                ours.then_some((name, value))
            })
            .collect();
        Environment {
            prefix: prefix.to_owned(),
            variables,
        }
    }

    /// The variable's name for a key; `None` for a key outside any section.
    pub(super) fn name_of(&self, path: &[String]) -> Option<String> {
        (path.len() > 1).then(|| format!("{}_{}", self.prefix, variable_form(path)))
    }

    /// The variable that sets a key: its name and value.
    pub(super) fn lookup(&self, path: &[String]) -> Option<(String, OsString)> {
        let name = self.name_of(path)?;
        let value = self.variables.get(&name)?.clone();
        Some((name, value))
    }

    /// All names kept, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    /// The section a variable's name speaks of, in lower case.
    pub(super) fn section_of(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix(&self.prefix)?.strip_prefix('_')?;
        Some(rest.split(SEPARATOR).next()?.to_ascii_lowercase())
    }

    /// The names (lower case) that variables give below a section: for `storage.pools` and
    /// `BERTH_STORAGE__POOLS__FAST__PATH`, that is `fast`.
    pub(super) fn names_below(&self, path: &[String]) -> Vec<String> {
        let start = format!("{}_{}{SEPARATOR}", self.prefix, variable_form(path));
        self.variables
            .keys()
            .filter_map(|name| name.strip_prefix(&start)?.split_once(SEPARATOR))
            .map(|(below, _)| below.to_ascii_lowercase())
            .filter(|below| !below.is_empty())
            .collect()
    }
}

/// `["bus", "url"]` as `BUS__URL`.
pub(super) fn variable_form(path: &[String]) -> String {
    let parts: Vec<String> = path
        .iter()
        .map(|part| part.to_ascii_uppercase().replace('-', "_"))
        .collect();
    parts.join(SEPARATOR)
}
