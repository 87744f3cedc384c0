//! What was measured: one value a round, and what is made of them at the end.
//!
//! ```text
//!   add(name, database, unit, value) ──> rows ──> median, beside the least and the most
//!                                                   ├─> ratio to another row of the same run, where one is named
//!                                                   └─> table, charts, JSON
//! ```

use std::{fmt::Write as _, path::Path};

use serde_json::{Value, json};

use crate::harness::Database;

/// What a row is set against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goal {
    /// The row of the same database whose median this one's is divided by.
    pub against: Option<&'static str>,
    /// At least this.
    pub least: Option<f64>,
    /// At most this.
    pub most: Option<f64>,
}

impl Goal {
    /// At least this much.
    pub fn least(value: f64) -> Self {
        Self { least: Some(value), ..Self::default() }
    }

    /// At most this much.
    pub fn most(value: f64) -> Self {
        Self { most: Some(value), ..Self::default() }
    }

    /// Beside that row.
    pub fn against(mut self, row: &'static str) -> Self {
        self.against = Some(row);
        self
    }
}

/// Everything measured in a run.
#[derive(Debug, Default)]
pub struct Figures {
    rows: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Row {
    name: String,
    database: &'static str,
    unit: &'static str,
    goal: Goal,
    values: Vec<f64>,
}

impl Figures {
    /// One more value.
    pub fn add(&mut self, name: &str, database: Option<Database>, unit: &'static str, value: f64, goal: Goal) {
        let database = word(database);
        println!("    {name} [{database}] {} {unit}", short(value));
        let found = self.rows.iter_mut().find(|row| row.name == name && row.database == database);
        match found {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { name: name.to_owned(), database, unit, goal, values: vec![value] }),
        }
    }

    /// Something to know beside the figures.
    pub fn note(&mut self, text: String) {
        println!("    {text}");
        self.notes.push(text);
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| measured | on | median | least | most | unit | ratio | goal |\n|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let (least, most) = row.ends();
            let ratio = self.ratio(row).map(|(ratio, of)| format!("{ratio:.2} of {of}")).unwrap_or_default();
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} | {} | {ratio} | {} |",
                row.name,
                row.database,
                short(median(&row.values)),
                short(least),
                short(most),
                row.unit,
                row.judged()
            );
        }
        table
    }

    /// What has a ratio, for people who look: a chart for each database and unit in the language that forges draw in their pages,
    /// bars for ours, a line for what they are set against.
    pub fn plots(&self) -> String {
        let mut plots = String::new();
        for (database, unit) in DATABASES.into_iter().flat_map(|on| ["per s", "ms"].map(|unit| (on, unit))) {
            let rows = self.rows.iter().filter(|row| (row.database, row.unit) == (database, unit));
            let bars: Vec<_> = rows.filter_map(|row| Some((row, self.ratio(row)?.0))).collect();
            if bars.is_empty() {
                continue;
            }
            let list = |what: &dyn Fn(&(&Row, f64)) -> String| bars.iter().map(what).collect::<Vec<_>>().join(", ");
            let names = list(&|(row, _)| format!("\"{}\"", row.name));
            let ours = list(&|(row, _)| format!("{:.2}", median(&row.values)));
            let theirs = list(&|(row, ratio)| format!("{:.2}", median(&row.values) / ratio));
            let _ = write!(
                plots,
                "```mermaid\nxychart-beta\n  title \"{database}, {unit}: bars, and a line for what they are set against\"\n  x-axis [{names}]\n  \
                 y-axis \"{unit}\" 0 --> {}\n  bar [{ours}]\n  line [{theirs}]\n```\n",
                short(bars.iter().map(|(row, ratio)| median(&row.values) * (1.0 / ratio).max(1.0)).fold(0.0, f64::max)),
            );
        }
        plots
    }

    /// For programs.
    pub fn write(&self, path: &Path, about: &Value) -> std::io::Result<()> {
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row(row)).collect();
        let all = json!({ "about": about, "figures": rows, "notes": self.notes });
        std::fs::write(path, format!("{all:#}\n"))
    }

    fn row(&self, row: &Row) -> Value {
        let ratio = self.ratio(row);
        json!({
            "name": row.name, "database": row.database, "unit": row.unit, "median": median(&row.values), "values": row.values,
            "against": ratio.map(|(_, of)| of), "ratio": ratio.map(|(ratio, _)| ratio), "least": row.goal.least,
            "most": row.goal.most,
        })
    }

    fn ratio(&self, row: &Row) -> Option<(f64, &'static str)> {
        let of = row.goal.against?;
        let other = self.rows.iter().find(|other| other.name == of && other.database == row.database)?;
        Some((median(&row.values) / median(&other.values), of))
    }
}

impl Row {
    fn ends(&self) -> (f64, f64) {
        let ends = (f64::INFINITY, f64::NEG_INFINITY);
        self.values.iter().fold(ends, |(least, most), value| (least.min(*value), most.max(*value)))
    }

    fn judged(&self) -> String {
        let middle = median(&self.values);
        let (sign, bound, met) = match (self.goal.least, self.goal.most) {
            (Some(least), _) => ("at least", least, middle >= least),
            (None, Some(most)) => ("at most", most, middle <= most),
            (None, None) => return String::new(),
        };
        format!("{sign} {}: {}", short(bound), if met { "met" } else { "not met" })
    }
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value that this part of them does not exceed; 0 for none.
pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list"
    )]
    let place = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

const DATABASES: [&str; 2] = ["sqlite", "postgres"];

/// What a database is called.
pub fn word(database: Option<Database>) -> &'static str {
    match database {
        None => "-",
        Some(Database::Sqlite) => DATABASES[0],
        Some(Database::Postgres) => DATABASES[1],
    }
}

fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
