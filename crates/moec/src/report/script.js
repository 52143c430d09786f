
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, attributes, text) => {
    const element = document.createElement(tag);
    for (const name of Object.keys(attributes)) element.setAttribute(name, attributes[name]);
    element.textContent = text;
    return element;
  };

  // A line that says what is under the pointer, where a section has one.
  const say = (within, text) => {
    const line = within.closest("#loss, #load, #text").querySelector(".readout");
    line.hidden = false;
    line.textContent = text || "\u00a0";
  };

  // Losses at the step under the pointer.
  for (const plot of all("svg[data-last]")) {
    const curves = all("path[data-points]", plot).filter((path) => path.dataset.points).map((path) => ({
      name: path.dataset.name,
      points: path.dataset.points.split(" ").map((point) => point.split(",").map(Number)),
    })).reverse();
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const step = ((event.clientX - box.left) / box.width) * plot.dataset.last;
      const nearest = (points) => points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
      say(plot, curves.map((curve) => {
        const [at, loss] = nearest(curve.points);
        return curve.name + " " + loss.toFixed(3) + " at " + at;
      }).join(",  "));
    });
  }

  // Loads of the cell under the pointer.
  for (const map of all("svg[data-rows]")) {
    const steps = map.dataset.steps.split(" ");
    const rows = map.dataset.rows.split(",").map((row) => row.split(" "));
    const layer = map.closest("figure").querySelector("figcaption").textContent;
    map.addEventListener("pointermove", (event) => {
      const box = map.getBoundingClientRect();
      const place = (at, size, count) => Math.max(0, Math.min(count - 1, Math.floor((at / size) * count)));
      const x = place(event.clientX - box.left, box.width, steps.length);
      const y = place(event.clientY - box.top, box.height, rows.length);
      say(map, layer + ", step " + steps[x] + ", expert " + y + ": " + (rows[y][x] / 100).toFixed(2) + " of an even share");
    });
  }

  // One layer at a time: tabs that the arrow keys move through, and all of them on request.
  const place = document.querySelector(".layers");
  const layers = all(".layer", place || document);
  if (place && layers.length > 1) {
    const bar = make("div", { role: "tablist", "aria-label": "Layers" }, "");
    const tabs = layers.map((layer, i) => {
      layer.id = "layer-" + i;
      layer.setAttribute("role", "tabpanel");
      const tab = make("button", { type: "button", role: "tab", "aria-controls": layer.id }, layer.getAttribute("aria-label"));
      tab.addEventListener("click", () => show(i));
      bar.append(tab);
      return tab;
    });
    const every = make("button", { type: "button", class: "all", "aria-pressed": "false" }, "all layers");
    let current = 0;
    const show = (i) => {
      current = i;
      every.setAttribute("aria-pressed", String(i < 0));
      layers.forEach((layer, j) => (layer.hidden = i >= 0 && i !== j));
      tabs.forEach((tab, j) => {
        tab.setAttribute("aria-selected", String(i === j));
        tab.tabIndex = i === j || (i < 0 && j === 0) ? 0 : -1;
      });
    };
    every.addEventListener("click", () => show(current < 0 ? 0 : -1));
    bar.addEventListener("keydown", (event) => {
      const at = tabs.indexOf(document.activeElement);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      const next = (to + tabs.length) % tabs.length;
      show(next);
      tabs[next].focus();
    });
    place.before(bar);
    bar.after(every);
    show(0);
  }

  // A text can be gone through with the arrow keys.
  for (const text of all(".tx")) {
    const characters = all("b", text);
    let at = -1;
    const go = (to) => {
      if (at >= 0) characters[at].classList.remove("cur");
      at = Math.max(0, Math.min(characters.length - 1, to));
      characters[at].classList.add("cur");
      characters[at].scrollIntoView({ block: "nearest" });
      const shown = characters[at].textContent === " " ? "␣" : characters[at].textContent;
      const title = characters[at].title;
      say(text, shown + ": " + (characters[at].className.startsWith("no") ? title : "expert " + title.replaceAll(": ", " with ")));
    };
    text.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: characters.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(to);
    });
    text.addEventListener("click", (event) => {
      const to = characters.indexOf(event.target);
      if (to >= 0) go(to);
    });
    text.addEventListener("focus", () => say(text, "← and → go through the text"));
    text.addEventListener("blur", () => {
      if (at >= 0) characters[at].classList.remove("cur");
      at = -1;
    });
  }

  // The characters of one expert alone, whatever its weight.
  for (const key of all("p.key")) {
    const text = key.parentElement.querySelector(".tx");
    const buttons = all("b[data-expert]", key).map((mark) => {
      const button = make("button", { type: "button", "aria-pressed": "false", title: "only this expert" }, mark.textContent);
      mark.textContent = "";
      mark.append(button);
      return button;
    });
    buttons.forEach((button, expert) =>
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(on && other === button)));
        text.classList.toggle("only", on);
        const named = new RegExp("(^|, )" + expert + ": ");
        for (const character of all("b", text)) character.classList.toggle("hit", on && named.test(character.title));
      }));
  }
})();
