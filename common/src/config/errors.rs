//! What is wrong with a configuration: a list of mistakes, each with its place, key and cure.
//! Only data and its printing; finding mistakes is the reader's work.

use std::fmt;
use std::path::PathBuf;

/// All mistakes found in one run. Prints them numbered, one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    mistakes: Vec<Mistake>,
}

impl ConfigErrors {
    /// Sorts by place (file from top to bottom, then environment by name, then the rest) and
    /// drops repeats. `None` when there is no mistake.
    pub(super) fn collect(mut mistakes: Vec<Mistake>) -> Option<Self> {
        mistakes.sort_by(|a, b| a.place.order().cmp(&b.place.order()));
        let mut seen = std::collections::HashSet::new();
        mistakes.retain(|mistake| seen.insert(mistake.clone()));
        (!mistakes.is_empty()).then_some(ConfigErrors { mistakes })
    }

    /// One mistake alone, such as a file that cannot be read.
    pub(super) fn single(mistake: Mistake) -> Self {
        ConfigErrors {
            mistakes: vec![mistake],
        }
    }

    /// The mistakes, in the order in which they print.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.len() {
            1 => write!(f, "1 mistake in the configuration:")?,
            n => write!(f, "{n} mistakes in the configuration:")?,
        }
        for (index, mistake) in self.mistakes.iter().enumerate() {
            write!(f, "\n  {}. {mistake}", index + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mistake {
    /// Where it stands.
    pub place: Place,
    /// The key path, such as `bus.url`; `None` when the file as a whole is wrong.
    pub key: Option<String>,
    /// What was found and what would be right.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// Where a mistake stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A position in the file; line and column count from 1, columns in characters.
    Position {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
    /// The file as a whole: something is missing, or it cannot be read.
    File(PathBuf),
}

impl Place {
    fn order(&self) -> (u8, usize, usize, &str) {
        match self {
            Place::Position { line, column, .. } => (0, *line, *column, ""),
            Place::Variable(name) => (1, 0, 0, name),
            Place::File(_) => (2, 0, 0, ""),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Position { file, line, column } => {
                write!(f, "{}:{line}:{column}", file.display())
            }
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::File(file) => write!(f, "{}", file.display()),
        }
    }
}
