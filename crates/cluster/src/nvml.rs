//! GPUs, as NVIDIA's driver reports them.

use std::sync::OnceLock;

use berth_core::inventory::{Cpu, Device, DeviceId, DeviceKind, DeviceProcess};
use berth_core::units::Bytes;
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

/// What NVML says: the GPUs it could read, and notes on those it could not.
#[derive(Debug, Default)]
pub struct Gpus {
    /// GPUs by index.
    pub devices: Vec<Device>,
    /// What could not be read, in words.
    pub notes: Vec<String>,
}

/// The library, begun once: beginning takes long where the driver is not kept awake.
fn nvml() -> Result<&'static Nvml, NvmlError> {
    static NVML: OnceLock<Nvml> = OnceLock::new();
    match NVML.get() {
        Some(nvml) => Ok(nvml),
        None => Nvml::init().map(|nvml| NVML.get_or_init(|| nvml)),
    }
}

/// Reads all GPUs. A machine without NVIDIA's driver has none; that is no error.
pub fn gpus() -> Gpus {
    let mut gpus = Gpus::default();
    let nvml = match nvml() {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded) => return gpus,
        Err(error) => {
            gpus.notes.push(format!("NVML could not start: {error}; GPUs are not seen"));
            return gpus;
        }
    };
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => {
            gpus.notes.push(format!("NVML could not count GPUs: {error}"));
            return gpus;
        }
    };
    for index in 0..count {
        match read(nvml, index) {
            Ok(device) => gpus.devices.push(device),
            Err(error) => gpus.notes.push(format!("GPU {index} could not be read: {error}")),
        }
    }
    gpus
}

fn read(nvml: &Nvml, index: u32) -> Result<Device, NvmlError> {
    let gpu = nvml.device_by_index(index)?;
    let memory = gpu.memory_info()?;
    Ok(Device {
        id: DeviceId(gpu.uuid()?),
        kind: DeviceKind::Gpu { index, name: gpu.name()? },
        total: Bytes(memory.total),
        // Free, and not total less used: what the driver reserves can't be had either.
        used_by_others: Bytes(memory.total.saturating_sub(memory.free)),
        is_seen: true,
        processes: processes(&gpu).ok(),
        cpu: Cpu::default(),
    })
}

/// Processes that compute or draw, with what they hold.
fn processes(gpu: &nvml_wrapper::Device<'_>) -> Result<Vec<DeviceProcess>, NvmlError> {
    let mut all = gpu.running_compute_processes()?;
    all.extend(gpu.running_graphics_processes()?);
    all.sort_by_key(|process| process.pid);
    all.dedup_by_key(|process| process.pid);
    let told = all.into_iter().map(|process| match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Ok(DeviceProcess { pid: process.pid, bytes: Bytes(bytes) }),
        // What some hold is not told: then nobody knows what the others leave.
        UsedGpuMemory::Unavailable => Err(NvmlError::NotSupported),
    });
    told.collect()
}
