// Where a token of the answer attended, over the picture: cells where the trace says they lie.

import { $, h, s } from "./dom.js";
import { percent, t } from "./i18n.js";
import { state, turnOf } from "./state.js";
import { traceOf } from "./trace.js";

let standing = ""; // which cells stand there: only their heat changes with the token

/** Id of the picture on which picture `at` of a turn is shown, and where: a part lies on the whole. */
export function shownOn(turn, at) {
  const picture = state.pictures.get(turn.asked[at]);
  if (!picture) return null;
  const { origin, width, height } = picture;
  const whole = origin && state.pictures.has(origin.picture);
  return { picture: whole ? origin.picture : picture.id, x: whole ? origin.x : 0, y: whole ? origin.y : 0, width, height };
}

/** The canvas of a view in pixels of the picture that is shown. */
function canvas({ x, y, width, height }, [x1, y1, x2, y2]) {
  const [wide, high] = [width / (x2 - x1), height / (y2 - y1)];
  return { x: x - x1 * wide, y: y - y1 * high, width: wide, height: high };
}

/** What is drawn on a picture: the glass box that is open, if its turn and picture are looked at. */
function found(picture) {
  const glass = state.glass;
  const turn = glass && turnOf(glass.turn);
  const trace = turn && state.turn === turn.id && traceOf(turn.answer);
  const place = trace && trace.pictures.length ? shownOn(turn, glass.picture) : null;
  if (place?.picture !== picture.id) return null;
  const told = trace.pictures[glass.picture];
  return { glass, trace, told, view: told.views[glass.view], place };
}

/** [x, y, width, height] of a picture with the canvas that heat is drawn on; null where none is. */
export function heatCanvas(picture) {
  const one = found(picture);
  if (!one) return null;
  const all = [{ x: 0, y: 0, ...picture }, canvas(one.place, one.view.area)];
  const [x, y] = [Math.min(...all.map((a) => a.x)), Math.min(...all.map((a) => a.y))];
  const right = Math.max(...all.map((a) => a.x + a.width));
  const low = Math.max(...all.map((a) => a.y + a.height));
  return [x, y, right - x, low - y];
}

/** Edges of the cells of a view along one side: [start, size] as shares of that side. */
function stops(edges, tiles) {
  const stops_ = [];
  for (let tile = 0; tile < tiles; tile += 1) {
    for (let at = 0; at + 1 < edges.length; at += 1) {
      stops_.push([(tile + edges[at]) / tiles, (edges[at + 1] - edges[at]) / tiles]);
    }
  }
  return stops_;
}

function cells({ told, view, place }) {
  const { x, y, width, height } = canvas(place, view.area);
  const [across, down] = [stops(told.edges, view.wide), stops(told.edges, view.high)];
  return down.flatMap(([top, high]) => across.map(([left, wide]) => s("rect", {
    class: "cell", x: x + left * width, y: y + top * height, width: wide * width, height: high * height,
  })));
}

/** Where in the view that is shown a token attended most, in words. */
export function hottest(trace) {
  const { picture, view: name, token } = state.glass;
  const { edges, views: { [name]: view } } = trace.pictures[picture];
  const heat = view.heat(token);
  const at = heat.indexOf(Math.max(...heat));
  const [x1, y1, x2, y2] = view.area;
  const middle = ([start, size], from, to) => (start + size / 2 - from) / (to - from);
  const x = middle(stops(edges, view.wide)[at % view.columns], x1, x2);
  const y = middle(stops(edges, view.high)[Math.floor(at / view.columns)], y1, y2);
  if (Math.min(x, y) < 0 || Math.max(x, y) > 1) return t("mostInPadding");
  return t("mostAt", { x: percent(x), y: percent(y) });
}

/** The name of a tile: the overview is 0, the others are told by row and column. */
export function tileName(told, tile) {
  if (!tile) return t("overview");
  return `${Math.floor((tile - 1) / told.wide) + 1}.${((tile - 1) % told.wide) + 1}`;
}

function outlines({ glass, told, view, place }) {
  const { x, y, width, height } = canvas(place, view.area);
  const [wide, high] = [width / view.wide, height / view.high];
  const lines = [];
  for (let at = 0; at < view.wide * view.high; at += 1) {
    const tile = glass.view === "mosaic" ? at + 1 : 0;
    const [left, top] = [x + (at % view.wide) * wide, y + Math.floor(at / view.wide) * high];
    const chosen = glass.tile === tile ? " chosen" : "";
    lines.push(s("rect", { class: `heat-tile${chosen}`, "data-tile": tile, x: left, y: top, width: wide, height: high }));
    if (view.wide * view.high === 1) continue;
    const size = Math.min(wide, high) * 0.055;
    lines.push(s("text", { class: "heat-name", x: left + size * 0.5, y: top + size * 1.2, "font-size": size }, tileName(told, tile)));
  }
  return lines;
}

/** Draw the heat of the token that is looked at into a group of the stage, and its scale. */
export function drawHeat(group, picture) {
  const one = picture && found(picture);
  $("#frame").classList.toggle("glassy", Boolean(one));
  $("#heat-scale").hidden = !one;
  if (!one) {
    standing = "";
    return group?.replaceChildren();
  }
  const { glass, trace, view } = one;
  const key = [glass.turn, glass.picture, glass.view].join(" ");
  if (key !== standing || !group.firstElementChild) {
    group.replaceChildren(s("g", { class: "cells" }, ...cells(one)), s("g", {}));
    standing = key;
  }
  const [drawing, lines] = group.children;
  const heat = view.heat(glass.token);
  let at = 0;
  for (const cell of drawing.children) {
    cell.style.setProperty("--v", (heat[at] / 255).toFixed(3));
    at += 1;
  }
  lines.replaceChildren(...outlines(one));
  $("#heat-scale").replaceChildren(
    h("span", { class: "heat-token" }, trace.tokens[glass.token].trim() || t("markToken")),
    h("span", { class: "ramp", "aria-hidden": "true" }), h("span", {}, `0 – ${percent(trace.scale[glass.token])}`),
    h("span", { class: "heat-here quiet" }));
}

/** Tell the share of the cell under the pointer. */
export function listen() {
  $("#stage").addEventListener("pointermove", ({ target }) => {
    const place = $(".heat-here");
    const glass = state.glass;
    if (!place || !glass) return;
    const { scale } = traceOf(turnOf(glass.turn).answer);
    const share = target.matches(".heat .cell") ? Number(target.style.getPropertyValue("--v")) * scale[glass.token] : null;
    place.textContent = share === null ? "" : t("here", { p: percent(share) });
  });
}
