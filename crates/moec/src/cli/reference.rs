//! The reference of layers, routing strategies and balance losses, as text and as JSON, from what they declare.

use crate::cli::exit::{Exit, Failure};
use crate::read_source;
use moec_model::{
    BalanceLoss, CheckOptions, DefaultValue, LayerSpec, ParameterSpec, Reads, Registry, RoutingStrategy, Traits,
};
use moec_plan::{OPTIMIZERS, SCHEDULES};
use moec_syntax::{Code, Item, Span};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Where a strategy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is always there.
    BuiltIn,
    /// Another crate registered it.
    Plugin,
    /// A `.moe` file defines it.
    File,
}

impl Origin {
    fn word(self) -> &'static str {
        match self {
            Origin::BuiltIn => "built in",
            Origin::Plugin => "plugin",
            Origin::File => "in the file",
        }
    }
}

/// A strategy with its origin.
pub(crate) struct Entry {
    pub(crate) strategy: Arc<dyn RoutingStrategy>,
    pub(crate) origin: Origin,
}

/// All strategies of the registry, and those that a file defines.
///
/// # Errors
/// When the file is wrong.
pub(crate) fn strategies(registry: &Registry, spec: Option<&Path>) -> Result<Vec<Entry>, Failure> {
    let built_in = Registry::with_builtins();
    let mut entries: Vec<Entry> = registry
        .routers()
        .map(|strategy| {
            let is_built_in = built_in.find_router(strategy.name()).is_some();
            let origin = if is_built_in { Origin::BuiltIn } else { Origin::Plugin };
            Entry { strategy: strategy.clone(), origin }
        })
        .collect();
    if let Some(path) = spec {
        let known = with_file(registry, path)?;
        let own = known.routers().filter(|strategy| registry.find_router(strategy.name()).is_none());
        entries.extend(own.map(|strategy| Entry { strategy: strategy.clone(), origin: Origin::File }));
    }
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
        let s = &self.strategy;
        let mut text = format!("{}  ({}; {})\n", s.name(), self.origin.word(), self.traits().verdict().text());
        text.push_str(&format!("  {}\n", s.summary()));
        text.push_str(&parameter_lines(s.parameters()));
        for reference in s.references() {
            text.push_str(&format!("  {reference}\n"));
        }
        text
    }

    /// Everything that is known about the strategy.
    pub(crate) fn full(&self) -> String {
        let (s, traits) = (&self.strategy, self.traits());
        let mut text = format!("{}: {}\n\n", s.name(), s.summary());
        for line in s.equations().lines() {
            text.push_str(&format!("    {line}\n"));
        }
        text.push_str("\nParameters\n");
        match s.parameters() {
            [] => text.push_str("  none\n"),
            parameters => text.push_str(&parameter_lines(parameters)),
        }
        let sampling = match (traits.compares, traits.compares_when_sampling) {
            (training, sampling) if training == sampling => training.text().to_string(),
            (training, sampling) => format!("{}; when sampling: {}", training.text(), sampling.text()),
        };
        let provides: Vec<&str> = traits.provides.iter().map(|q| q.text()).collect();
        let provides = if provides.is_empty() { "the assignment only".to_string() } else { provides.join(", ") };
        text.push_str(&format!(
            "\nVerdict   {} with default arguments\nCompares  {sampling}\nReads     {}\nRandom    {}\nProvides  {provides}\nOrigin    {}\n",
            traits.verdict().text(),
            reads(traits.reads).join(", "),
            traits.random.text(),
            self.origin.word()
        ));
        text.push_str(&reference_lines(s.references()));
        text
    }

    pub(crate) fn json(&self) -> Value {
        let (s, traits) = (&self.strategy, self.traits());
        json!({
            "kind": "router",
            "name": s.name(),
            "summary": s.summary(),
            "origin": self.origin.word(),
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

/// Name, summary and arguments of a layer.
pub(crate) fn layer_brief(layer: &LayerSpec) -> String {
    format!("{}\n  {}\n{}", layer.name, layer.summary, parameter_lines(layer.parameters))
}

/// Everything that is known about a layer.
pub(crate) fn layer_full(layer: &LayerSpec) -> String {
    let mut text = format!("{}, a layer: {}\n\n", layer.name, layer.summary);
    for line in layer.equations.lines() {
        text.push_str(&format!("    {line}\n"));
    }
    text.push_str("\nArguments\n");
    match layer.parameters {
        [] => text.push_str("  none\n"),
        parameters => text.push_str(&parameter_lines(parameters)),
    }
    for (form, parameters) in layer.forms {
        text.push_str(&format!("\nArguments of {form}(..)\n{}", parameter_lines(parameters)));
    }
    text.push_str(&format!("\nDecoding  {}\n", layer.decoding));
    text.push_str(&reference_lines(layer.references));
    text
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

/// Name, summary and parameters of a balance loss.
pub(crate) fn loss_brief(loss: &BalanceLoss) -> String {
    format!("{}\n  {}\n{}", loss.name, loss.summary, parameter_lines(&loss.all_parameters()))
}

/// Everything that is known about a balance loss.
pub(crate) fn loss_full(loss: &BalanceLoss, registry: &Registry) -> String {
    let needs: Vec<&str> = loss.needs.iter().map(|q| q.text()).collect();
    let needs = if needs.is_empty() { "the assignment only".to_string() } else { needs.join(", ") };
    let fits: Vec<&str> = registry
        .routers()
        .filter(|r| {
            let traits = r.default_traits();
            loss.needs.iter().all(|q| traits.provides.contains(q))
        })
        .map(|r| r.name())
        .collect();
    let mut text = format!("{}, a balance loss: {}\n\n", loss.name, loss.summary);
    text.push_str(&indented(loss.equations));
    text.push_str("\nParameters\n");
    text.push_str(&parameter_lines(&loss.all_parameters()));
    text.push_str(&format!("\nNeeds     {needs}\nRouters   {}\n", fits.join(", ")));
    text.push_str(&reference_lines(loss.references));
    text
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

/// An optimiser or a schedule, as it is declared.
#[derive(Clone, Copy)]
pub(crate) struct RecipePart {
    /// `optimizer` or `schedule`.
    pub(crate) kind: &'static str,
    pub(crate) name: &'static str,
    pub(crate) summary: &'static str,
    equations: &'static str,
    references: &'static [&'static str],
    settings: &'static [ParameterSpec],
}

/// Every optimiser, then every schedule.
pub(crate) fn recipe_parts() -> impl Iterator<Item = RecipePart> {
    let optimizers = OPTIMIZERS.iter().map(|o| RecipePart {
        kind: "optimizer",
        name: o.name,
        summary: o.summary,
        equations: o.equations,
        references: o.references,
        settings: o.settings,
    });
    let schedules = SCHEDULES.iter().map(|s| RecipePart {
        kind: "schedule",
        name: s.name,
        summary: s.summary,
        equations: s.equations,
        references: s.references,
        settings: s.settings,
    });
    optimizers.chain(schedules)
}

impl RecipePart {
    /// Everything that is known about it.
    pub(crate) fn full(&self) -> String {
        let article = if self.kind == "optimizer" { "an" } else { "a" };
        let mut text = format!("{}, {article} {}: {}\n\n", self.name, self.kind, self.summary);
        text.push_str(&indented(self.equations));
        text.push_str("\nParameters\n");
        match self.settings {
            [] => text.push_str("  none\n"),
            parameters => text.push_str(&parameter_lines(parameters)),
        }
        text.push_str(&reference_lines(self.references));
        text
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "kind": self.kind,
            "name": self.name,
            "summary": self.summary,
            "parameters": parameters_json(self.settings),
            "equations": self.equations,
            "references": self.references,
        })
    }
}

/// Equations as they are printed.
fn indented(equations: &str) -> String {
    equations.lines().map(|line| format!("    {line}\n")).collect()
}

fn reference_lines(references: &[&str]) -> String {
    if references.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = references.iter().map(|r| format!("  {r}\n")).collect();
    format!("\nReferences\n{}", lines.concat())
}

/// `  k        integer, at least 1   required   experts per token`
fn parameter_lines(parameters: &[ParameterSpec]) -> String {
    let default = |p: &ParameterSpec| match p.default {
        DefaultValue::Required => "required".to_string(),
        ref other => format!("default {other}"),
    };
    let width = |of: &dyn Fn(&ParameterSpec) -> usize| parameters.iter().map(of).max().unwrap_or(0);
    let names = width(&|p| p.name.chars().count());
    let types = width(&|p| p.ty.to_string().chars().count());
    let defaults = width(&|p| default(p).chars().count());
    let line = |p: &ParameterSpec| {
        format!("  {:<names$}  {:<types$}  {:<defaults$}  {}\n", p.name, p.ty.to_string(), default(p), p.help)
    };
    parameters.iter().map(line).collect()
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

fn reads(reads: Reads) -> Vec<&'static str> {
    let all = [(reads.activations, "activations"), (reads.token_ids, "token ids"), (reads.positions, "positions")];
    all.into_iter().filter_map(|(is_read, what)| is_read.then_some(what)).collect()
}

/// A failure for a name that stands for nothing.
pub(crate) fn unknown(name: &str, known: &[String]) -> Failure {
    let failure = Failure::new(
        Exit::Usage,
        format!(
            "there is no message code, layer, router, balance loss, optimizer, schedule or number of a training {name}"
        ),
    );
    match moec_syntax::did_you_mean(name, known.iter().map(String::as_str)) {
        Some(near) => failure.help(format!("did you mean {near}?")),
        None => failure
            .help("`moec explain` lists everything that can be explained")
            .help("--spec FILE adds the routers that a file defines"),
    }
}
