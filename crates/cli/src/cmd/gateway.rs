//! `berth gateway`: a gateway alone, to servers that a spec names, or with routes from a file that a controller writes;
//! it goes on with them when that is gone. Any number of them can run side by side.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use berth_control::Externals;
use berth_control::clock::now_ms;
use berth_core::spec::{GatewaySpec, Spec, TlsFiles};
use berth_gateway::{Gateway, Table};

use crate::args::GatewayArgs;
use crate::failure::Failure;
use crate::files::{self, LOOK};
use crate::in_flight::Said;
use crate::lifecycle::{self, DRAIN_LIMIT};
use crate::output;
use crate::prepare;
use crate::publish;

/// Where requests go.
enum By {
    /// To the servers of a spec.
    Spec(PathBuf, Box<Spec>),
    /// By a file of routes.
    Routes(PathBuf),
}

pub(crate) fn run(state: &Path, args: &GatewayArgs) -> Result<ExitCode, Failure> {
    let by = match (&args.spec, &args.routes) {
        (Some(file), _) => By::Spec(file.clone(), Box::new(elsewhere(file)?)),
        (None, Some(file)) => By::Routes(file.clone()),
        (None, None) => By::Routes(prepare::state_dir(state)?.routes()),
    };
    let spec = settings(args, &by);
    // The spec's own address has been checked with the spec.
    let is_new = matches!(by, By::Routes(_)) || args.listen.is_some();
    if is_new && !spec.listen.ip().is_loopback() && spec.keys.is_none() && !args.allow_remote {
        let error = anyhow::anyhow!("{} is reachable from other machines", spec.listen);
        return Err(Failure::bad_spec(error).hint(
            "name a file of keys with --keys (`berth key` makes them), or say --allow-remote if anybody who \
             reaches it may use the models",
        ));
    }
    let gateway = lifecycle::gateway_of(&spec, args.workers.map(usize::from))?;
    if let By::Routes(file) = &by {
        gateway.set_table(table(file)?);
    }
    lifecycle::runtime()?.block_on(async {
        let listener = lifecycle::bind(spec.listen).await?;
        let mut externals = Externals::default();
        if let By::Spec(_, spec) = &by {
            first_answers(&gateway, &mut externals, spec).await;
        }
        let file = match &by {
            By::Spec(file, _) | By::Routes(file) => file.display(),
        };
        output::talk(&format!("serving at {}, by {file}", lifecycle::url(&spec)));
        tokio::spawn(lifecycle::follow_keys(
            gateway.clone(),
            spec.keys.as_ref().map(PathBuf::from),
        ));
        match by {
            By::Spec(file, spec) => {
                drop(tokio::spawn(follow_spec(gateway.clone(), externals, file, *spec)))
            }
            By::Routes(file) => {
                tokio::spawn(say(gateway.clone(), file.clone()));
                tokio::spawn(follow_routes(gateway.clone(), file));
            }
        }
        tokio::spawn({
            let gateway = gateway.clone();
            async move {
                lifecycle::signal().await;
                output::talk("finishing what runs");
                gateway.drain();
            }
        });
        gateway.serve(listener, DRAIN_LIMIT).await.map_err(Failure::new)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// What the spec says of the gateway, and what the flags say instead.
fn settings(args: &GatewayArgs, by: &By) -> GatewaySpec {
    let mut spec = match by {
        By::Spec(_, spec) => spec.gateway.clone(),
        By::Routes(_) => GatewaySpec::default(),
    };
    let text = |path: &PathBuf| path.display().to_string();
    spec.listen = args.listen.unwrap_or(spec.listen);
    spec.keys = args.keys.as_ref().map(text).or(spec.keys);
    if let Some((certificate, key)) = args.certificate.as_ref().zip(args.certificate_key.as_ref()) {
        spec.tls = Some(TlsFiles { certificate: text(certificate), key: text(key) });
    }
    spec.access_log |= args.access_log;
    spec
}

/// A spec all of whose models run elsewhere.
fn elsewhere(file: &Path) -> Result<Spec, Failure> {
    let mut spec = prepare::spec(file)?;
    prepare::files_of_the_gateway(&mut spec.gateway, prepare::base(file))?;
    let own: Vec<&str> = spec.deployments.iter().map(|one| one.model.as_str()).collect();
    if !own.is_empty() {
        let what = format!("berth itself runs models of {}: {}", file.display(), own.join(", "));
        return Err(Failure::bad_spec(anyhow::anyhow!(what)).hint(
            "`berth up` or `berth serve` runs them; `berth gateway` without -f goes by the routes that those write",
        ));
    }
    Ok(spec)
}

/// Waits a moment for what the servers of a spec answer: without that no model would be known yet.
async fn first_answers(gateway: &Gateway, externals: &mut Externals, spec: &Spec) {
    const LOOKS: u32 = 20;
    for _ in 0..LOOKS {
        let seen = externals.look(&spec.external, now_ms()).await;
        gateway.set_table(publish::table(Vec::new(), &seen, &spec.gateway));
        if seen.iter().all(|one| one.is_ready) {
            return;
        }
        tokio::time::sleep(LOOK / 2).await;
    }
}

/// Asks the servers of a spec whether they are there, and takes up the spec whenever it changes.
async fn follow_spec(gateway: Gateway, mut externals: Externals, file: PathBuf, spec: Spec) {
    let current = Arc::new(Mutex::new(spec));
    let taken_up = Arc::clone(&current);
    let take_up = move |file: &Path| {
        let new = elsewhere(file)?;
        let mut current = taken_up.lock().unwrap_or_else(PoisonError::into_inner);
        let fixed = |spec: &Spec| GatewaySpec {
            aliases: BTreeMap::default(),
            rules: Vec::new(),
            ..spec.gateway.clone()
        };
        if fixed(&new) != fixed(&current) {
            output::talk(
                "of [gateway] only aliases and rules are taken up; start anew for the rest",
            );
        }
        *current = new;
        Ok(())
    };
    tokio::spawn(async move { files::follow(&file, "the servers", take_up).await });
    loop {
        let Spec { external, gateway: told, .. } =
            current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = externals.look(&external, now_ms()).await;
        gateway.set_table(publish::table(Vec::new(), &seen, &told));
        tokio::time::sleep(LOOK).await;
    }
}

/// Takes up the routes whenever they change. A file that is broken changes nothing.
async fn follow_routes(gateway: Gateway, routes: PathBuf) {
    let take_up = |file: &Path| {
        gateway.set_table(table(file)?);
        Ok(())
    };
    files::follow(&routes, "the routes", take_up).await;
}

/// Says what is in flight and what waits. Where that can't be written nobody drains for this gateway; it serves all
/// the same.
async fn say(gateway: Gateway, routes: PathBuf) {
    let Ok(said) = Said::new(&routes) else { return };
    loop {
        drop(said.say(&gateway));
        tokio::time::sleep(LOOK).await;
    }
}

fn table(file: &Path) -> Result<Table, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let what = format!("the routes {} can't be read", file.display());
        Failure::new(anyhow::Error::new(error).context(what)).hint(
            "`berth serve` or `berth up` writes them into its --state; --routes names another file, and -f a spec \
             of servers that run elsewhere",
        )
    })?;
    serde_json::from_str(&text).map_err(|error| {
        let what = anyhow::anyhow!("{}: {error}", file.display());
        Failure::bad_spec(what)
            .hint("it is written by `berth serve`; docs/gateway.md says what is in it")
    })
}
