//! `moec prune`: a mixture with fewer experts.

use crate::cli::args::PruneArgs;
use crate::cli::assembly::{self, Assembled};
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::routing::forward::parameters_sha256;
use crate::cli::routing::record::Record;
use crate::cli::units::grouped;
use crate::surgery::{self, Kept, Subject};
use moec_model::Registry;
use std::collections::BTreeMap;
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// When the run, the text or the record is wrong, or nothing would be left.
pub(crate) fn run(args: &PruneArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    assembly::require_free(args.check.out.as_deref())?;
    let run = assembly::open(&args.run, registry, console)?;
    let sha256 = parameters_sha256(&run);
    let name = format!("{}-pruned", assembly::name_of(&run.root));
    let (corpus, text) = assembly::texts(args.check.data.as_deref(), &args.run, registry, console)?;
    let run = Subject::from(run);
    let dataset = assembly::dataset(&run, &corpus)?;
    let open = assembly::devices(args.check.device, devices)?;
    let witnesses = assembly::witnesses(&run, &text, &open)?;
    let wanted = match (&args.keep, args.most) {
        (Some(keep), _) => Kept::These(keep.clone()),
        (None, Some(most)) => Kept::Most(most),
        (None, None) => Kept::Used,
    };
    let used = match (&wanted, &args.record) {
        (Kept::These(_), _) => BTreeMap::new(),
        (_, Some(record)) => recorded(record, &sha256)?,
        (_, None) => surgery::usage(&run, &witnesses)?,
    };
    let (taken, kept) = surgery::prune(&run, &wanted, &used, registry, &witnesses)?;
    for (layer, experts) in &kept {
        let experts: Vec<String> = experts.iter().map(ToString::to_string).collect();
        console.note(format!("{layer} keeps {}", experts.join(", ")));
    }
    let now = taken.subject.lowered.parameter_count();
    let before = run.lowered.parameter_count();
    let what = format!("{} parameters of {}", grouped(now as u64), grouped(before as u64));
    let assembled = Assembled { subject: &taken.subject, certificate: &taken.certificate, what, name, recipe: None };
    assembled.write(args.check.out.as_deref(), &dataset, args.check.json, console)?;
    Ok(Exit::Success)
}

/// How often each expert was used in a record of routes, by layer.
fn recorded(path: &Path, sha256: &str) -> Result<BTreeMap<String, Vec<usize>>, Failure> {
    let record = Record::read(path)?;
    if record.header.model_sha256 != sha256 {
        let message = format!("{} is of other parameters than the run", path.display());
        return Err(
            Failure::new(Exit::Data, message).help("`moec route RUN -o FILE` records those of its newest checkpoint")
        );
    }
    let empty = record.header.layers.iter().map(|layer| (layer.path.clone(), vec![0; layer.experts]));
    let mut used: BTreeMap<String, Vec<usize>> = empty.collect();
    for route in &record.routes {
        let Some(counts) = used.get_mut(&route.layer) else { continue };
        for (&expert, &dropped) in route.experts.iter().zip(&route.dropped) {
            match counts.get_mut(expert) {
                Some(count) => *count += usize::from(!dropped),
                None => {
                    let message =
                        format!("{} names expert {expert} of {}, which has none", path.display(), route.layer);
                    return Err(Failure::new(Exit::Data, message));
                }
            }
        }
    }
    Ok(used)
}
