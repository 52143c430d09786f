//! Where the names of a text are defined, and where they are used.

use moec_syntax::{
    Argument, Block, Body, Branch, Call, Expr, ExprKind, File, Ident, Item, Parameter, Router, RouterStatement, Span,
    Statement,
};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Block,
    Router,
    Let,
    Index,
    /// A parameter of the block or router with that number.
    Parameter(usize),
    State,
}

impl Kind {
    /// Whether it can stand in an expression by its name.
    pub(crate) fn is_value(self) -> bool {
        matches!(self, Kind::Let | Kind::Index | Kind::Parameter(_) | Kind::State)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// Where the name is written.
    pub(crate) span: Span,
    /// The whole definition.
    pub(crate) whole: Span,
    /// Where it can be used; everywhere if `None`.
    visible: Option<Span>,
}

/// The definitions of a text and of those that it imports, with the places that mean them.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) definitions: Vec<Definition>,
    /// Where a name is used, and the number of its definition.
    uses: Vec<(Span, usize)>,
}

impl Names {
    pub(crate) fn of(file: &File) -> Self {
        let mut walk = Walk { names: Names::default(), local: Vec::new() };
        // Items see each other, whatever their order.
        for (item, _) in file.all_items() {
            match item {
                Item::Model(model) => drop(walk.define(Kind::Model, &model.name, model.span, None)),
                Item::Block(block) => drop(walk.block_head(block, None)),
                Item::Router(router) => {
                    let number = walk.define(Kind::Router, &router.name, router.span, None);
                    walk.head(number, router.parameters(), router.body_span);
                }
                Item::Train(_) | Item::Import(_) => {}
            }
        }
        for (item, _) in file.all_items() {
            walk.local.clear();
            match item {
                Item::Model(model) => walk.body(&model.body),
                Item::Block(block) => walk.block_body(block),
                Item::Router(router) => walk.router(router),
                Item::Train(_) | Item::Import(_) => {}
            }
        }
        walk.names
    }

    /// The definition that is meant at a byte of a file, with the word that means it.
    pub(crate) fn at(&self, at: Span) -> Option<(Span, usize)> {
        let touches = |span: Span| span.file() == at.file() && span.start() <= at.start() && at.start() <= span.end();
        let defined = self.definitions.iter().enumerate().map(|(i, definition)| (definition.span, i));
        defined.chain(self.uses.iter().copied()).find(|&(span, _)| touches(span))
    }

    /// Where a definition is written and used, each place once.
    pub(crate) fn places(&self, definition: usize) -> Vec<Span> {
        let used = self.uses.iter().filter(|(_, of)| *of == definition).map(|(span, _)| *span);
        let mut places: Vec<Span> = used.chain(self.definitions.get(definition).map(|d| d.span)).collect();
        places.sort();
        places.dedup();
        places
    }

    /// The definition whose name is written there.
    pub(crate) fn written_at(&self, span: Span) -> Option<usize> {
        self.definitions.iter().position(|definition| definition.span == span)
    }

    /// What can be named at a byte of a file; of those with one name the nearest.
    pub(crate) fn visible(&self, at: Span) -> Vec<&Definition> {
        let inside = |span: Span| span.file() == at.file() && span.start() <= at.start() && at.start() <= span.end();
        let mut found: Vec<&Definition> = Vec::new();
        for definition in self.definitions.iter().rev().filter(|definition| definition.visible.is_none_or(inside)) {
            if !found
                .iter()
                .any(|other| other.name == definition.name && other.kind.is_value() == definition.kind.is_value())
            {
                found.push(definition);
            }
        }
        found.reverse();
        found
    }
}

/// What an expression may name beside values.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Value,
    Expert,
    Route,
}

struct Walk {
    names: Names,
    /// What is defined around, outermost first.
    local: Vec<usize>,
}

impl Walk {
    fn define(&mut self, kind: Kind, name: &Ident, whole: Span, visible: Option<Span>) -> usize {
        let definition = Definition { kind, name: name.name.clone(), span: name.span, whole, visible };
        self.names.definitions.push(definition);
        self.names.definitions.len() - 1
    }

    fn define_local(&mut self, kind: Kind, name: &Ident, whole: Span, visible: Span) {
        if name.name != "_" {
            let definition = self.define(kind, name, whole, Some(visible));
            self.local.push(definition);
        }
    }

    /// The parameters of the definition of that number, which its body sees.
    fn head(&mut self, number: usize, parameters: &[Parameter], body: Span) {
        for parameter in parameters {
            self.define(Kind::Parameter(number), &parameter.name, parameter.span, Some(body));
        }
    }

    fn block_head(&mut self, block: &Block, visible: Option<Span>) -> usize {
        let number = self.define(Kind::Block, &block.name, block.span, visible);
        self.head(number, block.parameters(), block.body.span);
        number
    }

    /// What stands between the parentheses and the braces of a block whose head is known.
    fn block_body(&mut self, block: &Block) {
        let outside = self.local.len();
        block.parameters().iter().filter_map(|p| p.default.as_ref()).for_each(|d| self.expression(d, Role::Value));
        if let Some(number) = self.names.written_at(block.name.span) {
            let parameters: Vec<usize> = self.parameters(number).collect();
            self.local.extend(parameters);
        }
        self.body(&block.body);
        self.local.truncate(outside);
    }

    /// The parameters of the definition of that number.
    fn parameters(&self, of: usize) -> impl Iterator<Item = usize> {
        let of = move |(i, definition): (usize, &Definition)| (definition.kind == Kind::Parameter(of)).then_some(i);
        self.names.definitions.iter().enumerate().filter_map(of)
    }

    /// The names of arguments, which mean parameters of the definition of that number.
    fn argument_names(&mut self, of: Option<usize>, arguments: &[Argument]) {
        for name in arguments.iter().filter_map(|argument| argument.name.as_ref()) {
            let is_named = |&i: &usize| self.names.definitions[i].name == name.name;
            let parameter = of.and_then(|of| self.parameters(of).find(is_named));
            self.used(name.span, parameter);
        }
    }

    fn used(&mut self, span: Span, definition: Option<usize>) -> bool {
        self.names.uses.extend(definition.map(|definition| (span, definition)));
        definition.is_some()
    }

    fn local(&self, name: &str, is_kind: impl Fn(Kind) -> bool) -> Option<usize> {
        let is = |&&i: &&usize| {
            let definition = &self.names.definitions[i];
            definition.name == name && is_kind(definition.kind)
        };
        self.local.iter().rev().find(is).copied()
    }

    fn global(&self, name: &str, kind: Kind) -> Option<usize> {
        let is = |definition: &Definition| {
            definition.name == name && definition.kind == kind && definition.visible.is_none()
        };
        self.names.definitions.iter().position(is)
    }

    fn block(&self, name: &str) -> Option<usize> {
        self.local(name, |kind| kind == Kind::Block).or_else(|| self.global(name, Kind::Block))
    }

    fn body(&mut self, body: &Body) {
        let outside = self.local.len();
        for statement in &body.statements {
            // What a statement defines is known from its end to that of the body.
            let rest = statement.span().after().to(body.span.after());
            match statement {
                Statement::Let(node) => {
                    self.expression(&node.value, Role::Value);
                    self.define_local(Kind::Let, &node.name, node.span, rest);
                }
                Statement::Setting(node) => self.expression(&node.value, Role::Value),
                Statement::Layer(call) => self.layer(call),
                Statement::Repeat(node) => {
                    self.expression(&node.count, Role::Value);
                    let around = self.local.len();
                    if let Some(index) = &node.index {
                        self.define_local(Kind::Index, index, node.span, node.body.span);
                    }
                    self.body(&node.body);
                    self.local.truncate(around);
                }
                Statement::If(node) => {
                    for Branch { condition, then } in &node.branches {
                        self.expression(condition, Role::Value);
                        self.body(then);
                    }
                    node.otherwise.iter().for_each(|body| self.body(body));
                }
                Statement::Block(block) => {
                    let number = self.block_head(block, Some(block.span.to(body.span.after())));
                    self.local.push(number);
                    self.block_body(block);
                }
            }
        }
        self.local.truncate(outside);
    }

    fn layer(&mut self, call: &Call) {
        let block = self.block(&call.name.name);
        self.used(call.name.span, block);
        self.argument_names(block, call.arguments());
        self.arguments(call.arguments());
        call.body.iter().for_each(|body| self.body(body));
    }

    fn arguments(&mut self, arguments: &[Argument]) {
        for argument in arguments {
            let role = match argument.name.as_ref().map(|name| name.name.as_str()) {
                Some("route") => Role::Route,
                Some("experts" | "shared") => Role::Expert,
                _ => Role::Value,
            };
            self.expression(&argument.value, role);
        }
    }

    fn expression(&mut self, expr: &Expr, role: Role) {
        match &expr.kind {
            ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Bool(_) | ExprKind::String(_) => {}
            ExprKind::Name(name) => {
                let definition = match role {
                    Role::Route => self.global(name, Kind::Router),
                    Role::Value => self.local(name, Kind::is_value),
                    Role::Expert => self.block(name).or_else(|| self.local(name, Kind::is_value)),
                };
                self.used(expr.span, definition);
            }
            ExprKind::List(list) => list.iter().for_each(|item| self.expression(item, role)),
            ExprKind::Call(call) => match role {
                Role::Route => {
                    let router = self.global(&call.name.name, Kind::Router);
                    self.used(call.name.span, router);
                    self.argument_names(router, call.arguments());
                    self.arguments(call.arguments());
                }
                Role::Expert => self.layer(call),
                Role::Value => self.arguments(call.arguments()),
            },
            ExprKind::Unary { operand, .. } => self.expression(operand, role),
            ExprKind::Binary { left, right, .. } => {
                // The number of experts stands before them.
                self.expression(left, if role == Role::Expert { Role::Value } else { role });
                self.expression(right, role);
            }
            ExprKind::If { branches, otherwise } => {
                for Branch { condition, then } in branches {
                    self.expression(condition, Role::Value);
                    self.expression(then, role);
                }
                self.expression(otherwise, role);
            }
            ExprKind::Sequence(body) => self.body(body),
        }
    }

    fn router(&mut self, router: &Router) {
        if let Some(number) = self.names.written_at(router.name.span) {
            let parameters: Vec<usize> = self.parameters(number).collect();
            self.local.extend(parameters);
        }
        self.router_body(&router.statements, router.body_span);
    }

    fn router_body(&mut self, statements: &[RouterStatement], body: Span) {
        for statement in statements {
            let rest = statement.span().after().to(body.after());
            match statement {
                RouterStatement::Let(node) => {
                    self.expression(&node.value, Role::Value);
                    node.names.iter().for_each(|name| self.define_local(Kind::Let, name, node.span, rest));
                }
                RouterStatement::State(node) | RouterStatement::Table(node) => {
                    self.expression(&node.value, Role::Value);
                    self.define_local(Kind::State, &node.name, node.span, rest);
                }
                RouterStatement::Update(node) | RouterStatement::Assign(node) => {
                    let state = self.local(&node.name.name, Kind::is_value);
                    self.used(node.name.span, state);
                    self.expression(&node.value, Role::Value);
                }
                RouterStatement::Aux(node) => {
                    node.arguments.iter().for_each(|arguments| self.arguments(&arguments.list));
                    self.expression(&node.value, Role::Value);
                }
                RouterStatement::Return(node) => self.expression(&node.value, Role::Value),
                RouterStatement::Repeat(node) => {
                    self.expression(&node.count, Role::Value);
                    self.router_body(&node.statements, node.body_span);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_syntax::{FileId, SourceFile, parse_leniently};

    /// The text with marks at every place of what is named at the first `|`.
    fn places(marked: &str) -> String {
        let at = marked.find('|').unwrap();
        let mut text = marked.replacen('|', "", 1);
        let names = Names::of(&parse_leniently(&SourceFile::new("a.moe", text.clone())));
        let found = names.at(Span::new(FileId::MAIN, at..at));
        let places = found.map(|(_, definition)| names.places(definition)).unwrap_or_default();
        places.iter().rev().for_each(|place| text.insert(place.start(), '|'));
        text
    }

    #[test]
    fn a_binding_ends_with_its_body_and_is_hidden_by_a_nearer_one() {
        for (at, all) in [
            (
                "model m { let |a = 1 repeat a { let a = 2 mlp(hidden: a) } linear(width: a) }",
                "model m { let |a = 1 repeat |a { let a = 2 mlp(hidden: a) } linear(width: |a) }",
            ),
            (
                "model m { let a = 1 repeat a { let |a = 2 mlp(hidden: a) } linear(width: a) }",
                "model m { let a = 1 repeat a { let |a = 2 mlp(hidden: |a) } linear(width: a) }",
            ),
            (
                "model m { repeat 2 as i { if |i > 0 { relu } } if i > 0 { relu } }",
                "model m { repeat 2 as |i { if |i > 0 { relu } } if i > 0 { relu } }",
            ),
            (
                "block b { linear(width: |a) } model m { let a = 1 }",
                "block b { linear(width: a) } model m { let a = 1 }",
            ),
        ] {
            assert_eq!(places(at), all);
        }
    }

    #[test]
    fn experts_are_blocks_and_routes_are_routers() {
        for (at, all) in [
            (
                "model m { let e = 2 moe(experts: e * |e, route: e(k: 1), shared: 1 * { e }) } block e { relu }",
                "model m { let e = 2 moe(experts: e * |e, route: e(k: 1), shared: 1 * { |e }) } block |e { relu }",
            ),
            ("model m { let e = 2 moe(experts: |e * e) }", "model m { let |e = 2 moe(experts: |e * |e) }"),
            (
                "model m { moe(route: if 1 < 2 { |r(k: 1) } else { r }) } router r(k: int = 1) { return k }",
                "model m { moe(route: if 1 < 2 { |r(k: 1) } else { |r }) } router |r(k: int = 1) { return k }",
            ),
            (
                "model m { moe(route: r(|k: 1)) } router r(k: int) { let a, _ = top_k(x, k) return a }",
                "model m { moe(route: r(|k: 1)) } router r(|k: int) { let a, _ = top_k(x, |k) return a }",
            ),
            (
                "model m { b(|h: 1) moe(experts: 2 * b(h: 3)) } block b(h: int) { mlp(hidden: h) }",
                "model m { b(|h: 1) moe(experts: 2 * b(|h: 3)) } block b(|h: int) { mlp(hidden: |h) }",
            ),
            (
                "model m { let h = 2 block b(h: int = h) { mlp(hidden: |h) } b mlp(hidden: h) }",
                "model m { let h = 2 block b(|h: int = h) { mlp(hidden: |h) } b mlp(hidden: h) }",
            ),
        ] {
            assert_eq!(places(at), all);
        }
    }

    #[test]
    fn states_are_updated_by_their_name() {
        let all = "router r { state |b = zeros(experts) update |b = |b + 1 return x + |b }";
        assert_eq!(places("router r { state b = zeros(experts) update |b = b + 1 return x + b }"), all);
    }
}
