//! Training data: UTF-8 text from a file or from the embedded generator, split and encoded.

use crate::synthetic;
use crate::tokens::{Packed, Tokens};
use crate::vocab::{UnknownCharacters, Vocab};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::{self, Read};
use std::path::Path;

/// Larger files are refused before they fill the memory.
pub const MAX_BYTES: u64 = 1 << 30;

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// There is no such file.
    #[error("{name}: there is no such file")]
    NotFound {
        /// The file.
        name: String,
    },
    /// The path leads to a folder.
    #[error("{name} is a folder; the data must be one UTF-8 text file")]
    Directory {
        /// The folder.
        name: String,
    },
    /// The file cannot be read.
    #[error("cannot read {name}: {source}")]
    Read {
        /// The file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than [`MAX_BYTES`].
    #[error("{name} has more than {MAX_BYTES} bytes, the most that is read into memory")]
    TooLarge {
        /// The file.
        name: String,
    },
    /// The bytes are not UTF-8.
    #[error("{name} is not UTF-8 text: byte {offset} (line {line}) is not part of a character")]
    NotText {
        /// The data.
        name: String,
        /// Offset of the first wrong byte.
        offset: usize,
        /// Its line, from 1.
        line: usize,
    },
    /// There is no text.
    #[error("{name} is empty")]
    Empty {
        /// The data.
        name: String,
    },
    /// A model of this text would have nothing to learn.
    #[error("{name} consists of one distinct character, {character:?}: there is nothing to predict")]
    OneCharacter {
        /// The data.
        name: String,
        /// The character.
        character: char,
    },
    /// A split is shorter than one window and its targets.
    #[error(
        "the {split} split of {name} has {characters} characters; a context of {context} needs at least {}", context + 1
    )]
    TooShort {
        /// The data.
        name: String,
        /// The split.
        split: Split,
        /// Its length.
        characters: usize,
        /// Context of the model, T.
        context: usize,
    },
    /// All of the data is trained on.
    #[error("nothing of {name} is held out: all of it is for training")]
    NothingHeldOut {
        /// The data.
        name: String,
    },
    /// The share of the training split is not between 0 and 1.
    #[error("split is {0}; it must lie between 0 and 1")]
    Fraction(f64),
    /// The data has characters that the model does not know.
    #[error("{name}: {source}")]
    UnknownCharacters {
        /// The data.
        name: String,
        /// The characters.
        source: UnknownCharacters,
    },
}

/// Part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// The first part, trained on.
    Train,
    /// The rest, only evaluated.
    Validation,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "training",
            Split::Validation => "validation",
        })
    }
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes as lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A text with its name and hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    name: String,
    text: String,
    sha256: String,
}

impl Corpus {
    /// A corpus from the bytes of a text.
    ///
    /// # Errors
    /// When the bytes are not UTF-8 or there are none.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self, DataError> {
        let name = name.into();
        let sha256 = sha256_hex(&bytes);
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let offset = error.utf8_error().valid_up_to();
                let line = 1 + error.as_bytes()[..offset].iter().filter(|&&b| b == b'\n').count();
                return Err(DataError::NotText { name, offset, line });
            }
        };
        if text.is_empty() {
            return Err(DataError::Empty { name });
        }
        Ok(Self { name, text, sha256 })
    }

    /// A corpus from a file.
    ///
    /// # Errors
    /// When it cannot be read, is a folder, too large, empty, or not UTF-8.
    pub fn from_path(path: &Path) -> Result<Self, DataError> {
        let name = path.display().to_string();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => DataError::NotFound { name: name.clone() },
            io::ErrorKind::IsADirectory => DataError::Directory { name: name.clone() },
            _ => DataError::Read { name: name.clone(), source },
        };
        if path.is_dir() {
            return Err(DataError::Directory { name });
        }
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        // The length that the system reports is 0 for a pipe, so the limit is kept while reading.
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(DataError::TooLarge { name });
        }
        Self::from_bytes(name, bytes)
    }

    /// The embedded corpus; see [`crate::synthetic`].
    pub fn synthetic(seed: u64) -> Self {
        let text = synthetic::generate(seed);
        let sha256 = sha256_hex(text.as_bytes());
        Self { name: "synthetic".into(), text, sha256 }
    }

    /// Path or `synthetic`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the bytes, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The vocabulary of a model that is trained on this text.
    ///
    /// # Errors
    /// When the text consists of one distinct character.
    pub fn vocab(&self) -> Result<Vocab, DataError> {
        let vocab = Vocab::of_text(&self.text);
        match vocab.character(0) {
            Some(character) if vocab.len() == 1 => Err(DataError::OneCharacter { name: self.name.clone(), character }),
            _ => Ok(vocab),
        }
    }
}

/// A corpus as tokens, split for training and validation.
#[derive(Clone, Debug)]
pub struct Dataset {
    name: String,
    sha256: String,
    vocab: Vocab,
    tokens: Packed,
    /// How many are for training.
    trained: usize,
}

impl Dataset {
    /// Encodes and splits a corpus: the first `fraction` of its characters (rounded down) is for training.
    ///
    /// # Errors
    /// When the fraction is not in [0, 1] or the vocabulary lacks characters of the text.
    pub fn new(corpus: &Corpus, vocab: Vocab, fraction: f64) -> Result<Self, DataError> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(DataError::Fraction(fraction));
        }
        let tokens = Packed::encode(&vocab, corpus.text())
            .map_err(|source| DataError::UnknownCharacters { name: corpus.name.clone(), source })?;
        let trained = (fraction * tokens.all().len() as f64) as usize;
        Ok(Self { name: corpus.name.clone(), sha256: corpus.sha256.clone(), vocab, tokens, trained })
    }

    /// Path or `synthetic`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of the text, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// Whether anything is kept from training, to be evaluated.
    pub fn is_held_out(&self) -> bool {
        self.trained < self.tokens.all().len()
    }

    /// Tokens of a split; it may be empty.
    pub fn tokens(&self, split: Split) -> Tokens<'_> {
        let all = self.tokens.all();
        match split {
            Split::Train => all.range(0..self.trained),
            Split::Validation => all.range(self.trained..all.len()),
        }
    }

    /// Tokens of a split that has at least one window of `context` tokens with its targets.
    ///
    /// # Errors
    /// When it is shorter, or nothing is held out.
    pub fn windows(&self, split: Split, context: usize) -> Result<Tokens<'_>, DataError> {
        let tokens = self.tokens(split);
        if split == Split::Validation && !self.is_held_out() {
            return Err(DataError::NothingHeldOut { name: self.name.clone() });
        }
        if tokens.len() <= context {
            let (name, characters) = (self.name.clone(), tokens.len());
            return Err(DataError::TooShort { name, split, characters, context });
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(text: &str, fraction: f64) -> Dataset {
        let corpus = Corpus::from_bytes("text", text.into()).unwrap();
        Dataset::new(&corpus, Vocab::of_text(text), fraction).unwrap()
    }

    #[test]
    fn splits_by_characters() {
        let data = dataset("ééééééééab", 0.9);
        assert_eq!(data.tokens(Split::Train).len(), 9);
        assert_eq!(data.vocab().decode(&data.tokens(Split::Validation).to_vec()), "b");
        assert!(dataset("abc", 0.0).tokens(Split::Train).is_empty());
        let whole = dataset("abc", 1.0);
        assert!(!whole.is_held_out() && whole.tokens(Split::Train).len() == 3);
        assert!(matches!(whole.windows(Split::Validation, 1), Err(DataError::NothingHeldOut { .. })));
    }

    #[test]
    fn short_splits_are_refused_by_name() {
        let data = dataset("abcdefghij", 0.7);
        assert_eq!(data.windows(Split::Train, 6).unwrap().len(), 7);
        let error = data.windows(Split::Train, 7).unwrap_err();
        assert_eq!(error.to_string(), "the training split of text has 7 characters; a context of 7 needs at least 8");
        assert!(data.windows(Split::Validation, 2).is_ok());
        assert!(matches!(data.windows(Split::Validation, 3), Err(DataError::TooShort { characters: 3, .. })));
    }

    #[test]
    fn bad_bytes_are_refused() {
        let error = Corpus::from_bytes("blob", b"ab\ncd\xff".to_vec()).unwrap_err();
        assert_eq!(error.to_string(), "blob is not UTF-8 text: byte 5 (line 2) is not part of a character");
        assert!(matches!(Corpus::from_bytes("none", Vec::new()), Err(DataError::Empty { .. })));
        let one = Corpus::from_bytes("one", b"aaaa".to_vec()).unwrap();
        assert!(matches!(one.vocab(), Err(DataError::OneCharacter { character: 'a', .. })));
        let known = Dataset::new(&one, Vocab::of_text("abc"), 0.5).unwrap();
        assert_eq!(known.tokens(Split::Train).to_vec(), [0, 0]);
        assert!(matches!(Dataset::new(&one, Vocab::of_text("xyz"), 0.5), Err(DataError::UnknownCharacters { .. })));
        for fraction in [-0.1, 1.5, f64::NAN] {
            assert!(matches!(Dataset::new(&one, Vocab::of_text("a"), fraction), Err(DataError::Fraction(_))));
        }
    }

    #[test]
    fn files_that_cannot_be_read_say_why() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Corpus::from_path(folder.path()), Err(DataError::Directory { .. })));
        let path = folder.path().join("text.txt");
        assert!(matches!(Corpus::from_path(&path), Err(DataError::NotFound { .. })));
        std::fs::write(&path, "To be, or not").unwrap();
        let corpus = Corpus::from_path(&path).unwrap();
        assert_eq!(corpus.text(), "To be, or not");
        assert_eq!(corpus.sha256(), sha256_hex(b"To be, or not"));
        assert!(matches!(Corpus::from_path(&path.join("below")), Err(DataError::Read { .. })));
    }

    #[test]
    fn hashes_are_sha_256() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
