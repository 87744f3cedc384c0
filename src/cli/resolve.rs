//! From what a person types to an id. Contracts: id, short id, or a name that is one contract's only. Tasks: id, short id,
//! `CONTRACT/NAME`, or a name that is one task's only. What fits several is refused with a list of them.

use uuid::Uuid;

use super::{
    client::{Client, timed},
    error::{Error, Result},
    output::clean,
    view,
};
use crate::wire::pb;

/// Read at once.
const PAGE: u32 = 1_000;
/// Pages read in search of a name; beyond that an id is asked for.
const MAX_PAGES: usize = 20;
/// Candidates shown when a name fits several.
const CANDIDATES_SHOWN: usize = 10;
/// Digits of a short id that are enough to be meant as one.
const SHORT_ID_DIGITS: usize = 4;

/// The id of a contract.
pub async fn contract(client: &Client, text: &str) -> Result<String> {
    if let Some(id) = full_id(text) {
        return Ok(id);
    }
    let mut found = Vec::new();
    let mut page_token = String::new();
    for _ in 0..MAX_PAGES {
        let request = timed(pb::ListContractsRequest {
            page_size: PAGE,
            page_token,
            include_anonymous: true,
            statuses: Vec::new(),
        });
        let page = client.contracts().list_contracts(request).await.map_err(client.refused("list contracts"))?;
        let page = page.into_inner();
        for contract in page.contracts {
            let state = view::contract_status(contract.status());
            found.push(Candidate { id: contract.contract_id, name: contract.name, state });
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    choose("contract", text, found)
}

/// The id of a task. `within` is the contract that names are looked up in, as a person typed it.
pub async fn task(client: &Client, text: &str, within: Option<&str>) -> Result<String> {
    if let Some(id) = full_id(text) {
        return Ok(id);
    }
    let (within, name) = match (within, text.split_once('/')) {
        (Some(within), _) => (Some(within), text),
        (None, Some((contract, name))) => (Some(contract), name),
        (None, None) => (None, text),
    };
    let contract_id = match within {
        Some(within) => contract(client, within).await?,
        None => String::new(),
    };
    if contract_id.is_empty() && is_whole_short_id(name) {
        let request = timed(pb::GetTaskRequest { task_id: name.to_ascii_lowercase() });
        if let Ok(response) = client.tasks().get_task(request).await
            && let Some(task) = response.into_inner().task
        {
            return Ok(task.task_id);
        }
    }
    choose("task", name, tasks(client, &contract_id).await?)
}

async fn tasks(client: &Client, contract_id: &str) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    for _ in 0..MAX_PAGES {
        let request = timed(pb::ListTasksRequest {
            contract_id: contract_id.to_owned(),
            page_size: PAGE,
            page_token,
            include_hidden: true,
            statuses: Vec::new(),
        });
        let page = client.tasks().list_tasks(request).await.map_err(client.refused("list tasks"))?.into_inner();
        for task in page.tasks {
            let state = view::task_status(task.status());
            found.push(Candidate {
                id: task.task_id,
                name: task.spec.map(|spec| spec.name).unwrap_or_default(),
                state,
            });
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Something that may be meant.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: &'static str,
}

/// The one candidate that the text names: by its whole name, else by the end of its id.
pub fn choose(noun: &str, text: &str, candidates: Vec<Candidate>) -> Result<String> {
    let mut named: Vec<Candidate> = candidates.iter().filter(|candidate| candidate.name == text).cloned().collect();
    let digits = text.to_ascii_lowercase();
    if named.is_empty() && digits.len() >= SHORT_ID_DIGITS && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        named = candidates.into_iter().filter(|candidate| view::short(&candidate.id).ends_with(&digits)).collect();
    }
    match named.as_slice() {
        [] => Err(Error::failed(format!(
            "there is no {noun} {}; `makima {noun} list` shows those there are",
            clean(text)
        ))),
        [one] => Ok(one.id.clone()),
        several => {
            let shown = several.iter().take(CANDIDATES_SHOWN).map(|candidate| {
                format!("\n  {}  {}  {}", view::short(&candidate.id), candidate.state, clean(&candidate.name))
            });
            let more = several.len().saturating_sub(CANDIDATES_SHOWN);
            let rest = if more > 0 { format!("\n  and {more} more") } else { String::new() };
            Err(Error::usage(format!(
                "{} could be any of {} {noun}s; name one by its id:{}{rest}",
                clean(text),
                several.len(),
                shown.collect::<String>()
            )))
        }
    }
}

fn full_id(text: &str) -> Option<String> {
    Uuid::try_parse(text).ok().map(|id| id.to_string())
}

fn is_whole_short_id(text: &str) -> bool {
    text.len() == 12 && text.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        [
            ("01938f3e-0000-7000-8000-00c0ffee1234", "shop"),
            ("01938f3e-0000-7000-8000-00c0ffee5678", "shop"),
            ("01938f3e-0000-7000-8000-0000000beef0", "blog"),
        ]
        .map(|(id, name)| Candidate { id: id.to_owned(), name: name.to_owned(), state: "ACTIVE" })
        .into()
    }

    #[test]
    fn names_and_ends_of_ids_find_the_one() {
        assert_eq!(choose("contract", "blog", candidates()).unwrap(), "01938f3e-0000-7000-8000-0000000beef0");
        assert_eq!(choose("contract", "5678", candidates()).unwrap(), "01938f3e-0000-7000-8000-00c0ffee5678");
        assert_eq!(choose("contract", "00C0FFEE1234", candidates()).unwrap(), "01938f3e-0000-7000-8000-00c0ffee1234");
    }

    #[test]
    fn several_are_listed_and_none_is_said() {
        insta::assert_snapshot!(choose("contract", "shop", candidates()).unwrap_err(), @r"
        shop could be any of 2 contracts; name one by its id:
          00c0ffee1234  ACTIVE  shop
          00c0ffee5678  ACTIVE  shop
        ");
        insta::assert_snapshot!(choose("contract", "678", candidates()).unwrap_err(), @"there is no contract 678; `makima contract list` shows those there are");
    }
}
