//! Tests of this module's parent.

use super::*;
use std::collections::BTreeSet;

#[test]
fn names_of_operations_are_different() {
    let names: BTreeSet<&str> = declarations().map(|declaration| declaration.mnemonic).collect();
    assert_eq!(names.len(), declarations().count());
}

#[test]
fn operands_and_attributes_have_names_of_their_own() {
    for declaration in declarations() {
        let operands: BTreeSet<&str> = declaration.operands.iter().map(|slot| slot.name).collect();
        assert_eq!(operands.len(), declaration.operands.len(), "{}", declaration.mnemonic);
        let attributes: BTreeSet<&str> = declaration.attributes.iter().map(|attribute| attribute.name).collect();
        assert_eq!(attributes.len(), declaration.attributes.len(), "{}", declaration.mnemonic);
    }
}

#[test]
fn what_draws_has_the_generator_state_as_its_last_operand() {
    for declaration in declarations().filter(|declaration| declaration.random) {
        assert_eq!(declaration.operands.last().map(|slot| slot.name), Some("rng"), "{}", declaration.mnemonic);
    }
}

#[test]
fn the_operations_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/OPERATIONS.md");
    if std::env::var_os("UPDATE_OPERATIONS").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(page == reference(), "run `UPDATE_OPERATIONS=1 cargo test -p moec-ir operations_page`");
}
