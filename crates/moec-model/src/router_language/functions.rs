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
        (&["width"], 0),
        &["start", "name"],
        "a trained vector of a number for each expert, or a single trained number, named after its `let`",
    ),
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
        "e^x divided by its sum over the row, or over all tokens with `over: tokens`",
    ),
    function(
        "log_sum_exp",
        "log_sum_exp(x)",
        X,
        &["over"],
        "the logarithm of the sum of e^x over the row, or `over: tokens`",
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
        "the sum over `tokens`, `experts` (or choices) or `width`; of everything without `over`",
    ),
    function(
        "mean",
        "mean(x, over: tokens)",
        X,
        &["over"],
        "the mean over `tokens`, `experts` (or choices) or `width`; of everything without `over`",
    ),
    function(
        "cumsum",
        "cumsum(x, over: positions)",
        X,
        &["over"],
        "the sum up to each element along `experts` (or choices), `width`, `tokens` of the batch, or `positions` of each sequence",
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
        &[],
        "each row with all but its k largest replaced by -1e30, whose softmax is 0",
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

/// What a router returns under that name.
pub(super) fn find_result(name: &str) -> Option<&'static RouterFunction> {
    ROUTER_RESULTS.iter().find(|function| function.name == name)
}
