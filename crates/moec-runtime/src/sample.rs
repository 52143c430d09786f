//! Sampling text from a model.
//!
//! A text is continued in one of two ways. *Windowed*: every character is computed from the last T characters anew,
//! whatever the model. *Decoded*: the program keeps keys and values of the tokens it has seen ([`Kept`] says how far that
//! is right), and computes one token at a time.
//!
//! Several texts go through the device together, a row each. What is computed for a row does not depend on the other
//! rows or their number, so a text is the same to the bit as it would be alone.

use crate::executable::{Executable, ExecutableError, Newest, generator};
use crate::streams::Purpose;
use crate::vocab::{UnknownCharacters, Vocab};
use moec_ir::{Function, Invariant};
use std::ops::{ControlFlow, Range};

/// How the next character is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleConfig {
    /// Logits are divided by this; 0 always takes the most probable character.
    pub temperature: f64,
    /// Only this many of the most probable characters are candidates.
    pub top_k: Option<usize>,
    /// Only the fewest most probable characters whose probabilities reach this sum are candidates (nucleus sampling,
    /// Holtzman et al. 2020, arXiv 1904.09751). Applied after `top_k`.
    pub top_p: Option<f64>,
    /// With the number of the sample and the position it determines every choice.
    pub seed: u64,
    /// Characters to write.
    pub length: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, seed: 0, length: 500 }
    }
}

/// What the program may keep of the tokens of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing: every character is computed from the whole window.
    Nothing,
    /// Keys and values of the first T tokens; from there on nothing.
    FirstWindow,
    /// Keys and values of the last T tokens, however long the text is. Those were computed from tokens before them, of
    /// which some are no longer kept, so from the T-th character on a text is not the one of [`Kept::Nothing`].
    LastWindow,
}

/// The functions that [`sample()`] runs to write `length` characters after a prompt of so many characters.
pub fn sample_functions(kept: Kept, context: usize, prompt: usize, length: usize) -> Vec<Function> {
    let first = prompt.max(1);
    let last = first.saturating_add(length).saturating_sub(1);
    let mut functions = Vec::new();
    if length > 0 && is_decoded(kept, context, first, first) {
        functions.push(Function::Decode);
    }
    if length > 0 && !is_decoded(kept, context, first, last) {
        functions.push(Function::Next);
    }
    functions
}

/// Whether the character after `tokens` tokens is decoded, in a text that began with `first`.
fn is_decoded(kept: Kept, context: usize, first: usize, tokens: usize) -> bool {
    match kept {
        Kept::Nothing => false,
        // A prompt that fills the window would be decoded token by token for a single character.
        Kept::FirstWindow => first < context && tokens <= context,
        Kept::LastWindow => true,
    }
}

/// Why nothing could be sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A setting is out of range.
    #[error("{name} is {value}; it must be {range}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is possible.
        range: &'static str,
    },
    /// The prompt has characters that the model does not know.
    #[error("the prompt cannot be read: {0}")]
    Prompt(#[from] UnknownCharacters),
    /// The model has another number of tokens than the vocabulary.
    #[error("the model has {model} tokens, the vocabulary {vocabulary}")]
    Vocabulary {
        /// Tokens of the model.
        model: usize,
        /// Tokens of the vocabulary.
        vocabulary: usize,
    },
    /// The model gives NaN or infinite logits.
    #[error("the model's logits are not finite; it has diverged")]
    NotFinite,
    /// The program could not be run.
    #[error(transparent)]
    Executable(#[from] ExecutableError),
}

impl SampleConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a setting is out of range.
    pub fn check(&self) -> Result<(), SampleError> {
        let fail = |name, value: String, range| Err(SampleError::Setting { name, value, range });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return fail("temperature", self.temperature.to_string(), "0 or above");
        }
        if self.top_k == Some(0) {
            return fail("top-k", "0".into(), "at least 1");
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => fail("top-p", p.to_string(), "above 0 and at most 1"),
            _ => Ok(()),
        }
    }
}

/// Writes continuations of a prompt, one for each of `numbers`, handing out every character as it comes, with the number
/// of its text, until `emit` says to stop; the continuations are returned, without the prompt. An empty prompt begins as
/// after a line break.
///
/// As many texts are written at once as the program's functions take. The model sees the last T characters of the
/// prompt. Choices are made in 64 bits on the host and depend on (seed, number, position) and the model only.
///
/// # Errors
/// When a setting is out of range, the prompt has unknown characters, the model has diverged, or the device fails.
pub fn sample(
    executable: &mut Executable<'_>,
    vocab: &Vocab,
    prompt: &str,
    numbers: Range<u64>,
    kept: Kept,
    config: &SampleConfig,
    emit: &mut dyn FnMut(u64, &str) -> ControlFlow<()>,
) -> Result<Vec<String>, SampleError> {
    config.check()?;
    let mut prompt = vocab.encode(prompt)?;
    if prompt.is_empty() {
        // A text without line breaks begins with the first character of its vocabulary.
        prompt.push(vocab.id('\n').unwrap_or(0));
    }
    let functions = sample_functions(kept, executable.context(), prompt.len(), config.length);
    // A text of no characters needs no function.
    let mut together = None;
    for function in functions {
        let rows = executable.rows(function)? as u64;
        together = Some(together.map_or(rows, |most: u64| most.min(rows)));
    }
    let together = together.unwrap_or(1);
    let mut texts = Vec::new();
    let mut first = numbers.start;
    while first < numbers.end {
        let group = first..numbers.end.min(first.saturating_add(together));
        first = group.end;
        let (written, flow) = write(executable, vocab, &prompt, group, kept, config, emit)?;
        texts.extend(written);
        if flow.is_break() {
            break;
        }
    }
    Ok(texts)
}

/// A text that is being written.
struct Text {
    number: u64,
    tokens: Vec<i32>,
    /// What was written after the prompt.
    written: String,
}

/// Writes texts that go through the device together.
fn write(
    executable: &mut Executable<'_>,
    vocab: &Vocab,
    prompt: &[i32],
    numbers: Range<u64>,
    kept: Kept,
    config: &SampleConfig,
    emit: &mut dyn FnMut(u64, &str) -> ControlFlow<()>,
) -> Result<(Vec<String>, ControlFlow<()>), SampleError> {
    let context = executable.context();
    let new = |number| Text { number, tokens: prompt.to_vec(), written: String::new() };
    let mut texts: Vec<Text> = numbers.map(new).collect();
    // Of a long prompt the last T tokens are seen, as by a window.
    let start = prompt.len().saturating_sub(context);
    let mut decoded = start;
    let mut flow = ControlFlow::Continue(());
    for position in 0..config.length {
        let count = prompt.len() + position;
        let function = if is_decoded(kept, context, prompt.len(), count) { Function::Decode } else { Function::Next };
        let logits = if function == Function::Decode {
            let mut logits = Vec::new();
            for at in decoded..count {
                logits = decode(executable, &texts, at, start)?;
            }
            decoded = count;
            logits
        } else {
            next(executable, &texts, position, config.seed)?
        };
        let size = logits.len() / executable.rows(function)?;
        if size != vocab.len() {
            return Err(SampleError::Vocabulary { model: size, vocabulary: vocab.len() });
        }
        for (text, row) in texts.iter_mut().zip(logits.chunks(size)) {
            if !row.iter().all(|x| x.is_finite()) {
                return Err(SampleError::NotFinite);
            }
            let choices = Purpose::Sampling.stream(config.seed, text.number);
            let token = choose(&candidates(row, config), choices.uniform(position as u32)) as i32;
            text.tokens.push(token);
            let Some(character) = vocab.character(token) else { continue };
            text.written.push(character);
            if emit(text.number, character.encode_utf8(&mut [0; 4])).is_break() {
                flow = ControlFlow::Break(());
            }
        }
        if flow.is_break() {
            break;
        }
    }
    Ok((texts.into_iter().map(|text| text.written).collect(), flow))
}

/// Logits after the token with number `at` of each text, the first that is seen being `start`.
fn decode(
    executable: &mut Executable<'_>,
    texts: &[Text],
    at: usize,
    start: usize,
) -> Result<Vec<f64>, ExecutableError> {
    let newest = |text: &Text| Newest {
        token: text.tokens[at],
        previous: if at > start { text.tokens[at - 1] } else { -1 },
        position: (at - start) as i32,
    };
    // Rows without a text of their own repeat the last one.
    let rows = executable.rows(Function::Decode)?;
    let newest: Vec<Newest> = (0..rows).map(|row| newest(&texts[row.min(texts.len() - 1)])).collect();
    executable.decode(&newest)
}

/// Logits after the last token of each text, of which the last T are seen.
fn next(
    executable: &mut Executable<'_>,
    texts: &[Text],
    position: usize,
    seed: u64,
) -> Result<Vec<f64>, ExecutableError> {
    let (context, rows) = (executable.context(), executable.rows(Function::Next)?);
    // Where noise is drawn in evaluation, a text goes through the device alone, with noise of its own.
    let number = texts.first().invariant("some text is written").number;
    let noise = Purpose::EvaluationNoise.stream(seed, number);
    let windows = (0..rows).map(|row| {
        let tokens = &texts[row.min(texts.len() - 1)].tokens;
        &tokens[tokens.len().saturating_sub(context)..]
    });
    let windows: Vec<&[i32]> = windows.collect();
    executable.next(&windows, generator(seed, noise.bits64(position as u32)))
}

/// The tokens that may come next with their probabilities (not normalised after cutting), most probable first, ties to
/// the lower token.
fn candidates(logits: &[f64], config: &SampleConfig) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if config.temperature == 0.0 {
        order.truncate(1);
    }
    if let Some(k) = config.top_k {
        order.truncate(k);
    }
    let largest = logits[*order.first().invariant("a vocabulary has a character, and top-k is at least 1")];
    // A greedy choice has one candidate, whatever it is divided by.
    let temperature = if config.temperature == 0.0 { 1.0 } else { config.temperature };
    let mut candidates: Vec<(usize, f64)> =
        order.into_iter().map(|token| (token, ((logits[token] - largest) / temperature).exp())).collect();
    if let Some(p) = config.top_p {
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut sum = 0.0;
        let before = candidates.iter().take_while(|c| {
            let reached = sum >= p * total;
            sum += c.1;
            !reached
        });
        let kept = before.count();
        candidates.truncate(kept.max(1));
    }
    candidates
}

/// The candidate at which the running sum of probabilities passes `uniform` of the total.
fn choose(candidates: &[(usize, f64)], uniform: f64) -> usize {
    let mut left = uniform * candidates.iter().map(|c| c.1).sum::<f64>();
    for &(token, p) in candidates {
        if left < p {
            return token;
        }
        left -= p;
    }
    // Rounding may carry the sum past the last candidate.
    candidates.last().invariant("there is a candidate").0
}

/// Log-probability of a token under a row of logits; minus infinity for one outside the row.
pub(crate) fn log_probability(logits: &[f64], token: i32) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
    usize::try_from(token).ok().and_then(|t| logits.get(t)).map_or(f64::NEG_INFINITY, |x| x - largest - sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f64; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn tokens(config: SampleConfig) -> Vec<usize> {
        candidates(&LOGITS, &config).into_iter().map(|c| c.0).collect()
    }

    #[test]
    fn ties_go_to_the_lower_token() {
        let config = SampleConfig::default();
        assert_eq!(tokens(config), [1, 3, 2, 0, 4]);
        assert_eq!(tokens(SampleConfig { temperature: 0.0, ..config }), [1]);
        assert_eq!(tokens(SampleConfig { top_k: Some(1), ..config }), [1]);
        assert_eq!(tokens(SampleConfig { top_k: Some(3), ..config }), [1, 3, 2]);
        assert_eq!(tokens(SampleConfig { top_k: Some(99), ..config }), [1, 3, 2, 0, 4]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        // Probabilities 0.3966, 0.3966, 0.1459, 0.0537, 0.0073.
        let kept = |p| tokens(SampleConfig { top_p: Some(p), ..SampleConfig::default() }).len();
        assert_eq!([1e-9, 0.39, 0.5, 0.78, 0.8, 0.95, 1.0].map(kept), [1, 1, 2, 2, 3, 4, 5]);
        let both = SampleConfig { top_k: Some(2), top_p: Some(0.9), ..SampleConfig::default() };
        assert_eq!(tokens(both), [1, 3]);
    }

    #[test]
    fn temperature_sharpens() {
        let share = |temperature| {
            let all = candidates(&LOGITS, &SampleConfig { temperature, ..SampleConfig::default() });
            all[0].1 / all.iter().map(|c| c.1).sum::<f64>()
        };
        assert!((share(1.0) - 0.396_58).abs() < 1e-4, "{}", share(1.0));
        assert!((share(1e-6) - 0.5).abs() < 1e-12);
        assert!((share(1e12) - 0.2).abs() < 1e-9);
        assert!(candidates(&[0.0, -1e308], &SampleConfig::default()).iter().all(|c| c.1.is_finite()));
    }

    #[test]
    fn functions_are_those_that_a_text_needs() {
        let functions = |kept, prompt, length| {
            sample_functions(kept, 8, prompt, length).iter().map(|f| f.name()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(functions(Kept::Nothing, 0, 5), "next");
        assert_eq!(functions(Kept::LastWindow, 30, 50), "decode");
        // An empty prompt is a line break. The last character needs no scores after it.
        assert_eq!(functions(Kept::FirstWindow, 0, 8), "decode");
        assert_eq!(functions(Kept::FirstWindow, 0, 9), "decode next");
        assert_eq!(functions(Kept::FirstWindow, 7, 2), "decode");
        assert_eq!(functions(Kept::FirstWindow, 7, 3), "decode next");
        assert_eq!(functions(Kept::FirstWindow, 8, 1), "next");
        assert_eq!(functions(Kept::FirstWindow, 7, 0), "");
    }

    #[test]
    fn choices_follow_the_probabilities() {
        let candidates = [(7, 3.0), (2, 1.0)];
        assert_eq!([0.0, 0.74, 0.76, 1.0].map(|u| choose(&candidates, u)), [7, 7, 2, 2]);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let config = SampleConfig::default();
        for (config, message) in [
            (SampleConfig { temperature: -0.5, ..config }, "temperature is -0.5; it must be 0 or above"),
            (SampleConfig { temperature: f64::NAN, ..config }, "temperature is NaN; it must be 0 or above"),
            (SampleConfig { top_k: Some(0), ..config }, "top-k is 0; it must be at least 1"),
            (SampleConfig { top_p: Some(0.0), ..config }, "top-p is 0; it must be above 0 and at most 1"),
            (SampleConfig { top_p: Some(1.5), ..config }, "top-p is 1.5; it must be above 0 and at most 1"),
        ] {
            assert_eq!(config.check().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn log_probabilities_are_stable() {
        assert!((log_probability(&[1000.0, 1000.0], 1) + 2.0f64.ln()).abs() < 1e-12);
        assert_eq!(log_probability(&[5.0], 0), 0.0);
        assert_eq!(log_probability(&[5.0], 1), f64::NEG_INFINITY);
        assert_eq!(log_probability(&[5.0], -1), f64::NEG_INFINITY);
    }
}
