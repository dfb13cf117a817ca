// How the model reads a picture: the grid of tiles, drawn where the tiles lie, and what they cost.

import { $, h, s } from "./dom.js";
import { number, t } from "./i18n.js";
import { measure } from "./pictures.js";
import { changed, on, state } from "./state.js";

/** The rule that the next question goes by. */
const used = () => state.tiling ?? state.model?.tiling ?? "released";

/** A picture is scaled into the canvas and stands in its middle: the canvas in the picture's pixels. */
function geometry(picture, rule) {
  const cut = picture.layout?.told?.layouts[rule];
  if (!cut) return null;
  const part = Math.min(cut.read_width / picture.width, cut.read_height / picture.height);
  const [width, height] = [cut.read_width / part, cut.read_height / part];
  const [x, y] = [(picture.width - width) / 2, (picture.height - height) / 2];
  return { x, y, width, height, side: width / cut.tiles_wide, cut };
}

/** [x, y, width, height] of the canvas whose tiles are drawn; null where none are. */
export function canvasOf(picture) {
  const found = state.grid && geometry(picture, state.grid);
  return found && [found.x, found.y, found.width, found.height];
}

/** The tiles as SVG. */
export function tileLines(picture) {
  const found = state.grid && geometry(picture, state.grid);
  if (!found) return [];
  const { x, y, side, cut } = found;
  const tiles = [];
  for (let row = 0; row < cut.tiles_high; row += 1) {
    for (let column = 0; column < cut.tiles_wide; column += 1) {
      tiles.push(s("rect", { class: "tile", x: x + column * side, y: y + row * side, width: side, height: side }));
    }
  }
  return tiles;
}

function rowOf(rule, cut) {
  const one = cut.tiles_wide * cut.tiles_high === 1;
  const tiles = one ? t("oneTile") : t("tilesWord", { wide: cut.tiles_wide, high: cut.tiles_high });
  const pattern = s("svg", { class: "mini", viewBox: `0 0 ${cut.tiles_wide * 10} ${cut.tiles_high * 10}`, "aria-hidden": "true" });
  for (let at = 0; at < cut.tiles_wide * cut.tiles_high; at += 1) {
    pattern.append(s("rect", { x: (at % cut.tiles_wide) * 10 + 1, y: Math.floor(at / cut.tiles_wide) * 10 + 1, width: 8, height: 8, rx: 1.5 }));
  }
  const choose = h("input", { type: "radio", name: "tiling", value: rule, checked: used() === rule,
    "aria-label": `${t(rule)}: ${t("used")}`, onchange: () => {
      state.tiling = rule;
      if (state.grid) state.grid = rule;
      changed("layout");
    } });
  const shownNow = state.grid === rule;
  const grid = h("button", { type: "button", class: "plain small", "aria-pressed": String(shownNow),
    "aria-label": `${t("grid")}: ${t(rule)}`, onclick: () => {
      state.grid = shownNow ? null : rule;
      changed("layout");
    } }, t(shownNow ? "gridNone" : "gridShow"));
  return h("div", { class: "layout", "data-rule": rule },
    h("label", {}, choose, pattern, h("span", { class: "layout-name" }, t(rule)),
      h("span", { class: "layout-facts" },
        `${tiles} · ${t("tokens", { n: number(cut.tokens) })} · ${t("readAt", { w: cut.read_width, h: cut.read_height })}`)),
    grid);
}

/** Write the layouts of the picture that is looked at. */
function draw() {
  const picture = state.pictures.get(state.picture);
  const place = $("#layouts");
  if (!picture) return place.replaceChildren();
  measure(picture); // tells "layout" once it knows
  const { told, error } = picture.layout;
  if (error) return place.replaceChildren(h("p", { class: "bad" }, error));
  if (!told) return place.replaceChildren(h("p", { class: "quiet" }, `${t("loading")} …`));
  const rows = ["released", "content"].map((rule) => rowOf(rule, told.layouts[rule]));
  const notes = told.notes.map((note) => h("p", { class: "quiet" }, note));
  return place.replaceChildren(...rows, ...notes);
}

/** Begin to draw. */
export function listen() {
  on("look pictures layout model language", draw);
}
