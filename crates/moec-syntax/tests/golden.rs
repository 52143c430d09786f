//! Every file in `tests/syntax` against the snapshot beside it. `err_*` holds rendered diagnostics, `tree_*` the syntax tree,
//! anything else the canonical layout. `err_imported` is read with what it imports, all others stand alone.

use moec_syntax::{Code, Diagnostic, SourceFile, format, parse};

#[test]
fn golden() {
    insta::glob!("../../../tests/syntax", "*.moe", |path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(path).unwrap();
        let mut source = SourceFile::from_bytes(name.as_str(), &bytes).unwrap();
        if name.starts_with("err_imported") {
            let folder = path.parent().unwrap();
            source = source.with_imports(|import| {
                std::fs::read(folder.join(import)).map_err(|_| "there is no such file".to_owned())
            });
        }
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
        // The expectation lies beside its input.
        insta::with_settings!({ description => source.text(), omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => path.parent().unwrap(), snapshot_suffix => "" }, {
            insta::assert_snapshot!(name, shown);
        });
    });
}

/// Marks must stand under what they mean behind tabs and wide characters, with either line break, and at the end.
#[test]
fn marks() {
    let cases = [
        ("model m {\r\n\tlayr\r\n}\r\n", 12..16),
        ("// 漢字 é layr", 13..17),
        ("model m {", 9..9),
        ("model m {\n", 10..10),
        ("", 0..0),
        ("a\nb\nc\nd", 0..7),
    ];
    let shown = cases.map(|(text, range)| {
        let source = SourceFile::new("a.moe", text);
        let span = source.span(range);
        let diagnostic = Diagnostic::new(Code::UnknownLayer, "no such layer").primary(span, "here").note("a fact");
        diagnostic.help("advice").patch(span, "new", "replace it").render(&source, false)
    });
    insta::assert_snapshot!(shown.join("\n\n"));
}
