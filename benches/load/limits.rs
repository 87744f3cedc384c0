//! What the machine can do at all, at this moment: nothing durable is faster than its disk, and nothing on a stream is faster
//! than the wire.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use crate::{
    ceiling,
    figures::{Figures, Goal, percentile},
    harness::{Database, process},
    lifecycles::per_second,
    options::Options,
};

/// What one commit of a small batch writes.
const BLOCK: usize = 4096;
/// The file that is written again and again, as a write-ahead log is.
const FILE: usize = 1024 * BLOCK;
/// Lifecycles of a batch: what comes together when 64 calls are in flight.
const BATCH: u64 = 64;

/// One round of those that have no database.
pub async fn measure(options: &Options, figures: &mut Figures) {
    let lasting = Duration::from_millis(if options.quick { 300 } else { 1_000 });
    let synced = tokio::task::spawn_blocking(move || syncs(lasting)).await.expect("the disk works");
    figures.add("limit: syncs", None, "per s", per_second(synced.len(), lasting), Goal::default());
    figures.add("limit: sync, p50", None, "ms", percentile(&synced, 0.5), Goal::default());
    figures.add("limit: sync, p99", None, "ms", percentile(&synced, 0.99), Goal::default());
    let echoes = ceiling::echoes(if options.quick { 10_000 } else { 50_000 }, 64).await;
    figures.add("limit: messages there and back on one stream", None, "per s", echoes, Goal::default());
}

/// One round of those on a database.
pub async fn store(options: &Options, database: Database, figures: &mut Figures) {
    let lasting = Duration::from_millis(if options.quick { 500 } else { 2_000 });
    let rate = ceiling::in_batches(database, BATCH, lasting).await;
    figures.add("limit: rows of lifecycles, 64 a commit", Some(database), "per s", rate, Goal::default());
}

/// How long each write with its sync took, in milliseconds.
fn syncs(lasting: Duration) -> Vec<f64> {
    let folder = tempfile::Builder::new().prefix("sync").tempdir_in(process::base()).expect("make a temp dir");
    let mut file = File::create(folder.path().join("file")).expect("make a file");
    file.write_all(&vec![0; FILE]).and_then(|()| file.sync_all()).expect("fill a file");
    let block = [7; BLOCK];
    let begun = Instant::now();
    let mut took = Vec::new();
    let mut place = 0;
    while begun.elapsed() < lasting {
        let one = Instant::now();
        file.write_all_at(&block, place).and_then(|()| file.sync_data()).expect("write a file");
        took.push(one.elapsed().as_secs_f64() * 1e3);
        place = (place + BLOCK as u64) % FILE as u64;
    }
    took
}
