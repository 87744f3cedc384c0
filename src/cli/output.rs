//! What is written to standard output: lines, aligned tables, and one JSON object a line. A reader that closes the pipe
//! ends the command quietly. What came from agents and other people is cleaned of control characters before a terminal
//! sees it.

use std::{
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

use serde::Serialize;

use super::error::{Error, Result};
use crate::domain::Timestamp;

/// Standard output, or in tests a buffer.
pub struct Out {
    sink: Box<dyn Write + Send>,
    /// One JSON object a line is wanted.
    pub json: bool,
    /// A person looks at it.
    pub terminal: bool,
}

impl Out {
    /// The process's standard output.
    pub fn stdout(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { sink: Box::new(stdout), json, terminal }
    }

    /// Somewhere else, as tests want it.
    #[cfg(test)]
    pub fn to(sink: impl Write + Send + 'static, json: bool) -> Self {
        Self { sink: Box::new(sink), json, terminal: false }
    }

    /// One line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// One JSON object as a line.
    pub fn object(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|e| Error::failed(format!("cannot write JSON: {e}")))?;
        line.push(b'\n');
        self.bytes(&line)
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write_all(bytes).and_then(|()| self.sink.flush()).map_err(|source| {
            if source.kind() == io::ErrorKind::BrokenPipe {
                Error::ReaderGone
            } else {
                Error::Io { what: "write the output".to_owned(), source }
            }
        })
    }

    /// A table, unless it is empty; then `empty`, beside the output: what reads a list finds an empty one.
    pub fn table(&mut self, table: &Table, empty: &str) -> Result<()> {
        if table.rows.is_empty() {
            if !empty.is_empty() {
                note(empty);
            }
            return Ok(());
        }
        self.bytes(table.render().as_bytes())
    }
}

/// Says something beside the output, on standard error. Nobody there to read it is no failure.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Rows under headings, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; its cells are cleaned, and an empty one shows as `-`.
    pub fn row<const N: usize>(&mut self, cells: &[String; N]) {
        let cells = cells.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { clean(cell) });
        self.rows.push(cells.collect());
    }

    pub fn render(&self) -> String {
        let headings: Vec<String> = self.headings.iter().map(|heading| (*heading).to_owned()).collect();
        let mut widths = vec![0; headings.len()];
        for row in std::iter::once(&headings).chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(&pad(cell, *width));
                line.push_str("  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text, filled with spaces to at least `width` characters.
pub fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(missing))
}

/// The text without what moves a terminal: control characters become spaces, so what an agent wrote cannot repaint the
/// screen or start a new line.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Named values below each other, without those that are empty. Values of several lines are indented.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let mut lines = value.lines().map(clean);
        text.push_str(&format!("{}  {}\n", pad(name, width), lines.next().unwrap_or_default()));
        for line in lines {
            text.push_str(&format!("{}  {line}\n", pad("", width)));
        }
    }
    text
}

/// A length in bytes as a person says it: `512 B`, `2.0 KiB`, `34 MiB`.
pub fn size(bytes: i64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit.
    let (mut tenths, mut unit) = (bytes.saturating_mul(10) / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1024, unit + 1);
    }
    if tenths < 100 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", tenths / 10, UNITS[unit])
    }
}

/// At most `width` characters, with a mark where something was left out.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// A length of time as a person says it: `0.4s`, `12s`, `3m04s`, `2h05m`, `3d4h`.
pub fn span(duration: Duration) -> String {
    let secs = duration.as_secs();
    match secs {
        0..10 => {
            let tenths = duration.as_millis() / 100;
            format!("{}.{}s", tenths / 10, tenths % 10)
        }
        10..60 => format!("{secs}s"),
        60..3600 => format!("{}m{:02}s", secs / 60, secs % 60),
        3600..86_400 => format!("{}h{:02}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d{}h", secs / 86_400, secs % 86_400 / 3600),
    }
}

/// How long ago something was: `12s ago`; the future of another clock is `now`.
pub fn ago(now: Timestamp, then: Option<Timestamp>) -> String {
    match then {
        None => String::new(),
        Some(then) if now.since(then) < Duration::from_secs(1) => "now".to_owned(),
        Some(then) => {
            let since = now.since(then);
            // Tenths of a second are noise here.
            if since < Duration::from_secs(10) {
                format!("{}s ago", since.as_secs())
            } else {
                format!("{} ago", span(since))
            }
        }
    }
}

/// The time of day in UTC, `12:00:01Z`: without a zone database on every machine this is the one that is right everywhere.
pub fn clock_time(time: Timestamp) -> String {
    let secs = time.0.div_euclid(1_000_000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}Z", secs / 3600, secs % 3600 / 60, secs % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_clean() {
        let mut table = Table::new(&["NAME", "STATUS", "DAEMON"]);
        table.row(&["types".to_owned(), "DONE".to_owned(), "d1".to_owned()]);
        table.row(&["a longer name".to_owned(), "PENDING".to_owned(), String::new()]);
        table.row(&["\u{1b}[2Jevil\n".to_owned(), "FAILED".to_owned(), "d2".to_owned()]);
        insta::assert_snapshot!(table.render(), @r"
        NAME           STATUS   DAEMON
        types          DONE     d1
        a longer name  PENDING  -
         [2Jevil       FAILED   d2
        ");
    }

    #[test]
    fn spans_read_as_people_say_them() {
        let spans: Vec<String> =
            [0, 400, 12_000, 184_000, 7_500_000, 273_600_000].map(|ms| span(Duration::from_millis(ms))).into();
        assert_eq!(spans, ["0.0s", "0.4s", "12s", "3m04s", "2h05m", "3d4h"]);
        let now = Timestamp::from_secs(1_000);
        assert_eq!(ago(now, Some(Timestamp::from_secs(997))), "3s ago");
        assert_eq!(ago(now, Some(Timestamp::from_secs(2_000))), "now");
        assert_eq!(clock_time(Timestamp::from_secs(86_400 + 43_201)), "12:00:01Z");
    }

    #[test]
    fn a_closed_pipe_is_no_failure_to_talk_about() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = Out::to(Closed, false).line("x").unwrap_err();
        assert_eq!((error.exit_code(), error.message()), (0, None));
    }
}
