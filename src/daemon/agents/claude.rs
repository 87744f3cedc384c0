//! Claude Code's `--output-format stream-json`: one JSON event a line, with whatever its helpers print in between.
//!
//! What decides: the `result` event, by `is_error` (its `subtype` says "success" also beside an API error). Without one the
//! agent crashed, however it exited. Limits and refused accounts come from the structured fields first; words count only in a
//! result that is an error, since a model may quote any words it likes.

use serde::Deserialize;
use serde_json::Value;

use super::{MAX_MESSAGE, clean, how_it_ended, lines::Lines, with_output};
use crate::{
    daemon::attempt_dir::ExitRecord,
    domain::{
        Timestamp,
        attempt::{Failure, FailureClass, Usage},
        report::Progress,
    },
};

/// Bytes of lines that are no events, kept for a crash's message.
const MAX_NOISE: usize = 4 * 1024;
/// Bytes of what the agent does right now.
const MAX_ACTIVITY: usize = 200;
/// Times above this are in milliseconds: as seconds they would be some thirty thousand years away.
const MAX_SECONDS: i64 = 1_000_000_000_000;

/// The model of messages that are the CLI's own.
const SYNTHETIC: &str = "<synthetic>";

/// What the events add up to.
#[derive(Debug, Default)]
pub struct Claude {
    lines: Lines,
    seen: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    progress: Progress,
    activity: String,
    /// Usage of whole messages, and of the one that is being written, which is told with each of its parts.
    before: Usage,
    message_id: String,
    /// The account is at its limit, maybe until then.
    limit: Option<Option<Timestamp>>,
    /// What the API complained of: `authentication_failed`, `rate_limit`, ...
    error: String,
    result: Option<End>,
    /// The model has said something in this run.
    answered: bool,
    noise: String,
}

#[derive(Debug)]
struct End {
    is_error: bool,
    subtype: String,
    status: Option<i64>,
    text: String,
}

/// Enough of an event to know whether to read on.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
}

impl Claude {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.lines.feed(bytes, |line| self.seen.line(line));
    }

    pub fn progress(&self) -> &Progress {
        &self.seen.progress
    }

    pub fn activity(&self) -> &str {
        &self.seen.activity
    }

    pub fn finish(&mut self, exit: &ExitRecord) -> Result<(), Failure> {
        self.lines.finish(|line| self.seen.line(line));
        self.seen.outcome(exit)
    }

    /// The session could not be gone on with: it was not found, or the model's server does not take the conversation (too
    /// long, or damaged), and the model has not said a word. Asked after the end.
    pub fn session_rejected(&self) -> bool {
        self.seen.session_rejected()
    }
}

impl Seen {
    fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        let Ok(head) = serde_json::from_str::<Head>(text) else {
            self.noise(text);
            return;
        };
        // Tool results can be large and say nothing here.
        if !matches!(&*head.kind, "system" | "assistant" | "rate_limit_event" | "result") {
            return;
        }
        let Ok(event) = serde_json::from_str::<Value>(text) else { return };
        if let Some(id) = event["session_id"].as_str().filter(|id| !id.is_empty()) {
            self.progress.agent_session_id = clean(id, MAX_ACTIVITY);
        }
        match &*head.kind {
            "assistant" => self.assistant(&event),
            "rate_limit_event" => self.rate_limit(&event["rate_limit_info"]),
            "result" => self.result(&event),
            _ => {}
        }
    }

    fn noise(&mut self, text: &str) {
        if !text.is_empty() {
            self.noise.push_str(crate::daemon::process::last_bytes(text, MAX_NOISE));
            self.noise.push('\n');
            self.noise = crate::daemon::process::last_bytes(&self.noise, MAX_NOISE).to_owned();
        }
    }

    fn assistant(&mut self, event: &Value) {
        let message = &event["message"];
        if let Some(error) = event["error"].as_str() {
            self.error = clean(error, MAX_ACTIVITY);
        } else {
            self.error.clear();
            // What the CLI says in the model's place is no answer.
            self.answered |= message["model"] != SYNTHETIC;
        }
        let id = message["id"].as_str().unwrap_or_default();
        if id != self.message_id {
            self.before = self.progress.usage.clone();
            self.message_id = id.to_owned();
            self.before.turns += u32::from(is_main(event));
        }
        self.progress.usage = self.before.plus(&usage(&message["usage"]));
        let blocks = message["content"].as_array().map(Vec::as_slice).unwrap_or_default();
        let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
        // What a subagent says is for the agent.
        if !texts.is_empty() && is_main(event) {
            self.progress.last_message = clean(&texts.join("\n"), MAX_MESSAGE);
        }
        if let Some(tool) = blocks.iter().rev().find(|block| block["type"] == "tool_use") {
            self.activity = activity(tool);
        }
    }

    fn rate_limit(&mut self, info: &Value) {
        let overage = info["overageStatus"].as_str();
        match info["status"].as_str() {
            Some("rejected") if !matches!(overage, Some("allowed" | "allowed_warning")) => {
                self.limit = Some(time(&info["resetsAt"]).or_else(|| time(&info["overageResetsAt"])));
            }
            Some(_) => self.limit = None,
            None => {}
        }
    }

    fn result(&mut self, event: &Value) {
        let subtype = event["subtype"].as_str().unwrap_or_default().to_owned();
        let mut text = event["result"].as_str().unwrap_or_default().to_owned();
        if text.is_empty() {
            let errors = event["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
            text = errors.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ");
        }
        if event["usage"].is_object() {
            self.progress.usage =
                Usage { cost_micro_usd: self.progress.usage.cost_micro_usd, ..usage(&event["usage"]) };
        }
        self.progress.usage.turns = event["num_turns"]
            .as_u64()
            .map_or(self.progress.usage.turns, |turns| u32::try_from(turns).unwrap_or(u32::MAX));
        if let Some(cost) = event["total_cost_usd"].as_f64().filter(|cost| *cost >= 0.0) {
            // The conversion stops at the largest number there is.
            #[expect(clippy::cast_possible_truncation, reason = "a cost beyond nine trillion dollars is cut to that")]
            let micro = (cost * 1e6).round() as i64;
            self.progress.usage.cost_micro_usd = micro;
        }
        if !text.is_empty() {
            self.progress.last_message = clean(&text, MAX_MESSAGE);
        }
        let is_error = event["is_error"].as_bool().unwrap_or(false) || subtype.starts_with("error");
        self.result = Some(End { is_error, subtype, status: event["api_error_status"].as_i64(), text });
        self.before = self.progress.usage.clone();
    }

    // === the end ===

    fn outcome(&self, exit: &ExitRecord) -> Result<(), Failure> {
        match &self.result {
            Some(end) if !end.is_error => Ok(()),
            Some(end) => Err(self.failure(end)),
            None => Err(self.crash(exit)),
        }
    }

    fn failure(&self, end: &End) -> Failure {
        let text = clean(&end.text, MAX_MESSAGE / 2);
        let said = match (text.is_empty(), end.subtype.as_str()) {
            (false, "success" | "") => text,
            (false, subtype) => format!("{subtype}: {text}"),
            (true, subtype) => subtype.to_owned(),
        };
        let words_limit = limit_in_words(&end.text);
        if end.status == Some(429) || self.limit.is_some() || self.error == "rate_limit" || words_limit.is_some() {
            let reset = self.limit.flatten().or(words_limit.flatten());
            return Failure { class: FailureClass::UsageLimit, message: format!("usage limit: {said}"), reset };
        }
        if matches!(end.status, Some(401 | 403)) || is_account_error(&self.error) || is_account_text(&end.text) {
            let message = format!("the agent's account was not accepted: {said}");
            return Failure::new(FailureClass::Authentication, message);
        }
        if end.status.is_some_and(|status| status >= 500) || self.error == "server_error" {
            return Failure::new(FailureClass::AgentCrashed, format!("the model's server failed: {said}"));
        }
        Failure::new(FailureClass::AgentError, format!("the agent failed: {said}"))
    }

    fn session_rejected(&self) -> bool {
        if self.answered {
            return false;
        }
        match &self.result {
            Some(end) => end.is_error && (matches!(end.status, Some(400 | 413)) || is_no_session(&end.text)),
            None => self.noise.lines().any(is_no_session),
        }
    }

    fn crash(&self, exit: &ExitRecord) -> Failure {
        if let Some(reset) = self.limit {
            let message = "usage limit: the agent ended at the limit of its account";
            return Failure { class: FailureClass::UsageLimit, message: message.into(), reset };
        }
        let what = format!("{} before it told a result", how_it_ended(exit));
        let message = with_output(&what, &self.noise);
        if is_account_error(&self.error) || is_account_text(self.noise.trim()) {
            return Failure::new(FailureClass::Authentication, message);
        }
        Failure::new(FailureClass::AgentCrashed, message)
    }
}

fn is_main(event: &Value) -> bool {
    event["parent_tool_use_id"].is_null()
}

fn usage(value: &Value) -> Usage {
    let tokens = |name: &str| value[name].as_i64().unwrap_or_default().max(0);
    Usage {
        input_tokens: tokens("input_tokens"),
        output_tokens: tokens("output_tokens"),
        cache_read_tokens: tokens("cache_read_input_tokens"),
        cache_write_tokens: tokens("cache_creation_input_tokens"),
        cost_micro_usd: 0,
        turns: 0,
    }
}

/// `Bash: cargo test`, `Edit: src/main.rs`.
fn activity(tool: &Value) -> String {
    let name = tool["name"].as_str().unwrap_or_default();
    let input = &tool["input"];
    let about = ["command", "file_path", "path", "pattern", "url", "query", "description"]
        .iter()
        .find_map(|field| input[field].as_str())
        .and_then(|text| text.lines().next())
        .unwrap_or_default();
    clean(&if about.is_empty() { name.to_owned() } else { format!("{name}: {about}") }, MAX_ACTIVITY)
}

fn time(value: &Value) -> Option<Timestamp> {
    let number = value.as_i64().filter(|number| *number > 0)?;
    Some(Timestamp::from_secs(if number > MAX_SECONDS { number / 1_000 } else { number }))
}

/// What versions without `rate_limit_event` say; the oldest with the time of the reset behind a bar.
fn limit_in_words(text: &str) -> Option<Option<Timestamp>> {
    if let Some((_, rest)) = text.split_once("usage limit reached|") {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        return Some(digits.parse().ok().and_then(|number: i64| time(&number.into())));
    }
    let text = text.trim_start().to_lowercase().replace('’', "'");
    let begins = ["you've hit your", "claude ai usage limit reached", "5-hour limit reached", "weekly limit reached"];
    begins.iter().any(|words| text.starts_with(words)).then_some(None)
}

fn is_no_session(text: &str) -> bool {
    let begins = ["No conversation found", "Failed to resume session", "Error: --resume requires a valid session"];
    begins.iter().any(|words| text.starts_with(words))
}

fn is_account_error(error: &str) -> bool {
    matches!(error, "authentication_failed" | "billing_error" | "oauth_org_not_allowed")
}

fn is_account_text(text: &str) -> bool {
    let begins = ["Invalid API key", "Not logged in", "Failed to authenticate", "Credit balance is too low"];
    begins.iter().any(|words| text.starts_with(words)) || text.contains("Please run /login")
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{exit, exited},
        *,
    };
    use crate::daemon::attempt_dir::EndReason;

    const SESSION: &str = "3f2c4a56-8a3e-4a5b-9d0f-0123456789ab";

    fn run(lines: &[String]) -> Claude {
        let mut claude = Claude::default();
        let all = lines.join("\n");
        // In pieces that respect nothing.
        for piece in all.as_bytes().chunks(7) {
            claude.feed(piece);
        }
        claude
    }

    fn init() -> String {
        format!(
            r#"{{"type":"system","subtype":"init","cwd":"/w","session_id":"{SESSION}","tools":["Bash"],"model":"m","permissionMode":"bypassPermissions","apiKeySource":"ANTHROPIC_API_KEY","claude_code_version":"2.1.197"}}"#
        )
    }

    fn assistant(id: &str, content: &str, output_tokens: u32) -> String {
        format!(
            r#"{{"type":"assistant","message":{{"id":"{id}","role":"assistant","content":[{content}],"usage":{{"input_tokens":10,"cache_creation_input_tokens":3,"cache_read_input_tokens":5,"output_tokens":{output_tokens}}}}},"parent_tool_use_id":null,"session_id":"{SESSION}"}}"#
        )
    }

    fn result(rest: &str) -> String {
        format!(
            r#"{{"type":"result","duration_ms":1200,"num_turns":2,"session_id":"{SESSION}","total_cost_usd":0.0123456,"usage":{{"input_tokens":20,"cache_creation_input_tokens":6,"cache_read_input_tokens":10,"output_tokens":9}},{rest}}}"#
        )
    }

    /// A session as it is recorded, with what helpers print in between: everything is understood, on the way and at the end.
    #[test]
    fn a_session_is_understood() {
        let mut lines = vec![
            "(node:12) Warning: something".to_owned(),
            init(),
            assistant("msg_1", r#"{"type":"text","text":"I will write it."}"#, 4),
            assistant("msg_1", r#"{"type":"tool_use","id":"t","name":"Bash","input":{"command":"echo hi > hi\nls"}}"#, 4),
            r#"{"type":"user","message":{"role":"user","content":[{"type":"tool_result","content":"ok"}]}}"#.to_owned(),
            "\u{0}\u{1} not json {".to_owned(),
            r#"{"type":"assistant","message":{"id":"msg_s","content":[{"type":"text","text":"I am a subagent"}],"usage":{}},"parent_tool_use_id":"t"}"#.to_owned(),
        ];
        let claude = run(&lines);
        assert_eq!(claude.activity(), "Bash: echo hi > hi");
        let usage = Usage {
            input_tokens: 10,
            output_tokens: 4,
            cache_read_tokens: 5,
            cache_write_tokens: 3,
            ..Usage::default()
        };
        let expected = Progress {
            agent_session_id: SESSION.into(),
            usage: Usage { turns: 1, ..usage },
            last_message: "I will write it.".into(),
        };
        assert_eq!(*run(&[lines.clone(), vec![String::new()]].concat()).progress(), expected);
        lines.push(assistant("msg_2", r#"{"type":"text","text":"Done."}"#, 5));
        lines.push(result(r#""subtype":"success","is_error":false,"result":"All done.\u0000""#));
        // The last line need not have an end.
        let mut claude = run(&lines);
        assert_eq!(claude.finish(&exited(0)), Ok(()));
        let expected = Progress {
            agent_session_id: SESSION.into(),
            usage: Usage {
                input_tokens: 20,
                output_tokens: 9,
                cache_read_tokens: 10,
                cache_write_tokens: 6,
                cost_micro_usd: 12_346,
                turns: 2,
            },
            last_message: "All done.\u{fffd}".into(),
        };
        assert_eq!(*claude.progress(), expected);
    }

    fn failure(lines: &[String], code: i32) -> Failure {
        run(&[vec![init()], lines.to_vec()].concat()).finish(&exited(code)).unwrap_err()
    }

    /// `is_error` decides, and what is around it says of which class it is.
    #[test]
    fn failures_have_classes() {
        use FailureClass::{AgentCrashed, AgentError, Authentication, UsageLimit};
        let error = |rest: &str| result(&format!(r#""is_error":true,{rest}"#));
        for (rest, class) in [
            (r#""subtype":"success","api_error_status":429,"result":"API Error: 429""#, UsageLimit),
            (r#""subtype":"success","result":"You've hit your limit · resets 7pm (UTC)""#, UsageLimit),
            (r#""subtype":"success","api_error_status":400,"result":"API Error: 400""#, AgentError),
            (
                r#""subtype":"success","api_error_status":401,"result":"Invalid API key · Please run /login""#,
                Authentication,
            ),
            (r#""subtype":"success","api_error_status":403,"result":"no""#, Authentication),
            (r#""subtype":"success","api_error_status":529,"result":"overloaded""#, AgentCrashed),
            (r#""subtype":"error_max_turns""#, AgentError),
            (r#""subtype":"error_during_execution","errors":["one","two"]"#, AgentError),
        ] {
            assert_eq!(failure(&[error(rest)], 1).class, class, "{rest}");
        }
        let message = failure(&[error(r#""subtype":"error_during_execution","errors":["one","two"]"#)], 1).message;
        assert_eq!(message, "the agent failed: error_during_execution: one; two");
        let refused = r#"{"type":"assistant","message":{"id":"x","content":[]},"error":"authentication_failed"}"#;
        let end = error(r#""subtype":"success","result":"please log in""#);
        assert_eq!(failure(&[refused.to_owned(), end], 1).class, Authentication);
        let turns = result(r#""subtype":"error_max_turns","is_error":false"#);
        assert_eq!(failure(&[turns], 0).class, AgentError);
    }

    /// A limit says when it resets; a warning is no limit; a model that quotes the words is not at one.
    #[test]
    fn limits_have_resets() {
        let event = |status: &str| {
            format!(
                r#"{{"type":"rate_limit_event","rate_limit_info":{{"status":"{status}","resetsAt":1767225600,"rateLimitType":"five_hour"}}}}"#
            )
        };
        let end = result(r#""subtype":"success","is_error":true,"result":"limit""#);
        let reset = Some(Timestamp::from_secs(1_767_225_600));
        let limit = failure(&[event("rejected"), end.clone()], 1);
        assert_eq!((limit.class, limit.reset), (FailureClass::UsageLimit, reset));
        let limit = failure(&[event("rejected")], 1);
        assert_eq!((limit.class, limit.reset), (FailureClass::UsageLimit, reset));
        assert_eq!(failure(&[event("allowed_warning"), end.clone()], 1).class, FailureClass::AgentError);
        assert_eq!(failure(&[event("rejected"), event("allowed"), end], 1).class, FailureClass::AgentError);
        let old = result(r#""subtype":"success","is_error":true,"result":"Claude AI usage limit reached|1767225600""#);
        assert_eq!(failure(&[old], 1).reset, reset);
        let quoted = result(r#""subtype":"success","is_error":false,"result":"You've hit your limit, says the log""#);
        assert_eq!(run(&[event("rejected"), quoted]).finish(&exited(0)), Ok(()));
    }

    /// Without a result nothing is a success, and what was printed instead is told.
    #[test]
    fn no_result_is_a_crash() {
        let crash = failure(&["Error: cannot find module".to_owned()], 0);
        assert_eq!(crash.class, FailureClass::AgentCrashed);
        assert!(
            crash
                .message
                .ends_with("exit code 0 before it told a result; its output ends with:\nError: cannot find module")
        );
        let killed = run(&[init()]).finish(&exit(EndReason::Exited, None, 9)).unwrap_err();
        assert!(killed.message.contains("out of memory"), "{}", killed.message);
        let login = failure(&["Invalid API key · Please run /login".to_owned()], 1);
        assert_eq!(login.class, FailureClass::Authentication);
    }

    /// What Claude Code 2.1.197 printed for a session that is not there, one whose conversation the model's server refused, and
    /// one that grew too long: nobody has worked. An agent that worked and failed then has not lost its session, nor has
    /// one whose account or server failed.
    #[test]
    fn a_session_that_cannot_be_resumed_is_known() {
        let rejected = |lines: &[String]| {
            let mut claude = run(lines);
            claude.finish(&exited(1)).unwrap_err();
            claude.session_rejected()
        };
        let said = |model: &str, rest: &str| {
            let text = r#"{"type":"text","text":"API Error"}"#;
            format!(r#"{{"type":"assistant","message":{{"id":"i","model":"{model}","content":[{text}]}}{rest}}}"#)
        };
        let own = said(SYNTHETIC, r#","error":"invalid_request""#);
        let error = |rest: &str| result(&format!(r#""is_error":true,{rest}"#));
        let gone = error(
            r#""subtype":"error_during_execution","errors":["No conversation found with session ID: 0198c2a4-1111-7222-8333-444455556666"]"#,
        );
        let refused = error(
            r#""subtype":"success","api_error_status":400,"result":"API Error: 400 due to tool use concurrency issues.""#,
        );
        let long = error(
            r#""subtype":"success","api_error_status":400,"result":"Prompt is too long","terminal_reason":"prompt_too_long""#,
        );
        assert!(rejected(std::slice::from_ref(&gone)));
        assert!(rejected(&["No conversation found with session ID: x".into()]));
        assert!(rejected(&[init(), own.clone(), refused.clone()]));
        assert!(rejected(&[init(), own.clone(), long]));
        let worked = said("m", "");
        assert!(!rejected(&[init(), worked.clone(), own, refused]));
        assert!(!rejected(&[worked, "No conversation found with session ID: x".into()]));
        assert!(!rejected(&[init(), error(r#""subtype":"success","api_error_status":429,"result":"limit""#)]));
        assert!(!rejected(&[init(), error(r#""subtype":"success","api_error_status":529,"result":"overloaded""#)]));
        assert!(!rejected(&["The log says: No conversation found".into()]));
        let mut done =
            run(&[init(), result(r#""subtype":"success","is_error":false,"result":"No conversation found""#)]);
        assert_eq!((done.finish(&exited(0)), done.session_rejected()), (Ok(()), false));
    }

    /// Bad UTF-8 in an event costs its characters, not the event; a message is cut between characters.
    #[test]
    fn bad_text_is_survived() {
        let mut claude = Claude::default();
        claude.feed(b"{\"type\":\"assistant\",\"message\":{\"id\":\"1\",\"content\":[{\"type\":\"text\",\"text\":\"a\xff\xfeb\"}]}}\n");
        assert_eq!(claude.progress().last_message, "a\u{fffd}\u{fffd}b");
        let long = "é".repeat(MAX_MESSAGE);
        claude.feed(format!("{}\n", assistant("2", &format!(r#"{{"type":"text","text":"x{long}"}}"#), 1)).as_bytes());
        assert_eq!(claude.progress().last_message.len(), MAX_MESSAGE - 1);
        claude.feed(
            b"{\"type\":\"assistant\",\"message\":5}\n{\"type\":\"result\",\"usage\":\"x\",\"num_turns\":-1}\n[1]\n",
        );
        assert_eq!(claude.finish(&exited(0)), Ok(()));
    }
}
