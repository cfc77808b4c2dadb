//! Which processes change rows: triggers note the client's port of every session that does, whatever the scheduler
//! believes of itself.

use std::collections::BTreeSet;

use anyhow::ensure;

use super::{Scheduler, Store, TestCloud};
use crate::run;

/// What schedulers write all the while.
const TABLES: [&str; 8] = [
    "leadership",
    "hosts",
    "instances",
    "ports",
    "fixed_ips",
    "claims",
    "documents",
    "decisions",
];

impl TestCloud {
    /// From now on it is noted who changes rows.
    ///
    /// # Errors
    /// It is a file, which has no sessions, or the database refuses.
    pub async fn note_writers(&self) -> anyhow::Result<()> {
        let triggers = match self.database.store() {
            Store::Sqlite => anyhow::bail!("only servers know who writes"),
            Store::Postgres => {
                let mut sql = "CREATE TABLE test_writers (what text, port int); \
                    CREATE FUNCTION test_note() RETURNS trigger LANGUAGE plpgsql AS \
                    'BEGIN INSERT INTO test_writers VALUES (TG_TABLE_NAME, inet_client_port()); RETURN NULL; END';"
                    .to_owned();
                for table in TABLES {
                    sql.push_str(&format!(
                        "CREATE TRIGGER test_note AFTER INSERT OR UPDATE OR DELETE ON {table} \
                        FOR EACH ROW EXECUTE FUNCTION test_note();"
                    ));
                }
                sql
            }
            Store::MariaDb => {
                let mut sql = "CREATE TABLE test_writers (what text, port int);".to_owned();
                for table in TABLES {
                    for event in ["INSERT", "UPDATE", "DELETE"] {
                        sql.push_str(&format!(
                            "CREATE TRIGGER test_{table}_{event} AFTER {event} ON {table} FOR EACH ROW \
                            INSERT INTO test_writers SELECT '{table}', SUBSTRING_INDEX(HOST, ':', -1) \
                            FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID();"
                        ));
                    }
                }
                sql
            }
        };
        self.database.query(&triggers).await.map(drop)
    }

    /// The tables that were changed since [`Self::note_writers`], each with the port of a session that did.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn writers(&self) -> anyhow::Result<BTreeSet<(String, u16)>> {
        let noted = self
            .database
            .query("SELECT DISTINCT what, port FROM test_writers")
            .await?;
        noted
            .lines()
            .map(|line| {
                let (table, port) = line.split_once(['|', '\t']).unwrap_or((line, ""));
                Ok((table.to_owned(), port.parse()?))
            })
            .collect()
    }

    /// The ports of a scheduler's connections to the database.
    ///
    /// # Errors
    /// It does not run, or has none.
    pub async fn sessions_of(&self, scheduler: &Scheduler) -> anyhow::Result<BTreeSet<u16>> {
        let owner = format!("pid={},", scheduler.pid()?);
        let server = self.database.server();
        let sockets = run::text(&["ss", "-Htnp"]).await?;
        let ports: BTreeSet<u16> = sockets
            .lines()
            .filter(|line| line.contains(&owner))
            .filter_map(|line| {
                // State, two queues, this end, the other end.
                let mut ends = line.split_whitespace().skip(3);
                let (_, port) = ends.next()?.rsplit_once(':')?;
                (ends.next()? == server).then(|| port.parse().ok())?
            })
            .collect();
        ensure!(
            !ports.is_empty(),
            "{owner} is not connected to {server}:\n{sockets}"
        );
        Ok(ports)
    }
}
