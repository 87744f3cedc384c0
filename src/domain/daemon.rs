//! A daemon as the server knows it, and what a task needs of one.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    id::{BootId, ClassId, DaemonId, Epoch, JournalId, KeyId, OwnerId},
    report::InventoryItem,
    time::Timestamp,
};

/// A daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Made once by the daemon itself.
    pub id: DaemonId,
    /// Whose it is.
    pub owner: OwnerId,
    /// Key it first came with; another owner's key cannot take its name over.
    pub key: KeyId,
    /// What it says of itself.
    pub card: Card,
    /// Number of its last session.
    pub epoch: Epoch,
    /// A session of that number is open, as far as the database knows.
    pub attached: bool,
    /// Gets no new work, by a person's wish.
    pub draining: bool,
    /// Sequence of the last command made for it.
    pub last_command: i64,
    /// The journal it last came with; unknown for one that has not come since this is kept.
    #[serde(default)]
    pub journal: Option<JournalId>,
    /// Sequence of the last command that is known to be in that journal.
    #[serde(default)]
    pub persisted: i64,
    /// The number of the hello it last came with, among those of that journal; 0 for a daemon that does not count.
    #[serde(default)]
    pub attach: i64,
    /// When it was first seen.
    pub created: Timestamp,
    /// When it was last heard; coarse while it is attached.
    pub last_seen: Timestamp,
}

/// What a daemon says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Unique among the owner's.
    pub name: String,
    /// Attempts it runs at once.
    pub slots: u32,
    /// Whole words.
    pub labels: Vec<String>,
    /// Profiles installed.
    pub profiles: Vec<Profile>,
    /// Repositories at hand: URLs cached, and paths.
    pub repositories: Vec<String>,
    /// It answers for paths itself.
    pub any_path: bool,
    /// Why it takes no new work; empty when it does.
    pub not_accepting: String,
    /// Version of its binary.
    pub version: String,
    /// Its machine.
    pub hostname: String,
}

/// An agent profile found on a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Such as `shell` or `claude`.
    pub name: String,
    /// What the agent says of its version; empty if nothing.
    pub version: String,
}

/// How a daemon introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest and newest protocol version it speaks.
    pub protocol: (u32, u32),
    /// Its id.
    pub daemon: DaemonId,
    /// This process.
    pub boot: BootId,
    /// This journal.
    pub journal: JournalId,
    /// What it says of itself.
    pub card: Card,
    /// How often it has said hello with this journal, with this one; 0 for a daemon that does not count.
    pub attach: i64,
    /// Last command in its journal; 0 for none.
    pub last_command: i64,
    /// First and last message not answered yet; 0 for none.
    pub unanswered: (i64, i64),
    /// Every attempt it knows of.
    pub inventory: Vec<InventoryItem>,
    /// Its clock.
    pub clock: Timestamp,
}

impl Daemon {
    /// The hello was said before this daemon took commands that it is known to have taken since: it comes late, from a stream
    /// that the daemon has given up. What it does not list was not there yet, which says nothing of what is there now.
    pub fn is_older(&self, hello: &Hello) -> bool {
        self.journal == Some(hello.journal) && hello.last_command < self.persisted
    }

    /// The hello was said before the one that this daemon was last attached with. One that does not count is never told apart.
    pub fn is_overtaken(&self, hello: &Hello) -> bool {
        self.journal == Some(hello.journal) && hello.attach != 0 && hello.attach < self.attach
    }
}

/// What a task needs of a daemon, apart from a free slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Requirements {
    /// Agent profile.
    pub agent: String,
    /// Labels, sorted.
    pub labels: Vec<String>,
    /// A path repository, which must be at hand; `None` for a URL, which any daemon can clone.
    pub path: Option<String>,
}

impl Requirements {
    /// What a task with this agent, these labels and this repository needs.
    pub fn new(agent: &str, labels: &[String], repository: &str) -> Self {
        let mut labels = labels.to_vec();
        labels.sort();
        labels.dedup();
        let path = is_path(repository).then(|| repository.to_owned());
        Self { agent: agent.to_owned(), labels, path }
    }

    /// The id of the class of all tasks of this owner that need the same: a hash, so that nobody has to look it up.
    pub fn class(&self, owner: OwnerId) -> ClassId {
        let words = serde_json::to_vec(self).unwrap_or_default();
        ClassId(Uuid::new_v5(&owner.0, &words))
    }

    /// The daemon lacks nothing; [`Self::lacks`] without the words.
    pub fn fits(&self, card: &Card) -> bool {
        card.profiles.iter().any(|p| p.name == self.agent)
            && self.labels.iter().all(|l| card.labels.contains(l))
            && self.path.as_ref().is_none_or(|path| card.any_path || card.repositories.contains(path))
    }

    /// What the daemon lacks, for people; empty when it fits.
    pub fn lacks(&self, card: &Card) -> Vec<String> {
        let mut lacks = Vec::new();
        if !card.profiles.iter().any(|p| p.name == self.agent) {
            lacks.push(format!("agent profile `{}`", self.agent));
        }
        for label in self.labels.iter().filter(|l| !card.labels.contains(l)) {
            lacks.push(format!("label `{label}`"));
        }
        if let Some(path) = &self.path
            && !card.any_path
            && !card.repositories.contains(path)
        {
            lacks.push(format!("repository `{path}`"));
        }
        lacks
    }
}

/// A repository named by a path rather than a URL: as git has it, an absolute path on the daemon's machine.
pub fn is_path(repository: &str) -> bool {
    repository.starts_with('/')
}
