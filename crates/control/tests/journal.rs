//! The journal: what is committed is there, and what does not belong is refused.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use berth_control::journal::InstanceEntry;
use berth_control::{Journal, JournalError};
use berth_core::Plan;
use berth_core::inventory::{DeviceId, InstanceId};
use berth_core::memory::Footprint;
use berth_core::plan::{DeviceShare, PlannedDevice, PlannedInstance};
use berth_core::reconcile::Record;
use berth_core::spec::{EngineKind, GatewaySpec};
use berth_core::units::Bytes;
use berth_core::watch::{Alarm, AlarmKind, DeviceLook, Holder, Look};

fn instance(args: &str) -> PlannedInstance {
    PlannedInstance {
        id: InstanceId("a-0".into()),
        deployment: "a".into(),
        model: "a".into(),
        engine: EngineKind::LlamaServer,
        engine_version: None,
        binary: "llama-server".into(),
        args: vec![args.into()],
        environment: std::collections::BTreeMap::new(),
        library: None,
        host: "127.0.0.1".into(),
        port: 1,
        node: "n".into(),
        folder: "/".into(),
        shares: Vec::new(),
        cache_tokens: None,
        weight: 1,
        sleep: None,
    }
}

fn plan(args: &str, parent: Option<&Plan>) -> Plan {
    let nothing = Plan::nothing(GatewaySpec::default(), parent.map(Plan::digest));
    Plan { instances: vec![instance(args)], ..nothing }
}

/// Plans of before instances had an address keep their digests, or nothing could follow them.
#[test]
fn an_older_plan_is_the_same_plan() {
    let plan = plan("x", None);
    let text = serde_json::to_string(&plan).unwrap();
    assert!(!text.contains("127.0.0.1\",\"port"), "{text}");
    let older: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!((older.digest(), older.instances[0].host.as_str()), (plan.digest(), "127.0.0.1"));
}

#[test]
fn plans_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("berth.db");
    let mut journal = Journal::open(&path).unwrap();
    assert_eq!(journal.current().unwrap(), None);
    let first = plan("1", None);
    let seq = journal.commit(&first, None, 5).unwrap();
    assert!(matches!(journal.commit(&plan("2", None), None, 6), Err(JournalError::Stale)));
    let second = plan("2", Some(&first));
    journal.commit(&second, None, 7).unwrap();

    let id = journal.state_id().unwrap();
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.state_id().unwrap(), id, "the state keeps its name");
    let current = journal.current().unwrap().unwrap();
    assert_eq!((current.plan, current.at_ms), (second, 7));
    assert!(current.seq > seq);
}

/// A new plan gives what failed another chance; what runs goes on.
#[test]
fn a_new_plan_gives_what_failed_another_chance() {
    let starting = Record::starting(instance("1").config(), None, 1);
    for (record, is_kept) in [
        (starting.ready(2), true),
        (starting.clone(), true),
        (starting.failed(false, 2), false),
        (starting.failed(true, 2), false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("berth.db")).unwrap();
        let first = plan("1", None);
        let seq = journal.commit(&first, None, 1).unwrap();
        let phase = record.phase;
        let entry = InstanceEntry::new(record, None);
        assert!(journal.set_instance(seq, &instance("1").id, &entry).unwrap());
        journal.commit(&plan("2", Some(&first)), None, 3).unwrap();
        assert_eq!(!journal.instances().unwrap().is_empty(), is_kept, "{phase:?}");
        // What was learnt under the plan before comes too late.
        assert!(!journal.set_instance(seq, &InstanceId("b-0".into()), &entry).unwrap());
        assert!(!journal.instances().unwrap().contains_key(&InstanceId("b-0".into())));
    }
}

/// A rollback belongs to the plan that it was made for, even where it is noted late.
#[test]
fn rollbacks_end_with_their_plan() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&folder.path().join("berth.db")).unwrap();
    let first = plan("1", None);
    let seq = journal.commit(&first, None, 1).unwrap();
    journal.set_rollbacks(seq, &[(instance("0").id, instance("0"))].into()).unwrap();
    assert_eq!(journal.rollbacks().unwrap().len(), 1);
    journal.commit(&plan("2", Some(&first)), None, 2).unwrap();
    assert!(journal.rollbacks().unwrap().is_empty());
    journal.set_rollbacks(seq, &[(instance("0").id, instance("0"))].into()).unwrap();
    assert!(journal.rollbacks().unwrap().is_empty());
}

#[test]
fn files_that_are_no_journal_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.db");
    std::fs::write(
        &damaged,
        "this is no database, but long enough to be looked at as one".repeat(99),
    )
    .unwrap();
    assert!(matches!(Journal::open(&damaged), Err(JournalError::Sqlite { .. })));
    assert!(std::fs::read(&damaged).unwrap().starts_with(b"this is no"), "and left as it was");
    let nowhere = folder.path().join("no/such/folder/berth.db");
    assert!(matches!(Journal::open(&nowhere), Err(JournalError::Sqlite { .. })));
}

/// What is seen of devices is kept, bounded, beside plans; what could not be seen stays unknown.
#[test]
fn samples_and_alarms_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    let device = |device: &str| PlannedDevice {
        node: "n".into(),
        device: DeviceId(device.into()),
        total: Bytes::gib(22),
        budget: Bytes::gib(21),
        planned: Bytes::gib(20),
    };
    let plan = Plan { devices: vec![device("gpu:0"), device("gpu:1")], ..plan("x", None) };
    let seen = DeviceLook {
        node: "n".into(),
        device: DeviceId("gpu:0".into()),
        name: "A10".into(),
        total: Bytes::gib(22),
        used: Some(Bytes::gib(20)),
        holders: None,
    };
    let look = Look { at_ms: 1, devices: vec![seen], ..Look::default() };
    for _ in 0..3 {
        journal.sample(&look, &plan).unwrap();
    }
    assert_eq!(journal.samples().unwrap(), 6);
    let alarm = Alarm {
        kind: AlarmKind::NoRoom,
        subject: "n gpu:0".into(),
        message: "1 GiB too little".into(),
        advice: "plan again".into(),
        since_ms: 1,
    };
    journal.set_alarms(&[alarm.clone(), alarm.clone()], 2).unwrap();
    journal.set_alarms(std::slice::from_ref(&alarm), 3).unwrap();
    assert_eq!(Journal::open(&path).unwrap().alarms(2).unwrap(), [alarm]);
    assert_eq!(journal.alarms(3).unwrap(), []);
}

/// Of each configuration the most that it held stays, and says how near its plan came.
#[test]
fn errors_of_plans() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&folder.path().join("journal")).unwrap();
    let mut plan = plan("x", None);
    let mut footprint = Footprint::default();
    footprint.exact("weights", Bytes::mib(200), String::new());
    let device = DeviceId("gpu:0".into());
    let share = DeviceShare { device: device.clone(), footprint, resident_ready: Bytes::ZERO };
    plan.instances[0].shares = vec![share];
    let id = plan.instances[0].id.clone();
    let look = |at_ms: u64, mib: u64| {
        let holder = |instance, bytes| Holder { pid: 1, name: "x".into(), instance, bytes };
        let holders =
            vec![holder(Some(id.clone()), Bytes::mib(mib)), holder(None, Bytes::mib(900))];
        let device = DeviceLook {
            node: "n".into(),
            device: device.clone(),
            name: "A10".into(),
            total: Bytes::gib(22),
            used: Some(Bytes::gib(20)),
            holders: Some(holders),
        };
        Look { at_ms, devices: vec![device], ..Look::default() }
    };
    for (at_ms, mib) in [(1, 100), (2, 190), (3, 150)] {
        journal.sample(&look(at_ms, mib), &plan).unwrap();
    }
    plan.instances[0].args = vec!["other".into()];
    journal.sample(&look(4, 210), &plan).unwrap();
    let [error] = &journal.plan_errors().unwrap()[..] else { panic!("one model on one device") };
    assert_eq!((&*error.device, error.configurations), ("A10", 2));
    assert_eq!((error.least, error.most), (0.95, 1.05));
}

/// A journal of before there were samples is taken up as it is.
#[test]
fn an_older_journal_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let plan = plan("x", None);
    Journal::open(&path).unwrap().commit(&plan, None, 1).unwrap();
    let older = rusqlite::Connection::open(&path).unwrap();
    older
        .execute_batch(
            "DROP TABLE samples; DROP TABLE alarms; DROP TABLE deaths; DROP TABLE held; \
             DROP TABLE most_held; PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(older);
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.current().unwrap().unwrap().plan, plan);
    assert_eq!((journal.samples().unwrap(), journal.alarms(0).unwrap()), (0, Vec::new()));
    assert_eq!(journal.plan_errors().unwrap(), []);
}
