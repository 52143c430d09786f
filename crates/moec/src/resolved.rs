//! The checked model and recipe with every default filled in, as YAML: what `--emit model` prints and what a run keeps
//! as `resolved.yaml`.

use moec_model::{Model, Recipe, ResolvedModel, ResolvedRecipe};
use serde::Serialize;

#[derive(Serialize)]
struct Resolved {
    model: ResolvedModel,
    train: ResolvedRecipe,
}

/// The model and the recipe as YAML.
pub fn yaml(model: &Model, recipe: &Recipe) -> String {
    let resolved = Resolved { model: model.to_resolved(), train: recipe.to_resolved() };
    // A tree of strings and numbers cannot fail to serialise.
    serde_yaml::to_string(&resolved).unwrap_or_else(|e| format!("# {e}\n"))
}
