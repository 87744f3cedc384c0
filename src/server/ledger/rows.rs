//! What a batch reads and writes: the statements of the store that the ledger uses, under one name, so that the ledger runs
//! over whatever has rows. In production that is a transaction of the store, which is where each statement is explained;
//! the simulation has tables in memory.

use std::sync::Arc;

use crate::{
    domain::{
        AttemptId, BatchId, CheckpointId, ClassId, ContractId, DaemonId, KeyId, OwnerId, TaskId, Timestamp,
        attempt::Attempt,
        checkpoint::Checkpoint,
        contract::Contract,
        daemon::{Daemon, Requirements},
        event::Change,
        key::Key,
        order::Command,
        task::Task,
    },
    store::{Edge, Lane, LaneHead, LaneTask, Remembered, Result, Tx},
};

macro_rules! rows {
    ($(fn $name:ident(&mut self $(, $argument:ident: $kind:ty)* $(,)?) -> $answer:ty;)+) => {
        /// The rows of a batch.
        pub(super) trait Rows {
            /// What is written from here on may be written together.
            fn gather(&mut self);
            $(async fn $name(&mut self $(, $argument: $kind)*) -> Result<$answer>;)+
        }

        impl Rows for Tx {
            fn gather(&mut self) {
                Tx::gather(self);
            }

            $(async fn $name(&mut self $(, $argument: $kind)*) -> Result<$answer> {
                Tx::$name(self $(, $argument)*).await
            })+
        }
    };
}

rows! {
    // Reading, for `load`.
    fn attempts_due(&mut self, now: Timestamp, limit: i64) -> Vec<AttemptId>;
    fn tasks_wait_over(&mut self, now: Timestamp, limit: i64) -> Vec<TaskId>;
    fn contracts_cancelling(&mut self, limit: i64) -> Vec<Contract>;
    fn tasks_unfinished(&mut self, contract: ContractId, after: Option<TaskId>, limit: i64) -> Vec<Task>;
    fn next_due(&mut self, now: Timestamp) -> Option<Timestamp>;
    fn requests_fetch(&mut self, requests: &[(OwnerId, String)]) -> Vec<Remembered>;
    fn owner_named(&mut self, name: &str) -> Option<OwnerId>;
    fn keys_list(&mut self, revoked: bool, before: Option<KeyId>, limit: i64) -> Vec<Key>;
    fn key_fetch(&mut self, key: KeyId) -> Option<Key>;
    fn daemon_named(&mut self, owner: OwnerId, name: &str) -> Option<Daemon>;
    fn daemons_fetch(&mut self, daemons: &[DaemonId]) -> Vec<Daemon>;
    fn attempts_live(&mut self, daemons: &[DaemonId]) -> Vec<Attempt>;
    fn attempts_fetch(&mut self, attempts: &[AttemptId]) -> Vec<Attempt>;
    fn attempts_numbered(&mut self, attempts: &[(TaskId, u32)]) -> Vec<Attempt>;
    fn attempts_of_task(&mut self, task: TaskId) -> Vec<Attempt>;
    fn commands_of(&mut self, daemons: &[DaemonId]) -> Vec<Command>;
    fn dependents_closure(&mut self, of: &[TaskId]) -> Vec<TaskId>;
    fn tasks_fetch(&mut self, tasks: &[TaskId]) -> Vec<Task>;
    fn tasks_named(&mut self, names: &[(ContractId, String)]) -> Vec<Task>;
    fn edges_from(&mut self, dependents: &[TaskId]) -> Vec<Edge>;
    fn edges_to(&mut self, dependencies: &[TaskId]) -> Vec<Edge>;
    fn edges_upstream(&mut self, of: &[TaskId]) -> Vec<Edge>;
    fn contracts_fetch(&mut self, contracts: &[ContractId]) -> Vec<Contract>;
    fn checkpoints_fetch(&mut self, checkpoints: &[CheckpointId]) -> Vec<Checkpoint>;
    fn blobs_of_results(&mut self, attempts: &[AttemptId]) -> Vec<String>;

    // Reading, for `dispatch`.
    fn lanes_walk(&mut self, classes: &[ClassId], limit: i64) -> Vec<LaneHead>;
    fn lanes_of(&mut self, contracts: &[ContractId]) -> Vec<LaneHead>;
    fn lanes_tasks(&mut self, lanes: &[LaneHead], limit: i64) -> Vec<LaneTask>;

    // Writing, for `flush`.
    fn owner_insert(&mut self, owner: OwnerId, name: &str, created: Timestamp) -> ();
    fn keys_put(&mut self, keys: &[Key]) -> ();
    fn contracts_put(&mut self, contracts: &[&Contract]) -> ();
    fn classes_insert(&mut self, classes: &[(ClassId, OwnerId, Requirements)]) -> ();
    fn tasks_insert(&mut self, tasks: &[&Task]) -> ();
    fn tasks_update(&mut self, tasks: &[&Task]) -> ();
    fn tasks_respec(&mut self, tasks: &[&Task]) -> ();
    fn edges_put(&mut self, edges: &[Edge]) -> ();
    fn edges_delete(&mut self, edges: &[Edge]) -> ();
    fn attempts_insert(&mut self, attempts: &[&Attempt]) -> ();
    fn attempts_update(&mut self, attempts: &[&Attempt]) -> ();
    fn checkpoints_insert(&mut self, checkpoints: &[&Checkpoint]) -> ();
    fn daemons_put(&mut self, daemons: &[&Daemon]) -> ();
    fn daemons_update(&mut self, daemons: &[&Daemon]) -> ();
    fn commands_insert(&mut self, commands: &[(DaemonId, Arc<Command>)]) -> ();
    fn commands_delete(&mut self, commands: &[(DaemonId, i64)]) -> ();
    fn requests_insert(&mut self, requests: &[Remembered]) -> ();
    fn lanes_refresh(&mut self, lanes: &[Lane]) -> ();
    fn lanes_open(&mut self, contracts: &[(ContractId, bool)]) -> ();
    fn batch_insert(&mut self, id: BatchId, at: Timestamp) -> ();
    fn events_insert(&mut self, events: &[Change]) -> Option<i64>;
}
