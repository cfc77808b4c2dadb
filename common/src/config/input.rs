//! What a parser is handed: one value, from the file or from the environment, behind the same
//! accessors. It judges nothing but types.
//!
//! An accessor that does not fit answers with the phrase that would complete "must be …". A
//! missing value fits no accessor: that is how a parser also words what is missing.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::document::{self, Node, Value};
use super::secret::redact_url;

/// How much of a wrong string is shown.
const SHOWN_CHARACTERS: usize = 80;

/// One value to be parsed.
#[derive(Debug)]
pub struct Input {
    given: Given,
    hidden: Cell<bool>,
}

#[derive(Debug)]
enum Given {
    Missing,
    File(Value),
    Environment(String),
}

impl Input {
    pub(super) fn missing() -> Self {
        Self::new(Given::Missing)
    }

    pub(super) fn from_file(value: Value) -> Self {
        Self::new(Given::File(value))
    }

    pub(super) fn from_environment(text: String) -> Self {
        Self::new(Given::Environment(text))
    }

    fn new(given: Given) -> Self {
        Input {
            given,
            hidden: Cell::new(false),
        }
    }

    /// Never show this value in a mistake.
    pub fn hide(&self) {
        self.hidden.set(true);
    }

    /// The value as a string.
    pub fn text(&self) -> Result<&str, String> {
        match &self.given {
            Given::File(Value::Text(text)) | Given::Environment(text) => Ok(text),
            _ => Err("a string".to_owned()),
        }
    }

    /// A string, or a number exactly as it was written.
    pub fn written(&self) -> Result<&str, String> {
        match &self.given {
            Given::File(Value::Integer(text, _) | Value::Float(text)) => Ok(text),
            _ => self.text().map_err(|_| "a string or a number".to_owned()),
        }
    }

    /// The value as an integer.
    pub fn integer(&self) -> Result<i64, String> {
        let number = match &self.given {
            Given::File(Value::Integer(_, number)) => *number,
            Given::Environment(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| "an integer".to_owned())
    }

    /// The value as a boolean.
    pub fn boolean(&self) -> Result<bool, String> {
        match &self.given {
            Given::File(Value::Boolean(value)) => Ok(*value),
            Given::Environment(text) if text.trim() == "true" => Ok(true),
            Given::Environment(text) if text.trim() == "false" => Ok(false),
            _ => Err("true or false".to_owned()),
        }
    }

    /// The items of a list. A variable holds a TOML list, or items between commas.
    pub fn list(&self) -> Result<Vec<Input>, String> {
        match &self.given {
            Given::File(Value::List(items)) => Ok(self.items(items.clone())),
            Given::Environment(text) if text.trim_start().starts_with('[') => {
                match document::parse_value(text.trim()).map(|node| node.value) {
                    Some(Value::List(items)) => Ok(self.items(items)),
                    _ => Err("a list".to_owned()),
                }
            }
            Given::Environment(text) => Ok(between_commas(text)
                .map(|item| Input::from_environment(item.to_owned()))
                .collect()),
            _ => Err("a list".to_owned()),
        }
    }

    /// The entries of a table. A variable holds a TOML inline table, or `k=v` between commas.
    pub fn table(&self) -> Result<BTreeMap<String, Input>, String> {
        let refusal = || "a table".to_owned();
        match &self.given {
            Given::File(Value::Table(entries)) => Ok(self.entries(entries.clone())),
            Given::Environment(text) if text.trim_start().starts_with('{') => {
                match document::parse_value(text.trim()).map(|node| node.value) {
                    Some(Value::Table(entries)) => Ok(self.entries(entries)),
                    _ => Err(refusal()),
                }
            }
            Given::Environment(text) => between_commas(text)
                .map(|entry| {
                    let (key, value) = entry.split_once('=')?;
                    let value = Input::from_environment(value.trim().to_owned());
                    Some((key.trim().to_owned(), value))
                })
                .collect::<Option<_>>()
                .ok_or_else(refusal),
            _ => Err(refusal()),
        }
    }

    /// What was given, in words fit for a mistake: secrets hidden, long strings cut.
    pub fn found(&self) -> String {
        let hidden = self.hidden.get();
        match &self.given {
            Given::Missing => "nothing".to_owned(),
            Given::File(Value::List(items)) => format!("a list of {}", items.len()),
            Given::File(Value::Table(_)) => "a table".to_owned(),
            Given::File(Value::Text(_)) | Given::Environment(_) if hidden => {
                "a string that is not shown".to_owned()
            }
            _ if hidden => "a value that is not shown".to_owned(),
            Given::File(Value::Text(text)) => format!("the string {}", quoted(text)),
            Given::File(Value::Integer(text, _)) => format!("the integer {text}"),
            Given::File(Value::Float(text)) => format!("the decimal {text}"),
            Given::File(Value::Boolean(value)) => format!("the boolean {value}"),
            Given::File(Value::Date(date)) => format!("the date {date}"),
            Given::Environment(text) => quoted(text),
        }
    }

    fn items(&self, nodes: Vec<Node>) -> Vec<Input> {
        nodes.into_iter().map(|node| self.part(node)).collect()
    }

    fn entries(&self, table: document::Table) -> BTreeMap<String, Input> {
        table
            .into_iter()
            .map(|(key, node)| (key, self.part(node)))
            .collect()
    }

    fn part(&self, node: Node) -> Input {
        Input {
            given: Given::File(node.value),
            hidden: self.hidden.clone(),
        }
    }
}

fn between_commas(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

fn quoted(text: &str) -> String {
    let redacted = redact_url(text);
    let shown: String = redacted.chars().take(SHOWN_CHARACTERS).collect();
    let cut = if shown.len() < redacted.len() {
        "…"
    } else {
        ""
    };
    format!("\"{}{cut}\"", shown.escape_debug())
}
