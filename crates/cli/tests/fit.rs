//! `berth fit` and `berth calibrate` as a person runs them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Exit code, stdout and stderr.
fn berth(state: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(args)
        .env("BERTH_STATE", state)
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .env("HOME", state)
        .env_remove("XDG_CACHE_HOME")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn answers_and_refusals() {
    let state = tempfile::tempdir().unwrap();
    for (line, code, says) in [
        (
            "fit medgemma-27b --gpu A10 -- -tp 4 --gpu-memory-utilization 0.85 --max-model-len 8192 --enforce-eager",
            0,
            "medgemma-27b on 4 x A10, vLLM 0.26.0: ready",
        ),
        (
            "fit medgemma-27b --gpu A10 --gpus 4 -- -tp 3",
            3,
            "must be divisible by tensor parallel size (3)",
        ),
        ("fit medgemma-27b --gpu A10 --gpus 4 -- -tp 3", 3, "what to change"),
        (
            "fit llama-3.1-8b --gpu L4 --find utilization --requests 8 --tokens 4096",
            0,
            "--gpu-memory-utilization 0.",
        ),
        (
            "fit llama-3.1-8b --gpu H100 --find utilization --leave 20GiB -- --max-model-len 8192",
            0,
            "--gpu-memory-utilization 0.",
        ),
        ("fit qwen3-8b --gpu A10 --find length", 0, "--max-model-len "),
        (
            "fit medgemma-27b --gpu A10 --gpus 4 --find layout -- --max-model-len 8192 --enforce-eager",
            0,
            "heads_not_divisible",
        ),
        ("fit medgemma-27b --gpu T4 -- --dtype bfloat16", 3, "Bfloat16 is only supported on GPUs"),
        (
            "fit llama-3.1-8b --gpu H100 -- --enable-lora",
            2,
            "the memory that `--enable-lora` takes is not modelled",
        ),
        (
            "fit llama-3.1-8b --gpu H100 -- --max-model-length 8192",
            2,
            "did you mean `--max-model-len`?",
        ),
        (
            "fit llama-3.2-1b --gpu L40S -- --max-model-len 400000",
            3,
            "greater than the derived max_model_len",
        ),
        ("fit qwen3-8b --gpu A10 --gpus 1 -- -tp 4", 2, "4 GPUs are needed, 1 are given"),
        ("fit qwen3-8b --gpu H100 --engine-version 0.33.0 -- --max-model-len 4096", 0, "band:"),
        ("fit qwen3-8b --gpu H100 --engine-version 0.5.4", 3, "0.26 to 0.33 are"),
        ("fit qwen3-8b --gpu H100 --find length --then qwen3-8b", 2, "--find is for one model"),
        ("fit llama-3.1-8b --gpu H101", 2, "known are T4"),
        ("fit llama-3.1-8b", 2, "add --gpu KIND"),
        ("fit llama-3.1-8c --gpu A10", 2, "did you mean `llama-3.1-8b`?"),
        ("fit nobody/nothing --gpu A10", 2, "HF_ENDPOINT"),
        (
            "fit llama-3.1-8b --gpu A10 --find utilization",
            2,
            "add --requests N --tokens N, or --leave BYTES",
        ),
    ] {
        let args: Vec<&str> = line.split_whitespace().collect();
        let (got, out, err) = berth(state.path(), &args);
        assert_eq!(got, code, "{line}\n{out}{err}");
        assert!(out.contains(says) || err.contains(says), "{line}\n{out}{err}");
    }
}

#[test]
fn a_second_engine_is_answered_for() {
    let state = tempfile::tempdir().unwrap();
    let h100 = "fit medgemma-27b-text --gpu H100";
    let (code, out, err) = berth(
        state.path(),
        &[
            &h100.split_whitespace().collect::<Vec<_>>()[..],
            &[
                "--then",
                "medgemma-4b --gpu-memory-utilization 0.3 --enforce-eager --max-model-len 8192",
            ],
            &[
                "--",
                "--gpu-memory-utilization",
                "0.8",
                "--enforce-eager",
                "--max-model-len",
                "8192",
            ],
        ]
        .concat(),
    );
    assert_eq!(code, 3, "{out}{err}");
    for says in ["2 engines in order: free_below_requested", "what to change for medgemma-4b"] {
        assert!(out.contains(says), "{out}");
    }
}

const LOG: &str = "INFO [core.py:116] Initializing a V1 LLM engine (v0.26.0) with config: tensor_parallel_size=1, pipeline_parallel_size=1,\n\
    INFO [model_runner.py:305] Model loading took 15.27 GiB and 1.75 seconds\n\
    INFO [gpu_worker.py:560] Available KV cache memory: 2.6 GiB\n\
    INFO [gpu_worker.py:857] Free memory on device (21.76/22.06 GiB) on startup. Desired GPU memory utilization is (0.85, 18.75 GiB). Actual usage is 15.27 GiB for weight, 0.23 GiB for peak activation, 0.09 GiB for non-torch memory, and 0.0 GiB for CUDAGraph memory. Replace";

/// A log narrows the band of its kind of GPU, version and family, and of nothing else; it cannot move
/// what is derived.
#[test]
fn a_log_is_learnt_from() {
    let state = tempfile::tempdir().unwrap();
    let log = state.path().join("vllm.log");
    std::fs::write(&log, LOG).unwrap();
    let flags =
        ["--", "--enforce-eager", "--max-model-len", "4096", "--gpu-memory-utilization", "0.85"];
    let ask = |model: &str| {
        let args = [&["fit", model, "--gpu", "A10", "--json"][..], &flags].concat();
        let (_, out, err) = berth(state.path(), &args);
        serde_json::from_str::<Value>(&out).unwrap_or_else(|_| panic!("{out}{err}"))
    };
    let before = ask("qwen3-8b");
    assert!(before["band"].is_object());
    let log = log.to_str().unwrap();
    let learn = ["calibrate", "--log", log, "--model", "qwen3-8b", "--gpu", "A10"];
    let (code, out, err) = berth(state.path(), &[&learn[..], &flags].concat());
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("learnt") && err.contains("learnt 2 figures"), "{out}{err}");
    let after = ask("qwen3-8b");
    assert!(after["band"].is_null(), "{after}");
    assert_eq!(after["weights_bytes"], before["weights_bytes"]);
    assert_eq!(after["non_torch_bytes"], 96_636_764);
    assert!(ask("llama-3.1-8b")["band"].is_object(), "another family is not touched");
    let kept = std::fs::read(state.path().join("calibration.json")).unwrap();
    berth(state.path(), &[&learn[..], &flags].concat());
    let again = std::fs::read(state.path().join("calibration.json")).unwrap();
    assert_eq!(kept, again, "the same log teaches the same");
    // Nothing is learnt from a log of another model, another card, other flags.
    for (model, gpu, flags, says) in [
        ("llama-3.2-1b", "A10", &[][..], "of weights, the model has"),
        ("qwen3-8b", "L40S", &flags[..], "it ran on a GPU of 22.06 GiB"),
        (
            "qwen3-8b",
            "A10",
            &["--", "-pp", "2", "--max-model-len", "4096"][..],
            "of weights, the model has",
        ),
    ] {
        let learn =
            [&["calibrate", "--log", log, "--model", model, "--gpu", gpu][..], flags].concat();
        let (_, out, err) = berth(state.path(), &learn);
        assert!(err.contains("not of this start") && err.contains(says), "{out}{err}");
    }
    assert_eq!(std::fs::read(state.path().join("calibration.json")).unwrap(), kept);
}

#[test]
fn what_can_not_be_learnt_from_is_told() {
    let state = tempfile::tempdir().unwrap();
    let log = state.path().join("vllm.log");
    std::fs::write(&log, "hello").unwrap();
    let learn = |log: &str| {
        berth(state.path(), &["calibrate", "--log", log, "--model", "qwen3-8b", "--gpu", "A10"])
    };
    let (code, _, err) = learn(log.to_str().unwrap());
    assert!(
        code == 2 && err.contains("no line with vLLM's version") && err.contains("hint:"),
        "{err}"
    );
    let (code, _, err) = learn("/nowhere/vllm.log");
    assert!(code == 2 && err.contains("can't be read"), "{err}");
    for broken in [
        "[{",
        r#"[{"source": "x", "terms": {"context": 1e18}}]"#,
        r#"[{"source": "x", "terms": {"context": [500, 400, 1]}}]"#,
    ] {
        std::fs::write(state.path().join("calibration.json"), broken).unwrap();
        let (code, _, err) = berth(state.path(), &["fit", "qwen3-8b", "--gpu", "A10"]);
        assert!(code == 1 && err.contains("calibration.json can't be read"), "{broken}: {err}");
    }
    let (code, _, err) = berth(state.path(), &["fit", "qwen3-8b", "--gpu", "A10"]);
    assert!(
        code == 1 && err.contains("calibration.json can't be read") && err.contains("hint:"),
        "{err}"
    );
}
