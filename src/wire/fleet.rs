//! Daemons as people see them. (What daemons and server say to each other is in `daemon`.)

use std::time::Duration;

use super::{common, pb};
use crate::domain::{Timestamp, daemon::Daemon};

/// A daemon as a caller sees it.
pub fn daemon(daemon: &Daemon, live_attempts: u32, now: Timestamp, lost_after: Duration) -> pb::Daemon {
    let status = if daemon.attached {
        pb::DaemonStatus::Attached
    } else if now.since(daemon.last_seen) < lost_after {
        pb::DaemonStatus::Quiet
    } else {
        pb::DaemonStatus::Lost
    };
    let card = &daemon.card;
    pb::Daemon {
        daemon_id: daemon.id.to_string(),
        owner_id: daemon.owner.to_string(),
        name: card.name.clone(),
        status: status.into(),
        slots: card.slots,
        live_attempts,
        labels: card.labels.clone(),
        profiles: card
            .profiles
            .iter()
            .map(|profile| pb::AgentProfile { name: profile.name.clone(), version: profile.version.clone() })
            .collect(),
        repositories: card.repositories.clone(),
        any_path: card.any_path,
        draining: daemon.draining,
        not_accepting: card.not_accepting.clone(),
        version: card.version.clone(),
        hostname: card.hostname.clone(),
        session_epoch: daemon.epoch.0,
        create_time: Some(common::timestamp(daemon.created)),
        last_seen_time: Some(common::timestamp(daemon.last_seen)),
    }
}
