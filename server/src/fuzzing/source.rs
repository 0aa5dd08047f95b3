//! An input as a row of choices.
//!
//! Always true here: whatever the bytes are, they are choices; once they are used up, every choice is the first one.

/// What is left of an input.
#[derive(Debug)]
pub(super) struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self(input)
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The next byte.
    pub(super) fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }
    /// A number below `bound`, which is at most 256 and not 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }
    /// One of these.
    pub(super) fn one_of<'b, T>(&mut self, choices: &'b [T]) -> &'b T {
        &choices[self.below(choices.len())]
    }
    /// Once in `times`, but not when the input is used up.
    pub(super) fn rarely(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }
    /// Some of the next bytes as they are.
    pub(super) fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }
    /// A number that is rather at an edge than anywhere else.
    pub(super) fn number(&mut self) -> u64 {
        match self.below(12) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => i64::MAX as u64,
            4 => i64::MIN as u64,
            5 => u64::from(u32::MAX),
            6 => 1 << 40,
            7 => 1 << self.below(64),
            8 => (1u64 << self.below(64)) - 1,
            _ => u64::from(self.byte()),
        }
    }
}
