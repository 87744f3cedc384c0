//! Masks known secrets at equal length, so that offsets stay what they are. A secret may lie across the border of two
//! chunks: each chunk is looked at with as much around it as a secret can reach, and a chunk that ends with the beginning of
//! one waits until the rest is there.

use std::sync::Arc;

use bytes::Bytes;

/// Shorter words are not taken for secrets: they would mask half of the output.
const MIN_SECRET: usize = 8;
/// What a secret is replaced by.
const MASKED: u8 = b'*';

/// The secrets of one upload.
#[derive(Clone, Debug, Default)]
pub(super) struct Mask(Arc<[Secret]>);

#[derive(Clone)]
struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// What is read to send a piece: the piece, and what is around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Around {
    /// Where reading begins.
    pub(super) start: u64,
    /// How much is read.
    pub(super) length: usize,
    /// Where in that the piece begins.
    before: usize,
    /// How long the piece is.
    wanted: usize,
}

impl Mask {
    pub(super) fn new(secrets: &[&str]) -> Self {
        Self(secrets.iter().filter(|s| s.len() >= MIN_SECRET).map(|s| Secret(s.as_bytes().to_vec())).collect())
    }

    /// How far a secret reaches beyond any one of its bytes.
    fn reach(&self) -> usize {
        self.0.iter().map(|secret| secret.0.len() - 1).max().unwrap_or(0)
    }

    /// What to read for `wanted` bytes at `offset` of a file that has `end` bytes.
    pub(super) fn around(&self, offset: u64, wanted: usize, end: u64) -> Around {
        let before = usize::try_from(offset).unwrap_or(usize::MAX).min(self.reach());
        let after = usize::try_from(end.saturating_sub(offset + wanted as u64)).unwrap_or(usize::MAX).min(self.reach());
        Around { start: offset - before as u64, length: before + wanted + after, before, wanted }
    }

    /// The piece with its secrets masked. Unless `complete`, it ends before what may be the beginning of a secret.
    pub(super) fn apply(&self, mut data: Vec<u8>, around: &Around, complete: bool) -> Bytes {
        let mut end = data.len().min(around.before + around.wanted);
        for secret in self.0.iter() {
            let mut from = 0;
            while let Some(at) = find(&data[from..], &secret.0) {
                data[from + at..][..secret.0.len()].fill(MASKED);
                from += at + secret.0.len();
            }
            if !complete {
                end = end.min(data.len() - begun(&data, &secret.0));
            }
        }
        let begin = around.before.min(end);
        Bytes::from(data).slice(begin..end)
    }
}

fn find(data: &[u8], secret: &[u8]) -> Option<usize> {
    let first = *secret.first()?;
    let mut from = 0;
    while let Some(at) = data[from..].iter().position(|byte| *byte == first) {
        if data[from + at..].starts_with(secret) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// How many bytes at the end of `data` are the beginning of `secret`.
fn begun(data: &[u8], secret: &[u8]) -> usize {
    (1..secret.len()).rev().find(|n| data.ends_with(&secret[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "mk_task_0123456789";

    /// Sends `text` in pieces as an upload does, with the file growing by `steps`.
    fn sent(text: &[u8], steps: &[usize]) -> Vec<u8> {
        let mask = Mask::new(&[SECRET]);
        let (mut sent, mut end) = (Vec::new(), 0);
        let mut steps = steps.iter().copied().cycle();
        while sent.len() < text.len() {
            end = (end + steps.next().unwrap_or(1)).min(text.len());
            let complete = end == text.len();
            let around = mask.around(sent.len() as u64, (end - sent.len()).min(40), end as u64);
            let start = usize::try_from(around.start).unwrap();
            sent.extend(mask.apply(text[start..start + around.length].to_vec(), &around, complete));
        }
        sent
    }

    #[test]
    fn secrets_are_masked_and_nothing_else_is() {
        let text = format!("key={SECRET}; again {SECRET}{SECRET}, mk_task_, mk_task_01234");
        let masked = text.replace(SECRET, &"*".repeat(SECRET.len()));
        for step in 1..=text.len() {
            assert_eq!(String::from_utf8(sent(text.as_bytes(), &[step])).unwrap(), masked, "in steps of {step}");
        }
        assert_eq!(
            Mask::new(&["", "short"]).around(5, 10, 100),
            Around { start: 5, length: 10, before: 0, wanted: 10 }
        );
    }

    proptest! {
        #[test]
        fn whatever_the_pieces_no_secret_gets_through(
            parts in prop::collection::vec(prop_oneof![Just(SECRET.to_owned()), "[mk_tas0-9]{0,9}"], 0..12),
            steps in prop::collection::vec(1usize..50, 1..6),
        ) {
            let text = parts.concat();
            let sent = String::from_utf8(sent(text.as_bytes(), &steps)).unwrap();
            prop_assert_eq!(sent, text.replace(SECRET, &"*".repeat(SECRET.len())));
        }
    }
}
