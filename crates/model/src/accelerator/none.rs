//! No GPU.

use candle_core::{DType, Device, Tensor};
use fedprune_checkpoint::TensorView;
use fedprune_mask::{MatrixMask, WeightsView};

use super::{Choice, Refused};
use crate::ModelError;
use crate::attention::Seen;

/// There is none.
#[derive(Debug)]
pub(crate) enum Accelerator {}

/// There are none.
#[derive(Debug)]
pub(crate) enum Squares {}

impl Accelerator {
    pub(crate) fn of(_: &Device) -> Result<Option<Self>, ModelError> {
        Ok(None)
    }

    pub(crate) fn memory(&self) -> Result<(u64, u64), ModelError> {
        match *self {}
    }

    pub(crate) fn most_used_bytes(&self) -> Result<Option<u64>, ModelError> {
        match *self {}
    }

    pub(crate) fn upload(&self, _: &TensorView<'_>, _: DType) -> Result<Tensor, ModelError> {
        match *self {}
    }

    pub(crate) fn squares(&self, _: usize) -> Result<Squares, ModelError> {
        match *self {}
    }

    pub(crate) fn causal_softmax(&self, _: &Tensor, _: usize, _: Seen, _: f64) -> candle_core::Result<()> {
        match *self {}
    }

    pub(crate) fn gate_up(&self, _: &Tensor, _: &Tensor) -> candle_core::Result<()> {
        match *self {}
    }

    pub(crate) fn prune(&self, _: &Tensor, _: &MatrixMask) -> Result<(), ModelError> {
        match *self {}
    }

    pub(crate) fn select(
        &self,
        _: &[(&Tensor, WeightsView<'_>, usize)],
        _: &Choice<'_>,
    ) -> Result<Vec<MatrixMask>, Refused> {
        match *self {}
    }
}

impl Squares {
    pub(crate) fn add(&mut self, _: &Tensor) -> Result<(), ModelError> {
        match *self {}
    }

    pub(crate) fn read(&self) -> Result<Vec<f64>, ModelError> {
        match *self {}
    }
}
