//! The other files of a checkpoint folder, and which of them belong into a pruned copy.

/// Endings of files that hold weights in some format: never carried into a pruned copy, where they
/// would be the unpruned model beside the pruned one.
const WEIGHT_ENDINGS: [&str; 20] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "onnx",
    "onnx_data",
    "msgpack",
    "h5",
    "hdf5",
    "tflite",
    "pb",
    "npz",
    "npy",
    "pkl",
    "pickle",
    "mlmodel",
    "engine",
];

/// Whether a file holds weights, or is the index of files that do, judged by its name.
pub(crate) fn is_weight_file(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(".index.json").unwrap_or(&name);
    name.rsplit_once('.').is_some_and(|(_, ending)| WEIGHT_ENDINGS.contains(&ending))
}
