//! A `config.json` as a [`Network`], or what in it the language cannot say.

use std::fmt;

use serde_json::{Map, Value};

use super::{Architecture, AttentionBias, Experts, Network, ROPE_THETA};

/// Why a configuration is none of a model of ours.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It is no JSON object.
    #[error("config.json is no JSON object")]
    NoObject,
    /// It is of a class that is not known here.
    #[error("a model of the type {found} has no counterpart in the language")]
    Architecture {
        /// Its `model_type`.
        found: String,
        /// What such models have that ours do not, where that is known.
        why: Option<&'static str>,
    },
    /// Some of its fields say what the language cannot.
    #[error("config.json describes a model that the language cannot express")]
    Faults(Vec<Fault>),
}

/// A field of a configuration that the language has no counterpart of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    field: &'static str,
    /// What it is.
    found: String,
    /// What it would have to be, and why.
    expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}, expected {}", self.field, self.found, self.expected)
    }
}

/// What models of other types have that ours do not.
const ELSEWHERE: &[(&str, &str)] = &[
    ("deepseek_v2", "DeepSeek's attention keeps compressed keys and values, which `attention` does not"),
    ("deepseek_v3", "DeepSeek's attention keeps compressed keys and values, which `attention` does not"),
    ("gpt_oss", "gpt-oss has attention sinks and windows, which `attention` does not"),
];

/// Reads a configuration.
///
/// # Errors
/// When the model has no counterpart, with every field that is a reason.
pub(crate) fn of_config(config: &Value) -> Result<Network, ConfigError> {
    let Value::Object(config) = config else { return Err(ConfigError::NoObject) };
    let found = config.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
    // Mistral is Llama with a window, and without one the same.
    let known = if found == "mistral" { "llama" } else { found };
    let Some(architecture) = Architecture::ALL.into_iter().find(|architecture| architecture.model_type() == known)
    else {
        let why = ELSEWHERE.iter().find(|(name, _)| *name == found).map(|(_, why)| *why);
        return Err(ConfigError::Architecture { found: format!("`{found}`"), why });
    };
    let mut fields = Fields { config, faults: Vec::new() };
    fields.nothing("quantization_config", "none: weights are float32");
    let network =
        if architecture == Architecture::Gpt2 { fields.gpt2() } else { fields.llama(architecture, found == "mistral") };
    if fields.faults.is_empty() { Ok(network) } else { Err(ConfigError::Faults(fields.faults)) }
}

/// The fields of a configuration, with what is wrong so far.
struct Fields<'c> {
    config: &'c Map<String, Value>,
    faults: Vec<Fault>,
}

impl Fields<'_> {
    /// The value of a field that is there and not `null`.
    fn get(&self, field: &str) -> Option<&Value> {
        self.config.get(field).filter(|value| !value.is_null())
    }

    fn fault(&mut self, field: &'static str, found: Option<Value>, expected: impl Into<String>) {
        let found = found.map_or_else(|| "missing".to_string(), |value| value.to_string());
        self.faults.push(Fault { field, found, expected: expected.into() });
    }

    /// A number that counts something; `default` where it is absent. After a fault it is 1, with which nothing divides by 0.
    fn size(&mut self, field: &'static str, default: Option<usize>) -> usize {
        let found = self.get(field).cloned();
        let size = match &found {
            Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0),
            None => default,
        };
        size.unwrap_or_else(|| {
            self.fault(field, found, "a whole number above 0");
            1
        })
    }

    fn flag(&mut self, field: &'static str, default: bool) -> bool {
        let found = self.get(field).cloned();
        match found {
            None => default,
            Some(Value::Bool(value)) => value,
            found => {
                self.fault(field, found, "true or false");
                default
            }
        }
    }

    fn float(&mut self, field: &'static str, default: f64) -> f64 {
        let found = self.get(field).cloned();
        match found.as_ref().map(Value::as_f64) {
            None => default,
            Some(Some(value)) if value > 0.0 => value,
            Some(_) => {
                self.fault(field, found, "a number above 0");
                default
            }
        }
    }

    /// A field that must be absent, `null`, 0, `false` or empty.
    fn nothing(&mut self, field: &'static str, expected: &str) {
        let is_nothing = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::Array(values) => values.is_empty(),
            _ => false,
        };
        if let Some(value) = self.get(field).filter(|value| !is_nothing(value)).cloned() {
            self.fault(field, Some(value), expected);
        }
    }

    /// A field that must be a word, which it is where it is absent.
    fn word(&mut self, field: &'static str, allowed: &[&'static str], default: &'static str) -> &'static str {
        let Some(value) = self.get(field).cloned() else { return default };
        let found = value.as_str().and_then(|word| allowed.iter().find(|allowed| **allowed == word));
        match found {
            Some(word) => word,
            None => {
                self.fault(field, Some(value), allowed.join(", "));
                default
            }
        }
    }

    fn gpt2(&mut self) -> Network {
        let width = self.size("n_embd", None);
        let hidden = self.size("n_inner", Some(width.saturating_mul(4)));
        // Their `gelu_new` is an approximation by tanh, which differs from ours in the fourth digit.
        let activation = self.get("activation_function").cloned();
        let activation = match activation.as_ref().and_then(Value::as_str) {
            Some("gelu") => "gelu",
            Some("relu") => "relu",
            Some("silu" | "swish") => "silu",
            _ => {
                let found = activation.or_else(|| Some("gelu_new".into()));
                let expected = "gelu, relu or silu (`gelu_new` and its like approximate gelu by tanh, ours is exact)";
                self.fault("activation_function", found, expected);
                "gelu"
            }
        };
        if !self.flag("scale_attn_weights", true) {
            let found = self.get("scale_attn_weights").cloned();
            self.fault("scale_attn_weights", found, "true: `attention` divides scores by the root of a head's width");
        }
        self.nothing("scale_attn_by_inverse_layer_idx", "false: all layers divide their scores alike");
        self.nothing("add_cross_attention", "false: there is nothing else to attend to");
        let heads = self.size("n_head", None);
        self.heads_divide("n_head", width, heads);
        Network {
            architecture: Architecture::Gpt2,
            vocab: self.size("vocab_size", None),
            context: self.size("n_positions", None),
            width,
            layers: self.size("n_layer", None),
            heads,
            kv_heads: heads,
            window: None,
            hidden,
            activation,
            epsilon: self.float("layer_norm_epsilon", 1e-5),
            attention_bias: true,
            mlp_bias: true,
            tied: self.flag("tie_word_embeddings", true),
            experts: None,
        }
    }

    fn heads_divide(&mut self, field: &'static str, width: usize, heads: usize) {
        if !width.is_multiple_of(heads) {
            self.fault(field, Some(heads.into()), format!("a divisor of the width, {width}"));
        }
    }

    fn llama(&mut self, architecture: Architecture, is_mistral: bool) -> Network {
        let (width, heads) = (self.size("hidden_size", None), self.size("num_attention_heads", None));
        self.heads_divide("num_attention_heads", width, heads);
        // Some share keys and values among heads where nothing is said.
        let groups = match architecture {
            Architecture::Llama if is_mistral => 8,
            Architecture::Mixtral => 8,
            Architecture::Qwen2 | Architecture::Qwen3 => 32,
            Architecture::Qwen3Moe => 4,
            Architecture::Qwen2Moe => 16,
            Architecture::Gpt2 | Architecture::Llama | Architecture::Olmoe => heads,
        };
        let groups = if self.config.contains_key("num_key_value_heads") { heads } else { groups };
        let groups = self.size("num_key_value_heads", Some(groups));
        if architecture == Architecture::Olmoe && groups != heads {
            // The norm of all keys together has a gain for each of their channels, and here one for each of the queries'.
            let expected = format!("{heads} as `num_attention_heads`: `norm: width` is of as many heads of keys");
            self.fault("num_key_value_heads", Some(groups.into()), expected);
        } else if !heads.is_multiple_of(groups) {
            let expected = format!("a divisor of `num_attention_heads`, {heads}");
            self.fault("num_key_value_heads", Some(groups.into()), expected);
        }
        let head = if architecture == Architecture::Qwen3 { 128 } else { (width / heads).max(1) };
        let head = self.size("head_dim", Some(head));
        if head != width / heads {
            let expected = format!("{}: the width divided by the heads", width / heads);
            self.fault("head_dim", Some(head.into()), expected);
        }
        self.word("hidden_act", &["silu"], "silu");
        let context = self.size("max_position_embeddings", None);
        let window = self.window(architecture, is_mistral, context);
        self.rope(architecture);
        let is_llama = architecture == Architecture::Llama && !is_mistral;
        let epsilon = match architecture {
            Architecture::Mixtral | Architecture::Olmoe => 1e-5,
            _ => 1e-6,
        };
        let experts = architecture.has_experts().then(|| self.experts(architecture));
        let is_qwen_moe = matches!(architecture, Architecture::Qwen2Moe | Architecture::Qwen3Moe);
        let hidden = if is_qwen_moe { "moe_intermediate_size" } else { "intermediate_size" };
        let has_flag = architecture.attention_bias() == AttentionBias::AllOrNone && !is_mistral;
        Network {
            architecture,
            vocab: self.size("vocab_size", None),
            context,
            width,
            layers: self.size("num_hidden_layers", None),
            heads,
            kv_heads: groups,
            window,
            hidden: self.size(hidden, None),
            activation: "silu",
            epsilon: self.float("rms_norm_eps", epsilon),
            attention_bias: match architecture {
                Architecture::Qwen2Moe => self.flag("qkv_bias", true),
                _ => has_flag && self.flag("attention_bias", false),
            },
            mlp_bias: is_llama && self.flag("mlp_bias", false),
            tied: self.flag("tie_word_embeddings", false),
            experts,
        }
    }

    fn experts(&mut self, architecture: Architecture) -> Experts {
        let of_mixtral = architecture == Architecture::Mixtral;
        self.nothing("router_jitter_noise", "0: `softmax_top_k` has no jitter");
        self.nothing("clip_qkv", "null: `attention` clips nothing");
        self.nothing("mlp_only_layers", "empty: all blocks are alike");
        let step = self.size("decoder_sparse_step", Some(1));
        if step != 1 {
            self.fault("decoder_sparse_step", Some(step.into()), "1: all blocks are alike");
        }
        // Releases differ in what they call it.
        let field = if self.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
        let (number, chosen) = match architecture {
            Architecture::Mixtral => (Some(8), Some(2)),
            _ => (None, None),
        };
        let (number, chosen) = (self.size(field, number), self.size("num_experts_per_tok", chosen));
        if chosen > number {
            let expected = format!("at most {number}, the number of experts");
            self.fault("num_experts_per_tok", Some(chosen.into()), expected);
        }
        let shared = match architecture {
            Architecture::Qwen2Moe => self.size("shared_expert_intermediate_size", Some(5632)),
            _ => 0,
        };
        Experts { number, chosen, normalized: of_mixtral || self.flag("norm_topk_prob", false), shared }
    }

    /// The window of attention; one that is no shorter than the context is none.
    fn window(&mut self, architecture: Architecture, is_mistral: bool, context: usize) -> Option<usize> {
        let is_optional = !matches!(architecture, Architecture::Llama | Architecture::Mixtral | Architecture::Olmoe);
        let is_used = !is_optional || self.flag("use_sliding_window", false);
        // What is used where nothing is said: `null` says that there is none.
        let default = (is_mistral || is_optional).then(|| Value::from(4096));
        let said = self.config.get("sliding_window").cloned().or(default).filter(|window| !window.is_null());
        let mut found = None;
        if let Some(said) = said.filter(|_| is_used) {
            let window = said.as_u64().and_then(|window| usize::try_from(window).ok()).filter(|window| *window > 0);
            let is_limit = window.is_none_or(|window| window < context);
            if is_limit && architecture.has_window() && window.is_some() {
                found = window;
            } else if is_limit {
                self.fault(
                    "sliding_window",
                    Some(said),
                    "null, or at least the context: only windows of Mixtral are exchanged",
                );
            }
        }
        let wanted = if found.is_some() { "sliding_attention" } else { "full_attention" };
        let types = self.get("layer_types").and_then(Value::as_array);
        if let Some(other) = types.and_then(|types| types.iter().find(|ty| *ty != wanted)).cloned() {
            self.fault("layer_types", Some(other), format!("\"{wanted}\" for every layer"));
        }
        found
    }

    /// The base of rotary positions, which releases write into different fields.
    fn rope(&mut self, architecture: Architecture) {
        let nested = self.get("rope_parameters").or(self.get("rope_scaling")).cloned();
        let kind = nested.as_ref().and_then(|rope| rope.get("rope_type").or(rope.get("type")));
        if let Some(kind) = kind.filter(|kind| *kind != "default").cloned() {
            self.fault("rope_scaling", Some(kind), "none: rotary positions are those of the paper");
        }
        let theta = nested.as_ref().and_then(|rope| rope.get("rope_theta")).or(self.get("rope_theta")).cloned();
        let default = if architecture == Architecture::Mixtral { 1e6 } else { ROPE_THETA };
        let found = theta.as_ref().map_or(Some(default), Value::as_f64);
        if found != Some(ROPE_THETA) {
            let found = theta.or_else(|| Some(default.into()));
            self.fault("rope_theta", found, "10000: `positions: rotary` has the base of the paper");
        }
    }
}
