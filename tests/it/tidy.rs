//! The directions of the house: who may know whom, and a few rules of form. It reads the sources, without comments and
//! strings, and names every line that breaks a rule.
//!
//! ```text
//!   domain <─ store, wire, runtime      server ─> domain, store, wire, runtime
//!                                       daemon ─> domain, runtime (session and bulk: wire too)
//!   cli ─> everything                   server and daemon, store and wire: never each other
//! ```

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file before it has to be divided or listed in [`LONG`].
const MAX_LINES: usize = 700;

/// Files that may be longer, each with its reason.
const LONG: [(&str, &str); 1] = [("src/wire/daemon.rs", "one table of conversions, read by name")];

/// Parts of the house: what files they are, and what of the house they may use.
const DIRECTIONS: [(&str, &[&str]); 11] = [
    ("domain", &["domain"]),
    ("runtime", &["runtime", "domain"]),
    ("store", &["store", "domain"]),
    ("wire", &["wire", "domain"]),
    ("server", &["server", "domain", "store", "wire", "runtime"]),
    ("daemon", &["daemon", "domain", "runtime"]),
    ("daemon/session", &["daemon", "domain", "runtime", "wire"]),
    ("daemon/bulk", &["daemon", "domain", "runtime", "wire"]),
    ("cli", &["cli", "domain", "store", "wire", "server", "daemon", "runtime"]),
    ("main.rs", &["cli", "daemon", "runtime"]),
    ("lib.rs", &["cli", "daemon", "domain", "runtime", "server", "store", "wire"]),
];

/// Crates that only one part may name.
const KEPT: [(&str, &[&str]); 4] = [
    ("sqlx", &["store"]),
    ("rusqlite", &["daemon", "store"]),
    ("git2", &["daemon", "cli"]),
    ("object_store", &["server"]),
];

/// Crates that `domain` may name: it decides, and does nothing else. The last two only in tests.
const DOMAIN_CRATES: [&str; 8] = ["std", "core", "serde", "serde_json", "thiserror", "uuid", "proptest", "insta"];

#[test]
fn modules_know_only_whom_they_may() {
    complain(&each_source("src", |file, source| directions(file, &tokens(source))));
}

#[test]
fn libraries_stay_where_they_belong() {
    complain(&each_source("src", |file, source| libraries(file, &tokens(source))));
}

#[test]
fn files_say_what_they_are_for_and_stay_short() {
    complain(&each_source("src", form));
    complain(&each_source("tests/it", form));
    complain(&each_source("benches", form));
}

#[test]
fn nothing_is_unsafe() {
    let banned = |_: &str, source: &str| {
        let found = tokens(source).into_iter().filter(|token| token.text == "unsafe");
        found.map(|token| (token.line, "`unsafe` has no place here: use a safe wrapper".to_owned())).collect()
    };
    complain(&each_source("src", banned));
    complain(&each_source("tests/it", banned));
}

/// A daemon that does no work is for `benches` alone: nothing that is released may start one.
#[test]
fn no_program_asks_for_a_daemon_without_work() {
    let asks = |file: &str, source: &str| {
        let named = |token: &Token<'_>| ["run_hollow", "hollow", "Hollow"].contains(&token.text);
        let home = file.starts_with("src/daemon/");
        let found = tokens(source).into_iter().filter(|token| !home && named(token));
        found.map(|token| (token.line, "only benches run daemons without work".to_owned())).collect()
    };
    complain(&each_source("src", asks));
}

/// Cargo does not compile a file of the test binary that nobody names.
#[test]
fn no_test_file_is_forgotten() {
    let main = fs::read_to_string(root().join("tests/it/main.rs")).unwrap();
    let named = modules(&tokens(&main));
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(root().join("tests/it")).unwrap() {
        let path = entry.unwrap().path();
        let is_module = path.extension().is_some_and(|e| e == "rs") || path.join("mod.rs").is_file();
        if is_module && path.file_stem().unwrap() != "main" {
            there.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    let forgotten: Vec<_> = there.difference(&named).collect();
    assert!(forgotten.is_empty(), "tests/it/main.rs does not name {forgotten:?}: add `mod ..;`");
}

#[test]
fn exceptions_are_still_needed() {
    for (file, reason) in LONG {
        let source = fs::read_to_string(root().join(file)).unwrap_or_default();
        assert!(source.lines().count() > MAX_LINES, "{file} is short now, and LONG still lists it ({reason})");
    }
}

// === The rules ===

/// A line and what is wrong with it.
type Finding = (usize, String);

/// Uses of `crate::part` and of `super::..::part` that reach a part of the house that this one may not use.
fn directions(file: &str, tokens: &[Token<'_>]) -> Vec<Finding> {
    let part = part_of(file);
    let Some((_, allowed)) = DIRECTIONS.iter().find(|(name, _)| *name == part) else {
        return vec![(1, format!("`{part}` is not a part of the house that tests/it/tidy.rs knows"))];
    };
    let parts: BTreeSet<&str> = DIRECTIONS.iter().map(|(name, _)| *name).filter(|name| !name.contains('/')).collect();
    let used = uses(tokens, depth_of(file));
    let used = used.into_iter().filter(|(_, name)| parts.contains(name) && !allowed.contains(name));
    used.map(|(line, name)| (line, format!("`{part}` must not use `{name}`; it may use {allowed:?}"))).collect()
}

/// Names directly under the crate's root that the tokens use, with their lines. `depth` is how many times `super` leads
/// from the file's own module to the root.
fn uses<'a>(tokens: &[Token<'a>], depth: usize) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        if at > 0 && tokens[at - 1].text == "::" {
            continue;
        }
        // `crate::`, or as many `super::` as lead to the root or (in a module inside the file) beyond.
        let mut next = at;
        let mut supers = 0;
        while tokens.get(next).is_some_and(|t| t.text == "super")
            && tokens.get(next + 1).is_some_and(|t| t.text == "::")
        {
            (next, supers) = (next + 2, supers + 1);
        }
        if supers == 0 && tokens[at].text == "crate" && tokens.get(at + 1).is_some_and(|t| t.text == "::") {
            next = at + 2;
        } else if supers == 0 || supers < depth {
            continue;
        }
        match tokens.get(next) {
            Some(token) if token.text == "{" => found.extend(group(&tokens[next..])),
            Some(token) => found.push((token.line, token.text)),
            None => {}
        }
    }
    found
}

/// The first names of a `{a::b, c}` that begins here.
fn group<'a>(tokens: &[Token<'a>]) -> Vec<(usize, &'a str)> {
    let mut names = Vec::new();
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if let Some(name) = tokens.get(at + 1)
            && depth == 1
            && matches!(token.text, "{" | ",")
            && name.is_word()
        {
            names.push((name.line, name.text));
        }
    }
    names
}

/// Crates where they do not belong.
fn libraries(file: &str, tokens: &[Token<'_>]) -> Vec<Finding> {
    let part = part_of(file).split('/').next().unwrap_or_default().to_owned();
    let mut findings = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).map_or("", |at| tokens[at].text);
        let next = tokens.get(at + 1).map_or("", |t| t.text);
        if next != "::" && !(before == "use" && next == ";") || before == "::" {
            continue;
        }
        if let Some((name, homes)) = KEPT.iter().find(|(name, homes)| *name == token.text && !homes.contains(&&*part)) {
            findings.push((token.line, format!("`{part}` must not name `{name}`: only {homes:?} may")));
        }
        // Elsewhere `a::b` may be a module or type of the file's own; a `use` that begins with a small letter is a crate or
        // one of the module's children.
        let children = modules(tokens);
        let own = ["crate", "super", "self"].contains(&token.text) || children.contains(token.text);
        if part == "domain" && before == "use" && !own && !DOMAIN_CRATES.contains(&token.text) {
            let is_type = token.text.starts_with(char::is_uppercase);
            if !is_type {
                findings.push((token.line, format!("`domain` must not name `{}`: it only decides", token.text)));
            }
        }
        if part == "domain" && matches!(token.text, "tokio" | "tracing" | "rand" | "sqlx" | "tonic" | "prost") {
            findings.push((token.line, format!("`domain` must not name `{}`: it only decides", token.text)));
        }
    }
    findings.dedup();
    findings
}

/// Module text first, and not too long.
fn form(file: &str, source: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let first = source.lines().next().unwrap_or_default();
    let says = first.strip_prefix("//!").map(str::trim);
    if says.is_none_or(|text| text.is_empty() || text.starts_with("TBD")) {
        findings.push((1, "a file opens with `//!`: what it is for, what it promises".to_owned()));
    }
    let lines = source.lines().count();
    if lines > MAX_LINES && !LONG.iter().any(|(long, _)| *long == file) {
        findings.push((MAX_LINES, format!("{lines} lines: divide it by noun")));
    }
    findings
}

/// The modules that a file declares with `mod name;`.
fn modules(tokens: &[Token<'_>]) -> BTreeSet<String> {
    let declared = tokens.windows(2).filter(|pair| pair[0].text == "mod" && pair[1].is_word());
    declared.map(|pair| pair[1].text.to_owned()).collect()
}

/// The part of the house a file belongs to: its first folder (or file) under `src`, or the longer one that has a rule.
fn part_of(file: &str) -> String {
    let inside = file.strip_prefix("src/").unwrap_or(file);
    let bare = inside.strip_suffix(".rs").unwrap_or(inside);
    let special = |name: &&str| name.contains('/') && (bare == *name || bare.starts_with(&format!("{name}/")));
    if let Some((name, _)) = DIRECTIONS.iter().find(|(name, _)| special(name)) {
        return (*name).to_owned();
    }
    inside.split('/').next().unwrap_or_default().to_owned()
}

/// How many `super` lead from a file's module to the root of the crate.
fn depth_of(file: &str) -> usize {
    let inside = file.strip_prefix("src/").unwrap_or(file);
    let folders = inside.matches('/').count();
    let is_folders_own = inside.ends_with("/mod.rs") || matches!(inside, "lib.rs" | "main.rs");
    if is_folders_own { folders } else { folders + 1 }
}

// === Reading sources ===

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a rule finds in every source under a folder, as lines for people.
fn each_source(folder: &str, rule: impl Fn(&str, &str) -> Vec<Finding>) -> Vec<String> {
    let mut files = Vec::new();
    collect(&root().join(folder), &mut files);
    files.sort();
    assert!(!files.is_empty(), "no sources under {folder}");
    let mut lines = Vec::new();
    for path in files {
        let file = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let source = fs::read_to_string(&path).unwrap();
        lines.extend(rule(&file, &source).into_iter().map(|(line, what)| format!("{file}:{line}: {what}")));
    }
    lines
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn complain(lines: &[String]) {
    let mut text = String::new();
    for line in lines {
        writeln!(text, "  {line}").unwrap();
    }
    assert!(lines.is_empty(), "{} rules broken:\n{text}", lines.len());
}

/// A word or a sign, with its line.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

impl Token<'_> {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// The words and signs of a source, without comments, strings, characters and lifetimes. `::` is one sign.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < source.len() {
        let rest = &source[at..];
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = if let Some(length) = skipped(rest) {
            length
        } else if word > 0 {
            tokens.push(Token { text: &rest[..word], line });
            word
        } else {
            let length = if rest.starts_with("::") { 2 } else { rest.chars().next().map_or(1, char::len_utf8) };
            if !rest.starts_with(char::is_whitespace) {
                tokens.push(Token { text: &rest[..length], line });
            }
            length
        };
        line += rest[..length].matches('\n').count();
        at += length;
    }
    tokens
}

/// The length of the comment, string, character or lifetime that begins here.
fn skipped(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        let (mut depth, mut at) = (0, 0);
        while at < rest.len() {
            match &rest.as_bytes()[at..] {
                [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
                [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
                _ => at += 1,
            }
            if depth == 0 {
                return Some(at);
            }
        }
        return Some(rest.len());
    }
    if let Some(length) = raw_string(rest) {
        return Some(length);
    }
    let prefix = usize::from(rest.starts_with("b\"") || rest.starts_with("c\"") || rest.starts_with("b'"));
    let body = &rest[prefix..];
    if body.starts_with('"') {
        return Some(prefix + quoted(body, b'"'));
    }
    let inside = body.strip_prefix('\'')?;
    let mut chars = inside.chars();
    let (first, second) = (chars.next(), chars.next());
    if first == Some('\\') || second == Some('\'') {
        return Some(prefix + quoted(body, b'\''));
    }
    let lifetime = inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len());
    Some(prefix + 1 + lifetime)
}

/// The length of a quoted text with its quotes.
fn quoted(rest: &str, quote: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    // An escape may skip into a longer character; the end of the text is the end in any case.
    let mut end = (at + 1).min(rest.len());
    while !rest.is_char_boundary(end) {
        end += 1;
    }
    end
}

/// The length of a raw string that begins here: `r"..."`, `br#"..."#`.
fn raw_string(rest: &str) -> Option<usize> {
    let start = ["r", "br", "cr"]
        .into_iter()
        .find(|p| rest.strip_prefix(p).is_some_and(|after| after.trim_start_matches('#').starts_with('"')))?;
    let after = &rest[start.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let close = format!("\"{}", "#".repeat(hashes));
    let body = start.len() + hashes + 1;
    Some(rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len()))
}

// === That the rules see what they should ===

fn seen(file: &str, source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut findings = directions(file, &tokens);
    findings.extend(libraries(file, &tokens));
    findings.into_iter().map(|(line, what)| format!("{line}: {}", what.split([';', ':']).next().unwrap())).collect()
}

#[test]
fn a_forbidden_import_is_seen_however_it_is_written() {
    let not = |line: usize, part: &str, name: &str| vec![format!("{line}: `{part}` must not use `{name}`")];
    assert_eq!(seen("src/domain/task.rs", "//! x\nuse crate::store::Tx;"), not(2, "domain", "store"));
    assert_eq!(seen("src/server/run.rs", "use crate::{domain::{A, B}, daemon};"), not(1, "server", "daemon"));
    assert_eq!(
        seen("src/server/run.rs", "use crate::{\n  self as a,\n  daemon::x::{y},\n};"),
        not(3, "server", "daemon")
    );
    assert_eq!(seen("src/daemon/git.rs", "fn f() { let x = crate::server::run(); }"), not(1, "daemon", "server"));
    assert_eq!(seen("src/daemon/git.rs", "use super::super::wire::pb;"), not(1, "daemon", "wire"));
    assert_eq!(seen("src/daemon/agents/claude.rs", "use super::super::super::wire;"), not(1, "daemon", "wire"));
    assert_eq!(seen("src/store/mod.rs", "use super::wire;"), not(1, "store", "wire"));
    assert_eq!(seen("src/wire/task.rs", "pub(in crate::store) fn f() {}"), not(1, "wire", "store"));
    assert_eq!(seen("src/runtime/clock.rs", "macro_rules! m { () => { $crate::cli::x } }"), not(1, "runtime", "cli"));
    assert_eq!(seen("src/new/a.rs", ""), ["1: `new` is not a part of the house that tests/it/tidy.rs knows"]);
    assert_eq!(seen("src/server/run.rs", "use sqlx::query;"), ["1: `server` must not name `sqlx`"]);
    assert_eq!(seen("src/domain/task.rs", "use tokio::sync;"), ["1: `domain` must not name `tokio`"; 1]);
    assert_eq!(seen("src/domain/task.rs", "fn f() { rand::random() }"), ["1: `domain` must not name `rand`"]);
    assert_eq!(seen("src/domain/task.rs", "use regex::Regex;"), ["1: `domain` must not name `regex`"]);
}

#[test]
fn what_is_allowed_or_only_said_is_not_seen() {
    let nothing: [String; 0] = [];
    assert_eq!(seen("src/daemon/session.rs", "use crate::{domain, wire::pb};"), nothing);
    assert_eq!(seen("src/daemon/session/read.rs", "use crate::wire;"), nothing);
    assert_eq!(seen("src/cli/run.rs", "use crate::{server, daemon, store};"), nothing);
    assert_eq!(seen("src/server/a/b.rs", "use super::super::store; use super::daemon;"), nothing);
    assert_eq!(seen("src/domain/mod.rs", "mod a; pub use a::B; use std::fmt; use Kind::A;"), nothing);
    let said = "// crate::store\n/* crate::store /* crate::wire */ crate::cli */\n\
        const A: &str = \"crate::store \\\" crate::wire\"; const B: &str = r#\"crate::\"store\"#;\n\
        const C: char = '\"'; fn f<'crate>(x: &'static str) { let y = b'\\''; let z = b\"crate::cli\"; }\n";
    assert_eq!(seen("src/domain/task.rs", said), nothing);
    assert_eq!(seen("src/domain/task.rs", &format!("{said}use crate::store;")), ["5: `domain` must not use `store`"]);
}

#[test]
fn form_is_looked_at() {
    assert_eq!(form("src/a.rs", "//! What it is for.\n"), []);
    assert_eq!(form("src/a.rs", "use std::fmt;\n").len(), 1);
    assert_eq!(form("src/a.rs", "//! TBD\n").len(), 1);
    assert_eq!(form("src/a.rs", &format!("//! Long.\n{}", "\n".repeat(MAX_LINES))).len(), 1);
    assert_eq!(form(LONG[0].0, &format!("//! Long.\n{}", "\n".repeat(MAX_LINES))), []);
}
