//! The connection, and what is counted beside it: the numbers of messages and commands are in the database's one row of `meta`,
//! which is written once a transaction rather than with each of them.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, Params, PrepFlags, Row, Statement, params};

use super::Error;
use crate::domain::{JournalId, report::Message};

/// Messages kept for a session that is about to send them: what may be on the way, and what a transaction writes beside. What it does
/// not find here it reads from the table.
pub(super) const RECENT: usize = 512;

/// The journal's connection, inside its thread.
pub(super) struct Db<'c> {
    connection: &'c Connection,
    /// Statements that were used before, by the place and length of their texts. The driver's own cache copies the text of each
    /// statement whenever that was used, which was 8 % of what the thread does under load.
    statements: RefCell<HashMap<(usize, usize), Statement<'c>>>,
    id: JournalId,
    /// As they are in this transaction.
    numbers: Cell<Numbers>,
    /// As they are in the database.
    stored: Cell<Numbers>,
    /// What was written in this transaction, and in those before that were not synced.
    written: RefCell<Vec<Message>>,
    /// How many of these were there before this transaction.
    before: Cell<usize>,
}

/// The last numbers that were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) message: i64,
    command: i64,
}

impl Numbers {
    /// Those in a database.
    pub(super) fn read(connection: &Connection) -> Result<Self, Error> {
        Ok(connection.query_row("SELECT last_message, last_command FROM meta", [], |row| {
            Ok(Self { message: row.get(0)?, command: row.get(1)? })
        })?)
    }
}

/// A place in a transaction to which it can be undone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    numbers: Numbers,
    written: usize,
}

impl Deref for Db<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

impl<'c> Db<'c> {
    /// A connection whose last numbers these are.
    pub(super) fn new(connection: &'c Connection, id: JournalId, numbers: Numbers) -> Self {
        Self {
            connection,
            statements: RefCell::default(),
            id,
            numbers: Cell::new(numbers),
            stored: Cell::new(numbers),
            written: RefCell::default(),
            before: Cell::default(),
        }
    }

    // === statements, which stay prepared ===

    /// Runs a statement. Answers how many rows it changed.
    pub(super) fn run(&self, text: &'static str, params: impl Params) -> Result<usize, Error> {
        self.with(text, |statement| Ok(statement.execute(params)?))
    }

    /// The first row, if there is one.
    pub(super) fn row<T>(
        &self,
        text: &'static str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.with(text, |statement| statement.query(params)?.next()?.map(read).transpose())
    }

    /// All rows.
    pub(super) fn rows<T>(
        &self,
        text: &'static str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.with(text, |statement| {
            let mut rows = statement.query(params)?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                all.push(read(row)?);
            }
            Ok(all)
        })
    }

    /// All rows that can be read. One that cannot must not keep the others, which are `what`, from being looked after.
    pub(super) fn readable<T>(
        &self,
        text: &'static str,
        what: &'static str,
        mut read: impl FnMut(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let rows = self.rows(text, [], |row| match read(row) {
            Err(error @ Error::Row { .. }) => {
                tracing::error!(%error, "{what} in the journal cannot be read; left alone");
                Ok(None)
            }
            read => read.map(Some),
        })?;
        Ok(rows.into_iter().flatten().collect())
    }

    fn with<T>(
        &self,
        text: &'static str,
        work: impl FnOnce(&mut Statement<'c>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let place = (text.as_ptr() as usize, text.len());
        let known = self.statements.borrow_mut().remove(&place);
        let mut statement = match known {
            Some(statement) => statement,
            None => self.connection.prepare_with_flags(text, PrepFlags::SQLITE_PREPARE_PERSISTENT)?,
        };
        let done = work(&mut statement);
        // An order with its key is kept no longer than it takes.
        statement.clear_bindings();
        self.statements.borrow_mut().insert(place, statement);
        done
    }

    // === what is counted ===

    /// Whose messages these are.
    pub(super) fn id(&self) -> JournalId {
        self.id
    }

    /// The number of the newest message.
    pub(super) fn last_message(&self) -> i64 {
        self.numbers.get().message
    }

    /// The number for one more message. A transaction that is undone gives it back, so there are no gaps.
    pub(super) fn next_message(&self) -> i64 {
        let numbers = self.numbers.get();
        self.numbers.set(Numbers { message: numbers.message + 1, ..numbers });
        numbers.message + 1
    }

    /// A message is in the table.
    pub(super) fn add_written(&self, message: Message) {
        self.written.borrow_mut().push(message);
    }

    /// What has been written since this was last asked.
    pub(super) fn take_written(&self) -> Vec<Message> {
        self.before.set(0);
        self.written.take()
    }

    /// A command of this sequence is in the table.
    pub(super) fn has_command(&self, sequence: i64) {
        let numbers = self.numbers.get();
        self.numbers.set(Numbers { command: numbers.command.max(sequence), ..numbers });
    }

    // === transactions ===

    /// Commits. If that fails nothing of the transaction is in the file.
    pub(super) fn commit(&self) -> Result<(), Error> {
        let numbers = self.numbers.get();
        let committed = self.store(numbers).and_then(|()| self.run("COMMIT", []).map(|_| ()));
        match committed {
            Ok(()) => {
                self.stored.set(numbers);
                self.before.set(self.written.borrow().len());
            }
            Err(_) => self.end(),
        }
        committed
    }

    fn store(&self, numbers: Numbers) -> Result<(), Error> {
        if numbers == self.stored.get() {
            return Ok(());
        }
        let text = "UPDATE meta SET last_message = ?1, last_command = ?2";
        self.run(text, params![numbers.message, numbers.command]).map(|_| ())
    }

    /// Ends the transaction, if there is one, with nothing of it in the file.
    pub(super) fn end(&self) {
        self.back_to(Mark { numbers: self.stored.get(), written: self.before.get() });
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "the journal's transaction cannot be ended; trying again with the next");
        }
    }

    /// The place where the transaction is now.
    pub(super) fn mark(&self) -> Mark {
        Mark { numbers: self.numbers.get(), written: self.written.borrow().len() }
    }

    /// What was counted since is undone, as is what was written.
    pub(super) fn back_to(&self, mark: Mark) {
        self.numbers.set(mark.numbers);
        self.written.borrow_mut().truncate(mark.written);
    }
}

/// The newest messages that may be sent, in the order of their numbers and without gaps: whoever has sent what was before them
/// need not look into the table.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<Message>>);

impl Recent {
    pub(super) fn add(&self, messages: Vec<Message>) {
        let mut recent = self.lock();
        recent.extend(messages);
        let surplus = recent.len().saturating_sub(RECENT);
        recent.drain(..surplus);
    }

    /// Takes those that come next after this number, if they are here. Those before are nobody's any more.
    pub(super) fn take(&self, after: i64, limit: usize) -> Option<Vec<Message>> {
        let mut recent = self.lock();
        while recent.front().is_some_and(|message| message.sequence <= after) {
            recent.pop_front();
        }
        let is_next = recent.front().is_some_and(|message| message.sequence == after + 1);
        let count = limit.min(recent.len());
        is_next.then(|| recent.drain(..count).collect())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
