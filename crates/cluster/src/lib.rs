//! Where instances run, and what observes them.
//!
//! - [`local`]: engines as processes of this machine
//! - [`procfs`]: what the operating system says about memory, processes and ports
//! - [`cgroup`]: what a container or a slice allows
//! - [`nvml`]: what NVIDIA's driver says about GPUs
//!
//! Start with [`local::observe`], which gives an [`Inventory`](berth_core::Inventory).

pub mod cgroup;
pub mod local;
pub mod nvml;
pub mod procfs;
pub mod ray;
