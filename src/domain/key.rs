//! Keys: who may do what.

use serde::{Deserialize, Serialize};

use super::{
    id::{KeyId, OwnerId},
    time::Timestamp,
};

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// Keys and daemons of all owners.
    Admin,
    /// Contracts, tasks and daemons of one owner.
    Owner,
    /// One owner's daemons.
    Daemon,
    /// One attempt, while it lives. Derived, never stored.
    Task,
}

impl KeyKind {
    /// The word in `mk_<kind>_<secret>`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Owner => "owner",
            Self::Daemon => "daemon",
            Self::Task => "task",
        }
    }

    /// The same with its article: `an owner`.
    pub fn with_article(self) -> &'static str {
        match self {
            Self::Admin => "an admin",
            Self::Owner => "an owner",
            Self::Daemon => "a daemon",
            Self::Task => "a task",
        }
    }
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// What it is good for.
    pub kind: KeyKind,
    /// Whose it is; `None` for admin keys.
    pub owner: Option<OwnerId>,
    /// That owner's name; empty for admin keys.
    pub owner_name: String,
    /// For people.
    pub label: String,
    /// SHA-256 of the whole key text.
    pub hash: [u8; 32],
    /// When it was made.
    pub created: Timestamp,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}
