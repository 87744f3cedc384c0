//! The category of a path, by its folders, file name and extension: first match wins.

use super::Category;

/// What kind of file or folder this is: schema, types, UI, backend, the first that matches. `None` is a path of no known
/// kind (`README.md`, `Cargo.toml`): it is ordered as backend ([`super::rank`]), and says nothing about what a plan touches.
pub fn categorize_path(path: &str) -> Option<Category> {
    let path = path.trim();
    let parts: Vec<String> =
        path.split(['/', '\\']).filter(|part| !part.is_empty()).map(str::to_ascii_lowercase).collect();
    let (file, folders) = match parts.split_last() {
        Some((last, folders)) if last.contains('.') && !path.ends_with(['/', '\\']) => (last.as_str(), folders),
        _ => ("", parts.as_slice()),
    };
    let in_folder = |names: &[&str]| folders.iter().any(|folder| names.contains(&folder.as_str()));
    let ends = |extensions: &[&str]| extensions.iter().any(|extension| file.ends_with(extension));

    if ends(&[".sql"]) || words(path).any(is_schema_word) {
        Some(Category::Schema)
    } else if in_folder(&["types", "models", "entities"])
        || ends(&[".d.ts"])
        || file.starts_with("types.")
        || file == "models.rs"
    {
        Some(Category::Types)
    } else if in_folder(&["components", "views", "pages", "ui"]) || ends(&[".tsx", ".jsx", ".vue", ".svelte"]) {
        Some(Category::Ui)
    } else if in_folder(&["api", "server", "handlers", "services", "controllers", "routes"])
        || ends(&[".rs", ".go", ".py"])
    {
        Some(Category::Backend)
    } else {
        None
    }
}

fn is_schema_word(word: &str) -> bool {
    ["migration", "migrations", "schema", "schemas", "drizzle", "prisma"].iter().any(|w| w.eq_ignore_ascii_case(word))
}

/// The words of a path, cut at everything that is no letter or digit, and where a capital follows a small letter.
fn words(path: &str) -> impl Iterator<Item = &str> {
    path.split(|c: char| !c.is_alphanumeric()).flat_map(humps)
}

/// The humps of a camel-case word.
pub(super) fn humps(word: &str) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let cut = (1..bytes.len()).find(|&at| {
            // The second rule cuts `APIHandler` before its last capital.
            let small_then_capital = !bytes[at - 1].is_ascii_uppercase() && bytes[at].is_ascii_uppercase();
            let last_capital = bytes[at - 1].is_ascii_uppercase()
                && bytes[at].is_ascii_uppercase()
                && bytes.get(at + 1).is_some_and(u8::is_ascii_lowercase);
            small_then_capital || last_capital
        });
        // A capital is ASCII, so the cut is between characters.
        let (hump, after) = rest.split_at(cut.unwrap_or(rest.len()));
        rest = after;
        Some(hump)
    })
}
