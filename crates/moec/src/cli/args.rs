//! The command line: every command and option, with its help.

use crate::cli::exit::EXIT_CODES;
use crate::cli::sweep::{self, Sweep};
use crate::cli::wrapping::{NARROWEST, wrapped};
use crate::{Decode, Device};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use moec_ir::{Function, Invariant, WeightFormat};
use std::path::{Path, PathBuf};

/// Compiles, trains, samples and explains mixture-of-experts language models written as short `.moe` files.
#[derive(Debug, Parser)]
#[command(name = "moec", version, after_help = EXIT_CODES, propagate_version = true, max_term_width = WIDEST)]
pub(crate) struct Cli {
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// When to use colours on the terminal (NO_COLOR is respected).
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,

    /// Compile kernels for the processor, and keep none (they are kept between commands: `moec cache --help`).
    #[arg(long, global = true)]
    pub(crate) no_cache: bool,
}

/// The command line as it is read, with its help broken to a terminal of so many columns; without any, as manual pages need it.
pub(crate) fn command(columns: Option<usize>) -> clap::Command {
    let mut command = Cli::command();
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_string()).collect();
    for name in names {
        command = command.mut_subcommand(name, |sub| {
            // What an option takes says the option, also of `--steps -5`.
            let sub =
                sub.mut_args(|argument| match argument.get_action().takes_values() && !argument.is_positional() {
                    true => argument.allow_negative_numbers(true),
                    false => argument,
                });
            match sub.get_after_help().map(ToString::to_string) {
                Some(help) => sub.after_help(reflowed(&help, columns)),
                None => sub,
            }
        });
    }
    command
}

/// The widest help.
const WIDEST: usize = 100;

/// Columns of the terminal that help is read on, as clap sees it.
pub(crate) fn help_columns() -> usize {
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    let seen = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    seen.or_else(said).unwrap_or(WIDEST).clamp(NARROWEST, WIDEST)
}

/// Paragraphs in one line each, and what is indented line by line; then all broken to columns, if any are given.
fn reflowed(help: &str, columns: Option<usize>) -> String {
    let mut text = String::new();
    let mut in_paragraph = false;
    for line in help.lines() {
        let is_prose = !line.starts_with(' ') && !line.is_empty();
        if is_prose && in_paragraph {
            text.push(' ');
        } else if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(line);
        in_paragraph = is_prose && line != "Examples:";
    }
    columns.map_or(text.clone(), |columns| wrapped(&text, columns))
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a small commented `.moe` file to begin with.
    #[command(after_help = "Examples:
  moec new mine
  moec new mine --template switch
  moec new experiments/mine.moe --template router    with a router to change

A file that is there is never replaced.")]
    New(NewArgs),
    /// Check a `.moe` file and report everything that is wrong with it.
    #[command(after_help = "Examples:
  moec check specs/noisy_top2.moe
  moec check specs/*.moe
  moec check - < my.moe
  moec check my.moe -s width=64 --message-format short")]
    Check(CheckArgs),
    /// Rewrite `.moe` files in the one canonical layout.
    #[command(after_help = "Examples:
  moec fmt my.moe            rewrite the file in place
  moec fmt --check my.moe    say whether it is in canonical layout (exit code 1 if not)
  moec fmt - < my.moe        format standard input to standard output")]
    Fmt(FmtArgs),
    /// Explain a message code, a layer, a routing strategy, a balance loss, an optimizer, a schedule or a number of a
    /// training; or what is wrong with a run, and which line to change.
    #[command(after_help = "Examples:
  moec explain E0203
  moec explain runs/latest           what is wrong with a run, why it matters, what to change
  moec explain attention             equations with shapes, arguments, cost, decoding, references
  moec explain noisy_top_k           equations with shapes, parameters, cost, references
  moec explain importance
  moec explain max/mean              a column of what training prints
  moec explain mine --spec my.moe    a router that a file defines
  moec explain                       list everything that can be explained

A name that is known wins over a folder of that name: ./switch is the run where switch is the router. Diagnoses begin at
step 50, for before that the weights are still those of the start.")]
    Explain(ExplainArgs),
    /// List the layers that a file can name.
    #[command(after_help = "Examples:
  moec layers
  moec layers --json

`moec explain NAME` prints the equations of one.")]
    Layers(LayersArgs),
    /// List the routing strategies and balance losses that a file can name.
    #[command(after_help = "Examples:
  moec routers
  moec routers --spec my.moe         with those that the file defines
  moec routers --json

`moec explain NAME` prints the equations of one.")]
    Routers(RoutersArgs),
    /// Compile a model and print its sizes, layers, kernels and memory on one screen.
    #[command(after_help = "Examples:
  moec compile specs/noisy_top2.moe
  moec compile specs/tiny.moe --emit plan --after fuse_elementwise
  moec compile specs/tiny.moe --emit plan --function evaluate -o plan.yaml
  moec compile specs/tiny.moe --json")]
    Compile(CompileArgs),
    /// Print every value of a recipe, and the named ones of its model; with --show-origin where each comes from.
    #[command(after_help = "Examples:
  moec config my.moe
  moec config my.moe --show-origin
  moec config my.moe --config fast.yaml -s width=64 --show-origin --json

A value comes from the file (its `train` block and its `let`s), or else is a default; --config FILE replaces it, and -s
replaces that. Options such as --steps of `moec train` stand for -s. What --config names is YAML with the same paths:
`width: 64`, and below `train:` the settings, as in `optimizer: {lr: 1e-3}`. A name that there is not is refused.")]
    Config(ConfigArgs),
    /// Train a model.
    #[command(after_help = "Examples:
  moec train specs/tiny.moe
  moec train specs/noisy_top2.moe --data tinyshakespeare --out runs/shakespeare
  moec train --resume runs/shakespeare
  moec train --resume runs/latest --steps 10000
  moec train --from runs/merged -s train.freeze.experts=true -s train.freeze.trunk=true
  moec train specs/noisy_top2.moe -s train.optimizer.lr=3e-4 -s width=64
  moec train specs/noisy_top2.moe --name long-context -s context=128
  moec train specs/tiny.moe --progress plain 2> tiny.log
  moec train specs/tiny.moe --json | jq 'select(.event == \"train\") | .loss_nats'
  moec train specs/tiny.moe --track tensorboard --track mlflow=http://127.0.0.1:5000

In a folder `runs`, `latest` is a link to the run that was trained last; every command that takes a run takes it. Anything of
that name that is no such link is left alone.")]
    Train(TrainArgs),
    /// Train several models on equal budgets and print a table of what they reach.
    #[command(after_help = "Examples:
  moec compare specs/noisy_top2.moe specs/top2.moe --steps 1000 --seeds 2
  moec compare specs/*.moe --steps 500 --out runs/routers --eval-batches 50
  moec compare mine.moe#plain mine.moe#noisy -s width=64 --json
  moec compare mine.moe mine.moe@train.optimizer.lr=3e-4        the same file with another value
  moec compare mine.moe -S k=1,2,4 -S train.optimizer.lr=1e-4..1e-2@log:5
  moec compare a.moe b.moe c.moe --seeds 5 --baseline b --margin 0.02
  moec compare small.moe large.moe --flops 1e15                 as many operations for each
  moec compare small.moe large.moe --minutes 10                 as much time for each

A variant is a file, a model of a file, a file with values of its own, or a point of the grid of all -S. Points that are no
model are named and left out. Each is trained with the seeds 1 to K into DIR/VARIANT/seed-N, an ordinary run. A seed gives every
variant the same batches. The same command goes on where it stopped, and does not repeat what is finished. A table of other variants or
budgets that is there already gets another name, compare-1.json and compare-1.md. With two seeds or more it is said what may be
concluded: differences to the baseline seed by seed, with intervals of 95 % and corrected for their number. docs/comparing.md says
more.")]
    Compare(CompareArgs),
    /// Search a space of values for the lowest held-out loss, and write the best spec.
    #[command(after_help = "Examples:
  moec search mine.moe -S k=1..4 -S experts=4,8,16 -S train.optimizer.lr=1e-4..1e-2@log --trials 30 --steps 500
  moec search mine.moe -S width=32..128@log:5 --flops 1e13 --seeds 2
  moec search mine.moe -S k=1..4 --trials 8 --out runs/k --json

Each -S is a list, a range of whole numbers (k=1..4) or of all numbers (lr=1e-4..1e-2, @log for their logarithms), or so many points
of one (@log:5). An optimiser proposes points, from a seed and from what was tried; each is trained as `moec compare` trains a
variant, into DIR/trial-NNN. Points that are no model are told to it, and do not count. The same command goes on where it stopped,
to the same result, and with more --trials beyond it. DIR gets trials.jsonl, search.json, search.svg and best.moe, a spec that
`moec train` takes.")]
    Search(SearchArgs),
    /// Measure how fast a model trains here, beside what this machine can do at most.
    #[command(after_help = "Examples:
  moec bench specs/noisy_top2.moe
  moec bench specs/noisy_top2.moe --data tinyshakespeare --steps 100
  moec bench mine.moe -s train.batch=64 --json

The limits are measured between the steps: multiply-adds in registers, and a triad over memory. A step cannot be faster
than its products at the one plus the optimiser's traffic at the other. Nothing is written.")]
    Bench(BenchArgs),
    /// Write text with a trained model; texts go to standard output (several with a heading each), everything else to standard
    /// error.
    #[command(after_help = "Examples:
  moec sample runs/tiny
  moec sample runs/tiny --prompt 'MIRA:' --length 1000 --temperature 0.8 --top-k 20
  moec sample runs/tiny --samples 8 --length 200
  moec sample runs/tiny --length 5000 --weights int8
  moec sample runs/tiny --number 5 --decode windowed")]
    Sample(SampleArgs),
    /// Measure a trained model's mean cross-entropy on a text.
    #[command(after_help = "Examples:
  moec eval runs/tiny --split val
  moec eval runs/tiny --data other.txt --split all --json")]
    Eval(EvalArgs),
    /// Show which character a model sends to which experts, in which layer and with which weight.
    #[command(after_help = "Examples:
  moec route runs/tiny                                a text it was not trained on, coloured by expert
  moec route runs/tiny --data poem.txt --layer 0      a file, in the first layer; `-` is standard input
  moec route runs/tiny --by character                 which characters each expert gets, beside what chance would give
  moec route runs/tiny --text 'To be, or not to be' > routes.jsonl
  moec route runs/tiny --text 'To be, or not to be' --checkpoint 100 -o early.jsonl
  moec route --diff early.jsonl routes.jsonl
  moec route --replay early.jsonl --device interpreter

On a terminal the text is coloured by the expert with the largest weight in the last layer. Into a pipe or a file (or with
--format lines) go JSON lines, an object each: the run, then per window of the context what replays it (choices, noise, logits), then per layer
and character the experts with their weights. Logits that a replay does not reproduce are exit code 1, a model without a mixture exit code 2.")]
    Route(RouteArgs),
    /// Write what runs reported while they trained, for other tools: a table, or event files of TensorBoard.
    #[command(after_help = "Examples:
  moec metrics runs/tiny > tiny.csv
  moec metrics runs/a runs/b -o both.csv
  moec metrics runs/a runs/b --tensorboard board && tensorboard --logdir board

The table has a line for each number, with the run, the step, its name as in metrics.jsonl (with its unit), and the layer
and the expert that it is about: run,step,name,layer,expert,value. A run that still trains has what it reported so far.")]
    Metrics(MetricsArgs),
    /// Tell a tracking server what it does not know of runs: numbers that it missed while they trained, or everything.
    #[command(after_help = "Examples:
  moec track runs/tiny                                    what the server missed
  moec track runs/a runs/b --to mlflow=http://127.0.0.1:5000
  MLFLOW_EXPERIMENT_NAME=routers moec track runs/tiny --to mlflow
  moec track runs/tiny --checkpoint                       with the newest checkpoint as files

`moec train --track mlflow` tells a server of MLflow while it trains, and never waits for it; what could not be told lies in
the run's metrics.jsonl. The server is asked what it has, so that nothing is there twice, however often this is said. A run
stays the same run there, and goes on as that when it is resumed. docs/tracking.md says what is told, and which variables
are read.")]
    Track(TrackArgs),
    /// Write one HTML file about one or several runs: losses, loads, which expert gets which characters, what is wrong.
    #[command(after_help = "Examples:
  moec report runs/shakespeare
  moec report runs/top2 runs/noisy_top2 -o two.html
  moec report runs/compare                            every run of a comparison
  moec report runs/compare/top2/seed-* -o seeds.html
  moec report runs/shakespeare --text 'To be, or not to be'

The file needs nothing beside it: no network, and no script to be read. Runs that differ only in
their seeds share a curve with a band. Nothing is downloaded: where the training text is not at hand,
the last sample is coloured by expert. A report that is there is replaced; any other file is not.")]
    Report(ReportArgs),
    /// Check the gradient of every parameter by central differences in 64 bits, with the routes frozen.
    #[command(after_help = "Examples:
  moec gradcheck specs/tiny.moe
  moec gradcheck mine.moe --samples 10 --seed 3
  moec gradcheck mine.moe --all -s width=8 --context 3 --json

The objective is that of a training step: the task's loss and the weighted balance losses, with dropout and noise drawn
once. Exit code 1 if a gradient is wrong.")]
    Gradcheck(GradcheckArgs),
    /// Say what moec finds on this machine, and whether each device computes what it should.
    #[command(after_help = "Examples:
  moec doctor
  moec doctor --json

Each device evaluates a small model, and the result is held against the float64 reference. Exit code 4 if the processor
fails; a graphics device that is not there is no failure.")]
    Doctor(DoctorArgs),
    /// Show where compiled kernels are kept between commands, and how many; or remove them.
    #[command(after_help = "Examples:
  moec cache
  moec cache --clear
  moec --no-cache train specs/tiny.moe    compile everything, and keep nothing
  MOEC_CACHE=off moec train specs/tiny.moe

Kernels for the processor are compiled with LLVM when a model first runs, and kept in MOEC_CACHE/kernels, by default
moec/kernels in the system's cache folder ($XDG_CACHE_HOME or ~/.cache). At most 256 MiB are kept; what was not used for
longest goes first. Another build of moec compiles its own.")]
    Cache(CacheArgs),
    /// Serve an editor: what is wrong while a file is written, what a word means, what could stand there.
    #[command(after_help = "Examples:
  vim.lsp.config('moec', { cmd = { 'moec', 'lsp' }, filetypes = { 'moe' } })
  code --install-extension moec.vsix           packed by `editors/check`

An editor starts `moec lsp` and speaks the Language Server Protocol with it, over standard input and output.
editors/README.md of the repository says how VS Code, Neovim, Helix and Emacs are told.")]
    Lsp(LspArgs),
    /// Print what completes commands, options and files in a shell.
    #[command(after_help = "Examples:
  moec completions bash > ~/.local/share/bash-completion/completions/moec
  moec completions zsh > ~/.zfunc/_moec                 with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  moec completions fish > ~/.config/fish/completions/moec.fish
  moec completions powershell >> $PROFILE")]
    Completions(CompletionsArgs),
    /// Print the manual page of moec or of a command, or write all of them into a folder.
    #[command(after_help = "Examples:
  moec man train > moec-train.1 && man ./moec-train.1
  moec man -o ~/.local/share/man/man1                   then `man moec-train`")]
    Man(ManArgs),
    /// Put trained runs together to a mixture of experts: a frankenMoE of several, or a dense run upcycled.
    #[command(after_help = "Examples:
  moec merge speakers.yaml
  moec merge upcycle.yaml --out runs/upcycled

A recipe is YAML:
  base: runs/all
  experts:
    - run: runs/romeo
      positive_prompts: ['ROMEO:']
    - run: runs/juliet
      positive_prompts: ['JULIET:']
  gates: last

The mixture is a run at step 0: `moec train --from RUN` trains it further, and -s train.freeze.experts=true keeps the experts
as they are. A certificate says what was kept, and is saved beside it; a mixture that is not what it must be is exit
code 1, and no run. docs/merging.md has every key.")]
    Merge(MergeArgs),
    /// Take one expert out of a mixture, as a dense run.
    #[command(after_help = "Examples:
  moec extract runs/mixture --expert 3
  moec extract runs/mixture --expert 0 --out runs/first --json")]
    Extract(ExtractArgs),
    /// Drop experts of a mixture: those that are idle, all but the most used, or all but some.
    #[command(after_help = "Examples:
  moec prune runs/mixture --used
  moec prune runs/mixture --most 4
  moec prune runs/mixture --keep 0,2,5 --out runs/three
  moec route runs/mixture --data text.txt -o routes.jsonl && moec prune runs/mixture --most 4 --record routes.jsonl

Without --record, experts are counted on the text that the run was not trained on (20,000 characters at most).")]
    Prune(PruneArgs),
    /// Make a run from a makeMoE state dictionary saved as safetensors, or from a folder of Hugging Face's transformers.
    #[command(after_help = "Examples:
  moec import makemoe.safetensors --spec specs/noisy_top2.moe --data synthetic --out runs/im
  moec import mixtral --data input.txt --out runs/mixtral      a folder with config.json and model.safetensors
  moec import mixtral --data input.txt --out runs/short -s context=64

A spec, or a config.json, that makeMoE or moec computes in another way is refused: docs/interchange.md says what corresponds.")]
    Import(ImportArgs),
    /// Save a run's model for other programs: as PyTorch source code, for Hugging Face's transformers, or under makeMoE's
    /// parameter names.
    #[command(after_help = "Examples:
  moec export runs/shakespeare --to pytorch shakespeare-pytorch
  python shakespeare-pytorch/model.py --prompt \"ROMEO:\" --length 200
  moec export runs/makemoe -o makemoe.safetensors
  moec export runs/mixtral --to hf mixtral                     then from_pretrained(\"mixtral\")

`--to pytorch` works for every model and router, and docs/interchange.md says what it writes.")]
    Export(ExportArgs),
}

impl Command {
    /// Whether its result is asked for as one JSON value. (`train` reports as it goes.)
    pub(crate) fn prints_json(&self) -> bool {
        match self {
            Command::Check(args) => args.json,
            Command::Explain(args) => args.json,
            Command::Layers(args) => args.json,
            Command::Routers(args) => args.json,
            Command::Config(args) => args.json,
            Command::Compile(args) => args.json,
            Command::Compare(args) => args.json,
            Command::Search(args) => args.json,
            Command::Bench(args) => args.json,
            Command::Eval(args) => args.json,
            Command::Route(args) => args.json,
            Command::Gradcheck(args) => args.json,
            Command::Doctor(args) => args.json,
            Command::Merge(args) => args.check.json,
            Command::Extract(args) => args.check.json,
            Command::Prune(args) => args.check.json,
            Command::Cache(args) => args.json,
            Command::New(_)
            | Command::Fmt(_)
            | Command::Train(_)
            | Command::Sample(_)
            | Command::Metrics(_)
            | Command::Track(_)
            | Command::Report(_)
            | Command::Lsp(_)
            | Command::Completions(_)
            | Command::Man(_)
            | Command::Import(_)
            | Command::Export(_) => false,
        }
    }
}

/// How messages about a file are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MessageFormat {
    /// With the lines they point at.
    Full,
    /// One line each: `file:line:column: error[E0203]: message`.
    Short,
    /// One JSON object each.
    Json,
}

/// Which model of a file, with which values.
#[derive(Debug, Args)]
pub(crate) struct ReadingArgs {
    /// Which model of the file, if it has several.
    #[arg(long)]
    pub(crate) model: Option<String>,

    /// Override a value of the file: `-s train.steps=200`, `-s width=64` (a `let` of the model). Repeatable.
    #[arg(short = 's', long = "set", value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,

    /// A YAML file of values that replace those of the file, as -s does; -s and other options go before it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// How messages about the file are printed.
    #[arg(long, value_enum, default_value_t = MessageFormat::Full)]
    pub(crate) message_format: MessageFormat,
}

/// Which model of which file.
#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// The `.moe` file.
    pub(crate) spec: PathBuf,

    /// How it is read.
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
}

/// `moec config`
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The file.
    #[command(flatten)]
    pub(crate) spec: SpecArgs,

    /// Say where each value comes from: a line of the file or of --config, the command line, or a default.
    #[arg(long)]
    pub(crate) show_origin: bool,

    /// Print JSON, which has the origins.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How products are computed.
#[derive(Debug, Args)]
pub(crate) struct PrecisionArgs {
    /// Round the operands of layers' products to bfloat16 (`bf16`), or leave them as they are (`f32`). Overrides the
    /// file's `precision`.
    #[arg(long, value_parser = precisions())]
    precision: Option<String>,
}

/// The precisions, and other tools' names of them: whoever uses one is told what is meant here, as in a file.
fn precisions() -> PossibleValuesParser {
    let others = ["fp16", "float16", "f16", "half", "bfloat16", "fp32", "float32"];
    let others = others.map(|name| PossibleValue::new(name).hide(true));
    PossibleValuesParser::new([PossibleValue::new("f32"), PossibleValue::new("bf16")].into_iter().chain(others))
}

impl PrecisionArgs {
    /// As an override of the file.
    pub(crate) fn set(&self) -> Option<String> {
        self.precision.as_ref().map(|precision| format!("train.precision={precision}"))
    }
}

/// `moec check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The `.moe` files; `-` is standard input.
    #[arg(required = true, value_name = "SPEC")]
    pub(crate) specs: Vec<PathBuf>,

    /// How they are read.
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,

    /// Print the result as JSON on standard output; of several files an object with one for each.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `moec fmt`
#[derive(Debug, Args)]
pub(crate) struct FmtArgs {
    /// The files to rewrite; `-` reads standard input and writes standard output.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Change nothing; exit with 1 if a file is not in canonical layout.
    #[arg(long)]
    pub(crate) check: bool,
}

/// `moec lsp`
#[derive(Debug, Args)]
pub(crate) struct LspArgs {
    /// Over standard input and output, as always: some editors say so.
    #[arg(long, hide = true)]
    stdio: bool,
}

/// `moec explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A code such as E0203, a layer, routing strategy, balance loss, optimizer, schedule, setting, argument or number of a
    /// training; or else a run folder. Without a name, everything is listed, but for arguments.
    #[arg(value_name = "NAME|RUN", value_hint = clap::ValueHint::AnyPath)]
    pub(crate) name: Option<String>,

    /// A `.moe` file whose own routers are known too.
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,

    /// Where the model of a run is asked whether its noise still matters.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,
}

/// `moec new`
#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// The file to write; `.moe` is added if it is left out. The model is called as the file.
    #[arg(value_name = "NAME")]
    pub(crate) name: PathBuf,

    /// What it holds.
    #[arg(long, short, value_enum, default_value_t = Template::Top2)]
    pub(crate) template: Template,
}

/// What a new file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Template {
    /// No experts: the model to compare others with.
    Dense,
    /// The best two of eight experts, with a balance loss.
    Top2,
    /// The same with noise on the scores, as in makeMoE.
    #[value(name = "noisy_top2")]
    NoisyTop2,
    /// One expert a token and a capacity (Switch transformer).
    Switch,
    /// Many small experts and a shared one, balanced by biases (DeepSeek).
    #[value(name = "fine_grained")]
    FineGrained,
    /// A router of your own, written out.
    Router,
}

/// `moec doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `moec metrics`
#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    /// Run folders.
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,

    /// Write the table to this file instead of standard output.
    #[arg(short, long, value_name = "FILE", conflicts_with = "tensorboard")]
    pub(crate) output: Option<PathBuf>,

    /// Write event files of TensorBoard instead, in a folder of its name for each run, with the seconds of training as
    /// their time.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) tensorboard: Option<PathBuf>,
}

/// `moec track`
#[derive(Debug, Args)]
pub(crate) struct TrackArgs {
    /// Run folders.
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,

    /// The server: `mlflow=URL`, or `mlflow` for the one of MLFLOW_TRACKING_URI [default: where the run was tracked].
    #[arg(long, value_name = "TRACKER")]
    pub(crate) to: Option<String>,

    /// Send the files of the newest checkpoint, too.
    #[arg(long)]
    pub(crate) checkpoint: bool,
}

/// `moec cache`
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Remove them all.
    #[arg(long)]
    pub(crate) clear: bool,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `moec completions`
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// `moec man`
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The command [default: the page of moec itself].
    #[arg(conflicts_with = "output")]
    pub(crate) command: Option<String>,

    /// Write every page into this folder.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}

/// `moec layers`
#[derive(Debug, Args)]
pub(crate) struct LayersArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `moec routers`
#[derive(Debug, Args)]
pub(crate) struct RoutersArgs {
    /// A `.moe` file whose own routers are listed too.
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `moec compile --emit` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Emit {
    /// The syntax tree.
    Ast,
    /// The checked model and recipe, every default filled in, as YAML.
    Model,
    /// The graph as text.
    Ir,
    /// Launches and buffers as YAML.
    Plan,
    /// The graph for Graphviz.
    Dot,
}

/// `moec compile`
#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// The file.
    #[command(flatten)]
    pub(crate) spec: SpecArgs,

    /// How products are computed.
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,

    /// Print a stage of the compilation instead of the summary.
    #[arg(long, value_enum)]
    pub(crate) emit: Option<Emit>,

    /// The function to emit: train_step, accumulate, evaluate, logits, next or decode.
    #[arg(long, default_value = Function::TrainStep.name())]
    pub(crate) function: String,

    /// Stop after this pass: `lower`, `differentiate` or one of the optimiser's with --emit ir or dot, one of the
    /// optimiser's or a fusion with --emit plan.
    #[arg(long, value_name = "PASS")]
    pub(crate) after: Option<String>,

    /// Stop after this many rewrites, to find the one at fault.
    #[arg(long, value_name = "N")]
    pub(crate) opt_steps: Option<usize>,

    /// Print the time of every stage to standard error.
    #[arg(long)]
    pub(crate) time_passes: bool,

    /// Number of distinct characters to compile for, if the file says `vocab characters`.
    #[arg(long, value_name = "N", default_value_t = 65, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) vocab: usize,

    /// Print JSON.
    #[arg(long, conflicts_with = "emit")]
    pub(crate) json: bool,

    /// Write to a file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Refuse the model if it needs more memory than this device has.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,
}

impl ValueEnum for Device {
    fn value_variants<'a>() -> &'a [Self] {
        &Device::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Device::Cpu => "The processor, all cores",
            Device::Wgpu => "Any GPU that wgpu reaches",
            Device::Interpreter => "The slow float64 reference; for checking",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// Which model of which file; none to continue a run, which keeps its own.
#[derive(Debug, Args)]
pub(crate) struct TrainSpecArgs {
    /// The `.moe` file; not needed with --resume and --from, because a run keeps its own.
    #[arg(required_unless_present_any = ["resume", "from"])]
    pub(crate) spec: Option<PathBuf>,

    /// How it is read.
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
}

/// A number of training steps.
fn steps(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => {
            Err("a training makes at least one step; `moec compile SPEC` says all that can be said without".into())
        }
        Ok(steps) => Ok(steps),
        Err(_) => Err("it must be a whole number, at least 1".into()),
    }
}

/// How a training is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// The live view where standard error is a terminal, else plain lines; plain with NO_COLOR, CI or TERM=dumb, and in the
    /// background.
    Auto,
    /// Curves, loads of experts and time left on the whole terminal; `q` stops and saves. Evaluations, and
    /// what else was said once, stand in the terminal afterwards.
    Live,
    /// Lines on standard error, without control characters.
    Plain,
    /// Events as JSON lines on standard output (docs/json.md), the sample among them; warnings and errors on standard error.
    Json,
    /// Warnings and errors only, and the sample on standard output.
    None,
}

/// How a training is told.
#[derive(Debug, Args)]
pub(crate) struct ProgressArgs {
    /// How training is told.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = ProgressMode::Auto)]
    progress: ProgressMode,

    /// Short for --progress none.
    #[arg(long, short, conflicts_with_all = ["json", "progress"])]
    quiet: bool,

    /// Short for --progress json.
    #[arg(long, conflicts_with = "progress")]
    json: bool,
}

impl ProgressArgs {
    /// What is asked for.
    pub(crate) fn mode(&self) -> ProgressMode {
        match (self.quiet, self.json) {
            (true, _) => ProgressMode::None,
            (_, true) => ProgressMode::Json,
            _ => self.progress,
        }
    }
}

/// `moec train`
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// The file.
    #[command(flatten)]
    pub(crate) spec: TrainSpecArgs,

    /// How products are computed.
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,

    /// A text file, a known data set (`tinyshakespeare`), or `synthetic` for the generated corpus. Overrides the
    /// file's `data`.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,

    /// Number of steps. Overrides the file's `steps`.
    #[arg(long, value_parser = steps)]
    pub(crate) steps: Option<u64>,

    /// Seed of everything random. Overrides the file's `seed`.
    #[arg(long)]
    pub(crate) seed: Option<u64>,

    /// The run folder [default: runs/MODEL with what -s, --config, --seed and --precision override, as in runs/tiny-lr-3e-4; with
    /// a number behind it where that is taken, by whichever file].
    #[arg(long, value_name = "RUN")]
    pub(crate) out: Option<PathBuf>,

    /// Call the run so: short for --out runs/NAME.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["out", "resume"], value_parser = crate::cli::run_name::given)]
    pub(crate) name: Option<PathBuf>,

    /// Where to run [default: cpu; of a run that is continued, where it ran].
    #[arg(long, value_enum)]
    pub(crate) device: Option<Device>,

    /// Continue a run from its last checkpoint, to the same bits as if it had never stopped: RUN alone, or the one in --out.
    /// What -s changes of the optimizer's settings, schedule, clip, steps, evaluate, checkpoint and log holds from there on;
    /// --data may say where the same text lies now.
    #[arg(long, value_name = "RUN", num_args = 0..=1)]
    pub(crate) resume: Option<Option<PathBuf>>,

    /// Begin with the numbers of this run instead of random ones, at step 0: its spec unless another one of the same tensors is
    /// given, its text unless --data names one. What -s freezes stays as it is.
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    pub(crate) from: Option<PathBuf>,

    /// With --from, take the tensors that have the name and the shape of the other run's, and let the others begin anew, as by
    /// --seed; which ones is said.
    #[arg(long, requires = "from")]
    pub(crate) partial: bool,

    /// Time every kernel: a table at the end, and profile.json in the run folder for chrome://tracing or Perfetto.
    /// The same bits, but slower, because every kernel is waited for.
    #[arg(long)]
    pub(crate) profile: bool,

    /// Characters of text to sample at the end; 0 for none.
    #[arg(long, value_name = "N", default_value_t = SAMPLE)]
    pub(crate) sample: usize,

    /// Tell others of the training while it goes on: `tensorboard` (event files in the run folder), `mlflow=URL` (a server
    /// of MLflow; `mlflow` alone for the one of MLFLOW_TRACKING_URI), or `none`. Repeatable. The same bits: training waits for
    /// nobody, and what a server missed is told by `moec track` [default: MOEC_TRACK, or none; of a run that is continued, where it
    /// was tracked].
    // (Kept as text: an address may hold a password, which clap would show where it refuses it.)
    #[arg(long, value_name = "TRACKER")]
    pub(crate) track: Vec<String>,

    /// How it is told.
    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

/// Characters of the sample at the end of a training.
pub(crate) const SAMPLE: usize = 300;

/// `moec bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The file.
    #[command(flatten)]
    pub(crate) spec: SpecArgs,

    /// How products are computed.
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,

    /// A text file, a known data set (`tinyshakespeare`), or `synthetic` for the generated corpus. Overrides the
    /// file's `data`.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,

    /// Number of steps to time.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,

    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,

    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,

    /// Make steps on request, to be measured in turn with other programs: each line `go N` on standard input makes N
    /// steps and prints a JSON object for each.
    #[arg(long, conflicts_with_all = ["json", "steps"])]
    pub(crate) serve: bool,
}

/// An amount above 0.
fn amount(text: &str) -> Result<f64, String> {
    let amount: Option<f64> = text.parse().ok().filter(|amount: &f64| amount.is_finite() && *amount > 0.0);
    amount.ok_or_else(|| "it must be a number above 0, such as 10, 0.5 or 1e15".into())
}

/// What every run of several may cost.
#[derive(Debug, Args)]
pub(crate) struct BudgetArgs {
    /// Number of steps of every run. Overrides the files' `steps`.
    #[arg(long, value_parser = steps, group = "budget")]
    pub(crate) steps: Option<u64>,

    /// Minutes of training of every run, without evaluations: a step of each variant is timed beforehand, and makes a number of
    /// steps of it, over which its learning rate goes.
    #[arg(long, value_name = "M", value_parser = amount, group = "budget")]
    pub(crate) minutes: Option<f64>,

    /// Floating-point operations of the training of every run, as `moec bench` counts those of a step.
    #[arg(long, value_name = "F", value_parser = amount, group = "budget")]
    pub(crate) flops: Option<f64>,
}

/// `moec compare`
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The `.moe` files; `FILE#MODEL` names one of several models of a file, `FILE@PATH=VALUE,PATH=VALUE` gives it values of its
    /// own.
    #[arg(required = true, value_name = "SPEC")]
    pub(crate) specs: Vec<PathBuf>,

    /// Vary a value of every file, with a variant for each: `-S k=1,2,4`, `-S experts=4..8`, `-S train.optimizer.lr=1e-4..1e-2@log:5`
    /// or `@linear:5`. Repeatable: the grid of all.
    #[arg(short = 'S', long = "sweep", value_name = "PATH=VALUES", value_parser = sweep::given)]
    pub(crate) sweep: Vec<Sweep>,

    /// What every run may cost.
    #[command(flatten)]
    pub(crate) budget: BudgetArgs,

    /// Number of runs of every spec, with the seeds 1 to K.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) seeds: u64,

    /// A text file, a known data set, or `synthetic`. Overrides the files' `data`.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,

    /// Override a value of every file: `-s train.batch=8`. Repeatable.
    #[arg(short = 's', long = "set", value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,

    /// A YAML file of values that replace those of every file, as -s does; -s and other options go before it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// The folder of the runs, of the table, compare.json and compare.md, and of the curves, curves.jsonl and curves.svg.
    #[arg(long, value_name = "DIR", default_value = "runs/compare")]
    pub(crate) out: PathBuf,

    /// Batches of the evaluation at the end, spread evenly over the held-out text [default: all of it].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) eval_batches: Option<u64>,

    /// The variant that the others are held against, by its name in the table [default: the first].
    #[arg(long, value_name = "NAME")]
    pub(crate) baseline: Option<String>,

    /// Also ask whether variants are equivalent to the baseline: within so many nats, by two one-sided tests.
    #[arg(long, value_name = "NATS", value_parser = amount)]
    pub(crate) margin: Option<f64>,

    /// Points of every learning curve: evaluations on the way, of at most ten batches; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) points: u64,

    /// Print JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,

    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,

    /// How messages about the files are printed.
    #[arg(long, value_enum, default_value_t = MessageFormat::Full)]
    pub(crate) message_format: MessageFormat,
}

/// `moec search`
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// The `.moe` file; `FILE#MODEL` names one of several models of a file.
    pub(crate) spec: PathBuf,

    /// What is searched: a list, `-S experts=4,8,16`, or a range, `-S k=1..4`, `-S train.optimizer.lr=1e-4..1e-2@log`. Repeatable.
    #[arg(short = 'S', long = "sweep", value_name = "PATH=VALUES", required = true, value_parser = sweep::given)]
    pub(crate) sweep: Vec<Sweep>,

    /// Points that are trained; fewer if the space has no more.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10000))]
    pub(crate) trials: u64,

    /// Seed of the optimiser that proposes them.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Number of runs of every point, with the seeds 1 to K; their mean loss counts.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) seeds: u64,

    /// What every run may cost.
    #[command(flatten)]
    pub(crate) budget: BudgetArgs,

    /// A text file, a known data set, or `synthetic`. Overrides the file's `data`.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,

    /// Override a value of the file for every point: `-s train.batch=8`. Repeatable.
    #[arg(short = 's', long = "set", value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,

    /// A YAML file of values that replace those of the file, as -s does; -s and other options go before it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// The folder of the trials, the picture and the best spec.
    #[arg(long, value_name = "DIR", default_value = "runs/search")]
    pub(crate) out: PathBuf,

    /// Batches of the evaluation at the end of a run, spread evenly over the held-out text [default: all of it].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) eval_batches: Option<u64>,

    /// Print JSON instead of the best points.
    #[arg(long)]
    pub(crate) json: bool,

    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,

    /// How messages about the file are printed.
    #[arg(long, value_enum, default_value_t = MessageFormat::Full)]
    pub(crate) message_format: MessageFormat,
}

/// `moec sample`
#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// A run folder, or one of its checkpoints: RUN/checkpoints/step-00001000, or RUN/checkpoints/best for that with the best
    /// held-out loss.
    pub(crate) run: PathBuf,

    /// Text to continue; without one the text begins as after a line break.
    #[arg(short, long, default_value = "", allow_hyphen_values = true)]
    pub(crate) prompt: String,

    /// Number of characters to write.
    #[arg(short = 'n', long, default_value_t = 500)]
    pub(crate) length: usize,

    /// Divides the logits before the softmax; 0 always takes the likeliest character.
    #[arg(short, long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) temperature: f64,

    /// Draw from the k likeliest characters only.
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,

    /// Draw from the likeliest characters that together have this probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,

    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,

    /// Number of texts. They are written together, and each is what it would be alone.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) samples: u64,

    /// Number of the first text: with the seed it determines what is drawn.
    #[arg(long, value_name = "I", default_value_t = 0)]
    pub(crate) number: u64,

    /// How a character is computed from those before it.
    #[arg(long, value_enum, default_value_t = Decode::Auto)]
    pub(crate) decode: Decode,

    /// What the weights of products are stored as. Fewer bits are read faster on the CPU, and change what is written a
    /// little; biases, routers, norms and token vectors keep theirs, and so does the checkpoint.
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = weight_format())]
    pub(crate) weights: WeightFormat,

    /// Time every kernel that writes a character, and say at the end where the time went. The same text, but slower,
    /// because every kernel is waited for.
    #[arg(long)]
    pub(crate) profile: bool,

    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,
}

/// Reads what weights are stored as.
fn weight_format() -> impl TypedValueParser<Value = WeightFormat> {
    let possible = |format: WeightFormat| {
        PossibleValue::new(format.name()).help(match format {
            WeightFormat::F32 => "As they are",
            WeightFormat::Bf16 => "Rounded to bfloat16, half as many bits",
            WeightFormat::Int8 => "Whole numbers of 8 bits, with a scale for each output of a matrix",
        })
    };
    PossibleValuesParser::new(WeightFormat::ALL.map(possible))
        .map(|name| WeightFormat::named(&name).invariant("the name is one of those possible"))
}

impl ValueEnum for Decode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Decode::Auto, Decode::Cached, Decode::Windowed]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Decode::Auto => (
                "auto",
                "From the keys and values of the characters before it, where the model allows it: with learned positions \
                 until the context is full and from the whole window afterwards; with rotary positions or none throughout, \
                 with the keys and values of the last T characters (the context). A key was computed when its character \
                 was written, from the T characters up to it, so beyond T characters the text can differ from what \
                 `windowed` writes",
            ),
            Decode::Cached => ("cached", "As `auto`, but fails where it would compute the whole window"),
            Decode::Windowed => ("windowed", "From the last T characters alone, computed anew for every character"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// Which part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SplitName {
    /// The part that was trained on.
    Train,
    /// The held-out part.
    Val,
    /// The whole text.
    All,
}

/// `moec eval`
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A run folder, or one of its checkpoints: RUN/checkpoints/step-00001000, or RUN/checkpoints/best for that with the best
    /// held-out loss.
    pub(crate) run: PathBuf,

    /// A text file, a known data set, or `synthetic` [default: the run's own data].
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,

    /// Which part of it [default: val; train for a run that holds nothing out].
    #[arg(long, value_enum)]
    pub(crate) split: Option<SplitName>,

    /// Evaluate this many batches, spread evenly over the text [default: all of it].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) batches: Option<u64>,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,

    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,
}

/// How the routes of a text are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RouteFormat {
    /// The text with the expert of each character in one layer: as its colour, or without colours as a letter below it.
    Text,
    /// JSON lines with everything, to be compared and replayed.
    Lines,
}

/// What routes are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RouteBy {
    /// By character.
    Character,
}

/// `moec route`
#[derive(Debug, Args)]
pub(crate) struct RouteArgs {
    /// A run folder, or one of its checkpoints: RUN/checkpoints/step-00001000, or RUN/checkpoints/best for that with the best
    /// held-out loss.
    #[arg(required_unless_present_any = ["diff", "replay"], conflicts_with = "diff")]
    pub(crate) run: Option<PathBuf>,

    /// The text that is routed, in windows of the model's context; the last one is filled up with the first character
    /// of the vocabulary, which no router that is causal can see.
    #[arg(long, conflicts_with_all = ["diff", "replay"], allow_hyphen_values = true)]
    pub(crate) text: Option<String>,

    /// Route a text file, a known data set, `synthetic`, or `-` for standard input [default: the run's own text].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "diff", "replay"], allow_hyphen_values = true)]
    pub(crate) data: Option<String>,

    /// Which part of it [default: all of --data; of the run's own text what it was not trained on].
    #[arg(long, value_enum, conflicts_with_all = ["text", "diff", "replay"])]
    pub(crate) split: Option<SplitName>,

    /// At most this many characters, from the beginning [default: all of --text and standard input; of others 1000, for a
    /// table 20000].
    #[arg(short = 'n', long, value_name = "N", conflicts_with_all = ["diff", "replay"], value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) length: Option<u64>,

    /// What is written [default: text on a terminal, lines into a pipe or file].
    #[arg(long, value_enum, conflicts_with_all = ["by", "diff", "replay"])]
    pub(crate) format: Option<RouteFormat>,

    /// Count instead which characters go to which experts: a table with shares, and the lift over chance.
    #[arg(long, value_enum, conflicts_with_all = ["diff", "replay"])]
    pub(crate) by: Option<RouteBy>,

    /// The layer that is shown, by its number among those that route, from 0, or its path [default: the last; in the table
    /// all].
    #[arg(long, value_name = "LAYER", conflicts_with_all = ["diff", "replay"])]
    pub(crate) layer: Option<String>,

    /// Show the expert with the K-th largest weight [default: 1; in the table all].
    #[arg(long, value_name = "K", conflicts_with_all = ["diff", "replay"], value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) slot: Option<u64>,

    /// Characters of each expert in the table; --json has all.
    #[arg(long, value_name = "N", requires = "by", default_value_t = 5)]
    pub(crate) top: usize,

    /// The checkpoint of this step [default: the newest].
    #[arg(long, value_name = "STEP", conflicts_with_all = ["diff", "replay"])]
    pub(crate) checkpoint: Option<u64>,

    /// Seed of the noise, for routers that keep it on.
    #[arg(long, default_value_t = 0, conflicts_with_all = ["diff", "replay"])]
    pub(crate) seed: u64,

    /// Compare two records: shares of equal choices, largest difference of weights.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with = "replay")]
    pub(crate) diff: Option<Vec<PathBuf>>,

    /// Run the recorded text again with the recorded routes, and compare the logits.
    #[arg(long, value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,

    /// Write to a file instead of standard output.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["diff", "replay"])]
    pub(crate) output: Option<PathBuf>,

    /// Print the table, or the result of --diff or --replay, as JSON; a record is always JSON lines.
    #[arg(long)]
    pub(crate) json: bool,

    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,
}

/// `moec report`
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The run folders. A checkpoint stands for its run, with the routes that its model takes; the folder of a comparison for
    /// all of its runs.
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,

    /// The file to write [default: RUN/report.html for one run, report.html for several].
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// The text that is coloured by expert [default: the beginning of the first run's held-out text].
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) text: Option<String>,

    /// Characters of that text that are sent through the models; 0 for none, which needs no device.
    #[arg(long, value_name = "N", default_value_t = 2000, conflicts_with = "text")]
    pub(crate) characters: usize,

    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,
}

/// `moec gradcheck`
#[derive(Debug, Args)]
pub(crate) struct GradcheckArgs {
    /// The file.
    #[command(flatten)]
    pub(crate) spec: SpecArgs,

    /// Elements checked of each parameter: the one with the largest gradient, and others chosen by the seed.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) samples: u64,

    /// Check every element; for small models.
    #[arg(long, conflicts_with = "samples")]
    pub(crate) all: bool,

    /// Sequences of the batch, at most those of the file.
    #[arg(long, value_name = "B", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) batch: u64,

    /// Characters of a sequence, at most the file's context.
    #[arg(long, value_name = "T", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) context: u64,

    /// Seed of the parameters, of everything random, and of the choice of elements.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,

    /// Step of the differences.
    #[arg(long, default_value_t = 1e-6)]
    pub(crate) eps: f64,

    /// Error that is always allowed.
    #[arg(long, default_value_t = 1e-5)]
    pub(crate) atol: f64,

    /// Error that is allowed relative to the difference quotient.
    #[arg(long, default_value_t = 1e-3)]
    pub(crate) rtol: f64,

    /// A text file, a known data set, or `synthetic`, from which the batch is taken.
    #[arg(long, value_name = "FILE", default_value = "synthetic")]
    pub(crate) data: String,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a model that is put together or taken apart is checked and kept.
#[derive(Debug, Args)]
pub(crate) struct AssemblyArgs {
    /// The text that models are compared on: a file, a known data set, or `synthetic` [default: the run's own].
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,

    /// Where models are compared, beside the interpreter.
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: Device,

    /// The run folder to make [default: one in runs].
    #[arg(long, value_name = "RUN")]
    pub(crate) out: Option<PathBuf>,

    /// Print the certificate as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `moec merge`
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The recipe.
    pub(crate) recipe: PathBuf,

    /// How it is checked and kept.
    #[command(flatten)]
    pub(crate) check: AssemblyArgs,
}

/// `moec extract`
#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    /// A run folder, or one of its checkpoints: RUN/checkpoints/step-00001000, or RUN/checkpoints/best for that with the best
    /// held-out loss.
    pub(crate) run: PathBuf,

    /// The expert, by its number from 0, of every mixture.
    #[arg(long, value_name = "I")]
    pub(crate) expert: usize,

    /// How it is checked and kept.
    #[command(flatten)]
    pub(crate) check: AssemblyArgs,
}

/// `moec prune`
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("kept").required(true)))]
pub(crate) struct PruneArgs {
    /// A run folder, or one of its checkpoints: RUN/checkpoints/step-00001000, or RUN/checkpoints/best for that with the best
    /// held-out loss.
    pub(crate) run: PathBuf,

    /// Keep these experts of every mixture, by their numbers from 0.
    #[arg(long, value_name = "I,J,..", value_delimiter = ',', group = "kept")]
    pub(crate) keep: Option<Vec<usize>>,

    /// Keep as many, those that are used most in each mixture.
    #[arg(long, value_name = "N", group = "kept")]
    pub(crate) most: Option<usize>,

    /// Keep those that are used at all.
    #[arg(long, group = "kept")]
    pub(crate) used: bool,

    /// Count experts in a record that `moec route` wrote.
    #[arg(long, value_name = "FILE", conflicts_with = "keep")]
    pub(crate) record: Option<PathBuf>,

    /// How it is checked and kept.
    #[command(flatten)]
    pub(crate) check: AssemblyArgs,
}

/// What a run can be made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportFormat {
    /// One safetensors file under makeMoE's parameter names, with a spec.
    Makemoe,
    /// A folder of Hugging Face's transformers: GPT-2, Llama, Mistral, Qwen2, Qwen3, Mixtral, OLMoE or their kin.
    Hf,
}

/// `moec import`
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The state dictionary of makeMoE, as safetensors, or the folder that `save_pretrained` wrote.
    pub(crate) file: PathBuf,

    /// What it is [default: hf for a folder with a config.json, else makemoe].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) from: Option<ImportFormat>,

    /// The `.moe` file of the same model, for makeMoE; config.json says it for hf.
    #[arg(long)]
    pub(crate) spec: Option<PathBuf>,

    /// Which model of the file, if it has several.
    #[arg(long)]
    pub(crate) model: Option<String>,

    /// Override a value of the file.
    #[arg(short = 's', long = "set", value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,

    /// The text whose distinct characters, in code-point order, are the vocabulary (or a known data set, or
    /// `synthetic`).
    #[arg(long, value_name = "FILE")]
    pub(crate) data: String,

    /// The run folder to make.
    #[arg(long, value_name = "RUN")]
    pub(crate) out: PathBuf,

    /// Go by the spec where makeMoE computes something else, for weights of code that was changed.
    #[arg(long)]
    pub(crate) trust_spec: bool,
}

/// What a run's model is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// One safetensors file under makeMoE's parameter names; only for models that it computes.
    Makemoe,
    /// A folder with a readable `model.py`, the parameters and the vocabulary.
    Pytorch,
    /// A folder for Hugging Face's transformers; only for models that one of its classes computes.
    Hf,
}

/// `moec export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A run folder, or one of its checkpoints: RUN/checkpoints/step-00001000, or RUN/checkpoints/best for that with the best
    /// held-out loss.
    pub(crate) run: PathBuf,

    /// What to write.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = ExportFormat::Makemoe)]
    pub(crate) to: ExportFormat,

    /// The file or folder to write.
    #[arg(value_name = "PATH", required_unless_present = "output")]
    pub(crate) path: Option<PathBuf>,

    /// The same, as an option.
    #[arg(short, long, value_name = "PATH", conflicts_with = "path")]
    pub(crate) output: Option<PathBuf>,

    /// Replace what is there.
    #[arg(long)]
    pub(crate) force: bool,
}

impl ExportArgs {
    /// The file or folder to write.
    pub(crate) fn target(&self) -> &Path {
        self.output.as_deref().or(self.path.as_deref()).invariant("the place to write to is required")
    }
}

#[cfg(test)]
mod tests;
