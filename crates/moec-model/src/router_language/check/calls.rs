//! Calls in a router: what each function takes, and the shape of what it gives.

use indexmap::IndexMap;
use moec_ir::{Binary, Unary, internal_error};
use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, Span, did_you_mean};

use super::super::functions::{self, ROUTER_FUNCTIONS, RouterFunction};
use super::super::kinds::{Columns, Extent, Kind, Of, Shape};
use super::super::program::{Along, Expr, Node, Num, NumNode, Over, Reduction};
use super::{Checker, PARTS_OF_MOE, listed};

/// The arguments of a call, found by name or place.
pub(super) struct Given<'a> {
    pub(super) function: &'static RouterFunction,
    pub(super) call: &'a ast::Call,
    values: IndexMap<&'static str, &'a ast::Expr>,
}

impl<'a> Given<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a ast::Expr> {
        self.values.get(name).copied()
    }
}

impl<'a> Checker<'a, '_> {
    /// Matches the arguments of a call with what the function takes.
    pub(super) fn given(&mut self, function: &'static RouterFunction, call: &'a ast::Call) -> Option<Given<'a>> {
        let mut given = Given { function, call, values: IndexMap::new() };
        let mut failed = false;
        for argument in call.arguments() {
            let Some(name) = self.argument_name(&given, argument) else {
                failed = true;
                continue;
            };
            if given.values.insert(name, &argument.value).is_some() {
                let d = Diagnostic::new(Code::DuplicateArgument, format!("argument `{name}` is given twice"));
                failed = true;
                self.fault::<()>(d.primary(argument.span, "given again here"));
            }
        }
        let missing = function.places.iter().take(function.required).find(|place| !given.values.contains_key(*place));
        if let (Some(missing), false) = (missing, failed) {
            let d = Diagnostic::new(Code::FunctionArguments, format!("`{}` needs `{missing}`", function.name));
            let d = d.primary(call.span, format!("there is no `{missing}`"));
            self.fault::<()>(d.note(written(function)));
            failed = true;
        }
        if failed {
            // What is inside may have faults of its own.
            for (name, value) in &given.values {
                if !["over", "name"].contains(name) {
                    self.expression(value);
                }
            }
            return None;
        }
        Some(given)
    }

    /// Which argument of the function this is: the one that it names, or that of the first free place.
    fn argument_name(&mut self, given: &Given<'a>, argument: &'a ast::Argument) -> Option<&'static str> {
        let function = given.function;
        let Some(name) = &argument.name else {
            let mut places = function.places.iter().copied();
            return places.find(|place| !given.values.contains_key(place)).or_else(|| {
                let message = match function.places.len() {
                    0 => format!("the arguments of `{}` have names", function.name),
                    1 => format!("`{}` takes one value", function.name),
                    most => format!("`{}` takes at most {most} values", function.name),
                };
                let d = Diagnostic::new(Code::FunctionArguments, message);
                self.fault(d.primary(argument.span, "one too many").note(written(function)))
            });
        };
        let known = || function.places.iter().chain(function.named).copied();
        known().find(|known| *known == name.name).or_else(|| {
            let message = format!("`{}` has no argument `{name}`", function.name);
            let mut d = Diagnostic::new(Code::FunctionArguments, message).primary(name.span, "unknown argument");
            if let Some(near) = did_you_mean(&name.name, known()) {
                d = d.patch(name.span, near, "use the name that it has");
            }
            self.fault(d.note(written(function)))
        })
    }

    pub(super) fn call(&mut self, call: &'a ast::Call, name: Option<&'a ast::Ident>) -> Option<Expr> {
        let Some(function) = functions::find(&call.name.name) else { return self.unknown_function(call) };
        let given = &self.given(function, call)?;
        if let Some(f) = elementwise(function.name) {
            return self.unary(f, given);
        }
        let span = call.span;
        match function.name {
            "linear" => self.linear(given, name),
            "weight" => self.weight(given),
            "identity" => {
                let (n, extent) = self.extent(given, "n")?;
                let axis = axis(extent);
                tensor(Node::Identity(n), Shape::matrix(axis.clone(), axis), span)
            }
            "normalize" => {
                let x = self.tensor_argument(given, "x")?;
                let shape = x.shape().clone();
                if shape.columns.is_none() {
                    return self.no_rows(given, &x);
                }
                tensor(Node::Normalize(Box::new(x)), shape, span)
            }
            "quantile" => self.quantile(given),
            "lookup" => self.lookup(given),
            "parameter" => self.parameter(given, name),
            "zeros" | "ones" => self.filled(given),
            "normal" | "uniform" => self.noise(given),
            "softmax" | "log_sum_exp" => self.of_rows(given),
            "max" | "min" => match (given.get("y"), given.get("over")) {
                (Some(_), None) => self.larger(given),
                (None, Some(_)) => self.reduction(given),
                _ => {
                    let message = format!("`{0}` takes two values, or one and `over`", function.name);
                    let d = Diagnostic::new(Code::FunctionArguments, message).primary(span, "cannot be told apart");
                    self.fault(d.note(written(function)))
                }
            },
            "sum" | "mean" => self.reduction(given),
            "cumsum" => self.cumulative_sum(given),
            "select" => self.select(given),
            "top_k" => {
                let d = Diagnostic::new(Code::WrongKind, "`top_k` gives two results, which need names")
                    .primary(span, "cannot stand inside an expression");
                self.fault(d.help("for example `let top, chosen = top_k(x, k)`"))
            }
            "keep_top_k" => self.keep_top_k(given),
            "gather" => self.gather(given),
            "scatter" => {
                let (values, indices) = (self.tensor_argument(given, "values"), self.expert_argument(given));
                let (values, (indices, shape)) = (values?, indices?);
                self.fits(&values, &shape, "`values`")?;
                tensor(Node::Scatter(Box::new(values), Box::new(indices)), Shape::rows(Columns::Experts), span)
            }
            "count" => {
                let (indices, _) = self.expert_argument(given)?;
                let shape = Shape::vector(Columns::Experts);
                tensor(Node::Count(Box::new(indices)), shape, span)
            }
            "stop_gradient" => {
                let x = self.tensor_argument(given, "x")?;
                let shape = x.shape().clone();
                tensor(Node::StopGradient(Box::new(x)), shape, span)
            }
            "float" => {
                let (x, shape, _) = self.index_argument(given, "x")?;
                tensor(Node::ToFloat(Box::new(x)), shape, span)
            }
            "index" => {
                let x = self.tensor_argument(given, "x")?;
                let kind = Kind::Index(x.shape().clone(), Of::Columns(Columns::Experts));
                Some(Expr { node: Node::ToIndex(Box::new(x), Of::Columns(Columns::Experts)), kind, span })
            }
            other => internal_error!("the function `{other}` is declared and has no meaning"),
        }
    }

    fn unknown_function(&mut self, call: &'a ast::Call) -> Option<Expr> {
        let written = &call.name;
        let mut d = Diagnostic::new(Code::UnknownFunction, format!("there is no function named `{written}`"))
            .primary(written.span, "unknown function");
        if functions::find_result(&written.name).is_some() {
            d = d.help(format!("`{written}` stands behind `return`"));
        } else if let Some(near) = did_you_mean(&written.name, ROUTER_FUNCTIONS.iter().map(|f| f.name)) {
            d = d.help(format!("did you mean `{near}`?")).patch(written.span, near, "use the name that it has");
        } else {
            d = d.note(format!("the functions are {}", listed(ROUTER_FUNCTIONS.iter().map(|f| f.name))));
        }
        for argument in call.arguments() {
            self.expression(&argument.value);
        }
        self.fault(d)
    }

    /// `normal()`, `uniform(n)`
    fn noise(&mut self, given: &Given<'a>) -> Option<Expr> {
        let span = given.call.span;
        let (number, columns) = match given.get("columns") {
            Some(_) => {
                let (number, extent) = self.extent(given, "columns")?;
                (number, axis(extent))
            }
            None => (Num { node: NumNode::Experts, span }, Columns::Experts),
        };
        let normal = given.function.name == "normal";
        tensor(Node::Noise { normal, columns: number }, Shape::rows(columns), span)
    }

    /// `softmax(x)`, `log_sum_exp(x, over: tokens)`
    fn of_rows(&mut self, given: &Given<'a>) -> Option<Expr> {
        let x = self.tensor_argument(given, "x")?;
        let whole = x.shape().clone();
        let (over, shape) = match given.get("over") {
            Some(_) => self.over(given, &x)?,
            None if whole.columns.is_none() => return self.no_rows(given, &x),
            None => (Over::Columns, whole.without_columns()),
        };
        let (x, span) = (Box::new(x), given.call.span);
        match given.function.name {
            "softmax" => tensor(Node::Softmax(x, over), whole, span),
            _ => tensor(Node::LogSumExp(x, over), shape, span),
        }
    }

    /// Reports that something has no rows where a function works on them.
    fn no_rows<T>(&mut self, given: &Given<'a>, x: &Expr) -> Option<T> {
        let d = Diagnostic::new(Code::WrongKind, format!("`{}` works on rows", given.function.name))
            .primary(x.span, format!("this is {}", x.kind));
        self.fault(if x.shape().tokens && given.function.named.contains(&"over") {
            d.help("to work on a number for every token, say `over: tokens`")
        } else {
            d
        })
    }

    /// `keep_top_k(x, k)`, `keep_top_k(x, tokens / experts, over: tokens)`
    fn keep_top_k(&mut self, given: &Given<'a>) -> Option<Expr> {
        let span = given.call.span;
        let (x, _) = self.row(given, "x")?;
        let over = match given.get("over") {
            Some(_) => self.over(given, &x)?.0,
            None => Over::Columns,
        };
        let k = match over {
            Over::Columns => self.extent(given, "k")?.0,
            // How many tokens there are differs between training and sampling, so k may be any number.
            _ => self.number(given.get("k")?)?,
        };
        let kind = x.kind.clone();
        Some(Expr { node: Node::KeepTopK(Box::new(x), k, over), kind, span })
    }

    /// `quantile(x, 0.9, over: tokens)`
    fn quantile(&mut self, given: &Given<'a>) -> Option<Expr> {
        let (x, q) = (self.tensor_argument(given, "x"), given.get("q").and_then(|q| self.number(q)));
        let (x, q) = (x?, q?);
        let (over, shape) = match given.get("over") {
            Some(_) => self.over(given, &x)?,
            None => (Over::All, Shape::SCALAR),
        };
        tensor(Node::Quantile(Box::new(x), q, over), shape, given.call.span)
    }

    /// `weight(scores)`
    fn weight(&mut self, given: &Given<'a>) -> Option<Expr> {
        let x = self.expression(given.get("x")?)?;
        let span = given.call.span;
        if let Node::Slot(slot) = x.node
            && let Some((name, shape)) = self.linears.get(&slot).cloned()
        {
            return tensor(Node::Weight { slot, name }, shape, span);
        }
        let d = Diagnostic::new(Code::WrongKind, "`weight` takes the name of a linear map")
            .primary(x.span, "this is not what a `let` names with `linear(..)`");
        self.fault(d.help("for example `weight(scores)` with `let scores = linear(x, experts)`"))
    }

    /// `lookup(expert_of, token_ids)`
    fn lookup(&mut self, given: &Given<'a>) -> Option<Expr> {
        let table = given.get("table").and_then(|table| self.expression(table));
        let ids = self.index_argument(given, "ids");
        let (table, (ids, shape, of)) = (table?, ids?);
        let (Node::Table(at), Kind::Table(gives)) = (&table.node, &table.kind) else {
            let d = Diagnostic::new(Code::WrongKind, "`lookup` takes a table")
                .primary(table.span, format!("this is {}", table.kind));
            return self.fault(d.help("declare one, as in `table expert_of = balanced`"));
        };
        if of != Of::Vocabulary || shape != Shape::tokens() {
            let d =
                Diagnostic::new(Code::WrongKind, "a table is looked up by a token of the vocabulary for every token")
                    .primary(ids.span, format!("this is {}", ids.kind));
            return self.fault(d.help("for example `lookup(expert_of, token_ids)`"));
        }
        let kind = (**gives).clone();
        Some(Expr { node: Node::Lookup(*at, Box::new(ids)), kind, span: given.call.span })
    }

    fn select(&mut self, given: &Given<'a>) -> Option<Expr> {
        let span = given.call.span;
        let parts = ["condition", "a", "b"].map(|name| self.tensor_argument(given, name));
        let [Some(condition), Some(a), Some(b)] = parts else { return None };
        let shape = self.joined(&a, &b, "select", span)?;
        let other = condition.shape();
        let Some(shape) = shape.joined(other) else {
            return self.mismatch("select", span, (&condition, other), (&a, &shape));
        };
        tensor(Node::Select(Box::new(condition), Box::new(a), Box::new(b)), shape, span)
    }

    /// `gather(x, chosen)`
    fn gather(&mut self, given: &Given<'a>) -> Option<Expr> {
        let (x, indices) = (self.tensor_argument(given, "x"), self.index_argument(given, "indices"));
        let (x, (indices, shape, of)) = (x?, indices?);
        let columns = match x.shape() {
            Shape { rows: None, columns: Some(columns), .. } => columns,
            _ => {
                let d = Diagnostic::new(Code::WrongKind, "`gather` takes elements out of the row of a token");
                return self.fault(d.primary(x.span, format!("this is {}", x.kind)));
            }
        };
        if !shape.tokens {
            let d = Diagnostic::new(Code::WrongKind, "`gather` takes indices for every token");
            return self.fault(d.primary(indices.span, format!("this is {}", indices.kind)));
        }
        if of != Of::Columns(columns.clone()) {
            let d = Diagnostic::new(Code::ShapeMismatch, "these indices do not belong to these rows")
                .primary(indices.span, format!("indices of {of}"))
                .secondary(x.span, format!("this is {}", x.kind));
            return self.fault(d);
        }
        tensor(Node::Gather(Box::new(x), Box::new(indices)), shape, given.call.span)
    }

    /// A function of one operand, element by element.
    fn unary(&mut self, f: Unary, given: &Given<'a>) -> Option<Expr> {
        let span = given.call.span;
        let x = self.expression(given.get("x")?)?;
        match (&x.node, &x.kind) {
            (Node::Number(number), Kind::Int(_) | Kind::Float) => {
                let node = NumNode::Unary(f, Box::new(number.clone()));
                Some(Expr { node: Node::Number(Num { node, span }), kind: Kind::Float, span })
            }
            _ => {
                let x = self.tensor(x, &format!("`{}`", given.function.name))?;
                let kind = x.kind.clone();
                Some(Expr { node: Node::Unary(f, Box::new(x)), kind, span })
            }
        }
    }

    fn larger(&mut self, given: &Given<'a>) -> Option<Expr> {
        let span = given.call.span;
        let max = given.function.name == "max";
        let parts = ["x", "y"].map(|name| given.get(name).and_then(|e| self.expression(e)));
        let [Some(a), Some(b)] = parts else { return None };
        if let (Node::Number(x), Node::Number(y)) = (&a.node, &b.node)
            && ![&a.kind, &b.kind].iter().any(|kind| **kind == Kind::Bool)
        {
            let (x, y) = (Box::new(x.clone()), Box::new(y.clone()));
            let node = if max { NumNode::Larger(x, y) } else { NumNode::Smaller(x, y) };
            let number = Num { node, span };
            let kind = match (&a.kind, &b.kind) {
                (Kind::Int(_), Kind::Int(_)) => Kind::Int(self.spelt(text_of(given.call), &number)),
                _ => Kind::Float,
            };
            return Some(Expr { node: Node::Number(number), kind, span });
        }
        let what = format!("`{}`", given.function.name);
        let f = if max { Binary::Max } else { Binary::Min };
        if let (Kind::Index(_, left), Kind::Index(_, right)) = (&a.kind, &b.kind) {
            let of = left.clone();
            if of != *right {
                let d = Diagnostic::new(Code::WrongKind, format!("{what} compares indices of the same thing"))
                    .primary(span, "these count different things")
                    .secondary(a.span, format!("this is {}", a.kind))
                    .secondary(b.span, format!("this is {}", b.kind));
                return self.fault(d);
            }
            let (a, b) = (numbers_of(a), numbers_of(b));
            let shape = self.joined(&a, &b, given.function.name, span)?;
            let kind = Kind::Tensor(shape.clone());
            let larger = Expr { node: Node::Binary(f, Box::new(a), Box::new(b)), kind, span };
            return Some(Expr {
                node: Node::ToIndex(Box::new(larger), of.clone()),
                kind: Kind::Index(shape, of),
                span,
            });
        }
        let (a, b) = (self.tensor(a, &what), self.tensor(b, &what));
        let (a, b) = (a?, b?);
        let shape = self.joined(&a, &b, given.function.name, span)?;
        Some(Expr { node: Node::Binary(f, Box::new(a), Box::new(b)), kind: Kind::Tensor(shape), span })
    }

    fn linear(&mut self, given: &Given<'a>, name: Option<&'a ast::Ident>) -> Option<Expr> {
        let name = self.tensor_name(given, name);
        let bias = given.get("bias").map(|bias| self.boolean(bias));
        let (x, width) = (self.row(given, "x"), self.extent(given, "width"));
        let ((x, _), (width, extent)) = (x?, width?);
        self.lasting(&width, given.function.name)?;
        let bias = match bias {
            Some(bias) => Some(bias?),
            None => None,
        };
        let kind = Kind::Tensor(Shape::rows(axis(extent)));
        Some(Expr { node: Node::Linear { name: name?, x: Box::new(x), width, bias }, kind, span: given.call.span })
    }

    /// `parameter()`, `parameter(experts)`, `parameter(experts, width)`
    fn parameter(&mut self, given: &Given<'a>, name: Option<&'a ast::Ident>) -> Option<Expr> {
        let name = self.tensor_name(given, name);
        let start = match given.get("start") {
            Some(start) => Some(self.number(start)?),
            None => None,
        };
        let mut axes = Vec::new();
        for place in ["first", "second"] {
            if given.get(place).is_some() {
                let axis = self.extent(given, place)?;
                self.lasting(&axis.0, given.function.name)?;
                axes.push(axis);
            }
        }
        let shape = match &axes[..] {
            [] => Shape::SCALAR,
            [(_, only)] => Shape::vector(axis(only.clone())),
            [(_, rows), (_, columns), ..] => Shape::matrix(axis(rows.clone()), axis(columns.clone())),
        };
        let mut axes = axes.into_iter().map(|(number, _)| number).rev();
        let (columns, rows) = (axes.next(), axes.next());
        let node = Node::Parameter { name: name?, rows, columns, start };
        Some(Expr { node, kind: Kind::Tensor(shape), span: given.call.span })
    }

    /// The name of a trained tensor: the argument `name`, or else that of the `let`.
    fn tensor_name(&mut self, given: &Given<'a>, bound: Option<&'a ast::Ident>) -> Option<String> {
        if let Some(&count) = self.loops.last() {
            let d =
                Diagnostic::new(Code::RepeatForm, format!("`{}` does not stand in a `repeat`", given.function.name))
                    .primary(given.call.name.span, "what is trained is said once")
                    .secondary(count, "and here statements are gone through several times");
            return self.fault(d.help("bind it to a `let` in front of the `repeat`"));
        }
        let (name, span) = match (given.get("name"), bound) {
            (Some(expr), _) => {
                let ExprKind::String(name) = &expr.kind else {
                    let d = Diagnostic::new(Code::WrongType, "the name of a trained tensor stands in quotes");
                    return self.fault(d.primary(expr.span, "expected text, as in `name: \"router\"`"));
                };
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
                if name.is_empty() || !name.chars().all(plain) {
                    let d = Diagnostic::new(Code::UnnamedTensor, format!("{name:?} cannot name a trained tensor"));
                    return self.fault(d.primary(expr.span, "expected letters, digits and `_`"));
                }
                (name.clone(), expr.span)
            }
            (None, Some(name)) if name.name != "_" => (name.name.clone(), name.span),
            (None, _) => {
                let function = given.function.name;
                let d = Diagnostic::new(Code::UnnamedTensor, format!("what `{function}` trains has no name"))
                    .primary(given.call.name.span, "its tensors are called after the `let` it is bound to")
                    .help(format!("bind it, as in `let scores = {}`", given.function.form))
                    .help("or give the name: `name: \"scores\"`");
                return self.fault(d);
            }
        };
        self.take_name(&name, span);
        Some(name)
    }

    /// Reports an extent of what is kept from step to step that is another one when sampling.
    pub(super) fn lasting(&mut self, number: &Num, what: &str) -> Option<()> {
        if !self.varies(number) {
            return Some(());
        }
        let d = Diagnostic::new(Code::WrongKind, format!("`{what}` is kept, and cannot change its size"))
            .primary(number.span, "this is another number in training than when sampling");
        self.fault(d.help("leave `training`, `tokens` and `sequence_length` out of it"))
    }

    /// Whether a number is made of what differs between training and sampling.
    pub(super) fn varies(&self, number: &Num) -> bool {
        match number.node {
            NumNode::Training | NumNode::Tokens | NumNode::SequenceLength => true,
            NumNode::Slot(slot) => self.varying.contains(&slot),
            _ => number.inner().into_iter().any(|inner| self.varies(inner)),
        }
    }

    /// Reports a name of a trained tensor or a state that is taken.
    pub(super) fn take_name(&mut self, name: &str, span: Span) {
        if PARTS_OF_MOE.contains(&name) {
            let d = Diagnostic::new(Code::NameTaken, format!("no tensor of a router can be named `{name}`"))
                .primary(span, "this name is taken")
                .note("a part of the `moe` has it");
            self.fault::<()>(d);
        } else if let Some(&first) = self.tensors.get(name) {
            let d = Diagnostic::new(Code::DuplicateDefinition, format!("two tensors are named `{name}`"))
                .primary(span, "named again here")
                .secondary(first, "first named here");
            self.fault::<()>(d.help("give one of them another name with `name: \"..\"`"));
        } else {
            self.tensors.insert(name.to_owned(), span);
        }
    }

    /// `zeros()`, `zeros(experts)`, `zeros(tokens, k)`
    fn filled(&mut self, given: &Given<'a>) -> Option<Expr> {
        let is_tokens =
            |expr: Option<&ast::Expr>| matches!(expr.map(|e| &e.kind), Some(ExprKind::Name(name)) if name == "tokens");
        let (first, second) = (given.get("first"), given.get("second"));
        let tokens = is_tokens(first);
        if let (false, Some(extra)) = (tokens, second) {
            let message = format!("rows are written `{}(tokens, n)`", given.function.name);
            let d = Diagnostic::new(Code::FunctionArguments, message);
            return self
                .fault(d.primary(first.map_or(extra.span, |e| e.span), "expected `tokens` in front of the columns"));
        }
        let columns = match (tokens, first, second) {
            (true, _, Some(_)) => Some(self.extent(given, "second")?),
            (false, Some(_), _) => Some(self.extent(given, "first")?),
            _ => None,
        };
        let (columns, axis) = match columns {
            // A number of its own counts choices here: `ones(tokens, k)` are weights.
            Some((columns, extent)) => {
                let axis = if extent == Extent::named("experts") {
                    Columns::Experts
                } else if extent == Extent::named("width") {
                    Columns::Features(extent)
                } else {
                    Columns::Choices(extent)
                };
                (Some(columns), Some(axis))
            }
            None => (None, None),
        };
        let value = if given.function.name == "ones" { 1.0 } else { 0.0 };
        let kind = Kind::Tensor(Shape { tokens, rows: None, columns: axis });
        Some(Expr { node: Node::Filled { value, tokens, columns }, kind, span: given.call.span })
    }

    fn reduction(&mut self, given: &Given<'a>) -> Option<Expr> {
        let x = self.expression(given.get("x")?)?;
        let of = match &x.kind {
            Kind::Index(_, of) if matches!(given.function.name, "max" | "min") => Some(of.clone()),
            _ => None,
        };
        let x = match of {
            Some(_) => numbers_of(x),
            None => self.tensor(x, &format!("`{}`", given.function.name))?,
        };
        let reduction = match given.function.name {
            "sum" => Reduction::Sum,
            "mean" => Reduction::Mean,
            "max" => Reduction::Max,
            _ => Reduction::Min,
        };
        let (over, shape) = match given.get("over") {
            Some(_) => self.over(given, &x)?,
            None => (Over::All, Shape::SCALAR),
        };
        let span = given.call.span;
        let reduced =
            Expr { node: Node::Reduce(reduction, Box::new(x), over), kind: Kind::Tensor(shape.clone()), span };
        Some(match of {
            Some(of) => Expr { node: Node::ToIndex(Box::new(reduced), of.clone()), kind: Kind::Index(shape, of), span },
            None => reduced,
        })
    }

    fn cumulative_sum(&mut self, given: &Given<'a>) -> Option<Expr> {
        let x = self.tensor_argument(given, "x")?;
        let Some(over) = given.get("over") else {
            let d = Diagnostic::new(Code::FunctionArguments, "`cumsum` needs `over`");
            let d = d.primary(given.call.span, "there is no `over`");
            return self.fault(d.note(written(given.function)));
        };
        let along = match self.axis_named(over, &x)? {
            Over::Tokens => Along::Tokens,
            Over::Sequence => Along::Sequence,
            Over::Rows => Along::Rows,
            _ => Along::Columns,
        };
        let kind = x.kind.clone();
        Some(Expr { node: Node::CumulativeSum(Box::new(x), along), kind, span: given.call.span })
    }

    /// The axis that `over` names, and the shape without it. Of a sequence every token has what the sequence has.
    fn over(&mut self, given: &Given<'a>, x: &Expr) -> Option<(Over, Shape)> {
        let shape = x.shape();
        let over = self.axis_named(given.get("over")?, x)?;
        Some(match over {
            Over::Tokens | Over::Rows => (over, Shape { tokens: false, rows: None, ..shape.clone() }),
            Over::Sequence | Over::All => (over, shape.clone()),
            Over::Columns => (over, shape.without_columns()),
        })
    }

    /// Which axis of `x` the value of `over` names.
    fn axis_named(&mut self, expr: &'a ast::Expr, x: &Expr) -> Option<Over> {
        const WORDS: [&str; 4] = ["tokens", "sequence", "experts", "width"];
        let shape = x.shape();
        let named = match &expr.kind {
            // Sums along a sequence were written so first.
            ExprKind::Name(name) if name == "positions" => Some("sequence"),
            ExprKind::Name(name) => WORDS.into_iter().find(|word| word == name),
            _ => None,
        };
        let Some(word) = named else {
            let mut d = Diagnostic::new(Code::UnknownValue, "`over` names an axis")
                .primary(expr.span, format!("expected {}", either(&WORDS)));
            if let ExprKind::Name(word) = &expr.kind
                && let Some(near) = did_you_mean(word, WORDS)
            {
                d = d.patch(expr.span, near, "use the name that it has");
            }
            return self.fault(d);
        };
        let is = |columns: &Option<Columns>| match word {
            "experts" => matches!(columns, Some(Columns::Experts | Columns::Choices(_))),
            _ => matches!(columns, Some(Columns::Features(_))),
        };
        let over = match word {
            "tokens" => shape.tokens.then_some(Over::Tokens),
            "sequence" => shape.tokens.then_some(Over::Sequence),
            _ if is(&shape.columns) => Some(Over::Columns),
            _ => is(&shape.rows).then_some(Over::Rows),
        };
        if over.is_some() {
            return over;
        }
        let d = Diagnostic::new(Code::ShapeMismatch, format!("there is no axis `{word}` to go over"))
            .primary(expr.span, "no such axis")
            .secondary(x.span, format!("this is {shape}"));
        let columns = match &shape.columns {
            Some(Columns::Features(_)) => Some("width"),
            Some(_) => Some("experts"),
            None => None,
        };
        self.fault(match columns {
            Some(columns) if !matches!(word, "tokens" | "sequence") => {
                d.help(format!("its last axis is called `{columns}`"))
            }
            _ => d,
        })
    }

    // Arguments of a kind.

    /// A tensor with rows: [tokens, columns].
    pub(super) fn row(&mut self, given: &Given<'a>, name: &str) -> Option<(Expr, Columns)> {
        let x = self.tensor_argument(given, name)?;
        match &x.kind {
            Kind::Tensor(Shape { tokens: true, rows: None, columns: Some(columns) }) => {
                let columns = columns.clone();
                Some((x, columns))
            }
            kind => {
                let d = Diagnostic::new(
                    Code::ShapeMismatch,
                    format!("`{}` works on a row for every token", given.function.name),
                )
                .primary(x.span, format!("this is {kind}, not [tokens, ..]"));
                self.fault(d)
            }
        }
    }

    fn tensor_argument(&mut self, given: &Given<'a>, name: &str) -> Option<Expr> {
        let value = self.expression(given.get(name)?)?;
        self.tensor(value, &format!("`{}`", given.function.name))
    }

    fn index_argument(&mut self, given: &Given<'a>, name: &str) -> Option<(Expr, Shape, Of)> {
        let value = self.expression(given.get(name)?)?;
        match value.kind.clone() {
            Kind::Index(shape, of) => Some((value, shape, of)),
            kind => {
                let message = format!("`{}` takes indices", given.function.name);
                let d = Diagnostic::new(Code::WrongKind, message).primary(value.span, format!("this is {kind}"));
                self.fault(d.help("for example the second result of `let top, chosen = top_k(x, k)`"))
            }
        }
    }

    /// Indices of experts for every token.
    fn expert_argument(&mut self, given: &Given<'a>) -> Option<(Expr, Shape)> {
        let (indices, shape, of) = self.index_argument(given, "indices")?;
        if of != Of::Columns(Columns::Experts) || !shape.tokens {
            let message = format!("`{}` takes indices of experts", given.function.name);
            let d = Diagnostic::new(Code::WrongKind, message);
            return self.fault(d.primary(indices.span, format!("this is {}", indices.kind)));
        }
        Some((indices, shape))
    }

    /// A whole number that is known when the router is used.
    pub(super) fn extent(&mut self, given: &Given<'a>, name: &str) -> Option<(Num, Extent)> {
        let value = self.expression(given.get(name)?)?;
        match (value.node, value.kind) {
            (Node::Number(number), Kind::Int(extent)) => {
                if let Some(known) = extent.known()
                    && known < 1
                {
                    let message = format!("`{}` cannot have {known} columns", given.function.name);
                    let d = Diagnostic::new(Code::OutOfRange, message).primary(value.span, "expected 1 or more");
                    return self.fault(d);
                }
                Some((number, extent))
            }
            (_, kind) => {
                let message = format!("`{name}` of `{}` must be an integer", given.function.name);
                let d = Diagnostic::new(Code::WrongKind, message).primary(value.span, format!("this is {kind}"));
                self.fault(match kind {
                    Kind::Tensor(_) => d.note("the shapes of tensors are known before anything is computed"),
                    _ => d,
                })
            }
        }
    }

    /// A number that is known when the router is used.
    pub(super) fn number(&mut self, expr: &'a ast::Expr) -> Option<Num> {
        let value = self.expression(expr)?;
        match (value.node, value.kind) {
            (Node::Number(number), Kind::Int(_) | Kind::Float) => Some(number),
            (_, kind) => {
                let d = Diagnostic::new(Code::WrongKind, "this must be a number that is known at compile time");
                self.fault(d.primary(expr.span, format!("this is {kind}")))
            }
        }
    }

    pub(super) fn boolean(&mut self, expr: &'a ast::Expr) -> Option<Num> {
        let value = self.expression(expr)?;
        match (value.node, value.kind) {
            (Node::Number(number), Kind::Bool) => Some(number),
            (_, kind) => {
                let d = Diagnostic::new(Code::WrongKind, "this must be a boolean that is known at compile time")
                    .primary(expr.span, format!("this is {kind}"));
                self.fault(match kind {
                    Kind::Tensor(_) => d.help("`select(condition, a, b)` chooses element by element"),
                    _ => d,
                })
            }
        }
    }

    /// The value as a tensor: a number becomes one, indices and booleans do not.
    pub(super) fn tensor(&mut self, value: Expr, what: &str) -> Option<Expr> {
        match value.kind {
            Kind::Tensor(_) => Some(value),
            Kind::Int(_) | Kind::Float => Some(Expr { kind: Kind::Tensor(Shape::SCALAR), ..value }),
            Kind::Bool | Kind::Index(..) | Kind::Table(_) => {
                let d = Diagnostic::new(Code::WrongKind, format!("{what} takes numbers"))
                    .primary(value.span, format!("this is {}", value.kind));
                let d = match value.kind {
                    Kind::Bool => d.help("`if condition { 1.0 } else { 0.0 }` makes a number of it"),
                    Kind::Table(_) => d.help("`lookup(.., token_ids)` gives what it has for each token"),
                    _ => d.help("`float(..)` makes numbers of indices"),
                };
                self.fault(d)
            }
        }
    }

    /// Whether a tensor can be repeated to a shape.
    pub(super) fn fits(&mut self, value: &Expr, shape: &Shape, what: &str) -> Option<()> {
        let own = value.shape();
        if own.joined(shape).as_ref() == Some(shape) {
            return Some(());
        }
        let d = Diagnostic::new(Code::ShapeMismatch, format!("{what} must be {shape}, not {own}"));
        self.fault(d.primary(value.span, format!("this is {own}")))
    }

    /// The shape of two tensors combined element by element.
    pub(super) fn joined(&mut self, a: &Expr, b: &Expr, symbol: &str, span: Span) -> Option<Shape> {
        let (left, right) = (a.shape(), b.shape());
        match left.joined(right) {
            Some(shape) => Some(shape),
            None => self.mismatch(symbol, span, (a, left), (b, right)),
        }
    }

    fn mismatch<T>(
        &mut self,
        symbol: &str,
        span: Span,
        (a, left): (&Expr, &Shape),
        (b, right): (&Expr, &Shape),
    ) -> Option<T> {
        let mut d = Diagnostic::new(Code::ShapeMismatch, format!("`{symbol}` cannot combine {left} with {right}"))
            .primary(span, "these do not fit each other")
            .secondary(a.span, format!("{left}"))
            .secondary(b.span, format!("{right}"));
        let both = [&left.columns, &right.columns];
        if both.contains(&&Some(Columns::Experts)) && both.iter().any(|c| matches!(c, Some(Columns::Choices(_)))) {
            d = d.help("`gather(x, chosen)` takes the chosen experts out of [tokens, experts]");
        }
        self.fault(d)
    }
}

/// Indices as numbers.
fn numbers_of(x: Expr) -> Expr {
    let (kind, span) = (Kind::Tensor(x.shape().clone()), x.span);
    Expr { node: Node::ToFloat(Box::new(x)), kind, span }
}

/// How a function is written and what it does, as a note.
fn written(function: &RouterFunction) -> String {
    format!("it is written `{}`: {}", function.form, function.summary)
}

fn tensor(node: Node, shape: Shape, span: Span) -> Option<Expr> {
    Some(Expr { node, kind: Kind::Tensor(shape), span })
}

fn elementwise(name: &str) -> Option<Unary> {
    Unary::named(name).filter(|f| !matches!(f, Unary::Neg | Unary::Recip))
}

/// The words as they stand in a sentence: one of them.
fn either(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// The axis of that many columns.
fn axis(extent: Extent) -> Columns {
    if extent == Extent::named("experts") { Columns::Experts } else { Columns::Features(extent) }
}

fn text_of(call: &ast::Call) -> String {
    let kind = ExprKind::Call(call.clone());
    ast::Expr { kind, span: call.span }.to_string()
}
