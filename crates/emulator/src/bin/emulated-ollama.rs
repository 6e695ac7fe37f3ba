//! `ollama serve`, emulated: for tests of what starts and tells a real one.
//!
//! Its environment is the real one's (`OLLAMA_HOST`, `OLLAMA_MODELS`, `OLLAMA_KEEP_ALIVE`...). What its library has
//! is in `EMULATED_LIBRARY`, as in `{"tiny": {"size": 1000000}}`, and how much faster it is than a real one in
//! `EMULATED_SPEEDUP`.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use berth_emulator::ollama::{Environment, Model, Ollama, Pulled, serve};

fn main() -> io::Result<ExitCode> {
    if env::args().nth(1).as_deref() != Some("serve") {
        return Err(wrong("usage: emulated-ollama serve"));
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> io::Result<ExitCode> {
    let get = |name: &str| env::var(name).ok();
    let host = get("OLLAMA_HOST").unwrap_or_else(|| "127.0.0.1:11434".to_owned());
    let address: SocketAddr = host.parse().map_err(|_| wrong("OLLAMA_HOST is no ADDRESS:PORT"))?;
    let library = get("EMULATED_LIBRARY").unwrap_or_else(|| "{}".to_owned());
    let library: BTreeMap<String, Model> =
        serde_json::from_str(&library).map_err(io::Error::other)?;
    let pulled = match get("OLLAMA_MODELS") {
        Some(folder) => Pulled::in_folder(PathBuf::from(folder))?,
        None => Pulled::default(),
    };
    let speedup = get("EMULATED_SPEEDUP").and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let ollama = Arc::new(Ollama::new(library, pulled, Environment::new(get), speedup));
    let _server = serve(address, Arc::clone(&ollama)).await?;
    let mut has_ended = ollama.engine().ended();
    let ended = has_ended.wait_for(Option::is_some).await.map_err(io::Error::other)?;
    let code = ended.as_ref().map_or(0, |ended| ended.code);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
