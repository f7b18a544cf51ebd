//! The GPUs of this machine, what they can do, and how much memory they have left.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use cudarc::driver::result::DriverError;
use cudarc::driver::{CudaContext, sys};

use crate::GpuError;

/// Longest version of a driver that is read.
const VERSION_BYTES: u64 = 64;

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Newest CUDA that the driver knows, major and minor.
    pub cuda: (i32, i32),
    /// The driver's own version, where the system says it.
    pub driver: Option<String>,
    /// By ordinal.
    pub gpus: Vec<FoundGpu>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundGpu {
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

/// Turns what the driver says into an error of ours.
pub(crate) fn failed(doing: &'static str) -> impl Fn(DriverError) -> GpuError {
    move |error| GpuError::Failed { doing, reason: reason(error) }
}

/// The driver's words, or the name of its code where there is no driver to ask.
fn reason(error: DriverError) -> String {
    match error.error_string() {
        Ok(words) => words.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", error.0),
    }
}

/// How many GPUs there are.
///
/// # Errors
/// [`GpuError::Missing`] without a driver or CUDA's libraries; [`GpuError::Failed`] with a driver that does not start. A driver
/// without a GPU is no error.
pub fn count() -> Result<usize, GpuError> {
    let doing = "starting the CUDA driver";
    #[cfg(target_os = "linux")]
    crate::driver::load()?;
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(error) => Err(failed(doing)(error)),
    }
}

/// Looks at all of them; this starts each.
///
/// # Errors
/// As [`count`].
pub fn find() -> Result<Found, GpuError> {
    let doing = "asking the CUDA driver about its devices";
    let count = count()?;
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed(doing))?;
    let mut gpus = Vec::with_capacity(count);
    for ordinal in 0..count {
        let context = CudaContext::new(ordinal).map_err(failed(doing))?;
        let (free_bytes, memory_bytes) = memory(&context)?;
        gpus.push(FoundGpu {
            ordinal,
            name: context.name().map_err(failed(doing))?,
            memory_bytes,
            free_bytes,
            compute_capability: context.compute_capability().map_err(failed(doing))?,
        });
    }
    Ok(Found { cuda: (version / 1000, version % 1000 / 10), driver: driver_version(), gpus })
}

/// The version of the loaded kernel module.
fn driver_version() -> Option<String> {
    let mut text = String::new();
    File::open("/sys/module/nvidia/version").ok()?.take(VERSION_BYTES).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Bytes that can be allocated, and bytes that there are. What this process has freed and keeps for itself can be.
///
/// # Errors
/// [`GpuError::Failed`].
pub fn memory(context: &Arc<CudaContext>) -> Result<(u64, u64), GpuError> {
    let doing = "asking for free GPU memory";
    let (free, all) = context.mem_get_info().map_err(failed(doing))?;
    let mut kept = 0u64;
    if context.has_async_alloc() {
        use sys::CUmemPool_attribute::{CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT};
        let read = |attribute| {
            let mut value = 0u64;
            // SAFETY: the pool is the device's own, and both attributes are 64-bit numbers.
            unsafe { sys::cuMemPoolGetAttribute(pool(context)?, attribute, (&raw mut value).cast()) }
                .result()
                .map_err(failed(doing))?;
            Ok::<u64, GpuError>(value)
        };
        kept = read(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?.saturating_sub(read(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?);
    }
    Ok((free as u64 + kept, all as u64))
}

/// Keeps what is freed for what is allocated next, instead of giving it back at every wait.
///
/// # Errors
/// [`GpuError::Failed`].
pub fn keep_freed_memory(context: &Arc<CudaContext>) -> Result<(), GpuError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's own, and the attribute is a 64-bit number.
    unsafe { sys::cuMemPoolSetAttribute(pool(context)?, attribute, (&raw mut threshold).cast()) }
        .result()
        .map_err(failed("setting up GPU memory"))
}

fn pool(context: &Arc<CudaContext>) -> Result<sys::CUmemoryPool, GpuError> {
    // SAFETY: the context's device exists.
    unsafe { cudarc::driver::result::device::get_mem_pool(context.cu_device()) }
        .map_err(failed("asking for the memory pool of the GPU"))
}

/// The most bytes that were allocated at once; none where the driver does not count.
///
/// # Errors
/// [`GpuError::Failed`].
pub fn most_used_bytes(context: &Arc<CudaContext>) -> Result<Option<u64>, GpuError> {
    if !context.has_async_alloc() {
        return Ok(None);
    }
    let mut value = 0u64;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the pool is the device's own, and the attribute is a 64-bit number.
    unsafe { sys::cuMemPoolGetAttribute(pool(context)?, attribute, (&raw mut value).cast()) }
        .result()
        .map_err(failed("asking how much GPU memory was used"))?;
    Ok(Some(value))
}
