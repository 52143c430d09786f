//! Every diagnostic code: one table with the summary and the long explanation that `moec explain` prints.
//!
//! E01 is syntax, E02 names and arguments, E03 types and values, E04 shapes and structure, E05 routing, E06 the recipe
//! and overrides, E07 resources, E08 routers in the language, E09 exchange with
//! other programs; W is a warning about the same subjects. A published number keeps its meaning.

use std::fmt;
use std::str::FromStr;

/// What the examples of an explanation are part of. Every wrong example has the fault that it is there for and no other, and
/// every right one has none; what is around them need not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file as it is, called `example.moe`.
    File,
    /// A file that also holds a model.
    Beside,
    /// The body of a model of width 128, between `embed` and `unembed`.
    Body,
    /// The `train` block.
    Train,
    /// The body of a router, behind `let scores = linear(x, experts)` and `let top, chosen = top_k(scores, k)`.
    Router,
    /// A command with an override.
    Command,
    /// Nothing that text of a few lines can show.
    Nowhere,
}

macro_rules! codes {
    ($($variant:ident = $number:literal, $place:ident, $summary:literal, $explanation:literal;)*) => {
        /// The code of a diagnostic.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = concat!($number, ": ", $summary, ".")] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// The number that users see, such as `E0202`.
            pub fn number(self) -> &'static str {
                match self { $(Code::$variant => $number,)* }
            }

            /// One line on what is wrong, without the particulars.
            pub fn summary(self) -> &'static str {
                match self { $(Code::$variant => $summary,)* }
            }

            /// Where the examples of the explanation stand.
            pub fn place(self) -> Place {
                match self { $(Code::$variant => Place::$place,)* }
            }

            /// Why it is wrong and how to put it right, with an example of each, as Markdown.
            pub fn explanation(self) -> &'static str {
                match self { $(Code::$variant => $explanation.trim_ascii(),)* }
            }
        }
    };
}

codes! {
    // Syntax.
    UnexpectedText = "E0101", File, "the text does not fit the grammar at this place", r#"
The parser found something that cannot stand here. The message says what it expected instead. At the top level of a
file stand `model`, `block`, `router`, `train` and `import`; in a model, a block or a layer stand layers, `let`,
`repeat`, `if`, `block`, `context` and `vocab`; in a router stand `let`, `state`, `update`, `aux` and `return`; in
`train` stand settings.

Wrong:

    embed(width: 128)      // outside any model

Right:

    model small {
      context 32
      vocab characters
      embed(width: 128)
      unembed
    }
"#;
    MissingValue = "E0102", Body, "a value is missing", r#"
A setting, a binding, an argument or an operator needs a value, and there is none. The value of a setting stands on
the same line as its name.

Wrong:

    context
    let hidden = 4 *

Right:

    context 32
    let hidden = 4 * 128
    mlp(hidden: hidden)
"#;
    MissingName = "E0103", Body, "a name is missing", r#"
Models, blocks, routers and bindings have names, and so has the index of a `repeat` after `as`. A name starts with an
ASCII letter or `_` and goes on with letters, digits and `_`.

Wrong:

    block { layer_norm }

Right:

    block norm { layer_norm }
    norm
"#;
    UnclosedBracket = "E0104", Body, "a bracket is never closed, or closed by another kind", r#"
Every `{`, `(` and `[` needs its own closing bracket. Where one is missing, the end of the file is often the first
place where that shows; the message points at the bracket that was left open and, where the indentation gives it
away, at the one that was probably meant to close it.

Wrong:

    attention(heads: 8

Right:

    attention(heads: 8)
"#;
    UnopenedBracket = "E0105", Body, "a closing bracket closes nothing", r#"
A `}`, `)` or `]` stands where no bracket of its kind is open. Either it is one too many, or its opening bracket is
missing.

Wrong:

    layer_norm }

Right:

    residual { layer_norm }
"#;
    ArgumentForm = "E0106", Body, "an argument is not written `name: value`", r#"
Arguments are written `name: value`, with commas between them. A comma after the last one is fine, and so are line
breaks between the parentheses.

Wrong:

    attention(heads = 8 dropout: 0.1)

Right:

    attention(heads: 8, dropout: 0.1)
"#;
    UnknownCharacter = "E0107", Body, "a character has no meaning in the language", r#"
Only text in quotes and comments may hold arbitrary characters. Comments start with `//` and end with the line; text
stands in double quotes.

Wrong:

    # a comment
    vocab 'characters'

Right:

    // a comment
    vocab characters
"#;
    BadString = "E0108", Train, "text in quotes is not closed or holds an unknown escape", r#"
Text starts and ends with `"` on one line. Inside, `\"`, `\\`, `\n`, `\r`, `\t` and `\u{2192}` (a Unicode scalar value
in hexadecimal) stand for characters that cannot be written directly.

Wrong:

    data "C:\data\corpus.txt"

Right:

    data "C:\\data\\corpus.txt"
"#;
    BadNumber = "E0109", Train, "a number is malformed or too large", r#"
Integers go up to 9223372036854775807. Numbers with a fraction have digits on both sides of the point; an exponent
follows `e`. Underscores may separate digits.

Wrong:

    steps 5k
    split .9

Right:

    steps 5_000
    split 0.9
"#;
    ReservedWord = "E0110", Body, "a reserved word is used as a name", r#"
The words `model`, `block`, `train`, `let`, `repeat`, `as`, `if`, `else`, `true`, `false`, `router` and `import` have
a meaning of their own and cannot name anything else.

Wrong:

    let repeat = 4

Right:

    let repeats = 4
    repeat repeats { layer_norm }
"#;
    TooDeep = "E0112", Nowhere, "nesting is too deep", r#"
Brackets may nest 128 deep, and an expression may be 256 operations high. No model that a person writes comes near;
a generated file can bind parts of a long expression with `let`.

Wrong:

    let n = 1 + 1 + 1 + 1 + ...     // thousands of terms

Right:

    let n = 4000
"#;
    FileTooLarge = "E0113", Nowhere, "the file is too large to be a model description", r#"
Files above one mebibyte are refused before they are parsed. Usually a data file was given by mistake.

Wrong:

    moec check corpus.txt

Right:

    moec check model.moe
"#;
    NotUtf8 = "E0114", Nowhere, "the file is not UTF-8 text", r#"
A model description is UTF-8 text, with or without a byte order mark, with line breaks of either kind. The message
gives the offset of the first byte that does not fit.

Wrong:

    a file saved as UTF-16 or Latin-1

Right:

    the same file saved as UTF-8
"#;
    ChainedComparison = "E0115", Body, "comparisons do not chain", r#"
`a < b < c` has no agreed meaning, so it is not allowed. Combine two comparisons with `&&`.

Wrong:

    let width = 128
    if 2 < width < 512 { layer_norm }

Right:

    let width = 128
    if 2 < width && width < 512 { layer_norm }
"#;
    IfWithoutElse = "E0116", Body, "an `if` used as a value has no `else`", r#"
As a statement `if` may stand without `else`. As a value it must say what the value is in either case, each in braces.

Wrong:

    let wide = true
    mlp(hidden: if wide { 512 })

Right:

    let wide = true
    mlp(hidden: if wide { 512 } else { 128 })
"#;
    Separator = "E0117", Body, "statements are not separated by commas", r#"
Statements follow each other with nothing between them but a line break or a blank. Commas separate arguments and the
elements of lists.

Wrong:

    residual { layer_norm, attention(heads: 8) }

Right:

    residual { layer_norm  attention(heads: 8) }
"#;
    SettingForm = "E0118", Body, "a setting or binding is written with the wrong sign", r#"
Arguments in parentheses take a colon, a binding takes `=`, and a setting takes nothing between name and value.

Wrong:

    context = 32
    let width: 128

Right:

    context 32
    let width = 128
    mlp(hidden: width)
"#;
    CannotImport = "E0119", Beside, "a file cannot be imported", r#"
`import` names a file by its path from the folder of the importing file, with `/` between folders. The file must exist,
be UTF-8 text of at most one mebibyte, and be one of at most 64 that belong to a source. A text that comes without a
folder, from a program for example, can import only what that program hands over.

Wrong:

    import "routers"

Right:

    import "routers.moe"
"#;
    ImportCircle = "E0120", Beside, "files import each other in a circle", r#"
A file that imports another must not be imported by it, not even through a third. What both need belongs in a file of
its own.

Wrong:

    import "example.moe"     // in example.moe

Right:

    import "shared.moe"
"#;
    ImportedTwice = "E0121", Beside, "a file is imported twice", r#"
One import brings everything that the other file defines, so a second one of the same file is a mistake. Two files may
import a third one: it is then read once.

Wrong:

    import "routers.moe"
    import "./routers.moe"

Right:

    import "routers.moe"
"#;
    ParameterForm = "E0122", Beside, "a parameter is not written `name: type`", r#"
The parameters of a router and of a block have a type, `int`, `float` or `bool`, and may have a default behind it.
Commas stand between them.

Wrong:

    router scaled(k, scale = 1.0) {
      let top, chosen = top_k(scale * linear(x, experts, name: "scores"), k)
      return token_choice(experts: chosen, weights: softmax(top))
    }

Right:

    router scaled(k: int, scale: float = 1.0) {
      let top, chosen = top_k(scale * linear(x, experts, name: "scores"), k)
      return token_choice(experts: chosen, weights: softmax(top))
    }
"#;
    // Names and arguments.
    UnknownLayer = "E0201", Body, "no layer or block has this name", r#"
The name is neither a layer of the language nor a block defined in this file. The language reference lists the layers.

Wrong:

    multihead_attention(heads: 8)

Right:

    attention(heads: 8)
"#;
    UnknownArgument = "E0202", Body, "the thing called has no argument of this name", r#"
Each layer, router, loss and optimizer declares its arguments; nothing else is accepted, so that a typing error never
passes silently.

Wrong:

    attention(head: 8)

Right:

    attention(heads: 8)
"#;
    MissingArgument = "E0203", Body, "a required argument is missing", r#"
Arguments without a default must be given.

Wrong:

    mlp(activation: gelu)

Right:

    mlp(hidden: 512, activation: gelu)
"#;
    DuplicateArgument = "E0204", Body, "an argument is given twice", r#"
Each argument may be given once. The message points at both places.

Wrong:

    attention(heads: 8, heads: 4)

Right:

    attention(heads: 8)
"#;
    PositionalArgument = "E0205", Body, "an argument has no name", r#"
All arguments are named, so that a model can be read without a manual. Order does not matter.

Wrong:

    dropout(0.1)

Right:

    dropout(rate: 0.1)
"#;
    UnknownName = "E0206", Body, "a name in an expression is not defined", r#"
Names in expressions are `let` bindings and `repeat` indices that were introduced earlier, in the same body or one
around it.

Wrong:

    mlp(hidden: 4 * width)
    let width = 128

Right:

    let width = 128
    mlp(hidden: 4 * width)
"#;
    DuplicateDefinition = "E0207", Body, "a name is defined twice", r#"
Models, blocks and bindings of one body have different names. Defining a name again would make it unclear which one a
reader should look at.

Wrong:

    let width = 128
    let width = 256

Right:

    let width = 128
    let wide  = 256
    mlp(hidden: width)
    mlp(hidden: wide)
"#;
    UnknownRouter = "E0208", Body, "no routing strategy has this name", r#"
`route` names a registered routing strategy. `moec routers` lists them with their arguments.

Wrong:

    moe(experts: 8 * mlp(hidden: 512), route: topk(k: 2))

Right:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 2))
"#;
    UnknownLoss = "E0209", Body, "no balance loss has this name", r#"
`balance` is a list of auxiliary losses: `importance`, `load`, `switch` and `z`, each with a weight.

Wrong:

    moe(experts: 8 * mlp(hidden: 512), route: switch, balance: [swich(weight: 0.01)])

Right:

    moe(experts: 8 * mlp(hidden: 512), route: switch, balance: [switch(weight: 0.01)])
"#;
    UnknownValue = "E0210", Body, "the argument does not take this word", r#"
Some arguments take one of a few words. The message lists them.

Wrong:

    mlp(hidden: 512, activation: rleu)

Right:

    mlp(hidden: 512, activation: relu)
"#;
    MissingBody = "E0211", Body, "a layer that wraps others has no body", r#"
`residual` adds what its layers compute to what they were given, so it needs layers in braces.

Wrong:

    residual

Right:

    residual { layer_norm  mlp(hidden: 512) }
"#;
    UnexpectedBody = "E0212", Body, "a layer that wraps nothing has a body", r#"
Only layers such as `residual` have layers of their own in braces.

Wrong:

    mlp(hidden: 512) { layer_norm }

Right:

    layer_norm
    mlp(hidden: 512)
"#;
    // Types, values and ranges.
    WrongType = "E0301", Body, "a value has the wrong type", r#"
The values are integers, floats, booleans, words, text, lists, calls and layer sequences. An integer is accepted where
a float is wanted; nothing else is converted.

Wrong:

    attention(heads: 0.5)

Right:

    attention(heads: 4)
"#;
    OutOfRange = "E0302", Body, "a value lies outside its range", r#"
The argument or setting accepts only part of the numbers; the message gives the range.

Wrong:

    dropout(rate: 1.5)

Right:

    dropout(rate: 0.5)
"#;
    DivisionByZero = "E0303", Body, "a division by zero", r#"
The right side of `/` or `%` is zero.

Wrong:

    let heads = 0
    mlp(hidden: 128 / heads)

Right:

    let heads = 8
    mlp(hidden: 128 / heads)
"#;
    NumberOverflow = "E0304", Body, "a computed number is too large", r#"
Integers are 64 bits wide and never wrap around; floats must stay finite.

Wrong:

    let n = 9223372036854775807 + 1
    mlp(hidden: n)

Right:

    let n = 4 * 1024
    mlp(hidden: n)
"#;
    NotCompileTime = "E0305", Body, "a value is not known at compile time", r#"
Shapes, counts and `let` bindings are computed when the model is compiled, from numbers, booleans and earlier
bindings. A layer, a router or a piece of text is no number and cannot be computed with.

Wrong:

    let width = embed(width: 128)

Right:

    let width = 128
    embed(width: width)
"#;
    // Shapes and structure.
    NoModel = "E0401", File, "the file defines no model", r#"
A file that is to be compiled or trained holds at least one `model NAME { ... }`.

Wrong:

    train { steps 100 }

Right:

    model small {
      context 32
      vocab characters
      embed(width: 64)
      unembed
    }
    train { steps 100 }
"#;
    SeveralModels = "E0402", Nowhere, "the file defines several models, and none was chosen", r#"
Say which one is meant with `--model NAME` on the command line.

Wrong:

    moec train two.moe

Right:

    moec train two.moe --model small
"#;
    MissingContext = "E0403", File, "the model has no `context`", r#"
`context` is the number of tokens that the model sees at once. Attention, positions and memory depend on it, so it has
no default.

Wrong:

    model small { vocab characters  embed(width: 64)  unembed }

Right:

    model small {
      context 32
      vocab characters
      embed(width: 64)
      unembed
    }
"#;
    MissingVocab = "E0404", File, "the model has no `vocab`", r#"
`vocab` says how text becomes tokens. `vocab characters` takes the characters of the training text; a number fixes the
size.

Wrong:

    model small { context 32  embed(width: 64)  unembed }

Right:

    model small {
      context 32
      vocab characters
      embed(width: 64)
      unembed
    }
"#;
    EmbedPlacement = "E0405", Body, "`embed` is missing, repeated or not the first layer", r#"
`embed` turns token numbers into vectors, so it is the first layer of a model, stands once, and stands outside every
`repeat` and `residual`.

Wrong:

    layer_norm
    embed(width: 128)

Right:

    embed(width: 128)
    layer_norm
"#;
    UnembedPlacement = "E0406", Body, "`unembed` is missing, repeated or not the last layer", r#"
`unembed` turns vectors into one logit for each token of the vocabulary, so it is the last layer of a model, stands
once, and stands outside every `repeat` and `residual`.

Wrong:

    unembed
    layer_norm

Right:

    layer_norm
    unembed
"#;
    WidthMismatch = "E0407", Body, "two widths that must agree differ", r#"
The layers of a `residual` and the experts of a `moe` must return vectors as wide as those they were given, because
the results are added up.

Wrong:

    residual { linear(width: 64) }      // in a model of width 128

Right:

    residual { linear(width: 64)  linear(width: 128) }
"#;
    HeadsDoNotDivideWidth = "E0408", Body, "the number of heads does not divide the width", r#"
Attention splits the width evenly among its heads.

Wrong:

    embed(width: 100)
    attention(heads: 8)

Right:

    embed(width: 128)
    attention(heads: 8)
"#;
    BlockRecursion = "E0409", Body, "a block contains itself", r#"
A block is copied where it is used, so it cannot contain itself, directly or through other blocks.

Wrong:

    block tower { layer_norm  tower }
    tower

Right:

    block storey { layer_norm  mlp(hidden: 512) }
    storey
"#;
    RepeatTooLarge = "E0410", Body, "a `repeat` has too many repetitions", r#"
The number of layers after all repetitions is bounded, so that a typing error is reported at once and does not fill
the memory.

Wrong:

    repeat 8000000 { residual { layer_norm  mlp(hidden: 512) } }

Right:

    repeat 8 { residual { layer_norm  mlp(hidden: 512) } }
"#;
    RotaryHeadWidth = "E0411", Body, "rotary positions need heads of even width", r#"
Rotary positions turn pairs of numbers, so `width / heads` must be even.

Wrong:

    embed(width: 24, positions: rotary)
    attention(heads: 8)

Right:

    embed(width: 32, positions: rotary)
    attention(heads: 8)
"#;
    // Routing.
    TopKTooLarge = "E0501", Body, "more experts are selected than there are", r#"
`k` experts are selected for each token, so `k` is at most the number of experts.

Wrong:

    moe(experts: 2 * mlp(hidden: 512), route: softmax_top_k(k: 4))

Right:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 4))
"#;
    TopKZero = "E0502", Body, "no expert is selected", r#"
With `k: 0` no token would reach any expert.

Wrong:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 0))

Right:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 2))
"#;
    NoExperts = "E0503", Body, "a `moe` has no experts", r#"
The number before `*` is the number of experts and is at least 1. To leave the layer out, use `if` around it.

Wrong:

    moe(experts: 0 * mlp(hidden: 512), route: softmax_top_k(k: 2))

Right:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 2))
"#;
    ExpertForm = "E0504", Body, "experts are not written `NUMBER * EXPERT`", r#"
`experts` and `shared` take a number of copies and what is copied: a layer, a block by its name, or a layer sequence in
braces. `experts` also takes a list that begins with that; behind it stand experts that compute nothing, `zero`,
`copy` and `constant`, each once, with their number in front: `[6 * mlp(hidden: 512), zero, 2 * constant]`.

Wrong:

    moe(experts: mlp(hidden: 512), route: softmax_top_k(k: 2))

Right:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 2))
"#;
    ExpertNotTokenwise = "E0505", Body, "an expert contains a layer that looks at several tokens", r#"
An expert is given the tokens routed to it, in no sequence, so each of its layers must work on single tokens.
Attention belongs before the `moe`.

Wrong:

    moe(experts: 8 * { attention(heads: 8) }, route: softmax_top_k(k: 2))

Right:

    attention(heads: 8)
    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 2))
"#;
    LossNotSupported = "E0506", Body, "this router does not provide what the balance loss needs", r#"
Each balance loss is computed from something that the router produces; `load`, for example, needs the noise of
`noisy_top_k`, which makes the number of tokens an expert gets differentiable.

Wrong:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 2), balance: [load(weight: 0.01)])

Right:

    moe(experts: 8 * mlp(hidden: 512), route: noisy_top_k(k: 2), balance: [load(weight: 0.01)])
"#;
    NotCausal = "E0507", Body, "the router lets a token see later ones", r#"
A language model predicts each token from the tokens before it. A router that compares tokens of the whole sequence
(as expert choice does) lets later tokens decide what happens to earlier ones, which leaks the answer during training
and cannot be done while sampling. `allow: lookahead` switches the check off for studies of exactly that.

Wrong:

    moe(experts: 8 * mlp(hidden: 512), route: expert_choice)

Right:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 2))
"#;
    ArgumentsConflict = "E0508", Body, "arguments do not go together", r#"
Each argument is right by itself, but what they ask for together cannot be done. The message says which.

Wrong:

    moe(experts: 8 * mlp(hidden: 512), route: hash(by: bigram, table: clustered, from: "runs/dense"))

Right:

    moe(experts: 8 * mlp(hidden: 512), route: hash(by: bigram, table: balanced))
"#;
    // The training recipe and overrides.
    UnknownSetting = "E0601", Beside, "there is no setting of this name", r#"
The settings of `train` are `data`, `split`, `batch`, `accumulate`, `steps`, `seed`, `optimizer`,
`schedule`, `clip`, `average`, `init`, `precision`, `freeze`, `evaluate`, `checkpoint` and `log`.

Wrong:

    train { batch_size 16 }

Right:

    train { batch 16 }
"#;
    DuplicateSetting = "E0602", Beside, "a setting is given twice", r#"
Each setting may be given once. The message points at both places.

Wrong:

    train {
      batch 16
      batch 32
    }

Right:

    train {
      batch 32
    }
"#;
    MisplacedSetting = "E0603", Body, "a setting stands where it has no effect", r#"
`context` and `vocab` describe the whole model and stand directly in its body, not in a block, a `repeat` or a layer.

Wrong:

    repeat 8 { context 32 }

Right:

    context 32
    repeat 8 { layer_norm }
"#;
    BadSplit = "E0604", Beside, "the split is no share of the text that can be trained on", r#"
`split` is the share of the text used for training, more than 0 and at most 1. The rest is held out. With 1.0
nothing is: the model is trained on the whole text, and evaluated on that.

Wrong:

    train { split 0 }

Right:

    train { split 0.9 }
"#;
    UnknownOptimizer = "E0605", Beside, "there is no optimizer of this name", r#"
`moec explain` lists the optimizers, and `moec explain adamw` shows the equations and arguments of one.

Wrong:

    train { optimizer adam(lr: 1e-3) }

Right:

    train { optimizer adamw(lr: 1e-3) }
"#;
    UnknownInit = "E0606", Beside, "there is no initialisation of this name", r#"
Weights start as `kaiming_normal`, `xavier`, `normal(std: 0.02)` or `zeros`.

Wrong:

    train { init kaiming }

Right:

    train { init kaiming_normal }
"#;
    UnknownSchedule = "E0607", Beside, "there is no learning rate schedule of this name", r#"
`moec explain` lists the schedules, and `moec explain cosine` shows the equations and arguments of one.

Wrong:

    train { schedule cosin(warmup: 100) }

Right:

    train { schedule cosine(warmup: 100) }
"#;
    UnknownOverride = "E0608", Command, "an override names nothing in the file", r#"
`-s path=value` replaces a `let` of the model by its name, or a setting of the recipe by `train.` and its name.

Wrong:

    moec train small.moe -s train.step=200

Right:

    moec train small.moe -s train.steps=200
"#;
    OverrideType = "E0609", Command, "an override has a value of the wrong type", r#"
An override has the type of what it replaces. Text that the shell might take apart goes in quotes.

Wrong:

    moec train small.moe -s train.steps=many

Right:

    moec train small.moe -s train.steps=200
"#;
    SeveralTrainBlocks = "E0610", Beside, "the file holds several `train` blocks", r#"
One file, one recipe. Variations are made with `-s path=value`.

Wrong:

    train { steps 100 }
    train { steps 200 }

Right:

    train { steps 200 }
"#;
    NamedTensors = "E0611", Nowhere, "a tensor that the recipe names is not there, or everything is frozen", r#"
`freeze` says which tensors stay as they start: `experts`, `router` and `trunk` are the parts of a model, and `tensors`
takes names, in which `*` stands for anything. `init_scale` says by such names which of the tensors that start at random
start smaller or larger. A name must fit a tensor, and something must be left to train.

Wrong:

    train { freeze(experts: true, router: true, trunk: true) }

Right:

    train { freeze(experts: true, trunk: true) }
"#;
    // Resources.
    ModelTooLarge = "E0701", Body, "the model is too large to build", r#"
Parameters, optimizer, activations and gradients need more memory than the device has, or a size exceeds what can be
addressed. Nothing has been allocated. The message gives the sum and names the largest tensors.

Wrong:

    embed(width: 100_000)
    moe(experts: 65_536 * mlp(hidden: 1_000_000), route: softmax_top_k(k: 2))

Right:

    embed(width: 1_024)
    moe(experts: 16 * mlp(hidden: 4_096), route: softmax_top_k(k: 2))
"#;
    CannotBuild = "E0702", Nowhere, "the model does not fit together when it is built", r#"
The file is sound, but a routing strategy or a loss from outside built operations whose shapes do not fit, or returned
something else than it declares. The message names the operation. It is a fault of that plugin, not of the file.

Wrong:

    b.linear(x, weight, None)    // x is [N, 128], the weight [8, 64]

Right:

    b.linear(x, weight, None)    // x is [N, 128], the weight [8, 128]
"#;
    // Routers in the language.
    NameTaken = "E0801", Beside, "a name in a router definition is taken", r#"
A router must not be called like one that is built in, a loss of a router not like a balance loss, and no tensor of a
router like a part of the `moe` layer. Otherwise it would be unclear which one a model or a line of the log means.

Wrong:

    router noisy_top_k(k: int) {
      let top, chosen = top_k(linear(x, experts, name: "scores"), k)
      return token_choice(experts: chosen, weights: softmax(top))
    }

Right:

    router quiet_top_k(k: int) {
      let top, chosen = top_k(linear(x, experts, name: "scores"), k)
      return token_choice(experts: chosen, weights: softmax(top))
    }
"#;
    UnknownFunction = "E0802", Router, "no function has this name", r#"
A router calls the functions of the language, such as `linear`, `softmax` and `top_k`; the language reference lists
them. There are no others, and a router cannot call another one.

Wrong:

    return token_choice(experts: chosen, weights: soft_max(top))

Right:

    return token_choice(experts: chosen, weights: softmax(top))
"#;
    FunctionArguments = "E0803", Router, "a function is given other arguments than it takes", r#"
The values that a function works on stand in order, without names; what it can be told beyond that has names. The
message shows how the function is written.

Wrong:

    let top, chosen = top_k(scores)
    aux total = mean(sum(scores, experts))

Right:

    let top, chosen = top_k(scores, k)
    aux total = mean(sum(scores, over: experts))
"#;
    WrongKind = "E0804", Router, "a value is of a kind that cannot stand here", r#"
A router computes with numbers that are known at compile time (`k`, `experts`), with tensors that are computed for
every batch (`x`, `linear(x, experts)`), and with indices (the second result of `top_k`). Extents and conditions of
`if` are known at compile time; indices become tensors with `float(..)`.

Wrong:

    return dense_gates(if scores > 0 { scores } else { zeros() })

Right:

    return dense_gates(select(scores > 0, scores, 0.0))
"#;
    ShapeMismatch = "E0805", Router, "shapes do not fit each other", r#"
Tensors are combined element by element. Each is repeated along the axis that it lacks, so a number for every token, a
vector over experts and a single number fit anything; but the k choices of a token and the experts are different axes.

Wrong:

    return token_choice(experts: chosen, weights: top * scores)

Right:

    return token_choice(experts: chosen, weights: top * gather(scores, chosen))
"#;
    ReturnForm = "E0806", Router, "a router does not end with one `return` of an assignment", r#"
The last statement of a router, and only that, is `return token_choice(..)` (the experts of each token with their
weights) or `return dense_gates(..)` (a weight for every expert). What depends on the mode is chosen inside.

Wrong:

    return softmax(top)

Right:

    return token_choice(experts: chosen, weights: softmax(top))
"#;
    StateForm = "E0807", Router, "a state is declared or updated in a way that cannot be", r#"
A `state` is a tensor that is kept from step to step: it starts from constants, and has no axis of tokens, which differ
from batch to batch. `update` gives it a value of the same shape after a training step, at most once.

Wrong:

    state load = count(chosen)

Right:

    state load = zeros(experts)
    update load = 0.9 * load + 0.1 * count(chosen)
"#;
    LossForm = "E0808", Router, "a loss of a router is not a single number", r#"
`aux` adds a number to the training objective, so what is computed for every token or expert must be reduced.

Wrong:

    aux spread(weight: 0.01) = count(chosen)

Right:

    let p = softmax(scores)
    aux spread(weight: 0.01) = experts * sum(mean(p, over: tokens) * count(chosen)) / (tokens * k)
"#;
    UnnamedTensor = "E0809", Router, "what a router trains has no name", r#"
The tensors of a `linear` or a `parameter` are saved under the name of the `let` that it is bound to. Inside a larger
expression it needs a name of its own, of letters, digits and `_`.

Wrong:

    return dense_gates(sigmoid(linear(x, experts)))

Right:

    return dense_gates(sigmoid(linear(x, experts, name: "gate")))
"#;
    RepeatForm = "E0810", Router, "a statement cannot stand in a `repeat`", r#"
A `repeat` in a router goes through its statements several times. In it stand `let`, whose names are known up to the end
of the round, and `NAME = ..`, which gives another value to what a `let` in front of the `repeat` has named. What is
trained, kept or returned is said once, outside.

Wrong:

    let scores = linear(x, experts)
    let factor = 1.0
    repeat 3 {
      factor = factor / (sum(exp(scores) * factor) + 1e-8)
    }
    return dense_gates(exp(scores) * factor)

Right:

    let scores = linear(x, experts)
    let factor = ones(tokens)
    repeat 3 {
      factor = 1.0 / (sum(exp(scores) * factor, over: experts) + 1e-8)
    }
    return dense_gates(exp(scores) * factor)
"#;
    // Exchange with other programs.
    NoCounterpart = "E0901", Nowhere, "another program has no counterpart of this", r#"
`moec export` and `moec import` exchange weights with programs that have a model of their own. What that model computes
in another way cannot be exchanged: the tensors would fit, and the results would be wrong. The message says what the
other model has instead; what can be put into the weights without changing a result is put there, and said.

Wrong:

    moe(experts: 8 * mlp(hidden: 512, activation: gelu), route: switch)     // moec export RUN --to makemoe

Right:

    moe(experts: 8 * mlp(hidden: 512, activation: relu), route: noisy_top_k(k: 2))
"#;
    // Warnings.
    UnusedLet = "W0201", Body, "a binding is never used", r#"
Nothing reads this `let`. Perhaps a number was meant to be computed from it.

Wrong:

    let width = 128
    mlp(hidden: 64)

Right:

    let width = 128
    mlp(hidden: width)
"#;
    EmptyRepeat = "W0401", Body, "a `repeat` adds no layer", r#"
Its count is 0 or its body is empty, so the model is the same without it.

Wrong:

    repeat 0 { residual { layer_norm  mlp(hidden: 512) } }

Right:

    repeat 4 { residual { layer_norm  mlp(hidden: 512) } }
"#;
    ZeroTaskGradient = "W0501", Body, "the router learns nothing from the task", r#"
With one selected expert and weights renormalised over the selected ones, the weight is always 1: its gradient is
zero, and the router keeps its random start. A balance loss moves it, but only towards an even load: which expert is
good for a token it does not learn. `normalize: all` keeps the probability as weight.

Wrong:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 1, normalize: selected))

Right:

    moe(experts: 8 * mlp(hidden: 512), route: softmax_top_k(k: 1, normalize: all))
"#;
    IntegerDivision = "W0801", Router, "a division of integers drops the fraction", r#"
Two integers give an integer, also in a router: `1 / experts` is 0 for more than one expert. Where the fraction
matters, one side must be a float.

Wrong:

    aux size(weight: 0.01) = mean(scores) * (1 / experts)

Right:

    aux size(weight: 0.01) = mean(scores) * (1.0 / experts)
"#;
}

/// How serious a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something worth knowing.
    Note,
    /// The file can be used, but probably does not do what was meant.
    Warning,
    /// The file cannot be used.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

impl Code {
    /// The wrong and the right example of the explanation.
    pub fn examples(self) -> Option<[String; 2]> {
        let (_, examples) = self.explanation().split_once("\nWrong:\n\n")?;
        let (wrong, right) = examples.split_once("\n\nRight:\n\n")?;
        Some(
            [wrong, right]
                .map(|text| text.lines().map(|line| line.get(4..).unwrap_or("")).collect::<Vec<_>>().join("\n")),
        )
    }

    /// What `moec explain` prints: number, summary and explanation.
    pub fn explain(self) -> String {
        format!("{}: {}\n\n{}\n", self.number(), self.summary(), self.explanation())
    }

    /// Whether the code stands for an error or a warning: its first letter says so.
    pub fn severity(self) -> Severity {
        if self.number().starts_with('W') { Severity::Warning } else { Severity::Error }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.number())
    }
}

/// The text is not the number of any code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownCode(pub String);

impl fmt::Display for UnknownCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not the code of a diagnostic", self.0)
    }
}

impl std::error::Error for UnknownCode {}

impl FromStr for Code {
    type Err = UnknownCode;

    /// Reads a number such as `E0202`, in upper or lower case.
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let found = Code::ALL.iter().find(|code| code.number().eq_ignore_ascii_case(text.trim()));
        found.copied().ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_read_back() {
        let mut numbers: Vec<_> = Code::ALL.iter().map(|code| code.number()).collect();
        assert!(numbers.is_sorted(), "the table is sorted, errors before warnings");
        numbers.dedup();
        assert_eq!(numbers.len(), Code::ALL.len());
        for &code in Code::ALL {
            assert_eq!(code.number().to_lowercase().parse(), Ok(code));
        }
        assert_eq!("E9999".parse::<Code>(), Err(UnknownCode("E9999".to_owned())));
    }

    #[test]
    fn every_explanation_shows_a_wrong_and_a_right_example() {
        for &code in Code::ALL {
            let text = code.explanation();
            assert!(text.contains("\nWrong:\n\n    ") && text.contains("\nRight:\n\n    "), "{code}");
            assert!(text.lines().all(|line| line.chars().count() <= 120), "{code} has a long line");
        }
    }
}
