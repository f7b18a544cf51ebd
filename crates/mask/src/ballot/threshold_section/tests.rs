use super::*;
use crate::layout::Matrix;
use crate::score::Pruner;
use crate::thresholds::derive::derive_gaps;
use crate::thresholds::tests::{DTYPES, Noise, norms, stored};
use crate::weights::WeightsView;
use crate::{Digest, Sparsity};
use proptest::prelude::*;

/// Two blocks of three matrices with one input and one with another.
fn layout(rows: u32, columns: u32) -> Layout {
    let matrix = |name: &str, block, tap, rows, columns| Matrix { name: name.into(), block, tap, rows, columns };
    let block = |block| {
        [
            matrix("q", block, Tap::AttentionInput, rows, columns),
            matrix("k", block, Tap::AttentionInput, rows.div_ceil(3), columns),
            matrix("v", block, Tap::AttentionInput, rows.div_ceil(2), columns),
            matrix("down", block, Tap::MlpOutput, columns, rows),
        ]
    };
    Layout::new([block(0), block(1)].concat()).unwrap()
}

struct Made {
    layout: Layout,
    bytes: Vec<Vec<u8>>,
    dtype: DType,
    gaps: Vec<Vec<Gaps>>,
}

impl Made {
    fn new(dtype: DType, rows: u32, columns: u32, levels: u64, values: u64, sparsity: Sparsity, seed: u64) -> Self {
        let layout = layout(rows, columns);
        let mut noise = Noise(seed);
        let made = |matrix: &Matrix| stored(dtype, matrix.weights() as usize, levels, &mut noise);
        let bytes: Vec<Vec<u8>> = layout.matrices().iter().map(made).collect();
        let mut this = Self { layout, bytes, dtype, gaps: Vec::new() };
        for range in this.layout.taps() {
            let norms = norms(this.layout.matrices()[range.start].columns as usize, values, &mut noise);
            let gaps = |index| derive_gaps(Pruner::WANDA, sparsity, this.view(index), &norms).unwrap().unwrap();
            let gaps = range.clone().map(gaps).collect();
            this.gaps.push(gaps);
        }
        this
    }

    fn view(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.layout.matrices()[index];
        WeightsView::new(self.dtype, matrix.rows as usize, matrix.columns as usize, &self.bytes[index]).unwrap()
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(&self.layout);
        for (tap, gaps) in self.gaps.iter().enumerate() {
            writer.add(tap, self.dtype, gaps);
        }
        writer.finish()
    }
}

fn decode_all(bytes: &[u8], layout: &Layout) -> Result<Vec<Carried>, BallotError> {
    let mut reader = Reader::new(bytes);
    let carried = decode(&mut reader, layout, |_| true)?;
    reader.finish()?;
    Ok(carried.into_iter().map(|carried| carried.unwrap()).collect())
}

#[test]
fn the_roundest_of_a_gap() {
    for low in 0..70 {
        for high in low..70 {
            let zeros = |number: &u32| if *number == 0 { 32 } else { number.trailing_zeros() };
            let expected = (low..=high).max_by_key(zeros).unwrap();
            assert_eq!(roundest(low, high), expected, "{low}..={high}");
        }
    }
    assert_eq!(roundest(0x4001, 0x8000), 0x8000);
    assert_eq!(roundest(1, 1 << 31), 1 << 31);
}

#[test]
fn logarithms_are_those_of_the_numbers() {
    for bits in [7, 10] {
        for (fraction, logarithm) in logarithms_of_fractions(bits).into_iter().enumerate() {
            let exact = (1.0 + fraction as f64 / f64::from(1u32 << bits)).log2() * f64::from(1u32 << LOG_BITS);
            assert!((exact - logarithm as f64).abs() < 1.01, "{fraction}: {exact} {logarithm}");
        }
    }
}

/// The wire, pinned.
#[test]
#[cfg_attr(miri, ignore = "too long there")]
fn bytes_are_pinned() {
    let half = Sparsity::new(1, 2).unwrap();
    let digests = DTYPES.map(|dtype| {
        let made = Made::new(dtype, 60, 90, 1 << 16, 4, half, 1);
        let bytes = made.encode();
        (bytes.len(), Digest::of(&bytes).short().to_string())
    });
    assert_eq!(digests, [(459, "e9df3f20".into()), (501, "37eb2658".into()), (568, "75b2cf52".into())]);
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn round_trips(
        rows in 1u32..40, columns in 1u32..60, levels in prop_oneof![1u64..20, 1u64..100_000], values in 1u64..5,
        numerator in 0u64..100, dtype in 0usize..3, seed in any::<u64>(),
    ) {
        let sparsity = Sparsity::new(numerator, 100).unwrap();
        let made = Made::new(DTYPES[dtype], rows, columns, levels, values, sparsity, seed);
        let bytes = made.encode();
        let carried = decode_all(&bytes, &made.layout).unwrap();
        let gaps: Vec<&Gaps> = made.gaps.iter().flatten().collect();
        for (index, carried) in carried.iter().enumerate() {
            let view = made.view(index);
            prop_assert_eq!(carried.dtype(), made.dtype);
            prop_assert_eq!(&Gaps::of_thresholds(&carried.thresholds, view), gaps[index]);
            prop_assert_eq!(carried.check(gaps[index]), Ok(()));
        }
    }

    /// Whatever is read and passes the check of all its matrices is the one encoding of their masks.
    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn what_is_accepted_is_canonical(
        rows in 1u32..12, columns in 1u32..12, levels in 1u64..30, values in 1u64..5, dtype in 0usize..3,
        seed in any::<u64>(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..3),
    ) {
        let mut made = Made::new(DTYPES[dtype], rows, columns, levels, values, Sparsity::new(1, 2).unwrap(), seed);
        let mut bytes = made.encode();
        if bytes.len() > 4 {
            for (at, byte) in changes {
                let at = 4 + at.index(bytes.len() - 4);
                bytes[at] = byte;
            }
        }
        let Ok(carried) = decode_all(&bytes, &made.layout) else { return Ok(()) };
        let dtype = carried[0].dtype();
        if carried.iter().any(|carried| carried.dtype() != made.dtype) {
            prop_assert!(dtype != made.dtype || carried.iter().any(|carried| carried.dtype() != dtype));
            return Ok(());
        }
        let mut at = carried.iter().enumerate();
        let mut all_pass = true;
        for gaps in made.gaps.iter_mut().flatten() {
            let (index, carried) = at.next().unwrap();
            let matrix = &made.layout.matrices()[index];
            let view = WeightsView::new(made.dtype, matrix.rows as usize, matrix.columns as usize, &made.bytes[index]).unwrap();
            *gaps = Gaps::of_thresholds(&carried.thresholds, view);
            all_pass &= carried.check(gaps).is_ok();
        }
        if all_pass {
            prop_assert_eq!(made.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let layout = layout(20, 30);
        let section = [&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat();
        if let Ok(carried) = decode_all(&section, &layout) {
            for (carried, matrix) in carried.iter().zip(layout.matrices()) {
                prop_assert_eq!(carried.thresholds.levels.len(), matrix.columns as usize);
                let top = top_level(carried.dtype());
                prop_assert!(carried.thresholds.levels.iter().all(|level| *level <= top));
            }
        }
    }
}
