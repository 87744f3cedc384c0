//! What is sent, and when, of a file that grows. The connection itself is tested against a server in `tests/it`.

use std::io::Write as _;

use uuid::Uuid;

use super::*;

const COLLECT: Duration = Duration::from_millis(100);

struct Bench {
    file: tempfile::NamedTempFile,
    output: Output,
    upload: Upload,
}

impl Bench {
    fn new() -> Self {
        let (bulk, mut inbox) = Announcer::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        let attempt = AttemptRef { task: Uuid::from_u128(1).into(), number: 1, id: Uuid::from_u128(2).into() };
        let output = bulk.open(attempt, file.path().to_owned(), &["a-long-secret"]);
        let upload = inbox.announced.try_recv().unwrap();
        Self { file, output, upload }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).unwrap();
        self.output.grown(self.file.as_file().metadata().unwrap().len());
    }

    async fn next(&mut self) -> Option<Chunk> {
        self.upload.next_chunk().await.unwrap()
    }

    fn receive(&mut self, received: u64, complete: bool) {
        let attempt = self.upload.attempt;
        self.upload.answered(&Receipt { attempt, committed: received, received, complete, refused: false });
    }

    fn is_due(&self) -> bool {
        self.upload.due(COLLECT, Instant::now()).is_some_and(|due| due <= Instant::now())
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_asks_first_goes_on_from_there_and_ends_with_the_end() {
    let mut bench = Bench::new();
    bench.write(b"0123456789");
    let question = bench.next().await.unwrap();
    assert_eq!((question.offset, question.data.len(), question.last), (0, 0, false));
    assert_eq!(bench.upload.due(COLLECT, Instant::now()), None, "nothing is sent before the answer");
    bench.receive(4, false);

    tokio::time::advance(COLLECT).await;
    let chunk = bench.next().await.unwrap();
    assert_eq!((chunk.offset, chunk.data.as_ref(), chunk.last), (4, &b"456789"[..], false));
    bench.receive(10, false);
    assert!(!bench.upload.has_work());

    bench.write(b"ab");
    bench.output.finish(12);
    assert!(bench.is_due(), "the end does not wait");
    let chunk = bench.next().await.unwrap();
    assert_eq!((chunk.offset, chunk.data.as_ref(), chunk.last), (10, &b"ab"[..], true));

    // No word that it is durable: asked again, without data.
    assert!(!bench.is_due());
    tokio::time::advance(ASK_AGAIN).await;
    assert!(bench.is_due());
    let question = bench.next().await.unwrap();
    assert_eq!((question.offset, question.data.len(), question.last), (12, 0, true));
}

#[tokio::test(start_paused = true)]
async fn small_writes_are_collected_and_full_chunks_go_at_once() {
    let mut bench = Bench::new();
    bench.next().await.unwrap();
    bench.receive(0, false);
    bench.write(b"q");
    assert!(!bench.is_due(), "a moment after the question");
    tokio::time::advance(COLLECT).await;
    assert!(bench.is_due());
    bench.next().await.unwrap();
    bench.write(b"b");
    assert!(!bench.is_due());
    bench.write(&vec![b'x'; 3 * MAX_CHUNK_BYTES]);
    assert!(bench.is_due());
    let chunk = bench.next().await.unwrap();
    assert_eq!((chunk.offset, chunk.data.len()), (1, MAX_CHUNK_BYTES));
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_is_not_sent_more_than_a_window() {
    let mut bench = Bench::new();
    bench.next().await.unwrap();
    bench.receive(0, false);
    bench.write(&vec![b'x'; 8 * MAX_CHUNK_BYTES]);
    let mut sent = 0;
    while bench.is_due() {
        sent += bench.next().await.unwrap().data.len() as u64;
    }
    assert_eq!(sent, WINDOW_EACH);
    bench.receive(MAX_CHUNK_BYTES as u64, false);
    assert!(bench.is_due());
}

#[tokio::test(start_paused = true)]
async fn what_has_not_arrived_long_after_is_sent_again() {
    let mut bench = Bench::new();
    bench.next().await.unwrap();
    bench.receive(0, false);
    bench.write(b"0123456789");
    tokio::time::advance(COLLECT).await;
    bench.next().await.unwrap();
    tokio::time::advance(ASK_AGAIN).await;
    assert!(bench.is_due());
    let question = bench.next().await.unwrap();
    assert!(question.data.is_empty());
    bench.receive(3, false);
    tokio::time::advance(COLLECT).await;
    let chunk = bench.next().await.unwrap();
    assert_eq!((chunk.offset, chunk.data.as_ref()), (3, &b"3456789"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_more_than_the_file_is_told_the_end() {
    let mut bench = Bench::new();
    bench.write(b"0123");
    bench.output.finish(4);
    bench.next().await.unwrap();
    bench.receive(9, false);
    let end = bench.next().await.unwrap();
    assert_eq!((end.offset, end.data.len(), end.last), (9, 0, true));
}

#[tokio::test(start_paused = true)]
async fn secrets_do_not_leave_the_machine_even_in_halves() {
    let mut bench = Bench::new();
    bench.next().await.unwrap();
    bench.receive(0, false);
    bench.write(b"key: a-long-");
    tokio::time::advance(COLLECT).await;
    assert_eq!(bench.next().await.unwrap().data.as_ref(), b"key: ");
    bench.write(b"secret!");
    bench.output.finish(19);
    assert_eq!(bench.next().await.unwrap().data.as_ref(), b"*************!");
}
