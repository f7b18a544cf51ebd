//! Non-negative least squares over more columns than fit into memory: the active set of Lawson and Hanson (*Solving Least
//! Squares Problems*, 1974, chapter 23), with two liberties.
//!
//! A pass over all columns, which is what costs, lets in several at once; where that leads nowhere it is taken back and
//! one comes in. And it ends early, with columns enough, passes enough, or little enough left to explain. Nothing is drawn
//! at random and every sum has one order.

use std::collections::BTreeSet;

/// Columns that one pass lets in.
const AT_ONCE: usize = 8;
/// Added to a diagonal, relative to it: keeps columns that are nearly the same apart.
const RIDGE: f64 = 1e-10;
/// A pivot below this, relative to its diagonal, is none: the column is a combination of others.
const LEAST_PIVOT: f64 = 1e-9;
/// What a pass must gain, relative to the residual.
const LEAST_GAIN: f64 = 1e-9;
/// Columns in a row that led nowhere by themselves, after which none will.
const MAX_FRUITLESS: usize = 32;

/// The columns of a matrix, which are too many to hold.
pub(super) trait Columns {
    /// How many.
    fn count(&self) -> usize;
    /// One of them.
    fn column(&self, index: usize) -> Vec<f64>;
    /// The product of each with `residual`, roughly: it decides which are looked at.
    fn correlate(&self, residual: &[f64]) -> Vec<f32>;
    /// The length of each.
    fn lengths(&self) -> Vec<f32>;
}

/// When it is enough.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most columns at once.
    pub support: usize,
    /// Most passes over all columns.
    pub passes: usize,
    /// Root mean square of the residual.
    pub residual: f64,
}

/// Columns with a positive coefficient, and what they leave.
#[derive(Debug, Clone)]
pub(super) struct Solution {
    pub support: Vec<(u32, f64)>,
    /// Root mean square.
    pub residual: f64,
    pub passes: usize,
}

/// Coefficients ≥ 0 under which the columns come nearest to `target`.
pub(super) fn solve(columns: &dyn Columns, target: &[f64], bounds: Bounds, on_pass: &mut dyn FnMut(usize)) -> Solution {
    let most = bounds.support.min(target.len());
    let lengths = columns.lengths();
    let mut active = Active::new(target);
    let mut residual = target.to_vec();
    let mut fruitless = BTreeSet::new();
    let (mut at_once, mut passes) = (AT_ONCE, 0);
    while passes < bounds.passes && active.columns.len() < most && rms(&residual) > bounds.residual {
        passes += 1;
        on_pass(passes);
        let correlated = columns.correlate(&residual);
        let open = |index: &usize| !fruitless.contains(index) && !active.holds(*index);
        let gains = (0..columns.count()).filter(open).filter_map(|index| {
            let gain = correlated[index] / lengths[index];
            (gain > 0.0 && gain.is_finite()).then_some((gain, index))
        });
        let best = largest(gains, at_once.min(most - active.columns.len()));
        let Some(first) = best.first().copied() else { break };
        let before = active.clone_light();
        for index in best {
            active.add(index, columns.column(index));
        }
        active.settle();
        let left = active.residual();
        if rms(&left) < rms(&residual) * (1.0 - LEAST_GAIN) {
            residual = left;
            if at_once == 1 {
                fruitless.clear();
            }
            at_once = AT_ONCE;
            continue;
        }
        active = before;
        if at_once == 1 {
            fruitless.insert(first);
            if fruitless.len() > MAX_FRUITLESS {
                break;
            }
        }
        at_once = 1;
    }
    let support = active.columns.iter().zip(&active.values);
    let support = support.map(|(column, value)| (column.index as u32, *value)).collect();
    Solution { support, residual: rms(&residual), passes }
}

/// The indices of the `most` largest, largest first; of equal ones the lowest index.
fn largest(gains: impl Iterator<Item = (f32, usize)>, most: usize) -> Vec<usize> {
    let mut best: Vec<(f32, usize)> = Vec::with_capacity(most + 1);
    for (gain, index) in gains {
        if best.len() == most && best.last().is_some_and(|(least, _)| gain <= *least) {
            continue;
        }
        let at = best.partition_point(|(other, _)| *other >= gain);
        best.insert(at, (gain, index));
        best.truncate(most);
    }
    best.into_iter().map(|(_, index)| index).collect()
}

fn rms(values: &[f64]) -> f64 {
    (dot(values, values) / values.len().max(1) as f64).sqrt()
}

/// In eight lanes, so that it vectorises; always in the same order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}

#[derive(Clone)]
struct Column {
    index: usize,
    values: std::rc::Rc<Vec<f64>>,
    /// Products with the columns up to and with this one.
    products: Vec<f64>,
    /// Product with the target.
    aim: f64,
}

/// The columns that are in, their coefficients, and the triangle that solves for them.
struct Active<'a> {
    target: &'a [f64],
    columns: Vec<Column>,
    values: Vec<f64>,
    /// Rows of the Cholesky factor; those from some point on may be missing.
    factor: Vec<Vec<f64>>,
}

impl<'a> Active<'a> {
    fn new(target: &'a [f64]) -> Self {
        Self { target, columns: Vec::new(), values: Vec::new(), factor: Vec::new() }
    }

    /// A copy to come back to; its triangle is made again when it is needed.
    fn clone_light(&self) -> Self {
        let (columns, values) = (self.columns.clone(), self.values.clone());
        Self { target: self.target, columns, values, factor: Vec::new() }
    }

    fn holds(&self, index: usize) -> bool {
        self.columns.iter().any(|column| column.index == index)
    }

    fn add(&mut self, index: usize, values: Vec<f64>) {
        let mut products: Vec<f64> = self.columns.iter().map(|column| dot(&column.values, &values)).collect();
        products.push(dot(&values, &values));
        let aim = dot(&values, self.target);
        self.columns.push(Column { index, values: std::rc::Rc::new(values), products, aim });
        self.values.push(0.0);
    }

    fn remove(&mut self, at: usize) {
        self.columns.remove(at);
        self.values.remove(at);
        self.factor.truncate(at);
        for column in &mut self.columns[at..] {
            column.products.remove(at);
        }
    }

    /// Brings the coefficients to the least-squares solution of those columns that keep a positive one.
    fn settle(&mut self) {
        while !self.columns.is_empty() {
            self.extend_factor();
            if self.columns.is_empty() {
                return;
            }
            let wanted = self.solution();
            // how far towards `wanted` all stay non-negative, and who stops it
            let mut step = 1.0f64;
            for (value, wanted) in self.values.iter().zip(&wanted) {
                if *wanted <= 0.0 {
                    step = step.min(value / (value - wanted).max(f64::MIN_POSITIVE));
                }
            }
            let stopped: Vec<bool> = self
                .values
                .iter()
                .zip(&wanted)
                .map(|(value, wanted)| {
                    *wanted <= 0.0 && value / (value - wanted).max(f64::MIN_POSITIVE) <= step * (1.0 + 1e-12)
                })
                .collect();
            for (value, wanted) in self.values.iter_mut().zip(&wanted) {
                *value += step * (wanted - *value);
            }
            if !stopped.contains(&true) {
                return;
            }
            for at in (0..stopped.len()).rev().filter(|at| stopped[*at]) {
                self.remove(at);
            }
        }
    }

    /// Adds the missing rows of the triangle; columns that are combinations of those before are thrown out.
    fn extend_factor(&mut self) {
        while self.factor.len() < self.columns.len() {
            let at = self.factor.len();
            let products = &self.columns[at].products;
            let mut row: Vec<f64> = Vec::with_capacity(at + 1);
            for (before, factor) in self.factor.iter().enumerate() {
                let value = (products[before] - dot(&row, &factor[..before])) / factor[before];
                row.push(value);
            }
            let diagonal = products[at];
            let pivot = diagonal * (1.0 + RIDGE) - dot(&row, &row);
            if pivot > diagonal * LEAST_PIVOT && pivot.is_finite() {
                row.push(pivot.sqrt());
                self.factor.push(row);
            } else {
                self.remove(at);
            }
        }
    }

    /// Least squares by the triangle, forth and back.
    fn solution(&self) -> Vec<f64> {
        let mut forth: Vec<f64> = Vec::with_capacity(self.columns.len());
        for (at, (row, column)) in self.factor.iter().zip(&self.columns).enumerate() {
            let value = (column.aim - dot(&forth, &row[..at])) / row[at];
            forth.push(value);
        }
        for at in (0..forth.len()).rev() {
            let row = &self.factor[at];
            forth[at] /= row[at];
            let value = forth[at];
            for (earlier, factor) in forth[..at].iter_mut().zip(row) {
                *earlier -= factor * value;
            }
        }
        forth
    }

    fn residual(&self) -> Vec<f64> {
        let mut left = self.target.to_vec();
        for (column, value) in self.columns.iter().zip(&self.values) {
            for (left, entry) in left.iter_mut().zip(column.values.iter()) {
                *left -= value * entry;
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Dense(Vec<Vec<f64>>);

    impl Columns for Dense {
        fn count(&self) -> usize {
            self.0.len()
        }
        fn column(&self, index: usize) -> Vec<f64> {
            self.0[index].clone()
        }
        fn correlate(&self, residual: &[f64]) -> Vec<f32> {
            self.0.iter().map(|column| dot(column, residual) as f32).collect()
        }
        fn lengths(&self) -> Vec<f32> {
            self.0.iter().map(|column| dot(column, column).sqrt() as f32).collect()
        }
    }

    const EXACT: Bounds = Bounds { support: usize::MAX, passes: 10_000, residual: 0.0 };

    fn noise(seed: u64) -> impl FnMut() -> f64 {
        let mut generator = fedprune_model::calibration::SplitMix64::new(seed);
        move || generator.next_u64() as f64 / u64::MAX as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Karush, Kuhn, Tucker: no column is left out that would help, none is in with a coefficient that could be better.
        #[test]
        fn what_comes_out_is_optimal(rows in 3usize..14, count in 1usize..40, seed in any::<u64>()) {
            let mut next = noise(seed);
            let columns = Dense((0..count).map(|_| (0..rows).map(|_| next()).collect()).collect());
            let target: Vec<f64> = (0..rows).map(|_| next() * 2.0 - 0.5).collect();
            let solution = solve(&columns, &target, EXACT, &mut |_| {});
            let mut left = target.clone();
            for (index, value) in &solution.support {
                prop_assert!(*value > 0.0);
                left.iter_mut().zip(&columns.0[*index as usize]).for_each(|(left, entry)| *left -= value * entry);
            }
            prop_assert!((rms(&left) - solution.residual).abs() < 1e-9);
            for (index, column) in columns.0.iter().enumerate() {
                let gain = dot(column, &left) / dot(column, column).sqrt();
                let inside = solution.support.iter().any(|(known, _)| *known as usize == index);
                prop_assert!(gain < 1e-4, "column {} would gain {}", index, gain);
                prop_assert!(!inside || gain > -1e-4, "column {} should be less by {}", index, gain);
            }
        }
    }

    #[test]
    fn few_columns_among_many_are_found_and_nothing_depends_on_the_run() {
        let mut next = noise(5);
        let columns = Dense((0..400).map(|_| (0..60).map(|_| next().powi(4)).collect()).collect());
        let mut target = vec![0.0; 60];
        for (index, value) in [(7, 3.0), (150, 1.0), (399, 0.25)] {
            target.iter_mut().zip(&columns.0[index]).for_each(|(sum, entry)| *sum += value * entry);
        }
        let bounds = Bounds { residual: 1e-6, ..EXACT };
        let solution = solve(&columns, &target, bounds, &mut |_| {});
        let mut found = solution.support.clone();
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        for ((index, value), expected) in found.iter().zip([(7u32, 3.0), (150, 1.0), (399, 0.25)]) {
            assert_eq!(*index, expected.0);
            assert!((value - expected.1).abs() < 1e-3, "{value}");
        }
        assert_eq!(solve(&columns, &target, bounds, &mut |_| {}).support, solution.support);
    }

    #[test]
    fn bounds_bound_and_columns_that_repeat_or_are_zero_do_no_harm() {
        let same = vec![1.0, 2.0, 3.0];
        let columns = Dense(vec![vec![0.0; 3], same.clone(), same.clone(), vec![0.0, 1.0, 0.0], same.clone()]);
        let solution = solve(&columns, &[2.0, 5.0, 6.0], EXACT, &mut |_| {});
        let total: f64 = solution.support.iter().filter(|(index, _)| *index != 3).map(|(_, value)| value).sum();
        assert!((total - 2.0).abs() < 1e-6 && solution.residual < 1e-6, "{solution:?}");
        let few = solve(&columns, &[2.0, 5.0, 6.0], Bounds { support: 1, ..EXACT }, &mut |_| {});
        assert_eq!(few.support.len(), 1);
        let mut passes = 0;
        let short = solve(&columns, &[2.0, 5.0, 6.0], Bounds { passes: 1, ..EXACT }, &mut |done| passes = done);
        assert!(passes == 1 && short.passes == 1);
        assert!(solve(&columns, &[-1.0, -1.0, -1.0], EXACT, &mut |_| {}).support.is_empty());
        assert!(solve(&Dense(Vec::new()), &[1.0], EXACT, &mut |_| {}).support.is_empty());
    }
}
