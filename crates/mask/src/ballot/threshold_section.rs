//! The column thresholds of all `column-thresholds` taps as bytes: length (4, little-endian), then one range-coded
//! stream (see [`range_coder`](super::range_coder)).
//!
//! A threshold may be any level of the gap between the heaviest weight pruned and the lightest kept
//! ([`Gaps`]). The one written is a function of the mask and the public weights:
//!
//! * of the first matrix of a tap, and of any stored as f32, the *roundest* of the gap, with the most zero
//!   bits at the end. Half precision has 128 (bf16) or 1,024 (f16) levels an octave; what lies below what
//!   the mask says is not sent.
//! * of further matrices of the tap, the one nearest to a prediction. Behind all of them is one norm s_j,
//!   and the thresholds are T / s_j: the logarithm of the first matrix's, plus an offset that is learned
//!   from column to column.
//!
//! So two silos with the same mask write the same bytes, and reading needs no weights; that a threshold is
//! the one to be written is checked when the mask is made, which reads the weights anyway
//! ([`Carried::check`]).
//!
//! First matrices are coded as a sixteenth of an octave, relative to a running mean of the tap, and the bits
//! below it as long as they are not all zero. The norms of the two taps of the residual stream are alike from block to
//! block; how far the same channel lay from the mean in the block before chooses among models.
//!
//! Of each tap in layout order: its format (2 bits: 0 bf16, 1 f16, 2 f32). Of each of its matrices: the
//! thresholds by column; whether there is a split, and if so its first column (as many bits as columns need),
//! which of the later columns with that same level belong to it, the row of its last weight pruned, and
//! which of the split's columns it is in. What would be a second way to say the same is refused.

use super::container::Reader;
use super::error::BallotError;
use super::range_coder::{Bit, BitTree, Coder, Decoder, Encoder};
use crate::layout::{Layout, Tap};
use crate::thresholds::band::STRIP_COLUMNS;
use crate::thresholds::{ColumnThresholds, Gaps, Split, top_level};
use crate::weights::DType;

/// A cell is an octave over 2^4.
const CELL_BITS_OF_OCTAVE: u32 = 4;
/// Farthest cell from the mean that has a symbol.
const MAX_CELL: i64 = 127;
/// Farthest level from its prediction that has a symbol.
const MAX_RESIDUAL: i64 = 7;
/// Levels of memory of a running mean.
const MEAN_MEMORY: i64 = 64;
/// Bins of how far a channel lay from the mean in the block before.
const NEIGHBOUR_BINS: usize = 9;
/// Quarters of a level between which a prediction may fall, and ratios of level widths.
const RESIDUAL_CONTEXTS: usize = 4 * 3;
/// Fractional bits of logarithms.
const LOG_BITS: u32 = 16;
/// Decisions that models remember.
const MEMORY: u16 = 255;

/// How levels of a stored format are made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    dtype: DType,
    fraction_bits: u32,
}

impl Format {
    const ALL: [Format; 3] = [
        Format { dtype: DType::BF16, fraction_bits: 7 },
        Format { dtype: DType::F16, fraction_bits: 10 },
        Format { dtype: DType::F32, fraction_bits: 23 },
    ];

    fn of(dtype: DType) -> u32 {
        match dtype {
            DType::BF16 => 0,
            DType::F16 => 1,
            DType::F32 => 2,
        }
    }

    fn top(self) -> u32 {
        top_level(self.dtype)
    }

    fn cell_bits(self) -> u32 {
        self.fraction_bits - CELL_BITS_OF_OCTAVE
    }

    /// Whether levels are few enough that those of other matrices are predicted to the level.
    fn predicts(self) -> bool {
        self.fraction_bits <= 10
    }
}

/// The number with the most zero bits at its end in `low..=high`: there is one.
pub(super) fn roundest(low: u32, high: u32) -> u32 {
    if low == 0 {
        return 0;
    }
    // bits above the highest in which low − 1 and high differ are common to all
    let differing = ((low - 1) ^ high).ilog2();
    high >> differing << differing
}

/// The thresholds of one matrix as a ballot carried them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) thresholds: ColumnThresholds,
    dtype: DType,
    /// On which side of its prediction each threshold lies; none where each is the roundest.
    sides: Option<Vec<std::cmp::Ordering>>,
}

impl Carried {
    /// Of which format the weights must be.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The part of a gap that must hold weights for the threshold to be the one written, of as many columns as are
    /// asked for, from `first` on: levels from `low` up to before it were pruned with one of their weights at
    /// least, and of those up to before `high` one is kept.
    ///
    /// Where nothing is asked, since any threshold does, both are the threshold.
    #[inline(always)]
    pub(crate) fn witnesses(&self, first: usize, low: &mut [u32], high: &mut [u32]) {
        use std::cmp::Ordering::{Greater, Less};
        let levels = &self.thresholds.levels[first..first + low.len()];
        let ends = low.iter_mut().zip(high);
        match &self.sides {
            None => {
                let top = top_level(self.dtype);
                for ((low, high), &level) in ends.zip(levels) {
                    // its lowest bit; of zero none
                    let step = if level == top { 0 } else { level & level.wrapping_neg() };
                    (*low, *high) = (level - step, level + step);
                }
            }
            Some(sides) => {
                for (((low, high), level), side) in ends.zip(levels).zip(&sides[first..]) {
                    (*low, *high) = (level - u32::from(*side == Greater), level + u32::from(*side == Less));
                }
            }
        }
    }

    /// Takes in the levels that [`Carried::witnesses`] says, of columns from `first` on.
    #[inline(always)]
    pub(crate) fn take_in(&self, first: usize, low: &mut [u32], high: &mut [u32]) {
        let top = top_level(self.dtype);
        let (mut from, mut to) = ([0; STRIP_COLUMNS], [0; STRIP_COLUMNS]);
        let strips = low.chunks_mut(STRIP_COLUMNS).zip(high.chunks_mut(STRIP_COLUMNS));
        for (first, (low, high)) in (first..).step_by(STRIP_COLUMNS).zip(strips) {
            let (from, to) = (&mut from[..low.len()], &mut to[..low.len()]);
            self.witnesses(first, from, to);
            low.iter_mut().zip(from).for_each(|(low, from)| *low = (*low).min(*from));
            high.iter_mut().zip(to).for_each(|(high, to)| *high = (*high).max((*to).min(top)));
        }
    }

    /// Refuses thresholds other than those that an encoder writes for their mask, whose gaps are `gaps`.
    pub(crate) fn check(&self, gaps: &Gaps) -> Result<(), &'static str> {
        if gaps.split != self.thresholds.split {
            return Err("its split is not that of its mask");
        }
        let (mut from, mut to) = (vec![0; gaps.low.len()], vec![0; gaps.low.len()]);
        self.witnesses(0, &mut from, &mut to);
        let witnesses = from.into_iter().zip(to).zip(&self.thresholds.levels);
        for ((low, high), ((from, to), level)) in gaps.low.iter().zip(&gaps.high).zip(witnesses) {
            if from < *level && *low <= from || to > *level && *high >= to {
                return Err("a threshold is not the one that its mask is written with");
            }
        }
        Ok(())
    }
}

/// Models of one kind of tap.
struct KindModels {
    cells: Vec<BitTree>,
    escape_is_top: Bit,
    /// By bit: whether all from it down are zero, and whether it is one.
    rest_is_zero: Vec<Bit>,
    low_bits: Vec<Bit>,
    /// By matrix after the first (further ones share), and by context.
    residuals: Vec<Vec<BitTree>>,
}

/// What is kept of a tap's first matrix for the same tap of the next block.
struct Neighbour {
    levels: Vec<u32>,
    mean: i64,
    format: Format,
}

/// Models and memories of one direction of the code, all taps together.
pub(super) struct Model {
    kinds: Vec<KindModels>,
    neighbours: [Option<Neighbour>; 4],
    formats: BitTree,
    has_split: Bit,
    in_split: Bit,
    logarithms: Vec<Vec<i64>>,
}

/// Matrices after the first that have models of their own.
const RESIDUAL_MATRICES: usize = 2;

impl Model {
    pub(super) fn new() -> Self {
        let kind = |_| KindModels {
            cells: vec![BitTree::new(8, MEMORY); NEIGHBOUR_BINS + 1],
            escape_is_top: Bit::default(),
            rest_is_zero: vec![Bit::default(); 20],
            low_bits: vec![Bit::default(); 20],
            residuals: vec![vec![BitTree::new(4, MEMORY); RESIDUAL_CONTEXTS]; RESIDUAL_MATRICES],
        };
        Self {
            kinds: (0..4).map(kind).collect(),
            neighbours: [None, None, None, None],
            formats: BitTree::new(2, MEMORY),
            has_split: Bit::default(),
            in_split: Bit::default(),
            logarithms: Format::ALL[..2].iter().map(|format| logarithms_of_fractions(format.fraction_bits)).collect(),
        }
    }

    /// Codes one tap: of an encoder, `gaps` has those of each matrix, and of a decoder nothing.
    fn tap(
        &mut self,
        coder: &mut impl Coder,
        layout: &Layout,
        tap: usize,
        dtype: DType,
        gaps: Option<&[Gaps]>,
    ) -> Result<Vec<Carried>, &'static str> {
        let range = layout.taps()[tap].clone();
        let matrices = &layout.matrices()[range];
        let kind = matrices[0].tap;
        let format = self.formats.code(coder, Format::of(dtype)) as usize;
        let format = *Format::ALL.get(format).ok_or("it names no format of weights")?;
        let mut carried: Vec<Carried> = Vec::with_capacity(matrices.len());
        for (at, matrix) in matrices.iter().enumerate() {
            let gaps = gaps.map(|gaps| &gaps[at]);
            let columns = matrix.columns as usize;
            let (levels, sides) = match carried.first() {
                Some(first) if format.predicts() => {
                    let first = &first.thresholds.levels;
                    let (levels, sides) = self.predicted(coder, kind, at - 1, format, first, gaps)?;
                    (levels, Some(sides))
                }
                _ => (self.alone(coder, kind, at == 0, format, columns, gaps)?, None),
            };
            let split = self.split(coder, matrix.rows, &levels, gaps.and_then(|gaps| gaps.split.as_ref()))?;
            let thresholds = ColumnThresholds { levels, split };
            carried.push(Carried { thresholds, dtype: format.dtype, sides });
        }
        Ok(carried)
    }

    /// The roundest thresholds of a matrix.
    fn alone(
        &mut self,
        coder: &mut impl Coder,
        kind: Tap,
        first: bool,
        format: Format,
        columns: usize,
        gaps: Option<&Gaps>,
    ) -> Result<Vec<u32>, &'static str> {
        let persists = matches!(kind, Tap::AttentionInput | Tap::MlpInput);
        // of the block before, or of the tap's first matrix
        let neighbour = self.neighbours[kind as usize]
            .take()
            .filter(|neighbour| neighbour.format == format && neighbour.levels.len() == columns);
        let models = &mut self.kinds[kind as usize];
        let mut levels = Vec::with_capacity(columns);
        let mut mean = RunningMean::new(format);
        for column in 0..columns {
            let level = gaps.map_or(0, |gaps| roundest(gaps.low[column], gaps.high[column]));
            let context = neighbour.as_ref().map_or(NEIGHBOUR_BINS, |neighbour| {
                let bin = i64::from(3u32 << (format.fraction_bits - 5));
                let from_mean = i64::from(neighbour.levels[column]) - neighbour.mean;
                let bins = (from_mean + bin / 2).div_euclid(bin);
                (bins + NEIGHBOUR_BINS as i64 / 2).clamp(0, NEIGHBOUR_BINS as i64 - 1) as usize
            });
            let level = models.level(coder, format, mean.get(), context, level)?;
            mean.learn(level);
            levels.push(level);
        }
        self.neighbours[kind as usize] = if first && persists {
            Some(Neighbour { levels: levels.clone(), mean: mean.get(), format })
        } else {
            neighbour
        };
        Ok(levels)
    }

    /// Thresholds of a further matrix of a tap whose first has the thresholds `first`.
    fn predicted(
        &mut self,
        coder: &mut impl Coder,
        kind: Tap,
        matrix: usize,
        format: Format,
        first: &[u32],
        gaps: Option<&Gaps>,
    ) -> Result<(Vec<u32>, Vec<std::cmp::Ordering>), &'static str> {
        let logarithms = &self.logarithms[Format::of(format.dtype) as usize];
        let models = &mut self.kinds[kind as usize];
        let mut offset = Offset::new(logarithms, format);
        let (mut levels, mut sides) = (Vec::with_capacity(first.len()), Vec::with_capacity(first.len()));
        for (column, &first) in first.iter().enumerate() {
            let prediction = offset.predict(first);
            let nearest = gaps.map_or(0, |gaps| prediction.level.clamp(gaps.low[column], gaps.high[column]));
            let residual = i64::from(nearest) - i64::from(prediction.level);
            let known = residual.abs() <= MAX_RESIDUAL && prediction.context.is_some();
            let level = match prediction.context {
                Some(context) => {
                    let symbol = if known { (residual + MAX_RESIDUAL + 1) as u32 } else { 0 };
                    let tree = &mut models.residuals[matrix.min(RESIDUAL_MATRICES - 1)][context];
                    match tree.code(coder, symbol) {
                        0 => {
                            let level = models.escaped(coder, format, nearest)?;
                            if (i64::from(level) - i64::from(prediction.level)).abs() <= MAX_RESIDUAL {
                                return Err("a threshold is written as far from its prediction and is not");
                            }
                            level
                        }
                        symbol => {
                            let level = i64::from(prediction.level) + i64::from(symbol) - MAX_RESIDUAL - 1;
                            checked_level(level, format)?
                        }
                    }
                }
                None => models.escaped(coder, format, nearest)?,
            };
            offset.learn(first, level, &prediction);
            sides.push(level.cmp(&prediction.level));
            levels.push(level);
        }
        Ok((levels, sides))
    }

    fn split(
        &mut self,
        coder: &mut impl Coder,
        rows: u32,
        levels: &[u32],
        given: Option<&Split>,
    ) -> Result<Option<Split>, &'static str> {
        if !coder.bit(&mut self.has_split, given.is_some()) {
            return Ok(None);
        }
        let bits_below = |count: usize| usize::BITS - (count - 1).leading_zeros();
        let wide = levels.len() as u64;
        let first = coder.even(given.map_or(0, |split| split.columns[0]), bits_below(levels.len()));
        let magnitude = *levels.get(first as usize).ok_or("its split starts past its last column")?;
        let mut given_columns = given.map_or(&[][..], |split| &split.columns[1..]);
        let mut columns = vec![first];
        for (column, &level) in (0..).zip(levels).skip(first as usize + 1) {
            if level == magnitude {
                let given = given_columns.first() == Some(&column);
                given_columns = &given_columns[usize::from(given)..];
                if coder.bit(&mut self.in_split, given) {
                    columns.push(column);
                }
            }
        }
        let (row, column) = given.map_or((0, 0), |split| (split.last / wide, (split.last % wide) as u32));
        let row = u64::from(coder.even(row as u32, bits_below(rows as usize)));
        let place = columns.binary_search(&column).unwrap_or(0) as u32;
        let place = coder.even(place, bits_below(columns.len())) as usize;
        let column = *columns.get(place).ok_or("its split ends past its columns")?;
        if row >= u64::from(rows) {
            return Err("its split ends past its last row");
        }
        Ok(Some(Split { magnitude, last: row * wide + u64::from(column), columns }))
    }
}

impl KindModels {
    /// One level whose mean so far is `mean`; none before the first.
    fn level(
        &mut self,
        coder: &mut impl Coder,
        format: Format,
        mean: i64,
        context: usize,
        level: u32,
    ) -> Result<u32, &'static str> {
        let cell_bits = format.cell_bits();
        let mean_cell = mean >> cell_bits;
        let cell = i64::from(level >> cell_bits) - mean_cell;
        let symbol = if cell.abs() < MAX_CELL { (cell + MAX_CELL + 1) as u32 } else { 0 };
        let symbol = self.cells[context].code(coder, symbol);
        if symbol == 0 {
            let level = self.escaped(coder, format, level)?;
            if (i64::from(level >> cell_bits) - mean_cell).abs() < MAX_CELL {
                return Err("a threshold is written as far from the mean and is not");
            }
            return Ok(level);
        }
        let cell = i64::from(symbol) - MAX_CELL - 1;
        if cell.abs() >= MAX_CELL {
            return Err("a threshold is too far from the mean to be written so");
        }
        let cell = mean_cell + cell;
        let low = self.low_bits(coder, cell_bits, level & ((1 << cell_bits) - 1));
        checked_level((cell << cell_bits) + i64::from(low), format)
    }

    /// The bits below a cell, from the highest, until the rest is zero.
    fn low_bits(&mut self, coder: &mut impl Coder, bits: u32, low: u32) -> u32 {
        let (mut read, mut surely_more) = (0u32, false);
        for place in (0..bits).rev() {
            let rest = low & ((2u32 << place) - 1);
            if !surely_more && coder.bit(&mut self.rest_is_zero[place as usize], rest == 0) {
                return read;
            }
            // with nothing below, what is not zero is a one
            let one = place == 0 || coder.bit(&mut self.low_bits[place as usize], rest >> place & 1 == 1);
            read |= u32::from(one) << place;
            surely_more = !one;
        }
        read
    }

    /// A level without any model, save that columns pruned whole are the usual reason.
    fn escaped(&mut self, coder: &mut impl Coder, format: Format, level: u32) -> Result<u32, &'static str> {
        let top = format.top();
        if coder.bit(&mut self.escape_is_top, level == top) {
            return Ok(top);
        }
        Ok(coder.even(level & (top - 1), top.ilog2()))
    }
}

fn checked_level(level: i64, format: Format) -> Result<u32, &'static str> {
    match u32::try_from(level) {
        Ok(level) if level <= format.top() => Ok(level),
        _ => Err("a threshold is no magnitude of a weight"),
    }
}

/// Mean of the levels seen, of the last few when there are many; one far away moves it by a bounded step.
struct RunningMean {
    /// Times 2^8.
    scaled: i64,
    seen: i64,
    most: i64,
}

impl RunningMean {
    fn new(format: Format) -> Self {
        Self { scaled: 0, seen: 0, most: 1 << (8 + format.fraction_bits - 1) }
    }

    fn get(&self) -> i64 {
        self.scaled >> 8
    }

    fn learn(&mut self, level: u32) {
        let away = (i64::from(level) << 8) - self.scaled;
        let away = if self.seen == 0 { away } else { away.clamp(-self.most, self.most) };
        self.seen = (self.seen + 1).min(MEAN_MEMORY);
        self.scaled += away / self.seen;
    }
}

/// log₂(1 + f / 2^bits) for all f, and 1 at the end, with [`LOG_BITS`] fractional bits, rounded down.
fn logarithms_of_fractions(bits: u32) -> Vec<i64> {
    let of = |fraction: u64| {
        // a number in [1, 2) with 30 fractional bits is squared: whether that passes 2 is the next bit
        let mut number = (1u64 << 30) + (fraction << (30 - bits));
        (0..LOG_BITS).fold(0i64, |logarithm, _| {
            number = (number * number) >> 30;
            let passed = number >> 31;
            number >>= passed;
            logarithm << 1 | passed as i64
        })
    };
    (0..1u64 << bits).map(of).chain([1 << LOG_BITS]).collect()
}

/// Where a matrix's threshold should lie, given that of another matrix of the tap.
struct Prediction {
    level: u32,
    /// None where nothing can be said.
    context: Option<usize>,
    /// Of the predicted level, as a logarithm.
    width: i64,
}

/// The logarithm of the ratio of two matrices' thresholds, learned from column to column.
struct Offset<'a> {
    logarithms: &'a [i64],
    format: Format,
    offset: Option<i64>,
    learned: i64,
}

impl<'a> Offset<'a> {
    fn new(logarithms: &'a [i64], format: Format) -> Self {
        Self { logarithms, format, offset: None, learned: 0 }
    }

    fn logarithm(&self, level: u32) -> i64 {
        let fraction = level & ((1 << self.format.fraction_bits) - 1);
        (i64::from(level >> self.format.fraction_bits) << LOG_BITS) + self.logarithms[fraction as usize]
    }

    /// In the middle of the level that ends with `level`.
    fn middle(&self, level: u32) -> i64 {
        (self.logarithm(level - 1) + self.logarithm(level)) / 2
    }

    fn width(&self, level: u32) -> i64 {
        let fraction = (level & ((1 << self.format.fraction_bits) - 1)) as usize;
        self.logarithms[fraction + 1] - self.logarithms[fraction]
    }

    fn predict(&self, first: u32) -> Prediction {
        let top = self.format.top();
        let Some(offset) = self.offset else { return Prediction { level: first, context: None, width: 0 } };
        if first == 0 || first == top {
            return Prediction { level: first, context: Some(0), width: 0 };
        }
        let place = (self.middle(first) + offset).clamp(0, i64::from(top >> self.format.fraction_bits) << LOG_BITS);
        let (octave, part) = (place >> LOG_BITS, place & ((1 << LOG_BITS) - 1));
        let below = self.logarithms.partition_point(|logarithm| *logarithm <= part) - 1;
        let width = (self.logarithms.get(below + 1).copied().unwrap_or(1 << LOG_BITS) - self.logarithms[below]).max(1);
        let quarter = ((part - self.logarithms[below]) * 4 / width).clamp(0, 3) as usize;
        let level = (octave << self.format.fraction_bits) + below as i64 + 1;
        let widths = self.width(first);
        // a level that is wide against that of the first matrix is easily hit, a narrow one missed
        let ratio = if width * 5 < widths * 4 {
            0
        } else if width * 4 <= widths * 5 {
            1
        } else {
            2
        };
        Prediction { level: level.min(i64::from(top)) as u32, context: Some(ratio * 4 + quarter), width }
    }

    fn learn(&mut self, first: u32, level: u32, prediction: &Prediction) {
        let inner = 1..self.format.top();
        if !inner.contains(&first) || !inner.contains(&level) {
            return;
        }
        match &mut self.offset {
            None => self.offset = Some(self.middle(level) - self.middle(first)),
            Some(offset) => {
                let residual = i64::from(level) - i64::from(prediction.level);
                if residual.abs() <= MAX_RESIDUAL {
                    *offset += residual * prediction.width / (8 + self.learned / 2).min(64);
                }
                self.learned += 1;
            }
        }
    }
}

/// Writes the thresholds of taps, in layout order.
pub(super) struct Writer<'l> {
    layout: &'l Layout,
    model: Model,
    coder: Encoder,
}

impl<'l> Writer<'l> {
    pub(super) fn new(layout: &'l Layout) -> Self {
        Self { layout, model: Model::new(), coder: Encoder::new() }
    }

    /// Adds a tap, all of whose matrices are stored as `dtype`; returns by how many bytes that lengthened the stream,
    /// to within a few.
    pub(super) fn add(&mut self, tap: usize, dtype: DType, gaps: &[Gaps]) -> u64 {
        let before = self.coder.len();
        let coded = self.model.tap(&mut self.coder, self.layout, tap, dtype, Some(gaps));
        debug_assert!(
            coded.is_ok_and(|carried| carried.iter().zip(gaps).all(|(carried, gaps)| carried.check(gaps).is_ok()))
        );
        (self.coder.len() - before) as u64
    }

    /// The section.
    pub(super) fn finish(self) -> Vec<u8> {
        let stream = self.coder.finish();
        let mut bytes = Vec::with_capacity(4 + stream.len());
        bytes.extend((stream.len() as u32).to_le_bytes());
        bytes.extend(stream);
        bytes
    }
}

/// The thresholds of the taps that `carries` them, matrix by matrix in layout order.
pub(super) fn decode(
    reader: &mut Reader<'_>,
    layout: &Layout,
    carries: impl Fn(usize) -> bool,
) -> Result<Vec<Option<Carried>>, BallotError> {
    let length = u32::from_le_bytes(reader.array("the length of the thresholds")?);
    let bytes = reader.take_claimed(u64::from(length), "the thresholds")?;
    let (mut model, mut coder) = (Model::new(), Decoder::new(bytes));
    let mut all = vec![None; layout.matrices().len()];
    for (tap, range) in layout.taps().iter().enumerate().filter(|(tap, _)| carries(*tap)) {
        let damaged =
            |problem| BallotError::Thresholds { matrix: layout.matrices()[range.start].name.clone(), problem };
        let carried = model.tap(&mut coder, layout, tap, DType::BF16, None).map_err(damaged)?;
        all[range.clone()].iter_mut().zip(carried).for_each(|(place, carried)| *place = Some(carried));
    }
    coder.finish().map_err(BallotError::ThresholdSection)?;
    Ok(all)
}

#[cfg(test)]
mod tests;
