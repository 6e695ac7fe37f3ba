//! Why a llama-server ended, from how it ended and what it logged.

use crate::diagnosis::{Cause, Diagnosis, ExitKind};

/// A text of the log, what it means, and what to do.
struct Sign {
    /// What the line contains.
    text: &'static str,
    cause: Cause,
    message: &'static str,
    hint: &'static str,
}

const fn sign(text: &'static str, cause: Cause, message: &'static str, hint: &'static str) -> Sign {
    Sign { text, cause, message, hint }
}

const FETCH_AGAIN: &str = "fetch the file again and compare its checksum";
const LESS_MEMORY: &str =
    "free memory on this device, or lower the model's ctx-size; `berth plan` shows what fits";

/// The first sign that the log has wins, so the more telling come first.
const SIGNS: &[Sign] = &[
    sign(
        "couldn't bind HTTP server socket",
        Cause::PortTaken,
        "its port is taken by another process",
        "run `berth apply` again: the plan then chooses another port",
    ),
    sign(
        "invalid argument:",
        Cause::BadFlag,
        "llama-server refused a flag",
        "correct the model's flags in the spec; `llama-server --help` lists them",
    ),
    sign(
        "error while handling argument",
        Cause::BadFlag,
        "llama-server refused a flag's value",
        "correct the model's flags in the spec; `llama-server --help` lists them",
    ),
    sign(
        "quantized V cache requires flash_attn",
        Cause::BadFlag,
        "a quantised V cache needs flash attention",
        "take flash-attn = \"off\" or cache-type-v out of the model's flags",
    ),
    sign(
        "V cache quantization requires flash_attn",
        Cause::BadFlag,
        "a quantised V cache needs flash attention",
        "take flash-attn = \"off\" or cache-type-v out of the model's flags",
    ),
    sign(
        "failed to open GGUF file",
        Cause::FileMissing,
        "the model's file can't be opened",
        "check the path in the spec and who may read it",
    ),
    sign("insufficient memory", Cause::OutOfMemory, "there was not enough memory", LESS_MEMORY),
    sign("failed to allocate", Cause::OutOfMemory, "there was not enough memory", LESS_MEMORY),
    // What ggml asserts of its own small allocations.
    sign("ctx->mem_buffer != NULL", Cause::OutOfMemory, "there was not enough memory", LESS_MEMORY),
    sign("std::bad_alloc", Cause::OutOfMemory, "there was not enough memory", LESS_MEMORY),
    sign("Cannot allocate memory", Cause::OutOfMemory, "there was not enough memory", LESS_MEMORY),
    sign("out of memory", Cause::OutOfMemory, "there was not enough memory", LESS_MEMORY),
    sign(
        "data is not within the file bounds",
        Cause::FileCorrupt,
        "the model's file is truncated",
        FETCH_AGAIN,
    ),
    sign(
        "invalid magic characters",
        Cause::FileCorrupt,
        "the model's file is not a GGUF file",
        FETCH_AGAIN,
    ),
    sign(
        "unknown model architecture",
        Cause::UnsupportedModel,
        "this llama-server does not know the model's architecture",
        "use a newer llama-server, or another model",
    ),
    sign("gguf_init_from_reader", Cause::FileCorrupt, "the model's file is damaged", FETCH_AGAIN),
    sign(
        "error loading model",
        Cause::FileCorrupt,
        "the model's file can't be loaded",
        FETCH_AGAIN,
    ),
];

const SIGILL: i32 = 4;
const SIGKILL: i32 = 9;

/// Says why a llama-server that ended so, after logging this, ended.
pub fn diagnose(exit: ExitKind, log: &str) -> Diagnosis {
    let found = SIGNS.iter().find_map(|sign| {
        let line = log.lines().find(|line| line.contains(sign.text))?;
        Some(diagnosis(sign.cause, sign.message, sign.hint, Some(line)))
    });
    found.unwrap_or_else(|| match exit {
        ExitKind::Signal(SIGILL) => diagnosis(
            Cause::WrongProcessor,
            "it was built for another processor (SIGILL)",
            "use a llama-server that is built for this machine",
            None,
        ),
        ExitKind::Signal(SIGKILL) => diagnosis(
            Cause::Killed,
            "it was killed (SIGKILL): by the kernel for want of memory, or by somebody",
            "`dmesg | grep -i oom` tells whether the kernel did it",
            log.lines().last(),
        ),
        exit => diagnosis(
            Cause::Unknown,
            &format!("it ended by itself: {exit}"),
            "its log has the details",
            log.lines().rev().find(|line| line.contains(" E ")).or(log.lines().last()),
        ),
    })
}

fn diagnosis(cause: Cause, message: &str, hint: &str, evidence: Option<&str>) -> Diagnosis {
    Diagnosis {
        cause,
        message: message.to_owned(),
        hint: hint.to_owned(),
        evidence: evidence.map(|line| without_prefix(line).to_owned()),
    }
}

/// A log line without its time and level.
fn without_prefix(line: &str) -> &str {
    let is_time = |word: &str| word.split('.').all(|part| part.parse::<u64>().is_ok());
    match line.trim().split_once(' ') {
        Some((time, rest)) if is_time(time) => rest.trim_start().get(2..).unwrap_or(rest),
        _ => line.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_cause() {
        for (exit, log, cause, evidence) in [
            (
                ExitKind::Code(1),
                "0.00.006.717 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 35423",
                Cause::PortTaken,
                Some(
                    "srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 35423",
                ),
            ),
            (
                ExitKind::Code(1),
                "error: invalid argument: --nope",
                Cause::BadFlag,
                Some("error: invalid argument: --nope"),
            ),
            (
                ExitKind::Code(1),
                "0.00.1 E x: failed to open GGUF file '/x.gguf' (No such file or directory)\n0.00.2 E llama_model_load: error loading model: y",
                Cause::FileMissing,
                Some("x: failed to open GGUF file '/x.gguf' (No such file or directory)"),
            ),
            (
                ExitKind::Code(1),
                "0.06.1 E ggml_aligned_malloc: insufficient memory (attempted to allocate 2197265.62 MB)",
                Cause::OutOfMemory,
                Some(
                    "ggml_aligned_malloc: insufficient memory (attempted to allocate 2197265.62 MB)",
                ),
            ),
            (
                ExitKind::Signal(6),
                "/src/ggml/src/ggml.c:1643: GGML_ASSERT(ctx->mem_buffer != NULL) failed",
                Cause::OutOfMemory,
                Some("/src/ggml/src/ggml.c:1643: GGML_ASSERT(ctx->mem_buffer != NULL) failed"),
            ),
            (ExitKind::Signal(4), "", Cause::WrongProcessor, None),
            (ExitKind::Signal(9), "0.1 I all is well", Cause::Killed, Some("all is well")),
            (ExitKind::Code(3), "", Cause::Unknown, None),
            (ExitKind::Unseen, "0.1 E é\n", Cause::Unknown, Some("é")),
        ] {
            let diagnosis = diagnose(exit, log);
            assert_eq!(diagnosis.cause, cause, "{log}");
            assert_eq!(diagnosis.evidence.as_deref(), evidence, "{log}");
        }
    }
}
