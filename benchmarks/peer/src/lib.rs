//! What the peers in Rust share: the text they train on, and how the harness asks them for steps.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

/// B, sequences in a batch.
pub const BATCH: usize = 16;

/// A text as numbers, and windows of it at random.
pub struct Text {
    tokens: Vec<u32>,
    vocabulary: usize,
    state: u64,
}

impl Text {
    /// Reads a UTF-8 text; its distinct characters in order are the vocabulary.
    ///
    /// # Errors
    /// What reading the file meets.
    pub fn read(path: &str) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let characters: Vec<char> = text.chars().collect::<BTreeSet<char>>().into_iter().collect();
        let tokens = text.chars().filter_map(|c| characters.binary_search(&c).ok()).map(|i| i as u32).collect();
        Ok(Text { tokens, vocabulary: characters.len(), state: 1 })
    }

    /// Number of distinct characters.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Tokens and the ones that follow them, each `BATCH` windows of `context`.
    pub fn batch(&mut self, context: usize) -> (Vec<u32>, Vec<u32>) {
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..BATCH {
            // A linear congruential generator: nothing hangs on its quality.
            self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let start = (self.state >> 33) as usize % (self.tokens.len() - context);
            tokens.extend_from_slice(&self.tokens[start..start + context]);
            targets.extend_from_slice(&self.tokens[start + 1..start + context + 1]);
        }
        (tokens, targets)
    }
}

/// Trains one step, prints `{"ready":true,"parameters":N}`, and answers every line `go N` on standard input with N
/// steps, one line `{"step":I,"ms":T,"loss":L}` each.
///
/// # Errors
/// What `step`, standard input and standard output meet, and a line that is not `go N`.
pub fn serve(parameters: usize, mut step: impl FnMut() -> Result<f32, Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    step()?;
    writeln!(out, r#"{{"ready":true,"parameters":{parameters}}}"#)?;
    out.flush()?;
    let mut done = 1;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let count: usize = line.strip_prefix("go ").ok_or("expected `go N`")?.trim().parse()?;
        for _ in 0..count {
            let begun = Instant::now();
            let loss = step()?;
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            done += 1;
            writeln!(out, r#"{{"step":{done},"ms":{ms:.4},"loss":{loss}}}"#)?;
            out.flush()?;
        }
    }
    Ok(())
}
