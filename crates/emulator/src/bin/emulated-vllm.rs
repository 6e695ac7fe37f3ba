//! `vllm serve`, emulated: for tests of what starts and tells a real one. Of its flags it knows where it listens and
//! what it is called; it takes no memory.

use std::env;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use berth_emulator::engine::{Engine, Pace};
use berth_emulator::vllm::serve;

fn main() -> io::Result<ExitCode> {
    let words: Vec<String> = env::args().skip(1).collect();
    let value = |flag: &str| {
        let at = words.iter().position(|word| word == flag)?;
        words.get(at + 1).map(String::as_str)
    };
    let host: Option<IpAddr> = value("--host").and_then(|host| host.parse().ok());
    let port: Option<u16> = value("--port").and_then(|port| port.parse().ok());
    let (Some("serve"), Some(host), Some(port)) = (words.first().map(String::as_str), host, port)
    else {
        let usage = "usage: emulated-vllm serve MODEL --host ADDRESS --port PORT";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, usage));
    };
    let model = value("--served-model-name").unwrap_or_default().to_owned();
    let pace = Pace { cache_tokens: 8192, sequences: 4, longest: 8192, ..Pace::default() };
    let engine = Arc::new(Engine::new(model, pace, 1.0));
    let address = SocketAddr::new(host, port);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let _server = serve(address, Arc::clone(&engine)).await?;
        let mut has_ended = engine.ended();
        let ended = has_ended.wait_for(Option::is_some).await.map_err(io::Error::other)?;
        let code = ended.as_ref().map_or(0, |ended| ended.code);
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
    })
}
