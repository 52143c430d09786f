// Opens pages of `moec report` in headless Chromium, and looks at them as a reader does.
//
//   node check.mjs CHROMIUM PICTURES PAGE.. [--time PAGE]
//
// Every PAGE must open without a complaint and without a request, change its layers by keyboard, be readable without a script
// and at the width of a telephone, and have colours with enough contrast; pictures of it are written to PICTURES. How long
// the page behind --time takes to be drawn is printed.

import assert from "node:assert/strict";
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";
import axe from "axe-core";
import { chromium } from "playwright-core";

const [executablePath, pictures, ...rest] = process.argv.slice(2);
const at = rest.indexOf("--time");
const pages = at < 0 ? rest : rest.slice(0, at);
const timed = at < 0 ? [] : rest.slice(at + 1);
const LARGEST = 3_000_000;
const SIZES = { desk: { width: 1280, height: 900 }, telephone: { width: 400, height: 800 } };
const FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

const url = (page) => pathToFileURL(page).href;
const seconds = (from) => `${((performance.now() - from) / 1000).toFixed(2)} s`;

// A page that is open, whatever it asks for and complains of, and its context.
const open = async (browser, page, options) => {
  const context = await browser.newContext(options);
  const tab = await context.newPage();
  const requests = [], complaints = [];
  tab.on("request", (request) => requests.push(request.url()));
  tab.on("console", (message) => complaints.push(`${message.type()}: ${message.text()}`));
  tab.on("pageerror", (error) => complaints.push(String(error)));
  await tab.goto(url(page), { waitUntil: "load" });
  return { tab, requests, complaints, close: () => context.close() };
};

// The keys that a reader has: to the tabs, along them, and out again.
const byKeyboard = async (tab, name) => {
  const shown = () => tab.$$eval(".layers .layer", (layers) => layers.map((layer) => !layer.hidden));
  const count = (await shown()).length;
  assert(count > 1, `${name}: a page with several layers was expected`);
  assert.deepEqual(await shown(), [true, ...Array(count - 1).fill(false)], `${name}: only the first layer at the beginning`);
  let presses = 0;
  while ((await tab.evaluate(() => document.activeElement.getAttribute("role"))) !== "tab") {
    await tab.keyboard.press("Tab");
    assert((presses += 1) < 200, `${name}: the Tab key does not lead to the layers`);
  }
  await tab.keyboard.press("ArrowRight");
  assert.deepEqual(await shown(), [false, true, ...Array(count - 2).fill(false)], `${name}: → is the next layer`);
  await tab.keyboard.press("ArrowLeft");
  await tab.keyboard.press("ArrowLeft");
  assert.equal((await shown()).lastIndexOf(true), count - 1, `${name}: ← goes round to the last one`);
  await tab.keyboard.press("Home");
  assert.equal((await shown()).indexOf(true), 0, `${name}: Home is the first one`);
  await tab.keyboard.press("Tab");
  await tab.keyboard.press("Enter");
  assert((await shown()).every(Boolean), `${name}: all layers on request`);
  await tab.keyboard.press("Enter");
  // Characters are gone through with the arrow keys, and each says its experts.
  await tab.focus(".layer:not([hidden]) .tx");
  await tab.keyboard.press("ArrowRight");
  await tab.keyboard.press("ArrowRight");
  const said = await tab.textContent("#text .readout");
  assert.match(said, /expert \d+ with \d\.\d\d/, `${name}: a character says ${said}`);
};

// What must be there to be read without a script.
const PARTS = ["Loss", "Diagnoses", "Which expert works on which character", "Specs and commands", "val: held-out text", "moec sample", "spec.moe"];

const withoutScript = async (browser, page) => {
  const { tab, complaints, close } = await open(browser, page, { javaScriptEnabled: false, viewport: SIZES.desk });
  // Playwright reads a page that may not run scripts itself.
  const text = await tab.innerText("body");
  for (const part of PARTS) assert(text.includes(part), `${page} without a script lacks "${part}"`);
  for (const layer of await tab.$$(".layers .layer")) assert(await layer.isVisible(), `${page}: a layer is hidden without a script`);
  assert(await tab.locator("#loss svg").first().isVisible(), `${page}: there are no curves without a script`);
  // That its script may not run is all that the browser has to say.
  assert.deepEqual(complaints.filter((text) => !text.includes("script")), []);
  await close();
  return text.length;
};

// Colours of a picture, which tell a blank one from one with something on it.
const colours = (tab, png) =>
  tab.evaluate(async (data) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
    const seen = new Map();
    for (const pixel of pixels) seen.set(pixel, (seen.get(pixel) || 0) + 1);
    return { colours: seen.size, share: Math.max(...seen.values()) / pixels.length };
  }, png.toString("base64"));

const looks = async (browser, blank, page) => {
  const name = basename(page, ".html");
  const taken = [];
  for (const [size, viewport] of Object.entries(SIZES)) {
    for (const colorScheme of ["light", "dark"]) {
      const { tab, requests, complaints, close } = await open(browser, page, { viewport, colorScheme, bypassCSP: true });
      const width = await tab.evaluate(() => document.documentElement.scrollWidth);
      assert(width <= viewport.width, `${name}: ${width} pixels wide in a window of ${viewport.width}`);
      const png = await tab.screenshot({ fullPage: true });
      const file = join(pictures, `${name}-${size}-${colorScheme}.png`);
      writeFileSync(file, png);
      const { colours: many, share } = await colours(blank, png);
      assert(many > 50 && share < 0.98, `${file} is blank: ${many} colours, ${(100 * share).toFixed(1)} % of it one`);
      taken.push(many);
      // Contrast, names of what can be pressed, order of headings, and the other rules of the Web's guidelines.
      await tab.evaluate(axe.source);
      const { violations } = await tab.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
      const told = violations.map((rule) => `${rule.id} (${rule.help}): ${rule.nodes.slice(0, 5).map((node) => `${node.html.slice(0, 160)} ${node.any.map((check) => check.message).join(" ")}`).join("\n    ")}`);
      assert.equal(told.length, 0, `${name}, ${size}, ${colorScheme}:\n  ${told.join("\n  ")}`);
      assert.deepEqual(requests, [url(page)], `${name} asks for something`);
      assert.deepEqual(complaints, [], `${name} complains`);
      await close();
    }
  }
  return taken;
};

mkdirSync(pictures, { recursive: true });
const browser = await chromium.launch({ executablePath, args: FLAGS, chromiumSandbox: false });
try {
  const blank = await (await browser.newContext()).newPage();
  for (const page of pages) {
    const name = basename(page, ".html");
    const bytes = statSync(page).size;
    assert(bytes < LARGEST, `${name} has ${bytes} bytes`);
    const begun = performance.now();
    const { tab, requests, complaints, close } = await open(browser, page, { viewport: SIZES.desk });
    const drawn = seconds(begun);
    await byKeyboard(tab, name);
    assert.deepEqual(requests, [url(page)], `${name} asks for something`);
    assert.deepEqual(complaints, [], `${name} complains`);
    await close();
    const characters = await withoutScript(browser, page);
    const taken = await looks(browser, blank, page);
    console.log(`${name}: ${bytes} bytes, drawn in ${drawn}; by keyboard; ${characters} characters without a script; pictures of ${taken.join(", ")} colours`);
  }
  for (const page of timed) {
    const begun = performance.now();
    const { tab, close } = await open(browser, page, { viewport: SIZES.desk });
    // After two frames what was loaded has been painted.
    await tab.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    console.log(`${basename(page, ".html")}: ${statSync(page).size} bytes, drawn in ${seconds(begun)}`);
    await close();
  }
} finally {
  await browser.close();
}
