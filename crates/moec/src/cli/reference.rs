//! The reference of layers, routing strategies and balance losses as JSON, and of those of a file; as text it is
//! [`moec_model::reference`].

use crate::cli::exit::{Exit, Failure};
use crate::read_source;
use moec_model::reference::{self, Origin, RecipePart, reads};
use moec_model::{
    BalanceLoss, CheckOptions, DefaultValue, LAYERS, LayerSpec, ParameterSpec, Registry, RoutingStrategy, SettingForm,
    Traits, library, train_settings,
};
use moec_syntax::{Code, Item, Span};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// A strategy with its origin.
pub(crate) struct Entry {
    pub(crate) strategy: Arc<dyn RoutingStrategy>,
    pub(crate) origin: Origin,
}

/// All strategies of the registry, those that a file defines, and those of the library.
///
/// # Errors
/// When the file is wrong.
pub(crate) fn strategies(registry: &Registry, spec: Option<&Path>) -> Result<Vec<Entry>, Failure> {
    let entry = |strategy: &Arc<dyn RoutingStrategy>| Entry {
        strategy: strategy.clone(),
        origin: Origin::of(strategy.name(), registry),
    };
    let mut entries: Vec<Entry> = registry.routers().map(entry).collect();
    if let Some(path) = spec {
        let known = with_file(registry, path)?;
        let own = known.routers().filter(|strategy| registry.find_router(strategy.name()).is_none());
        entries.extend(own.map(|strategy| Entry { strategy: strategy.clone(), origin: Origin::File }));
    }
    // A file that imports one of the library has it among its own.
    let taken: Vec<String> = entries.iter().map(|entry| entry.strategy.name().to_owned()).collect();
    let library =
        library::routers().into_iter().filter(|(_, strategy)| !taken.iter().any(|name| name == strategy.name()));
    entries.extend(library.map(|(path, strategy)| Entry { strategy, origin: Origin::Library(path) }));
    Ok(entries)
}

/// The registry with the routers that a file and its imports define. The file may hold any number of models, which may be
/// faulty: what is asked about a router is often why a model cannot use it.
fn with_file(registry: &Registry, path: &Path) -> Result<Registry, Failure> {
    let source = read_source(path)?;
    let wrong = |diagnostics| Failure::source(source.clone(), diagnostics, Exit::Usage);
    let file = moec_syntax::parse(&source).map_err(wrong)?;
    let checked = moec_model::check(&source, &file, registry, &CheckOptions::default());
    let routers: Vec<Span> = file
        .all_items()
        .filter_map(|(item, _)| match item {
            Item::Router(router) => Some(router.span),
            _ => None,
        })
        .collect();
    let in_router =
        |span: Span| routers.iter().any(|router| router.file() == span.file() && router.to(span) == *router);
    let mut errors = checked.diagnostics;
    // That a router is not causal is the fault of the model that uses it.
    errors.retain(|d| d.is_error() && d.code != Code::NotCausal && d.span().is_some_and(in_router));
    if errors.is_empty() { Ok(checked.registry) } else { Err(wrong(errors)) }
}

impl Entry {
    fn traits(&self) -> Traits {
        self.strategy.default_traits()
    }

    /// Name, origin, verdict and parameters.
    pub(crate) fn brief(&self) -> String {
        reference::router_brief(self.strategy.as_ref(), self.origin)
    }

    /// Everything that is known about the strategy.
    pub(crate) fn full(&self) -> String {
        reference::router(self.strategy.as_ref(), self.origin)
    }

    pub(crate) fn json(&self) -> Value {
        let (s, traits) = (&self.strategy, self.traits());
        json!({
            "kind": "router",
            "name": s.name(),
            "summary": s.summary(),
            "origin": self.origin.words(),
            "verdict": traits.verdict().text(),
            "compares": traits.compares.text(),
            "compares_when_sampling": traits.compares_when_sampling.text(),
            "reads": reads(traits.reads),
            "random": traits.random.text(),
            "provides": traits.provides.iter().map(|q| q.text()).collect::<Vec<_>>(),
            "parameters": parameters_json(s.parameters()),
            "equations": s.equations(),
            "references": s.references(),
        })
    }
}

pub(crate) fn layer_json(layer: &LayerSpec) -> Value {
    let forms = layer.forms.iter().map(|(form, parameters)| (form.to_string(), parameters_json(parameters).into()));
    json!({
        "kind": "layer",
        "name": layer.name,
        "summary": layer.summary,
        "has_layers": layer.has_layers,
        "parameters": parameters_json(layer.parameters),
        "forms": forms.collect::<serde_json::Map<String, Value>>(),
        "equations": layer.equations,
        "decoding": layer.decoding,
        "references": layer.references,
    })
}

pub(crate) fn loss_json(loss: &BalanceLoss) -> Value {
    json!({
        "kind": "loss",
        "name": loss.name,
        "summary": loss.summary,
        "equations": loss.equations,
        "needs": loss.needs.iter().map(|q| q.text()).collect::<Vec<_>>(),
        "parameters": parameters_json(&loss.all_parameters()),
        "references": loss.references,
    })
}

pub(crate) fn part_json(part: &RecipePart) -> Value {
    json!({
        "kind": part.kind,
        "name": part.name,
        "summary": part.summary,
        "parameters": parameters_json(part.settings),
        "equations": part.equations,
        "references": part.references,
    })
}

/// The setting of `train` or the arguments of this name, as text and for programs.
pub(crate) fn setting_or_argument(name: &str, registry: &Registry, entries: &[Entry]) -> Option<(String, Value)> {
    if let Some(setting) = train_settings().iter().find(|setting| setting.name == name) {
        let text = reference::setting(setting);
        return Some((text.clone(), json!({ "kind": "setting", "name": name, "summary": setting.help, "text": text })));
    }
    let mut of: Vec<ParameterSpec> = Vec::new();
    let mut take = |owner: &str, parameters: &[ParameterSpec]| {
        let named = parameters.iter().filter(|parameter| parameter.name == name).cloned();
        of.extend(named.map(|parameter| ParameterSpec { name: owner.to_string().into(), ..parameter }));
    };
    for layer in LAYERS {
        take(layer.name, layer.parameters);
        layer.forms.iter().for_each(|(form, parameters)| take(form, parameters));
    }
    entries.iter().for_each(|entry| take(entry.strategy.name(), entry.strategy.parameters()));
    registry.losses().for_each(|loss| take(loss.name, &loss.all_parameters()));
    reference::recipe_parts().for_each(|part| take(part.name, part.settings));
    for setting in train_settings() {
        if let SettingForm::Arguments(parameters) = &setting.form {
            take(setting.name, parameters);
        }
    }
    (!of.is_empty()).then(|| {
        let lines = reference::parameter_lines(&of);
        let text = format!("{name}, an argument of\n{lines}\n`moec explain NAME` says more of what takes it.\n");
        (text, json!({ "kind": "argument", "name": name, "of": parameters_json(&of) }))
    })
}

fn parameters_json(parameters: &[ParameterSpec]) -> Vec<Value> {
    let entry = |p: &ParameterSpec| {
        let default = match p.default {
            DefaultValue::Required | DefaultValue::Absent(_) => Value::Null,
            DefaultValue::Int(value) => json!(value),
            DefaultValue::Float(value) => json!(value),
            DefaultValue::Bool(value) => json!(value),
            DefaultValue::Word(word) => json!(word),
        };
        json!({
            "name": p.name,
            "type": p.ty.to_string(),
            "required": p.default == DefaultValue::Required,
            "default": default,
            "help": p.help,
        })
    };
    parameters.iter().map(entry).collect()
}

/// A failure for a name that stands for nothing.
pub(crate) fn unknown(name: &str, known: &[String]) -> Failure {
    let failure = Failure::new(
        Exit::Usage,
        format!(
            "there is no message code, layer, router, balance loss, optimizer, schedule, setting, argument or number of a \
             training {name}"
        ),
    );
    match moec_syntax::did_you_mean(name, known.iter().map(String::as_str)) {
        Some(near) => failure.help(format!("did you mean {near}?")),
        None => failure
            .help("`moec explain` lists everything that can be explained")
            .help("--spec FILE adds the routers that a file defines"),
    }
}
