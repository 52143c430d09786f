//! What is declared of the things that have arguments.

use moec_model::{
    LAYERS, LayerSpec, ParameterSpec, ROUTER_FUNCTIONS, ROUTER_RESULTS, ROUTER_TABLES, Registry, RouterFunction,
    SettingForm, SettingSpec, train_settings,
};

use crate::place::Callee;

/// The arguments that something takes, none if it is not known.
pub(crate) fn parameters(callee: &Callee, registry: &Registry) -> Vec<ParameterSpec> {
    match callee {
        Callee::Layer(name) => layer(name).map(|layer| layer.parameters.to_vec()),
        Callee::Router(name) => registry.find_router(name).map(|router| router.parameters().to_vec()),
        Callee::Loss(name) => registry.find_loss(name).map(|loss| loss.all_parameters()),
        Callee::Form(name) => {
            let mut forms = LAYERS.iter().flat_map(|layer| layer.forms);
            forms.find(|(form, _)| form == name).map(|(_, specs)| specs.to_vec())
        }
        Callee::Setting(name) => setting(name).and_then(|setting| match &setting.form {
            SettingForm::Arguments(specs) => Some(specs.clone()),
            SettingForm::Data | SettingForm::Value(..) | SettingForm::Choice(_) => None,
        }),
        Callee::Choice { setting: of, name } => setting(of).and_then(|setting| match &setting.form {
            SettingForm::Choice(choices) => {
                choices.iter().find(|(choice, _)| choice == name).map(|(_, specs)| specs.clone())
            }
            SettingForm::Data | SettingForm::Value(..) | SettingForm::Arguments(_) => None,
        }),
        Callee::Function(_) => None,
    }
    .unwrap_or_default()
}

pub(crate) fn layer(name: &str) -> Option<&'static LayerSpec> {
    LAYERS.iter().find(|layer| layer.name == name).copied()
}

pub(crate) fn setting(name: &str) -> Option<&'static SettingSpec> {
    train_settings().iter().find(|setting| setting.name == name)
}

/// The functions and results of the router language.
pub(crate) fn functions() -> impl Iterator<Item = &'static RouterFunction> {
    ROUTER_FUNCTIONS.iter().chain(ROUTER_RESULTS).chain(ROUTER_TABLES)
}

/// `heads: integer, at least 1, required`, with what it means.
pub(crate) fn parameter_line(parameter: &ParameterSpec) -> String {
    use moec_model::DefaultValue;
    let default = match parameter.default {
        DefaultValue::Required => "required".to_owned(),
        ref default => format!("default {default}"),
    };
    format!("{}: {}; {default}\n{}", parameter.name, parameter.ty, parameter.help)
}
