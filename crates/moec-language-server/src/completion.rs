//! What could be written at a place of a text.

use gen_lsp_types::{
    CompletionItem, CompletionItemKind, CompletionItemTextEdit, InsertTextFormat, MarkupContent, MarkupKind, TextEdit,
};
use moec_model::{
    DefaultValue, LAYERS, ParameterSpec, ParameterType, SettingForm, ZeroComputation, reference, train_settings,
};
use moec_syntax::{FileId, Span};

use crate::analysis::Analysis;
use crate::declared;
use crate::names::Kind;
use crate::place::{Callee, Place, place};

/// What an editor can take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// Texts with places to fill in.
    pub(crate) snippets: bool,
}

/// What could stand at a byte, in the order in which it is declared.
pub(crate) fn at(known: &Analysis, offset: usize, taken: Taken) -> Vec<CompletionItem> {
    let word = known.text.word(offset);
    let found = place(&known.source, &known.tokens, word.start);
    let mut list = List { known, word, taken, offset, items: Vec::new() };
    list.of(&found);
    list.items
}

struct List<'a> {
    known: &'a Analysis,
    /// The word that is being written, which a choice replaces.
    word: std::ops::Range<usize>,
    taken: Taken,
    offset: usize,
    items: Vec<CompletionItem>,
}

impl List<'_> {
    fn of(&mut self, place: &Place) {
        match place {
            Place::Unknown => {}
            Place::Item => {
                for (word, snippet) in [
                    (
                        "model",
                        "model ${1:name} {\n  context ${2:32}\n  vocab   characters\n\n  embed(width: ${3:64})\n  $0\n  unembed\n}",
                    ),
                    ("block", "block ${1:name} {\n  $0\n}"),
                    ("router", "router ${1:name}(${2:k: int}) {\n  $0\n}"),
                    ("train", "train {\n  $0\n}"),
                    ("import", "import \"$1\""),
                ] {
                    self.add(word, CompletionItemKind::Keyword, "", None, snippet);
                }
            }
            Place::Statement { of_model } => {
                self.layers();
                self.names(|kind| kind == Kind::Block);
                for (word, snippet) in [
                    ("let", "let ${1:name} = $0"),
                    ("repeat", "repeat ${1:2} {\n  $0\n}"),
                    ("if", "if ${1:condition} {\n  $0\n}"),
                    ("block", "block ${1:name} {\n  $0\n}"),
                ] {
                    self.add(word, CompletionItemKind::Keyword, "", None, snippet);
                }
                if *of_model {
                    self.add(
                        "context",
                        CompletionItemKind::Property,
                        "tokens that the model sees at once",
                        None,
                        "context $0",
                    );
                    self.add(
                        "vocab",
                        CompletionItemKind::Property,
                        "number of tokens, or `characters`",
                        None,
                        "vocab $0",
                    );
                }
            }
            Place::Setting => {
                for setting in train_settings() {
                    let snippet = match &setting.form {
                        SettingForm::Arguments(specs) => with_arguments(setting.name, specs, 2),
                        SettingForm::Data | SettingForm::Value(..) | SettingForm::Choice(_) => {
                            format!("{} $0", setting.name)
                        }
                    };
                    let text = reference::setting(setting);
                    self.add(setting.name, CompletionItemKind::Property, setting.help, Some(text), &snippet);
                }
            }
            Place::SettingValue(name) => self.setting_value(name),
            Place::RouterStatement => {
                for (word, snippet) in [
                    ("let", "let ${1:name} = $0"),
                    ("state", "state ${1:name} = $0"),
                    ("table", "table ${1:name} = ${2:balanced}"),
                    ("repeat", "repeat ${1:3} {\n  $0\n}"),
                    ("update", "update ${1:name} = $0"),
                    ("aux", "aux ${1:name}(weight: ${2:0.01}) = $0"),
                    ("return", "return token_choice(experts: ${1:chosen}, weights: ${2:weights})"),
                ] {
                    self.add(word, CompletionItemKind::Keyword, "", None, snippet);
                }
            }
            Place::Argument { callee, given } => {
                if let Callee::Function(_) = callee {
                    self.router_values();
                    self.add("over", CompletionItemKind::Field, "the axis that is summed", None, "over: $0");
                }
                if let Callee::Layer(name) = callee {
                    self.parameters_of_block(name, given);
                }
                for parameter in declared::parameters(callee, &self.known.registry) {
                    if !given.iter().any(|name| *name == parameter.name) {
                        let text = declared::parameter_line(&parameter);
                        let snippet = format!("{}: $0", parameter.name);
                        self.add(&parameter.name, CompletionItemKind::Field, &parameter.help, Some(text), &snippet);
                    }
                }
            }
            Place::Value { callee, argument } => self.value(callee, argument),
            Place::Expression => self.values(),
            Place::Vocab => {
                self.word("characters", "one token for each distinct character of the training text");
                self.values();
            }
            Place::RouterValue => self.router_values(),
            Place::Type => ["int", "float", "bool"].into_iter().for_each(|ty| self.word(ty, "")),
        }
    }

    fn value(&mut self, callee: &Callee, argument: &str) {
        if let Callee::Function(_) = callee {
            if argument == "over" {
                ["tokens", "experts", "width", "positions"].into_iter().for_each(|axis| self.word(axis, "an axis"));
            }
            return self.router_values();
        }
        match (callee, argument) {
            (Callee::Layer(_), "experts" | "shared") => {
                self.names(|kind| kind == Kind::Block);
                self.layers();
                if argument == "experts" {
                    for kind in ZeroComputation::ALL {
                        self.word(kind.word(), kind.summary());
                    }
                }
                return self.values();
            }
            (Callee::Layer(_), "route") => {
                let routers: Vec<_> = self.known.registry.routers().cloned().collect();
                for router in routers {
                    let text = self.known.router(router.name());
                    let snippet = with_arguments(router.name(), router.parameters(), 0);
                    self.add(router.name(), CompletionItemKind::Function, router.summary(), text, &snippet);
                }
                return;
            }
            (Callee::Layer(_), "balance") => {
                let losses: Vec<_> = self.known.registry.losses().copied().collect();
                for loss in losses {
                    let text = reference::loss(&loss, &self.known.registry);
                    let snippet = format!("{}(weight: ${{1:{}}})", loss.name, loss.weight);
                    self.add(loss.name, CompletionItemKind::Function, loss.summary, Some(text), &snippet);
                }
                return;
            }
            _ => {}
        }
        let parameters = declared::parameters(callee, &self.known.registry);
        let Some(parameter) = parameters.iter().find(|parameter| parameter.name == argument) else {
            return self.values();
        };
        self.typed(&parameter.ty, &parameter.default, &parameter.help);
    }

    /// Values of a type.
    fn typed(&mut self, ty: &ParameterType, default: &DefaultValue, help: &str) {
        match ty {
            ParameterType::Choice(words) => words.iter().for_each(|word| self.word(word, help)),
            ParameterType::Bool => {
                self.word("true", help);
                self.word("false", help);
                self.values();
            }
            ParameterType::Int(_) | ParameterType::Float(_) => self.values(),
            ParameterType::Form(form) => {
                let name = form.split('(').next().unwrap_or_default();
                let forms = LAYERS.iter().flat_map(|layer| layer.forms).find(|(known, _)| *known == name);
                if let Some((name, specs)) = forms {
                    self.add(name, CompletionItemKind::Function, help, None, &with_arguments(name, specs, 1));
                }
            }
            ParameterType::Text => {}
        }
        if let DefaultValue::Absent(word) = default
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            self.word(word, help);
        }
    }

    fn setting_value(&mut self, name: &str) {
        let Some(setting) = declared::setting(name) else { return };
        match &setting.form {
            SettingForm::Data => {
                self.word("synthetic", "a generated text that needs nothing from outside");
                let names: Vec<&str> = self.known.registry.data_sets().map(|set| set.name).collect();
                names.into_iter().for_each(|name| self.word(name, "a known text, which is downloaded once"));
                self.add("\"..\"", CompletionItemKind::File, "the path of a text file", None, "\"$0\"");
            }
            SettingForm::Value(ty, default) => self.typed(ty, default, setting.help),
            SettingForm::Arguments(_) => {}
            SettingForm::Choice(choices) => {
                for (choice, specs) in choices {
                    let part = reference::recipe_parts().find(|part| part.kind == name && part.name == *choice);
                    let summary = part.map_or(setting.help, |part| part.summary);
                    let snippet = with_arguments(choice, specs, 1);
                    self.add(choice, CompletionItemKind::EnumMember, summary, part.map(|part| part.text()), &snippet);
                }
            }
        }
    }

    fn layers(&mut self) {
        for layer in LAYERS {
            let call = with_arguments(layer.name, layer.parameters, 0);
            let call = call.strip_suffix("()").unwrap_or(&call).to_owned();
            let snippet = if layer.has_layers { format!("{call} {{\n  $0\n}}") } else { call };
            self.add(layer.name, CompletionItemKind::Class, layer.summary, Some(reference::layer(layer)), &snippet);
        }
    }

    /// What the text has defined.
    fn names(&mut self, is_kind: impl Fn(Kind) -> bool) {
        let at = Span::new(FileId::MAIN, self.word.start..self.word.start);
        let found = self.known.names.visible(at).into_iter().filter(|definition| is_kind(definition.kind));
        // What is being defined there is no choice.
        let found =
            found.filter(|definition| definition.span.range() != self.word || definition.span.file() != FileId::MAIN);
        let found: Vec<(String, String, Kind)> = found
            .map(|definition| {
                let line = self.known.source.slice(definition.whole).lines().next().unwrap_or_default();
                (definition.name.clone(), line.trim_end_matches(['{', ' ']).to_owned(), definition.kind)
            })
            .collect();
        for (name, line, kind) in found {
            let kind = if kind == Kind::Block { CompletionItemKind::Struct } else { CompletionItemKind::Variable };
            self.add(&name, kind, &line, None, &name);
        }
    }

    /// What the block of that name can be given.
    fn parameters_of_block(&mut self, name: &str, given: &[String]) {
        let at = Span::new(FileId::MAIN, self.word.start..self.word.start);
        let names = &self.known.names;
        let Some(block) = names.visible(at).into_iter().find(|d| d.kind == Kind::Block && d.name == name) else {
            return;
        };
        let number = names.written_at(block.span);
        let of_block = names.definitions.iter().filter(|d| number.is_some_and(|n| d.kind == Kind::Parameter(n)));
        let found: Vec<(String, String)> =
            of_block.map(|d| (d.name.clone(), self.known.source.slice(d.whole).to_owned())).collect();
        for (name, written) in found.into_iter().filter(|(name, _)| !given.contains(name)) {
            self.add(&name, CompletionItemKind::Field, &written, None, &format!("{name}: $0"));
        }
    }

    /// What an expression can name.
    fn values(&mut self) {
        self.names(Kind::is_value);
    }

    fn router_values(&mut self) {
        self.names(Kind::is_value);
        for (name, what) in BUILT_IN {
            self.add(name, CompletionItemKind::Constant, what, None, name);
        }
        for function in declared::functions() {
            let snippet = format!("{}($0)", function.name);
            self.add(
                function.name,
                CompletionItemKind::Function,
                function.form,
                Some(function.summary.to_owned()),
                &snippet,
            );
        }
    }

    fn word(&mut self, word: &str, what: &str) {
        self.add(word, CompletionItemKind::EnumMember, what, None, word);
    }

    /// `snippet` is what is written, with `$1` where something is to be filled in.
    fn add(&mut self, label: &str, kind: CompletionItemKind, detail: &str, text: Option<String>, snippet: &str) {
        if !self.taken.snippets && self.items.iter().any(|item| item.label == label) {
            return;
        }
        let (new, format) = if self.taken.snippets && snippet.contains('$') {
            (snippet.to_owned(), InsertTextFormat::Snippet)
        } else if snippet == label || label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            (label.to_owned(), InsertTextFormat::PlainText)
        } else {
            return;
        };
        let range = self.known.text.lines(self.word.start..self.word.end.max(self.offset));
        self.items.push(CompletionItem {
            label: label.to_owned(),
            kind: Some(kind),
            detail: (!detail.is_empty()).then(|| detail.to_owned()),
            documentation: text.map(|text| block(&text).into()),
            sort_text: Some(format!("{:04}", self.items.len())),
            insert_text_format: Some(format),
            text_edit: Some(CompletionItemTextEdit::TextEdit(TextEdit::new(range, new))),
            ..CompletionItem::default()
        });
    }
}

/// Names that every router knows.
pub(crate) const BUILT_IN: [(&str, &str); 8] = [
    ("x", "the activations, [tokens, width]"),
    ("experts", "number of experts"),
    ("width", "width of the activations"),
    ("tokens", "number of tokens, a float"),
    ("training", "whether this is training"),
    ("token_ids", "indices, [tokens]"),
    ("previous_ids", "indices of the tokens before, -1 for the first of a sequence"),
    ("position", "indices, [tokens]"),
];

/// `noisy_top_k(k: ${1})`: with what must be given, and as many as are wanted of those that have defaults.
fn with_arguments(name: &str, parameters: &[ParameterSpec], defaults: usize) -> String {
    let required = parameters.iter().filter(|p| p.default == DefaultValue::Required);
    let wanted = required.chain(parameters.iter().filter(|p| p.default.value().is_some()).take(defaults));
    let wanted: Vec<String> = wanted
        .enumerate()
        .map(|(i, p)| match &p.default {
            DefaultValue::Required => format!("{}: ${{{}}}", p.name, i + 1),
            default => format!("{}: ${{{}:{default}}}", p.name, i + 1),
        })
        .collect();
    if wanted.is_empty() && parameters.is_empty() { name.to_owned() } else { format!("{name}({})", wanted.join(", ")) }
}

/// Lines of plain text as they are.
pub(crate) fn block(text: &str) -> MarkupContent {
    MarkupContent::new(MarkupKind::Markdown, format!("```text\n{}\n```", text.trim_end()))
}
