//! Building a graph with named persistent tensors: the shared ground of layer lowering and routing strategies.

use indexmap::IndexMap;
use moec_ir::{Builder, Init, Input, Op, Precision, TensorType, Value, internal_error};

use crate::recipe::InitScheme;
use crate::state::StateInit;

/// What a function of the program is for. Dropout and training noise exist only in [`Mode::Train`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A training step.
    Train,
    /// Evaluation and sampling.
    Evaluate,
}

/// Where the noise of routing strategies comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NoisePolicy {
    /// Drawn on the device from (seed, step, node, element).
    #[default]
    Generated,
    /// Given as an input per `moe` layer, for replay and for comparison with a reference.
    Injected,
}

/// What a parameter is for, from which its initial values follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Weight of a linear map, `[.., out, in]`.
    Weight {
        /// Extent of the input.
        fan_in: usize,
        /// Extent of the output.
        fan_out: usize,
    },
    /// Weight of the linear map to the scores of tokens, `[V, C]`.
    Scores {
        /// Extent of the vectors.
        width: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Bias of a linear map.
    Bias {
        /// Extent of the map's input.
        fan_in: usize,
    },
    /// Table of vectors.
    Embedding,
    /// Table of vectors in a model whose scores are products with token vectors.
    TiedEmbedding {
        /// Extent of the vectors.
        width: usize,
    },
    /// Starts at one value whatever the initialisation of the recipe, such as the gain of a norm.
    Constant(f64),
    /// Starts uniform on `[-bound, bound)` whatever the initialisation of the recipe.
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
    /// As `Uniform`, for numbers that are looked at as they are, and that nothing is multiplied with.
    Table {
        /// Half the width of the interval.
        bound: f64,
    },
    /// A matrix that starts with orthogonal rows (or columns, if it has more rows) of length `gain`, whatever the
    /// initialisation of the recipe.
    Orthogonal {
        /// Length of the vectors.
        gain: f64,
    },
}

impl Role {
    /// Whether it is that of the weights of a linear map, and not of a bias, the gain of a norm or a table of vectors.
    fn is_matrix(self) -> bool {
        match self {
            Role::Weight { .. } | Role::Scores { .. } | Role::Orthogonal { .. } | Role::Uniform { .. } => true,
            Role::Bias { .. }
            | Role::Table { .. }
            | Role::Embedding
            | Role::TiedEmbedding { .. }
            | Role::Constant(_) => false,
        }
    }
}

impl InitScheme {
    /// Initial values of a parameter.
    ///
    /// `kaiming_normal` is what makeMoE does: He et al. 2015 (arXiv 1502.01852) for every linear weight, the biases as
    /// `torch.nn.Linear` leaves them. The other schemes start biases at 0. Embeddings are standard normal as in
    /// `torch.nn.Embedding`, except under `normal`, which gives them its own deviation as GPT-2 does. Where the scores
    /// are products with them, they start with variance 1 / width: with 1, scores would have the width as their variance,
    /// and the first loss would be many times ln V.
    pub fn init(&self, role: Role) -> Init {
        let normal = |std: f64| Init::Normal { std: std.into() };
        let uniform = |bound: f64| Init::Uniform { bound: bound.into() };
        let constant = |value: f64| Init::Constant(value.into());
        // An extent of 0 has no elements to fill, so any divisor serves.
        let extent = |n: usize| n.max(1) as f64;
        match (role, self) {
            (Role::Scores { width, vocab }, _) => self.init(Role::Weight { fan_in: width, fan_out: vocab }),
            (Role::Constant(value), _) => constant(value),
            (Role::Uniform { bound } | Role::Table { bound }, _) => uniform(bound),
            (Role::Orthogonal { gain }, _) => Init::Orthogonal { gain: gain.into() },
            (Role::Embedding | Role::TiedEmbedding { .. }, InitScheme::Normal { std }) => normal(*std),
            (Role::TiedEmbedding { width }, _) => normal(1.0 / extent(width).sqrt()),
            (Role::Embedding, _) => normal(1.0),
            (Role::Weight { fan_in, .. }, InitScheme::KaimingNormal) => normal((2.0 / extent(fan_in)).sqrt()),
            // Glorot & Bengio 2010, equation 16.
            (Role::Weight { fan_in, fan_out }, InitScheme::Xavier) => {
                uniform((6.0 / extent(fan_in.saturating_add(fan_out))).sqrt())
            }
            (Role::Weight { .. }, InitScheme::Normal { std }) => normal(*std),
            (Role::Weight { .. }, InitScheme::Zeros) => constant(0.0),
            (Role::Bias { fan_in }, InitScheme::KaimingNormal) => uniform(1.0 / extent(fan_in).sqrt()),
            (Role::Bias { .. }, _) => constant(0.0),
        }
    }
}

/// A declared parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Declared {
    pub(crate) init: Init,
    pub(crate) elements: usize,
    /// Share of the elements that one token makes use of, on average.
    pub(crate) share: f64,
    /// Whether a router multiplies each of its tokens with all of it.
    pub(crate) router: bool,
    /// Whether it is the weights of a linear map.
    pub(crate) matrix: bool,
    /// Whether that is a map between hidden vectors.
    pub(crate) hidden: bool,
}

/// A graph builder that also keeps the initial values of what it declares.
pub(crate) struct Emitter {
    pub(crate) builder: Builder,
    pub(crate) mode: Mode,
    pub(crate) noise: NoisePolicy,
    /// Parameters by name.
    pub(crate) parameters: IndexMap<String, Declared>,
    pub(crate) states: IndexMap<String, StateInit>,
    scheme: InitScheme,
    /// How many inputs of a kind a scope has.
    inputs: IndexMap<Input, usize>,
    /// Where experts are merged, the share of each in the one that is asked for, `[R, E]`: a parameter `[R, ..]` is then that
    /// times the parameters `[E, ..]`.
    pub(crate) merging: Option<Value>,
}

impl Emitter {
    pub(crate) fn new(mode: Mode, noise: NoisePolicy, scheme: InitScheme) -> Self {
        Emitter {
            builder: Builder::new(),
            mode,
            noise,
            parameters: IndexMap::new(),
            states: IndexMap::new(),
            scheme,
            inputs: IndexMap::new(),
            merging: None,
        }
    }

    /// Runs `f` with `name` appended to the scope of names.
    pub(crate) fn scoped<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.builder.enter(name);
        let result = f(self);
        self.builder.leave();
        result
    }

    /// A trained tensor; where experts are merged, the weighted sums of those of all of them.
    pub(crate) fn parameter(&mut self, name: &str, shape: impl Into<Vec<usize>>, role: Role) -> Value {
        let shape = shape.into();
        let Some(weights) = self.merging else { return self.declared(name, shape, role) };
        let experts = self.builder.columns(weights);
        let [_, rest @ ..] = &shape[..] else { internal_error!("{name} is no parameter of several experts") };
        let (each, elements) = ([&[experts], rest].concat(), rest.iter().product());
        let each = self.declared(name, each, role);
        let each = self.builder.reshape(each, [experts, elements]);
        let merged = self.builder.matmul(weights, each);
        self.builder.reshape(merged, shape)
    }

    fn declared(&mut self, name: &str, shape: Vec<usize>, role: Role) -> Value {
        let value = self.builder.parameter(name, shape);
        // The first declaration counts: a tied output layer reads the table that the embedding has declared.
        let path = self.builder.path(name);
        let elements = self.builder.ty(value).elements();
        let init = self.scheme.init(role);
        let hidden = |matrix: bool| matrix && !matches!(role, Role::Scores { .. });
        let matrix = role.is_matrix() && self.builder.ty(value).shape.len() > 1;
        self.parameters.entry(path).or_insert(Declared {
            init,
            elements,
            share: 1.0,
            router: false,
            matrix,
            hidden: hidden(matrix),
        });
        value
    }

    /// Gives a parameter another role, which says how it starts, if it has been declared.
    pub(crate) fn start_as(&mut self, path: &str, role: Role) {
        let init = self.scheme.init(role);
        if let Some(declared) = self.parameters.get_mut(path) {
            declared.init = init;
        }
    }

    pub(crate) fn state(&mut self, name: &str, ty: TensorType, initial: StateInit) -> Value {
        let value = self.builder.state(name, ty);
        self.states.entry(self.builder.path(name)).or_insert(initial);
        value
    }

    /// `x [N, input] -> [N, output]` with parameters under `name`, in float32: what a router decides by.
    pub(crate) fn linear(&mut self, name: &str, x: Value, input: usize, output: usize, bias: bool) -> Value {
        self.scoped(name, |e| e.linear_here(Precision::F32, x, input, output, bias))
    }

    /// As [`Self::linear`], with the parameters in the current scope, of operands that are rounded to a precision.
    pub(crate) fn linear_here(
        &mut self,
        precision: Precision,
        x: Value,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Value {
        let weight = Role::Weight { fan_in: input, fan_out: output };
        self.linear_of(precision, x, (input, output), weight, bias.then_some(Role::Bias { fan_in: input }))
    }

    /// As [`Self::linear_here`], with roles for the weight and, if there is one, the bias.
    pub(crate) fn linear_of(
        &mut self,
        precision: Precision,
        x: Value,
        (input, output): (usize, usize),
        weight: Role,
        bias: Option<Role>,
    ) -> Value {
        let weight = self.parameter("weight", [output, input], weight);
        let bias = bias.map(|role| self.parameter("bias", [output], role));
        self.builder.linear_in(precision, x, weight, bias)
    }

    /// `rows [R, input] -> [R, output]` with one map per expert, in the current scope.
    pub(crate) fn grouped_linear_here(
        &mut self,
        precision: Precision,
        rows: Value,
        (experts, offsets): (usize, Value),
        input: usize,
        output: usize,
        bias: bool,
    ) -> Value {
        let role = Role::Weight { fan_in: input, fan_out: output };
        let mut operands = vec![rows, self.parameter("weight", [experts, output, input], role), offsets];
        if bias {
            operands.push(self.parameter("bias", [experts, output], Role::Bias { fan_in: input }));
        }
        self.builder.op(Op::GroupedMatMul { transpose_b: true, bias, precision }, &operands)
    }

    /// State of the random number generator; an input of the graph from the first use on.
    pub(crate) fn rng(&mut self) -> Value {
        self.builder.input(Input::Rng, TensorType::i32([4]))
    }

    /// An input of the current scope, numbered from the second of its kind on.
    pub(crate) fn fresh_input(&mut self, given: impl Fn(String, usize) -> Input) -> Input {
        let path = self.builder.path("");
        let count = self.inputs.entry(given(path.clone(), 1)).or_insert(0);
        *count += 1;
        given(path, *count)
    }
}
