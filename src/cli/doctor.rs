//! `makima doctor`: looks at what goes wrong most often, one line each, and says what to do. Exit 1 if something fails.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use serde::Serialize;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    Session,
    client::{Client, timed},
    config::{KeyUse, Settings},
    error::{Error, Result},
    fleet,
    output::{Out, clean, pad, span},
    serve, view,
};
use crate::{
    domain::Timestamp,
    runtime::clock,
    wire::pb::{self, DaemonStatus},
};

/// Below this a daemon takes no new work.
const MIN_FREE_BYTES: u64 = 2 << 30;
/// Nor below this part of the disk.
const MIN_FREE_PERCENT: u64 = 5;
/// The oldest git with everything a daemon uses (`git worktree add` with repair, `git merge-tree`).
const MIN_GIT: (u32, u32) = (2, 31);
/// A clock before this has not been set: the first commit of this program.
const EARLIEST: Timestamp = Timestamp::from_secs(1_735_689_600);
/// A difference to the server's clock worth a word.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(10);

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    outcome: Outcome,
    /// What is so.
    detail: String,
    /// What to do; empty when nothing.
    advice: String,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Ok, detail: detail.into(), advice: String::new() }
    }

    fn warn(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Warn, detail: detail.into(), advice: advice.into() }
    }

    fn fail(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Fail, detail: detail.into(), advice: advice.into() }
    }

    fn line(&self) -> String {
        let word = match self.outcome {
            Outcome::Ok => "ok",
            Outcome::Warn => "warn",
            Outcome::Fail => "fail",
        };
        let advice = if self.advice.is_empty() { String::new() } else { format!(": {}", clean(&self.advice)) };
        format!("{}  {}  {}{advice}", pad(word, 4), pad(self.check, 7), clean(&self.detail))
    }
}

/// Looks, and says.
pub async fn run(session: &mut Session) -> Result<()> {
    let Session { settings, out } = session;
    let mut failed = false;
    failed |= say(out, &git(serve::program_says("git", "--version").await))?;
    failed |= say(out, &agents(settings).await)?;
    failed |= say(out, &disk(settings))?;
    let (finding, client) = server(settings).await;
    failed |= say(out, &finding)?;
    failed |= say(out, &key(settings, client.as_ref()).await)?;
    let daemons = match &client {
        Some(client) => fleet::all(client).await.unwrap_or_default(),
        None => Vec::new(),
    };
    if client.is_some() {
        failed |= say(out, &fleet_finding(&daemons))?;
    }
    failed |= say(out, &clock_finding(clock::now(), &daemons))?;
    if failed { Err(Error::Said) } else { Ok(()) }
}

fn say(out: &mut Out, finding: &Finding) -> Result<bool> {
    if out.json {
        out.object(finding)?;
    } else {
        out.line(&finding.line())?;
    }
    Ok(finding.outcome == Outcome::Fail)
}

fn git(said: Option<String>) -> Finding {
    let Some(said) = said else {
        return Finding::fail("git", "git is not found in PATH", "install git");
    };
    match version(&said) {
        Some(version) if version < MIN_GIT => {
            let advice = format!("install git {}.{} or newer", MIN_GIT.0, MIN_GIT.1);
            Finding::warn("git", said.trim(), advice)
        }
        _ => Finding::ok("git", said.trim()),
    }
}

/// `git version 2.43.0` -> (2, 43).
fn version(said: &str) -> Option<(u32, u32)> {
    let word = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

async fn agents(settings: &Settings) -> Finding {
    let found = serve::agents_here(settings).await;
    let names: Vec<String> = found
        .iter()
        .map(|(name, version)| if version.is_empty() { name.clone() } else { format!("{name} {version}") })
        .collect();
    if found.iter().any(|(name, _)| name != "shell") {
        return Finding::ok("agents", names.join(", "));
    }
    let advice = "install a coding agent, such as Claude Code (npm install -g @anthropic-ai/claude-code)";
    Finding::warn(
        "agents",
        if names.is_empty() { "none is installed".to_owned() } else { format!("only {}", names.join(", ")) },
        advice,
    )
}

fn disk(settings: &Settings) -> Finding {
    let dir = match settings.state_home() {
        Ok(dir) => dir,
        Err(error) => return Finding::fail("disk", error.to_string(), ""),
    };
    // The state directory may not be there yet; the disk it will be on is.
    let place = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(place) {
        Ok(stat) => {
            let (free, all) =
                (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize));
            disk_finding(free, all, &dir)
        }
        Err(error) => Finding::warn("disk", format!("cannot look at {}: {error}", place.display()), ""),
    }
}

fn disk_finding(free: u64, all: u64, dir: &Path) -> Finding {
    let percent = free.saturating_mul(100).checked_div(all).unwrap_or_default();
    let gib = |bytes: u64| format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024);
    let detail = format!("{} ({percent} %) free for {}", gib(free), dir.display());
    if free < MIN_FREE_BYTES || percent < MIN_FREE_PERCENT {
        let advice =
            "a daemon here takes no new work: free some space (`makima worktree rm`), or use another --state-dir";
        return Finding::fail("disk", detail, advice);
    }
    Finding::ok("disk", detail)
}

async fn server(settings: &Settings) -> (Finding, Option<Client>) {
    let key = settings.key(KeyUse::Owner).ok();
    let client = match Client::open(&settings.server, key.as_ref(), settings.owner.as_deref()).await {
        Ok(client) => client,
        Err(error) => return (Finding::fail("server", error.to_string(), ""), None),
    };
    let health = HealthClient::new(client.channel()).check(timed(HealthCheckRequest::default())).await;
    let finding = match health.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => Finding::ok("server", format!("{} serves", settings.server)),
        Ok(_) => Finding::fail(
            "server",
            format!("{} does not serve now", settings.server),
            "it is starting or stopping; look at its log",
        ),
        Err(status) => Finding::fail(
            "server",
            format!("{} answers, but not as makima does ({})", settings.server, status.message()),
            "is it another program? name yours with --server",
        ),
    };
    (finding, Some(client))
}

async fn key(settings: &Settings, client: Option<&Client>) -> Finding {
    let key = match settings.key(KeyUse::Owner) {
        Ok(key) => key,
        Err(error) => return Finding::fail("key", error.to_string(), ""),
    };
    if let Some(path) = settings.key_path(KeyUse::Owner)
        && let Ok(metadata) = std::fs::metadata(&path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        let advice = format!("chmod 600 {}", path.display());
        return Finding::warn("key", format!("others on this machine can read {}", path.display()), advice);
    }
    let Some(client) = client else {
        return Finding::ok("key", format!("found in {}; not tried", key.origin));
    };
    let request = timed(pb::ListContractsRequest { page_size: 1, ..pb::ListContractsRequest::default() });
    match client.contracts().list_contracts(request).await {
        Ok(_) => Finding::ok("key", format!("{} is good", key.origin)),
        Err(status) => Finding::fail(
            "key",
            format!("the key in {} is not taken: {}", key.origin, status.message()),
            "name another with --key-file, or make one with `makima key create --kind owner --owner NAME`",
        ),
    }
}

fn fleet_finding(daemons: &[pb::Daemon]) -> Finding {
    let attached = daemons.iter().filter(|daemon| daemon.status() == DaemonStatus::Attached);
    let names: Vec<&str> = attached.map(|daemon| daemon.name.as_str()).collect();
    if names.is_empty() {
        return Finding::warn("daemons", "none is attached, so no task can run", "`makima daemon run` starts one here");
    }
    Finding::ok("daemons", format!("attached: {}", names.join(", ")))
}

/// The protocol has no clock of its own; what the server last heard of attached daemons is one, if a coarse one.
fn clock_finding(now: Timestamp, daemons: &[pb::Daemon]) -> Finding {
    if now < EARLIEST {
        return Finding::fail(
            "clock",
            format!("the clock says {}", view::rfc3339(now)),
            "set it, or start a time service",
        );
    }
    let servers = daemons.iter().filter_map(|daemon| view::time(daemon.last_seen_time.as_ref())).max();
    match servers {
        Some(server) if server.since(now) > MAX_CLOCK_DIFFERENCE => Finding::warn(
            "clock",
            format!("the server's clock is {} ahead of this one", span(server.since(now))),
            "start a time service on both",
        ),
        _ => Finding::ok("clock", view::rfc3339(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_say_what_to_do() {
        let seen = |seconds| pb::Daemon {
            name: "d1".to_owned(),
            status: DaemonStatus::Attached.into(),
            last_seen_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..pb::Daemon::default()
        };
        let now = Timestamp::from_secs(1_800_000_000);
        let findings = [
            git(Some("git version 2.43.0\n".to_owned())),
            git(Some("git version 2.20.1".to_owned())),
            git(None),
            disk_finding(100 << 30, 400 << 30, Path::new("/state")),
            disk_finding(1_600 << 20, 400 << 30, Path::new("/state")),
            fleet_finding(&[seen(0)]),
            fleet_finding(&[]),
            clock_finding(now, &[seen(1_799_999_990)]),
            clock_finding(now, &[seen(1_800_000_060)]),
            clock_finding(Timestamp::from_secs(0), &[]),
        ];
        insta::assert_snapshot!(findings.iter().map(Finding::line).collect::<Vec<_>>().join("\n"), @r"
        ok    git      git version 2.43.0
        warn  git      git version 2.20.1: install git 2.31 or newer
        fail  git      git is not found in PATH: install git
        ok    disk     100.0 GiB (25 %) free for /state
        fail  disk     1.5 GiB (0 %) free for /state: a daemon here takes no new work: free some space (`makima worktree rm`), or use another --state-dir
        ok    daemons  attached: d1
        warn  daemons  none is attached, so no task can run: `makima daemon run` starts one here
        ok    clock    2027-01-15T08:00:00.000000Z
        warn  clock    the server's clock is 1m00s ahead of this one: start a time service on both
        fail  clock    the clock says 1970-01-01T00:00:00.000000Z: set it, or start a time service
        ");
    }
}
