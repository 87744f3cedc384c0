//! The generated clients with a key in every call, and the few questions that most tests ask.

use std::collections::BTreeMap;

use makima::wire::pb::{
    Change, Contract, CreateContractRequest, CreateContractResponse, Daemon, GetContractRequest, GetTaskRequest,
    GetTaskResponse, ListDaemonsRequest, ListTasksRequest, StreamTaskOutputRequest, Task, TaskSpec, TaskStatus,
    WatchContractRequest, contract_service_client::ContractServiceClient, daemon_service_client::DaemonServiceClient,
    key_service_client::KeyServiceClient, task_service_client::TaskServiceClient, watch_contract_response,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Larger than any answer a test asks for.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// What the generated clients speak through.
pub type Service = InterceptedService<Channel, Bearer>;

/// Puts the key, and the owner an admin acts for, into a call.
#[derive(Clone, Debug, Default)]
pub struct Bearer {
    key: Option<MetadataValue<Ascii>>,
    owner: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.key {
            request.metadata_mut().insert("authorization", key.clone());
        }
        if let Some(owner) = &self.owner {
            request.metadata_mut().insert("makima-owner", owner.clone());
        }
        Ok(request)
    }
}

/// A connection to a server, made when first used and again when lost.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    bearer: Bearer,
}

impl Client {
    /// To `http://host:port`, without a key.
    pub fn new(server: &str) -> Self {
        let channel = Endpoint::from_shared(server.to_owned())
            .expect("an address")
            .connect_timeout(std::time::Duration::from_secs(5))
            .tcp_nodelay(true)
            .connect_lazy();
        Self { channel, bearer: Bearer::default() }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(mut self, secret: &str) -> Self {
        self.bearer.key = Some(format!("Bearer {}", secret.trim()).parse().expect("a key is ASCII"));
        self
    }

    /// The same in the name of an owner, for admin keys.
    #[must_use]
    pub fn with_owner(mut self, owner: &str) -> Self {
        self.bearer.owner = Some(owner.parse().expect("an owner's name is ASCII"));
        self
    }

    /// Contracts.
    pub fn contracts(&self) -> ContractServiceClient<Service> {
        ContractServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Tasks.
    pub fn tasks(&self) -> TaskServiceClient<Service> {
        TaskServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Daemons.
    pub fn daemons(&self) -> DaemonServiceClient<Service> {
        DaemonServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Keys.
    pub fn keys(&self) -> KeyServiceClient<Service> {
        KeyServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// The health of the whole server.
    pub async fn health(&self) -> Result<ServingStatus, Status> {
        let answer = HealthClient::new(self.channel.clone()).check(HealthCheckRequest::default()).await?.into_inner();
        Ok(answer.status())
    }

    /// Makes a contract of these tasks on a repository.
    pub async fn create(&self, repository: &str, tasks: Vec<TaskSpec>) -> CreateContractResponse {
        self.try_create(repository, tasks).await.expect("create a contract")
    }

    /// [`Self::create`] where a refusal is what is looked for.
    pub async fn try_create(&self, repository: &str, tasks: Vec<TaskSpec>) -> Result<CreateContractResponse, Status> {
        let request = CreateContractRequest {
            name: "test".to_owned(),
            repository: repository.to_owned(),
            tasks,
            ..CreateContractRequest::default()
        };
        Ok(self.contracts().create_contract(request).await?.into_inner())
    }

    /// A contract.
    pub async fn contract(&self, contract_id: &str) -> Contract {
        let request = GetContractRequest { contract_id: contract_id.to_owned() };
        let answer = self.contracts().get_contract(request).await.expect("get a contract");
        answer.into_inner().contract.expect("a contract in the answer")
    }

    /// A task with its attempts.
    pub async fn task(&self, task_id: &str) -> GetTaskResponse {
        let request = GetTaskRequest { task_id: task_id.to_owned() };
        self.tasks().get_task(request).await.expect("get a task").into_inner()
    }

    /// All tasks of a contract, through all pages.
    pub async fn tasks_of(&self, contract_id: &str) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListTasksRequest {
                contract_id: contract_id.to_owned(),
                page_size: 1000,
                page_token,
                include_hidden: true,
                ..ListTasksRequest::default()
            };
            let page = self.tasks().list_tasks(request).await.expect("list tasks").into_inner();
            tasks.extend(page.tasks);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return tasks;
            }
        }
    }

    /// Name and status of each task of a contract.
    pub async fn statuses(&self, contract_id: &str) -> BTreeMap<String, TaskStatus> {
        self.tasks_of(contract_id).await.into_iter().map(|task| (name_of(&task), task.status())).collect()
    }

    /// Daemons by name.
    pub async fn daemon_list(&self) -> Result<Vec<Daemon>, Status> {
        Ok(self.daemons().list_daemons(ListDaemonsRequest::default()).await?.into_inner().daemons)
    }

    /// Follows a contract from its beginning to its end and answers every change. The caller bounds the time.
    pub async fn watch_to_end(&self, contract_id: &str) -> Result<Vec<Change>, Status> {
        let request = WatchContractRequest {
            contract_id: contract_id.to_owned(),
            until_end: true,
            ..WatchContractRequest::default()
        };
        let mut stream = self.contracts().watch_contract(request).await?.into_inner();
        let mut changes = Vec::new();
        while let Some(step) = stream.message().await? {
            if let Some(watch_contract_response::Kind::Change(change)) = step.kind {
                changes.push(change);
            }
        }
        Ok(changes)
    }

    /// All output of an attempt that the server holds; 0 is the newest attempt.
    pub async fn output(&self, task_id: &str, attempt: u32) -> Result<Vec<u8>, Status> {
        let request = StreamTaskOutputRequest { task_id: task_id.to_owned(), attempt, offset: 0, follow: false };
        let mut stream = self.tasks().stream_task_output(request).await?.into_inner();
        let mut output = Vec::new();
        while let Some(piece) = stream.message().await? {
            output.extend_from_slice(&piece.data);
        }
        Ok(output)
    }
}

/// The name a task was given.
pub fn name_of(task: &Task) -> String {
    task.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default()
}

/// A task of the `shell` agent.
pub fn shell(name: &str, script: &str, depends_on: &[&str]) -> TaskSpec {
    TaskSpec {
        name: name.to_owned(),
        plan: script.to_owned(),
        agent: "shell".to_owned(),
        depends_on: depends_on.iter().map(|&name| name.to_owned()).collect(),
        ..TaskSpec::default()
    }
}
