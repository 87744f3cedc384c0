//! Everything an agent can leave behind, one thing at a time and all at once.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
    path::Path,
};

use super::{
    super::dirs::GitDirs,
    bench::{Bench, transcript, write},
    compare::{assert_same, assert_sound, picture},
};
use crate::daemon::git::{LOCAL_TIMEOUT, git, testing};

const ALL: &dyn Fn(&str) -> bool = &|_| false;

/// What a checkpoint leaves out, and what git ignores.
fn left_out(path: &str) -> bool {
    path.ends_with(".log") || path == ".env" || path.ends_with("key.pem")
}

async fn fails(dir: &Path, args: &[&str]) {
    let output = git(dir)
        .args(["-c", "user.name=Tester", "-c", "user.email=tester@example.com"])
        .args(args.iter().copied())
        .run(LOCAL_TIMEOUT)
        .await
        .unwrap();
    assert!(!output.success(), "git {args:?} worked");
}

/// Commits, staged, unstaged, untracked, binary, odd names, modes, links, deletions, empty directories, intent to add.
async fn fill(dir: &Path) {
    write(dir, &[("gone.txt", "gone"), ("unstaged.txt", "1\n"), ("staged.txt", "1\n"), ("both.txt", "1\n")]);
    write(dir, &[("run.sh", "#!/bin/sh\n"), ("plain.sh", "echo\n"), ("target.txt", "t"), ("becomes/a/dir", "x")]);
    write(dir, &[("deleted-and-staged.txt", "d"), ("assumed.txt", "a\n"), ("kept/.gitignore", "*\n")]);
    fs::set_permissions(dir.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    testing::run(dir, &["add", "-A"]).await;
    testing::run(dir, &["add", "-f", "kept/.gitignore"]).await;
    testing::run(dir, &["commit", "-q", "-m", "the agent's first"]).await;
    testing::commit(dir, &[("second.txt", "second")], "the agent's second").await;

    write(dir, &[("staged.txt", "2\n"), ("both.txt", "2\n"), ("new-staged.txt", "new\n")]);
    fs::write(dir.join("binary"), (0..=255u8).cycle().take(100_000).collect::<Vec<_>>()).unwrap();
    testing::run(dir, &["rm", "-q", "deleted-and-staged.txt"]).await;
    testing::run(dir, &["add", "staged.txt", "both.txt", "new-staged.txt", "binary"]).await;
    write(dir, &[("both.txt", "3\n"), ("unstaged.txt", "2\r\n"), ("untracked/deep/file.txt", "u"), ("intended", "i")]);
    write(
        dir,
        &[("staged-then-gone", "only the index has this"), ("hidden.log", "ignored"), ("forced.log", "tracked")],
    );
    testing::run(dir, &["add", "staged-then-gone"]).await;
    testing::run(dir, &["add", "-f", "forced.log"]).await;
    fs::remove_file(dir.join("staged-then-gone")).unwrap();
    testing::run(dir, &["add", "-N", "intended"]).await;
    testing::run(dir, &["update-index", "--assume-unchanged", "assumed.txt"]).await;
    write(dir, &[("assumed.txt", "b\n"), (".env", "SECRET=1"), ("deploy/key.pem", "key"), ("a%41", "percent")]);
    fs::remove_file(dir.join("gone.txt")).unwrap();
    fs::remove_dir_all(dir.join("becomes")).unwrap();
    write(dir, &[("becomes", "a file"), ("target.txt/x", "")][..1]);
    fs::remove_file(dir.join("target.txt")).unwrap();
    write(dir, &[("target.txt/was a file", "now a directory")]);
    symlink("unstaged.txt", dir.join("link")).unwrap();
    symlink("/nowhere/at all", dir.join("dangling")).unwrap();
    fs::set_permissions(dir.join("run.sh"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(dir.join("plain.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir.join("second.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    for name in [&b"new\nline"[..], b"\xff\xfe", b"-dash", b":colon", b"back\\slash", b"  spaces ", b"quo\"te", b"*"] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::create_dir_all(dir.join("empty/below")).unwrap();
    fs::create_dir(dir.join("private")).unwrap();
    fs::write(dir.join("private/file"), "p").unwrap();
    fs::set_permissions(dir.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(dir.join("empty"), fs::Permissions::from_mode(0o750)).unwrap();
}

/// Repositories inside: with branches, tags, a stash, an unfinished merge; one in another; one without a commit.
async fn nest(dir: &Path) {
    let inner = testing::repository(&dir.join("vendor")).await;
    testing::run(&inner, &["tag", "-a", "-m", "a tag", "v1"]).await;
    testing::run(&inner, &["checkout", "-q", "-b", "side"]).await;
    testing::commit(&inner, &[("README.md", "side\n")], "side").await;
    testing::run(&inner, &["checkout", "-q", "main"]).await;
    testing::commit(&inner, &[("README.md", "main\n")], "main").await;
    write(&inner, &[("stashed", "stashed")]);
    testing::run(&inner, &["stash", "-q", "-u"]).await;
    fails(&inner, &["merge", "side"]).await;
    write(&inner, &[("untracked", "u"), ("hidden.log", "ignored")]);
    let deeper = inner.join("deeper");
    fs::create_dir(&deeper).unwrap();
    testing::run(&deeper, &["init", "-q"]).await;
    write(&deeper, &[("staged", "s"), ("untracked", "u"), ("key.pem", "secret")]);
    testing::run(&deeper, &["add", "staged"]).await;
    // A submodule that is there, with a commit of its own.
    let url = format!("file://{}", inner.display());
    testing::run(dir, &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &url, "module"]).await;
    testing::commit(&dir.join("module"), &[("m", "m")], "in the module").await;
}

/// A merge with conflicts of all kinds, one of them resolved.
async fn conflict(dir: &Path) {
    testing::commit(dir, &[("c1", "base\n"), ("c2", "base\n"), ("c3", "base\n")], "base of a conflict").await;
    testing::run(dir, &["branch", "-q", "other"]).await;
    testing::commit(dir, &[("c1", "ours\n"), ("c2", "ours\n"), ("added", "ours\n")], "ours").await;
    testing::run(dir, &["rm", "-q", "c3"]).await;
    testing::run(dir, &["commit", "-q", "-m", "without c3"]).await;
    testing::run(dir, &["stash", "list"]).await;
    let other = testing::run(dir, &["rev-parse", "other"]).await;
    testing::run(dir, &["checkout", "-q", &other]).await;
    testing::commit(
        dir,
        &[("c1", "theirs\n"), ("c2", "theirs\n"), ("c3", "theirs\n"), ("added", "theirs\n")],
        "theirs",
    )
    .await;
    let theirs = testing::run(dir, &["rev-parse", "HEAD"]).await;
    testing::run(dir, &["checkout", "-q", "makima/work/1"]).await;
    testing::run(dir, &["branch", "-q", "-D", "other"]).await;
    fails(dir, &["merge", "-m", "a merge", &theirs]).await;
    write(dir, &[("c2", "resolved\n")]);
    testing::run(dir, &["add", "c2"]).await;
}

/// The work of an agent on a machine that is gone for ever is the same on another one.
#[tokio::test]
async fn a_machine_is_lost_and_the_work_is_not() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = place.worktree.clone();
    conflict_then_zoo(&dir).await;
    let index = fs::read(GitDirs::of(&dir).unwrap().git_dir.join("index")).unwrap();
    let mut source = bench.source(&place, None);
    source.transcript = transcript(&bench.dir.path().join("t.jsonl"), "{\"a\":1}\n{\"b\":2}\n{\"cut");
    let before = picture_without_refresh(&dir).await;
    let captured = bench.capture_from(&source).await;
    assert_eq!(before, picture_without_refresh(&dir).await, "a capture changes nothing of the agent's");
    assert_eq!(index, fs::read(GitDirs::of(&dir).unwrap().git_dir.join("index")).unwrap());
    assert!(!captured.unsettled);
    assert_eq!(captured.warnings, Vec::<String>::new());
    assert_eq!((captured.base, captured.depth), (None, 1));
    let names: Vec<&str> = captured.omitted.iter().map(|omitted| omitted.path.as_str()).collect();
    assert_eq!(names, [".env", "deploy/key.pem", "vendor/repository/deeper/key.pem"]);
    let was = picture(&dir, &place.branch, &left_out).await;
    fs::remove_dir_all(bench.machine("a")).unwrap();

    let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
    assert_eq!(restored.warnings, Vec::<String>::new());
    assert_eq!(restored.place.branch, "makima/work/2");
    let now = picture(&restored.place.worktree, "makima/work/2", &left_out).await;
    assert_same(&was, &now);
    assert_sound(&restored.place.worktree).await;
    assert_sound(&restored.place.worktree.join("vendor/repository")).await;
    assert_eq!(fs::read_to_string(restored.transcript.unwrap()).unwrap(), "{\"a\":1}\n{\"b\":2}\n");
    assert_eq!(restored.session_id.as_deref(), Some("session"));
    // And git can go on: the merge is concluded, the stash inside is there.
    let dir = &restored.place.worktree;
    let stash = testing::run(&dir.join("vendor/repository"), &["stash", "list"]).await;
    assert_eq!(stash.lines().count(), 1, "{stash}");
    testing::run(dir, &["add", "-A"]).await;
    testing::run(dir, &["commit", "-q", "-m", "concluded"]).await;
    assert_eq!(testing::run(dir, &["rev-list", "--count", "--merges", "HEAD"]).await, "1");
}

async fn conflict_then_zoo(dir: &Path) {
    fill(dir).await;
    // The conflict needs a clean index: what there is goes into a commit, and more is made on top.
    testing::run(dir, &["update-index", "--no-assume-unchanged", "assumed.txt"]).await;
    fs::remove_file(dir.join(".env")).unwrap();
    fs::remove_file(dir.join("deploy/key.pem")).unwrap();
    conflict(dir).await;
    nest(dir).await;
    write(dir, &[("gone.txt", "again"), ("new-2", "n"), ("staged.txt", "4\n"), ("intended-2", "i")]);
    testing::run(dir, &["add", "staged.txt", "new-2"]).await;
    testing::run(dir, &["add", "-N", "intended-2"]).await;
    write(dir, &[("staged.txt", "5\n"), (".env", "SECRET=1"), ("deploy/key.pem", "key"), ("untracked-2/x", "x")]);
    fs::remove_file(dir.join("both.txt")).unwrap();
    testing::run(dir, &["update-index", "--assume-unchanged", "assumed.txt"]).await;
    write(dir, &[("assumed.txt", "c\n")]);
}

/// Without `status`, which writes the index.
async fn picture_without_refresh(dir: &Path) -> (String, String, Vec<super::super::state::StateFile>) {
    let dirs = GitDirs::of(dir).unwrap();
    (
        testing::run(dir, &["ls-files", "-s", "-v"]).await,
        testing::run(dir, &["for-each-ref"]).await,
        super::super::state::gather(&dirs, false),
    )
}

/// All that can be changed without an operation, also of a path repository, also into a worktree that has other files.
#[tokio::test]
async fn the_zoo_is_restored() {
    for url in [true, false] {
        let bench = Bench::new(url).await;
        let place = bench.place("a").await;
        fill(&place.worktree).await;
        let captured = bench.capture(&place, None).await;
        let was = picture(&place.worktree, &place.branch, &left_out).await;
        let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
        let dir = restored.place.worktree;
        assert_same(&was, &picture(&dir, "makima/work/2", &left_out).await);
        // What is there and does not belong there goes; what is left out or ignored stays.
        write(
            &dir,
            &[("stray", "s"), ("stray-dir/x", "x"), (".env", "mine"), ("x.log", "mine"), ("staged.txt", "other")],
        );
        testing::commit(&dir, &[("second.txt", "other")], "other work").await;
        fs::remove_dir_all(dir.join("untracked")).unwrap();
        bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
        assert_same(&was, &picture(&dir, "makima/work/2", &left_out).await);
        assert_eq!(fs::read_to_string(dir.join(".env")).unwrap(), "mine");
        assert!(dir.join("x.log").exists());
    }
}

/// A rebase goes on where it was, on the new branch.
#[tokio::test]
async fn a_rebase_goes_on() {
    for apply in [false, true] {
        let bench = Bench::new(true).await;
        let place = bench.place("a").await;
        let dir = &place.worktree;
        testing::commit(dir, &[("c", "one\n")], "one").await;
        testing::commit(dir, &[("c", "two\n")], "two").await;
        let last = testing::commit(dir, &[("d", "three\n")], "three").await;
        testing::run(dir, &["checkout", "-q", "--detach", "HEAD~3"]).await;
        let onto = testing::commit(dir, &[("c", "other\n")], "other").await;
        testing::run(dir, &["checkout", "-q", "makima/work/1"]).await;
        fails(dir, &["rebase", if apply { "--apply" } else { "--merge" }, &onto]).await;
        write(dir, &[("c", "half resolved\n")]);
        let captured = bench.capture(&place, None).await;
        assert_eq!(captured.branch, None);
        let was = picture(dir, &place.branch, ALL).await;
        fs::remove_dir_all(bench.machine("a")).unwrap();
        let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
        let dir = &restored.place.worktree;
        assert_same(&was, &picture(dir, "makima/work/2", ALL).await);
        assert_eq!(testing::run(dir, &["rev-parse", "makima/work/2"]).await, last);
        testing::run(dir, &["add", "c"]).await;
        let output = git(dir)
            .args(["-c", "user.name=T", "-c", "user.email=t@example.com", "rebase", "--continue"])
            .run(LOCAL_TIMEOUT)
            .await
            .unwrap();
        // The second commit conflicts with the resolution, too.
        if !output.success() {
            write(dir, &[("c", "resolved\n")]);
            testing::run(dir, &["add", "c"]).await;
            testing::run(dir, &["rebase", "--continue"]).await;
        }
        assert_eq!(testing::run(dir, &["symbolic-ref", "HEAD"]).await, "refs/heads/makima/work/2");
        assert_eq!(testing::run(dir, &["log", "-1", "--format=%s"]).await, "three");
    }
}

/// A branch without a commit, a HEAD on no branch, a branch of the agent's own: all go on as they were.
#[tokio::test]
async fn head_may_be_anywhere() {
    for detour in [
        &["checkout", "-q", "--orphan", "fresh"][..],
        &["checkout", "-q", "--detach"],
        &["checkout", "-q", "-b", "own"],
    ] {
        let bench = Bench::new(true).await;
        let place = bench.place("a").await;
        let dir = &place.worktree;
        testing::commit(dir, &[("before", "b")], "before").await;
        testing::run(dir, detour).await;
        if detour.len() == 3 || detour[2] == "-b" {
            testing::commit(dir, &[("after", "a")], "after").await;
        }
        write(dir, &[("rest", "r")]);
        let captured = bench.capture(&place, None).await;
        let was = picture(dir, &place.branch, ALL).await;
        let before = testing::run(dir, &["rev-parse", "makima/work/1"]).await;
        fs::remove_dir_all(bench.machine("a")).unwrap();
        let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
        assert_eq!(restored.warnings, Vec::<String>::new());
        let dir = &restored.place.worktree;
        assert_same(&was, &picture(dir, "makima/work/2", ALL).await);
        assert_eq!(testing::run(dir, &["rev-parse", "makima/work/2"]).await, before);
        // The same again, where the branch of that name is in use already.
        let again = bench.restore("b", &[&captured], "makima/work/3").await.unwrap();
        assert_eq!(again.warnings.is_empty(), detour[2] == "--detach", "{:?}", again.warnings);
        assert_eq!(
            testing::run(&again.place.worktree, &["status", "--porcelain"]).await.lines().count(),
            was_lines(&was.status)
        );
    }
}

fn was_lines(status: &str) -> usize {
    status.split(['\0', '\n']).filter(|line| line.starts_with(['1', '?'])).count()
}

/// Line endings, filters and encodings of the repository change no byte; indexes of all forms are read.
#[tokio::test]
async fn bytes_are_bytes() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    let rules = "*.txt text eol=crlf\n*.id ident\n*.u16 working-tree-encoding=UTF-16 text\n*.rot filter=rot\n";
    testing::run(dir, &["config", "filter.rot.clean", "tr a-m n-z"]).await;
    testing::run(dir, &["config", "filter.rot.smudge", "tr n-z a-m"]).await;
    testing::run(dir, &["config", "filter.rot.required", "true"]).await;
    write(dir, &[(".gitattributes", rules), ("a.txt", "a\r\nb\r\n"), ("x.id", "$Id$\n"), ("r.rot", "abc\n")]);
    fs::write(dir.join("w.u16"), b"\xff\xfea\0\n\0").unwrap();
    testing::run(dir, &["add", "-A"]).await;
    testing::run(dir, &["commit", "-q", "-m", "converted"]).await;
    for name in ["a.txt", "x.id"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    testing::run(dir, &["checkout", "--", "."]).await;
    write(dir, &[("mixed.txt", "a\nb\r\n"), ("new.rot", "abc")]);
    for form in ["--split-index", "--index-version=4", "--untracked-cache"] {
        let form: Vec<&str> = form.split('=').collect();
        testing::run(dir, &[&["update-index"][..], &form].concat()).await;
        let captured = bench.capture(&place, None).await;
        assert_eq!(captured.warnings, Vec::<String>::new());
        let branch = format!("makima/{}", form[0].trim_start_matches('-'));
        let repo = bench.repo("b").await;
        for key in ["filter.rot.clean", "filter.rot.smudge"] {
            let way = if key.ends_with("clean") { "tr a-m n-z" } else { "tr n-z a-m" };
            testing::run(&repo.git_dir, &["config", key, way]).await;
        }
        let restored = bench.restore("b", &[&captured], &branch).await.unwrap();
        let was = picture(dir, &place.branch, ALL).await;
        assert_same(&was, &picture(&restored.place.worktree, &branch, ALL).await);
    }
}

/// Files that are not checked out stay so; what is staged and looks secret goes nowhere; what is huge is named.
#[tokio::test]
async fn what_is_left_out_is_named() {
    let bench = Bench::new(true).await;
    let mut place = bench.place("a").await;
    let dir = place.worktree.clone();
    testing::commit(&dir, &[("skipped", "s"), (".npmrc", "committed by the agent"), ("kept", "k")], "one").await;
    testing::run(&dir, &["update-index", "--skip-worktree", "skipped"]).await;
    fs::remove_file(dir.join("skipped")).unwrap();
    write(&dir, &[("id_rsa", "secret"), (".npmrc", "changed"), ("copied.json", "c"), (".GIT/x", "x")]);
    testing::run(&dir, &["add", "-f", "id_rsa"]).await;
    place.copied = vec!["copied.json".into()];
    let huge = fs::File::create(dir.join("huge")).unwrap();
    huge.set_len(super::super::MAX_FILE_BYTES + 1).unwrap();
    let captured = bench.capture(&place, None).await;
    let names: Vec<&str> = captured.omitted.iter().map(|omitted| omitted.path.as_str()).collect();
    assert_eq!(names, [".GIT/x", "huge", "id_rsa"]);
    assert!(captured.bytes < 100_000);
    let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
    let now = &restored.place.worktree;
    assert!(restored.warnings[0].contains("id_rsa"), "{:?}", restored.warnings);
    assert_eq!(restored.omitted, captured.omitted);
    assert!(!now.join("skipped").exists() && !now.join("copied.json").exists() && !now.join("id_rsa").exists());
    assert_eq!(fs::read_to_string(now.join(".npmrc")).unwrap(), "changed");
    assert_eq!(testing::run(now, &["ls-files", "-v"]).await, "H .gitignore\nH .npmrc\nH README.md\nH kept\nS skipped");
    // Eleven of a hundred MiB are too much, and it is said which.
    for n in 0..11 {
        fs::File::create(dir.join(format!("big-{n}"))).unwrap().set_len(super::super::MAX_FILE_BYTES).unwrap();
    }
    let error = super::super::capture(&bench.source(&place, None), &bench.files()).await.unwrap_err();
    assert!(error.message.contains("big-") && error.message.contains("1024 MiB"), "{error}");
}

/// A directory that becomes a repository of its own between two checkpoints is one in the second; files that git has come to
/// ignore are gone from it.
#[tokio::test]
async fn what_files_are_may_change() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    write(dir, &[("part/x", "x"), ("build/out.bin", "b"), ("build/kept", "k")]);
    let first = bench.capture(&place, None).await;
    testing::run(&dir.join("part"), &["init", "-q"]).await;
    testing::commit(&dir.join("part"), &[("y", "y")], "inside").await;
    write(dir, &[(".gitignore", "*.log\nbuild/\n")]);
    testing::run(dir, &["add", "-f", "build/kept"]).await;
    let second = bench.capture(&place, Some(&first)).await;
    assert!(!second.unsettled);
    let was = picture(dir, &place.branch, &|path| path == "build/out.bin").await;
    let restored = bench.restore("b", &[&first, &second], "makima/work/2").await.unwrap();
    assert_same(&was, &picture(&restored.place.worktree, "makima/work/2", ALL).await);
}
