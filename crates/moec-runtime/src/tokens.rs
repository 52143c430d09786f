//! A text as tokens, each in as many bytes as the vocabulary asks for: one for most, so that a text takes no more memory
//! as tokens than it does on disk.

use crate::vocab::{UnknownCharacters, Vocab};
use std::ops::Range;

/// Tokens of a text.
#[derive(Clone, Debug)]
pub(crate) enum Packed {
    /// Of a vocabulary of at most 256 characters.
    Bytes(Vec<u8>),
    /// Of one of at most 65,536.
    Pairs(Vec<u16>),
    /// Of any.
    Wide(Vec<i32>),
}

impl Packed {
    /// Encodes a text.
    pub(crate) fn encode(vocab: &Vocab, text: &str) -> Result<Self, UnknownCharacters> {
        // Every token is less than the number of characters.
        Ok(match vocab.len() {
            0..=0x100 => Self::Bytes(vocab.encode_as(text, |token| token as u8)?),
            0x101..=0x1_0000 => Self::Pairs(vocab.encode_as(text, |token| token as u16)?),
            _ => Self::Wide(vocab.encode(text)?),
        })
    }

    /// All of them.
    pub(crate) fn all(&self) -> Tokens<'_> {
        match self {
            Self::Bytes(tokens) => Tokens::Bytes(tokens),
            Self::Pairs(tokens) => Tokens::Pairs(tokens),
            Self::Wide(tokens) => Tokens::Wide(tokens),
        }
    }
}

/// A view of some tokens of a text, one after another, however they are stored.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Tokens<'a> {
    /// In a byte each.
    Bytes(&'a [u8]),
    /// In two bytes each.
    Pairs(&'a [u16]),
    /// As they are.
    Wide(&'a [i32]),
}

impl<'a> Tokens<'a> {
    /// How many there are.
    pub fn len(self) -> usize {
        match self {
            Self::Bytes(tokens) => tokens.len(),
            Self::Pairs(tokens) => tokens.len(),
            Self::Wide(tokens) => tokens.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// When the range reaches beyond the end, as that of a slice.
    #[must_use]
    pub fn range(self, range: Range<usize>) -> Tokens<'a> {
        match self {
            Self::Bytes(tokens) => Self::Bytes(&tokens[range]),
            Self::Pairs(tokens) => Self::Pairs(&tokens[range]),
            Self::Wide(tokens) => Self::Wide(&tokens[range]),
        }
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = i32> + 'a {
        // One of them has tokens.
        let (bytes, pairs, wide): (&[u8], &[u16], &[i32]) = match self {
            Self::Bytes(tokens) => (tokens, &[], &[]),
            Self::Pairs(tokens) => (&[], tokens, &[]),
            Self::Wide(tokens) => (&[], &[], tokens),
        };
        let narrow = bytes.iter().map(|&token| i32::from(token)).chain(pairs.iter().map(|&token| i32::from(token)));
        narrow.chain(wide.iter().copied())
    }

    /// As numbers of the size that programs take.
    pub fn to_vec(self) -> Vec<i32> {
        let mut tokens = Vec::with_capacity(self.len());
        self.append_to(&mut tokens);
        tokens
    }

    /// Appends all of them.
    pub(crate) fn append_to(self, to: &mut Vec<i32>) {
        match self {
            Self::Bytes(tokens) => to.extend(tokens.iter().map(|&token| i32::from(token))),
            Self::Pairs(tokens) => to.extend(tokens.iter().map(|&token| i32::from(token))),
            Self::Wide(tokens) => to.extend_from_slice(tokens),
        }
    }
}

impl<'a> From<&'a [i32]> for Tokens<'a> {
    fn from(tokens: &'a [i32]) -> Self {
        Self::Wide(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_the_same_in_whatever_they_are_stored() {
        // 256, 257, 65,536 and 65,537 characters, from the first to the last.
        for (size, bytes) in [(0x100, 1), (0x101, 2), (0x1_0000, 2), (0x1_0001, 4)] {
            let text: String = (0..).filter_map(char::from_u32).take(size).collect();
            let vocab = Vocab::of_text(&text);
            let packed = Packed::encode(&vocab, &text).unwrap();
            let stored = match &packed {
                Packed::Bytes(_) => 1,
                Packed::Pairs(_) => 2,
                Packed::Wide(_) => 4,
            };
            assert_eq!((stored, packed.all().len()), (bytes, size));
            let expected: Vec<i32> = (0..size as i32).collect();
            assert_eq!(packed.all().to_vec(), expected);
            assert!(packed.all().iter().eq(expected.iter().copied()));
            let middle = packed.all().range(250..256);
            assert_eq!(middle.to_vec(), [250, 251, 252, 253, 254, 255]);
            assert!(!middle.is_empty() && packed.all().range(3..3).is_empty());
        }
        let unknown = Packed::encode(&Vocab::of_text("abc"), "cabx").unwrap_err();
        assert_eq!(unknown.characters, ['x']);
    }
}
