//! The conformance suite of the store: every method, the same on both databases. What is written is read back as a whole
//! value; a page ends where it should; one writer excludes another and no reader sees half of anything.

mod attempts;
mod checkpoints;
mod dispatch;
mod edges;
mod log;
mod measure;
mod people;
mod retention;
mod samples;
mod schema;
mod tasks;
mod transactions;

use makima::store::{Claim, Store, Tx};

use crate::bed::{Kind, Place};

/// A store of its own, empty.
struct Fresh {
    store: Store,
    _claim: Claim,
    _place: Place,
}

impl Fresh {
    async fn new(kind: Kind) -> Self {
        let place = Place::new(kind).await;
        let (store, claim) = Store::open(&place.url).await.expect("open the store");
        Self { store, _claim: claim, _place: place }
    }

    async fn begin(&self) -> Tx {
        self.store.begin().await.expect("begin")
    }

    async fn read(&self) -> Tx {
        self.store.read().await.expect("read")
    }
}
