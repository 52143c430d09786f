//! The vocabulary: the distinct characters of a text in code-point order.

use std::collections::{BTreeMap, BTreeSet};

/// Characters and their token ids. Token `i` is the `i`-th character in code-point order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocab {
    characters: Vec<char>,
    ids: BTreeMap<char, i32>,
    /// The same for ASCII, which most texts are: looking up every character of a corpus takes time.
    ascii: [Option<i32>; 128],
}

/// Text that a vocabulary has no tokens for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's vocabulary lacks {}", list(characters))]
pub struct UnknownCharacters {
    /// The characters, without repeats, in code-point order.
    pub characters: Vec<char>,
}

/// At most eight characters, quoted; then how many more there are.
fn list(characters: &[char]) -> String {
    let shown: Vec<String> = characters.iter().take(8).map(|c| format!("{c:?}")).collect();
    match characters.len().saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl Vocab {
    /// The distinct characters of a text.
    pub fn of_text(text: &str) -> Self {
        let mut ascii = [false; 128];
        let mut characters = BTreeSet::new();
        for character in text.chars() {
            match ascii.get_mut(character as usize) {
                Some(found) => *found = true,
                None => drop(characters.insert(character)),
            }
        }
        characters.extend((0u8..128).filter(|&byte| ascii[usize::from(byte)]).map(char::from));
        Self::from_sorted(characters.into_iter().collect())
    }

    /// A vocabulary as [`Vocab::to_text`] wrote it; `None` unless the characters are distinct, in code-point order, and
    /// at least one.
    pub fn from_text(characters: &str) -> Option<Self> {
        let characters: Vec<char> = characters.chars().collect();
        let ordered = characters.windows(2).all(|pair| pair[0] < pair[1]);
        (ordered && !characters.is_empty()).then(|| Self::from_sorted(characters))
    }

    fn from_sorted(characters: Vec<char>) -> Self {
        let ids: BTreeMap<char, i32> = characters.iter().enumerate().map(|(i, &c)| (c, i as i32)).collect();
        let ascii = std::array::from_fn(|byte| ids.get(&char::from(byte as u8)).copied());
        Self { characters, ids, ascii }
    }

    /// All characters in token order.
    pub fn to_text(&self) -> String {
        self.characters.iter().collect()
    }

    /// Number of tokens, V.
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    /// Token of a character.
    pub fn id(&self, character: char) -> Option<i32> {
        match self.ascii.get(character as usize) {
            Some(id) => *id,
            None => self.ids.get(&character).copied(),
        }
    }

    /// Character of a token.
    pub fn character(&self, token: i32) -> Option<char> {
        usize::try_from(token).ok().and_then(|i| self.characters.get(i)).copied()
    }

    /// Tokens of a text.
    ///
    /// # Errors
    /// When characters are not in the vocabulary; all of them are named.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, UnknownCharacters> {
        self.encode_as(text, |token| token)
    }

    /// Tokens of a text, each made smaller by `narrow`.
    pub(crate) fn encode_as<T>(&self, text: &str, narrow: impl Fn(i32) -> T) -> Result<Vec<T>, UnknownCharacters> {
        let mut unknown = BTreeSet::new();
        let mut tokens = Vec::with_capacity(text.len());
        for c in text.chars() {
            match self.id(c) {
                Some(id) => tokens.push(narrow(id)),
                None => {
                    unknown.insert(c);
                }
            }
        }
        if unknown.is_empty() {
            Ok(tokens)
        } else {
            Err(UnknownCharacters { characters: unknown.into_iter().collect() })
        }
    }

    /// Text of tokens; ids outside the vocabulary are left out.
    pub fn decode(&self, tokens: &[i32]) -> String {
        tokens.iter().filter_map(|&t| self.character(t)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_point_order_and_round_trip() {
        let vocab = Vocab::of_text("zażółć\nAé🎭a");
        assert_eq!(vocab.to_text(), "\nAazéóćłż🎭");
        assert_eq!(vocab.len(), 10);
        let text = "🎭zaż\n";
        assert_eq!(vocab.decode(&vocab.encode(text).unwrap()), text);
        assert_eq!(Vocab::from_text(&vocab.to_text()), Some(vocab.clone()));
        assert_eq!(vocab.character(-1), None);
        assert_eq!(vocab.character(10), None);
    }

    #[test]
    fn unknown_characters_are_all_named() {
        let error = Vocab::of_text("abc").encode("cab! yes?").unwrap_err();
        assert_eq!(error.characters, [' ', '!', '?', 'e', 's', 'y']);
        assert_eq!(error.to_string(), "the model's vocabulary lacks ' ', '!', '?', 'e', 's', 'y'");
        let many = Vocab::of_text("a").encode("bcdefghijk").unwrap_err();
        assert!(many.to_string().ends_with("'i' and 2 more"), "{many}");
    }

    #[test]
    fn stored_vocabularies_are_checked() {
        assert_eq!(Vocab::from_text(""), None);
        assert_eq!(Vocab::from_text("ba"), None);
        assert_eq!(Vocab::from_text("aab"), None);
    }
}
