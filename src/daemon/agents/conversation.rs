//! Where an agent keeps what was said in a session: a path that its profile describes, since no agent can be asked.
//!
//! The name of a session comes from the agent, and becomes part of a path: one that could lead elsewhere is no session.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::profile::{Profile, fill};

/// Bytes of a session's name. Those we know are UUIDs; others may be words.
const MAX_SESSION: usize = 128;
/// Characters of an encoded directory before Claude Code cuts it and adds a hash.
const MAX_ENCODED: usize = 200;
/// Directories looked through for a transcript that is not where it should be: a home of years has some thousand.
const MAX_LOOKED_THROUGH: usize = 20_000;

/// The files of one session. Those of the same session for another worktree, or on another machine, stand in the same order,
/// so a file of one is put in the place of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// What was said. The agent needs it, and nothing else, to go on.
    pub transcript: PathBuf,
    /// Files and directories that it may name, or that go with it; any may be missing.
    pub beside: Vec<PathBuf>,
    /// The directory named after the worktree, where it is one part of the transcript's path.
    named_after_worktree: Option<PathBuf>,
}

impl Conversation {
    /// Where the transcript really is: where it should be, or under the name of another directory, if the agent has moved, or
    /// is of a version that names directories otherwise.
    pub fn find(&self) -> Option<PathBuf> {
        if self.transcript.is_file() {
            return Some(self.transcript.clone());
        }
        let named = self.named_after_worktree.as_ref()?;
        let rest = self.transcript.strip_prefix(named).ok()?;
        let others = fs::read_dir(named.parent()?).ok()?.take(MAX_LOOKED_THROUGH);
        others.filter_map(|other| Some(other.ok()?.path().join(rest))).find(|path| path.is_file())
    }
}

/// Where it is, or will be looked for. `env` is the agent's environment.
pub(super) fn locate(
    profile: &Profile,
    worktree: &Path,
    session: &str,
    env: &impl Fn(&str) -> Option<String>,
) -> Option<Conversation> {
    if profile.transcript.is_empty() || !is_session(session) {
        return None;
    }
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let home = set("HOME").or_else(|| std::env::home_dir()?.into_os_string().into_string().ok())?;
    // The agent asks the system where it is, and is told so without links.
    let worktree = resolved(worktree);
    let dir = worktree.to_str()?.to_owned();
    let (encoded, session) = (encode(&dir), session.to_owned());
    let config_dir = set(&profile.config_dir_env).unwrap_or_else(|| {
        fill(&profile.config_dir, &|word| match word {
            "home" => Some(&home),
            "worktree" => Some(&dir),
            _ => None,
        })
    });
    let path = |template: &str| {
        let text = fill(template, &|word| {
            Some(match word {
                "home" => &home,
                "config_dir" => &config_dir,
                "worktree" => &dir,
                "cwd_encoded" => &encoded,
                "session" => &session,
                _ => return None,
            })
        });
        // As the agent would understand a path that is not whole.
        worktree.join(text)
    };
    let named = profile.transcript.find("/{cwd_encoded}/").map(|at| path(&profile.transcript[..at]).join(&encoded));
    Some(Conversation {
        transcript: path(&profile.transcript),
        beside: profile.beside.iter().map(|template| path(template)).collect(),
        named_after_worktree: named,
    })
}

/// A name that is one part of a path and nothing else.
fn is_session(session: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !session.is_empty() && session.len() <= MAX_SESSION && !session.starts_with('.') && session.chars().all(plain)
}

/// The path without links, as far as it is there: a worktree may be yet to be made, or gone.
fn resolved(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|at| Some((at, at.canonicalize().ok()?)));
    found.and_then(|(at, real)| Some(real.join(path.strip_prefix(at).ok()?))).map_or_else(
        || path.to_owned(),
        // Joining nothing leaves a separator at the end.
        |path| path.components().collect(),
    )
}

/// A directory as Claude Code names it: every UTF-16 unit that is no ASCII letter or digit is a `-`; what is too long is cut,
/// and ends with a hash of the whole (its source says so, and so do the directories that it makes).
fn encode(dir: &str) -> String {
    let units = dir.encode_utf16();
    let plain = |unit: u16| u8::try_from(unit).ok().map(char::from).filter(char::is_ascii_alphanumeric).unwrap_or('-');
    let encoded: String = units.clone().map(plain).collect();
    if encoded.len() <= MAX_ENCODED {
        return encoded;
    }
    let hash = units.fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    format!("{}-{}", &encoded[..MAX_ENCODED], base_36(hash.unsigned_abs()))
}

fn base_36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::daemon::agents::Profiles;

    const SESSION: &str = "0198c2a4-1111-7222-8333-444455556666";

    fn env(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// The names that Claude Code 2.1.197 gave to directories in which it ran.
    #[test]
    fn directories_are_named_as_claude_code_names_them() {
        assert_eq!(encode("/tmp/a/work"), "-tmp-a-work");
        // A letter of one unit, one that is a letter and an accent, one of two units.
        assert_eq!(encode("/tmp/b/u\u{e9}e\u{301}\u{1d11e} z"), "-tmp-b-u-e----z");
        let long = format!("/tmp/b/{}/{}/end", "long.dir-".repeat(15), "é𝄞x_".repeat(20));
        let expected = format!("-tmp-b-{}{}----px9wu5", "long-dir-".repeat(15), "----x".repeat(11));
        assert_eq!(encode(&long), expected);
        assert_eq!((base_36(0), base_36(35), base_36(1 << 31)), ("0".into(), "z".into(), "zik0zk".into()));
    }

    /// A conversation is under the home or the directory that the agent is given, named after where it really runs.
    #[test]
    fn conversations_are_where_the_agent_looks() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        let profiles = Profiles::load(BTreeMap::new());
        let at = |worktree: &Path, all: &[(&str, &str)]| {
            profiles.conversation("claude", worktree, SESSION, &env(all)).unwrap()
        };
        let encoded = encode(root.join("real/w").to_str().unwrap());
        let found = at(&root.join("link/w"), &[("HOME", "/home/b"), ("CLAUDE_CONFIG_DIR", "")]);
        assert_eq!(found.transcript, Path::new(&format!("/home/b/.claude/projects/{encoded}/{SESSION}.jsonl")));
        let beside =
            [format!("/home/b/.claude/projects/{encoded}/{SESSION}"), format!("/home/b/.claude/tasks/{SESSION}")];
        assert_eq!(found.beside, beside.map(PathBuf::from));
        let own = at(&root.join("real/w"), &[("HOME", "/home/b"), ("CLAUDE_CONFIG_DIR", "/cfg")]);
        assert_eq!(own.transcript, Path::new(&format!("/cfg/projects/{encoded}/{SESSION}.jsonl")));
        // One that is there has no separator at its end either.
        let there = at(&root.join("link"), &[("HOME", "/home/b"), ("CLAUDE_CONFIG_DIR", "")]);
        let encoded = encode(root.join("real").to_str().unwrap());
        assert_eq!(there.transcript, Path::new(&format!("/home/b/.claude/projects/{encoded}/{SESSION}.jsonl")));
        let transcript = |agent, session| profiles.transcript(agent, &root, session, &env(&[("HOME", "/h")]));
        assert!(transcript("claude", "a").is_some());
        let long = "a".repeat(MAX_SESSION + 1);
        for session in ["", "../../x", "a/b", "..", "a\0", "é", &long] {
            assert_eq!(transcript("claude", session), None, "{session}");
        }
        assert_eq!(transcript("shell", SESSION), None);
    }

    /// Where the agent names its directory otherwise, the transcript is found all the same; another session's never is.
    #[test]
    fn a_transcript_elsewhere_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let profiles = Profiles::load(BTreeMap::new());
        let at = profiles.conversation(
            "claude",
            Path::new("/w"),
            SESSION,
            &env(&[("HOME", home), ("CLAUDE_CONFIG_DIR", "")]),
        );
        let at = at.unwrap();
        assert_eq!(at.find(), None);
        let other = dir.path().join(".claude/projects/-other");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("another.jsonl"), "").unwrap();
        assert_eq!(at.find(), None);
        let file = other.join(format!("{SESSION}.jsonl"));
        fs::write(&file, "").unwrap();
        assert_eq!(at.find(), Some(file));
        fs::create_dir_all(at.transcript.parent().unwrap()).unwrap();
        fs::write(&at.transcript, "").unwrap();
        assert_eq!(at.find(), Some(at.transcript));
    }
}
