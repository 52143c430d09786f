//! The session with an editor: messages in, messages out.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use gen_lsp_types::{
    CodeActionParams, CompletionParams, DefinitionParams, DidChangeTextDocumentParams, DidChangeWatchedFilesParams,
    DidCloseTextDocumentParams, DidOpenTextDocumentParams, DocumentFormattingParams, DocumentSymbolParams, HoverParams,
    Location, PublishDiagnosticsParams, ReferenceParams, RenameParams, TextDocumentContentChangeEvent,
    TextDocumentPositionParams, TextEdit, Uri,
};
use lsp_server::{Connection, ErrorCode, Message, Notification, Request, Response};
use moec_model::Registry;
use serde_json::{Value, json};

use crate::analysis::Analysis;
use crate::completion::{self, Taken};
use crate::documents::Documents;
use crate::text::Text;
use crate::{diagnostics, hover, rename, symbols};

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As the protocol wants it: `shutdown`, then `exit`.
    Orderly,
    /// The editor went away, or asked for `exit` at once.
    Abrupt,
}

/// How long nothing must come from the editor before it is told of faults: while somebody types, it says something new
/// many times a second.
const QUIET: Duration = Duration::from_millis(40);

/// Serves an editor over standard input and output, until it ends the session. Nothing else may use these meanwhile.
///
/// # Errors
/// When standard input or output fail.
pub fn serve(registry: &Registry) -> io::Result<End> {
    let (connection, threads) = Connection::stdio();
    let end = serve_on(&connection, registry);
    // The thread that writes ends with its channel.
    drop(connection);
    match end {
        End::Orderly => threads.join().map(|()| end),
        // The thread that reads may still wait for an editor that is there and silent.
        End::Abrupt => Ok(end),
    }
}

/// Serves an editor over a connection, until it ends the session.
pub fn serve_on(connection: &Connection, registry: &Registry) -> End {
    let mut session = Session {
        registry,
        connection,
        documents: Documents::default(),
        state: State::Begun,
        taken: Taken::default(),
        watches: false,
    };
    loop {
        let message = if session.documents.has_untold() {
            match connection.receiver.recv_timeout(QUIET) {
                Ok(message) => message,
                Err(error) if error.is_timeout() => {
                    session.tell();
                    continue;
                }
                Err(_) => return End::Abrupt,
            }
        } else {
            match connection.receiver.recv() {
                Ok(message) => message,
                Err(_) => return End::Abrupt,
            }
        };
        match message {
            Message::Notification(notification) if notification.method == "exit" => {
                return if session.state == State::Ended { End::Orderly } else { End::Abrupt };
            }
            Message::Notification(notification) => session.notified(notification),
            Message::Request(request) => session.asked(request),
            // The editor is asked for one thing, and what it says to that changes nothing.
            Message::Response(_) => {}
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Before `initialize`.
    Begun,
    Serving,
    /// Behind `shutdown`.
    Ended,
}

struct Session<'a> {
    registry: &'a Registry,
    connection: &'a Connection,
    documents: Documents,
    state: State,
    taken: Taken,
    /// Whether the editor looks after files, if it is asked to.
    watches: bool,
}

/// Why a request has no answer: the code of the protocol, and a sentence.
type Refusal = (ErrorCode, String);

impl Session<'_> {
    fn send(&self, message: impl Into<Message>) {
        // An editor that is gone misses nothing; its end is seen when the next message is received.
        let _ = self.connection.sender.send(message.into());
    }

    fn asked(&mut self, request: Request) {
        let (id, method) = (request.id.clone(), request.method.clone());
        let outcome = match (self.state, method.as_str()) {
            (State::Begun, "initialize") => {
                self.taken.snippets = request.params.pointer(SNIPPETS) == Some(&Value::Bool(true));
                self.watches = request.params.pointer(WATCHES) == Some(&Value::Bool(true));
                self.state = State::Serving;
                Ok(capabilities())
            }
            (State::Begun, _) => Err((ErrorCode::ServerNotInitialized, "`initialize` comes first".to_owned())),
            (State::Serving, "shutdown") => {
                self.state = State::Ended;
                Ok(Value::Null)
            }
            (State::Ended, _) => Err((ErrorCode::InvalidRequest, "the session is shut down".to_owned())),
            // A fault of the compiler costs one answer, and not the session.
            (State::Serving, _) => catch_unwind(AssertUnwindSafe(|| self.answer(request))).unwrap_or_else(|_| {
                Err((ErrorCode::InternalError, format!("a fault in moec while it answered {method}")))
            }),
        };
        self.send(match outcome {
            Ok(result) => Response::new_ok(id, result),
            Err((code, message)) => Response::new_err(id, code as i32, message),
        });
    }

    fn answer(&mut self, request: Request) -> Result<Value, Refusal> {
        let params = request.params;
        match request.method.as_str() {
            "textDocument/hover" => {
                let params: HoverParams = read(params)?;
                let at = params.text_document_position_params;
                self.at(&at, |_, known, offset| written(hover::at(known, offset)))
            }
            "textDocument/completion" => {
                let params: CompletionParams = read(params)?;
                let at = params.text_document_position_params;
                self.at(&at, |session, known, offset| written(completion::at(known, offset, session.taken)))
            }
            "textDocument/definition" => {
                let params: DefinitionParams = read(params)?;
                let at = params.text_document_position_params;
                self.at(&at, |session, known, offset| written(rename::definition(known, offset, &session.documents)))
            }
            "textDocument/references" => {
                let params: ReferenceParams = read(params)?;
                let at = params.text_document_position_params;
                self.at(&at, |session, known, offset| {
                    let all = session.documents.analyses(session.registry);
                    written(rename::places(known, offset, &all, &session.documents))
                })
            }
            "textDocument/documentHighlight" => {
                let at: TextDocumentPositionParams = read(params)?;
                self.at(&at, |session, known, offset| {
                    let all = session.documents.analyses(session.registry);
                    let places = rename::places(known, offset, &all, &session.documents);
                    let here = |place: Location| (place.uri == known.uri).then(|| json!({ "range": place.range }));
                    written(places.into_iter().filter_map(here).collect::<Vec<_>>())
                })
            }
            "textDocument/prepareRename" => {
                let at: TextDocumentPositionParams = read(params)?;
                self.at(&at, |_, known, offset| {
                    let named = rename::named(known, offset);
                    written(named.map(|(range, name)| json!({ "range": range, "placeholder": name })))
                })
            }
            "textDocument/rename" => {
                let params: RenameParams = read(params)?;
                let at = params.text_document_position_params;
                self.at(&at, |session, known, offset| {
                    let all = session.documents.analyses(session.registry);
                    let edit = rename::rename(known, offset, &params.new_name, &all, &session.documents);
                    edit.map_err(|why| (ErrorCode::RequestFailed, why)).and_then(written)
                })
            }
            "textDocument/documentSymbol" => {
                let params: DocumentSymbolParams = read(params)?;
                self.of(&params.text_document.uri, |_, known| written(symbols::of(known)))
            }
            "textDocument/codeAction" => {
                let params: CodeActionParams = read(params)?;
                self.of(&params.text_document.uri, |session, known| {
                    written(diagnostics::actions(known, params.range, &session.documents))
                })
            }
            "textDocument/formatting" => {
                let params: DocumentFormattingParams = read(params)?;
                self.of(&params.text_document.uri, |_, known| written(formatted(known)))
            }
            other => Err((ErrorCode::MethodNotFound, format!("{other} is not served"))),
        }
    }

    /// Answers about a document; `null` for one that is not open.
    fn of(
        &mut self,
        uri: &Uri,
        answer: impl FnOnce(&mut Self, &Rc<Analysis>) -> Result<Value, Refusal>,
    ) -> Result<Value, Refusal> {
        match self.documents.analysis(uri, self.registry) {
            Some(known) => answer(self, &known),
            None => Ok(Value::Null),
        }
    }

    /// Answers about a place of a document.
    fn at(
        &mut self,
        at: &TextDocumentPositionParams,
        answer: impl FnOnce(&mut Self, &Rc<Analysis>, usize) -> Result<Value, Refusal>,
    ) -> Result<Value, Refusal> {
        self.of(&at.text_document.uri, |session, known| {
            let offset = known.text.offset(at.position);
            answer(session, known, offset)
        })
    }

    fn notified(&mut self, notification: Notification) {
        if self.state != State::Serving {
            return;
        }
        let params = notification.params;
        // What cannot be read is nobody's answer; the next full text sets it right.
        match notification.method.as_str() {
            // A file that is imported and not open counts as it is saved.
            "initialized" if self.watches => {
                let watched = json!({ "watchers": [{ "globPattern": "**/*.moe" }] });
                let registration =
                    json!({ "id": "moe", "method": "workspace/didChangeWatchedFiles", "registerOptions": watched });
                let params = json!({ "registrations": [registration] });
                self.send(Request::new("moe".to_owned().into(), "client/registerCapability".to_owned(), params));
            }
            "textDocument/didOpen" => {
                if let Ok(params) = read::<DidOpenTextDocumentParams>(params) {
                    let document = params.text_document;
                    self.documents.put(&document.uri, document.version, Text::new(document.text));
                }
            }
            "textDocument/didChange" => {
                if let Ok(params) = read::<DidChangeTextDocumentParams>(params) {
                    let uri = params.text_document.text_document_identifier.uri;
                    let Some(mut text) = self.documents.text(&uri) else { return };
                    for change in params.content_changes {
                        text = Rc::new(match change {
                            TextDocumentContentChangeEvent::TextDocumentContentChangePartial(change) => {
                                text.with(change.range, &change.text)
                            }
                            TextDocumentContentChangeEvent::TextDocumentContentChangeWholeDocument(change) => {
                                Text::new(change.text)
                            }
                        });
                    }
                    self.documents.put(&uri, params.text_document.version, Rc::unwrap_or_clone(text));
                }
            }
            "textDocument/didClose" => {
                if let Ok(params) = read::<DidCloseTextDocumentParams>(params) {
                    self.documents.remove(&params.text_document.uri);
                    self.publish(params.text_document.uri, None, Vec::new());
                }
            }
            "workspace/didChangeWatchedFiles" => {
                if let Ok(params) = read::<DidChangeWatchedFilesParams>(params) {
                    params.changes.iter().for_each(|change| self.documents.changed(&change.uri));
                }
            }
            _ => {}
        }
    }

    /// Tells the editor what is wrong with the documents that have changed.
    fn tell(&mut self) {
        for (uri, version) in self.documents.take_untold() {
            let found = catch_unwind(AssertUnwindSafe(|| {
                let known = self.documents.analysis(&uri, self.registry)?;
                Some(diagnostics::of(&known, &self.documents))
            }));
            if let Ok(Some(found)) = found {
                self.publish(uri, Some(version), found);
            }
        }
    }

    fn publish(&self, uri: Uri, version: Option<i32>, found: Vec<gen_lsp_types::Diagnostic>) {
        let params = PublishDiagnosticsParams::new(uri, version, found);
        self.send(Notification::new("textDocument/publishDiagnostics".to_owned(), params));
    }
}

/// Where an editor says that it takes texts with places to fill in.
const SNIPPETS: &str = "/capabilities/textDocument/completion/completionItem/snippetSupport";

/// Where an editor says that it can be asked to look after files.
const WATCHES: &str = "/capabilities/workspace/didChangeWatchedFiles/dynamicRegistration";

fn capabilities() -> Value {
    json!({
        "serverInfo": { "name": "moec", "version": env!("CARGO_PKG_VERSION") },
        "capabilities": {
            "positionEncoding": "utf-16",
            // Changes come as the parts that changed.
            "textDocumentSync": { "openClose": true, "change": 2 },
            "hoverProvider": true,
            "completionProvider": { "triggerCharacters": ["(", ":", ",", "["] },
            "definitionProvider": true,
            "referencesProvider": true,
            "documentHighlightProvider": true,
            "documentSymbolProvider": true,
            "documentFormattingProvider": true,
            "renameProvider": { "prepareProvider": true },
            "codeActionProvider": { "codeActionKinds": ["quickfix"] },
        },
    })
}

fn read<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, Refusal> {
    serde_json::from_value(params).map_err(|error| (ErrorCode::InvalidParams, error.to_string()))
}

fn written(result: impl serde::Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(result).map_err(|error| (ErrorCode::InternalError, error.to_string()))
}

/// The changes that lead to the canonical layout: of the lines that differ, so that a cursor elsewhere stays. None where
/// the text has faults, of which the editor is told.
fn formatted(known: &Analysis) -> Option<Vec<TextEdit>> {
    let new = moec_syntax::format(&known.source).ok()?;
    let old = known.text.content();
    if new == old {
        return Some(Vec::new());
    }
    let whole_lines = |text: &str, at: usize| text[..at].rfind('\n').map_or(0, |end| end + 1);
    let same = old.bytes().zip(new.bytes()).take_while(|(a, b)| a == b).count();
    let start = whole_lines(old, old.floor_char_boundary(same));
    let (old_rest, new_rest) = (&old[start..], &new[start..]);
    let same = old_rest.bytes().rev().zip(new_rest.bytes().rev()).take_while(|(a, b)| a == b).count();
    // From the beginning of a line on that is whole in both.
    let tail = &old_rest[old_rest.ceil_char_boundary(old_rest.len() - same)..];
    let tail = tail.find('\n').map_or(0, |end| tail.len() - end - 1);
    let range = known.text.lines(start..old.len() - tail);
    Some(vec![TextEdit::new(range, new_rest[..new_rest.len() - tail].to_owned())])
}
