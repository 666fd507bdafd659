//! Opening a database: URLs, missing files, schemas.

use diesel::dsl::sql;
use diesel::sql_types::Bool;

use super::*;

#[test]
fn a_url_names_a_sqlite_file_or_a_postgresql_server() {
    for good in ["sqlite:things.sqlite", "sqlite:/tmp/things", "postgres://u@h/db", "postgresql:///db"] {
        assert!(good.parse::<Url>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "things.sqlite",
        "/tmp/things.sqlite",
        "file:things.sqlite",
        "mysql://u@h/db",
        "sqlite",
        "sqlite:",
        "sqlite::memory:",
        "SQLITE:things.sqlite",
        "postgres:",
        "postgres:u@h/db",
        "host=h user=u",
    ] {
        let refused = bad.parse::<Url>().unwrap_err();
        assert!(refused.contains("sqlite:") && refused.contains("postgres:"), "{bad}: {refused}");
    }
}

#[test]
fn neither_a_url_nor_a_failure_to_open_it_shows_the_password() {
    for url in [
        "postgres://clerk:hunter2@127.0.0.1:1/things",
        "postgresql://clerk@127.0.0.1:1/things?password=hunter2",
        // Mistakes that libpq complains of in its own words.
        "postgres://clerk:hunter2%@127.0.0.1:1/things",
        "postgres://clerk:hunter2@[::1/things",
        "postgres://clerk:hunter2@[::1]things",
        "postgres://clerk@127.0.0.1:1/things?hunter2",
        "postgres://clerk:hunter2/3@127.0.0.1:1/things",
        "postgres://clerk:4@hunter2@127.0.0.1:1/things",
    ] {
        let url: Url = url.parse().unwrap();
        let Err(refused) = Database::open(&url, true, Writes::Serial) else { panic!("{url} was opened") };
        for shown in [format!("{url}"), format!("{url:?}"), format!("{refused}"), format!("{refused:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}

#[test]
fn a_missing_sqlite_file_is_made_only_when_asked_for() {
    let home = Home::new(Backend::Sqlite);
    let files = || std::fs::read_dir(home.folder.path()).unwrap().count();
    let Err(refused) = Database::open(&home.url, false, Writes::Serial) else {
        panic!("a database that does not exist was opened")
    };
    assert!(matches!(&refused, Error::Unavailable(why) if why.contains("--create")), "{refused}");
    assert_eq!(files(), 0, "nothing is left behind");

    drop(Database::open(&home.url, true, Writes::Serial).unwrap());
    assert!(files() >= 1);
    drop(Database::open(&home.url, false, Writes::Serial).unwrap());

    let nowhere = home.folder.path().join("no folder").join("things.sqlite");
    let nowhere: Url = format!("sqlite:{}", nowhere.display()).parse().unwrap();
    for (create, why) in [(false, "does not exist"), (true, "cannot be created")] {
        let Err(refused) = Database::open(&nowhere, create, Writes::Serial) else {
            panic!("create: {create}")
        };
        assert!(refused.to_string().contains(why), "create: {create}: {refused}");
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_noticed_at_the_start() {
    // Nothing listens on port 1.
    for writes in [Writes::Serial, Writes::Concurrent] {
        let url: Url = "postgres://clerk@127.0.0.1:1/things".parse().unwrap();
        assert!(matches!(Database::open(&url, true, writes).err(), Some(Error::Unavailable(_))));
    }
}

#[cfg(feature = "bundled-libpq")]
#[test]
fn a_url_that_needs_tls_is_refused_by_a_build_without_it() {
    let url: Url = "postgres://clerk@127.0.0.1:1/things?sslmode=require".parse().unwrap();
    let Err(refused) = Database::open(&url, false, Writes::Serial) else {
        panic!("a connection without TLS was made")
    };
    // The complaint is about TLS, not about the port that nothing listens on.
    let words = refused.to_string();
    assert!(words.contains("sslmode=require") && words.contains("--no-default-features"), "{words}");
}

#[test]
fn a_schema_is_refused_until_it_is_migrated() {
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = Database::open(&home.url, true, Writes::Serial).unwrap();
        let refused = database.check_schema(MIGRATIONS).unwrap_err();
        assert!(matches!(&refused, Error::Query(why) if why.contains("migrate")), "{backend:?}: {refused}");
        database.migrate(MIGRATIONS).unwrap();
        database.check_schema(MIGRATIONS).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        assert_eq!(home.stored(), BTreeSet::new(), "{backend:?}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn only_its_owner_reads_a_new_sqlite_file() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new(Backend::Sqlite);
    let database = home.open(Writes::Serial);
    write(&database, "name").await.unwrap();
    let mut files = 0;
    for file in std::fs::read_dir(home.folder.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}: {mode:o}", file.file_name());
        files += 1;
    }
    assert!(files >= 2, "the log is among them");
}

#[test]
fn a_database_that_does_not_store_utf_8_is_refused() {
    let Some(_) = Backend::postgres() else { return };
    let name = format!("test_latin_{}", &new_salt()[..20]);
    let create = format!("CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    server().batch_execute(&create).unwrap();
    let base = postgres_url().unwrap();
    let (server_part, parameters) = base.split_once('?').unwrap_or((&base, ""));
    let (address, _) = server_part.rsplit_once('/').unwrap();
    let url: Url = format!("{address}/{name}?{parameters}").parse().unwrap();
    let refused = Database::open(&url, false, Writes::Serial).map(drop).unwrap_err();
    server().batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
    assert!(refused.to_string().contains("SQL_ASCII and must be UTF8"), "{refused}");
}

#[test]
fn the_database_of_another_service_is_refused() {
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = home.open(Writes::Serial);
        for outcome in [database.migrate(OTHERS), database.check_schema(OTHERS)] {
            let refused = outcome.unwrap_err().to_string();
            assert!(refused.contains("another service"), "{backend:?}: {refused}");
        }
        database.check_schema(MIGRATIONS).unwrap();
    }
}

/// The flags stand in `.cargo/config.toml`, where a build elsewhere may miss them.
#[test]
fn sqlite_is_compiled_with_the_flags_of_this_repository() {
    let home = Home::new(Backend::Sqlite);
    let Connection::Sqlite(mut c) = home.independent() else { panic!("another database was opened") };
    let mut is_used = |option: &str| -> bool {
        diesel::select(sql::<Bool>(&format!("sqlite_compileoption_used('{option}')")))
            .get_result(&mut c)
            .unwrap()
    };
    assert!(!is_used("ENABLE_MEMORY_MANAGEMENT"));
    assert!(is_used("DEFAULT_MEMSTATUS=0"));
    assert!(is_used("ENABLE_QPSG"));
}
