//! `moec routers`: the routing strategies and balance losses that a file can name.

use crate::cli::args::RoutersArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::reference;
use moec_model::Registry;
use moec_model::reference::Origin;
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
    let (library, known): (Vec<_>, Vec<_>) = entries.iter().partition(|e| matches!(e.origin, Origin::Library(_)));
    for entry in known {
        console.prose(&(entry.brief() + "\n"))?;
    }
    console.prose("Routers of the library, after `import \"std/NAME.moe\"` at the top of a file\n\n")?;
    for entry in library {
        console.prose(&(entry.brief() + "\n"))?;
    }
    console.out("Balance losses, for `balance:` of a `moe`\n")?;
    for loss in registry.losses() {
        console.prose(&(moec_model::reference::loss_brief(loss) + "\n"))?;
    }
    console.prose("`moec explain NAME` prints equations, shapes and cost.\n")?;
    Ok(Exit::Success)
}
