//! `cargo xtask demo`: two real models beside each other under one memory budget, behind one
//! address, with a request to each.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{cargo, fetch, root};

/// The first start on a slow machine reads 350 MB and loads two models.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// Runs the demo; `once` stops it after the requests.
pub(crate) fn run(once: bool) -> Result<()> {
    fetch::engine_and_models()?;
    eprintln!("building berth");
    crate::run(&mut cargo(&["build", "--workspace", "--bin", "berth"]))?;
    let started = Instant::now();
    let address = free_address()?;
    keep_running_on_ctrl_c();
    let mut berth =
        berth(&["up", "-f", "examples/two-models.toml", "--listen", &address.to_string()])
            .spawn()
            .context("can't start berth")?;
    let held = exercise(&mut berth, address, started);
    if !once && held.is_ok() {
        eprintln!(
            "\nThe gateway is at http://{address}/v1 for any OpenAI client. Ctrl-C stops it all."
        );
    } else {
        interrupt(&mut berth)?;
    }
    let status = berth.wait()?;
    match held {
        // Ctrl-C came before everything was up: that is no failure.
        Err(error) if error.is::<Stopped>() && status.success() => Ok(()),
        held if status.success() => held,
        _ => bail!("berth ended with {status}"),
    }
}

/// berth ended before it was asked to.
#[derive(Debug)]
struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("berth ended before it was ready")
    }
}

impl std::error::Error for Stopped {}

fn exercise(berth_up: &mut Child, address: SocketAddr, started: Instant) -> Result<()> {
    wait_until_ready(berth_up, address)?;
    let chat = json!({
        "model": "smollm2", "stream": true, "max_tokens": 48, "temperature": 0,
        "messages": [{"role": "user", "content": "What is a berth in a harbour? One sentence."}],
    });
    let first = stream(address, "/v1/chat/completions", &chat, "smollm2", chat_text)?;
    eprintln!(
        "(first token {:.1} s after the start of `berth up`)",
        first.duration_since(started).as_secs_f64()
    );
    let completion = json!({
        "model": "gemma3-270m", "stream": true, "max_tokens": 32, "temperature": 0,
        "prompt": "A berth is the place a ship is given in a",
    });
    stream(address, "/v1/completions", &completion, "gemma3-270m", completion_text)?;
    println!("\nThe ledger, after both requests:\n");
    std::io::stdout().flush()?;
    crate::run(&mut berth(&["status"]))
}

/// berth, with the demo's own state.
fn berth(args: &[&str]) -> Command {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let mut command = Command::new(target.join("debug").join("berth"));
    command.current_dir(root()).args(args).env("BERTH_STATE", fetch::dir().join("state"));
    command.stdin(Stdio::null());
    command
}

/// Port 8080 where it is free, else any.
fn free_address() -> Result<SocketAddr> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = bind(8080).or_else(|_| bind(0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

fn wait_until_ready(berth_up: &mut Child, address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        if berth_up.try_wait()?.is_some() {
            return Err(Stopped.into());
        }
        if ureq::get(format!("http://{address}/ready")).call().is_ok() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the models were not ready after {} s", READY_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Sends a request and prints the answer as it arrives. Gives the time of its first token.
fn stream(
    address: SocketAddr,
    path: &str,
    request: &Value,
    model: &str,
    text: fn(&Value) -> Option<&str>,
) -> Result<Instant> {
    let mut response = ureq::post(format!("http://{address}{path}"))
        .header("content-type", "application/json")
        .send(request.to_string())
        .with_context(|| format!("{model} did not answer"))?;
    print!("\n{model}> ");
    let mut first = None;
    let mut done = false;
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(data)?;
        if let Some(token) = text(&chunk).filter(|token| !token.is_empty()) {
            first.get_or_insert_with(Instant::now);
            print!("{token}");
            std::io::stdout().flush()?;
        }
    }
    println!();
    if !done {
        bail!("the answer of {model} broke off");
    }
    first.with_context(|| format!("{model} answered without a token"))
}

fn chat_text(chunk: &Value) -> Option<&str> {
    chunk["choices"][0]["delta"]["content"].as_str()
}

fn completion_text(chunk: &Value) -> Option<&str> {
    chunk["choices"][0]["text"].as_str()
}

/// Ctrl-C reaches berth too, which then stops in good order; this process only waits for it.
fn keep_running_on_ctrl_c() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            runtime.block_on(async { while tokio::signal::ctrl_c().await.is_ok() {} });
        }
    });
}

/// Asks berth to stop, if it still runs.
fn interrupt(child: &mut Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let (None, Some(pid)) = (child.try_wait()?, pid) {
        kill_process(pid, Signal::INT)?;
    }
    Ok(())
}
