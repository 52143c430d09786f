//! Names of a graph as names of Python: those that Python, PyTorch or the file itself has in use are written another way.

use std::collections::BTreeSet;

/// Words of the language.
const KEYWORDS: &[&str] = &[
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
];

/// Functions and types that Python has everywhere; one that the file calls must not be hidden.
const BUILTINS: &[&str] = &[
    "abs",
    "aiter",
    "all",
    "anext",
    "any",
    "ascii",
    "bin",
    "bool",
    "breakpoint",
    "bytearray",
    "bytes",
    "callable",
    "chr",
    "classmethod",
    "compile",
    "complex",
    "delattr",
    "dict",
    "dir",
    "divmod",
    "enumerate",
    "eval",
    "exec",
    "filter",
    "float",
    "format",
    "frozenset",
    "getattr",
    "globals",
    "hasattr",
    "hash",
    "help",
    "hex",
    "id",
    "input",
    "int",
    "isinstance",
    "issubclass",
    "iter",
    "len",
    "list",
    "locals",
    "map",
    "max",
    "memoryview",
    "min",
    "next",
    "object",
    "oct",
    "open",
    "ord",
    "pow",
    "print",
    "property",
    "range",
    "repr",
    "reversed",
    "round",
    "set",
    "setattr",
    "slice",
    "sorted",
    "staticmethod",
    "str",
    "sum",
    "super",
    "tuple",
    "type",
    "vars",
    "zip",
    "ValueError",
];

/// What stands at the top of the file beside its functions and classes.
const GLOBALS: &[&str] = &[
    "argparse",
    "json",
    "math",
    "pathlib",
    "torch",
    "F",
    "nn",
    "load_file",
    "CONTEXT",
    "BATCH",
    "ROUNDED",
    "RENAMED",
    "unrounded",
];

/// What statements of a module name beside their own values.
const STATEMENTS: &[&str] = &["self", "_", "result"];

/// Attributes of `nn.Module`, which a tensor or module of the same name would hide or be refused for.
const ATTRIBUTES: &[&str] = &[
    "T_destination",
    "add_module",
    "apply",
    "bfloat16",
    "buffers",
    "call_super_init",
    "children",
    "compile",
    "cpu",
    "cuda",
    "double",
    "dump_patches",
    "eval",
    "extra_repr",
    "float",
    "forward",
    "get_buffer",
    "get_extra_state",
    "get_parameter",
    "get_submodule",
    "half",
    "ipu",
    "load_state_dict",
    "modules",
    "mtia",
    "named_buffers",
    "named_children",
    "named_modules",
    "named_parameters",
    "parameters",
    "register_backward_hook",
    "register_buffer",
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_module",
    "register_parameter",
    "register_state_dict_post_hook",
    "register_state_dict_pre_hook",
    "requires_grad_",
    "set_extra_state",
    "set_submodule",
    "share_memory",
    "state_dict",
    "to",
    "to_empty",
    "train",
    "training",
    "type",
    "xpu",
    "zero_grad",
    // Those of the classes of the file.
    "load",
    "losses",
    "self",
];

/// Attributes that `nn.ModuleDict` has as well.
const OF_DICTS: &[&str] = &["clear", "items", "keys", "pop", "update", "values"];

/// The name of a value: one that hides nothing that statements need.
pub(super) fn local(name: &str) -> String {
    usable(name, |name| {
        name.starts_with("__") || [KEYWORDS, BUILTINS, GLOBALS, STATEMENTS].iter().any(|names| names.contains(&name))
    })
}

/// The name of a class.
pub(super) fn class(name: &str) -> String {
    usable(name, |name| [KEYWORDS, BUILTINS, GLOBALS].iter().any(|names| names.contains(&name)))
}

/// The name of an attribute; `siblings` are the names beside it in the graph, with itself. Two of them never get one name.
pub(super) fn attribute(name: &str, siblings: &BTreeSet<&str>, is_in_a_class: bool) -> String {
    let is_taken = |name: &str| {
        // Names of Python's own begin with an underscore, and two of them are read as something else within a class.
        name.starts_with('_')
            || KEYWORDS.contains(&name)
            || ATTRIBUTES.contains(&name)
            || (!is_in_a_class && OF_DICTS.contains(&name))
    };
    let mut given: BTreeSet<String> = BTreeSet::new();
    for &sibling in siblings {
        let mut candidate = usable(sibling.trim_start_matches('_'), is_taken);
        while candidate != sibling && (siblings.contains(candidate.as_str()) || given.contains(&candidate)) {
            candidate.push('_');
        }
        if sibling == name {
            return candidate;
        }
        given.insert(candidate);
    }
    usable(name.trim_start_matches('_'), is_taken)
}

/// The name itself, or one like it that is an identifier and not taken.
fn usable(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let mut usable: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if usable.chars().next().is_none_or(|first| first.is_ascii_digit()) || usable.starts_with("__") {
        usable = format!("n{}", usable.trim_start_matches('_'));
    }
    while is_taken(&usable) {
        match usable.starts_with("_") {
            true => usable.insert(0, 'n'),
            false => usable.push('_'),
        }
    }
    usable
}

/// A number of a list as it is written in one: 3, and not 03.
pub(super) fn index(part: &str) -> Option<usize> {
    part.parse().ok().filter(|n: &usize| n.to_string() == part)
}

/// A text as a string of Python.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted += "\\n",
            c if c.is_control() => quoted += &format!("\\x{:02x}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// A text as part of a string of Python between three quotes.
pub(super) fn in_a_docstring(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.replace('\\', "\\\\").replace("\"\"\"", "\\\"\\\"\\\"").chars() {
        match c {
            '\n' | '\t' => escaped.push(c),
            // Python refuses a NUL, and a carriage return would be read as an end of line.
            c if c.is_control() => escaped += &format!("\\x{:02x}", u32::from(c)),
            c => escaped.push(c),
        }
    }
    escaped
}
