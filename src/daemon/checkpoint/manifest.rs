//! What a checkpoint says of itself beside its trees: `manifest.json`.
//!
//! It has no time and no id, so that the same work makes the same manifest: that is how "nothing has changed" is seen.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Omitted;

/// Version of the form that is written.
pub(super) const VERSION: u32 = 1;

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Version of this form.
    pub(super) version: u32,
    /// Commit that the attempt started from.
    pub(super) base_commit: String,
    /// What the base branch had by then; see [`Place::shared`](crate::daemon::attempt_dir::Place::shared).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shared: Option<String>,
    /// The attempt's branch.
    pub(super) branch: String,
    /// Where that stands; empty: nowhere.
    pub(super) branch_commit: String,
    /// The agent's session.
    pub(super) session_id: Option<String>,
    /// Files that were left out, of the worktree and of nested repositories.
    pub(super) omitted: Vec<Omitted>,
    /// Its parts may be some milliseconds apart.
    pub(super) unsettled: bool,
    /// The worktree.
    pub(super) top: Part,
    /// Repositories inside, those that contain others first.
    pub(super) nested: Vec<Nested>,
}

/// One repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// HEAD.
    pub(super) head: Head,
    /// Digest of the index; none if there is no index.
    pub(super) index: Option<String>,
    /// Files of the operation, relative to the git directory; the n-th is `state/<n>`.
    pub(super) state: Vec<Name>,
    /// Modes.
    pub(super) modes: Modes,
    /// Directories without files.
    pub(super) empty: Vec<Name>,
}

/// A repository inside the worktree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Nested {
    /// Where it is, relative to the worktree.
    pub(super) path: Name,
    /// The repository.
    pub(super) part: Part,
    /// Its refs with what they point to: an object, or `ref: <name>`.
    pub(super) refs: Vec<(String, String)>,
}

/// Where HEAD is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Head {
    /// On a branch (a full ref), at a commit if there is one yet.
    On {
        /// The ref.
        name: String,
        /// The commit.
        commit: Option<String>,
    },
    /// On none, at this commit.
    At(String),
}

/// Permissions: what most have, and those that have others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Modes {
    /// Of files.
    pub(super) file: u32,
    /// Of files that run.
    pub(super) executable: u32,
    /// Of directories.
    pub(super) directory: u32,
    /// The others.
    pub(super) others: Vec<(Name, u32)>,
}

/// A path or name: bytes. In JSON it is text, where `%` and what is no text stand as `%XX`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Name(pub(super) Vec<u8>);

impl Head {
    /// The commit, if there is one.
    pub(super) fn commit(&self) -> Option<&str> {
        match self {
            Self::On { commit, .. } => commit.as_deref(),
            Self::At(commit) => Some(commit),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c == '%' { f.write_str("%25")? } else { fmt::Write::write_char(f, c)? }
            }
            for byte in chunk.invalid() {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl Name {
    /// The bytes of what [`fmt::Display`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            if *first == b'%' {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &after[2..];
            } else {
                bytes.push(*first);
                rest = after;
            }
        }
        Some(Self(bytes))
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a name with a bad `%`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any name comes back.
    #[test]
    fn names_come_back() {
        for bytes in [&b"plain/a b"[..], b"100%", b"\xff\xfe/\n\"", "grün".as_bytes(), b""] {
            let name = Name(bytes.to_vec());
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name, "{json}");
        }
        assert!(Name::parse("a%f").is_none());
    }
}
