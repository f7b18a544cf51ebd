//! One matrix's packed bits as bytes: the fallback that can say any mask.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | method: 0 as they are, 1 zstd |
//! | 8 | length, little-endian |
//! | … | the packed bits (row-major, least significant first), or their zstd frame, which is shorter |

use super::compress::{self, Squeezer};
use super::container::Reader;
use super::error::BallotError;
use crate::{Matrix, MatrixMask};

const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// Method and length.
pub(super) const PREFIX_BYTES: usize = 9;

/// A section, checked for its length only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    method: u8,
    bytes: &'a [u8],
}

/// The section of one mask.
pub(super) fn encode(mask: &MatrixMask, squeezer: &mut Squeezer) -> Vec<u8> {
    let packed = mask.to_bytes();
    let (method, body) = squeezer.squeeze_bits(&packed).map_or((RAW, packed), |frame| (ZSTD, frame));
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len());
    bytes.push(method);
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    bytes
}

impl<'a> Section<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, matrix: &Matrix) -> Result<Self, BallotError> {
        let damaged = |problem| BallotError::Bitmap { matrix: matrix.name.clone(), problem };
        let [method] = reader.array("the method of a bitmap")?;
        let length = u64::from_le_bytes(reader.array("the length of a bitmap")?);
        match method {
            RAW if length == matrix.packed_bytes() => {}
            RAW => return Err(damaged("it does not have one bit a weight")),
            ZSTD if length < matrix.packed_bytes() => {}
            ZSTD => return Err(damaged("compression made it longer")),
            _ => return Err(damaged("it is compressed by an unknown method")),
        }
        Ok(Self { method, bytes: reader.take_claimed(length, "a bitmap")? })
    }

    /// Bytes on the wire, prefix included.
    pub(super) fn encoded_bytes(&self) -> u64 {
        (PREFIX_BYTES + self.bytes.len()) as u64
    }

    pub(super) fn mask(&self, matrix: &Matrix) -> Result<MatrixMask, BallotError> {
        let (rows, columns) = (matrix.rows as usize, matrix.columns as usize);
        let expanded;
        let packed = if self.method == RAW {
            self.bytes
        } else {
            expanded = compress::expand(self.bytes, matrix.packed_bytes() as usize)
                .map_err(|problem| BallotError::Bitmap { matrix: matrix.name.clone(), problem })?;
            &expanded
        };
        MatrixMask::from_bytes(rows, columns, packed)
            .map_err(|source| BallotError::Packed { matrix: matrix.name.clone(), source })
    }
}
