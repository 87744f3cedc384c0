//! What plans and paths say about order.

use serde::{Deserialize, Serialize};

/// What a task touches; the order is the order in which the work should be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Schema and migrations.
    Schema,
    /// Types and models.
    Types,
    /// Backend and API.
    Backend,
    /// User interface.
    Ui,
}

/// TBD
pub fn categorize_plan(_name: &str, _plan: &str) -> Vec<Category> {
    Vec::new()
}
