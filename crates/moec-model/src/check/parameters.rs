//! What blocks can be given: parameters as they are declared, and the bindings that they are where a block is used.

use std::borrow::Cow;

use indexmap::IndexMap;
use moec_syntax::{self as ast, Code, Diagnostic, Span, did_you_mean};

use super::arguments::Owner;
use super::checker::{Checker, Scope};
use super::duplicate;
use super::layer::Written;
use crate::argument::{ArgumentValue, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::arithmetic::Number;
use crate::words::any_of;

/// The types that a parameter can have.
const TYPES: [&str; 3] = ["int", "float", "bool"];

impl<'a> Checker<'a> {
    /// The parameters of a block as arguments are checked against them, with defaults computed from what is visible at its
    /// definition; `None` if they have faults.
    pub(super) fn parameters(&mut self, block: &'a ast::Block, scope: Scope) -> Option<Vec<ParameterSpec>> {
        let mut names: IndexMap<&str, Span> = IndexMap::new();
        let mut specs = Some(Vec::new());
        for parameter in block.parameters() {
            let name = &parameter.name;
            if let Some(&first) = names.get(name.name.as_str()) {
                self.report(duplicate("parameter", name, first));
                specs = None;
                continue;
            }
            names.insert(&name.name, name.span);
            let spec = self.parameter_of(block, parameter, scope);
            specs = specs.zip(spec).map(|(mut specs, spec)| {
                specs.push(spec);
                specs
            });
        }
        specs
    }

    fn parameter_of(
        &mut self,
        block: &ast::Block,
        parameter: &'a ast::Parameter,
        scope: Scope,
    ) -> Option<ParameterSpec> {
        let ty = match parameter.ty.name.as_str() {
            "int" => ParameterType::Int(Interval::ANY),
            "float" => ParameterType::Float(Interval::ANY),
            "bool" => ParameterType::Bool,
            other => {
                let d = Diagnostic::new(Code::UnknownValue, format!("a parameter cannot be `{other}`"))
                    .primary(parameter.ty.span, format!("expected {}", any_of(&TYPES)));
                self.report(match did_you_mean(other, TYPES) {
                    Some(near) => d.patch(parameter.ty.span, near, "use a type that it can have"),
                    None => d,
                });
                return None;
            }
        };
        let help = Cow::Owned(format!("a parameter of block `{}`", block.name));
        let name = Cow::Owned(parameter.name.name.clone());
        let mut spec = ParameterSpec { name, ty, default: DefaultValue::Required, help };
        if let Some(default) = &parameter.default {
            let owner = Owner { name: &block.name.name, kind: "block", span: block.name.span };
            spec.default = match self.value(owner, &spec, default, scope)? {
                ArgumentValue::Int(value) => DefaultValue::Int(value),
                ArgumentValue::Float(value) => DefaultValue::Float(value),
                ArgumentValue::Bool(value) => DefaultValue::Bool(value),
                ArgumentValue::Word(_) | ArgumentValue::Text(_) => return None,
            };
        }
        Some(spec)
    }

    /// What the body of the block at a position sees where it is used: the names around its definition, and its parameters
    /// with the values of the call, which are computed from what is visible `outside`.
    pub(super) fn given(&mut self, at: usize, call: Written<'_, 'a>, outside: Scope) -> Scope {
        let (block, mut scope) = (self.blocks[at].block, self.blocks[at].scope);
        let Some(specs) = self.blocks[at].parameters.clone() else {
            // What is wrong with its parameters has been said.
            call.arguments.iter().for_each(|argument| self.mark_read(&argument.value, outside));
            for parameter in block.parameters() {
                scope = self.bind(scope, &parameter.name.name, None, parameter.name.span);
            }
            return scope;
        };
        let owner = Owner { name: &call.name.name, kind: "block", span: call.name.span };
        let arguments = self.arguments(owner, &specs, call.arguments, outside).arguments;
        for parameter in block.parameters() {
            let name = &parameter.name;
            let value = arguments.get(&name.name).and_then(|value| match *value {
                ArgumentValue::Int(value) => Some(Number::Int(value)),
                ArgumentValue::Float(value) => Some(Number::Float(value)),
                ArgumentValue::Bool(value) => Some(Number::Bool(value)),
                ArgumentValue::Word(_) | ArgumentValue::Text(_) => None,
            });
            self.lets.entry(name.span).or_insert((&name.name, false));
            scope = self.bind(scope, &name.name, value, name.span);
        }
        scope
    }
}
