//! Properties over generated trees and arbitrary text: printing and parsing are inverse, formatting is idempotent and
//! keeps every comment, and no text makes the parser panic, hang or overflow the stack.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, also in its shared functions")]

use moec_syntax::{
    Argument, Arguments, Aux, BinaryOperator, Block, Body, Branch, Call, Code, Expr, ExprKind, File, Ident, If, Import,
    Item, Let, Model, Parameter, Parameters, Repeat, Return, Router, RouterLet, RouterRepeat, RouterStatement, Setting,
    SourceFile, Span, Spanned, Statement, Train, TrainSetting, UnaryOperator, format, parse, parse_value,
};
use proptest::prelude::*;

fn ident(name: String) -> Ident {
    Ident { name, span: Span::default() }
}

fn expr(kind: ExprKind) -> Expr {
    Expr { kind, span: Span::default() }
}

fn body(statements: Vec<Statement>) -> Body {
    Body { statements, span: Span::default() }
}

fn name() -> impl Strategy<Value = String> {
    let reserved = |name: &String| {
        let words =
            ["model", "block", "train", "let", "repeat", "as", "if", "else", "true", "false", "router", "import"];
        let others = ["and", "or", "not", "context", "vocab"];
        !words.contains(&name.as_str()) && !others.contains(&name.as_str())
    };
    "[a-z_][a-zA-Z0-9_]{0,12}".prop_filter("reserved", reserved)
}

fn call(value: impl Strategy<Value = Expr> + 'static) -> impl Strategy<Value = Call> {
    let argument = (proptest::option::of(name()), value).prop_map(|(name, value)| Argument {
        name: name.map(ident),
        value,
        span: Span::default(),
    });
    (name(), proptest::collection::vec(argument, 0..4)).prop_map(|(name, list)| Call {
        name: ident(name),
        arguments: Some(Arguments { list, span: Span::default() }),
        body: None,
        span: Span::default(),
    })
}

fn layer(call: Call, bare: bool, inner: Option<Body>) -> Statement {
    let arguments = if bare { None } else { call.arguments };
    Statement::Layer(Call { arguments, body: inner, ..call })
}

fn expression() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        (0..=i64::MAX).prop_map(ExprKind::Int),
        (0i64..100).prop_map(ExprKind::Int),
        proptest::num::f64::POSITIVE.prop_map(ExprKind::Float),
        any::<bool>().prop_map(ExprKind::Bool),
        any::<String>().prop_map(ExprKind::String),
        name().prop_map(ExprKind::Name),
    ]
    .prop_map(expr);
    leaf.prop_recursive(5, 40, 4, |inner| {
        let operator = proptest::sample::select(BinaryOperator::ALL.to_vec());
        let unary = proptest::sample::select(vec![UnaryOperator::Negate, UnaryOperator::Not]);
        let branch = (inner.clone(), inner.clone()).prop_map(|(condition, then)| Branch { condition, then });
        let layers = proptest::collection::vec((call(inner.clone()), any::<bool>()), 0..4);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|list| expr(ExprKind::List(list))),
            call(inner.clone()).prop_map(|call| expr(ExprKind::Call(call))),
            (unary, inner.clone()).prop_map(|(value, operand)| expr(ExprKind::Unary {
                operator: Spanned { value, span: Span::default() },
                operand: Box::new(operand),
            })),
            (operator, inner.clone(), inner.clone()).prop_map(|(value, left, right)| expr(ExprKind::Binary {
                operator: Spanned { value, span: Span::default() },
                left: Box::new(left),
                right: Box::new(right),
            })),
            (proptest::collection::vec(branch, 1..3), inner)
                .prop_map(|(branches, other)| expr(ExprKind::If { branches, otherwise: Box::new(other) })),
            layers.prop_map(|list| {
                let statements = list.into_iter().map(|(call, bare)| layer(call, bare, None)).collect();
                expr(ExprKind::Sequence(body(statements)))
            }),
        ]
    })
}

fn statement() -> BoxedStrategy<Statement> {
    let span = Span::default();
    let leaf = prop_oneof![
        (name(), expression()).prop_map(move |(name, value)| Statement::Let(Let { name: ident(name), value, span })),
        (proptest::sample::select(vec!["context", "vocab"]), expression()).prop_map(move |(name, value)| {
            Statement::Setting(Setting { name: ident(name.to_owned()), value, span })
        }),
        (call(expression()), any::<bool>()).prop_map(|(call, bare)| layer(call, bare, None)),
    ];
    let nested = leaf.prop_recursive(3, 20, 4, move |inner| {
        let statements = proptest::collection::vec(inner, 0..4).prop_map(body);
        let branch = (expression(), statements.clone()).prop_map(|(condition, then)| Branch { condition, then });
        prop_oneof![
            (call(expression()), any::<bool>(), statements.clone()).prop_map(|(call, bare, inner)| layer(
                call,
                bare,
                Some(inner)
            )),
            (expression(), proptest::option::of(name()), statements.clone()).prop_map(move |(count, index, body)| {
                Statement::Repeat(Repeat { count, index: index.map(ident), body, span })
            }),
            (proptest::collection::vec(branch, 1..3), proptest::option::of(statements.clone()))
                .prop_map(move |(branches, otherwise)| Statement::If(If { branches, otherwise, span })),
            (name(), proptest::option::of(parameters()), statements).prop_map(move |(name, parameters, body)| {
                Statement::Block(Block { name: ident(name), parameters, body, span })
            }),
        ]
    });
    nested.boxed()
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let span = Span::default();
    let parameter = (name(), name(), proptest::option::of(expression()))
        .prop_map(move |(name, ty, default)| Parameter { name: ident(name), ty: ident(ty), default, span });
    proptest::collection::vec(parameter, 0..4).prop_map(move |list| Parameters { list, span })
}

fn router() -> impl Strategy<Value = Router> {
    let span = Span::default();
    let named = || (name(), expression()).prop_map(move |(name, value)| Let { name: ident(name), value, span });
    let arguments = proptest::option::of(call(expression()).prop_map(|call| call.arguments.unwrap_or_default()));
    let plain = prop_oneof![
        (proptest::collection::vec(name().prop_map(ident), 1..3), expression())
            .prop_map(move |(names, value)| RouterStatement::Let(RouterLet { names, value, span })),
        named().prop_map(RouterStatement::State),
        named().prop_map(RouterStatement::Table),
        named().prop_map(RouterStatement::Update),
        (name(), arguments, expression()).prop_map(move |(name, arguments, value)| RouterStatement::Aux(Aux {
            name: ident(name),
            arguments,
            value,
            span
        })),
        expression().prop_map(move |value| RouterStatement::Return(Return { value, span })),
    ];
    let plain = plain.boxed();
    let assigned = prop_oneof![4 => plain.clone(), 1 => named().prop_map(RouterStatement::Assign)];
    let repeat = (expression(), proptest::collection::vec(assigned, 0..4)).prop_map(move |(count, statements)| {
        RouterStatement::Repeat(RouterRepeat { count, statements, body_span: span, span })
    });
    let statement = prop_oneof![6 => plain, 1 => repeat];
    (name(), proptest::option::of(parameters()), proptest::collection::vec(statement, 0..5)).prop_map(
        move |(name, parameters, statements)| Router {
            name: ident(name),
            parameters,
            statements,
            body_span: span,
            span,
        },
    )
}

fn file() -> impl Strategy<Value = File> {
    let span = Span::default();
    let statements = proptest::collection::vec(statement(), 0..5).prop_map(body).boxed();
    let setting = prop_oneof![
        (name(), expression()).prop_map(move |(name, value)| TrainSetting::Value(Setting {
            name: ident(name),
            value,
            span
        })),
        call(expression()).prop_map(TrainSetting::Call),
    ];
    let item = prop_oneof![
        (name(), statements.clone()).prop_map(move |(name, body)| Item::Model(Model { name: ident(name), body, span })),
        (name(), proptest::option::of(parameters()), statements)
            .prop_map(move |(name, parameters, body)| Item::Block(Block { name: ident(name), parameters, body, span })),
        proptest::collection::vec(setting, 0..5).prop_map(move |settings| Item::Train(Train {
            settings,
            body_span: span,
            span
        })),
        router().prop_map(Item::Router),
        // A number keeps two imports of a file apart.
        (any::<u64>(), "[^\u{0}]{0,8}").prop_map(move |(number, text)| {
            Item::Import(Import { path: format!("{text}{number}.moe"), path_span: span, span })
        }),
    ];
    proptest::collection::vec(item, 0..4).prop_map(|items| File { items, imported: Vec::new() })
}

/// The tree as text without its spans, which print as `12..34`.
fn shape(file: &File) -> String {
    let text = format!("{file:?}");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("span: ") {
        out.push_str(&rest[..at]);
        rest = rest[at + "span: ".len()..].trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    }
    out.push_str(rest);
    out
}

fn parsed(text: &str) -> File {
    let source = SourceFile::new("generated.moe", text).with_imports(|_| Ok(Vec::new()));
    parse(&source).unwrap_or_else(|faults| panic!("{}\n{text}", faults[0].render(&source, false)))
}

fn formatted(text: &str) -> String {
    format(&SourceFile::new("generated.moe", text)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn printing_and_parsing_are_inverse(file in file()) {
        let text = file.to_string();
        prop_assert_eq!(shape(&parsed(&text)), shape(&file), "{}", text);
        prop_assert_eq!(formatted(&text), text);
    }

    #[test]
    fn formatting_keeps_tree_and_comments_wherever_they_stand(file in file(), seed in any::<u64>()) {
        let text = scattered(&file.to_string(), seed);
        let once = formatted(&text);
        prop_assert_eq!(shape(&parsed(&once)), shape(&file), "{}", text);
        prop_assert_eq!(&formatted(&once), &once, "{}", text);
        prop_assert_eq!(once.matches("// c").count(), text.matches("// c").count(), "{}", once);
        prop_assert!(!once.contains("\n\n\n") && once.lines().all(|line| line.trim_end() == line), "{}", once);
    }

    #[test]
    fn arbitrary_text_is_answered(text in any::<String>()) {
        answer(&text);
    }

    #[test]
    fn text_of_the_language_in_any_order_is_answered(words in proptest::collection::vec(word(), 0..60)) {
        answer(&words.concat());
    }

    #[test]
    fn a_damaged_file_is_answered(file in file(), at in any::<prop::sample::Index>(), with in word(), cut in 0usize..8) {
        let mut text = file.to_string();
        let boundaries: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
        let start = at.index(boundaries.len());
        let end = (start + cut).min(boundaries.len() - 1);
        text.replace_range(boundaries[start]..boundaries[end], &with);
        answer(&text);
    }
}

fn word() -> impl Strategy<Value = String> {
    let words = [
        "model", "block", "train", "let", "repeat", "as", "if", "else", "true", "router", "import", "context", "vocab",
        "state", "update", "aux", "return", "mlp", "x", "and", "not", "{", "}", "(", ")", "[", "]", ",", ":", "=",
        "==", "<", "&&", "||", "&", "+", "-", "*", "/", "//", "!", "\n", "\n  ", " ", " ", "1", "2.5", "1e-3", ".5",
        "\"", "\"a\"", "'", ";", ".", "#", "\u{a0}", "é", "→", "\\", "\r\n", "\t", "\u{0}",
    ];
    proptest::sample::select(words.to_vec()).prop_map(str::to_owned)
}

/// Parses and renders whatever comes of it. Spans must lie in the text and errors must be in order.
fn answer(text: &str) {
    let source = SourceFile::new("any.moe", text);
    let source = source.with_imports(|path| Err(format!("no {path}")));
    if let Err(faults) = parse(&source) {
        assert!(!faults.is_empty() && faults.len() <= 20, "{text:?}");
        assert!(faults.is_sorted_by_key(|fault| fault.span().map(Span::before)), "{text:?}");
        for fault in faults {
            for label in &fault.labels {
                assert!(source.text().get(label.span.range()).is_some(), "{text:?} {fault:?}");
            }
            fault.render(&source, false);
            fault.render_short(&source);
        }
    }
    let _ = parse_value(&source, 0);
}

/// The text with comments and blank lines put at line ends, before lines and between words outside strings.
fn scattered(text: &str, mut seed: u64) -> String {
    let mut out = String::new();
    let mut in_string = false;
    let mut escaped = false;
    let mut number = 0;
    let mut settled = true;
    for c in text.chars() {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let roll = (seed >> 33) % 40;
        // The value of a setting must start on the line of its name, so nothing is put behind a bare word.
        let place = !in_string && (c == '\n' || (c == ' ' && settled));
        if place && roll < 8 {
            number += 1;
            out.push_str(&format!(" // c{number} {{ \" \n"));
            if roll < 4 {
                out.push_str("\n\n  \n");
            }
        }
        out.push(c);
        if in_string {
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
        } else {
            in_string = c == '"';
            settled = c == ' ' && settled || "{},()[]=+*:".contains(c);
        }
    }
    out
}

/// The codes of the errors in a text.
fn codes(text: &str) -> Vec<Code> {
    let source = SourceFile::new("hostile.moe", text);
    let faults = parse(&source).err().unwrap_or_default();
    faults.iter().for_each(|fault| assert!(fault.render_short(&source).starts_with("hostile.moe")));
    faults.iter().map(|fault| fault.code).collect()
}

#[test]
fn hostile_text_gets_one_clear_error() {
    for (open, close) in [("{", "}"), ("(", ")"), ("[", "]")] {
        let nested = format!("model m {{ let a = {}{} }}", open.repeat(10_000), close.repeat(10_000));
        assert_eq!(codes(&nested), [Code::TooDeep]);
        assert_eq!(codes(&open.repeat(500_000)), [Code::TooDeep]);
    }
    let model = |value: String| format!("model m {{ let a = {value} }}");
    assert_eq!(codes(&model("-".repeat(100_000) + "1")), [Code::TooDeep]);
    assert_eq!(codes(&model("1+".repeat(100_000) + "1")), [Code::TooDeep]);
    assert_eq!(codes(&model("1*2+".repeat(50_000) + "1")), [Code::TooDeep]);
    assert_eq!(codes(&("if a { b } else ".repeat(10_000) + "{}")), [Code::UnexpectedText]);
    let chain = "if a { b } else ".repeat(10_000) + "{}";
    assert_eq!(codes(&format!("model m {{ {chain} }}")), []);
    assert_eq!(codes(&"x".repeat(1 << 20)), [Code::UnexpectedText]);
    assert_eq!(codes(&" ".repeat((1 << 20) + 1)), [Code::FileTooLarge]);
    assert_eq!(codes(&"\"".repeat(200_000)), [Code::UnexpectedText]);
    assert_eq!(codes(&"\"\n".repeat(200_000)), vec![Code::BadString; 20]);
    assert_eq!(codes(&";".repeat(500_000)), vec![Code::Separator; 20]);
    assert_eq!(codes(&model("1 < 2 ".repeat(3))).len(), 1);
}

#[test]
fn the_deepest_that_is_allowed_works() {
    // One brace of the model and 127 parentheses; then expressions as high as they may be, nested.
    let deep = format!("model m {{ let a = {}1{} }}", "(".repeat(127), ")".repeat(127));
    assert_eq!(codes(&deep), []);
    let value = format!("1{}", "+1".repeat(250));
    assert_eq!(codes(&format!("model m {{ let a = {value} }}")), []);
    let blocks = format!("model m {}{}", "{ residual ".repeat(127) + "{", "}".repeat(128));
    assert_eq!(codes(&blocks), []);
    let text = parsed(&blocks).to_string();
    assert_eq!(formatted(&text), text);
}

#[test]
fn a_large_file_is_parsed() {
    let layer = "  moe(experts: 8 * mlp(hidden: 4 * width, activation: relu), route: noisy_top_k(k: 2))\n";
    let text = format!("model m {{\n{}}}\n", layer.repeat(11_000));
    assert!(text.len() > 900_000);
    assert_eq!(formatted(&text), text);
    let broken = text.replacen("k: 2", "k 2", 15);
    assert_eq!(codes(&broken), vec![Code::ArgumentForm; 15]);
}
