//! What berth wants and what it knows, on disk before it is acted on.
//!
//! One SQLite file in WAL mode with full synchronisation: a transaction that returned is there
//! after kill -9 and after a power cut. Several processes may read and write; the newest plan is
//! the one in force.
//!
//! - `watched`: what was seen of memory, what is wrong, and what is advised

mod watched;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_core::inventory::{InstanceId, ProcessMemory};
use berth_core::ledger::Reported;
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::Record;
use berth_core::report::PlanReport;
use berth_engines::Diagnosis;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::crash;
use crate::status::PastEvent;

pub use watched::{Advice, Asked, PlanError, Sample};

/// The layout of the tables; a file with a later one is refused.
const VERSION: i64 = 3;
/// Events that are kept.
const MAX_EVENTS: i64 = 10_000;
/// Plans that are kept.
const MAX_PLANS: i64 = 100;

const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE plans (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        digest TEXT NOT NULL,
        plan TEXT NOT NULL,
        report TEXT
    );
    CREATE TABLE instances (
        id TEXT PRIMARY KEY,
        record TEXT NOT NULL,
        diagnosis TEXT,
        reported TEXT,
        memory_when_ready TEXT
    );
    CREATE TABLE proven (id TEXT PRIMARY KEY, instance TEXT NOT NULL);
    CREATE TABLE rollbacks (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, instance TEXT NOT NULL);
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        instance TEXT NOT NULL,
        what TEXT NOT NULL
    );
    INSERT INTO meta VALUES ('state_id', lower(hex(randomblob(16))));
";

/// What the second layout has beside the first.
const SECOND: &str = "
    CREATE TABLE IF NOT EXISTS samples (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        node TEXT NOT NULL,
        device TEXT NOT NULL,
        planned INTEGER NOT NULL,
        used INTEGER,
        own INTEGER
    );
    CREATE TABLE IF NOT EXISTS alarms (at_ms INTEGER NOT NULL, alarms TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS deaths (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        instance TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        report TEXT NOT NULL,
        UNIQUE (instance, at_ms)
    );
";

/// What the third layout has beside the second.
const THIRD: &str = "
    CREATE TABLE IF NOT EXISTS held (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        instance TEXT NOT NULL,
        node TEXT NOT NULL,
        device TEXT NOT NULL,
        planned INTEGER NOT NULL,
        observed INTEGER NOT NULL
    );
    CREATE TABLE IF NOT EXISTS most_held (
        config TEXT NOT NULL,
        device_name TEXT NOT NULL,
        model TEXT NOT NULL,
        engine TEXT NOT NULL,
        planned INTEGER NOT NULL,
        observed INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (config, device_name)
    );
";

/// A plan that was in force, or is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PastPlan {
    /// Its number.
    pub seq: i64,
    /// Since when, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its digest.
    pub digest: String,
    /// The strategy that it carries out.
    pub strategy: Option<String>,
}

/// Why the journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite can't open, read or write it.
    #[error("the journal {path} can't be used")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Something in it is not what this version wrote.
    #[error("the journal {path} has an entry that can't be read")]
    Entry {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A later version of berth made it.
    #[error("the journal {path} was made by a later version of berth (layout {found})")]
    Later {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// Another plan came into force since this one was made.
    #[error("the plan is stale: another one came into force since it was made")]
    Stale,
}

/// The journal of one state folder.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    db: Connection,
}

/// A plan as it was journalled.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalledPlan {
    /// Its number: a later plan has a larger one.
    pub seq: i64,
    /// When it came into force, in milliseconds since 1970.
    pub at_ms: u64,
    /// The plan.
    pub plan: Plan,
    /// Why it is as it is.
    pub report: Option<PlanReport>,
}

/// What the journal knows about one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceEntry {
    /// Where it is in its life.
    pub record: Record,
    /// Why it failed last.
    pub diagnosis: Option<Diagnosis>,
    /// What its engine's log said about memory.
    pub reported: Option<Reported>,
    /// What its process held when it was ready.
    pub memory_when_ready: Option<ProcessMemory>,
}

impl InstanceEntry {
    /// The entry of an instance of which only the record is known.
    pub fn new(record: Record, diagnosis: Option<Diagnosis>) -> Self {
        Self { record, diagnosis, reported: None, memory_when_ready: None }
    }
}

impl Journal {
    /// Opens the journal at `path`, making it where it isn't there.
    ///
    /// # Errors
    /// Where SQLite can't, or where a later version made it.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let sqlite = |source| JournalError::Sqlite { path: path.to_path_buf(), source };
        let mut db = Connection::open(path).map_err(sqlite)?;
        db.busy_timeout(Duration::from_secs(10)).map_err(sqlite)?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(sqlite)?;
        db.pragma_update(None, "synchronous", "FULL").map_err(sqlite)?;
        let transaction =
            db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
        let version = |row: &rusqlite::Row<'_>| row.get(0);
        match transaction.query_row("PRAGMA user_version", [], version).map_err(sqlite)? {
            0 => {
                transaction.execute_batch(SCHEMA).map_err(sqlite)?;
                transaction.execute_batch(SECOND).map_err(sqlite)?;
                transaction.execute_batch(THIRD).map_err(sqlite)?;
                transaction.pragma_update(None, "user_version", VERSION).map_err(sqlite)?;
            }
            1 | 2 => {
                transaction.execute_batch(SECOND).map_err(sqlite)?;
                transaction.execute_batch(THIRD).map_err(sqlite)?;
                transaction.pragma_update(None, "user_version", VERSION).map_err(sqlite)?;
            }
            VERSION => {}
            found => return Err(JournalError::Later { path: path.to_path_buf(), found }),
        }
        transaction.commit().map_err(sqlite)?;
        Ok(Self { path: path.to_path_buf(), db })
    }

    fn sqlite(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Sqlite { path: self.path.clone(), source }
    }

    fn read<T: DeserializeOwned>(&self, json: &str) -> Result<T, JournalError> {
        serde_json::from_str(json)
            .map_err(|source| JournalError::Entry { path: self.path.clone(), source })
    }

    fn write<T: Serialize>(&self, value: &T) -> Result<String, JournalError> {
        serde_json::to_string(value)
            .map_err(|source| JournalError::Entry { path: self.path.clone(), source })
    }

    fn execute(&self, sql: &str, params: impl rusqlite::Params) -> Result<(), JournalError> {
        self.db.execute(sql, params).map(drop).map_err(|error| self.sqlite(error))
    }

    /// The name of this state folder, which its engines carry in their environment.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn state_id(&self) -> Result<String, JournalError> {
        let sql = "SELECT value FROM meta WHERE key = 'state_id'";
        self.db.query_row(sql, [], |row| row.get(0)).map_err(|error| self.sqlite(error))
    }

    /// The number of the plan in force; cheap, for polling.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn current_seq(&self) -> Result<Option<i64>, JournalError> {
        self.db
            .query_row("SELECT max(seq) FROM plans", [], |row| row.get(0))
            .map_err(|error| self.sqlite(error))
    }

    /// The plan in force.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn current(&self) -> Result<Option<JournalledPlan>, JournalError> {
        self.plan_where("seq = (SELECT max(seq) FROM plans)")
    }

    fn plan_where(&self, condition: &str) -> Result<Option<JournalledPlan>, JournalError> {
        let sql = format!("SELECT seq, at_ms, plan, report FROM plans WHERE {condition}");
        let row = self
            .db
            .query_row(&sql, [], |row| {
                Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()
            .map_err(|error| self.sqlite(error))?;
        let Some((seq, at_ms, plan, report)): Option<(i64, i64, String, Option<String>)> = row
        else {
            return Ok(None);
        };
        Ok(Some(JournalledPlan {
            seq,
            at_ms: at_ms.unsigned_abs(),
            plan: self.read(&plan)?,
            report: report.map(|report| self.read(&report)).transpose()?,
        }))
    }

    /// A plan by its number.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn plan(&self, seq: i64) -> Result<Option<JournalledPlan>, JournalError> {
        self.plan_where(&format!("seq = {seq}"))
    }

    /// The plans that are kept, the newest first.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn plans(&self) -> Result<Vec<PastPlan>, JournalError> {
        let sql = "SELECT seq, at_ms, digest, json_extract(plan, '$.strategy') FROM plans ORDER BY seq DESC";
        self.rows(sql, |row| {
            Ok(PastPlan {
                seq: row.get(0)?,
                at_ms: row.get::<_, i64>(1)?.unsigned_abs(),
                digest: row.get(2)?,
                strategy: row.get(3)?,
            })
        })
    }

    /// The newest plan that was in force before the one that is, and differs from it: of a strategy,
    /// where one is named.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn earlier(&self, strategy: Option<&str>) -> Result<Option<Plan>, JournalError> {
        let Some(current) = self.current()? else { return Ok(None) };
        let digest = current.plan.digest();
        for seq in (current.seq - MAX_PLANS..current.seq).rev() {
            let Some(JournalledPlan { plan, .. }) = self.plan_where(&format!("seq = {seq}"))?
            else {
                continue;
            };
            let is_meant = strategy.is_none_or(|name| plan.strategy.as_deref() == Some(name));
            if is_meant && !plan.instances.is_empty() && plan.digest() != digest {
                return Ok(Some(plan));
            }
        }
        Ok(None)
    }

    /// Brings a plan into force. Instances that failed get another chance; what was advised was for another plan, and
    /// which spec this one is from has to be said anew.
    ///
    /// # Errors
    /// [`JournalError::Stale`] where another plan came into force since this one was made.
    pub fn commit(
        &mut self,
        plan: &Plan,
        report: Option<&PlanReport>,
        now_ms: u64,
    ) -> Result<i64, JournalError> {
        let plan_json = self.write(plan)?;
        let report_json = report.map(|report| self.write(report)).transpose()?;
        let path = self.path.clone();
        let sqlite = |source| JournalError::Sqlite { path: path.clone(), source };
        let transaction =
            self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
        let current: Option<String> = transaction
            .query_row("SELECT digest FROM plans ORDER BY seq DESC LIMIT 1", [], |row| row.get(0))
            .optional()
            .map_err(sqlite)?;
        if current != plan.parent.as_ref().map(ToString::to_string) {
            return Err(JournalError::Stale);
        }
        let insert = "INSERT INTO plans (at_ms, digest, plan, report) VALUES (?1, ?2, ?3, ?4)";
        let digest = plan.digest().to_string();
        transaction
            .execute(insert, params![now_ms as i64, digest, plan_json, report_json])
            .map_err(sqlite)?;
        let seq = transaction.last_insert_rowid();
        transaction
            .execute_batch(
                "DELETE FROM rollbacks;
                 DELETE FROM meta WHERE key IN ('asked', 'advice');
                 DELETE FROM instances WHERE json_extract(record, '$.phase') = 'failed'
                    OR json_extract(record, '$.phase.backoff') IS NOT NULL;",
            )
            .map_err(sqlite)?;
        transaction
            .execute("DELETE FROM plans WHERE seq <= ?1", [seq - MAX_PLANS])
            .map_err(sqlite)?;
        crash::point();
        transaction.commit().map_err(sqlite)?;
        crash::point();
        Ok(seq)
    }

    /// What is known about every instance.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn instances(&self) -> Result<BTreeMap<InstanceId, InstanceEntry>, JournalError> {
        type Row = (String, String, Option<String>, Option<String>, Option<String>);
        let sql = "SELECT id, record, diagnosis, reported, memory_when_ready FROM instances";
        let rows: Vec<Row> = self.rows(sql, |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?;
        let mut instances = BTreeMap::new();
        for (id, record, diagnosis, reported, memory) in rows {
            let entry = InstanceEntry {
                record: self.read(&record)?,
                diagnosis: diagnosis.map(|json| self.read(&json)).transpose()?,
                reported: reported.map(|json| self.read(&json)).transpose()?,
                memory_when_ready: memory.map(|json| self.read(&json)).transpose()?,
            };
            instances.insert(InstanceId(id), entry);
        }
        Ok(instances)
    }

    fn rows<T>(
        &self,
        sql: &str,
        read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, JournalError> {
        let query = || {
            let mut statement = self.db.prepare_cached(sql)?;
            statement.query_map([], |row| read(row))?.collect::<rusqlite::Result<Vec<T>>>()
        };
        query().map_err(|error| self.sqlite(error))
    }

    /// Notes what is known about an instance, and says whether plan number `seq` is still in force:
    /// where another one is, nothing is noted, since it started afresh.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_instance(
        &self,
        seq: i64,
        id: &InstanceId,
        entry: &InstanceEntry,
    ) -> Result<bool, JournalError> {
        let diagnosis = entry.diagnosis.as_ref().map(|it| self.write(it)).transpose()?;
        let reported = entry.reported.as_ref().map(|it| self.write(it)).transpose()?;
        let memory = entry.memory_when_ready.as_ref().map(|it| self.write(it)).transpose()?;
        let sql = "INSERT OR REPLACE INTO instances SELECT ?1, ?2, ?3, ?4, ?5
                   WHERE (SELECT max(seq) FROM plans) = ?6";
        let record = self.write(&entry.record)?;
        let changed = self
            .db
            .execute(sql, params![id.0, record, diagnosis, reported, memory, seq])
            .map_err(|error| self.sqlite(error))?;
        Ok(changed > 0)
    }

    /// Forgets an instance.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn forget_instance(&self, id: &InstanceId) -> Result<(), JournalError> {
        self.execute("DELETE FROM instances WHERE id = ?1", [&id.0])
    }

    /// The instances of the plan in force that run an earlier configuration instead.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn rollbacks(&self) -> Result<BTreeMap<InstanceId, PlannedInstance>, JournalError> {
        let sql = "SELECT id, instance FROM rollbacks WHERE seq = (SELECT max(seq) FROM plans)";
        self.instances_of(sql)
    }

    fn instances_of(
        &self,
        sql: &str,
    ) -> Result<BTreeMap<InstanceId, PlannedInstance>, JournalError> {
        let rows: Vec<(String, String)> = self.rows(sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let read = |(id, json): (String, String)| Ok((InstanceId(id), self.read(&json)?));
        rows.into_iter().map(read).collect()
    }

    /// Notes that an instance is proven as it is.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_proven(&self, instance: &PlannedInstance) -> Result<(), JournalError> {
        let json = self.write(instance)?;
        self.execute("INSERT OR REPLACE INTO proven VALUES (?1, ?2)", [&instance.id.0, &json])
    }

    /// Instances as they were when they were last proven.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn proven(&self) -> Result<BTreeMap<InstanceId, PlannedInstance>, JournalError> {
        self.instances_of("SELECT id, instance FROM proven")
    }

    fn set_meta<T: Serialize>(&self, key: &str, value: &T) -> Result<(), JournalError> {
        let json = self.write(value)?;
        self.execute("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", [key, &json])
    }

    fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, JournalError> {
        let sql = "SELECT value FROM meta WHERE key = ?1";
        let json: Option<String> = self
            .db
            .query_row(sql, [key], |row| row.get(0))
            .optional()
            .map_err(|error| self.sqlite(error))?;
        json.map(|json| self.read(&json)).transpose()
    }

    /// The address that a gateway really listens on, and `None` once it doesn't.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_gateway(&self, address: Option<SocketAddr>) -> Result<(), JournalError> {
        let text = address.map(|address| address.to_string()).unwrap_or_default();
        self.execute("INSERT OR REPLACE INTO meta VALUES ('gateway', ?1)", [text])
    }

    /// The address that a gateway listens on, if the controller that noted it still runs.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn gateway(&self) -> Result<Option<SocketAddr>, JournalError> {
        let sql = "SELECT value FROM meta WHERE key = 'gateway'";
        let text: Option<String> = self
            .db
            .query_row(sql, [], |row| row.get(0))
            .optional()
            .map_err(|error| self.sqlite(error))?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// Notes that instances of plan number `seq` go back to earlier configurations, all or none.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_rollbacks(
        &mut self,
        seq: i64,
        earlier: &BTreeMap<InstanceId, PlannedInstance>,
    ) -> Result<(), JournalError> {
        let json: Vec<String> =
            earlier.values().map(|one| self.write(one)).collect::<Result<_, _>>()?;
        let path = self.path.clone();
        let sqlite = |source| JournalError::Sqlite { path: path.clone(), source };
        let transaction = self.db.transaction().map_err(sqlite)?;
        for (id, json) in earlier.keys().zip(json) {
            let insert = "INSERT OR REPLACE INTO rollbacks VALUES (?1, ?2, ?3)";
            transaction.execute(insert, params![id.0, seq, json]).map_err(sqlite)?;
        }
        transaction.commit().map_err(sqlite)
    }

    /// Appends to the history.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn note(&self, id: &InstanceId, what: &str, now_ms: u64) -> Result<(), JournalError> {
        self.execute(
            "INSERT INTO events (at_ms, instance, what) VALUES (?1, ?2, ?3)",
            params![now_ms as i64, id.0, what],
        )?;
        self.execute(
            "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?1",
            [MAX_EVENTS],
        )
    }

    /// The newest events, the newest last.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn events(&self, count: u32) -> Result<Vec<PastEvent>, JournalError> {
        let sql =
            format!("SELECT at_ms, instance, what FROM events ORDER BY seq DESC LIMIT {count}");
        let rows: Vec<(i64, String, String)> =
            self.rows(&sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let event = |(at_ms, instance, what): (i64, String, String)| {
            let what = self.read(&what)?;
            Ok(PastEvent { at_ms: at_ms.unsigned_abs(), instance: InstanceId(instance), what })
        };
        rows.into_iter().rev().map(event).collect()
    }
}
