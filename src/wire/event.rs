//! Changes on the wire.

use super::{common, pb};
use crate::domain::event::Change;

/// A change as a caller sees it.
pub fn change(change: &Change) -> pb::Change {
    let what = &change.what;
    pb::Change {
        sequence: change.sequence,
        time: Some(common::timestamp(change.at)),
        event: what.event.to_string(),
        contract_id: change.contract.to_string(),
        task_id: common::id_text(change.task),
        task_name: what.task_name.clone(),
        version: what.version,
        status: what.status.map_or(pb::TaskStatus::Unspecified, pb::TaskStatus::from).into(),
        attempt: what.attempt,
        daemon_id: common::id_text(what.daemon),
        fields: what.fields.iter().map(ToString::to_string).collect(),
        actor: what.actor().into_owned(),
        detail: what.detail.clone(),
        daemon_name: what.daemon_name.clone(),
    }
}
