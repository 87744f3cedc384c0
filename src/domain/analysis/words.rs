//! What words say, and which neighbours make them say something else.

use std::sync::LazyLock;

use super::{Category, plan::Word};

/// Words that speak for a category wherever nothing speaks against it, by the name they are counted under.
const NOUNS: [(Category, &str, &[&str]); 48] = {
    use Category::{Backend, Schema, Types, Ui};
    [
        (Schema, "migration", &["migration", "migrations"]),
        (Schema, "schema", &["schema", "schemas"]),
        (Schema, "prisma", &["prisma"]),
        (Schema, "drizzle", &["drizzle"]),
        (Schema, "ddl", &["ddl"]),
        (Types, "types", &["types"]),
        (Types, "typedef", &["typings", "typedef", "typedefs"]),
        (Types, "model", &["model", "models"]),
        (Types, "entity", &["entity", "entities"]),
        (Types, "dto", &["dto", "dtos"]),
        (Types, "enum", &["enum", "enums"]),
        (Types, "struct", &["struct", "structs"]),
        (Types, "dataclass", &["dataclass", "dataclasses"]),
        (Backend, "api", &["api", "apis"]),
        (Backend, "endpoint", &["endpoint", "endpoints"]),
        (Backend, "backend", &["backend", "backends"]),
        (Backend, "server", &["server", "servers"]),
        (Backend, "handler", &["handler", "handlers"]),
        (Backend, "controller", &["controller", "controllers"]),
        (Backend, "route", &["route", "routes"]),
        (Backend, "middleware", &["middleware", "middlewares"]),
        (Backend, "graphql", &["graphql"]),
        (Backend, "rpc", &["grpc", "rpc", "rpcs"]),
        (Backend, "service", &["service", "services", "microservice", "microservices"]),
        (Backend, "webhook", &["webhook", "webhooks"]),
        (Backend, "resolver", &["resolver", "resolvers"]),
        (Ui, "ui", &["ui", "uis", "ux"]),
        (Ui, "frontend", &["frontend", "frontends"]),
        (Ui, "component", &["component", "components"]),
        (Ui, "page", &["page", "pages"]),
        (Ui, "view", &["view", "views"]),
        (Ui, "screen", &["screen", "screens"]),
        (Ui, "button", &["button", "buttons"]),
        (Ui, "dialog", &["modal", "modals", "dialog", "dialogs"]),
        (Ui, "form", &["form", "forms"]),
        (Ui, "css", &["css", "scss", "tailwind", "stylesheet", "stylesheets"]),
        (Ui, "react", &["react"]),
        (Ui, "vue", &["vue"]),
        (Ui, "svelte", &["svelte"]),
        (Ui, "angular", &["angular"]),
        (Ui, "jsx", &["jsx", "tsx"]),
        (Ui, "layout", &["layout", "layouts"]),
        (Ui, "navbar", &["sidebar", "navbar"]),
        (Ui, "dropdown", &["dropdown", "dropdowns"]),
        (Ui, "widget", &["widget", "widgets"]),
        (Ui, "tooltip", &["tooltip", "tooltips"]),
        (Ui, "dashboard", &["dashboard", "dashboards"]),
        (Ui, "storybook", &["storybook"]),
    ]
};

/// A word, its category, and the name it is counted under.
type Noun = (&'static str, Category, &'static str);

/// [`NOUNS`] by their first letter: most words of a plan are none, and are told from all others by a look at a few.
static BY_LETTER: LazyLock<[Vec<Noun>; 26]> = LazyLock::new(|| {
    let mut letters: [Vec<Noun>; 26] = Default::default();
    for (category, name, words) in NOUNS {
        for word in words {
            if let Some(letter) = letter(word) {
                letters[letter].push((word, category, name));
            }
        }
    }
    letters
});

/// The place of a word's first letter in the alphabet, if it is one of it, and small.
fn letter(word: &str) -> Option<usize> {
    let first = *word.as_bytes().first()?;
    first.is_ascii_lowercase().then(|| usize::from(first - b'a'))
}

/// What is said of a word in [`NOUNS`].
pub(super) fn noun(word: &str) -> Option<(Category, &'static str)> {
    let (_, category, name) = BY_LETTER[letter(word)?].iter().find(|(noun, ..)| *noun == word)?;
    Some((*category, *name))
}

/// What a word says between its neighbours.
pub(super) fn meaning(before: &str, word: &Word<'_>, next: &str) -> Option<(Category, &'static str)> {
    use Category::{Backend, Schema, Types, Ui};
    if let Some((category, name)) = noun(word.text) {
        return (!contradicted(before, name, word.capitals, next)).then_some((category, name));
    }
    match word.text {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each word is found, under its name and nothing else.
    #[test]
    fn every_noun_is_found() {
        for (category, name, words) in NOUNS {
            for word in words {
                assert_eq!(noun(word), Some((category, name)), "{word}");
                assert_eq!(noun(&format!("{word}x")), None);
            }
        }
        assert_eq!((noun(""), noun("ähm"), noun("Api")), (None, None, None));
    }
}
