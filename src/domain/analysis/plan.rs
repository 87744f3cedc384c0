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
    words::{meaning, noun},
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
    for (text, source) in [(name, Source::Name), (plan, Source::Plan)] {
        let small = text.to_ascii_lowercase();
        let mut cutter = Cutter { text, small: &small, source, tokens: Vec::with_capacity(text.len() / 6) };
        cutter.cut();
        evidence.read(&cutter.tokens, source);
    }
    evidence.categories()
}

// === Tokens ===

/// A word.
#[derive(Clone, Copy)]
pub(super) struct Word<'a> {
    /// In small letters.
    pub(super) text: &'a str,
    /// Written in capitals.
    pub(super) capitals: bool,
    /// Part of a longer name, there only to say what stands before its last part.
    context: bool,
}

enum Token<'a> {
    Word(Word<'a>),
    /// A path of a known kind.
    Path(Category),
    /// The end of a thought: comma, full stop, bullet, empty line.
    Break,
    /// An opening parenthesis.
    Open,
}

/// Cuts a text into tokens.
struct Cutter<'a> {
    text: &'a str,
    /// The text in small letters, byte for byte.
    small: &'a str,
    source: Source,
    tokens: Vec<Token<'a>>,
}

impl<'a> Cutter<'a> {
    fn cut(&mut self) {
        let mut new_lines = 0;
        let mut rest = self.text;
        while !rest.is_empty() {
            let (body, delimiter, after) = until_delimiter(rest);
            rest = after;
            if !body.is_empty() {
                if new_lines > 1 || matches!(body, "-" | "*" | "+" | "•") || body.starts_with('#') {
                    self.tokens.push(Token::Break);
                }
                new_lines = 0;
                self.chunk(body);
                if body.ends_with(['.', ':', '!', '?']) {
                    self.tokens.push(Token::Break);
                }
            }
            match delimiter {
                Some('\n') => new_lines += 1,
                Some(',' | ';' | ')') => self.tokens.push(Token::Break),
                Some('(') => self.tokens.push(Token::Open),
                _ => {}
            }
        }
    }

    /// What stands between two delimiters: a URL, a path, or words.
    fn chunk(&mut self, chunk: &'a str) {
        // Most of what people write.
        if chunk.bytes().all(|b| b.is_ascii_alphanumeric()) {
            if chunk.bytes().skip(1).any(|b| b.is_ascii_uppercase()) {
                return self.words(chunk);
            }
            let word = Word { text: self.in_small(chunk), capitals: false, context: false };
            return self.tokens.push(Token::Word(word));
        }
        if chunk.contains("://") {
            return;
        }
        let trimmed = chunk
            .trim_start_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '.' | '/' | '~' | '_' | '@' | '*'))
            .trim_end_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '/' | '_' | '*'));
        // `src/api/users.rs:42`
        let path = trimmed.split_once(':').map_or(trimmed, |(path, _)| path);
        if self.looks_like_path(path) {
            match categorize_path(path) {
                Some(category) => return self.tokens.push(Token::Path(category)),
                None if path.contains('/') => {
                    return self.tokens.push(Token::Word(Word { text: "", capitals: false, context: false }));
                }
                // `form.html`, `Vue.js`: the words may say what the path did not.
                None => {}
            }
        }
        for word in trimmed.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’') {
            if !word.is_empty() {
                self.words(word);
            }
        }
    }

    /// A word, or the parts of a camel-case one, of which the last says what it is: a `LoginForm` is a form, `FormData` is
    /// not. In a task's name every part counts.
    fn words(&mut self, word: &'a str) {
        let whole = self.word(word);
        if !word.bytes().skip(1).any(|b| b.is_ascii_uppercase()) {
            return self.tokens.push(Token::Word(whole));
        }
        let mut parts: Vec<Word<'a>> = humps(word).map(|part| self.word(part)).collect();
        let is_name = self.source == Source::Name;
        let Some(last) = parts.pop() else { return };
        // `TypeScript` is one word, and `GraphQL` one that we know.
        if !is_name && (noun(whole.text).is_some() || noun(last.text).is_none()) {
            return self.tokens.push(Token::Word(whole));
        }
        self.tokens.extend(parts.into_iter().map(|part| Token::Word(Word { context: !is_name, ..part })));
        self.tokens.push(Token::Word(last));
    }

    /// A piece of the text as a word.
    fn word(&self, piece: &'a str) -> Word<'a> {
        let capitals = piece.len() > 1 && piece.bytes().all(|b| b.is_ascii_uppercase());
        Word { text: self.in_small(piece), capitals, context: false }
    }

    /// A piece of the text in small letters.
    fn in_small(&self, piece: &'a str) -> &'a str {
        let at = piece.as_ptr() as usize - self.text.as_ptr() as usize;
        &self.small[at..at + piece.len()]
    }

    fn looks_like_path(&self, text: &'a str) -> bool {
        let (before, last) = text.rsplit_once(['/', '\\']).unwrap_or(("", text));
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
            || parts.clone().count() > 2 && !parts.all(|part| noun(self.word(part).text).is_some())
    }
}

/// What stands before the first delimiter, that delimiter, and what stands after it.
pub(super) fn until_delimiter(text: &str) -> (&str, Option<char>, &str) {
    let mut at = 0;
    while let Some(step) = text.as_bytes()[at..].iter().position(|b| MAY_DELIMIT[usize::from(*b)]) {
        at += step;
        let Some(c) = text[at..].chars().next() else { break };
        let after = at + c.len_utf8();
        if is_delimiter(c) {
            return (&text[..at], Some(c), &text[after..]);
        }
        at = after;
    }
    (text, None, "")
}

/// Bytes with which a delimiter begins, and, beyond ASCII, other letters as well: plans are long, and most of what is in them
/// is passed over a byte at a time.
const MAY_DELIMIT: [bool; 256] = {
    let mut may = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        may[byte] = byte >= 0x80 || is_delimiter(byte as u8 as char);
        byte += 1;
    }
    may
};

pub(super) const fn is_delimiter(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, ',' | ';' | '(' | ')' | '{' | '}' | '[' | ']' | '<' | '>' | '|' | '=' | '"' | '`' | '“' | '”')
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
    fn read(&mut self, tokens: &[Token<'_>], source: Source) {
        let word = |at: usize| match tokens.get(at) {
            Some(Token::Word(word)) => word.text,
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
            if negates(w.text, word(at + 1)) {
                negated = NEGATED_WORDS;
            } else if refers(before(1), w.text) {
                referred = REFERRED_WORDS;
            } else if matches!(w.text, "and" | "then" | "to" | "for" | "so" | "with" | "but" | "add" | "create") {
                referred = 0;
                if w.text == "but" {
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
fn is_sql(tokens: &[Token<'_>], at: usize) -> bool {
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => Some(word),
        _ => None,
    };
    let Some(verb) = word(at) else { return false };
    if !matches!(verb.text, "create" | "alter" | "drop") {
        return false;
    }
    let objects = ["table", "index", "view", "schema", "type", "extension", "trigger", "sequence", "policy", "column"];
    if verb.capitals {
        // CREATE OR REPLACE VIEW, CREATE UNIQUE INDEX, DROP TABLE IF EXISTS
        return (1..=3).map_while(|step| word(at + step)).any(|w| w.capitals && objects.contains(&w.text));
    }
    if word(at + 1).is_none_or(|w| w.text != "table") {
        return false;
    }
    if verb.text == "create" {
        // create table [if not exists] user_names (
        let guard = ["if", "not", "exists"];
        let guarded = guard.iter().enumerate().take_while(|(i, g)| word(at + 2 + i).is_some_and(|w| w.text == **g));
        let from = at + 2 + guarded.count();
        // A snake-case name is several words; none of them is `component`.
        let plain = |w: &Word<'_>| !matches!(noun(w.text), Some((Category::Ui, _)));
        let parts = (from..from + 4).take_while(|&i| word(i).is_some_and(plain)).count();
        return parts > 0 && matches!(tokens.get(from + parts), Some(Token::Open));
    }
    // alter table users add column, drop table users
    verb.text == "alter" || word(at + 2).is_some_and(|w| !matches!(w.text, "component" | "view" | "row" | "rows"))
}
