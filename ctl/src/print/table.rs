//! How tables look: a frame of plain characters, as operators know it from `openstack`, and no cell that could
//! drive a terminal.

use comfy_table::{
    CellAlignment, ContentArrangement, ContentLineStyle, LineStyle, Table, TableStyle,
};

use crate::terminal::visible;

const STYLE: TableStyle = TableStyle::new()
    .top_border(LineStyle::new('+', '-', '+', '+'))
    .header_lines(ContentLineStyle::new('|', '|', '|'))
    .header_separator(LineStyle::new('+', '-', '+', '+'))
    .content_lines(ContentLineStyle::new('|', '|', '|'))
    .bottom_border(LineStyle::new('+', '-', '+', '+'));

/// How wide tables may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// As wide as the content: one line for each row, which `grep` and `awk` like.
    Unlimited,
    /// So many columns; longer values are broken into lines.
    Columns(u16),
}

/// A column: its title, and on which side its values stand.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    /// Text, on the left.
    Text(&'static str),
    /// Numbers, on the right.
    Number(&'static str),
}

impl Column {
    const fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) => title,
        }
    }
}

/// A table with one row for each thing.
pub(crate) fn rows(
    columns: &[Column],
    rows: impl IntoIterator<Item = Vec<String>>,
    width: Width,
) -> String {
    let mut table = Table::new();
    // What the terminal is was found out by whoever calls; the table must not look for itself.
    table
        .force_no_tty()
        .load_style(STYLE)
        .set_header(columns.iter().map(|column| column.title()));
    if let Width::Columns(columns) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(columns);
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    for (index, column) in columns.iter().enumerate() {
        if let (Column::Number(_), Some(column)) = (column, table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// A table with one row for each property of one thing.
pub(crate) fn fields<'f>(
    properties: impl IntoIterator<Item = (&'f str, String)>,
    width: Width,
) -> String {
    let columns = [Column::Text("Field"), Column::Text("Value")];
    rows(
        &columns,
        properties
            .into_iter()
            .map(|(name, value)| vec![name.to_owned(), value]),
        width,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_framed_and_harmless() {
        let columns = [Column::Text("Name"), Column::Number("Size")];
        let cells = [
            vec!["a\x1b[31m\nb".to_owned(), "7".to_owned()],
            vec!["c".to_owned(), "1024".to_owned()],
        ];
        insta::assert_snapshot!(rows(&columns, cells, Width::Unlimited), @r#"
        +------------+------+
        | Name       | Size |
        +------------+------+
        | a^[[31m^Jb |    7 |
        | c          | 1024 |
        +------------+------+
        "#);
    }

    #[test]
    fn a_narrow_terminal_breaks_long_values() {
        let value = "a sentence that does not fit into so few columns";
        let text = fields([("Key", value.to_owned())], Width::Columns(30));
        assert!(
            text.lines().all(|line| line.chars().count() <= 30),
            "{text}"
        );
        assert!(text.lines().count() > 5, "{text}");
    }
}
