//! zstd under the rules of a file that strangers send: exact sizes, one frame, no options.
//!
//! A decoder knows from the layout how many bytes must come out, so it allocates that and no more; a
//! frame that claims or yields anything else is refused. Skippable frames, frames after the first,
//! checksums and dictionaries would be room for bytes that change nothing, and are refused as well.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{self, CParameter, DParameter};

/// Compression level of small bitmaps.
const LEVEL: i32 = 19;
/// Compression level of large bitmaps.
const QUICK_LEVEL: i32 = 1;
/// Bitmaps up to this size are compressed at both levels.
const MAX_TRY_BOTH_BYTES: usize = 32 << 10;
/// A window larger than the largest that level 19 uses buys nothing.
const MAX_WINDOW_LOG: u32 = 27;
/// Frames start with this, little-endian.
const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The descriptor of a frame without content size, checksum and dictionary.
const PLAIN_DESCRIPTOR: u8 = 0;

/// Reusable compressors; a context is about as large as the window.
pub(super) struct Squeezer {
    best: Compressor<'static>,
    quick: Compressor<'static>,
}

impl Squeezer {
    pub(super) fn new() -> Self {
        Self { best: compressor(LEVEL), quick: compressor(QUICK_LEVEL) }
    }

    /// A frame smaller than `bytes`, or `None` when zstd does not gain anything.
    pub(super) fn squeeze(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.best.compress(bytes).ok().filter(|frame| frame.len() < bytes.len())
    }

    /// [`Squeezer::squeeze`] for the bits of a mask. What shrinks there is the frequency of bytes, which every
    /// level codes alike: on 2 MB of 2:4 bits level 1 came to 1,368,283 bytes in 0.01 s and level 19 to
    /// 1,369,247 in 1.5 s. Only small bitmaps are worth both.
    pub(super) fn squeeze_bits(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let quick = self.quick.compress(bytes).ok().filter(|frame| frame.len() < bytes.len());
        let best = if bytes.len() <= MAX_TRY_BOTH_BYTES { self.squeeze(bytes) } else { None };
        [quick, best].into_iter().flatten().min_by_key(Vec::len)
    }
}

fn compressor(level: i32) -> Compressor<'static> {
    let mut compressor = Compressor::new(level).expect("memory for a compression context");
    for flag in [CParameter::ContentSizeFlag(false), CParameter::ChecksumFlag(false), CParameter::DictIdFlag(false)] {
        compressor.set_parameter(flag).expect("zstd knows its own flags");
    }
    compressor
}

/// The `expected_bytes` that `frame` holds; what is wrong with it otherwise.
pub(super) fn expand(frame: &[u8], expected_bytes: usize) -> Result<Vec<u8>, &'static str> {
    if frame.first_chunk() != Some(&FRAME_MAGIC) || frame.get(4) != Some(&PLAIN_DESCRIPTOR) {
        return Err("its zstd frame is not a plain one");
    }
    if zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
        return Err("its zstd frame is incomplete, or followed by something");
    }
    let mut decompressor = Decompressor::new().map_err(|_| "zstd has no memory left")?;
    decompressor.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).map_err(|_| "zstd refuses its settings")?;
    let mut bytes = Vec::with_capacity(expected_bytes);
    let written = decompressor
        .decompress_to_buffer(frame, &mut bytes)
        .map_err(|_| "its zstd frame is damaged, or holds more than it should")?;
    if written != expected_bytes {
        return Err("its zstd frame holds less than it should");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "zstd is C")]
    fn round_trip_with_exact_size_only() {
        let bytes: Vec<u8> = (0..10_000u32).map(|index| (index % 7) as u8).collect();
        let frame = Squeezer::new().squeeze(&bytes).unwrap();
        assert_eq!(frame[4], PLAIN_DESCRIPTOR);
        assert_eq!(expand(&frame, bytes.len()).unwrap(), bytes);
        assert!(expand(&frame, bytes.len() - 1).unwrap_err().contains("more"));
        assert!(expand(&frame, bytes.len() + 1).unwrap_err().contains("less"));
    }

    #[test]
    #[cfg_attr(miri, ignore = "zstd is C")]
    fn refuses_frames_with_room_for_something_else() {
        let bytes = vec![3u8; 5000];
        let frame = Squeezer::new().squeeze(&bytes).unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9], frame.as_slice()].concat();
        assert!(expand(&skippable, 5000).is_err());
        let followed = [frame.as_slice(), &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]].concat();
        assert!(expand(&followed, 5000).is_err());
        let sized = zstd::bulk::compress(&bytes, 19).unwrap();
        assert!(expand(&sized, 5000).unwrap_err().contains("plain"));
        for length in 0..frame.len() {
            assert!(expand(&frame[..length], 5000).is_err(), "{length}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "zstd is C")]
    fn gives_up_on_what_does_not_shrink() {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..1 << 16)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        assert_eq!(Squeezer::new().squeeze_bits(&noise), None);
        assert_eq!(Squeezer::new().squeeze(&noise), None);
        assert!(Squeezer::new().squeeze_bits(&vec![0; 1 << 16]).is_some());
    }
}
