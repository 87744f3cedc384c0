//! Which names are not taken in a contract, without asking the database: names are unique in a contract, and nearly every one that
//! is asked for is a new one.
//!
//! All names that tasks of contracts made here have had are in a Bloom filter, which says of a name that it is not there, or may be.
//! What may be is looked up. A name that a task no longer has stays in it: that costs a look.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use super::work::Work;
use crate::domain::ContractId;

/// Bits of the filter: 2 MiB, from when it is first needed.
const BITS: usize = 1 << 24;
/// Names that it takes: eight bits for each, so that with all of them one in forty is looked up for nothing. With more nothing is
/// known any more.
const MAX_NAMES: usize = BITS / 8;
/// Contracts whose names may be in it, likewise.
const MAX_CONTRACTS: usize = 1 << 16;
/// Bits of a name.
const PROBES: u64 = 4;

/// What is known of names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Those all of whose names are in the filter.
    contracts: HashSet<ContractId>,
    filter: Vec<u64>,
    /// How many are in it.
    count: usize,
    hasher: RandomState,
}

impl Names {
    /// No task of the contract has this name.
    pub(super) fn is_free(&self, contract: ContractId, name: &str) -> bool {
        self.contracts.contains(&contract)
            && self.places(contract, name).any(|(word, bit)| self.filter.get(word).is_none_or(|bits| bits & bit == 0))
    }

    /// Takes over what a batch has made, once it is committed.
    pub(super) fn learn(&mut self, work: &Work) {
        // The one that a lone task has is given no other.
        let made = work.contracts.new_rows().into_iter().filter(|contract| !contract.anonymous);
        self.contracts.extend(made.map(|contract| contract.id));
        for (was, task) in work.tasks.dirty_pairs() {
            if was.is_none_or(|was| was.spec.name != task.spec.name) && self.contracts.contains(&task.contract) {
                self.add(task.contract, &task.spec.name);
            }
        }
        if self.count > MAX_NAMES || self.contracts.len() > MAX_CONTRACTS {
            *self = Self::default();
        }
    }

    fn add(&mut self, contract: ContractId, name: &str) {
        self.filter.resize(BITS / 64, 0);
        self.count += 1;
        let places: Vec<(usize, u64)> = self.places(contract, name).collect();
        for (word, bit) in places {
            if let Some(bits) = self.filter.get_mut(word) {
                *bits |= bit;
            }
        }
    }

    /// Word and bit of each of a name's bits (Kirsch and Mitzenmacher, "Less Hashing, Same Performance", 2006: two hashes do for all).
    fn places(&self, contract: ContractId, name: &str) -> impl Iterator<Item = (usize, u64)> + use<> {
        let hash = self.hasher.hash_one((contract, name));
        let (first, step) = (hash, (hash >> 32) | 1);
        (0..PROBES).map(move |probe| {
            let place = first.wrapping_add(probe.wrapping_mul(step)) as usize % BITS;
            (place / 64, 1 << (place % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// What was added is never free, what was not nearly always is; of a contract that was not made here nothing is known.
    #[test]
    fn what_was_added_is_not_free() {
        let mut names = Names::default();
        let (here, there) = (ContractId(Uuid::from_u128(1)), ContractId(Uuid::from_u128(2)));
        assert!(!names.is_free(here, "a"));
        names.contracts.insert(here);
        for n in 0..100_000 {
            names.add(here, &n.to_string());
        }
        assert!((0..100_000).all(|n| !names.is_free(here, &n.to_string())));
        let free = (100_000..200_000).filter(|n| names.is_free(here, &n.to_string())).count();
        assert!(free > 99_900, "{free}");
        assert!((0..100_000).all(|n| !names.is_free(there, &n.to_string())));
    }
}
