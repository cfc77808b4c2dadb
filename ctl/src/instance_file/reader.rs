//! A TOML text as sections whose keys are taken one by one; what is wrong with them is collected with its place.
//!
//! It knows no key of the instance file. The service configuration's reader does not serve here: its keys can
//! come from environment variables and its sections do not repeat, while an instance file comes alone and has
//! a section for each network.

use std::{
    collections::BTreeMap,
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use berth_common::config::{Mistake, Place, closest, redact_url};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// How much of a wrong string is shown.
const SHOWN_CHARACTERS: usize = 80;

/// One key, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field<T> {
    /// It is not there.
    Absent,
    /// It is there and wrong; the mistake has been noted.
    Wrong,
    /// It is there.
    Is(T),
}

impl<T> Field<T> {
    /// The value, if there is one.
    pub(super) fn value(self) -> Option<T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Wrong => None,
        }
    }
}

/// A table of the file, and which of its keys somebody asked for.
#[derive(Debug)]
pub(super) struct Section<'t> {
    path: String,
    entries: BTreeMap<&'t str, (usize, &'t Spanned<DeValue<'t>>)>,
    at: Option<usize>,
    asked: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// The outermost table.
    pub(super) fn root(table: &'t DeTable<'t>) -> Self {
        Self::new(String::new(), table, None)
    }

    fn new(path: String, table: &'t DeTable<'t>, at: Option<usize>) -> Self {
        let entries = table
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), (key.span().start, value)))
            .collect();
        Self {
            path,
            entries,
            at,
            asked: Vec::new(),
        }
    }

    /// Whether the key is there, whatever it holds.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    fn take(&mut self, name: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.asked.push(name);
        self.entries.get(name).map(|(_, value)| *value)
    }
}

/// What a section holds whose keys the file chooses. The errors say what is right: "must be …".
pub(super) struct Entries<K, V> {
    /// How many keys there may be.
    pub(super) most: usize,
    /// What a key is.
    pub(super) key: fn(&str) -> Result<K, String>,
    /// What a value is.
    pub(super) value: fn(&DeValue<'_>) -> Result<V, String>,
}

/// Collects the mistakes of one file.
#[derive(Debug)]
pub(super) struct Reader<'t> {
    file: PathBuf,
    text: &'t str,
    mistakes: Vec<Mistake>,
    syntax_is_broken: bool,
}

impl<'t> Reader<'t> {
    /// Starts on a text that was parsed as far as possible, with its syntax errors.
    pub(super) fn new(file: &Path, text: &'t str, syntax: &[toml::de::Error]) -> Self {
        let mut reader = Self {
            file: file.to_owned(),
            text,
            mistakes: Vec::new(),
            syntax_is_broken: !syntax.is_empty(),
        };
        for error in syntax {
            let place = reader.place(error.span().map_or(0, |span| span.start));
            let what = format!("not valid TOML: {}", error.message().replace('\n', "; "));
            reader.mistakes.push(Mistake {
                place,
                key: None,
                what,
            });
        }
        reader
    }

    /// A string that `parse` accepts; its error completes the key's name: "must be …".
    pub(super) fn text<T>(
        &mut self,
        section: &mut Section<'t>,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Field<T> {
        let Some(value) = section.take(name) else {
            return Field::Absent;
        };
        match string(value.get_ref()).and_then(parse) {
            Ok(parsed) => Field::Is(parsed),
            Err(right) => self.wrong(section, name, value, &right),
        }
    }

    /// An integer in a range; `unit` is told with the range.
    pub(super) fn integer<T: TryFrom<u64> + PartialOrd + Display>(
        &mut self,
        section: &mut Section<'t>,
        name: &'static str,
        range: &RangeInclusive<T>,
        unit: &str,
    ) -> Field<T> {
        let Some(value) = section.take(name) else {
            return Field::Absent;
        };
        match whole_number(value.get_ref(), range, unit) {
            Ok(number) => Field::Is(number),
            Err(right) => self.wrong(section, name, value, &right),
        }
    }

    /// A list of strings that `parse` accepts, at most `most` of them. Counted from 1, as people do.
    pub(super) fn texts<T>(
        &mut self,
        section: &mut Section<'t>,
        name: &'static str,
        most: usize,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(value) = section.take(name) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong::<()>(section, name, value, "must be a list of strings");
            return Vec::new();
        };
        self.at_most(section, name, items.len(), most);
        let mut texts = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match string(item.get_ref()).and_then(&parse) {
                Ok(text) => texts.push(text),
                Err(right) => {
                    let key = format!("{}[{}]", section.key(name), index + 1);
                    self.wrong_value(key, item, &right);
                }
            }
        }
        texts
    }

    /// A section whose keys the file chooses.
    pub(super) fn entries<K: Ord, V>(
        &mut self,
        above: &mut Section<'t>,
        name: &'static str,
        grammar: &Entries<K, V>,
    ) -> BTreeMap<K, V> {
        let Some(section) = self.section(above, name) else {
            return BTreeMap::new();
        };
        self.at_most(above, name, section.entries.len(), grammar.most);
        let mut entries = BTreeMap::new();
        for (word, (at, value)) in &section.entries {
            let parsed = (grammar.value)(value.get_ref());
            let key = (grammar.key)(word);
            if let Err(right) = &key {
                self.note(self.place(*at), section.key(word), right.clone());
            }
            if let Err(right) = &parsed {
                self.wrong_value(section.key(word), value, right);
            }
            entries.extend(key.ok().zip(parsed.ok()));
        }
        entries
    }

    /// A section: `[name]` or an inline table.
    pub(super) fn section(
        &mut self,
        above: &mut Section<'t>,
        name: &'static str,
    ) -> Option<Section<'t>> {
        let value = above.take(name)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(
                above.key(name),
                table,
                Some(value.span().start),
            )),
            _ => {
                let right = format!("must be a section, written [{}]", above.key(name));
                self.wrong::<()>(above, name, value, &right);
                None
            }
        }
    }

    /// The sections of a list: `[[name]]` or a list of inline tables. Counted from 1, as people do.
    pub(super) fn sections(
        &mut self,
        above: &mut Section<'t>,
        name: &'static str,
    ) -> Vec<Section<'t>> {
        let Some(value) = above.take(name) else {
            return Vec::new();
        };
        let right = format!(
            "must be a list of sections, each written [[{}]]",
            above.key(name)
        );
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong::<()>(above, name, value, &right);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{}]", above.key(name), index + 1);
            match item.get_ref() {
                DeValue::Table(table) => {
                    sections.push(Section::new(path, table, Some(item.span().start)))
                }
                _ => self.wrong_value(path, item, &right),
            }
        }
        sections
    }

    /// Notes that a key must be there. Silent where a syntax mistake may have hidden it.
    pub(super) fn missing(&mut self, section: &Section<'t>, name: &str, right: &str) {
        if self.syntax_is_broken {
            return;
        }
        let place = section
            .at
            .map_or_else(|| Place::File(self.file.clone()), |at| self.place(at));
        self.note(place, section.key(name), format!("is missing; {right}"));
    }

    /// Notes a mistake of the caller's own finding, at the key's place.
    pub(super) fn reject(&mut self, section: &Section<'t>, name: &str, what: String) {
        let at = section
            .entries
            .get(name)
            .map(|(_, value)| value.span().start)
            .or(section.at);
        let place = at.map_or_else(|| Place::File(self.file.clone()), |at| self.place(at));
        self.note(place, section.key(name), what);
    }

    /// Notes that a key has more parts than it may.
    pub(super) fn at_most(&mut self, section: &Section<'t>, name: &str, found: usize, most: usize) {
        if found > most {
            let what = format!("must have at most {most} entries; found {found}");
            self.reject(section, name, what);
        }
    }

    /// Ends a section: keys that nobody asked for are mistakes. `elsewhere` are the full names of keys of other
    /// sections, to suggest one that was put into the wrong place.
    pub(super) fn end(&mut self, section: &Section<'t>, elsewhere: &[&str]) {
        for (name, (at, value)) in &section.entries {
            if section.asked.contains(name) {
                continue;
            }
            let beside = closest(name, section.asked.iter().copied()).map(|near| section.key(near));
            let other = || {
                elsewhere
                    .iter()
                    .find(|key| key.rsplit('.').next() == Some(name))
                    .map(|key| (*key).to_owned())
            };
            let hint = beside
                .or_else(other)
                .map(|near| format!("; did you mean {near}?"))
                .unwrap_or_else(|| format!("; known here: {}", section.asked.join(", ")));
            let kind = if value.get_ref().is_table() {
                "section"
            } else {
                "key"
            };
            self.note(
                self.place(*at),
                section.key(name),
                format!("unknown {kind}{hint}"),
            );
        }
    }

    /// All mistakes, from the top of the file to its end, then those without a line.
    pub(super) fn finish(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes;
        mistakes.sort_by_key(|mistake| match mistake.place {
            Place::Position { line, column, .. } => (line, column),
            Place::Variable(_) | Place::File(_) => (usize::MAX, 0),
        });
        mistakes
    }

    fn wrong<T>(
        &mut self,
        section: &Section<'t>,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        right: &str,
    ) -> Field<T> {
        self.wrong_value(section.key(name), value, right);
        Field::Wrong
    }

    fn wrong_value(&mut self, key: String, value: &Spanned<DeValue<'_>>, right: &str) {
        let what = format!("{right}; found {}", found(value.get_ref()));
        self.note(self.place(value.span().start), key, what);
    }

    fn note(&mut self, place: Place, key: String, what: String) {
        // Whatever stands on a line that is no TOML was told as such.
        let told = |mistake: &Mistake| mistake.key.is_none() && same_line(&mistake.place, &place);
        if !self.mistakes.iter().any(told) {
            self.mistakes.push(Mistake {
                place,
                key: Some(key),
                what,
            });
        }
    }

    fn place(&self, at: usize) -> Place {
        let before = &self.text[..self.text.floor_char_boundary(at.min(self.text.len()))];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::Position {
            file: self.file.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

fn same_line(a: &Place, b: &Place) -> bool {
    matches!((a, b), (Place::Position { line: a, .. }, Place::Position { line: b, .. }) if a == b)
}

/// The text of a string.
pub(super) fn string<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        _ => Err("must be a string".to_owned()),
    }
}

/// A number in a range; `unit` is told with the range.
pub(super) fn whole_number<T: TryFrom<u64> + PartialOrd + Display>(
    value: &DeValue<'_>,
    range: &RangeInclusive<T>,
    unit: &str,
) -> Result<T, String> {
    let number = match value {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    number
        .and_then(|number| T::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            format!(
                "must be an integer from {} to {}{unit}",
                range.start(),
                range.end()
            )
        })
}

/// What was found, in words.
fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let text = redact_url(text);
            let shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
            let cut = if shown.len() < text.len() { "…" } else { "" };
            format!("the string \"{}{cut}\"", shown.escape_debug())
        }
        DeValue::Integer(number) => format!("the integer {number}"),
        DeValue::Float(number) => format!("the decimal {}", number.as_str()),
        DeValue::Boolean(value) => format!("the boolean {value}"),
        DeValue::Datetime(date) => format!("the date {date}"),
        DeValue::Array(items) => format!("a list of {}", items.len()),
        DeValue::Table(_) => "a section".to_owned(),
    }
}
