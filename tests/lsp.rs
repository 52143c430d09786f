//! `moec lsp` as an editor drives it: a session over standard input and output of the program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A routing strategy and a block, to be imported.
const LIBRARY: &str = "\
// Sigmoids of the scores.
router own_top_k(k: int) {
  let scores = linear(x, experts)
  let best, chosen = top_k(sigmoid(scores), k)
  return token_choice(experts: chosen, weights: best, logits: scores)
}

block feed {
  mlp(hidden: 64)
}
";

/// A model with two faults, one of them behind characters of two and four bytes.
const FAULTY: &str = "\
import \"lib/own.moe\"

model small {
  let width = 2 * 16
  let size = width

  context 8
  vocab   characters

  embed(width: width)
  repeat 2 {
    residual { layer_norm  attention(heads: 5) }
    residual { layer_norm  moe(experts: 4 * feed, route: own_topk(k: 2)) } // → 😀
  }
  layer_norm
  unembed
}
";

struct Editor {
    program: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    asked: i64,
}

impl Editor {
    fn start() -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_moec"))
            .arg("lsp")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (program.stdin.take(), BufReader::new(program.stdout.take().unwrap()));
        let mut editor = Editor { program, to, from, asked: 0 };
        let item = json!({ "snippetSupport": true });
        let capabilities = json!({
            "textDocument": { "completion": { "completionItem": item } },
            "workspace": { "didChangeWatchedFiles": { "dynamicRegistration": true } },
        });
        let answer =
            editor.ask("initialize", json!({ "processId": null, "rootUri": null, "capabilities": capabilities }));
        assert_eq!(answer["serverInfo"]["name"], "moec");
        assert_eq!(answer["capabilities"]["positionEncoding"], "utf-16");
        editor.tell("initialized", json!({}));
        let asked = editor.receive();
        assert_eq!(asked["method"], "client/registerCapability");
        assert_eq!(asked["params"]["registrations"][0]["method"], "workspace/didChangeWatchedFiles");
        editor.send(&json!({ "jsonrpc": "2.0", "id": asked["id"], "result": null }));
        editor
    }

    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        write!(self.to.as_mut().unwrap(), "Content-Length: {}\r\n\r\n{text}", text.len()).unwrap();
        self.to.as_mut().unwrap().flush().unwrap();
    }

    fn tell(&mut self, method: &str, params: Value) {
        self.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }

    /// The next message; anything else on standard output is a failure here.
    fn receive(&mut self) -> Value {
        let mut length = None;
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the program has ended");
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", bytes)) => length = Some(bytes.parse().unwrap()),
                None if line.trim_end().is_empty() => break,
                _ => panic!("{line:?} is no header"),
            }
        }
        let mut bytes = vec![0; length.unwrap()];
        self.from.read_exact(&mut bytes).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// The result of a request.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        let answer = self.ask_for_anything(method, params);
        assert_eq!(answer.get("error"), None, "{method}: {answer}");
        answer["result"].clone()
    }

    fn ask_for_anything(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        loop {
            let message = self.receive();
            if message["id"] == id {
                return message;
            }
            assert_eq!(message["method"], "textDocument/publishDiagnostics", "{message}");
        }
    }

    fn open(&mut self, uri: &str, text: &str) {
        let document = json!({ "uri": uri, "languageId": "moe", "version": 1, "text": text });
        self.tell("textDocument/didOpen", json!({ "textDocument": document }));
    }

    fn change(&mut self, uri: &str, version: i32, change: Value) {
        let document = json!({ "uri": uri, "version": version });
        self.tell("textDocument/didChange", json!({ "textDocument": document, "contentChanges": [change] }));
    }

    /// What is wrong with a document, once that of a version is told: code, and the text that is marked.
    fn faults(&mut self, uri: &str, version: i32, text: &str) -> Vec<(String, String)> {
        let told = self.told(uri, version);
        let fault =
            |fault: &Value| (fault["code"].as_str().unwrap().to_owned(), marked(text, &fault["range"]).to_owned());
        told.iter().map(fault).collect()
    }

    fn told(&mut self, uri: &str, version: i32) -> Vec<Value> {
        loop {
            let message = self.receive();
            if message["params"]["uri"] == uri && message["params"]["version"] == version {
                return message["params"]["diagnostics"].as_array().unwrap().clone();
            }
        }
    }

    /// Closes the session, and gives the exit code.
    fn end(mut self, shutdown: bool) -> i32 {
        if shutdown {
            assert_eq!(self.ask("shutdown", Value::Null), Value::Null);
        }
        self.tell("exit", Value::Null);
        self.finish()
    }

    fn finish(mut self) -> i32 {
        drop(self.to.take());
        let (mut rest, mut errors) = (Vec::new(), String::new());
        self.from.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        self.program.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert_eq!(errors, "");
        self.program.wait().unwrap().code().unwrap()
    }
}

/// The byte of a position, which counts UTF-16 code units.
fn byte(text: &str, position: &Value) -> usize {
    let (line, column) =
        (position["line"].as_u64().unwrap() as usize, position["character"].as_u64().unwrap() as usize);
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let mut units = 0;
    let at = text[start..].char_indices().find(|(_, c)| {
        let here = units == column;
        units += c.len_utf16();
        here
    });
    at.map_or(text.len(), |(at, _)| start + at)
}

fn marked<'t>(text: &'t str, range: &Value) -> &'t str {
    &text[byte(text, &range["start"])..byte(text, &range["end"])]
}

/// The position of the beginning of a text in another, some bytes into it.
fn position(text: &str, of: &str, into: usize) -> Value {
    let at = text.find(of).unwrap_or_else(|| panic!("no {of}")) + into;
    let line = text[..at].matches('\n').count();
    let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    json!({ "line": line, "character": text[start..at].encode_utf16().count() })
}

fn place(uri: &str, text: &str, of: &str, into: usize) -> Value {
    json!({ "textDocument": { "uri": uri }, "position": position(text, of, into) })
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A text after the edits of one document.
fn edited(text: &str, edits: &Value) -> String {
    let mut edits = edits.as_array().unwrap().clone();
    edits.sort_by_key(|edit| byte(text, &edit["range"]["start"]));
    let mut text = text.to_owned();
    for edit in edits.iter().rev() {
        let range = byte(&text, &edit["range"]["start"])..byte(&text, &edit["range"]["end"]);
        text.replace_range(range, edit["newText"].as_str().unwrap());
    }
    text
}

#[test]
fn a_session() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("lib")).unwrap();
    std::fs::write(folder.path().join("lib/own.moe"), LIBRARY).unwrap();
    // What is saved is not what is written: that counts.
    std::fs::write(folder.path().join("main.moe"), "not yet").unwrap();
    let (main, library) = (uri(&folder.path().join("main.moe")), uri(&folder.path().join("lib/own.moe")));
    let mut editor = Editor::start();

    editor.open(&main, FAULTY);
    let told = editor.told(&main, 1);
    let codes: Vec<&str> = told.iter().map(|fault| fault["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["E0408", "E0208"]);
    assert_eq!(marked(FAULTY, &told[0]["range"]), "5");
    assert_eq!(marked(FAULTY, &told[1]["range"]), "own_topk");
    let message = told[1]["message"].as_str().unwrap();
    assert!(message.starts_with("there is no router named `own_topk`"), "{message}");
    assert!(message.contains("help: did you mean `own_top_k`?"), "{message}");

    // The change that puts it right, as an editor applies it.
    let range = &told[1]["range"];
    let context = json!({ "diagnostics": [told[1]] });
    let actions = editor
        .ask("textDocument/codeAction", json!({ "textDocument": { "uri": main }, "range": range, "context": context }));
    let action = &actions[0];
    assert_eq!(action["title"], "use the name that it has: `own_top_k`");
    assert_eq!((&action["kind"], &action["isPreferred"]), (&json!("quickfix"), &json!(true)));
    let text = edited(FAULTY, &action["edit"]["changes"][&main]);
    let edit = &action["edit"]["changes"][&main][0];
    editor.change(&main, 2, json!({ "range": edit["range"], "text": edit["newText"] }));
    assert_eq!(editor.faults(&main, 2, &text), [("E0408".to_owned(), "5".to_owned())]);
    let heads = json!({ "start": position(&text, "heads: 5", 7), "end": position(&text, "heads: 5", 8) });
    editor.change(&main, 3, json!({ "range": heads, "text": "4" }));
    let text = text.replace("heads: 5", "heads: 4");
    let unused = editor.faults(&main, 3, &text);
    assert_eq!(unused, [("W0201".to_owned(), "size".to_owned())]);

    // What words mean: the reference, and what the checked model knows.
    let hover = |editor: &mut Editor, of: &str| {
        let hover = editor.ask("textDocument/hover", place(&main, &text, of, 1));
        hover["contents"]["value"].as_str().unwrap_or_default().to_owned()
    };
    let attention = hover(&mut editor, "attention");
    for part in
        ["attention, a layer:", "divides the width", "blocks.*.attention", "[N, 32] -> [N, 32]", "FLOP", "2 of them"]
    {
        assert!(attention.contains(part), "{part} is not in {attention}");
    }
    let moe = hover(&mut editor, "moe(");
    assert!(moe.contains("active per token"), "{moe}");
    assert!(hover(&mut editor, "heads").contains("number of heads; divides the width"));
    assert!(hover(&mut editor, "width)").contains("let width = 2 * 16  // 32"));
    assert!(hover(&mut editor, "own_top_k").contains("Sigmoids of the scores"));
    assert_eq!(hover(&mut editor, "characters\n"), "");

    // What could stand where.
    let choices = |editor: &mut Editor, uri: &str, text: &str, of: &str, into: usize| {
        let items = editor.ask("textDocument/completion", place(uri, text, of, into));
        items.as_array().unwrap().iter().map(|item| item["label"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let routers = choices(&mut editor, &main, &text, "own_top_k", 3);
    assert!(["noisy_top_k", "switch", "own_top_k"].iter().all(|name| routers.iter().any(|r| r == name)), "{routers:?}");
    let layers = choices(&mut editor, &main, &text, "layer_norm", 0);
    assert!(["attention", "feed", "repeat"].iter().all(|name| layers.iter().any(|l| l == name)), "{layers:?}");
    assert!(choices(&mut editor, &main, &text, "heads: 4", 0).contains(&"dropout".to_owned()));
    assert_eq!(choices(&mut editor, &main, &text, "heads: 4", 7), ["width", "size"]);

    // Definitions, into the import too.
    let definition = editor.ask("textDocument/definition", place(&main, &text, "feed", 2));
    assert_eq!((&definition["uri"], marked(LIBRARY, &definition["range"])), (&json!(library), "feed"));
    let definition = editor.ask("textDocument/definition", place(&main, &text, "width)", 0));
    assert_eq!((&definition["uri"], marked(&text, &definition["range"])), (&json!(main), "width"));
    let definition = editor.ask("textDocument/definition", place(&main, &text, "own.moe", 0));
    assert_eq!(definition["uri"], json!(library));

    // A name gets another one in the file and in those that it imports.
    let mut params = place(&main, &text, "feed", 0);
    params["newName"] = "expert".into();
    let edit = editor.ask("textDocument/rename", params.clone());
    assert!(edited(&text, &edit["changes"][&main]).contains("4 * expert, route"));
    assert!(edited(LIBRARY, &edit["changes"][&library]).contains("block expert {"));
    params["newName"] = "repeat".into();
    let refused = editor.ask_for_anything("textDocument/rename", params);
    assert!(refused["error"]["message"].as_str().unwrap().contains("is no name"), "{refused}");
    let mut params = place(&main, &text, "let width", 5);
    params["newName"] = "size".into();
    let refused = editor.ask_for_anything("textDocument/rename", params);
    assert!(refused["error"]["message"].as_str().unwrap().contains("defined already, on line 5"), "{refused}");

    // The outline.
    let symbols = editor.ask("textDocument/documentSymbol", json!({ "textDocument": { "uri": main } }));
    assert_eq!((&symbols[0]["name"], &symbols[0]["children"][0]["name"]), (&json!("small"), &json!("width")));

    // The layout is that of `moec fmt`.
    let options = json!({ "tabSize": 2, "insertSpaces": true });
    let crooked = text.replace("  layer_norm\n  unembed", "layer_norm    unembed");
    editor.change(&main, 4, json!({ "text": crooked }));
    let edits = editor.ask("textDocument/formatting", json!({ "textDocument": { "uri": main }, "options": options }));
    assert_eq!(edited(&crooked, &edits), moec::syntax::format(&moec::syntax::SourceFile::new("a", &*crooked)).unwrap());

    // What is not saved is imported: the library loses its router, then its layout.
    editor.open(&library, &LIBRARY.replace("own_top_k", "other_top_k"));
    let told = editor.told(&main, 4);
    assert_eq!(told[0]["code"], "E0208");
    let broken = LIBRARY.replace("mlp(hidden: 64)", "mlp(hidden 64)");
    editor.change(&library, 2, json!({ "text": broken }));
    let told = editor.told(&main, 4);
    assert_eq!((&told[0]["code"], marked(&crooked, &told[0]["range"])), (&json!("E0106"), "\"lib/own.moe\""));
    let related = &told[0]["relatedInformation"][0]["location"];
    assert_eq!((&related["uri"], &related["range"]["start"]), (&json!(library), &position(&broken, "hidden 64", 6)));
    editor.tell("textDocument/didClose", json!({ "textDocument": { "uri": library } }));
    assert_eq!(editor.told(&main, 4).len(), 1, "the file counts again");
    std::fs::write(folder.path().join("lib/own.moe"), LIBRARY.replace("block feed", "block food")).unwrap();
    editor.tell("workspace/didChangeWatchedFiles", json!({ "changes": [{ "uri": library, "type": 2 }] }));
    assert_eq!(editor.told(&main, 4)[0]["code"], "E0201");
    std::fs::write(folder.path().join("lib/own.moe"), LIBRARY).unwrap();
    editor.tell("workspace/didChangeWatchedFiles", json!({ "changes": [{ "uri": library, "type": 2 }] }));
    assert_eq!(editor.told(&main, 4)[0]["code"], "W0201");

    // Half a statement, and everything behind it is open.
    let half = &text[..text.find("4 * feed").unwrap()];
    editor.change(&main, 5, json!({ "text": half }));
    assert!(!editor.told(&main, 5).is_empty());
    let last = json!({ "textDocument": { "uri": main }, "position": { "line": 12, "character": 99 } });
    let items = editor.ask("textDocument/completion", last);
    assert!(items.as_array().unwrap().iter().any(|item| item["label"] == "feed"), "{items}");
    assert!(hover(&mut editor, "embed").contains("embed, a layer"));

    assert_eq!(editor.end(true), 0);
}

#[test]
fn what_is_wrong_with_a_session_costs_an_answer() {
    let mut editor = Editor::start();
    let error = |answer: Value| answer["error"]["code"].as_i64().unwrap();
    assert_eq!(error(editor.ask_for_anything("textDocument/inlayHint", json!({}))), -32601);
    assert_eq!(error(editor.ask_for_anything("textDocument/hover", json!({ "position": 3 }))), -32602);
    let nowhere = json!({ "textDocument": { "uri": "file:///no.moe" }, "position": { "line": 0, "character": 0 } });
    assert_eq!(editor.ask("textDocument/hover", nowhere), Value::Null);
    // A buffer without a file.
    let buffer = "untitled:Untitled-1";
    editor.open(buffer, "import \"a.moe\"");
    assert_eq!(editor.faults(buffer, 1, "import \"a.moe\""), [("E0119".to_owned(), "\"a.moe\"".to_owned())]);
    assert_eq!(editor.end(false), 1, "`exit` comes behind `shutdown`");
    let editor = Editor::start();
    assert_eq!(editor.finish(), 1, "the editor went away");
}
