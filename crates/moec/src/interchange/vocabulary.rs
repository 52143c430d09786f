//! `vocabulary.json` beside exported parameters: a list of the characters in the order of tokens. Models here have no tokenizer
//! that other programs could read.

use moec_runtime::Vocab;
use serde_json::{Value, json};

/// The text of the file.
pub(crate) fn written(vocab: &Vocab) -> String {
    let characters: Vec<char> = vocab.to_text().chars().collect();
    format!("{}\n", json!(characters))
}

/// Reads one back; `None` unless it lists distinct characters in code-point order, as vocabularies here are.
pub(crate) fn read(value: &Value) -> Option<Vocab> {
    let one = |value: &Value| value.as_str().filter(|text| text.chars().count() == 1).map(str::to_string);
    Vocab::from_text(&value.as_array()?.iter().map(one).collect::<Option<String>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_is_read_back() {
        let vocab = Vocab::of_text("caf\u{e9} \n\"");
        let value = serde_json::from_str(&written(&vocab)).unwrap();
        assert_eq!(read(&value), Some(vocab));
        for wrong in [json!({}), json!([]), json!(["b", "a"]), json!(["ab"]), json!(["a", "a"]), json!([1])] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }
}
