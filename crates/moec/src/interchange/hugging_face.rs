//! Models of Hugging Face's `transformers` that are models of our language, number by number: a folder with `config.json` and
//! `model.safetensors`.
//!
//! | `model_type` | here |
//! |---|---|
//! | `gpt2` | learned positions, `layer_norm`, `attention(bias: true)`, `mlp(activation: gelu, relu or silu)` |
//! | `llama`, `mistral` | rotary positions, `rms_norm`, `attention`, `mlp(activation: swiglu)` |
//! | `qwen2` | the same with `attention(bias: true, output_bias: false)` |
//! | `qwen3` | as `llama`, with `attention(norm: head)` |
//! | `mixtral` | as `llama`, with `moe(.., route: softmax_top_k(bias: false))` in place of the `mlp` |
//! | `olmoe` | as `mixtral`, with `attention(norm: width)` and either `normalize` |
//! | `qwen3_moe` | the same with `attention(norm: head)` |
//! | `qwen2_moe` | the same without that norm, with `bias: true` and `shared: 1 * mlp(..), shared_gate: true` |
//!
//! A [`Network`] is what such a model and its `config.json` have in common. It is made of a model ([`of_model`]) or of a
//! configuration ([`of_config`]), each of which refuses what the other side cannot say, and it knows the configuration, the spec
//! and the names of the tensors. Queries and keys that are turned by their position are halves of a head on both sides, so no
//! row moves.

mod of_config;
mod of_model;

use std::collections::BTreeMap;

use moec_ir::{TOKEN_TABLE, Tensor};
use moec_runtime::{ExchangeError, Piece};
use serde_json::{Value, json};

pub(crate) use of_config::{ConfigError, of_config};
pub(crate) use of_model::of_model;

/// Base of the frequencies of rotary positions: ours is the paper's.
const ROPE_THETA: f64 = 10_000.0;

/// A class of `transformers` that models here correspond to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    Gpt2,
    Llama,
    Qwen2,
    Qwen3,
    Mixtral,
    Olmoe,
    Qwen3Moe,
    Qwen2Moe,
}

/// Which maps of attention have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AttentionBias {
    /// All of them.
    All,
    /// All of them, or none.
    AllOrNone,
    /// Queries, keys and values.
    Inputs,
    /// Queries, keys and values, or none.
    InputsOrNone,
    /// None.
    None,
}

impl Architecture {
    const ALL: [Architecture; 8] = [
        Architecture::Gpt2,
        Architecture::Llama,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Mixtral,
        Architecture::Olmoe,
        Architecture::Qwen3Moe,
        Architecture::Qwen2Moe,
    ];

    /// Its `model_type`.
    pub(crate) fn model_type(self) -> &'static str {
        match self {
            Architecture::Gpt2 => "gpt2",
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Mixtral => "mixtral",
            Architecture::Olmoe => "olmoe",
            Architecture::Qwen3Moe => "qwen3_moe",
            Architecture::Qwen2Moe => "qwen2_moe",
        }
    }

    /// The class that reads it.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Architecture::Gpt2 => "GPT2LMHeadModel",
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::Mixtral => "MixtralForCausalLM",
            Architecture::Olmoe => "OlmoeForCausalLM",
            Architecture::Qwen3Moe => "Qwen3MoeForCausalLM",
            Architecture::Qwen2Moe => "Qwen2MoeForCausalLM",
        }
    }

    /// Its name in sentences.
    fn title(self) -> &'static str {
        match self {
            Architecture::Gpt2 => "GPT-2",
            Architecture::Llama => "Llama",
            Architecture::Qwen2 => "Qwen2",
            Architecture::Qwen3 => "Qwen3",
            Architecture::Mixtral => "Mixtral",
            Architecture::Olmoe => "OLMoE",
            Architecture::Qwen3Moe => "Qwen3-MoE",
            Architecture::Qwen2Moe => "Qwen2-MoE",
        }
    }

    /// The norm of its blocks.
    fn norm(self) -> &'static str {
        if self == Architecture::Gpt2 { "layer_norm" } else { "rms_norm" }
    }

    /// How positions enter it.
    fn positions(self) -> &'static str {
        if self == Architecture::Gpt2 { "learned" } else { "rotary" }
    }

    /// The norm of its queries and keys.
    fn query_norm(self) -> &'static str {
        match self {
            Architecture::Qwen3 | Architecture::Qwen3Moe => "head",
            Architecture::Olmoe => "width",
            Architecture::Gpt2
            | Architecture::Llama
            | Architecture::Qwen2
            | Architecture::Mixtral
            | Architecture::Qwen2Moe => "none",
        }
    }

    fn attention_bias(self) -> AttentionBias {
        match self {
            Architecture::Gpt2 => AttentionBias::All,
            Architecture::Llama | Architecture::Qwen3 | Architecture::Olmoe | Architecture::Qwen3Moe => {
                AttentionBias::AllOrNone
            }
            Architecture::Qwen2 => AttentionBias::Inputs,
            Architecture::Qwen2Moe => AttentionBias::InputsOrNone,
            Architecture::Mixtral => AttentionBias::None,
        }
    }

    /// Whether the weights of a token's experts sum to 1 or not, as a field says.
    fn has_normalized_flag(self) -> bool {
        matches!(self, Architecture::Olmoe | Architecture::Qwen3Moe | Architecture::Qwen2Moe)
    }

    /// Whether its attention can see a window only, in every block.
    fn has_window(self) -> bool {
        self == Architecture::Mixtral
    }

    /// Whether its blocks have experts.
    fn has_experts(self) -> bool {
        self.has_normalized_flag() || self == Architecture::Mixtral
    }
}

/// The experts of every block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Experts {
    /// Their number, E.
    number: usize,
    /// How many of them a token goes to, K.
    chosen: usize,
    /// Whether the weights of a token's experts sum to 1: their softmax is over the chosen ones.
    normalized: bool,
    /// Width between the maps of the expert behind a gate that every token goes to; 0 if there is none.
    shared: usize,
}

/// A model on both sides.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    /// Its class.
    pub(crate) architecture: Architecture,
    /// Tokens, V.
    pub(crate) vocab: usize,
    /// Positions, T.
    pub(crate) context: usize,
    /// Width, C.
    width: usize,
    /// Number of blocks.
    layers: usize,
    /// Heads of attention, H.
    heads: usize,
    /// Heads of keys and values, which divide the others.
    kv_heads: usize,
    /// How many positions a token sees, if not all up to its own.
    window: Option<usize>,
    /// Width between the maps of a feed-forward layer or expert, F.
    hidden: usize,
    /// Function between them; of the gate where they are gated.
    activation: &'static str,
    /// Added to what norms divide by.
    epsilon: f64,
    /// Whether all maps of attention have biases, where the class leaves that open.
    attention_bias: bool,
    /// Whether the maps of a feed-forward layer have biases, where the class leaves that open.
    mlp_bias: bool,
    /// Whether the token vectors are the weights of the scores.
    tied: bool,
    experts: Option<Experts>,
}

impl Network {
    /// Whether queries, keys and values have biases, and whether the output projection has one.
    fn biases(&self) -> (bool, bool) {
        match self.architecture.attention_bias() {
            AttentionBias::All => (true, true),
            AttentionBias::AllOrNone => (self.attention_bias, self.attention_bias),
            AttentionBias::Inputs => (true, false),
            AttentionBias::InputsOrNone => (self.attention_bias, false),
            AttentionBias::None => (false, false),
        }
    }

    /// What the names of tensors of blocks begin with.
    fn prefix(&self) -> &'static str {
        if self.architecture == Architecture::Gpt2 { "transformer.h" } else { "model.layers" }
    }

    /// `config.json`.
    pub(crate) fn config(&self) -> Value {
        let mut config = json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.model_type(),
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "dtype": "float32",
            // Characters: none of them begins or ends a text.
            "bos_token_id": null,
            "eos_token_id": null,
            "pad_token_id": null,
        });
        let more = if self.architecture == Architecture::Gpt2 {
            json!({
                "n_positions": self.context,
                "n_embd": self.width,
                "n_layer": self.layers,
                "n_head": self.heads,
                "n_inner": self.hidden,
                "activation_function": self.activation,
                "layer_norm_epsilon": self.epsilon,
                "attn_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "resid_pdrop": 0.0,
            })
        } else {
            json!({
                "max_position_embeddings": self.context,
                "hidden_size": self.width,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.width / self.heads,
                "intermediate_size": self.hidden,
                "hidden_act": self.activation,
                "rms_norm_eps": self.epsilon,
                // Releases before 5 read the first, later ones the second.
                "rope_theta": ROPE_THETA,
                "rope_parameters": { "rope_type": "default", "rope_theta": ROPE_THETA },
                "attention_dropout": 0.0,
            })
        };
        let mut of_class = match self.architecture {
            Architecture::Llama => json!({ "mlp_bias": self.mlp_bias }),
            Architecture::Qwen2 | Architecture::Qwen3 => json!({ "use_sliding_window": false }),
            Architecture::Mixtral => json!({ "sliding_window": self.window, "router_jitter_noise": 0.0 }),
            Architecture::Olmoe => json!({ "clip_qkv": null }),
            Architecture::Qwen3Moe | Architecture::Qwen2Moe => json!({
                "moe_intermediate_size": self.hidden,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "use_sliding_window": false,
            }),
            Architecture::Gpt2 => json!({}),
        };
        if self.architecture.attention_bias() == AttentionBias::AllOrNone {
            of_class["attention_bias"] = self.attention_bias.into();
        }
        if let Some(Experts { number, chosen, normalized, shared }) = self.experts {
            let of_mixtral = self.architecture == Architecture::Mixtral;
            of_class[if of_mixtral { "num_local_experts" } else { "num_experts" }] = number.into();
            of_class["num_experts_per_tok"] = chosen.into();
            if !of_mixtral {
                of_class["norm_topk_prob"] = normalized.into();
            }
            if self.architecture == Architecture::Qwen2Moe {
                of_class["qkv_bias"] = self.attention_bias.into();
                of_class["shared_expert_intermediate_size"] = shared.into();
            }
        }
        if let Value::Object(config) = &mut config {
            for part in [more, of_class] {
                if let Value::Object(part) = part {
                    config.extend(part);
                }
            }
        }
        config
    }

    /// The spec of the model, before it is laid out.
    pub(crate) fn spec(&self) -> String {
        let Self { architecture, context, width, layers, heads, hidden, tied, .. } = self;
        let (name, positions) = (architecture.model_type(), architecture.positions());
        let norm = format!("{}(epsilon: {:e})", architecture.norm(), self.epsilon);
        let (bias, output_bias) = self.biases();
        let query_norm = match architecture.query_norm() {
            "none" => String::new(),
            norm => format!(", norm: {norm}, norm_epsilon: {:e}", self.epsilon),
        };
        let kv_heads = if self.kv_heads < *heads { format!(", kv_heads: {}", self.kv_heads) } else { String::new() };
        let window = self.window.map(|window| format!(", window: {window}")).unwrap_or_default();
        let attention = format!(
            "attention(heads: {heads}{kv_heads}{window}, bias: {bias}, output_bias: {output_bias}{query_norm})"
        );
        let activation = if *architecture == Architecture::Gpt2 { self.activation } else { "swiglu" };
        let mlp_bias = *architecture == Architecture::Gpt2 || self.mlp_bias;
        let mlp = format!("mlp(hidden: {hidden}, activation: {activation}, bias: {mlp_bias})");
        let forward = match self.experts {
            Some(Experts { number, chosen, normalized, shared }) => {
                let normalize = if normalized { "selected" } else { "all" };
                let route = format!("softmax_top_k(k: {chosen}, normalize: {normalize}, bias: false)");
                let shared = match shared {
                    0 => String::new(),
                    hidden => {
                        let expert = format!("mlp(hidden: {hidden}, activation: {activation}, bias: false)");
                        format!(", shared: 1 * {expert}, shared_gate: true")
                    }
                };
                format!("moe(experts: {number} * {mlp}, route: {route}{shared})")
            }
            None => mlp,
        };
        format!(
            "// From the config.json of a {} of Hugging Face's transformers.
model {name} {{
  context {context}
  vocab characters

  embed(width: {width}, positions: {positions})

  repeat {layers} {{
    residual {{ {norm} {attention} }}
    residual {{ {norm} {forward} }}
  }}

  {norm}
  unembed(tied: {tied}, bias: false)
}}
",
            architecture.title()
        )
    }

    /// The tensors of theirs that make one of ours, in order; none for one that does nothing in evaluation.
    ///
    /// # Errors
    /// When there is no counterpart.
    pub(crate) fn pieces(&self, name: &str, shape: &[usize]) -> Result<Vec<Piece>, ExchangeError> {
        let found = match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            Some((block, rest)) if self.architecture == Architecture::Gpt2 => gpt2_block(block, rest, shape),
            Some((block, rest)) => self.block(block, rest, shape),
            None => self.outside(name).map(|theirs| vec![Piece::new(theirs, shape)]),
        };
        found.ok_or_else(|| ExchangeError::NoCounterpart { name: name.to_string() })
    }

    /// Tensors outside of blocks.
    fn outside(&self, name: &str) -> Option<&'static str> {
        let (norm, part) = name.split_once('.')?;
        let is_gpt2 = self.architecture == Architecture::Gpt2;
        match (name, part) {
            (TOKEN_TABLE, _) if is_gpt2 => Some("transformer.wte.weight"),
            (TOKEN_TABLE, _) => Some("model.embed_tokens.weight"),
            ("embed.position.weight", _) if is_gpt2 => Some("transformer.wpe.weight"),
            ("unembed.weight", _) => Some("lm_head.weight"),
            (_, "gain") if norm == self.architecture.norm() && is_gpt2 => Some("transformer.ln_f.weight"),
            (_, "shift") if norm == self.architecture.norm() && is_gpt2 => Some("transformer.ln_f.bias"),
            (_, "gain") if norm == self.architecture.norm() => Some("model.norm.weight"),
            _ => None,
        }
    }

    /// Tensors of a block of Llama and what descends from it.
    fn block(&self, block: &str, rest: &str, shape: &[usize]) -> Option<Vec<Piece>> {
        let layer = format!("model.layers.{block}");
        let whole = |theirs: &str| Some(vec![Piece::new(format!("{layer}.{theirs}"), shape)]);
        if let Some(kind) = rest.strip_prefix("attention.qkv.") {
            let [rows, columns @ ..] = shape else { return None };
            let part: Vec<usize> = [&[rows / 3], columns].concat();
            let piece = |map| Piece::new(format!("{layer}.self_attn.{map}_proj.{kind}"), part.clone());
            return Some(["q", "k", "v"].map(piece).to_vec());
        }
        let of_mixtral = self.architecture == Architecture::Mixtral;
        let mixture = if of_mixtral { "block_sparse_moe" } else { "mlp" };
        if let Some((map, "weight")) = rest.strip_prefix("moe.experts.mlp.").and_then(|rest| rest.split_once('.')) {
            let [experts, part @ ..] = shape else { return None };
            let map = match (map, of_mixtral) {
                ("gate", true) => "w1",
                ("down", true) => "w2",
                ("up", true) => "w3",
                ("gate", false) => "gate_proj",
                ("down", false) => "down_proj",
                ("up", false) => "up_proj",
                _ => return None,
            };
            let piece = |expert| Piece::new(format!("{layer}.{mixture}.experts.{expert}.{map}.weight"), part);
            return Some((0..*experts).map(piece).collect());
        }
        match rest {
            "rms_norm.gain" => whole("input_layernorm.weight"),
            "rms_norm_2.gain" => whole("post_attention_layernorm.weight"),
            "attention.query.weight" => whole("self_attn.q_proj.weight"),
            "attention.query.bias" => whole("self_attn.q_proj.bias"),
            "attention.key.weight" => whole("self_attn.k_proj.weight"),
            "attention.key.bias" => whole("self_attn.k_proj.bias"),
            "attention.value.weight" => whole("self_attn.v_proj.weight"),
            "attention.value.bias" => whole("self_attn.v_proj.bias"),
            "attention.proj.weight" => whole("self_attn.o_proj.weight"),
            "attention.proj.bias" => whole("self_attn.o_proj.bias"),
            "mlp.gate.weight" => whole("mlp.gate_proj.weight"),
            "mlp.gate.bias" => whole("mlp.gate_proj.bias"),
            "mlp.up.weight" => whole("mlp.up_proj.weight"),
            "mlp.up.bias" => whole("mlp.up_proj.bias"),
            "mlp.down.weight" => whole("mlp.down_proj.weight"),
            "mlp.down.bias" => whole("mlp.down_proj.bias"),
            "attention.query_norm.gain" => whole("self_attn.q_norm.weight"),
            "attention.key_norm.gain" => whole("self_attn.k_norm.weight"),
            "moe.router.weight" => whole(&format!("{mixture}.gate.weight")),
            "moe.shared_gate.weight" => whole("mlp.shared_expert_gate.weight"),
            "moe.shared.mlp.gate.weight" => whole("mlp.shared_expert.gate_proj.weight"),
            "moe.shared.mlp.up.weight" => whole("mlp.shared_expert.up_proj.weight"),
            "moe.shared.mlp.down.weight" => whole("mlp.shared_expert.down_proj.weight"),
            // Noise of training.
            "moe.noise.weight" => Some(Vec::new()),
            _ => None,
        }
    }
}

/// Tensors of a block of GPT-2, whose linear maps are `[in, out]`.
fn gpt2_block(block: &str, rest: &str, shape: &[usize]) -> Option<Vec<Piece>> {
    let theirs = match rest {
        "layer_norm.gain" => "ln_1.weight",
        "layer_norm.shift" => "ln_1.bias",
        "layer_norm_2.gain" => "ln_2.weight",
        "layer_norm_2.shift" => "ln_2.bias",
        "attention.qkv.weight" => "attn.c_attn.weight",
        "attention.qkv.bias" => "attn.c_attn.bias",
        "attention.proj.weight" => "attn.c_proj.weight",
        "attention.proj.bias" => "attn.c_proj.bias",
        "mlp.up.weight" => "mlp.c_fc.weight",
        "mlp.up.bias" => "mlp.c_fc.bias",
        "mlp.down.weight" => "mlp.c_proj.weight",
        "mlp.down.bias" => "mlp.c_proj.bias",
        _ => return None,
    };
    let piece = Piece::new(format!("transformer.h.{block}.{theirs}"), shape);
    Some(vec![Piece { transposed: shape.len() == 2, ..piece }])
}

/// Tensors of theirs that are constants and no parameters: masks and frequencies, which older releases stored.
pub(crate) fn is_constant(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || name.ends_with("rotary_emb.inv_freq")
}

impl Network {
    /// Tensors under the names that `transformers` gives them now: released checkpoints of GPT-2 have them without a prefix, and
    /// scores that are tied to the token vectors can be there a second time.
    pub(crate) fn named_as_now(&self, mut tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        if self.architecture == Architecture::Gpt2 && tensors.contains_key("wte.weight") {
            tensors = tensors.into_iter().map(|(name, tensor)| (format!("transformer.{name}"), tensor)).collect();
        }
        let table = if self.architecture == Architecture::Gpt2 {
            "transformer.wte.weight"
        } else {
            "model.embed_tokens.weight"
        };
        if self.tied && tensors.get("lm_head.weight") == tensors.get(table) {
            tensors.remove("lm_head.weight");
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::model;
    use super::of_model::Fit;
    use super::*;
    use crate::Spec;
    use moec_ir::TensorType;
    use moec_syntax::{Diagnostic, SourceFile};

    const MIXTRAL: &str = "embed(width: 12, positions: rotary)
  repeat 2 {
    residual { rms_norm  attention(heads: 3, output_bias: false) }
    residual {
      rms_norm
      moe(experts: 5 * mlp(hidden: 7, activation: swiglu, bias: false), route: softmax_top_k(k: 2, bias: false))
    }
  }
  rms_norm
  unembed(bias: false)";

    const GPT2: &str = "embed(width: 12)
  repeat 2 {
    residual { layer_norm  attention(heads: 3, bias: true, dropout: 0.1) }
    residual { layer_norm  mlp(hidden: 17, activation: gelu) }
  }
  layer_norm
  unembed(tied: true, bias: false)";

    fn llama() -> String {
        MIXTRAL.replace("moe(experts: 5 * mlp", "mlp").replace(", route: softmax_top_k(k: 2, bias: false))", "")
    }

    fn fitted(body: &str) -> Fit {
        let spec = model(body);
        of_model(&spec.checked.model, 11).unwrap_or_else(|found| {
            panic!("{}", found.iter().map(|d| d.render(&spec.source, false)).collect::<Vec<_>>().join("\n"))
        })
    }

    /// The places that are pointed at, with what is said there.
    fn obstacles(body: &str) -> Vec<(String, String)> {
        let spec = model(body);
        let found = of_model(&spec.checked.model, 11).map(|_| ()).unwrap_err();
        assert!(found.iter().all(|d| !d.helps.is_empty()), "{found:?}");
        let place = |d: &Diagnostic| (spec.source.slice(d.labels[0].span).to_string(), d.message.clone());
        found.iter().map(place).collect()
    }

    #[test]
    fn a_model_finds_its_class_and_comes_back_from_its_configuration() {
        for (body, class) in [
            (MIXTRAL.to_string(), "MixtralForCausalLM"),
            (MIXTRAL.replace("rms_norm", "rms_norm(epsilon: 3e-5)"), "MixtralForCausalLM"),
            (MIXTRAL.replace("heads: 3", "heads: 3, kv_heads: 1, window: 4"), "MixtralForCausalLM"),
            (
                llama().replace("heads: 3, output_bias", "heads: 6, kv_heads: 2, bias: true, output_bias"),
                "Qwen2ForCausalLM",
            ),
            (llama(), "LlamaForCausalLM"),
            (
                llama().replace("output_bias: false", "bias: true").replace(", bias: false)\n", ")\n"),
                "LlamaForCausalLM",
            ),
            (llama().replace("output_bias", "bias: true, output_bias"), "Qwen2ForCausalLM"),
            (llama().replace("output_bias: false", "output_bias: false, norm: head"), "Qwen3ForCausalLM"),
            (MIXTRAL.replace("output_bias: false", "output_bias: false, norm: head"), "Qwen3MoeForCausalLM"),
            (
                MIXTRAL.replace(
                    "bias: false))",
                    "bias: false), shared: 1 * mlp(hidden: 3, activation: swiglu, bias: false), \
                                                 shared_gate: true)",
                ),
                "Qwen2MoeForCausalLM",
            ),
            (
                MIXTRAL
                    .replace("output_bias: false", "bias: true, norm: width")
                    .replace("k: 2", "k: 2, normalize: all"),
                "OlmoeForCausalLM",
            ),
            (GPT2.to_string(), "GPT2LMHeadModel"),
            (GPT2.replace("gelu", "relu").replace("tied: true, ", ""), "GPT2LMHeadModel"),
        ] {
            let Fit { network, remarks, .. } = fitted(&body);
            assert_eq!(network.architecture.class(), class, "{body}");
            assert_eq!(remarks.folds, [""; 0], "{body}");
            assert_eq!(of_config(&network.config()).unwrap(), network, "{body}");
            // The spec that an import writes is the same model once more.
            let source = SourceFile::new("m.moe", network.spec());
            let text = moec_syntax::format(&source).unwrap();
            let spec = Spec::parse("m.moe", &text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(of_model(&spec.checked.model, 11).unwrap().network, network, "{text}");
        }
    }

    #[test]
    fn what_the_nearest_class_computes_otherwise_is_refused_at_its_place() {
        let llama = llama();
        for (body, ours, other, place, message) in [
            (MIXTRAL, "positions: rotary", "positions: learned", "learned", "Mixtral has rotary positions"),
            (MIXTRAL, "residual { rms_norm  ", "residual { layer_norm  ", "layer_norm", "Mixtral has `rms_norm`"),
            (MIXTRAL, "residual { rms_norm  ", "residual { rms_norm(epsilon: 1e-4)  ", "rms_norm", "one epsilon"),
            (MIXTRAL, "output_bias: false", "output_bias: true", "true", "no bias for the output projection"),
            (MIXTRAL, "output_bias", "bias: true, output_bias", "true", "no bias for queries, keys and values"),
            (MIXTRAL, "swiglu", "silu", "silu", "Mixtral has no silu"),
            (MIXTRAL, "swiglu, bias: false", "swiglu", "mlp(hidden: 7, activation: swiglu)", "have no biases"),
            (MIXTRAL, "k: 2, bias: false", "k: 2", "softmax_top_k(k: 2)", "router of Mixtral has no bias"),
            (MIXTRAL, "k: 2, ", "k: 2, normalize: all, ", "all", "sum to 1"),
            (MIXTRAL, "k: 2, ", "k: 2, groups: 5, groups_kept: 2, ", "5", "choose from all experts"),
            (MIXTRAL, "softmax_top_k(k: 2, bias: false)", "switch", "switch", "no router `switch`"),
            (MIXTRAL, "softmax_top_k(", "noisy_top_k(noise_at_evaluation: true, ", "true", "draws no noise"),
            (
                MIXTRAL,
                "route:",
                "shared: 1 * mlp(hidden: 3), route:",
                "1 * mlp(hidden: 3)",
                "one shared expert, behind a",
            ),
            (MIXTRAL, "route:", "capacity: capacity(factor: 1), route:", "capacity(factor: 1)", "take every token"),
            (MIXTRAL, "route:", "latent: 5, route:", "5", "Mixtral has no latent experts"),
            (
                MIXTRAL,
                "5 * mlp(hidden: 7, activation: swiglu, bias: false)",
                "[5 * mlp(hidden: 7, activation: swiglu, bias: false), zero]",
                "[5 * mlp(hidden: 7, activation: swiglu, bias: false), zero]",
                "Mixtral has no `zero` experts",
            ),
            (MIXTRAL, "unembed(bias: false)", "unembed", "unembed", "scores of Mixtral have no bias"),
            (
                MIXTRAL,
                "heads: 3",
                "heads: 3 - i",
                "attention(heads: 3 - i, output_bias: false)",
                "same number of heads",
            ),
            (MIXTRAL, "output_bias", "sink: true, output_bias", "true", "the attention of Mixtral has no sinks"),
            (&llama, "output_bias", "window: 3, output_bias", "3", "the attention of Llama sees all that comes before"),
            (
                GPT2,
                "heads: 3",
                "heads: 3, kv_heads: 1",
                "1",
                "the attention of GPT-2 has as many heads of keys as of queries",
            ),
            (
                MIXTRAL,
                "heads: 3",
                "heads: 3, window: 3 + i",
                "attention(heads: 3, window: 3 + i, output_bias: false)",
                "same window in every block",
            ),
            (MIXTRAL, "output_bias", "norm: head, norm_epsilon: 0.1, output_bias", "0.1", "one epsilon"),
            (
                MIXTRAL,
                "route:",
                "shared: 1 * mlp(hidden: 3, activation: swiglu), shared_gate: true, route:",
                "mlp(hidden: 3, activation: swiglu)",
                "have no biases",
            ),
            (GPT2, "bias: true", "bias: true, norm: head", "head", "GPT-2 does not normalise queries"),
            (&llama, "output_bias", "norm: width, output_bias", "width", "Llama does not normalise queries"),
            (GPT2, "gelu", "swiglu", "swiglu", "GPT-2 has no swiglu"),
            (GPT2, "width: 12", "width: 12, positions: rotary", "rotary", "GPT-2 has learned positions"),
            (GPT2, "hidden: 17", "hidden: 17 + i", "mlp(hidden: 17 + i, activation: gelu)", "same feed-forward layer"),
            (&llama, "swiglu", "gelu", "gelu", "Llama has no gelu"),
        ] {
            let body = body.replace("repeat 2 {", "repeat 2 as i {");
            let changed = body.replacen(ours, other, 1);
            assert_ne!(changed, body, "{ours}");
            let found = obstacles(&changed);
            assert!(found.iter().any(|(at, said)| at == place && said.contains(message)), "{other}: {found:?}");
            let few = if other.contains("1e-4") { 3 } else { 1 };
            assert!(found.len() <= few, "{other}: {found:?}");
        }
    }

    #[test]
    fn what_can_be_put_into_the_weights_is() {
        let llama = llama();
        for (body, ours, other, fold) in [
            (MIXTRAL, "output_bias", "scale: width, output_bias", "folded the scale"),
            (MIXTRAL, "softmax_top_k", "noisy_top_k", "left out what makes the router's noise"),
            (GPT2, "bias: true, ", "", "queries, keys and values biases of 0"),
            (GPT2, "bias: true, ", "bias: true, output_bias: false, ", "output projection of attention biases of 0"),
            (GPT2, "gelu", "gelu, bias: false", "feed-forward layers biases of 0"),
            (GPT2, "width: 12", "width: 12, positions: none", "zeros"),
            (&llama, ", output_bias: false", "", "queries, keys and values biases of 0"),
        ] {
            let changed = body.replace(ours, other);
            assert_ne!(changed, body, "{ours}");
            let folds = fitted(&changed).remarks.folds;
            assert!(folds.len() == 1 && folds[0].contains(fold), "{other}: {folds:?}");
        }
    }

    #[test]
    fn fields_that_the_language_cannot_say_are_named() {
        let refused = |body: &str, field: &str, value: Value| {
            let mut config = fitted(body).network.config();
            config[field] = value;
            of_config(&config).map(|_| ()).unwrap_err()
        };
        for (body, field, value) in [
            (MIXTRAL, "num_key_value_heads", json!(2)),
            (MIXTRAL, "num_key_value_heads", json!("all")),
            (MIXTRAL, "num_attention_heads", json!(5)),
            (MIXTRAL, "num_experts_per_tok", json!(6)),
            (MIXTRAL, "head_dim", json!(8)),
            (MIXTRAL, "hidden_act", json!("gelu")),
            (MIXTRAL, "sliding_window", json!("all")),
            (&llama(), "sliding_window", json!(4)),
            (MIXTRAL, "router_jitter_noise", json!(0.1)),
            (MIXTRAL, "vocab_size", Value::Null),
            (MIXTRAL, "hidden_size", json!(-12)),
            (MIXTRAL, "rms_norm_eps", json!(0)),
            (MIXTRAL, "tie_word_embeddings", json!("yes")),
            (MIXTRAL, "quantization_config", json!({ "bits": 4 })),
            (GPT2, "activation_function", json!("gelu_new")),
            (GPT2, "activation_function", Value::Null),
            (GPT2, "scale_attn_weights", json!(false)),
            (GPT2, "scale_attn_by_inverse_layer_idx", json!(true)),
            (GPT2, "add_cross_attention", json!(true)),
        ] {
            let ConfigError::Faults(faults) = refused(body, field, value.clone()) else { panic!("{field}") };
            assert!(faults.iter().any(|fault| fault.to_string().contains(field)), "{field} {value}: {faults:?}");
        }
        // The base of rotary positions, as old and as new releases write it.
        for (field, value, named) in [
            ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 5e5 }), "rope_theta"),
            ("rope_parameters", json!({ "rope_type": "yarn", "rope_theta": 1e4 }), "rope_scaling"),
        ] {
            let ConfigError::Faults(faults) = refused(MIXTRAL, field, value) else { panic!("{field}") };
            assert!(faults.len() == 1 && faults[0].to_string().contains(named), "{faults:?}");
        }
        let mut old = fitted(MIXTRAL).network.config();
        old["rope_parameters"] = Value::Null;
        assert!(of_config(&old).is_ok());
        old["rope_scaling"] = json!({ "type": "linear", "factor": 2.0 });
        assert!(of_config(&old).is_err());
        // A shorter window is one of attention; one that is no shorter than the context is none.
        let mut narrow = fitted(MIXTRAL).network.config();
        narrow["sliding_window"] = json!(4);
        assert_eq!(of_config(&narrow).unwrap().window, Some(4));
        let mut wide = fitted(MIXTRAL).network.config();
        wide["sliding_window"] = json!(7);
        assert_eq!(of_config(&wide).unwrap().window, None);
        // Mistral has one where nothing is said.
        let mut mistral = fitted(&llama()).network.config();
        mistral["model_type"] = json!("mistral");
        mistral["max_position_embeddings"] = json!(8192);
        let Err(ConfigError::Faults(faults)) = of_config(&mistral) else { panic!("a window that is not said") };
        assert!(faults[0].to_string().contains("`sliding_window` is 4096"), "{faults:?}");
        mistral["sliding_window"] = Value::Null;
        assert_eq!(of_config(&mistral).unwrap().window, None);
        // Sizes that no model has are for the spec to refuse.
        let mut huge = fitted(GPT2).network.config();
        huge["n_embd"] = json!(i64::MAX);
        huge["n_inner"] = Value::Null;
        assert!(!matches!(of_config(&huge), Err(ConfigError::NoObject)));
        let error = refused(MIXTRAL, "model_type", json!("deepseek_v3"));
        assert!(matches!(error, ConfigError::Architecture { why: Some(_), .. }), "{error}");
        assert!(matches!(of_config(&json!([])), Err(ConfigError::NoObject)));
    }

    #[test]
    fn tensors_have_their_names_there() {
        let names = |body: &str, name: &str, shape: &[usize]| -> Vec<(String, bool)> {
            let pieces = fitted(body).network.pieces(name, shape).unwrap();
            pieces.into_iter().map(|piece| (piece.name, piece.transposed)).collect()
        };
        let found = names(MIXTRAL, "blocks.1.moe.experts.mlp.gate.weight", &[5, 7, 12]);
        assert_eq!(found.len(), 5);
        assert_eq!(found[3].0, "model.layers.1.block_sparse_moe.experts.3.w1.weight");
        let found = names(MIXTRAL, "blocks.0.attention.qkv.weight", &[36, 12]);
        assert_eq!(found[1].0, "model.layers.0.self_attn.k_proj.weight");
        assert_eq!(names(MIXTRAL, "blocks.0.moe.noise.weight", &[5, 12]), []);
        let qwen = MIXTRAL.replace("output_bias", "norm: head, output_bias");
        let found = names(&qwen, "blocks.1.moe.experts.mlp.down.weight", &[5, 12, 7]);
        assert_eq!(found[4].0, "model.layers.1.mlp.experts.4.down_proj.weight");
        let found = names(&qwen, "blocks.1.attention.key_norm.gain", &[4]);
        assert_eq!(found[0].0, "model.layers.1.self_attn.k_norm.weight");
        assert_eq!(
            names(GPT2, "blocks.1.attention.qkv.weight", &[36, 12]),
            [("transformer.h.1.attn.c_attn.weight".to_string(), true)]
        );
        assert_eq!(names(GPT2, "layer_norm.shift", &[12]), [("transformer.ln_f.bias".to_string(), false)]);
        let error = fitted(GPT2).network.pieces("blocks.0.rms_norm.gain", &[12]).unwrap_err();
        assert_eq!(error, ExchangeError::NoCounterpart { name: "blocks.0.rms_norm.gain".into() });
    }

    #[test]
    fn only_queries_are_scaled() {
        let fit = fitted(&GPT2.replace("bias: true", "bias: true, scale: width"));
        let name = "transformer.h.1.attn.c_attn".to_string();
        let mut tensors = BTreeMap::from([
            (format!("{name}.weight"), Tensor::zeros(&TensorType::f32([12, 36])).with_shape([12, 36]).unwrap()),
            (format!("{name}.bias"), Tensor::floats([2.0; 36])),
        ]);
        fit.apply(&mut tensors);
        let bias = tensors[&format!("{name}.bias")].to_f32();
        let scaled = (2.0 / 3_f64.sqrt()) as f32;
        assert!(bias[..12].iter().all(|&x| x == scaled) && bias[12..].iter().all(|&x| x == 2.0), "{bias:?}");
        assert_eq!(tensors["transformer.h.0.mlp.c_fc.bias"].shape(), [17]);
    }

    #[test]
    fn older_names_are_read() {
        let network = fitted(GPT2).network;
        let table = Tensor::floats([1.0; 3]);
        let old = BTreeMap::from([("wte.weight".to_string(), table.clone()), ("h.0.attn.bias".into(), table.clone())]);
        let now = network.named_as_now(old);
        assert_eq!(now.keys().collect::<Vec<_>>(), ["transformer.h.0.attn.bias", "transformer.wte.weight"]);
        assert!(is_constant("transformer.h.0.attn.bias") && !is_constant("transformer.h.0.attn.c_attn.bias"));
        let twice =
            BTreeMap::from([("transformer.wte.weight".to_string(), table.clone()), ("lm_head.weight".into(), table)]);
        assert_eq!(network.named_as_now(twice).len(), 1);
    }
}
