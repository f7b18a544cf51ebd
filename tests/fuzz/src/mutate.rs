//! One input from others, by the mutations that fuzzers use, from a seed: the same on every machine.

/// A stream of numbers from a seed (PCG's generator).
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 32 bits.
    pub fn draw(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let shifted = (((self.0 >> 18) ^ self.0) >> 27) as u32;
        shifted.rotate_right((self.0 >> 59) as u32)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.draw() as usize % bound
    }
}

/// Numbers that lengths and counts go wrong at.
const EDGES: [u64; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 60, u64::MAX];

/// Another input: `base` changed in one to four places, sometimes with a part of `other`.
pub fn mutate(base: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..=numbers.below(4) {
        if bytes.is_empty() {
            bytes.push(numbers.draw() as u8);
        }
        let at = numbers.below(bytes.len());
        match numbers.below(9) {
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = numbers.draw() as u8,
            2 => bytes[at] = bytes[at].wrapping_add(numbers.below(9) as u8).wrapping_sub(4),
            3 => {
                let edge = EDGES[numbers.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][numbers.below(4)];
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&edge[..end - at]);
            }
            4 => bytes.truncate(at),
            5 => {
                let end = bytes.len().min(at + 1 + numbers.below(16));
                bytes.drain(at..end);
            }
            6 => {
                let end = bytes.len().min(at + 1 + numbers.below(64));
                let copy = bytes[at..end].to_vec();
                let to = numbers.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            7 if !other.is_empty() => {
                let from = numbers.below(other.len());
                let end = other.len().min(from + 1 + numbers.below(64));
                let until = bytes.len().min(at + end - from);
                bytes.splice(at..until, other[from..end].iter().copied());
            }
            _ => {
                let new = [numbers.draw().to_le_bytes(), numbers.draw().to_le_bytes()].concat();
                bytes.splice(at..at, new[..1 + numbers.below(8)].iter().copied());
            }
        }
    }
    bytes
}
