//! `DaemonService`: sessions and bulk for daemons, which `server::session` and `output` serve; the rest for people.

use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::{Answers, Api, repeat, store_error, unexpected};
use crate::{
    domain::{DaemonId, OwnerId, daemon::Daemon, key::KeyKind},
    runtime::clock,
    server::{
        auth::Caller,
        ledger::{Op, Reply},
        session,
    },
    store::Tx,
    wire::{
        self,
        check::Check,
        common,
        page::{self, List},
        pb::{self, daemon_service_server::DaemonService},
        status::{ApiError, ApiResult, Reason},
    },
};

#[tonic::async_trait]
impl DaemonService for Api {
    type AttachStream = session::Answers;

    async fn attach(
        &self,
        request: Request<Streaming<pb::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (owner, key) = Caller::of(&request)?.daemon()?;
        if self.shutdown.soft.is_cancelled() {
            return Err(ApiError::shutting_down().into());
        }
        Ok(Response::new(session::open(self.host.clone(), owner, key, request.into_inner()).await?))
    }

    type UploadChunksStream = Answers<pb::UploadChunksResponse>;

    async fn upload_chunks(
        &self,
        request: Request<Streaming<pb::UploadChunksRequest>>,
    ) -> Result<Response<Self::UploadChunksStream>, Status> {
        let (owner, _) = Caller::of(&request)?.daemon()?;
        Ok(Response::new(self.upload(owner, request.into_inner())?))
    }

    type DownloadChunksStream = Answers<pb::DownloadChunksResponse>;

    async fn download_chunks(
        &self,
        request: Request<pb::DownloadChunksRequest>,
    ) -> Result<Response<Self::DownloadChunksStream>, Status> {
        let caller = Caller::of(&request)?;
        let owner = match caller.kind() {
            KeyKind::Daemon => caller.daemon()?.0,
            KeyKind::Owner | KeyKind::Admin | KeyKind::Task => caller.owner()?,
        };
        Ok(Response::new(self.download(owner, request.into_inner()).await?))
    }

    async fn list_daemons(
        &self,
        request: Request<pb::ListDaemonsRequest>,
    ) -> Result<Response<pb::ListDaemonsResponse>, Status> {
        let owner = Caller::of(&request)?.owner()?;
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        let list = List::new("daemons", &owner);
        let after = list.after(&request.page_token)?;
        let mut tx = self.read().await?;
        let mut found = tx.daemons_list(owner, after.as_deref(), size as i64 + 1).await.map_err(store_error)?;
        let is_last = found.len() <= size;
        found.truncate(size);
        let last = found.last().filter(|_| !is_last).map(|daemon| daemon.card.name.clone());
        let daemons = self.daemons(&mut tx, found).await?;
        Ok(Response::new(pb::ListDaemonsResponse { daemons, next_page_token: list.token(last.as_deref()) }))
    }

    async fn get_daemon(
        &self,
        request: Request<pb::GetDaemonRequest>,
    ) -> Result<Response<pb::GetDaemonResponse>, Status> {
        let owner = Caller::of(&request)?.owner()?;
        let mut tx = self.read().await?;
        let daemon = find_daemon(&mut tx, owner, &request.get_ref().daemon).await?;
        let attempts = tx.attempts_live(&[daemon.id]).await.map_err(store_error)?;
        let attempts = self.attempts(&mut tx, &attempts).await?;
        let daemon = self.daemons(&mut tx, vec![daemon]).await?.pop();
        Ok(Response::new(pb::GetDaemonResponse { daemon, attempts }))
    }

    async fn drain_daemon(
        &self,
        request: Request<pb::DrainDaemonRequest>,
    ) -> Result<Response<pb::DrainDaemonResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "DrainDaemon", &request);
        let daemon = self.drain(&caller, owner, request.request_id, &request.daemon, repeat, true).await?;
        Ok(Response::new(pb::DrainDaemonResponse { daemon: Some(daemon) }))
    }

    async fn undrain_daemon(
        &self,
        request: Request<pb::UndrainDaemonRequest>,
    ) -> Result<Response<pb::UndrainDaemonResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "UndrainDaemon", &request);
        let daemon = self.drain(&caller, owner, request.request_id, &request.daemon, repeat, false).await?;
        Ok(Response::new(pb::UndrainDaemonResponse { daemon: Some(daemon) }))
    }
}

impl Api {
    async fn drain(
        &self,
        caller: &Caller,
        owner: OwnerId,
        request_id: String,
        named: &str,
        repeat: Option<crate::server::ledger::op::Repeat>,
        draining: bool,
    ) -> ApiResult<pb::Daemon> {
        let mut check = Check::new();
        check.request_id(request_id);
        check.required("daemon", named);
        check.finish()?;
        let mut tx = self.read().await?;
        let daemon = find_daemon(&mut tx, owner, named).await?.id;
        drop(tx);
        let reply = self.submit(caller, repeat, Op::Drain { owner, daemon, draining }).await?;
        let Reply::Daemon(daemon) = reply else { return Err(unexpected(&reply)) };
        let mut tx = self.read().await?;
        let mut daemons = self.daemons(&mut tx, vec![*daemon]).await?;
        daemons.pop().ok_or_else(|| ApiError::internal("one daemon in, none out"))
    }

    /// Daemons as a caller sees them. Attached is who has a session now; who has none, and has not been given up yet, is quiet.
    async fn daemons(&self, tx: &mut Tx, mut daemons: Vec<Daemon>) -> ApiResult<Vec<pb::Daemon>> {
        let ids: Vec<DaemonId> = daemons.iter().map(|daemon| daemon.id).collect();
        let counts = tx.attempts_live_counts(&ids).await.map_err(store_error)?;
        let now = clock::now();
        let fleet = self.ledger.fleet();
        Ok(daemons
            .iter_mut()
            .map(|daemon| {
                let live = counts.iter().find(|(id, _)| *id == daemon.id).map_or(0, |(_, count)| *count);
                let has_session = fleet.get(daemon.id).is_some();
                // Declared lost, it is lost, however recent what was last heard.
                let lost_after = if daemon.attached { self.host.times.lost_after } else { std::time::Duration::ZERO };
                daemon.attached = has_session;
                wire::fleet::daemon(daemon, live, now, lost_after)
            })
            .collect())
    }
}

/// The daemon that somebody names by id or name.
pub(super) async fn find_daemon(tx: &mut Tx, owner: OwnerId, named: &str) -> ApiResult<Daemon> {
    let found = match Uuid::try_parse(named) {
        Ok(id) => tx.daemons_fetch(&[DaemonId(id)]).await.map_err(store_error)?.pop().filter(|it| it.owner == owner),
        Err(_) => tx.daemon_named(owner, named).await.map_err(store_error)?,
    };
    found.ok_or_else(|| {
        let shown = common::shown(named);
        ApiError::new(Reason::DaemonNotFound, format!("there is no daemon `{shown}`")).with("daemon", shown)
    })
}
