//! `moec cache`: what is kept of compiled kernels.

use crate::KernelCache;
use crate::cli::args::CacheArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::folders;
use crate::cli::units::{bytes, grouped};
use serde_json::json;

/// Runs the command.
///
/// # Errors
/// When the folder cannot be read, or a file of it cannot be removed.
pub(crate) fn run(args: &CacheArgs, console: &Console) -> Result<Exit, Failure> {
    let Some(folder) = folders::kernels() else {
        if args.json {
            console.json(&json!({ "schema": "moec.cache/1", "folder": null, "entries": 0, "bytes": 0 }))?;
        } else {
            console.out("compiled kernels are not kept: MOEC_CACHE is empty or `off`, or there is no home folder")?;
        }
        return Ok(Exit::Success);
    };
    let usage = match args.clear {
        true => KernelCache::clear(&folder).map_err(|e| Failure::file("clear", &folder, &e))?,
        false => KernelCache::usage(&folder).map_err(|e| Failure::file("read", &folder, &e))?,
    };
    if args.json {
        console.json(&json!({
            "schema": "moec.cache/1",
            "folder": folder,
            "entries": usage.entries,
            "bytes": usage.bytes,
            "limit_bytes": KernelCache::LIMIT,
            "cleared": args.clear,
        }))?;
        return Ok(Exit::Success);
    }
    let (entries, size) = (grouped(usage.entries), bytes(usage.bytes));
    let line = match args.clear {
        true => format!("{}: removed {entries} compiled kernels, {size}", folder.display()),
        false => {
            format!("{}: {entries} compiled kernels, {size} of {}", folder.display(), bytes(KernelCache::LIMIT))
        }
    };
    console.out(line)?;
    Ok(Exit::Success)
}
