//! Strategies side by side, for a terminal.

use berth_core::strategy::conflict::Conflict;
use berth_core::strategy::report::{
    Comparison, GpuReport, ModelReport, StrategyReport, StrategyVerdict,
};
use berth_core::strategy::words::Finding;
use berth_core::strategy::{Language, words};

use super::{row, table};

/// All strategies: a table first, then why, then what is recommended.
pub(crate) fn all(compared: &Comparison, language: Language) -> String {
    let text = |key| words::heading(key, language);
    let mut out = Vec::new();
    if let Some(today) = &compared.today {
        out.extend([one_strategy(today, language), String::new()]);
    }
    let models: Vec<&str> = compared
        .today
        .iter()
        .flat_map(|today| &today.models)
        .map(|model| model.name.as_str())
        .collect();
    let mut head = row([text("strategy"), text("verdict"), text("left")]);
    head.extend(models.iter().map(|model| format!("{model} {}", text("kept"))));
    head.extend(row([text("new tokens"), text("restarts")]));
    let mut rows = vec![head];
    rows.extend(compared.strategies.iter().map(|one| strategy_row(one, &models, language)));
    out.push(table(&rows));
    for one in &compared.strategies {
        out.push(String::new());
        out.push(one_strategy(one, language));
    }
    out.push(String::new());
    match &compared.recommended {
        Some(name) => {
            out.push(format!("{}: {name}", text("recommended")));
            out.extend(compared.reasons.iter().map(|reason| format!("  {}", reason.say(language))));
        }
        None => out.push(text("nothing fits").to_owned()),
    }
    if let Some(name) = &compared.runner_up {
        out.push(format!("{}: {name}", text("runner-up")));
        out.extend(
            compared.runner_up_wins.iter().map(|reason| format!("  {}", reason.say(language))),
        );
    }
    out.push(format!("\n{}", words::speeds(compared.is_calibrated(), language)));
    out.join("\n")
}

fn strategy_row(one: &StrategyReport, models: &[&str], language: Language) -> Vec<String> {
    let left = one.worst.as_ref().filter(|_| one.verdict != StrategyVerdict::Impossible);
    let left = left.map_or("-".to_owned(), |worst| worst.headroom_bytes.to_string());
    let mut cells = vec![one.name.clone(), words::verdict(one.verdict, language).to_owned(), left];
    let find = |name: &str| one.models.iter().find(|model| model.name == name);
    cells.extend(models.iter().map(|name| {
        let kept = find(name).and_then(|model| model.capacity);
        kept.map_or("-".to_owned(), |kept| format!("{:.0} %", kept * 100.0))
    }));
    let newcomers = one.models.iter().filter(|model| !models.contains(&model.name.as_str()));
    let tokens: u64 = newcomers.map(|model| model.kv_cache_tokens).sum();
    cells.push(if tokens > 0 { tokens.to_string() } else { "-".to_owned() });
    cells.push(one.restarts.to_string());
    cells
}

fn one_strategy(one: &StrategyReport, language: Language) -> String {
    let title = one.title.as_deref().unwrap_or_default();
    let mut lines =
        vec![format!("{} ({}): {title}", one.name, words::verdict(one.verdict, language))];
    let findings = one.reasons.iter().chain(one.written.iter().map(|written| &written.finding));
    let findings = findings.chain(&one.complexity);
    lines.extend(findings.map(|finding: &Finding| format!("  - {}", finding.say(language))));
    lines.join("\n")
}

/// One strategy in full: the verdict and why, then every model, then every GPU.
pub(crate) fn one(report: &StrategyReport, language: Language) -> String {
    let text = |key| words::heading(key, language);
    let mut out = vec![one_strategy(report, language), String::new()];
    let head = ["model", "instances", "tokens", "requests", "speed"].map(text);
    let mut rows = vec![row(head)];
    rows.extend(report.models.iter().map(model_row));
    out.extend([table(&rows), String::new()]);
    let mut rows = vec![row(["GPU", text("has"), text("planned"), text("left"), ""])];
    for (nodes, gpus) in alike(&report.gpus) {
        rows.extend(gpus.into_iter().map(|gpu| gpu_row(&nodes, gpu)));
    }
    out.push(table(&rows));
    out.push(format!("\n{}", words::speeds(report.is_calibrated, language)));
    if let Some(toml) = &report.toml {
        out.push(format!("\n{}\n{toml}", text("keep")));
    }
    out.join("\n")
}

/// Nodes whose GPUs hold the same, together: their names and the GPUs of the first.
fn alike(gpus: &[GpuReport]) -> Vec<(String, Vec<&GpuReport>)> {
    let held = |gpu: &GpuReport| {
        let shares = gpu.instances.iter();
        let shares = shares.map(|share| (share.model.clone(), share.bytes));
        (gpu.total_bytes, gpu.headroom_bytes, shares.collect::<Vec<_>>())
    };
    let mut groups: Vec<(Vec<&str>, Vec<&GpuReport>)> = Vec::new();
    for node in gpus.chunk_by(|a, b| a.node == b.node) {
        let same = |(_, known): &&mut (Vec<&str>, Vec<&GpuReport>)| {
            known.iter().map(|gpu| held(gpu)).eq(node.iter().map(held))
        };
        match groups.iter_mut().find(same) {
            Some((names, _)) => names.push(&node[0].node),
            None => groups.push((vec![&node[0].node], node.iter().collect())),
        }
    }
    let named = |names: Vec<&str>| match names.as_slice() {
        [one] => (*one).to_owned(),
        several => format!("{} .. {} ({})", several[0], several[several.len() - 1], several.len()),
    };
    groups.into_iter().map(|(names, gpus)| (named(names), gpus)).collect()
}

fn gpu_row(nodes: &str, gpu: &GpuReport) -> Vec<String> {
    let shares = gpu.instances.iter().map(|share| format!("{} {}", share.model, share.bytes));
    vec![
        format!("{nodes} {}", gpu.gpu),
        gpu.total_bytes.to_string(),
        gpu.planned_bytes.to_string(),
        gpu.headroom_bytes.to_string(),
        shares.collect::<Vec<_>>().join(" + "),
    ]
}

/// A plan beside what would become of it.
pub(crate) fn what_if(
    plan: &StrategyReport,
    changed: &StrategyReport,
    changes: &str,
    language: Language,
) -> String {
    let text = |key| words::heading(key, language);
    let verdict = |one: &StrategyReport| words::verdict(one.verdict, language);
    let mut out = vec![format!("{}: {} -> {}", changes, verdict(plan), verdict(changed))];
    let worse: Vec<&Finding> =
        changed.reasons.iter().filter(|reason| !plan.reasons.contains(reason)).collect();
    out.extend(worse.iter().map(|reason| format!("  - {}", reason.say(language))));
    let mut rows = vec![row([
        text("model"),
        text("instances"),
        text("tokens"),
        text("speed"),
        text("unserved"),
    ])];
    for after in &changed.models {
        let before = plan.models.iter().find(|model| model.name == after.name);
        let of = |figure: &dyn Fn(&ModelReport) -> String| {
            format!("{} -> {}", before.map_or("-".to_owned(), figure), figure(after))
        };
        rows.push(vec![
            after.name.clone(),
            of(&|model| model.instances.to_string()),
            of(&|model| model.kv_cache_tokens.to_string()),
            of(&|model| format!("{:.0}", model.tokens_per_second.mid)),
            of(&|model| format!("{:.2}", model.unserved_requests_per_second)),
        ]);
    }
    out.extend([String::new(), table(&rows)]);
    out.join("\n")
}

/// What can't hold together, and what would help.
pub(crate) fn conflict(conflict: &Conflict, language: Language) -> String {
    let text = |key| words::heading(key, language);
    let mut out = vec![format!("\n{}", text("cannot hold"))];
    out.extend(conflict.cannot_hold.iter().map(|one| format!("  - {one}")));
    if conflict.relaxations.is_empty() {
        out.push(text("no single change").to_owned());
    } else {
        out.push(text("any one").to_owned());
        out.extend(conflict.relaxations.iter().map(|one| format!("  - {one}")));
    }
    out.push(text("compare too").to_owned());
    out.join("\n")
}

fn model_row(model: &ModelReport) -> Vec<String> {
    let speed = model.tokens_per_second;
    vec![
        model.name.clone(),
        model.instances.to_string(),
        model.kv_cache_tokens.to_string(),
        format!("{:.1}", model.max_concurrency),
        format!("{:.0} ({:.0} .. {:.0})", speed.mid, speed.low, speed.high),
    ]
}
