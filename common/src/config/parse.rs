//! Stock parsers for configuration values.
//!
//! A parser is any `Fn(&Input) -> Result<T, String>`. Its refusal is a phrase that completes
//! "must be …": it names what would be right, never what was found (the reader adds that, and
//! knows what must stay hidden).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::input::Input;
use super::secret::Secret;
use super::suggest::closest;

/// Any string, the empty one too.
pub fn string(input: &Input) -> Result<String, String> {
    input.text().map(str::to_owned)
}

/// A string with something in it besides blanks.
pub fn non_empty(input: &Input) -> Result<String, String> {
    match input.text() {
        Ok(text) if !text.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("a string that is not empty".to_owned()),
    }
}

/// `true` or `false`.
pub fn boolean(input: &Input) -> Result<bool, String> {
    input.boolean()
}

/// An integer within a range.
pub fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&Input) -> Result<T, String>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    within(range, "")
}

/// A whole number of seconds within a range; the key's name ends in `_seconds`.
pub fn seconds(range: RangeInclusive<u64>) -> impl Fn(&Input) -> Result<Duration, String> {
    let parse = within(range, " seconds");
    move |input| parse(input).map(Duration::from_secs)
}

/// A whole number of milliseconds within a range; the key's name ends in `_ms`.
pub fn milliseconds(range: RangeInclusive<u64>) -> impl Fn(&Input) -> Result<Duration, String> {
    let parse = within(range, " milliseconds");
    move |input| parse(input).map(Duration::from_millis)
}

fn within<T>(range: RangeInclusive<T>, unit: &'static str) -> impl Fn(&Input) -> Result<T, String>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    move |input| {
        input
            .integer()
            .ok()
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("an integer from {} to {}{unit}", range.start(), range.end()))
    }
}

/// An absolute path without `..`.
pub fn absolute_path(input: &Input) -> Result<PathBuf, String> {
    let path = input
        .text()
        .ok()
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let climbs = |path: &PathBuf| path.components().any(|part| part.as_os_str() == "..");
    match path {
        Some(path) if !climbs(&path) => Ok(path),
        Some(_) => Err("an absolute path without \"..\"".to_owned()),
        None => Err("an absolute path, such as \"/var/lib/berth\"".to_owned()),
    }
}

/// An IP address and a port.
pub fn socket_address(input: &Input) -> Result<SocketAddr, String> {
    input
        .text()
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| {
            "an IP address and a port, such as \"127.0.0.1:9101\" or \"[::]:9101\"".to_owned()
        })
}

/// A URL with one of the schemes given, and something after it. Wrap it in [`secret`] when it
/// may carry a password.
pub fn url(schemes: &'static [&'static str]) -> impl Fn(&Input) -> Result<String, String> {
    move |input| {
        let fits = |text: &&str| {
            text.split_once("://").is_some_and(|(scheme, rest)| {
                schemes.contains(&scheme)
                    && !rest.is_empty()
                    && !text.contains(|c: char| c.is_whitespace() || c.is_control())
            })
        };
        input
            .text()
            .ok()
            .filter(fits)
            .map(str::to_owned)
            .ok_or_else(|| {
                let starts: Vec<String> = schemes.iter().map(|s| format!("{s}://…")).collect();
                format!("a URL of the form {}", starts.join(" or "))
            })
    }
}

/// A value that is never shown: not in mistakes, not in logs.
pub fn secret<T>(
    parse: impl Fn(&Input) -> Result<T, String>,
) -> impl Fn(&Input) -> Result<Secret<T>, String> {
    move |input| {
        input.hide();
        parse(input).map(Secret::new)
    }
}

/// One word out of a fixed set.
pub fn one_of<T: Clone>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&Input) -> Result<T, String> {
    move |input| {
        let given = input.text().unwrap_or_default();
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == given) {
            return Ok(value.clone());
        }
        let all: Vec<String> = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let hint = closest(given, words.iter().map(|(word, _)| *word))
            .map(|word| format!(" (did you mean \"{word}\"?)"))
            .unwrap_or_default();
        Err(format!("one of {}{hint}", all.join(", ")))
    }
}

/// A string or a number, exactly as written, given to a function of your own. `what` completes
/// "must be …"; the function's error is added as the reason.
///
/// ```
/// # use berth_common::config::{Reader, parse};
/// let mut c = Reader::from_text("t", "[placement]\nratio = 4.0\n", [], "BERTH");
/// let ratio = parse::written("a ratio such as 4.0", str::parse::<f64>);
/// assert_eq!(c.optional("placement.ratio", ratio, 1.0), 4.0);
/// ```
pub fn written<T, E: Display>(
    what: &'static str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&Input) -> Result<T, String> {
    move |input| {
        let text = input.written().map_err(|_| what.to_owned())?;
        parse(text).map_err(|reason| format!("{what} ({reason})"))
    }
}

/// Like [`written`], for types that implement [`FromStr`].
pub fn from_str<T>(what: &'static str) -> impl Fn(&Input) -> Result<T, String>
where
    T: FromStr,
    T::Err: Display,
{
    written(what, str::parse::<T>)
}

/// A list; every item goes through the same parser.
pub fn list<T>(
    parse: impl Fn(&Input) -> Result<T, String>,
) -> impl Fn(&Input) -> Result<Vec<T>, String> {
    move |input| {
        let mut values = Vec::new();
        let mut wrong = Vec::new();
        let items = input.list().map_err(|_| list_of(&expectation(&parse)))?;
        for (index, item) in items.iter().enumerate() {
            match parse(item) {
                Ok(value) => values.push(value),
                Err(right) => wrong.push(format!(
                    "item {} must be {right}, but is {}",
                    index + 1,
                    item.found()
                )),
            }
        }
        if wrong.is_empty() {
            return Ok(values);
        }
        Err(format!(
            "{} ({})",
            list_of(&expectation(&parse)),
            wrong.join("; ")
        ))
    }
}

/// A list of strings that are not empty.
pub fn strings(input: &Input) -> Result<Vec<String>, String> {
    list(non_empty)(input)
}

/// A table whose entries all go through the same parser; the names are free.
pub fn table<T>(
    parse: impl Fn(&Input) -> Result<T, String>,
) -> impl Fn(&Input) -> Result<BTreeMap<String, T>, String> {
    move |input| {
        let mut values = BTreeMap::new();
        let mut wrong = Vec::new();
        for (name, entry) in input.table().map_err(|_| table_of(&expectation(&parse)))? {
            match parse(&entry) {
                Ok(value) => {
                    values.insert(name, value);
                }
                Err(right) => wrong.push(format!(
                    "entry {name:?} must be {right}, but is {}",
                    entry.found()
                )),
            }
        }
        if wrong.is_empty() {
            return Ok(values);
        }
        Err(format!(
            "{} ({})",
            table_of(&expectation(&parse)),
            wrong.join("; ")
        ))
    }
}

/// A table of strings, such as labels.
pub fn string_table(input: &Input) -> Result<BTreeMap<String, String>, String> {
    table(string)(input)
}

/// What a parser wants: its refusal of a missing value.
fn expectation<T>(parse: &impl Fn(&Input) -> Result<T, String>) -> String {
    parse(&Input::missing())
        .err()
        .unwrap_or_else(|| "a value".to_owned())
}

fn list_of(item: &str) -> String {
    format!("a list, each item {item}")
}

fn table_of(entry: &str) -> String {
    format!("a table, each entry {entry}")
}
