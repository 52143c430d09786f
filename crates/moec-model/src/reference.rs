//! The reference of layers, routing strategies, balance losses and recipes as text, from what they declare: what
//! `moec explain` prints, and what an editor shows where one of them is written.

use moec_plan::{OPTIMIZERS, SCHEDULES};

use crate::argument::{DefaultValue, ParameterSpec};
use crate::layers::LayerSpec;
use crate::losses::BalanceLoss;
use crate::recipe::{SettingForm, SettingSpec};
use crate::registry::Registry;
use crate::router::{Reads, RoutingStrategy};

/// Where a strategy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is always there.
    BuiltIn,
    /// Another crate registered it.
    Plugin,
    /// A `.moe` file defines it.
    File,
    /// A file of the library defines it, which an import calls so.
    Library(&'static str),
}

impl Origin {
    /// Where the strategy of that name comes from, in a program with these strategies.
    pub fn of(name: &str, program: &Registry) -> Self {
        if Registry::with_builtins().find_router(name).is_some() {
            Origin::BuiltIn
        } else if program.find_router(name).is_some() {
            Origin::Plugin
        } else {
            Origin::File
        }
    }

    /// In words.
    pub fn words(self) -> String {
        match self {
            Origin::BuiltIn => "built in".to_owned(),
            Origin::Plugin => "plugin".to_owned(),
            Origin::File => "in the file".to_owned(),
            Origin::Library(path) => format!("import \"{path}\""),
        }
    }
}

/// Name, origin, verdict and parameters.
pub fn router_brief(s: &dyn RoutingStrategy, origin: Origin) -> String {
    let mut text = format!("{}  ({}; {})\n", s.name(), origin.words(), s.default_traits().verdict().text());
    text.push_str(&format!("  {}\n", s.summary()));
    text.push_str(&parameter_lines(s.parameters()));
    for reference in s.references() {
        text.push_str(&format!("  {reference}\n"));
    }
    text
}

/// Everything that is known about the strategy.
pub fn router(s: &dyn RoutingStrategy, origin: Origin) -> String {
    let traits = s.default_traits();
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
        origin.words()
    ));
    text.push_str(&reference_lines(s.references()));
    text
}

/// Name, summary and arguments of a layer.
pub fn layer_brief(layer: &LayerSpec) -> String {
    format!("{}\n  {}\n{}", layer.name, layer.summary, parameter_lines(layer.parameters))
}

/// Everything that is known about a layer.
pub fn layer(layer: &LayerSpec) -> String {
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

/// Name, summary and parameters of a balance loss.
pub fn loss_brief(loss: &BalanceLoss) -> String {
    format!("{}\n  {}\n{}", loss.name, loss.summary, parameter_lines(&loss.all_parameters()))
}

/// Everything that is known about a balance loss.
pub fn loss(loss: &BalanceLoss, registry: &Registry) -> String {
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

/// An optimiser or a schedule, as it is declared.
#[derive(Clone, Copy)]
pub struct RecipePart {
    /// `optimizer` or `schedule`.
    pub kind: &'static str,
    /// Its name in the file.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// What it computes.
    pub equations: &'static str,
    /// Papers it follows.
    pub references: &'static [&'static str],
    /// Its arguments.
    pub settings: &'static [ParameterSpec],
}

/// Every optimiser, then every schedule.
pub fn recipe_parts() -> impl Iterator<Item = RecipePart> {
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
    pub fn text(&self) -> String {
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
}

/// Everything that is known about a setting of the `train` block.
pub fn setting(setting: &SettingSpec) -> String {
    let mut text = format!("{}, a setting of `train`: {}\n", setting.name, setting.help);
    match &setting.form {
        SettingForm::Data => {}
        SettingForm::Value(ty, DefaultValue::Required) => text.push_str(&format!("\n  {ty}, required\n")),
        SettingForm::Value(ty, default) => text.push_str(&format!("\n  {ty}, default {default}\n")),
        SettingForm::Arguments(specs) => text.push_str(&format!("\nArguments\n{}", parameter_lines(specs))),
        SettingForm::Choice(choices) => {
            for (i, (name, specs)) in choices.iter().enumerate() {
                let remark = if i == 0 { ", the default" } else { "" };
                text.push_str(&format!("\n{name}{remark}\n{}", parameter_lines(specs)));
            }
        }
    }
    text
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
pub fn parameter_lines(parameters: &[ParameterSpec]) -> String {
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

/// What a strategy reads, in words.
pub fn reads(reads: Reads) -> Vec<&'static str> {
    let all = [(reads.activations, "activations"), (reads.token_ids, "token ids"), (reads.positions, "positions")];
    all.into_iter().filter_map(|(is_read, what)| is_read.then_some(what)).collect()
}
