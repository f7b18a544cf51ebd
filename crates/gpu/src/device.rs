//! What the engine asks of a device: memory, copies and launches, all in one order.

use crate::GpuError;

/// A device that runs the kernels of this crate: a GPU, or the emulation that tests use.
///
/// All calls are carried out in the order in which they are made.
pub trait Device {
    /// Owned device memory.
    type Memory;
    /// Borrowed device memory, read only.
    type View<'a>;
    /// Borrowed device memory.
    type ViewMut<'a>;

    /// Memory of so many bytes, with anything in it.
    ///
    /// # Errors
    /// [`GpuError::Memory`] when there is too little.
    fn allocate(&self, doing: &'static str, bytes: u64) -> Result<Self::Memory, GpuError>;

    /// Bytes of `memory`.
    fn length(&self, memory: &Self::Memory) -> u64;

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    fn clear(&self, memory: &mut Self::Memory) -> Result<(), GpuError>;

    /// Copies to the start of `memory`.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    ///
    /// # Panics
    /// When `bytes` are more than `memory` holds.
    fn upload(&self, memory: &mut Self::Memory, bytes: &[u8]) -> Result<(), GpuError>;

    /// Copies from the start of `memory`, after all that was queued.
    ///
    /// # Errors
    /// [`GpuError::Failed`], also for what failed before.
    ///
    /// # Panics
    /// When `bytes` are more than `memory` holds.
    fn download(&self, memory: &Self::Memory, bytes: &mut [u8]) -> Result<(), GpuError>;

    /// Copies from borrowed memory, `offset` bytes after its start, after all that was queued.
    ///
    /// # Errors
    /// [`GpuError::Failed`], also for what failed before.
    ///
    /// # Panics
    /// When the view ends before.
    fn download_view(&self, view: &Self::View<'_>, offset: u64, bytes: &mut [u8]) -> Result<(), GpuError>;

    /// Lends the first `bytes` of `memory`.
    ///
    /// # Panics
    /// When there are fewer.
    fn view<'a>(&self, memory: &'a Self::Memory, bytes: u64) -> Self::View<'a>;

    /// Bytes that a view spans.
    fn view_length(&self, view: &Self::View<'_>) -> u64;

    /// Lends the first `bytes` of `memory` to be written.
    ///
    /// # Panics
    /// When there are fewer.
    fn view_mut<'a>(&self, memory: &'a mut Self::Memory, bytes: u64) -> Self::ViewMut<'a>;

    /// Bytes that a view spans.
    fn view_mut_length(&self, view: &Self::ViewMut<'_>) -> u64;

    /// Bytes that can be allocated now.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    fn free_bytes(&self) -> Result<u64, GpuError>;

    /// What launches are fitted to.
    fn limits(&self) -> Limits;

    /// Queues a kernel.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, in its order, and memory is as long as it reads and writes under this
    /// grid: kernels check no lengths. The engine is the only one that has to know.
    unsafe fn launch(&self, launch: Launch<'_, '_, '_, Self>) -> Result<(), GpuError>;
}

/// What launches are fitted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Multiprocessors.
    pub processors: u32,
    /// Shared memory that one block may ask for.
    pub shared_bytes: u32,
}

/// One launch of a kernel, on a grid and blocks of one dimension.
pub struct Launch<'l, 'a, 'v, D: Device + ?Sized> {
    /// Name in `kernels/`.
    pub kernel: &'l str,
    /// Blocks.
    pub blocks: u32,
    /// Threads of a block, a multiple of 32.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// In the order of the kernel's parameters.
    pub arguments: &'l mut [Argument<'a, 'v, D>],
}

/// One argument of a kernel.
pub enum Argument<'a, 'v, D: Device + ?Sized> {
    /// Memory that is read.
    Read(&'a D::Memory),
    /// Memory that is written, or read and written.
    Write(&'a mut D::Memory),
    /// Borrowed memory that is read.
    View(&'a D::View<'v>),
    /// Borrowed memory that is written.
    ViewMut(&'a mut D::ViewMut<'v>),
    /// A number.
    U32(u32),
    /// A number.
    U64(u64),
}
