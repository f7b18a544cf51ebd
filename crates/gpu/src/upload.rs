//! Weights to the device, beside what it computes: through pinned memory, on a stream of its own.
//!
//! A call returns once the last part is on its way. Who uses the memory on another stream waits for it there, by the
//! events that cudarc keeps with every allocation; and memory is given back in the order of this stream, after its last
//! use elsewhere. So at most as much is on the device as was not dropped.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice};

use crate::GpuError;
use crate::cuda::Stored;
use crate::found::failed;

/// Bytes of one pinned buffer: long enough that its transfer outweighs what starts it, short enough to stay in caches.
const BUFFER_BYTES: usize = 8 << 20;
/// Buffers: one is filled while others travel.
const BUFFERS: usize = 4;

/// Brings values to the device in the background.
pub struct Uploader {
    /// Before `buffers`, which must not go while they travel; see `drop`.
    stream: Arc<CudaStream>,
    buffers: Vec<Buffer>,
    next: usize,
}

struct Buffer {
    memory: PinnedHostSlice<u8>,
    /// When what was last in it has arrived.
    arrived: Option<CudaEvent>,
}

impl Uploader {
    /// An uploader for whoever computes on `compute`.
    ///
    /// # Errors
    /// [`GpuError::Failed`] when the driver gives no stream or no pinned memory.
    pub fn new(compute: &CudaStream) -> Result<Self, GpuError> {
        let doing = "preparing the upload of weights";
        let context = compute.context();
        let stream = context.new_stream().map_err(failed(doing))?;
        let mut buffers = Vec::with_capacity(BUFFERS);
        for _ in 0..BUFFERS {
            // SAFETY: bytes hold any value, and each is written before it is copied.
            let memory = unsafe { context.alloc_pinned::<u8>(BUFFER_BYTES) }.map_err(failed(doing))?;
            buffers.push(Buffer { memory, arrived: None });
        }
        Ok(Self { stream, buffers, next: 0 })
    }

    /// `length` values on the device. `fill` writes the values of a range, little-endian as they lie there, into as many
    /// bytes; ranges come in order and together are all.
    ///
    /// # Errors
    /// [`GpuError::Memory`] when the device has too little; [`GpuError::Failed`].
    pub fn upload<T: Stored>(
        &mut self,
        length: usize,
        fill: &mut dyn FnMut(Range<usize>, &mut [u8]),
    ) -> Result<CudaSlice<T>, GpuError> {
        let doing = "uploading weights";
        let size = size_of::<T>();
        // SAFETY: every value is written by the copies below, in the order of the same stream, before anybody has the slice.
        let mut memory = unsafe { self.stream.alloc::<T>(length) }.map_err(failed(doing))?;
        let mut start = 0;
        while start < length {
            let end = length.min(start + BUFFER_BYTES / size);
            let buffer = &mut self.buffers[self.next];
            self.next = (self.next + 1) % BUFFERS;
            if let Some(arrived) = buffer.arrived.take() {
                arrived.synchronize().map_err(failed(doing))?;
            }
            let pinned = buffer.memory.as_mut_slice().map_err(failed(doing))?;
            let part = &mut pinned[..(end - start) * size];
            fill(start..end, part);
            let mut target = memory.slice_mut(start..end);
            // SAFETY: as many bytes as the values of the range take.
            if let Some(mut bytes) = unsafe { target.transmute_mut::<u8>(part.len()) } {
                self.stream.memcpy_htod(&*part, &mut bytes).map_err(failed(doing))?;
            }
            buffer.arrived = Some(self.stream.record_event(None).map_err(failed(doing))?);
            start = end;
        }
        Ok(memory)
    }

    /// Waits until everything has arrived.
    ///
    /// # Errors
    /// [`GpuError::Failed`], also for what failed before.
    pub fn wait(&self) -> Result<(), GpuError> {
        self.stream.synchronize().map_err(failed("uploading weights"))
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        // what travels reads the buffers; a driver that fails here has given up on reading them
        let _ = self.stream.synchronize();
    }
}
