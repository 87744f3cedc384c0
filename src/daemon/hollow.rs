//! A daemon without work: session, intake, journal, supervisor and reports are those of any daemon, and an attempt ends as
//! soon as it has begun. It is what measurements of the control plane run against, so that they do not measure git and fork.
//!
//! It cannot be had by accident: the program has no way to ask for it (`tests/it/tidy.rs`), and such a daemon offers one
//! agent profile, [`PROFILE`], which no daemon with agents has. A task for a real agent is refused by it.

use std::{fmt, sync::Arc};

use crate::domain::{AttemptRef, daemon};

/// The only agent profile of a daemon without work.
pub const PROFILE: &str = "hollow";

/// Called with each attempt once the order for it is durable in the journal: from there on it begins whatever dies, unless somebody
/// wants it to end.
type Begun = dyn Fn(AttemptRef) + Send + Sync;

/// That a daemon has no work, and who hears of what begins.
#[derive(Clone, Default)]
pub struct Hollow(Option<Arc<Begun>>);

impl Hollow {
    /// Nobody hears of it.
    pub fn new() -> Self {
        Self::default()
    }

    /// `begun` is called with each attempt when the order for it is durable in the journal. It must not block.
    pub fn telling(begun: impl Fn(AttemptRef) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(begun)))
    }

    pub(super) fn begun(&self, attempt: AttemptRef) {
        if let Some(begun) = &self.0 {
            begun(attempt);
        }
    }
}

impl fmt::Debug for Hollow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hollow").field(&self.0.is_some()).finish()
    }
}

/// What the daemon says that it can run.
pub(super) fn profile() -> daemon::Profile {
    daemon::Profile { name: PROFILE.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
}
