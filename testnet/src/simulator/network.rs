//! A network that delays, loses, reorders, duplicates and is cut, until its faults end.
//!
//! Links go one way each; delays are drawn for every packet, so packets overtake each other.

use std::collections::BTreeSet;

use super::random::Random;

/// What is wrong with the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Shortest delay of a packet, in milliseconds.
    pub least_delay_ms: u64,
    /// Longest.
    pub most_delay_ms: u64,
    /// Packets lost, of a thousand.
    pub loss_per_mille: u64,
    /// Packets that arrive twice, of a thousand.
    pub duplicates_per_mille: u64,
    /// Members that do not hear each other for a while.
    pub cuts: Vec<Cut>,
    /// From then on nothing is lost, duplicated or cut.
    pub end_ms: u64,
}

/// Some members cannot send to any others for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// From when.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// The members on one side.
    pub side: BTreeSet<usize>,
    /// Whether they hear the others all the same.
    pub one_way: bool,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    faults: Faults,
    random: Random,
}

impl Network {
    /// A network with these faults.
    pub fn new(faults: Faults, random: Random) -> Self {
        Self { faults, random }
    }

    /// In how many milliseconds a packet arrives: not at all, once or twice.
    pub fn deliver(&mut self, now_ms: u64, from: usize, to: usize) -> Vec<u64> {
        let Faults { least_delay_ms, most_delay_ms, loss_per_mille, duplicates_per_mille, .. } = self.faults;
        let mut copies = 1;
        if now_ms < self.faults.end_ms {
            let lost = self.random.per_mille(loss_per_mille);
            let twice = self.random.per_mille(duplicates_per_mille);
            if lost || self.is_cut(now_ms, from, to) {
                return Vec::new();
            }
            copies += usize::from(twice);
        }
        (0..copies).map(|_| self.random.between(least_delay_ms, most_delay_ms)).collect()
    }

    fn is_cut(&self, now_ms: u64, from: usize, to: usize) -> bool {
        self.faults.cuts.iter().any(|cut| {
            let (out, into) = (cut.side.contains(&from), cut.side.contains(&to));
            (cut.from_ms..cut.until_ms).contains(&now_ms) && out != into && (out || !cut.one_way)
        })
    }
}
