//! What of the journal's outbox a session has taken, in its order.

use std::collections::VecDeque;

use tokio::sync::watch;

use crate::{
    daemon::journal::{Error, Journal},
    domain::report::Message,
};

/// Messages taken at once, or all there are, however few there is room for: behind a long outbox room is made one by one, and the
/// journal would be asked for each.
const MOST: usize = 128;

/// The outbox as one session goes through it.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// What was written up to this number has been taken, or answered before.
    cursor: i64,
    /// Taken, and not given out yet, oldest first.
    taken: VecDeque<Message>,
}

impl Outbox {
    /// Every message up to this one that waits for an answer has been given out.
    pub(super) fn has_given(&self, last: i64) -> bool {
        self.cursor >= last && self.taken.front().is_none_or(|message| message.sequence > last)
    }

    /// The next message, if there is one.
    pub(super) async fn next(
        &mut self,
        journal: &Journal,
        newest: &mut watch::Receiver<i64>,
    ) -> Result<Option<Message>, Error> {
        let written = *newest.borrow_and_update();
        if self.taken.is_empty() && written > self.cursor {
            // What was written before this session may have been answered in an earlier one: the table knows.
            let recent = if self.cursor > 0 { journal.recent(self.cursor, MOST) } else { None };
            let (messages, is_all) = match recent {
                Some(messages) => (messages, false),
                None => {
                    let messages = journal.outbox(self.cursor, MOST).await?;
                    let is_all = messages.len() < MOST;
                    (messages, is_all)
                }
            };
            self.cursor = messages.last().map_or(self.cursor, |message| message.sequence);
            if is_all {
                // What is missing up to here has been answered already. What was written since is not in that.
                self.cursor = self.cursor.max(written);
            }
            self.taken.extend(messages);
        }
        Ok(self.taken.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        daemon::journal::{
            Change,
            tests::{attempt, spawn_command},
        },
        domain::{
            Timestamp,
            report::{MessageOutcome, Report},
        },
    };

    const NOW: Timestamp = Timestamp(1);

    async fn write(journal: &Journal, count: usize) {
        let reports = vec![Report::Warning { message: "odd".to_owned() }; count];
        journal.record(attempt(1), Change { reports, ..Change::default() }, NOW).await.unwrap();
    }

    /// Each message is given once, in order, however many there are, though those before it are answered meanwhile and others are
    /// written; and what was owed is given when its last one is.
    #[tokio::test]
    async fn each_message_is_given_once() {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(state.path(), NOW).unwrap().journal;
        journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
        let owed = 3 * MOST as i64 + 7;
        write(&journal, owed as usize).await;
        journal.answered(2, MessageOutcome::Applied, NOW).await.unwrap();
        drop(journal);
        let journal = Journal::open(state.path(), NOW).unwrap().journal;
        let (mut newest, mut outbox) = (journal.newest(), Outbox::default());
        let mut given = Vec::new();
        while let Some(message) = outbox.next(&journal, &mut newest).await.unwrap() {
            journal.answered(message.sequence, MessageOutcome::Applied, NOW).await.unwrap();
            given.push(message.sequence);
            if message.sequence == 1 {
                assert_eq!(outbox.taken.len(), MOST - 1, "the journal is not asked for each");
            }
            assert_eq!(outbox.has_given(owed), message.sequence >= owed, "{}", message.sequence);
            if message.sequence == 10 {
                write(&journal, 2 * MOST).await;
            }
            if message.sequence == owed + 1 {
                write(&journal, 1).await;
            }
        }
        let last = owed + 2 * MOST as i64 + 1;
        assert_eq!(given, (1..=last).filter(|n| *n != 2).collect::<Vec<_>>());
        assert!(!newest.has_changed().unwrap());
        write(&journal, 1).await;
        assert_eq!(outbox.next(&journal, &mut newest).await.unwrap().unwrap().sequence, last + 1);
    }
}
