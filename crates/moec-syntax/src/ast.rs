//! The syntax tree: what a file says, before anyone asks what it means.
//!
//! The tree knows calls, settings, bindings and expressions; it does not know which layers exist. Every node carries
//! the [`Span`] of its text. Parentheses leave no node: an expression's span is that of its text inside them.
//!
//! The height of a tree is bounded by the parser, so recursive walks need no guard of their own.

use std::fmt;

use crate::span::Span;

/// A value with the span of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub span: Span,
}

/// A name as written, with its span.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ident {
    /// The name.
    pub name: String,
    /// Where it was written.
    pub span: Span,
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A whole file: its items in source order. An empty file is valid syntax.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    /// The items in source order.
    pub items: Vec<Item>,
    /// What its imports bring: the models, blocks and routers of the imported files, and of those that these import.
    pub imported: Vec<Imported>,
}

impl File {
    /// The items of the file, then those that its imports bring, each with the import of the file that brought it.
    pub fn all_items(&self) -> impl Iterator<Item = (&Item, Option<Span>)> {
        let imported = self.imported.iter().map(|imported| (&imported.item, Some(imported.import)));
        self.items.iter().map(|item| (item, None)).chain(imported)
    }
}

/// An item of another file.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The item.
    pub item: Item,
    /// The path of the import that brought it, in the importing file.
    pub import: Span,
}

/// What may stand at the top level of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `model NAME { ... }`
    Model(Model),
    /// `block NAME { ... }`, `block NAME(parameters) { ... }`
    Block(Block),
    /// `train { ... }`
    Train(Train),
    /// `router NAME(parameters) { ... }`
    Router(Router),
    /// `import "other.moe"`
    Import(Import),
}

impl Item {
    /// The span of the whole item.
    pub fn span(&self) -> Span {
        match self {
            Item::Model(model) => model.span,
            Item::Block(block) => block.span,
            Item::Train(train) => train.span,
            Item::Router(router) => router.span,
            Item::Import(import) => import.span,
        }
    }
}

/// `model NAME { ... }`
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The model's name.
    pub name: Ident,
    /// Its settings, bindings and layers.
    pub body: Body,
    /// The whole definition.
    pub span: Span,
}

/// `block NAME { ... }` or `block NAME(parameters) { ... }`: a layer sequence with a name, usable as a layer and as an expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The block's name.
    pub name: Ident,
    /// What it can be given; `None` where there are no parentheses.
    pub parameters: Option<Parameters>,
    /// Its layers.
    pub body: Body,
    /// The whole definition.
    pub span: Span,
}

impl Block {
    /// The parameters, none where there are no parentheses.
    pub fn parameters(&self) -> &[Parameter] {
        self.parameters.as_ref().map_or(&[], |parameters| &parameters.list)
    }
}

/// `train { ... }`: the recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Train {
    /// The settings in source order.
    pub settings: Vec<TrainSetting>,
    /// The braces and what is between them.
    pub body_span: Span,
    /// The whole block.
    pub span: Span,
}

/// One statement of a `train` block.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainSetting {
    /// `name value`, as in `batch 16` or `optimizer adamw(lr: 1e-3)`.
    Value(Setting),
    /// `name(argument: value, ...)`, as in `evaluate(every: 100, batches: 400)`. The call has arguments and no body.
    Call(Call),
}

impl TrainSetting {
    /// The setting's name.
    pub fn name(&self) -> &Ident {
        match self {
            TrainSetting::Value(setting) => &setting.name,
            TrainSetting::Call(call) => &call.name,
        }
    }

    /// The span of the whole statement.
    pub fn span(&self) -> Span {
        match self {
            TrainSetting::Value(setting) => setting.span,
            TrainSetting::Call(call) => call.span,
        }
    }
}

/// `import "other.moe"`: what the other file defines is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The path as written, relative to the folder of the importing file. Folders are separated by `/`.
    pub path: String,
    /// The text in quotes.
    pub path_span: Span,
    /// The whole statement.
    pub span: Span,
}

/// `router NAME(parameters) { ... }`: a routing strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    /// The router's name.
    pub name: Ident,
    /// What it can be given; `None` where there are no parentheses.
    pub parameters: Option<Parameters>,
    /// Its statements in source order.
    pub statements: Vec<RouterStatement>,
    /// The braces and what is between them.
    pub body_span: Span,
    /// The whole definition.
    pub span: Span,
}

impl Router {
    /// The parameters, none where there are no parentheses.
    pub fn parameters(&self) -> &[Parameter] {
        self.parameters.as_ref().map_or(&[], |parameters| &parameters.list)
    }
}

/// Parameters between parentheses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// The parameters in source order.
    pub list: Vec<Parameter>,
    /// The parentheses and what is between them.
    pub span: Span,
}

/// `name: type` or `name: type = default`.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// The parameter's name.
    pub name: Ident,
    /// The name of its type.
    pub ty: Ident,
    /// Its value where it is not given.
    pub default: Option<Expr>,
    /// The whole parameter.
    pub span: Span,
}

/// A statement of a router.
#[derive(Clone, Debug, PartialEq)]
pub enum RouterStatement {
    /// `let NAME = EXPRESSION`, `let NAME, NAME = EXPRESSION`
    Let(RouterLet),
    /// `state NAME = EXPRESSION`: a tensor that is kept between steps, with its first value.
    State(Let),
    /// `table NAME = EXPRESSION`: a look-up table that is made from the training text.
    Table(Let),
    /// `update NAME = EXPRESSION`: the value of a state after a training step.
    Update(Let),
    /// `aux NAME = EXPRESSION`: a loss of the router's own.
    Aux(Aux),
    /// `return EXPRESSION`
    Return(Return),
    /// `repeat EXPRESSION { ... }`
    Repeat(RouterRepeat),
    /// `NAME = EXPRESSION` in the body of a `repeat`: another value for a name from before it.
    Assign(Let),
}

impl RouterStatement {
    /// The span of the whole statement.
    pub fn span(&self) -> Span {
        match self {
            RouterStatement::Let(node) => node.span,
            RouterStatement::State(node)
            | RouterStatement::Table(node)
            | RouterStatement::Update(node)
            | RouterStatement::Assign(node) => node.span,
            RouterStatement::Repeat(node) => node.span,
            RouterStatement::Aux(node) => node.span,
            RouterStatement::Return(node) => node.span,
        }
    }
}

/// `let NAME = EXPRESSION`, or several names for a function with several results.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterLet {
    /// The names that are bound; at least one.
    pub names: Vec<Ident>,
    /// What they stand for.
    pub value: Expr,
    /// The whole statement.
    pub span: Span,
}

/// `repeat EXPRESSION { ... }` in a router.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterRepeat {
    /// How often the body is gone through.
    pub count: Expr,
    /// The statements of the body.
    pub statements: Vec<RouterStatement>,
    /// The braces and what is between them.
    pub body_span: Span,
    /// The whole statement.
    pub span: Span,
}

/// `aux NAME = EXPRESSION` or `aux NAME(weight: 0.01) = EXPRESSION`
#[derive(Clone, Debug, PartialEq)]
pub struct Aux {
    /// The loss's name.
    pub name: Ident,
    /// The arguments behind the name; `None` where there are no parentheses.
    pub arguments: Option<Arguments>,
    /// The loss.
    pub value: Expr,
    /// The whole statement.
    pub span: Span,
}

/// `return EXPRESSION`
#[derive(Clone, Debug, PartialEq)]
pub struct Return {
    /// What is returned.
    pub value: Expr,
    /// The whole statement.
    pub span: Span,
}

/// Statements between braces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// The statements in source order.
    pub statements: Vec<Statement>,
    /// The braces and what is between them.
    pub span: Span,
}

/// A statement of a model, a block or a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// `let NAME = EXPRESSION`
    Let(Let),
    /// `context 32`, `vocab characters`: only these two names take a bare value.
    Setting(Setting),
    /// A layer: `layer_norm`, `attention(heads: 8)`, `residual { ... }`.
    Layer(Call),
    /// `repeat COUNT as INDEX { ... }`
    Repeat(Repeat),
    /// `if CONDITION { ... } else { ... }`
    If(If),
    /// A block defined where it is used.
    Block(Block),
}

impl Statement {
    /// The span of the whole statement.
    pub fn span(&self) -> Span {
        match self {
            Statement::Let(node) => node.span,
            Statement::Setting(node) => node.span,
            Statement::Layer(node) => node.span,
            Statement::Repeat(node) => node.span,
            Statement::If(node) => node.span,
            Statement::Block(node) => node.span,
        }
    }
}

/// `let NAME = EXPRESSION`
#[derive(Clone, Debug, PartialEq)]
pub struct Let {
    /// The name that is bound.
    pub name: Ident,
    /// What it stands for.
    pub value: Expr,
    /// The whole statement.
    pub span: Span,
}

/// `NAME VALUE`
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The setting's name.
    pub name: Ident,
    /// Its value.
    pub value: Expr,
    /// The whole statement.
    pub span: Span,
}

/// `repeat COUNT as INDEX { ... }`
#[derive(Clone, Debug, PartialEq)]
pub struct Repeat {
    /// How often the body is repeated.
    pub count: Expr,
    /// The name that counts the repetitions from 0, if one is wanted.
    pub index: Option<Ident>,
    /// What is repeated.
    pub body: Body,
    /// The whole statement.
    pub span: Span,
}

/// `if A { ... } else if B { ... } else { ... }` as a statement.
#[derive(Clone, Debug, PartialEq)]
pub struct If {
    /// The conditions with their bodies, tried in order; at least one.
    pub branches: Vec<Branch<Body>>,
    /// The body used when no condition holds.
    pub otherwise: Option<Body>,
    /// The whole statement.
    pub span: Span,
}

/// A condition with what it selects.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch<T> {
    /// The condition.
    pub condition: Expr,
    /// What is selected where the condition holds.
    pub then: T,
}

/// `NAME`, `NAME(arguments)`, `NAME { body }` or `NAME(arguments) { body }`.
///
/// As an expression a call always has its parentheses and never a body; a bare name is [`ExprKind::Name`].
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// What is called: a layer, a block, a router, a loss, an optimizer.
    pub name: Ident,
    /// The arguments in source order; `None` where there are no parentheses.
    pub arguments: Option<Arguments>,
    /// The sequence in braces, if there is one.
    pub body: Option<Body>,
    /// The whole call.
    pub span: Span,
}

impl Call {
    /// The arguments, none where there are no parentheses.
    pub fn arguments(&self) -> &[Argument] {
        self.arguments.as_ref().map_or(&[], |arguments| &arguments.list)
    }
}

/// Arguments between parentheses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments {
    /// The arguments in source order.
    pub list: Vec<Argument>,
    /// The parentheses and what is between them.
    pub span: Span,
}

/// `name: value`. A bare value has no name; the grammar lets it through so that checking can name the arguments that
/// the thing called really has.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    /// The argument's name, `None` for a bare value.
    pub name: Option<Ident>,
    /// Its value.
    pub value: Expr,
    /// The whole argument.
    pub span: Span,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Its text, without parentheses around it.
    pub span: Span,
}

/// What an expression is.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// An integer, never negative: `-1` is a negation.
    Int(i64),
    /// A finite number with a fraction or an exponent.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// Text in quotes, escapes resolved.
    String(String),
    /// A bare name: a binding, or a word such as `relu`.
    Name(String),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `name(argument: value, ...)`
    Call(Call),
    /// `-x` or `!x`
    Unary {
        /// The operator.
        operator: Spanned<UnaryOperator>,
        /// Its operand.
        operand: Box<Expr>,
    },
    /// `a + b` and its like.
    Binary {
        /// The operator.
        operator: Spanned<BinaryOperator>,
        /// The left operand.
        left: Box<Expr>,
        /// The right operand.
        right: Box<Expr>,
    },
    /// `if a { x } else if b { y } else { z }` as a value.
    If {
        /// The conditions with their values, tried in order; at least one.
        branches: Vec<Branch<Expr>>,
        /// The value when no condition holds.
        otherwise: Box<Expr>,
    },
    /// `{ layer_norm  mlp(hidden: 512) }`: a layer sequence as a value.
    Sequence(Body),
}

/// A prefix operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnaryOperator {
    /// `-`
    Negate,
    /// `!`
    Not,
}

impl UnaryOperator {
    /// The operator as written.
    pub fn symbol(self) -> &'static str {
        match self {
            UnaryOperator::Negate => "-",
            UnaryOperator::Not => "!",
        }
    }
}

/// An operator between two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOperator {
    /// `||`
    Or,
    /// `&&`
    And,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`: multiplies numbers, and takes a number of experts (`8 * mlp(hidden: 512)`).
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Remainder,
    /// `@`: the products of rows with a matrix, in routers.
    Product,
}

impl BinaryOperator {
    /// Every operator, loosest first.
    pub const ALL: [BinaryOperator; 14] = [
        BinaryOperator::Or,
        BinaryOperator::And,
        BinaryOperator::Equal,
        BinaryOperator::NotEqual,
        BinaryOperator::Less,
        BinaryOperator::LessEqual,
        BinaryOperator::Greater,
        BinaryOperator::GreaterEqual,
        BinaryOperator::Add,
        BinaryOperator::Subtract,
        BinaryOperator::Multiply,
        BinaryOperator::Divide,
        BinaryOperator::Remainder,
        BinaryOperator::Product,
    ];

    /// The operator as written.
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOperator::Or => "||",
            BinaryOperator::And => "&&",
            BinaryOperator::Equal => "==",
            BinaryOperator::NotEqual => "!=",
            BinaryOperator::Less => "<",
            BinaryOperator::LessEqual => "<=",
            BinaryOperator::Greater => ">",
            BinaryOperator::GreaterEqual => ">=",
            BinaryOperator::Add => "+",
            BinaryOperator::Subtract => "-",
            BinaryOperator::Multiply => "*",
            BinaryOperator::Divide => "/",
            BinaryOperator::Remainder => "%",
            BinaryOperator::Product => "@",
        }
    }

    /// How tightly it binds, from 1 (`||`) to 5 (`*`). Comparisons (3) do not chain; the others group to the left.
    pub fn precedence(self) -> u8 {
        match self {
            BinaryOperator::Or => 1,
            BinaryOperator::And => 2,
            BinaryOperator::Equal
            | BinaryOperator::NotEqual
            | BinaryOperator::Less
            | BinaryOperator::LessEqual
            | BinaryOperator::Greater
            | BinaryOperator::GreaterEqual => COMPARISON,
            BinaryOperator::Add | BinaryOperator::Subtract => 4,
            BinaryOperator::Multiply | BinaryOperator::Divide | BinaryOperator::Remainder | BinaryOperator::Product => {
                5
            }
        }
    }

    /// Whether this compares two values.
    pub fn is_comparison(self) -> bool {
        self.precedence() == COMPARISON
    }
}

const COMPARISON: u8 = 3;
