//! The TextMate grammar by which editors colour `.moe` files, made from the grammar of the language and from what is
//! declared: `UPDATE_TEXTMATE=1 cargo test -p moec-language-server --test colours` writes it anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use moec_model::{
    LAYERS, ParameterType, ROUTER_FUNCTIONS, ROUTER_RESULTS, ROUTER_TABLES, Registry, SettingForm, ZeroComputation,
    train_settings,
};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The words in quotes of the rules whose names a test takes.
fn words(is_rule: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("crates/moec-syntax/src/moec.pest")).unwrap();
    let rules = text.lines().filter_map(|line| line.split_once(" = "));
    let quoted = |body: &str| body.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    rules.filter(|(name, _)| is_rule(name.trim())).flat_map(|(_, body)| quoted(body)).collect()
}

/// A regular expression for whole words, the longest first.
fn any_of<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let mut words: Vec<&str> = words.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    words.sort_by_key(|word| std::cmp::Reverse(word.len()));
    format!("\\b(?:{})\\b", words.join("|"))
}

fn coloured(pattern: &str, name: &str) -> Value {
    json!({ "match": pattern, "name": format!("{name}.moe") })
}

/// Words that an argument or a setting chooses from, and the experts without computation.
fn choices(registry: &Registry) -> BTreeSet<&'static str> {
    let forms =
        |layer: &&moec_model::LayerSpec| layer.forms.iter().flat_map(|(_, p)| *p).map(|p| p.ty).collect::<Vec<_>>();
    let of_layers = LAYERS.iter().flat_map(|layer| layer.parameters).map(|parameter| parameter.ty);
    let of_forms = LAYERS.iter().flat_map(forms);
    let of_routers = registry.routers().flat_map(|router| router.parameters()).map(|parameter| parameter.ty);
    let of_losses = registry.losses().flat_map(|loss| loss.all_parameters()).map(|parameter| parameter.ty);
    let of_settings = train_settings().iter().filter_map(|setting| match &setting.form {
        SettingForm::Value(ty, _) => Some(*ty),
        _ => None,
    });
    let all = of_layers.chain(of_forms).chain(of_routers).chain(of_losses).chain(of_settings);
    let words = all.filter_map(|ty| if let ParameterType::Choice(words) = ty { Some(words) } else { None });
    words.flatten().copied().chain(ZeroComputation::ALL.map(ZeroComputation::word)).collect()
}

fn grammar() -> Value {
    let registry = Registry::with_builtins();
    let keywords = words(|rule| rule.starts_with("kw_"));
    let (control, declaring): (BTreeSet<&str>, BTreeSet<&str>) = keywords
        .iter()
        .map(String::as_str)
        .partition(|word| matches!(*word, "if" | "else" | "repeat" | "as" | "return"));
    let settings = words(|rule| rule == "setting_name");
    let booleans = words(|rule| rule == "boolean");
    let operators = words(|rule| matches!(rule, "binary_operator" | "unary_operator" | "equals"));
    let mut operators: Vec<String> = operators.iter().map(|operator| escaped(operator)).collect();
    operators.sort_by_key(|operator| std::cmp::Reverse(operator.len()));

    let layers = LAYERS.iter().map(|layer| layer.name);
    let routers: Vec<&str> = registry.routers().map(|router| router.name()).collect();
    let losses: Vec<&str> = registry.losses().map(|loss| loss.name).collect();
    let forms = LAYERS.iter().flat_map(|layer| layer.forms).map(|(name, _)| *name);
    let functions = ROUTER_FUNCTIONS.iter().chain(ROUTER_RESULTS).chain(ROUTER_TABLES).map(|function| function.name);
    let recipe = train_settings().iter().map(|setting| setting.name);
    let parts = train_settings().iter().flat_map(|setting| match &setting.form {
        SettingForm::Choice(choices) => choices.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        SettingForm::Data => ["synthetic"].into_iter().chain(registry.data_sets().map(|set| set.name)).collect(),
        _ => Vec::new(),
    });
    let called = routers.into_iter().chain(losses).chain(forms).chain(functions);

    let name = "[A-Za-z_][A-Za-z0-9_]*";
    let captured = |first: &str, second: &str| json!({ "1": { "name": format!("{first}.moe") }, "2": { "name": format!("{second}.moe") } });
    json!({
        "name": "moec",
        "scopeName": "source.moe",
        "fileTypes": ["moe"],
        "patterns": [
            coloured("//.*$", "comment.line.double-slash"),
            {
                "begin": "\"",
                "end": "\"|$",
                "name": "string.quoted.double.moe",
                "patterns": [
                    coloured("\\\\(?:[\"\\\\nrt]|u\\{[0-9A-Fa-f]{1,6}\\})", "constant.character.escape"),
                    coloured("\\\\.", "invalid.illegal.escape"),
                ],
            },
            coloured("\\b[0-9][0-9_]*(?:\\.[0-9][0-9_]*)?(?:[eE][+-]?[0-9][0-9_]*)?\\b", "constant.numeric"),
            {
                "match": format!("\\b(model|block)\\s+({name})"),
                "captures": captured("keyword.declaration", "entity.name.type"),
            },
            { "match": format!("\\b(router)\\s+({name})"), "captures": captured("keyword.declaration", "entity.name.function") },
            // The name of an argument, or of a parameter with its type.
            { "match": format!("\\b({name})\\s*(?=:)"), "captures": { "1": { "name": "variable.parameter.moe" } } },
            coloured(&any_of(control), "keyword.control"),
            coloured(&any_of(declaring), "keyword.declaration"),
            coloured(&any_of(booleans.iter().map(String::as_str)), "constant.language.boolean"),
            coloured(&any_of(settings.iter().map(String::as_str).chain(recipe)), "support.type.property-name"),
            coloured(&format!("{}(?=\\s*\\()", any_of(called)), "support.function"),
            coloured(&any_of(layers), "support.class"),
            coloured(&any_of(choices(&registry).into_iter().chain(parts).chain(["characters"])), "support.constant"),
            coloured(&format!("{name}(?=\\s*\\()"), "entity.name.function"),
            coloured(&operators.join("|"), "keyword.operator"),
        ],
    })
}

fn escaped(text: &str) -> String {
    text.chars().map(|c| if "|+*".contains(c) { format!("\\{c}") } else { c.to_string() }).collect()
}

#[test]
fn the_textmate_grammar_follows_the_language() {
    let path = root().join("editors/vscode/syntaxes/moe.tmLanguage.json");
    let text = serde_json::to_string_pretty(&grammar()).unwrap() + "\n";
    if std::env::var_os("UPDATE_TEXTMATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "stale: UPDATE_TEXTMATE=1 cargo test -p moec-language-server --test colours writes it anew");
}

#[test]
fn words_come_from_the_grammar() {
    let keywords = words(|rule| rule.starts_with("kw_"));
    assert!(["model", "router", "state", "return"].iter().all(|word| keywords.contains(*word)), "{keywords:?}");
    assert_eq!(words(|rule| rule == "setting_name"), BTreeSet::from(["context".into(), "vocab".into()]));
    assert!(words(|rule| rule == "binary_operator").contains("<="));
    assert!(choices(&Registry::with_builtins()).contains("swiglu"));
}
