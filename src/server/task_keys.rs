//! Keys of attempts: derived, never stored, so that a command sent again is the same to the letter.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::domain::{
    AttemptId, AttemptRef,
    text::{hex, unhex},
};

/// Derives and recognises the keys with which agents speak of their own task.
#[derive(Clone)]
pub struct TaskKeys {
    /// Has taken in the secret, which is half of the work for a key.
    keyed: Hmac<Sha256>,
}

impl std::fmt::Debug for TaskKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TaskKeys(..)")
    }
}

impl TaskKeys {
    /// Keys of a server with this secret.
    pub fn new(secret: [u8; 32]) -> Self {
        // HMAC fills a short key up with zeros to the block of its hash (RFC 2104, section 2), so this is the plain HMAC.
        let mut block = [0; 64];
        block[..secret.len()].copy_from_slice(&secret);
        Self { keyed: Hmac::new(&block.into()) }
    }

    /// The key of an attempt: `mk_task_<attempt id>_<HMAC-SHA256 of the attempt>`.
    pub fn derive(&self, attempt: AttemptRef) -> String {
        format!("mk_task_{}_{}", attempt.id.0.simple(), hex(&self.mac(attempt).finalize().into_bytes()))
    }

    /// The attempt that a key says it is of; to be looked up, and then checked with [`Self::is_of`].
    pub fn claimed(key: &str) -> Option<AttemptId> {
        let (id, _) = key.strip_prefix("mk_task_")?.split_once('_')?;
        uuid::Uuid::try_parse(id).ok().map(AttemptId)
    }

    /// The key is the one of this attempt. Compares in constant time.
    pub fn is_of(&self, key: &str, attempt: AttemptRef) -> bool {
        let Some((_, hex)) = key.strip_prefix("mk_task_").and_then(|rest| rest.split_once('_')) else { return false };
        unhex(hex).is_some_and(|bytes| self.mac(attempt).verify_slice(&bytes).is_ok())
    }

    fn mac(&self, attempt: AttemptRef) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        mac.update(attempt.task.0.as_bytes());
        mac.update(&attempt.number.to_be_bytes());
        mac.update(attempt.id.0.as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::TaskId;

    #[test]
    fn a_key_is_of_its_attempt_and_no_other() {
        let attempt = |number| AttemptRef {
            task: TaskId(Uuid::from_u128(1)),
            number,
            id: AttemptId(Uuid::from_u128(u128::from(number))),
        };
        let keys = TaskKeys::new([7; 32]);
        let key = keys.derive(attempt(1));
        // By Python's hmac: what one server said another says to the letter.
        assert_eq!(
            key,
            "mk_task_00000000000000000000000000000001_02e3f5f4513b1d693c8336dc0b61b3e5271331fa73bef86a04e11ce21fd2b9d2"
        );
        assert_eq!(TaskKeys::claimed(&key), Some(AttemptId(Uuid::from_u128(1))));
        assert!(keys.is_of(&key, attempt(1)));
        assert!(!keys.is_of(&key, attempt(2)));
        assert!(!TaskKeys::new([8; 32]).is_of(&key, attempt(1)));
        assert!(!keys.is_of("mk_task_x", attempt(1)));
    }
}
