//! What the word at a place means: the text of `moec explain`, and what the checked model knows of it.

use gen_lsp_types::{Hover, MarkupContent, MarkupKind};
use moec_model::{LayerInfo, Vocab, reference};
use moec_syntax::Span;

use crate::analysis::{ASSUMED_CHARACTERS, Analysis};
use crate::declared;
use crate::names::{Definition, Kind};
use crate::place::{Callee, Place, place};

/// What is known of the word at a byte.
pub(crate) fn at(known: &Analysis, offset: usize) -> Option<Hover> {
    let word = known.text.word(offset);
    let name = known.text.content().get(word.clone()).filter(|name| !name.is_empty())?;
    let span = known.source.span(word.clone());
    // The numbers first: what is explained is long, and the same every time.
    let numbers = costs(known, span).map(|text| fenced("text", &text));
    let parts: Vec<String> = numbers.into_iter().chain(meant(known, name, span)).collect();
    if parts.is_empty() {
        return None;
    }
    let contents = MarkupContent::new(MarkupKind::Markdown, parts.join("\n\n"));
    Some(Hover { contents: contents.into(), range: Some(known.text.lines(word)) })
}

fn fenced(language: &str, text: &str) -> String {
    format!("```{language}\n{}\n```", text.trim_end())
}

fn meant(known: &Analysis, name: &str, span: Span) -> Vec<String> {
    if let Some((_, definition)) = known.names.at(span.before())
        && let Some(definition) = known.names.definitions.get(definition)
    {
        return vec![defined(known, definition)];
    }
    let place = place(&known.source, &known.tokens, span.start());
    explained(known, name, &place).map(|text| fenced("text", &text)).into_iter().collect()
}

/// What a file defines.
fn defined(known: &Analysis, definition: &Definition) -> String {
    let written = known.source.slice(definition.whole);
    let head = written.lines().next().unwrap_or_default().trim_end_matches(['{', ' ']);
    let value = || {
        let of_model = |model: &moec_model::Model| {
            let inside = model.span.to(definition.span) == model.span;
            model
                .bindings
                .iter()
                .find(|(name, _)| inside && *name == definition.name)
                .map(|(_, value)| value.to_string())
        };
        known.models.iter().find_map(|(model, _)| of_model(model))
    };
    match definition.kind {
        Kind::Router => {
            let text = known.router(&definition.name);
            text.map_or_else(|| fenced("moe", head), |text| fenced("text", &text))
        }
        Kind::Let if written.len() <= 400 => match value() {
            Some(value) if !written.trim_end().ends_with(&format!("= {value}")) => {
                fenced("moe", &format!("{written}  // {value}"))
            }
            _ => fenced("moe", written),
        },
        Kind::State if written.len() <= 400 => fenced("moe", written),
        Kind::Model | Kind::Block | Kind::Let | Kind::Index | Kind::Parameter(_) | Kind::State => fenced("moe", head),
    }
}

/// What is declared of a word by what stands around it.
fn explained(known: &Analysis, name: &str, place: &Place) -> Option<String> {
    let registry = &known.registry;
    let layer = || declared::layer(name).map(reference::layer);
    let of_argument = |callee: &Callee, argument: &str| {
        let parameters = declared::parameters(callee, registry);
        parameters.iter().find(|parameter| parameter.name == argument).map(declared::parameter_line)
    };
    match place {
        Place::Statement { .. } => layer().or_else(|| match name {
            "context" => Some("context, a setting of the model: tokens that it sees at once".to_owned()),
            "vocab" => Some("vocab, a setting of the model: number of tokens, or `characters` for one token for each\ndistinct character of the training text".to_owned()),
            _ => None,
        }),
        Place::Setting => declared::setting(name).map(reference::setting),
        Place::SettingValue(setting) => {
            let part = reference::recipe_parts().find(|part| part.kind == setting && part.name == name);
            part.map(|part| part.text()).or_else(|| declared::setting(setting).map(reference::setting))
        }
        Place::Argument { callee: Callee::Function(_), .. } | Place::RouterValue => function(name),
        Place::Argument { callee, .. } => of_argument(callee, name),
        Place::Value { callee: Callee::Function(_), .. } => function(name),
        Place::Value { callee, argument } => {
            let own = match argument.as_str() {
                "route" => known.router(name),
                "balance" => registry.find_loss(name).map(|loss| reference::loss(loss, registry)),
                "experts" | "shared" => layer(),
                _ => None,
            };
            own.or_else(|| of_argument(callee, argument))
        }
        Place::Item | Place::RouterStatement | Place::Expression | Place::Vocab | Place::Type | Place::Unknown => None,
    }
}

fn function(name: &str) -> Option<String> {
    let built_in = crate::completion::BUILT_IN.iter().find(|(known, _)| *known == name);
    let function = declared::functions().find(|function| function.name == name);
    function
        .map(|function| format!("{}\n{}", function.form, function.summary))
        .or_else(|| built_in.map(|(name, what)| format!("{name}: {what}")))
}

/// Shapes, parameters and operations of the layer that begins with a word.
fn costs(known: &Analysis, at: Span) -> Option<String> {
    let mut lines: Vec<String> = Vec::new();
    for (vocab, layers) in known.costs() {
        let here = layers.iter().filter(|info| info.span.file() == at.file() && info.span.start() == at.start());
        let mut alike: Vec<(&LayerInfo, usize)> = Vec::new();
        for info in here {
            let numbers = |info: &LayerInfo| (info.input, info.output, info.parameters, info.active, info.flops);
            match alike.iter_mut().find(|(other, _)| numbers(other) == numbers(info)) {
                Some((_, copies)) => *copies += 1,
                None => alike.push((info, 1)),
            }
        }
        let size = match vocab {
            Vocab::Characters => ASSUMED_CHARACTERS,
            Vocab::Size(size) => *size,
        };
        for (info, copies) in alike {
            // Of those that are alike in every iteration of a `repeat` there is one to read about.
            let star =
                |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*".to_owned() } else { part.to_owned() };
            lines.push(match copies {
                1 => info.path.clone(),
                copies => {
                    format!("{}: {copies} of them, each", info.path.split('.').map(star).collect::<Vec<_>>().join("."))
                }
            });
            // What is sent to an expert are rows; its layer has the parameters of all experts.
            let inside = info.path.split('.').any(|part| part == "experts");
            let (rows, per, of_all) = if inside { ("R", "row", " of all experts") } else { ("N", "token", "") };
            let input = info.input.map_or("tokens [N]".to_owned(), |width| format!("[{rows}, {width}]"));
            lines.push(format!("  shape       {input} -> [{rows}, {}]", info.output.unwrap_or(size)));
            let active = match info.active {
                active if active == info.parameters || inside => String::new(),
                active => format!(", {} active per token", grouped(active)),
            };
            lines.push(format!("  parameters  {}{of_all}{active}", grouped(info.parameters)));
            lines.push(format!("  FLOP        {} per {per}, forward", grouped(info.flops)));
            if *vocab == Vocab::Characters && (info.output.is_none() || info.input.is_none()) {
                lines.push(format!("  for a text of {ASSUMED_CHARACTERS} distinct characters"));
            }
        }
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// `12,416`
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
