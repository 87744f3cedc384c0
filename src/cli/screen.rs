//! How waiting looks: on a terminal a list of tasks that repaints itself, on a pipe one line for each thing that happens,
//! with `--json` one object for each.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{
    board::{self, Board, Happening, Outcome, Row, What},
    error::Result,
    output::{Out, clean, clock_time, cut, note, pad, span},
    view,
};
use crate::{
    domain::Timestamp,
    wire::pb::{self, TaskStatus},
};

/// Tasks in the repainted list at most; a taller list is not read.
const MAX_ROWS: usize = 30;
/// Lines of the terminal left to the summary and to what was there before.
const OTHER_LINES: usize = 4;
/// Failed tasks named at the end; the rest are counted.
const FAILURES_NAMED: usize = 10;
/// Characters of a task's name in a list.
const NAME_WIDTH: usize = 40;

/// Where waiting is shown.
pub struct Screen<'a> {
    out: &'a mut Out,
    live: Option<Live>,
    title: String,
}

impl<'a> Screen<'a> {
    /// As fits the output: repainted on a terminal.
    pub fn new(out: &'a mut Out) -> Self {
        let live = (out.terminal && !out.json).then(Live::new);
        Self { out, live, title: String::new() }
    }

    /// Always lines.
    pub fn plain(out: &'a mut Out) -> Self {
        Self { out, live: None, title: String::new() }
    }

    /// What is waited for, once known.
    pub fn contract(&mut self, contract: &pb::Contract) -> Result<()> {
        let first = self.title.is_empty();
        self.title = format!("{} {}", clean(&contract.name), view::short(&contract.contract_id));
        if self.out.json {
            return self.out.object(&Object::new("contract", view::Contract::from(contract)));
        }
        let held = &contract.held_by;
        if first && !held.is_empty() {
            self.say(&format!("the contract is held by {}; `makima contract release` ends that", clean(held)));
        }
        Ok(())
    }

    /// A task as read.
    pub fn task(&mut self, task: &pb::Task) -> Result<()> {
        if self.out.json { self.out.object(&Object::new("task", view::Task::from(task))) } else { Ok(()) }
    }

    /// A change as told.
    pub fn change(&mut self, change: &pb::Change) -> Result<()> {
        if self.out.json { self.out.object(&Object::new("change", view::Change::from(change))) } else { Ok(()) }
    }

    /// Something happened. On a repainted screen the list shows most of it.
    pub fn happening(&mut self, happening: &Happening) -> Result<()> {
        if self.out.json {
            return Ok(());
        }
        match &self.live {
            None => self.out.line(&line(happening)),
            Some(live) => {
                match happening.what {
                    What::Failed { .. }
                    | What::TriedAgain { .. }
                    | What::Asks { .. }
                    | What::Contract { .. }
                    | What::Note { .. }
                    | What::Reopened => live.above(&line(happening)),
                    What::Started { .. } | What::Done { .. } | What::Cancelled { .. } | What::Paused => {}
                }
                Ok(())
            }
        }
    }

    /// Something beside the tasks: the connection, a hint.
    pub fn say(&mut self, text: &str) {
        match &self.live {
            Some(live) => live.above(text),
            None => note(text),
        }
    }

    /// Time passed.
    pub fn tick(&mut self, board: &Board, now: Timestamp, elapsed: Duration) {
        if let Some(live) = &mut self.live {
            live.paint(&self.title, board, now, elapsed);
        }
    }

    /// The end: a summary, and for what is not done what to do.
    pub fn end(&mut self, board: &Board, outcome: &Outcome, now: Timestamp, elapsed: Duration) -> Result<()> {
        if let Some(live) = &mut self.live {
            live.paint(&self.title, board, now, elapsed);
            live.leave();
        }
        if self.out.json {
            return self.out.object(&Object::new("outcome", End::new(board, outcome)));
        }
        self.out.line(&summary(board, outcome, elapsed))?;
        for line in advice(board, outcome) {
            note(&line);
        }
        Ok(())
    }
}

/// One JSON object of a watch: what it is, and that.
#[derive(Serialize)]
struct Object<T> {
    kind: &'static str,
    #[serde(flatten)]
    value: T,
}

impl<T> Object<T> {
    fn new(kind: &'static str, value: T) -> Self {
        Self { kind, value }
    }
}

/// How waiting ended, for programs.
#[derive(Serialize)]
struct End<'a> {
    status: &'static str,
    tasks: usize,
    done: usize,
    failed: Vec<&'a str>,
    cancelled: Vec<&'a str>,
    blocked: Vec<&'a str>,
}

impl<'a> End<'a> {
    fn new(board: &'a Board, outcome: &Outcome) -> Self {
        let ids = |rows: &[usize]| rows.iter().map(|i| board.rows()[*i].id.as_str()).collect();
        let (tasks, done) = (board.rows().len(), board.complete());
        match outcome {
            Outcome::Done => {
                Self { status: "DONE", tasks, done, failed: Vec::new(), cancelled: Vec::new(), blocked: Vec::new() }
            }
            Outcome::Stuck { failed, cancelled, blocked } => Self {
                status: if failed.is_empty() && !cancelled.is_empty() { "CANCELLED" } else { "FAILED" },
                tasks,
                done,
                failed: ids(failed),
                cancelled: ids(cancelled),
                blocked: ids(blocked),
            },
        }
    }
}

/// `12:00:01Z types started on d1 (attempt 1)`.
pub fn line(happening: &Happening) -> String {
    let time = happening.at.map(|at| format!("{} ", clock_time(at))).unwrap_or_default();
    let because = |why: &str| if why.is_empty() { String::new() } else { format!(": {}", clean(why).trim()) };
    let what = match &happening.what {
        What::Started { daemon, attempt } if daemon.is_empty() => format!("started (attempt {attempt})"),
        What::Started { daemon, attempt } => format!("started on {} (attempt {attempt})", clean(daemon)),
        What::Done { took: Some(took) } => format!("done ({})", span(*took)),
        What::Done { took: None } => "done".to_owned(),
        What::Failed { why } => format!("failed{}", because(why)),
        What::Cancelled { why } => format!("cancelled{}", because(why)),
        What::TriedAgain { why } => format!("will be tried again{}", because(why)),
        What::Reopened => "opened again".to_owned(),
        What::Paused => "paused".to_owned(),
        What::Asks { question } => format!("asks{}", because(question)),
        What::Note { text } => clean(text),
        What::Contract { text } => return format!("{time}{}", clean(text)),
    };
    format!("{time}{} {what}", clean(&happening.task))
}

fn summary(board: &Board, outcome: &Outcome, elapsed: Duration) -> String {
    let all = board.rows().len();
    let tasks = if all == 1 { "1 task".to_owned() } else { format!("{all} tasks") };
    match outcome {
        Outcome::Done => format!("{tasks} done, {} waited", span(elapsed)),
        Outcome::Stuck { failed, cancelled, blocked } => {
            let mut text = format!("{} of {tasks} done", board.complete());
            for (rows, word) in [(failed, "failed"), (cancelled, "cancelled"), (blocked, "blocked for ever")] {
                if !rows.is_empty() {
                    text.push_str(&format!(", {} {word}", rows.len()));
                }
            }
            text
        }
    }
}

fn advice(board: &Board, outcome: &Outcome) -> Vec<String> {
    let Outcome::Stuck { failed, cancelled, blocked } = outcome else { return Vec::new() };
    let mut lines = Vec::new();
    for row in failed.iter().take(FAILURES_NAMED).map(|i| &board.rows()[*i]) {
        let id = view::short(&row.id);
        let why =
            if row.reason.is_empty() { "no reason given".to_owned() } else { clean(&row.reason).trim().to_owned() };
        lines.push(format!(
            "{} failed: {why}; `makima task logs {id}` shows its output, `makima task retry {id}` tries it again",
            clean(&row.name)
        ));
    }
    if failed.len() > FAILURES_NAMED {
        lines.push(format!("and {} more failed", failed.len() - FAILURES_NAMED));
    }
    if let (Some(first), false) = (blocked.first(), cancelled.is_empty() && failed.is_empty()) {
        let row = &board.rows()[*first];
        let id = view::short(&row.id);
        let others =
            if blocked.len() > 1 { format!(" and {} more wait", blocked.len() - 1) } else { " waits".to_owned() };
        lines.push(format!(
            "{}{others} for what did not get done: retry that, or drop the edge with `makima task deps rm {id} ...`, or \
             `makima task cancel {id}`",
            clean(&row.name)
        ));
    } else if let Some(first) = blocked.first() {
        let row = &board.rows()[*first];
        lines.push(format!("{} is blocked for ever: {}", clean(&row.name), clean(&row.reason)));
    }
    lines
}

// === the repainted list ===

struct Live {
    bars: MultiProgress,
    head: ProgressBar,
    rows: Vec<ProgressBar>,
    colour: bool,
}

impl Live {
    fn new() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(10));
        let head = bars.add(bar());
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { bars, head, rows: Vec::new(), colour }
    }

    fn above(&self, text: &str) {
        // A terminal that is gone ends the command elsewhere.
        let _ = self.bars.println(text);
    }

    fn paint(&mut self, title: &str, board: &Board, now: Timestamp, elapsed: Duration) {
        let room = terminal_height().saturating_sub(OTHER_LINES).clamp(1, MAX_ROWS);
        let shown = chosen(board.rows(), room);
        while self.rows.len() < shown.len() {
            self.rows.push(self.bars.add(bar()));
        }
        let head = headline(title, board, elapsed);
        if self.head.message() != head {
            self.head.set_message(head);
        }
        let width = shown.iter().map(|row| row.name.chars().count()).max().unwrap_or_default().min(NAME_WIDTH);
        for (bar, row) in self.rows.iter().zip(shown) {
            let text = painted(board, row, width, now, self.colour);
            if bar.message() != text {
                bar.set_message(text);
            }
        }
    }

    fn leave(&self) {
        for bar in self.rows.iter().chain([&self.head]) {
            bar.abandon();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        bar.set_style(style);
    }
    bar
}

fn terminal_height() -> usize {
    /// What a terminal has that does not say.
    const USUAL: usize = 24;
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(USUAL, |size| match size.ws_row {
        0 => USUAL,
        rows => rows.into(),
    })
}

/// The rows that fit: all in their order, or else those that move first, then what went wrong, then what is next.
fn chosen(rows: &[Row], room: usize) -> Vec<&Row> {
    if rows.len() <= room {
        return rows.iter().collect();
    }
    let classes: [fn(&Row) -> bool; 4] = [
        |row| board::is_live(row.status),
        |row| row.status == TaskStatus::Failed,
        |row| row.status == TaskStatus::Pending,
        |row| board::is_final(row.status) && row.status != TaskStatus::Failed,
    ];
    classes.iter().flat_map(|class| rows.iter().filter(|row| class(row))).take(room).collect()
}

fn headline(title: &str, board: &Board, elapsed: Duration) -> String {
    let mut text = format!("{title}: {} of {} done", board.complete(), board.rows().len());
    let counted = [
        (board.live(), "running"),
        (board.count(TaskStatus::Pending), "pending"),
        (board.count(TaskStatus::Failed), "failed"),
        (board.count(TaskStatus::Cancelled), "cancelled"),
    ];
    for (count, word) in counted {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    format!("{text}  {}", span(elapsed))
}

/// `types    RUNNING    12s  d1  attempt 2`.
fn painted(board: &Board, row: &Row, width: usize, now: Timestamp, colour: bool) -> String {
    let time = match (row.took, row.since) {
        (Some(took), _) if board::is_final(row.status) => span(took),
        (None, Some(since)) if board::is_live(row.status) => span(now.since(since)),
        _ => String::new(),
    };
    let word = pad(view::task_status(row.status), 10);
    let word = match (colour, paint(row.status)) {
        (true, Some(code)) => format!("\u{1b}[{code}m{word}\u{1b}[0m"),
        _ => word,
    };
    let attempt = if row.attempt > 1 { format!("attempt {}", row.attempt) } else { String::new() };
    let waits_for = board.waits_for(row);
    let reason = match row.status {
        TaskStatus::Pending if !waits_for.is_empty() => clean(&waits_for),
        TaskStatus::Pending | TaskStatus::Failed | TaskStatus::AwaitingInput => clean(&row.reason),
        _ => String::new(),
    };
    let name = pad(&cut(&clean(&row.name), width), width);
    let rest: Vec<String> = [clean(&row.daemon), attempt, reason].into_iter().filter(|part| !part.is_empty()).collect();
    format!("  {name}  {word} {:>7}  {}", time, rest.join("  ")).trim_end().to_owned()
}

fn paint(status: TaskStatus) -> Option<u8> {
    match status {
        TaskStatus::Done | TaskStatus::Merged => Some(32),
        TaskStatus::Failed => Some(31),
        TaskStatus::Starting | TaskStatus::Running | TaskStatus::Finalizing => Some(36),
        TaskStatus::AwaitingInput | TaskStatus::Paused | TaskStatus::Cancelled => Some(33),
        TaskStatus::Pending | TaskStatus::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::board::tests::{change, task},
        *,
    };

    fn story() -> (Board, Vec<String>) {
        let mut board = Board::default();
        board.take(&task("schema", &[], TaskStatus::Pending, 1));
        board.take(&task("types", &["schema"], TaskStatus::Pending, 1));
        board.take(&task("ui", &["types"], TaskStatus::Pending, 1));
        let failed =
            pb::Change { detail: "exit code 1\u{7}".to_owned(), ..change(43_215, "types", TaskStatus::Failed, 6, 2) };
        let again =
            pb::Change { detail: "the agent died".to_owned(), ..change(43_212, "types", TaskStatus::Pending, 4, 1) };
        let held = pb::Change {
            time: Some(prost_types::Timestamp { seconds: 43_216, nanos: 0 }),
            event: "contract.held".to_owned(),
            detail: "by key:1: lunch".to_owned(),
            ..pb::Change::default()
        };
        let lines = [
            change(43_201, "schema", TaskStatus::Running, 2, 1),
            change(43_210, "schema", TaskStatus::Done, 3, 1),
            change(43_211, "types", TaskStatus::Running, 3, 1),
            again,
            change(43_214, "types", TaskStatus::Running, 5, 2),
            failed,
            held,
        ]
        .iter()
        .filter_map(|change| board.change(change).happening.as_ref().map(line))
        .collect();
        (board, lines)
    }

    #[test]
    fn on_a_pipe_each_happening_is_a_line() {
        insta::assert_snapshot!(story().1.join("\n"), @r"
        12:00:01Z schema started on d1 (attempt 1)
        12:00:10Z schema done (9.0s)
        12:00:11Z types started on d1 (attempt 1)
        12:00:12Z types will be tried again: the agent died
        12:00:14Z types started on d1 (attempt 2)
        12:00:15Z types failed: exit code 1
        12:00:16Z contract held: by key:1: lunch
        ");
    }

    #[test]
    fn the_list_shows_names_states_and_times() {
        let (board, _) = story();
        let now = Timestamp::from_secs(43_220);
        let rows: Vec<String> = board.rows().iter().map(|row| painted(&board, row, 8, now, false)).collect();
        let head = headline("shop 00c0ffee1234", &board, Duration::from_secs(19));
        insta::assert_snapshot!(format!("{head}\n{}", rows.join("\n")), @r"
        shop 00c0ffee1234: 1 of 3 done, 1 pending, 1 failed  19s
          schema    DONE          9.0s  d1
          types     FAILED        1.0s  d1  attempt 2  exit code 1
          ui        PENDING             after types (FAILED)
        ");
    }

    #[test]
    fn the_end_says_what_to_do() {
        let (board, _) = story();
        let outcome = board.outcome().unwrap();
        let text = [vec![summary(&board, &outcome, Duration::from_secs(19))], advice(&board, &outcome)].concat();
        insta::assert_snapshot!(text.join("\n"), @r"
        1 of 3 tasks done, 1 failed, 1 blocked for ever
        types failed: exit code 1; `makima task logs types` shows its output, `makima task retry types` tries it again
        ui waits for what did not get done: retry that, or drop the edge with `makima task deps rm ui ...`, or `makima task cancel ui`
        ");
        let end = serde_json::to_string(&Object::new("outcome", End::new(&board, &outcome))).unwrap();
        insta::assert_snapshot!(end, @r#"{"kind":"outcome","status":"FAILED","tasks":3,"done":1,"failed":["types"],"cancelled":[],"blocked":["ui"]}"#);
    }

    #[test]
    fn a_list_that_is_too_long_shows_what_moves() {
        let tasks = [
            task("a", &[], TaskStatus::Done, 1),
            task("b", &[], TaskStatus::Pending, 1),
            task("c", &[], TaskStatus::Running, 1),
            task("d", &[], TaskStatus::Failed, 1),
        ];
        let mut board = Board::default();
        for task in &tasks {
            board.take(task);
        }
        let names = |room| chosen(board.rows(), room).iter().map(|row| row.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(4), ["a", "b", "c", "d"]);
        assert_eq!(names(3), ["c", "d", "b"]);
    }
}
