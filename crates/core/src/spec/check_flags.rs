//! Whether an engine has the flags that a spec gives it, and what to write instead.

use std::collections::{BTreeMap, HashSet};

use toml::Spanned;

use super::error::{Problems, nearest};
use super::raw::EngineKind;
use super::{FlagValue, Flags};
use crate::memory::llama_cpp::LlamaFlags;
use crate::memory::llama_cpp::flags::{self as llama_flags, Class};
use crate::memory::{ollama, vllm};

/// Checks an engine's flags. vLLM's get its own names: underscores, no aliases.
pub(super) fn flags(
    raw: BTreeMap<Spanned<String>, FlagValue>,
    engine: EngineKind,
    problems: &mut Problems<'_>,
) -> Flags {
    match engine {
        EngineKind::LlamaServer => llama_server(raw, problems),
        EngineKind::Ollama => ollama(raw, problems),
        EngineKind::Vllm => vllm(raw, problems),
    }
}

fn vllm(raw: BTreeMap<Spanned<String>, FlagValue>, problems: &mut Problems<'_>) -> Flags {
    const SET_BY_BERTH: &[&str] = &["api_key", "host", "model", "port", "served_model_name"];
    let mut flags = Flags::new();
    for (name, value) in raw {
        let known = match vllm::flags::canonical(name.get_ref()) {
            Ok(known) => known,
            Err(error) => {
                let hint =
                    "leave it out, or write it in extra_args: its memory is not counted then";
                problems.add_with_hint(name.span(), error.to_string(), hint);
                continue;
            }
        };
        if SET_BY_BERTH.contains(&known.as_str()) {
            let hint = "leave it out: the plan decides it";
            problems.add_with_hint(name.span(), format!("`{known}` is set by berth itself"), hint);
        } else if flags.insert(known.clone(), value).is_some() {
            let hint = "keep one of them";
            problems.add_with_hint(name.span(), format!("`{known}` is given twice"), hint);
        }
    }
    flags
}

fn ollama(raw: BTreeMap<Spanned<String>, FlagValue>, problems: &mut Problems<'_>) -> Flags {
    let mut flags = Flags::new();
    for (name, value) in raw {
        let text = name.get_ref().replace('-', "_");
        let (low, high) = match ollama::PARAMETERS.iter().find(|known| known.name == text) {
            Some(known) => (1, known.most),
            None => {
                let known = ollama::PARAMETERS.iter().map(|parameter| parameter.name);
                let hint = match nearest(&text, known.clone()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
                };
                let message = format!("Ollama has no parameter `{}`", name.get_ref());
                problems.add_with_hint(name.span(), message, hint);
                continue;
            }
        };
        match &value {
            FlagValue::Int(number) if (low..=high).contains(number) => {
                flags.insert(text, value);
            }
            _ => problems.add(name.span(), format!("`{text}` is a number from {low} to {high}")),
        }
    }
    flags
}

/// Checks the flags of llama-server.
fn llama_server(raw: BTreeMap<Spanned<String>, FlagValue>, problems: &mut Problems<'_>) -> Flags {
    let mut seen: HashSet<&'static str> = HashSet::new();
    let mut flags = Flags::new();
    for (name, value) in raw {
        if let Err((message, hint)) = check_flag(name.get_ref(), &value, &mut seen) {
            problems.add_with_hint(name.span(), message, hint);
        }
        flags.insert(name.into_inner(), value);
    }
    flags
}

/// Extra words may say anything but what berth decides or keeps closed.
pub(super) fn extra_args(
    raw: Vec<Spanned<String>>,
    engine: EngineKind,
    problems: &mut Problems<'_>,
) -> Vec<String> {
    if let (EngineKind::Ollama, Some(first)) = (engine, raw.first()) {
        let hint = "leave them out; what Ollama takes from its environment, its machines' environment sets";
        problems.add_with_hint(first.span(), "`ollama serve` takes no arguments", hint);
    }
    if engine != EngineKind::LlamaServer {
        return raw.into_iter().map(Spanned::into_inner).collect();
    }
    for word in &raw {
        let flag = llama_flags::find(word.get_ref());
        if let Some((message, hint)) = flag.and_then(|flag| not_to_be_set(word.get_ref(), flag)) {
            problems.add_with_hint(word.span(), message, hint);
        }
    }
    raw.into_iter().map(Spanned::into_inner).collect()
}

/// Why a spec can't set a flag, and what to do.
fn not_to_be_set(name: &str, flag: &llama_flags::Flag) -> Option<(String, String)> {
    let (why, hint) = match flag.class {
        Class::SetByBerth => ("is set by berth itself", "leave it out: the plan decides it"),
        Class::Closed => (
            "can't be set: it would open what berth keeps closed, or run another model",
            "leave it out; clients reach the models through the gateway",
        ),
        Class::Free | Class::Unmodelled => return None,
    };
    Some((format!("`{name}` {why}"), hint.to_owned()))
}

/// What is wrong with a flag of llama-server, and what to write instead. Flags may be there once,
/// under any one of their names.
fn check_flag(
    name: &str,
    value: &FlagValue,
    seen: &mut HashSet<&'static str>,
) -> Result<(), (String, String)> {
    let bare = name.trim_start_matches('-');
    if bare != name {
        return Err(("write flags without their dashes".to_owned(), format!("write `{bare}`")));
    }
    match llama_flags::find_bare(name) {
        None => Err((
            format!("llama-server has no flag `{name}`"),
            llama_flags::nearest(&format!("--{name}")).map_or_else(
                || {
                    format!(
                        "if yours is newer than {LLAMA_SERVER} and has it, write it in extra_args"
                    )
                },
                |near| format!("did you mean `{}`?", near.trim_start_matches('-')),
            ),
        )),
        Some((flag, _)) if !seen.insert(flag.spellings[0]) => Err((
            format!("`{name}` is given twice, under two of its names"),
            "keep one of them".to_owned(),
        )),
        Some((flag, _)) => match not_to_be_set(name, flag) {
            Some(problem) => Err(problem),
            None => LlamaFlags::from_args(&llama_flags::words(name, value))
                .map(drop)
                .map_err(|error| (error.to_string(), "llama-server would refuse it".to_owned())),
        },
    }
}

/// The version whose flags are known.
const LLAMA_SERVER: &str = "b10434";
