//! Rows of one kind in a batch: as they were, and as they will be.

use std::collections::BTreeMap;

/// Rows by key, and in the order of keys, so that the same batch does the same each time. What was loaded first stays: later
/// loads do not undo what the batch has changed.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    rows: BTreeMap<K, Row<V>>,
}

#[derive(Debug)]
struct Row<V> {
    now: V,
    /// As it is in the database; `None` for a new one.
    was: Option<V>,
    changed: bool,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new() }
    }
}

impl<K: Ord + Copy, V: Clone> Table<K, V> {
    /// A row as the database has it.
    pub(super) fn loaded(&mut self, key: K, value: V) {
        self.rows.entry(key).or_insert_with(|| Row { was: Some(value.clone()), now: value, changed: false });
    }

    /// A new row.
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.rows.insert(key, Row { now: value, was: None, changed: true });
    }

    /// A row as it will be; does nothing for a key that is not there.
    pub(super) fn set(&mut self, key: K, value: V) {
        if let Some(row) = self.rows.get_mut(&key) {
            row.now = value;
            row.changed = true;
        }
    }

    pub(super) fn contains(&self, key: K) -> bool {
        self.rows.contains_key(&key)
    }

    pub(super) fn get(&self, key: K) -> Option<&V> {
        self.rows.get(&key).map(|row| &row.now)
    }

    /// A row to change.
    pub(super) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.rows.get_mut(&key).map(|row| {
            row.changed = true;
            &mut row.now
        })
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.values().map(|row| &row.now)
    }

    /// Rows that were not there before.
    pub(super) fn new_rows(&self) -> Vec<&V> {
        self.rows.values().filter(|row| row.was.is_none()).map(|row| &row.now).collect()
    }

    /// Rows that were there and have changed, with what they were.
    pub(super) fn changed_rows(&self) -> impl Iterator<Item = (&V, &V)> {
        self.rows.values().filter(|row| row.changed).filter_map(|row| Some((row.was.as_ref()?, &row.now)))
    }

    /// Rows to write, new or changed.
    pub(super) fn dirty(&self) -> Vec<&V> {
        self.rows.values().filter(|row| row.changed).map(|row| &row.now).collect()
    }

    /// Rows to write, with what they were.
    pub(super) fn dirty_pairs(&self) -> impl Iterator<Item = (Option<&V>, &V)> {
        self.rows.values().filter(|row| row.changed).map(|row| (row.was.as_ref(), &row.now))
    }
}
