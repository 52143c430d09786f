//! What the numbers of a training mean: the columns of its lines and tables, and the values of its metrics, for `moec explain`.

use crate::cli::table::filled;
use serde_json::{Value, json};

/// A number that training prints.
pub(crate) struct Column {
    /// As it is printed.
    pub(crate) name: &'static str,
    /// As it is called in `metrics.jsonl` and what is made of it, if otherwise.
    pub(crate) key: Option<&'static str>,
    /// One line on what it is.
    pub(crate) summary: &'static str,
    /// How it is computed, and what to make of it.
    pub(crate) text: &'static str,
}

/// Every column, in the order in which they are met.
pub(crate) const COLUMNS: &[Column] = &[
    Column {
        name: "loss",
        key: Some("loss_nats"),
        summary: "mean cross-entropy of the last step's batch, in nats per character",
        text: "The task alone, without balance losses; `objective` in metrics.jsonl has them too. Divide by ln 2 for bits per
character. A model that knows nothing has ln V, 4.17 for the 65 characters of Tiny Shakespeare. It jumps from step to step
because every batch is another one: judge by `val`.",
    },
    Column {
        name: "train",
        key: Some("train_loss_nats"),
        summary: "mean loss over batches of the training text, without dropout and noise",
        text: "Of as many batches as `evaluate(batches: ..)` says. `val` far above it means that the text is being learnt by heart.",
    },
    Column {
        name: "val",
        key: Some("validation_loss_nats"),
        summary: "mean loss over batches of the held-out text",
        text: "Of as many batches as `evaluate(batches: ..)` says, drawn at random; `moec eval RUN` goes through all of it.",
    },
    Column {
        name: "ms/step",
        key: Some("step_ms"),
        summary: "milliseconds of a training step, over the steps since the last line",
        text: "Without evaluation, checkpoints, samples and the first step, for which kernels are compiled. `moec bench SPEC` says how far that is from what the machine can do.",
    },
    Column {
        name: "tokens/s",
        key: Some("tokens_per_s"),
        summary: "characters trained on in a second: batch times context over the time of a step",
        text: "",
    },
    Column {
        name: "left",
        key: None,
        summary: "how long the steps, evaluations and checkpoints will take that are still to come",
        text: "From the time of a step as it is now, of a batch of an evaluation, and of a checkpoint. That kernels are compiled
for the first step and for the first evaluation is no part of it, nor is the sample at the end. It is `about` so much
until an evaluation was timed: its batches are reckoned with a third of a step until then.",
    },
    Column {
        name: "lr",
        key: None,
        summary: "learning rate of the last step, from the optimizer's rate and the schedule",
        text: "",
    },
    Column {
        name: "experts/token",
        key: Some("experts_per_token"),
        summary: "experts that computed for a token in the mean of the last evaluation",
        text: "Measured, after a capacity: what a capacity dropped is missing, and so are experts that compute nothing (`zero`, `copy`,
`constant`). In metrics.jsonl and in lines where it varies: gates of which some are 0, expert choice, a capacity, experts
without computation. On the line of an evaluation it is the mean over those layers.",
    },
    Column {
        name: "active",
        key: Some("active_parameters"),
        summary: "parameters that a token made use of in the mean of the last evaluation",
        text: "Those that every token meets, and of each layer the experts that computed for it, as many as were measured. Where every
token has the same number of experts it is what `moec compile` says, and is not there.",
    },
    Column {
        name: "max/mean",
        key: Some("load_max_over_mean"),
        summary: "rows of the fullest expert over those of an average one",
        text: "Counted in evaluation, after a capacity. 1 is even, E means that one expert has everything. The line of an evaluation
has the worst layer, the table at the end each layer by itself. High from the beginning on: no balance
loss, or one too weak. The fullest expert sets the time of a step on devices that wait for it.",
    },
    Column {
        name: "idle",
        key: Some("experts_without_tokens"),
        summary: "experts without a single token in the evaluation",
        text: "They learn nothing, and cost memory. On the line of an evaluation it is the sum over layers. Noise or
a balance loss brings them back early; late, they rarely come back.",
    },
    Column {
        name: "entropy",
        key: Some("entropy_nats"),
        summary: "mean entropy of a token's weights over its experts, in nats",
        text: "0: all weight on one expert, so that with k > 1 the others are computed for nothing. ln k: equal weights, so that the
router says nothing beyond its choice.",
    },
    Column {
        name: "dropped",
        key: Some("dropped_share"),
        summary: "share of choices that found no room under the capacity",
        text: "Such a token gets nothing from that expert, only what the residual passes on. Above a few percent, raise
`capacity(factor: ..)` or the weight of the balance loss.",
    },
    Column {
        name: "balance",
        key: None,
        summary: "number of experts times the sum of squared shares of rows",
        text: "1 is even, E means that one expert has everything; unlike `max/mean` it looks at all experts. It is measured and trains
nothing: what trains is `balance: [..]` of the `moe`, whose losses stand behind it by name, without their weight.",
    },
    Column {
        name: "objective",
        key: None,
        summary: "what a training step makes smaller: the loss of its batch with the balance losses times their weights",
        text: "In metrics.jsonl where there are balance losses; without them it is `loss`. How far it is above `loss` says what the
balance losses weigh.",
    },
    Column {
        name: "grad_norm",
        key: None,
        summary: "norm of the gradient of a step before it is clipped",
        text: "In metrics.jsonl where `clip` is set. Far above the value of `clip` step after step, it is the clipping that sets the pace.",
    },
    Column {
        name: "load_rows",
        key: None,
        summary: "rows that each expert of a layer computed in the evaluation",
        text: "In metrics.jsonl, a number for each expert, after a capacity. The bars of `load` show it; `max/mean`, `idle` and
`balance` are made of it.",
    },
    Column {
        name: "auxiliary",
        key: None,
        summary: "the balance losses of a layer in the evaluation, by name, without their weights",
        text: "In metrics.jsonl. `moec explain LOSS` has the equations of each.",
    },
];

impl Column {
    /// Whether it is called so where it is printed, or in the metrics.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.key == Some(name)
    }

    /// Everything that is known about it, in lines of at most so many columns.
    pub(crate) fn full(&self, columns: usize) -> String {
        let text = filled(&self.text.replace('\n', " "), columns);
        let text = if text.is_empty() { text } else { format!("\n{text}\n") };
        let key = self.key.map(|key| format!("\nIn metrics.jsonl it is `{key}`.\n")).unwrap_or_default();
        format!("{}, a number of a training: {}\n{text}{key}", self.name, self.summary)
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "kind": "column", "name": self.name, "key": self.key, "summary": self.summary, "text": self.text })
    }
}
