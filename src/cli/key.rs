//! `makima key`: make, list and revoke keys, with an admin key.

use clap::{Args, Subcommand, ValueEnum};

use super::{
    Session,
    client::{Client, timed},
    config::KeyUse,
    error::{Error, Result},
    output::{Table, ago, note},
    resolve::{self, Candidate},
    view,
};
use crate::{runtime::clock, wire::pb};

/// Read at once.
const PAGE: u32 = 1_000;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key; prints its secret, once (the owner is named by --owner)
    Create(CreateArgs),
    /// List keys, newest first
    List(ListArgs),
    /// End a key at once
    Revoke(RevokeArgs),
}

/// `key create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// What it is to be good for
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// For people
    #[arg(long, default_value = "")]
    pub label: String,
}

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Keys and daemons of all owners
    Admin,
    /// Contracts, tasks and daemons of one owner
    Owner,
    /// Attaching as one owner's daemon
    Daemon,
}

/// `key list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Also the revoked ones
    #[arg(long)]
    pub all: bool,
}

/// `key revoke`.
#[derive(Args, Debug)]
pub struct RevokeArgs {
    /// Id or short id
    pub key: String,
}

/// Does it.
pub async fn run(session: &mut Session, command: KeyCommand) -> Result<()> {
    match command {
        KeyCommand::Create(args) => create(session, args).await,
        KeyCommand::List(args) => {
            let client = session.client(KeyUse::Admin).await?;
            list(session, &client, args.all).await
        }
        KeyCommand::Revoke(args) => {
            let client = session.client(KeyUse::Admin).await?;
            let candidates = all(&client, false).await?.into_iter();
            let candidates = candidates.map(|key| {
                let state = view::key_kind(key.kind());
                Candidate { id: key.key_id, name: key.label, state }
            });
            let key_id = match uuid::Uuid::try_parse(&args.key) {
                Ok(id) => id.to_string(),
                Err(_) => resolve::choose("key", &args.key, candidates.collect())?,
            };
            let answer = client.keys().revoke_key(timed(pb::RevokeKeyRequest { key_id })).await;
            let key = answer.map_err(client.refused("revoke the key"))?.into_inner().key.unwrap_or_default();
            if session.out.json {
                return session.out.object(&view::Key::from(&key));
            }
            session
                .out
                .line(&format!("key {} is revoked; sessions opened with it are closed", view::short(&key.key_id)))
        }
    }
}

async fn create(session: &mut Session, args: CreateArgs) -> Result<()> {
    let (kind, owner) = match args.kind {
        Kind::Admin => (pb::KeyKind::Admin, String::new()),
        Kind::Owner | Kind::Daemon => {
            let owner =
                session.settings.owner.clone().ok_or_else(|| {
                    Error::usage("whose key? pass --owner NAME (an owner is made with its first key)")
                })?;
            let kind = if args.kind == Kind::Owner { pb::KeyKind::Owner } else { pb::KeyKind::Daemon };
            (kind, owner)
        }
    };
    let client = session.client(KeyUse::Admin).await?;
    let request = pb::CreateKeyRequest { kind: kind.into(), owner, label: args.label };
    let answer = client.keys().create_key(timed(request)).await;
    let answer = answer.map_err(client.refused("make the key"))?.into_inner();
    let key = answer.key.unwrap_or_default();
    if session.out.json {
        return session.out.object(&view::Key::from(&key).with_secret(&answer.secret));
    }
    let whose = if key.owner_name.is_empty() { String::new() } else { format!(" of {}", key.owner_name) };
    note(&format!(
        "{} key {}{whose}; this is its secret, which is kept nowhere else:",
        view::key_kind(key.kind()).to_lowercase(),
        view::short(&key.key_id)
    ));
    session.out.line(&answer.secret)
}

async fn list(session: &mut Session, client: &Client, with_revoked: bool) -> Result<()> {
    let keys = all(client, with_revoked).await?;
    if session.out.json {
        return keys.iter().try_for_each(|key| session.out.object(&view::Key::from(key)));
    }
    let now = clock::now();
    let mut table = Table::new(&["ID", "KIND", "OWNER", "LABEL", "CREATED", "REVOKED"]);
    for key in &keys {
        table.row(&[
            view::short(&key.key_id),
            view::key_kind(key.kind()).to_owned(),
            key.owner_name.clone(),
            key.label.clone(),
            ago(now, view::time(key.create_time.as_ref())),
            ago(now, view::time(key.revoke_time.as_ref())),
        ]);
    }
    session.out.table(&table, "no keys")
}

async fn all(client: &Client, include_revoked: bool) -> Result<Vec<pb::Key>> {
    let mut keys = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = timed(pb::ListKeysRequest { page_size: PAGE, page_token, include_revoked });
        let page = client.keys().list_keys(request).await.map_err(client.refused("list keys"))?.into_inner();
        keys.extend(page.keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(keys);
        }
    }
}
