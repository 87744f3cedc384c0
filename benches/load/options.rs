//! What is asked of a run, from the environment, which `make bench` fills in: `cargo bench` passes arguments of its own.

use std::path::PathBuf;

use crate::harness::Database;

/// Rounds of everything, unless asked otherwise: their median is what counts.
const ROUNDS: usize = 5;

/// What is asked of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Small sizes and one round: to see that everything works, not to be quoted.
    pub quick: bool,
    /// How often each thing is measured.
    pub rounds: usize,
    /// On which databases, in this order.
    pub databases: Vec<Database>,
    /// Where the figures go as JSON.
    pub json: PathBuf,
    /// Where other products' programs are, to be measured in turn with us.
    pub peers: Option<PathBuf>,
    only: Vec<String>,
}

impl Options {
    /// From the environment.
    pub fn load() -> Result<Self, String> {
        let told = |name: &str| std::env::var(format!("MAKIMA_BENCH_{name}")).ok().filter(|text| !text.is_empty());
        let quick = told("QUICK").is_some();
        let rounds = match told("ROUNDS") {
            Some(text) => text.parse().map_err(|_| format!("ROUNDS={text} is not a number"))?,
            None if quick => 1,
            None => ROUNDS,
        };
        let databases = told("DATABASES").unwrap_or_else(|| "sqlite,postgres".to_owned());
        let databases = databases.split(',').map(database).collect::<Result<_, _>>()?;
        let only = told("ONLY").map(|text| text.split(',').map(|part| part.trim().to_owned()).collect());
        let only: Vec<String> = only.unwrap_or_default();
        if let Some(unknown) = only.iter().find(|name| !crate::PARTS.contains(&name.as_str())) {
            return Err(format!("ONLY={unknown}: there are {}", crate::PARTS.join(", ")));
        }
        Ok(Self {
            quick,
            rounds,
            databases,
            json: told("JSON").map_or_else(|| "bench.json".into(), PathBuf::from),
            peers: told("PEERS").map(PathBuf::from),
            only,
        })
    }

    /// Whether this part is asked for.
    pub fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.names(part)
    }

    /// Whether this part is asked for by its name: it takes long.
    pub fn names(&self, part: &str) -> bool {
        self.only.iter().any(|name| name == part)
    }

    /// How much of something.
    pub fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

fn database(text: &str) -> Result<Database, String> {
    match text.trim() {
        "sqlite" => Ok(Database::Sqlite),
        "postgres" => Ok(Database::Postgres),
        other => Err(format!("DATABASES={other}: there are sqlite and postgres")),
    }
}
