//! What the decoder does to weights and to inputs that do not fit, on the oracle's smallest checkpoint.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::{MatrixMask, Tap};
use fedprune_model::{
    Block, BlockSums, ComputeDType, Decoder, DeviceName, ModelError, Taps, Workspace, logits, perplexity,
};

fn checkpoint(architecture: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(architecture))
        .unwrap()
}

fn decoder(checkpoint: &Checkpoint, dtype: DType) -> Decoder {
    Decoder::new(checkpoint, &Device::Cpu, dtype, 64).unwrap()
}

fn weights(block: &Block, position: usize) -> Vec<f32> {
    block.weight(position).unwrap().flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// Every third weight, and all of the last row.
fn some_mask(rows: usize, columns: usize) -> MatrixMask {
    let mut mask = MatrixMask::kept(rows, columns);
    for row in 0..rows {
        for column in 0..columns {
            if (row * columns + column) % 3 == 1 || row + 1 == rows {
                mask.prune(row, column);
            }
        }
    }
    mask
}

#[test]
fn pruning_zeroes_exactly_what_the_mask_says() {
    let checkpoint = checkpoint("mistral");
    for dtype in [DType::F32, DType::F16] {
        let decoder = decoder(&checkpoint, dtype);
        for position in 0..7 {
            let mut block = decoder.load_block(&checkpoint, 1).unwrap();
            let before = weights(&block, position);
            let matrix = &checkpoint.layout().matrices()[checkpoint.layout().block(1)][position];
            let (rows, columns) = (matrix.rows as usize, matrix.columns as usize);
            assert_eq!(before.len(), rows * columns);
            let mask = some_mask(rows, columns);
            block.prune(position, &mask).unwrap();
            for (index, (before, after)) in before.iter().zip(weights(&block, position)).enumerate() {
                let expected = if mask.get(index / columns, index % columns) { 0.0 } else { *before };
                assert_eq!(after, expected, "{dtype:?}, position {position}, weight {index}");
            }
        }
    }
}

#[test]
fn scaling_rounds_to_the_stored_dtype() {
    let checkpoint = checkpoint("mistral"); // stored in bf16
    let decoder = decoder(&checkpoint, DType::F32);
    let mut block = decoder.load_block(&checkpoint, 0).unwrap();
    let before = weights(&block, 2);
    let factors: Vec<f32> = (0..before.len()).map(|index| (index % 5) as f32 / 5.0).collect();
    block.scale(2, &factors).unwrap();
    let bf16 = Tensor::from_vec(before, factors.len(), &Device::Cpu).unwrap();
    let expected = (bf16 * Tensor::from_vec(factors.clone(), factors.len(), &Device::Cpu).unwrap())
        .and_then(|product| product.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.to_vec1::<f32>())
        .unwrap();
    assert_eq!(weights(&block, 2), expected);
}

#[test]
fn masks_and_factors_that_do_not_fit_are_refused() {
    let checkpoint = checkpoint("llama");
    let decoder = decoder(&checkpoint, DType::F32);
    let mut block = decoder.load_block(&checkpoint, 2).unwrap();
    let said = block.prune(1, &MatrixMask::kept(64, 64)).unwrap_err().to_string();
    assert!(said.contains("shape (64, 64)") && said.contains("model.layers.2.self_attn.k_proj.weight"), "{said}");
    let said = block.scale(6, &[1.0]).unwrap_err().to_string();
    assert!(said.contains("factors of 1") && said.contains("down_proj"), "{said}");
    assert!(block.prune(7, &MatrixMask::kept(64, 64)).is_err());
    let said = decoder.load_block(&checkpoint, 3).err().unwrap().to_string();
    assert!(said.contains("block 3 does not exist: the model has 3"), "{said}");
}

/// A wider compute dtype would hide that a block is pruned in the pass: the loss must move, and only then.
#[test]
fn perplexity_runs_the_blocks_as_they_were_changed() {
    let checkpoint = checkpoint("qwen3");
    let decoder = decoder(&checkpoint, DType::F32);
    let windows: Vec<Vec<u32>> =
        (0..3u32).map(|window| (0..32).map(|at| (at * 37 + window * 11) % 256).collect()).collect();
    let run = |position: Option<usize>| {
        let mut seen = Vec::new();
        let result = perplexity::<ModelError>(
            &checkpoint,
            &decoder,
            &windows,
            &mut |index, block| {
                seen.push((index, block.index()));
                let Some(position) = position else { return Ok(()) };
                let dims = block.weight(position)?.dims().to_vec();
                block.prune(position, &some_mask(dims[0], dims[1]))
            },
            &mut |_, _| {},
        )
        .unwrap();
        assert_eq!(seen, [(0, 0), (1, 1), (2, 2)]);
        result
    };
    let dense = run(None);
    assert_eq!(dense, run(None), "twice the same bits");
    assert_eq!((dense.tokens, dense.scored_tokens), (96, 93));
    assert!(run(Some(6)).window_losses.iter().zip(&dense.window_losses).all(|(a, b)| (a - b).abs() > 1e-3));
}

/// The loss in slices of the vocabulary equals the textbook formula on whole logits.
#[test]
fn losses_equal_their_definition() {
    let checkpoint = checkpoint("qwen2");
    let decoder = decoder(&checkpoint, DType::F32);
    let tokens: Vec<u32> = (0..40).map(|at| (at * at * 7 + 3) % 256).collect();
    let rows = logits(&checkpoint, &decoder, &tokens).unwrap().to_vec2::<f32>().unwrap();
    let losses = rows.iter().zip(&tokens[1..]).map(|(row, next)| {
        let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        total.ln() - f64::from(row[*next as usize])
    });
    let expected = losses.sum::<f64>() / 39.0;
    let got = perplexity::<ModelError>(&checkpoint, &decoder, &[tokens], &mut |_, _| Ok(()), &mut |_, _| {}).unwrap();
    assert!((got.window_losses[0] - expected).abs() < 1e-9, "{got:?} {expected}");
    assert!((got.perplexity - expected.exp()).abs() < 1e-6);
}

/// The path of half-precision devices, exercised on the processor: close to f32, and not the same.
#[test]
fn half_precision_stays_close() {
    let checkpoint = checkpoint("llama3-rope-tied");
    let tokens: Vec<u32> = (0..48).map(|at| (at * 29 + 5) % 256).collect();
    let run = |dtype| {
        let decoder = decoder(&checkpoint, dtype);
        let mut taps = Taps::new(decoder.config());
        let hidden = decoder.embed(&checkpoint, std::slice::from_ref(&tokens)).unwrap();
        let block = decoder.load_block(&checkpoint, 0).unwrap();
        block.measure(&decoder, &hidden, &mut taps, &mut Workspace::default()).unwrap();
        let loss = perplexity::<ModelError>(
            &checkpoint,
            &decoder,
            std::slice::from_ref(&tokens),
            &mut |_, _| Ok(()),
            &mut |_, _| {},
        );
        (taps.into_sums().unwrap(), loss.unwrap().window_losses[0])
    };
    let (full, full_loss) = run(DType::F32);
    for (dtype, tolerance) in [(DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let (half, loss) = run(dtype);
        assert_eq!((full.tokens(), half.tokens()), (48, 48));
        for tap in Tap::ALL {
            let total = |sums: &BlockSums| sums.sums(tap).iter().sum::<f64>();
            assert!((total(&half) / total(&full) - 1.0).abs() < tolerance, "{dtype:?}, {tap:?}");
            assert_ne!(half.sums(tap), full.sums(tap));
        }
        assert!((loss / full_loss - 1.0).abs() < tolerance, "{dtype:?}: {loss} {full_loss}");
        assert_ne!(loss, full_loss);
    }
    let mut twice = full.clone();
    twice.merge(&full);
    assert_eq!(twice.tokens(), 96);
    assert!(twice.sums(Tap::MlpOutput).iter().zip(full.sums(Tap::MlpOutput)).all(|(two, one)| *two == 2.0 * one));
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let checkpoint = checkpoint("llama");
    let decoder = decoder(&checkpoint, DType::F32);
    let refuse = |tokens: &[u32]| decoder.embed(&checkpoint, &[tokens.to_vec()]).unwrap_err().to_string();
    let said = refuse(&[1, 256, 3]);
    assert!(said.contains("token id 256 at position 1") && said.contains("vocabulary of 256"), "{said}");
    assert!(refuse(&[u32::MAX]).contains("4294967295"));
    assert!(refuse(&[0; 65]).contains("65 tokens"));
    let longer = Decoder::new(&checkpoint, &Device::Cpu, DType::F32, 65).unwrap();
    let mut hidden = longer.embed(&checkpoint, &[vec![0; 65]]).unwrap();
    let block = decoder.load_block(&checkpoint, 0).unwrap();
    assert!(matches!(
        block.run(&decoder, &mut hidden, &mut Workspace::default()),
        Err(ModelError::SequenceOverDecoder { tokens: 65, limit: 64 })
    ));
    let half = Decoder::new(&checkpoint, &Device::Cpu, DType::F16, 64).unwrap();
    let mut hidden = half.embed(&checkpoint, &[vec![0; 8]]).unwrap();
    let refused = block.run(&decoder, &mut hidden, &mut Workspace::default());
    assert!(matches!(refused, Err(ModelError::OtherDecoder)), "{refused:?}");

    let windows = |windows: &[Vec<u32>]| {
        perplexity::<ModelError>(&checkpoint, &decoder, windows, &mut |_, _| Ok(()), &mut |_, _| {})
            .unwrap_err()
            .to_string()
    };
    assert!(windows(&[]).contains("`windows` must be at least 1"));
    assert!(windows(&[vec![1, 2], vec![1]]).contains("window 1 has 1"));

    let make = |tokens| Decoder::new(&checkpoint, &Device::Cpu, DType::F32, tokens).err().unwrap().to_string();
    assert!(make(0).contains("--seqlen"));
    assert!(make(257).contains("257") && make(257).contains("256"));
}

#[test]
fn losses_that_are_no_numbers_are_refused() {
    let checkpoint = checkpoint("llama");
    let decoder = decoder(&checkpoint, DType::F32);
    let said = perplexity::<ModelError>(
        &checkpoint,
        &decoder,
        &[vec![1, 2, 3], vec![4, 5, 6]],
        &mut |_, block| {
            let dims = block.weight(6)?.dims().to_vec();
            block.scale(6, &vec![f32::NAN; dims[0] * dims[1]])
        },
        &mut |_, _| {},
    )
    .unwrap_err()
    .to_string();
    assert!(said.contains("window 0 is NaN") && said.contains("--dtype f32"), "{said}");
}

#[test]
fn devices_and_dtypes_are_named() {
    assert_eq!("cpu".parse::<DeviceName>().unwrap(), DeviceName::Cpu);
    assert_eq!("cuda:3".parse::<DeviceName>().unwrap(), DeviceName::Cuda(3));
    assert_eq!("cuda:3".parse::<DeviceName>().unwrap().to_string(), "cuda:3");
    for bad in ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "", "cuda:99999999999999999999999"] {
        let said = bad.parse::<DeviceName>().unwrap_err().to_string();
        assert!(said.contains(&format!("`{bad}`")) && said.contains("cuda:0"), "{said}");
    }
    assert!(DeviceName::Cpu.open().unwrap().is_cpu());
    #[cfg(not(feature = "cuda"))]
    {
        let said = DeviceName::Cuda(1).open().unwrap_err().to_string();
        assert!(said.contains("`cuda:1`") && said.contains("--features cuda"), "{said}");
    }

    // whatever this machine has: a device, or words on what is missing
    #[cfg(feature = "cuda")]
    if let Err(error) = DeviceName::Cuda(4_000_000).open() {
        let said = error.to_string();
        assert!(said.contains("`cuda:4000000`"), "{said}");
    } else {
        panic!("there are not so many GPUs");
    }

    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)] {
        let compute: ComputeDType = name.parse().unwrap();
        assert_eq!((compute.candle(), compute.to_string().as_str()), (dtype, name));
    }
    let said = "f64".parse::<ComputeDType>().unwrap_err().to_string();
    assert!(said.contains("`f64`") && said.contains("`bf16`"), "{said}");
    assert_eq!(ComputeDType::default_for(&Device::Cpu), ComputeDType::F32);
    let refused = Decoder::new(&checkpoint("llama"), &Device::Cpu, DType::F64, 8).err().unwrap().to_string();
    assert!(refused.contains("`f64`"), "{refused}");
}
