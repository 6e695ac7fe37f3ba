//! A comparison as Markdown.

use super::changes::changes;
use super::{findings, speeds, table};
use crate::strategy::report::{Comparison, GpuReport, StrategyReport};
use crate::strategy::words::{self, Language};

/// Characters of a memory map.
const WIDTH: u128 = 32;
/// How the instances on a GPU are told apart.
const FILLS: [char; 4] = ['█', '▓', '▒', '░'];

/// The document.
pub fn markdown(compared: &Comparison, language: Language) -> String {
    let text = |key| words::heading(key, language);
    let mut out = vec![format!("# {}\n", text("title"))];
    match &compared.recommended {
        Some(name) => out.push(format!("**{}: {name}**\n", text("recommended"))),
        None => out.push(format!("**{}**\n", text("nothing fits"))),
    }
    out.extend(compared.reasons.iter().map(|reason| format!("- {}", reason.say(language))));
    if let Some(name) = &compared.runner_up {
        out.push(format!("\n{}: {name}\n", text("runner-up")));
        out.extend(compared.runner_up_wins.iter().map(|one| format!("- {}", one.say(language))));
    }
    out.push(format!("\n## {}\n", text("all strategies")));
    let rows = table(compared, language);
    for (index, row) in rows.iter().enumerate() {
        out.push(format!("| {} |", row.join(" | ")));
        if index == 0 {
            out.push(format!("|{}", "---|".repeat(row.len())));
        }
    }
    for one in compared.today.iter().chain(&compared.strategies) {
        out.push(section(compared, one, language));
    }
    out.push(format!("\n{}\n", speeds(compared, language)));
    out.join("\n")
}

fn section(compared: &Comparison, one: &StrategyReport, language: Language) -> String {
    let verdict = words::verdict(one.verdict, language);
    let mut out = vec![format!("\n## {} ({verdict})\n", one.name)];
    out.extend(one.title.iter().map(|title| format!("{title}\n")));
    out.extend(findings(one).map(|finding| format!("- {}", finding.say(language))));
    let changes = changes(compared, one);
    if !changes.is_empty() {
        out.push("\n```text".to_owned());
        for change in changes {
            out.push(change.place());
            let before = words::heading("before", language);
            out.extend(change.before.map(|gpu| format!("  {before:<8} {}", map(gpu))));
            let after = words::heading("after", language);
            out.push(format!("  {after:<8} {}", map(change.after)));
        }
        out.push("```".to_owned());
    }
    if let Some(toml) = &one.toml {
        out.push(format!(
            "\n{}\n\n```toml\n{}\n```",
            words::heading("keep", language),
            toml.trim()
        ));
    }
    out.join("\n")
}

/// A GPU's memory as a bar, and what each part is.
fn map(gpu: &GpuReport) -> String {
    let mut bar = String::new();
    let mut parts = Vec::new();
    for (index, share) in gpu.instances.iter().enumerate() {
        let fill = FILLS[index % FILLS.len()];
        let cells = u128::from(share.bytes.0) * WIDTH / u128::from(gpu.total_bytes.0.max(1));
        bar.extend(std::iter::repeat_n(fill, usize::try_from(cells).unwrap_or(0)));
        parts.push(format!("{fill} {} {}", share.model, share.bytes));
    }
    let free = (WIDTH as usize).saturating_sub(bar.chars().count());
    bar.push_str(&"·".repeat(free));
    format!("[{bar}] {} / {}", parts.join(", "), gpu.total_bytes)
}
