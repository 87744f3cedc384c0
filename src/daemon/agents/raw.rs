//! Output that is not understood: the exit code says how it went, the end of the output says why.

use super::{MAX_MESSAGE, clean, how_it_ended, with_output};
use crate::{
    daemon::attempt_dir::ExitRecord,
    domain::{
        attempt::{Failure, FailureClass},
        report::Progress,
    },
};

/// Bytes of output kept.
const MAX_TAIL: usize = 8 * 1024;

/// The end of what was written.
#[derive(Debug, Default)]
pub struct Raw {
    tail: Vec<u8>,
}

impl Raw {
    pub fn feed(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(MAX_TAIL)..];
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > 2 * MAX_TAIL {
            self.tail.drain(..self.tail.len() - MAX_TAIL);
        }
    }

    /// The last line is what it says.
    pub fn progress(&self) -> Progress {
        let text = String::from_utf8_lossy(&self.tail);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Progress { last_message: clean(last.trim(), MAX_MESSAGE), ..Progress::default() }
    }

    /// Exit code 0 is success, another one is what the command says of itself, a signal is nobody's word.
    pub fn finish(&mut self, exit: &ExitRecord) -> Result<(), Failure> {
        let class = match exit.exit_code {
            Some(0) => return Ok(()),
            Some(_) => FailureClass::AgentError,
            None => FailureClass::AgentCrashed,
        };
        Err(Failure::new(class, with_output(&how_it_ended(exit), &String::from_utf8_lossy(&self.tail))))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::exited, *};

    #[test]
    fn the_exit_code_decides_and_the_end_of_the_output_explains() {
        let mut raw = Raw::default();
        raw.feed(&vec![b'x'; 1024 * 1024]);
        raw.feed(b"\nthen \xff\0 this\nlast line\n\n");
        assert!(raw.tail.len() <= 2 * MAX_TAIL);
        assert_eq!(raw.progress().last_message, "last line");
        assert_eq!(raw.finish(&exited(0)), Ok(()));
        let failure = raw.finish(&exited(3)).unwrap_err();
        assert_eq!(failure.class, FailureClass::AgentError);
        assert!(failure.message.starts_with("the agent ended with exit code 3; its output ends with:\nxxx"));
        assert!(failure.message.ends_with("then \u{fffd}\u{fffd} this\nlast line"), "{}", failure.message);
        assert!(failure.message.len() < MAX_MESSAGE);
    }
}
