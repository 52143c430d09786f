// Reads .moe files with the grammar as the editor does, and looks at how words are coloured.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { INITIAL, Registry, parseRawGrammar } = require("vscode-textmate");
const { OnigScanner, OnigString, loadWASM } = require("vscode-oniguruma");

await loadWASM(readFileSync(require.resolve("vscode-oniguruma/release/onig.wasm")));
const path = new URL("../syntaxes/moe.tmLanguage.json", import.meta.url).pathname;
const registry = new Registry({
  onigLib: Promise.resolve({
    createOnigScanner: (patterns) => new OnigScanner(patterns),
    createOnigString: (text) => new OnigString(text),
  }),
  loadGrammar: async () => parseRawGrammar(readFileSync(path, "utf8"), path),
});
const grammar = await registry.loadGrammar("source.moe");

const colours = new Map();
let state = INITIAL;
const text = `// a model
model small {
  let width = 4 * 16_000
  context 8
  residual { layer_norm  moe(experts: 4 * mlp(hidden: 2, activation: swiglu), route: noisy_top_k(k: 2)) }
}
router own(k: int = 1) { state seen = zeros(experts)  return token_choice(experts: k, weights: true) }
train { data "a\\n.txt"  optimizer adamw(lr: 1e-3) }
`;
for (const line of text.split("\n")) {
  const read = grammar.tokenizeLine(line, state);
  state = read.ruleStack;
  for (const token of read.tokens) {
    const word = line.slice(token.startIndex, token.endIndex);
    colours.set(word.trim(), token.scopes.at(-1).replace(/\.moe$/, ""));
  }
}
const wanted = {
  "// a model": "comment.line.double-slash",
  model: "keyword.declaration",
  small: "entity.name.type",
  let: "keyword.declaration",
  "16_000": "constant.numeric",
  "*": "keyword.operator",
  context: "support.type.property-name",
  layer_norm: "support.class",
  hidden: "variable.parameter",
  swiglu: "support.constant",
  noisy_top_k: "support.function",
  own: "entity.name.function",
  state: "keyword.declaration",
  return: "keyword.control",
  zeros: "support.function",
  true: "constant.language.boolean",
  "\\n": "constant.character.escape",
  adamw: "support.constant",
  "1e-3": "constant.numeric",
};
const wrong = Object.entries(wanted).filter(([word, colour]) => colours.get(word) !== colour);
for (const [word, colour] of wrong) {
  console.error(`${word} is coloured as ${colours.get(word)}, not as ${colour}`);
}
process.exit(wrong.length === 0 ? 0 : 1);
