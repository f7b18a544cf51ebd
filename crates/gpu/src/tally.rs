//! Ballots to the global mask, a matrix at a time: the bits of [`Tally::mask`].
//!
//! Weights go to the device once. Each ballot of norms is expanded there and its votes added to planes of counts; one that
//! carries bits or thresholds is expanded and checked on the processor, as everywhere, and its bits go to the device. The
//! global mask is selected by votes descending, |W| ascending, index ascending. What is in device memory at a time is what
//! [`bytes::tally_bytes`] says, of one matrix, whatever the number of ballots.

use fedprune_mask::ballot::{BallotHeader, Encoding};
use fedprune_mask::tally::{TallyError, Voter};
use fedprune_mask::{Digest, MatrixMask, Pruner, Tally, WeightsView};

use crate::bytes;
use crate::device::Device;
use crate::engine::{Engine, Mask, SharesOf, Weights};
use crate::error::GpuError;

/// An agreed set of ballots that is tallied on a device.
pub struct DeviceTally<'t, 'a> {
    tally: &'t Tally<'a>,
    /// Equal ballots once: their weight together, and their places among the voters.
    distinct: Vec<(u32, Vec<usize>)>,
}

/// What is told of each ballot: its place among [`Tally::voters`], its own mask of the matrix, and the global one.
pub type Each<'e> = dyn FnMut(usize, &MatrixMask, &MatrixMask) + 'e;

impl<'t, 'a> DeviceTally<'t, 'a> {
    /// Of this set.
    pub fn new(tally: &'t Tally<'a>) -> Self {
        let mut digests: Vec<(Digest, usize)> =
            tally.voters().iter().enumerate().map(|(place, voter)| (voter.ballot.digest(), place)).collect();
        digests.sort();
        let same = digests.chunk_by(|a, b| a.0 == b.0);
        let distinct = same.map(|same| {
            let places: Vec<usize> = same.iter().map(|(_, place)| *place).collect();
            // no overflow: the sum over all voters was checked when the tally was made
            (places.iter().map(|place| tally.voters()[*place].weight).sum(), places)
        });
        Self { tally, distinct: distinct.collect() }
    }

    /// The global mask of one matrix. `each`, if it is given, is told the mask of every ballot beside it, which takes deriving
    /// all of them once more, and copying them from the device.
    ///
    /// # Errors
    /// [`GpuError::Tally`] naming the ballot whose mask cannot be used, [`GpuError::Memory`] with what the matrix takes,
    /// and those of [`Engine::derive_mask`].
    ///
    /// # Panics
    /// When the layout has no matrix `index`.
    pub fn mask<D: Device>(
        &self,
        engine: &mut Engine<D>,
        index: usize,
        weights: WeightsView<'_>,
        each: Option<&mut Each<'_>>,
    ) -> Result<MatrixMask, GpuError> {
        let (rows, columns) = (weights.rows(), weights.columns());
        let matrix = &self.tally.layout().matrices()[index];
        let expected = (matrix.rows as usize, matrix.columns as usize);
        if (rows, columns) != expected {
            let (found, (rows, columns)) = (rows * columns, expected);
            return Err(GpuError::Shape { what: "weights", found, rows, columns, expected: rows * columns });
        }
        let total = self.tally.total_weight();
        // what selections share may be there already, and then this asks for a little more than it takes
        let needed = bytes::tally_bytes(weights.dtype(), rows, columns, total);
        let free = engine.device().free_bytes()?;
        if needed > free.saturating_add(engine.scratch_bytes()) {
            return Err(GpuError::Memory { doing: "the tally of one matrix", needed, free });
        }
        let owned = engine.upload_weights(weights)?;
        let on_device = engine.lend(&owned)?;
        let mut counts = engine.counts(rows, columns, total)?;
        let mut shares = None;
        for (weight, places) in &self.distinct {
            let voter = &self.tally.voters()[places[0]];
            let mask = self.mask_of(engine, voter, index, weights, &on_device, &mut shares)?;
            engine.add_vote(&mut counts, *weight, &mask)?;
        }
        let global = engine.global_mask(self.tally.group(), self.tally.sparsity(), &on_device, &counts)?;
        let global = engine.download_mask(&global)?;
        if let Some(each) = each {
            drop(counts);
            for (_, places) in &self.distinct {
                let voter = &self.tally.voters()[places[0]];
                let mask = self.mask_of(engine, voter, index, weights, &on_device, &mut shares)?;
                let mask = engine.download_mask(&mask)?;
                places.iter().for_each(|place| each(*place, &mask, &global));
            }
        }
        Ok(global)
    }

    /// The mask of one ballot, on the device.
    fn mask_of<D: Device>(
        &self,
        engine: &mut Engine<D>,
        voter: &Voter<'a>,
        index: usize,
        weights: WeightsView<'_>,
        on_device: &Weights<'_, D>,
        shares: &mut Option<SharesOf<D>>,
    ) -> Result<Mask<D>, GpuError> {
        let tap = self.tally.layout().taps().partition_point(|range| range.end <= index);
        if let BallotHeader::Vote(vote) = voter.ballot.header()
            && voter.ballot.encoding(tap) == Encoding::Norms
        {
            let norms = voter.ballot.norms(tap).cloned().unwrap_or_default();
            let norms = engine.upload_norms(vote.pruner, &norms)?;
            if vote.pruner == Pruner::RIA && shares.is_none() {
                *shares = Some(engine.shares(on_device)?);
            }
            let selection =
                engine.start_sharing(vote.group, vote.sparsity, on_device, &norms, shares.as_ref().cloned())?;
            return engine.finish_mask(selection);
        }
        let mask = voter.ballot.mask(index, weights);
        let mask = mask.map_err(|source| TallyError::Ballot { member: voter.name.clone(), source })?;
        engine.upload_mask(&mask)
    }
}
