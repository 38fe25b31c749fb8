//! What was found, as a table and as JSON.

use serde_json::{Value, json};

use crate::stats::{Estimate, estimate, median};

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

/// What the bar is about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Of {
    Figure,
    Ratio,
}

/// One figure beside its bar.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    runs: usize,
    ours: Estimate,
    by_hand: Option<f64>,
    ratio: Option<Estimate>,
    bar: Bar,
    of: Of,
}

impl Row {
    /// A figure whose bar is absolute.
    pub(crate) fn figure(what: impl Into<String>, unit: &'static str, ours: &[f64], bar: Bar) -> Self {
        let (runs, ours) = (ours.len(), estimate(ours));
        Self { what: what.into(), unit, runs, ours, by_hand: None, ratio: None, bar, of: Of::Figure }
    }

    /// Pairs whose bar is about their ratio.
    pub(crate) fn pairs(what: impl Into<String>, unit: &'static str, pairs: &[(f64, f64)], bar: Bar) -> Self {
        let ours: Vec<f64> = pairs.iter().map(|p| p.0).collect();
        let by_hand: Vec<f64> = pairs.iter().map(|p| p.1).collect();
        let ratios: Vec<f64> = pairs.iter().map(|p| p.0 / p.1).collect();
        let (by_hand, ratio) = (Some(median(&by_hand)), Some(estimate(&ratios)));
        Self { by_hand, ratio, of: Of::Ratio, ..Self::figure(what, unit, &ours, bar) }
    }

    /// Pairs whose bar is absolute.
    pub(crate) fn pairs_within(what: impl Into<String>, unit: &'static str, pairs: &[(f64, f64)], bar: Bar) -> Self {
        Self { of: Of::Figure, ..Self::pairs(what, unit, pairs, bar) }
    }

    fn judged(&self) -> f64 {
        match (self.of, self.ratio) {
            (Of::Ratio, Some(ratio)) => ratio.median,
            _ => self.ours.median,
        }
    }

    fn holds(&self) -> bool {
        match self.bar {
            Bar::AtMost(bar) => self.judged() <= bar,
            Bar::AtLeast(bar) => self.judged() >= bar,
        }
    }

    fn bar_text(&self) -> String {
        let unit = if self.of == Of::Ratio { "x" } else { self.unit };
        match self.bar {
            Bar::AtMost(bar) => format!("<= {} {unit}", short(bar)),
            Bar::AtLeast(bar) => format!(">= {} {unit}", short(bar)),
        }
    }

    fn cells(&self) -> [String; 7] {
        let ratio = self.ratio.map(|r| format!("{:.3} ({:.3}-{:.3})", r.median, r.low, r.high));
        [
            self.what.clone(),
            self.runs.to_string(),
            format!("{} {} ({}-{})", short(self.ours.median), self.unit, short(self.ours.low), short(self.ours.high)),
            self.by_hand.map_or_else(|| "-".to_owned(), |b| format!("{} {}", short(b), self.unit)),
            ratio.unwrap_or_else(|| "-".to_owned()),
            self.bar_text(),
            if self.holds() { "holds" } else { "MISSED" }.to_owned(),
        ]
    }

    fn json(&self) -> Value {
        let interval = |e: Estimate| json!({ "low": e.low, "median": e.median, "high": e.high });
        let bar = match self.bar {
            Bar::AtMost(bar) => json!({ "at_most": bar }),
            Bar::AtLeast(bar) => json!({ "at_least": bar }),
        };
        json!({
            "what": self.what,
            "unit": self.unit,
            "n": self.runs,
            "roost": interval(self.ours),
            "by_hand_median": self.by_hand,
            "ratio": self.ratio.map(interval),
            "bar": bar,
            "bar_is_about": if self.of == Of::Ratio { "ratio" } else { "roost" },
            "holds": self.holds(),
        })
    }
}

/// The rows as a table of Markdown, its columns aligned.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = ["what", "n", "Roost", "by hand", "ratio", "bar", ""].map(str::to_owned);
    let lines: Vec<[String; 7]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let widths: Vec<usize> = (0..7).map(|c| lines.iter().map(|l| l[c].len()).max().unwrap_or(0).max(3)).collect();
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if n == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            text.push_str(&format!("| {} |\n", rule.join(" | ")));
        }
    }
    text
}

/// Everything for a program to read.
pub(crate) fn json(facts: &[(&'static str, String)], rows: &[Row]) -> Value {
    let facts: serde_json::Map<String, Value> =
        facts.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    json!({ "machine": facts, "rows": rows.iter().map(Row::json).collect::<Vec<_>>() })
}

/// Three digits that say something.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_pairs_and_not_of_medians() {
        let row = Row::pairs("x", "ms", &[(2.0, 1.0), (30.0, 10.0), (400.0, 100.0)], Bar::AtMost(3.0));
        assert_eq!(row.ratio.map(|r| r.median), Some(3.0));
        assert!(row.holds());
        let row = Row::pairs("x", "/s", &[(2.0, 1.0)], Bar::AtLeast(2.1));
        assert!(!row.holds());
    }

    #[test]
    fn a_bar_in_units_judges_the_figure_even_of_pairs() {
        let row = Row::pairs_within("x", "ms", &[(20.0, 1.0)], Bar::AtMost(19.0));
        assert!(!row.holds());
        assert_eq!(row.bar_text(), "<= 19.0 ms");
        assert_eq!(Row::figure("x", "s", &[1.5], Bar::AtMost(2.0)).json()["holds"], true);
    }
}
