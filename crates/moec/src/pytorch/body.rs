//! What a module computes, as statements of Python.

use super::Unwritable;
use super::expression::{Expression, MULTIPLICATIVE};
use super::module::{EVALUATION, Module, Modules, Part};
use super::names::{self, quoted};
use super::side::Side;
use moec_ir::{Binary, DType, Input, Op, StateRole, Unary};
use std::collections::{BTreeMap, BTreeSet};

/// A result of a node: the node and which of its results.
pub(super) type Key = (usize, u8);

/// Longest line that an expression may make before it gets a name of its own.
const WIDEST: usize = 100;

/// A node of a module itself, or a module within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// The node of that number.
    Own(usize),
    /// The module of that path.
    Child(String),
}

/// The statements of a module, as they are being written.
pub(super) struct Body<'s, 'g> {
    pub(super) side: &'s Side<'g>,
    modules: &'s Modules<'g>,
    /// Which of the graphs it is: that of training steps or that of evaluation.
    which: usize,
    /// Whether dropout is written; without it is what evaluation computes.
    pub(super) with_dropout: bool,
    pub(super) helpers: BTreeSet<&'static str>,
    path: String,
    arguments: Vec<String>,
    /// Sizes of the batch that the statements name.
    pub(super) used_sizes: BTreeSet<&'static str>,
    values: BTreeMap<Key, Expression>,
    uses: BTreeMap<Key, usize>,
    /// Names of what modules return.
    preferred: BTreeMap<Key, &'static str>,
    names: BTreeSet<String>,
    /// What the items of a list are called in loops over it.
    of_loops: BTreeMap<String, String>,
    lines: Vec<String>,
}

/// The statements of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) arguments: Vec<String>,
    /// What the results are made with.
    pub(super) lines: Vec<String>,
    /// What the balance losses are made with, in training.
    pub(super) losses: Vec<String>,
    pub(super) results: Vec<String>,
    pub(super) used_sizes: BTreeSet<&'static str>,
    pub(super) helpers: BTreeSet<&'static str>,
}

impl<'s, 'g> Body<'s, 'g> {
    /// Writes what a module computes from the values that it is given; the modules within it are known.
    pub(super) fn write(
        which: usize,
        path: &str,
        with_dropout: bool,
        modules: &'s Modules<'g>,
    ) -> Result<Written, Unwritable> {
        let side = &modules.sides[which];
        let module = modules.interface(path);
        let (items, of_losses) = (modules.items(which, path, Part::Results), modules.items(which, path, Part::Losses));
        let mut body = Body {
            side,
            modules,
            which,
            with_dropout,
            helpers: BTreeSet::new(),
            path: path.to_string(),
            arguments: Vec::new(),
            used_sizes: BTreeSet::new(),
            values: BTreeMap::new(),
            uses: BTreeMap::new(),
            preferred: BTreeMap::new(),
            names: modules.reserved(),
            of_loops: BTreeMap::new(),
            lines: Vec::new(),
        };
        for (train, evaluate) in &module.given {
            // Named for one of the graphs, so that both have the same names.
            let name = body.argument_name(&modules.sides, *train, *evaluate);
            let name = body.fresh(&name);
            if let Some(key) = [*train, *evaluate][which] {
                body.values.insert(key, Expression::atom(name.clone()));
            }
            body.arguments.push(name);
        }
        let results: Vec<Option<Key>> = module.results.iter().map(|pair| [pair.0, pair.1][which]).collect();
        body.count_uses(&items, modules, &results);
        body.count_uses(&of_losses, modules, &[]);
        body.items(&items, modules)?;
        let lines = std::mem::take(&mut body.lines);
        let mut written = Vec::new();
        for key in results {
            written.push(match key {
                Some(key) => body.full(key)?.number().text,
                None => "None".into(),
            });
        }
        let before = std::mem::take(&mut body.lines);
        body.items(&of_losses, modules)?;
        body.losses(&items, &of_losses)?;
        Ok(Written {
            arguments: body.arguments,
            lines: [lines, before].concat(),
            losses: body.lines,
            results: written,
            used_sizes: body.used_sizes,
            helpers: body.helpers,
        })
    }

    fn items(&mut self, items: &[Item], modules: &Modules<'_>) -> Result<(), Unwritable> {
        let mut i = 0;
        while i < items.len() {
            let run = self.run(&items[i..], modules);
            if run > 1 {
                self.in_a_loop(&items[i..i + run], modules)?;
                i += run;
                continue;
            }
            match &items[i] {
                Item::Own(node) => self.own(*node)?,
                Item::Child(path) => self.child(modules.of(path))?,
            }
            i += 1;
        }
        Ok(())
    }

    /// Keeps the balance losses of the module's own nodes.
    fn losses(&mut self, items: &[Item], of_losses: &[Item]) -> Result<(), Unwritable> {
        let side = self.side;
        for loss in &side.losses {
            if !items.iter().chain(of_losses).any(|item| *item == Item::Own(loss.value.0)) {
                continue;
            }
            let value = self.full(loss.value)?;
            let weighted = match loss.weight {
                1.0 => value.text,
                weight => format!("{} * {}", super::sizes::float(weight), value.at(MULTIPLICATIVE)),
            };
            self.lines.push(format!("self.losses[{}] = {weighted}", quoted(&loss.name)));
        }
        Ok(())
    }

    fn count_uses(&mut self, items: &[Item], modules: &Modules<'_>, results: &[Option<Key>]) {
        let mut used: Vec<Key> = results.iter().copied().flatten().collect();
        for item in items {
            match item {
                Item::Own(node) => {
                    used.extend(self.side.operands(*node));
                    used.extend(self.side.losses.iter().filter(|loss| loss.value.0 == *node).map(|loss| loss.value));
                }
                Item::Child(path) => used.extend(modules.of(path).given(self.which)),
            }
        }
        for key in used {
            // Losses are not in the graph of evaluation, and names shall be those of the graph that has them.
            let more = usize::from(self.which == EVALUATION && self.side.is_used_by_losses(key));
            let count = self.uses.entry(key).or_insert(more);
            *count += 1;
        }
    }

    /// Statements of a node of the module itself.
    fn own(&mut self, node: usize) -> Result<(), Unwritable> {
        let side = self.side;
        let mut expression = self.operation(node)?;
        // Where operands are short and the whole is long, the longest of them gets a name.
        for _ in 0..3 {
            let length = |key: &Key| self.values.get(key).filter(|e| !is_name(&e.text)).map_or(0, |e| e.text.len());
            let operands = side.operands(node);
            let Some(&longest) = operands.iter().max_by_key(|key| length(key)).filter(|key| length(key) > 12) else {
                break;
            };
            if expression.text.len() <= WIDEST {
                break;
            }
            self.named(longest);
            expression = self.operation(node)?;
        }
        let results = side.node(node).results.len();
        let used: Vec<bool> = (0..results).map(|slot| self.uses.contains_key(&(node, slot as u8))).collect();
        let is_tuple = matches!(side.node(node).op, Op::TopK { .. } | Op::SortByExpert { .. });
        if !is_tuple {
            if let Some(slot) = (1..results).find(|&slot| used[slot]) {
                return Err(Unwritable::Result { node: side.node(node).name.clone(), slot });
            }
            self.keep((node, 0), expression);
            return Ok(());
        }
        let wanted: Vec<usize> = (0..results).filter(|&slot| used[slot]).collect();
        if let [slot] = wanted[..] {
            self.keep((node, slot as u8), Expression::atom(format!("{}[{slot}]", expression.text)));
            return Ok(());
        }
        let mut names = Vec::new();
        for (slot, &used) in used.iter().enumerate() {
            names.push(if used { self.name((node, slot as u8)) } else { "_".to_string() });
        }
        self.lines.push(format!("{} = {}", names.join(", "), expression.text));
        for slot in wanted {
            self.values.insert((node, slot as u8), Expression::atom(names[slot].clone()));
        }
        Ok(())
    }

    /// A call of a module within this one.
    fn child(&mut self, module: &Module) -> Result<(), Unwritable> {
        let results: Vec<Option<Key>> = module.results.iter().map(|pair| [pair.0, pair.1][self.which]).collect();
        let function = format!("self.{}", self.relative(&module.path));
        let call = self.call(&function, module)?;
        match results.as_slice() {
            // A module that has losses only.
            [] => self.lines.push(call),
            [Some(key)] => {
                if !module.is_leaf {
                    self.preferred.insert(*key, "y");
                }
                self.keep(*key, Expression::atom(call));
            }
            keys => {
                let name =
                    |body: &mut Self, key: &Option<Key>| key.map_or_else(|| "_".to_string(), |key| body.name(key));
                let names: Vec<String> = keys.iter().map(|key| name(self, key)).collect();
                self.lines.push(format!("{} = {call}", names.join(", ")));
                for (key, name) in keys.iter().zip(names) {
                    if let Some(key) = key {
                        self.values.insert(*key, Expression::atom(name));
                    }
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, function: &str, module: &Module) -> Result<String, Unwritable> {
        self.shorten(&module.given(self.which));
        let mut arguments = Vec::new();
        for pair in &module.given {
            arguments.push(match [pair.0, pair.1][self.which] {
                Some(key) => self.full(key)?.number().text,
                None => "None".into(),
            });
        }
        for &size in &module.sizes {
            self.used_sizes.insert(size);
            arguments.push(size.to_string());
        }
        Ok(format!("{function}({})", arguments.join(", ")))
    }

    /// How many of the items are modules of one class, each of which is given what the one before it gives.
    fn run(&self, items: &[Item], modules: &Modules<'_>) -> usize {
        let module = |item: &Item| match item {
            Item::Child(path) => Some(modules.of(path)),
            Item::Own(_) => None,
        };
        let mut length = 1;
        while length < items.len() {
            let (Some(before), Some(next)) = (module(&items[length - 1]), module(&items[length])) else { break };
            let [passed] = before.results(self.which)[..] else { break };
            let (a, b) = (before.given(self.which), next.given(self.which));
            let follows = a.len() == b.len()
                && b.first() == Some(&passed)
                && a.iter().zip(&b).skip(1).all(|(a, b)| a == b)
                && self.uses.get(&passed).copied().unwrap_or(0) == 1;
            // Between numbers that are apart is a module that does nothing, and it takes no sizes.
            let is_list = modules.is_list(list(&next.path))
                && number(&before.path).is_some_and(|n| number(&next.path) == Some(n + 1));
            if !follows || !is_list || before.constructor != next.constructor || list(&before.path) != list(&next.path)
            {
                break;
            }
            length += 1;
        }
        length
    }

    fn in_a_loop(&mut self, items: &[Item], modules: &Modules<'_>) -> Result<(), Unwritable> {
        let path = |item: &Item| match item {
            Item::Child(path) => Some(modules.of(path)),
            Item::Own(_) => None,
        };
        let (Some(first), Some(last)) = (items.first().and_then(path), items.last().and_then(path)) else {
            return Ok(());
        };
        let (Some(&given), Some(&result)) = (first.given(self.which).first(), last.results(self.which).first()) else {
            return Ok(());
        };
        let start = self.full(given)?.number().text;
        // What goes through the loop has a name of its own, unless nothing else needs what it begins with.
        let is_needed = self.uses.get(&given).copied().unwrap_or(0) > 1;
        let name = if start == "x" && !is_needed { start.clone() } else { self.fresh("x") };
        if start != name {
            self.lines.push(format!("{name} = {start}"));
        }
        let before = self.values.insert(given, Expression::atom(name.clone()));
        let list = list(&first.path);
        let (from, to) = (number(&first.path).unwrap_or(0), number(&last.path).unwrap_or(0) + 1);
        let mut whole = format!("self.{}", self.relative(list));
        if to - from < modules.length_of_list(list) {
            whole = format!("{whole}[{from}:{to}]");
        }
        let item = match self.of_loops.get(list) {
            Some(item) => item.clone(),
            None => {
                let of_list = list.rsplit('.').next().unwrap_or(list);
                let item = self.fresh(Some(of_list.trim_end_matches('s')).filter(|s| !s.is_empty()).unwrap_or("item"));
                self.of_loops.insert(list.to_string(), item.clone());
                item
            }
        };
        let call = self.call(&item, first)?;
        self.values.extend(before.map(|before| (given, before)));
        self.lines.push(format!("for {item} in {whole}:"));
        self.lines.push(format!("    {name} = {call}"));
        self.values.insert(result, Expression::atom(name));
        Ok(())
    }

    /// Keeps the expression of a value where it is used once, and gives it a name otherwise.
    fn keep(&mut self, key: Key, expression: Expression) {
        let is_short = expression.text.len() <= WIDEST - 10 && !expression.text.contains('\n');
        let is_plain = is_name(&expression.text);
        let once = self.uses.get(&key).copied().unwrap_or(0) <= 1;
        if expression.value.is_some() || is_plain || (once && is_short) {
            self.values.insert(key, expression);
            return;
        }
        let name = self.name(key);
        self.lines.push(format!("{name} = {}", expression.text));
        let named = Expression { is_bool: expression.is_bool, is_loose: expression.is_loose, ..Expression::atom(name) };
        self.values.insert(key, named);
    }

    /// Gives a value a name, unless it has one.
    fn named(&mut self, key: Key) {
        let Some(expression) = self.values.get(&key).cloned() else { return };
        if is_name(&expression.text) {
            return;
        }
        let name = self.name(key);
        self.lines.push(format!("{name} = {}", expression.text));
        let named = Expression { text: name.clone(), ..expression };
        self.values
            .insert(key, Expression { is_bool: named.is_bool, is_loose: named.is_loose, ..Expression::atom(name) });
    }

    /// An operand in its full extents.
    pub(super) fn operand(&mut self, node: usize, i: usize) -> Result<Expression, Unwritable> {
        self.shorten(&self.side.operands(node));
        self.full(self.side.key(self.side.node(node).operands[i]))
    }

    /// An operand of an elementwise function, which may have fewer axes than the graph says.
    pub(super) fn loose(&mut self, node: usize, i: usize) -> Result<Expression, Unwritable> {
        self.shorten(&self.side.operands(node));
        self.value(self.side.key(self.side.node(node).operands[i]))
    }

    /// Names operands that would make a line too long together.
    fn shorten(&mut self, operands: &[Key]) {
        loop {
            let length =
                |key: &Key| self.values.get(key).map_or(0, |e| if e.value.is_some() { 0 } else { e.text.len() });
            let total: usize = operands.iter().map(length).sum();
            let Some(&longest) = operands.iter().max_by_key(|key| length(key)).filter(|_| total > WIDEST - 35) else {
                return;
            };
            let before = length(&longest);
            self.named(longest);
            if self.values.get(&longest).map_or(0, |e| e.text.len()) >= before {
                return;
            }
        }
    }

    fn full(&mut self, key: Key) -> Result<Expression, Unwritable> {
        let value = self.value(key)?;
        if !value.is_loose {
            return Ok(value);
        }
        let shape = self.shape(key.0, key.1)?;
        Ok(match value.value.as_deref() {
            None => Expression { is_bool: value.is_bool, is_loose: false, ..value.method("expand", &shape) },
            Some(number) => {
                let device = self.device();
                let (function, mut arguments) = match number {
                    "0.0" => ("torch.zeros", shape),
                    "1.0" => ("torch.ones", shape),
                    number => {
                        let comma = if shape.len() == 1 { "," } else { "" };
                        ("torch.full", vec![format!("({}{comma})", shape.join(", ")), number.to_string()])
                    }
                };
                if arguments.is_empty() {
                    arguments.push("()".into());
                }
                arguments.push(device);
                Expression::atom(format!("{function}({})", arguments.join(", ")))
            }
        })
    }

    /// A value, whatever its extents.
    fn value(&mut self, key: Key) -> Result<Expression, Unwritable> {
        if let Some(value) = self.values.get(&key) {
            return Ok(value.clone());
        }
        let side = self.side;
        let node = side.node(key.0);
        Ok(match &node.op {
            // A batch is a step there, and there was none before it.
            Op::State { role: StateRole::Sum, .. } => Expression::constant("0.0".into(), false),
            Op::Parameter { name, .. } | Op::State { name, .. } => {
                let mut text = format!("self.{}", self.relative(name));
                // A row for each position of the context: those of the sequence.
                for axis in 0..node.results[0].rank() {
                    let extent = side.extent(key.0, 0, axis)?.text;
                    if super::operation::has_name(&extent, "T") {
                        let extent = self.symbols(extent);
                        text += &if axis == 0 {
                            format!("[:{extent}]")
                        } else {
                            format!("[{}, :{extent}]", vec![":"; axis].join(", "))
                        };
                    }
                }
                Expression::atom(text)
            }
            Op::Fill { .. } => {
                let formula = side.real(key.0, &|node| match node.op {
                    Op::Fill { value, .. } => value.get(),
                    _ => 0.0,
                })?;
                Expression::constant(self.symbols(formula.text), formula.is_compound)
            }
            Op::Ramp { .. } => {
                let length = side.extent(key.0, 0, 0)?;
                let step = side.formula(key.0, &|node| match node.op {
                    Op::Ramp { step, .. } => usize::try_from(step).unwrap_or(0),
                    _ => 0,
                })?;
                let length = self.symbols(length.text);
                let device = self.device();
                let ramp = Expression::atom(format!("torch.arange({length}, {device})"));
                let (ramp, name) = match step.text.as_str() {
                    "1" => (ramp, "numbers"),
                    _ => {
                        let step = Expression::constant(self.symbols(step.text), step.is_compound);
                        (ramp.infix(MULTIPLICATIVE, "*", &step.at(MULTIPLICATIVE)), "offsets")
                    }
                };
                if self.uses.get(&key).copied().unwrap_or(0) < 2 {
                    return Ok(ramp);
                }
                let name = self.fresh(name);
                self.lines.push(format!("{name} = {}", ramp.text));
                let ramp = Expression::atom(name);
                self.values.insert(key, ramp.clone());
                ramp
            }
            _ => moec_ir::internal_error!("%{} is used before it is computed", node.name),
        })
    }

    /// The extents of a value.
    pub(super) fn shape(&mut self, node: usize, slot: u8) -> Result<Vec<String>, Unwritable> {
        let rank = self.side.result_shape(node, slot).len();
        (0..rank)
            .map(|axis| {
                let extent = self.side.extent(node, slot, axis)?;
                Ok(self.symbols(extent.text))
            })
            .collect()
    }

    /// Where new tensors are made: with what the module is given.
    pub(super) fn device(&self) -> String {
        match self.arguments.first() {
            Some(name) => format!("device={name}.device"),
            None => "device=next(self.parameters()).device".into(),
        }
    }

    /// Notes the sizes of the batch that a formula names.
    pub(super) fn symbols(&mut self, formula: String) -> String {
        for name in ["B", "T"] {
            if super::operation::has_name(&formula, name) {
                self.used_sizes.insert(name);
            }
        }
        formula
    }

    /// A path as attributes of this module: `blocks[3].moe`.
    fn relative(&self, path: &str) -> String {
        let mut text = String::new();
        for part in self.modules.attributes(&self.path, path) {
            if names::index(&part).is_some() {
                text += &format!("[{part}]");
            } else {
                if !text.is_empty() {
                    text.push('.');
                }
                text += &part;
            }
        }
        text
    }

    fn name(&mut self, key: Key) -> String {
        match self.preferred.get(&key) {
            Some(name) => self.fresh(name),
            None => self.fresh(&self.side.name_of(key)),
        }
    }

    /// What a value from outside is called: the same in both graphs.
    fn argument_name(&self, sides: &[Side<'_>; 2], train: Option<Key>, evaluate: Option<Key>) -> String {
        let named = [(0, train), (1, evaluate)].into_iter().find_map(|(i, key)| Some((&sides[i], key?)));
        let Some((side, key)) = named else { return "x".into() };
        let node = side.node(key.0);
        let ty = &node.results[usize::from(key.1)];
        match &node.op {
            Op::Input { name, .. } if Input::of_name(name) == Some(Input::Tokens) => "tokens".into(),
            Op::Parameter { name, .. } | Op::State { name, .. } => {
                let mut parts: Vec<&str> = name.rsplit('.').take(2).collect();
                parts.reverse();
                parts.join("_")
            }
            _ if ty.dtype == DType::F32 && ty.rank() == 2 && !self.names.contains("x") => "x".into(),
            _ => side.name_of(key),
        }
    }

    /// A name that is not taken yet.
    fn fresh(&mut self, name: &str) -> String {
        let name = names::local(name);
        let mut candidate = name.clone();
        let mut n = 1;
        while !self.names.insert(candidate.clone()) {
            n += 1;
            candidate = format!("{name}_{n}");
        }
        candidate
    }
}

/// Whether a text is a name or an attribute.
fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || "_.".contains(c))
}

/// The place of a module in a list: 3 for `blocks.3`.
fn number(path: &str) -> Option<usize> {
    names::index(path.rsplit('.').next()?)
}

/// The list that a module is part of: `blocks` of `blocks.3`.
fn list(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(list, _)| list)
}

/// What a result of an operation is called where its node has no name of its own.
pub(super) fn usual_name(op: &Op, slot: u8) -> &'static str {
    match (op, slot) {
        (Op::TopK { .. }, 0) => "largest",
        (Op::TopK { .. }, _) => "chosen",
        (Op::SortByExpert { .. }, 0) => "offsets",
        (Op::SortByExpert { .. }, 1) => "order",
        (Op::SortByExpert { .. }, _) => "positions",
        (Op::Dispatch { .. }, _) => "rows",
        (Op::Combine { .. }, _) => "y",
        (Op::Softmax, _) => "probabilities",
        (Op::GatherLast, _) => "weights",
        (Op::ScatterLast { .. }, _) => "members",
        (Op::LimitCapacity { .. }, _) => "kept",
        (Op::BalancedAssignment, _) => "chosen",
        (Op::Count { .. }, _) => "load",
        (Op::ToIndex { .. }, _) => "index",
        (Op::ToFloat, _) => "number",
        (Op::Lookup, _) => "found",
        (Op::Previous { .. }, _) => "before",
        (Op::Sum { .. }, _) => "total",
        (Op::Embed, _) => "x",
        (Op::GroupedMatMulWeightGrad { .. }, _) => "mixtures",
        (Op::LogSumExp, _) => "log_sum",
        (Op::StopGradient, _) => "constant",
        (Op::MatMul { .. } | Op::GroupedMatMul { .. }, _) => "scores",
        (Op::RandomNormal { .. } | Op::RandomUniform { .. }, _) => "noise",
        (Op::Binary(Binary::Add), _) => "added",
        (Op::Binary(Binary::Sub), _) => "difference",
        (Op::Binary(Binary::Mul), _) => "scaled",
        (Op::Binary(Binary::Div), _) => "ratio",
        (Op::Binary(Binary::Max), _) => "larger",
        (Op::Binary(Binary::Min), _) => "smaller",
        (Op::Binary(Binary::Less | Binary::LessEqual | Binary::Equal), _) => "is_so",
        (Op::Select, _) => "selected",
        (Op::Unary(Unary::Abs), _) => "size",
        (Op::Reshape { .. } | Op::Broadcast { .. } | Op::Permute { .. }, _) => "view",
        (op, _) => op.mnemonic(),
    }
}
