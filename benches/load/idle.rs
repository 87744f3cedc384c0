//! What a server costs that has nothing to do, with two daemons attached.

use std::time::Duration;

use crate::{
    bed::Bed,
    figures::{Figures, Goal},
    harness::Database,
    options::Options,
    proc,
};

/// Until everything that a start brings with it is over.
const SETTLED: Duration = Duration::from_secs(5);

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let bed = Bed::with_daemons(database, false).await;
    tokio::time::sleep(SETTLED).await;
    let lasting = Duration::from_secs(if options.quick { 10 } else { 60 });
    let before = proc::cpu(bed.world.server.pid());
    tokio::time::sleep(lasting).await;
    let spent = proc::cpu(bed.world.server.pid()).saturating_sub(before);
    let percent = spent.as_secs_f64() / lasting.as_secs_f64() * 100.0;
    figures.add("idle server: processor time", Some(database), "% of a core", percent, Goal::most(0.5));
    #[expect(clippy::cast_precision_loss, reason = "a size of memory")]
    let mib = proc::resident(bed.world.server.pid()) as f64 / 1024.0 / 1024.0;
    figures.add("idle server: memory", Some(database), "MiB", mib, Goal::most(40.0));
}
