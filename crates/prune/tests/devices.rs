//! The processor and a GPU, side by side. Where there is no GPU the test says so, and compares the processor in candle's
//! operations with itself on plain slices, so that it has run at all.

use std::path::Path;

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::score::Pruner;
use fedprune_mask::{Group, MatrixMask, NormVector, Sparsity};
use fedprune_model::{ComputeDType, Decoder, DeviceName, ModelError, perplexity};
use fedprune_prune::{LocalOutcome, LocalPass, Recipe, local_pass};

const ARCHITECTURES: [&str; 5] = ["llama", "llama3-rope-tied", "mistral", "qwen2", "qwen3"];
/// Bits in which masks of own passes in f32 may differ: one in so many.
const BITS: u64 = 1000;

/// The GPU, or what stands for it, and whether it is one.
#[allow(clippy::print_stderr, reason = "what was left out is said")]
fn second_device() -> (DeviceName, ComputeDType, bool) {
    match DeviceName::Cuda(0).check() {
        Ok(()) => (DeviceName::Cuda(0), ComputeDType::F32, true),
        Err(reason) => {
            eprintln!("skipped: no GPU is compared with the processor: {reason}");
            (DeviceName::Cpu, ComputeDType::F32, false)
        }
    }
}

fn windows(salt: u32) -> Vec<Vec<u32>> {
    (0..4).map(|window| (0..48).map(|at| (at * at * 7 + at + window * 29 + salt) % 256).collect()).collect()
}

fn decoder(checkpoint: &Checkpoint, device: DeviceName, dtype: ComputeDType) -> Decoder {
    Decoder::new(checkpoint, &device.open().unwrap(), dtype.candle(), 48).unwrap()
}

fn pass(checkpoint: &Checkpoint, decoder: &Decoder, windows: &[Vec<u32>], recipe: Recipe) -> LocalOutcome {
    let inputs = LocalPass { checkpoint, decoder: Some(decoder), windows, recipe, data_free: &[] };
    local_pass(&inputs, None, |_| {}).unwrap()
}

/// What the processor makes of norms.
fn masks(checkpoint: &Checkpoint, recipe: Recipe, norms: &[NormVector]) -> Vec<MatrixMask> {
    let layout = checkpoint.layout();
    let taps = layout.taps().len() / layout.blocks();
    (0..layout.blocks())
        .flat_map(|block| recipe.block_masks(checkpoint, block, &norms[block * taps..(block + 1) * taps]).unwrap())
        .collect()
}

fn recipes() -> Vec<Recipe> {
    let half = Sparsity::new(1, 2).unwrap();
    let mut recipes = Vec::new();
    for pruner in [Pruner::WANDA, Pruner::RIA] {
        for group in ["layer", "row", "column", "2:4", "4:8"] {
            recipes.push(Recipe { pruner, group: group.parse::<Group>().unwrap(), sparsity: half });
        }
    }
    recipes
}

#[test]
fn masks_of_both_devices_agree() {
    let (device, dtype, is_gpu) = second_device();
    let (mut bits, mut different) = (0, 0);
    for architecture in ARCHITECTURES {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(architecture);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let (first, second) =
            (decoder(&checkpoint, DeviceName::Cpu, ComputeDType::F32), decoder(&checkpoint, device, dtype));
        assert_eq!(second.chooses(), is_gpu);
        for recipe in recipes() {
            let text = windows(3);
            let (ours, theirs) = (pass(&checkpoint, &first, &text, recipe), pass(&checkpoint, &second, &text, recipe));
            let (our_masks, their_masks) =
                (masks(&checkpoint, recipe, &ours.norms), masks(&checkpoint, recipe, &theirs.norms));
            // the same norms make the same bits, wherever they are made
            for (outcome, masks) in [(&ours, &our_masks), (&theirs, &their_masks)] {
                let root = mask_root(checkpoint.layout().digest(), masks.iter().map(MatrixMask::digest));
                assert_eq!(outcome.mask_root, root, "{architecture}, {}, {}", recipe.pruner, recipe.group);
            }
            for (ours, theirs) in our_masks.iter().zip(&their_masks) {
                different += ours.count_different(theirs);
                bits += (ours.rows() * ours.columns()) as u64;
            }
        }
    }
    assert!(different * BITS <= bits, "{different} of {bits} bits differ");
    assert!(is_gpu || different == 0, "the processor is the processor");
}

/// In bf16 and f16, from a checkpoint of either: the weights that are scored are those that are stored.
#[test]
fn weights_are_scored_as_they_are_stored() {
    let (device, _, _) = second_device();
    for (architecture, dtype) in
        [("mistral", ComputeDType::BF16), ("llama", ComputeDType::BF16), ("qwen3", ComputeDType::F16)]
    {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(architecture);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let decoder = decoder(&checkpoint, device, dtype);
        let recipe = Recipe { pruner: Pruner::WANDA, group: Group::Row, sparsity: Sparsity::new(57, 100).unwrap() };
        let outcome = pass(&checkpoint, &decoder, &windows(5), recipe);
        let masks = masks(&checkpoint, recipe, &outcome.norms);
        assert_eq!(outcome.mask_root, mask_root(checkpoint.layout().digest(), masks.iter().map(MatrixMask::digest)));
        assert_eq!(outcome.pruned_weights, masks.iter().map(MatrixMask::count_pruned).sum::<u64>());
    }
}

#[test]
fn perplexities_of_both_devices_agree() {
    let (device, dtype, _) = second_device();
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/qwen2"));
    let checkpoint = Checkpoint::open(folder).unwrap();
    let measured =
        [(DeviceName::Cpu, ComputeDType::F32), (device, dtype), (device, ComputeDType::BF16)].map(|(device, dtype)| {
            let decoder = decoder(&checkpoint, device, dtype);
            let nothing = &mut |_: usize, _: &mut _| Ok(());
            perplexity::<ModelError>(&checkpoint, &decoder, &windows(7), nothing, &mut |_, _| {}).unwrap().perplexity
        });
    assert!((measured[1] / measured[0] - 1.0).abs() < 1e-4, "{measured:?}");
    assert!((measured[2] / measured[0] - 1.0).abs() < 2e-2, "{measured:?}");
}

/// What was measured is kept, and a run that goes on comes to the same.
#[test]
fn a_run_goes_on_on_its_device() {
    let (device, dtype, _) = second_device();
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama"));
    let checkpoint = Checkpoint::open(folder).unwrap();
    let decoder = decoder(&checkpoint, device, dtype);
    let recipe = Recipe { pruner: Pruner::WANDA, group: Group::Layer, sparsity: Sparsity::new(1, 2).unwrap() };
    let text = windows(11);
    let whole = pass(&checkpoint, &decoder, &text, recipe);
    let inputs = LocalPass { checkpoint: &checkpoint, decoder: Some(&decoder), windows: &text, recipe, data_free: &[] };
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("journal");
    let key = inputs.journal_key(checkpoint.content_digest(&|_| {}));
    let mut journal = fedprune_prune::Journal::open(&path, &key, checkpoint.layout()).unwrap();
    let mut done = Vec::new();
    let first = local_pass(&inputs, Some(&mut journal), |progress| done.push((progress.done, progress.total))).unwrap();
    assert_eq!(first, whole);
    assert_eq!(done.last().map(|(done, total)| done == total), Some(true), "{:?}", done.last());
    drop(journal);
    let mut journal = fedprune_prune::Journal::open(&path, &key, checkpoint.layout()).unwrap();
    assert_eq!(journal.known_blocks(), checkpoint.layout().blocks());
    let mut done = Vec::new();
    let again = local_pass(&inputs, Some(&mut journal), |progress| done.push((progress.done, progress.total))).unwrap();
    assert_eq!(again, whole);
    assert!(done.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{done:?}");
    assert!(done.iter().all(|(done, total)| done <= total), "{done:?}");
}
