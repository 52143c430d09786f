//! Sampling text from a model.

use crate::executable::{Executable, ExecutableError, generator};
use crate::streams::Purpose;
use crate::vocab::{UnknownCharacters, Vocab};
use std::ops::ControlFlow;

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

/// Why nothing could be sampled.
#[derive(Debug, thiserror::Error)]
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

/// Writes the continuation of a prompt, handing out every character as it comes until `emit` says to stop; the whole
/// continuation is returned, without the prompt. An empty prompt begins as after a line break.
///
/// The model sees the last T characters. Choices are made in 64 bits on the host and depend on (seed, `number`,
/// position) and the model only.
///
/// # Errors
/// When a setting is out of range, the prompt has unknown characters, the model has diverged, or the device fails.
pub fn sample(
    executable: &mut Executable<'_>,
    vocab: &Vocab,
    prompt: &str,
    number: u64,
    config: &SampleConfig,
    emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<String, SampleError> {
    config.check()?;
    let mut tokens = vocab.encode(prompt)?;
    if tokens.is_empty() {
        tokens.push(vocab.id('\n').unwrap_or(0));
    }
    let context = executable.context();
    let choices = Purpose::Sampling.stream(config.seed, number);
    let noise = Purpose::EvaluationNoise.stream(config.seed, number);
    let mut text = String::new();
    for position in 0..config.length {
        let window = &tokens[tokens.len().saturating_sub(context)..];
        let rng = generator(config.seed, noise.bits64(position as u32));
        let (logits, size) = executable.logits(window, rng)?;
        if size != vocab.len() {
            return Err(SampleError::Vocabulary { model: size, vocabulary: vocab.len() });
        }
        let row = &logits[(window.len() - 1) * size..window.len() * size];
        if !row.iter().all(|x| x.is_finite()) {
            return Err(SampleError::NotFinite);
        }
        let token = choose(&candidates(row, config), choices.uniform(position as u32));
        tokens.push(token as i32);
        let Some(character) = vocab.character(token as i32) else { continue };
        text.push(character);
        if emit(character.encode_utf8(&mut [0; 4])).is_break() {
            break;
        }
    }
    Ok(text)
}

/// The tokens that may come next with their probabilities (not normalised after cutting), most probable first, ties to
/// the lower token.
fn candidates(logits: &[f64], config: &SampleConfig) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if config.temperature == 0.0 {
        order.truncate(1);
    }
    order.truncate(config.top_k.unwrap_or(usize::MAX));
    let largest = order.first().map_or(0.0, |&token| logits[token]);
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
    candidates.last().map_or(0, |c| c.0)
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
    fn choices_follow_the_probabilities() {
        let candidates = [(7, 3.0), (2, 1.0)];
        assert_eq!([0.0, 0.74, 0.76, 1.0].map(|u| choose(&candidates, u)), [7, 7, 2, 2]);
        assert_eq!(choose(&[], 0.5), 0);
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
