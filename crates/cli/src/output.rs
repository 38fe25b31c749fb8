//! What a command prints: a table or text for people, JSON or YAML for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, Width, presets};
use serde::Serialize;

use crate::error::Failure;
use crate::escape;

/// How a command prints its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // For people. No doc comments here: they would be help texts, and the words say it.
    Table,
    // The API's own JSON.
    Json,
    // The same as YAML.
    Yaml,
}

/// Writes to standard output, at once.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(text.as_bytes())
}

/// Writes bytes to standard output, at once.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Prints a document as JSON, or as YAML.
pub(crate) fn document(value: &impl Serialize, format: Format) -> Result<(), Failure> {
    print(&rendered(value, format)?)
}

/// Prints one document of many: a line of JSON, or a document of YAML.
pub(crate) fn record(value: &impl Serialize, format: Format) -> Result<(), Failure> {
    match format {
        Format::Yaml => print(&format!("---\n{}", rendered(value, format)?)),
        Format::Json | Format::Table => {
            let text = serde_json::to_string(value).map_err(unwritable)?;
            print(&format!("{}\n", escape::json(&text)))
        }
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    /// Never cut: somebody copies from it.
    Whole(&'static str),
    /// Cut where the terminal is too narrow.
    Cut(&'static str),
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Column::Whole(heading) | Column::Cut(heading) => heading,
        }
    }
}

/// Rows below headings, cut to the terminal's width where there is one. Cells are escaped here.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Failure> {
    print(&drawn(columns, rows, width()))
}

fn drawn(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_truncation_indicator("…");
    table.set_header(columns.iter().map(|c| c.heading()));
    for row in rows {
        let mut row = Row::from(row.iter().map(|cell| escape::line(cell).into_owned()).collect::<Vec<_>>());
        row.max_height(1);
        table.add_row(row);
    }
    let last = columns.len().saturating_sub(1);
    for (i, (column, shown)) in columns.iter().zip(table.column_iter_mut()).enumerate() {
        let gap = if i == last { 0 } else { 2 };
        shown.set_padding((0, gap));
        shown.set_constraint(match column {
            Column::Whole(_) => ColumnConstraint::ContentWidth,
            // A heading is longer than nothing and shorter than anything worth reading.
            Column::Cut(heading) => {
                let least = u16::try_from(heading.len()).unwrap_or(u16::MAX).saturating_add(gap);
                ColumnConstraint::LowerBoundary(Width::Fixed(least))
            }
        });
    }
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    format!("{}\n", table.trim_fmt())
}

fn rendered(value: &impl Serialize, format: Format) -> Result<String, Failure> {
    if format == Format::Yaml {
        let yaml = serde_norway::to_string(value).map_err(unwritable)?;
        // YAML lets some characters stand that a terminal acts on; JSON is YAML, and can escape all.
        if !yaml.chars().any(|c| escape::is_unsafe(c) && c != '\n') {
            return Ok(yaml);
        }
    }
    let text = serde_json::to_string_pretty(value).map_err(unwritable)?;
    Ok(format!("{}\n", escape::json(&text)))
}

fn unwritable(error: impl std::fmt::Display) -> Failure {
    Failure::other(format!("the answer cannot be written: {error}"), "")
}

/// The terminal's width, where the output goes to one.
fn width() -> Option<u16> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(&stdout).ok().map(|size| size.ws_col).filter(|columns| *columns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 2] = [Column::Whole("NAME"), Column::Cut("WHAT")];

    fn rows() -> Vec<Vec<String>> {
        vec![vec!["web".to_owned(), "a\x1b[31mred\nfoo".to_owned()], vec!["db".to_owned(), "x".repeat(60)]]
    }

    #[test]
    fn a_row_is_one_line_of_safe_text() {
        let text = drawn(&COLUMNS, rows(), None);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains('\x1b') && text.contains(&"x".repeat(60)), "{text}");
        assert!(text.lines().all(|l| l == l.trim_end()), "{text:?}");
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let text = drawn(&COLUMNS, rows(), Some(30));
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 30), "{text}");
        let whole = drawn(&[Column::Cut("NAME"), Column::Whole("WHAT")], rows(), Some(30));
        assert!(whole.contains(&"x".repeat(60)) && whole.lines().count() == 3, "{whole}");
    }

    #[test]
    fn both_document_forms_parse_and_are_safe() {
        let value = serde_json::json!({"name": "a\u{202e}b", "list": [1, "y\x1b"]});
        for format in [Format::Json, Format::Yaml] {
            let text = rendered(&value, format).unwrap();
            assert!(!text.chars().any(|c| escape::is_unsafe(c) && c != '\n'), "{text}");
            assert_eq!(serde_norway::from_str::<serde_json::Value>(&text).unwrap(), value, "{text}");
        }
        assert_eq!(rendered(&serde_json::json!({"a": 1}), Format::Yaml).unwrap(), "a: 1\n");
    }
}
