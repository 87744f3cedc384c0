//! The two folders of migrations make one schema, and a database that is not ours to open is refused.

use std::collections::BTreeMap;

use makima::store::{Error, Store, Url};
use sqlx::{Connection as _, PgConnection, Row as _, SqliteConnection};

use crate::{
    bed::{Kind, Place},
    both,
};

both!(a_newer_database_is_refused, a_changed_migration_is_refused, a_second_claim_is_refused);

/// What both databases have, in words that are the same for both.
#[derive(Debug, Default, PartialEq, Eq)]
struct Schema {
    /// By table and column: type, and whether it may be null.
    columns: BTreeMap<(String, String), (String, bool)>,
    /// By table and name, the name left out for keys and UNIQUE constraints.
    indexes: BTreeMap<(String, String, Vec<String>), (bool, String)>,
}

/// Column for column, index for index.
#[tokio::test]
async fn the_schemas_agree() {
    let (one, two) = (Place::new(Kind::Postgres).await, Place::new(Kind::Sqlite).await);
    for place in [&one, &two] {
        let (store, _claim) = Store::open(&place.url).await.expect("open the store");
        store.close().await;
    }
    let (Url::Postgres(postgres), Url::Sqlite(sqlite)) = (&one.url, &two.url) else { panic!("no URLs") };
    let (postgres, sqlite) = (of_postgres(postgres).await, of_sqlite(&sqlite.display().to_string()).await);
    assert!(postgres.columns.len() > 80 && postgres.indexes.len() > 30, "too little was read: {postgres:#?}");
    similar(&postgres.columns, &sqlite.columns);
    similar(&postgres.indexes, &sqlite.indexes);
}

fn similar<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    postgres: &BTreeMap<K, V>,
    sqlite: &BTreeMap<K, V>,
) {
    let keys: std::collections::BTreeSet<_> = postgres.keys().chain(sqlite.keys()).collect();
    let differences: Vec<_> = (keys.into_iter())
        .filter(|key| postgres.get(key) != sqlite.get(key))
        .map(|key| format!("{key:?}: postgres {:?}, sqlite {:?}", postgres.get(key), sqlite.get(key)))
        .collect();
    assert!(differences.is_empty(), "the schemas differ:\n{}", differences.join("\n"));
}

async fn of_postgres(url: &str) -> Schema {
    let mut connection = PgConnection::connect(url).await.expect("connect");
    let mut schema = Schema::default();
    let columns = sqlx::query(
        "SELECT table_name::text, column_name::text, data_type::text, is_nullable = 'YES' AS nullable
         FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'",
    );
    for row in columns.fetch_all(&mut connection).await.expect("columns") {
        let (table, column, ty): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let ty = match ty.as_str() {
            "uuid" => "blob",
            "timestamp with time zone" | "bigint" | "integer" | "boolean" => "integer",
            "json" | "text" => "text",
            other => panic!("{table}.{column} is {other}, for which there is no pair"),
        };
        schema.columns.insert((table, column), (ty.to_owned(), row.get(3)));
    }
    let indexes = sqlx::query(
        "SELECT t.relname::text, i.relname::text, x.indisunique, c.oid IS NOT NULL AS of_constraint,
             coalesce(pg_get_expr(x.indpred, x.indrelid), '') AS predicate,
             ARRAY(SELECT pg_get_indexdef(x.indexrelid, k, true)
                   || CASE WHEN x.indoption[k - 1] & 1 = 1 THEN ' desc' ELSE '' END
                   FROM generate_series(1, x.indnkeyatts) AS k) AS columns
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
             JOIN pg_namespace n ON n.oid = t.relnamespace LEFT JOIN pg_constraint c ON c.conindid = i.oid
         WHERE n.nspname = 'public' AND t.relname <> '_sqlx_migrations'",
    );
    for row in indexes.fetch_all(&mut connection).await.expect("indexes") {
        let name = if row.get(3) { String::new() } else { row.get(1) };
        let predicate: String = row.get(4);
        schema.indexes.insert((row.get(0), name, row.get(5)), (row.get(2), plain(&predicate)));
    }
    schema
}

async fn of_sqlite(path: &str) -> Schema {
    let mut connection = SqliteConnection::connect(&format!("sqlite:{path}")).await.expect("connect");
    let mut schema = Schema::default();
    let tables = sqlx::query(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> '_sqlx_migrations'",
    );
    for table in tables.fetch_all(&mut connection).await.expect("tables") {
        let table: String = table.get(0);
        let columns = sqlx::query("SELECT name, lower(type), \"notnull\", pk FROM pragma_table_info($1)").bind(&table);
        for row in columns.fetch_all(&mut connection).await.expect("columns") {
            let (column, ty, not_null, pk): (String, String, bool, i64) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            if ty == "integer" && pk == 1 {
                // The rowid is its own index.
                schema.indexes.insert((table.clone(), String::new(), vec![column.clone()]), (true, String::new()));
            }
            schema.columns.insert((table.clone(), column), (ty, !not_null && pk == 0));
        }
        let indexes = sqlx::query(
            "SELECT l.name, l.\"unique\", l.origin, coalesce(m.sql, '') FROM pragma_index_list($1) l
             LEFT JOIN sqlite_master m ON m.name = l.name",
        )
        .bind(&table);
        for row in indexes.fetch_all(&mut connection).await.expect("indexes") {
            let (index, origin, sql): (String, String, String) = (row.get(0), row.get(2), row.get(3));
            let keys = sqlx::query("SELECT name || iif(\"desc\", ' desc', '') FROM pragma_index_xinfo($1) WHERE key")
                .bind(&index)
                .fetch_all(&mut connection)
                .await
                .expect("columns of an index");
            let keys = keys.iter().map(|row| row.get(0)).collect();
            let name = if origin == "c" { index } else { String::new() };
            let predicate = sql.split_once("WHERE").map_or("", |(_, predicate)| predicate);
            schema.indexes.insert((table.clone(), name, keys), (row.get(1), plain(predicate)));
        }
    }
    schema
}

/// A predicate without what the databases write differently.
fn plain(predicate: &str) -> String {
    let words: String = predicate.replace("::text", "").chars().filter(|c| !matches!(c, '(' | ')')).collect();
    words.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs a statement beside the store.
async fn execute(place: &Place, sql: &'static str) {
    match &place.url {
        Url::Postgres(url) => {
            let mut connection = PgConnection::connect(url).await.expect("connect");
            sqlx::query(sql).execute(&mut connection).await.expect("execute");
        }
        Url::Sqlite(path) => {
            let mut connection =
                SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.expect("connect");
            sqlx::query(sql).execute(&mut connection).await.expect("execute");
        }
    }
}

async fn made(kind: Kind) -> Place {
    let place = Place::new(kind).await;
    let (store, _claim) = Store::open(&place.url).await.expect("open the store");
    store.close().await;
    place
}

/// Opens once the claim of the test's own first opening is gone, as the server may notice it a moment later.
async fn opened(place: &Place) -> Result<(), Error> {
    crate::harness::eventually("the claim is free", || async {
        match Store::open(&place.url).await {
            Err(Error::InUse(message)) => Err(message),
            other => Ok(other.map(|_| ())),
        }
    })
    .await
}

/// A schema from the future is left alone, and the message says what to do.
async fn a_newer_database_is_refused(kind: Kind) {
    let place = made(kind).await;
    let newer = match kind {
        Kind::Postgres => {
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'later', true, '\\x00', 1)"
        }
        Kind::Sqlite => {
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'later', true, x'00', 1)"
        }
    };
    execute(&place, newer).await;
    match opened(&place).await {
        Err(Error::Schema(message)) => assert_eq!(
            message,
            "the database has schema version 9999, which is newer than this makima; use a newer makima"
        ),
        other => panic!("not refused: {other:?}"),
    }
}

/// A schema that another build made differently is left alone.
async fn a_changed_migration_is_refused(kind: Kind) {
    let place = made(kind).await;
    let other = match kind {
        Kind::Postgres => "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1",
        Kind::Sqlite => "UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 1",
    };
    execute(&place, other).await;
    match opened(&place).await {
        Err(Error::Schema(message)) => assert!(message.starts_with("migration 1 of this database"), "{message}"),
        other => panic!("not refused: {other:?}"),
    }
}

/// Two servers never have one database; the second is told what to do. The claim outlives the store's connections.
async fn a_second_claim_is_refused(kind: Kind) {
    let place = Place::new(kind).await;
    let (store, mut claim) = Store::open(&place.url).await.expect("open the store");
    for _ in 0..2 {
        match Store::open(&place.url).await {
            Err(Error::InUse(message)) => assert!(message.contains("another makima server has"), "{message}"),
            other => panic!("not refused: {:?}", other.map(|_| ())),
        }
    }
    claim.check().await.expect("the claim holds");
    store.close().await;
    assert!(matches!(Store::open(&place.url).await, Err(Error::InUse(_))));
    drop(claim);
    opened(&place).await.expect("free again");
}
