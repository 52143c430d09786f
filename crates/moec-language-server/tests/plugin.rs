//! A program with routers of its own serves these too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use lsp_server::{Connection, Message, Notification, Request};
use moec_language_server::serve_on;
use moec_model::{Arguments, ParameterSpec, Registry, Routing, RoutingContext, RoutingStrategy, Switch, Traits};
use serde_json::{Value, json};

/// `switch` under another name.
struct Mine;

impl RoutingStrategy for Mine {
    fn name(&self) -> &str {
        "mine"
    }

    fn summary(&self) -> &str {
        "the router of this test"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        Switch.parameters()
    }

    fn experts_per_token(&self, arguments: &Arguments, experts: usize, time: usize) -> f64 {
        Switch.experts_per_token(arguments, experts, time)
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        Switch.traits(arguments)
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        Switch.lower(context, arguments)
    }
}

#[test]
fn a_router_of_the_program_is_known() {
    let (server, client) = Connection::memory();
    let serving = std::thread::spawn(move || serve_on(&server, &Registry::with_builtins().router(Mine)));
    let tell = |method: &str, params: Value| {
        client.sender.send(Notification::new(method.into(), params).into()).unwrap();
    };
    let ask = |id: i32, method: &str, params: Value| {
        client.sender.send(Request::new(id.into(), method.into(), params).into()).unwrap();
    };
    let answer = || loop {
        if let Message::Response(response) = client.receiver.recv().unwrap() {
            return serde_json::to_value(response).unwrap()["result"].clone();
        }
    };
    ask(1, "initialize", json!({ "processId": null, "rootUri": null, "capabilities": {} }));
    answer();
    let text = "model m { context 4 vocab 9 embed(width: 8)\n moe(experts: 2 * mlp(hidden: 8), route: mine) unembed }";
    let document = json!({ "uri": "untitled:a", "version": 1, "languageId": "moe", "text": text });
    tell("textDocument/didOpen", json!({ "textDocument": document }));
    let Message::Notification(told) = client.receiver.recv().unwrap() else { panic!("no faults are told") };
    assert_eq!(told.params["diagnostics"], json!([]));
    let column = text.lines().nth(1).unwrap().find("mine").unwrap();
    let at = json!({ "textDocument": { "uri": "untitled:a" }, "position": { "line": 1, "character": column } });
    ask(2, "textDocument/completion", at.clone());
    assert!(answer().as_array().unwrap().iter().any(|item| item["label"] == "mine"));
    ask(3, "textDocument/hover", at);
    let hover = answer()["contents"]["value"].as_str().unwrap().to_owned();
    assert!(hover.contains("mine: the router of this test") && hover.contains("Origin    plugin"), "{hover}");
    tell("exit", Value::Null);
    serving.join().unwrap();
}
