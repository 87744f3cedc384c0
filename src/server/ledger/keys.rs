//! Keys, owners, and which daemons get work.

use super::{
    op::{Error, Reply},
    work::Work,
};
use crate::domain::{
    DaemonId, KeyId, OwnerId,
    key::{Key, KeyKind},
};

impl Work {
    pub(super) fn drain(&mut self, owner: OwnerId, id: DaemonId, draining: bool) -> Result<Reply, Error> {
        let found = self.daemons.get(id).filter(|daemon| daemon.owner == owner).cloned();
        let mut daemon = found.ok_or_else(|| Error::NotFound { kind: "daemon", id: id.to_string() })?;
        if daemon.draining != draining {
            daemon.draining = draining;
            self.daemons.set(id, daemon.clone());
            self.look = true;
        }
        Ok(Reply::Daemon(Box::new(daemon)))
    }

    pub(super) fn create_key(
        &mut self,
        kind: KeyKind,
        owner: Option<&str>,
        label: &str,
        hash: [u8; 32],
    ) -> Result<Reply, Error> {
        let owner_id = match owner {
            None => None,
            Some(name) => Some(match self.owners.get(name).copied().flatten() {
                Some(id) => id,
                None => {
                    let id = OwnerId(self.new_id());
                    self.owners.insert(name.to_owned(), Some(id));
                    self.owners_new.push((id, name.to_owned()));
                    id
                }
            }),
        };
        let key = Key {
            id: KeyId(self.new_id()),
            kind,
            owner: owner_id,
            owner_name: owner.unwrap_or_default().to_owned(),
            label: label.to_owned(),
            hash,
            created: self.now,
            revoked: None,
        };
        self.keys.insert(key.id, key.clone());
        self.keys_dirty.insert(key.id);
        Ok(Reply::Key(Box::new(key)))
    }

    pub(super) fn revoke_key(&mut self, id: KeyId) -> Result<Reply, Error> {
        let now = self.now;
        let key = self.keys.get_mut(&id).ok_or_else(|| Error::NotFound { kind: "key", id: id.to_string() })?;
        if key.revoked.is_none() {
            if key.kind == KeyKind::Admin && self.admins.iter().all(|admin| *admin == id) {
                let text = "it is the last admin key, and without one no keys can be made; make another first";
                return Err(Error::Precondition(text.to_owned()));
            }
            self.admins.remove(&id);
            key.revoked = Some(now);
            self.keys_dirty.insert(id);
        }
        Ok(Reply::Key(Box::new(key.clone())))
    }
}
