//! `makima task logs`: what an agent wrote, from any byte on, followed while it lives and through breaks of the
//! connection. Who follows a task without naming an attempt follows those that come after it, too, until the task is final: what is
//! between them is said on standard error. The bytes of a shell script are shown as they are. An agent that writes JSON lines (Claude Code's
//! `stream-json`) is rendered to text, line by line; what is no such line passes as it is, and `--raw` leaves everything
//! alone.

use std::{collections::VecDeque, time::Duration};

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    board,
    client::{Client, PATIENCE, timed},
    error::{Error, Result, is_transient},
    follow::{LOOK_FOR_REASONS, STANDS},
    output::{Out, clean, cut, note},
    view,
};
use crate::{runtime::backoff::Backoff, wire::pb};

/// A line longer than this is no event and is passed on as it comes.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Characters of a tool's input or result that are shown.
const TOOL_WIDTH: usize = 200;
/// Characters of the reason for which a task waits.
const REASON_WIDTH: usize = 300;
/// The agent whose output is never JSON.
const SHELL: &str = "shell";

/// What to show.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The task's id.
    pub task_id: String,
    /// Attempt; 0 for the newest, and where it is followed for those after it, too.
    pub attempt: u32,
    /// Byte to begin at.
    pub offset: i64,
    /// Go on while it lives.
    pub follow: bool,
    /// Leave JSON lines alone.
    pub raw: bool,
}

#[derive(Serialize)]
struct Piece<'a> {
    attempt: u32,
    offset: i64,
    text: &'a str,
    gap: bool,
}

/// Shows it.
pub async fn show(client: &Client, out: &mut Out, wanted: Wanted) -> Result<()> {
    let task = read(client, &wanted).await.map_err(client.refused("read the task"))?;
    let mut renderer = renderer(&wanted, out, &task);
    let follow = follow(client, out, &wanted, task.attempt, &mut renderer);
    let ended = tokio::select! {
        biased;
        ended = follow => ended,
        _ = tokio::signal::ctrl_c() => {
            Err(Error::Interrupted(if wanted.follow {
                format!("interrupted; the task goes on: `makima task cancel {}` ends it", view::short(&wanted.task_id))
            } else {
                String::new()
            }))
        }
    };
    if let Some(renderer) = &mut renderer {
        out.bytes(&renderer.rest())?;
    }
    ended
}

/// Shows the attempt that was named, or from the newest on one after the other.
async fn follow(
    client: &Client,
    out: &mut Out,
    wanted: &Wanted,
    newest: u32,
    renderer: &mut Option<Renderer>,
) -> Result<()> {
    let mut place = Place { attempt: if wanted.attempt == 0 { newest } else { wanted.attempt }, offset: wanted.offset };
    if !wanted.follow || wanted.attempt != 0 {
        return stream(client, out, wanted, &mut place, renderer).await;
    }
    loop {
        if place.attempt > 0 {
            stream(client, out, wanted, &mut place, renderer).await?;
        }
        let next = next_attempt(client, out, wanted, place.attempt, renderer).await?;
        let Some((next, task)) = next else { return Ok(()) };
        if next == place.attempt {
            continue;
        }
        // Another agent may have it now.
        *renderer = self::renderer(wanted, out, &task);
        place = Place { attempt: next, offset: if place.attempt == 0 { wanted.offset } else { 0 } };
    }
}

/// What shows what its agent writes as it is meant; nothing where that is shown as it is.
fn renderer(wanted: &Wanted, out: &Out, task: &pb::Task) -> Option<Renderer> {
    let is_meant = task.spec.as_ref().is_none_or(|spec| spec.agent != SHELL);
    (!wanted.raw && !out.json && is_meant).then(Renderer::default)
}

/// What is shown next.
#[derive(Debug)]
struct Place {
    /// 0 for none yet.
    attempt: u32,
    offset: i64,
}

/// How long the connection has been broken.
struct Breaks<'a> {
    client: &'a Client,
    backoff: Backoff,
    since: Option<Instant>,
}

impl<'a> Breaks<'a> {
    fn new(client: &'a Client) -> Self {
        Self { client, backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(10)), since: None }
    }

    /// Something has come, or it has not broken again.
    fn over(&mut self) {
        if self.since.take().is_some() {
            note("(connected again)");
        }
        self.backoff.reset();
    }

    /// Waits before it is tried again, if that may help.
    async fn wait(&mut self, broken: tonic::Status) -> Result<()> {
        let is_new = self.since.is_none();
        let since = *self.since.get_or_insert_with(Instant::now);
        if !is_transient(&broken) || since.elapsed() > PATIENCE {
            return Err(self.client.refused("read the output")(broken));
        }
        if is_new {
            note(&format!("(the connection to {} was lost; trying again)", self.client.server));
        }
        tokio::time::sleep(self.backoff.next_delay()).await;
        Ok(())
    }
}

/// Shows an attempt to its end.
async fn stream(
    client: &Client,
    out: &mut Out,
    wanted: &Wanted,
    place: &mut Place,
    renderer: &mut Option<Renderer>,
) -> Result<()> {
    let mut breaks = Breaks::new(client);
    loop {
        let request = pb::StreamTaskOutputRequest {
            task_id: wanted.task_id.clone(),
            attempt: place.attempt,
            offset: place.offset,
            follow: wanted.follow,
        };
        let broken = match client.tasks().stream_task_output(request).await {
            Ok(response) => {
                let mut pieces = response.into_inner();
                loop {
                    match tokio::time::timeout(STANDS, pieces.message()).await {
                        Err(_) => breaks.over(),
                        Ok(Ok(Some(piece))) => {
                            breaks.over();
                            place.attempt = piece.attempt;
                            place.offset = take(out, &piece, place.offset, renderer)?;
                        }
                        Ok(Ok(None)) => return Ok(()),
                        Ok(Err(status)) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        breaks.wait(broken).await?;
    }
}

/// Waits for the attempt after `shown`, or for more of that one, and says meanwhile what the task waits for. Nothing if the task is
/// final without one.
async fn next_attempt(
    client: &Client,
    out: &mut Out,
    wanted: &Wanted,
    shown: u32,
    renderer: &mut Option<Renderer>,
) -> Result<Option<(u32, pb::Task)>> {
    // A last line without an end is shown before it is said what follows.
    let mut tell = |text: &str| -> Result<()> {
        if let Some(renderer) = renderer {
            out.bytes(&renderer.rest())?;
        }
        note(text);
        Ok(())
    };
    let mut breaks = Breaks::new(client);
    let mut said = None;
    loop {
        let request =
            pb::WatchTaskRequest { task_id: wanted.task_id.clone(), resume_token: String::new(), until_end: true };
        let broken = match client.tasks().watch_task(request).await {
            Ok(response) => {
                let mut steps = response.into_inner();
                loop {
                    // What it waits for changes without its doing, too.
                    let step = tokio::time::timeout(LOOK_FOR_REASONS, steps.message()).await;
                    if let Ok(Err(status)) = step {
                        break status;
                    }
                    breaks.over();
                    let task = match read(client, wanted).await {
                        Ok(task) => task,
                        Err(status) => break status,
                    };
                    let ended = if shown == 0 { String::new() } else { format!("attempt {shown} has ended; ") };
                    if task.attempt > shown {
                        let next = shown + 1;
                        let begins = if next == task.attempt { "begins" } else { "follows, which has ended too" };
                        tell(&format!("({ended}attempt {next} {begins})"))?;
                        return Ok(Some((next, task)));
                    }
                    if board::is_final(task.status()) {
                        // It had been given up for lost, and may have come back with more, and with its end.
                        if said.is_some() && shown > 0 {
                            return Ok(Some((shown, task)));
                        }
                        tell(&format!("({ended}{})", state(&task)))?;
                        return Ok(None);
                    }
                    // Given up for lost, and its daemon is back with it; before anybody looked, unless its result is on its way.
                    if (said.is_some() || step.is_err()) && shown > 0 && board::is_live(task.status()) {
                        if said.is_some() {
                            tell(&format!("(attempt {shown} goes on)"))?;
                        }
                        return Ok(Some((shown, task)));
                    }
                    let waits_for = (task.status(), task.pending_reason());
                    // A result may be on its way after the last byte.
                    if !board::is_live(task.status()) && said != Some(waits_for) {
                        tell(&format!("({ended}{})", state(&task)))?;
                        said = Some(waits_for);
                    }
                    if task.pending_reason() == pb::PendingReason::Blocked {
                        return Err(Error::Said);
                    }
                    if matches!(step, Ok(Ok(None))) {
                        break tonic::Status::unavailable("the stream has ended");
                    }
                }
            }
            Err(status) => status,
        };
        breaks.wait(broken).await?;
    }
}

async fn read(client: &Client, wanted: &Wanted) -> std::result::Result<pb::Task, tonic::Status> {
    let request = timed(pb::GetTaskRequest { task_id: wanted.task_id.clone() });
    Ok(client.tasks().get_task(request).await?.into_inner().task.unwrap_or_default())
}

/// Where a task stands between two attempts, and in the end. What an agent wrote last has been shown.
fn state(task: &pb::Task) -> String {
    let word = view::task_status(task.status());
    let reason = task.reason.lines().next().unwrap_or_default();
    match reason.strip_suffix("; its output ends with:").unwrap_or(reason) {
        "" => format!("the task is {word}"),
        reason => format!("the task is {word}: {}", cut(&clean(reason), REASON_WIDTH)),
    }
}

/// Shows a piece; answers where the next one begins. What was shown before a break is not shown again.
fn take(
    out: &mut Out,
    piece: &pb::StreamTaskOutputResponse,
    offset: i64,
    renderer: &mut Option<Renderer>,
) -> Result<i64> {
    let known = usize::try_from(offset.saturating_sub(piece.offset)).unwrap_or_default();
    let data = piece.data.slice(known.min(piece.data.len())..);
    let end = piece.offset.saturating_add(i64::try_from(piece.data.len()).unwrap_or_default());
    if out.json {
        let text = String::from_utf8_lossy(&data);
        out.object(&Piece { attempt: piece.attempt, offset: end - as_i64(data.len()), text: &text, gap: piece.gap })?;
        return Ok(end.max(offset));
    }
    if piece.gap {
        note(&format!("(output before byte {} is missing: the machine that had it lost it)", piece.offset));
    }
    match renderer {
        Some(renderer) => out.bytes(&renderer.push(&data))?,
        None => out.bytes(&data)?,
    }
    Ok(end.max(offset))
}

fn as_i64(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Turns JSON lines of a coding agent into text, and passes on everything else.
#[derive(Debug, Default)]
pub struct Renderer {
    line: VecDeque<u8>,
    /// The line at hand is too long to be an event and has begun to be passed on.
    passing: bool,
}

impl Renderer {
    /// Takes bytes; answers what to show now.
    pub fn push(&mut self, data: &[u8]) -> Vec<u8> {
        let mut shown = Vec::new();
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            if self.passing {
                shown.extend_from_slice(part);
            } else {
                self.line.extend(part);
            }
            if part.ends_with(b"\n") {
                if !self.passing {
                    shown.extend(self.rest());
                }
                self.passing = false;
            } else if self.line.len() > MAX_EVENT_BYTES {
                shown.extend(self.line.drain(..));
                self.passing = true;
            }
        }
        shown
    }

    /// What is left when there is no more.
    pub fn rest(&mut self) -> Vec<u8> {
        let line: Vec<u8> = self.line.drain(..).collect();
        match serde_json::from_slice::<Value>(&line) {
            Ok(Value::Object(event)) if event.get("type").is_some_and(Value::is_string) => {
                let text = event_text(&Value::Object(event));
                if text.is_empty() { Vec::new() } else { format!("{text}\n").into_bytes() }
            }
            _ => line,
        }
    }
}

/// One event as lines of text; empty for those that say nothing to a person.
fn event_text(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match event["type"].as_str().unwrap_or_default() {
        "system" if event["subtype"] == "init" => {
            format!("[session {} with {}]", text(&event["session_id"]), text(&event["model"]))
        }
        "assistant" => contents(&event["message"]["content"]).join("\n"),
        "user" => contents(&event["message"]["content"]).join("\n"),
        "result" => {
            let word = if event["is_error"] == Value::Bool(true) { "failed" } else { "done" };
            let mut parts = vec![word.to_owned()];
            if let Some(turns) = event["num_turns"].as_u64() {
                parts.push(format!("{turns} turns"));
            }
            if let Some(cost) = event["total_cost_usd"].as_f64() {
                parts.push(format!("${cost:.4}"));
            }
            let said = text(&event["result"]);
            let said = if event["is_error"] == Value::Bool(true) && !said.is_empty() {
                format!(": {}", cut(&said, TOOL_WIDTH))
            } else {
                String::new()
            };
            format!("[{}]{said}", parts.join(", "))
        }
        "rate_limit_event" if event["rate_limit_info"]["status"] == "rejected" => "[at the usage limit]".to_owned(),
        _ => String::new(),
    }
}

fn contents(content: &Value) -> Vec<String> {
    if let Some(text) = content.as_str() {
        return vec![text.to_owned()];
    }
    let parts = content.as_array().into_iter().flatten().filter_map(|part| match part["type"].as_str()? {
        "text" => part["text"].as_str().map(str::to_owned),
        "tool_use" => {
            let input = &part["input"];
            let input = ["command", "file_path", "pattern", "description"]
                .iter()
                .find_map(|key| input[*key].as_str().map(str::to_owned))
                .unwrap_or_else(|| input.to_string());
            Some(format!("> {} {}", part["name"].as_str().unwrap_or("tool"), one_line(&input)))
        }
        "tool_result" => {
            let said = match &part["content"] {
                Value::String(text) => text.clone(),
                other => contents(other).join(" "),
            };
            let mark = if part["is_error"] == Value::Bool(true) { "! " } else { "  " };
            (!said.is_empty()).then(|| format!("{mark}{}", one_line(&said)))
        }
        _ => None,
    });
    parts.collect()
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    cut(&words.join(" | "), TOOL_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_events_read_as_text() {
        let lines = r#"{"type":"system","subtype":"init","session_id":"s-1","model":"m-1","tools":["Bash"]}
not json at all
{"type":"assistant","message":{"content":[{"type":"text","text":"I will look.\nThen write."},{"type":"tool_use","name":"Bash","input":{"command":"ls -l\ncat a"}}]}}
{"type":"user","message":{"content":[{"type":"tool_result","content":[{"type":"text","text":"a\nb"}]}]}}
{"type":"user","message":{"content":[{"type":"tool_result","is_error":true,"content":"no such file"}]}}
{"type":"stream_event","event":{}}
{"type":"result","subtype":"success","is_error":false,"num_turns":3,"total_cost_usd":0.0123,"result":"Done."}
{"type":"result","subtype":"success","is_error":true,"result":"API Error: 429"}
"#;
        // However the bytes are cut, the text is the same.
        for size in [1, 7, 4096] {
            let mut renderer = Renderer::default();
            let mut shown: Vec<u8> = lines.as_bytes().chunks(size).flat_map(|chunk| renderer.push(chunk)).collect();
            shown.extend(renderer.rest());
            insta::allow_duplicates! {
                insta::assert_snapshot!(String::from_utf8(shown).unwrap(), @r"
                [session s-1 with m-1]
                not json at all
                I will look.
                Then write.
                > Bash ls -l | cat a
                  a | b
                ! no such file
                [done, 3 turns, $0.0123]
                [failed]: API Error: 429
                ");
            }
        }
    }

    #[test]
    fn a_line_without_an_end_passes_in_bounded_memory() {
        let mut renderer = Renderer::default();
        let chunk = vec![b'x'; MAX_EVENT_BYTES / 2 + 1];
        assert!(renderer.push(&chunk).is_empty());
        assert_eq!(renderer.push(&chunk).len(), 2 * chunk.len());
        assert_eq!(renderer.push(&chunk).len(), chunk.len());
        assert_eq!(renderer.push(b"\n{\"type\":\"result\",\"is_error\":false}\n"), b"\n[done]\n");
    }

    #[test]
    fn after_a_break_nothing_is_shown_twice() {
        let buffer = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut out = Out::to(Shared(buffer.clone()), false);
        let piece = |offset: i64, data: &'static [u8]| pb::StreamTaskOutputResponse {
            attempt: 1,
            offset,
            data: bytes::Bytes::from_static(data),
            gap: false,
        };
        let offset = take(&mut out, &piece(0, b"hello "), 0, &mut None).unwrap();
        let offset = take(&mut out, &piece(4, b"o world"), offset, &mut None).unwrap();
        assert_eq!((offset, buffer.lock().unwrap().as_slice()), (11, b"hello world".as_slice()));
    }

    struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
