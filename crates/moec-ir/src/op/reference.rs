//! The reference page of the operations, made of what is declared of them.

use super::declarations;
use crate::declaration::{Declaration, Family, Gradient, Range, Slot};
use crate::stage::Stage;
use std::fmt::Write as _;

/// Families in the order of the page, with their headings and introductions.
const FAMILIES: [(Family, &str, &str); 13] = [
    (Family::Structure, "Structure", "Where values come from, and their shapes."),
    (Family::Elementwise, "Elementwise", "Functions of one element of each operand."),
    (Family::Indices, "Indices", "Integers: experts, rows and tokens."),
    (Family::Reduction, "Reduction", "Sums along axes."),
    (Family::Linear, "Linear", "Products of matrices, of all rows or of the rows of each expert."),
    (Family::Norm, "Norm", "Normalised rows."),
    (Family::Softmax, "Softmax", "Exponentials over the last axis."),
    (Family::Attention, "Attention", "Tokens that look at earlier ones."),
    (Family::Embedding, "Embedding and loss", "Tokens on the way in and out."),
    (Family::Random, "Random", "Element `i` of a node depends on (seed, step, key, i) only."),
    (Family::Selection, "Selection", "Choices of experts. Selected indices are constants to the gradient."),
    (Family::Dispatch, "Dispatch and combine", "Rows to the experts and back."),
    (Family::Optimizer, "Optimiser", "The step of the optimiser."),
];

const HEAD: &str = "\
# Operations

The graph language of moec, one section for each family of operations. This page is made of the table in `src/op.rs` and
of the functions in `src/function.rs`: change those, then write the page anew with
`UPDATE_OPERATIONS=1 cargo test -p moec-ir operations_page`.

An operand or result without an element type is of floats; `[s]` is any shape, `[..]` any number of axes. The letters
are those of `src/types.rs`: B batch, T time, N = B*T tokens, C channels, H heads, D head width, V vocabulary, E experts,
K experts per token, R dispatched rows, P capacity; M, I, O are extents of matrices. An operand in brackets with a `?` is
there only if an attribute says so. Operations are legal from lowering on unless it is said otherwise, and have a gradient
unless it is said otherwise.
";

/// The reference page of the operations in Markdown.
pub fn reference() -> String {
    let mut page = String::from(HEAD);
    for (family, title, introduction) in FAMILIES {
        // Writing to a string does not fail.
        let _ = write!(page, "\n## {title}\n\n{introduction}\n");
        for declaration in declarations().filter(|declaration| declaration.family == family) {
            entry(&mut page, declaration);
        }
    }
    page
}

fn entry(page: &mut String, declaration: &Declaration) {
    let slots = |slots: &[Slot]| {
        let slot = |s: &Slot| match s.always {
            true => format!("{} {}", s.name, s.ty),
            false => format!("[{} {}]?", s.name, s.ty),
        };
        slots.iter().map(slot).collect::<Vec<_>>().join(", ")
    };
    let (name, operands, results) = (declaration.mnemonic, slots(declaration.operands), slots(declaration.results));
    let _ = write!(page, "\n**`{name}({operands}) -> ({results})`**  \n{}", prose(declaration.doc));
    match declaration.stage {
        (Stage::Forward, None) => {}
        (Stage::Forward, Some(later)) => {
            let _ = write!(page, " Some attributes are legal from the {later} stage on only.");
        }
        (stage, _) => {
            let _ = write!(page, " Legal from the {stage} stage on.");
        }
    }
    page.push_str(match declaration.gradient {
        Gradient::Rule => "",
        Gradient::Zero if declaration.operands.is_empty() => "",
        Gradient::Zero => " A constant to the gradient.",
        Gradient::None => " It has no gradient.",
    });
    page.push('\n');
    for attribute in declaration.attributes {
        let range = match attribute.range {
            Range::Any => String::new(),
            range => format!(", {}", range.in_words()),
        };
        let form = if attribute.form.is_empty() { "as the types of the results say" } else { attribute.form };
        let _ = writeln!(page, "- `{}` ({form}{range}): {}", attribute.name, prose(attribute.doc));
    }
}

/// Lines of documentation as one paragraph, with links to the documentation of Rust as plain code.
fn prose(lines: &[&str]) -> String {
    let text = lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    text.replace("[`", "`").replace("`]", "`")
}
