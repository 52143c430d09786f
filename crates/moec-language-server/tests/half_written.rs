//! Texts as they are while somebody writes them: whatever is asked, there is an answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use lsp_server::{Connection, Message, Notification, Request};
use moec_language_server::{End, serve_on};
use moec_model::Registry;
use serde_json::{Value, json};

const URI: &str = "untitled:half";

struct Editor {
    connection: Connection,
    asked: i32,
}

impl Editor {
    fn tell(&self, method: &str, params: Value) {
        self.connection.sender.send(Notification::new(method.into(), params).into()).unwrap();
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked.into();
        self.connection.sender.send(Request::new(id, method.into(), params).into()).unwrap();
        loop {
            if let Message::Response(response) = self.connection.receiver.recv().unwrap() {
                let response = serde_json::to_value(response).unwrap();
                // A name that cannot be changed is refused; nothing else is.
                let refused = response["error"]["code"].as_i64();
                assert!(
                    refused.is_none() || method.ends_with("rename") && refused == Some(-32803),
                    "{method}: {response}"
                );
                return response["result"].clone();
            }
        }
    }

    fn write(&self, version: usize, text: &str) {
        let document = json!({ "uri": URI, "version": version, "languageId": "moe", "text": text });
        if version == 0 {
            self.tell("textDocument/didOpen", json!({ "textDocument": document }));
        } else {
            self.tell(
                "textDocument/didChange",
                json!({ "textDocument": document, "contentChanges": [{ "text": text }] }),
            );
        }
    }

    /// Everything that is asked about a place.
    fn ask_everything(&mut self, line: usize, character: usize) {
        let at = json!({
            "textDocument": { "uri": URI },
            "position": { "line": line, "character": character },
            "newName": "other",
            "context": { "triggerKind": 1, "includeDeclaration": true, "diagnostics": [] },
            "options": { "tabSize": 2, "insertSpaces": true },
            "range": { "start": { "line": 0, "character": 0 }, "end": { "line": line, "character": character } },
        });
        for question in [
            "hover",
            "completion",
            "definition",
            "references",
            "documentHighlight",
            "prepareRename",
            "rename",
            "documentSymbol",
            "codeAction",
            "formatting",
        ] {
            self.ask(&format!("textDocument/{question}"), at.clone());
        }
    }
}

/// Runs a session with a server of its own.
fn session(with: impl FnOnce(&mut Editor)) {
    let (server, client) = Connection::memory();
    let serving = std::thread::spawn(move || serve_on(&server, &Registry::with_builtins()));
    let mut editor = Editor { connection: client, asked: 0 };
    editor.ask("initialize", json!({ "processId": null, "rootUri": null, "capabilities": {} }));
    editor.tell("initialized", json!({}));
    with(&mut editor);
    editor.ask("shutdown", Value::Null);
    editor.tell("exit", Value::Null);
    assert_eq!(serving.join().unwrap(), End::Orderly);
}

fn spec(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)).unwrap()
}

#[test]
fn every_beginning_of_a_text() {
    let text = spec("tests/check/ok_everything.moe") + &spec("tests/check/ok_router.moe");
    session(|editor| {
        // A prime, so that the cuts fall on every kind of word.
        let cuts = text.char_indices().map(|(at, _)| at).step_by(29);
        for (version, end) in cuts.enumerate() {
            let half = &text[..end];
            editor.write(version, half);
            let line = half.matches('\n').count();
            editor.ask_everything(line, half.rsplit('\n').next().unwrap_or("").encode_utf16().count());
        }
    });
}

#[test]
fn a_text_without_one_of_its_brackets() {
    let text = spec("specs/noisy_top2.moe");
    session(|editor| {
        for (version, (at, bracket)) in text.match_indices(['{', '}', '(', ')', '[', ']', '"', ',', ':']).enumerate() {
            let without = format!("{}{}", &text[..at], &text[at + bracket.len()..]);
            editor.write(version, &without);
            editor.ask_everything(without[..at].matches('\n').count(), 7);
        }
    });
}

#[test]
fn what_is_no_text_of_the_language() {
    session(|editor| {
        let deep = "(".repeat(5000);
        let texts = [
            "",
            "\u{feff}",
            "\r\r\n\n\r",
            "}}}}",
            "model m {{{{",
            "\u{1F600}\u{301} \0",
            deep.as_str(),
            "// \u{1F600}",
            "\"",
            "import \"",
            "let let let",
        ];
        for (version, text) in texts.iter().enumerate() {
            editor.write(version, text);
            for character in [0, 1, 3, 999] {
                editor.ask_everything(0, character);
                editor.ask_everything(999, character);
            }
        }
        // A range that ends before it begins, and one that ends in the middle of a character.
        for (start, end) in [(5, 2), (3, 4)] {
            let range = json!({ "start": { "line": 0, "character": start }, "end": { "line": 0, "character": end } });
            let document = json!({ "uri": URI, "version": 99 });
            let changes = json!([{ "range": range, "text": "\u{1F600}" }]);
            editor.tell("textDocument/didChange", json!({ "textDocument": document, "contentChanges": changes }));
            editor.ask_everything(0, 4);
        }
    });
}
