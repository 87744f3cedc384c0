//! Names of things. Ids are UUIDv7 (class ids UUIDv5), made by the caller: nothing here asks a clock or
//! a random number generator.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Stands in a document for an id that is kept beside it.
pub(super) fn beside<T: From<Uuid>>() -> T {
    T::from(Uuid::nil())
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The last 12 hex digits: the first ones are a clock, which things made together share.
            pub fn short(self) -> String {
                let hex = self.0.simple().to_string();
                hex[20..].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(s).map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    )+};
}

ids! {
    /// A tenant.
    OwnerId,
    /// A goal.
    ContractId,
    /// A piece of work.
    TaskId,
    /// The id of one try, partly random; with the number it is the fence.
    AttemptId,
    /// A process that runs agents, across its restarts.
    DaemonId,
    /// One command from server to daemon.
    CommandId,
    /// One key.
    KeyId,
    /// A requirement class: the tasks of one owner that need the same of a daemon.
    ClassId,
    /// One process of a daemon.
    BootId,
    /// One journal of a daemon; messages are numbered within it.
    JournalId,
    /// One checkpoint.
    CheckpointId,
    /// One batch of the ledger, looked up when the outcome of a COMMIT is unknown.
    BatchId,
}

/// Names one attempt: everything a daemon says carries it, and the domain refuses one that is not the task's newest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AttemptRef {
    /// The task.
    pub task: TaskId,
    /// From 1 within the task.
    pub number: u32,
    /// Made when the attempt was decided.
    pub id: AttemptId,
}

impl fmt::Display for AttemptRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.task.short(), self.number)
    }
}

/// Number of a daemon's session; a counter in the database that only grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_id_is_the_random_end() {
        let id: TaskId = "01938f3e-0000-7000-8000-00c0ffee1234".parse().unwrap();
        assert_eq!(id.short(), "00c0ffee1234");
    }
}
