//! Other products, measured in turn with us: the programs of a folder, `FOLDER/<name>/run`, each of which works by itself,
//! cleans up, and prints one line of JSON with its figures.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::figures::{Figures, Goal};

/// Who is measured, of those that are there: two that are as durable as we are, and one that keeps nothing.
const WHO: [&str; 3] = ["graphile-worker", "restate", "ray"];

/// The programs that there are. A folder with none of them is a mistake.
pub fn find(folder: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let runs = WHO.into_iter().map(|name| (name.to_owned(), folder.join(name).join("run")));
    let found: Vec<_> = runs.filter(|(_, run)| run.is_file()).collect();
    if found.is_empty() {
        return Err(format!("PEERS={}: none of {} has a `run` there", folder.display(), WHO.join(", ")));
    }
    Ok(found)
}

/// One round of one of them. One that fails is noted, and the run goes on: it is not what is tested.
#[expect(clippy::disallowed_methods, reason = "a benchmark starts its own processes")]
pub fn measure(name: &str, run: &Path, figures: &mut Figures) {
    println!("  peer {name}");
    let ran = Command::new(run).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = match ran {
        Ok(output) if output.status.success() => output,
        Ok(output) => return figures.note(format!("peer {name} failed: {}", output.status)),
        Err(error) => return figures.note(format!("peer {name}: {}: {error}", run.display())),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let mut lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    match lines.next_back() {
        Some(figure) => numbers(&format!("peer {name}"), &figure, figures),
        None => figures.note(format!("peer {name} printed no figures")),
    }
}

/// Every number in it, by the way to it.
fn numbers(path: &str, value: &Value, figures: &mut Figures) {
    match value {
        Value::Number(number) => figures.add(path, None, "", number.as_f64().unwrap_or_default(), Goal::default()),
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| numbers(&format!("{path}: {name}"), value, figures));
        }
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(n, value)| numbers(&format!("{path}: {n}"), value, figures));
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
