//! `moec routers`: the routing strategies and balance losses that a file can name.

use crate::cli::args::RoutersArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::reference;
use moec_model::Registry;
use serde_json::{Value, json};

/// Runs the command.
///
/// # Errors
/// When the file is wrong.
pub(crate) fn run(args: &RoutersArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let entries = reference::strategies(registry, args.spec.as_deref())?;
    if args.json {
        let routers: Vec<Value> = entries.iter().map(reference::Entry::json).collect();
        let losses: Vec<Value> = registry.losses().map(reference::loss_json).collect();
        console.json(&json!({ "schema": "moec.routers/1", "routers": routers, "losses": losses }))?;
        return Ok(Exit::Success);
    }
    console.out("Routing strategies, for `route:` of a `moe`\n")?;
    for entry in &entries {
        console.out_fitted(entry.brief())?;
    }
    console.out("Balance losses, for `balance:` of a `moe`\n")?;
    for loss in registry.losses() {
        console.out_fitted(reference::loss_brief(loss))?;
    }
    console.write("`moec explain NAME` prints equations, shapes and cost.\n")?;
    Ok(Exit::Success)
}
