//! `makima contract`: apply a file, look, watch, hold, release, cancel.
//!
//! A file of up to a thousand tasks is one call, all or nothing. A larger one becomes a contract that is held while its
//! tasks are added, parents before children, and released at the end; every call carries an id derived from the request
//! id, so applying again after a break goes on where it stopped.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::{
    Session,
    board::Outcome,
    client::{Client, request_id, timed},
    config::KeyUse,
    contract_file::{self, ContractFile},
    error::{Error, Result},
    follow::{self, Source},
    output::{Out, Table, ago, clean, note},
    repository::{self, Place, Reading},
    resolve,
    screen::Screen,
    view,
};
use crate::{runtime::clock, wire::pb};

/// Read at once.
const PAGE: u32 = 1_000;

/// What to do with contracts.
#[derive(Debug, Subcommand)]
pub enum ContractCommand {
    /// Create a contract from a YAML file
    Apply(ApplyArgs),
    /// List contracts, newest first
    List(ListArgs),
    /// Show one contract
    Get(ContractArg),
    /// Follow a contract to its end; exit 0 when every task is done
    Watch(ContractArg),
    /// Start no further tasks of a contract; what runs goes on
    Hold(HoldArgs),
    /// End a hold
    Release(ContractArg),
    /// Cancel every task that is not final
    Cancel(CancelArgs),
}

/// `contract apply`.
#[derive(Args, Debug)]
pub struct ApplyArgs {
    /// YAML file; `-` reads standard input
    pub file: PathBuf,
    /// Repository, instead of the file's: URL or path
    #[arg(long, value_name = "URL|PATH")]
    pub repo: Option<String>,
    /// Branch, tag or commit to start from, instead of the file's
    #[arg(long, value_name = "REF")]
    pub base: Option<String>,
    /// Follow it to the end; exit 0 when every task is done
    #[arg(long)]
    pub wait: bool,
    /// Show which dependencies an analysis of the plans would add, and apply nothing
    #[arg(long, conflicts_with = "add_suggested")]
    pub suggest_deps: bool,
    /// Add the dependencies that an analysis of the plans suggests, and apply
    #[arg(long)]
    pub add_suggested: bool,
    /// Create it held; `contract release` lets it start
    #[arg(long, conflicts_with = "wait")]
    pub hold: bool,
    /// The same id with the same file answers the contract made first (kept 24 h)
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

/// `contract list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only those that stand so: active, done, failed, cancelled
    #[arg(long, value_name = "STATUS", value_parser = contract_status)]
    pub status: Vec<pb::ContractStatus>,
    /// Also those made for lone tasks
    #[arg(long)]
    pub all: bool,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
}

/// A contract.
#[derive(Args, Debug)]
pub struct ContractArg {
    /// Id, short id, or name if it is one contract's only
    pub contract: String,
}

/// `contract hold`.
#[derive(Args, Debug)]
pub struct HoldArgs {
    /// Id, short id, or name if it is one contract's only
    pub contract: String,
    /// Shown to whoever asks why a task does not start
    #[arg(long, default_value = "")]
    pub reason: String,
}

/// `contract cancel`.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// Id, short id, or name if it is one contract's only
    pub contract: String,
    /// Kept with each task
    #[arg(long, default_value = "")]
    pub reason: String,
}

/// Does it.
pub async fn run(session: &mut Session, command: ContractCommand) -> Result<()> {
    match command {
        ContractCommand::Apply(args) => apply(session, args).await,
        ContractCommand::List(args) => list(session, &args).await,
        ContractCommand::Get(arg) => get(session, &arg.contract).await,
        ContractCommand::Watch(arg) => {
            let client = session.client(KeyUse::Owner).await?;
            let id = resolve::contract(&client, &arg.contract).await?;
            wait(&client, &mut session.out, Source::Contract(id)).await
        }
        ContractCommand::Hold(args) => {
            let client = session.client(KeyUse::Owner).await?;
            let contract_id = resolve::contract(&client, &args.contract).await?;
            let request = pb::HoldContractRequest { request_id: request_id(), contract_id, reason: args.reason };
            let answer = client.contracts().hold_contract(timed(request)).await;
            let answer = answer.map_err(client.refused("hold the contract"))?.into_inner();
            said(session, answer.contract, "is held; what runs goes on, nothing else starts")
        }
        ContractCommand::Release(arg) => {
            let client = session.client(KeyUse::Owner).await?;
            let contract_id = resolve::contract(&client, &arg.contract).await?;
            let request = pb::ReleaseContractRequest { request_id: request_id(), contract_id };
            let answer = client.contracts().release_contract(timed(request)).await;
            let answer = answer.map_err(client.refused("release the contract"))?.into_inner();
            said(session, answer.contract, "is released")
        }
        ContractCommand::Cancel(args) => {
            let client = session.client(KeyUse::Owner).await?;
            let contract_id = resolve::contract(&client, &args.contract).await?;
            let request = pb::CancelContractRequest { request_id: request_id(), contract_id, reason: args.reason };
            let answer = client.contracts().cancel_contract(timed(request)).await;
            let answer = answer.map_err(client.refused("cancel the contract"))?.into_inner();
            said(session, answer.contract, "is cancelled; its agents are being ended")
        }
    }
}

/// Follows something to its end on this output.
pub async fn wait(client: &Client, out: &mut Out, source: Source) -> Result<()> {
    let mut screen = Screen::new(out);
    match follow::follow(client, &source, &mut screen).await {
        Ok(Outcome::Done) => Ok(()),
        // How it ended is not known, so leaving quietly must not look like success.
        Ok(Outcome::Stuck { .. }) | Err(Error::ReaderGone) => Err(Error::Said),
        Err(error) => Err(error),
    }
}

// === apply ===

async fn apply(session: &mut Session, args: ApplyArgs) -> Result<()> {
    let current_dir = session.current_dir()?;
    let mut file = contract_file::load(&args.file, &current_dir)?;
    let place = place(session, &file, &args)?;
    let client = session.client(KeyUse::Owner).await?;
    if args.suggest_deps || args.add_suggested {
        let request = timed(pb::AnalyzeDependenciesRequest { contract_id: String::new(), tasks: file.tasks.clone() });
        let found = client.tasks().analyze_dependencies(request).await;
        let found = found.map_err(client.refused("analyse the dependencies"))?.into_inner();
        if args.suggest_deps {
            return suggest(&mut session.out, &found);
        }
        add_suggested(&mut file.tasks, &found.suggestions);
    }
    let id = args.request_id.unwrap_or_else(request_id);
    let created = create(&client, file, place, &id, args.hold).await?;
    let contract = created.contract.unwrap_or_default();
    if session.out.json {
        if !args.wait {
            session.out.object(&view::Contract::from(&contract))?;
        }
    } else {
        let count: usize = created.count;
        let tasks = if count == 1 { "1 task".to_owned() } else { format!("{count} tasks") };
        let short = view::short(&contract.contract_id);
        session.out.line(&format!("contract {} {short} created with {tasks}", clean(&contract.name)))?;
        if !args.add_suggested && created.suggestions > 0 {
            note(&format!(
                "analysis of the plans suggests {} more dependencies: `makima contract apply --suggest-deps` shows them",
                created.suggestions
            ));
        }
        if args.hold {
            note(&format!("it is held: `makima contract release {short}` lets it start"));
        } else if !args.wait {
            note(&format!("`makima contract watch {short}` follows it"));
            created.nowhere.iter().for_each(|text| note(text));
        }
    }
    if args.wait {
        wait(&client, &mut session.out, Source::Contract(contract.contract_id)).await?;
    }
    Ok(())
}

/// What was created.
pub struct Created {
    /// The contract.
    pub contract: Option<pb::Contract>,
    /// Its tasks.
    pub count: usize,
    /// Dependencies that analysis suggests.
    pub suggestions: usize,
    /// Why some of them can start nowhere.
    pub nowhere: Vec<String>,
}

/// Why tasks that wait for nothing else can start nowhere as the fleet is, each reason once, and not more than a few: what was mistyped
/// is told at once.
pub fn nowhere<'a>(tasks: impl IntoIterator<Item = &'a pb::Task>) -> Vec<String> {
    const REASONS: usize = 3;
    let mut told = BTreeMap::new();
    for task in tasks.into_iter().filter(|task| task.pending_reason() == pb::PendingReason::NoMatchingDaemon) {
        let name = task.spec.as_ref().map(|spec| clean(&spec.name)).unwrap_or_default();
        told.entry(clean(&task.reason)).or_insert(name);
        if told.len() == REASONS {
            break;
        }
    }
    told.into_iter().map(|(reason, name)| format!("{name} cannot start yet: {reason}")).collect()
}

/// Creates a contract, in as many calls as it needs. `held`: leave it held.
pub async fn create(client: &Client, file: ContractFile, place: Place, id: &str, held: bool) -> Result<Created> {
    let count = file.tasks.len();
    let mut batches = contract_file::batches(file.tasks)?.into_iter();
    let first = batches.next().unwrap_or_default();
    let in_parts = batches.len() > 0;
    let request = pb::CreateContractRequest {
        request_id: id.to_owned(),
        name: file.name,
        description: String::new(),
        repository: place.repository,
        base_branch: place.base,
        limits: Some(file.limits),
        tasks: first,
        hold: held || in_parts,
    };
    let create = || {
        let (mut contracts, request) = (client.contracts(), timed(request.clone()));
        async move { contracts.create_contract(request).await }
    };
    let created = client.patiently("create the contract", create).await?;
    let mut contract = created.contract;
    let contract_id = contract.as_ref().map(|contract| contract.contract_id.clone()).unwrap_or_default();
    let mut suggestions = created.suggestions.len();
    let nowhere = nowhere(&created.tasks);
    for (number, tasks) in batches.enumerate() {
        let request = pb::BatchCreateTasksRequest {
            request_id: derived(id, &format!("tasks {}", number + 1)),
            contract_id: contract_id.clone(),
            tasks,
        };
        let add = || {
            let (mut tasks, request) = (client.tasks(), timed(request.clone()));
            async move { tasks.batch_create_tasks(request).await }
        };
        client.patiently("add tasks to the contract", add).await.map_err(|error| unfinished(&error, &contract_id))?;
        suggestions = 0;
    }
    if in_parts && !held {
        let request =
            pb::ReleaseContractRequest { request_id: derived(id, "release"), contract_id: contract_id.clone() };
        let release = || {
            let (mut contracts, request) = (client.contracts(), timed(request.clone()));
            async move { contracts.release_contract(request).await }
        };
        let released = client.patiently("release the contract", release).await;
        contract = released.map_err(|error| unfinished(&error, &contract_id))?.contract;
    }
    Ok(Created { contract, count, suggestions, nowhere })
}

/// An id that is the same each time the same request is made.
fn derived(id: &str, part: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{id}/{part}").as_bytes()).to_string()
}

fn unfinished(error: &Error, contract_id: &str) -> Error {
    let short = view::short(contract_id);
    let what = error.to_string();
    Error::failed(format!(
        "{what}\nthe contract {short} is held and not complete: apply again with the same --request-id, or \
         `makima contract cancel {short}`"
    ))
}

fn place(session: &Session, file: &ContractFile, args: &ApplyArgs) -> Result<Place> {
    let base = args.base.as_deref().unwrap_or(&file.base);
    let home = session.settings.environment.home();
    let here = session.current_dir()?;
    let (text, folder) = match (&args.repo, &file.repository) {
        (Some(repo), _) => (repo, &here),
        (None, Some(repository)) => (repository, &file.folder),
        (None, None) => return repository::around(&here, base),
    };
    let reading = Reading { folder, home: home.as_deref(), must_be_here: session.settings.server_is_local() };
    repository::named(text, base, reading)
}

fn suggest(out: &mut Out, found: &pb::AnalyzeDependenciesResponse) -> Result<()> {
    if out.json {
        for suggestion in &found.suggestions {
            out.object(&view::Suggestion::from(suggestion))?;
        }
        for violation in &found.violations {
            out.object(&view::Suggestion::from(violation))?;
        }
        return Ok(());
    }
    let mut table = Table::new(&["TASK", "DEPENDS ON", "BECAUSE"]);
    for suggestion in &found.suggestions {
        table.row(&[suggestion.task.clone(), suggestion.depends_on.clone(), suggestion.reason.clone()]);
    }
    let none = found.suggestions.is_empty();
    if !none {
        out.table(&table, "")?;
    }
    for violation in &found.violations {
        note(&format!(
            "{} would start before {}: {}",
            clean(&violation.task),
            clean(&violation.on),
            clean(&violation.reason)
        ));
    }
    // Beside the output, so that it is said on a pipe too and the list there stays a list.
    note(if none {
        "no further dependencies are suggested; nothing was applied"
    } else {
        "nothing was applied; write what you want into the file, or apply with --add-suggested"
    });
    Ok(())
}

fn add_suggested(tasks: &mut [pb::TaskSpec], suggestions: &[pb::SuggestedDependency]) {
    for suggestion in suggestions {
        let Some(task) = tasks.iter_mut().find(|task| task.name == suggestion.task) else { continue };
        if !task.depends_on.contains(&suggestion.depends_on) {
            note(&format!(
                "{} now depends on {}: {}",
                clean(&suggestion.task),
                clean(&suggestion.depends_on),
                clean(&suggestion.reason)
            ));
            task.depends_on.push(suggestion.depends_on.clone());
        }
    }
}

// === looking ===

async fn list(session: &mut Session, args: &ListArgs) -> Result<()> {
    let client = session.client(KeyUse::Owner).await?;
    let mut contracts = Vec::new();
    let mut page_token = String::new();
    while contracts.len() < args.limit {
        let request = timed(pb::ListContractsRequest {
            page_size: u32::try_from(args.limit - contracts.len()).unwrap_or(PAGE).min(PAGE),
            page_token,
            statuses: args.status.iter().map(|status| i32::from(*status)).collect(),
            include_anonymous: args.all,
        });
        let page = client.contracts().list_contracts(request).await.map_err(client.refused("list contracts"))?;
        let page = page.into_inner();
        contracts.extend(page.contracts);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if session.out.json {
        return contracts.iter().try_for_each(|contract| session.out.object(&view::Contract::from(contract)));
    }
    let now = clock::now();
    let mut table = Table::new(&["ID", "NAME", "STATUS", "DONE", "RUNNING", "FAILED", "CREATED", "REPOSITORY"]);
    for contract in &contracts {
        let counts = contract.task_counts.unwrap_or_default();
        table.row(&[
            view::short(&contract.contract_id),
            contract.name.clone(),
            status_word(contract),
            format!("{}/{}", counts.done + counts.merged, total(&counts)),
            contract.live_attempts.to_string(),
            counts.failed.to_string(),
            ago(now, view::time(contract.create_time.as_ref())),
            contract.repository.clone(),
        ]);
    }
    session.out.table(&table, "no contracts yet: `makima contract apply FILE` makes one")
}

async fn get(session: &mut Session, text: &str) -> Result<()> {
    let client = session.client(KeyUse::Owner).await?;
    let contract_id = resolve::contract(&client, text).await?;
    let request = timed(pb::GetContractRequest { contract_id });
    let answer = client.contracts().get_contract(request).await.map_err(client.refused("read the contract"))?;
    let contract = answer.into_inner().contract.unwrap_or_default();
    if session.out.json {
        return session.out.object(&view::Contract::from(&contract));
    }
    session.out.bytes(described(&contract, clock::now()).as_bytes())
}

fn described(contract: &pb::Contract, now: crate::domain::Timestamp) -> String {
    let counts = contract.task_counts.unwrap_or_default();
    let limits = contract.limits.unwrap_or_default();
    let span = |duration: &prost_types::Duration| {
        let secs = u64::try_from(duration.seconds).unwrap_or_default();
        super::output::span(std::time::Duration::from_secs(secs))
    };
    let mut limit_words = Vec::new();
    limit_words.extend(limits.concurrency.map(|n| format!("{n} at once")));
    limit_words.extend(limits.max_retries.map(|n| format!("{n} retries")));
    limit_words.extend(limits.wall_time.as_ref().map(|time| format!("{} an attempt", span(time))));
    limit_words.extend(limits.rerun_after.as_ref().map(|time| format!("rerun after {}", span(time))));
    limit_words.extend(limits.checkpoint_every.as_ref().map(|time| match time.seconds {
        0 => "no checkpoints while an agent runs".to_owned(),
        _ => format!("a checkpoint every {}", span(time)),
    }));
    limit_words.extend((limits.final_checkpoint == Some(false)).then(|| "none at the end".to_owned()));
    let counted = [
        (counts.done + counts.merged, "done"),
        (counts.running + counts.starting + counts.finalizing, "running"),
        (counts.pending, "pending"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    ];
    let counted: Vec<String> = counted.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    let lines = [
        ("contract", contract.contract_id.clone()),
        ("name", contract.name.clone()),
        ("description", contract.description.clone()),
        ("status", status_word(contract)),
        ("held by", contract.held_by.clone()),
        ("tasks", format!("{} ({})", total(&counts), counted.join(", "))),
        ("repository", contract.repository.clone()),
        ("base", contract.base_branch.clone()),
        ("limits", limit_words.join(", ")),
        ("created", ago(now, view::time(contract.create_time.as_ref()))),
        ("ended", ago(now, view::time(contract.end_time.as_ref()))),
    ];
    super::output::fields(&lines)
}

fn status_word(contract: &pb::Contract) -> String {
    let word = view::contract_status(contract.status());
    if contract.held_by.is_empty() || contract.status() != pb::ContractStatus::Active {
        word.to_owned()
    } else {
        format!("{word}, held")
    }
}

fn total(counts: &pb::TaskCounts) -> u32 {
    [
        counts.pending,
        counts.starting,
        counts.running,
        counts.finalizing,
        counts.done,
        counts.merged,
        counts.failed,
        counts.cancelled,
    ]
    .iter()
    .sum()
}

fn said(session: &mut Session, contract: Option<pb::Contract>, what: &str) -> Result<()> {
    let contract = contract.unwrap_or_default();
    if session.out.json {
        return session.out.object(&view::Contract::from(&contract));
    }
    session.out.line(&format!("contract {} {} {what}", clean(&contract.name), view::short(&contract.contract_id)))
}

fn contract_status(text: &str) -> std::result::Result<pb::ContractStatus, String> {
    pb::ContractStatus::from_str_name(&format!("CONTRACT_STATUS_{}", text.to_ascii_uppercase()))
        .filter(|status| *status != pb::ContractStatus::Unspecified)
        .ok_or_else(|| "write active, done, failed or cancelled".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contract_reads_as_a_list_of_fields() {
        let contract = pb::Contract {
            contract_id: "01938f3e-0000-7000-8000-00c0ffee1234".to_owned(),
            name: "shop".to_owned(),
            repository: "/srv/shop".to_owned(),
            base_branch: "main".to_owned(),
            status: pb::ContractStatus::Active.into(),
            held_by: "key:1: lunch".to_owned(),
            task_counts: Some(pb::TaskCounts { done: 2, running: 1, pending: 2, ..pb::TaskCounts::default() }),
            limits: Some(pb::ContractLimits {
                concurrency: Some(10),
                max_retries: Some(3),
                rerun_after: Some(prost_types::Duration { seconds: 120, nanos: 0 }),
                ..pb::ContractLimits::default()
            }),
            create_time: Some(prost_types::Timestamp { seconds: 1_000, nanos: 0 }),
            ..pb::Contract::default()
        };
        insta::assert_snapshot!(described(&contract, crate::domain::Timestamp::from_secs(1_090)), @r"
        contract     01938f3e-0000-7000-8000-00c0ffee1234
        name         shop
        status       ACTIVE, held
        held by      key:1: lunch
        tasks        5 (2 done, 1 running, 2 pending)
        repository   /srv/shop
        base         main
        limits       10 at once, 3 retries, rerun after 2m00s
        created      1m30s ago
        ");
        insta::assert_snapshot!(serde_json::to_string(&view::Contract::from(&contract)).unwrap(), @r#"{"contract_id":"01938f3e-0000-7000-8000-00c0ffee1234","owner_id":"","name":"shop","description":"","repository":"/srv/shop","base_branch":"main","limits":{"concurrency":10,"max_retries":3,"wall_time":null,"rerun_after":120.0,"checkpoint_every":null,"final_checkpoint":null},"status":"ACTIVE","held_by":"key:1: lunch","task_counts":{"pending":2,"starting":0,"running":1,"finalizing":0,"done":2,"merged":0,"failed":0,"cancelled":0},"anonymous":false,"live_attempts":0,"create_time":"1970-01-01T00:16:40.000000Z","update_time":null,"end_time":null,"etag":""}"#);
    }

    #[test]
    fn suggested_edges_are_added_once() {
        let task = |name: &str, depends_on: &[&str]| pb::TaskSpec {
            name: name.to_owned(),
            depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
            ..pb::TaskSpec::default()
        };
        let mut tasks = [task("schema", &[]), task("ui", &["schema"]), task("types", &[])];
        let suggestion = |task: &str| pb::SuggestedDependency {
            task: task.to_owned(),
            depends_on: "schema".to_owned(),
            reason: "schema comes first".to_owned(),
        };
        add_suggested(&mut tasks, &[suggestion("ui"), suggestion("types"), suggestion("gone")]);
        assert_eq!(tasks, [task("schema", &[]), task("ui", &["schema"]), task("types", &["schema"])]);
    }

    #[test]
    fn the_parts_of_a_request_have_ids_of_their_own_that_stay() {
        assert_eq!(derived("a", "tasks 1"), derived("a", "tasks 1"));
        assert_ne!(derived("a", "tasks 1"), derived("a", "tasks 2"));
        assert_ne!(derived("a", "release"), derived("b", "release"));
    }
}
