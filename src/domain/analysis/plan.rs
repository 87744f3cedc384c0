//! The categories of a plan: tokens first, then what each of them says where it stands.
//!
//! ```text
//!   text ──tokens──> Word Word Path Break Word Open ...
//!                     │ negation ("do not", "without") and reference ("from", "using") hold for a few words
//!                     v
//!                   Tally by category: said by path or SQL, by the name, by which different words
//! ```

use super::{
    Category,
    path::{categorize_path, humps},
};

/// Words for which "not" holds, if no comma or full stop comes first.
const NEGATED_WORDS: u8 = 6;
/// Words for which "from" holds: "from the existing users API".
const REFERRED_WORDS: u8 = 4;
/// Words beside a path or SQL that a category needs.
const WORDS_BESIDE_PATHS: usize = 2;

/// What a task touches, by its name and plan: sorted, without repetition, empty if nothing is recognised.
pub fn categorize_plan(name: &str, plan: &str) -> Vec<Category> {
    let mut evidence = Evidence::default();
    evidence.read(&tokens(name, true), Source::Name);
    evidence.read(&tokens(plan, false), Source::Plan);
    evidence.categories()
}

// === Tokens ===

/// A word in small letters. Longer ones and ones with other letters than a to z mean nothing to us and are empty.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word {
    bytes: [u8; Word::MAX],
    length: u8,
    /// Written in capitals.
    capitals: bool,
    /// Part of a longer name, there only to say what stands before its last part.
    context: bool,
}

impl Word {
    const MAX: usize = 16;

    fn new(text: &str) -> Self {
        let mut word = Self { bytes: [0; Self::MAX], length: 0, capitals: false, context: false };
        if text.len() <= Self::MAX && text.is_ascii() {
            word.bytes[..text.len()].copy_from_slice(text.as_bytes());
            word.bytes.make_ascii_lowercase();
            word.length = u8::try_from(text.len()).unwrap_or(0);
            word.capitals = text.len() > 1 && text.bytes().all(|b| b.is_ascii_uppercase());
        }
        word
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

enum Token {
    Word(Word),
    /// A path of a known kind.
    Path(Category),
    /// The end of a thought: comma, full stop, bullet, empty line.
    Break,
    /// An opening parenthesis.
    Open,
}

/// Cuts a text into tokens. In a name every part of a camel-case word counts.
fn tokens(text: &str, is_name: bool) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(text.len() / 6);
    let mut new_lines = 0;
    for chunk in text.split_inclusive(is_delimiter) {
        let body = chunk.trim_end_matches(is_delimiter);
        if !body.is_empty() {
            if new_lines > 1 || matches!(body, "-" | "*" | "+" | "•") || body.starts_with('#') {
                tokens.push(Token::Break);
            }
            new_lines = 0;
            chunk_tokens(body, is_name, &mut tokens);
            if body.ends_with(['.', ':', '!', '?']) {
                tokens.push(Token::Break);
            }
        }
        match chunk[body.len()..].chars().next() {
            Some('\n') => new_lines += 1,
            Some(',' | ';' | ')') => tokens.push(Token::Break),
            Some('(') => tokens.push(Token::Open),
            _ => {}
        }
    }
    tokens
}

fn is_delimiter(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, ',' | ';' | '(' | ')' | '{' | '}' | '[' | ']' | '<' | '>' | '|' | '=' | '"' | '`' | '“' | '”')
}

/// What stands between two delimiters: a URL, a path, or words.
fn chunk_tokens(chunk: &str, is_name: bool, tokens: &mut Vec<Token>) {
    if chunk.contains("://") {
        return;
    }
    let trimmed = chunk
        .trim_start_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '.' | '/' | '~' | '_' | '@' | '*'))
        .trim_end_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '/' | '_' | '*'));
    // `src/api/users.rs:42`
    let path = trimmed.split_once(':').map_or(trimmed, |(path, _)| path);
    if looks_like_path(path) {
        match categorize_path(path) {
            Some(category) => return tokens.push(Token::Path(category)),
            None if path.contains('/') => return tokens.push(Token::Word(Word::new(""))),
            // `form.html`, `Vue.js`: the words may say what the path did not.
            None => {}
        }
    }
    for word in trimmed.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’') {
        if !word.is_empty() {
            word_tokens(word, is_name, tokens);
        }
    }
}

/// A word, or the parts of a camel-case one, of which the last says what it is: a `LoginForm` is a form, `FormData` is not.
fn word_tokens(word: &str, is_name: bool, tokens: &mut Vec<Token>) {
    let whole = Word::new(word);
    let mut parts: Vec<&str> = humps(word).collect();
    let last = parts.pop().unwrap_or_default();
    // `TypeScript` is one word, and `GraphQL` one that we know.
    if !is_name && (noun(whole.text()).is_some() || noun(Word::new(last).text()).is_none()) {
        return tokens.push(Token::Word(whole));
    }
    tokens.extend(parts.iter().map(|part| Token::Word(Word { context: !is_name, ..Word::new(part) })));
    tokens.push(Token::Word(Word::new(last)));
}

/// Extensions that make a path of a word without a slash. More than those that mean something, so that `main.c` is no word.
const EXTENSIONS: [&str; 40] = [
    "sql", "prisma", "ts", "tsx", "mts", "cts", "js", "jsx", "mjs", "cjs", "vue", "svelte", "rs", "go", "py", "rb",
    "java", "kt", "php", "cs", "swift", "c", "h", "cpp", "css", "scss", "html", "json", "yaml", "yml", "toml", "md",
    "proto", "graphql", "sh", "txt", "lock", "env", "xml", "ini",
];

/// Where paths begin that are written without a file name.
const ROOTS: [&str; 18] = [
    "src", "lib", "libs", "app", "apps", "packages", "crates", "internal", "cmd", "pkg", "test", "tests", "db",
    "prisma", "drizzle", "supabase", "~", "@",
];

fn looks_like_path(text: &str) -> bool {
    let (before, last) = text.rsplit_once(['/', '\\']).map_or(("", text), |(before, last)| (before, last));
    let extension = last.rsplit_once('.').map(|(_, extension)| extension);
    if !text.contains('/') {
        return extension.is_some_and(|e| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(e)));
    }
    let has_extension =
        extension.is_some_and(|e| (1..=8).contains(&e.len()) && e.bytes().all(|b| b.is_ascii_alphanumeric()));
    let first = text.split('/').next().unwrap_or_default();
    let mut parts = text.split('/').filter(|part| !part.is_empty());
    has_extension
        || last.is_empty() && !before.is_empty()
        || text.starts_with(['/', '.', '~'])
        || ROOTS.iter().any(|root| root.eq_ignore_ascii_case(first))
        // `schema/types/backend` is a list of words, `users/profile/edit` a path.
        || parts.clone().count() > 2 && !parts.all(|part| noun(Word::new(part).text()).is_some())
}

// === Evidence ===

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Name,
    Plan,
}

/// What speaks for a category.
#[derive(Clone, Default)]
struct Tally {
    /// A path or SQL.
    solid: bool,
    /// The task's name.
    named: bool,
    /// Different words, as many as it takes.
    words: Vec<&'static str>,
}

/// What speaks for each category: what is worked on, and what is only read.
#[derive(Default)]
struct Evidence {
    touched: [Tally; 4],
    referred: [Tally; 4],
}

impl Evidence {
    fn read(&mut self, tokens: &[Token], source: Source) {
        let word = |at: usize| match tokens.get(at) {
            Some(Token::Word(word)) => word.text(),
            _ => "",
        };
        let (mut negated, mut referred) = (0_u8, 0_u8);
        for (at, token) in tokens.iter().enumerate() {
            let before = |back: usize| at.checked_sub(back).map_or("", word);
            let said = match token {
                Token::Break => {
                    (negated, referred) = (0, 0);
                    continue;
                }
                Token::Open => continue,
                Token::Path(category) => Some((*category, None)),
                Token::Word(_) if is_sql(tokens, at) => Some((Category::Schema, None)),
                Token::Word(w) if w.context => None,
                Token::Word(w) => meaning(before(1), w, word(at + 1)).map(|(category, word)| (category, Some(word))),
            };
            if let Some((category, word)) = said
                && negated == 0
            {
                let side = if referred > 0 { &mut self.referred } else { &mut self.touched };
                side[category as usize].add(word, source);
            }
            (negated, referred) = (negated.saturating_sub(1), referred.saturating_sub(1));
            let Token::Word(w) = token else { continue };
            if negates(w.text(), word(at + 1)) {
                negated = NEGATED_WORDS;
            } else if refers(before(1), w.text()) {
                referred = REFERRED_WORDS;
            } else if matches!(w.text(), "and" | "then" | "to" | "for" | "so" | "with" | "but" | "add" | "create") {
                referred = 0;
                if w.text() == "but" {
                    negated = 0;
                }
            }
        }
    }

    fn categories(&self) -> Vec<Category> {
        let touched = kept(&self.touched);
        if touched.is_empty() { kept(&self.referred) } else { touched }
    }
}

impl Tally {
    fn add(&mut self, word: Option<&'static str>, source: Source) {
        self.named |= source == Source::Name;
        match word {
            None => self.solid = true,
            Some(word) if self.words.len() < WORDS_BESIDE_PATHS && !self.words.contains(&word) => self.words.push(word),
            Some(_) => {}
        }
    }
}

fn kept(tallies: &[Tally; 4]) -> Vec<Category> {
    let needed = if tallies.iter().any(|tally| tally.solid) { WORDS_BESIDE_PATHS } else { 1 };
    let keep = |tally: &Tally| tally.solid || tally.named || tally.words.len() >= needed;
    Category::ALL.into_iter().filter(|category| keep(&tallies[*category as usize])).collect()
}

/// It says that what follows is not to be done.
fn negates(word: &str, next: &str) -> bool {
    match word {
        "not" | "no" => !matches!(next, "only" | "just" | "longer"),
        "don't" | "dont" | "doesn't" | "never" | "without" | "avoid" | "except" | "instead" => true,
        _ => false,
    }
}

/// It says that what follows is only read.
fn refers(before: &str, word: &str) -> bool {
    match word {
        "from" | "using" | "uses" | "via" | "against" | "see" | "per" | "calls" | "calling" | "consumes"
        | "consuming" | "consume" | "fetches" | "fetching" => true,
        "on" => matches!(before, "based" | "depends" | "depending" | "relies" | "relying" | "builds"),
        "in" => matches!(before, "defined" | "described" | "declared" | "documented" | "specified" | "found"),
        "by" => matches!(before, "provided" | "returned" | "exposed" | "served" | "defined"),
        "to" => before == "according",
        _ => false,
    }
}

/// SQL that changes a schema begins here: in capitals, or in the shape that only SQL has.
fn is_sql(tokens: &[Token], at: usize) -> bool {
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => Some(word),
        _ => None,
    };
    let Some(verb) = word(at) else { return false };
    if !matches!(verb.text(), "create" | "alter" | "drop") {
        return false;
    }
    let objects = ["table", "index", "view", "schema", "type", "extension", "trigger", "sequence", "policy", "column"];
    if verb.capitals {
        // CREATE OR REPLACE VIEW, CREATE UNIQUE INDEX, DROP TABLE IF EXISTS
        return (1..=3).map_while(|step| word(at + step)).any(|w| w.capitals && objects.contains(&w.text()));
    }
    if word(at + 1).is_none_or(|w| w.text() != "table") {
        return false;
    }
    if verb.text() == "create" {
        // create table [if not exists] user_names (
        let guard = ["if", "not", "exists"];
        let guarded = guard.iter().enumerate().take_while(|(i, g)| word(at + 2 + i).is_some_and(|w| w.text() == **g));
        let from = at + 2 + guarded.count();
        // A snake-case name is several words; none of them is `component`.
        let plain = |w: &Word| !matches!(noun(w.text()), Some((Category::Ui, _)));
        let parts = (from..from + 4).take_while(|&i| word(i).is_some_and(plain)).count();
        return parts > 0 && matches!(tokens.get(from + parts), Some(Token::Open));
    }
    // alter table users add column, drop table users
    verb.text() == "alter" || word(at + 2).is_some_and(|w| !matches!(w.text(), "component" | "view" | "row" | "rows"))
}

// === Words ===

/// A word that speaks for a category wherever nothing speaks against it, with the name it is counted under.
fn noun(word: &str) -> Option<(Category, &'static str)> {
    use Category::{Backend, Schema, Types, Ui};
    Some(match word {
        "migration" | "migrations" => (Schema, "migration"),
        "schema" | "schemas" => (Schema, "schema"),
        "prisma" => (Schema, "prisma"),
        "drizzle" => (Schema, "drizzle"),
        "ddl" => (Schema, "ddl"),

        "types" => (Types, "types"),
        "typings" | "typedef" | "typedefs" => (Types, "typedef"),
        "model" | "models" => (Types, "model"),
        "entity" | "entities" => (Types, "entity"),
        "dto" | "dtos" => (Types, "dto"),
        "enum" | "enums" => (Types, "enum"),
        "struct" | "structs" => (Types, "struct"),
        "dataclass" | "dataclasses" => (Types, "dataclass"),

        "api" | "apis" => (Backend, "api"),
        "endpoint" | "endpoints" => (Backend, "endpoint"),
        "backend" | "backends" => (Backend, "backend"),
        "server" | "servers" => (Backend, "server"),
        "handler" | "handlers" => (Backend, "handler"),
        "controller" | "controllers" => (Backend, "controller"),
        "route" | "routes" => (Backend, "route"),
        "middleware" | "middlewares" => (Backend, "middleware"),
        "graphql" => (Backend, "graphql"),
        "grpc" | "rpc" | "rpcs" => (Backend, "rpc"),
        "service" | "services" | "microservice" | "microservices" => (Backend, "service"),
        "webhook" | "webhooks" => (Backend, "webhook"),
        "resolver" | "resolvers" => (Backend, "resolver"),

        "ui" | "uis" | "ux" => (Ui, "ui"),
        "frontend" | "frontends" => (Ui, "frontend"),
        "component" | "components" => (Ui, "component"),
        "page" | "pages" => (Ui, "page"),
        "view" | "views" => (Ui, "view"),
        "screen" | "screens" => (Ui, "screen"),
        "button" | "buttons" => (Ui, "button"),
        "modal" | "modals" | "dialog" | "dialogs" => (Ui, "dialog"),
        "form" | "forms" => (Ui, "form"),
        "css" | "scss" | "tailwind" | "stylesheet" | "stylesheets" => (Ui, "css"),
        "react" => (Ui, "react"),
        "vue" => (Ui, "vue"),
        "svelte" => (Ui, "svelte"),
        "angular" => (Ui, "angular"),
        "jsx" | "tsx" => (Ui, "jsx"),
        "layout" | "layouts" => (Ui, "layout"),
        "sidebar" | "navbar" => (Ui, "navbar"),
        "dropdown" | "dropdowns" => (Ui, "dropdown"),
        "widget" | "widgets" => (Ui, "widget"),
        "tooltip" | "tooltips" => (Ui, "tooltip"),
        "dashboard" | "dashboards" => (Ui, "dashboard"),
        "storybook" => (Ui, "storybook"),
        _ => return None,
    })
}

/// What a word says between its neighbours.
fn meaning(before: &str, word: &Word, next: &str) -> Option<(Category, &'static str)> {
    use Category::{Backend, Schema, Types, Ui};
    if let Some((category, name)) = noun(word.text()) {
        return (!contradicted(before, name, word.capitals, next)).then_some((category, name));
    }
    match word.text() {
        "rest" if word.capitals => Some((Backend, "rest")),
        "table" | "tables" if is_database_table(before, next) => Some((Schema, "table")),
        "key" | "keys" if matches!(before, "foreign" | "primary") => Some((Schema, "key")),
        "index" | "indexes" | "indices" if matches!(before, "database" | "db" | "unique" | "partial") => {
            Some((Schema, "index"))
        }
        "column" | "columns" if matches!(before, "database" | "db" | "nullable") => Some((Schema, "column")),
        "type"
            if matches!(next, "definition" | "definitions" | "alias" | "aliases" | "declaration" | "declarations") =>
        {
            Some((Types, "typedef"))
        }
        "interface" | "interfaces" => match before {
            "user" => Some((Ui, "ui")),
            "typescript" | "ts" | "type" | "types" | "shared" => Some((Types, "interface")),
            _ => None,
        },
        "front" if matches!(next, "end" | "ends") => Some((Ui, "frontend")),
        "back" if matches!(next, "end" | "ends") => Some((Backend, "backend")),
        _ => None,
    }
}

/// "The users table", "a database table"; not "a sortable table", not "the users table component".
fn is_database_table(before: &str, next: &str) -> bool {
    let of_a_widget = matches!(
        next,
        "component" | "components" | "view" | "page" | "widget" | "ui" | "row" | "rows" | "header" | "cell" | "cells"
    );
    let named = before.len() > 3 && before.ends_with('s') && !matches!(before, "these" | "this" | "canvas" | "across");
    let of_a_database = matches!(
        before,
        "database" | "db" | "sql" | "postgres" | "postgresql" | "mysql" | "sqlite" | "join" | "lookup" | "pivot"
    );
    !of_a_widget && (named || of_a_database)
}

/// The neighbours say that the word means something else. `name` is what it is counted under.
fn contradicted(before: &str, name: &str, capitals: bool, next: &str) -> bool {
    match name {
        "migration" => matches!(next, "guide" | "guides" | "path"),
        "schema" => matches!(
            before,
            "json"
                | "graphql"
                | "zod"
                | "yup"
                | "validation"
                | "xml"
                | "openapi"
                | "avro"
                | "response"
                | "request"
                | "form"
        ),
        "types" => {
            matches!(before, "file" | "mime" | "content" | "all" | "different" | "various" | "many" | "other" | "who")
                || matches!(next, "of" | "in" | "into" | "a" | "an" | "the" | "something" | "text" | "at" | "it")
        }
        "model" => {
            matches!(
                before,
                "language" | "ai" | "ml" | "learning" | "llm" | "mental" | "pricing" | "business" | "threat" | "neural"
            ) || matches!(next, "selection" | "selector" | "picker" | "provider" | "weights" | "training" | "context")
        }
        "api" => {
            matches!(next, "key" | "keys" | "token" | "tokens" | "docs" | "documentation" | "client" | "reference")
        }
        "server" => {
            matches!(before, "dev" | "development" | "language")
                || matches!(next, "component" | "components" | "side" | "rendered" | "rendering")
        }
        "handler" => matches!(
            before,
            "event"
                | "click"
                | "submit"
                | "change"
                | "signal"
                | "keyboard"
                | "drag"
                | "scroll"
                | "key"
                | "mouse"
                | "touch"
        ),
        "route" => matches!(before, "frontend" | "client" | "react" | "ui" | "page" | "en"),
        "service" => {
            matches!(before, "of" | "customer" | "self" | "in")
                || matches!(next, "worker" | "workers" | "account" | "accounts" | "level")
        }
        "component" => {
            matches!(before, "system" | "backend" | "software" | "infrastructure" | "hardware" | "connected")
        }
        "page" => {
            matches!(before, "man" | "memory" | "per" | "huge" | "code" | "zero")
                || matches!(
                    next,
                    "size"
                        | "sizes"
                        | "token"
                        | "tokens"
                        | "cache"
                        | "table"
                        | "tables"
                        | "fault"
                        | "faults"
                        | "number"
                        | "numbers"
                        | "limit"
                        | "count"
                        | "cursor"
                )
        }
        "view" => {
            capitals
                || matches!(
                    before,
                    "to" | "can"
                        | "could"
                        | "will"
                        | "must"
                        | "should"
                        | "may"
                        | "database"
                        | "db"
                        | "materialized"
                        | "sql"
                        | "point"
                        | "points"
                        | "in"
                )
                || matches!(next, "the" | "a" | "an" | "all" | "it" | "this" | "that" | "their" | "more")
        }
        "form" => {
            matches!(
                before,
                "to" | "long" | "short" | "canonical" | "normal" | "binary" | "in" | "some" | "any" | "same" | "other"
            ) || matches!(next, "of" | "a" | "an" | "the" | "part" | "factor")
        }
        "screen" => next == "for",
        "react" => matches!(next, "to" | "when" | "on"),
        "layout" => matches!(
            before,
            "memory"
                | "data"
                | "struct"
                | "disk"
                | "directory"
                | "folder"
                | "file"
                | "project"
                | "repository"
                | "keyboard"
        ),
        _ => false,
    }
}
