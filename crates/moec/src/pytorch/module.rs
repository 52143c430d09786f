//! The modules of a model: a scope of names in the graph becomes a class of Python, and scopes that compute the same become
//! one class.

use super::Unwritable;
use super::body::{Body, Item, Key, Written};
use super::names::{self, quoted};
use super::side::Side;
use super::sizes::float;
use moec_ir::{DType, Init, Invariant, Op, Precision, StateRole, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// A training step and evaluation: the graphs of a model, in this order.
pub(super) const TRAINING: usize = 0;
pub(super) const EVALUATION: usize = 1;

/// What nodes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The logits.
    Results,
    /// Losses of layers, and nothing else.
    Losses,
}

/// A value in either graph.
type Pair = (Option<Key>, Option<Key>);

/// A module of the model.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// Its path, which is the scope of its names.
    pub(super) path: String,
    /// How Python makes it.
    pub(super) constructor: String,
    /// The values that it is given.
    pub(super) given: Vec<Pair>,
    /// The values that it returns.
    pub(super) results: Vec<Pair>,
    /// The sizes of the batch that it is given.
    pub(super) sizes: Vec<&'static str>,
    /// Whether it is a single operation with parameters of its own.
    pub(super) is_leaf: bool,
}

impl Module {
    /// What it is given in one of the graphs.
    pub(super) fn given(&self, which: usize) -> Vec<Key> {
        self.given.iter().filter_map(|pair| [pair.0, pair.1][which]).collect()
    }

    /// What it returns in one of the graphs.
    pub(super) fn results(&self, which: usize) -> Vec<Key> {
        self.results.iter().filter_map(|pair| [pair.0, pair.1][which]).collect()
    }
}

/// A tensor that the model keeps.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) ty: TensorType,
    /// How a parameter starts; `None` for a state of a router.
    pub(super) init: Option<Init>,
}

/// A class of Python.
struct Class {
    name: String,
    /// Everything below the first lines.
    text: String,
    /// The modules that it is the class of.
    paths: Vec<String>,
}

/// All modules of a model.
pub(super) struct Modules<'g> {
    /// The graphs.
    pub(super) sides: [Side<'g>; 2],
    /// Every tensor of the model by its name.
    pub(super) tensors: BTreeMap<String, Declared>,
    modules: BTreeMap<String, Module>,
    /// Scopes that cannot be called as one, because what they need is computed by what they give.
    split: BTreeSet<String>,
    /// The scopes in which something is computed, in either graph, in their order.
    scopes: Vec<String>,
    classes: Vec<Class>,
    /// Names that no class may have.
    taken: BTreeSet<String>,
    /// The functions and classes of the top of the file that are used.
    pub(super) helpers: BTreeSet<&'static str>,
}

impl<'g> Modules<'g> {
    pub(super) fn new(sides: [Side<'g>; 2], tensors: BTreeMap<String, Declared>, taken: BTreeSet<String>) -> Self {
        let mut scopes: Vec<String> = Vec::new();
        for side in &sides {
            for node in (0..side.len()).filter(|&node| side.is_computed(node)) {
                if !scopes.iter().any(|scope| scope == side.scope(node)) {
                    scopes.push(side.scope(node).to_string());
                }
            }
        }
        let (modules, split, classes, helpers) = (BTreeMap::new(), BTreeSet::new(), Vec::new(), BTreeSet::new());
        Self { sides, tensors, modules, split, scopes, classes, taken, helpers }
    }

    /// Names that no value may have: functions at the top of the file, and what is imported.
    pub(super) fn reserved(&self) -> BTreeSet<String> {
        let names = ["self", "torch", "math", "F", "nn", "B", "T", "targets"].map(str::to_string);
        self.taken.iter().cloned().chain(names).collect()
    }

    /// A module that has been written.
    pub(super) fn of(&self, path: &str) -> &Module {
        self.modules.get(path).invariant("the modules within a module are written first")
    }

    /// Values that go into a module and come out of it.
    pub(super) fn interface(&self, path: &str) -> &Module {
        self.of(path)
    }

    /// The length of a list, with the numbers that no module has.
    pub(super) fn length_of_list(&self, list: &str) -> usize {
        self.names_in(list).into_iter().filter_map(names::index).max().map_or(0, |last| last + 1)
    }

    /// The names of tensors and scopes right below a scope.
    fn names_in(&self, path: &str) -> BTreeSet<&str> {
        let names = self.tensors.keys().chain(&self.scopes).chain(self.modules.keys());
        names.filter_map(|name| below(name, path)?.split('.').next()).collect()
    }

    /// Whether what is below a scope, which is no module itself, are modules with numbers.
    pub(super) fn is_list(&self, path: &str) -> bool {
        let names = self.names_in(path);
        let is_numbered =
            |name: &&str| names::index(name).is_some() && !self.tensors.contains_key(&format!("{path}.{name}"));
        let is_dense = || self.length_of_list(path) <= 4 * names.len() + HOLES;
        !path.is_empty() && !self.modules.contains_key(path) && names.iter().all(is_numbered) && is_dense()
    }

    /// The parts of a path within the module `base` as Python names them: attributes, and numbers in lists.
    pub(super) fn attributes(&self, base: &str, path: &str) -> Vec<String> {
        let Some(rest) = below(path, base) else { return Vec::new() };
        let mut before = base.to_string();
        let mut attributes = Vec::new();
        for part in rest.split('.') {
            attributes.push(match self.is_list(&before) {
                true => part.to_string(),
                false => {
                    let is_in_a_class = before.is_empty() || self.modules.contains_key(&before);
                    names::attribute(part, &self.names_in(&before), is_in_a_class)
                }
            });
            if !before.is_empty() {
                before.push('.');
            }
            before += part;
        }
        attributes
    }

    /// The tensors that are called something else in Python, with their names there.
    pub(super) fn renamed(&self) -> Vec<(&str, String)> {
        let names = self.tensors.keys().map(|name| (name.as_str(), self.attributes("", name).join(".")));
        names.filter(|(name, renamed)| name != renamed).collect()
    }

    /// The statements of a module: nodes of its own and modules within it, in order.
    pub(super) fn items(&self, which: usize, path: &str, part: Part) -> Vec<Item> {
        let side = &self.sides[which];
        let mut items = Vec::new();
        for node in (0..side.len()).filter(|&node| side.is_computed(node) && is_under(side.scope(node), path)) {
            let child = self.child(path, side.scope(node));
            let of_results = match &child {
                None => side.is_of_results(node),
                Some(child) => self.has_results(which, child),
            };
            if of_results != (part == Part::Results) {
                continue;
            }
            match child {
                None => items.push(Item::Own(node)),
                Some(child) if items.iter().any(|item| matches!(item, Item::Child(path) if *path == child)) => {}
                // Called where its first result is made.
                Some(_) if part == Part::Results && !side.is_of_results(node) => {}
                Some(child) => items.push(Item::Child(child)),
            }
        }
        items
    }

    /// Whether the logits depend on a module.
    fn has_results(&self, which: usize, path: &str) -> bool {
        let side = &self.sides[which];
        (0..side.len())
            .any(|node| side.is_computed(node) && side.is_of_results(node) && is_under(side.scope(node), path))
    }

    /// The module within `path` that a scope belongs to; `None` for `path` itself.
    fn child(&self, path: &str, scope: &str) -> Option<String> {
        let mut base = path.to_string();
        loop {
            let child = self.candidate(&base, scope)?;
            if !self.split.contains(&child) {
                return Some(child);
            }
            base = child;
        }
    }

    fn candidate(&self, path: &str, scope: &str) -> Option<String> {
        let mut child = extended(path, scope)?;
        // A scope that has nothing but one other scope is that one.
        while child.rsplit('.').next().is_some_and(|last| last.parse::<usize>().is_err()) {
            let mut within = self.scopes.iter().filter(|scope| is_under(scope, &child));
            let Some(Some(next)) = within.clone().next().map(|scope| extended(&child, scope)) else { break };
            if !within.all(|scope| is_under(scope, &next)) {
                break;
            }
            child = next;
        }
        Some(child)
    }

    /// Writes a module and those within it, and finds out what goes in and out.
    pub(super) fn write(&mut self, path: &str) -> Result<(), Unwritable> {
        loop {
            let children = self.children(path);
            let Some(child) = children.iter().find(|child| !self.can_be_called(child)) else { break };
            let child = child.clone();
            self.split.insert(child);
        }
        for child in self.children(path) {
            self.write(&child)?;
        }
        let (given, results) = self.values_at_its_ends(path);
        let mut module = Module {
            path: path.to_string(),
            constructor: String::new(),
            given,
            results,
            sizes: Vec::new(),
            is_leaf: false,
        };
        if let Some((helper, constructor, operands)) = self.leaf(path)? {
            self.helpers.extend(helper);
            module.constructor = constructor;
            module.given = operands;
            module.is_leaf = true;
            self.modules.insert(path.to_string(), module);
            return Ok(());
        }
        self.modules.insert(path.to_string(), module);
        let (text, sizes, helpers) = self.class_text(path)?;
        self.helpers.extend(helpers);
        let constructor = match path {
            "" => String::new(),
            path => format!("{}()", self.class(path, text.clone())),
        };
        if path.is_empty() {
            self.classes.push(Class { name: "Model".into(), text, paths: Vec::new() });
        }
        if let Some(module) = self.modules.get_mut(path) {
            module.constructor = constructor;
            module.sizes = sizes;
        }
        Ok(())
    }

    /// The classes, those first that others are made of.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for class in &self.classes {
            let of = match class.paths.as_slice() {
                [] => "The model.".to_string(),
                [path] => format!("`{}`.", names::in_a_docstring(path)),
                [first, between @ .., last] => {
                    let word = if between.is_empty() { "and" } else { "to" };
                    format!("`{}` {word} `{}`.", names::in_a_docstring(first), names::in_a_docstring(last))
                }
            };
            text += &format!("class {}(nn.Module):\n    \"\"\"{of}\"\"\"\n\n{}\n\n", class.name, class.text);
        }
        text
    }

    /// The name of the class with this text, which may be there already.
    fn class(&mut self, path: &str, text: String) -> String {
        if let Some(class) = self.classes.iter_mut().find(|class| class.text == text) {
            class.paths.push(path.to_string());
            return class.name.clone();
        }
        let mut parts = path.split('.').filter(|part| part.parse::<usize>().is_err());
        let is_in_a_list = path.rsplit('.').next().is_some_and(|last| last.parse::<usize>().is_ok());
        let last = parts.next_back().unwrap_or("module");
        let last = if is_in_a_list { last.trim_end_matches('s') } else { last };
        let words = last.split('_').filter(|word| word.parse::<usize>().is_err());
        let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
        let base: String = words.filter(|word| !word.is_empty() && word.is_ascii()).map(capital).collect();
        let base = names::class(if base.is_empty() { "Module" } else { &base });
        let mut name = base.clone();
        let mut n = 1;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{base}{n}");
        }
        self.classes.push(Class { name: name.clone(), text, paths: vec![path.to_string()] });
        name
    }

    /// The modules within a module, in either graph.
    fn children(&self, path: &str) -> Vec<String> {
        let mut children: Vec<String> = Vec::new();
        for scope in self.scopes.iter().filter(|scope| is_under(scope, path)) {
            if let Some(child) = self.child(path, scope).filter(|child| !children.contains(child)) {
                children.push(child);
            }
        }
        children
    }

    /// Whether everything that a scope needs is there before its first node.
    fn can_be_called(&self, path: &str) -> bool {
        self.sides.iter().all(|side| {
            let nodes = || self.nodes(side, path);
            let has_results = nodes().any(|node| side.is_of_results(node));
            let first = nodes().find(|&node| !has_results || side.is_of_results(node));
            let Some(first) = first else { return true };
            self.given(side, path).iter().all(|&(node, _)| {
                !side.is_computed(node) || (node < first && (!has_results || side.is_of_results(node)))
            })
        })
    }

    /// The nodes in a scope and below it that are computed.
    fn nodes<'a>(&self, side: &'a Side<'g>, path: &'a str) -> impl Iterator<Item = usize> + use<'a, 'g> {
        (0..side.len()).filter(move |&node| side.is_computed(node) && is_under(side.scope(node), path))
    }

    /// The values that a scope needs from outside.
    fn given(&self, side: &Side<'g>, path: &str) -> Vec<Key> {
        let mut given = Vec::new();
        let of_results = self.nodes(side, path).filter(|&node| side.is_of_results(node));
        let of_losses = self.nodes(side, path).filter(|&node| !side.is_of_results(node));
        for node in of_results.chain(of_losses) {
            for key in side.operands(node) {
                let is_own = match &side.node(key.0).op {
                    Op::Fill { .. } | Op::Ramp { .. } | Op::State { role: StateRole::Sum, .. } => true,
                    Op::Parameter { name, .. } | Op::State { name, .. } => is_under(name, path),
                    Op::Input { .. } => false,
                    _ => is_under(side.scope(key.0), path),
                };
                if !is_own && !given.contains(&key) {
                    given.push(key);
                }
            }
        }
        given
    }

    /// The values that a scope makes for others.
    fn results(&self, side: &Side<'g>, path: &str) -> Vec<Key> {
        let mut results = Vec::new();
        let inside = |key: &Key| side.is_computed(key.0) && is_under(side.scope(key.0), path);
        for node in (0..side.len()).filter(|&node| side.is_computed(node) && !is_under(side.scope(node), path)) {
            results.extend(side.operands(node).into_iter().filter(inside));
        }
        results.extend(Some(side.logits).filter(inside));
        results.sort_unstable();
        results.dedup();
        results
    }

    fn values_at_its_ends(&self, path: &str) -> (Vec<Pair>, Vec<Pair>) {
        let pairs =
            |of: &dyn Fn(&Side<'g>) -> Vec<Key>| self.paired(of(&self.sides[TRAINING]), of(&self.sides[EVALUATION]));
        (pairs(&|side| self.given(side, path)), pairs(&|side| self.results(side, path)))
    }

    /// Which values of the graphs are the same.
    fn paired(&self, training: Vec<Key>, evaluation: Vec<Key>) -> Vec<Pair> {
        if training.len() == evaluation.len() {
            return training.into_iter().map(Some).zip(evaluation.into_iter().map(Some)).collect();
        }
        let name = |which: usize, key: Key| self.sides[which].identity(key);
        let twin = |key: Key| evaluation.iter().copied().find(|&other| name(EVALUATION, other) == name(TRAINING, key));
        let mut pairs: Vec<Pair> = training.iter().map(|&key| (Some(key), twin(key))).collect();
        let left: Vec<Key> =
            evaluation.iter().copied().filter(|key| pairs.iter().all(|pair| pair.1 != Some(*key))).collect();
        pairs.extend(left.into_iter().map(|key| (None, Some(key))));
        pairs
    }

    /// How a module is made that is a single operation with parameters of its own, and what it is given.
    fn leaf(&self, path: &str) -> Result<Option<Leaf>, Unwritable> {
        let mut found: Option<Leaf> = None;
        for (which, side) in self.sides.iter().enumerate() {
            let nodes: Vec<usize> = self.nodes(side, path).collect();
            let &[node] = nodes.as_slice() else {
                if nodes.is_empty() {
                    continue;
                }
                return Ok(None);
            };
            let Some((helper, constructor, keys)) = leaf_of(side, node, path)? else { return Ok(None) };
            if keys.iter().any(|&key| side.is_computed(key.0) && is_under(side.scope(key.0), path)) {
                return Ok(None);
            }
            let results = self.results(side, path);
            if results.iter().any(|key| key.1 > 0) {
                return Ok(None);
            }
            let pair = |key: Key| if which == TRAINING { (Some(key), None) } else { (None, Some(key)) };
            match &mut found {
                None => found = Some((helper, constructor, keys.into_iter().map(pair).collect())),
                Some((_, other, pairs)) => {
                    if *other != constructor || pairs.len() != keys.len() {
                        return Ok(None);
                    }
                    for (pair, key) in pairs.iter_mut().zip(keys) {
                        pair.1 = Some(key);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The text of a class below its name, the sizes that it is given, and the helpers that it uses.
    fn class_text(&self, path: &str) -> Result<(String, Vec<&'static str>, BTreeSet<&'static str>), Unwritable> {
        let mut written: [Option<Written>; 2] = [None, None];
        for (which, side) in self.sides.iter().enumerate() {
            if self.nodes(side, path).next().is_some() || path.is_empty() {
                written[which] = Some(Body::write(which, path, true, self)?);
            }
        }
        let without_dropout = match &written[TRAINING] {
            Some(_) => Some(Body::write(TRAINING, path, false, self)?),
            None => None,
        };
        let all: Vec<&Written> = written.iter().flatten().collect();
        let mut sizes: BTreeSet<&'static str> = all.iter().flat_map(|w| w.used_sizes.iter().copied()).collect();
        let mut helpers: BTreeSet<&'static str> = all.iter().flat_map(|w| w.helpers.iter().copied()).collect();
        let (members, of_members) = self.members(path)?;
        helpers.extend(of_members);
        let mut text = format!("    def __init__(self):\n        super().__init__()\n{members}");
        let has_losses = |written: &Option<Written>| written.as_ref().is_some_and(|w| !w.losses.is_empty());
        if has_losses(&written[TRAINING]) {
            text += "        self.losses = {}\n";
        }
        let arguments: Vec<String> = all.first().map(|written| written.arguments.clone()).unwrap_or_default();
        let is_model = path.is_empty();
        if is_model {
            sizes.clear();
            text += "\n    def forward(self, tokens, targets=None):\n";
            text += "        \"\"\"The scores [B, T, V] of the tokens that follow tokens [B, T], and with targets [B, T] the loss.\"\"\"\n";
            text += "        B, T = tokens.shape\n        tokens = tokens.flatten()\n";
        } else {
            let sizes = sizes.iter().map(|size| size.to_string());
            let all: Vec<String> = std::iter::once("self".to_string()).chain(arguments).chain(sizes).collect();
            text += &format!("\n    def forward({}):\n", all.join(", "));
        }
        let finish = |results: &[String]| -> Vec<String> {
            match (is_model, results) {
                (true, [logits]) => vec![format!("logits = {logits}")],
                (_, []) => Vec::new(),
                (_, results) => vec![format!("return {}", results.join(", "))],
            }
        };
        let in_training = |written: &Written| match written.losses.as_slice() {
            [] => Vec::new(),
            losses => {
                let lines = losses.iter().map(|line| format!("    {line}"));
                std::iter::once("if self.training:".to_string()).chain(lines).collect()
            }
        };
        let lines = match (&written[TRAINING], &without_dropout, &written[EVALUATION]) {
            (Some(train), Some(plain), Some(evaluate)) => {
                let (lines, results) = together(train, plain, evaluate);
                [lines, in_training(train), finish(&results)].concat()
            }
            (Some(only), ..) => [only.lines.clone(), only.losses.clone(), finish(&only.results)].concat(),
            (None, _, Some(only)) => [only.lines.clone(), finish(&only.results)].concat(),
            (None, _, None) => Vec::new(),
        };
        for line in lines {
            text += &format!("        {line}\n");
        }
        if is_model {
            text += "        logits = logits.view(B, T, -1)\n";
            text += "        if targets is None:\n            return logits, None\n";
            text += "        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())\n";
            if self.sides.iter().any(|side| !side.losses.is_empty()) {
                text += "        if self.training:\n";
                text += "            loss = loss + sum(sum(module.losses.values()) for module in self.modules() if hasattr(module, \"losses\"))\n";
            }
            text += "        return logits, loss\n";
        }
        Ok((text, sizes.into_iter().collect(), helpers))
    }

    /// The statements that make the tensors and modules of a module.
    fn members(&self, path: &str) -> Result<(String, BTreeSet<&'static str>), Unwritable> {
        let children = self.children(path);
        let relative = |name: &str| self.attributes(path, name);
        let mut tree = Member::default();
        let mut helpers = BTreeSet::new();
        for (name, declared) in &self.tensors {
            if !is_under(name, path) || children.iter().any(|child| is_under(name, child)) {
                continue;
            }
            tree.insert(&relative(name), declared.text(), declared.init.is_none());
        }
        for child in &children {
            tree.insert(&relative(child), self.of(child).constructor.clone(), false);
        }
        let mut text = String::new();
        for (name, member) in &tree.members {
            let value = member.text(&mut helpers);
            text += &match member.is_buffer {
                true => format!("        self.register_buffer({}, {value})\n", quoted(name)),
                false => format!("        self.{name} = {value}\n"),
            };
        }
        Ok((text, helpers))
    }
}

/// The statements of a training step and of evaluation, once where they are the same, and the results. `plain` is a training
/// step without dropout, which does nothing in evaluation.
fn together(train: &Written, plain: &Written, evaluate: &Written) -> (Vec<String>, Vec<String>) {
    if (&plain.lines, &plain.results) == (&evaluate.lines, &evaluate.results) {
        return (train.lines.clone(), train.results.clone());
    }
    // Only where dropout makes no statement of its own is it known which statement is which.
    let is_aligned = train.lines.len() == plain.lines.len();
    let has_same_results = match is_aligned {
        true => plain.results == evaluate.results,
        false => train.results == evaluate.results,
    };
    let (a, b) = (&plain.lines, &evaluate.lines);
    let mut first = if is_aligned { a.iter().zip(b).take_while(|(a, b)| a == b).count() } else { 0 };
    let behind = a[first..].iter().rev().zip(b[first..].iter().rev()).take_while(|(a, b)| a == b).count();
    let mut last = if is_aligned && has_same_results { behind } else { 0 };
    // A loop is one statement.
    let is_within = |lines: &[String], at: usize| lines.get(at).is_some_and(|line| line.starts_with(' '));
    while first > 0 && (is_within(a, first) || is_within(b, first)) {
        first -= 1;
    }
    while last > 0 && (is_within(a, a.len() - last) || is_within(b, b.len() - last)) {
        last -= 1;
    }
    let mut of_training = train.lines[first..train.lines.len() - last].to_vec();
    let mut of_evaluation = b[first..b.len() - last].to_vec();
    let mut results = train.results.clone();
    if !has_same_results {
        for (i, (result, other)) in results.iter_mut().zip(&evaluate.results).enumerate() {
            let name = if i == 0 { "result".to_string() } else { format!("result_{}", i + 1) };
            of_training.push(format!("{name} = {result}"));
            of_evaluation.push(format!("{name} = {other}"));
            *result = name;
        }
    }
    let indented = |lines: &[String]| lines.iter().map(|line| format!("    {line}")).collect::<Vec<_>>();
    let either = |condition: &str, lines: &[String]| [vec![condition.to_string()], indented(lines)].concat();
    let between = match (of_training.as_slice(), of_evaluation.as_slice()) {
        ([], []) => Vec::new(),
        (training, []) => either("if self.training:", training),
        ([], evaluation) => either("if not self.training:", evaluation),
        (training, evaluation) => [either("if self.training:", training), either("else:", evaluation)].concat(),
    };
    let lines = [&train.lines[..first], &between, &train.lines[train.lines.len() - last..]].concat();
    (lines, results)
}

/// How a leaf is made, the helper that it is, and what it is given.
type Leaf = (Option<&'static str>, String, Vec<Pair>);

/// The same in one of the graphs.
type LeafOf = (Option<&'static str>, String, Vec<Key>);

/// A single operation with parameters of its own as a module.
fn leaf_of(side: &Side<'_>, node: usize, path: &str) -> Result<Option<LeafOf>, Unwritable> {
    let operands: Vec<Key> = side.node(node).operands.iter().map(|&value| side.key(value)).collect();
    let own = |i: usize, last: &str| match operands.get(i).map(|key| &side.node(key.0).op) {
        Some(Op::Parameter { name, .. }) => *name == format!("{path}.{last}"),
        _ => false,
    };
    let extents = |i: usize| -> Result<Option<Vec<usize>>, Unwritable> {
        let (node, slot) = operands[i];
        let shape = side.result_shape(node, slot);
        for (axis, extent) in shape.iter().enumerate() {
            if side.extent(node, slot, axis)?.text != extent.to_string() {
                return Ok(None);
            }
        }
        Ok(Some(shape))
    };
    Ok(match &side.node(node).op {
        Op::MatMul { transpose_a: false, transpose_b: true, bias, precision } if own(1, "weight") => {
            let Some(shape) = extents(1)? else { return Ok(None) };
            if *bias && !own(2, "bias") {
                return Ok(None);
            }
            let (helper, class) = match precision {
                Precision::F32 => (None, "nn.Linear"),
                Precision::Bf16 => (Some("RoundedLinear"), "RoundedLinear"),
            };
            let without = if *bias { "" } else { ", bias=False" };
            let constructor = format!("{class}({}, {}{without})", shape[1], shape[0]);
            Some((helper, constructor, vec![operands[0]]))
        }
        Op::GroupedMatMul { transpose_b: true, bias, precision } if own(1, "weight") => {
            let Some(shape) = extents(1)? else { return Ok(None) };
            if *bias && !own(3, "bias") {
                return Ok(None);
            }
            let class = match precision {
                Precision::F32 => "ExpertLinear",
                Precision::Bf16 => "RoundedExpertLinear",
            };
            let without = if *bias { "" } else { ", bias=False" };
            let constructor = format!("{class}({}, {}, {}{without})", shape[0], shape[2], shape[1]);
            Some((Some(class), constructor, vec![operands[0], operands[2]]))
        }
        Op::LayerNorm { epsilon } if own(1, "gain") && own(2, "shift") => {
            let Some(shape) = extents(1)? else { return Ok(None) };
            let constructor = format!("LayerNorm({}, {})", shape[0], float(epsilon.get()));
            Some((Some("LayerNorm"), constructor, vec![operands[0]]))
        }
        Op::RmsNorm { epsilon } if own(1, "gain") => {
            let Some(shape) = extents(1)? else { return Ok(None) };
            let constructor = format!("RmsNorm({}, {})", shape[0], float(epsilon.get()));
            Some((Some("RmsNorm"), constructor, vec![operands[0]]))
        }
        _ => None,
    })
}

impl Declared {
    /// How Python makes it.
    fn text(&self) -> String {
        let shape: Vec<String> = self.ty.shape.iter().map(usize::to_string).collect();
        let shape = if shape.is_empty() { "()".to_string() } else { shape.join(", ") };
        let tensor = match self.init {
            None => {
                let dtype = if self.ty.dtype == DType::I32 { ", dtype=torch.long" } else { "" };
                return format!("torch.zeros({shape}{dtype})");
            }
            Some(Init::Constant(value)) if value.get() == 0.0 => format!("torch.zeros({shape})"),
            Some(Init::Constant(value)) if value.get() == 1.0 => format!("torch.ones({shape})"),
            Some(Init::Constant(value)) => {
                let shape = if self.ty.shape.is_empty() { shape } else { format!("({shape},)") };
                format!("torch.full({shape}, {})", float(value.get()))
            }
            Some(Init::Normal { std }) if std.get() == 1.0 => format!("torch.randn({shape})"),
            Some(Init::Normal { std }) => format!("torch.randn({shape}) * {}", float(std.get())),
            Some(Init::Uniform { bound }) => {
                format!("torch.empty({shape}).uniform_(-{0}, {0})", float(bound.get()))
            }
            Some(Init::Orthogonal { gain }) => {
                format!("nn.init.orthogonal_(torch.empty({shape}), {})", float(gain.get()))
            }
        };
        format!("nn.Parameter({tensor})")
    }
}

/// Attributes of a module as a tree of their names.
#[derive(Default)]
struct Member {
    /// How Python makes it, if nothing is below it.
    value: String,
    is_buffer: bool,
    members: Vec<(String, Member)>,
}

impl Member {
    fn insert(&mut self, path: &[String], value: String, is_buffer: bool) {
        let Some((first, rest)) = path.split_first() else {
            (self.value, self.is_buffer) = (value, is_buffer);
            return;
        };
        let at = self.members.iter().position(|(name, _)| name == first).unwrap_or_else(|| {
            self.members.push((first.clone(), Member::default()));
            self.members.len() - 1
        });
        self.members[at].1.insert(rest, value, is_buffer);
    }

    fn text(&self, helpers: &mut BTreeSet<&'static str>) -> String {
        if self.members.is_empty() {
            return self.value.clone();
        }
        let numbers: Option<BTreeMap<usize, &Member>> =
            self.members.iter().map(|(name, member)| Some((names::index(name)?, member))).collect();
        let is_module = |member: &Member| !member.is_buffer && !member.value.starts_with("nn.Parameter");
        let values: Vec<(String, String)> =
            self.members.iter().map(|(name, member)| (name.clone(), member.text(helpers))).collect();
        if let Some(numbers) = numbers {
            // A number that has no module, such as that of a repetition without a layer, stands for one that does nothing.
            let length = numbers.keys().next_back().map_or(0, |last| last + 1);
            let values: Vec<String> = (0..length)
                .map(|i| numbers.get(&i).map_or_else(|| "nn.Identity()".to_string(), |member| member.text(helpers)))
                .collect();
            return match values.as_slice() {
                [first, _, ..] if values.iter().all(|value| value == first) => {
                    format!("nn.ModuleList([{first} for _ in range({length})])")
                }
                values => format!("nn.ModuleList([{}])", values.join(", ")),
            };
        }
        if self.members.iter().all(|(_, member)| is_module(member)) {
            let values: Vec<String> = values.iter().map(|(name, value)| format!("{}: {value}", quoted(name))).collect();
            return format!("nn.ModuleDict({{{}}})", values.join(", "));
        }
        helpers.insert("Tensors");
        let values: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("Tensors({})", values.join(", "))
    }
}

/// How many numbers of a list may be missing in any case; behind more they are names.
const HOLES: usize = 256;

/// What follows `path` and a point in a name.
fn below<'n>(name: &'n str, path: &str) -> Option<&'n str> {
    if path.is_empty() {
        Some(name).filter(|name| !name.is_empty())
    } else {
        name.strip_prefix(path)?.strip_prefix('.')
    }
}

/// Whether a name is `path` or below it.
fn is_under(name: &str, path: &str) -> bool {
    path.is_empty() || name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// `path` with the next part of a scope below it, and with its number where that is part of a list.
fn extended(path: &str, scope: &str) -> Option<String> {
    let rest = if path.is_empty() { scope } else { scope.strip_prefix(path)?.strip_prefix('.')? };
    let mut parts = rest.split('.');
    let first = parts.next().filter(|first| !first.is_empty())?;
    let mut length = scope.len() - rest.len() + first.len();
    if let Some(second) = parts.next().filter(|second| second.parse::<usize>().is_ok()) {
        length += 1 + second.len();
    }
    Some(scope[..length].to_string())
}
