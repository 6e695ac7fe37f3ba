//! `berth plan` and `berth explain` for machines that are planned for: what people read.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::Path;
use std::process::Command;

fn berth(folder: &Path, line: &str) -> (i32, String) {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/medgemma-16x4.toml");
    let words = line.split_whitespace().map(|word| if word == "CASE" { example } else { word });
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(words)
        .current_dir(folder)
        .env("BERTH_STATE", folder.join("state"))
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn answers_and_refusals() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("bad.toml"),
        "[[cluster.nodes]]\nnames = \"n[0-16]\"\ngpu = \"A1O\"\n[models.a]\nsource = \"a\"\n",
    )
    .unwrap();
    std::fs::write(folder.path().join("unknown.toml"), "[[cluster.nodes]]\nnames = \"n\"\ngpu = \"A10\"\n[models.a]\nsource = \"lama-3.1-8b\"\nengine = \"vllm\"\n").unwrap();
    std::fs::write(
        folder.path().join("serve.yaml"),
        "applications:\n- name: pool\n  import_path: app:build\n  deployments:\n  - name: Engine\n    num_replica: 3\n    \
         ray_actor_options:\n      resources: {\"node_id\": \"!node_0\"}\n",
    )
    .unwrap();
    std::fs::write(folder.path().join("ray.toml"), "[cluster]\nbackend = \"ray\"\n[cluster.ray]\naddress = \"http://127.0.0.1:1\"\n[models.a]\nsource = \"a.gguf\"\n").unwrap();
    for (line, code, says) in [
        ("plan -f CASE --compare", 0, "recommended: node-for-newcomer"),
        ("plan -f CASE --compare", 0, "runner-up: best"),
        ("plan -f CASE --compare", 0, "it needs 13.3 GiB there"),
        ("plan -f CASE --compare --lang es", 0, "recomendada: node-for-newcomer"),
        ("plan -f CASE --compare --json", 0, "\"recommended\": \"node-for-newcomer\""),
        ("plan -f CASE --compare --report r.txt", 2, "r.txt is neither .md nor .html"),
        ("plan -f CASE --compare --report no/r.md", 1, "the report no/r.md can't be written"),
        ("plan -f CASE --compare --report r.html", 0, "written: r.html"),
        ("plan -f CASE --strategy half-fp8", 0, "half-fp8 (fits)"),
        ("plan -f CASE --strategy half-fp8", 0, "node-1 .. node-15 (15) gpu:0"),
        ("plan -f CASE --strategy half-fp8", 0, "[strategies.\"half-fp8\"]"),
        ("plan -f CASE --strategy 1A-lower-090", 3, "these can't hold together"),
        ("plan -f CASE --strategy 1A-lower-09", 2, "did you mean `1A-lower-090`?"),
        ("plan -f CASE --strategy best --what-if lose=node-3", 0, "15 -> 14"),
        ("plan -f CASE --strategy best --what-if add=2", 0, "2 more nodes: fits -> fits"),
        ("plan -f CASE --strategy best --what-if gpu=T4", 3, "every GPU a T4: fits -> impossible"),
        ("plan -f CASE --what-if gpu=A11", 2, "`A11` is no kind of GPU"),
        ("plan -f CASE --what-if more", 2, "write add=4, lose=node-3, gpu=L40S or demand=2"),
        ("plan -f CASE --what-if demand=2", 2, "no model has a demand"),
        (
            "plan -f CASE --strategy node-for-newcomer --emit vllm",
            0,
            "CUDA_VISIBLE_DEVICES=0,1,2,3 vllm serve medgemma-27b",
        ),
        (
            "plan -f CASE --strategy node-for-newcomer --emit systemd",
            0,
            "# node-15: /etc/systemd/system/",
        ),
        (
            "plan -f CASE --strategy node-for-newcomer --emit systemd",
            0,
            "http://127.0.0.1:18100/health; do sleep 1; done'",
        ),
        (
            "plan -f CASE --strategy node-for-newcomer --emit ray",
            0,
            "ray start --head --num-gpus=4 --labels machine=node-0",
        ),
        ("plan -f CASE --strategy node-for-newcomer --emit ray --module m", 0, "/m\n"),
        ("plan -f CASE --strategy node-for-newcomer --emit kuberay", 0, "kind: RayService"),
        (
            "plan -f CASE --strategy node-for-newcomer --emit ray-serve-llm",
            0,
            "import_path: ray.serve.llm:build_openai_app",
        ),
        (
            "plan -f CASE --strategy spread-fp8 --emit ray-serve-llm",
            1,
            "ray.serve.llm can't say which GPUs those are",
        ),
        ("plan -f CASE --strategy 1A-lower-090 --emit ray", 3, "error: 1A-lower-090 does not fit"),
        (
            "doctor --serve-config serve.yaml",
            1,
            "pool#Engine: Ray ignores `num_replica` without a word",
        ),
        ("doctor --serve-config serve.yaml", 1, "TypeError: '<' not supported"),
        ("doctor --serve-config bad.toml", 2, "is YAML or JSON, as `serve deploy` takes it"),
        ("doctor -f ray.toml", 1, "set address in [cluster.ray] to the head's dashboard"),
        ("explain medgemma-4b -f CASE", 0, "In the way: GPU 0: medgemma-27b-0"),
        ("explain medgemma-27b -f CASE", 0, "it runs there as it is wanted, so it stays"),
        ("explain node-1 -f CASE", 0, "the spec keeps it to node-0"),
        ("explain medgema-4b -f CASE", 2, "did you mean `medgemma-4b`?"),
        ("apply -f CASE", 2, "the machines of this spec are planned for"),
        ("plan -f bad.toml", 2, "bad.toml:3:7: `A1O` is no kind of GPU that berth knows"),
        ("plan -f unknown.toml", 2, "did you mean `llama-3.1-8b`?"),
    ] {
        let (got, text) = berth(folder.path(), line);
        assert_eq!(got, code, "{line}\n{text}");
        assert!(text.contains(says), "{line} lacks {says}\n{text}");
    }
}
