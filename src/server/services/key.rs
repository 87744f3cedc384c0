//! `KeyService`. Only admin keys come in here.

use tonic::{Request, Response, Status};

use super::{Api, store_error, unexpected};
use crate::{
    domain::KeyId,
    server::{
        auth::{self, Caller},
        ledger::{Op, Reply},
    },
    wire::{
        self, common,
        page::{self, List},
        pb::{self, key_service_server::KeyService},
        status::ApiResult,
    },
};

#[tonic::async_trait]
impl KeyService for Api {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::CreateKeyResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.admin()?;
        let new = wire::key::create(request.into_inner())?;
        let secret = auth::new_key(new.kind);
        let op = Op::CreateKey { kind: new.kind, owner: new.owner, label: new.label, hash: auth::hash(&secret) };
        let reply = self.submit(&caller, None, op).await?;
        Ok(Response::new(pb::CreateKeyResponse { key: Some(key(reply)?), secret }))
    }

    async fn list_keys(&self, request: Request<pb::ListKeysRequest>) -> Result<Response<pb::ListKeysResponse>, Status> {
        Caller::of(&request)?.admin()?;
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        let list = List::new("keys", &request.include_revoked);
        let before: Option<KeyId> = list.after_id(&request.page_token)?;
        let mut tx = self.read().await?;
        let mut keys = tx.keys_list(request.include_revoked, before, size as i64 + 1).await.map_err(store_error)?;
        let is_last = keys.len() <= size;
        keys.truncate(size);
        let last = keys.last().filter(|_| !is_last).map(|key| key.id.to_string());
        Ok(Response::new(pb::ListKeysResponse {
            keys: keys.iter().map(wire::key::key).collect(),
            next_page_token: list.token(last.as_deref()),
        }))
    }

    async fn revoke_key(
        &self,
        request: Request<pb::RevokeKeyRequest>,
    ) -> Result<Response<pb::RevokeKeyResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.admin()?;
        let id: KeyId = common::id("key_id", &request.get_ref().key_id).map_err(wire::status::ApiError::from)?;
        let reply = self.submit(&caller, None, Op::RevokeKey { key: id }).await?;
        self.auth.revoked();
        Ok(Response::new(pb::RevokeKeyResponse { key: Some(key(reply)?) }))
    }
}

fn key(reply: Reply) -> ApiResult<pb::Key> {
    match reply {
        Reply::Key(key) => Ok(wire::key::key(&key)),
        other => Err(unexpected(&other)),
    }
}
