//! Two machines and an origin.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::super::{
    Captured, ChainFile, Outcome, Previous, Restored, Source, Transcript, capture, known_elsewhere, restore,
};
use crate::daemon::{
    attempt_dir::{Manifest, Place, tests as dirs},
    git::{Error, testing},
    repository::{RepoRef, Repositories},
    worktree::prepare,
};

/// Machines with directories of their own, and a repository that they reach by a URL or a path.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub origin: PathBuf,
    pub repository: String,
    pub manifest: Manifest,
}

impl Bench {
    pub async fn new(url: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let origin = testing::repository(dir.path()).await;
        let path = origin.display();
        let repository = if url { format!("file://{path}") } else { path.to_string() };
        let mut spawn = dirs::spawn_order("");
        spawn.name = "work".into();
        spawn.repository = repository.clone();
        spawn.branch = "makima/work/1".into();
        Self { origin, repository, manifest: dirs::manifest(spawn), dir }
    }

    pub fn machine(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn repo(&self, machine: &str) -> RepoRef {
        let repositories = Repositories::new(self.machine(machine).join("repositories"));
        repositories.ensure(&self.repository, "", &[]).await.unwrap()
    }

    /// A worktree on a machine.
    pub async fn place(&self, machine: &str) -> Place {
        let repo = self.repo(machine).await;
        let path = self.machine(machine).join("worktrees/work");
        prepare(&repo, &self.manifest.spawn, self.manifest.attempt, &path).await.unwrap().place
    }

    pub fn files(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    pub fn source(&self, place: &Place, previous: Option<&Captured>) -> Source {
        Source {
            place: place.clone(),
            exclude: known_elsewhere(place),
            transcript: None,
            previous: previous.map(|c| Previous { id: c.id, commit: c.commit.clone(), depth: c.depth }),
            even_unchanged: false,
        }
    }

    /// A checkpoint that must be taken.
    pub async fn capture(&self, place: &Place, previous: Option<&Captured>) -> Captured {
        self.capture_from(&self.source(place, previous)).await
    }

    pub async fn capture_from(&self, source: &Source) -> Captured {
        match capture(source, &self.files()).await.unwrap() {
            Outcome::Taken(captured) => *captured,
            Outcome::Unchanged => panic!("unchanged"),
        }
    }

    pub async fn restore(&self, machine: &str, chain: &[&Captured], branch: &str) -> Result<Restored, Error> {
        let repo = self.repo(machine).await;
        let path = self.machine(machine).join("worktrees").join(branch.replace('/', "-"));
        let to = self.machine(machine).join("home/session.jsonl");
        restore(&repo, &files_of(chain), &path, branch, Some(&to), false).await
    }
}

pub fn files_of(chain: &[&Captured]) -> Vec<ChainFile> {
    chain.iter().map(|c| ChainFile { path: c.file.clone(), sha256: c.sha256.clone() }).collect()
}

pub fn transcript(path: &Path, text: &str) -> Option<Transcript> {
    fs::write(path, text).unwrap();
    Some(Transcript { path: path.to_owned(), session_id: "session".into() })
}

pub fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}
