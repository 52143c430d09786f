//! The names that cross crates: functions of a program, and what they are given and give.
//!
//! A graph names its inputs and outputs with text, since it can compute anything. What moec itself means by a name is
//! said here and nowhere else: every type has one text form ([`Display`](fmt::Display)) and one reader of it.

use std::fmt;

/// The parameter that holds a vector for each token of the vocabulary, `[V, C]`.
pub const TOKEN_TABLE: &str = "embed.token.weight";

/// A function of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Function {
    /// Forward, backward and optimiser of one batch.
    TrainStep,
    /// Forward and backward of one batch of a step of several: it adds to sums, with which the last batch makes the step.
    Accumulate,
    /// Loss and balance of one batch, without dropout and noise.
    Evaluate,
    /// Scores of every token of one sequence.
    Logits,
    /// Scores of one token of each of some windows.
    Next,
    /// Scores of the newest token of each of some sequences, from the keys and values of those before it.
    Decode,
}

impl Function {
    /// All functions, in the order in which they are planned.
    pub const ALL: [Function; 6] = [
        Function::TrainStep,
        Function::Accumulate,
        Function::Evaluate,
        Function::Logits,
        Function::Next,
        Function::Decode,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Function::TrainStep => "train_step",
            Function::Accumulate => "accumulate",
            Function::Evaluate => "evaluate",
            Function::Logits => "logits",
            Function::Next => "next",
            Function::Decode => "decode",
        }
    }

    /// The function of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a function is given. B sequences or windows, T tokens in each, N = B*T.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// Numbers of the tokens, i32 `[N]`; the newest of each sequence for [`Function::Decode`].
    Tokens,
    /// The tokens that should follow, i32 `[N]`.
    Targets,
    /// State of the random generator, i32 `[4]`: see [`crate::random`].
    Rng,
    /// What the optimiser is told anew in each step: its learning rate, and whatever else it asks for.
    Hyper,
    /// Which rows are scored, i32 `[B]`.
    Rows,
    /// Position of each token in its sequence, i32 `[B]`.
    Positions,
    /// The token before each, i32 `[B]`; -1 for none.
    Previous,
    /// Standard normal numbers of a router, given instead of drawn: `PATH.noise`.
    Noise {
        /// Path of the router.
        path: String,
        /// The how manieth noise of that router, from 1.
        number: usize,
    },
    /// Numbers uniform on [0, 1) of a router, given instead of drawn: `PATH.uniform`.
    Uniform {
        /// Path of the router.
        path: String,
        /// The how manieth such noise of that router, from 1.
        number: usize,
    },
    /// A choice that is given instead of made: `route.NODE` for the node of that name.
    Route(String),
}

impl Input {
    /// The input of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "tokens" => Input::Tokens,
            "targets" => Input::Targets,
            "rng" => Input::Rng,
            "hyper" => Input::Hyper,
            "rows" => Input::Rows,
            "positions" => Input::Positions,
            "previous" => Input::Previous,
            name => {
                if let Some(node) = name.strip_prefix("route.") {
                    return Some(Input::Route(node.to_string()));
                }
                let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
                let (kind, number) = match last.split_once('_') {
                    Some((kind, number)) => (kind, number.parse().ok().filter(|&n| n > 1)?),
                    None => (last, 1),
                };
                let path = path.to_string();
                match kind {
                    "noise" => Input::Noise { path, number },
                    "uniform" => Input::Uniform { path, number },
                    _ => return None,
                }
            }
        })
    }
}

impl From<Input> for String {
    fn from(input: Input) -> Self {
        input.to_string()
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut drawn = |path: &str, kind: &str, number: usize| {
            let dot = if path.is_empty() { "" } else { "." };
            write!(f, "{path}{dot}{kind}")?;
            if number > 1 { write!(f, "_{number}") } else { Ok(()) }
        };
        match self {
            Input::Tokens => f.write_str("tokens"),
            Input::Targets => f.write_str("targets"),
            Input::Rng => f.write_str("rng"),
            Input::Hyper => f.write_str("hyper"),
            Input::Rows => f.write_str("rows"),
            Input::Positions => f.write_str("positions"),
            Input::Previous => f.write_str("previous"),
            Input::Noise { path, number } => drawn(path, "noise", *number),
            Input::Uniform { path, number } => drawn(path, "uniform", *number),
            Input::Route(node) => write!(f, "route.{node}"),
        }
    }
}

/// What a function gives. A path is that of a layer that sends tokens to experts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Output {
    /// Scores of the tokens that may follow, `[N, V]` or `[B, V]`.
    Logits,
    /// Mean cross-entropy in nats, `[]`.
    Loss,
    /// The loss with the weighted balance losses, `[]`: what is minimised.
    Objective,
    /// Norm of the whole gradient before clipping, `[]`.
    GradNorm,
    /// `grad.NAME`: the gradient of the parameter, state or input of that name.
    Gradient(String),
    /// `aux.PATH.LOSS`: a balance loss before its weight, `[]`.
    Aux {
        /// Path of the layer.
        path: String,
        /// Name of the loss.
        loss: String,
    },
    /// `load.PATH`: tokens that each expert works on, `[E]`, without experts that compute nothing.
    Load(String),
    /// `zero.PATH`: tokens that have chosen each expert that computes nothing, a number for each of those.
    ZeroComputation(String),
    /// `per_token.PATH`: mean number of experts that compute for a token, `[]`; where it varies.
    ExpertsPerToken(String),
    /// Trained numbers that a token makes use of in the mean, `[]`: with the experts that computed for it.
    ActiveParameters,
    /// `dropped.PATH`: share of the choices that were dropped, `[]`.
    Dropped(String),
    /// `entropy.PATH`: mean entropy of a token's weights in nats, `[]`.
    Entropy(String),
    /// `balance.PATH`: number of experts times the sum of squared load shares, 1 at perfect balance, `[]`.
    Balance(String),
    /// `experts.PATH`: the experts chosen for each token, i32 `[N, K]`.
    Experts(String),
    /// `kept.PATH`: those of them that have room for it, i32 `[N, K]`.
    Kept(String),
    /// `weights.PATH`: the weights of the choices, `[N, K]`.
    Weights(String),
    /// `gates.PATH`: the weights of what is kept as a matrix, `[N, E]`.
    Gates(String),
    /// `rows.PATH`: which token each row of the layer is, i32 `[N]`; -1 for none.
    Rows(String),
    /// `route.NODE`: what the node of that name chose, i32.
    Route(String),
    /// `random.NODE`: what the node of that name drew.
    Random(String),
}

impl Output {
    /// The output of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "logits" => return Some(Output::Logits),
            "loss" => return Some(Output::Loss),
            "objective" => return Some(Output::Objective),
            "grad_norm" => return Some(Output::GradNorm),
            "active_parameters" => return Some(Output::ActiveParameters),
            _ => {}
        }
        let (word, of) = name.split_once('.')?;
        let of = of.to_string();
        Some(match word {
            "grad" => Output::Gradient(of),
            "aux" => {
                let (path, loss) = of.rsplit_once('.')?;
                Output::Aux { path: path.to_string(), loss: loss.to_string() }
            }
            "load" => Output::Load(of),
            "zero" => Output::ZeroComputation(of),
            "per_token" => Output::ExpertsPerToken(of),
            "dropped" => Output::Dropped(of),
            "entropy" => Output::Entropy(of),
            "balance" => Output::Balance(of),
            "experts" => Output::Experts(of),
            "kept" => Output::Kept(of),
            "weights" => Output::Weights(of),
            "gates" => Output::Gates(of),
            "rows" => Output::Rows(of),
            "route" => Output::Route(of),
            "random" => Output::Random(of),
            _ => return None,
        })
    }
}

impl From<Output> for String {
    fn from(output: Output) -> Self {
        output.to_string()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Output::Logits => f.write_str("logits"),
            Output::Loss => f.write_str("loss"),
            Output::Objective => f.write_str("objective"),
            Output::GradNorm => f.write_str("grad_norm"),
            Output::ActiveParameters => f.write_str("active_parameters"),
            Output::Gradient(of) => write!(f, "grad.{of}"),
            Output::Aux { path, loss } => write!(f, "aux.{path}.{loss}"),
            Output::Load(path) => write!(f, "load.{path}"),
            Output::ZeroComputation(path) => write!(f, "zero.{path}"),
            Output::ExpertsPerToken(path) => write!(f, "per_token.{path}"),
            Output::Dropped(path) => write!(f, "dropped.{path}"),
            Output::Entropy(path) => write!(f, "entropy.{path}"),
            Output::Balance(path) => write!(f, "balance.{path}"),
            Output::Experts(path) => write!(f, "experts.{path}"),
            Output::Kept(path) => write!(f, "kept.{path}"),
            Output::Weights(path) => write!(f, "weights.{path}"),
            Output::Gates(path) => write!(f, "gates.{path}"),
            Output::Rows(path) => write!(f, "rows.{path}"),
            Output::Route(node) => write!(f, "route.{node}"),
            Output::Random(node) => write!(f, "random.{node}"),
        }
    }
}

/// What paths of layers are sorted by where people read them: `blocks.10` comes after `blocks.9`.
pub fn path_order(path: &str) -> Vec<(u64, &str)> {
    path.split('.').map(|part| (part.parse().unwrap_or(u64::MAX), part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for function in Function::ALL {
            assert_eq!(Function::of_name(function.name()), Some(function));
        }
        let inputs = [
            "tokens",
            "targets",
            "rng",
            "hyper",
            "rows",
            "positions",
            "previous",
            "blocks.0.moe.noise",
            "noise",
            "moe.noise_2",
            "moe.uniform",
            "route.blocks.0.moe.top_k_2",
            "route.noise",
        ];
        for name in inputs {
            assert_eq!(Input::of_name(name).map(|i| i.to_string()).as_deref(), Some(name));
        }
        let outputs = [
            "logits",
            "loss",
            "objective",
            "grad_norm",
            "active_parameters",
            "grad.embed.token.weight",
            "aux.blocks.0.moe.importance",
            "load.moe",
            "zero.moe",
            "per_token.moe",
            "dropped.moe",
            "entropy.moe",
            "balance.moe",
            "experts.moe",
            "kept.moe",
            "weights.moe",
            "gates.moe",
            "rows.blocks.1.moe",
            "route.top_k",
            "random.blocks.0.moe.random_normal",
        ];
        for name in outputs {
            assert_eq!(Output::of_name(name).map(|o| o.to_string()).as_deref(), Some(name));
        }
    }

    #[test]
    fn other_names_are_none_of_ours() {
        for name in ["", "x", "tokens.x", "moe.noise_x", "moe.noise_1", "moe.noises"] {
            assert_eq!(Input::of_name(name), None, "{name}");
        }
        for name in ["", "y", "loads.moe", "aux.z", "output"] {
            assert_eq!(Output::of_name(name), None, "{name}");
        }
        let aux = Output::Aux { path: "blocks.0.moe".into(), loss: "z".into() };
        assert_eq!(Output::of_name("aux.blocks.0.moe.z"), Some(aux));
    }

    #[test]
    fn layers_are_listed_in_the_order_of_the_model() {
        let mut paths = ["blocks.10.moe", "blocks.9.moe", "blocks.9.moe_2", "blocks.0.moe"];
        paths.sort_by_key(|path| path_order(path));
        assert_eq!(paths, ["blocks.0.moe", "blocks.9.moe", "blocks.9.moe_2", "blocks.10.moe"]);
    }
}
