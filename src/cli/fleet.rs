//! `makima daemon list|get|drain|undrain`: the daemons of an owner as the server knows them.

use std::time::Duration;

use clap::Args;

use super::{
    Session,
    client::{Client, request_id, timed},
    config::KeyUse,
    error::Result,
    output::{Table, ago, clean, fields, note},
    task::described_attempt,
    view,
};
use crate::{domain::Timestamp, runtime::clock, wire::pb};

/// Read at once.
const PAGE: u32 = 1_000;
/// Lost daemons that nobody has heard of for so long are not listed unless all are asked for: machines come and go.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// `daemon list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Also those that were lost more than a week ago
    #[arg(long)]
    all: bool,
}

/// `daemon list`.
pub async fn list(session: &mut Session, args: &ListArgs) -> Result<()> {
    let client = session.client(KeyUse::Owner).await?;
    let mut daemons = all(&client).await?;
    let now = clock::now();
    let count = daemons.len();
    daemons.retain(|daemon| args.all || !is_forgotten(daemon, now));
    let left_out = match count - daemons.len() {
        0 => None,
        hidden => Some(format!("left out, as lost more than a week ago: {hidden}; --all shows them")),
    };
    if session.out.json {
        daemons.iter().try_for_each(|daemon| session.out.object(&view::Daemon::from(daemon)))?;
        left_out.iter().for_each(|text| note(text));
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "STATUS", "SLOTS", "LABELS", "AGENTS", "VERSION", "SEEN", "HOST"]);
    for daemon in &daemons {
        table.row(&[
            daemon.name.clone(),
            status_word(daemon),
            format!("{}/{}", daemon.live_attempts, daemon.slots),
            daemon.labels.join(","),
            agents(daemon),
            daemon.version.clone(),
            ago(now, view::time(daemon.last_seen_time.as_ref())),
            daemon.hostname.clone(),
        ]);
    }
    match left_out {
        None => session.out.table(&table, "no daemons yet: `makima daemon run` starts one on this machine"),
        Some(text) => {
            session.out.table(&table, "")?;
            note(&text);
            Ok(())
        }
    }
}

/// It is lost, has nothing, and was last heard of long ago.
fn is_forgotten(daemon: &pb::Daemon, now: Timestamp) -> bool {
    let heard = view::time(daemon.last_seen_time.as_ref());
    daemon.status() == pb::DaemonStatus::Lost
        && daemon.live_attempts == 0
        && heard.is_none_or(|heard| now.since(heard) > FORGOTTEN)
}

/// `daemon get`.
pub async fn get(session: &mut Session, daemon: String) -> Result<()> {
    let client = session.client(KeyUse::Owner).await?;
    let answer = client.daemons().get_daemon(timed(pb::GetDaemonRequest { daemon })).await;
    let answer = answer.map_err(client.refused("read the daemon"))?.into_inner();
    if session.out.json {
        return session.out.object(&view::DaemonDetails::from(&answer));
    }
    session.out.bytes(described(&answer, clock::now()).as_bytes())
}

/// `daemon drain`.
pub async fn drain(session: &mut Session, daemon: String) -> Result<()> {
    let client = session.client(KeyUse::Owner).await?;
    let request = pb::DrainDaemonRequest { request_id: request_id(), daemon };
    let answer = client.daemons().drain_daemon(timed(request)).await;
    let answer = answer.map_err(client.refused("drain the daemon"))?.into_inner();
    said(session, answer.daemon, "gets no new work; what runs there goes on")
}

/// `daemon undrain`.
pub async fn undrain(session: &mut Session, daemon: String) -> Result<()> {
    let client = session.client(KeyUse::Owner).await?;
    let request = pb::UndrainDaemonRequest { request_id: request_id(), daemon };
    let answer = client.daemons().undrain_daemon(timed(request)).await;
    let answer = answer.map_err(client.refused("end the drain"))?.into_inner();
    said(session, answer.daemon, "gets new work again")
}

/// Every daemon of the owner.
pub async fn all(client: &Client) -> Result<Vec<pb::Daemon>> {
    let mut daemons = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = timed(pb::ListDaemonsRequest { page_size: PAGE, page_token });
        let page = client.daemons().list_daemons(request).await.map_err(client.refused("list daemons"))?.into_inner();
        daemons.extend(page.daemons);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(daemons);
        }
    }
}

fn said(session: &mut Session, daemon: Option<pb::Daemon>, what: &str) -> Result<()> {
    let daemon = daemon.unwrap_or_default();
    if session.out.json {
        return session.out.object(&view::Daemon::from(&daemon));
    }
    session.out.line(&format!("daemon {} {what}", clean(&daemon.name)))
}

fn status_word(daemon: &pb::Daemon) -> String {
    let word = view::daemon_status(daemon.status());
    match (daemon.draining, daemon.not_accepting.is_empty()) {
        (true, _) => format!("{word}, draining"),
        (false, false) => format!("{word}, {}", daemon.not_accepting),
        (false, true) => word.to_owned(),
    }
}

fn agents(daemon: &pb::Daemon) -> String {
    daemon.profiles.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>().join(",")
}

fn described(details: &pb::GetDaemonResponse, now: Timestamp) -> String {
    let Some(daemon) = &details.daemon else { return String::new() };
    let profiles = daemon.profiles.iter().map(|profile| match profile.version.as_str() {
        "" => profile.name.clone(),
        version => format!("{} {version}", profile.name),
    });
    let mut repositories = daemon.repositories.clone();
    if daemon.any_path {
        repositories.push("any path on its machine".to_owned());
    }
    let lines = [
        ("daemon", daemon.daemon_id.clone()),
        ("name", daemon.name.clone()),
        ("status", status_word(daemon)),
        ("slots", format!("{} of {} taken", daemon.live_attempts, daemon.slots)),
        ("labels", daemon.labels.join(", ")),
        ("agents", profiles.collect::<Vec<_>>().join(", ")),
        ("repositories", repositories.join("\n")),
        ("version", daemon.version.clone()),
        ("host", daemon.hostname.clone()),
        ("session", daemon.session_epoch.to_string()),
        ("first seen", ago(now, view::time(daemon.create_time.as_ref()))),
        ("last seen", ago(now, view::time(daemon.last_seen_time.as_ref()))),
    ];
    let mut text = fields(&lines);
    for attempt in &details.attempts {
        text.push_str(&format!("\ntask {}\n", view::short(&attempt.task_id)));
        text.push_str(&described_attempt(attempt, now));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_was_lost_long_ago_is_left_out() {
        let now = Timestamp::from_secs(10_000_000);
        let heard = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let lost = pb::Daemon {
            status: pb::DaemonStatus::Lost.into(),
            last_seen_time: heard(10_000_000 - 7 * 24 * 3600 - 1),
            ..pb::Daemon::default()
        };
        assert!(is_forgotten(&lost, now));
        let recently = pb::Daemon { last_seen_time: heard(10_000_000 - 7 * 24 * 3600), ..lost.clone() };
        let busy = pb::Daemon { live_attempts: 1, ..lost.clone() };
        let attached = pb::Daemon { status: pb::DaemonStatus::Attached.into(), ..lost };
        assert_eq!([recently, busy, attached].map(|daemon| is_forgotten(&daemon, now)), [false; 3]);
    }

    #[test]
    fn a_daemon_reads_as_a_list_of_fields() {
        let daemon = pb::Daemon {
            daemon_id: "01938f3e-0000-7000-8000-00000000d001".to_owned(),
            name: "d1".to_owned(),
            status: pb::DaemonStatus::Attached.into(),
            slots: 4,
            live_attempts: 1,
            labels: vec!["gpu".to_owned()],
            profiles: vec![
                pb::AgentProfile { name: "shell".to_owned(), version: String::new() },
                pb::AgentProfile { name: "claude".to_owned(), version: "2.1.197".to_owned() },
            ],
            repositories: vec!["https://example.org/shop.git".to_owned()],
            any_path: true,
            draining: true,
            session_epoch: 3,
            last_seen_time: Some(prost_types::Timestamp { seconds: 1_000, nanos: 0 }),
            ..pb::Daemon::default()
        };
        let attempt = pb::Attempt {
            task_id: "01938f3e-0000-7000-8000-00c0ffee1234".to_owned(),
            number: 2,
            status: pb::AttemptStatus::Running.into(),
            start_time: Some(prost_types::Timestamp { seconds: 990, nanos: 0 }),
            ..pb::Attempt::default()
        };
        let details = pb::GetDaemonResponse { daemon: Some(daemon), attempts: vec![attempt] };
        insta::assert_snapshot!(described(&details, Timestamp::from_secs(1_005)), @r"
        daemon        01938f3e-0000-7000-8000-00000000d001
        name          d1
        status        ATTACHED, draining
        slots         1 of 4 taken
        labels        gpu
        agents        shell, claude 2.1.197
        repositories  https://example.org/shop.git
                      any path on its machine
        session       3
        last seen     5s ago

        task 00c0ffee1234
        attempt       2
        status        RUNNING
        time          15s
        output        0 bytes
        ");
    }
}
