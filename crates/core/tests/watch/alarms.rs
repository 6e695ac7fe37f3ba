//! Looks at devices and engines, and what is to be warned of.

use berth_core::inventory::InstanceId;
use berth_core::units::Bytes;
use berth_core::watch::forensic::{Broke, Report, report};
use berth_core::watch::{AlarmKind, EngineLook, Look, Watch};

use crate::looks::{look, plan};

fn unseen(mut look: Look) -> Look {
    look.devices[0].used = None;
    look
}

/// As of a Ray cluster, whose reporter doesn't say whose processes they are.
fn by_nobody(mut look: Look) -> Look {
    look.devices[0].holders = None;
    look
}

fn with_engine(mut look: Look, waiting: u64, usage: f64, preemptions: u64) -> Look {
    look.engines = vec![EngineLook {
        instance: InstanceId("a-0".to_owned()),
        running: Some(1),
        waiting: Some(waiting),
        kv_cache_usage: Some(usage),
        preemptions: Some(preemptions),
        held: None,
        is_asleep: None,
    }];
    look
}

/// The looks one after the other, and what is wrong at the last, with a word of its message.
#[test]
fn alarms_say_what_is_wrong_and_who_did_it() {
    use AlarmKind::{CacheFull, ForeignGrew, NoRoom, OverPlan, Preempts, RunsOut, Unseen};
    let falling = |at: u64| look(at, 12_000, &[(7, 100 + at * 100)]);
    for (what, looks, wrong) in [
        ("as planned", vec![look(0, 12_000, &[])], vec![]),
        ("the instance is starting", vec![look(0, 100, &[]), look(1, 9000, &[])], vec![]),
        (
            "it loads for long",
            (0..31).map(|at| look(at, at * 380, &[(7, 10 + at)])).collect(),
            vec![],
        ),
        (
            "it loads for long, and nobody says who it is",
            (0..31).map(|at| by_nobody(look(at, at * 380, &[]))).collect(),
            vec![],
        ),
        (
            "it runs out, and nobody says who it is",
            (0..61).map(|at| by_nobody(falling(at))).collect(),
            vec![(RunsOut, "nothing in 19 s")],
        ),
        ("within what a plan may be off", vec![look(0, 12_100, &[])], vec![]),
        ("more than planned", vec![look(0, 12_500, &[])], vec![(OverPlan, "500 MiB more")]),
        ("others were there before", vec![look(0, 12_000, &[(7, 3000)]); 3], vec![]),
        (
            "others come",
            vec![look(0, 12_000, &[]), look(1, 12_000, &[(7, 3000), (8, 10)])],
            vec![(ForeignGrew, "p7 (process 7) has taken 2.93 GiB")],
        ),
        ("a little", vec![look(0, 12_000, &[]), look(1, 12_000, &[(7, 300)])], vec![]),
        ("one goes, one comes", vec![look(0, 1, &[(7, 3000)]), look(1, 1, &[(8, 3000)])], vec![]),
        (
            "no room for what is planned, although it isn't held yet",
            vec![look(0, 10, &[(7, 9000)])],
            vec![(NoRoom, "1000 MiB too little")],
        ),
        (
            "it runs out",
            (0..61).map(falling).collect(),
            vec![(ForeignGrew, "p7"), (RunsOut, "nothing in 19 s")],
        ),
        ("nobody sees it", vec![unseen(look(0, 12_000, &[]))], vec![(Unseen, "not known")]),
        ("a device is gone", vec![Look::default()], vec![(Unseen, "not known")]),
        ("a full cache and nobody waits", vec![with_engine(look(0, 1, &[]), 0, 1.0, 0)], vec![]),
        (
            "a full cache",
            vec![with_engine(look(0, 1, &[]), 3, 0.96, 0)],
            vec![(CacheFull, "96 % full, and 3 requests wait")],
        ),
        (
            "preemptions",
            vec![with_engine(look(0, 1, &[]), 0, 0.5, 2), with_engine(look(1, 1, &[]), 0, 0.5, 5)],
            vec![(Preempts, "3 requests")],
        ),
        (
            "preemptions a moment ago",
            [2, 5, 5, 5]
                .into_iter()
                .zip(0..)
                .map(|(count, at)| with_engine(look(at, 1, &[]), 0, 0.5, count))
                .collect(),
            vec![(Preempts, "3 requests")],
        ),
        (
            "an engine starts anew",
            vec![with_engine(look(0, 1, &[]), 0, 0.5, 5), with_engine(look(1, 1, &[]), 0, 0.5, 0)],
            vec![],
        ),
    ] {
        let (mut watch, plan) = (Watch::default(), plan());
        for look in looks {
            watch.step(&plan, look);
        }
        let found: Vec<_> = watch.alarms().iter().map(|one| (one.kind, &one.message)).collect();
        let is_met = found.len() == wrong.len()
            && found
                .iter()
                .zip(&wrong)
                .all(|((kind, message), (wanted, says))| kind == wanted && message.contains(says));
        assert!(is_met, "{what}: {found:?}");
        assert!(watch.alarms().iter().all(|one| !one.advice.is_empty()), "{what}");
    }
}

/// A GPU that the plan puts nothing on is somebody else's.
#[test]
fn what_is_not_planned_on_is_no_concern() {
    let mut plan = plan();
    plan.instances.clear();
    plan.devices[0].planned = Bytes::ZERO;
    let mut watch = Watch::default();
    for (at, taken) in [(0, 0), (1, 5000), (2, 19_000)] {
        watch.step(&plan, look(at, 0, &[(7, taken)]));
        assert_eq!(watch.alarms(), []);
    }
}

/// An alarm is raised once, keeps its time, and is over once.
#[test]
fn alarms_come_and_go_once() {
    let (mut watch, plan) = (Watch::default(), plan());
    let mut counts = Vec::new();
    for (at, own) in [(0, 12_000), (1, 13_000), (2, 13_100), (3, 12_000), (4, 12_000)] {
        let changes = watch.step(&plan, look(at, own, &[]));
        counts.push((changes.raised.len(), changes.over.len()));
        assert!(watch.alarms().iter().all(|one| one.since_ms == 1000));
    }
    assert_eq!(counts, [(0, 0), (1, 0), (0, 0), (0, 1), (0, 0)]);
}

/// What was seen before a death at second 60 (MiB of the instance, and of others), what broke, and how it is said.
#[test]
fn a_death_is_explained_by_the_minute_before() {
    use Broke::{Foreign, Full, Limit, OverPlan, Unseen};
    let plan = plan();
    let dead = plan.instance(&InstanceId("a-0".to_owned())).unwrap();
    for (what, looks, broke, says) in [
        (
            "it outgrew its plan",
            vec![look(59, 12_700, &[])],
            OverPlan,
            "700 MiB more than its plan",
        ),
        (
            "others took its room",
            vec![look(30, 9000, &[]), look(59, 9000, &[(7, 9000), (8, 500)])],
            Foreign,
            "most of it p7 (process 7) with 8.79 GiB: 1.46 GiB of what was planned for",
        ),
        (
            "a little over, and others too",
            vec![look(59, 12_050, &[(7, 9000)])],
            Foreign,
            "most of it p7",
        ),
        ("it had room", vec![look(59, 9000, &[(7, 1000)])], Limit, "9.77 GiB were free"),
        ("no look was in time", vec![], Unseen, "nobody looked"),
        ("only long ago", vec![look(0, 1, &[])], Limit, "wanted at most 11.7 GiB more"),
        ("after it", vec![look(61, 12_700, &[])], Unseen, "nobody looked"),
        ("as full as planned", vec![look(59, 12_000, &[(7, 8000)])], Full, "0 B were free"),
    ] {
        let past: Vec<&Look> = looks.iter().collect();
        let report = report(&plan, dead, &past, 60_000, "out of memory".to_owned());
        assert_eq!(report.broke, broke, "{what}: {}", report.finding);
        assert!(report.finding.contains(says), "{what}: {}", report.finding);
        assert!(!report.proposal.is_empty());
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
