//! A comparison as one HTML file: no script, nothing from elsewhere, light and dark.

use super::changes::{Change, changes};
use super::{findings, speeds, table};
use crate::strategy::report::{Comparison, GpuReport, StrategyReport};
use crate::strategy::words::{self, Language};

/// Width of a memory map, in its own units.
const WIDTH: f64 = 600.0;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --free: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; }
.fits { color: #1a7f37; } .tight { color: #9a6700; } .impossible { color: #cf222e; }
@media (prefers-color-scheme: dark) { .fits { color: #4ac26b; } .tight { color: #d4a72c; } .impossible { color: #ff8182; } }
svg { width: 100%; height: 2.2rem; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: #fff; }
.c0 { fill: #2f6db5; } .c1 { fill: #a34a1f; } .c2 { fill: #5d4b9c; } .c3 { fill: #2c7a5b; }
.free { fill: var(--free); }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); }
";

/// The document.
pub fn html(compared: &Comparison, language: Language) -> String {
    let text = |key| escaped(words::heading(key, language));
    let code = if language == Language::Spanish { "es" } else { "en" };
    let title = text("title");
    let mut out = vec![
        format!(
            "<!doctype html>\n<html lang=\"{code}\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>"
        ),
        match &compared.recommended {
            Some(name) => format!("<h2>{}: {}</h2>", text("recommended"), escaped(name)),
            None => format!("<h2>{}</h2>", text("nothing fits")),
        },
        list(compared.reasons.iter().map(|reason| reason.say(language))),
    ];
    if let Some(name) = &compared.runner_up {
        out.push(format!("<p>{}: {}</p>", text("runner-up"), escaped(name)));
        out.push(list(compared.runner_up_wins.iter().map(|reason| reason.say(language))));
    }
    out.push(format!("<h2>{}</h2>", text("all strategies")));
    out.push(rows(&table(compared, language)));
    for one in compared.today.iter().chain(&compared.strategies) {
        out.push(section(compared, one, language));
    }
    out.push(format!(
        "<p><small>{}</small></p>\n</body>\n</html>\n",
        escaped(speeds(compared, language))
    ));
    out.join("\n")
}

fn section(compared: &Comparison, one: &StrategyReport, language: Language) -> String {
    let class = words::verdict(one.verdict, Language::English);
    let verdict = words::verdict(one.verdict, language);
    let name = escaped(&one.name);
    let mut out = vec![format!("<h2>{name} <span class=\"{class}\">{verdict}</span></h2>")];
    out.extend(one.title.iter().map(|title| format!("<p>{}</p>", escaped(title))));
    out.push(list(findings(one).map(|finding| finding.say(language))));
    out.extend(changes(compared, one).iter().map(|change| figure(change, language)));
    if let Some(toml) = &one.toml {
        let keep = escaped(words::heading("keep", language));
        let toml = escaped(toml.trim());
        out.push(format!("<details><summary>{keep}</summary><pre>{toml}</pre></details>"));
    }
    out.join("\n")
}

fn figure(change: &Change<'_>, language: Language) -> String {
    let named = |key| escaped(words::heading(key, language));
    let before = change.before.map_or(String::new(), |gpu| bar(gpu, &named("before")));
    let after = bar(change.after, &named("after"));
    let place = escaped(&change.place());
    format!("<figure><figcaption>{place}</figcaption>{before}{after}</figure>")
}

/// A GPU's memory, drawn to scale.
fn bar(gpu: &GpuReport, label: &str) -> String {
    let scale = WIDTH / gpu.total_bytes.0.max(1) as f64;
    let mut parts = format!("<rect class=\"free\" width=\"{WIDTH}\" height=\"20\"/>");
    let mut said = Vec::new();
    let mut from = 0.0;
    for (index, share) in gpu.instances.iter().enumerate() {
        let width = (share.bytes.0 as f64 * scale).min(WIDTH - from);
        let text = format!("{} {}", share.model, share.bytes);
        parts.push_str(&format!(
            "<rect class=\"c{}\" x=\"{from:.1}\" width=\"{width:.1}\" height=\"20\"/>",
            index % 4
        ));
        if width > 120.0 {
            let x = from + 4.0;
            parts.push_str(&format!("<text x=\"{x:.1}\" y=\"14\">{}</text>", escaped(&text)));
        }
        from += width;
        said.push(text);
    }
    let said =
        escaped(&format!("{}; {} / {}", said.join(", "), gpu.planned_bytes, gpu.total_bytes));
    format!(
        "<div>{label}: {said}</div><svg viewBox=\"0 0 {WIDTH} 20\" preserveAspectRatio=\"none\" \
         role=\"img\" aria-label=\"{label}: {said}\">{parts}</svg>"
    )
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: String = items.map(|item| format!("<li>{}</li>", escaped(&item))).collect();
    format!("<ul>{items}</ul>")
}

fn rows(rows: &[Vec<String>]) -> String {
    let line = |(index, row): (usize, &Vec<String>)| {
        let tag = if index == 0 { "th" } else { "td" };
        let cells: String =
            row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let lines: Vec<String> = rows.iter().enumerate().map(line).collect();
    format!("<div class=\"scroll\"><table>{}</table></div>", lines.join("\n"))
}

/// Text that can't become markup: names and engines' words come from outside.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}
