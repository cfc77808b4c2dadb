//! The scheduler's database: a file, or a database of its own on a server.

use anyhow::Context;

use crate::{lab::Site, run, services::Services};

/// Which kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A file in the site's folder.
    Sqlite,
    /// A database on the PostgreSQL of the tests.
    Postgres,
    /// A database on the MariaDB of the tests.
    MariaDb,
}

/// A database that goes with its cloud.
#[derive(Debug)]
pub(super) struct Database {
    store: Store,
    url: String,
    /// The client's argv up to the statements; none for a file.
    client: Vec<String>,
    /// Commands that drop it: the next one is for when the one before fails.
    drop: Vec<Vec<String>>,
}

impl Database {
    /// Makes it; one left over from a test that was killed goes first.
    pub(super) async fn create(
        services: &Services,
        store: Store,
        site: &Site,
    ) -> anyhow::Result<Self> {
        let name = format!("berth_test_cloud_{}", site.number());
        match store {
            Store::Sqlite => Ok(Self {
                store,
                client: Vec::new(),
                url: format!("sqlite://{}", site.dir().join("scheduler.db").display()),
                drop: Vec::new(),
            }),
            Store::Postgres => {
                let client = |sql: String| {
                    let server = format!("{}postgres", services.postgres);
                    [
                        "psql",
                        "-X",
                        "-q",
                        "-v",
                        "ON_ERROR_STOP=1",
                        "-d",
                        &server,
                        "-c",
                        &sql,
                    ]
                    .map(str::to_owned)
                    .to_vec()
                };
                // By force, since connections may still be open; but force is refused while a vacuum is at work there,
                // which goes at once when it is asked without.
                let drop = ["WITH (FORCE)", ""]
                    .map(|how| client(format!("DROP DATABASE IF EXISTS {name} {how}")))
                    .to_vec();
                execute_one_of(&drop)?;
                execute(&client(format!("CREATE DATABASE {name}"))).await?;
                let url = format!("{}{name}", services.postgres);
                let client = [
                    "psql",
                    "-X",
                    "-q",
                    "-A",
                    "-t",
                    "-v",
                    "ON_ERROR_STOP=1",
                    "-d",
                    &url,
                    "-c",
                ];
                Ok(Self {
                    store,
                    client: client.map(str::to_owned).to_vec(),
                    url,
                    drop,
                })
            }
            Store::MariaDb => {
                let login = MariaDbLogin::parse(&services.mariadb)?;
                let drop = vec![login.client(&format!("DROP DATABASE IF EXISTS {name}"))];
                execute_one_of(&drop)?;
                execute(&login.client(&format!("CREATE DATABASE {name}"))).await?;
                let mut client = login.client("");
                client.pop();
                let into = ["-N", "-B", "-D", &name, "-e"];
                client.extend(into.map(str::to_owned));
                Ok(Self {
                    store,
                    client,
                    url: format!("{}{name}", services.mariadb),
                    drop,
                })
            }
        }
    }

    /// Its address, as the scheduler's configuration takes it.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Which kind it is.
    pub(super) fn store(&self) -> Store {
        self.store
    }

    /// The address of its server, without a name or password.
    pub(super) fn server(&self) -> &str {
        let (_, rest) = self.url.split_once('@').unwrap_or_default();
        rest.split('/').next().unwrap_or_default()
    }

    /// What statements answer, a row on a line.
    pub(super) async fn query(&self, sql: &str) -> anyhow::Result<String> {
        let mut argv: Vec<&str> = self.client.iter().map(String::as_str).collect();
        argv.push(sql);
        run::text(&argv).await
    }

    /// Drops it, as long as the site's number is taken: the next site of that number has a database of the same name.
    pub(super) fn remove(&mut self) -> anyhow::Result<()> {
        execute_one_of(&std::mem::take(&mut self.drop))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A leftover is dropped by the next test that gets this name.
        let _ = self.remove();
    }
}

async fn execute(argv: &[String]) -> anyhow::Result<()> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    run::text(&argv).await.map(drop)
}

/// The first of several commands that succeeds; the error is the last one's.
fn execute_one_of(commands: &[Vec<String>]) -> anyhow::Result<()> {
    let mut result = Ok(());
    for argv in commands {
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        result = run::text_blocking(&argv).map(drop);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// MariaDB's own client takes no URL.
struct MariaDbLogin {
    user: String,
    password: String,
    host: String,
    port: String,
}

impl MariaDbLogin {
    fn parse(url: &str) -> anyhow::Result<Self> {
        let parts = || {
            let (login, server) = url
                .strip_prefix("mysql://")?
                .trim_end_matches('/')
                .split_once('@')?;
            let (user, password) = login.split_once(':')?;
            let (host, port) = server.split_once(':')?;
            Some(Self {
                user: user.into(),
                password: password.into(),
                host: host.into(),
                port: port.into(),
            })
        };
        parts().context("BERTH_TEST_MARIADB must be mysql://user:password@host:port/")
    }

    fn client(&self, sql: &str) -> Vec<String> {
        let argv = [
            "mariadb".to_owned(),
            "--no-defaults".to_owned(),
            format!("--host={}", self.host),
            format!("--port={}", self.port),
            format!("--user={}", self.user),
            format!("--password={}", self.password),
            format!("--execute={sql}"),
        ];
        argv.to_vec()
    }
}
