//! `makima daemon list|get|drain|undrain`: the daemons of an owner as the server knows them.

use super::{
    Session,
    client::{Client, request_id, timed},
    config::KeyUse,
    error::Result,
    output::{Table, ago, clean, fields},
    task::described_attempt,
    view,
};
use crate::{domain::Timestamp, runtime::clock, wire::pb};

/// Read at once.
const PAGE: u32 = 1_000;

/// `daemon list`.
pub async fn list(session: &mut Session) -> Result<()> {
    let client = session.client(KeyUse::Owner).await?;
    let daemons = all(&client).await?;
    if session.out.json {
        return daemons.iter().try_for_each(|daemon| session.out.object(&view::Daemon::from(daemon)));
    }
    let now = clock::now();
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
    session.out.table(&table, "no daemons yet: `makima daemon run` starts one on this machine")
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
