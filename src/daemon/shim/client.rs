//! One connection to the shim, from the shim's side: lines in, lines out, nothing that waits.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
};

use super::protocol::{MAX_LINE, Reply};

/// Somebody who is connected.
pub struct Client {
    pub stream: UnixStream,
    /// It has said the right nonce.
    pub known: bool,
    line: Vec<u8>,
    /// What it has not taken yet.
    pub out: VecDeque<u8>,
    pub closed: bool,
}

impl Client {
    /// Somebody who has just come.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, known: false, line: Vec::new(), out: VecDeque::new(), closed: false }
    }

    /// Whole lines that have arrived.
    pub fn read_lines(&mut self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.closed = true;
                    break;
                }
                Ok(read) => self.line.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.closed = true;
                    break;
                }
            }
            if self.line.len() > 4 * MAX_LINE {
                break;
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let rest = self.line.split_off(end + 1);
            lines.push(std::mem::replace(&mut self.line, rest));
        }
        // Nobody who speaks this language says so much at once.
        self.closed |= self.line.len() > MAX_LINE;
        lines
    }

    /// Puts a reply into the queue.
    pub fn send(&mut self, reply: &Reply) {
        let mut line = serde_json::to_vec(reply).unwrap_or_default();
        line.push(b'\n');
        self.closed |= self.out.len() > MAX_LINE;
        self.out.extend(line);
    }

    /// Writes what the connection takes.
    pub fn flush(&mut self) {
        while !self.out.is_empty() {
            match self.stream.write(self.out.as_slices().0) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }
}
