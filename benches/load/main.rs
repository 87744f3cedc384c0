//! Whole systems under load, beside what this machine can do at most, in one run: `make bench`, and see `benches/README.md`.
//!
//! ```text
//!   round 1..5 ── limits: disk, wire
//!              └─ each database ── rows alone ── bare model (ceiling) ── ours: lifecycles, backlog, starts, chain
//!   then the medians, with ratios, as a table and as JSON
//! ```
//!
//! What is ours is the released binary as a server in its own process, and real daemons with their journals (`hollow`), of
//! which the worktree and the agent are left out, and with them the commit that an agent's beginning has by itself. After each
//! measurement the rows themselves are counted (`proof`): what is not DONE in the server's database and journalled by a daemon
//! makes the run fail.
//!
//! This program starts itself as what it needs: a daemon, an agent that writes, the bare model's server, its agents.

mod bed;
mod ceiling;
mod figures;
mod fleet;
mod graphs;
#[path = "../../tests/it/harness/mod.rs"]
mod harness;
mod hollow;
mod idle;
mod lifecycles;
mod limits;
mod options;
mod output;
mod peers;
mod pending;
mod proc;
mod proof;
mod real;
mod soak;
mod starts;

use std::{path::PathBuf, process::ExitCode};

use serde_json::json;

use figures::{Figures, word};
use options::Options;

/// What can be asked for by name.
const PARTS: [&str; 10] =
    ["limits", "lifecycles", "starts", "graphs", "real", "output", "pending", "fleet", "idle", "soak"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("daemon") => return hollow::main(&arguments[1..]),
        Some("fleet") => return fleet::main(&arguments[1..]),
        Some("writer") => return output::main(&arguments[1..]),
        Some("ceiling") => return ceiling::main(&arguments[1..]),
        // Whatever cargo adds.
        _ => {}
    }
    let asked = Options::load().and_then(|options| {
        let peers = options.peers.as_deref().map_or(Ok(Vec::new()), peers::find)?;
        Ok((options, peers))
    });
    let (options, peers) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&options, &peers))
}

async fn run(options: &Options, peers: &[(String, PathBuf)]) -> ExitCode {
    let mut figures = Figures::default();
    let load = proc::load_average();
    for round in 1..=options.rounds {
        println!("round {round} of {}, load {:.1}", options.rounds, proc::load_average());
        measure(options, &mut figures).await;
        peers.iter().for_each(|(name, run)| peers::measure(name, run, &mut figures));
    }
    println!("\n{}\n{}", figures.table(), figures.plots());
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"), "debug": cfg!(debug_assertions), "quick": options.quick, "rounds": options.rounds,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "load_average": { "before": load, "after": proc::load_average() },
    });
    match figures.write(&options.json, &about) {
        Ok(()) => {
            println!("figures are in {}", options.json.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {error}", options.json.display());
            ExitCode::FAILURE
        }
    }
}

async fn measure(options: &Options, figures: &mut Figures) {
    if options.wants("limits") {
        limits::measure(options, figures).await;
    }
    for database in options.databases.iter().copied() {
        println!("  on {}", word(Some(database)));
        if options.wants("limits") {
            limits::store(options, database, figures).await;
        }
        if options.wants("lifecycles") {
            lifecycles::measure(options, database, figures).await;
        }
        if options.wants("starts") {
            starts::measure(options, database, figures).await;
        }
        if options.wants("graphs") {
            graphs::measure(options, database, figures).await;
        }
        if options.wants("real") {
            real::measure(options, database, figures).await;
        }
        if options.wants("output") {
            output::measure(options, database, figures).await;
        }
        if options.wants("pending") {
            pending::measure(options, database, figures).await;
        }
        if options.wants("fleet") {
            fleet::measure(options, database, figures).await;
        }
        if options.wants("idle") {
            idle::measure(options, database, figures).await;
        }
        if options.names("soak") {
            soak::measure(options, database, figures).await;
        }
    }
}
