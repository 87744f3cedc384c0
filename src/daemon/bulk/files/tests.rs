//! What is sent, and when, of a file that does not change. The connection itself is tested against a server in `tests/it`.

use std::io::Write as _;

use uuid::Uuid;

use super::*;
use crate::domain::CheckpointId;

fn sending(bytes: usize) -> (tempfile::NamedTempFile, Sending) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![b'x'; bytes]).unwrap();
    let upload = Upload {
        attempt: AttemptRef { task: Uuid::from_u128(1).into(), number: 1, id: Uuid::from_u128(2).into() },
        checkpoint: Some(CheckpointId(Uuid::from_u128(3))),
        path: file.path().to_owned(),
        whole: Pack { bytes: bytes as i64, sha256: "ab".repeat(32) },
        about: Some(About::default()),
        created: clock::now(),
    };
    (file, Sending::new(upload))
}

fn receipt(sending: &Sending, received: u64) -> FileReceipt {
    let (attempt, kind) = sending.key();
    FileReceipt { attempt, kind, received, complete: false, refused: None }
}

fn answer(sending: &mut Sending, received: u64) {
    let receipt = receipt(sending, received);
    sending.answered(&receipt);
}

async fn next(sending: &mut Sending) -> (u64, usize, bool) {
    let chunk = sending.next_chunk(Instant::now()).await.unwrap();
    (chunk.offset, chunk.data.len(), chunk.last.is_some())
}

fn is_due(sending: &Sending) -> bool {
    sending.due(Instant::now()).is_some_and(|due| due <= Instant::now())
}

/// It asks first, sends from there, and says what it is with the last piece; answers on their way do not send it back.
#[tokio::test(start_paused = true)]
async fn a_file_is_sent_from_where_the_server_is() {
    let (_file, mut sending) = sending(3 * MAX_CHUNK_BYTES + 7);
    let total = sending.bytes();
    let piece = MAX_CHUNK_BYTES as u64;
    assert_eq!(next(&mut sending).await, (0, 0, false));
    assert!(!is_due(&sending), "nothing is sent before the answer");
    answer(&mut sending, piece);
    assert_eq!(next(&mut sending).await, (piece, MAX_CHUNK_BYTES, false));
    assert_eq!(next(&mut sending).await, (2 * piece, MAX_CHUNK_BYTES, false));
    assert_eq!(next(&mut sending).await, (3 * piece, 7, true));
    assert!(!is_due(&sending));
    answer(&mut sending, 2 * piece);
    answer(&mut sending, 3 * piece);
    assert!(!is_due(&sending), "the last answer is on its way");
    // All there and not complete: asked again, and again with what it is.
    answer(&mut sending, total);
    tokio::time::advance(ASK_SOON).await;
    assert!(is_due(&sending));
    assert_eq!(next(&mut sending).await, (total, 0, true));
    // Thrown away: from the beginning.
    answer(&mut sending, 0);
    assert_eq!(next(&mut sending).await, (0, MAX_CHUNK_BYTES, false));
}

/// A slow server is not sent more than a window, and asked when it says nothing for long.
#[tokio::test(start_paused = true)]
async fn no_more_than_a_window_is_on_the_way() {
    let (_file, mut sending) = sending(8 * MAX_CHUNK_BYTES);
    next(&mut sending).await;
    answer(&mut sending, 0);
    let mut sent = 0;
    while is_due(&sending) {
        let (_, bytes, _) = next(&mut sending).await;
        assert!(bytes > 0, "a question that is due at once is asked for ever");
        sent += bytes as u64;
    }
    assert_eq!(sent, WINDOW_EACH);
    tokio::time::advance(ASK_AGAIN).await;
    assert_eq!(next(&mut sending).await, (WINDOW_EACH, 0, false));
    answer(&mut sending, MAX_CHUNK_BYTES as u64);
    assert!(is_due(&sending));
}

/// A file that is not there, or shorter than it was, is no file.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_is_given_up() {
    let (file, mut sending) = sending(10);
    next(&mut sending).await;
    answer(&mut sending, 0);
    file.as_file().set_len(5).unwrap();
    assert!(sending.next_chunk(Instant::now()).await.unwrap_err().ends_with("is shorter than it was"));
    sending.file = None;
    drop(file);
    assert!(sending.next_chunk(Instant::now()).await.unwrap_err().contains("No such file"));
}
