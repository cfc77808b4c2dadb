//! The reader: each access names a key, takes its value and collects what is wrong with it;
//! [`Reader::finish`] gives the configuration, or every mistake at once.
//!
//! It does no I/O; [`Reader::from_file_and_env`] reads the file through `file.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::document::{self, Node, Table, Value};
use super::environment::{Environment, variable_form};
use super::errors::{ConfigErrors, Mistake, Place};
use super::file;
use super::input::Input;
use super::secret::names_a_secret;
use super::suggest::{closest, distance};

/// Reads typed values out of a TOML text and environment variables. The module's own page
/// shows how.
#[derive(Debug)]
pub struct Reader {
    file: PathBuf,
    text: String,
    tree: Table,
    environment: Environment,
    /// Every key asked for, and what it was asked for as.
    known: BTreeMap<Vec<String>, Known>,
    /// Lines that are not valid TOML: what stands there has been reported already.
    broken_lines: BTreeSet<usize>,
    mistakes: Vec<Mistake>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// A value; if it is a table, all of it.
    Value,
    /// A table whose entries are asked for one by one.
    Section,
}

/// What the lookup of one key came to.
enum Outcome<T> {
    Absent,
    /// Present, but wrong; the mistake has been noted.
    Wrong,
    Is(T),
}

impl Reader {
    /// Reads a file, to be overridden by `variables` (normally `std::env::vars_os()`) that start
    /// with `prefix`. Fails at once only when the file itself cannot be read.
    pub fn from_file_and_env(
        path: &Path,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        prefix: &str,
    ) -> Result<Self, ConfigErrors> {
        let text = file::read(path)?;
        Ok(Self::from_text(path, &text, variables, prefix))
    }

    /// Reads a text; `name` stands for the file in mistakes. Syntax mistakes are reported by
    /// [`Reader::finish`] along with all others.
    pub fn from_text(
        name: impl Into<PathBuf>,
        text: &str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        prefix: &str,
    ) -> Self {
        let (tree, syntax) = document::parse(text);
        let mut reader = Reader {
            file: name.into(),
            text: text.to_owned(),
            tree,
            environment: Environment::new(variables, prefix),
            known: BTreeMap::new(),
            broken_lines: BTreeSet::new(),
            mistakes: Vec::new(),
        };
        for mistake in syntax {
            let place = reader.place(mistake.at);
            if let Place::Position { line, .. } = place {
                reader.broken_lines.insert(line);
            }
            let what = format!("not valid TOML: {}", mistake.what);
            reader.mistakes.push(Mistake {
                place,
                key: None,
                what,
            });
        }
        reader
    }

    /// A key that must be there. `None` means that a mistake was noted; go on reading.
    pub fn required<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Input) -> Result<T, String>,
    ) -> Option<T> {
        match self.read(key, &parse) {
            Outcome::Is(value) => Some(value),
            Outcome::Wrong => None,
            Outcome::Absent => {
                self.note_missing(key, parse(&Input::missing()).err());
                None
            }
        }
    }

    /// A key with a default. The default also stands in for a wrong value, which
    /// [`Reader::finish`] then reports.
    pub fn optional<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Input) -> Result<T, String>,
        default: T,
    ) -> T {
        match self.read(key, &parse) {
            Outcome::Is(value) => value,
            Outcome::Wrong | Outcome::Absent => default,
        }
    }

    /// A key that may be absent and has no default.
    pub fn maybe<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Input) -> Result<T, String>,
    ) -> Option<T> {
        match self.read(key, &parse) {
            Outcome::Is(value) => Some(value),
            Outcome::Wrong | Outcome::Absent => None,
        }
    }

    /// The names of the sections below a section, in order: for `storage.pools` with
    /// `[storage.pools.fast]`, that is `fast`. Read each with keys such as
    /// `storage.pools.fast.path`. Names are letters, digits, `_` and `-`; others are a mistake.
    pub fn names_of(&mut self, section: &str) -> Vec<String> {
        let path = split(section);
        self.known.entry(path.clone()).or_insert(Known::Section);
        let mut names = Vec::new();
        let children: Vec<(String, usize)> = match self.find(&path) {
            Outcome::Is(Node {
                value: Value::Table(table),
                ..
            }) => table
                .iter()
                .map(|(name, node)| (name.clone(), node.key_at.start))
                .collect(),
            Outcome::Is(node) => {
                self.note_not_a_section(section, &node);
                Vec::new()
            }
            Outcome::Wrong | Outcome::Absent => Vec::new(),
        };
        for (name, at) in children {
            let full = [path.as_slice(), std::slice::from_ref(&name)].concat();
            if plain(&name) {
                self.known.entry(full).or_insert(Known::Section);
                names.push(name);
            } else {
                self.known.insert(full, Known::Value);
                let what = "a name may hold only letters, digits, \"_\" and \"-\"".to_owned();
                self.note(self.place(at), Some(format!("{section}.{name:?}")), what);
            }
        }
        for name in self.environment.names_below(&path) {
            let new = !names.iter().any(|known| {
                variable_form(std::slice::from_ref(known))
                    == variable_form(std::slice::from_ref(&name))
            });
            if new && plain(&name) {
                names.push(name);
            }
        }
        names.sort();
        names
    }

    /// Notes a mistake of the caller's own finding, such as two keys that contradict each other.
    /// It is shown at the key's place.
    pub fn reject(&mut self, key: &str, what: impl Into<String>) {
        let path = split(key);
        let place = match (self.environment.lookup(&path), self.find(&path)) {
            (Some((name, _)), _) => Place::Variable(name),
            (None, Outcome::Is(node)) => self.place(node.at.start),
            (None, _) => Place::File(self.file.clone()),
        };
        self.note(place, Some(key.to_owned()), what.into());
    }

    /// Ends the reading: unknown keys become mistakes, and if there is any mistake at all, the
    /// answer is all of them. Otherwise `build` makes the configuration; it may use `?` on what
    /// [`Reader::required`] gave, all of which is there by then.
    pub fn finish<T>(mut self, build: impl FnOnce() -> Option<T>) -> Result<T, ConfigErrors> {
        self.note_unknown_keys();
        self.note_unknown_variables();
        if let Some(errors) = ConfigErrors::collect(std::mem::take(&mut self.mistakes)) {
            return Err(errors);
        }
        build().ok_or_else(|| {
            ConfigErrors::single(Mistake {
                place: Place::File(self.file),
                key: None,
                what: "was refused without a reason, which is a defect in berth".to_owned(),
            })
        })
    }

    fn read<T>(&mut self, key: &str, parse: &impl Fn(&Input) -> Result<T, String>) -> Outcome<T> {
        let path = split(key);
        self.known.insert(path.clone(), Known::Value);
        let in_file = self.find(&path);
        let (place, input) = if let Some((name, value)) = self.environment.lookup(&path) {
            let place = Place::Variable(name);
            match value.into_string() {
                Ok(text) => (place, Input::from_environment(text)),
                Err(_) => {
                    self.note(place, Some(key.to_owned()), "is not UTF-8 text".to_owned());
                    return Outcome::Wrong;
                }
            }
        } else {
            match in_file {
                Outcome::Is(node) => (self.place(node.at.start), Input::from_file(node.value)),
                Outcome::Absent => return Outcome::Absent,
                Outcome::Wrong => return Outcome::Wrong,
            }
        };
        if path.last().is_some_and(|name| names_a_secret(name)) {
            input.hide();
        }
        match parse(&input) {
            Ok(value) => Outcome::Is(value),
            Err(right) => {
                let what = format!("must be {right}; found {}", input.found());
                self.note(place, Some(key.to_owned()), what);
                Outcome::Wrong
            }
        }
    }

    /// Looks a path up in the file. A value where a section has to be is a mistake, and noted.
    fn find(&mut self, path: &[String]) -> Outcome<Node> {
        let mut table = &self.tree;
        for (depth, name) in path.iter().enumerate() {
            let Some(node) = table.get(name) else {
                return Outcome::Absent;
            };
            if depth + 1 == path.len() {
                return Outcome::Is(node.clone());
            }
            match &node.value {
                Value::Table(below) => table = below,
                _ => {
                    let node = node.clone();
                    self.note_not_a_section(&path[..=depth].join("."), &node);
                    return Outcome::Wrong;
                }
            }
        }
        Outcome::Absent
    }

    fn place(&self, at: usize) -> Place {
        let (line, column) = document::line_and_column(&self.text, at);
        Place::Position {
            file: self.file.clone(),
            line,
            column,
        }
    }

    /// Notes a mistake, unless it stands on a line that is no valid TOML anyway.
    fn note(&mut self, place: Place, key: Option<String>, what: String) {
        if let Place::Position { line, .. } = &place
            && self.broken_lines.contains(line)
        {
            return;
        }
        self.mistakes.push(Mistake { place, key, what });
    }

    fn note_missing(&mut self, key: &str, right: Option<String>) {
        // What looks missing may stand on a line that could not be understood.
        if !self.broken_lines.is_empty() {
            return;
        }
        let right = right
            .map(|right| format!("; must be {right}"))
            .unwrap_or_default();
        let path = split(key);
        let cure = match (self.environment.name_of(&path), path.as_slice()) {
            (Some(name), [section @ .., _]) => {
                format!("set it in [{}] or as {name}", section.join("."))
            }
            _ => "set it at the top of the file".to_owned(),
        };
        let place = Place::File(self.file.clone());
        self.note(
            place,
            Some(key.to_owned()),
            format!("is missing{right}; {cure}"),
        );
    }

    fn note_not_a_section(&mut self, section: &str, node: &Node) {
        let found = match node.value {
            Value::List(_) => "a list",
            _ => "a single value",
        };
        let what = format!("must be a section, written [{section}]; found {found}");
        self.note(
            self.place(node.key_at.start),
            Some(section.to_owned()),
            what,
        );
    }

    fn note_unknown_keys(&mut self) {
        let mut unknown = Vec::new();
        self.collect_unknown(&self.tree, &[], &mut unknown);
        for (path, node) in unknown {
            let kind = match node.value {
                Value::Table(_) => "section",
                _ => "key",
            };
            let hint = self
                .suggest(&path)
                .map(|name| format!("; did you mean {name}?"));
            let what = format!("unknown {kind}{}", hint.unwrap_or_default());
            self.note(self.place(node.key_at.start), Some(shown(&path)), what);
        }
    }

    /// The topmost keys of the file that nothing asked for.
    fn collect_unknown(
        &self,
        table: &Table,
        above: &[String],
        unknown: &mut Vec<(Vec<String>, Node)>,
    ) {
        for (name, node) in table {
            let path = [above, std::slice::from_ref(name)].concat();
            let holds_known_keys = self.known.keys().any(|key| below(key, &path));
            match (self.known.get(&path), &node.value) {
                (Some(Known::Value), _) => {}
                (None, _) if !holds_known_keys => unknown.push((path, node.clone())),
                (_, Value::Table(table)) => self.collect_unknown(table, &path, unknown),
                // A value where a section should be: noted when it was looked up.
                _ => {}
            }
        }
    }

    /// A known name that an unknown one may stand for: a near one beside it, or else the same
    /// name in another section.
    fn suggest(&self, path: &[String]) -> Option<String> {
        let (name, above) = path.split_last()?;
        let beside: BTreeSet<&str> = self
            .known
            .keys()
            .filter(|key| below(key, above))
            .filter_map(|key| key.get(above.len()).map(String::as_str))
            .collect();
        if let Some(near) = closest(name, beside) {
            return Some([above, &[near.to_owned()]].concat().join("."));
        }
        let mut elsewhere = self.known.keys().filter(|key| key.last() == Some(name));
        elsewhere.next().map(|key| key.join("."))
    }

    fn note_unknown_variables(&mut self) {
        let names: BTreeSet<String> = self
            .known
            .keys()
            .filter_map(|key| self.environment.name_of(key))
            .collect();
        let sections: BTreeSet<String> = self
            .known
            .iter()
            .filter(|(key, known)| key.len() > 1 || **known == Known::Section)
            .filter_map(|(key, _)| key.first())
            .map(|section| section.to_ascii_lowercase().replace('-', "_"))
            .collect();
        let mut unknown = Vec::new();
        for name in self
            .environment
            .names()
            .filter(|name| !names.contains(*name))
        {
            let Some(section) = self.environment.section_of(name) else {
                continue;
            };
            // One letter off a section of ours is a slip; anything further is another service's.
            let slip = sections.iter().any(|known| distance(known, &section) == 1);
            if sections.contains(&section) || slip {
                // Letter case alone counts as no edit, and is the likeliest slip of all.
                let upper = name.to_ascii_uppercase();
                let near = names
                    .contains(&upper)
                    .then_some(upper.as_str())
                    .or_else(|| closest(name, names.iter().map(String::as_str)));
                let hint = near
                    .map(|near| format!("; did you mean {near}?"))
                    .unwrap_or_default();
                unknown.push((name.to_owned(), format!("sets no known key{hint}")));
            }
        }
        for (name, what) in unknown {
            self.note(Place::Variable(name), None, what);
        }
    }
}

fn split(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// Whether a key is strictly below a section.
fn below(key: &[String], section: &[String]) -> bool {
    key.len() > section.len() && key.starts_with(section)
}

fn plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// A key path as TOML writes it: parts that are not plain are quoted.
fn shown(path: &[String]) -> String {
    let parts: Vec<String> = path
        .iter()
        .map(|part| {
            if plain(part) {
                part.clone()
            } else {
                format!("{part:?}")
            }
        })
        .collect();
    parts.join(".")
}
