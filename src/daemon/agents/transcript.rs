//! A transcript as it is taken from under a running or killed agent, made fit to be gone on with.
//!
//! Transcripts are one JSON record a line, only appended to. What a copy can lack is the end of its last record (the agent was
//! writing, the machine lost its power); nothing is invented for it, since Claude Code itself leaves out tool calls that were
//! never answered (see the built-in profile).

use serde::{Deserialize, de::IgnoredAny};

/// The part of a transcript that can be gone on with: up to the last line that is whole. A record without its end must not
/// stay, because the agent would write the next one behind it, and both would be lost.
pub fn mend(bytes: &[u8]) -> &[u8] {
    let mut kept = bytes;
    while let Some(end) = kept.iter().rposition(|byte| *byte == b'\n') {
        let start = kept[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        // After a loss of power the end of a file may be zeros.
        if is_record(&kept[start..end]) {
            return &kept[..=end];
        }
        kept = &kept[..start];
    }
    &[]
}

/// Somebody has said something: without that Claude Code knows no conversation, and a new session is the better way.
pub fn has_conversation(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(rename = "type", borrow)]
        kind: std::borrow::Cow<'a, str>,
    }
    bytes
        .split(|byte| *byte == b'\n')
        .any(|line| serde_json::from_slice::<Head>(line).is_ok_and(|head| matches!(&*head.kind, "user" | "assistant")))
}

fn is_record(line: &[u8]) -> bool {
    line.starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(line).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: &str = r#"{"type":"queue-operation","operation":"enqueue","content":"Do it."}"#;
    const USER: &str = r#"{"type":"user","message":{"role":"user","content":"Do it."},"cwd":"/tmp/a/work"}"#;
    const CALL: &str =
        r#"{"type":"assistant","message":{"role":"assistant","content":[{"type":"tool_use","id":"t"}]}}"#;

    /// Wherever a transcript is cut, what is kept are its whole records, and mending twice is mending once.
    #[test]
    fn a_transcript_is_cut_at_its_last_whole_record() {
        let lines = [QUEUE, USER, CALL];
        let whole = lines.map(|line| format!("{line}\n")).concat();
        let ends: Vec<usize> = (0..=3).map(|n| lines[..n].iter().map(|line| line.len() + 1).sum()).collect();
        for cut in 0..=whole.len() {
            let kept = *ends.iter().rfind(|end| **end <= cut).unwrap();
            let mended = mend(&whole.as_bytes()[..cut]);
            assert_eq!(mended, &whole.as_bytes()[..kept], "cut at {cut}");
            assert_eq!(mend(mended), mended);
        }
    }

    /// What a loss of power leaves, zeros or old blocks, with and without an end, goes.
    #[test]
    fn rubbish_at_the_end_goes() {
        let whole = format!("{QUEUE}\n{USER}\n");
        for rubbish in [&b"\0\0\0\0"[..], b"\0\0\n\0\n", b"{\"type\":\"us\n", b"\n\n", b"7\n", b"\xff\xfe\n{"] {
            let bytes = [whole.as_bytes(), rubbish].concat();
            assert_eq!(mend(&bytes), whole.as_bytes(), "{rubbish:?}");
        }
        assert_eq!(mend(b"\0\0\n"), b"");
    }

    #[test]
    fn a_conversation_has_a_speaker() {
        assert!(!has_conversation(b""));
        assert!(!has_conversation(format!("{QUEUE}\n").as_bytes()));
        assert!(has_conversation(format!("{QUEUE}\n{USER}\n").as_bytes()));
        assert!(!has_conversation(format!("{QUEUE}\n{}", &USER[..40]).as_bytes()));
    }
}
