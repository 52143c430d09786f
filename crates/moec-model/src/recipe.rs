//! The recipe: the settings of the `train` block with their defaults, which are makeMoE's (but for shorter evaluations), and what they say
//! once checked.

use std::sync::LazyLock;

use indexmap::IndexMap;
use moec_ir::{Invariant, Precision, internal_error};
use moec_plan::{OPTIMIZERS, Optimizer, SCHEDULES, Schedule, Settings};
use moec_syntax::Span;

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::tensors::{Freeze, InitScale};

/// A checked recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// What to train on.
    pub data: DataSource,
    /// Share of the text used for training; the rest is held out, which may be nothing.
    pub split: f64,
    /// Sequences that go through the device together, B.
    pub batch: usize,
    /// Batches of a step, whose mean gradient it follows.
    pub accumulate: usize,
    /// Training steps.
    pub steps: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Bound on the global norm of the gradient.
    pub clip: Option<f64>,
    /// What is left of a moving average of the parameters after a step, by which is evaluated and sampled; none if absent.
    pub average: Option<f64>,
    /// How parameters start.
    pub init: InitScheme,
    /// Which of them start smaller or larger.
    pub init_scale: Option<InitScale>,
    /// What the operands of the layers' products are rounded to, in training and in the evaluations of a run.
    pub precision: Precision,
    /// Which tensors stay as they start.
    pub freeze: Freeze,
    /// When and how long to evaluate.
    pub evaluate: Evaluate,
    /// Steps between checkpoints; 0 for one at the end alone.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept; all if absent.
    pub checkpoints_kept: Option<u64>,
    /// Whether the evaluation with the best held-out loss has a checkpoint, which stays besides.
    pub best_kept: bool,
    /// Steps between lines of progress; 0 for one at the end alone.
    pub log_every: u64,
    pub(crate) spans: IndexMap<&'static str, Span>,
    pub(crate) origins: IndexMap<String, Span>,
}

impl Default for Recipe {
    /// What an empty `train` block says.
    fn default() -> Self {
        Recipe::of(DataSource::Synthetic, &IndexMap::new())
    }
}

impl Recipe {
    /// The recipe of what is written; everything else is as in [`train_settings`].
    pub(crate) fn of(data: DataSource, written: &IndexMap<&'static str, Written>) -> Self {
        let said: IndexMap<&str, Written> = train_settings()
            .iter()
            .map(|spec| (spec.name, written.get(spec.name).cloned().unwrap_or_else(|| spec.unwritten())))
            .collect();
        let arguments = |of: &str| &said[of].arguments;
        let whole = |of: &str, name: &str| u64::try_from(arguments(of).int(name)).invariant("counts are not negative");
        let (optimizer, schedule) = (&said["optimizer"], &said["schedule"]);
        let mut chosen = Optimizer::named(optimizer.choice).invariant("the name was checked");
        chosen.settings = settings(chosen.spec.settings, &optimizer.arguments);
        let mut rate = Schedule::named(schedule.choice).invariant("the name was checked");
        rate.settings = settings(rate.spec.settings, &schedule.arguments);
        Recipe {
            data,
            split: arguments("split").float("split"),
            batch: arguments("batch").size("batch"),
            accumulate: arguments("accumulate").size("accumulate"),
            steps: whole("steps", "steps"),
            seed: whole("seed", "seed"),
            optimizer: chosen,
            schedule: rate,
            clip: arguments("clip").get("clip").map(|_| arguments("clip").float("clip")),
            average: arguments("average").get("decay").map(|_| arguments("average").float("decay")),
            init: match said["init"].choice {
                "xavier" => InitScheme::Xavier,
                "normal" => InitScheme::Normal { std: arguments("init").float("std") },
                "zeros" => InitScheme::Zeros,
                "kaiming_normal" => InitScheme::KaimingNormal,
                other => internal_error!("no initialisation is called {other}"),
            },
            init_scale: {
                let said = arguments("init_scale");
                let (tensors, factor) = (said.text("tensors"), said.float("factor"));
                let is_said = tensors.is_some() || factor != 1.0;
                is_said.then(|| InitScale { tensors: tensors.unwrap_or("*").to_string(), factor })
            },
            precision: Precision::named(arguments("precision").word("precision")).invariant("the word was checked"),
            freeze: {
                let said = arguments("freeze");
                let tensors = said.text("tensors").map(str::to_string);
                Freeze {
                    experts: said.bool("experts"),
                    router: said.bool("router"),
                    trunk: said.bool("trunk"),
                    tensors,
                }
            },
            evaluate: {
                let every = whole("evaluate", "every");
                let said = |name| arguments("evaluate").get(name).map(|_| whole("evaluate", name));
                let batches = said("batches").unwrap_or_else(|| Evaluate::proportionate(every));
                Evaluate { every, batches, patience: said("patience") }
            },
            checkpoint_every: whole("checkpoint", "every"),
            checkpoints_kept: arguments("checkpoint").get("keep").map(|_| whole("checkpoint", "keep")),
            best_kept: arguments("checkpoint").bool("best"),
            log_every: whole("log", "every"),
            spans: IndexMap::new(),
            origins: IndexMap::new(),
        }
    }

    /// Sequences that a step is made of.
    pub fn sequences(&self) -> usize {
        self.batch.saturating_mul(self.accumulate)
    }

    /// The sequences of a step as text: `16`, or `4 x 16` where it is made of several batches.
    pub fn sequences_text(&self) -> String {
        if self.accumulate > 1 { format!("{} x {}", self.accumulate, self.batch) } else { self.batch.to_string() }
    }

    /// Where a value was given, in the file or by an override, by its path: `train.steps`, `train.optimizer`,
    /// `train.optimizer.lr`; `None` for a default.
    pub fn origin(&self, path: &str) -> Option<Span> {
        self.origins.get(path).copied()
    }

    /// Where a setting was written, by its name in the file; `None` for a default or an override.
    pub fn span(&self, setting: &str) -> Option<Span> {
        self.spans.get(setting).copied()
    }
}

/// What to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// A generated text that needs nothing from outside.
    Synthetic,
    /// A known data set or the path of a text file.
    Named(String),
}

/// How parameters start; see [`InitScheme::init`].
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum InitScheme {
    /// Normal with variance 2 / fan-in.
    #[default]
    KaimingNormal,
    /// Uniform with variance 2 / (fan-in + fan-out).
    Xavier,
    /// Normal with a given deviation.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// All weights 0.
    Zeros,
}

/// When and how long to evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evaluate {
    /// Steps between evaluations; 0 for none.
    pub every: u64,
    /// Batches per evaluation and split.
    pub batches: u64,
    /// Evaluations without a better held-out loss after which training ends.
    pub patience: Option<u64>,
}

impl Evaluate {
    /// Batches of an evaluation where nothing is said. A batch that is only evaluated takes about a third of a step, and there
    /// are two splits: three batches for 20 steps between two evaluations take a tenth of their time.
    fn proportionate(every: u64) -> u64 {
        (every.saturating_mul(3) / 20).clamp(1, 400)
    }
}

/// The settings of an optimiser or schedule from checked arguments. A number may have been written as a whole one.
fn settings(declared: &[ParameterSpec], arguments: &Arguments) -> Settings {
    let given = arguments.iter().map(|(name, value)| match declared.iter().find(|spec| spec.name == name) {
        Some(spec) if matches!(spec.ty, ParameterType::Float(_)) => (name, arguments.float(name).into()),
        _ => (name, value.clone()),
    });
    given.fold(Settings::defaults(declared), |settings, (name, value)| settings.with(name, value))
}

/// One setting of the `train` block.
#[derive(Clone, Debug)]
pub struct SettingSpec {
    /// Its name.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// How it is written.
    pub form: SettingForm,
}

/// How a setting of the `train` block is written.
#[derive(Clone, Debug)]
pub enum SettingForm {
    /// `data synthetic`, `data "corpus.txt"`.
    Data,
    /// `batch 16`
    Value(ParameterType, DefaultValue),
    /// `evaluate(every: 100, batches: 50)`
    Arguments(Vec<ParameterSpec>),
    /// `optimizer adamw(lr: 1e-3)`: one of several names with arguments, the first by default.
    Choice(Vec<(&'static str, Vec<ParameterSpec>)>),
}

impl SettingForm {
    /// The arguments that the setting can have in any of its forms.
    pub fn parameters(&self) -> impl Iterator<Item = &ParameterSpec> {
        let (own, of_choices): (&[ParameterSpec], &[(&str, Vec<ParameterSpec>)]) = match self {
            SettingForm::Data | SettingForm::Value(..) => (&[], &[]),
            SettingForm::Arguments(specs) => (specs, &[]),
            SettingForm::Choice(choices) => (&[], choices),
        };
        own.iter().chain(of_choices.iter().flat_map(|(_, specs)| specs))
    }
}

const COUNT: ParameterType = ParameterType::Int(Interval::at_least(1.0));

const NORMAL: &[ParameterSpec] =
    &[ParameterSpec::number("std", Interval::above(0.0), 0.02, "standard deviation of the weights")];

/// Every setting of the `train` block, with the one place of its default.
pub fn train_settings() -> &'static [SettingSpec] {
    static SETTINGS: LazyLock<Vec<SettingSpec>> = LazyLock::new(|| {
        let setting = |name, help, form| SettingSpec { name, help, form };
        let whole = |low, high, default| {
            SettingForm::Value(ParameterType::Int(Interval::closed(low, high)), DefaultValue::Int(default))
        };
        let interval = ParameterType::Int(Interval::at_least(0.0));
        let every = |default, help| ParameterSpec::optional("every", interval, DefaultValue::Int(default), help);
        vec![
            setting("data", "`synthetic`, a known data set, or the path of a text file in quotes", SettingForm::Data),
            setting(
                "split",
                "share of the text used for training; the rest is held out",
                SettingForm::Value(ParameterType::Float(Interval::ANY), DefaultValue::Float(0.9)),
            ),
            setting("batch", "sequences per step", whole(1.0, 1_048_576.0, 16)),
            setting(
                "accumulate",
                "batches per step, one after another, of whose gradients it takes the mean",
                whole(1.0, 1_048_576.0, 1),
            ),
            setting("steps", "training steps", SettingForm::Value(COUNT, DefaultValue::Int(5000))),
            setting(
                "seed",
                "seed of everything random",
                SettingForm::Value(ParameterType::Int(Interval::at_least(0.0)), DefaultValue::Int(1337)),
            ),
            setting(
                "optimizer",
                "how parameters follow their gradients",
                SettingForm::Choice(OPTIMIZERS.iter().map(|o| (o.name, o.settings.to_vec())).collect()),
            ),
            setting(
                "schedule",
                "how the learning rate changes",
                SettingForm::Choice(SCHEDULES.iter().map(|s| (s.name, s.settings.to_vec())).collect()),
            ),
            setting(
                "clip",
                "bound on the global norm of the gradient",
                SettingForm::Value(ParameterType::Float(Interval::above(0.0)), DefaultValue::Absent("none")),
            ),
            setting(
                "average",
                "evaluates and samples with a moving average of the parameters",
                SettingForm::Arguments(vec![ParameterSpec::optional(
                    "decay",
                    ParameterType::Float(Interval::half_open(0.0, 1.0)),
                    DefaultValue::Absent("none"),
                    "what is left of the average after a step, 0.999 for example",
                )]),
            ),
            setting(
                "init",
                "how weights start",
                SettingForm::Choice(INIT_SCHEMES.iter().map(|(name, specs)| (*name, specs.to_vec())).collect()),
            ),
            setting(
                "init_scale",
                "which weights start smaller or larger",
                SettingForm::Arguments(vec![
                    ParameterSpec::optional(
                        "tensors",
                        ParameterType::Text,
                        DefaultValue::Absent("all"),
                        "names, with commas between them; `*` stands for anything",
                    ),
                    ParameterSpec::optional(
                        "factor",
                        ParameterType::Float(Interval::at_least(0.0)),
                        DefaultValue::Float(1.0),
                        "what random first values are multiplied by",
                    ),
                ]),
            ),
            setting(
                "precision",
                "what the operands of layers' products are rounded to",
                SettingForm::Value(ParameterType::Choice(PRECISIONS), DefaultValue::Word(Precision::F32.name())),
            ),
            setting(
                "freeze",
                "which tensors stay as they start",
                SettingForm::Arguments(vec![
                    ParameterSpec::flag("experts", false, "keep the experts of `moe` layers, shared ones too"),
                    ParameterSpec::flag(
                        "router",
                        false,
                        "keep what routers decide by, and the states that they would change",
                    ),
                    ParameterSpec::flag("trunk", false, "keep everything else"),
                    ParameterSpec::optional(
                        "tensors",
                        ParameterType::Text,
                        DefaultValue::Absent("none"),
                        "keep the tensors of these names too, with commas between them; `*` stands for anything",
                    ),
                ]),
            ),
            setting(
                "evaluate",
                "when and how long to evaluate",
                SettingForm::Arguments(vec![
                    every(100, "steps between evaluations; 0 for none"),
                    ParameterSpec::optional(
                        "batches",
                        COUNT,
                        DefaultValue::Absent("auto"),
                        "batches per evaluation and split; `auto` is 3 for 20 of `every`, from 1 to 400",
                    ),
                    ParameterSpec::optional(
                        "patience",
                        COUNT,
                        DefaultValue::Absent("none"),
                        "evaluations without a better held-out loss after which training ends",
                    ),
                ]),
            ),
            setting(
                "checkpoint",
                "when to save, and how much to keep",
                SettingForm::Arguments(vec![
                    every(1000, "steps between checkpoints; 0 for one at the end alone"),
                    ParameterSpec::optional(
                        "keep",
                        COUNT,
                        DefaultValue::Absent("all"),
                        "newest checkpoints that are kept, those before are removed",
                    ),
                    ParameterSpec::flag(
                        "best",
                        false,
                        "save at every evaluation with the best held-out loss so far, and keep that",
                    ),
                ]),
            ),
            setting(
                "log",
                "when to report progress",
                SettingForm::Arguments(vec![every(10, "steps between lines of progress; 0 for one at the end alone")]),
            ),
        ]
    });
    &SETTINGS
}

const PRECISIONS: &[&str] = &[Precision::F32.name(), Precision::Bf16.name()];

const INIT_SCHEMES: [(&str, &[ParameterSpec]); 4] =
    [("kaiming_normal", &[]), ("xavier", &[]), ("normal", NORMAL), ("zeros", &[])];

/// What a setting says once checked.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// The name among several, for [`SettingForm::Choice`].
    pub(crate) choice: &'static str,
    /// Its arguments; a single value is named like the setting.
    pub(crate) arguments: Arguments,
    /// Where it is written.
    pub(crate) span: Option<Span>,
}

impl SettingSpec {
    /// What the setting says when it is not written.
    fn unwritten(&self) -> Written {
        let (choice, arguments) = match &self.form {
            SettingForm::Data => ("", Arguments::defaults(self.name, &[])),
            SettingForm::Value(ty, default) => {
                let spec = ParameterSpec::optional(self.name, *ty, *default, self.help);
                ("", Arguments::defaults("train", &[spec]))
            }
            SettingForm::Arguments(specs) => ("", Arguments::defaults(self.name, specs)),
            SettingForm::Choice(choices) => (choices[0].0, Arguments::defaults(choices[0].0, &choices[0].1)),
        };
        Written { choice, arguments, span: None }
    }
}
