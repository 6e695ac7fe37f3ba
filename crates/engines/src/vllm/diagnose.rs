//! Why a vLLM ended, from how it ended and what it logged (0.26 to 0.33).

use crate::diagnosis::{Cause, Diagnosis, ExitKind};

/// A text of the log, what it means, and what to do. The first that the log has wins.
const SIGNS: &[(&str, Cause, &str, &str)] = &[
    (
        "is less than desired GPU memory utilization",
        Cause::OutOfMemory,
        "somebody else held memory of its GPUs when it started",
        "`berth plan` counts what others hold; lower gpu_memory_utilization, or free the GPU",
    ),
    (
        "No available memory for the cache blocks",
        Cause::OutOfMemory,
        "its weights and activations leave no room for a cache",
        "`berth fit MODEL --find utilization` says what it needs",
    ),
    (
        "KV cache is needed, which is larger than the available KV cache memory",
        Cause::OutOfMemory,
        "its cache is too small for one request of max_model_len",
        "lower max_model_len: `berth fit MODEL --find length` says how far",
    ),
    (
        "CUDA out of memory",
        Cause::OutOfMemory,
        "it ran out of GPU memory",
        "`berth fit` with its flags says by how much, and what would do",
    ),
    (
        "unrecognized arguments",
        Cause::BadFlag,
        "vLLM refused a flag",
        "correct the model's flags in the spec; `vllm serve --help=all` lists them",
    ),
    (
        "vllm serve: error:",
        Cause::BadFlag,
        "vLLM refused a flag's value",
        "correct the model's flags in the spec; `vllm serve --help=all` lists them",
    ),
    (
        "must be divisible by tensor parallel size",
        Cause::BadFlag,
        "its layers can't be divided over so many GPUs",
        "choose a tensor_parallel_size that divides its heads; `berth fit MODEL --find layout` lists some",
    ),
    (
        "address already in use",
        Cause::PortTaken,
        "its port is taken by another process",
        "run `berth apply` again: the plan then chooses another port",
    ),
    (
        "is not a valid model identifier",
        Cause::FileMissing,
        "there is no such model on the hub, or it needs a token",
        "check source in the spec; HF_TOKEN must be set where the engine runs",
    ),
    (
        "is not a local folder and is not a valid model",
        Cause::FileMissing,
        "there is no such folder on its machine, and no such model on the hub",
        "source must be a folder that every machine has, or OWNER/NAME",
    ),
    (
        "are not supported for now",
        Cause::UnsupportedModel,
        "this vLLM does not know the model's architecture",
        "use a newer vLLM, or another model",
    ),
    (
        "Failed to infer device type",
        Cause::CannotStart,
        "vLLM sees no GPU",
        "check the driver on its machine (`nvidia-smi`), and CUDA_VISIBLE_DEVICES there",
    ),
    (
        "No CUDA GPUs are available",
        Cause::CannotStart,
        "vLLM sees no GPU",
        "check the driver on its machine (`nvidia-smi`), and CUDA_VISIBLE_DEVICES there",
    ),
];

const SIGKILL: i32 = 9;

/// Says why a vLLM that ended so, after logging this, ended.
pub fn diagnose(exit: ExitKind, log: &str) -> Diagnosis {
    let found = SIGNS.iter().find_map(|(text, cause, message, hint)| {
        // The last is the one that ended it: an earlier one may have been got over.
        let line = log.lines().rev().find(|line| line.contains(text))?;
        Some(diagnosis(*cause, message, hint, Some(line)))
    });
    found.unwrap_or_else(|| match exit {
        ExitKind::Signal(SIGKILL) => diagnosis(
            Cause::Killed,
            "it was killed (SIGKILL): by the kernel for want of memory, or by somebody",
            "`dmesg | grep -i oom` on its machine tells whether the kernel did it",
            last_error(log),
        ),
        exit => diagnosis(
            Cause::Unknown,
            &format!("it ended by itself: {exit}"),
            "its log has the details",
            last_error(log),
        ),
    })
}

fn diagnosis(cause: Cause, message: &str, hint: &str, evidence: Option<&str>) -> Diagnosis {
    let (message, hint) = (message.to_owned(), hint.to_owned());
    Diagnosis { cause, message, hint, evidence: evidence.map(|line| line.trim().to_owned()) }
}

/// The last line of a traceback, or of the log.
fn last_error(log: &str) -> Option<&str> {
    let lines = || log.lines().rev().filter(|line| !line.trim().is_empty());
    lines().find(|line| line.contains("Error:")).or_else(|| lines().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as vLLM 0.26 and 0.32 have logged them.
    #[test]
    fn names_the_cause() {
        for (exit, log, cause) in [
            (
                ExitKind::Code(1),
                "ValueError: Free memory on device cuda:0 (1.55/22.06 GiB) on startup is less than desired GPU memory utilization (0.9, 19.85 GiB).",
                Cause::OutOfMemory,
            ),
            (
                ExitKind::Code(1),
                "(EngineCore pid=9) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 0.25 GiB.\nRuntimeError: Engine core initialization failed.",
                Cause::OutOfMemory,
            ),
            (ExitKind::Code(2), "vllm: error: unrecognized arguments: --nope", Cause::BadFlag),
            (
                ExitKind::Code(1),
                "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
                Cause::CannotStart,
            ),
            (ExitKind::Signal(9), "INFO all is well", Cause::Killed),
            (ExitKind::Code(3), "KeyError: 'x'\nINFO bye", Cause::Unknown),
        ] {
            assert_eq!(diagnose(exit, log).cause, cause, "{log}");
        }
        let evidence = diagnose(ExitKind::Code(3), "KeyError: 'x'\nINFO bye").evidence;
        assert_eq!(evidence.as_deref(), Some("KeyError: 'x'"));
    }
}
