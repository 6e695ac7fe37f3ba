//! Who may ask a vLLM that can be put to sleep what, by the guard that is shipped to a cluster's nodes.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::process::Command;

const FOLDER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster/src/ray/module/berth_serve/inside_vllm");
/// Asks the guard's application once, and prints the status.
const ASK: &str = "
import asyncio, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from berth_guard import OnlyFromHere
async def engine(scope, receive, send): await send({'type': 'http.response.start', 'status': 200})
async def send(event): print(event.get('status', event.get('code', '')), end='')
path, client, kind = sys.argv[2:]
scope = {'type': kind, 'path': path, 'client': [client, 1] if client else None, 'server': ['10.0.0.7', 8000]}
asyncio.run(OnlyFromHere(engine)(scope, None, send))
";

#[test]
fn developers_routes_are_the_machines_own() {
    let (own, other) = ("10.0.0.7", "10.0.0.8");
    for (path, client, kind, status) in [
        ("/v1/chat/completions", other, "http", "200"),
        ("/health", other, "http", "200"),
        ("/metrics", other, "http", "200"),
        ("/is_sleeping", other, "http", "200"),
        ("/sleep", other, "http", "403"),
        ("/collective_rpc", other, "http", "403"),
        ("/server_info", other, "http", "403"),
        ("/sleep", "", "http", "403"),
        ("/v1", other, "http", "403"),
        ("//sleep", other, "http", "403"),
        ("/sleep", other, "websocket", "1008"),
        ("/sleep", own, "http", "200"),
        ("/collective_rpc", own, "http", "200"),
    ] {
        let mut python = Command::new("python3");
        let asked = python.args(["-E", "-c", ASK, FOLDER, path, client, kind]).output().unwrap();
        let said = String::from_utf8_lossy(&asked.stdout).into_owned();
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        assert_eq!(said, status, "{kind} {path} from {client}");
    }
}
