"use strict";
// Results of a model, shown: see write_report of skad.report.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const PER_PAGE = { cards: 60, defects: 50 };
const LAYERS = [
  ["image", "i", "Image"], ["heat", "h", "Heat map"], ["mask", "m", "Mask"],
  ["boxes", "b", "Boxes"], ...(data.hasMasks ? [["truth", "t", "True mask"]] : []),
];

// Images by suspicion. The order of scores is that of p-values, with fewer ties; images
// without a score come last.
const images = data.images.sort((a, b) =>
  (a.score ?? Infinity) - (b.score ?? Infinity) || a.index - b.index);
const scored = images.filter((one) => one.score !== undefined);
const heldOut = data.heldOut.slice().sort((a, b) => a - b);
const labelled = images.some((one) => one.truth !== undefined);
const state = { threshold: data.threshold, shown: images, viewed: 0, n: { ...PER_PAGE } };

// -- small helpers ---------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const short = (value) => Number(value.toPrecision(4)).toString();
const share = (part, all) => (all ? ` (${((100 * part) / all).toFixed(1)} %)` : "");
const isRejected = (one) => one.score !== undefined && one.score < state.threshold;
const isAccepted = (one) => one.score !== undefined && !isRejected(one);
const count = (list, test) => list.reduce((sum, one) => sum + test(one), 0);
const fileName = (name) => name.split(/[\\/]/).slice(-2).join("/"); // and its folder

// -- threshold -------------------------------------------------------------------

// The scale holds all held-out scores with room on both sides; scores beyond it are
// in the outermost bars, so that one extreme image does not squeeze all others.
const scale = (() => {
  const all = scored.map((one) => one.score);
  const centre = [...heldOut, data.threshold];
  const low = Math.min(...bounds(centre)), high = Math.max(...bounds(centre));
  const room = 4 * (high - low || Math.abs(high) || 1);
  const [least, most] = all.length ? bounds(all) : [low, high];
  const from = Math.max(Math.min(least, low), low - room);
  const to = Math.min(Math.max(most, high), high + room);
  const margin = 0.02 * (to - from || 1);
  return { from: from - margin, to: to + margin };
})();

function bounds(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)],
    [Infinity, -Infinity]);
}

const N_BARS = 44, WIDTH = 300, PANEL = 54;
const place = (score) =>
  (Math.min(Math.max(score, scale.from), scale.to) - scale.from) / (scale.to - scale.from);

function panel(series, top, title) {
  const bars = series.map(() => new Array(N_BARS).fill(0));
  series.forEach(([, scores], k) => scores.forEach((score) => {
    bars[k][Math.min(N_BARS - 1, Math.floor(place(score) * N_BARS))] += 1;
  }));
  const most = Math.max(1, ...bars[0].map((_, i) => bars.reduce((s, b) => s + b[i], 0)));
  const group = svg("g", {});
  for (let i = 0; i < N_BARS; i += 1) {
    let y = top + PANEL;
    series.forEach(([kind], k) => {
      const height = (bars[k][i] / most) * (PANEL - 14);
      y -= height;
      if (height) group.append(svg("rect", { class: kind, y, height,
        x: (i * WIDTH) / N_BARS + 0.5, width: WIDTH / N_BARS - 1 }));
    });
  }
  group.append(svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: top + PANEL, y2: top + PANEL }));
  group.append(svg("text", { x: 0, y: top + 9 }, title));
  return group;
}

function drawHistogram() {
  const scores = (test) => scored.filter(test).map((one) => one.score);
  const inspected = labelled
    ? [["bar-new", scores((one) => one.truth === 1)], ["bar-bad", scores((one) => one.truth !== 1)]]
    : [["bar-new", scores(() => true)]];
  const height = 2 * PANEL + 22;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${height + 14}` });
  picture.append(
    svg("rect", { class: "beyond", id: "beyond", x: 0, y: 0, height: height - 10, width: 0 }),
    panel([["bar-held", heldOut]], 0, `held-out normal: ${heldOut.length}`),
    panel(inspected, PANEL + 8, labelled ? "inspected: normal (blue), anomalous (red)" : "inspected"),
    svg("line", { class: "cut", id: "cut", y1: 0, y2: height - 10 }),
    svg("text", { x: 0, y: height + 6 }, "\u2190 anomalous"),
    svg("text", { x: WIDTH, y: height + 6, "text-anchor": "end" }, "normal \u2192"),
  );
  byId("histogram").replaceChildren(picture);
}

function setThreshold(value) {
  state.threshold = value;
  byId("threshold").value = Math.round(1000 * place(value));
  const words = `Threshold ${short(value)}`;
  byId("threshold").setAttribute("aria-valuetext", words);
  byId("threshold-value").textContent = words;
  const x = WIDTH * place(value);
  byId("cut").setAttribute("x1", x);
  byId("cut").setAttribute("x2", x);
  byId("beyond").setAttribute("width", x);
  showCounts();
  filter();
}

function showCounts() {
  const rejected = count(scored, isRejected);
  const rows = [["Rejected", rejected, scored.length, true]];
  if (heldOut.length) {
    rows.push(["False alarms, held-out",
      count(heldOut, (score) => score < state.threshold), heldOut.length]);
  }
  if (labelled) {
    const defects = scored.filter((one) => one.truth === -1);
    const normal = scored.filter((one) => one.truth === 1);
    rows.push(["Defects found", count(defects, isRejected), defects.length]);
    rows.push(["False alarms, inspected", count(normal, isRejected), normal.length]);
  }
  if (scored.length < images.length) {
    rows.push(["Without a score", images.length - scored.length]);
  }
  byId("counts").replaceChildren(...rows.flatMap(([name, part, all, strong]) => {
    const number = element(strong ? "b" : "span", {}, part.toLocaleString("en"));
    const rest = all === undefined ? "" : ` of ${all.toLocaleString("en")}${share(part, all)}`;
    return [element("dt", {}, name), element("dd", {}, number, rest)];
  }));
}

// -- gallery ---------------------------------------------------------------------

const RESULTS = {
  all: ["All", () => true],
  rejected: ["Rejected", isRejected],
  accepted: ["Accepted", isAccepted],
  ...(labelled && {
    found: ["Defects found", (one) => isRejected(one) && one.truth === -1],
    missed: ["Defects missed", (one) => isAccepted(one) && one.truth === -1],
    alarms: ["False alarms", (one) => isRejected(one) && one.truth === 1],
  }),
  ...(scored.length < images.length && {
    unread: ["Without a score", (one) => one.score === undefined],
  }),
};

function pictureOf(one) {
  const hold = element("span", { class: "hold" });
  const source = byId(`pictures-${one.index}`);
  if (one.error || !source) {
    hold.append(element("span", { class: "reason" },
      one.error ?? "no picture: other images are more suspicious"));
    return hold;
  }
  const urls = JSON.parse(source.textContent);
  const frame = element("span", { class: "frame" });
  const [height, width] = one.size;
  frame.style.setProperty("--shape", width / height);
  for (const layer of ["image", "heat", "mask", "truth"]) {
    if (urls[layer]) {
      frame.append(element("img", { class: layer, src: urls[layer], alt: "", decoding: "async" }));
    }
  }
  const boxes = (one.defects ?? []).map(([, top, left, bottom, right]) =>
    svg("rect", { x: left, y: top, width: right - left, height: bottom - top }));
  frame.append(svg("svg", { class: "boxes", viewBox: `0 0 ${width} ${height}`,
    preserveAspectRatio: "none", "aria-hidden": "true" }, ...boxes));
  hold.append(frame);
  return hold;
}

function resultOf(one) {
  if (one.error) return ["none", "no score"];
  if (isRejected(one)) {
    return one.truth === 1 ? ["bad", "rejected: false alarm"] : ["bad", "rejected"];
  }
  return one.truth === -1 ? ["good", "accepted: missed"] : ["good", "accepted"];
}

function factsOf(one) {
  const numbers = one.error ? [] : [`p ${one.p.toPrecision(2)}`, `score ${one.score.toPrecision(3)}`];
  return [...(one.kind === undefined ? [] : [one.kind]), numbers.join(", ")];
}

const cards = new Map(); // made once, so that pictures are not decoded again

function cardOf(one) {
  if (!cards.has(one)) {
    const button = element("button", { type: "button", class: "card" }, pictureOf(one),
      element("span", { class: "words" }, element("span", { class: "badge" }),
        element("span", { title: one.name }, fileName(one.name)),
        ...factsOf(one).map((fact) => element("span", { class: "fine" }, fact))));
    button.addEventListener("click", () => view(state.shown.indexOf(one)));
    cards.set(one, element("li", {}, button));
  }
  const item = cards.get(one), button = item.firstChild;
  const [kind, words] = resultOf(one);
  const badge = button.querySelector(".badge");
  badge.className = `badge ${kind}`;
  badge.textContent = words;
  button.setAttribute("aria-label", `${one.name}: ${words}. ${factsOf(one).join(", ")}`);
  return item;
}

function filter() {
  const [, test] = RESULTS[byId("by-result").value || "all"];
  const kind = byId("by-kind").value, words = byId("by-name").value.toLowerCase();
  state.shown = images.filter((one) => test(one) && (!kind || one.kind === kind.slice(1))
    && one.name.toLowerCase().includes(words));
  render();
}

function render() {
  const n = Math.min(state.n.cards, state.shown.length);
  byId("cards").replaceChildren(...state.shown.slice(0, n).map(cardOf));
  byId("more-cards").hidden = n === state.shown.length;
  byId("status").textContent =
    `${state.shown.length.toLocaleString("en")} of ${images.length.toLocaleString("en")} images`;
  renderDefects();
}

function showMore(what) {
  state.n[what] += PER_PAGE[what];
  render();
}

// -- viewer ----------------------------------------------------------------------

function view(position) {
  if (position < 0 || position >= state.shown.length) return;
  state.viewed = position;
  const one = state.shown[position], [kind, words] = resultOf(one);
  byId("viewer-name").replaceChildren(
    element("span", { class: `badge ${kind}` }, words), one.name);
  byId("viewer-picture").replaceChildren(pictureOf(one));
  byId("viewer-facts").textContent =
    `${position + 1} of ${state.shown.length}: ${factsOf(one).join(", ")}`;
  byId("previous").disabled = position === 0;
  byId("next").disabled = position === state.shown.length - 1;
  if (!byId("viewer").open) byId("viewer").showModal();
}

// -- defects ---------------------------------------------------------------------

function defectsShown() {
  return state.shown.filter(isRejected).flatMap((one) =>
    (one.defects ?? []).map((defect) => [one, ...defect]));
}

function renderDefects() {
  const rows = defectsShown();
  byId("defects").replaceChildren(...rows.slice(0, state.n.defects).map(([one, ...numbers]) => {
    const button = element("button", { type: "button", title: one.name }, fileName(one.name));
    button.addEventListener("click", () => view(state.shown.indexOf(one)));
    return element("tr", {}, element("td", {}, button),
      ...numbers.map((value) => element("td", {}, String(value))));
  }));
  byId("defects-number").textContent = `${rows.length.toLocaleString("en")} in the rejected images below`;
  byId("more-defects").hidden = rows.length <= state.n.defects;
}

// A spreadsheet takes text that begins so for a formula, and file names come from
// anywhere.
const FORMULA = /^[=+\-@\t\r]/;

function csv(rows) {
  const cell = (value) => {
    if (typeof value === "number") return String(value);
    const text = FORMULA.test(value ?? "") ? `'${value}` : value ?? "";
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

function download(name, rows) {
  const file = new Blob(["\ufeff", csv(rows)], { type: "text/csv;charset=utf-8" });
  const link = element("a", { href: URL.createObjectURL(file), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const labelOf = (one) => (one.score === undefined ? 0 : isRejected(one) ? -1 : 1);

function downloadDefects() {
  const heading = ["path", "score", "p_value", "kind", "area", "top", "left", "bottom",
    "right", "row", "column", "peak"];
  download("defects.csv", [heading, ...defectsShown().map(([one, ...numbers]) =>
    [one.name, one.score, one.p, one.kind, ...numbers])]);
}

function downloadImages() {
  const heading = ["path", "label", "score", "p_value", "kind", "true_label",
    "n_defects", "error"];
  download("images.csv", [heading, ...state.shown.map((one) => [one.name, labelOf(one),
    one.score, one.p, one.kind, one.truth, one.n_defects, one.error])]);
}

// -- layers and keys -------------------------------------------------------------

function toggle(layer) {
  const on = document.body.classList.toggle(`show-${layer}`);
  for (const button of document.querySelectorAll(`[data-layer=${layer}]`)) {
    button.setAttribute("aria-pressed", on);
  }
}

function makeLayers(place) {
  for (const [layer, key, words] of LAYERS) {
    const button = element("button", { type: "button", "data-layer": layer,
      "aria-pressed": "false", "aria-keyshortcuts": key }, element("kbd", {}, key), ` ${words}`);
    button.addEventListener("click", () => toggle(layer));
    place.append(button);
  }
}

function moveFocus(key) {
  const buttons = [...document.querySelectorAll(".card")];
  const at = buttons.indexOf(document.activeElement);
  if (at < 0) return false;
  const top = buttons[0].offsetTop;
  const columns = Math.max(1, buttons.findIndex((one) => one.offsetTop > top));
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const target = buttons[at + step];
  if (step === undefined || !target) return false;
  target.focus();
  return true;
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input[type=search], select")) return;
  const layer = LAYERS.find(([, key]) => key === event.key);
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  let done = true;
  if (layer) toggle(layer[0]);
  else if (event.key === "r") setThreshold(data.threshold);
  else if (byId("viewer").open && event.key in steps) view(state.viewed + steps[event.key]);
  else done = moveFocus(event.key);
  if (done) event.preventDefault();
}

function fillSelect(id, choices) {
  byId(id).append(...choices.map(([value, words]) => element("option", { value }, words)));
  byId(id).addEventListener("change", filter);
}

function start() {
  drawHistogram();
  makeLayers(byId("layers"));
  makeLayers(byId("viewer-layers"));
  ["image", "heat", "boxes"].forEach(toggle);
  fillSelect("by-result", Object.entries(RESULTS).map(([value, [words]]) => [value, words]));
  const kinds = [...new Set(images.map((one) => one.kind))].filter((kind) => kind !== undefined);
  fillSelect("by-kind", [["", "All"], ...kinds.sort().map((kind) => [`=${kind}`, kind || "(none)"])]);
  byId("kind-label").hidden = !kinds.length;
  byId("by-name").addEventListener("input", filter);
  byId("threshold").addEventListener("input", (event) =>
    setThreshold(scale.from + (event.target.value / 1000) * (scale.to - scale.from)));
  byId("reset").addEventListener("click", () => setThreshold(data.threshold));
  byId("more-cards").addEventListener("click", () => showMore("cards"));
  byId("more-defects").addEventListener("click", () => showMore("defects"));
  byId("defects-csv").addEventListener("click", downloadDefects);
  byId("images-csv").addEventListener("click", downloadImages);
  byId("close").addEventListener("click", () => byId("viewer").close());
  byId("previous").addEventListener("click", () => view(state.viewed - 1));
  byId("next").addEventListener("click", () => view(state.viewed + 1));
  document.addEventListener("keydown", onKey);
  document.addEventListener("scroll", () => {
    const button = byId("more-cards"); // pressed for those who scroll
    const near = button.getBoundingClientRect().top < innerHeight + 400;
    if (near && !button.hidden) showMore("cards");
  }, { passive: true });
  setThreshold(data.threshold);
}

start();
