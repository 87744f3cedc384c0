//! Keys on the wire.

use super::{check::Check, common, pb, status::ApiResult};
use crate::domain::{
    key::{Key, KeyKind},
    task::MAX_NAME_BYTES,
};

/// Bytes of an owner's name.
pub const MAX_OWNER_BYTES: usize = 63;

/// A key to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// What it is to be good for; never [`KeyKind::Task`].
    pub kind: KeyKind,
    /// Name of its owner; `None` for admin keys.
    pub owner: Option<String>,
    /// For people.
    pub label: String,
}

/// Checks the form of a key to make.
pub fn create(request: pb::CreateKeyRequest) -> ApiResult<NewKey> {
    let mut check = Check::new();
    let kind = match request.kind() {
        pb::KeyKind::Admin => KeyKind::Admin,
        pb::KeyKind::Owner => KeyKind::Owner,
        pb::KeyKind::Daemon => KeyKind::Daemon,
        pb::KeyKind::Unspecified | pb::KeyKind::Task => {
            check.violation("kind", "must be admin, owner or daemon; task keys are made with their attempts");
            KeyKind::Owner
        }
    };
    let owner = if kind == KeyKind::Admin {
        if !request.owner.is_empty() {
            check.violation("owner", "must be empty for an admin key");
        }
        None
    } else {
        if !is_owner_name(&request.owner) {
            check.violation("owner", "must be 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit");
        }
        Some(request.owner)
    };
    let label = check.line("label", request.label, MAX_NAME_BYTES);
    check.finish()?;
    Ok(NewKey { kind, owner, label })
}

/// A name an owner may have.
pub fn is_owner_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_OWNER_BYTES
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A key as a caller sees it.
pub fn key(key: &Key) -> pb::Key {
    pb::Key {
        key_id: key.id.to_string(),
        kind: pb::KeyKind::from(key.kind).into(),
        owner_id: common::id_text(key.owner),
        owner_name: key.owner_name.clone(),
        label: key.label.clone(),
        create_time: Some(common::timestamp(key.created)),
        revoke_time: key.revoked.map(common::timestamp),
    }
}

impl From<KeyKind> for pb::KeyKind {
    fn from(kind: KeyKind) -> Self {
        match kind {
            KeyKind::Admin => Self::Admin,
            KeyKind::Owner => Self::Owner,
            KeyKind::Daemon => Self::Daemon,
            KeyKind::Task => Self::Task,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_a_kind_and_owners_a_name() {
        let good =
            pb::CreateKeyRequest { kind: pb::KeyKind::Daemon.into(), owner: "team-1".into(), label: "ci".into() };
        assert_eq!(
            create(good).unwrap(),
            NewKey { kind: KeyKind::Daemon, owner: Some("team-1".into()), label: "ci".into() }
        );
        let admin = pb::CreateKeyRequest { kind: pb::KeyKind::Admin.into(), ..Default::default() };
        assert_eq!(create(admin).unwrap().owner, None);
        for owner in ["", "Team", "-x", "a b", &"a".repeat(64)] {
            let bad =
                pb::CreateKeyRequest { kind: pb::KeyKind::Owner.into(), owner: owner.into(), label: String::new() };
            assert_eq!(create(bad).unwrap_err().violations()[0].field, "owner", "{owner}");
        }
        let task = pb::CreateKeyRequest { kind: pb::KeyKind::Task.into(), owner: "a".into(), label: "a\0".into() };
        assert_eq!(create(task).unwrap_err().violations().len(), 2);
    }
}
