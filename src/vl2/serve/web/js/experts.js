// Which experts tokens of pictures and of the answer used: layers down, experts across.

import { h, s, say } from "./dom.js";
import { tileName } from "./heat.js";
import { number, percent, t } from "./i18n.js";
import { changed, state } from "./state.js";
import { answerUse, expertsOf, pictureUse } from "./trace.js";

const BEST = 3; // experts of a layer that the table names
const LABELS = 12; // layers that get a number
const COLUMNS = 16; // experts that do

const share = ({ counts, tokens }, at) => (tokens ? counts[at] / tokens : 0);

/** The most that any cell can show: one scale for every tile, so that they can be compared. */
function most(trace) {
  const tiles = trace.pictures.flatMap(({ wide, high }, picture) =>
    Array.from({ length: 1 + wide * high }, (_, tile) => pictureUse(trace, { picture, tile })));
  return [answerUse(trace), ...tiles].reduce(
    (all, use) => use.counts.reduce((a, count) => Math.max(a, count / use.tokens), all), 0);
}

/** The tokens whose experts are shown: those of one tile, or of all pictures. */
const chosenUse = (trace) => pictureUse(trace,
  state.glass.tile === null ? null : { picture: state.glass.picture, tile: state.glass.tile });

const usesOf = (trace) => [
  ...(trace.pictures.length ? [["pictureTokens", chosenUse(trace)]] : []), ["answerTokens", answerUse(trace)],
];

function matrix(trace, [name, use], top) {
  const { layers, experts } = trace;
  const cells = [];
  for (let at = 0; at < use.counts.length; at += 1) {
    if (!use.counts[at]) continue;
    const cell = s("rect", { class: "cell", "data-at": at, x: (at % experts) + 0.04, y: Math.floor(at / experts) + 0.04, width: 0.92, height: 0.92 });
    cell.style.setProperty("--v", (share(use, at) / top).toFixed(3));
    cells.push(cell);
  }
  const drawing = s("svg", { class: "matrix", viewBox: `0 0 ${experts} ${layers.length}`, preserveAspectRatio: "none",
    role: "img", tabindex: "0", "aria-label": t("matrix", { what: t(name), layers: layers.length, experts }) },
  s("rect", { class: "matrix-ground", width: experts, height: layers.length }), ...cells, s("g", { class: "used" }));
  const every = Math.ceil(layers.length / LABELS);
  const each = Math.ceil(experts / COLUMNS);
  const numbers = h("div", { class: "matrix-layers", "aria-hidden": "true" },
    ...layers.map((layer, at) => h("span", {}, at % every ? "" : String(layer))));
  for (const one of [drawing, numbers]) one.style.height = `${layers.length * Math.max(6, Math.min(18, 140 / layers.length))}px`;
  return h("div", { class: "matrix-row", "data-use": name },
    h("p", { class: "matrix-name" }, `${t(name)} · ${number(use.tokens)}`), numbers, drawing,
    h("div", { class: "matrix-experts", "aria-hidden": "true" },
      ...Array.from({ length: experts }, (_, at) => h("span", {}, at % each ? "" : String(at)))));
}

/** The figures of a cell of both matrices, as a line. */
function told(trace, at) {
  const words = usesOf(trace).map(([name, use]) => t("usedBy", { p: percent(share(use, at)), n: number(use.counts[at]), what: t(name) }));
  const layer = trace.layers[Math.floor(at / trace.experts)];
  return `${t("layerExpert", { layer, expert: at % trace.experts })}: ${words.join(", ")}`;
}

/** Let a pointer or the arrow keys say the figures of a cell. */
function readable(section, trace) {
  const line = section.querySelector(".readout");
  const show = (at) => {
    line.textContent = told(trace, at);
    for (const one of section.querySelectorAll(".lit-cell")) one.remove();
    for (const drawing of section.querySelectorAll(".matrix")) {
      drawing.append(s("rect", { class: "lit-cell", x: at % trace.experts, y: Math.floor(at / trace.experts), width: 1, height: 1 }));
    }
  };
  const size = trace.layers.length * trace.experts;
  let at = 0;
  for (const drawing of section.querySelectorAll(".matrix")) {
    drawing.addEventListener("pointermove", ({ clientX, clientY }) => {
      const box = drawing.getBoundingClientRect();
      const column = Math.floor(((clientX - box.left) / box.width) * trace.experts);
      const row = Math.floor(((clientY - box.top) / box.height) * trace.layers.length);
      at = Math.min(size - 1, Math.max(0, row) * trace.experts + Math.min(trace.experts - 1, Math.max(0, column)));
      show(at);
    });
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -trace.experts, ArrowDown: trace.experts }[event.key];
      if (!step) return;
      event.preventDefault();
      if (at + step >= 0 && at + step < size) at += step;
      show(at);
      say(line.textContent);
    });
  }
}

/** The experts of a layer that were used most, with their shares. */
function best(trace, use, layer) {
  const from = layer * trace.experts;
  const order = [...use.counts.subarray(from, from + trace.experts).entries()].filter(([, count]) => count);
  order.sort(([a, one], [b, other]) => other - one || a - b);
  return order.slice(0, BEST).map(([expert]) => `${expert} (${percent(share(use, from + expert))})`).join(", ");
}

function table(trace) {
  const uses = usesOf(trace);
  const head = [t("layer"), ...uses.map(([name]) => t(name)), t("thisToken")];
  return h("table", {}, h("thead", {}, h("tr", {}, ...head.map((one) => h("th", { scope: "col" }, one)))),
    h("tbody", {}, ...trace.layers.map((number_, layer) => h("tr", {}, h("th", { scope: "row" }, String(number_)),
      ...uses.map(([, use]) => h("td", {}, best(trace, use, layer))), h("td", { class: "of-token", "data-layer": layer })))));
}

/** Choose the tile whose experts are shown: null are all tokens of all pictures. */
function tiles(trace) {
  const pictures = trace.pictures.flatMap((picture, at) => Array.from({ length: 1 + picture.wide * picture.high }, (_, tile) => ({
    at, tile, name: trace.pictures.length > 1 ? `${at + 1}: ${tileName(picture, tile)}` : tileName(picture, tile) })));
  const button = ({ at, tile, name }) => h("button", { type: "button", class: "tile-choice", "data-tile": tile, "data-picture": at,
    "aria-label": tile ? t("tileNamed", { name }) : name, onclick: () => {
      Object.assign(state.glass, { tile, picture: at, view: tile ? "mosaic" : "overview" });
      changed("glass");
    } }, name);
  const all = h("button", { type: "button", class: "tile-choice", "data-tile": "", onclick: () => {
    state.glass.tile = null;
    changed("glass");
  } }, t("allTiles"));
  return h("div", { class: "tile-choices", role: "group", "aria-label": t("whichTile") }, all, ...pictures.map(button));
}

/** The part of the glass box about experts; `refreshExperts` fills it. */
export function expertsPart(trace) {
  if (!trace.layers.length || !trace.experts) return h("p", { class: "quiet" }, t("noExperts"));
  const top = most(trace);
  const even = percent(trace.perToken / trace.experts);
  return h("section", { class: "experts", "aria-label": t("experts") },
    h("h3", {}, t("experts")),
    h("p", { class: "scale" }, h("span", { class: "ramp", "aria-hidden": "true" }), `0 – ${percent(top)} `, h("span", { class: "quiet" }, t("expertsScale", { even }))),
    trace.pictures.length ? tiles(trace) : null,
    h("div", { class: "matrices", "data-top": top }),
    h("p", { class: "readout quiet" }, t("readout")),
    h("details", { class: "as-table" }, h("summary", {}, t("asTable")), h("div", { class: "wide", tabindex: "0" })));
}

/** Show the tile that is chosen and the experts of the token that is looked at. */
export function refreshExperts(section, trace) {
  const place = section.querySelector(".matrices");
  if (!place) return;
  const { tile, picture, token } = state.glass;
  const wanted = tile === null ? "all" : `${picture} ${tile}`;
  if (place.dataset.shown !== wanted) {
    place.dataset.shown = wanted;
    place.replaceChildren(...usesOf(trace).map((one) => matrix(trace, one, Number(place.dataset.top))));
    section.querySelector(".as-table .wide").replaceChildren(table(trace));
    readable(section, trace);
  }
  for (const button of section.querySelectorAll(".tile-choice")) {
    const own = tile === null ? button.dataset.tile === "" : button.dataset.tile === String(tile) && button.dataset.picture === String(picture);
    button.setAttribute("aria-pressed", String(own));
  }
  const used = trace.layers.map((_, layer) => expertsOf(trace, token, layer));
  for (const group of section.querySelectorAll(".used")) {
    group.replaceChildren(...used.flatMap((experts, layer) => experts.map((x) => s("rect", { x, y: layer, width: 1, height: 1 }))));
  }
  for (const cell of section.querySelectorAll(".of-token")) cell.textContent = used[cell.dataset.layer].join(", ");
}
