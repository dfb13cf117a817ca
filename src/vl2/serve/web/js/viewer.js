// The picture with its boxes and tiles, in one SVG whose units are the picture's pixels.

import { $, pressable, s } from "./dom.js";
import { drawHeat, heatCanvas } from "./heat.js";
import { t } from "./i18n.js";
import { light, lights, tones } from "./light.js";
import { factsOf } from "./pictures.js";
import { changed, look, on, state, turnOf } from "./state.js";
import { canvasOf, tileLines } from "./tiles.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");

const MANY = 14; // boxes whose labels would hide the picture: they show one by one

let view = null; // [x, y, width, height] that is seen
let moving = 0; // the animation that runs
let drawn = null; // id of the picture in the SVG
let around = ""; // what `whole` was when the view was set to it

const stage = () => $("#stage");

/** The picture that is looked at. */
export const seen = () => state.pictures.get(state.picture) ?? null;

/** Pixels of the picture per pixel of the screen. */
export function scale() {
  const { width, height } = stage().getBoundingClientRect();
  return Math.max(view[2] / (width || 1), view[3] / (height || 1));
}

/** Where a point of the screen lies in the picture. */
export function toPicture(clientX, clientY) {
  const point = new DOMPoint(clientX, clientY).matrixTransform(stage().getScreenCTM().inverse());
  return { x: point.x, y: point.y };
}

function setView(next) {
  view = next;
  stage().setAttribute("viewBox", view.join(" "));
  drawTags();
  changed("view");
}

function moveTo(target) {
  cancelAnimationFrame(moving);
  if (still.matches || !view) return setView(target);
  const [from, began] = [view, performance.now()];
  const step = (now) => {
    const part = Math.min(1, Math.max(0, (now - began) / 260));
    const eased = 1 - (1 - part) ** 3;
    setView(from.map((value, at) => value + (target[at] - value) * eased));
    if (part < 1) moving = requestAnimationFrame(step);
  };
  moving = requestAnimationFrame(step);
}

function whole(picture) {
  return heatCanvas(picture) ?? canvasOf(picture) ?? [0, 0, picture.width, picture.height];
}

/** See the whole picture. */
export function fit() {
  if (seen()) moveTo(whole(seen()));
}

/** See more or less around a point of the picture; the middle by default. */
export function zoom(factor, at = null) {
  if (!seen()) return;
  const [x, y, width, height] = view;
  const point = at ?? { x: x + width / 2, y: y + height / 2 };
  const all = whole(seen());
  const wide = Math.min(all[2], Math.max(8, width * factor));
  const part = wide / width;
  if (wide === all[2]) return setView(all);
  setView([point.x - (point.x - x) * part, point.y - (point.y - y) * part, wide, height * part]);
}

/** Go to a box: its picture, with some of what is around it. */
export function goTo(turn, at) {
  const box = placed(turnOf(turn), at);
  if (!box) return;
  if (state.picture !== box.picture || state.turn !== turn) look(box.picture, turn);
  const picture = seen();
  const all = whole(picture);
  const room = Math.max((box.x2 - box.x1) / all[2], (box.y2 - box.y1) / all[3], 0.04) * 2.6;
  if (room >= 0.8) return moveTo(all);
  const [wide, high] = [all[2] * room, all[3] * room];
  const middle = [(box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2];
  moveTo([middle[0] - wide / 2, middle[1] - high / 2, wide, high]);
}

/** Box `at` of a turn on the picture where it is shown: one of a part lies on the whole. */
export function placed(turn, at) {
  const box = turn?.answer.boxes[at];
  const picture = state.pictures.get(box?.picture);
  if (!picture) return null;
  const { origin } = picture;
  if (!origin || !state.pictures.has(origin.picture)) return box;
  return { ...box, picture: origin.picture,
    x1: box.x1 + origin.x, y1: box.y1 + origin.y, x2: box.x2 + origin.x, y2: box.y2 + origin.y };
}

function drawPicture() {
  const picture = seen();
  $("#facts").textContent = picture ? factsOf(picture) : "";
  if (!picture) {
    drawn = null;
    drawHeat(null, null);
    return stage().replaceChildren();
  }
  if (drawn !== picture.id) {
    drawn = picture.id;
    const image = s("image", { href: picture.url, width: picture.width, height: picture.height,
      preserveAspectRatio: "none" });
    stage().replaceChildren(image, s("g", { class: "heat" }), s("g", { class: "tiles" }), s("g", { class: "boxes" }));
    stage().setAttribute("aria-label", picture.name);
    around = "";
  }
  drawTiles();
  drawBoxes();
  drawGlass();
}

/** Draw the heat of the glass box; the view is set anew where more or less lies around the picture. */
function drawGlass() {
  const picture = seen();
  drawHeat(stage().querySelector(".heat"), picture);
  if (!picture || around === String(whole(picture))) return;
  around = String(whole(picture));
  cancelAnimationFrame(moving);
  setView(whole(picture));
}

function drawTiles() {
  const picture = seen();
  if (picture) stage().querySelector(".tiles").replaceChildren(...tileLines(picture));
}

/** Draw the boxes of the turn that is looked at; new ones are added while the answer streams. */
function drawBoxes() {
  const [picture, turn] = [seen(), turnOf(state.turn)];
  const group = stage().querySelector(".boxes");
  if (!picture || !group) return;
  group.setAttribute("data-turn", turn?.id ?? "");
  const boxes = turn?.answer.boxes ?? [];
  const colours = tones(boxes);
  const made = boxes.map((_, at) => at)
    .filter((at) => placed(turn, at)?.picture === picture.id)
    .map((at) => boxOf(turn.id, placed(turn, at), at, colours[at]));
  const part = state.pictures.get(turn?.about?.[0]);
  if (part?.origin?.picture === picture.id) {
    made.unshift(s("rect", { class: "part", "data-key": part.id, x: part.origin.x, y: part.origin.y,
      width: part.width, height: part.height }));
  }
  group.classList.toggle("many", made.length > MANY);
  // A box that stands there already stays untouched: put in again, it would appear once more.
  const wanted = new Set(made.map((one) => one.dataset.key));
  for (const one of [...group.children]) if (!wanted.has(one.dataset.key)) one.remove();
  const standing = new Set([...group.children].map((one) => one.dataset.key));
  group.append(...made.filter((one) => !standing.has(one.dataset.key)));
  drawTags();
}

function boxOf(turn, box, at, tone) {
  const place = { x: box.x1, y: box.y1, width: box.x2 - box.x1, height: box.y2 - box.y1 };
  const score = Math.round(box.score * 100);
  const go = () => {
    light(turn, [at]);
    document.querySelector(`.turn[data-turn="${turn}"] [data-box~="${at}"]`)
      ?.scrollIntoView({ block: "nearest" });
  };
  return s("g", {
    class: `box tone-${tone}`, "data-box": at, "data-key": `${turn} ${at} ${Object.values(place)}`,
    "aria-label": t("boxed", { label: box.label, p: score }), ...pressable(go), ...lights(turn, [at]),
  },
  s("rect", { class: "halo", ...place }),
  s("rect", { class: "edge", ...place }),
  s("g", { class: "tag", "data-x": box.x1, "data-y": box.y1 },
    s("rect", { class: "plate" }), s("text", {}, `${box.label} `, s("tspan", {}, `${score} %`))));
}

/** Labels keep their size on the screen however far the picture is zoomed, and stay on it. */
function drawTags() {
  if (!view || !stage().isConnected) return;
  const unit = scale();
  const screen = stage().getBoundingClientRect();
  const [wide, high] = [screen.width * unit, screen.height * unit]; // around the view is more
  const [left, top] = [view[0] + (view[2] - wide) / 2, view[1] + (view[3] - high) / 2];
  stage().classList.toggle("narrow", screen.width < 480);
  for (const tag of stage().querySelectorAll(".tag")) {
    const [plate, text] = tag.children;
    text.setAttribute("font-size", 12.5 * unit);
    const [width, height] = [text.getBBox().width + 10 * unit, 19 * unit];
    const x = Math.max(left, Math.min(Number(tag.dataset.x) - unit, left + wide - width));
    const above = Number(tag.dataset.y) - height - 2 * unit;
    const y = above < top ? Number(tag.dataset.y) + 2 * unit : above;
    for (const [name, value] of Object.entries({ x, y, width, height, rx: 4 * unit })) {
      plate.setAttribute(name, value);
    }
    text.setAttribute("x", x + 5 * unit);
    text.setAttribute("y", y + 13.6 * unit);
  }
}

/** Begin to draw. */
export function listen() {
  on("look pictures layout", drawPicture);
  on("glass", drawGlass);
  on("language", () => {
    stage().querySelector(".boxes")?.replaceChildren(); // their names are words
    drawPicture();
  });
  on("answer", (turn) => turn.id === state.turn && drawBoxes());
  new ResizeObserver(() => drawTags()).observe(stage());
  $("#fit").addEventListener("click", fit);
  $("#zoom-in").addEventListener("click", () => zoom(0.7));
  $("#zoom-out").addEventListener("click", () => zoom(1 / 0.7));
  stage().addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(event.deltaY / 400), toPicture(event.clientX, event.clientY));
  }, { passive: false });
}
