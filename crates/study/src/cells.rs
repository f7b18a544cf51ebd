//! Records grouped by everything but their seed: what one cell of a table, or one point of a figure, shows.

use crate::results::{Method, ModelResults, Record, Silos, Together};

/// What a cell is of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CellKey {
    pub method: Method,
    pub from: Option<Silos>,
    pub together: Option<Together>,
}

/// Mean and spread over the seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub mean: f64,
    /// Sample standard deviation (n − 1); 0 of a single value.
    pub deviation: f64,
    pub count: usize,
}

impl Spread {
    /// Of values that are numbers; none without any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = if count > 1 { (squares / (count - 1) as f64).sqrt() } else { 0.0 };
        Some(Self { mean, deviation, count })
    }

    /// Standard error of the mean.
    pub fn error(self) -> f64 {
        self.deviation / (self.count as f64).sqrt()
    }
}

/// One cell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cell {
    pub key: CellKey,
    pub perplexity: Spread,
    /// Least and largest over silos and seeds; of silos alone only.
    pub range: Option<(f64, f64)>,
    /// Bytes of one silo's ballots.
    pub ballot_bytes: Option<f64>,
}

/// The cells of a model, in the order of their first records.
pub(crate) fn cells(results: &ModelResults) -> Vec<Cell> {
    let mut groups: Vec<(CellKey, Vec<&Record>)> = Vec::new();
    for record in &results.records {
        let key = CellKey { method: record.method, from: record.from, together: record.together };
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, records)) => records.push(record),
            None => groups.push((key, vec![record])),
        }
    }
    let cell = |(key, records): (CellKey, Vec<&Record>)| {
        let perplexity = Spread::of(records.iter().map(|record| record.perplexity))?;
        let ranges = records.iter().filter_map(|record| record.perplexity_range);
        let range = ranges.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
        let bytes = Spread::of(records.iter().filter_map(|record| record.ballot_bytes));
        Some(Cell { key, perplexity, range, ballot_bytes: bytes.map(|bytes| bytes.mean) })
    };
    groups.into_iter().filter_map(cell).collect()
}

/// Who has how much of which text, in most of the records: the others are points of curves.
pub(crate) fn main_silos(results: &ModelResults) -> Option<Silos> {
    let mut counts: Vec<(Silos, usize)> = Vec::new();
    for from in results.records.iter().filter_map(|record| record.from) {
        match counts.iter_mut().find(|(known, _)| same_text(known, &from)) {
            Some((_, count)) => *count += 1,
            None => counts.push((from, 1)),
        }
    }
    // the first of those that are most
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(from, _)| from)
}

/// Whether two records have the same silos with the same windows.
pub(crate) fn same_text(one: &Silos, other: &Silos) -> bool {
    (one.silos, one.split, one.samples) == (other.silos, other.split, other.samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_those_by_hand() {
        let spread = Spread::of([2.0, 4.0, 9.0, f64::NAN]).unwrap();
        assert_eq!((spread.mean, spread.count), (5.0, 3));
        assert!((spread.deviation - 13f64.sqrt()).abs() < 1e-12);
        assert!((spread.error() - (13.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Spread::of([7.0]), Some(Spread { mean: 7.0, deviation: 0.0, count: 1 }));
        assert_eq!(Spread::of([f64::INFINITY]), None);
    }
}
