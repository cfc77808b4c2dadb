//! The TOML text as a tree that remembers where each key and value stands. Syntax only: what a
//! key means is the reader's business.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value, and the byte ranges of its key and itself in the text.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) key_at: Range<usize>,
    pub(super) at: Range<usize>,
    pub(super) value: Value,
}

/// A TOML value. Numbers are kept as written, so that decimals stay exact.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    /// `None` when it does not fit 64 bits.
    Integer(String, Option<i64>),
    Float(String),
    Boolean(bool),
    Date(String),
    List(Vec<Node>),
    Table(Table),
}

pub(super) type Table = BTreeMap<String, Node>;

/// A syntax mistake: byte position and what the parser says. The text itself is not kept, it
/// may hold a secret.
#[derive(Debug)]
pub(super) struct SyntaxMistake {
    pub(super) at: usize,
    pub(super) what: String,
}

/// Reads a document as far as it can be understood, and names every syntax mistake.
pub(super) fn parse(text: &str) -> (Table, Vec<SyntaxMistake>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let errors = errors
        .into_iter()
        .map(|error| SyntaxMistake {
            at: error.span().map_or(0, |span| span.start),
            what: error.message().replace('\n', "; "),
        })
        .collect();
    (convert_table(table.get_ref()), errors)
}

/// Reads one value, such as a list from an environment variable.
pub(super) fn parse_value(text: &str) -> Option<Node> {
    DeValue::parse(text).ok().map(|value| convert(0..0, &value))
}

fn convert_table(table: &DeTable<'_>) -> Table {
    table
        .iter()
        .map(|(key, value)| {
            (
                key.get_ref().clone().into_owned(),
                convert(key.span(), value),
            )
        })
        .collect()
}

fn convert(key_at: Range<usize>, value: &Spanned<DeValue<'_>>) -> Node {
    let at = value.span();
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(number) => Value::Integer(
            number.to_string(),
            i64::from_str_radix(number.as_str(), number.radix()).ok(),
        ),
        DeValue::Float(number) => Value::Float(number.as_str().to_owned()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| convert(item.span(), item))
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table)),
    };
    Node { key_at, at, value }
}

/// Line and column (both from 1, columns in characters) of a byte position. A position past
/// the end, or inside a character, is taken as the end of what stands before it.
pub(super) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let at = text.floor_char_boundary(at.min(text.len()));
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one_in_characters() {
        let text = "a = 1\nö = \"ü\" # x\n";
        let check = |at, expected| assert_eq!(line_and_column(text, at), expected, "{at}");
        check(0, (1, 1));
        check(4, (1, 5));
        check(6, (2, 1));
        check(11, (2, 5));
        check(7, (2, 1));
        check(9999, (3, 1));
    }

    #[test]
    fn numbers_are_kept_as_written() {
        let (table, errors) = parse("a = 4.50\nb = 0x1F\nc = 1_000\nd = 99999999999999999999\n");
        assert!(errors.is_empty(), "{errors:?}");
        assert!(matches!(&table["a"].value, Value::Float(text) if text == "4.50"));
        assert!(matches!(&table["b"].value, Value::Integer(_, Some(31))));
        assert!(matches!(&table["c"].value, Value::Integer(_, Some(1000))));
        assert!(matches!(&table["d"].value, Value::Integer(_, None)));
    }
}
