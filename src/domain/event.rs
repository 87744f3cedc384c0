//! The event log: what happened to contracts and tasks, in commit order. Watches are made of it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    id::{ContractId, DaemonId, TaskId},
    is_default,
    task::TaskStatus,
    time::Timestamp,
};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Grows, with gaps; 0 until it is stored. Beside the document, where it is stored, as are the time, the contract and the
    /// task.
    #[serde(skip)]
    pub sequence: i64,
    /// When the server decided it.
    #[serde(skip)]
    pub at: Timestamp,
    /// The contract.
    #[serde(skip, default = "super::id::beside")]
    pub contract: ContractId,
    /// The task; `None` for a change of the contract itself.
    #[serde(skip)]
    pub task: Option<TaskId>,
    /// What was seen.
    #[serde(flatten)]
    pub what: What,
}

/// What a change says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct What {
    /// A stable lowercase word: `task.created`, `task.assigned`, `task.started`, `task.done`, `contract.held`...
    pub event: Cow<'static, str>,
    /// The task's name.
    pub task_name: String,
    /// The version after the change, of the task, else of the contract.
    pub version: i64,
    /// The task's status after the change.
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: Option<TaskStatus>,
    /// Attempt concerned; 0 for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attempt: u32,
    /// Daemon concerned.
    #[serde(default, skip_serializing_if = "is_default")]
    pub daemon: Option<DaemonId>,
    /// That daemon's name; empty for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub daemon_name: String,
    /// Fields that changed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fields: Vec<Cow<'static, str>>,
    /// By whom, as it is kept: `server`, `daemon` for the daemon concerned, `daemon:<id>` for another, `key:<id>`, `task:<id>`.
    /// In full it is [`Self::actor`].
    #[serde(rename = "actor")]
    pub said_by: Cow<'static, str>,
    /// For people.
    #[serde(default, skip_serializing_if = "is_default")]
    pub detail: String,
}

/// Short for `daemon:<id>` of the daemon concerned: half of what is logged of a task is said by its daemon.
const ITS_DAEMON: &str = "daemon";

impl What {
    /// By whom, in full: `server`, `daemon:<id>`, `key:<id>`, `task:<id>`.
    pub fn actor(&self) -> Cow<'_, str> {
        match self.daemon {
            Some(daemon) if self.said_by == ITS_DAEMON => Cow::Owned(format!("{DAEMON}{daemon}")),
            _ => Cow::Borrowed(&self.said_by),
        }
    }

    /// An actor as it is kept beside the daemon concerned.
    pub fn said_by(actor: &str, daemon: Option<DaemonId>) -> Cow<'static, str> {
        let said_by = actor.strip_prefix(DAEMON).and_then(|id| Uuid::try_parse(id).ok());
        match said_by {
            Some(id) if daemon == Some(DaemonId(id)) => Cow::Borrowed(ITS_DAEMON),
            _ if actor == SERVER => Cow::Borrowed(SERVER),
            _ => Cow::Owned(actor.to_owned()),
        }
    }
}

const DAEMON: &str = "daemon:";
const SERVER: &str = "server";

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever is written short is read in full; nobody else is written short.
    #[test]
    fn an_actor_is_who_it_was() {
        let (its, other) = (DaemonId(Uuid::from_u128(7)), DaemonId(Uuid::from_u128(8)));
        let what = |actor: &str, daemon| What {
            event: "task.started".into(),
            task_name: "a".to_owned(),
            version: 1,
            status: None,
            attempt: 1,
            daemon,
            daemon_name: String::new(),
            fields: Vec::new(),
            said_by: What::said_by(actor, daemon),
            detail: String::new(),
        };
        for actor in ["server", "key:7", &format!("daemon:{its}"), &format!("daemon:{other}"), "daemon:x"] {
            for daemon in [Some(its), None] {
                let kept = serde_json::to_string(&what(actor, daemon)).unwrap();
                let read: What = serde_json::from_str(&kept).unwrap();
                assert_eq!(read.actor(), actor);
                assert_eq!(
                    kept.contains(r#""actor":"daemon""#),
                    actor == format!("daemon:{its}") && daemon == Some(its)
                );
            }
        }
    }
}
