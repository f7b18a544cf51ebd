//! Stored tensors to tensors on the device, in the compute dtype, with no copy beyond the one needed.

use candle_core::{DType, Device, Shape, Tensor};
use fedprune_checkpoint::TensorView;
use fedprune_mask::DType as Stored;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::ModelError;
use crate::error::Doing;

/// Elements converted by one task.
const TASK_ELEMENTS: usize = 1 << 15;

/// Little-endian stored values, anywhere in memory, widened exactly to f32.
pub(crate) fn widen(stored: Stored, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0f32; bytes.len() / stored.bytes()];
    out.par_chunks_mut(TASK_ELEMENTS)
        .zip(bytes.par_chunks(TASK_ELEMENTS * stored.bytes()))
        .for_each(|(out, bytes)| widen_into(stored, bytes, out));
    out
}

/// The same into `out`, on this thread.
pub(crate) fn widen_into(stored: Stored, bytes: &[u8], out: &mut [f32]) {
    match stored {
        Stored::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        Stored::BF16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        Stored::F16 => {
            // slices, so that the processor's own conversion is found once and not per value
            let mut aligned = [f16::ZERO; 64];
            for (out, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                let aligned = &mut aligned[..out.len()];
                for (value, bytes) in aligned.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*bytes);
                }
                aligned.convert_to_f32_slice(out);
            }
        }
    }
}

/// Stored bytes as a tensor of `shape` in `dtype` on `device`.
pub(crate) fn upload_bytes(
    stored: Stored,
    bytes: &[u8],
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let shape = shape.into();
    match (stored, dtype) {
        (Stored::BF16, DType::BF16) => {
            let values = bytes.as_chunks::<2>().0.par_iter().map(|bytes| bf16::from_le_bytes(*bytes));
            Tensor::from_vec(values.collect::<Vec<_>>(), shape, device)
        }
        (Stored::F16, DType::F16) => {
            let values = bytes.as_chunks::<2>().0.par_iter().map(|bytes| f16::from_le_bytes(*bytes));
            Tensor::from_vec(values.collect::<Vec<_>>(), shape, device)
        }
        (_, DType::F32) => Tensor::from_vec(widen(stored, bytes), shape, device),
        (_, DType::BF16) => {
            let values = widen(stored, bytes).into_par_iter().map(bf16::from_f32);
            Tensor::from_vec(values.collect::<Vec<_>>(), shape, device)
        }
        (_, DType::F16) => {
            let values = widen(stored, bytes).into_par_iter().map(f16::from_f32);
            Tensor::from_vec(values.collect::<Vec<_>>(), shape, device)
        }
        _ => candle_core::bail!("no compute dtype: {dtype:?}"),
    }
}

/// A whole stored tensor.
pub(crate) fn upload(view: &TensorView<'_>, dtype: DType, device: &Device) -> Result<Tensor, ModelError> {
    upload_bytes(view.dtype, view.bytes, view.shape, dtype, device)
        .doing(|| format!("loading `{}` of `{}`", view.name, view.file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_dtype_arrives_exactly() {
        // more than one task and an odd tail, from an odd address
        let values: Vec<f32> = (0..TASK_ELEMENTS + 77).map(|i| (i % 251) as f32 * 0.25 - 30.0).collect();
        for stored in [Stored::BF16, Stored::F16, Stored::F32] {
            let mut bytes = vec![0u8];
            for value in &values {
                match stored {
                    Stored::BF16 => bytes.extend(bf16::from_f32(*value).to_le_bytes()),
                    Stored::F16 => bytes.extend(f16::from_f32(*value).to_le_bytes()),
                    Stored::F32 => bytes.extend(value.to_le_bytes()),
                }
            }
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let tensor = upload_bytes(stored, &bytes[1..], values.len(), dtype, &Device::Cpu).unwrap();
                assert_eq!(tensor.dtype(), dtype);
                let got = tensor.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(got, values, "{stored} to {dtype:?}");
            }
        }
    }
}
