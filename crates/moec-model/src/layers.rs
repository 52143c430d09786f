//! The layers of the language: names, arguments and help in one table.

use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::model::CapacityOrder;

/// A layer of the language.
#[derive(Clone, Copy, Debug)]
pub struct LayerSpec {
    /// Its name.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Its arguments.
    pub parameters: &'static [ParameterSpec],
}

/// Widths beyond this are typing errors: a single square matrix of it would be a petabyte.
const WIDTH: Interval = Interval::closed(1.0, 16_777_216.0);
const RATE: Interval = Interval::half_open(0.0, 1.0);

const DROPOUT: ParameterSpec = ParameterSpec::optional(
    "dropout",
    ParameterType::Float(RATE),
    DefaultValue::Float(0.0),
    "share of the numbers set to 0 while training",
);

const fn flag(name: &'static str, default: bool, help: &'static str) -> ParameterSpec {
    ParameterSpec::optional(name, ParameterType::Bool, DefaultValue::Bool(default), help)
}

const fn epsilon(default: f64, help: &'static str) -> ParameterSpec {
    ParameterSpec::optional("epsilon", ParameterType::Float(Interval::above(0.0)), DefaultValue::Float(default), help)
}

/// Every layer.
pub const LAYERS: &[LayerSpec] = &[
    LayerSpec {
        name: "embed",
        summary: "token vectors, and learned position vectors if asked; the first layer of a model",
        parameters: &[
            ParameterSpec::required("width", ParameterType::Int(WIDTH), "width of the model"),
            ParameterSpec::optional(
                "positions",
                ParameterType::Choice(&["learned", "rotary", "none"]),
                DefaultValue::Word("learned"),
                "how positions enter the model",
            ),
        ],
    },
    LayerSpec {
        name: "attention",
        summary: "causal self-attention of several heads with an output projection",
        parameters: &[
            ParameterSpec::required(
                "heads",
                ParameterType::Int(Interval::at_least(1.0)),
                "number of heads; divides the width",
            ),
            ParameterSpec::optional(
                "scale",
                ParameterType::Choice(&["head", "width"]),
                DefaultValue::Word("head"),
                "divide scores by the root of the head's width, or of the model's (makeMoE)",
            ),
            DROPOUT,
            flag("bias", false, "give queries, keys and values a bias"),
        ],
    },
    LayerSpec {
        name: "mlp",
        summary: "two linear maps with an activation between them",
        parameters: &[
            ParameterSpec::required("hidden", ParameterType::Int(WIDTH), "width between the maps"),
            ParameterSpec::optional(
                "activation",
                ParameterType::Choice(&["relu", "gelu", "silu", "swiglu"]),
                DefaultValue::Word("relu"),
                "function between the maps",
            ),
            DROPOUT,
            flag("bias", true, "give the maps biases"),
        ],
    },
    LayerSpec {
        name: "moe",
        summary: "a mixture of experts: each token goes to a few of them",
        parameters: &[
            ParameterSpec::required("experts", ParameterType::Form("NUMBER * EXPERT"), "the experts"),
            ParameterSpec::required("route", ParameterType::Form("ROUTER(..)"), "how tokens are sent to experts"),
            ParameterSpec::optional(
                "shared",
                ParameterType::Form("NUMBER * EXPERT"),
                DefaultValue::Absent("none"),
                "experts that every token goes to",
            ),
            ParameterSpec::optional(
                "balance",
                ParameterType::Form("[LOSS(weight: ..), ..]"),
                DefaultValue::Absent("none"),
                "balance losses",
            ),
            ParameterSpec::optional(
                "capacity",
                ParameterType::Form("capacity(factor: .., ..)"),
                DefaultValue::Absent("unlimited"),
                "bound on the tokens of an expert",
            ),
            ParameterSpec::optional(
                "allow",
                ParameterType::Choice(&["lookahead"]),
                DefaultValue::Absent("nothing"),
                "allow a router that compares tokens with later ones",
            ),
        ],
    },
    LayerSpec {
        name: "multi_hash",
        summary: "a feed-forward layer whose weights are put together from blocks that hashes of the token choose",
        parameters: &[
            ParameterSpec::required("hidden", ParameterType::Int(WIDTH), "width between the maps"),
            ParameterSpec::required(
                "buckets",
                ParameterType::Int(Interval::closed(1.0, 65_536.0)),
                "weights that each hash chooses from",
            ),
            ParameterSpec::optional(
                "hashes",
                ParameterType::Int(Interval::closed(1.0, 1_024.0)),
                DefaultValue::Int(2),
                "number of hashes; divides both widths",
            ),
            ParameterSpec::optional(
                "activation",
                ParameterType::Choice(&["relu", "gelu", "silu"]),
                DefaultValue::Word("relu"),
                "function between the maps",
            ),
            DROPOUT,
            ParameterSpec::optional(
                "seed",
                ParameterType::Int(Interval::at_least(0.0)),
                DefaultValue::Int(0),
                "seed of the hash tables",
            ),
        ],
    },
    LayerSpec {
        name: "mixture_of_depths",
        summary: "layers that only some tokens of a sequence go through: `mixture_of_depths { .. }`",
        parameters: &[
            ParameterSpec::optional(
                "capacity",
                ParameterType::Float(Interval::above_up_to(0.0, 1.0)),
                DefaultValue::Float(0.125),
                "share of the tokens of a sequence that go through in training",
            ),
            ParameterSpec::optional(
                "predictor",
                ParameterType::Float(Interval::at_least(0.0)),
                DefaultValue::Float(1.0),
                "weight of the loss of the predictor that decides when sampling",
            ),
        ],
    },
    LayerSpec {
        name: "layer_norm",
        summary: "layer normalisation with a trained gain and shift",
        parameters: &[epsilon(1e-5, "added to the variance")],
    },
    LayerSpec {
        name: "rms_norm",
        summary: "root mean square normalisation with a trained gain",
        parameters: &[epsilon(1e-6, "added to the mean square")],
    },
    LayerSpec {
        name: "dropout",
        summary: "sets a share of the numbers to 0 while training",
        parameters: &[ParameterSpec::required("rate", ParameterType::Float(RATE), "share of the numbers")],
    },
    LayerSpec {
        name: "linear",
        summary: "a linear map",
        parameters: &[
            ParameterSpec::required("width", ParameterType::Int(WIDTH), "width of the result"),
            flag("bias", true, "add a bias"),
        ],
    },
    LayerSpec { name: "relu", summary: "max(x, 0)", parameters: &[] },
    LayerSpec { name: "gelu", summary: "x times the standard normal distribution function of x", parameters: &[] },
    LayerSpec { name: "silu", summary: "x times the sigmoid of x", parameters: &[] },
    LayerSpec {
        name: "residual",
        summary: "adds what its layers compute to what they are given: `residual { .. }`",
        parameters: &[],
    },
    LayerSpec {
        name: "unembed",
        summary: "scores of the vocabulary; the last layer of a model",
        parameters: &[flag("tied", false, "use the token vectors as weights"), flag("bias", true, "add a bias")],
    },
];

/// Arguments of `capacity(..)`.
pub(crate) const CAPACITY: &[ParameterSpec] = &[
    ParameterSpec::optional(
        "factor",
        ParameterType::Float(Interval::above(0.0)),
        DefaultValue::Float(1.25),
        "multiple of the even share of tokens",
    ),
    ParameterSpec::optional(
        "evaluation_factor",
        ParameterType::Float(Interval::at_least(0.0)),
        DefaultValue::Absent("as factor"),
        "the same in evaluation and sampling; 0 for no bound",
    ),
    ParameterSpec::optional(
        "minimum",
        ParameterType::Int(Interval::at_least(1.0)),
        DefaultValue::Int(4),
        "least number of tokens",
    ),
    ParameterSpec::optional(
        "order",
        ParameterType::Choice(CapacityOrder::WORDS),
        DefaultValue::Word("token"),
        "who comes first: tokens in order, first choices, or choices with large weights",
    ),
    ParameterSpec::optional(
        "overflow",
        ParameterType::Choice(&["drop"]),
        DefaultValue::Word("drop"),
        "what happens to tokens beyond it",
    ),
    ParameterSpec::optional(
        "renormalise",
        ParameterType::Choice(&["before", "after"]),
        DefaultValue::Word("before"),
        "weights are left as the router gave them, or scaled up again after a drop",
    ),
];
