//! Checking a request field by field, going on after the first fault, so that a caller learns of all of them at once.

use std::ops::RangeInclusive;

use prost::Message;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    common::{self, Invalid, shown},
    status::{ApiError, ApiResult, Reason, Violation},
};

/// Bytes of a request id.
pub const MAX_REQUEST_ID_BYTES: usize = 128;
/// Bytes of a reason that somebody gives for a hold or a cancellation.
pub const MAX_REASON_BYTES: usize = 1_000;
/// Bytes of a repository's name: as long as a path may be.
pub const MAX_REPOSITORY_BYTES: usize = 4_096;
/// Bytes of a branch, tag or commit: as long as a file name may be.
pub const MAX_REVISION_BYTES: usize = 255;
/// Violations remembered; a request with more is wrong enough.
const MAX_VIOLATIONS: usize = 10_000;

/// The schemes of repository that git may be given: others run helpers of their own (`ext::` runs any command).
const REPOSITORY_SCHEMES: [&str; 5] = ["https://", "http://", "ssh://", "git://", "file://"];

/// What is wrong with a request so far.
#[derive(Debug, Default)]
pub struct Check {
    violations: Vec<Violation>,
    unserved: Vec<String>,
}

impl Check {
    /// Nothing is wrong yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// This field is wrong.
    pub fn violation(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(Violation::new(field, description));
        }
    }

    /// The value, or its default and a violation.
    pub fn take<T: Default>(&mut self, value: Result<T, Invalid>) -> T {
        value.unwrap_or_else(|invalid| {
            self.violation(invalid.field, invalid.problem);
            T::default()
        })
    }

    /// An id that must be there.
    pub fn id<T: From<Uuid>>(&mut self, field: &str, text: &str) -> T {
        common::id(field, text).unwrap_or_else(|invalid| {
            self.violation(invalid.field, invalid.problem);
            T::from(Uuid::nil())
        })
    }

    /// An id that may be absent.
    pub fn optional_id<T: From<Uuid>>(&mut self, field: &str, text: &str) -> Option<T> {
        self.take(common::optional_id(field, text))
    }

    /// A field that exists and is not served yet: it may not be set.
    pub fn unserved(&mut self, field: impl Into<String>, is_set: bool) {
        if is_set && self.unserved.len() < MAX_VIOLATIONS {
            self.unserved.push(field.into());
        }
    }

    /// Text of many lines: no NUL, which neither database nor an argument list can hold.
    pub fn text(&mut self, field: &str, text: String, max_bytes: usize) -> String {
        if text.len() > max_bytes {
            self.violation(field, format!("is {} bytes long; at most {max_bytes} are taken", text.len()));
        } else if text.contains('\0') {
            self.violation(field, "holds a NUL character");
        }
        text
    }

    /// Text of one line.
    pub fn line(&mut self, field: &str, text: String, max_bytes: usize) -> String {
        if text.len() <= max_bytes && !text.contains('\0') && text.chars().any(char::is_control) {
            self.violation(field, "holds a control character or line break");
        }
        self.text(field, text, max_bytes)
    }

    /// Text that must be there.
    pub fn required(&mut self, field: &str, text: &str) {
        if text.trim().is_empty() {
            self.violation(field, "is required");
        }
    }

    /// A word: letters, digits and a few signs, so that it can stand in a command line and a file name.
    pub fn word(&mut self, field: &str, text: &str, max_bytes: usize) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:=@+".contains(c);
        if text.is_empty() {
            self.violation(field, "is empty");
        } else if text.len() > max_bytes {
            self.violation(field, format!("is {} bytes long; at most {max_bytes} are taken", text.len()));
        } else if !text.chars().all(plain) || text.starts_with('-') {
            let shown = shown(text);
            self.violation(
                field,
                format!("`{shown}` is not a word: letters, digits and . _ - / : = @ +, not first `-`"),
            );
        }
    }

    /// A number within limits.
    pub fn range<T: PartialOrd + Copy + std::fmt::Display>(
        &mut self,
        field: &str,
        value: T,
        range: RangeInclusive<T>,
    ) -> T {
        if !range.contains(&value) {
            self.violation(field, format!("is {value}; it must be {} to {}", range.start(), range.end()));
        }
        value
    }

    /// A repository: a URL of a kind that only fetches, `user@host:path`, or an absolute path. May be empty.
    pub fn repository(&mut self, field: &str, text: String) -> String {
        if !text.is_empty() && text.len() <= MAX_REPOSITORY_BYTES && !is_repository(&text) {
            let shown = shown(&text);
            self.violation(
                field,
                format!(
                    "`{shown}` is neither an absolute path nor a URL (https, http, ssh, git, file, or user@host:path)"
                ),
            );
        }
        self.line(field, text, MAX_REPOSITORY_BYTES)
    }

    /// A branch, tag or commit, by the rules that git has for names. May be empty.
    pub fn revision(&mut self, field: &str, text: String) -> String {
        if !text.is_empty() && text.len() <= MAX_REVISION_BYTES && !is_revision(&text) {
            let shown = shown(&text);
            self.violation(field, format!("`{shown}` is not the name of a branch, tag or commit"));
        }
        self.line(field, text, MAX_REVISION_BYTES)
    }

    /// A client-made id that makes a write repeatable; `None` when there is none.
    pub fn request_id(&mut self, text: String) -> Option<String> {
        let text = self.line("request_id", text, MAX_REQUEST_ID_BYTES);
        (!text.is_empty()).then_some(text)
    }

    /// Why somebody wants something.
    pub fn reason(&mut self, text: String) -> String {
        self.text("reason", text, MAX_REASON_BYTES)
    }

    /// The version that an etag stands for; `None` when there is none.
    pub fn etag(&mut self, text: &str) -> Option<i64> {
        if text.is_empty() {
            return None;
        }
        let version = text.strip_prefix('v').and_then(|version| version.parse().ok());
        if version.is_none() {
            self.violation("etag", format!("`{}` is not an etag of this server; read again", shown(text)));
        }
        version
    }

    /// Some field is wrong already.
    pub fn is_faulty(&self) -> bool {
        !self.violations.is_empty()
    }

    /// Something is wrong with this field already.
    pub fn is_violated(&self, field: &str) -> bool {
        self.violations.iter().any(|violation| violation.field == field)
    }

    /// Everything was right, or this is what was not.
    pub fn finish(self) -> ApiResult<()> {
        if !self.unserved.is_empty() {
            let mut violations: Vec<_> =
                self.unserved.iter().map(|field| Violation::new(field, "is not served yet; leave it out")).collect();
            violations.extend(self.violations);
            return Err(ApiError::violating(Reason::NotServedYet, violations));
        }
        if self.violations.is_empty() { Ok(()) } else { Err(ApiError::invalid(self.violations)) }
    }
}

/// The etag of a version.
pub fn etag(version: i64) -> String {
    format!("v{version}")
}

/// What tells one request from another: its method and all that it says. Our messages have no maps, so the same request
/// always encodes to the same bytes.
pub fn fingerprint(method: &str, request: &impl Message) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(method.as_bytes());
    hash.update([0]);
    hash.update(request.encode_to_vec());
    hash.finalize().into()
}

fn is_repository(text: &str) -> bool {
    if text.starts_with('-') || text.chars().any(|c| c.is_control()) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    if let Some(scheme) = REPOSITORY_SCHEMES.iter().find(|scheme| text.starts_with(*scheme)) {
        let rest = &text[scheme.len()..];
        // A host that begins with `-` has been taken for an option of ssh.
        return !rest.is_empty() && !rest.starts_with('-') && !text.contains(char::is_whitespace);
    }
    // user@host:path, as git and ssh have it.
    match text.split_once(':') {
        Some((host, path)) => {
            !path.is_empty()
                && !path.starts_with(':')
                && !path.starts_with("//")
                && host.contains('@')
                && !host.contains('/')
                && !host.contains("@-")
                && !text.contains(char::is_whitespace)
        }
        None => false,
    }
}

/// `git check-ref-format --allow-onelevel`, with what would be an option refused.
fn is_revision(text: &str) -> bool {
    !text.starts_with(['-', '/', '.'])
        && !text.ends_with(['/', '.'])
        && !text.ends_with(".lock")
        && text != "@"
        && !["..", "@{", "//", "/."].iter().any(|bad| text.contains(bad))
        && !text.chars().any(|c| c.is_control() || " ~^:?*[\\".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pb;

    #[test]
    fn repositories_are_urls_that_fetch_or_absolute_paths() {
        for good in [
            "/srv/git/repo",
            "https://example.com/a/b.git",
            "ssh://git@example.com:22/a.git",
            "git@example.com:a/b.git",
            "file:///srv/repo",
        ] {
            assert!(is_repository(good), "{good}");
        }
        for bad in [
            "repo",
            "./repo",
            "../x",
            "ext::sh -c id",
            "--upload-pack=id",
            "ftp://example.com/x",
            "ssh://-oProxyCommand=id/x",
            "git@-oProxyCommand=id:x",
            "https://",
            "git@h:",
            "https://a b",
            "a\nb",
            "git@h::x",
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
    }

    #[test]
    fn revisions_follow_git() {
        for good in ["main", "feature/x", "v1.2.3", "0123456789abcdef0123456789abcdef01234567", "refs/heads/main"] {
            assert!(is_revision(good), "{good}");
        }
        for bad in ["-b", "a..b", "a b", "x~1", "x^", "a:b", "x.lock", "/a", "a/", "@", "a@{1}", "a//b", "a/.b"] {
            assert!(!is_revision(bad), "{bad}");
        }
    }

    #[test]
    fn unserved_fields_are_named_with_all_else() {
        let mut check = Check::new();
        check.required("name", " ");
        check.unserved("merge_mode", true);
        check.unserved("target_branch", false);
        let error = check.finish().unwrap_err();
        assert_eq!(error.reason(), Reason::NotServedYet);
        assert_eq!(error.message(), "merge_mode is not served yet; leave it out; name is required");
    }

    #[test]
    fn a_fingerprint_tells_methods_and_bodies_apart() {
        let one = pb::RetryTaskRequest { request_id: "a".into(), task_id: "t".into(), ..Default::default() };
        let other = pb::RetryTaskRequest { request_id: "a".into(), task_id: "u".into(), ..Default::default() };
        assert_eq!(fingerprint("Retry", &one), fingerprint("Retry", &one.clone()));
        assert_ne!(fingerprint("Retry", &one), fingerprint("Retry", &other));
        assert_ne!(fingerprint("Retry", &one), fingerprint("Dismiss", &one));
    }

    #[test]
    fn an_etag_comes_back_as_its_version() {
        let mut check = Check::new();
        assert_eq!(check.etag(&etag(17)), Some(17));
        assert_eq!(check.etag(""), None);
        assert_eq!(check.etag("17"), None);
        assert_eq!(check.finish().unwrap_err().violations().len(), 1);
    }
}
