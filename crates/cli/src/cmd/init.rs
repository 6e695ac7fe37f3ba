//! `berth init`: looks at a Ray cluster or this machine, and writes a first spec.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use berth_cluster::local;
use berth_core::inventory::{Device, DeviceKind, Inventory, Node};
use berth_core::memory::vllm::{self, Gpu};
use berth_core::spec::{RaySpec, Spec};
use berth_core::units::Bytes;
use berth_engines::source::{Hub, transformer};
use serde_json::{Map, Value, json};

use crate::args::InitArgs;
use crate::failure::Failure;
use crate::output;

/// Where a Ray cluster's dashboard is, unless somebody says otherwise.
const USUAL_RAY: &str = "http://127.0.0.1:8265";
/// The longest requests that a first spec allows: most models know longer ones, and few are asked for.
const LONGEST: u64 = 8192;
/// Ways to spread a model that are tried, the fewest GPUs first.
const SPREADS: [u64; 4] = [1, 2, 4, 8];
/// Sequences at once where vLLM's own number of them leaves no room.
const FEWER: u64 = 64;
/// Of a machine's memory a first spec lets models have so much.
const SHARE: f64 = 0.8;

pub(crate) fn run(args: &InitArgs) -> Result<ExitCode, Failure> {
    let (text, next) = match ray(args)? {
        Some((address, inventory)) => (of_ray(&address, &inventory, args)?, NEXT_ON_RAY),
        None => {
            let inventory = local::observe("").map_err(Failure::new)?;
            (of_machine(&inventory, args), NEXT_HERE)
        }
    };
    let file = args.file.display();
    if !args.model.is_empty() {
        // What is written here must be what is read.
        Spec::parse(&file.to_string(), &text)?;
    }
    write_new(&args.file, &text)?;
    output::talk(&format!("written: {file}"));
    if args.model.is_empty() {
        output::talk(
            "it has no model yet: add one as it shows, or write it anew with --model SOURCE",
        );
    }
    output::talk(next);
    Ok(ExitCode::SUCCESS)
}

const NEXT_ON_RAY: &str = "next:\n  berth doctor   what is wrong with the cluster, before anything is tried\n  \
                           berth plan     what goes where, beside what runs there already\n  \
                           berth apply    shows what changes, and makes it so\n  \
                           berth serve    one address for all of it, and a dashboard\n  \
                           berth prove    from another terminal: whether it holds";
const NEXT_HERE: &str = "next:\n  berth plan     what goes where, and what it takes\n  \
                         berth up       runs it, with one address and a dashboard\n  \
                         berth prove    from another terminal: whether it holds";

/// The cluster that is asked for, or the one that is there.
fn ray(args: &InitArgs) -> Result<Option<(String, Inventory)>, Failure> {
    let address = args.ray.clone().unwrap_or_else(|| USUAL_RAY.to_owned());
    let spec = RaySpec { address: address.clone(), ..RaySpec::default() };
    match berth_control::ray::observe(&spec, "") {
        Ok((inventory, _)) => Ok(Some((address, inventory))),
        Err(error) if args.ray.is_some() => {
            let hint = error.hint();
            Err(Failure::new(error).hint(hint))
        }
        Err(_) => Ok(None),
    }
}

fn of_ray(address: &str, inventory: &Inventory, args: &InitArgs) -> Result<String, Failure> {
    let mut text = String::from("# Written by `berth init`. Seen on the cluster then:\n#\n");
    for line in nodes_in_words(&inventory.nodes) {
        _ = writeln!(text, "#   {line}");
    }
    _ = write!(
        text,
        "\n[cluster]\nbackend = \"ray\"\n\n[cluster.ray]\naddress = \"{address}\"\n\
         # Where nodes carry a label with their names (`ray start --labels machine=n0`):\n\
         # name_label = \"machine\"\n\n\
         [engines.vllm]\n# As `vllm --version` says it on the nodes.\nversion = \"0.26.0\"\n"
    );
    let nodes = distinct(inventory);
    for (source, name) in named(&args.model) {
        let head = head(source, &name);
        _ = write!(text, "\n{head}engine = \"vllm\"\n\n[models.{name}.flags]\n");
        for (flag, value) in flags(source, &nodes)? {
            _ = writeln!(text, "{flag} = {value}");
        }
    }
    if args.model.is_empty() {
        text.push_str(
            "\n# [models.chat]\n# source = \"google/medgemma-4b-it\"    # or a folder that every node has\n\
             # engine = \"vllm\"\n#\n# [models.chat.flags]           # vLLM's own flags, under their own names\n\
             # max_model_len = 8192\n",
        );
    }
    Ok(text)
}

fn of_machine(inventory: &Inventory, args: &InitArgs) -> String {
    let devices = inventory.nodes.iter().flat_map(|node| &node.devices);
    let host = devices.into_iter().find(|device| !device.is_gpu());
    let free = host.map_or(Bytes::ZERO, |host| host.total - host.used_by_others);
    let budget = Bytes((free.0 as f64 * SHARE) as u64).0 >> 20;
    let mut text = format!(
        "# Written by `berth init`. No Ray cluster was seen at {USUAL_RAY}: this machine runs llama-server.\n\n\
         [cluster]\n# Of {free} that nobody else holds.\nhost_budget = \"{budget} MiB\"\n\n\
         [engines.llama_server]\n# A path, or a name that is in PATH.\nbinary = \"llama-server\"\n"
    );
    for (source, name) in named(&args.model) {
        _ = write!(text, "\n{}\n[models.{name}.flags]\nctx-size = 4096\n", head(source, &name));
    }
    if args.model.is_empty() {
        text.push_str(
            "\n# [models.chat]\n# source = \"models/gemma-3-4b-it-Q4_K_M.gguf\"\n#\n\
             # [models.chat.flags]           # llama-server's own flags, under their own names\n# ctx-size = 8192\n",
        );
    }
    text
}

fn head(source: &str, name: &str) -> String {
    format!("[models.{name}]\nsource = {}\n", json!(source))
}

/// Models with what clients may call them; one that is called as another before it is numbered.
fn named(sources: &[String]) -> Vec<(&str, String)> {
    let mut all: Vec<(&str, String)> = Vec::new();
    for source in sources {
        let name = name(source);
        let same = all.iter().filter(|(known, _)| self::name(known) == name).count();
        let name = if same == 0 { name } else { format!("{name}-{}", same + 1) };
        all.push((source, name));
    }
    all
}

/// What clients may call a model: the last part of its source, in letters that a name may have.
fn name(source: &str) -> String {
    let last = source.trim_end_matches('/').rsplit('/').next().unwrap_or(source);
    let stem = last.strip_suffix(".gguf").unwrap_or(last).to_lowercase();
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    stem.chars().map(plain).collect::<String>().trim_matches('-').to_owned()
}

/// Nodes as people say them, alike ones together.
fn nodes_in_words(nodes: &[Node]) -> Vec<String> {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for node in nodes {
        let words = gpus_in_words(node);
        match groups.iter_mut().find(|(other, _)| *other == words) {
            Some((_, names)) => names.push(&node.name),
            None => groups.push((words, vec![&node.name])),
        }
    }
    groups.iter().map(|(words, names)| format!("{}: {words}", output::span(names))).collect()
}

/// A node's GPUs as people say them.
fn gpus_in_words(node: &Node) -> String {
    let gpus: Vec<&Device> = node.devices.iter().filter(|device| device.is_gpu()).collect();
    let Some(first) = gpus.first() else { return "no GPU".to_owned() };
    let kind = match &first.kind {
        DeviceKind::Gpu { name, .. } => name.as_str(),
        DeviceKind::Host => "host",
    };
    let used = gpus.iter().map(|gpu| gpu.used_by_others).max().unwrap_or_default();
    let used = match gpus.iter().all(|gpu| gpu.is_seen) {
        true => format!("up to {used} in use on one"),
        false => "what is in use isn't seen".to_owned(),
    };
    format!("{} x {kind} of {}, {used}", gpus.len(), first.total)
}

/// The GPUs of each kind of node, as if they were empty.
fn distinct(inventory: &Inventory) -> Vec<Vec<Gpu>> {
    let mut kinds: Vec<Vec<Gpu>> = Vec::new();
    for node in &inventory.nodes {
        let devices = node.devices.iter().filter(|device| device.is_gpu());
        let gpus: Vec<Gpu> =
            devices.filter_map(Gpu::of_device).map(|gpu| gpu.with_others(Bytes::ZERO)).collect();
        if !kinds.contains(&gpus) {
            kinds.push(gpus);
        }
    }
    kinds
}

/// The flags with which a model starts on the fewest GPUs, as reckoned.
fn flags(source: &str, nodes: &[Vec<Gpu>]) -> Result<Map<String, Value>, Failure> {
    let model = transformer(source, &Hub::from_env()).map_err(Failure::from)?.transformer;
    let engine = vllm::Engine::of_version("0.26.0");
    // The sampler's state for vLLM's own number of sequences may be what doesn't fit.
    let mut ways =
        SPREADS.into_iter().flat_map(|ranks| [None, Some(FEWER)].map(|most| (ranks, most)));
    let flags_of = |(ranks, most): (u64, Option<u64>)| {
        let mut flags = Map::new();
        if ranks > 1 {
            flags.insert("tensor_parallel_size".to_owned(), json!(ranks));
        }
        flags.insert("max_model_len".to_owned(), json!(LONGEST.min(model.max_position)));
        if let Some(most) = most {
            flags.insert("max_num_seqs".to_owned(), json!(most));
        }
        flags
    };
    let starts = |way: &(u64, Option<u64>)| {
        let args = Value::Object(flags_of(*way));
        let mut here = nodes.iter().filter_map(|gpus| gpus.get(..way.0 as usize));
        here.any(|gpus| vllm::fit(&model, &args, gpus, &engine).verdict.is_ready())
    };
    ways.find(starts).map(flags_of).ok_or_else(|| {
        let error = anyhow::anyhow!("{source} starts on no 1, 2, 4 or 8 GPUs of one of these nodes");
        Failure::does_not_fit(error).hint(format!(
            "`berth fit {source} --gpu KIND --gpus N --find layout` says what would: quantised, or pipelined"
        ))
    })
}

/// Writes a file that isn't there yet.
fn write_new(file: &Path, text: &str) -> Result<(), Failure> {
    let written = File::create_new(file).and_then(|mut new| new.write_all(text.as_bytes()));
    written.map_err(|error| {
        let is_there = error.kind() == std::io::ErrorKind::AlreadyExists;
        let what = format!("{} can't be written", file.display());
        let hint = match is_there {
            true => "name another with -f: what is there stays",
            false => "name a file in a folder that is there with -f",
        };
        Failure::bad_spec(anyhow::Error::new(error).context(what)).hint(hint)
    })
}
