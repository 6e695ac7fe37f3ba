//! llama.cpp with layers on GPUs: what lies where, and how much.
//!
//! `src/llama-model.cpp` and `ggml/src/ggml-backend.cpp` of b10435. The first layers go to the first
//! device, the output head to the last; a tied head is a second copy of the embedding, which itself
//! stays on the host. Weights and KV cache of every device are exact (measured: 242 starts over RPC,
//! Vulkan and CUDA), and so is the compute buffer of one GPU that has all layers. On several GPUs,
//! or with some layers on the host, the compute buffer is bounded by that of the whole graph.

use super::flags::{FlagError, FlashAttention, LlamaFlags};
use super::graph::{self, Backend};
use super::weights::EMBEDDING;
use super::{Context, kv_cache};
use crate::memory::{Footprint, Verdict};
use crate::model::facts::Layer;
use crate::model::{GgmlType, ModelFacts, TensorInfo};
use crate::units::Bytes;

/// Rows of quantised tensors are padded to this on CUDA (`ggml-cuda.cu`, `alloc_size`).
const CUDA_ROW: u64 = 512;
/// Copies of inputs where several GPUs work at once (`GGML_SCHED_MAX_COPIES`).
const COPIES: u64 = 4;
/// What `--fit` leaves free on each device.
const FIT_MARGIN: Bytes = Bytes::mib(1024);

/// Where layers go: llama-server's flags about devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceFlags {
    /// `--n-gpu-layers`; none for all.
    pub layers: Option<u64>,
    /// `--tensor-split`; by free memory where empty.
    pub tensor_split: Vec<f32>,
    /// `--split-mode none`: one device.
    pub on_one: bool,
    /// `--main-gpu`.
    pub main: usize,
    /// Not `--no-kv-offload`.
    pub cache_on_host: bool,
    /// Not `--fit off`.
    pub may_move_layers: bool,
}

/// What one GPU holds.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct DeviceFit {
    /// Its layers, the head counted as one.
    pub layers: u64,
    /// The bytes by term.
    pub terms: Footprint,
}

/// The answer for a model with layers on GPUs.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct OffloadFit {
    /// What the engine does.
    pub verdict: Verdict,
    /// Why, where it doesn't start, or what it changes.
    pub message: Option<String>,
    /// Each GPU.
    pub devices: Vec<DeviceFit>,
    /// Slots, streams and cells.
    #[serde(skip)]
    pub context: Context,
}

/// What is outside of every buffer: fitted, with its source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outside {
    /// Context, kernels and cuBLAS when idle.
    pub context: Bytes,
    /// What the first large batches take for good.
    pub pool: Bytes,
    /// Where that is from.
    pub source: &'static str,
}

impl Outside {
    /// What is known of CUDA: 87 starts on an H200 held 518 MiB before any model, 2 more with a context,
    /// and every buffer in multiples of 2 MiB. What batches add was not measured; by the source it is
    /// cuBLAS' workspace, the pool and late kernels.
    pub const CUDA: Self = Self {
        context: Bytes::mib(530),
        pool: Bytes::mib(160),
        source: "context measured on an H200; the pool bounded by the source",
    };
}

impl DeviceFlags {
    /// Splits the flags about devices off a command line; gives the other words too.
    ///
    /// # Errors
    /// Where one has a value that llama-server would refuse.
    pub fn from_args<S: AsRef<str>>(args: &[S]) -> Result<(Self, Vec<String>), FlagError> {
        let mut flags = Self { may_move_layers: true, ..Self::default() };
        let mut others = Vec::new();
        let mut rest = args.iter().map(AsRef::as_ref);
        while let Some(word) = rest.next() {
            let mut value = || rest.next().ok_or_else(|| FlagError::MissingValue(word.to_owned()));
            let bad = |value: &str, expected| FlagError::BadValue {
                flag: word.to_owned(),
                value: value.to_owned(),
                expected,
            };
            match word {
                "-ngl" | "--gpu-layers" | "--n-gpu-layers" => {
                    let value = value()?;
                    flags.layers = match value {
                        "all" | "auto" => None,
                        _ => {
                            let count: i64 = value
                                .parse()
                                .map_err(|_| bad(value, "expected a number of layers"))?;
                            u64::try_from(count).ok()
                        }
                    };
                }
                "-sm" | "--split-mode" => match value()? {
                    "none" => flags.on_one = true,
                    "layer" => flags.on_one = false,
                    other => return Err(bad(other, "only none and layer are modelled")),
                },
                "-ts" | "--tensor-split" => {
                    let value = value()?;
                    let parts = value.split([',', '/']).map(|part| part.trim().parse().ok());
                    let parts: Option<Vec<f32>> = parts.collect();
                    let fine = parts.filter(|parts| {
                        parts.iter().all(|part| part.is_finite() && *part >= 0.0)
                            && parts.iter().sum::<f32>() > 0.0
                    });
                    flags.tensor_split =
                        fine.ok_or_else(|| bad(value, "expected shares, as in 3,1"))?;
                }
                "-mg" | "--main-gpu" => {
                    let value = value()?;
                    flags.main =
                        value.parse().map_err(|_| bad(value, "expected a GPU's number"))?;
                }
                "-nkvo" | "--no-kv-offload" => flags.cache_on_host = true,
                "-kvo" | "--kv-offload" => flags.cache_on_host = false,
                "-fit" | "--fit" => flags.may_move_layers = value()? != "off",
                _ => others.push(word.to_owned()),
            }
        }
        Ok((flags, others))
    }
}

/// The device of each layer, and of the output head after them; none for the host.
pub fn place_layers(facts: &ModelFacts, flags: &DeviceFlags, free: &[Bytes]) -> Vec<Option<usize>> {
    let layers = facts.layers.len() as u64;
    let offloaded = flags.layers.unwrap_or(layers + 1).min(layers + 1);
    let devices = if flags.on_one { 1 } else { free.len() };
    if offloaded == 0 || devices == 0 {
        return vec![None; facts.layers.len() + 1];
    }
    let share = |device: usize| match flags.tensor_split.is_empty() {
        true => free.get(device).map_or(0.0, |free| free.0 as f32),
        false => flags.tensor_split.get(device).copied().unwrap_or(0.0),
    };
    // llama.cpp computes in f32, and so must we: a layer may depend on the last bit.
    let mut sum = 0.0_f32;
    let running: Vec<f32> = (0..devices)
        .map(|device| {
            sum += share(device);
            sum
        })
        .collect();
    let first = layers + 1 - offloaded;
    let device = |layer: u64| {
        let at = (layer.checked_sub(first)?) as f32 / offloaded as f32;
        let found = running.iter().position(|end| at < end / sum).unwrap_or(devices - 1);
        Some(if flags.on_one { flags.main.min(free.len() - 1) } else { found })
    };
    (0..=layers).map(device).collect()
}

/// A model and how it is started on GPUs.
#[derive(Clone, Copy, Debug)]
pub struct Offload<'a> {
    /// The model.
    pub facts: &'a ModelFacts,
    /// llama-server's other flags.
    pub flags: &'a LlamaFlags,
    /// Where layers go.
    pub devices: &'a DeviceFlags,
    /// The kind of device.
    pub backend: Backend,
    /// What is outside of every buffer.
    pub outside: Outside,
}

impl Offload<'_> {
    /// The answer on `free.len()` GPUs, each with so much free.
    pub fn fit(&self, free: &[Bytes]) -> OffloadFit {
        let flags = self.resolved_flags();
        let this = Offload { flags: &flags, ..*self };
        let context = Context::new(this.facts, &flags);
        let answer = |verdict: Verdict, message: Option<String>, devices: Vec<DeviceFit>| {
            OffloadFit { verdict, message, devices, context }
        };
        let devices = this.devices;
        if devices.on_one && devices.main >= free.len() {
            let message = format!("there is no GPU {}; there are {}", devices.main, free.len());
            return answer(Verdict::Unsupported, Some(message), Vec::new());
        }
        let graph = Buffers {
            context: &context,
            compute: graph::device_compute_buffer(this.facts, &flags, &context, this.backend),
            inputs: graph::device_inputs(this.facts, &flags, &context),
        };
        let as_asked = this.on_devices(devices, free, &graph);
        let has_room = |fits: &[DeviceFit], margin: Bytes| {
            fits.iter().zip(free).all(|(fit, free)| fit.terms.total() + margin <= *free)
        };
        let stays = !devices.may_move_layers || devices.layers.is_some();
        if has_room(&as_asked, if stays { Bytes::ZERO } else { FIT_MARGIN }) {
            return answer(Verdict::Ready, None, as_asked);
        }
        if stays {
            let message = "cudaMalloc failed: out of memory: the layers asked for do not fit";
            return answer(Verdict::OomOnLoad, Some(message.to_owned()), as_asked);
        }
        // `--fit` moves layers to the host until a margin stays free; the context is given, so it stays.
        let all = this.facts.layers.len() as u64 + 1;
        let fewer = (0..all).rev().find_map(|layers| {
            let devices = DeviceFlags { layers: Some(layers), ..devices.clone() };
            let fits = this.on_devices(&devices, free, &graph);
            has_room(&fits, FIT_MARGIN).then_some((layers, fits))
        });
        match fewer {
            Some((layers, devices)) => {
                let message =
                    format!("--fit puts {layers} of {all} layers on GPUs, the rest on the host");
                answer(Verdict::Ready, Some(message), devices)
            }
            None => {
                answer(Verdict::OomOnLoad, Some("not even one layer fits".to_owned()), as_asked)
            }
        }
    }

    /// CUDA has no flash attention for keys and values of different types.
    fn resolved_flags(&self) -> LlamaFlags {
        let mut flags = self.flags.clone();
        let differ = flags.cache_type_k != flags.cache_type_v;
        if self.backend == Backend::Cuda && differ && flags.flash_attn == FlashAttention::Auto {
            flags.flash_attn = FlashAttention::Off;
        }
        flags
    }

    fn on_devices(
        &self,
        devices: &DeviceFlags,
        free: &[Bytes],
        graph: &Buffers<'_>,
    ) -> Vec<DeviceFit> {
        let places = place_layers(self.facts, devices, free);
        let used = if devices.on_one { 1 } else { free.len() };
        let spread = Spread { devices, used, is_whole: places.iter().all(Option::is_some), places };
        (0..free.len()).map(|device| self.on_device(device, &spread, graph)).collect()
    }

    fn on_device(&self, device: usize, spread: &Spread<'_>, graph: &Buffers<'_>) -> DeviceFit {
        let Self { facts, flags, backend, .. } = *self;
        let Spread { devices, used, is_whole, ref places } = *spread;
        let Buffers { context, compute, inputs } = *graph;
        let layers = places.iter().filter(|place| **place == Some(device)).count() as u64;
        let mut terms = Footprint::default();
        // A GPU without layers multiplies large batches of the host's all the same, if it is the first.
        if layers == 0 && (device != 0 || is_whole) {
            return DeviceFit { layers, terms };
        }
        let how = format!("{layers} layers, the head counted as one");
        terms.exact("weights", weights(facts, places, device, backend), how);
        let cache = match devices.cache_on_host {
            true => Bytes::ZERO,
            false => cache(facts, flags, context, places, device, backend),
        };
        terms.exact("kv_cache", cache, format!("{} cells", context.cells));
        let is_plain =
            flags.cache_type_k == flags.cache_type_v && flags.cache_type_k.name() != "bf16";
        match is_whole && used == 1 && !devices.cache_on_host && is_plain {
            true => terms.exact("compute", compute, "the graph allocator's peak".to_owned()),
            false => terms.calibrated("compute", compute, "at most the whole graph's".to_owned()),
        }
        let visiting = visiting(facts, flags, devices, context, places);
        if visiting > Bytes::ZERO {
            let how = "the largest of what is read from the host".to_owned();
            terms.calibrated("visiting", visiting, how);
        }
        if flags.cache_type_k != flags.cache_type_v {
            terms.calibrated("mixed_types", inputs, "at most the inputs once more".to_owned());
        }
        if used > 1 && is_whole && !devices.cache_on_host {
            terms.calibrated("pipeline_copies", inputs * COPIES, format!("inputs {COPIES} times"));
        }
        let Outside { context, pool, source } = self.outside;
        terms.calibrated("context", context, format!("context and kernels; {source}"));
        terms.calibrated("pool", pool, format!("after the first large batches; {source}"));
        DeviceFit { layers, terms }
    }
}

/// What is the same wherever layers lie.
#[derive(Clone, Copy)]
struct Buffers<'a> {
    context: &'a Context,
    /// The compute buffer of the whole graph.
    compute: Bytes,
    /// Its inputs.
    inputs: Bytes,
}

/// Where everything lies.
struct Spread<'a> {
    devices: &'a DeviceFlags,
    /// GPUs that may have layers.
    used: usize,
    /// Whether nothing is left on the host.
    is_whole: bool,
    places: Vec<Option<usize>>,
}

/// What a device reads from the host, layer by layer: caches that stayed there, and weights of layers
/// that run on the device all the same where a batch is large. Three at once, at most (measured).
fn visiting(
    facts: &ModelFacts,
    flags: &LlamaFlags,
    devices: &DeviceFlags,
    context: &Context,
    places: &[Option<usize>],
) -> Bytes {
    let on_host = |tensor: &&TensorInfo| match layer_of(&tensor.name) {
        Some(layer) => places.get(layer).copied().flatten().is_none(),
        None => tensor.name != EMBEDDING && places.last().copied().flatten().is_none(),
    };
    let weights = facts.tensors.iter().filter(on_host).map(|tensor| Bytes(tensor.bytes)).max();
    let cells = context.cells * context.streams;
    let layer = |layer| kv_cache::layer_row(facts, flags, layer) * cells;
    let cache = match devices.cache_on_host {
        true => facts.layers.iter().map(layer).max().unwrap_or_default(),
        false => Bytes::ZERO,
    };
    let hidden = match weights {
        Some(_) => Bytes(context.graph_tokens.saturating_mul(facts.embedding_length)) * 8,
        None => Bytes::ZERO,
    };
    (weights.unwrap_or_default() + cache) * 3 + hidden
}

/// Bytes of a device's tensors.
fn weights(facts: &ModelFacts, places: &[Option<usize>], device: usize, backend: Backend) -> Bytes {
    let head = places.last().copied().flatten();
    let is_tied = !facts.has_tensor("output.weight");
    let place = |tensor: &TensorInfo| match layer_of(&tensor.name) {
        Some(layer) => places.get(layer).copied().flatten(),
        None if tensor.name == EMBEDDING => head.filter(|_| is_tied),
        None => head,
    };
    let here = facts.tensors.iter().filter(|tensor| place(tensor) == Some(device));
    here.map(|tensor| padded(Bytes(tensor.bytes), tensor.ty, tensor.ne(0), backend)).sum()
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// CUDA pads the last row of a quantised tensor, which has rows of so many elements.
fn padded(bytes: Bytes, ty: GgmlType, row: u64, backend: Backend) -> Bytes {
    let over = row % CUDA_ROW;
    let padding = match backend {
        Backend::Cuda if ty.is_quantized() && over > 0 => ty.row_bytes(CUDA_ROW - over),
        _ => None,
    };
    (bytes + Bytes(padding.unwrap_or(0))).align_up(backend.alignment())
}

fn cache(
    facts: &ModelFacts,
    flags: &LlamaFlags,
    context: &Context,
    places: &[Option<usize>],
    device: usize,
    backend: Backend,
) -> Bytes {
    let layers = facts.layers.iter().zip(places).filter(|(_, place)| **place == Some(device));
    let parts = [(flags.cache_type_k, facts.key_length), (flags.cache_type_v, facts.value_length)];
    let one = |layer: &Layer, ty: GgmlType, head: u64| {
        let cells = if layer.is_sliding { context.sliding_cells } else { context.cells };
        let row = layer.kv_heads.saturating_mul(head);
        let bytes = Bytes(ty.row_bytes(row).unwrap_or(u64::MAX)) * cells * context.streams;
        padded(bytes, ty, row, backend)
    };
    layers.flat_map(|(layer, _)| parts.map(|(ty, head)| one(layer, ty, head))).sum()
}
