//! Well-formed values from any bytes: what structure-aware targets are made of.

use arbitrary::Unstructured;

/// Decisions read off an input, one after another; zeros once it is used up.
pub struct Choices<'a>(Unstructured<'a>);

impl<'a> Choices<'a> {
    /// Over an input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether the input is used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Below `bound`, which is at most 256 and not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// One of several.
    pub fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        let index = self.below(choices.len());
        choices[index].clone()
    }

    /// As many bytes; fewer where the input ends.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        self.0.bytes(count.min(self.0.len())).unwrap_or_default()
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}
