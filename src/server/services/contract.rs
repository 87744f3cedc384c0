//! `ContractService`.

use tonic::{Request, Response, Status};

use super::{
    Answers, Api,
    explain::{self, Detail, Surroundings},
    repeat, store_error, unexpected,
};
use crate::{
    domain::{
        ContractId, OwnerId,
        contract::{Contract, ContractStatus},
        task::Task,
    },
    server::{
        auth::{Caller, Reader},
        ledger::{Op, Reply},
    },
    store::Tx,
    wire::{
        self,
        check::Check,
        common,
        page::{self, List},
        pb::{self, contract_service_server::ContractService},
        status::{ApiError, ApiResult, Reason},
    },
};

/// Contracts read at a time while a filter is applied.
const PORTION: usize = 200;
/// Portions read for one page: a filter that little passes ends the page early rather than reading on and on.
const MAX_PORTIONS: usize = 20;

#[tonic::async_trait]
impl ContractService for Api {
    async fn create_contract(
        &self,
        request: Request<pb::CreateContractRequest>,
    ) -> Result<Response<pb::CreateContractResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "CreateContract", &request);
        let draft = wire::contract::create(owner, request)?;
        let reply = self.submit(&caller, repeat, Op::CreateContract(draft)).await?;
        Ok(Response::new(self.created_contract(owner, reply).await?))
    }

    async fn get_contract(
        &self,
        request: Request<pb::GetContractRequest>,
    ) -> Result<Response<pb::GetContractResponse>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        let mut tx = self.read().await?;
        let contract = find_contract(&mut tx, reader, &request.get_ref().contract_id).await?;
        let contract = Some(explain::contract_view(&mut tx, &contract).await?);
        Ok(Response::new(pb::GetContractResponse { contract }))
    }

    async fn list_contracts(
        &self,
        request: Request<pb::ListContractsRequest>,
    ) -> Result<Response<pb::ListContractsResponse>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.contracts_page(reader, request.into_inner()).await?))
    }

    type WatchContractStream = Answers<pb::WatchContractResponse>;

    async fn watch_contract(
        &self,
        request: Request<pb::WatchContractRequest>,
    ) -> Result<Response<Self::WatchContractStream>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.open_contract_watch(reader, request.into_inner()).await?))
    }

    async fn update_contract(
        &self,
        request: Request<pb::UpdateContractRequest>,
    ) -> Result<Response<pb::UpdateContractResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "UpdateContract", &request);
        let update = wire::contract::update(owner, request)?;
        let reply = self.submit(&caller, repeat, Op::UpdateContract(update)).await?;
        Ok(Response::new(pb::UpdateContractResponse { contract: Some(self.changed_contract(reply).await?) }))
    }

    async fn hold_contract(
        &self,
        request: Request<pb::HoldContractRequest>,
    ) -> Result<Response<pb::HoldContractResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "HoldContract", &request);
        let (contract, reason) = contract_and_reason(request.request_id, &request.contract_id, request.reason)?;
        let reply = self.submit(&caller, repeat, Op::HoldContract { owner, contract, reason }).await?;
        Ok(Response::new(pb::HoldContractResponse { contract: Some(self.changed_contract(reply).await?) }))
    }

    async fn release_contract(
        &self,
        request: Request<pb::ReleaseContractRequest>,
    ) -> Result<Response<pb::ReleaseContractResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "ReleaseContract", &request);
        let (contract, _) = contract_and_reason(request.request_id, &request.contract_id, String::new())?;
        let reply = self.submit(&caller, repeat, Op::ReleaseContract { owner, contract }).await?;
        Ok(Response::new(pb::ReleaseContractResponse { contract: Some(self.changed_contract(reply).await?) }))
    }

    async fn cancel_contract(
        &self,
        request: Request<pb::CancelContractRequest>,
    ) -> Result<Response<pb::CancelContractResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "CancelContract", &request);
        let (contract, reason) = contract_and_reason(request.request_id, &request.contract_id, request.reason)?;
        let reply = self.submit(&caller, repeat, Op::CancelContract { owner, contract, reason }).await?;
        Ok(Response::new(pb::CancelContractResponse { contract: Some(self.changed_contract(reply).await?) }))
    }
}

impl Api {
    /// A contract that was made, as a caller sees it, with what the analysis suggests.
    async fn created_contract(&self, owner: OwnerId, reply: Reply) -> ApiResult<pb::CreateContractResponse> {
        let Reply::Created { contract, tasks, edges } = reply else { return Err(unexpected(&reply)) };
        let known = edges.and_then(|edges| Surroundings::of_new(self, &contract, &tasks, &edges));
        let (around, contract) = match known {
            Some(around) => (around, wire::contract::contract(&contract, false)),
            None => {
                let mut tx = self.read().await?;
                let around = Surroundings::load(self, &mut tx, owner, &tasks, Detail::Brief).await?;
                (around, explain::contract_view(&mut tx, &contract).await?)
            }
        };
        let suggestions = self.suggestions(&tasks, |task| around.depends_on(task).to_vec()).await?;
        Ok(pb::CreateContractResponse { contract: Some(contract), tasks: shown(&tasks, &around), suggestions })
    }

    /// Tasks that were made, as a caller sees them.
    pub(super) async fn created_tasks(&self, owner: OwnerId, reply: Reply) -> ApiResult<Vec<pb::Task>> {
        let Reply::Created { contract, tasks, edges } = reply else { return Err(unexpected(&reply)) };
        let known = edges.and_then(|edges| Surroundings::of_new(self, &contract, &tasks, &edges));
        let around = match known {
            Some(around) => around,
            // In a box: a call is as large as the largest thing that it may wait for, and this one hardly ever does.
            None => {
                let read = async {
                    let mut tx = self.read().await?;
                    Surroundings::load(self, &mut tx, owner, &tasks, Detail::Brief).await
                };
                Box::pin(read).await?
            }
        };
        Ok(shown(&tasks, &around))
    }

    /// A contract that was changed, as a caller sees it.
    async fn changed_contract(&self, reply: Reply) -> ApiResult<pb::Contract> {
        let Reply::Contract(contract) = reply else { return Err(unexpected(&reply)) };
        let mut tx = self.read().await?;
        explain::contract_view(&mut tx, &contract).await
    }

    async fn contracts_page(
        &self,
        reader: Reader,
        request: pb::ListContractsRequest,
    ) -> ApiResult<pb::ListContractsResponse> {
        let mut check = Check::new();
        let statuses = wire::contract::statuses(&mut check, &request.statuses);
        check.finish()?;
        let size = page::size(request.page_size)?;
        let list = List::new("contracts", &(reader, &request.statuses, request.include_anonymous));
        let mut before: Option<ContractId> = list.after_id(&request.page_token)?;
        // What is blocked for ever is stored as active and shown as failed: read both, and keep what is shown as wanted.
        let mut stored = statuses.clone();
        if statuses.contains(&ContractStatus::Failed) && !statuses.contains(&ContractStatus::Active) {
            stored.push(ContractStatus::Active);
        }
        let mut tx = self.read().await?;
        let mut contracts = Vec::new();
        for _ in 0..MAX_PORTIONS {
            let found = tx
                .contracts_list(reader.owner, &stored, request.include_anonymous, before, PORTION as i64)
                .await
                .map_err(store_error)?;
            let is_last = found.len() < PORTION;
            let stuck = explain::stuck(&mut tx, &found).await?;
            for contract in found {
                if contracts.len() == size {
                    return Ok(answer(&list, contracts, before));
                }
                before = Some(contract.id);
                let is_stuck = stuck.contains(&contract.id);
                if is_wanted(&contract, is_stuck, &statuses) && reader.check(contract.id).is_ok() {
                    contracts.push(wire::contract::contract(&contract, is_stuck));
                }
            }
            if is_last {
                return Ok(answer(&list, contracts, None));
            }
        }
        Ok(answer(&list, contracts, before))
    }
}

/// Tasks as a caller sees them, as far as an answer has room for them.
fn shown(tasks: &[Task], around: &Surroundings) -> Vec<pb::Task> {
    let mut shown: Vec<pb::Task> = tasks.iter().map(|task| around.view(task)).collect();
    wire::task::fit_answer(&mut shown);
    shown
}

fn answer(list: &List, contracts: Vec<pb::Contract>, before: Option<ContractId>) -> pb::ListContractsResponse {
    let next = before.map(|id| id.to_string());
    pb::ListContractsResponse { contracts, next_page_token: list.token(next.as_deref()) }
}

fn is_wanted(contract: &Contract, is_stuck: bool, statuses: &[ContractStatus]) -> bool {
    let shown = match contract.status() {
        ContractStatus::Active if is_stuck => ContractStatus::Failed,
        status => status,
    };
    statuses.is_empty() || statuses.contains(&shown)
}

/// The contract that somebody names, if they may read it.
pub(super) async fn find_contract(tx: &mut Tx, reader: Reader, text: &str) -> ApiResult<Contract> {
    let id: ContractId = common::id("contract_id", text)?;
    let contract = tx.contract_fetch(reader.owner, id).await.map_err(store_error)?;
    let contract = contract.ok_or_else(|| {
        ApiError::new(Reason::ContractNotFound, format!("there is no contract `{id}`")).with("contract_id", id)
    })?;
    reader.check(contract.id)?;
    Ok(contract)
}

fn contract_and_reason(request_id: String, contract: &str, reason: String) -> ApiResult<(ContractId, String)> {
    let mut check = Check::new();
    check.request_id(request_id);
    let contract = check.id("contract_id", contract);
    let reason = check.reason(reason);
    check.finish()?;
    Ok((contract, reason))
}
