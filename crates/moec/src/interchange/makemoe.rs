//! What the code of makeMoE computes (github.com/AviSoori1x/makeMoE), and how a model of ours differs from it.
//!
//! makeMoE adds learned positions to token vectors. Its blocks are `x + sa(ln1(x))` and `x + smoe(ln2(x))`, with layer norms of
//! epsilon 1e-5: attention without biases of queries, keys and values, whose scores are divided by the root of the *model's*
//! width, and a mixture of relu experts behind a noisy top-k router, which draws its noise in evaluation too. A layer norm and
//! scores with a bias end it. All of its linear maps but those three have biases.
//!
//! The names and shapes of tensors show little of that, so that weights of other models would load into it and mean something
//! else. An export therefore either puts a difference into the weights, exactly, or refuses the model; an import refuses a spec
//! that computes anything else than makeMoE does. The names of the tensors are the business of `moec-runtime`.

use std::collections::BTreeMap;

use moec_ir::{Data, Invariant, Tensor};
use moec_model::{Attention, Layer, Model, Moe, Route};
use moec_syntax::{Diagnostic, Span};

use super::{Block, Decoder, Obstacles, Remarks, no_counterpart, only_mlp};

const WHOSE: &str = "makeMoE's model";

/// Epsilon of its layer norms: PyTorch's default.
const EPSILON: f64 = 1e-5;

/// A bias of the deviation of noise whose softplus is 0 in float32, and in float64.
const NO_NOISE: f32 = -1e4;

/// Which way weights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To makeMoE: what can be put into the weights is.
    Export,
    /// From makeMoE: the spec must compute what it does.
    Import,
}

/// How a model of ours becomes one of makeMoE.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fit {
    /// What is to be said.
    pub(crate) remarks: Remarks,
    /// Factors of the weights of queries, by block.
    query_factors: Vec<f64>,
    sizes: Sizes,
}

/// The numbers at the head of makeMoE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    /// `block_size`, T.
    context: usize,
    /// `n_embed`, C.
    width: usize,
    /// `n_head`, H.
    heads: usize,
    /// `n_layer`.
    layers: usize,
    /// `num_experts`, E.
    experts: usize,
    /// `top_k`, K.
    chosen: usize,
    /// Width between the maps of its `Expert`, F: four times the width as it is published.
    hidden: usize,
}

/// How the model corresponds to makeMoE's.
///
/// # Errors
/// What makeMoE computes in another way, each with its place in the spec.
pub(crate) fn fit(model: &Model, direction: Direction) -> Result<Fit, Vec<Diagnostic>> {
    let decoder = Decoder::of(model, WHOSE)?;
    let mut check = Check { direction, obstacles: Obstacles::default(), remarks: Remarks::default() };
    check.embed(decoder.embed);
    let mut query_factors = Vec::new();
    let mut sizes: Option<Sizes> = None;
    for block in &decoder.blocks {
        check.norm(block.attention_norm);
        query_factors.push(check.attention(block.attention));
        check.norm(block.forward_norm);
        let Some(mixture) = check.mixture(block.forward) else { continue };
        let of_block = Sizes {
            context: model.context,
            width: model.width,
            heads: block.attention.arguments.size("heads"),
            layers: decoder.blocks.len(),
            experts: mixture.experts,
            chosen: mixture.chosen,
            hidden: mixture.hidden,
        };
        check.same(block, *sizes.get_or_insert(of_block), of_block);
    }
    check.norm(decoder.norm);
    check.unembed(decoder.unembed);
    match sizes {
        Some(sizes) if check.obstacles.0.is_empty() => {
            if direction == Direction::Export {
                sizes.say(&mut check.remarks);
            }
            Ok(Fit { remarks: check.remarks, query_factors, sizes })
        }
        _ => {
            let mut obstacles = check.obstacles.in_order();
            if direction == Direction::Import {
                let last = obstacles
                    .pop()
                    .map(|d| d.help("--trust-spec goes by the spec, for weights of code that was changed"));
                obstacles.extend(last);
            }
            Err(obstacles)
        }
    }
}

impl Sizes {
    /// What must stand in makeMoE's code, so that the weights fit.
    fn say(self, remarks: &mut Remarks) {
        let Sizes { context, width, heads, layers, experts, chosen, hidden } = self;
        remarks.note(format!(
            "makeMoE's numbers for it: block_size = {context}, n_embed = {width}, n_head = {heads}, n_layer = {layers}, \
             num_experts = {experts}, top_k = {chosen}"
        ));
        if hidden != 4 * width {
            remarks.note(format!(
                "an expert is {hidden} wide inside: write that into makeMoE's class `Expert`, which has 4 * n_embed, {}",
                4 * width
            ));
        }
    }
}

/// The numbers of a mixture.
struct Mixture {
    experts: usize,
    chosen: usize,
    hidden: usize,
}

/// What has been found so far.
struct Check {
    direction: Direction,
    obstacles: Obstacles,
    remarks: Remarks,
}

impl Check {
    fn refuse(&mut self, message: impl Into<String>, at: Span, expected: impl Into<String>, help: impl Into<String>) {
        self.obstacles.push(no_counterpart(message, at, expected).help(help));
    }

    /// A difference that an export can put into the weights, and an import must not have: there `expected` is what makeMoE
    /// computes, as a spec says it.
    fn fold(&mut self, fold: &str, message: &str, at: Span, expected: &str) {
        match self.direction {
            Direction::Export => self.remarks.fold(fold),
            Direction::Import => {
                self.refuse(message, at, format!("expected {expected}"), format!("write {expected}"));
            }
        }
    }

    fn embed(&mut self, embed: &Layer) {
        let (at, message) = (embed.argument_span("positions"), "makeMoE has learned positions");
        match embed.arguments.word("positions") {
            "learned" => {}
            "none" => {
                let fold = "gave every position a vector of zeros, since this model has no positions";
                self.fold(fold, message, at, "`positions: learned`");
            }
            _ => {
                let help = "queries and keys that are turned by their position are nothing that its weights could do";
                self.refuse(message, at, "expected `positions: learned`", help);
            }
        }
    }

    fn norm(&mut self, norm: &Layer) {
        if norm.name() != "layer_norm" {
            let help = "`layer_norm` also takes the mean off, so the results differ";
            self.refuse("makeMoE has layer norms", norm.span, "expected `layer_norm`", help);
        } else if norm.arguments.float("epsilon") != EPSILON {
            let (at, message) = (norm.argument_span("epsilon"), "makeMoE's layer norms have an epsilon of 0.00001");
            self.refuse(message, at, "expected `epsilon: 0.00001`", "leave it out: it is the default");
        }
    }

    /// Checks attention, and gives the factor of the weights of its queries.
    fn attention(&mut self, attention: &Layer) -> f64 {
        let arguments = &attention.arguments;
        if arguments.bool("bias") {
            let (at, message) = (attention.argument_span("bias"), "makeMoE's queries, keys and values have no bias");
            self.refuse(message, at, "expected `bias: false`", "leave it out: `false` is the default");
        }
        if attention.of::<Attention>().is_some_and(|attention| attention.kv_heads < attention.heads) {
            let (at, help) = (attention.argument_span("kv_heads"), "every head there has keys and values of its own");
            self.refuse("makeMoE has as many heads of keys as of queries", at, "expected no `kv_heads`", help);
        }
        let windowed = attention.of::<Attention>().is_some_and(|attention| attention.window.is_some());
        for (there, argument, message) in [
            (windowed, "window", "makeMoE's attention sees all that comes before"),
            (arguments.bool("sink"), "sink", "makeMoE's attention has no sinks"),
        ] {
            if there {
                let (at, help) = (attention.argument_span(argument), "the results differ");
                self.refuse(message, at, format!("expected no `{argument}`"), help);
            }
        }
        if arguments.word("norm") != "none" {
            let (at, message) = (attention.argument_span("norm"), "makeMoE does not normalise queries and keys");
            self.refuse(message, at, "expected `norm: none`", "leave it out: `none` is the default");
        }
        if !arguments.bool("output_bias") {
            let (at, message) = (attention.argument_span("output_bias"), "makeMoE's output projection has a bias");
            self.fold("gave the output projections of attention biases of 0", message, at, "`output_bias: true`");
        }
        let heads = arguments.size("heads");
        // A single head is as wide as the model.
        if arguments.word("scale") == "width" || heads == 1 {
            return 1.0;
        }
        let fold = format!(
            "folded the scale of attention into the query weights, times the root of {heads} heads: makeMoE divides scores by \
             the root of the model's width, and this model by that of a head's"
        );
        let (at, message) =
            (attention.argument_span("scale"), "makeMoE divides scores by the root of the model's width");
        self.fold(&fold, message, at, "`scale: width`");
        // Scores are q.k / sqrt(D) here and q.k / sqrt(C) there, and C = H D.
        (heads as f64).sqrt()
    }

    /// Checks the second branch of a block.
    fn mixture(&mut self, layer: &Layer) -> Option<Mixture> {
        let Some(moe) = layer.of::<Moe>() else {
            let help = "makeMoE has a mixture of experts in every block";
            self.refuse("makeMoE's blocks end in a mixture of experts", layer.span, "expected `moe`", help);
            return None;
        };
        if moe.shared > 0 {
            let help = "every expert there is one that the router has chosen";
            self.refuse("makeMoE has no shared experts", layer.argument_span("shared"), "expected no `shared`", help);
        }
        if let Some(first) = moe.zero_computation.first() {
            let (at, message) =
                (layer.argument_span("experts"), format!("makeMoE has no `{}` experts", first.kind.word()));
            let help = "every expert there computes";
            self.refuse(message, at, "expected `NUMBER * mlp(..)`", help);
        }
        if moe.weighs_input {
            let (at, help) = (layer.argument_span("weigh"), "an activation lies between, so the results differ");
            self.refuse("makeMoE weighs what experts give", at, "expected no `weigh`", help);
        }
        if moe.latent.is_some() {
            let (at, help) = (layer.argument_span("latent"), "experts there work on the width of the model");
            self.refuse("makeMoE has no latent experts", at, "expected no `latent`", help);
        }
        if moe.capacity.is_some_and(|capacity| capacity.evaluation_factor > 0.0) {
            let (at, help) =
                (layer.argument_span("capacity"), "with `evaluation_factor: 0` the bound is one of training");
            self.refuse("makeMoE's experts take every token that is sent to them", at, "expected no bound", help);
        }
        let chosen = self.route(&moe.route);
        let Some(mlp) = only_mlp(&moe.expert) else {
            let (at, message) = (layer.argument_span("experts"), "makeMoE's experts are two linear maps with relu");
            self.refuse(message, at, "expected `NUMBER * mlp(..)`", "any other layers have no counterpart there");
            return None;
        };
        self.expert(mlp);
        Some(Mixture { experts: moe.experts, chosen: chosen?, hidden: mlp.arguments.size("hidden") })
    }

    fn expert(&mut self, mlp: &Layer) {
        let activation = mlp.arguments.word("activation");
        if activation != "relu" {
            let (at, message) =
                (mlp.argument_span("activation"), format!("makeMoE's experts have relu, not {activation}"));
            self.refuse(message, at, "expected `activation: relu`", "train the model with relu to use it there");
        }
        if !mlp.arguments.bool("bias") {
            let at = mlp.argument_span("bias");
            self.fold("gave the experts biases of 0", "the maps of makeMoE's experts have biases", at, "`bias: true`");
        }
    }

    /// Checks the router, and gives the number of experts of a token.
    fn route(&mut self, route: &Route) -> Option<usize> {
        let (name, arguments) = (route.strategy.name(), &route.arguments);
        let at = |argument| arguments.span(argument).unwrap_or(route.span);
        match name {
            "noisy_top_k" => {
                let quiet = !arguments.bool("noise_at_evaluation");
                // Without noise the weights are the right ones, whatever its deviation is in training.
                if arguments.float("epsilon") != 0.0 && !(quiet && self.direction == Direction::Export) {
                    let message = "makeMoE adds nothing to the deviation of its noise";
                    let help = "left out, it is 0.01 as in Shazeer et al.";
                    self.refuse(message, at("epsilon"), "expected `epsilon: 0`", help);
                }
                if quiet {
                    self.remarks.note(
                        "makeMoE's router draws noise in evaluation and sampling too, where this model has none: with the same \
                         weights its losses there are others, those of `noise_at_evaluation: true` and `epsilon: 0`",
                    );
                }
            }
            "softmax_top_k" if arguments.size("groups_kept") < arguments.size("groups") => {
                let message = "makeMoE's tokens choose from all experts";
                self.refuse(message, at("groups"), "expected no `groups`", "groups change which experts are chosen");
                return None;
            }
            "softmax_top_k" if arguments.word("normalize") == "selected" => self.fold(
                "gave the router noise of deviation 0, since makeMoE's always draws some: its `noise_linear` has weights of 0 \
                 and biases of -10000, which training there does not move",
                "makeMoE's router adds noise to its scores",
                route.span,
                "`noisy_top_k(k: .., epsilon: 0)`",
            ),
            "softmax_top_k" => {
                let help = "its softmax is over the chosen experts alone, so the weights of their results differ";
                let message = "the weights of a token's experts sum to 1 in makeMoE";
                self.refuse(message, at("normalize"), "expected `normalize: selected`", help);
                return None;
            }
            _ => {
                let (message, expected) = (format!("makeMoE has no router `{name}`"), "expected `noisy_top_k(k: ..)`");
                let help = match self.direction {
                    Direction::Export => "`softmax_top_k(k: ..)` can be exported as well, with noise of deviation 0",
                    Direction::Import => "write `noisy_top_k(k: .., epsilon: 0)`",
                };
                self.refuse(message, route.span, expected, help);
                return None;
            }
        }
        if !arguments.bool("bias") {
            self.fold("gave the router biases of 0", "makeMoE's router has biases", at("bias"), "`bias: true`");
        }
        Some(arguments.size("k"))
    }

    fn unembed(&mut self, unembed: &Layer) {
        if unembed.arguments.bool("tied") {
            let fold = "wrote the token vectors as weights of the scores as well, which are one tensor here and two in makeMoE";
            let (at, message) = (unembed.argument_span("tied"), "makeMoE's scores have weights of their own");
            self.fold(fold, message, at, "`tied: false`");
        }
        if !unembed.arguments.bool("bias") {
            let at = unembed.argument_span("bias");
            self.fold("gave the scores a bias of 0", "makeMoE's scores have a bias", at, "`bias: true`");
        }
    }

    /// makeMoE has one number for all blocks.
    fn same(&mut self, block: &Block<'_>, first: Sizes, other: Sizes) {
        let (attention, forward) = (block.attention, block.forward);
        let moe = forward.of::<Moe>();
        let at_k = moe.and_then(|moe| moe.route.arguments.span("k")).unwrap_or(forward.span);
        let at_experts = forward.argument_span("experts");
        for (what, at, first, other) in [
            ("heads", attention.argument_span("heads"), first.heads, other.heads),
            ("experts", at_experts, first.experts, other.experts),
            ("experts per token", at_k, first.chosen, other.chosen),
            ("numbers inside an expert", at_experts, first.hidden, other.hidden),
        ] {
            if first != other {
                let message = format!("makeMoE's blocks all have the same number of {what}");
                let expected = format!("{other} here, {first} in the first block");
                self.refuse(message, at, expected, "it is a constant of its code");
            }
        }
    }
}

impl Fit {
    /// Puts what differs into tensors that have makeMoE's names.
    pub(crate) fn apply(&self, tensors: &mut BTreeMap<String, Tensor>) {
        let Sizes { context, width, heads, layers, experts, hidden, .. } = self.sizes;
        for (block, &factor) in self.query_factors.iter().enumerate() {
            let names = (0..heads).map(|head| format!("blocks.{block}.sa.heads.{head}.query.weight"));
            for name in names.filter(|_| factor != 1.0) {
                if let Some(weight) = tensors.get_mut(&name) {
                    let scaled = weight.to_f64().into_iter().map(|x| (x * factor) as f32).collect();
                    *weight = tensor(weight.shape(), scaled);
                }
            }
        }
        let positions = "position_embedding_table.weight".to_string();
        tensors.entry(positions).or_insert_with(|| filled(&[context, width], 0.0));
        for block in 0..layers {
            let projection = format!("blocks.{block}.sa.proj.bias");
            tensors.entry(projection).or_insert_with(|| filled(&[width], 0.0));
            let smoe = format!("blocks.{block}.smoe");
            let has_noise = tensors.contains_key(&format!("{smoe}.router.noise_linear.weight"));
            let mut absent = |name: &str, shape: &[usize], value| {
                tensors.entry(format!("{smoe}.{name}")).or_insert_with(|| filled(shape, value));
            };
            absent("router.topkroute_linear.bias", &[experts], 0.0);
            absent("router.noise_linear.weight", &[experts, width], 0.0);
            // A noisy router without biases keeps its noise.
            absent("router.noise_linear.bias", &[experts], if has_noise { 0.0 } else { NO_NOISE });
            for expert in 0..experts {
                absent(&format!("experts.{expert}.net.0.bias"), &[hidden], 0.0);
                absent(&format!("experts.{expert}.net.2.bias"), &[width], 0.0);
            }
        }
        if let Some(token) = tensors.get("token_embedding_table.weight").cloned() {
            let vocab = token.shape().first().copied().unwrap_or(0);
            tensors.entry("lm_head.weight".into()).or_insert(token);
            tensors.entry("lm_head.bias".into()).or_insert_with(|| filled(&[vocab], 0.0));
        }
    }
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::new(shape, Data::F32(values)).invariant("there is a value for every element")
}

fn filled(shape: &[usize], value: f32) -> Tensor {
    tensor(shape, vec![value; shape.iter().product()])
}

#[cfg(test)]
mod tests {
    use super::super::tests::model;
    use super::*;

    const BODY: &str = "embed(width: 12)
  repeat 2 {
    residual { layer_norm  attention(heads: 3, scale: width, dropout: 0.1) }
    residual { layer_norm  moe(experts: 4 * mlp(hidden: 48), route: noisy_top_k(k: 2, epsilon: 0)) }
  }
  layer_norm
  unembed";

    /// The first place that is pointed at, with what is said there.
    fn obstacles(body: &str, direction: Direction) -> Vec<(String, String)> {
        let spec = model(body);
        let found = fit(&spec.checked.model, direction).map(|_| ()).unwrap_err();
        found.iter().for_each(|d| assert!(!d.helps.is_empty(), "{d}"));
        let place = |d: &Diagnostic| (spec.source.slice(d.labels[0].span).to_string(), d.message.clone());
        found.iter().map(place).collect()
    }

    fn remarks(body: &str) -> Remarks {
        let spec = model(body);
        fit(&spec.checked.model, Direction::Export).unwrap_or_else(|d| panic!("{d:?}")).remarks
    }

    #[test]
    fn its_own_model_needs_nothing() {
        let found = remarks(BODY);
        assert_eq!(found.folds, [""; 0]);
        let numbers = "makeMoE's numbers for it: block_size = 7, n_embed = 12, n_head = 3, n_layer = 2, num_experts = 4, \
                       top_k = 2";
        assert!(found.notes.contains(&numbers.to_string()), "{found:?}");
        assert!(found.notes.iter().any(|note| note.contains("draws noise in evaluation")), "{found:?}");
        let noisy = BODY.replace("epsilon: 0", "epsilon: 0, noise_at_evaluation: true");
        assert_eq!(remarks(&noisy).notes, [numbers]);
        // What does nothing in evaluation is no difference, nor are losses.
        let trained =
            BODY.replace("epsilon: 0)", "epsilon: 0), capacity: capacity(evaluation_factor: 0), balance: [load]");
        assert_eq!(remarks(&trained), found);
        let narrow = remarks(&BODY.replace("hidden: 48", "hidden: 47"));
        assert!(narrow.notes.iter().any(|note| note.contains("47 wide inside")), "{narrow:?}");
        let spec = model(BODY);
        assert!(fit(&spec.checked.model, Direction::Import).is_ok());
    }

    #[test]
    fn what_it_computes_otherwise_is_refused_at_its_place() {
        for (ours, other, place, message) in [
            ("width: 12", "width: 12, positions: rotary", "rotary", "learned positions"),
            ("scale: width", "scale: width, bias: true", "true", "no bias"),
            ("scale: width", "scale: width, norm: head", "head", "does not normalise"),
            ("scale: width", "scale: width, kv_heads: 1", "1", "as many heads of keys"),
            ("residual { layer_norm  attention", "residual { rms_norm  attention", "rms_norm", "layer norms"),
            ("residual { layer_norm  moe", "residual { layer_norm(epsilon: 1e-6)  moe", "1e-6", "epsilon of 0.00001"),
            ("  layer_norm\n  unembed", "  rms_norm\n  unembed", "rms_norm", "layer norms"),
            ("hidden: 48", "hidden: 48, activation: gelu", "gelu", "relu, not gelu"),
            ("hidden: 48", "hidden: 48, activation: swiglu", "swiglu", "relu, not swiglu"),
            ("noisy_top_k(k: 2, epsilon: 0)", "switch", "switch", "no router `switch`"),
            ("noisy_top_k(k: 2, epsilon: 0)", "gshard", "gshard", "no router `gshard`"),
            (
                "noisy_top_k(k: 2, epsilon: 0)",
                "softmax_top_k(k: 2, groups: 2, groups_kept: 1)",
                "2",
                "choose from all experts",
            ),
            ("noisy_top_k(k: 2, epsilon: 0)", "sigmoid_top_k(k: 2)", "sigmoid_top_k(k: 2)", "no router"),
            ("noisy_top_k(k: 2, epsilon: 0)", "softmax_top_k(k: 2, normalize: all)", "all", "sum to 1"),
            ("epsilon: 0", "noise_at_evaluation: true", "noisy_top_k(k: 2, noise_at_evaluation: true)", "deviation"),
            ("route:", "shared: 1 * mlp(hidden: 5), route:", "1 * mlp(hidden: 5)", "no shared experts"),
            ("route:", "capacity: capacity(factor: 1.5), route:", "capacity(factor: 1.5)", "take every token"),
            ("4 * mlp(hidden: 48)", "[4 * mlp(hidden: 48), copy]", "[4 * mlp(hidden: 48), copy]", "no `copy` experts"),
            ("route:", "latent: 5, route:", "5", "no latent experts"),
            ("route:", "weigh: input, route:", "input", "weighs what experts give"),
            (
                "4 * mlp(hidden: 48)",
                "4 * { layer_norm  mlp(hidden: 48) }",
                "4 * { layer_norm  mlp(hidden: 48) }",
                "two",
            ),
            ("heads: 3", "heads: if i == 0 { 3 } else { 2 }", "if i == 0 { 3 } else { 2 }", "same number of heads"),
            ("k: 2", "k: 1 + i", "1 + i", "same number of experts per token"),
            ("hidden: 48", "hidden: 48 + i", "4 * mlp(hidden: 48 + i)", "same number of numbers inside"),
            (
                "moe(experts: 4 * mlp(hidden: 48), route: noisy_top_k(k: 2, epsilon: 0))",
                "mlp(hidden: 48)",
                "mlp(hidden: 48)",
                "mixture",
            ),
        ] {
            let body = BODY.replace("repeat 2 {", "repeat 2 as i {");
            let changed = body.replace(ours, other);
            assert_ne!(changed, body, "{ours}");
            for direction in [Direction::Export, Direction::Import] {
                let found = obstacles(&changed, direction);
                assert_eq!(found.len(), 1, "{other}: {found:?}");
                assert!(found[0].0 == place && found[0].1.contains(message), "{other}: {found:?}");
            }
        }
    }

    #[test]
    fn everything_is_said_at_once_and_each_thing_once() {
        let body = "embed(width: 12, positions: rotary)
  repeat 3 {
    residual { rms_norm  attention(heads: 3) }
    residual { layer_norm  moe(experts: 4 * mlp(hidden: 48, activation: gelu), route: switch, capacity: capacity()) }
  }
  layer_norm
  unembed";
        let places: Vec<String> = obstacles(body, Direction::Export).into_iter().map(|(place, _)| place).collect();
        assert_eq!(places, ["rotary", "rms_norm", "gelu", "switch", "capacity()"]);
    }

    #[test]
    fn what_can_be_put_into_the_weights_is_and_imports_refuse_it() {
        for (ours, other, place, fold) in [
            ("scale: width", "scale: head", "head", "root of 3 heads"),
            ("width: 12", "width: 12, positions: none", "none", "zeros"),
            ("scale: width", "scale: width, output_bias: false", "false", "output projections"),
            ("hidden: 48", "hidden: 48, bias: false", "false", "experts biases"),
            ("epsilon: 0", "epsilon: 0, bias: false", "false", "router biases"),
            ("unembed", "unembed(bias: false)", "false", "scores a bias"),
            ("unembed", "unembed(tied: true)", "true", "token vectors"),
            ("noisy_top_k(k: 2, epsilon: 0)", "softmax_top_k(k: 2)", "softmax_top_k(k: 2)", "deviation 0"),
        ] {
            let changed = BODY.replace(ours, other);
            let folds = remarks(&changed).folds;
            assert!(folds.len() == 1 && folds[0].contains(fold), "{other}: {folds:?}");
            let found = obstacles(&changed, Direction::Import);
            assert!(found.len() == 1 && found[0].0 == place, "{other}: {found:?}");
        }
        // The default is a difference too, at the layer that leaves it out.
        let found = obstacles(&BODY.replace("scale: width, ", ""), Direction::Import);
        assert_eq!(found[0].0, "attention(heads: 3, dropout: 0.1)");
    }

    #[test]
    fn tensors_that_this_model_lacks_are_made() {
        let body = BODY.replace("noisy_top_k(k: 2, epsilon: 0)", "softmax_top_k(k: 2, bias: false)");
        let spec = model(&body.replace("scale: width", "scale: head").replace("unembed", "unembed(bias: false)"));
        let fit = fit(&spec.checked.model, Direction::Export).unwrap();
        let weight = |shape: &[usize]| filled(shape, 0.5);
        let mut tensors = BTreeMap::from([
            ("token_embedding_table.weight".to_string(), weight(&[5, 12])),
            ("lm_head.weight".to_string(), weight(&[5, 12])),
            ("blocks.1.sa.heads.2.query.weight".to_string(), weight(&[4, 12])),
            ("blocks.1.sa.heads.2.key.weight".to_string(), weight(&[4, 12])),
            ("blocks.0.smoe.experts.3.net.0.bias".to_string(), weight(&[48])),
        ]);
        fit.apply(&mut tensors);
        let first = |name: &str| (tensors[name].shape().to_vec(), tensors[name].to_f32()[0]);
        assert_eq!(first("blocks.1.sa.heads.2.query.weight"), (vec![4, 12], 0.5 * 3_f32.sqrt()));
        assert_eq!(first("blocks.1.sa.heads.2.key.weight"), (vec![4, 12], 0.5));
        assert_eq!(first("blocks.0.smoe.router.noise_linear.weight"), (vec![4, 12], 0.0));
        assert_eq!(first("blocks.1.smoe.router.noise_linear.bias"), (vec![4], -1e4));
        assert_eq!(first("blocks.1.smoe.router.topkroute_linear.bias"), (vec![4], 0.0));
        assert_eq!(first("blocks.0.smoe.experts.3.net.0.bias"), (vec![48], 0.5));
        assert_eq!(first("blocks.1.smoe.experts.0.net.2.bias"), (vec![12], 0.0));
        assert_eq!(first("lm_head.bias"), (vec![5], 0.0));
        assert_eq!(first("position_embedding_table.weight"), (vec![7, 12], 0.0));
        // softplus(-10000) is 0 in float32.
        assert_eq!((-1e4_f32).exp().ln_1p(), 0.0);

        // The noise of a noisy router without biases stays.
        let noise = "blocks.0.smoe.router.noise_linear".to_string();
        let mut noisy = BTreeMap::from([(format!("{noise}.weight"), weight(&[4, 12]))]);
        fit.apply(&mut noisy);
        assert_eq!(noisy[&format!("{noise}.bias")].to_f32(), [0.0; 4]);
    }
}
