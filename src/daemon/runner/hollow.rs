//! An attempt with everything but its work: no worktree, no agent, no process. What is promised and reported is that of any other
//! attempt, and is written by the same code. The beginning of an agent has a commit of the journal of its own; here nothing lies
//! between beginning and end, and one commit has both.
//!
//! ```text
//!   accepted ─> slot ─> sanity ──Started, Complete──>
//! ```
//!
//! Programs that measure the rest ask for it (see [`run_hollow`](crate::daemon::run_hollow)); nobody else can.

use tokio::sync::OwnedSemaphorePermit;

use super::{Left, Runner};
use crate::{
    daemon::journal::State,
    domain::{
        attempt::TaskResult,
        order::Spawn,
        report::{Progress, Report},
    },
};

/// The commit that nothing makes: the digits of an object id, of no object.
const COMMIT: &str = "0000000000000000000000000000000000000001";

impl Runner {
    /// The whole story of an attempt without work.
    pub(super) async fn hollow(&mut self, spawn: &Spawn, slot: Option<OwnedSemaphorePermit>) -> Result<(), Left> {
        let _slot = match slot {
            Some(slot) => Some(slot),
            None => match self.slot().await {
                Ok(slot) => slot,
                Err(halt) => return self.halted(halt, spawn).await,
            },
        };
        let mut unsaid = Vec::new();
        if self.row.state == State::Accepted {
            unsaid.push(Report::Started {
                worktree: String::new(),
                branch: spawn.branch.clone(),
                base_commit: COMMIT.to_owned(),
                agent_version: self.context.installed_version(&spawn.agent),
                restored: None,
            });
            unsaid.extend(self.sanity(spawn).await.into_iter().map(|message| Report::Warning { message }));
        }
        let result = TaskResult {
            commit: COMMIT.to_owned(),
            branch: spawn.branch.clone(),
            result_ref: spawn.result_ref.clone(),
            published: true,
            pack: None,
            blob: String::new(),
        };
        self.report_with(unsaid, Ok(result), Progress::default(), None).await
    }
}
