//! From the syntax tree of a router to its program, with every fault reported at its place.
//!
//! The check is done once for a definition, whatever arguments it will be given: shapes are made of names. What is
//! wrong with particular arguments (more choices than experts) is found where the router is used.

mod calls;

use indexmap::IndexMap;
use moec_ir::{Binary, Unary, internal_error};
use moec_syntax::{
    self as ast, BinaryOperator as B, Code, Diagnostic, ExprKind, RouterStatement, Span, UnaryOperator, did_you_mean,
};

use super::functions::{self, ROUTER_RESULTS, RouterFunction};
use super::kinds::{Columns, Extent, Kind, Of, Shape};
use super::program::{Action, Assigned, Expr, Node, Num, NumNode, Program, Returned, State, Step, Table, TableKind};
use crate::arithmetic::Number;
use crate::words::listed;
use calls::Given;

/// Names that mean something in every router, and what.
const BUILT_IN: [(&str, &str); 9] = [
    ("x", "the activations, [tokens, width]"),
    ("experts", "the number of experts"),
    ("tokens", "the number of tokens"),
    ("sequence_length", "the number of tokens of a sequence"),
    ("width", "the number of channels"),
    ("training", "whether this is a training step"),
    ("token_ids", "the numbers of the tokens in the vocabulary, [tokens]"),
    ("previous_ids", "the numbers of the tokens before, [tokens]; -1 for the first of a sequence"),
    ("position", "the position of each token in its sequence, [tokens]"),
];

/// Names of parts of the `moe` layer, which a trained tensor must not take.
const PARTS_OF_MOE: [&str; 4] = ["experts", "shared", "shared_gate", "latent"];

/// The types that a parameter can have.
pub(super) const TYPES: [&str; 3] = ["int", "float", "bool"];

/// Checks a definition; `None` if it has faults.
pub(super) fn check(router: &ast::Router, losses: &[&str], report: &mut dyn FnMut(Diagnostic)) -> Option<Program> {
    let mut checker = Checker {
        router,
        losses,
        report,
        faulty: false,
        names: IndexMap::new(),
        tensors: IndexMap::new(),
        parameters: Vec::new(),
        states: Vec::new(),
        tables: Vec::new(),
        linears: IndexMap::new(),
        varying: Vec::new(),
        loops: Vec::new(),
        closed: Vec::new(),
        spelt: IndexMap::new(),
        updated: IndexMap::new(),
        aux: IndexMap::new(),
        steps: Vec::new(),
        number_slots: 0,
        tensor_slots: 0,
    };
    checker.parameters();
    let returned = checker.statements();
    if checker.faulty {
        return None;
    }
    checker.unused();
    let Checker { parameters, states, tables, spelt, steps, number_slots, tensor_slots, .. } = checker;
    let returned = returned?;
    Some(Program { parameters, states, tables, spelt, steps, number_slots, tensor_slots, returned })
}

/// What a name stands for.
#[derive(Clone, Debug)]
enum Meaning {
    Number(NumNode, Kind),
    Slot(usize, Kind),
    State(usize, Shape),
    Table(usize, Kind),
    /// A fault made it unknown; that has been reported.
    Unknown,
}

struct Bound {
    meaning: Meaning,
    span: Span,
    used: bool,
}

struct Checker<'a, 'r> {
    router: &'a ast::Router,
    /// Names of the balance losses, which a loss of the router must not take.
    losses: &'a [&'a str],
    report: &'r mut dyn FnMut(Diagnostic),
    /// Whether there is an error.
    faulty: bool,
    names: IndexMap<&'a str, Bound>,
    /// Names of trained tensors and states, with where they were given.
    tensors: IndexMap<String, Span>,
    parameters: Vec<String>,
    states: Vec<State>,
    tables: Vec<Table>,
    /// The linear maps that have names: what their tensors are called, and the shape of their weights.
    linears: IndexMap<usize, (String, Shape)>,
    /// The numbers with names that are others in training than when sampling.
    varying: Vec<usize>,
    /// The counts of the `repeat`s around a statement, outermost first.
    loops: Vec<Span>,
    /// Names of bodies of `repeat`s that are behind.
    closed: Vec<(&'a str, Bound)>,
    spelt: IndexMap<String, Num>,
    updated: IndexMap<&'a str, Span>,
    aux: IndexMap<&'a str, Span>,
    steps: Vec<Step>,
    number_slots: usize,
    tensor_slots: usize,
}

impl<'a> Checker<'a, '_> {
    /// Reports an error.
    fn fault<T>(&mut self, diagnostic: Diagnostic) -> Option<T> {
        self.faulty = true;
        (self.report)(diagnostic);
        None
    }

    // Names.

    fn bind(&mut self, name: &'a ast::Ident, meaning: Meaning) {
        if name.name == "_" {
            return;
        }
        if let Some((_, what)) = BUILT_IN.iter().find(|(known, _)| *known == name.name) {
            let message = format!("`{name}` has a meaning in every router");
            let d = Diagnostic::new(Code::DuplicateDefinition, message).primary(name.span, "cannot be given another");
            self.fault::<()>(d.note(format!("`{name}`: {what}")));
            return;
        }
        if let Some(first) = self.names.get(name.name.as_str()) {
            let d = Diagnostic::new(Code::DuplicateDefinition, format!("`{name}` is defined twice"))
                .primary(name.span, "defined again here")
                .secondary(first.span, "first defined here")
                .help("give one of them another name");
            self.fault::<()>(d);
            return;
        }
        self.names.insert(&name.name, Bound { meaning, span: name.span, used: false });
    }

    fn name(&mut self, name: &'a str, span: Span) -> Option<Expr> {
        let number = |node, kind| Some(Expr { node: Node::Number(Num { node, span }), kind, span });
        let tensor = |node, shape| Some(Expr { node, kind: Kind::Tensor(shape), span });
        let index = |node, of| Some(Expr { node, kind: Kind::Index(Shape::tokens(), of), span });
        match name {
            "x" => {
                return tensor(Node::Activations, Shape::rows(Columns::Features(Extent::named("width"))));
            }
            "experts" => return number(NumNode::Experts, Kind::Int(Extent::named("experts"))),
            "width" => return number(NumNode::Width, Kind::Int(Extent::named("width"))),
            "tokens" | "sequence_length" => {
                let node = if name == "tokens" { NumNode::Tokens } else { NumNode::SequenceLength };
                return number(node, Kind::Float);
            }
            "training" => return number(NumNode::Training, Kind::Bool),
            "token_ids" => return index(Node::TokenIds, Of::Vocabulary),
            "previous_ids" => return index(Node::PreviousIds, Of::Vocabulary),
            "position" => return index(Node::Position, Of::Positions),
            _ => {}
        }
        if let Some(bound) = self.names.get_mut(name) {
            bound.used = true;
            return match bound.meaning.clone() {
                Meaning::Number(node, kind) => number(node, kind),
                Meaning::Slot(slot, kind) => Some(Expr { node: Node::Slot(slot), kind, span }),
                Meaning::State(at, shape) => tensor(Node::State(at), shape),
                Meaning::Table(at, kind) => Some(Expr { node: Node::Table(at), kind, span }),
                Meaning::Unknown => None,
            };
        }
        let mut d =
            Diagnostic::new(Code::UnknownName, format!("`{name}` is not defined")).primary(span, "unknown name");
        let later = self.router.statements.iter().filter(|s| s.span() > span).find_map(|s| match s {
            RouterStatement::Let(node) => node.names.iter().find(|n| n.name == name),
            RouterStatement::State(node) | RouterStatement::Table(node) => Some(&node.name).filter(|n| n.name == name),
            _ => None,
        });
        if let Some(later) = later {
            return self.fault(d.secondary(later.span, "defined here, after its use"));
        }
        if let Some(function) = functions::find(name) {
            return self.fault(d.help(format!("the function is written `{}`", function.form)));
        }
        let known: Vec<&str> = self.names.keys().copied().chain(BUILT_IN.map(|(name, _)| name)).collect();
        d = match did_you_mean(name, known.iter().copied()) {
            Some(near) => d.help(format!("did you mean `{near}`?")).patch(span, near, "use the name that is defined"),
            None => d.note(format!("defined here: {}", listed(known.iter().copied()))),
        };
        self.fault(d)
    }

    /// Warns about names that nothing reads.
    fn unused(&mut self) {
        let bound = self.names.iter().map(|(name, bound)| (*name, bound));
        let mut unused: Vec<(&str, Span)> = bound
            .chain(self.closed.iter().map(|(name, bound)| (*name, bound)))
            .filter(|(name, bound)| !bound.used && !name.starts_with('_') && !self.updated.contains_key(*name))
            .map(|(name, bound)| (name, bound.span))
            .collect();
        unused.sort_by_key(|(_, span)| *span);
        for (name, span) in unused {
            let d = Diagnostic::new(Code::UnusedLet, format!("`{name}` is never used")).primary(span, "defined here");
            (self.report)(d.help(format!("remove it, or name it `_{name}` to keep it")));
        }
    }

    // Parameters and statements.

    fn parameters(&mut self) {
        let router = self.router;
        for parameter in router.parameters() {
            let kind = match parameter.ty.name.as_str() {
                "int" => Some(Kind::Int(Extent::named(&parameter.name.name))),
                "float" => Some(Kind::Float),
                "bool" => Some(Kind::Bool),
                other => {
                    let d = Diagnostic::new(Code::UnknownValue, format!("a parameter cannot be `{other}`"))
                        .primary(parameter.ty.span, "expected `int`, `float` or `bool`");
                    let near = match other {
                        "integer" | "usize" | "number" => Some("int"),
                        "real" | "double" | "f32" | "f64" => Some("float"),
                        _ => did_you_mean(other, TYPES),
                    };
                    match near {
                        Some(near) => self.fault(d.patch(parameter.ty.span, near, "use a type that it can have")),
                        None => self.fault(d),
                    }
                }
            };
            let at = self.parameters.len();
            self.parameters.push(parameter.name.name.clone());
            let meaning = kind.map_or(Meaning::Unknown, |kind| Meaning::Number(NumNode::Parameter(at), kind));
            self.bind(&parameter.name, meaning);
            if let Some(default) = &parameter.default {
                self.default(parameter, default);
            }
        }
    }

    /// A default is a plain number of the parameter's type.
    fn default(&mut self, parameter: &ast::Parameter, default: &ast::Expr) {
        if default_value(parameter).is_some() || !TYPES.contains(&parameter.ty.name.as_str()) {
            return;
        }
        let wanted = match parameter.ty.name.as_str() {
            "int" => "an integer",
            "float" => "a number",
            _ => "`true` or `false`",
        };
        let message = format!("the default of `{}` must be {wanted}", parameter.name);
        let d = Diagnostic::new(Code::WrongType, message).primary(default.span, format!("expected {wanted}"));
        self.fault::<()>(d.note("a default is written out, as in `scale: float = 1.0`"));
    }

    fn statements(&mut self) -> Option<Returned> {
        let router = self.router;
        let mut returned = None;
        let mut end: Option<Span> = None;
        for statement in &router.statements {
            if let Some(end) = end {
                let d = Diagnostic::new(Code::ReturnForm, "a router ends with its `return`")
                    .primary(statement.span(), "this comes after it")
                    .secondary(end, "the end");
                return self.fault(d);
            }
            if let RouterStatement::Return(node) = statement {
                end = Some(statement.span());
                returned = self.returned(node);
            } else {
                self.statement(statement);
            }
        }
        if end.is_none() {
            let d = Diagnostic::new(Code::ReturnForm, format!("router `{}` returns nothing", router.name))
                .primary(router.name.span, "expected a `return` at the end of its body");
            return self.fault(d.help("for example `return token_choice(experts: chosen, weights: softmax(top))`"));
        }
        returned
    }

    /// A statement but the last one.
    fn statement(&mut self, statement: &'a RouterStatement) {
        let span = statement.span();
        if let (Some(&count), Some((word, at))) = (self.loops.last(), said_once(statement)) {
            let d = Diagnostic::new(Code::RepeatForm, format!("`{word}` does not stand in a `repeat`"))
                .primary(at, "this is said once")
                .secondary(count, "and here statements are gone through several times");
            self.fault::<()>(d.help("move it in front of the `repeat` or behind it"));
            return;
        }
        let action = match statement {
            RouterStatement::Let(node) => self.binding(node),
            RouterStatement::State(node) => {
                self.state(node);
                None
            }
            RouterStatement::Table(node) => {
                self.table(node);
                None
            }
            RouterStatement::Update(node) => self.update(node),
            RouterStatement::Aux(node) => self.aux(node),
            RouterStatement::Repeat(node) => self.repeat(node),
            RouterStatement::Assign(node) => self.assign(node),
            RouterStatement::Return(_) => None,
        };
        self.steps.extend(action.map(|action| Step { action, span }));
    }

    /// `repeat count { .. }`: names that are bound inside are known there only.
    fn repeat(&mut self, node: &'a ast::RouterRepeat) -> Option<Action> {
        let count = self.expression(&node.count).and_then(|count| self.rounds(count));
        let (outside, steps) = (self.names.len(), std::mem::take(&mut self.steps));
        self.loops.push(node.count.span);
        node.statements.iter().for_each(|statement| self.statement(statement));
        self.loops.pop();
        let inside = self.names.drain(outside..);
        self.closed.extend(inside);
        let steps = std::mem::replace(&mut self.steps, steps);
        Some(Action::Repeat { count: count?, steps })
    }

    /// How often a `repeat` goes through its statements.
    fn rounds(&mut self, count: Expr) -> Option<Num> {
        match (count.node, count.kind) {
            (Node::Number(number), Kind::Int(extent)) if extent.known().is_none_or(|known| known >= 1) => Some(number),
            (Node::Number(_), Kind::Int(extent)) => {
                let d = Diagnostic::new(Code::OutOfRange, format!("a `repeat` cannot go round {extent} times"));
                self.fault(d.primary(count.span, "expected 1 or more"))
            }
            (_, kind) => {
                let d = Diagnostic::new(Code::WrongKind, "the count of a `repeat` must be an integer");
                let d = d.primary(count.span, format!("this is {kind}"));
                self.fault(d.note("how often it goes round is known before anything is computed"))
            }
        }
    }

    /// `NAME = EXPRESSION` in a `repeat`: another value of the same shape for a tensor from before it.
    fn assign(&mut self, node: &'a ast::Let) -> Option<Action> {
        let value = self.expression(&node.value);
        let name = &node.name;
        let Some((meaning, span)) = self.names.get(name.name.as_str()).map(|b| (b.meaning.clone(), b.span)) else {
            let d = Diagnostic::new(Code::UnknownName, format!("`{name}` is not defined"))
                .primary(name.span, "unknown name")
                .patch(name.span.before(), "let ", "to bind a name for this round, write `let`");
            return self.fault(d.help("what goes on from round to round starts with a `let` in front of the `repeat`"));
        };
        let (slot, kind) = match meaning {
            Meaning::Slot(slot, kind) => (slot, kind),
            Meaning::Unknown => return None,
            Meaning::Number(..) => {
                let d =
                    Diagnostic::new(Code::RepeatForm, format!("`{name}` is a number that is known at compile time"))
                        .primary(name.span, "cannot change from round to round")
                        .secondary(span, "defined here");
                return self.fault(d.help("start it as a tensor, such as `zeros()` or `ones(experts)`"));
            }
            Meaning::State(..) | Meaning::Table(..) => {
                let d = Diagnostic::new(Code::RepeatForm, format!("`{name}` cannot be given another value"))
                    .primary(name.span, "only what a `let` names can")
                    .secondary(span, "defined here");
                return self.fault(d.help("a state changes behind a step, with `update`"));
            }
        };
        let value = match (&kind, value?) {
            (Kind::Tensor(shape), value) => {
                let value = self.tensor(value, &format!("`{name}`"))?;
                self.fits(&value, shape, &format!("`{name}`"))?;
                value
            }
            (kind, value) if *kind == value.kind => value,
            (kind, value) => {
                let d = Diagnostic::new(Code::WrongKind, format!("`{name}` must stay {kind}"))
                    .primary(value.span, format!("this is {}", value.kind))
                    .secondary(span, "defined here");
                return self.fault(d);
            }
        };
        Some(Action::Assign { slot, value })
    }

    /// `table NAME = balanced(choices: k)`
    fn table(&mut self, node: &'a ast::Let) {
        self.take_name(&node.name.name, node.name.span);
        let kind = self.table_form(node);
        let meaning = kind.map_or(Meaning::Unknown, |kind| Meaning::Table(self.tables.len() - 1, kind));
        self.bind(&node.name, meaning);
    }

    /// What a table is made of; what it gives for a token.
    fn table_form(&mut self, node: &'a ast::Let) -> Option<Kind> {
        let call;
        let called = match &node.value.kind {
            ExprKind::Call(call) => call,
            ExprKind::Name(name) => {
                let name = ast::Ident { name: name.clone(), span: node.value.span };
                call = ast::Call { name, arguments: None, body: None, span: node.value.span };
                &call
            }
            _ => return self.no_table(node.value.span),
        };
        let Some(function) = functions::find_table(&called.name.name) else { return self.no_table(called.name.span) };
        let mut choices = None;
        let mut seed = Num { node: NumNode::Constant(Number::Int(0)), span: node.value.span };
        // The arguments are those of the tree, which outlives a name that was made a call.
        if let ExprKind::Call(call) = &node.value.kind {
            let given = self.given(function, call)?;
            if given.get("choices").is_some() {
                let (number, extent) = self.extent(&given, "choices")?;
                self.lasting(&number, "table")?;
                choices = Some((number, extent));
            }
            if let Some(given) = given.get("seed") {
                seed = self.number(given)?;
                self.lasting(&seed, "table")?;
            }
        }
        let made = match function.name {
            "random" => TableKind::Random,
            "balanced" => TableKind::Balanced,
            _ => TableKind::Frequency,
        };
        let kind = match (&choices, made) {
            (_, TableKind::Frequency) => Kind::Tensor(Shape::tokens()),
            (None, _) => Kind::Index(Shape::tokens(), Of::Columns(Columns::Experts)),
            (Some((_, extent)), _) => {
                Kind::Index(Shape::rows(Columns::Choices(extent.clone())), Of::Columns(Columns::Experts))
            }
        };
        let choices = choices.map(|(number, _)| number);
        self.tables.push(Table { name: node.name.name.clone(), made, choices, seed, span: node.span });
        Some(Kind::Table(Box::new(kind)))
    }

    fn no_table<T>(&mut self, span: Span) -> Option<T> {
        let d = Diagnostic::new(Code::UnknownValue, "a table is `random`, `balanced` or `frequency`");
        let d = d.primary(span, "expected one of these");
        self.fault(d.help("for example `table experts_of = balanced(choices: k)`"))
    }

    fn binding(&mut self, node: &'a ast::RouterLet) -> Option<Action> {
        if let ExprKind::Call(call) = &node.value.kind
            && call.name.name == "top_k"
        {
            return self.top_k(node, call);
        }
        let (first, rest) = node.names.split_first()?;
        if let Some(second) = rest.first() {
            let d = Diagnostic::new(Code::WrongKind, "only `top_k` gives two results")
                .primary(second.span, "there is no second result")
                .secondary(node.value.span, "this gives one");
            self.fault::<()>(d);
        }
        let value = self.named_expression(&node.value, Some(first));
        for name in rest {
            self.bind(name, Meaning::Unknown);
        }
        let Some(value) = value else {
            self.bind(first, Meaning::Unknown);
            return None;
        };
        match value.node {
            // Another name for a table.
            Node::Table(at) => {
                self.bind(first, Meaning::Table(at, value.kind));
                None
            }
            Node::Number(number) => {
                let slot = self.number_slots;
                self.number_slots += 1;
                let varies = self.varies(&number);
                self.varying.extend(varies.then_some(slot));
                self.bind(first, Meaning::Number(NumNode::Slot(slot), value.kind));
                Some(Action::Number { slot, value: number })
            }
            _ => {
                let slot = self.tensor_slot();
                if let (Node::Linear { name, x, .. }, Some(rows)) = (&value.node, &value.shape().columns)
                    && let Some(columns) = &x.shape().columns
                {
                    self.linears.insert(slot, (name.clone(), Shape::matrix(rows.clone(), columns.clone())));
                }
                self.bind(first, Meaning::Slot(slot, value.kind.clone()));
                Some(Action::Tensor { slot, value })
            }
        }
    }

    fn tensor_slot(&mut self) -> usize {
        self.tensor_slots += 1;
        self.tensor_slots - 1
    }

    fn top_k(&mut self, node: &'a ast::RouterLet, call: &'a ast::Call) -> Option<Action> {
        let parts = self.top_k_parts(call);
        let (values, indices) = match &node.names[..] {
            [values, indices] => (values, indices),
            names => {
                let message = format!("`top_k` gives two results, not {}", names.len());
                let d = Diagnostic::new(Code::WrongKind, message)
                    .primary(names[0].span.to(names[names.len() - 1].span), "expected two names: values and indices")
                    .help("for example `let top, chosen = top_k(x, k)`, with `_` for a result that is not needed");
                self.fault::<()>(d);
                names.iter().for_each(|name| self.bind(name, Meaning::Unknown));
                return None;
            }
        };
        let Some((x, k, shape, of)) = parts else {
            self.bind(values, Meaning::Unknown);
            self.bind(indices, Meaning::Unknown);
            return None;
        };
        let (value_slot, index_slot) = (self.tensor_slot(), self.tensor_slot());
        self.bind(values, Meaning::Slot(value_slot, Kind::Tensor(shape.clone())));
        self.bind(indices, Meaning::Slot(index_slot, Kind::Index(shape, of)));
        Some(Action::TopK { values: value_slot, indices: index_slot, x, k })
    }

    fn top_k_parts(&mut self, call: &'a ast::Call) -> Option<(Expr, Num, Shape, Of)> {
        let given = self.given(functions::find("top_k")?, call)?;
        let (x, k) = (self.row(&given, "x"), self.extent(&given, "k"));
        let ((x, columns), (k, extent)) = (x?, k?);
        Some((x, k, Shape::rows(Columns::Choices(extent)), Of::Columns(columns)))
    }

    fn state(&mut self, node: &'a ast::Let) {
        let value = self.expression(&node.value);
        self.take_name(&node.name.name, node.name.span);
        let Some(value) = value else {
            self.bind(&node.name, Meaning::Unknown);
            return;
        };
        let shape = match &value.kind {
            Kind::Tensor(shape) => shape.clone(),
            Kind::Int(_) | Kind::Float => Shape::SCALAR,
            Kind::Bool | Kind::Index(..) | Kind::Table(_) => {
                let d = Diagnostic::new(Code::StateForm, format!("the state `{}` must hold numbers", node.name));
                self.fault::<()>(d.primary(node.value.span, format!("this is {}", value.kind)));
                self.bind(&node.name, Meaning::Unknown);
                return;
            }
        };
        self.bind(&node.name, Meaning::State(self.states.len(), shape.clone()));
        if shape.tokens {
            let message = format!("the state `{}` has a number for every token", node.name);
            let d = Diagnostic::new(Code::StateForm, message).primary(node.value.span, format!("this is {shape}"));
            self.fault::<()>(
                d.note("a state is kept from batch to batch, and the tokens of the next batch are others"),
            );
        }
        let start = uniform(&value);
        if shape.rows.is_some() {
            let message = format!("the state `{}` is a matrix", node.name);
            let d = Diagnostic::new(Code::StateForm, message).primary(node.value.span, format!("this is {shape}"));
            self.fault::<()>(d.note("a state is a number or a vector"));
            return;
        }
        let columns = shape.columns.as_ref().and_then(|_| columns_of(&value));
        if let Some(columns) = &columns {
            self.lasting(columns, "state");
        }
        match start {
            Some(start) => {
                self.steps.push(Step { action: Action::State { at: self.states.len() }, span: node.span });
                self.states.push(State { name: node.name.name.clone(), shape, columns, start });
            }
            None => {
                let message = format!("the state `{}` must start from constants", node.name);
                let d =
                    Diagnostic::new(Code::StateForm, message).primary(node.value.span, "this is computed from others");
                self.fault::<()>(d.help("for example `zeros(experts)`, `0.5 * ones(experts)` or `0.0`"));
            }
        }
    }

    fn update(&mut self, node: &'a ast::Let) -> Option<Action> {
        let value = self.expression(&node.value);
        let name = &node.name;
        let target = self.names.get(name.name.as_str()).map(|bound| (bound.meaning.clone(), bound.span));
        let (at, shape) = match target {
            Some((Meaning::State(at, shape), _)) => (at, shape),
            Some((Meaning::Unknown, _)) => return None,
            Some((_, span)) => {
                let d = Diagnostic::new(Code::StateForm, format!("`{name}` is no state"))
                    .primary(name.span, "only a state can be updated")
                    .secondary(span, "defined here");
                return self.fault(d);
            }
            None => {
                let states = self.names.iter().filter(|(_, bound)| matches!(bound.meaning, Meaning::State(..)));
                let states: Vec<&str> = states.map(|(name, _)| *name).collect();
                let d = Diagnostic::new(Code::StateForm, format!("there is no state named `{name}`"))
                    .primary(name.span, "unknown state");
                return match (did_you_mean(&name.name, states.iter().copied()), states.is_empty()) {
                    (Some(near), _) => self.fault(d.patch(name.span, near, "use the name that it has")),
                    (None, true) => self.fault(d.help(format!("declare it: `state {name} = zeros(experts)`"))),
                    (None, false) => self.fault(d.note(format!("the states are {}", listed(states)))),
                };
            }
        };
        if let Some(first) = self.updated.insert(&name.name, name.span) {
            let d = Diagnostic::new(Code::StateForm, format!("`{name}` is updated twice"))
                .primary(name.span, "updated again here")
                .secondary(first, "first updated here");
            return self.fault(d);
        }
        let value = self.tensor(value?, "an update")?;
        self.fits(&value, &shape, &format!("the state `{name}`"))?;
        Some(Action::Update { state: at, value })
    }

    fn aux(&mut self, node: &'a ast::Aux) -> Option<Action> {
        let name = &node.name;
        let value = self.expression(&node.value);
        let mut weight = Some(Num { node: NumNode::Constant(Number::Float(1.0)), span: name.span });
        for argument in node.arguments.iter().flat_map(|arguments| &arguments.list) {
            if argument.name.as_ref().is_some_and(|given| given.name == "weight") {
                weight = self.number(&argument.value);
                continue;
            }
            let d = Diagnostic::new(Code::UnknownArgument, "a loss takes nothing but its `weight`");
            let d = d.primary(argument.span, "unknown argument").help(format!("write `aux {name}(weight: 0.01) = ..`"));
            self.fault::<()>(d);
        }
        if let Some(&first) = self.aux.get(name.name.as_str()) {
            let d = Diagnostic::new(Code::DuplicateDefinition, format!("loss `{name}` is defined twice"))
                .primary(name.span, "defined again here")
                .secondary(first, "first defined here");
            self.fault::<()>(d.help("give one of them another name"));
        }
        self.aux.insert(&name.name, name.span);
        if self.losses.contains(&name.name.as_str()) {
            let d = Diagnostic::new(Code::NameTaken, format!("`{name}` is a balance loss of its own"))
                .primary(name.span, "this name is taken")
                .help("give the loss of the router another name");
            self.fault::<()>(d);
        }
        let value = self.tensor(value?, "a loss")?;
        if let Kind::Tensor(shape) = &value.kind
            && !shape.is_scalar()
        {
            let d = Diagnostic::new(Code::LossForm, format!("the loss `{name}` must be a single number"))
                .primary(value.span, format!("this is {shape}"));
            return self.fault(d.help("reduce it with `mean(..)` or `sum(..)`"));
        }
        Some(Action::Aux { name: name.name.clone(), weight: weight?, value })
    }

    // The result.

    fn returned(&mut self, node: &'a ast::Return) -> Option<Returned> {
        let (function, call) = self.result_form(node)?;
        let given = self.given(function, call)?;
        let assignment = if function.name == "token_choice" {
            self.token_choice(&given)
        } else {
            self.over_experts(&given, "gates").flatten().map(|gates| Assigned::DenseGates { gates: Box::new(gates) })
        };
        let (logits, probabilities) = (self.over_experts(&given, "logits"), self.over_experts(&given, "probabilities"));
        let (noisy, std) = (self.over_experts(&given, "noisy"), self.over_experts(&given, "std"));
        for (have, lack, name, other) in [(&noisy, &std, "noisy", "std"), (&std, &noisy, "std", "noisy")] {
            if have.is_some() && lack.is_none() {
                let d = Diagnostic::new(Code::MissingArgument, format!("`{name}` stands together with `{other}`"))
                    .primary(given.get(name).map_or(call.span, |e| e.span), format!("there is no `{other}`"));
                self.fault::<()>(
                    d.note("the `load` loss needs the noisy scores and the standard deviation of the noise"),
                );
            }
        }
        // Present and faulty is not the same as absent.
        let (logits, probabilities) =
            (logits.map_or(Some(None), |v| v.map(Some)), probabilities.map_or(Some(None), |v| v.map(Some)));
        let noisy = match (noisy, std) {
            (Some(noisy), Some(std)) => Some((noisy?, std?)),
            _ => None,
        };
        Some(Returned {
            assignment: assignment?,
            logits: logits?,
            probabilities: probabilities?,
            noisy,
            span: node.span,
        })
    }

    /// The form of result that a `return` is written in, with its call.
    fn result_form(&mut self, node: &'a ast::Return) -> Option<(&'static RouterFunction, &'a ast::Call)> {
        let forms: Vec<String> = ROUTER_RESULTS.iter().map(|result| format!("`return {}`", result.form)).collect();
        let forms = format!("write {}", forms.join(" or "));
        let ExprKind::Call(call) = &node.value.kind else {
            let mut d = Diagnostic::new(Code::ReturnForm, "a router returns an assignment of tokens to experts")
                .primary(node.value.span, "this is none");
            if let ExprKind::If { .. } = node.value.kind {
                d = d.help("choose between the values inside, as in `weights: if training { a } else { b }`");
            }
            return self.fault(d.help(forms));
        };
        if let Some(function) = functions::find_result(&call.name.name) {
            return Some((function, call));
        }
        let name = &call.name;
        let mut d = Diagnostic::new(Code::ReturnForm, format!("a router cannot return `{name}`"))
            .primary(name.span, "no assignment of tokens to experts");
        if let Some(near) = did_you_mean(&name.name, ROUTER_RESULTS.iter().map(|result| result.name)) {
            d = d.patch(name.span, near, "use the name that it has");
        }
        self.fault(d.help(forms))
    }

    /// An argument with a number for each token and expert: `None` where it is not given, `Some(None)` after a fault.
    fn over_experts(&mut self, given: &Given<'a>, name: &str) -> Option<Option<Expr>> {
        let expr = given.get(name)?;
        let what = format!("`{name}`");
        let value = self.expression(expr).and_then(|value| self.tensor(value, &what));
        Some(value.filter(|value| self.fits(value, &Shape::rows(Columns::Experts), &what).is_some()))
    }

    fn token_choice(&mut self, given: &Given<'a>) -> Option<Assigned> {
        let experts = given.get("experts").and_then(|e| self.expression(e));
        let weights = given.get("weights").and_then(|e| self.expression(e));
        for name in ["experts", "weights"] {
            if given.get(name).is_none() {
                let d = Diagnostic::new(Code::MissingArgument, format!("`token_choice` needs `{name}`"))
                    .primary(given.call.name.span, format!("expected `{name}: ..`"));
                self.fault::<()>(d.note(format!("it is written `{}`", given.function.form)));
            }
        }
        let experts = experts?;
        let shape = match &experts.kind {
            Kind::Index(shape, Of::Columns(Columns::Experts)) if shape.tokens => shape.clone(),
            kind => {
                let d = Diagnostic::new(Code::WrongKind, "`experts` must be indices of experts for every token")
                    .primary(experts.span, format!("this is {kind}"))
                    .help("for example the second result of `let top, chosen = top_k(scores, k)`");
                return self.fault(d);
            }
        };
        let weights = weights?;
        let weights = self.tensor(weights, "`weights`")?;
        self.fits(&weights, &shape, "`weights`")?;
        Some(Assigned::TokenChoice { experts: Box::new(experts), weights: Box::new(weights) })
    }

    // Expressions.

    fn expression(&mut self, expr: &'a ast::Expr) -> Option<Expr> {
        self.named_expression(expr, None)
    }

    /// `name` is the `let` that the expression is bound to.
    fn named_expression(&mut self, expr: &'a ast::Expr, name: Option<&'a ast::Ident>) -> Option<Expr> {
        let span = expr.span;
        let constant = |value, kind| {
            let node = NumNode::Constant(value);
            Some(Expr { node: Node::Number(Num { node, span }), kind, span })
        };
        match &expr.kind {
            ExprKind::Int(value) => constant(Number::Int(*value), Kind::Int(Extent::constant(*value))),
            ExprKind::Float(value) => constant(Number::Float(*value), Kind::Float),
            ExprKind::Bool(value) => constant(Number::Bool(*value), Kind::Bool),
            ExprKind::Name(name) => self.name(name, span),
            ExprKind::Call(call) => self.call(call, name),
            ExprKind::Unary { operator, operand } => self.prefix(operator.value, operand, expr),
            ExprKind::Binary { operator, left, right } => {
                let sides = (self.expression(left), self.expression(right));
                let (a, b) = (sides.0?, sides.1?);
                self.binary(operator.value, operator.span, a, b, expr)
            }
            ExprKind::If { branches, otherwise } => self.choice(branches, otherwise, expr),
            ExprKind::String(_) | ExprKind::List(_) | ExprKind::Sequence(_) => {
                let what = match &expr.kind {
                    ExprKind::String(_) => "text",
                    ExprKind::List(_) => "a list",
                    _ => "a layer sequence",
                };
                let d = Diagnostic::new(Code::WrongKind, format!("{what} cannot be computed with"));
                self.fault(d.primary(span, "expected a number or a tensor"))
            }
        }
    }

    fn prefix(&mut self, operator: UnaryOperator, operand: &'a ast::Expr, expr: &'a ast::Expr) -> Option<Expr> {
        let (value, span) = (self.expression(operand)?, expr.span);
        let number = |node, kind| Some(Expr { node: Node::Number(Num { node, span }), kind, span });
        match (operator, value.node, value.kind) {
            (UnaryOperator::Not, Node::Number(x), Kind::Bool) => number(NumNode::Opposite(Box::new(x)), Kind::Bool),
            (UnaryOperator::Negate, Node::Number(x), Kind::Int(extent)) => {
                let negated = Num { node: NumNode::Negated(Box::new(x)), span };
                let extent = Extent::constant(0).plus(-1, &extent);
                let extent = extent.unwrap_or_else(|| self.spelt(expr.to_string(), &negated));
                number(negated.node, Kind::Int(extent))
            }
            (UnaryOperator::Negate, Node::Number(x), Kind::Float) => number(NumNode::Negated(Box::new(x)), Kind::Float),
            (UnaryOperator::Negate, node, kind) => {
                let value = self.tensor(Expr { node, kind, span: value.span }, "`-`")?;
                let kind = value.kind.clone();
                Some(Expr { node: Node::Unary(Unary::Neg, Box::new(value)), kind, span })
            }
            (UnaryOperator::Not, _, kind) => {
                let d = Diagnostic::new(Code::WrongKind, "`!` takes a boolean that is known at compile time")
                    .primary(value.span, format!("this is {kind}"));
                self.fault(match kind {
                    Kind::Tensor(_) => d.help("comparisons give 1 and 0: write `1 - condition`"),
                    _ => d,
                })
            }
        }
    }

    fn binary(&mut self, operator: B, at: Span, a: Expr, b: Expr, expr: &'a ast::Expr) -> Option<Expr> {
        let span = expr.span;
        let symbol = operator.symbol();
        if let (Node::Number(x), Node::Number(y)) = (&a.node, &b.node)
            && operator != B::Product
        {
            let node = NumNode::Binary(operator, Box::new(x.clone()), Box::new(y.clone()));
            let number = Num { node, span };
            let kind = self.number_kind(operator, at, (&a, &b), &number, expr)?;
            return Some(Expr { node: Node::Number(number), kind, span });
        }
        if matches!(operator, B::And | B::Or) {
            let side = if matches!(a.node, Node::Number(_)) { &b } else { &a };
            let d =
                Diagnostic::new(Code::WrongKind, format!("`{symbol}` takes booleans that are known at compile time"))
                    .primary(side.span, format!("this is {}", side.kind));
            let instead = if operator == B::And { "a * b" } else { "max(a, b)" };
            return self.fault(d.help(format!("comparisons give 1 and 0: write `{instead}`")));
        }
        let what = format!("`{symbol}`");
        let (a, b) = (self.tensor(a, &what), self.tensor(b, &what));
        let (a, b) = (a?, b?);
        if operator == B::Product {
            return self.product(a, b, at, span);
        }
        let shape = self.joined(&a, &b, symbol, at)?;
        let kind = Kind::Tensor(shape);
        let combined = |f, a: Expr, b: Expr| Node::Binary(f, Box::new(a), Box::new(b));
        let node = match operator {
            B::Add => combined(Binary::Add, a, b),
            B::Subtract => combined(Binary::Sub, a, b),
            B::Multiply => combined(Binary::Mul, a, b),
            B::Divide => combined(Binary::Div, a, b),
            B::Remainder => Node::Remainder(Box::new(a), Box::new(b)),
            B::Less => combined(Binary::Less, a, b),
            B::LessEqual => combined(Binary::LessEqual, a, b),
            B::Greater => combined(Binary::Less, b, a),
            B::GreaterEqual => combined(Binary::LessEqual, b, a),
            B::Equal => combined(Binary::Equal, a, b),
            B::NotEqual => {
                let equal = Expr { node: combined(Binary::Equal, a, b), kind: kind.clone(), span };
                Node::Not(Box::new(equal))
            }
            B::And | B::Or | B::Product => internal_error!("`{symbol}` of tensors was dealt with"),
        };
        Some(Expr { node, kind, span })
    }

    /// `x @ w`: along the axis that both have, which is the last of `x`, and of `w` the last or the first.
    fn product(&mut self, a: Expr, b: Expr, at: Span, span: Span) -> Option<Expr> {
        for side in [&a, &b] {
            if !side.shape().is_matrix() {
                let d = Diagnostic::new(Code::ShapeMismatch, "`@` multiplies rows with a matrix")
                    .primary(side.span, format!("this is {}", side.kind));
                return self.fault(d.help("for example `x @ w` with `let w = parameter(experts, width)`"));
            }
        }
        let (left, right) = (a.shape().clone(), b.shape().clone());
        let with_rows = left.columns == right.columns;
        let fits = !right.tokens && (with_rows || left.columns == right.rows);
        if !fits {
            let d = Diagnostic::new(Code::ShapeMismatch, format!("`@` cannot multiply {left} with {right}"))
                .primary(at, "these do not fit each other")
                .secondary(a.span, format!("{left}"))
                .secondary(b.span, format!("{right}"));
            let d = if right.tokens { d.note("what is on the right has no axis of tokens") } else { d };
            return self.fault(d.help("the last axis of the left side must be an axis of the right side"));
        }
        let columns = if with_rows { right.rows } else { right.columns };
        let shape = Shape { columns, ..left };
        let node = Node::Product { left: Box::new(a), right: Box::new(b), with_rows };
        Some(Expr { node, kind: Kind::Tensor(shape), span })
    }

    /// The kind of a combination of two numbers.
    fn number_kind(
        &mut self,
        operator: B,
        at: Span,
        (a, b): (&Expr, &Expr),
        number: &Num,
        expr: &'a ast::Expr,
    ) -> Option<Kind> {
        let logical = matches!(operator, B::And | B::Or);
        let equality = matches!(operator, B::Equal | B::NotEqual);
        let both_bool = a.kind == Kind::Bool && b.kind == Kind::Bool;
        for side in [a, b] {
            let is_bool = side.kind == Kind::Bool;
            if is_bool != logical && !(equality && both_bool) {
                let wanted = if logical { "booleans" } else { "numbers" };
                let d = Diagnostic::new(Code::WrongKind, format!("`{}` takes {wanted}", operator.symbol()));
                return self.fault(d.primary(side.span, format!("this is {}", side.kind)));
            }
        }
        if logical || operator.is_comparison() {
            return Some(Kind::Bool);
        }
        let (Kind::Int(left), Kind::Int(right)) = (&a.kind, &b.kind) else { return Some(Kind::Float) };
        let extent = match operator {
            B::Add => left.plus(1, right),
            B::Subtract => left.plus(-1, right),
            B::Multiply => left.times(right),
            _ => None,
        };
        if operator == B::Divide
            && let (Some(known), None) = (left.known(), right.known())
        {
            let d = Diagnostic::new(Code::IntegerDivision, "a division of integers drops the fraction")
                .primary(at, format!("both sides of this are integers, so `{expr}` is mostly 0"));
            let text = format!("{known}.0");
            (self.report)(d.patch(a.span, text, "to keep the fraction, divide a float"));
        }
        Some(Kind::Int(extent.unwrap_or_else(|| self.spelt(expr.to_string(), number))))
    }

    /// An extent that is spelt as it was written. What is spelt alike and means another number, since a name in it was bound
    /// again in another `repeat`, has a mark behind it.
    fn spelt(&mut self, mut text: String, number: &Num) -> Extent {
        while self.spelt.get(&text).is_some_and(|known| known != number) {
            text.push('\'');
        }
        self.spelt.insert(text.clone(), number.clone());
        Extent::named(text)
    }

    fn choice(
        &mut self,
        branches: &'a [ast::Branch<ast::Expr>],
        otherwise: &'a ast::Expr,
        expr: &'a ast::Expr,
    ) -> Option<Expr> {
        let span = expr.span;
        let mut conditions = Vec::new();
        let mut values = Vec::new();
        for branch in branches {
            conditions.push(self.boolean(&branch.condition));
            values.push(self.expression(&branch.then));
        }
        values.push(self.expression(otherwise));
        let conditions: Vec<Num> = conditions.into_iter().collect::<Option<_>>()?;
        let mut values: Vec<Expr> = values.into_iter().collect::<Option<_>>()?;
        if values.iter().all(|value| matches!(value.node, Node::Number(_))) {
            return self.number_choice(conditions, values, expr);
        }
        if let Some(table) = values.iter().find(|value| matches!(value.kind, Kind::Table(_))) {
            let d = Diagnostic::new(Code::WrongKind, "an `if` cannot choose between tables");
            let d = d.primary(table.span, "this is a table");
            return self.fault(d.help("choose between what is looked up in them"));
        }
        // A number among tensors is one.
        if values.iter().any(|value| matches!(value.kind, Kind::Tensor(_))) {
            values = values.into_iter().map(|value| self.tensor(value, "this `if`")).collect::<Option<_>>()?;
        }
        let last = values.pop()?;
        if let Some(other) = values.iter().find(|value| value.kind != last.kind) {
            let d = Diagnostic::new(Code::ShapeMismatch, "the branches of an `if` give different things")
                .primary(span, "must be the same whatever the condition")
                .secondary(other.span, format!("this is {}", other.kind))
                .secondary(last.span, format!("this is {}", last.kind));
            return self.fault(d);
        }
        let kind = last.kind.clone();
        let branches = conditions.into_iter().zip(values).collect();
        Some(Expr { node: Node::If(branches, Box::new(last)), kind, span })
    }

    fn number_choice(&mut self, conditions: Vec<Num>, values: Vec<Expr>, expr: &'a ast::Expr) -> Option<Expr> {
        let span = expr.span;
        let first = values.first()?;
        if let Some(other) = values.iter().find(|value| (value.kind == Kind::Bool) != (first.kind == Kind::Bool)) {
            let d = Diagnostic::new(Code::WrongKind, "the branches of an `if` give different things")
                .primary(span, "must be the same whatever the condition")
                .secondary(first.span, format!("this is {}", first.kind))
                .secondary(other.span, format!("this is {}", other.kind));
            return self.fault(d);
        }
        let same = values.iter().all(|value| value.kind == first.kind).then(|| first.kind.clone());
        let whole = values.iter().all(|value| matches!(value.kind, Kind::Int(_)));
        let numbers = values.into_iter().filter_map(|value| match value.node {
            Node::Number(number) => Some(number),
            _ => None,
        });
        let mut numbers: Vec<Num> = numbers.collect();
        let last = numbers.pop()?;
        let number = Num { node: NumNode::If(conditions.into_iter().zip(numbers).collect(), Box::new(last)), span };
        let kind = match same {
            Some(kind) => kind,
            None if whole => Kind::Int(self.spelt(expr.to_string(), &number)),
            None => Kind::Float,
        };
        Some(Expr { node: Node::Number(number), kind, span })
    }
}

/// The default of a parameter, if it has one of its type.
pub(super) fn default_value(parameter: &ast::Parameter) -> Option<Number> {
    let default = parameter.default.as_ref()?;
    let (negative, literal) = match &default.kind {
        ExprKind::Unary { operator, operand } if operator.value == UnaryOperator::Negate => (true, &operand.kind),
        kind => (false, kind),
    };
    let sign = if negative { -1.0 } else { 1.0 };
    match (parameter.ty.name.as_str(), literal) {
        ("int", ExprKind::Int(value)) => Some(Number::Int(if negative { -value } else { *value })),
        ("float", ExprKind::Int(value)) => Some(Number::Float(sign * *value as f64)),
        ("float", ExprKind::Float(value)) => Some(Number::Float(sign * value)),
        ("bool", ExprKind::Bool(value)) if !negative => Some(Number::Bool(*value)),
        _ => None,
    }
}

/// The word that a statement begins with, and what it names, if it cannot stand in a `repeat`.
fn said_once(statement: &RouterStatement) -> Option<(&'static str, Span)> {
    match statement {
        RouterStatement::State(node) => Some(("state", node.name.span)),
        RouterStatement::Table(node) => Some(("table", node.name.span)),
        RouterStatement::Update(node) => Some(("update", node.name.span)),
        RouterStatement::Aux(node) => Some(("aux", node.name.span)),
        RouterStatement::Return(node) => Some(("return", node.value.span)),
        RouterStatement::Let(_) | RouterStatement::Repeat(_) | RouterStatement::Assign(_) => None,
    }
}

/// The number that every element of a constant expression has, as an expression.
fn uniform(value: &Expr) -> Option<Num> {
    let span = value.span;
    let node = match &value.node {
        Node::Number(number) => return Some(number.clone()),
        Node::Filled { value, .. } => NumNode::Constant(Number::Float(*value)),
        Node::Unary(Unary::Neg, x) => NumNode::Negated(Box::new(uniform(x)?)),
        Node::Unary(f, x) => NumNode::Unary(*f, Box::new(uniform(x)?)),
        Node::Binary(f, a, b) => {
            let operator = match f {
                Binary::Add => B::Add,
                Binary::Sub => B::Subtract,
                Binary::Mul => B::Multiply,
                Binary::Div => B::Divide,
                _ => return None,
            };
            NumNode::Binary(operator, Box::new(uniform(a)?), Box::new(uniform(b)?))
        }
        _ => return None,
    };
    Some(Num { node, span })
}

/// The number of columns of a constant expression.
fn columns_of(value: &Expr) -> Option<Num> {
    match &value.node {
        Node::Filled { columns, .. } => columns.clone(),
        _ => value.inner(|_| false).into_iter().find_map(columns_of),
    }
}
