//! What words say, and which neighbours make them say something else.

use super::{Category, plan::Word};

/// A word that speaks for a category wherever nothing speaks against it, with the name it is counted under.
pub(super) fn noun(word: &str) -> Option<(Category, &'static str)> {
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
