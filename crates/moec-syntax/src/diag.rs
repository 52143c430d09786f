//! Messages to the author of a file: the type and how it is built. Rendering is in `render`.

use std::fmt;

use crate::codes::{Code, Severity};
use crate::span::Span;
use crate::synonyms::Meant;

/// A span with what is to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What; may be empty.
    pub text: String,
    /// Whether this is where the fault lies, rather than something it is to be compared with.
    pub primary: bool,
}

/// A change to the text that would put it right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// What is replaced; empty for an insertion.
    pub span: Span,
    /// By what.
    pub replacement: String,
    /// The change in words, such as "name the argument".
    pub text: String,
}

/// One message: what is wrong, where, and how to put it right. Positions are in one source and the files that it
/// imports; whoever renders the message must supply it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Which kind of fault this is.
    pub code: Code,
    /// How serious it is.
    pub severity: Severity,
    /// One sentence, lower case and without a full stop.
    pub message: String,
    /// The places it is about.
    pub labels: Vec<Label>,
    /// Facts that explain it.
    pub notes: Vec<String>,
    /// Advice on what to do.
    pub helps: Vec<String>,
    /// Changes, each of which stands for itself.
    pub patches: Vec<Patch>,
}

impl Diagnostic {
    /// A message with the severity that its code implies.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Diagnostic {
            code,
            severity: code.severity(),
            message: message.into(),
            labels: Vec::new(),
            notes: Vec::new(),
            helps: Vec::new(),
            patches: Vec::new(),
        }
    }

    /// Marks where the fault lies.
    #[must_use]
    pub fn primary(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into(), primary: true });
        self
    }

    /// Marks something the fault is to be compared with.
    #[must_use]
    pub fn secondary(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into(), primary: false });
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.helps.push(text.into());
        self
    }

    /// Proposes to replace the text under `span`.
    #[must_use]
    pub fn patch(mut self, span: Span, replacement: impl Into<String>, text: impl Into<String>) -> Self {
        self.patches.push(Patch { span, replacement: replacement.into(), text: text.into() });
        self
    }

    /// Says what the unknown word under `span` was probably meant to be, if that is known.
    #[must_use]
    pub fn suggest(self, span: Span, meant: Option<Meant<'_>>) -> Self {
        match meant {
            Some(Meant::Word(near)) => {
                self.help(format!("did you mean `{near}`?")).patch(span, near, "use the name that it has")
            }
            Some(Meant::Otherwise(advice)) => self.help(advice),
            None => self,
        }
    }

    /// Whether this is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The place to name in one line: the first primary label, or else the first label.
    pub fn span(&self) -> Option<Span> {
        self.labels.iter().find(|label| label.primary).or(self.labels.first()).map(|label| label.span)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]: {}", self.severity, self.code, self.message)
    }
}

/// The candidate that `name` was probably meant to be, if one is near enough to be worth naming.
///
/// Equal up to case and underscores counts as near; otherwise the Damerau-Levenshtein distance may be a third of the
/// longer name, at least one edit for names of three letters and more. Ties go to the earlier candidate.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let wanted = plain(name);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let other = plain(candidate);
        let distance = if wanted == other { 0 } else { strsim::damerau_levenshtein(&wanted, &other) };
        let longer = wanted.chars().count().max(other.chars().count());
        let near = distance == 0 || (longer >= 3 && distance <= (longer / 3).max(1));
        if near && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let layers = ["embed", "attention", "mlp", "moe", "layer_norm", "rms_norm", "residual", "unembed"];
        let near = |name| did_you_mean(name, layers);
        assert_eq!(near("atention"), Some("attention"));
        assert_eq!(near("LayerNorm"), Some("layer_norm"));
        assert_eq!(near("layernorm"), Some("layer_norm"));
        assert_eq!(near("embde"), Some("embed"));
        assert_eq!(near("meo"), Some("moe"));
        assert_eq!(near("convolution"), None);
        assert_eq!(near("x"), None);
        assert_eq!(near(""), None);
    }
}
