// The conversation: questions, answers, and what can be done with them.

import { figures, loose, remarks, writeText } from "./answer.js";
import { rewindTo, askAgain } from "./composer.js";
import { $, h, notify, say } from "./dom.js";
import { drawGlass, toggle } from "./glass.js";
import { t } from "./i18n.js";
import { busy, look, on, state } from "./state.js";

const waiting = new Set(); // turns whose answer is to be written before the next picture

function thumbs(turn) {
  const pictures = (turn.about ?? turn.pictures).map((one) => state.pictures.get(one)).filter(Boolean);
  if (!pictures.length) return null;
  return h("div", { class: "with" }, ...pictures.map((picture) => h("button", {
    type: "button", class: "mini-thumb", "aria-label": t("show", { name: picture.name }),
    onclick: () => look(picture.origin?.picture ?? picture.id, turn.id),
  }, h("img", { src: picture.url, alt: "" }))));
}

const tool = (name, act, path) => h("button", { type: "button", class: "plain small", "data-act": name, onclick: act },
  t(path));

function questionOf(turn) {
  const kind = { boxes: t("modeBoxes"), find: t("modeFind") }[turn.mode];
  return h("div", { class: "asked" },
    thumbs(turn),
    h("p", { class: "bubble" }, kind ? h("span", { class: "kind" }, kind) : null, turn.question),
    h("div", { class: "acts" }, tool("edit", () => rewindTo(turn), "edit")));
}

function answerOf(turn) {
  return h("div", { class: "answered", "aria-busy": "true" },
    h("div", { class: "text" }), h("div", { class: "loose" }),
    h("div", { class: "remarks" }), h("p", { class: "figures" }), h("div", { class: "acts" },
      tool("copy", () => copy(turn), "copy"), tool("again", () => askAgain(turn), "again"),
      tool("glass", () => toggle(turn), "glass")), h("div", { class: "glass", hidden: true }));
}

async function copy(turn) {
  try {
    await navigator.clipboard.writeText(turn.answer.text);
    notify(t("copied"));
  } catch {
    getSelection().selectAllChildren($(`.turn[data-turn="${turn.id}"] .text`)); // no clipboard without https
  }
}

/** Write one answer as it is now. */
function write(turn) {
  const element = $(`.turn[data-turn="${turn.id}"] .answered`);
  if (!element) return;
  const { answer } = turn;
  const [text, chips, told, line, acts, glass] = element.children;
  const streaming = answer.state === "streaming";
  element.classList.toggle("streaming", streaming);
  element.setAttribute("aria-busy", String(streaming));
  writeText(text, turn);
  if (streaming && !answer.text) {
    text.replaceChildren(h("p", { class: "looking-now" }, t("thinking"), h("i"), h("i"), h("i")));
  }
  chips.replaceChildren(...loose(turn));
  told.replaceChildren(...remarks(turn).map((one) => h("p", {}, one)));
  if (answer.state === "error") told.append(h("p", { class: "bad" }, answer.error));
  line.textContent = figures(turn);
  acts.hidden = streaming;
  for (const button of acts.children) button.disabled = busy();
  acts.lastElementChild.hidden = !answer.trace;
  drawGlass(glass, turn);
}

/** Once per picture of the screen, however many tokens come meanwhile. */
function soon(turn) {
  if (!waiting.size) {
    requestAnimationFrame(() => {
      const [scroller, turns] = [$("#turns"), [...waiting]];
      waiting.clear();
      const low = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
      turns.forEach(write);
      if (low) scroller.scrollTop = scroller.scrollHeight;
    });
  }
  waiting.add(turn);
}

function draw() {
  const place = $("#turns");
  const articles = state.turns.map((turn) => {
    const article = h("article", { class: "turn", "data-turn": turn.id }, questionOf(turn), answerOf(turn));
    article.classList.toggle("current", turn.id === state.turn);
    return article;
  });
  place.replaceChildren(...articles);
  state.turns.forEach(write);
  place.scrollTop = place.scrollHeight;
  for (const button of place.querySelectorAll("[data-act=edit], [data-act=again]")) button.disabled = busy();
}

function announce(turn) {
  const { answer } = turn;
  if (answer.state === "streaming") return;
  const n = answer.boxes.length;
  const end = answer.state === "error" ? answer.error : n ? t("doneBoxes", { n }) : t("done");
  say(`${end} ${answer.text}`);
}

/** Begin to draw. */
export function listen() {
  on("turns language", draw);
  on("answer", soon);
  on("answer", announce);
  on("look", () => {
    for (const article of document.querySelectorAll(".turn")) {
      article.classList.toggle("current", article.dataset.turn === state.turn);
    }
  });
}
