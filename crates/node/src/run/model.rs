//! What a node does with the base model: validate ballots, count them, and put the global mask together.
//!
//! All of it runs on threads where waiting is allowed, one matrix at a time.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedprune_checkpoint::Checkpoint;
use fedprune_federation::ballot::{InvalidBallot, check_body, validate};
use fedprune_federation::round::Strategy;
use fedprune_federation::{BallotHeader, Height, MemberIndex, Ratified, Round, SignatureChecked, Validated};
use fedprune_mask::ballot::{EncodeError, MaskHeader, encode_mask};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::agreement::{Agreement, share};
use fedprune_mask::tally::{Tally, TallyError, Voter, encode_tally};
use fedprune_mask::weights::{MatricesFrom, MatrixSource};
use fedprune_mask::{Ballot, Digest, Layout, Matrix, WeightsView};

use super::config::{Gate, OwnBallot};
use super::error::NodeError;
use crate::storage::blobs::{BlobError, BlobStore, Mapped};
use crate::storage::fs::{self, FileError};

/// The base model in one round.
pub struct RoundModel {
    pub(super) checkpoint: Checkpoint,
    pub(super) round: Round,
    pub(super) consortium: Ratified,
    /// Layout of each height, and the index of its first matrix in the model's.
    heights: Vec<(Layout, usize)>,
    /// Where masks of single heights are kept, for an iterative round.
    masks: PathBuf,
}

/// The ballots that count at one height.
pub struct BallotSet {
    /// The height.
    pub height: Height,
    /// What they are named by.
    pub digest: Digest,
    /// Whose they are, and the digests of their bodies.
    pub ballots: Vec<(MemberIndex, Digest)>,
}

/// Why ballots and model do not come to a mask.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The model is not the round's.
    #[error(transparent)]
    Layout(#[from] fedprune_federation::round::LayoutMismatch),
    /// A body is not here.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Ballots that cannot be counted.
    #[error(transparent)]
    Tally(#[from] TallyError),
    /// A mask cannot be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A mask cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A mask cannot be put together.
    #[error("the global mask cannot be put together")]
    Mask(#[from] fedprune_mask::ballot::BallotError),
    /// A member that the consortium does not have.
    #[error("member {0} is not in the consortium")]
    NoMember(MemberIndex),
    /// A height that the round does not have.
    #[error("height {0} is not in the round")]
    NoHeight(Height),
}

/// The agreed masks, as a file for `fedprune apply`.
pub struct GlobalMask {
    pub(super) path: PathBuf,
    pub(super) root: Digest,
    /// How far votes agree, where the mask has none in it.
    pub(super) agreement: Option<PathBuf>,
}

/// Weights of one height and the ballots read beside them: what is done with is given back to the system, so that
/// bitmaps of hundreds of megabytes pass through memory one matrix at a time.
struct Releasing<'a> {
    weights: MatricesFrom<'a>,
    bodies: &'a [Mapped],
}

impl MatrixSource for Releasing<'_> {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        self.weights.matrix(index)
    }

    fn done_with(&self, index: usize) {
        self.weights.done_with(index);
        self.bodies.iter().for_each(Mapped::release);
    }
}

impl RoundModel {
    pub(super) fn new(
        checkpoint: Checkpoint,
        round: Round,
        consortium: Ratified,
        masks: PathBuf,
    ) -> Result<Arc<Self>, ModelError> {
        let layout = checkpoint.layout();
        let one_shot = round.terms().strategy == Strategy::OneShot;
        let heights = (0..round.heights(layout)?).map(|height| {
            let first = if one_shot { 0 } else { layout.block(height as usize).start };
            Ok((round.layout_at(layout, Height(height))?, first))
        });
        let heights = heights.collect::<Result<Vec<_>, ModelError>>()?;
        Ok(Arc::new(Self { checkpoint, round, consortium, heights, masks }))
    }

    fn at(&self, height: Height) -> Result<(&Layout, MatricesFrom<'_>), ModelError> {
        let found = usize::try_from(height.0).ok().and_then(|height| self.heights.get(height));
        let (layout, first) = found.ok_or(ModelError::NoHeight(height))?;
        Ok((layout, MatricesFrom { source: &self.checkpoint, first: *first }))
    }

    /// Checks a ballot whose body is stored.
    pub(super) fn validate(
        &self,
        blobs: &BlobStore,
        header: SignatureChecked<BallotHeader>,
    ) -> Result<Result<Validated, String>, ModelError> {
        let (layout, weights) = self.at(header.height())?;
        let body = blobs.open_mapped(&header.content().body)?;
        let digest = body.digest();
        let ballot = match Ballot::parse_hashed(&body, layout, digest) {
            Ok(ballot) => ballot,
            Err(error) => return Ok(Err(chain(&error))),
        };
        let weights = Releasing { weights, bodies: std::slice::from_ref(&body) };
        let validated = validate(header, &ballot, &self.round, self.checkpoint.layout(), &weights);
        Ok(validated.map_err(|error: InvalidBallot| chain(&error)))
    }

    /// Asks whether a ballot of our own may be signed.
    pub(super) fn ask(
        &self,
        gate: Option<&Gate>,
        blobs: &BlobStore,
        height: Height,
        (digest, calibration): (Digest, Option<Digest>),
    ) -> Result<(), NodeError> {
        let (layout, weights) = self.at(height)?;
        let body = blobs.open_mapped(&digest)?;
        // others would refuse it, and by then they would have it
        let foreign = |why| NodeError::OwnBallot { height, why };
        let ballot = Ballot::parse_hashed(&body, layout, body.digest()).map_err(|error| foreign(chain(&error)))?;
        let weights = Releasing { weights, bodies: std::slice::from_ref(&body) };
        check_body(&ballot, self.round.terms(), &weights).map_err(|error| foreign(chain(&error)))?;
        let Some(gate) = gate else { return Ok(()) };
        (gate.0)(&OwnBallot { height, digest, calibration, bytes: &body, layout }).map_err(NodeError::Refused)
    }

    /// Counts ballots that were found valid. Of an iterative round the mask is kept, for the next height.
    pub(super) fn tally(
        &self,
        blobs: &BlobStore,
        height: Height,
        set: Digest,
        ballots: &[(MemberIndex, Digest)],
    ) -> Result<Digest, ModelError> {
        self.with_tally(blobs, height, ballots, |tally, layout, weights| {
            let iterative = self.round.terms().strategy == Strategy::Iterative;
            let mut digests = Vec::with_capacity(layout.matrices().len());
            let mut derive = |index: usize| {
                let mask = tally.mask(index, weights.matrix(index))?;
                weights.done_with(index);
                digests.push(mask.digest());
                Ok::<_, TallyError>(mask)
            };
            if iterative {
                fs::create_folder(&self.masks)?;
                let path = self.mask_of(set);
                let header = self.mask_header(layout, tally);
                write_new(&path, |writer| encode(&header, layout, &mut derive, writer))?;
            } else {
                for index in 0..layout.matrices().len() {
                    derive(index)?;
                }
            }
            Ok(mask_root(layout.digest(), digests))
        })
    }

    /// How far ballots agree, by decoder block: the share of (weight, pair of ballots) with the same bit.
    pub(super) fn agreement(
        &self,
        blobs: &BlobStore,
        height: Height,
        ballots: &[(MemberIndex, Digest)],
    ) -> Result<Vec<(u32, f64)>, ModelError> {
        let mut of_blocks = BTreeMap::<u32, (u128, u32, u64)>::new();
        for (block, of) in self.agreements(blobs, height, ballots)? {
            let (differing, votes, all) = of_blocks.entry(block).or_default();
            *differing = differing.saturating_add(of.differing);
            *all = all.saturating_add(of.weights);
            *votes = of.votes;
        }
        let share = |(differing, votes, all): (u128, u32, u64)| share(differing, votes, u128::from(all));
        Ok(of_blocks.into_iter().map(|(block, sums)| (block, share(sums))).collect())
    }

    /// The same of each matrix of a height, with its block.
    fn agreements(
        &self,
        blobs: &BlobStore,
        height: Height,
        ballots: &[(MemberIndex, Digest)],
    ) -> Result<Vec<(u32, Agreement)>, ModelError> {
        self.with_tally(blobs, height, ballots, |tally, layout, weights| {
            let matrices = layout.matrices().iter().enumerate();
            let of = |(index, matrix): (usize, &Matrix)| -> Result<(u32, Agreement), ModelError> {
                let agreement = tally.agreement(index, weights.matrix(index))?;
                weights.done_with(index);
                Ok((matrix.block, agreement))
            };
            matrices.map(of).collect()
        })
    }

    /// Writes how far the ballots of all heights of an iterative round agree: its mask has no votes in it any more.
    fn write_agreement(&self, blobs: &BlobStore, sets: &[BallotSet], path: &Path) -> Result<(), ModelError> {
        let mut shares = Vec::with_capacity(self.checkpoint.layout().matrices().len());
        for BallotSet { height, ballots, .. } in sets {
            shares.extend(self.agreements(blobs, *height, ballots)?.iter().map(|(_, of)| of.share()));
        }
        let document = serde_json::json!({ "layout": self.checkpoint.layout().digest(), "agreement": shares });
        write_new(path, |writer| writer.write_all(document.to_string().as_bytes()).map_err(Written::Io))
    }

    /// The agreed mask of one height of an iterative round, for `mask contribute`.
    pub(super) fn mask_of(&self, set: Digest) -> PathBuf {
        self.masks.join(format!("{set}.mask"))
    }

    fn mask_header(&self, layout: &Layout, tally: &Tally<'_>) -> MaskHeader {
        MaskHeader {
            model: self.round.terms().base_model,
            layout: layout.digest(),
            group: tally.group(),
            sparsity: tally.sparsity(),
            votes: u32::try_from(tally.voters().len()).unwrap_or(u32::MAX),
        }
    }

    fn with_tally<T>(
        &self,
        blobs: &BlobStore,
        height: Height,
        ballots: &[(MemberIndex, Digest)],
        then: impl FnOnce(&Tally<'_>, &Layout, &Releasing<'_>) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let (layout, weights) = self.at(height)?;
        let bodies = ballots.iter().map(|(_, body)| blobs.open_mapped(body)).collect::<Result<Vec<_>, _>>()?;
        let mut voters = Vec::with_capacity(ballots.len());
        for ((member, _), body) in ballots.iter().zip(&bodies) {
            let known = self.consortium.member(*member).ok_or(ModelError::NoMember(*member))?;
            let weight = self.round.terms().tally_weights.get(member.as_usize()).copied().unwrap_or(1);
            voters.push(Voter { name: known.name.clone(), weight, ballot: Ballot::parse(body, layout)? });
        }
        let tally = Tally::new(layout, self.round.terms().global_group, voters)?;
        then(&tally, layout, &Releasing { weights, bodies: &bodies })
    }

    /// Puts the agreed masks together: `sets` has the ballots of every height, `agreed` the root of the only height of
    /// a one-shot round.
    pub(super) fn global_mask(
        &self,
        blobs: &BlobStore,
        sets: &[BallotSet],
        agreed: Option<Digest>,
        folder: &Path,
    ) -> Result<GlobalMask, ModelError> {
        let layout = self.checkpoint.layout();
        if self.round.terms().strategy == Strategy::OneShot {
            let Some(BallotSet { height, digest, ballots }) = sets.first() else {
                return Err(ModelError::NoHeight(Height(0)));
            };
            let root = match agreed {
                Some(root) => root,
                None => self.tally(blobs, *height, *digest, ballots)?,
            };
            let path = folder.join("global.tally");
            self.with_tally(blobs, *height, ballots, |tally, _, _| {
                write_new(&path, |writer| {
                    encode_tally(tally, root, &mut |bytes| writer.write_all(bytes)).map(|_| ()).map_err(Written::Io)
                })
            })?;
            return Ok(GlobalMask { path, root, agreement: None });
        }
        let mut masks = Vec::with_capacity(sets.len());
        let mut header = None;
        for BallotSet { height, digest, ballots } in sets {
            let path = self.mask_of(*digest);
            if std::fs::symlink_metadata(&path).is_err() {
                self.tally(blobs, *height, *digest, ballots)?;
            }
            masks.push(map(&path)?);
            let votes = u32::try_from(ballots.len()).unwrap_or(u32::MAX);
            header.get_or_insert(votes);
        }
        let mut parsed = Vec::with_capacity(masks.len());
        let mut places: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        for (position, bytes) in masks.iter().enumerate() {
            let Some((block_layout, first)) = self.heights.get(position) else { continue };
            parsed.push(Ballot::parse(bytes, block_layout)?);
            for index in 0..block_layout.matrices().len() {
                places.insert(first + index, (position, index));
            }
        }
        let Some(first) = parsed.first() else { return Err(ModelError::NoHeight(Height(0))) };
        let header = MaskHeader {
            model: self.round.terms().base_model,
            layout: layout.digest(),
            group: first.group(),
            sparsity: first.sparsity(),
            votes: header.unwrap_or(1),
        };
        let mut digests = Vec::with_capacity(layout.matrices().len());
        let path = folder.join("global.mask");
        let mut derive = |index: usize| {
            let (position, within) = places.get(&index).copied().unwrap_or_default();
            let mask = match parsed.get(position) {
                Some(block) => block.mask(within, self.checkpoint.matrix(index))?,
                None => return Err(TallyError::Empty),
            };
            digests.push(mask.digest());
            Ok(mask)
        };
        write_new(&path, |writer| encode(&header, layout, &mut derive, writer))?;
        // for a picture: a round with a mask does not fail for want of it
        let agreement = folder.join("agreement.json");
        let measured = std::fs::symlink_metadata(&agreement).is_ok()
            || match self.write_agreement(blobs, sets, &agreement) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(%error, "how far the ballots agree is left out of the pruned folder");
                    false
                }
            };
        let agreement = measured.then_some(agreement);
        Ok(GlobalMask { path, root: mask_root(layout.digest(), digests), agreement })
    }
}

/// What went wrong while a file was written.
enum Written {
    Io(std::io::Error),
    Model(ModelError),
}

fn encode(
    header: &MaskHeader,
    layout: &Layout,
    derive: &mut dyn FnMut(usize) -> Result<fedprune_mask::MatrixMask, TallyError>,
    writer: &mut dyn Write,
) -> Result<(), Written> {
    /// Both kinds of error of the two closures, told apart again afterwards.
    enum Either {
        Tally(TallyError),
        Io(std::io::Error),
    }
    let mut derive = |index: usize| derive(index).map_err(Either::Tally);
    let mut sink = |bytes: &[u8]| writer.write_all(bytes).map_err(Either::Io);
    match encode_mask(header, layout, &mut derive, &mut sink) {
        Ok(_) => Ok(()),
        Err(EncodeError::Ballot(error)) => Err(Written::Model(error.into())),
        Err(EncodeError::Caller(Either::Tally(error))) => Err(Written::Model(error.into())),
        Err(EncodeError::Caller(Either::Io(error))) => Err(Written::Io(error)),
    }
}

/// Writes a file whole or not at all, in place of an older one.
fn write_new(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), Written>) -> Result<(), ModelError> {
    let failed = |source| ModelError::Write { path: path.to_owned(), source };
    let folder = fs::folder_of(path);
    let file = tempfile::Builder::new().prefix(".fedprune-").tempfile_in(folder).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    match write(&mut writer) {
        Ok(()) => {}
        Err(Written::Io(source)) => return Err(failed(source)),
        Err(Written::Model(error)) => return Err(error),
    }
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(fs::sync_folder(folder)?)
}

fn map(path: &Path) -> Result<memmap2::Mmap, ModelError> {
    let file = fs::open(path)?;
    // SAFETY: the map is read-only; the file was written whole and renamed by this process or an earlier one of
    // the same home, whose lock keeps others away, and is never written again.
    unsafe { memmap2::Mmap::map(&file) }.map_err(|source| ModelError::Write { path: path.to_owned(), source })
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
