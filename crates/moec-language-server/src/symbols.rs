//! The outline of a text.

use gen_lsp_types::{DocumentSymbol, SymbolKind};
use moec_syntax::{Body, Ident, Item, RouterStatement, Span, Statement};

use crate::analysis::Analysis;

/// The items of a text, with what is in them.
pub(crate) fn of(known: &Analysis) -> Vec<DocumentSymbol> {
    let symbols = Symbols { known };
    let item = |item: &Item| match item {
        Item::Model(node) => {
            Some(symbols.named(&node.name, "model", SymbolKind::Class, node.span, symbols.body(&node.body)))
        }
        Item::Block(node) => {
            Some(symbols.named(&node.name, "block", SymbolKind::Struct, node.span, symbols.body(&node.body)))
        }
        Item::Router(node) => {
            let statement = |statement: &RouterStatement| match statement {
                RouterStatement::Let(node) => {
                    let name = node.names.first()?;
                    Some(symbols.named(name, "", SymbolKind::Variable, node.span, Vec::new()))
                }
                RouterStatement::State(node) => {
                    Some(symbols.named(&node.name, "state", SymbolKind::Field, node.span, Vec::new()))
                }
                RouterStatement::Table(node) => {
                    Some(symbols.named(&node.name, "table", SymbolKind::Field, node.span, Vec::new()))
                }
                RouterStatement::Update(_)
                | RouterStatement::Aux(_)
                | RouterStatement::Return(_)
                | RouterStatement::Repeat(_)
                | RouterStatement::Assign(_) => None,
            };
            let inner = node.statements.iter().filter_map(statement).collect();
            Some(symbols.named(&node.name, "router", SymbolKind::Function, node.span, inner))
        }
        Item::Train(node) => {
            let setting = |setting: &moec_syntax::TrainSetting| {
                symbols.named(setting.name(), "", SymbolKind::Property, setting.span(), Vec::new())
            };
            let inner = node.settings.iter().map(setting).collect();
            Some(symbols.symbol("train".into(), "", SymbolKind::Object, node.span, node.span.head(5), inner))
        }
        Item::Import(_) => None,
    };
    known.file.items.iter().filter_map(item).collect()
}

struct Symbols<'a> {
    known: &'a Analysis,
}

impl Symbols<'_> {
    fn body(&self, body: &Body) -> Vec<DocumentSymbol> {
        let statement = |statement: &Statement| match statement {
            Statement::Let(node) => Some(self.named(&node.name, "", SymbolKind::Constant, node.span, Vec::new())),
            Statement::Setting(node) => Some(self.named(&node.name, "", SymbolKind::Property, node.span, Vec::new())),
            Statement::Layer(node) => {
                let inner = node.body.as_ref().map(|body| self.body(body)).unwrap_or_default();
                Some(self.named(&node.name, "", SymbolKind::Object, node.span, inner))
            }
            Statement::Repeat(node) => {
                let name = format!("repeat {}", self.known.source.slice(node.count.span));
                let inner = self.body(&node.body);
                Some(self.symbol(name, "", SymbolKind::Array, node.span, node.span.head(6), inner))
            }
            Statement::If(node) => {
                let bodies = node.branches.iter().map(|branch| &branch.then).chain(&node.otherwise);
                let inner = bodies.flat_map(|body| self.body(body)).collect();
                Some(self.symbol("if".into(), "", SymbolKind::Array, node.span, node.span.head(2), inner))
            }
            Statement::Block(node) => {
                Some(self.named(&node.name, "block", SymbolKind::Struct, node.span, self.body(&node.body)))
            }
        };
        body.statements.iter().filter_map(statement).collect()
    }

    fn named(
        &self,
        name: &Ident,
        detail: &str,
        kind: SymbolKind,
        whole: Span,
        inner: Vec<DocumentSymbol>,
    ) -> DocumentSymbol {
        self.symbol(name.name.clone(), detail, kind, whole, name.span, inner)
    }

    fn symbol(
        &self,
        name: String,
        detail: &str,
        kind: SymbolKind,
        whole: Span,
        at: Span,
        inner: Vec<DocumentSymbol>,
    ) -> DocumentSymbol {
        DocumentSymbol {
            name,
            detail: (!detail.is_empty()).then(|| detail.to_owned()),
            kind,
            range: self.known.text.lines(whole.range()),
            selection_range: self.known.text.lines(at.range()),
            children: (!inner.is_empty()).then_some(inner),
            tags: None,
            #[allow(deprecated, reason = "the type has it")]
            deprecated: None,
        }
    }
}
