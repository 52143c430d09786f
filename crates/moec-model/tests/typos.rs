//! A slip in a name is refused, and the name that was meant is proposed: for every argument, setting and name of the language.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use moec_model::{CheckOptions, LAYERS, ParameterSpec, ParameterType, Registry, SettingForm, check, train_settings};
use moec_syntax::{Diagnostic, SourceFile, parse};
use std::collections::BTreeMap;

#[path = "../../../tests/typos.rs"]
mod slips;

use slips::{Count, require, typos};

/// A text with a hole `@` for a name, the name, and others that may stand there.
struct Place {
    kind: &'static str,
    text: String,
    name: String,
    others: Vec<String>,
}

/// A value that a parameter can have; what it is called is all that matters here.
fn value(spec: &ParameterSpec) -> String {
    let default = spec.default.value().map(|value| value.to_string());
    default.unwrap_or_else(|| match spec.ty {
        ParameterType::Int(_) => "2".into(),
        ParameterType::Float(_) => "0.5".into(),
        ParameterType::Bool => "true".into(),
        ParameterType::Choice(words) => words[0].into(),
        ParameterType::Text => "\"a\"".into(),
        ParameterType::Form(_) => match spec.name.as_ref() {
            "route" => "softmax_top_k(k: 1)",
            "balance" => "[switch(weight: 0.1)]",
            "capacity" => "capacity(factor: 1.5)",
            "allow" => "lookahead",
            _ => "2 * mlp(hidden: 8)",
        }
        .into(),
    })
}

/// What stands between the parentheses, with a hole for the name of one argument; those that are required are there.
fn arguments(specs: &[ParameterSpec], hole: &ParameterSpec) -> String {
    let is_given = |spec: &&ParameterSpec| spec.name == hole.name || spec.default == moec_model::DefaultValue::Required;
    let name = |spec: &ParameterSpec| if spec.name == hole.name { "@".to_string() } else { spec.name.to_string() };
    let all: Vec<String> = specs.iter().filter(is_given).map(|s| format!("{}: {}", name(s), value(s))).collect();
    all.join(", ")
}

fn names<'a>(specs: impl IntoIterator<Item = &'a ParameterSpec>) -> Vec<String> {
    specs.into_iter().map(|spec| spec.name.to_string()).collect()
}

fn model(inner: &str, recipe: &str) -> String {
    let begin = if inner.contains("embed(") && !inner.contains("unembed(") { "" } else { "embed(width: 4)" };
    let end = if inner.contains("unembed(") { "" } else { "unembed" };
    format!("model m {{\n  context 4\n  vocab 9\n  {begin}\n  {inner}\n  {end}\n}}\n{recipe}")
}

fn places() -> Vec<Place> {
    let registry = Registry::with_builtins();
    let mut all = Vec::new();
    let mut of_arguments = |kind, specs: &[ParameterSpec], text: &dyn Fn(&str) -> String| {
        for spec in specs {
            let text = text(&arguments(specs, spec));
            all.push(Place { kind, text, name: spec.name.to_string(), others: names(specs) });
        }
    };
    for layer in LAYERS {
        let body = if layer.has_layers { " { mlp(hidden: 8) }" } else { "" };
        of_arguments("arguments of layers", layer.parameters, &|list| {
            model(&format!("{}({list}){body}", layer.name), "")
        });
    }
    let moe = |more: &str| model(&format!("moe(experts: 4 * mlp(hidden: 8), {more})"), "");
    for router in registry.routers() {
        of_arguments("arguments of routers", router.parameters(), &|list| {
            moe(&format!("route: {}({list}), allow: lookahead", router.name()))
        });
    }
    for loss in registry.losses() {
        of_arguments("arguments of losses", &loss.all_parameters(), &|list| {
            moe(&format!("route: noisy_top_k(k: 2), balance: [{}({list})]", loss.name))
        });
    }
    for (layer, (form, specs)) in LAYERS.iter().flat_map(|layer| layer.forms.iter().map(move |form| (layer, form))) {
        let argument = &layer.argument_with(form).unwrap().name;
        of_arguments("arguments of forms", specs, &|list| {
            moe(&format!("route: softmax_top_k(k: 2), {argument}: {form}({list})"))
        });
    }
    let train = |setting: &str| model("", &format!("train {{\n  {setting}\n}}\n"));
    for setting in train_settings() {
        match &setting.form {
            SettingForm::Data | SettingForm::Value(..) => {}
            SettingForm::Arguments(specs) => {
                of_arguments("arguments of settings", specs, &|list| train(&format!("{}({list})", setting.name)));
            }
            SettingForm::Choice(choices) => {
                for (choice, specs) in choices {
                    of_arguments("arguments of settings", specs, &|list| {
                        train(&format!("{} {choice}({list})", setting.name))
                    });
                }
            }
        }
    }

    let settings: Vec<String> = train_settings().iter().map(|setting| setting.name.to_string()).collect();
    for setting in train_settings() {
        let text = match &setting.form {
            SettingForm::Data => train("@ synthetic"),
            SettingForm::Value(ty, default) => {
                let spec = ParameterSpec::optional(setting.name, *ty, *default, "");
                train(&format!("@ {}", value(&spec)))
            }
            SettingForm::Arguments(specs) => train(&format!("@({}: {})", specs[0].name, value(&specs[0]))),
            SettingForm::Choice(choices) => train(&format!("@ {}", choices[0].0)),
        };
        all.push(Place { kind: "settings of train", text, name: setting.name.into(), others: settings.clone() });
    }
    for (setting, text) in [
        ("context", model("", "").replace("context", "@")),
        ("vocab", model("", "").replace("vocab", "@")),
        ("vocab", model("", "").replace("vocab 9", "@ characters")),
    ] {
        all.push(Place { kind: "settings of models", text, name: setting.into(), others: Vec::new() });
    }

    let mut of_names = |kind, all_names: &[String], text: &dyn Fn(&str) -> String| {
        for name in all_names {
            all.push(Place { kind, text: text(name), name: name.clone(), others: all_names.to_vec() });
        }
    };
    let layers: Vec<String> = LAYERS.iter().map(|layer| layer.name.to_string()).collect();
    of_names("layers", &layers, &|name| {
        let layer = LAYERS.iter().find(|layer| layer.name == name).unwrap();
        let required = layer.parameters.iter().filter(|p| p.default == moec_model::DefaultValue::Required);
        let list: Vec<String> = required.map(|spec| format!("{}: {}", spec.name, value(spec))).collect();
        let body = if layer.has_layers { " { mlp(hidden: 8) }" } else { "" };
        let list = if list.is_empty() { String::new() } else { format!("({})", list.join(", ")) };
        match name {
            "embed" => model("", "").replace("embed(width: 4)", "@(width: 4)"),
            "unembed" => model("", "").replace("unembed", "@"),
            _ => model(&format!("@{list}{body}"), ""),
        }
    });
    let routers: Vec<String> = registry.routers().map(|router| router.name().to_string()).collect();
    of_names("routers", &routers, &|name| {
        let router = registry.find_router(name).unwrap();
        let required = router.parameters().iter().filter(|p| p.default == moec_model::DefaultValue::Required);
        let list: Vec<String> = required.map(|spec| format!("{}: {}", spec.name, value(spec))).collect();
        moe(&format!("route: @({}), allow: lookahead", list.join(", ")))
    });
    let losses: Vec<String> = registry.losses().map(|loss| loss.name.to_string()).collect();
    of_names("losses", &losses, &|_| moe("route: noisy_top_k(k: 2), balance: [@(weight: 0.1)]"));
    for setting in train_settings() {
        if let SettingForm::Choice(choices) = &setting.form {
            let names: Vec<String> = choices.iter().map(|(name, _)| name.to_string()).collect();
            of_names("names of recipes", &names, &|_| train(&format!("{} @", setting.name)));
        }
    }
    let words = |specs: &[ParameterSpec]| -> Vec<(String, Vec<String>)> {
        let of = specs.iter().filter_map(|spec| match spec.ty {
            ParameterType::Choice(words) => {
                Some((spec.name.to_string(), words.iter().map(|w| w.to_string()).collect()))
            }
            _ => None,
        });
        of.collect()
    };
    for layer in LAYERS {
        for (argument, words) in words(layer.parameters) {
            let spec = layer.parameters.iter().find(|spec| spec.name == argument.as_str()).unwrap();
            let list =
                arguments(layer.parameters, spec).replace(&format!("@: {}", value(spec)), &format!("{argument}: @"));
            of_names("words of arguments", &words, &|_| model(&format!("{}({list})", layer.name), ""));
        }
    }
    for router in registry.routers() {
        for (argument, words) in words(router.parameters()) {
            let specs = router.parameters();
            let spec = specs.iter().find(|spec| spec.name == argument.as_str()).unwrap();
            let list = arguments(specs, spec).replace(&format!("@: {}", value(spec)), &format!("{argument}: @"));
            of_names("words of arguments", &words, &|_| {
                moe(&format!("route: {}({list}), allow: lookahead", router.name()))
            });
        }
    }
    all
}

/// The name that a message proposes.
fn proposed(diagnostic: &Diagnostic) -> Option<String> {
    let patched = diagnostic.patches.first().map(|patch| patch.replacement.clone());
    let said = diagnostic.helps.iter().find_map(|help| {
        let (_, behind) = help.split_once("did you mean `")?;
        Some(behind.split('`').next()?.to_string())
    });
    said.or(patched)
}

fn diagnostics(source: &SourceFile) -> Vec<Diagnostic> {
    match parse(source) {
        Ok(file) => check(source, &file, &Registry::with_builtins(), &CheckOptions::default()).diagnostics,
        Err(faults) => faults,
    }
}

/// What became of a name in its place: `None` if nothing is wrong there, or what was proposed instead.
fn refusal(place: &Place, typo: &str) -> Option<Option<String>> {
    let at = place.text.find('@').unwrap();
    let source = SourceFile::new("typo.moe", place.text.replace('@', typo));
    let found = diagnostics(&source);
    let errors = found.iter().filter(|diagnostic| diagnostic.is_error());
    // Of a setting it is the value that has no place there.
    let end = at + if place.kind == "settings of models" { typo.len() + 2 } else { 1 };
    let here = |d: &&Diagnostic| d.span().is_some_and(|span| span.start() < end && at < span.end());
    // One that is about the name counts, not one that follows from it.
    let mut about: Vec<&Diagnostic> = errors.filter(here).collect();
    about.sort_by_key(|d| proposed(d).is_none());
    about.first().map(|d| proposed(d))
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[test]
fn slips_in_names_are_answered_with_the_name_that_was_meant() {
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    for place in places() {
        let right = place.text.replace('@', &place.name);
        let source = SourceFile::new("right.moe", right.as_str());
        let unknown = diagnostics(&source).into_iter().find(|d| format!("{:?}", d.code).starts_with("Unknown"));
        assert_eq!(unknown, None, "{right}");
        for typo in typos(&place.name).iter().filter(|typo| is_name(typo) && !place.others.contains(typo)) {
            counts.entry(place.kind).or_default().note(&place.name, typo, refusal(&place, typo));
        }
    }
    require(&counts);
}

#[test]
fn slips_in_overrides_are_answered_with_the_path_that_was_meant() {
    let text = model("mlp(hidden: width)", "").replace("context 4", "let width = 8\n  context 4");
    let mut paths = vec!["width".to_string(), "context".to_string()];
    for setting in train_settings() {
        paths.extend(setting.form.parameters().map(|spec| format!("train.{}.{}", setting.name, spec.name)));
        if !matches!(setting.form, SettingForm::Arguments(_)) {
            paths.push(format!("train.{}", setting.name));
        }
    }
    paths.sort();
    paths.dedup();
    let mut count = Count::default();
    for path in &paths {
        let (section, name) = path.rsplit_once('.').map_or(("", path.as_str()), |(section, name)| (section, name));
        for typo in typos(name).iter().filter(|typo| is_name(typo)) {
            let wrong = if section.is_empty() { typo.clone() } else { format!("{section}.{typo}") };
            if paths.contains(&wrong) {
                continue;
            }
            let source = SourceFile::new("typo.moe", text.clone()).with_overrides(&[format!("{wrong}=2").as_str()]);
            let found = diagnostics(&source);
            let refused = found.iter().find(|d| d.is_error() && d.message.contains(&wrong));
            count.note(path, &wrong, refused.map(proposed));
        }
    }
    require(&BTreeMap::from([("overrides", count)]));
}
