//! Windows of text: `tokens[i..i+T]` with the targets `tokens[i+1..i+T+1]`.

use crate::streams::Stream;
use crate::tokens::Tokens;

/// Some windows one after another, `N = B*T` tokens and as many targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) tokens: Vec<i32>,
    pub(crate) targets: Vec<i32>,
}

impl Windows {
    /// The windows that begin at the given positions, each at most `text.len() - context - 1`.
    fn at(text: Tokens<'_>, context: usize, starts: impl Iterator<Item = usize>) -> Self {
        let mut windows = Self { tokens: Vec::new(), targets: Vec::new() };
        for start in starts {
            text.range(start..start + context).append_to(&mut windows.tokens);
            text.range(start + 1..start + context + 1).append_to(&mut windows.targets);
        }
        windows
    }

    /// `rows` windows at uniform positions, as makeMoE draws them. Row `r` is drawn from position `first + r` of the
    /// stream, so a batch depends on its stream and its number only.
    ///
    /// `text` must be longer than `context`.
    pub(crate) fn random(text: Tokens<'_>, context: usize, rows: usize, stream: Stream, first: usize) -> Self {
        let positions = text.len().saturating_sub(context) as u64;
        Self::at(text, context, (first..first + rows).map(|r| stream.below(r as u32, positions) as usize))
    }

    /// Windows of those that do not overlap, by their numbers, each below [`window_count`].
    pub(crate) fn numbered(text: Tokens<'_>, context: usize, numbers: impl Iterator<Item = usize>) -> Self {
        Self::at(text, context, numbers.map(|w| w * context))
    }
}

/// How many consecutive windows with their targets a text holds.
pub(crate) fn window_count(text: Tokens<'_>, context: usize) -> usize {
    text.len().saturating_sub(1) / context
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::Purpose;

    fn of(text: &[i32]) -> Tokens<'_> {
        text.into()
    }

    #[test]
    fn random_windows_reach_both_ends_and_depend_on_their_number() {
        let text: Vec<i32> = (0..10).collect();
        let stream = Purpose::TrainingWindows.stream(3, 0);
        let windows = Windows::random(of(&text), 7, 600, stream, 0);
        let starts: Vec<i32> = windows.tokens.chunks(7).map(|w| w[0]).collect();
        for start in 0..3 {
            let share = starts.iter().filter(|&&s| s == start).count();
            assert!((150..250).contains(&share), "{start}: {share}");
        }
        assert!(starts.iter().all(|&s| s < 3));
        assert!(windows.tokens.iter().zip(&windows.targets).all(|(a, b)| a + 1 == *b));
        let later = Windows::random(of(&text), 7, 5, stream, 100);
        assert_eq!(later.tokens, windows.tokens[700..735]);
    }

    #[test]
    fn the_shortest_text_has_one_window() {
        let text = [4, 5, 6, 7];
        let windows = Windows::random(of(&text), 3, 2, Purpose::TrainingWindows.stream(0, 0), 0);
        assert_eq!(windows.tokens, [4, 5, 6, 4, 5, 6]);
        assert_eq!(windows.targets, [5, 6, 7, 5, 6, 7]);
    }

    #[test]
    fn consecutive_windows_cover_the_text_once() {
        let text: Vec<i32> = (0..14).collect();
        assert_eq!(window_count(of(&text), 4), 3);
        assert_eq!(window_count(of(&text[..13]), 4), 3);
        assert_eq!(window_count(of(&text[..12]), 4), 2);
        assert_eq!(window_count(of(&[]), 4), 0);
        let windows = Windows::numbered(of(&text), 4, 0..3);
        assert_eq!(windows.tokens, (0..12).collect::<Vec<_>>());
        assert_eq!(windows.targets, (1..13).collect::<Vec<_>>());
        assert_eq!(Windows::numbered(of(&text), 4, 2..3).tokens, [8, 9, 10, 11]);
    }
}
