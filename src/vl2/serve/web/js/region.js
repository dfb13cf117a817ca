// A part of the picture: dragged with the pointer or moved with keys, then asked about.

import { ask } from "./ask.js";
import { $, h, s, say } from "./dom.js";
import { t } from "./i18n.js";
import { cropOf } from "./pictures.js";
import { busy, changed, on, state } from "./state.js";
import { scale, seen, toPicture } from "./viewer.js";

const LEAST = 6; // pixels of the screen: less is a click

let part = null; // {x, y, width, height} in pixels of the picture
let begun = null; // where the pointer went down: of the screen, and of the picture

const limit = (value, most) => Math.min(Math.max(0, value), most);

function between(a, b) {
  const { width, height } = seen();
  const [x1, x2] = [a.x, b.x].map((x) => limit(x, width)).sort((p, q) => p - q);
  const [y1, y2] = [a.y, b.y].map((y) => limit(y, height)).sort((p, q) => p - q);
  return { x: Math.floor(x1), y: Math.floor(y1), width: Math.ceil(x2) - Math.floor(x1), height: Math.ceil(y2) - Math.floor(y1) };
}

function draw({ menu }) {
  const stage = $("#stage");
  stage.querySelector(".selection")?.remove();
  $("#region").hidden = !(part && menu);
  if (!part) return;
  const rect = s("rect", { class: "selection", ...part });
  stage.append(rect);
  if (menu) place(rect);
}

function place(rect) {
  const menu = $("#region");
  const focused = [...menu.children].indexOf(document.activeElement);
  menu.replaceChildren(
    ...["whatIsThis", "readThis", "describeThis"].map((key, at) => h("button", {
      type: "button", class: at ? "plain small" : "primary small", onclick: () => askAbout(t(key)),
    }, t(key))),
    h("button", { type: "button", class: "plain small", "aria-label": t("cancel"), onclick: close }, "×"));
  if (focused >= 0) menu.children[focused].focus({ preventScroll: true });
  const frame = $("#frame").getBoundingClientRect();
  const at = rect.getBoundingClientRect();
  const left = limit(at.left - frame.left, frame.width - menu.offsetWidth - 8);
  const below = at.bottom - frame.top + 8;
  menu.style.left = `${left}px`;
  menu.style.top = `${Math.min(below, frame.height - menu.offsetHeight - 8)}px`;
}

/** Whether a part is selected. */
export const selected = () => part !== null;

/** End the selection. */
export function close() {
  part = null;
  begun = null;
  $("#select").setAttribute("aria-pressed", "false");
  $("#frame").classList.remove("selecting");
  draw({ menu: false });
}

/** Ask about the selected part. */
export async function askAbout(question, mode = "text") {
  if (!part || busy()) return;
  const crop = await cropOf(seen(), part);
  close();
  state.pictures.set(crop.id, crop);
  changed("pictures");
  await ask(question, { mode, pictures: [crop.id], about: [crop.id] });
}

function down(event) {
  const touch = event.pointerType === "touch" && !$("#frame").classList.contains("selecting");
  if (event.button !== 0 || touch || !seen()) return;
  begun = { clientX: event.clientX, clientY: event.clientY, at: toPicture(event.clientX, event.clientY) };
}

function move(event) {
  if (!begun) return;
  const far = Math.hypot(event.clientX - begun.clientX, event.clientY - begun.clientY);
  if (far < LEAST && !part) return;
  $("#stage").setPointerCapture(event.pointerId); // only now: a click stays a click on a box
  part = between(begun.at, toPicture(event.clientX, event.clientY));
  draw({ menu: false });
}

function up() {
  if (!begun) return;
  begun = null;
  if (part && Math.min(part.width, part.height) / scale() < LEAST) part = null;
  draw({ menu: true });
  $("#region button")?.focus({ preventScroll: true });
}

function byKeys() {
  if ($("#select").getAttribute("aria-pressed") === "true") return close();
  const { width, height } = seen();
  part = between({ x: width * 0.3, y: height * 0.3 }, { x: width * 0.7, y: height * 0.7 });
  $("#select").setAttribute("aria-pressed", "true");
  $("#frame").classList.add("selecting");
  draw({ menu: true });
  $("#region button").focus({ preventScroll: true });
  say(t("regionHelp"));
}

function press(event) {
  if (!part) return;
  if (event.key === "Escape") {
    close();
    $("#select").focus();
    return event.stopPropagation();
  }
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  const { width, height } = seen();
  const [dx, dy] = [step[0] * width * 0.03, step[1] * height * 0.03];
  const from = event.shiftKey ? part : { x: limit(part.x + dx, width - part.width), y: limit(part.y + dy, height - part.height) };
  const wide = event.shiftKey ? Math.max(4, part.width + dx) : part.width;
  const high = event.shiftKey ? Math.max(4, part.height + dy) : part.height;
  part = between(from, { x: from.x + wide, y: from.y + high });
  draw({ menu: true });
}

/** Begin to listen. */
export function listen() {
  const stage = $("#stage");
  stage.addEventListener("pointerdown", down);
  stage.addEventListener("pointermove", move);
  stage.addEventListener("pointerup", up);
  stage.addEventListener("pointercancel", close);
  $("#select").addEventListener("click", byKeys);
  $("#frame").addEventListener("keydown", press);
  on("look", () => part && close());
  on("view", () => part && !begun && draw({ menu: true }));
}
