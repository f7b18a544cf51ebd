//! A member's log on a disk that loses what was not flushed.
//!
//! Records are kept as the bytes that a node would write, so that every restart reads them again. As a node's log
//! does, it gives back all records of one height before those of the next.

use fedprune_federation::Height;
use fedprune_federation::machine::Record;
use fedprune_federation::wire::WireError;

use super::random::Random;

/// The log of one member.
#[derive(Debug, Default)]
pub struct Disk {
    records: Vec<(Height, Vec<u8>)>,
    durable: usize,
}

impl Disk {
    /// Writes a record, which a crash may take away until [`Disk::flush`].
    pub fn append(&mut self, height: Height, record: &Record) {
        self.records.push((height, record.encode()));
    }

    /// Makes everything durable.
    pub fn flush(&mut self) {
        self.durable = self.records.len();
    }

    /// What is left after a crash: all that was flushed, and any first part of the rest.
    pub fn crash(&mut self, random: &mut Random) {
        let kept = random.index(self.records.len() - self.durable + 1);
        self.records.truncate(self.durable + kept);
        self.durable = self.records.len();
    }

    /// What is durable, as it was written.
    pub fn durable(&self) -> &[(Height, Vec<u8>)] {
        &self.records[..self.durable]
    }

    /// Every record, to continue from.
    ///
    /// # Errors
    /// [`WireError`] if what was written cannot be read, which is a fault of the encoding.
    pub fn read(&self) -> Result<Vec<(Height, Record)>, WireError> {
        let mut records: Vec<&(Height, Vec<u8>)> = self.records.iter().collect();
        records.sort_by_key(|(height, _)| *height);
        records.into_iter().map(|(height, bytes)| Ok((*height, Record::decode(bytes)?))).collect()
    }
}
