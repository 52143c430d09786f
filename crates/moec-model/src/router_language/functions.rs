//! The functions of the language: how they are written, and what they do.

/// A function of the language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterFunction {
    /// Its name.
    pub name: &'static str,
    /// How it is written.
    pub form: &'static str,
    /// What it gives.
    pub summary: &'static str,
    /// Arguments that may stand without their names, in order.
    pub(super) places: &'static [&'static str],
    /// How many of these must be given.
    pub(super) required: usize,
    /// Arguments that always have their names.
    pub(super) named: &'static [&'static str],
}

const fn function(
    name: &'static str,
    form: &'static str,
    places: (&'static [&'static str], usize),
    named: &'static [&'static str],
    summary: &'static str,
) -> RouterFunction {
    RouterFunction { name, form, summary, places: places.0, required: places.1, named }
}

const X: (&[&str], usize) = (&["x"], 1);
const QUANTITIES: &[&str] = &["logits", "probabilities", "noisy", "std"];

/// Every function that a router can call.
pub const ROUTER_FUNCTIONS: &[RouterFunction] = &[
    function(
        "linear",
        "linear(x, experts, bias: true)",
        (&["x", "width"], 2),
        &["bias", "name"],
        "a trained linear map of each row, named after the `let` it is bound to; without a bias unless one is asked for",
    ),
    function(
        "parameter",
        "parameter(experts, start: 0.0)",
        (&["first", "second"], 0),
        &["start", "name"],
        "a trained vector of a number for each expert, a single trained number, or with `parameter(experts, width)` a \
         trained matrix, which starts as the weights of linear maps do; named after its `let`",
    ),
    function(
        "weight",
        "weight(scores)",
        X,
        &[],
        "the weights of a linear map, [experts, width]: a row for each column of its result, which has a name",
    ),
    function("identity", "identity(experts)", (&["n"], 1), &[], "a matrix that is 1 on its diagonal, else 0"),
    function("normalize", "normalize(x)", X, &[], "each row divided by its length"),
    function(
        "zeros",
        "zeros(experts)",
        (&["first", "second"], 0),
        &[],
        "zeros: one, a vector, or rows with `zeros(tokens, n)`",
    ),
    function(
        "ones",
        "ones(experts)",
        (&["first", "second"], 0),
        &[],
        "ones: one, a vector, or rows with `ones(tokens, n)`",
    ),
    function(
        "normal",
        "normal()",
        (&["columns"], 0),
        &[],
        "standard normal noise, [tokens, experts] or [tokens, n] with `normal(n)`",
    ),
    function(
        "uniform",
        "uniform()",
        (&["columns"], 0),
        &[],
        "uniform noise on [0, 1), [tokens, experts] or [tokens, n] with `uniform(n)`",
    ),
    function(
        "softmax",
        "softmax(x)",
        X,
        &["over"],
        "e^x divided by its sum over the row, or over the tokens with `over: tokens` or `over: sequence`",
    ),
    function(
        "log_sum_exp",
        "log_sum_exp(x)",
        X,
        &["over"],
        "the logarithm of the sum of e^x over the row, or over the tokens with `over: tokens` or `over: sequence`",
    ),
    function("sigmoid", "sigmoid(x)", X, &[], "1 / (1 + e^-x)"),
    function("softplus", "softplus(x)", X, &[], "ln(1 + e^x)"),
    function("exp", "exp(x)", X, &[], "e^x"),
    function("log", "log(x)", X, &[], "the natural logarithm"),
    function("sqrt", "sqrt(x)", X, &[], "the square root"),
    function("abs", "abs(x)", X, &[], "the absolute value"),
    function("sign", "sign(x)", X, &[], "-1, 0 or 1; constant to the gradient"),
    function("relu", "relu(x)", X, &[], "x where it is above 0, else 0"),
    function("tanh", "tanh(x)", X, &[], "the hyperbolic tangent"),
    function("erf", "erf(x)", X, &[], "the error function"),
    function("normal_cdf", "normal_cdf(x)", X, &[], "the cumulative distribution function of the standard normal"),
    function(
        "max",
        "max(x, y)",
        (&["x", "y"], 1),
        &["over"],
        "the larger of two, or `max(x, over: experts)` the largest of a row",
    ),
    function(
        "min",
        "min(x, y)",
        (&["x", "y"], 1),
        &["over"],
        "the smaller of two, or `min(x, over: experts)` the smallest of a row",
    ),
    function(
        "select",
        "select(condition, a, b)",
        (&["condition", "a", "b"], 3),
        &[],
        "a where the condition is not 0, else b, element by element",
    ),
    function(
        "sum",
        "sum(x, over: experts)",
        X,
        &["over"],
        "the sum over `tokens`, the token's `sequence`, `experts` (or choices) or `width`; of everything without `over`",
    ),
    function(
        "mean",
        "mean(x, over: tokens)",
        X,
        &["over"],
        "the mean over `tokens`, the token's `sequence`, `experts` (or choices) or `width`; of everything without `over`",
    ),
    function(
        "quantile",
        "quantile(x, 0.9, over: tokens)",
        (&["x", "q"], 2),
        &["over"],
        "the number that a share q of an axis lies below, between two elements a share of each; the axes are those of `sum`",
    ),
    function(
        "cumsum",
        "cumsum(x, over: sequence)",
        X,
        &["over"],
        "the sum up to each element along `experts` (or choices), `width`, `tokens` of the batch, or the `sequence` of each",
    ),
    function(
        "top_k",
        "let values, chosen = top_k(x, k)",
        (&["x", "k"], 2),
        &[],
        "the k largest of each row in decreasing order, and their indices; ties go to the lower index",
    ),
    function(
        "keep_top_k",
        "keep_top_k(x, k)",
        (&["x", "k"], 2),
        &["over"],
        "each row with all but its k largest replaced by -1e30, whose softmax is 0; with `over: tokens` or `over: \
         sequence` the k largest for each expert",
    ),
    function("gather", "gather(x, chosen)", (&["x", "indices"], 2), &[], "the elements of each row at the indices"),
    function(
        "scatter",
        "scatter(values, chosen)",
        (&["values", "indices"], 2),
        &[],
        "rows [tokens, experts] with the values at the indices, else 0",
    ),
    function(
        "count",
        "count(chosen)",
        (&["indices"], 1),
        &[],
        "how often each expert was chosen, [experts]; constant to the gradient",
    ),
    function(
        "lookup",
        "lookup(expert_of, token_ids)",
        (&["table", "ids"], 2),
        &[],
        "what a table has for each token, or for the token before with `previous_ids`",
    ),
    function("stop_gradient", "stop_gradient(x)", X, &[], "x, constant to the gradient"),
    function("float", "float(chosen)", X, &[], "indices as numbers"),
    function(
        "index",
        "index(x)",
        X,
        &[],
        "the whole part of each number as the number of an expert; none where there is no such expert",
    ),
];

/// What a table of a router is made of.
pub const ROUTER_TABLES: &[RouterFunction] = &[
    function(
        "random",
        "random(seed: 0)",
        (&[], 0),
        &["choices", "seed"],
        "an expert for each token of the vocabulary, drawn from a seed; several different ones with `choices: k`",
    ),
    function(
        "balanced",
        "balanced",
        (&[], 0),
        &["choices"],
        "experts that are dealt out, the most frequent token first, each to those with the least load so far",
    ),
    function("frequency", "frequency", (&[], 0), &[], "the share of the training text that is this token"),
];

/// What a router returns.
pub const ROUTER_RESULTS: &[RouterFunction] = &[
    function(
        "token_choice",
        "token_choice(experts: chosen, weights: w)",
        (&[], 0),
        &["experts", "weights", "logits", "probabilities", "noisy", "std"],
        "the experts of each token, indices [tokens, k], and their weights",
    ),
    function(
        "dense_gates",
        "dense_gates(g)",
        (&["gates"], 1),
        QUANTITIES,
        "a weight for every expert, [tokens, experts]; experts with weight 0 are not computed",
    ),
];

/// The function of that name.
pub(super) fn find(name: &str) -> Option<&'static RouterFunction> {
    ROUTER_FUNCTIONS.iter().find(|function| function.name == name)
}

/// What a table is made of under that name.
pub(super) fn find_table(name: &str) -> Option<&'static RouterFunction> {
    ROUTER_TABLES.iter().find(|function| function.name == name)
}

/// What a router returns under that name.
pub(super) fn find_result(name: &str) -> Option<&'static RouterFunction> {
    ROUTER_RESULTS.iter().find(|function| function.name == name)
}
