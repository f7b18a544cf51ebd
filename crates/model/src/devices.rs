//! What can compute on this machine.

use std::thread::available_parallelism;

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// Threads that the processor runs at once.
    pub threads: usize,
    /// GPUs, by ordinal.
    pub gpus: Vec<GpuDevice>,
    /// The driver of the GPUs, where there is one.
    pub driver: Option<GpuDriver>,
    /// Why no GPU is listed, where none is.
    pub no_gpus: Option<String>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDevice {
    /// As in `cuda:N`.
    pub ordinal: usize,
    /// As its maker calls it.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// What nobody uses.
    pub free_bytes: u64,
    /// Major and minor.
    pub compute_capability: (i32, i32),
}

/// The driver of all GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDriver {
    /// Its version, where the system says it.
    pub version: Option<String>,
    /// Newest CUDA that it knows, major and minor.
    pub cuda: (i32, i32),
}

/// Looks for everything that can compute. Nothing that is missing is an error.
pub fn devices() -> Devices {
    let threads = available_parallelism().map_or(1, usize::from);
    match find() {
        Ok((driver, gpus)) => {
            let none = gpus.is_empty().then(|| "the CUDA driver is there and knows of no GPU".to_owned());
            Devices { threads, gpus, driver: Some(driver), no_gpus: none }
        }
        Err(reason) => Devices { threads, gpus: Vec::new(), driver: None, no_gpus: Some(reason) },
    }
}

#[cfg(not(feature = "cuda"))]
fn find() -> Result<(GpuDriver, Vec<GpuDevice>), String> {
    Err("this program was built without CUDA: `cargo build --release --features cuda` builds it with".to_owned())
}

#[cfg(feature = "cuda")]
fn find() -> Result<(GpuDriver, Vec<GpuDevice>), String> {
    let found = fedprune_gpu::found::find().map_err(|error| error.to_string())?;
    let gpus = found.gpus.into_iter().map(|gpu| GpuDevice {
        ordinal: gpu.ordinal,
        name: gpu.name,
        memory_bytes: gpu.memory_bytes,
        free_bytes: gpu.free_bytes,
        compute_capability: gpu.compute_capability,
    });
    Ok((GpuDriver { version: found.driver, cuda: found.cuda }, gpus.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_processor_and_a_reason_for_what_is_not_there() {
        let found = devices();
        assert!(found.threads > 0);
        assert_eq!(found.gpus.is_empty(), found.no_gpus.is_some(), "{found:?}");
        if cfg!(not(feature = "cuda")) {
            assert!(found.no_gpus.unwrap().contains("--features cuda"));
        }
    }
}
