//! What the demo works on: a repository, five tasks that build on each other, and what must be in the last tree.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    cli::error::{Error, Result},
    runtime::clock,
};

/// One task.
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// What it waits for.
    pub depends_on: &'static [&'static str],
    /// What it does.
    pub script: &'static str,
    /// What it makes.
    pub files: &'static [&'static str],
}

/// The contract.
pub const STEPS: [Step; 5] = [
    Step {
        name: "schema",
        depends_on: &[],
        script: "mkdir -p migrations
printf 'CREATE TABLE users (\\n  id INTEGER PRIMARY KEY,\\n  email TEXT NOT NULL\\n);\\n' > migrations/001_create_users.sql
echo 'schema: table users with id, email'
",
        files: &["migrations/001_create_users.sql"],
    },
    Step {
        name: "types",
        depends_on: &["schema"],
        script: "test -f migrations/001_create_users.sql
mkdir -p src/types
{ echo 'export interface User {'
  sed -n 's/^  \\([a-z]*\\) INTEGER.*/  \\1: number;/p; s/^  \\([a-z]*\\) TEXT.*/  \\1: string;/p' migrations/001_create_users.sql
  echo '}'; } > src/types/user.ts
grep -q 'email: string' src/types/user.ts
echo 'types: User, from the schema'
",
        files: &["src/types/user.ts"],
    },
    Step {
        name: "api",
        depends_on: &["types"],
        script: "test -f src/types/user.ts
mkdir -p src/api
sleep 1
{ echo \"import { User } from '../types/user';\"
  echo 'export const users: User[] = [];'; } > src/api/users.ts
echo 'api: users'
",
        files: &["src/api/users.ts"],
    },
    Step {
        name: "audit",
        depends_on: &["types"],
        script: "test -f src/types/user.ts
test ! -e src/api/users.ts
mkdir -p src/audit
sleep 1
{ echo \"import { User } from '../types/user';\"
  echo 'export const seen = (user: User) => console.log(user.email);'; } > src/audit/log.ts
echo 'audit: log'
",
        files: &["src/audit/log.ts"],
    },
    Step {
        name: "ui",
        depends_on: &["api", "audit"],
        script: "test -f src/api/users.ts
test -f src/audit/log.ts
mkdir -p src/components
{ echo \"import { users } from '../api/users';\"
  echo \"import { seen } from '../audit/log';\"
  echo 'export const UserList = () => users.map((user) => (seen(user), user.email));'; } > src/components/UserList.tsx
echo 'ui: UserList, on top of both'
",
        files: &["src/components/UserList.tsx"],
    },
];

/// A repository with one commit.
pub fn make_repository(path: &Path) -> std::result::Result<(), git2::Error> {
    let repository = git2::Repository::init_opts(path, git2::RepositoryInitOptions::new().initial_head("main"))?;
    let time = git2::Time::new(clock::now().0.div_euclid(1_000_000), 0);
    let author = git2::Signature::new("makima demo", "makima@localhost", &time)?;
    let readme = repository.blob(b"# shop\n\nMade by `makima demo`.\n")?;
    let mut builder = repository.treebuilder(None)?;
    builder.insert("README.md", readme, 0o100_644)?;
    let tree = repository.find_tree(builder.write()?)?;
    repository.commit(Some("HEAD"), &author, &author, "Begin the shop", &tree, &[])?;
    repository.checkout_head(Some(git2::build::CheckoutBuilder::new().force()))
}

/// A file of a commit's tree.
pub fn in_tree(repository: &Path, commit: &str, file: &str) -> std::result::Result<Vec<u8>, git2::Error> {
    let repository = git2::Repository::open(repository)?;
    let commit = repository.find_commit(git2::Oid::from_str(commit)?)?;
    let entry = commit.tree()?.get_path(Path::new(file))?;
    let blob = repository.find_blob(entry.id())?;
    Ok(blob.content().to_vec())
}

/// What `git log --graph` draws.
#[expect(clippy::disallowed_methods, reason = "not an agent: the picture a person would ask git for")]
pub fn graph(repository: &Path) -> Result<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository).args(["--no-pager", "log", "--graph", "--oneline", "--decorate", "--all"]);
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().map_err(Error::io("run git"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::failed(format!("git log failed: {said}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
