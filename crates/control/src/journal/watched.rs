//! What was seen of memory over time, what is wrong with it, and what is advised.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_core::Digest;
use berth_core::adjust::sleep::Rest;
use berth_core::adjust::{Adjustment, Freeze};
use berth_core::inventory::InstanceId;
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::units::Bytes;
use berth_core::watch::forensic::Report;
use berth_core::watch::{Alarm, DeviceLook, Look};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Journal, JournalError};

/// Samples that are kept: of sixty devices, every ten seconds, half a day.
const MAX_SAMPLES: i64 = 250_000;
/// Starts of which the most that they held is kept.
const MAX_MOST_HELD: i64 = 10_000;
/// Reports of deaths that are kept.
const MAX_DEATHS: i64 = 100;

/// The spec that the plan in force was made from: who adjusts plans it anew, and must not take up what its user has
/// written since and not applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The file, from the root folder on.
    pub file: PathBuf,
    /// What it said.
    pub text: Digest,
    /// The strategy that was asked for.
    pub strategy: Option<String>,
}

impl Advice {
    /// The same as it is taken at a time: from then on its deployments are let be.
    #[must_use]
    pub fn at(mut self, now_ms: u64) -> Self {
        for one in &mut self.plan.adjustments {
            if self.changes.iter().any(|change| change.deployment == one.deployment) {
                one.at_ms = now_ms;
            }
        }
        self
    }
}

/// How far plans have been from what engines came to hold, of one model on one kind of device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanError {
    /// The model.
    pub model: String,
    /// The kind of device: a GPU's product, or `host memory`.
    pub device: String,
    /// The engine, with its version where that is known.
    pub engine: String,
    /// Configurations that were seen.
    pub configurations: u64,
    /// The lowest of the most that any held, as a share of its plan.
    pub least: f64,
    /// The highest: above 1 a plan was broken.
    pub most: f64,
}

/// A plan that berth would bring into force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advice {
    /// What it changes.
    pub changes: Vec<Adjustment>,
    /// The plan, made to follow the one that was in force.
    pub plan: Plan,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The plan's digest.
    #[serde(default)]
    pub digest: Option<Digest>,
}

/// The most that a device held within some time; what wasn't seen is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The node.
    pub node: String,
    /// The device.
    pub device: String,
    /// What was planned on it.
    pub planned: u64,
    /// What could not be had of it.
    pub used: Option<u64>,
    /// What berth's instances held.
    pub own: Option<u64>,
}

impl Journal {
    /// Notes which instances sleep.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_resting(&self, all: &BTreeMap<InstanceId, Rest>) -> Result<(), JournalError> {
        self.set_meta("resting", all)
    }

    /// The instances that sleep.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn resting(&self) -> Result<BTreeMap<InstanceId, Rest>, JournalError> {
        Ok(self.meta("resting")?.unwrap_or_default())
    }

    /// Notes what is wrong now, instead of what was.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_alarms(&mut self, alarms: &[Alarm], now_ms: u64) -> Result<(), JournalError> {
        let json = self.write(&alarms)?;
        let path = self.path.clone();
        let sqlite = |source| JournalError::Sqlite { path: path.clone(), source };
        let transaction = self.db.transaction().map_err(sqlite)?;
        transaction.execute("DELETE FROM alarms", []).map_err(sqlite)?;
        let insert = "INSERT INTO alarms (at_ms, alarms) VALUES (?1, ?2)";
        transaction.execute(insert, params![now_ms as i64, json]).map_err(sqlite)?;
        transaction.commit().map_err(sqlite)
    }

    /// What was wrong at the last look, if that was after a time.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn alarms(&self, after_ms: u64) -> Result<Vec<Alarm>, JournalError> {
        let sql = format!("SELECT alarms FROM alarms WHERE at_ms > {after_ms}");
        let rows: Vec<String> = self.rows(&sql, |row| row.get(0))?;
        rows.last().map_or_else(|| Ok(Vec::new()), |json| self.read(json))
    }

    /// Keeps the report of a death; says whether it is new.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn keep_death(&self, report: &Report) -> Result<bool, JournalError> {
        let json = self.write(report)?;
        let insert = "INSERT OR IGNORE INTO deaths (instance, at_ms, report) VALUES (?1, ?2, ?3)";
        let new = self
            .db
            .execute(insert, params![report.instance.0, report.at_ms as i64, json])
            .map_err(|error| self.sqlite(error))?;
        let bound = "DELETE FROM deaths WHERE seq <= (SELECT max(seq) FROM deaths) - ?1";
        self.execute(bound, [MAX_DEATHS])?;
        Ok(new > 0)
    }

    /// The newest deaths, the newest last.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn deaths(&self, count: u32) -> Result<Vec<Report>, JournalError> {
        let sql = format!("SELECT report FROM deaths ORDER BY seq DESC LIMIT {count}");
        let rows: Vec<String> = self.rows(&sql, |row| row.get(0))?;
        rows.iter().rev().map(|json| self.read(json)).collect()
    }

    /// Appends what devices held at a look to the ledger over time, and lets go of what is too old.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn sample(&mut self, look: &Look, plan: &Plan) -> Result<(), JournalError> {
        let path = self.path.clone();
        let sqlite = |source| JournalError::Sqlite { path: path.clone(), source };
        let transaction = self.db.transaction().map_err(sqlite)?;
        let signed = |bytes: Bytes| i64::try_from(bytes.0).unwrap_or(i64::MAX);
        for planned in &plan.devices {
            let seen = look.device(&planned.node, &planned.device);
            let (used, own) = (seen.and_then(|one| one.used), seen.and_then(DeviceLook::own));
            let insert = "INSERT INTO samples (at_ms, node, device, planned, used, own) \
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let row = params![
                look.at_ms as i64,
                planned.node,
                planned.device.0,
                signed(planned.planned),
                used.map(signed),
                own.map(signed)
            ];
            transaction.execute(insert, row).map_err(sqlite)?;
        }
        for (instance, device, observed) in held(plan, look) {
            let planned = signed(instance.bytes_on(&device.node, &device.device));
            let (at_ms, id, observed) = (look.at_ms as i64, &instance.id.0, signed(observed));
            let insert = "INSERT INTO held (at_ms, instance, node, device, planned, observed) \
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let row = params![at_ms, id, device.node, device.device.0, planned, observed];
            transaction.execute(insert, row).map_err(sqlite)?;
            let insert = "INSERT INTO most_held VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
                          ON CONFLICT (config, device_name) DO UPDATE SET \
                          observed = max(observed, excluded.observed), at_ms = excluded.at_ms";
            let version = instance.engine_version.iter().map(|version| format!(" {version}"));
            let engine = format!("{}{}", instance.engine.as_str(), version.collect::<String>());
            let config = instance.config();
            let (config, model) = (config.as_str(), &instance.model);
            let row = params![config, device.name, model, engine, planned, observed, at_ms];
            transaction.execute(insert, row).map_err(sqlite)?;
        }
        for table in ["samples", "held"] {
            let bound =
                format!("DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?1");
            transaction.execute(&bound, [MAX_SAMPLES]).map_err(sqlite)?;
        }
        let bound = "DELETE FROM most_held WHERE rowid NOT IN \
                     (SELECT rowid FROM most_held ORDER BY at_ms DESC LIMIT ?1)";
        transaction.execute(bound, [MAX_MOST_HELD]).map_err(sqlite)?;
        transaction.commit().map_err(sqlite)
    }

    /// The most that each configuration was seen to hold of a device of each kind.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn most_held(&self) -> Result<BTreeMap<(Digest, String), Bytes>, JournalError> {
        let rows = self.rows("SELECT config, device_name, observed FROM most_held", |row| {
            let (config, device): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(((Digest::from_hex(&config), device), Bytes(row.get::<_, i64>(2)?.unsigned_abs())))
        });
        Ok(rows?.into_iter().collect())
    }

    /// How far plans have been from what engines came to hold.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn plan_errors(&self) -> Result<Vec<PlanError>, JournalError> {
        let sql = "SELECT model, device_name, engine, count(*), \
                   min(CAST(observed AS REAL) / planned), max(CAST(observed AS REAL) / planned) \
                   FROM most_held WHERE planned > 0 GROUP BY model, device_name, engine";
        self.rows(sql, |row| {
            Ok(PlanError {
                model: row.get(0)?,
                device: row.get(1)?,
                engine: row.get(2)?,
                configurations: row.get::<_, i64>(3)?.unsigned_abs(),
                least: row.get(4)?,
                most: row.get(5)?,
            })
        })
    }

    /// What devices held since a time, at most so many samples of each.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn past(&self, since_ms: u64, now_ms: u64, most: u64) -> Result<Vec<Sample>, JournalError> {
        let step = (now_ms.saturating_sub(since_ms) / most.max(1)).max(1);
        let sql = format!(
            "SELECT max(at_ms), node, device, max(planned), max(used), max(own) FROM samples \
             WHERE at_ms >= {since_ms} GROUP BY node, device, at_ms / {step} ORDER BY 1"
        );
        self.rows(&sql, |row| {
            let bytes =
                |at: usize| row.get::<_, Option<i64>>(at).map(|it| it.map(i64::unsigned_abs));
            Ok(Sample {
                at_ms: row.get::<_, i64>(0)?.unsigned_abs(),
                node: row.get(1)?,
                device: row.get(2)?,
                planned: bytes(3)?.unwrap_or(0),
                used: bytes(4)?,
                own: bytes(5)?,
            })
        })
    }

    /// The samples that there are.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn samples(&self) -> Result<u64, JournalError> {
        let count: Vec<i64> = self.rows("SELECT count(*) FROM samples", |row| row.get(0))?;
        Ok(count.first().copied().unwrap_or(0).unsigned_abs())
    }

    /// Notes which spec the plan in force was made from.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_asked(&self, asked: &Asked) -> Result<(), JournalError> {
        self.set_meta("asked", asked)
    }

    /// The spec that the plan in force was made from.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn asked(&self) -> Result<Option<Asked>, JournalError> {
        self.meta("asked")
    }

    /// Notes what is advised, instead of what was.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_advice(&self, advice: &Advice) -> Result<(), JournalError> {
        self.set_meta("advice", advice)
    }

    /// Forgets what is advised.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn forget_advice(&self) -> Result<(), JournalError> {
        self.execute("DELETE FROM meta WHERE key = ?1", ["advice"])
    }

    /// What is advised, as long as the plan is in force that it was made to follow.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn advice(&self) -> Result<Option<Advice>, JournalError> {
        let current = self.current()?.map(|journalled| journalled.plan.digest());
        let advice: Option<Advice> = self.meta("advice")?;
        Ok(advice.filter(|advice| advice.plan.parent == current))
    }

    /// Notes which deployments get no more memory for a while.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn set_frozen(&self, frozen: &[Freeze]) -> Result<(), JournalError> {
        self.set_meta("frozen", &frozen)
    }

    /// Deployments that get no more memory for a while.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn frozen(&self) -> Result<Vec<Freeze>, JournalError> {
        Ok(self.meta("frozen")?.unwrap_or_default())
    }
}

/// What instances hold of devices that they have a share of, as far as it was seen.
fn held<'a>(
    plan: &'a Plan,
    look: &'a Look,
) -> impl Iterator<Item = (&'a PlannedInstance, &'a DeviceLook, Bytes)> {
    plan.instances.iter().flat_map(move |instance| {
        let here = look.devices.iter().filter(|one| one.node == instance.node);
        here.filter(|one| instance.uses(&one.device)).filter_map(move |device| {
            let held = device.held_by(&instance.id).filter(|held| *held > Bytes::ZERO)?;
            Some((instance, device, held))
        })
    })
}
