//! `moec route`: which character goes to which experts, in which layer and with which weight; and records of it compared
//! and replayed.

use crate::Run;
use crate::cli::args::{RouteArgs, RouteBy, RouteFormat};
use crate::cli::console::{COLUMNS, Console};
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::cli::routing::characters;
use crate::cli::routing::forward::{self, Windows, execute, failed, lowered, parameters_sha256};
use crate::cli::routing::record::{Array, Layer, LayerDifference, Record, Window, difference};
use crate::cli::routing::text::Text;
use crate::cli::routing::view::{self, Look};
use crate::cli::table::{Table, filled};
use crate::cli::units::significant;
use crate::pipeline::CompileOptions;
use moec_ir::{Input, Invariant, Op};
use moec_model::{Mode, Registry};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Characters of a longer text that are shown, and that are counted, if nothing else is said.
const SHOWN: usize = 1000;
const COUNTED: usize = 20_000;

/// Largest difference of replayed logits, relative to the largest logit: what kernels and the reference may differ by.
const TOLERANCE: f64 = 1e-3;

/// Runs the command.
///
/// # Errors
/// When the run, the text or a record is wrong, or the device fails.
pub(crate) fn run(args: &RouteArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    match (&args.diff, &args.replay) {
        (Some(files), _) => diff(files, args.json, console),
        (_, Some(file)) => replay(args, file, registry, devices, console),
        _ => route(args, registry, devices, console),
    }
}

// ---- routing a text ----

fn route(args: &RouteArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    let is_about_one_layer = args.layer.is_some() || args.slot.is_some();
    let format = args.format.unwrap_or(match is_about_one_layer {
        true => RouteFormat::Text,
        false if args.json || args.output.is_some() => RouteFormat::Lines,
        // Who asks for colours wants to see them, wherever they go.
        false if !console.shows_results() && !console.must_colour() => RouteFormat::Lines,
        false => RouteFormat::Text,
    });
    let is_lines = args.by.is_none() && format == RouteFormat::Lines;
    if is_lines && is_about_one_layer {
        return Err(Failure::new(Exit::Usage, "JSON lines have every layer and every choice")
            .help("leave out --layer and --slot, or --format lines"));
    }
    if args.json && args.by.is_none() && !is_lines {
        return Err(Failure::new(Exit::Usage, "a text is not written as JSON")
            .help("--format lines writes JSON lines, --by character --json a table"));
    }
    let run = opened(args, registry, console)?;
    let layers = routed_layers(&run)?;
    let output =
        args.output.as_deref().map(|path| output::Output::new(path, &output::files_of_run(&run.root))).transpose()?;
    let text = Text::of(args, &run, if args.by.is_some() { COUNTED } else { SHOWN }, registry, console)?;
    let (result, what) = if is_lines {
        if args.text.is_none() {
            console.note(remark(&text));
        }
        let record = forward::recorded(&run, &text.text, args.seed, Mode::Evaluate, args.device, devices)?;
        let lines = record.to_lines();
        let lines = lines.map_err(|e| Failure::new(Exit::Failure, format!("cannot write the record: {e}")))?;
        (lines, format!("{} routes of {} layers", record.routes.len(), record.header.layers.len()))
    } else {
        (
            shown(args, &run, &layers, &text, devices, console)?,
            if args.by.is_some() { "the table" } else { "the text" }.to_string(),
        )
    };
    match (&args.output, &output) {
        (Some(path), Some(output)) => {
            output.write(&result)?;
            console.note(format!("wrote {what} to {}", path.display()));
        }
        _ => console.write(&result)?,
    }
    Ok(Exit::Success)
}

/// The run at the checkpoint that is asked for.
fn opened(args: &RouteArgs, registry: &Registry, console: &Console) -> Result<Run, Failure> {
    let run = args.run.clone().invariant("clap asks for a run to route with");
    let run = match args.checkpoint {
        Some(step) => {
            let folder = moec_runtime::follow_latest(&run).join("checkpoints").join(format!("step-{step:08}"));
            if !folder.exists() {
                let message = format!("{} has no checkpoint of step {step}", run.display());
                return Err(Failure::new(Exit::Data, message).help("without --checkpoint the newest is taken"));
            }
            folder
        }
        None => run,
    };
    let run = Run::open(&run, registry, args.device, |_, _| -> Result<_, Failure> { Ok(CompileOptions::only([])) })?;
    console.opened(&run);
    Ok(run)
}

/// What is routed, and how there is more of it.
fn remark(text: &Text) -> String {
    let more = if text.is_cut { "; --length N takes more" } else { "" };
    format!("{}{more}", text.what)
}

/// The layers that route, of which there must be one.
fn routed_layers(run: &Run) -> Result<Vec<Layer>, Failure> {
    let layers = forward::routed_layers(run)?;
    if layers.is_empty() {
        let message = format!("model {} has no layer that routes", run.spec.checked.model.name);
        return Err(Failure::new(Exit::Usage, message).help("`moe` layers do"));
    }
    Ok(layers)
}

/// The coloured text, or the table.
fn shown(
    args: &RouteArgs,
    run: &Run,
    layers: &[Layer],
    text: &Text,
    devices: Devices,
    console: &Console,
) -> Result<String, Failure> {
    let last = layers.len() - 1;
    let named = args.layer.as_deref().map(|name| layer_of(layers, name)).transpose()?;
    let slot = args.slot.map(|k| usize::try_from(k).unwrap_or(usize::MAX));
    let numbers: Vec<usize> = match (named, args.by) {
        (Some(number), _) => vec![number],
        (None, Some(RouteBy::Character)) => (0..layers.len()).collect(),
        (None, None) => vec![last],
    };
    let wanted: Vec<Layer> = numbers.iter().map(|&number| layers[number].clone()).collect();
    let routes = forward::routes(run, &text.text, args.seed, args.device, devices, &wanted)?;
    if let Some(k) = slot
        && routes.iter().all(|route| route.choice(k).is_none())
    {
        let most = routes.iter().map(|route| route.ranked().len()).max().unwrap_or(0);
        let message = format!("no character has {k} experts here; the most is {most}");
        return Err(Failure::new(Exit::Usage, message));
    }
    let look = match args.output {
        // Whoever reads the file has another terminal, or none.
        Some(_) => Look { width: COLUMNS, colours: false },
        None => Look { width: console.columns(), colours: console.colours_results() },
    };
    let remark = filled(&remark(text), look.width);
    if args.by.is_none() {
        let (layer, number) = (&wanted[0], numbers[0]);
        let slot = slot.unwrap_or(1);
        let heading = filled(&view::heading(layer, number, layers.len(), slot, look), look.width);
        return Ok(format!("{remark}\n{heading}\n\n{}", view::text(layer, &routes, slot, look)));
    }
    let pairs = wanted.iter().zip(&numbers);
    let counted: Vec<_> = pairs.map(|(layer, &number)| characters::count(layer, number, &routes, slot)).collect();
    if args.json {
        let value = json!({
            "schema": "moec.route.characters/1",
            "run": run.root.display().to_string(),
            "checkpoint": run.checkpoint.manifest.step,
            "model": run.spec.checked.model.name,
            "text": text.what,
            "characters": text.text.chars().count(),
            "slot": slot,
            "layers": counted,
        });
        return Ok(format!("{value:#}\n"));
    }
    let tables: Vec<String> = counted.iter().map(|layer| characters::table(layer, args.top)).collect();
    Ok(format!("{remark}\n\n{}", tables.join("\n")))
}

/// The number of the layer that is meant.
fn layer_of(layers: &[Layer], name: &str) -> Result<usize, Failure> {
    let paths = layers.iter().map(|layer| layer.path.as_str());
    if let Some(number) = paths.clone().position(|path| path == name) {
        return Ok(number);
    }
    if let Some(number) = name.parse().ok().filter(|&number: &usize| number < layers.len()) {
        return Ok(number);
    }
    let all: Vec<String> = paths.clone().enumerate().map(|(number, path)| format!("{number} {path}")).collect();
    let failure = Failure::new(Exit::Usage, format!("there is no layer {name}"));
    let failure = match moec_syntax::did_you_mean(name, paths) {
        Some(near) => failure.help(format!("did you mean {near}?")),
        None => failure,
    };
    Err(failure.help(format!("the layers that route are {}", all.join(", "))))
}

// ---- replaying ----

fn replay(
    args: &RouteArgs,
    file: &Path,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    let record = Record::read(file)?;
    let header = &record.header;
    let default = || PathBuf::from(&header.run).join("checkpoints").join(format!("step-{:08}", header.checkpoint));
    let run =
        Run::open(&args.run.clone().unwrap_or_else(default), registry, args.device, |_, _| -> Result<_, Failure> {
            Ok(CompileOptions::only([]))
        })?;
    if parameters_sha256(&run) != header.model_sha256 {
        let message = format!("{} is of other parameters than {}", file.display(), run.root.display());
        let help = format!("give the checkpoint of step {} of the run that was recorded", header.checkpoint);
        return Err(Failure::new(Exit::Data, message).help(help));
    }
    let windows = Windows::of(&run, &header.text)?;
    let foreign = || Failure::new(Exit::Data, format!("{} does not hold the routes of this model", file.display()));
    let frozen = moec_plan::freeze_routes(&lowered(&run, Mode::Evaluate)?.graph).map_err(|e| failed(&run, e.into()))?;
    for id in frozen.ids() {
        let Op::Input { name, ty } = &frozen.node(id).op else { continue };
        let Some(Input::Route(node)) = Input::of_name(name) else { continue };
        let fits = |w: &Window| w.routes.get(&node).and_then(Array::tensor).is_some_and(|t| t.ty() == *ty);
        if record.windows.len() != windows.len() || !record.windows.iter().all(fits) {
            return Err(foreign());
        }
    }
    let inputs = |window: usize| {
        let mut inputs = windows.inputs(window, header.seed);
        for (name, array) in &record.windows[window].routes {
            if let Some(tensor) = array.tensor() {
                inputs.insert(Input::Route(name.clone()), tensor);
            }
        }
        inputs
    };
    let (mut largest, mut difference, mut compared) = (0.0f64, 0.0f64, 0);
    execute(&run, &frozen, args.device, devices, windows.len(), inputs, |window, outputs| {
        let (found, expected) = (windows.logits(window, outputs), &record.windows[window].logits);
        if found.len() != expected.len() {
            return Err(foreign());
        }
        for (&a, &b) in found.iter().zip(expected) {
            largest = largest.max(f64::from(b).abs());
            let d = (f64::from(a) - f64::from(b)).abs();
            // Not a number must not pass for agreement.
            difference = if d.is_nan() { f64::INFINITY } else { difference.max(d) };
        }
        compared += found.len();
        Ok(())
    })?;
    let agree = difference <= TOLERANCE * largest.max(1.0);
    if args.json {
        console.json(&json!({
            "schema": "moec.route.replay/1",
            "agree": agree,
            "logits": compared,
            "largest_difference": if difference.is_finite() { json!(difference) } else { json!(null) },
            "largest_logit": largest,
            "recorded_on": header.device,
            "replayed_on": args.device.name(),
        }))?;
    } else {
        let verdict = match (agree, difference) {
            (true, 0.0) => "agree to the bit".to_string(),
            (true, d) => format!("agree: the largest difference is {}", significant(d)),
            (false, d) => format!("DIFFER: the largest difference is {}", significant(d)),
        };
        console.out(format!(
            "{compared} logits of {} characters, recorded on {}, replayed on {}, {verdict}",
            windows.characters(),
            header.device,
            args.device.name()
        ))?;
    }
    Ok(if agree { Exit::Success } else { Exit::Failure })
}

// ---- comparing ----

fn diff(files: &[PathBuf], as_json: bool, console: &Console) -> Result<Exit, Failure> {
    let [a, b] = files else { return Err(Failure::new(Exit::Usage, "--diff compares two records")) };
    let (first, second) = (Record::read(a)?, Record::read(b)?);
    let rows = difference(&first, &second)?;
    if as_json {
        let layers = serde_json::to_value(&rows);
        let layers = layers.map_err(|e| Failure::new(Exit::Failure, format!("cannot write the difference: {e}")))?;
        console.json(&json!({
            "schema": "moec.route.diff/1",
            "a": a.display().to_string(),
            "b": b.display().to_string(),
            "layers": layers,
        }))?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&["layer", "characters", "same first", "same experts", "weight difference"], 1);
    let mut line = |name: &str, characters: usize, first: f64, sets: f64, weight: f64| {
        let (first, sets) = (format!("{:.1} %", 100.0 * first), format!("{:.1} %", 100.0 * sets));
        table.row([name.to_string(), characters.to_string(), first, sets, significant(weight)]);
    };
    for r in &rows {
        line(&r.layer, r.characters, r.equal_first, r.equal_sets, r.largest_weight_difference);
    }
    let characters: usize = rows.iter().map(|r| r.characters).sum();
    let mean = |of: fn(&LayerDifference) -> f64| {
        rows.iter().map(|r| of(r) * r.characters as f64).sum::<f64>() / characters.max(1) as f64
    };
    let largest = rows.iter().map(|r| r.largest_weight_difference).fold(0.0, f64::max);
    line("all layers", characters, mean(|r| r.equal_first), mean(|r| r.equal_sets), largest);
    console.write(&table.text(console.columns()))?;
    Ok(Exit::Success)
}
