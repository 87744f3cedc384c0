//! Rows of one kind in a batch: as they were, and as they will be.

use std::{collections::BTreeMap, sync::Arc};

/// Rows by key, and in the order of keys, so that the same batch does the same each time. What was loaded first stays: later
/// loads do not undo what the batch has changed.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    rows: BTreeMap<K, Row<V>>,
}

#[derive(Debug)]
struct Row<V> {
    /// Shared with `was`, and with what is kept between batches, until it is changed.
    now: Arc<V>,
    /// As it is in the database; `None` for a new one.
    was: Option<Arc<V>>,
    changed: bool,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new() }
    }
}

impl<K: Ord + Copy, V: Clone> Table<K, V> {
    /// A row as the database has it.
    pub(super) fn loaded(&mut self, key: K, value: impl Into<Arc<V>>) {
        self.rows.entry(key).or_insert_with(|| {
            let now = value.into();
            Row { was: Some(Arc::clone(&now)), now, changed: false }
        });
    }

    /// A new row.
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.rows.insert(key, Row { now: Arc::new(value), was: None, changed: true });
    }

    /// A row as it will be; does nothing for a key that is not there.
    pub(super) fn set(&mut self, key: K, value: impl Into<Arc<V>>) {
        if let Some(row) = self.rows.get_mut(&key) {
            row.now = value.into();
            row.changed = true;
        }
    }

    /// A row as it is in the database; nothing for a new one.
    pub(super) fn was(&self, key: K) -> Option<&V> {
        self.rows.get(&key).and_then(|row| row.was.as_deref())
    }

    /// It was not there before this batch.
    pub(super) fn is_new(&self, key: K) -> bool {
        self.rows.get(&key).is_some_and(|row| row.was.is_none())
    }

    pub(super) fn contains(&self, key: K) -> bool {
        self.rows.contains_key(&key)
    }

    pub(super) fn get(&self, key: K) -> Option<&V> {
        self.rows.get(&key).map(|row| &*row.now)
    }

    /// A row as it is now, to be looked at while others change.
    pub(super) fn share(&self, key: K) -> Option<Arc<V>> {
        self.rows.get(&key).map(|row| Arc::clone(&row.now))
    }

    /// A row to change.
    pub(super) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.rows.get_mut(&key).map(|row| {
            row.changed = true;
            Arc::make_mut(&mut row.now)
        })
    }

    /// A row of which only that changes which is counted from other rows: it is not written for that.
    pub(super) fn get_counted(&mut self, key: K) -> Option<&mut V> {
        self.rows.get_mut(&key).map(|row| Arc::make_mut(&mut row.now))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.values().map(|row| &*row.now)
    }

    /// All rows, to be kept.
    pub(super) fn shared(&self) -> impl Iterator<Item = (K, &Arc<V>)> {
        self.rows.iter().map(|(key, row)| (*key, &row.now))
    }

    /// Rows to write, to be kept.
    pub(super) fn shared_dirty(&self) -> impl Iterator<Item = (K, &Arc<V>)> {
        self.rows.iter().filter(|(_, row)| row.changed).map(|(key, row)| (*key, &row.now))
    }

    /// Rows that were not there before.
    pub(super) fn new_rows(&self) -> Vec<&V> {
        self.rows.values().filter(|row| row.was.is_none()).map(|row| &*row.now).collect()
    }

    /// Rows that were there and have changed, with what they were.
    pub(super) fn changed_rows(&self) -> impl Iterator<Item = (&V, &V)> {
        self.rows.values().filter(|row| row.changed).filter_map(|row| Some((row.was.as_deref()?, &*row.now)))
    }

    /// Rows to write, new or changed.
    pub(super) fn dirty(&self) -> Vec<&V> {
        self.rows.values().filter(|row| row.changed).map(|row| &*row.now).collect()
    }

    /// Nothing is to be written.
    pub(super) fn is_clean(&self) -> bool {
        !self.rows.values().any(|row| row.changed)
    }

    /// Rows to write, with what they were.
    pub(super) fn dirty_pairs(&self) -> impl Iterator<Item = (Option<&V>, &V)> {
        self.rows.values().filter(|row| row.changed).map(|row| (row.was.as_deref(), &*row.now))
    }
}
