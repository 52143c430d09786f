// Starts `moec lsp` for .moe files, and ends it with the editor.

import * as vscode from "vscode";
import { LanguageClient, ServerOptions } from "vscode-languageclient/node";

let client: LanguageClient | undefined;

export async function activate(context: vscode.ExtensionContext): Promise<void> {
  context.subscriptions.push(
    vscode.commands.registerCommand("moec.restart", restart),
    vscode.workspace.onDidChangeConfiguration(async (change) => {
      if (change.affectsConfiguration("moec.path")) {
        await restart();
      }
    }),
  );
  await start();
}

export async function deactivate(): Promise<void> {
  await stop();
}

async function start(): Promise<void> {
  const command = vscode.workspace.getConfiguration("moec").get<string>("path", "moec");
  const server: ServerOptions = { command, args: ["lsp"] };
  const started = new LanguageClient("moec", "moec", server, {
    documentSelector: [
      { scheme: "file", language: "moe" },
      { scheme: "untitled", language: "moe" },
    ],
  });
  client = started;
  try {
    await started.start();
  } catch (error) {
    await stop();
    const choice = await vscode.window.showErrorMessage(
      `moec cannot be started as \`${command} lsp\`: ${error instanceof Error ? error.message : String(error)}`,
      "Open the setting",
    );
    if (choice !== undefined) {
      await vscode.commands.executeCommand("workbench.action.openSettings", "moec.path");
    }
  }
}

async function stop(): Promise<void> {
  const running = client;
  client = undefined;
  // One that did not start has nothing to stop.
  if (running?.needsStop()) {
    await running.dispose();
  }
}

async function restart(): Promise<void> {
  await stop();
  await start();
}
