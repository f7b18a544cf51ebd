//! The state of an unfinished run: weights, moments of the optimizer, and how far it got.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::network::Parameter;
use crate::optimizer::AdamW;

/// What else a run needs to go on where it stopped.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    /// Seconds spent training, over all the runs resumed.
    pub elapsed_s: f64,
    /// The options the run was started with; a state is resumed only under the same.
    pub options: String,
}

const PROGRESS_KEY: &str = "progress";

/// Saves the state at `path`, replacing an earlier one whole.
///
/// Errors: `path` or its neighbour with the suffix `.partial` cannot be written.
pub fn save(path: &Path, parameters: &[Parameter], optimizer: &AdamW, progress: &Progress) -> Result<()> {
    let mut tensors = Vec::new();
    for (index, parameter) in parameters.iter().enumerate() {
        let weights = parameter.var.flatten_all()?.to_vec1::<f32>()?;
        tensors.push((format!("weight.{}", parameter.name), to_bytes(&weights)));
        let momentum = &optimizer.momentum[index];
        tensors.push((format!("momentum.{}", parameter.name), to_bytes(momentum)));
        let variance = &optimizer.variance[index];
        tensors.push((format!("variance.{}", parameter.name), to_bytes(variance)));
    }
    let views = tensors
        .iter()
        .map(|(name, bytes)| Ok((name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([(PROGRESS_KEY.to_owned(), serde_json::to_string(progress)?)]);
    let partial = path.with_extension("partial");
    safetensors::serialize_to_file(views, Some(metadata), &partial)
        .with_context(|| format!("writing the state `{}`", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("putting the state at `{}`", path.display()))
}

/// Loads the state at `path` into `parameters` and returns the rest; `None` when there is none.
///
/// Errors: a state of a run with other options; a damaged file.
pub fn load(path: &Path, parameters: &[Parameter], options: &str) -> Result<Option<(AdamW, Progress)>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).with_context(|| format!("reading `{}`", path.display()))?;
    let read = || -> Result<(AdamW, Progress)> {
        let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
        let stored = metadata.metadata().as_ref().and_then(|all| all.get(PROGRESS_KEY));
        let Some(stored) = stored else { bail!("it has no `{PROGRESS_KEY}`") };
        let progress: Progress = serde_json::from_str(stored)?;
        ensure!(
            progress.options == options,
            "it belongs to a run with the options `{}`; remove it, or repeat those options",
            progress.options
        );
        let tensors = SafeTensors::deserialize(&bytes)?;
        let values = |kind: &str, parameter: &Parameter| -> Result<Vec<f32>> {
            let name = format!("{kind}.{}", parameter.name);
            let values = from_bytes(tensors.tensor(&name)?.data());
            ensure!(values.len() == parameter.var.elem_count(), "`{name}` has another size");
            Ok(values)
        };
        let mut optimizer = AdamW::new(parameters);
        optimizer.step = progress.step;
        for (index, parameter) in parameters.iter().enumerate() {
            optimizer.momentum[index] = values("momentum", parameter)?;
            optimizer.variance[index] = values("variance", parameter)?;
            let weights = values("weight", parameter)?;
            let var = &parameter.var;
            var.set(&Tensor::from_vec(weights, var.shape(), var.device())?)?;
        }
        Ok((optimizer, progress))
    };
    read().map(Some).with_context(|| format!("resuming from the state `{}`", path.display()))
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}
