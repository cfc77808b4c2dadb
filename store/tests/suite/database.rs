//! A database for each test, and the macro that runs a test on all three kinds.

use std::{env, future::Future, panic, sync::Arc};

use berth_store::{Store, StoreConfig};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use tempfile::TempDir;

/// Makes `mod sqlite`, `mod postgres` and `mod mariadb`, each with the tests named. A test is
/// `async fn(Arc<TestDatabase>)`.
macro_rules! on_all_databases {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $crate::database::run_on!(Sqlite, super, $($test),+);
        }
        mod postgres {
            $crate::database::run_on!(Postgres, super, $($test),+);
        }
        mod mariadb {
            $crate::database::run_on!(MariaDb, super, $($test),+);
        }
    };
}
pub(crate) use on_all_databases;

/// Makes the tests named, which stand in the given module, for one kind of database.
macro_rules! run_on {
    ($kind:ident, $module:path, $($test:ident),+) => {
        use $module as tests;
        $(#[test] fn $test() { $crate::database::run($crate::database::Kind::$kind, tests::$test) })+
    };
}
pub(crate) use run_on;

/// The three databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
    MariaDb,
}

/// One empty database, gone after the test.
pub(crate) struct TestDatabase {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    /// Where to drop it: the server's address, and the name.
    server: Option<(String, String)>,
    directory: Option<TempDir>,
}

fn server(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set, so there is no server to test on; \
             start them: scripts/test-services.sh start; eval \"$(scripts/test-services.sh env)\""
        )
    })
}

impl TestDatabase {
    async fn create(kind: Kind) -> Self {
        let name = format!("berth_test_{}", uuid::Uuid::new_v4().simple());
        let (base, admin) = match kind {
            Kind::Sqlite => {
                let directory = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}/berth.db", directory.path().display());
                return Self {
                    kind,
                    url,
                    server: None,
                    directory: Some(directory),
                };
            }
            Kind::Postgres => {
                let base = server("BERTH_TEST_POSTGRES");
                let admin = format!("{}/postgres", base.trim_end_matches('/'));
                (base, admin)
            }
            Kind::MariaDb => {
                let base = server("BERTH_TEST_MARIADB");
                (base.clone(), base)
            }
        };
        let connection = Database::connect(&admin).await.unwrap();
        connection
            .execute_unprepared(&format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        connection.close().await.unwrap();
        let url = format!("{}/{name}", base.trim_end_matches('/'));
        Self {
            kind,
            url,
            server: Some((admin, name)),
            directory: None,
        }
    }

    async fn remove(&self) {
        if let Some((admin, name)) = &self.server {
            let connection = Database::connect(admin).await.unwrap();
            let drop = format!("DROP DATABASE {name}");
            // By force, since connections of the test may still be open; but force is refused while a vacuum is at
            // work there, which goes at once when it is asked without.
            let forced = self.kind == Kind::Postgres
                && connection
                    .execute_unprepared(&format!("{drop} WITH (FORCE)"))
                    .await
                    .is_ok();
            if !forced {
                connection.execute_unprepared(&drop).await.unwrap();
            }
            connection.close().await.unwrap();
        }
        if let Some(directory) = &self.directory {
            std::fs::remove_dir_all(directory.path()).unwrap();
        }
    }

    /// Connects; the schema may not be there.
    pub(crate) async fn connect(&self) -> Store {
        Store::connect(&StoreConfig {
            url: self.url.clone(),
            max_connections: 4,
        })
        .await
        .unwrap()
    }

    /// Connects, with the schema in place.
    pub(crate) async fn store(&self) -> Store {
        let store = self.connect().await;
        store.migrate().await.unwrap();
        store
    }

    /// A connection that can do anything.
    pub(crate) async fn raw(&self) -> DatabaseConnection {
        Database::connect(&self.url).await.unwrap()
    }

    /// Runs a statement behind the store's back.
    pub(crate) async fn execute(&self, sql: &str) -> u64 {
        let connection = self.raw().await;
        let done = connection
            .execute_unprepared(sql)
            .await
            .unwrap()
            .rows_affected();
        connection.close().await.unwrap();
        done
    }
}

/// Runs one test on a new database and removes the database, also after a panic.
pub(crate) fn run<F: Future<Output = ()>>(kind: Kind, test: impl FnOnce(Arc<TestDatabase>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let database = Arc::new(runtime.block_on(TestDatabase::create(kind)));
    let given = Arc::clone(&database);
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| runtime.block_on(test(given))));
    runtime.block_on(database.remove());
    if let Err(panic) = outcome {
        panic::resume_unwind(panic);
    }
}
