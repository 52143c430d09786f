//! What is known about a text and those that it imports.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use gen_lsp_types::{Location, Uri};
use moec_model::reference::{self, Origin};
use moec_model::{
    CheckOptions, Form, LayerInfo, LowerOptions, Mode, Model, NoisePolicy, Recipe, Registry, Vocab, check, lower,
};
use moec_syntax::{self as ast, Code, Diagnostic, FileId, Item, SourceFile, Span, Token};

use crate::documents::Documents;
use crate::names::{Kind, Names};
use crate::text::Text;

/// Characters of a text that is not known, as `moec compile` assumes: those of Tiny Shakespeare.
pub(crate) const ASSUMED_CHARACTERS: usize = 65;

pub(crate) struct Analysis {
    pub(crate) uri: Uri,
    pub(crate) text: Rc<Text>,
    pub(crate) source: SourceFile,
    /// The paths of files that it imports, whether they are there or not.
    pub(crate) asked: BTreeSet<String>,
    /// What can be read of it.
    pub(crate) file: ast::File,
    pub(crate) tokens: Vec<Token>,
    pub(crate) names: Names,
    /// What is wrong with it.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Its own models, where nothing is wrong.
    pub(crate) models: Vec<(Model, Recipe)>,
    /// What it can name, with its own routers.
    pub(crate) registry: Registry,
    costs: OnceCell<Vec<(Vocab, Vec<LayerInfo>)>>,
}

impl Analysis {
    pub(crate) fn new(
        uri: Uri,
        text: Rc<Text>,
        source: SourceFile,
        asked: BTreeSet<String>,
        registry: &Registry,
    ) -> Self {
        let parsed = moec_syntax::parse(&source);
        let (file, mut diagnostics) = match parsed {
            Ok(file) => (file, None),
            // What the checker would say of a text with holes is of no use.
            Err(faults) => (moec_syntax::parse_leniently(&source), Some(faults)),
        };
        let own: Vec<&str> = file.items.iter().filter_map(model_name).collect();
        // A command is told which of several models is meant; in an editor all of them are.
        let wanted: Vec<Option<String>> = match own.as_slice() {
            [] | [_] => vec![None],
            several => several.iter().map(|name| Some((*name).to_owned())).collect(),
        };
        let (mut known, mut models, mut found) = (registry.clone(), Vec::new(), Vec::new());
        for model in wanted {
            let checked = check(&source, &file, registry, &CheckOptions { model });
            known = checked.registry;
            models.extend(checked.model.map(|model| (model, checked.recipe)));
            for diagnostic in checked.diagnostics {
                if !found.contains(&diagnostic) {
                    found.push(diagnostic);
                }
            }
        }
        if is_library(&file) {
            found.retain(|diagnostic| diagnostic.code != Code::NoModel);
        }
        if diagnostics.is_some() {
            models.clear();
        }
        let diagnostics = diagnostics.take().unwrap_or(found);
        let (tokens, names) = (moec_syntax::tokens(&source), Names::of(&file));
        let costs = OnceCell::new();
        Analysis { uri, text, source, asked, file, tokens, names, diagnostics, models, registry: known, costs }
    }

    /// The layers of its models with their sizes and costs, and the vocabulary that these are for.
    pub(crate) fn costs(&self) -> &[(Vocab, Vec<LayerInfo>)] {
        self.costs.get_or_init(|| {
            let of_model = |(model, recipe): &(Model, Recipe)| {
                let vocab = match model.vocab {
                    Vocab::Characters => ASSUMED_CHARACTERS,
                    Vocab::Size(size) => size,
                };
                let options = LowerOptions {
                    mode: Mode::Evaluate,
                    batch: 1,
                    vocab,
                    loss: false,
                    noise: NoisePolicy::Generated,
                    init: recipe.init,
                    precision: recipe.precision,
                    routes: false,
                    form: Form::Sequences,
                };
                // What cannot be built has no sizes to show.
                let lowered = lower(model, &options).ok()?;
                Some((model.vocab, lowered.layers.into_iter().chain(lowered.inner_layers).collect()))
            };
            self.models.iter().filter_map(of_model).collect()
        })
    }

    /// Everything that is known about a router, as `moec explain` prints it.
    pub(crate) fn router(&self, name: &str) -> Option<String> {
        let router = self.registry.find_router(name)?;
        let is_own = self.names.definitions.iter().any(|known| known.kind == Kind::Router && known.name == name);
        let origin = if is_own { Origin::File } else { Origin::of(name, &self.registry) };
        Some(reference::router(router.as_ref(), origin))
    }

    /// The text of one of the files.
    pub(crate) fn text_of(&self, file: FileId) -> Rc<Text> {
        if file == FileId::MAIN { self.text.clone() } else { Rc::new(Text::new(self.source.file(file).text())) }
    }

    /// Where a span lies, for the editor.
    pub(crate) fn location(&self, span: Span, documents: &Documents) -> Location {
        let uri = if span.file() == FileId::MAIN {
            self.uri.clone()
        } else {
            documents.uri(self.source.file(span.file()).name())
        };
        Location::new(uri, self.text_of(span.file()).lines(span.range()))
    }

    /// The import of the text by which a file came.
    pub(crate) fn import_of(&self, file: FileId) -> Option<Span> {
        let brought = self.file.imported.iter().find(|imported| imported.item.span().file() == file);
        let imports =
            || self.file.items.iter().filter_map(|item| if let Item::Import(i) = item { Some(i) } else { None });
        let named =
            || imports().find(|i| self.source.file(file).name().ends_with(i.path.trim_start_matches(['.', '/'])));
        let import = brought.map(|imported| imported.import);
        import.or_else(|| named().map(|i| i.path_span)).or_else(|| imports().next().map(|i| i.path_span))
    }

    /// The file that an import of the text names, if a position is in it.
    pub(crate) fn imported_at(&self, offset: usize) -> Option<&SourceFile> {
        let at = |item: &Item| match item {
            Item::Import(import) if import.path_span.range().contains(&offset) => Some(import.path_span),
            _ => None,
        };
        let path = self.file.items.iter().find_map(at)?;
        self.source.imported().map(|(_, file)| file).find(|file| self.import_of(file.id()) == Some(path))
    }
}

fn model_name(item: &Item) -> Option<&str> {
    if let Item::Model(model) = item { Some(&model.name.name) } else { None }
}

/// Whether a file is there to be imported: it defines something, but no model.
fn is_library(file: &ast::File) -> bool {
    let has = |test: fn(&Item) -> bool| file.all_items().any(|(item, _)| test(item));
    has(|item| matches!(item, Item::Router(_) | Item::Block(_))) && !has(|item| matches!(item, Item::Model(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Analysis {
        let source = SourceFile::new("a.moe", text);
        let text = Rc::new(Text::new(text));
        Analysis::new(Uri("untitled:a.moe".into()), text, source, BTreeSet::new(), &Registry::with_builtins())
    }

    fn codes(known: &Analysis) -> Vec<&'static str> {
        known.diagnostics.iter().map(|found| found.code.number()).collect()
    }

    const BODY: &str = "context 4 vocab 9 embed(width: 8) unembed";

    #[test]
    fn every_model_of_a_file_counts() {
        let two = known(&format!("model a {{ {BODY} }}\nmodel b {{ {BODY} }}"));
        assert!(codes(&two).is_empty(), "{:?}", two.diagnostics);
        assert_eq!(two.costs().len(), 2);
        let twice = known(&format!("model a {{ {BODY} }}\nmodel b {{ {BODY} }}\ntrain {{ steps 0 }}"));
        assert_eq!(codes(&twice), ["E0302"], "what is wrong with the recipe is said once");
    }

    #[test]
    fn a_file_that_is_there_to_be_imported_needs_no_model() {
        assert!(codes(&known("block b { relu }")).is_empty());
        assert_eq!(codes(&known("")), ["E0401"]);
        assert_eq!(codes(&known("train { steps 1 }")), ["E0401"]);
    }

    #[test]
    fn faults_of_the_text_hide_what_would_follow_from_them() {
        let half = known(&format!("model a {{ {BODY} }}\nblock b {{ mlp(hidden 4) nothing }}\ntrain {{ steps = 3 }}"));
        assert_eq!(codes(&half), ["E0106", "E0118"]);
        assert!(half.costs().is_empty());
        assert_eq!(half.names.definitions.len(), 2);
    }
}
