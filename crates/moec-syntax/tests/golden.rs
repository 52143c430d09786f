//! Every file under `tests/syntax` against its snapshot. `err_*` holds rendered diagnostics, `tree_*` the syntax tree,
//! anything else the canonical layout.

use moec_syntax::{SourceFile, format, parse};

#[test]
fn golden() {
    insta::glob!("../../../tests/syntax", "*.moe", |path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(path).unwrap();
        let source = SourceFile::from_bytes(name.as_str(), &bytes).unwrap();
        let shown = if name.starts_with("err_") {
            let faults = parse(&source).unwrap_err();
            assert!(!faults.is_empty(), "{name}");
            let long: Vec<String> = faults.iter().map(|fault| fault.render(&source, false)).collect();
            let short: Vec<String> = faults.iter().map(|fault| fault.render_short(&source)).collect();
            format!("{}\n\n{}", short.join("\n"), long.join("\n\n"))
        } else if name.starts_with("tree_") {
            format!("{:#?}", parse(&source).unwrap())
        } else {
            let once = format(&source).unwrap_or_else(|faults| panic!("{}", faults[0].render(&source, false)));
            let twice = format(&SourceFile::new(name.as_str(), once.as_str())).unwrap();
            assert_eq!(once, twice, "formatting {name} twice changes it");
            once
        };
        insta::with_settings!({ description => source.text(), omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(shown);
        });
    });
}
