use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::record::{Marks, Record};
use crate::summary::{Targets, summarize};

const MIB: u64 = 1 << 20;

/// A run that is as it should be; rows change a thing each.
struct Case {
    records: Vec<Record>,
    memory: MemorySeen,
    limits: Limits,
}

fn record(phase: &str, outcome: Outcome) -> Record {
    let ms = Duration::from_millis;
    Record {
        phase: phase.into(),
        is_overload: phase == "burst",
        model: "smol".into(),
        marks: Marks {
            intended: ms(0),
            sent: ms(1),
            first: Some(ms(100)),
            last: Some(ms(200)),
            end: ms(200),
            ..Marks::default()
        },
        prompt_tokens: 10,
        answer_tokens: 11,
        outcome,
        detail: None,
    }
}

fn good() -> Case {
    let device = DeviceSeen {
        node: "n0".to_owned(),
        device: "GPU 0".to_owned(),
        total_bytes: 1000 * MIB,
        planned_bytes: 800 * MIB,
        planned_left_bytes: 150 * MIB,
        least_free_bytes: Some(150 * MIB),
        least_headroom_bytes: Some(100 * MIB as i64),
    };
    let instance = InstanceSeen {
        id: "smol-1".to_owned(),
        model: "smol".to_owned(),
        planned_bytes: 798 * MIB,
        most_held_bytes: Some(790 * MIB),
        restarts: 0,
        preemptions: Some(0),
        evictions: None,
        died_of_memory: false,
    };
    let memory = MemorySeen {
        devices: vec![device],
        instances: vec![instance],
        looks: 9,
        missing: Vec::new(),
    };
    Case {
        records: (0..100).map(|_| record("steady", Outcome::Ok)).collect(),
        memory,
        limits: Limits::default(),
    }
}

fn aim(case: &mut Case, ttft_ms: f64) {
    let targets = Targets { ttft_ms: Some(ttft_ms), ..Targets::default() };
    case.limits.targets = BTreeMap::from([("smol".to_owned(), targets)]);
}

fn start_late(record: &mut Record) {
    record.marks.first = record.marks.last;
}

/// A change, the verdict that it leads to, and what one of the reasons says.
type Row = (&'static str, fn(&mut Case), Judgement, &'static str);

use Judgement::{Fail, Inconclusive, Pass};

const ROWS: &[Row] = &[
    ("nothing", |_| {}, Pass, "smol-1 held 790 MiB, 8 MiB less than its plan (limit 1 %)"),
    (
        "more than planned",
        |case| case.memory.instances[0].most_held_bytes = Some(812 * MIB),
        Fail,
        "smol-1 held 812 MiB, 14 MiB more than its plan (limit 1 %)",
    ),
    (
        "a little more than planned",
        |case| case.memory.instances[0].most_held_bytes = Some(805 * MIB),
        Pass,
        "smol-1 held 805 MiB, 7 MiB more than its plan (limit 1 %)",
    ),
    (
        "a restart",
        |case| case.memory.instances[0].restarts = 1,
        Fail,
        "smol-1 restarted once (limit 0)",
    ),
    (
        "a death",
        |case| case.memory.instances[0].died_of_memory = true,
        Fail,
        "smol-1 died of memory (limit 0 times)",
    ),
    (
        "preemptions",
        |case| case.memory.instances[0].preemptions = Some(7),
        Pass,
        "smol-1 put requests off 7 times for want of cache (no limit)",
    ),
    (
        "an eviction",
        |case| case.memory.instances[0].evictions = Some(2),
        Fail,
        "smol-1 dropped its model 2 times (limit 0)",
    ),
    (
        "overdrawn",
        |case| case.memory.devices[0].least_headroom_bytes = Some(-(3 * MIB as i64)),
        Fail,
        "GPU 0 on n0 was overdrawn by 3 MiB (limit 0 MiB)",
    ),
    (
        "overdrawn by a byte",
        |case| case.memory.devices[0].least_headroom_bytes = Some(-1),
        Fail,
        "GPU 0 on n0 was overdrawn by 1 bytes (limit 0 MiB)",
    ),
    (
        "a blind spot",
        |case| case.memory.missing.push("what processes hold on n1".to_owned()),
        Inconclusive,
        "not seen: what processes hold on n1",
    ),
    (
        "no looks",
        |case| case.memory = MemorySeen::default(),
        Inconclusive,
        "memory was looked at 0 times (limit 1)",
    ),
    (
        "an unseen instance on devices that are seen",
        |case| case.memory.instances[0].most_held_bytes = None,
        Pass,
        "what smol-1 alone held was not seen",
    ),
    (
        "an unseen instance on devices that are not",
        |case| {
            case.memory.instances[0].most_held_bytes = None;
            case.memory.devices[0].least_free_bytes = None;
        },
        Inconclusive,
        "what smol-1 alone held was not seen",
    ),
    (
        "a little more gone than planned, by whoever",
        |case| {
            case.memory.instances[0].most_held_bytes = None;
            case.memory.devices[0].least_free_bytes = Some(142 * MIB);
        },
        Pass,
        "GPU 0 on n0 had 142 MiB free at least, 8 MiB less than its plan leaves (limit 1 % of the plan)",
    ),
    (
        "more gone than planned, by whoever",
        |case| {
            case.memory.instances[0].most_held_bytes = None;
            case.memory.devices[0].least_free_bytes = Some(141 * MIB);
        },
        Inconclusive,
        "9 MiB less than its plan leaves (limit 1 % of the plan); who holds that was not seen",
    ),
    (
        "more gone than planned, by somebody else",
        |case| case.memory.devices[0].least_free_bytes = Some(141 * MIB),
        Pass,
        "smol-1 held 790 MiB",
    ),
    (
        "an unseen device",
        |case| {
            case.memory.devices[0].least_headroom_bytes = None;
            case.memory.devices[0].least_free_bytes = None;
        },
        Inconclusive,
        "what is free of GPU 0 on n0 was not seen",
    ),
    (
        "a 500",
        |case| case.records[0].outcome = Outcome::Status(500),
        Fail,
        "1 of 100 requests to smol in steady were answered with status 500 (limit 0)",
    ),
    (
        "a 404",
        |case| case.records[0].outcome = Outcome::Status(404),
        Inconclusive,
        "1 of 100 requests to smol in steady were answered with status 404",
    ),
    (
        "no connection",
        |case| case.records[0].outcome = Outcome::Connect,
        Fail,
        "1 of 100 requests to smol in steady were left without a connection (limit 0)",
    ),
    (
        "a stream broken off",
        |case| {
            case.records[0].outcome = Outcome::Broken;
            case.records[0].detail = Some("ended".to_owned());
        },
        Fail,
        "1 of 100 requests to smol in steady were broken off (limit 0): ended",
    ),
    (
        "too late",
        |case| case.records[0].outcome = Outcome::Timeout,
        Fail,
        "1 of 100 requests to smol in steady were not answered in time (limit 0)",
    ),
    (
        "too late under overload",
        |case| case.records.push(record("burst", Outcome::Timeout)),
        Pass,
        "1 of 1 requests to smol in burst were not answered in time",
    ),
    (
        "refused where no more was asked than can be served",
        |case| case.records[0].outcome = Outcome::Refused,
        Inconclusive,
        "smol refused 1 of 100 requests for overload in steady",
    ),
    (
        "no files left",
        |case| case.records[0].outcome = Outcome::Own,
        Inconclusive,
        "1 of 100 requests to smol in steady were not sent, as the load generator had no file or port left",
    ),
    (
        "targets met",
        |case| aim(case, 100.0),
        Pass,
        "100 of 100 requests to smol met its targets, 100 % (limit 95 %)",
    ),
    (
        "targets just met",
        |case| {
            aim(case, 100.0);
            case.records[..5].iter_mut().for_each(start_late);
        },
        Pass,
        "95 of 100 requests to smol met its targets, 95 % (limit 95 %)",
    ),
    (
        "targets just missed",
        |case| {
            aim(case, 100.0);
            case.records[..6].iter_mut().for_each(start_late);
        },
        Fail,
        "94 of 100 requests to smol met its targets, 94 % (limit 95 %)",
    ),
    (
        "targets missed",
        |case| aim(case, 99.0),
        Fail,
        "0 of 100 requests to smol met its targets, 0 % (limit 95 %)",
    ),
    (
        "targets under overload",
        |case| {
            aim(case, 100.0);
            case.records.extend((0..50).map(|_| record("burst", Outcome::Ok)));
            case.records[100..].iter_mut().for_each(start_late);
        },
        Pass,
        "100 of 100 requests to smol met its targets, 100 % (limit 95 %)",
    ),
    (
        "only overload",
        |case| case.records = (0..100).map(|_| record("burst", Outcome::Ok)).collect(),
        Inconclusive,
        "only 0 requests to smol were answered in steady load (limit 20)",
    ),
    (
        "late with sending",
        |case| {
            let late = |one: &mut Record| one.marks.sent = Duration::from_micros(12_340);
            case.records[..2].iter_mut().for_each(late);
        },
        Inconclusive,
        "the load generator was late with sending in steady: 12.3 ms at the 99th percentile (limit 10.0 ms)",
    ),
    (
        "late with reading",
        |case| {
            let late = |one: &mut Record| one.marks.reading_delay = Duration::from_millis(11);
            case.records.iter_mut().for_each(late);
        },
        Inconclusive,
        "late with reading answers in steady: 11.0 ms",
    ),
    (
        "late and wrong",
        |case| {
            case.records.iter_mut().for_each(|one| one.marks.sent = Duration::from_secs(1));
            case.memory.instances[0].restarts = 2;
        },
        Fail,
        "smol-1 restarted 2 times (limit 0)",
    ),
    (
        "few requests",
        |case| case.records.truncate(19),
        Inconclusive,
        "only 19 requests to smol were answered in steady load (limit 20)",
    ),
    (
        "no requests",
        |case| case.records.clear(),
        Inconclusive,
        "no request was sent to any model (limit 1)",
    ),
];

#[test]
fn verdicts() {
    for (what, change, result, reason) in ROWS {
        let mut case = good();
        change(&mut case);
        let summary = summarize(&case.records, &case.limits.targets);
        let verdict = judge(&summary, &case.memory, &case.limits);
        assert_eq!(verdict.result, *result, "{what}: {verdict:#?}");
        assert!(
            verdict.reasons.iter().any(|one| one.text.contains(reason)),
            "{what}: {verdict:#?}"
        );
        assert!(verdict.reasons.is_sorted_by_key(|one| one.weight), "{what}");
    }
}

#[test]
fn limits_may_be_given_in_part() {
    let limits: Limits = serde_json::from_str(r#"{"least_requests": 3}"#).unwrap();
    assert_eq!(limits, Limits { least_requests: 3, ..Limits::default() });
}
