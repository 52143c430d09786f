//! Models that other programs compute as well: which of ours correspond to one of theirs, and where they do not.
//!
//! Everything here is pure. A model either corresponds, with a list of what was put into the weights for that and of what the
//! user must know, or there are messages that point at what the other program computes in another way.

pub(crate) mod hugging_face;
pub(crate) mod makemoe;
pub(crate) mod vocabulary;

use moec_model::{Layer, Model};
use moec_syntax::{Code, Diagnostic, Span};

/// What an exchange of weights says besides the weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Remarks {
    /// What is put into the weights, so that the other program computes the same.
    pub(crate) folds: Vec<String>,
    /// What else is to be known.
    pub(crate) notes: Vec<String>,
}

impl Remarks {
    fn fold(&mut self, text: impl Into<String>) {
        push_new(&mut self.folds, text.into());
    }

    fn note(&mut self, text: impl Into<String>) {
        push_new(&mut self.notes, text.into());
    }
}

/// The blocks of a `repeat` say the same things.
fn push_new(texts: &mut Vec<String>, text: String) {
    if !texts.contains(&text) {
        texts.push(text);
    }
}

/// A message that the other program has no counterpart of something.
fn no_counterpart(message: impl Into<String>, span: Span, expected: impl Into<String>) -> Diagnostic {
    Diagnostic::new(Code::NoCounterpart, message).primary(span, expected)
}

/// Messages, each once: the iterations of a `repeat` are written once.
#[derive(Debug, Default)]
struct Obstacles(Vec<Diagnostic>);

impl Obstacles {
    fn push(&mut self, diagnostic: Diagnostic) {
        if !self.0.contains(&diagnostic) {
            self.0.push(diagnostic);
        }
    }

    /// The messages in the order of the text.
    fn in_order(mut self) -> Vec<Diagnostic> {
        self.0.sort_by_key(|diagnostic| diagnostic.span().map(Span::numbers));
        self.0
    }
}

/// A model of the form that decoders have: token vectors, blocks of two residual branches, a norm and scores.
#[derive(Debug)]
struct Decoder<'m> {
    embed: &'m Layer,
    blocks: Vec<Block<'m>>,
    norm: &'m Layer,
    unembed: &'m Layer,
}

/// `residual { NORM  attention }  residual { NORM  mlp or moe }`, iteration I of a `repeat`: its tensors are `blocks.I.NAME`.
#[derive(Clone, Copy, Debug)]
struct Block<'m> {
    attention_norm: &'m Layer,
    attention: &'m Layer,
    forward_norm: &'m Layer,
    forward: &'m Layer,
}

/// What a decoder must look like, for advice.
const FORM: &str =
    "write `embed  repeat N { residual { NORM  attention }  residual { NORM  mlp or moe } }  NORM  unembed`";

impl<'m> Decoder<'m> {
    /// The model as a decoder. `whose` says whose models have this form: "makeMoE's model".
    ///
    /// # Errors
    /// When it has another form.
    fn of(model: &'m Model, whose: &str) -> Result<Self, Vec<Diagnostic>> {
        let mut obstacles = Obstacles::default();
        let layers = without_dropout(&model.layers);
        let (middle, norm, unembed) = match layers.as_slice() {
            [_, middle @ .., norm, unembed] if is_norm(norm) => (middle, Some(*norm), Some(*unembed)),
            [_, middle @ .., unembed] => {
                let message = format!("{whose} has a norm before its `unembed`");
                obstacles.push(no_counterpart(message, unembed.span, "expected a norm before this").help(FORM));
                (middle, None, Some(*unembed))
            }
            _ => (&[][..], None, None),
        };
        let mut blocks = Vec::new();
        for (index, &layer) in middle.iter().enumerate() {
            match layer.iteration() {
                Some(iteration) if iteration == index => match block(layer, whose) {
                    Ok(block) => blocks.push(block),
                    Err(diagnostic) => obstacles.push(*diagnostic),
                },
                _ => {
                    let message = format!("{whose} is a list of equal blocks");
                    obstacles.push(no_counterpart(message, layer.span, "expected a `repeat` of blocks").help(FORM));
                }
            }
        }
        if middle.is_empty() {
            obstacles.push(no_counterpart(format!("{whose} has blocks"), model.span, "there are none here").help(FORM));
        }
        match (layers.first(), norm, unembed) {
            (Some(embed), Some(norm), Some(unembed)) if obstacles.0.is_empty() => {
                Ok(Self { embed, blocks, norm, unembed })
            }
            _ => Err(obstacles.in_order()),
        }
    }
}

/// Layers but those that do nothing when a model is used.
fn without_dropout(layers: &[Layer]) -> Vec<&Layer> {
    layers.iter().filter(|layer| layer.name() != "dropout").collect()
}

fn is_norm(layer: &Layer) -> bool {
    matches!(layer.name(), "layer_norm" | "rms_norm")
}

/// The two branches of an iteration.
fn block<'m>(iteration: &'m Layer, whose: &str) -> Result<Block<'m>, Box<Diagnostic>> {
    let wrong = |span, what: &str| {
        Box::new(no_counterpart(format!("a block of {whose} has two residual branches"), span, what).help(FORM))
    };
    match without_dropout(iteration.layers()).as_slice() {
        [first, second] => {
            let (attention_norm, attention) = branch(first, &["attention"], whose)?;
            let (forward_norm, forward) = branch(second, &["mlp", "moe"], whose)?;
            Ok(Block { attention_norm, attention, forward_norm, forward })
        }
        [_, _, third, ..] => Err(wrong(third.span, "this is a third layer")),
        _ => Err(wrong(iteration.span, "expected two `residual { .. }`")),
    }
}

/// Norm and layer of a residual branch.
fn branch<'m>(layer: &'m Layer, names: &[&str], whose: &str) -> Result<(&'m Layer, &'m Layer), Box<Diagnostic>> {
    let expected = format!("expected `residual {{ NORM  {} }}`", names.join(" or "));
    let message = format!("a block of {whose} has a branch with attention and one with experts, each behind a norm");
    let wrong = |span| Box::new(no_counterpart(message.clone(), span, expected.clone()).help(FORM));
    if layer.name() != "residual" {
        return Err(wrong(layer.span));
    }
    match without_dropout(layer.layers()).as_slice() {
        [norm, layer] if is_norm(norm) && names.contains(&layer.name()) => Ok((norm, layer)),
        [norm, other, ..] if is_norm(norm) && !names.contains(&other.name()) => Err(wrong(other.span)),
        _ => Err(wrong(layer.span)),
    }
}

/// The `mlp` that the layers of an expert are, if they are nothing else.
fn only_mlp(expert: &[Layer]) -> Option<&Layer> {
    match without_dropout(expert).as_slice() {
        [layer] if layer.name() == "mlp" => Some(layer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Spec;

    /// A spec whose model is made of these parts.
    pub(super) fn spec(text: &str) -> Spec {
        Spec::parse("model.moe", text).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A model with this body, of width 12.
    pub(super) fn model(body: &str) -> Spec {
        spec(&format!("model m {{\n  context 7\n  vocab characters\n  {body}\n}}\n"))
    }

    fn refused(body: &str) -> String {
        let spec = model(body);
        let found = Decoder::of(&spec.checked.model, "their model").map(|_| ()).unwrap_err();
        found.iter().map(|d| d.render(&spec.source, false)).collect::<Vec<_>>().join("\n")
    }

    const BLOCK: &str = "residual { layer_norm  attention(heads: 3) }  residual { layer_norm  mlp(hidden: 5) }";

    #[test]
    fn a_decoder_is_recognised_whatever_is_dropped_in_training() {
        let spec = model(&format!(
            "embed(width: 12)  dropout(rate: 0.1)  repeat 2 {{ {BLOCK} }}  repeat 1 {{ residual {{ rms_norm  attention(heads: \
             2)  dropout(rate: 0.5) }}  residual {{ layer_norm  mlp(hidden: 9) }} }}  layer_norm  unembed"
        ));
        let decoder = Decoder::of(&spec.checked.model, "their model").unwrap();
        assert_eq!(decoder.blocks.len(), 3);
        assert_eq!(decoder.blocks[2].attention_norm.name(), "rms_norm");
        assert_eq!(decoder.blocks[2].attention.arguments.size("heads"), 2);
        assert_eq!((decoder.norm.name(), decoder.unembed.name()), ("layer_norm", "unembed"));
        assert_eq!(decoder.embed.arguments.word("positions"), "learned");
    }

    #[test]
    fn another_form_is_refused_at_its_place() {
        for (body, expected) in [
            ("embed(width: 12)  repeat 2 { BLOCK }  unembed", "expected a norm before this"),
            ("embed(width: 12)  layer_norm  unembed", "there are none here"),
            ("embed(width: 12)  BLOCK  layer_norm  unembed", "expected a `repeat` of blocks"),
            ("embed(width: 12)  relu  repeat 2 { BLOCK }  layer_norm  unembed", "expected a `repeat` of blocks"),
            ("embed(width: 12)  repeat 2 { BLOCK relu }  layer_norm  unembed", "this is a third layer"),
            ("embed(width: 12)  repeat 2 { layer_norm }  layer_norm  unembed", "expected two `residual { .. }`"),
            (
                "embed(width: 12)  repeat 2 { residual { layer_norm  mlp(hidden: 3) }  residual { layer_norm  mlp(hidden: \
                 5) } }  layer_norm  unembed",
                "expected `residual { NORM  attention }`",
            ),
            (
                "embed(width: 12)  repeat 2 { residual { attention(heads: 2)  layer_norm }  residual { layer_norm  \
                 mlp(hidden: 5) } }  layer_norm  unembed",
                "expected `residual { NORM  attention }`",
            ),
        ] {
            let found = refused(&body.replace("BLOCK", BLOCK));
            assert!(found.contains(expected), "{body}\n{found}");
        }
    }
}
