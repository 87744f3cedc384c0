//! Output cut into lines, in bounded memory.

/// Bytes of a line that is looked at. Longer ones (a tool result with a whole image in it) are dropped to their end.
pub const MAX_LINE: usize = 8 * 1024 * 1024;

/// Collects bytes until a line is whole.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    skipping: bool,
}

impl Lines {
    /// Calls `each` with every line that became whole, without its end.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if std::mem::take(&mut self.skipping) || self.partial.len() + line.len() > MAX_LINE {
                self.partial = Vec::new();
            } else if self.partial.is_empty() {
                each(line);
            } else {
                self.partial.extend_from_slice(line);
                each(&self.partial);
                self.partial.clear();
            }
        }
        if self.skipping {
            return;
        }
        if self.partial.len() + bytes.len() > MAX_LINE {
            // What is thrown away gives its memory back.
            self.partial = Vec::new();
            self.skipping = true;
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    /// The last line, if it had no end.
    pub fn finish(&mut self, each: impl FnOnce(&[u8])) {
        if !self.partial.is_empty() {
            each(&std::mem::take(&mut self.partial));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.feed(piece, |line| all.push(line.to_vec()));
        }
        lines.finish(|line| all.push(line.to_vec()));
        all
    }

    #[test]
    fn pieces_become_lines() {
        assert_eq!(collect(&[b"a\nb", b"c\n\n", b"d"]), [&b"a"[..], b"bc", b"", b"d"]);
    }

    /// A line without end costs no more than the bound, and the next one is seen.
    #[test]
    fn a_line_that_is_too_long_is_dropped() {
        let mut lines = Lines::default();
        let mebibyte = vec![b'x'; 1024 * 1024];
        for _ in 0..100 {
            lines.feed(&mebibyte, |_| panic!("no line has ended"));
            assert!(lines.partial.capacity() <= 2 * MAX_LINE);
        }
        let mut seen = Vec::new();
        lines.feed(b"end\nnext\n", |line| seen.push(line.to_vec()));
        assert_eq!(seen, [b"next"]);
    }
}
