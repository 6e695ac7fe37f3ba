//! Host memory that vLLM's processes hold for themselves: the API server, the engine's core and a worker
//! for each GPU. Pages of weights' files are the kernel's to take back, and don't count.

use super::Engine;
use super::calibration::{Estimate, Subject, Term};
use crate::units::Bytes;

/// As it likely is, and at the pessimistic end. With one GPU the worker is in the core's process, and
/// takes about what it takes alone.
pub fn memory(engine: &Engine<'_>, subject: &Subject<'_>) -> (Bytes, Bytes) {
    let workers = subject.tensor_parallel * subject.stages as u64;
    let at = |estimate| {
        let constants = engine.calibration.constants(subject, estimate);
        let of = |term| Bytes(constants.get(term));
        of(Term::HostServer) + of(Term::HostCore) + of(Term::HostWorker) * workers
    };
    (at(Estimate::Likely), at(Estimate::High))
}
