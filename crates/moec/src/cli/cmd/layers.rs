//! `moec layers`: the layers that a file can name.

use crate::cli::args::LayersArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::reference;
use moec_model::LAYERS;
use serde_json::{Value, json};

/// Runs the command.
///
/// # Errors
/// When standard output is gone.
pub(crate) fn run(args: &LayersArgs, console: &Console) -> Result<Exit, Failure> {
    if args.json {
        let layers: Vec<Value> = LAYERS.iter().map(|layer| reference::layer_json(layer)).collect();
        console.json(&json!({ "schema": "moec.layers/1", "layers": layers }))?;
        return Ok(Exit::Success);
    }
    for layer in LAYERS {
        console.out_fitted(reference::layer_brief(layer))?;
    }
    console.write("`moec explain NAME` prints equations, shapes and cost.\n")?;
    Ok(Exit::Success)
}
