use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::record::{Marks, Outcome, Record};
use crate::report::{Generator, LoadNote, VERSION};
use crate::summary::summarize;
use crate::verdict::{Limits, judge};

const NASTY: &str = "<script>alert('x')</script> & \"y\" \u{1b}[31m";

fn report(word: &str) -> Report {
    let ms = Duration::from_millis;
    let record = Record {
        phase: word.into(),
        is_overload: false,
        model: word.into(),
        marks: Marks { first: Some(ms(50)), last: Some(ms(90)), end: ms(100), ..Marks::default() },
        prompt_tokens: 1,
        answer_tokens: 3,
        outcome: Outcome::Ok,
        detail: None,
    };
    let broken =
        Record { outcome: Outcome::Broken, detail: Some(word.to_owned()), ..record.clone() };
    let limits = Limits::default();
    let summary = summarize(&[record, broken], &BTreeMap::new());
    let memory = MemorySeen {
        devices: vec![DeviceSeen {
            node: word.to_owned(),
            device: word.to_owned(),
            total_bytes: 0,
            least_headroom_bytes: Some(i64::MIN),
            ..DeviceSeen::default()
        }],
        instances: vec![InstanceSeen {
            id: word.to_owned(),
            model: word.to_owned(),
            planned_bytes: u64::MAX,
            ..InstanceSeen::default()
        }],
        looks: 1,
        missing: vec![word.to_owned()],
    };
    let load =
        LoadNote { model: word.to_owned(), arrivals: word.to_owned(), shape: word.to_owned() };
    Report {
        version: VERSION,
        name: word.to_owned(),
        at_ms: 1_770_000_000_000,
        plan_digest: word.to_owned(),
        strategy: Some(word.to_owned()),
        emulated: true,
        verdict: judge(&summary, &memory, &limits),
        limits,
        phases: vec![PhaseNote {
            name: word.to_owned(),
            limit_s: 1.0,
            grace_s: 0.0,
            is_overload: false,
            loads: vec![load],
        }],
        generator: Generator { threads: 2, own: summary.all.own },
        summary,
        memory,
    }
}

/// Each tag is closed by its own kind; what isn't a tag has no angle bracket.
fn check_tags(page: &str) {
    let mut open = Vec::new();
    for part in page.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("unclosed: {part}"));
        assert!(!text.contains('>'), "{part}");
        let name = tag.split([' ', '\n']).next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{part}"),
            None if ["!doctype", "meta"].contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn pages_are_whole_and_everything_is_escaped() {
    for word in ["smol", NASTY, "", "</style></main>"] {
        let page = html(&report(word));
        check_tags(&page);
        assert!(!page.contains("<script") && !page.contains('\u{1b}'), "{word}");
        assert!(!page.contains("http") && page.contains("prefers-color-scheme"), "{word}");
    }
    let page = html(&report(NASTY));
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;y&quot;"));
}

#[test]
fn a_verdict_is_told_in_words_and_signs() {
    for (result, told) in [
        (Judgement::Pass, "✓ PASS"),
        (Judgement::Fail, "✗ FAIL"),
        (Judgement::Inconclusive, "? INCONCLUSIVE"),
    ] {
        let mut report = report("smol");
        report.verdict.result = result;
        assert!(html(&report).contains(told));
    }
}

#[test]
fn a_report_is_the_same_after_json() {
    let report = report(NASTY);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}
