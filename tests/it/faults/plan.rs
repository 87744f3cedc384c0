//! What a seed decides: the fleet, the work, and what goes wrong when.
//!
//! The work: a graph of small shell tasks. Each appends lines of its own to a file of its own and commits some of them; what
//! it has said outside of its worktree (`progress/NAME` in the world's directory) shows what it had done when it was
//! interrupted. One task waits for a gate that opens when all faults have fired, so that there is always somebody at work for
//! a fault to hit.

use std::{fmt::Write as _, path::Path, time::Duration};

use makima::wire::pb::TaskSpec;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::fault::{Kind, Planned, available};
use crate::harness::client::shell;

/// Lines of a task at most.
const MAX_LINES: u32 = 8;
/// What every line ends with, so that bytes lost are bytes.
const PAD: &str = "................................................";

/// A run, before it has begun.
#[derive(Clone, Debug)]
pub struct Plan {
    /// On Postgres; on SQLite otherwise.
    pub postgres: bool,
    /// Attempts at once, of each machine.
    pub machines: Vec<u32>,
    /// Daemons clone the repository instead of using it in place.
    pub clones: bool,
    /// How long a disconnected attempt is waited for.
    pub rerun_after: Duration,
    /// The work.
    pub jobs: Vec<Job>,
    /// What goes wrong, in this order.
    pub faults: Vec<Planned>,
    /// The gate opens when the last fault has healed, rather than when it has fired.
    pub gate_after_heal: bool,
}

/// One task.
#[derive(Clone, Debug)]
pub struct Job {
    /// `t0`, `t1`, ...
    pub name: String,
    /// Tasks before it.
    pub after: Vec<usize>,
    /// Lines it writes.
    pub lines: u32,
    /// After which of them it commits.
    pub commits: Vec<u32>,
    /// Between two lines, in ms.
    pub pause: u32,
    /// It waits for the gate before its last line.
    pub waits: bool,
}

impl Plan {
    /// What a seed decides on a database.
    pub fn new(seed: u64, postgres: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(2).wrapping_add(u64::from(postgres)));
        let machines: Vec<u32> = (0..rng.random_range(1..=3)).map(|_| rng.random_range(2..=4)).collect();
        let jobs = jobs(&mut rng);
        let kinds = available(postgres);
        let count = *[1, 1, 1, 2, 2, 3, 4].get(rng.random_range(0..7)).expect("one of them");
        // The first one goes round, so that every kind has its turn; what comes on top is drawn.
        let turn = usize::try_from(seed % kinds.len() as u64).expect("a small number");
        let mut faults: Vec<Planned> = Vec::new();
        while faults.len() < count {
            let kind = if faults.is_empty() { kinds[turn] } else { kinds[rng.random_range(0..kinds.len())] };
            faults.push(planned(&mut rng, kind, machines.len()));
        }
        Self {
            postgres,
            machines,
            clones: rng.random_bool(0.4),
            rerun_after: Duration::from_millis(*[0, 500, 2_000].get(rng.random_range(0..3)).expect("one of them")),
            jobs,
            faults,
            gate_after_heal: rng.random_bool(0.5),
        }
    }

    /// A fault of this kind is among them.
    pub fn has(&self, kind: Kind) -> bool {
        self.faults.iter().any(|fault| fault.kind == kind)
    }

    /// The tasks as they are asked for; `dir` is the world's.
    pub fn specs(&self, dir: &Path) -> Vec<TaskSpec> {
        let spec = |job: &Job| {
            let after: Vec<&str> = job.after.iter().map(|&at| self.jobs[at].name.as_str()).collect();
            shell(&job.name, &self.script(job, dir), &after)
        };
        self.jobs.iter().map(spec).collect()
    }

    fn script(&self, job: &Job, dir: &Path) -> String {
        let (name, lines, dir) = (&job.name, job.lines, dir.display());
        let mut script = format!("P={dir}/progress/{name}; n=0; [ ! -e {name}.txt ] || n=$(wc -l < {name}.txt)\n");
        writeln!(script, "echo \"S $MAKIMA_ATTEMPT_NUMBER $n $(date +%s%N)\" >> $P").expect("write");
        for &before in &job.after {
            let Job { name: before, lines, .. } = &self.jobs[before];
            let look = format!("[ \"$(wc -l < {before}.txt)\" = {lines} ]");
            writeln!(script, "{look} || echo \"{name} started before {before}\" >> {dir}/violations").expect("write");
        }
        let gate = format!("while [ ! -e {dir}/gate ]; do echo W >> $P; sleep 0.1; done");
        let commits: Vec<String> = job.commits.iter().map(u32::to_string).collect();
        // What git complains of is not the agent's: a machine that died in the middle of a commit leaves a lock of the repository.
        let commit = format!("git commit --quiet -m \"{name} $n\" 2>> {dir}/git-complaints");
        let commit = format!("git add {name}.txt; git diff --cached --quiet || {commit}");
        writeln!(script, "while [ $n -lt {lines} ]; do n=$((n+1))").expect("write");
        if job.waits {
            writeln!(script, "[ $n -lt {lines} ] || {gate}").expect("write");
        }
        writeln!(script, "echo \"{name} line $n {PAD}\" >> {name}.txt").expect("write");
        writeln!(script, "echo \"L $MAKIMA_ATTEMPT_NUMBER $n\" >> $P; echo \"out {name} $n\"").expect("write");
        if !commits.is_empty() {
            writeln!(script, "case $n in {}) {commit};; esac", commits.join("|")).expect("write");
        }
        writeln!(script, "sleep {}.{:03}\ndone", job.pause / 1_000, job.pause % 1_000).expect("write");
        script
    }
}

impl Job {
    /// Its file when it is done.
    pub fn text(&self) -> String {
        (1..=self.lines).map(|n| self.line(n)).collect()
    }

    /// One line of it.
    pub fn line(&self, n: u32) -> String {
        format!("{} line {n} {PAD}\n", self.name)
    }
}

fn jobs(rng: &mut StdRng) -> Vec<Job> {
    let count = rng.random_range(3..=8);
    let mut jobs: Vec<Job> = Vec::new();
    for at in 0..count {
        let is_last = at + 1 == count;
        let mut after: Vec<usize> = (0..at).filter(|_| rng.random_bool(0.25)).collect();
        if is_last {
            // Everything comes together in it, so that its tree has to hold all there is.
            after = (0..at).filter(|&job| !jobs.iter().any(|other| other.after.contains(&job))).collect();
        }
        let lines = rng.random_range(2..=MAX_LINES);
        let commits = (1..=lines).filter(|_| rng.random_bool(0.3)).collect();
        let pause = rng.random_range(10..=60);
        jobs.push(Job { name: format!("t{at}"), after, lines, commits, pause, waits: at == 0 });
    }
    jobs
}

fn planned(rng: &mut StdRng, kind: Kind, machines: usize) -> Planned {
    // Shorter and longer than it takes to be given up.
    let hold = match kind {
        Kind::Slow => rng.random_range(500..1_500),
        Kind::StopPostgres | Kind::KillPostgres => rng.random_range(300..1_500),
        _ if rng.random_bool(0.6) => rng.random_range(0..700),
        _ => rng.random_range(1_200..2_500),
    };
    Planned {
        kind,
        machine: rng.random_range(0..machines),
        events: rng.random_range(0..8),
        delay: Duration::from_millis(rng.random_range(0..200)),
        hold: Duration::from_millis(hold),
        dice: rng.random(),
    }
}
