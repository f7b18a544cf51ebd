//! What a member signs about its ballot.
//!
//! Content on the wire and under the signature: BLAKE3 of the body (32), its bytes (8), the time at which
//! the member says that it signed, in milliseconds since 1970 (8).

use fedprune_mask::ballot::HEADER_LIMIT;
use fedprune_mask::codec::bincode;
use fedprune_mask::{Digest, Layout};

use crate::signing::Kind;
use crate::statement::Statement;
use crate::wire::Content;

/// Most bytes of any body: four terabytes, beyond the packed mask of any model.
pub const MAX_BODY_BYTES: u64 = 1 << 42;

/// What a member signs about its ballot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct BallotHeader {
    /// BLAKE3 of the body, which is also the root of its tree of chunks.
    pub body: Digest,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// When the member says that it signed, in milliseconds since 1970; nothing depends on it.
    pub claimed_unix_ms: u64,
}

impl Statement for BallotHeader {
    const KIND: Kind = Kind::Ballot;
    const CONTENT: Content = Content::BallotHeader;

    fn fields(&self) -> Vec<u8> {
        let mut fields = self.body.0.to_vec();
        fields.extend_from_slice(&self.body_bytes.to_le_bytes());
        fields.extend_from_slice(&self.claimed_unix_ms.to_le_bytes());
        fields
    }

    fn check(&self, _members: usize) -> Result<(), &'static str> {
        match self.body_bytes {
            0 => Err("names an empty body"),
            1..=MAX_BODY_BYTES => Ok(()),
            _ => Err("names a body larger than any ballot"),
        }
    }
}

/// No ballot for this layout has more bytes: what is claimed beyond that need not be fetched.
pub fn largest_body_bytes(layout: &Layout) -> u64 {
    // prefix (15), header, one byte a tap; methods and lengths of the norms (5), two bytes a channel at most;
    // method and length of each bitmap (9) and its bits, which thresholds replace only where they are smaller, but for
    // their length (4)
    let taps = layout.taps().iter().filter_map(|range| layout.matrices().get(range.start));
    let norms = taps.fold(0u64, |bytes, matrix| bytes.saturating_add(u64::from(matrix.columns).saturating_mul(2)));
    let bitmaps = layout
        .matrices()
        .iter()
        .fold(0u64, |bytes, matrix| bytes.saturating_add(matrix.packed_bytes()).saturating_add(9));
    let fixed = (15u64 + 5 + 4).saturating_add(HEADER_LIMIT as u64).saturating_add(layout.taps().len() as u64);
    fixed.saturating_add(norms).saturating_add(bitmaps)
}
