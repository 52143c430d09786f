//! `--config FILE`: values of a spec in a YAML file, which are overrides with a place.
//!
//! What may stand there is what `-s` may name, and nothing else: names of the model (`width: 64`) and the recipe below
//! `train`. Every entry becomes an override that remembers its line, so that it is checked by the same rules.

use crate::cli::args::ReadingArgs;
use crate::cli::exit::{Exit, Failure};
use crate::pipeline;
use moec_model::{Registry, SettingForm, train_settings};
use moec_syntax::{Entry, MAX_SOURCE_BYTES, SourceFile};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use std::ops::Range;
use std::path::Path;

/// Most entries of a file of values: far more than a spec has, and each takes the text before it along.
const MOST_ENTRIES: usize = 1000;

/// A file of values.
#[derive(Debug)]
pub(crate) struct Configuration {
    name: String,
    text: String,
    entries: Vec<Entry>,
}

/// What a command is given for its specs: the entries of `--config`, then the overrides of `-s`, which win.
pub(crate) struct Values<'a> {
    configuration: Option<Configuration>,
    set: &'a [String],
}

impl<'a> Values<'a> {
    /// Reads the file of values, if there is one: once, since it may be a pipe.
    ///
    /// # Errors
    /// When the file cannot be read or is no YAML of this form.
    pub(crate) fn read(config: Option<&Path>, set: &'a [String]) -> Result<Self, Failure> {
        Ok(Self { configuration: config.map(Configuration::read).transpose()?, set })
    }

    /// All of them, as `path=value`.
    pub(crate) fn overrides(&self) -> Vec<String> {
        let entries = self.configuration.iter().flat_map(Configuration::overrides);
        entries.chain(self.set.iter().cloned()).collect()
    }

    /// A spec with the entries of the file at their places, and the overrides behind them.
    pub(crate) fn placed(&self, spec: &SourceFile) -> SourceFile {
        let source = spec.clone().with_overrides(self.set);
        match &self.configuration {
            Some(Configuration { name, text, entries }) => source.with_configuration(name, text, entries),
            None => source,
        }
    }

    /// Holds the entries of the file against a spec.
    ///
    /// # Errors
    /// When one is wrong there, which is shown at its line.
    pub(crate) fn check(&self, spec: &SourceFile, registry: &Registry, model: Option<&str>) -> Result<(), Failure> {
        if self.configuration.is_none() {
            return Ok(());
        }
        let source = self.placed(spec);
        match pipeline::check(&source, registry, model) {
            Ok(_) => Ok(()),
            Err(diagnostics) => Err(Failure::source(source, diagnostics, Exit::Usage)),
        }
    }
}

/// What a command with one spec is given for it, as `path=value`.
///
/// # Errors
/// When the file of values cannot be read, is no YAML of this form, or has a value that is wrong for the spec.
pub(crate) fn given(reading: &ReadingArgs, spec: &SourceFile, registry: &Registry) -> Result<Vec<String>, Failure> {
    let values = Values::read(reading.config.as_deref(), &reading.set)?;
    values.check(spec, registry, reading.model.as_deref())?;
    Ok(values.overrides())
}

impl Configuration {
    fn read(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| {
            let failure = Failure::file("read", path, &e);
            Failure::new(Exit::Usage, failure.to_string())
        })?;
        if bytes.len() > MAX_SOURCE_BYTES {
            return Err(Failure::new(Exit::Usage, format!("{name} is too large for a file of values")));
        }
        let text =
            String::from_utf8(bytes).map_err(|_| Failure::new(Exit::Usage, format!("{name} is not UTF-8 text")))?;
        Self::parse(name, text.strip_prefix('\u{feff}').unwrap_or(&text).to_string())
    }

    fn parse(name: String, text: String) -> Result<Self, Failure> {
        let mut reader = Reader { name: &name, text: &text, offsets: offsets(&text), entries: Vec::new() };
        reader.document()?;
        let entries = reader.entries;
        Ok(Self { name, text, entries })
    }

    fn overrides(&self) -> impl Iterator<Item = String> {
        self.entries.iter().map(|entry| format!("{}={}", entry.path, &self.text[entry.value.clone()]))
    }
}

/// Where each character begins, and where the text ends: YAML is counted in characters here.
fn offsets(text: &str) -> Vec<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).collect()
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    offsets: Vec<usize>,
    entries: Vec<Entry>,
}

/// A mapping that is being read.
struct Level {
    /// The path of its entries, with a point behind it if it has one.
    prefix: String,
    /// A key that waits for its value.
    key: Option<(String, Range<usize>)>,
    seen: Vec<String>,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<(), Failure> {
        let mut levels: Vec<Level> = Vec::new();
        for event in Parser::new_from_str(self.text) {
            let (event, span) = event.map_err(|e| self.no_yaml(&e))?;
            match event {
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
                Event::DocumentStart(_) if self.entries.is_empty() && levels.is_empty() => {}
                Event::DocumentStart(_) => return Err(self.wrong(span, "a file of values is one document")),
                Event::Alias(_) => return Err(self.wrong(span, "an alias has no place in a file of values")),
                Event::SequenceStart(..) | Event::SequenceEnd => {
                    return Err(self.wrong(span, "no value is a list"));
                }
                Event::MappingStart(_, tag) => {
                    let prefix = match levels.last_mut() {
                        None => String::new(),
                        Some(level) => match level.key.take() {
                            Some((path, key)) => self.below(&path, &key),
                            None => return Err(self.wrong(span, "a key is a name")),
                        },
                    };
                    if tag.is_some() {
                        return Err(self.wrong(span, "a tag has no place in a file of values"));
                    }
                    levels.push(Level { prefix, key: None, seen: Vec::new() });
                }
                Event::MappingEnd => {
                    levels.pop();
                }
                Event::Scalar(value, style, _, tag) => {
                    let Some(level) = levels.last_mut() else {
                        // An empty file says nothing.
                        if value.is_empty() || (style == ScalarStyle::Plain && &*value == "~") {
                            continue;
                        }
                        return Err(self.wrong(span, "a file of values has entries `name: value`"));
                    };
                    let bytes = self.bytes(span, style);
                    match level.key.take() {
                        None => {
                            if level.seen.iter().any(|seen| *seen == *value) {
                                return Err(self.wrong(span, &format!("`{value}` stands here twice")));
                            }
                            level.seen.push(value.to_string());
                            level.key = Some((format!("{}{value}", level.prefix), bytes));
                        }
                        Some((path, key)) => {
                            if tag.is_some() || matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
                                return Err(self.wrong(span, "a value is a number, a word or a text on its line"));
                            }
                            if value.is_empty() {
                                return Err(self.wrong(span, &format!("`{path}` has no value")));
                            }
                            if *value != self.text[bytes.clone()] {
                                return Err(self.wrong(span, "a value stands on one line, without escapes and anchors"));
                            }
                            self.entries.push(Entry { path, key, value: bytes });
                            if self.entries.len() > MOST_ENTRIES {
                                return Err(self.wrong(span, &format!("a file of values has at most {MOST_ENTRIES}")));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The prefix of what stands below a key. `optimizer: { sgd: { lr: 0.1 } }` says which optimizer, too: its name is a value
    /// and no part of the path.
    fn below(&mut self, path: &str, key: &Range<usize>) -> String {
        let named = path.strip_prefix("train.").and_then(|rest| rest.split_once('.'));
        if let Some((setting, choice)) = named
            && let Some(spec) = train_settings().iter().find(|spec| spec.name == setting)
            && let SettingForm::Choice(choices) = &spec.form
            && choices.iter().any(|(name, _)| *name == choice)
        {
            let path = format!("train.{setting}");
            self.entries.push(Entry { path: path.clone(), key: key.clone(), value: key.clone() });
            return path + ".";
        }
        format!("{path}.")
    }

    /// The bytes of a scalar without its quotes.
    fn bytes(&self, span: Span, style: ScalarStyle) -> Range<usize> {
        let at = |index: usize| self.offsets.get(index).copied().unwrap_or(self.text.len());
        let (start, end) = (at(span.start.index()), at(span.end.index()));
        let written = &self.text[start..end];
        let end = start + written.trim_end().len();
        match style {
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted if end - start >= 2 => start + 1..end - 1,
            _ => start..end,
        }
    }

    fn no_yaml(&self, error: &ScanError) -> Failure {
        let at = error.marker();
        let place = format!("{}:{}:{}", self.name, at.line(), at.col() + 1);
        Failure::new(Exit::Usage, format!("{place}: this is no YAML: {}", error.info()))
            .help("a file of values has entries such as `width: 64` and, indented below `train:`, `steps: 200`")
    }

    fn wrong(&self, span: Span, what: &str) -> Failure {
        let place = format!("{}:{}:{}", self.name, span.start.line(), span.start.col() + 1);
        Failure::new(Exit::Usage, format!("{place}: {what}"))
            .help("what may stand here is what -s may name: `width: 64`, and below `train:` the settings of the recipe")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(text: &str) -> Vec<String> {
        Configuration::parse("c.yaml".into(), text.into()).unwrap().overrides().collect()
    }

    #[test]
    fn nested_and_dotted_names_are_paths() {
        let text =
            "width: 64   # a let\ntrain:\n  steps: 200\n  optimizer: {lr: 1e-3}\n  data: \"ä b.txt\"\ntrain.batch: 8\n";
        assert_eq!(
            overrides(text),
            ["width=64", "train.steps=200", "train.optimizer.lr=1e-3", "train.data=ä b.txt", "train.batch=8"]
        );
        assert_eq!(
            overrides("train: {optimizer: {sgd: {lr: 0.1}}}"),
            ["train.optimizer=sgd", "train.optimizer.lr=0.1"]
        );
        assert_eq!(overrides("train:\n  schedule: cosine\n"), ["train.schedule=cosine"]);
        assert!(overrides("# nothing\n").is_empty() && overrides("").is_empty());
    }

    #[test]
    fn what_is_no_value_is_refused_at_its_place() {
        let wrong = |text: &str| Configuration::parse("c.yaml".into(), text.into()).unwrap_err().to_string();
        for (text, place) in [
            ("train:\n  steps: [1, 2]\n", "c.yaml:2:10"),
            ("width: 1\nwidth: 2\n", "c.yaml:2:1"),
            ("train:\n  steps:\n", "c.yaml:2:8"),
            ("a: &x 1\nb: *x\n", "c.yaml:1:4"),
            ("width: |\n  64\n", "c.yaml:2:3"),
            ("just words\n", "c.yaml:1:1"),
            ("a: 1\n---\nb: 2\n", "c.yaml:2:1"),
            ("a: \"x\\ty\"\n", "c.yaml:1:4"),
            ("a: 'it''s'\n", "c.yaml:1:4"),
            ("a: one\n  two\n", "c.yaml:1:4"),
            (&(0..1001).map(|i| format!("a{i}: 1\n")).collect::<String>(), "c.yaml:1001:8"),
        ] {
            assert!(wrong(text).starts_with(place), "{text:?}: {}", wrong(text));
        }
        assert!(wrong("a: b: c\n").contains("no YAML"), "{}", wrong("a: b: c\n"));
    }
}
