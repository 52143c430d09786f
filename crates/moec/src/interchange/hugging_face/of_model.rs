//! A model of ours as a [`Network`], or what in it the nearest class of `transformers` computes in another way.

use std::collections::BTreeMap;

use moec_ir::{Data, Invariant, Tensor};
use moec_model::{Attention, Layer, Model, Moe, Route};
use moec_syntax::{Diagnostic, Span};

use super::{Architecture, AttentionBias, Experts, Network};
use crate::interchange::{Block, Decoder, Obstacles, Remarks, no_counterpart, only_mlp};

/// A model in the form of a class of `transformers`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fit {
    /// The model.
    pub(crate) network: Network,
    /// What is to be said.
    pub(crate) remarks: Remarks,
    /// Factors of what makes queries, by block.
    query_factors: Vec<f64>,
}

/// The model in the form of the class that it corresponds to. `vocab` is the number of its tokens.
///
/// # Errors
/// What the nearest class computes in another way, each with its place in the spec.
pub(crate) fn of_model(model: &Model, vocab: usize) -> Result<Fit, Vec<Diagnostic>> {
    let decoder = Decoder::of(model, "a decoder of `transformers`")?;
    let first = decoder.blocks.first().invariant("a decoder has blocks");
    let architecture = nearest(first);
    let mut check = Check {
        architecture,
        theirs: architecture.title(),
        obstacles: Obstacles::default(),
        remarks: Remarks::default(),
    };
    check.embed(decoder.embed);
    let mut query_factors = Vec::new();
    let mut numbers: Option<Numbers> = None;
    // A class has one flag for all of its attention, and one for all feed-forward layers.
    let attention_bias = decoder.blocks.iter().any(|block| {
        let arguments = &block.attention.arguments;
        let has_output = architecture.attention_bias() == AttentionBias::AllOrNone;
        arguments.bool("bias") || has_output && arguments.bool("output_bias")
    });
    let mlp_bias =
        decoder.blocks.iter().any(|block| block.forward.name() == "mlp" && block.forward.arguments.bool("bias"));
    let norms =
        decoder.blocks.iter().flat_map(|block| [block.attention_norm, block.forward_norm]).chain([decoder.norm]);
    let first_norm = norms.into_iter().find(|norm| norm.name() == architecture.norm());
    let epsilon = first_norm.unwrap_or(decoder.norm).arguments.float("epsilon");
    for block in &decoder.blocks {
        check.norm(block.attention_norm, epsilon);
        query_factors.push(check.attention(block.attention, attention_bias, epsilon));
        check.norm(block.forward_norm, epsilon);
        let Some(forward) = check.forward(block.forward, mlp_bias) else { continue };
        let (heads, (kv_heads, window)) = (block.attention.arguments.size("heads"), shape_of(block.attention));
        let of_block = Numbers { heads, kv_heads, window, ..forward };
        check.same(block, *numbers.get_or_insert(of_block), of_block);
    }
    check.norm(decoder.norm, epsilon);
    check.unembed(decoder.unembed);
    let Some(numbers) = numbers.filter(|_| check.obstacles.0.is_empty()) else {
        return Err(check.refused());
    };
    let Numbers { heads, kv_heads, window, hidden, activation, experts } = numbers;
    let network = Network {
        architecture,
        vocab,
        context: model.context,
        width: model.width,
        layers: decoder.blocks.len(),
        heads,
        kv_heads,
        window,
        hidden,
        activation,
        epsilon,
        attention_bias: match architecture.attention_bias() {
            AttentionBias::All => true,
            AttentionBias::AllOrNone | AttentionBias::InputsOrNone => attention_bias,
            AttentionBias::Inputs | AttentionBias::None => false,
        },
        mlp_bias: match architecture {
            Architecture::Gpt2 => true,
            Architecture::Llama => mlp_bias,
            _ => false,
        },
        tied: decoder.unembed.arguments.bool("tied"),
        experts,
    };
    Ok(Fit { network, remarks: check.remarks, query_factors })
}

/// The class that a model with this block is nearest to.
fn nearest(block: &Block<'_>) -> Architecture {
    let attention = &block.attention.arguments;
    let query_norm = attention.word("norm");
    let is_gpt2 = block.attention_norm.name() == "layer_norm";
    match (block.forward.name(), query_norm) {
        ("moe", "head") => Architecture::Qwen3Moe,
        ("moe", "width") => Architecture::Olmoe,
        ("moe", _) if block.forward.of::<Moe>().is_some_and(|moe| moe.shared > 0) => Architecture::Qwen2Moe,
        ("moe", _) => Architecture::Mixtral,
        _ if is_gpt2 => Architecture::Gpt2,
        (_, "head") => Architecture::Qwen3,
        _ if attention.bool("bias") && !attention.bool("output_bias") => Architecture::Qwen2,
        _ => Architecture::Llama,
    }
}

/// What the blocks of a class have in common.
#[derive(Clone, Copy, PartialEq)]
struct Numbers {
    heads: usize,
    kv_heads: usize,
    window: Option<usize>,
    hidden: usize,
    activation: &'static str,
    experts: Option<Experts>,
}

/// Heads of keys and values, and the window, of a layer of attention.
fn shape_of(attention: &Layer) -> (usize, Option<usize>) {
    let found = attention.of::<Attention>().invariant("a block of a decoder begins with attention");
    (found.kv_heads, found.window)
}

/// What has been found so far.
struct Check {
    architecture: Architecture,
    /// Its name.
    theirs: &'static str,
    obstacles: Obstacles,
    remarks: Remarks,
}

impl Check {
    fn refuse(&mut self, message: impl Into<String>, at: Span, expected: impl Into<String>, help: impl Into<String>) {
        self.obstacles.push(no_counterpart(message, at, expected).help(help));
    }

    /// The messages, with what they are measured against.
    fn refused(self) -> Vec<Diagnostic> {
        let note = format!("of the classes that correspond to models here, {} is nearest to this one", self.theirs);
        let mut obstacles = self.obstacles.in_order();
        let last = obstacles.pop().map(|last| last.note(note));
        obstacles.extend(last);
        obstacles
    }

    fn embed(&mut self, embed: &Layer) {
        let (found, wanted) = (embed.arguments.word("positions"), self.architecture.positions());
        if found == "none" && self.architecture == Architecture::Gpt2 {
            self.remarks.fold("gave every position a vector of zeros, since this model has no positions");
        } else if found != wanted {
            let (at, message) = (embed.argument_span("positions"), format!("{} has {wanted} positions", self.theirs));
            let expected = format!("expected `positions: {wanted}`");
            self.refuse(message, at, expected, format!("with {found} positions the results differ"));
        }
    }

    fn norm(&mut self, norm: &Layer, epsilon: f64) {
        let (found, wanted) = (norm.name(), self.architecture.norm());
        if found != wanted {
            let message = format!("{} has `{wanted}`", self.theirs);
            self.refuse(
                message,
                norm.span,
                format!("expected `{wanted}`"),
                format!("`{found}` computes something else"),
            );
        } else if norm.arguments.float("epsilon") != epsilon {
            let (at, message) =
                (norm.argument_span("epsilon"), format!("{} has one epsilon for all norms", self.theirs));
            let expected = format!("expected {epsilon:e}, as in the first norm");
            self.refuse(message, at, expected, "give all norms the same `epsilon`");
        }
    }

    /// Checks attention, and gives the factor of what makes queries. `any_bias` says whether attention has a bias anywhere,
    /// and `epsilon` is that of norms.
    fn attention(&mut self, attention: &Layer, any_bias: bool, epsilon: f64) -> f64 {
        let arguments = &attention.arguments;
        let (bias, output_bias) = (arguments.bool("bias"), arguments.bool("output_bias"));
        let (has_bias, has_output_bias) = match self.architecture.attention_bias() {
            AttentionBias::All => (true, true),
            AttentionBias::AllOrNone => (any_bias, any_bias),
            AttentionBias::Inputs => (true, false),
            AttentionBias::InputsOrNone => (any_bias, false),
            AttentionBias::None => (false, false),
        };
        let (kv_heads, window) = shape_of(attention);
        let is_gpt2 = self.architecture == Architecture::Gpt2;
        for (refused, argument, what) in [
            (is_gpt2 && kv_heads < arguments.size("heads"), "kv_heads", "has as many heads of keys as of queries"),
            (window.is_some() && !self.architecture.has_window(), "window", "sees all that comes before"),
            (arguments.bool("sink"), "sink", "has no sinks"),
        ] {
            if refused {
                let (at, message) =
                    (attention.argument_span(argument), format!("the attention of {} {what}", self.theirs));
                self.refuse(message, at, format!("expected no `{argument}`"), "the results differ");
            }
        }
        let (norm, wanted) = (arguments.word("norm"), self.architecture.query_norm());
        if norm != wanted {
            let at = attention.argument_span("norm");
            let message = match wanted {
                "none" => format!("{} does not normalise queries and keys", self.theirs),
                _ => format!("{} normalises queries and keys over the {wanted}", self.theirs),
            };
            self.refuse(message, at, format!("expected `norm: {wanted}`"), "the results differ");
        } else if norm != "none" && arguments.float("norm_epsilon") != epsilon {
            let at = attention.argument_span("norm_epsilon");
            let message = format!("{} has one epsilon for all norms", self.theirs);
            let expected = format!("expected {epsilon:e}, as in the first norm");
            self.refuse(message, at, expected, "give all norms the same epsilon");
        }
        for (argument, what, found, theirs) in [
            ("bias", "queries, keys and values", bias, has_bias),
            ("output_bias", "the output projection of attention", output_bias, has_output_bias),
        ] {
            if theirs && !found {
                self.remarks.fold(format!("gave {what} biases of 0"));
            } else if found && !theirs {
                let at = attention.argument_span(argument);
                let message = format!("{} has no bias for {what}", self.theirs);
                let help = format!("write `{argument}: false`; a bias that was trained cannot be left out");
                self.refuse(message, at, format!("expected `{argument}: false`"), help);
            }
        }
        let heads = arguments.size("heads");
        // A single head is as wide as the model.
        if arguments.word("scale") == "head" || heads == 1 {
            return 1.0;
        }
        self.remarks.fold(format!(
            "folded the scale of attention into what makes queries, divided by the root of {heads} heads: {} divides scores by \
             the root of a head's width, and this model by that of its own",
            self.theirs
        ));
        // Scores are q.k / sqrt(C) here and q.k / sqrt(D) there, and C = H D.
        (heads as f64).sqrt().recip()
    }

    /// Checks the second branch of a block. `any_bias` says whether a feed-forward layer has biases anywhere.
    fn forward(&mut self, layer: &Layer, any_bias: bool) -> Option<Numbers> {
        let Some(moe) = layer.of::<Moe>() else {
            if self.architecture.has_experts() {
                let help = "a class has the same layers in every block";
                let message = format!("{} has experts in every block", self.theirs);
                self.refuse(message, layer.span, "expected `moe`", help);
                return None;
            }
            return self.mlp(layer, any_bias).map(|(hidden, activation)| Numbers {
                heads: 0,
                kv_heads: 0,
                window: None,
                hidden,
                activation,
                experts: None,
            });
        };
        if !self.architecture.has_experts() {
            let message = format!("{} has no experts", self.theirs);
            self.refuse(message, layer.span, "expected `mlp`", "a class has the same layers in every block");
            return None;
        }
        let shared = self.shared(layer, moe)?;
        if let Some(first) = moe.zero_computation.first() {
            let (at, help) = (layer.argument_span("experts"), "every expert there computes");
            let message = format!("{} has no `{}` experts", self.theirs, first.kind.word());
            self.refuse(message, at, "expected `NUMBER * mlp(..)`", help);
        }
        if moe.weighs_input {
            let (at, help) = (layer.argument_span("weigh"), "an activation lies between, so the results differ");
            self.refuse(format!("{} weighs what experts give", self.theirs), at, "expected no `weigh`", help);
        }
        if moe.latent.is_some() {
            let (at, help) = (layer.argument_span("latent"), "experts there work on the width of the model");
            self.refuse(format!("{} has no latent experts", self.theirs), at, "expected no `latent`", help);
        }
        if moe.capacity.is_some_and(|capacity| capacity.evaluation_factor > 0.0) {
            let (at, help) =
                (layer.argument_span("capacity"), "with `evaluation_factor: 0` the bound is one of training");
            let message = format!("the experts of {} take every token that is sent to them", self.theirs);
            self.refuse(message, at, "expected no bound", help);
        }
        let chosen = self.route(&moe.route);
        let Some(mlp) = only_mlp(&moe.expert) else {
            let (at, expected) = (layer.argument_span("experts"), "expected `NUMBER * mlp(..)`");
            let message = format!("the experts of {} are gated maps", self.theirs);
            self.refuse(message, at, expected, "any other layers have no counterpart there");
            return None;
        };
        let (hidden, activation) = self.mlp(mlp, false)?;
        let (chosen, normalized) = chosen?;
        let experts = Experts { number: moe.experts, chosen, normalized, shared };
        Some(Numbers { heads: 0, kv_heads: 0, window: None, hidden, activation, experts: Some(experts) })
    }

    /// Checks what every token goes to, and gives its inner width; 0 if there is nothing of the kind.
    fn shared(&mut self, layer: &Layer, moe: &Moe) -> Option<usize> {
        let at = layer.argument_span("shared");
        match (self.architecture, moe.shared) {
            (Architecture::Qwen2Moe, shared) => {
                let mlp = only_mlp(&moe.shared_expert);
                if let Some(mlp) = mlp.filter(|_| shared == 1 && moe.shared_gate) {
                    return self.mlp(mlp, false).map(|(hidden, _)| hidden);
                }
                let help = "write `shared: 1 * mlp(..), shared_gate: true`";
                self.refuse("Qwen2-MoE has one shared expert, behind a gate", at, "expected one with a gate", help);
                None
            }
            (_, 0) => Some(0),
            _ => {
                let help = "every expert there is one that the router has chosen; Qwen2-MoE has one behind a gate";
                self.refuse(format!("{} has no shared experts", self.theirs), at, "expected no `shared`", help);
                None
            }
        }
    }

    /// Checks the maps of a feed-forward layer or an expert, and gives their inner width and activation.
    fn mlp(&mut self, mlp: &Layer, any_bias: bool) -> Option<(usize, &'static str)> {
        let (activation, bias) = (mlp.arguments.word("activation"), mlp.arguments.bool("bias"));
        let is_gpt2 = self.architecture == Architecture::Gpt2;
        let theirs = match self.architecture {
            Architecture::Gpt2 => true,
            Architecture::Llama => any_bias,
            _ => false,
        };
        if theirs && !bias {
            self.remarks.fold("gave the maps of feed-forward layers biases of 0");
        } else if bias && !theirs {
            let (at, message) = (mlp.argument_span("bias"), format!("the maps of {} have no biases", self.theirs));
            let help = "write `bias: false`; a bias that was trained cannot be left out";
            self.refuse(message, at, "expected `bias: false`", help);
        }
        if (activation == "swiglu") == is_gpt2 {
            let expected =
                if is_gpt2 { "expected `activation: gelu`, `relu` or `silu`" } else { "expected `activation: swiglu`" };
            let message = format!("{} has no {activation}", self.theirs);
            self.refuse(message, mlp.argument_span("activation"), expected, "the activation is a part of the class");
            return None;
        }
        // The gate's function is the activation of theirs.
        let activation = if is_gpt2 { activation } else { "silu" };
        Some((mlp.arguments.size("hidden"), activation))
    }

    /// Checks the router, and gives the number of experts of a token and whether their weights sum to 1.
    fn route(&mut self, route: &Route) -> Option<(usize, bool)> {
        let (name, arguments, theirs) = (route.strategy.name(), &route.arguments, self.theirs);
        let at = |argument| arguments.span(argument).unwrap_or(route.span);
        let mut normalized = true;
        match name {
            "softmax_top_k" if arguments.size("groups_kept") < arguments.size("groups") => {
                let message = format!("the tokens of {theirs} choose from all experts");
                self.refuse(message, at("groups"), "expected no `groups`", "groups change which experts are chosen");
                return None;
            }
            "softmax_top_k" => {
                normalized = arguments.word("normalize") == "selected";
                if !normalized && self.architecture == Architecture::Mixtral {
                    let help = "its softmax is over the chosen experts alone, so the weights of their results differ";
                    let message = "the weights of a token's experts sum to 1 in Mixtral";
                    self.refuse(message, at("normalize"), "expected `normalize: selected`", help);
                    return None;
                }
            }
            "noisy_top_k" if !arguments.bool("noise_at_evaluation") => {
                self.remarks.fold("left out what makes the router's noise, which this model has in training only");
            }
            "noisy_top_k" => {
                let help = "without it the noise is one of training, and is left out";
                let message = format!("the router of {theirs} draws no noise");
                self.refuse(message, at("noise_at_evaluation"), "expected `noise_at_evaluation: false`", help);
                return None;
            }
            _ => {
                let help = "the weights of its router would fit, and mean something else";
                let message = format!("{theirs} has no router `{name}`");
                self.refuse(message, route.span, "expected `softmax_top_k(k: .., bias: false)`", help);
                return None;
            }
        }
        if arguments.bool("bias") {
            let help = "write `bias: false`; a bias that was trained cannot be left out";
            self.refuse(format!("the router of {theirs} has no bias"), at("bias"), "expected `bias: false`", help);
        }
        Some((arguments.size("k"), normalized))
    }

    fn unembed(&mut self, unembed: &Layer) {
        if unembed.arguments.bool("bias") {
            let (at, message) = (unembed.argument_span("bias"), format!("the scores of {} have no bias", self.theirs));
            let help = "write `unembed(bias: false)`; a bias that was trained cannot be left out";
            self.refuse(message, at, "expected `bias: false`", help);
        }
    }

    /// A class has one number for all blocks.
    fn same(&mut self, block: &Block<'_>, first: Numbers, other: Numbers) {
        if first != other {
            let (what, at) = if (first.heads, first.kv_heads) != (other.heads, other.kv_heads) {
                ("number of heads", block.attention.span)
            } else if first.window != other.window {
                ("window", block.attention.span)
            } else {
                ("feed-forward layer", block.forward.span)
            };
            let message = format!("{} has the same {what} in every block", self.theirs);
            self.refuse(message, at, "another one than in the first block", "give all blocks the same sizes");
        }
    }
}

impl Fit {
    /// Puts what differs into tensors that have the names of the class.
    pub(crate) fn apply(&self, tensors: &mut BTreeMap<String, Tensor>) {
        let network = &self.network;
        for (block, &factor) in self.query_factors.iter().enumerate().filter(|(_, factor)| **factor != 1.0) {
            let names: &[&str] = match (network.architecture, network.architecture.query_norm()) {
                (Architecture::Gpt2, _) => &["attn.c_attn.weight", "attn.c_attn.bias"],
                (_, "none") => &["self_attn.q_proj.weight", "self_attn.q_proj.bias"],
                // A norm takes every factor before it out again.
                _ => &["self_attn.q_norm.weight"],
            };
            for name in names {
                let Some(made) = tensors.get_mut(&format!("{}.{block}.{name}", network.prefix())) else { continue };
                // Queries are the first third of what GPT-2 computes at once, and its maps are `[in, out]`.
                let together = network.architecture == Architecture::Gpt2;
                let is_query = |i: usize| !together || i % (3 * network.width) < network.width;
                let scaled = |(i, x): (usize, f64)| (if is_query(i) { x * factor } else { x }) as f32;
                let values = made.to_f64().into_iter().enumerate().map(scaled).collect();
                *made = tensor(made.shape(), values);
            }
        }
        for (name, length) in self.biases() {
            tensors.entry(name).or_insert_with(|| tensor(&[length], vec![0.0; length]));
        }
        if network.architecture == Architecture::Gpt2 {
            let (context, width) = (network.context, network.width);
            let zeros = || tensor(&[context, width], vec![0.0; context * width]);
            tensors.entry("transformer.wpe.weight".into()).or_insert_with(zeros);
        }
    }

    /// The biases that the class has, with their lengths.
    fn biases(&self) -> Vec<(String, usize)> {
        let network = &self.network;
        let Network { architecture, width, hidden, mlp_bias, .. } = *network;
        let (inputs, output) = network.biases();
        let attention: &[(&str, usize)] =
            &[("self_attn.q_proj", width), ("self_attn.k_proj", width), ("self_attn.v_proj", width)];
        let names = if architecture == Architecture::Gpt2 {
            vec![("attn.c_attn", 3 * width), ("attn.c_proj", width), ("mlp.c_fc", hidden), ("mlp.c_proj", width)]
        } else {
            let forward = [("mlp.gate_proj", hidden), ("mlp.up_proj", hidden), ("mlp.down_proj", width)];
            let inputs = attention.iter().copied().filter(|_| inputs);
            let output = [("self_attn.o_proj", width)].into_iter().filter(|_| output);
            inputs.chain(output).chain(forward.into_iter().filter(|_| mlp_bias)).collect()
        };
        let prefix = network.prefix();
        let bias = |block: usize, (map, length): &(&str, usize)| (format!("{prefix}.{block}.{map}.bias"), *length);
        (0..network.layers).flat_map(|block| names.iter().map(move |name| bias(block, name))).collect()
    }
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::new(shape, Data::F32(values)).invariant("there is a value for every element")
}
