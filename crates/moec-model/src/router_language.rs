//! Routers written in the language: `router NAME(parameters) { .. }`.
//!
//! A definition goes three ways. [`check`] turns its syntax tree into a [`program`](program::Program), once, whatever
//! arguments it will be given; [`emit`] builds the graph for particular arguments; [`mod@derive`] finds out what the
//! compiler must know about it, such as which tokens it compares. Together they are a [`RoutingStrategy`] like any
//! other: nothing behind this module knows where a router came from.

mod check;
mod derive;
mod emit;
mod functions;
mod kinds;
mod program;
mod tables;

use std::borrow::Cow;
use std::sync::Arc;

use indexmap::IndexMap;
use moec_ir::{Invariant, internal_error};
use moec_syntax::{self as ast, Code, Diagnostic, SourceFile, Span};

use crate::argument::{ArgumentValue, Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::arithmetic::{NoResult, Number};
use crate::emit::Mode;
use crate::registry::Registry;
use crate::router::{
    Assignment, Comparison, GradientEnd, Quantity, Randomness, Routing, RoutingContext, RoutingStrategy, Traits,
};

use derive::Derived;
use program::{Action, Expr, KnownSizes, Node, Num, NumNode, Over, Program, Situation, Step, Table};

pub use functions::{ROUTER_FUNCTIONS, ROUTER_RESULTS, ROUTER_TABLES, RouterFunction};

/// The routers that a file and its imports define.
pub(crate) struct Defined {
    /// Those without faults.
    pub(crate) routers: Vec<Arc<dyn RoutingStrategy>>,
    /// Names of those with faults, whose uses need no further message.
    pub(crate) faulty: Vec<String>,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Checks every router that a file and its imports define.
pub(crate) fn define(source: &SourceFile, file: &ast::File, registry: &Registry) -> Defined {
    let mut defined = Defined { routers: Vec::new(), faulty: Vec::new(), diagnostics: Vec::new() };
    let losses: Vec<&str> = registry.losses().map(|loss| loss.name).collect();
    let mut names: IndexMap<&str, Span> = IndexMap::new();
    for (item, import) in file.all_items() {
        let ast::Item::Router(router) = item else { continue };
        let name = &router.name;
        let mut taken = None;
        if registry.find_router(&name.name).is_some() {
            let d = Diagnostic::new(Code::NameTaken, format!("there is a router named `{name}` already"))
                .primary(name.span, "this name is taken")
                .note("`moec routers` lists the routers that are built in");
            taken = Some(d.help("choose another name, so that it is clear which one a model means"));
        } else if let Some(&first) = names.get(name.name.as_str()) {
            let d = Diagnostic::new(Code::DuplicateDefinition, format!("router `{name}` is defined twice"))
                .primary(name.span, "defined again here")
                .secondary(first, "first defined here");
            taken = Some(d.help("give one of them another name"));
        }
        names.entry(&name.name).or_insert(name.span);
        let free = taken.is_none();
        defined.diagnostics.extend(taken.map(|d| through(d, import)));
        let program = check::check(router, &losses, &mut |diagnostic| defined.diagnostics.push(diagnostic));
        match program {
            Some(program) if free => defined.routers.push(Arc::new(LanguageRouter::new(source, router, program))),
            _ if free => defined.faulty.push(name.name.clone()),
            _ => {}
        }
    }
    defined
}

/// A message about something that an import brought points at the import too.
pub(crate) fn through(d: Diagnostic, import: Option<Span>) -> Diagnostic {
    match import {
        Some(import) => d.secondary(import, "imported here"),
        None => d,
    }
}

/// A router written in the language.
struct LanguageRouter {
    name: String,
    summary: String,
    equations: String,
    parameters: Vec<ParameterSpec>,
    program: Program,
    /// Where its name stands in its definition.
    defined: Span,
}

/// What stands for the width where it is not known: large and with many divisors.
const SOME_WIDTH: usize = 5040;

/// What stands for the number of experts where it is not known: not a single one, whose weights would be 1.
const SOME_EXPERTS: usize = 64;

/// What stands for the number of tokens, of the batch and of a sequence, where it is not known.
const SOME_TOKENS: usize = 64;

impl LanguageRouter {
    fn new(source: &SourceFile, router: &ast::Router, program: Program) -> Self {
        let parameters = router.parameters().iter().map(|parameter| specification(source, parameter)).collect();
        let tree = ast::File { items: vec![ast::Item::Router(router.clone())], imported: Vec::new() };
        let nameless = || (format!("defined in {}", source.file(router.span.file()).name()), String::new());
        let (summary, more) = comment_above(source, router.span).unwrap_or_else(nameless);
        let equations = equations(&program, tree.to_string().trim_end());
        let equations = if more.is_empty() { equations } else { format!("{more}\n{equations}") };
        LanguageRouter {
            name: router.name.name.clone(),
            summary,
            equations,
            parameters,
            program,
            defined: router.name.span,
        }
    }

    fn situation(&self, arguments: &Arguments, sizes: [usize; 4], known: KnownSizes, training: bool) -> Situation {
        let value = |name: &str| match arguments.get(name) {
            Some(ArgumentValue::Int(value)) => Number::Int(*value),
            Some(ArgumentValue::Float(value)) => Number::Float(*value),
            Some(ArgumentValue::Bool(value)) => Number::Bool(*value),
            value => internal_error!("`{name}` of `{}` is {value:?}, not a number", self.name),
        };
        let values = self.program.parameters.iter().map(|name| value(name)).collect();
        Situation::new(&self.program, values, sizes, known, training)
    }

    /// For so many experts, or for any number of them.
    fn derived(&self, arguments: &Arguments, experts: Option<usize>, training: bool) -> Derived {
        let known = if experts.is_some() { KnownSizes::Experts } else { KnownSizes::None };
        let sizes = [experts.unwrap_or(SOME_EXPERTS), SOME_WIDTH, SOME_TOKENS, SOME_TOKENS];
        derive::derive(&self.program, &self.situation(arguments, sizes, known, training))
    }
}

impl RoutingStrategy for LanguageRouter {
    fn name(&self) -> &str {
        &self.name
    }

    fn summary(&self) -> &str {
        &self.summary
    }

    fn parameters(&self) -> &[ParameterSpec] {
        &self.parameters
    }

    fn equations(&self) -> &str {
        &self.equations
    }

    fn check(&self, arguments: &Arguments, experts: usize) -> Result<(), String> {
        // More choices than experts have a message of their own where they are called `k`.
        let known = self.derived(arguments, Some(experts), false).experts_per_token;
        let called_k = arguments.k().is_some_and(|k| k > experts);
        let all_chosen = called_k && known.is_some_and(|k| k > experts);
        [true, false].into_iter().try_for_each(|training| {
            let situation = self.situation(
                arguments,
                [experts, SOME_WIDTH, SOME_TOKENS, SOME_TOKENS],
                KnownSizes::Experts,
                training,
            );
            program_sound(&self.program, &situation, !all_chosen)
        })
    }

    /// Two of whatever a required argument counts: a single choice would be an exception.
    fn default_arguments(&self) -> Arguments {
        let required = self.parameters.iter().filter(|spec| spec.default == DefaultValue::Required);
        required.fold(Arguments::defaults(&self.name, &self.parameters), |arguments, spec| match spec.ty {
            ParameterType::Float(_) => arguments.with(&spec.name, 2.0),
            ParameterType::Bool => arguments.with(&spec.name, true),
            _ => arguments.with(&spec.name, 2),
        })
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        let (training, sampling) = (self.derived(arguments, None, true), self.derived(arguments, None, false));
        let random = match (training.assignment.random, sampling.assignment.random) {
            (_, true) => Randomness::Always,
            (true, false) => Randomness::Training,
            (false, false) => Randomness::Never,
        };
        let mut reads = training.assignment.reads;
        reads.activations |= sampling.assignment.reads.activations;
        reads.token_ids |= sampling.assignment.reads.token_ids;
        reads.positions |= sampling.assignment.reads.positions;
        let updates = self.program.steps.iter().any(|step| matches!(step.action, Action::Update { .. }));
        let returned = &self.program.returned;
        let noisy = training.noisy.is_some_and(|noisy| noisy.random);
        let (logits, probabilities) = (returned.logits.is_some(), returned.probabilities.is_some());
        Traits {
            reads,
            compares: training.assignment.compares,
            compares_when_sampling: sampling.assignment.compares,
            counts_tokens: sampling.assignment.counts_tokens,
            random,
            provides: provided(logits, probabilities, noisy),
            learns_from_task: training.weights.learns || training.own_loss || !training.trained,
            nests: !(training.parameters || sampling.parameters || updates || training.sequences || sampling.sequences),
            ..Traits::default()
        }
    }

    fn definition(&self) -> Option<Span> {
        Some(self.defined)
    }

    fn comparison(&self, arguments: &Arguments) -> Option<Comparison> {
        self.derived(arguments, None, false).assignment.compared_at
    }

    fn gradient_end(&self, arguments: &Arguments) -> Option<GradientEnd> {
        self.derived(arguments, None, true).weights.gradient_end
    }

    fn experts_per_token(&self, arguments: &Arguments, experts: usize, _time: usize) -> f64 {
        let known = self.derived(arguments, Some(experts), false).experts_per_token;
        known.unwrap_or(experts) as f64
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let sizes = [context.experts(), context.width(), context.token_count(), context.time()];
        let training = context.mode() == Mode::Train;
        let situation = self.situation(arguments, sizes, KnownSizes::All, training);
        // What depends on the width or the number of tokens is known only here.
        if let Err(message) = program_sound(&self.program, &situation, true) {
            context.refuse(message);
            let shape = [context.token_count(), context.experts()];
            return Routing::new(Assignment::DenseGates { gates: context.builder().fill(0.0, shape) });
        }
        let noisy = derive::derive(&self.program, &situation).noisy.is_some_and(|noisy| noisy.random);
        emit::emit(&self.program, &situation, noisy, context)
    }
}

/// What balance losses can be computed from.
fn provided(logits: bool, probabilities: bool, noisy: bool) -> &'static [Quantity] {
    use Quantity::{Logits, NoisyScores, Probabilities};
    match (logits, probabilities, noisy) {
        // Probabilities can be made of scores; the noise is of use only next to scores without it.
        (true, _, true) => &[Logits, Probabilities, NoisyScores],
        (true, _, false) => &[Logits, Probabilities],
        (false, true, _) => &[Probabilities],
        (false, false, _) => &[],
    }
}

/// A declared parameter as arguments are checked against it.
fn specification(source: &SourceFile, parameter: &ast::Parameter) -> ParameterSpec {
    let ty = match parameter.ty.name.as_str() {
        "int" => ParameterType::Int(Interval::ANY),
        "float" => ParameterType::Float(Interval::ANY),
        _ => ParameterType::Bool,
    };
    let default = match check::default_value(parameter) {
        Some(Number::Int(value)) => DefaultValue::Int(value),
        Some(Number::Float(value)) => DefaultValue::Float(value),
        Some(Number::Bool(value)) => DefaultValue::Bool(value),
        None => DefaultValue::Required,
    };
    let help = comment_behind(source, parameter.span).unwrap_or_else(|| "a parameter of this router".to_owned());
    ParameterSpec { name: Cow::Owned(parameter.name.name.clone()), ty, default, help: Cow::Owned(help) }
}

/// The comment that stands directly above: its first sentence, and what comes behind it.
fn comment_above(source: &SourceFile, span: Span) -> Option<(String, String)> {
    let lines: Vec<&str> = source.file(span.file()).text().get(..span.start())?.lines().rev().collect();
    let comment = lines.iter().map_while(|line| line.trim().strip_prefix("//"));
    let mut comment: Vec<&str> = comment.map(str::trim).collect();
    comment.reverse();
    let text = comment.join(" ");
    let (first, rest) = text.split_once(". ").unwrap_or((text.trim_end_matches('.'), ""));
    (!first.is_empty()).then(|| (first.to_owned(), rest.to_owned()))
}

/// The comment behind, on the same line.
fn comment_behind(source: &SourceFile, span: Span) -> Option<String> {
    let line = source.file(span.file()).text().get(span.end()..)?.lines().next()?;
    let comment = line.trim_start_matches([',', ' ', '\t', ')', '{']).strip_prefix("//")?.trim();
    (!comment.is_empty()).then(|| comment.to_owned())
}

/// The definition, what it trains and keeps, and the products that it costs.
fn equations(program: &Program, definition: &str) -> String {
    let (mut trained, mut products) = (Vec::new(), Vec::new());
    let mut note = |expr: &Expr| {
        each(expr, &mut |expr| match (&expr.node, &expr.shape().columns) {
            (Node::Linear { name, x, bias, .. }, Some(output)) => {
                let input = x.shape().columns.as_ref().invariant("a linear map was checked to be of rows");
                trained.push(format!("{name}.weight [{output}, {input}]"));
                match bias.as_ref().map(|bias| &bias.node) {
                    None | Some(NumNode::Constant(Number::Bool(false))) => {}
                    Some(NumNode::Constant(_)) => trained.push(format!("{name}.bias [{output}]")),
                    Some(_) => trained.push(format!("{name}.bias [{output}] if it is asked for")),
                }
                products.push(format!("[tokens, {input}] x [{input}, {output}]"));
            }
            (Node::Parameter { name, .. }, _) => trained.push(format!("{name} {}", expr.shape())),
            (Node::Product { left, .. }, Some(output)) => {
                let [rows, input] = [&left.shape().rows, &left.shape().columns];
                let rows = rows.as_ref().map_or_else(|| "tokens".to_owned(), ToString::to_string);
                let input = input.as_ref().invariant("a product was checked to be of rows");
                products.push(format!("[{rows}, {input}] x [{input}, {output}]"));
            }
            _ => {}
        });
    };
    for step in &program.steps {
        match &step.action {
            // Nothing is trained in a `repeat`.
            Action::Number { .. } | Action::State { .. } | Action::Repeat { .. } | Action::Assign { .. } => {}
            Action::Tensor { value, .. } | Action::Update { value, .. } | Action::Aux { value, .. } => note(value),
            Action::TopK { x, .. } => note(x),
        }
    }
    program.returned.expressions(true, true).into_iter().for_each(note);
    let tables = program.tables.iter().map(|table| format!("{} i32 [{}]", table.name, entries(table)));
    let states = program.states.iter().map(|state| format!("{} {}", state.name, state.shape));
    let states: Vec<String> = states.chain(tables).collect();
    let list = |words: &[String]| if words.is_empty() { "none".to_owned() } else { words.join(", ") };
    let (trained, states, products) = (list(&trained), list(&states), list(&products));
    format!("{definition}\nParameters: {trained}. State: {states}.\nCost in products: {products}.")
}

/// Calls `f` for an expression and everything inside, whatever the conditions.
fn each<'e>(expr: &'e Expr, f: &mut impl FnMut(&'e Expr)) {
    f(expr);
    match &expr.node {
        Node::If(branches, otherwise) => {
            branches.iter().for_each(|(_, value)| each(value, f));
            each(otherwise, f);
        }
        _ => expr.inner(|_| false).into_iter().for_each(|inner| each(inner, f)),
    }
}

/// How many numbers a table has, in the letters of the reference: an entry more than the vocabulary has tokens.
fn entries(table: &Table) -> &'static str {
    if table.choices.is_some() { "(V + 1) choices" } else { "V + 1" }
}

/// Whether everything that a router computes in a situation has a value; `choices` says whether to count those of
/// `top_k` too.
fn program_sound(program: &Program, situation: &Situation, choices: bool) -> Result<(), String> {
    for table in &program.tables {
        if let Some(number) = &table.choices {
            extent_sound(number, situation)?;
            let count = situation.size(number).unwrap_or(0);
            if choices && count > situation.experts {
                return Err(format!("chooses {count} of {} by a table", situation.experts));
            }
        }
        sound(&table.seed, situation)?;
        if situation.size(&table.seed).is_none() {
            return Err(format!("seeds the table `{}` with something else than a whole number from 0", table.name));
        }
    }
    steps_sound(program, &program.steps, situation, choices)?;
    program.returned.expressions(true, true).into_iter().try_for_each(|expr| expressions_sound(expr, situation))
}

/// Most statements that the rounds of all `repeat`s come to.
const MOST_ROUNDS: usize = 4096;

/// How many statements are gone through, those of each round of a `repeat` anew; a round without any is one too.
fn unrolled(steps: &[Step], situation: &Situation) -> usize {
    let counts = steps.iter().map(|step| match &step.action {
        Action::Repeat { count, steps } => {
            situation.size(count).unwrap_or(0).saturating_mul(unrolled(steps, situation).max(1))
        }
        _ => 1,
    });
    counts.fold(0, usize::saturating_add)
}

fn steps_sound(program: &Program, steps: &[Step], situation: &Situation, choices: bool) -> Result<(), String> {
    for step in steps {
        match &step.action {
            Action::Number { value, .. } => sound(value, situation)?,
            Action::TopK { x, k, .. } => {
                expressions_sound(x, situation)?;
                if choices {
                    choices_sound(x, k, situation)?;
                }
            }
            Action::Tensor { value, .. } | Action::Update { value, .. } | Action::Assign { value, .. } => {
                expressions_sound(value, situation)?;
            }
            Action::Aux { weight, value, .. } => {
                sound(weight, situation)?;
                expressions_sound(value, situation)?;
            }
            Action::State { at } => {
                let state = &program.states[*at];
                sound(&state.start, situation)?;
                state.columns.iter().try_for_each(|columns| extent_sound(columns, situation))?;
            }
            Action::Repeat { count, steps: inner } => {
                sound(count, situation)?;
                if situation.size(count).is_none_or(|count| count < 1) {
                    return Err("goes round a `repeat` less than once with these arguments".to_owned());
                }
                let all = unrolled(std::slice::from_ref(step), situation);
                if all > MOST_ROUNDS {
                    return Err(format!("goes through {all} statements of a `repeat`, more than {MOST_ROUNDS}"));
                }
                steps_sound(program, inner, situation, choices)?;
            }
        }
    }
    Ok(())
}

/// Whether a number can be computed.
fn sound(num: &Num, situation: &Situation) -> Result<(), String> {
    match situation.number(num) {
        Ok(_) => Ok(()),
        Err(fault) => Err(match fault.reason {
            NoResult::DivisionByZero => "divides by 0 with these arguments".to_owned(),
            NoResult::TooLarge => "computes a number that is too large or none with these arguments".to_owned(),
            NoResult::WrongKind => "cannot be computed with these arguments".to_owned(),
        }),
    }
}

/// Most columns of a tensor of a router: as many experts as a layer can have.
const MOST_COLUMNS: i64 = 65_536;

/// Whether a number can be an extent.
fn extent_sound(num: &Num, situation: &Situation) -> Result<(), String> {
    sound(num, situation)?;
    match situation.number(num) {
        Ok(Number::Int(value)) if value < 1 => Err(format!("would have a tensor of {value} columns")),
        Ok(Number::Int(value)) if value > MOST_COLUMNS => {
            Err(format!("would have a tensor of {value} columns, more than {MOST_COLUMNS}"))
        }
        _ => Ok(()),
    }
}

/// Whether a row has as many elements as are to be chosen from it.
fn choices_sound(x: &Expr, k: &Num, situation: &Situation) -> Result<(), String> {
    extent_sound(k, situation)?;
    // Where rows have no extent, that is said of what computes them.
    let columns = x.shape().columns.as_ref().and_then(|columns| situation.columns(columns));
    match (situation.size(k), columns) {
        (Some(k), Some(columns)) if k > columns => Err(format!("chooses {k} of {columns}")),
        _ => Ok(()),
    }
}

/// Whether everything in an expression that is computed has a value.
fn expressions_sound(expr: &Expr, situation: &Situation) -> Result<(), String> {
    match &expr.node {
        Node::Number(number) => sound(number, situation)?,
        Node::Linear { width, bias, .. } => {
            extent_sound(width, situation)?;
            bias.iter().try_for_each(|bias| sound(bias, situation))?;
        }
        Node::Parameter { rows, columns, start, .. } => {
            start.iter().try_for_each(|start| sound(start, situation))?;
            rows.iter().chain(columns).try_for_each(|extent| extent_sound(extent, situation))?;
        }
        Node::Noise { columns, .. } | Node::Identity(columns) => extent_sound(columns, situation)?,
        Node::Filled { columns, .. } => columns.iter().try_for_each(|columns| extent_sound(columns, situation))?,
        Node::KeepTopK(x, k, Over::Columns) => choices_sound(x, k, situation)?,
        Node::KeepTopK(_, k, _) => sound(k, situation)?,
        Node::Quantile(_, q, _) => {
            sound(q, situation)?;
            match situation.float(q) {
                Some(q) if !(0.0..=1.0).contains(&q) => {
                    return Err(format!("asks for the quantile {q}, which is not between 0 and 1"));
                }
                _ => {}
            }
        }
        Node::If(branches, _) => branches.iter().try_for_each(|(condition, _)| sound(condition, situation))?,
        _ => {}
    }
    let inner = expr.inner(|condition| situation.holds(condition));
    inner.into_iter().try_for_each(|inner| expressions_sound(inner, situation))
}
