//! The header of a safetensors file, bounded and checked before anything in it is believed.
//!
//! A file is the header's length (u64, little-endian), the header (JSON: name → dtype, shape, offsets
//! into the data), and the data. The strict pass here bounds counts, refuses duplicate names, and
//! names the tensor at fault; memory stays proportional to the header bytes that are really in the
//! file, whatever they claim. The `safetensors` crate then reads the same header, so that what is accepted here
//! is accepted by every other reader as well.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{BoxError, CheckpointError, shorten};

/// Longest header, in bytes; the bound of the `safetensors` crate.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most tensors in one file.
pub(crate) const MAX_TENSORS: usize = 1 << 16;
/// Longest tensor name, in bytes.
const MAX_NAME_BYTES: usize = 1024;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 16;
/// Most entries of `__metadata__`.
const MAX_METADATA_ENTRIES: usize = 1 << 16;
/// Bytes of the length field.
const LENGTH_BYTES: usize = 8;

const TRUNCATED: &str = "the file is truncated or damaged: download it again";
const DAMAGED: &str = "the header is damaged or forged: download the file again from a source you trust";

/// One tensor as its file stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// A checked header.
#[derive(Debug)]
pub(crate) struct Header {
    /// Where the data begin: the length of the length field and the header, in bytes.
    pub data_start: usize,
    /// In file order; their ranges cover the rest of the file without gap or overlap.
    pub tensors: Vec<Stored>,
}

/// What is wrong with a header, before the file's path is attached.
#[derive(Debug)]
struct Flaw {
    tensor: Option<String>,
    problem: String,
    remedy: &'static str,
    source: Option<BoxError>,
}

impl Flaw {
    fn of_file(problem: impl Into<String>, remedy: &'static str) -> Self {
        Self { tensor: None, problem: problem.into(), remedy, source: None }
    }

    fn of_tensor(tensor: &str, problem: impl Into<String>, remedy: &'static str) -> Self {
        Self { tensor: Some(tensor.to_owned()), problem: problem.into(), remedy, source: None }
    }
}

/// Reads and checks the header at the start of `file`, the whole file's bytes; the data are not touched.
pub(crate) fn parse(path: &Path, file: &[u8]) -> Result<Header, CheckpointError> {
    check(file).map_err(|flaw| CheckpointError::Header {
        path: path.to_owned(),
        tensor: flaw.tensor,
        problem: flaw.problem,
        remedy: flaw.remedy,
        source: flaw.source,
    })
}

fn check(file: &[u8]) -> Result<Header, Flaw> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(Flaw::of_file(
            format!("the file has {} bytes, too few for a safetensors header", file.len()),
            TRUNCATED,
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(Flaw::of_file(
            format!("the header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed"),
            "it is not a safetensors file, or a damaged one: download it again",
        ));
    }
    let Some((header, data)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) else {
        return Err(Flaw::of_file(
            format!("the header claims {length} bytes, but only {} follow in the file", rest.len()),
            TRUNCATED,
        ));
    };
    let mut tensors = entries(header)?;
    // Same order as in the `safetensors` crate; empty tensors come before what starts where they are.
    tensors.sort_by_key(|entry| (entry.start, entry.end));

    let data_start = file.len() - data.len();
    // Each by itself first, so that the message names the one that lies, not its neighbour.
    tensors.iter().try_for_each(|entry| entry.check_size(data.len()))?;
    let mut covered = 0;
    let mut stored = Vec::with_capacity(tensors.len());
    for entry in tensors {
        entry.check_start(covered)?;
        covered = entry.end;
        stored.push(Stored {
            range: data_start + entry.start..data_start + entry.end,
            name: entry.name,
            dtype: entry.dtype,
            shape: entry.shape,
        });
    }
    if covered != data.len() {
        let surplus = data.len() - covered;
        return Err(Flaw::of_file(
            format!("{surplus} of the file's {} data bytes belong to no tensor", data.len()),
            DAMAGED,
        ));
    }
    second_opinion(file, stored.len())?;
    Ok(Header { data_start, tensors: stored })
}

/// The header as the `safetensors` crate reads it; called last, when its size is known to be harmless.
fn second_opinion(file: &[u8], tensors: usize) -> Result<(), Flaw> {
    match SafeTensors::read_metadata(file) {
        Ok((_, metadata)) if metadata.offset_keys().len() == tensors => Ok(()),
        Ok(_) => Err(Flaw::of_file("the header can be read in more than one way", DAMAGED)),
        Err(error) => Err(Flaw { source: Some(error.into()), ..Flaw::of_file("the header is not valid", DAMAGED) }),
    }
}

/// One entry of the header; offsets are relative to the data.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl Entry {
    fn flaw(&self, problem: String, remedy: &'static str) -> Result<(), Flaw> {
        Err(Flaw::of_tensor(&self.name, problem, remedy))
    }

    /// Its data must lie in the file and be as many as dtype and shape need.
    fn check_size(&self, data_bytes: usize) -> Result<(), Flaw> {
        let Self { dtype, shape, start, end, .. } = self;
        let Some(bytes) = end.checked_sub(*start) else {
            return self.flaw(format!("its data begin at byte {start} and end before, at {end}"), DAMAGED);
        };
        if *end > data_bytes {
            return self.flaw(format!("its data end at byte {end}, but the file has only {data_bytes}"), TRUNCATED);
        }
        let bits = shape
            .iter()
            .try_fold(1usize, |product, &dimension| product.checked_mul(dimension))
            .and_then(|elements| elements.checked_mul(dtype.bitsize()));
        if bits != bytes.checked_mul(8) {
            let shape = crate::error::Shape(shape);
            return self.flaw(format!("{bytes} bytes are not what {dtype} of shape {shape} needs"), DAMAGED);
        }
        Ok(())
    }

    /// Its data must begin where those before it end, at `covered`.
    fn check_start(&self, covered: usize) -> Result<(), Flaw> {
        let start = self.start;
        match start.checked_sub(covered) {
            Some(0) => Ok(()),
            Some(gap) => self.flaw(format!("the {gap} bytes before its data belong to no tensor"), DAMAGED),
            None => {
                let problem = format!("its data begin at byte {start}, inside another tensor that ends at {covered}");
                self.flaw(problem, DAMAGED)
            }
        }
    }
}

/// All entries in header order, duplicates refused.
fn entries(header: &[u8]) -> Result<Vec<Entry>, Flaw> {
    let mut reading = Reading::default();
    let mut json = serde_json::Deserializer::from_slice(header);
    if let Err(error) = (&mut reading).deserialize(&mut json).and_then(|()| json.end()) {
        let problem = match &reading.current {
            Some(_) => "its entry in the header is not valid",
            None => "the header is not valid JSON of a safetensors file",
        };
        return Err(Flaw {
            tensor: reading.current,
            problem: problem.to_owned(),
            remedy: DAMAGED,
            source: Some(error.into()),
        });
    }
    let mut names: Vec<&str> = reading.entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Flaw::of_tensor(pair[0], "the header describes it twice", DAMAGED));
    }
    Ok(reading.entries)
}

/// A header being read, entry by entry.
#[derive(Default)]
struct Reading {
    entries: Vec<Entry>,
    /// The tensor whose entry is being read, for the message if it fails.
    current: Option<String>,
}

impl<'de> DeserializeSeed<'de> for &mut Reading {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Reading {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<Metadata>()?;
                continue;
            }
            if name.len() > MAX_NAME_BYTES {
                self.current = Some(shorten(&name));
                return Err(A::Error::custom(format_args!("a name of {} bytes", name.len())));
            }
            if self.entries.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            self.current = Some(name);
            let Info { dtype, shape: Dimensions(shape), data_offsets: (start, end) } = map.next_value()?;
            if let Some(name) = self.current.take() {
                self.entries.push(Entry { name, dtype, shape, start, end });
            }
        }
        Ok(())
    }
}

/// The value of one entry. Unknown fields are refused: no writer has any, and they could hide anything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: Dtype,
    shape: Dimensions,
    data_offsets: (usize, usize),
}

/// A shape of at most [`MAX_DIMENSIONS`].
struct Dimensions(Vec<usize>);

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;
        impl<'de> Visitor<'de> for Bounded {
            type Value = Dimensions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {MAX_DIMENSIONS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Dimensions, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = sequence.next_element()? {
                    if shape.len() == MAX_DIMENSIONS {
                        return Err(A::Error::invalid_length(MAX_DIMENSIONS + 1, &self));
                    }
                    shape.push(dimension);
                }
                Ok(Dimensions(shape))
            }
        }
        deserializer.deserialize_seq(Bounded)
    }
}

/// `__metadata__`, counted and dropped: it is copied with the header's bytes, never interpreted.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counted;
        impl<'de> Visitor<'de> for Counted {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_METADATA_ENTRIES} entries of metadata")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut entries = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    entries += 1;
                    if entries > MAX_METADATA_ENTRIES {
                        return Err(A::Error::invalid_length(entries, &self));
                    }
                }
                Ok(Metadata)
            }
        }
        deserializer.deserialize_map(Counted)
    }
}
