// The small window beside a word: how sure the model was, and the part of the picture it meant.

import { $, h } from "./dom.js";
import { t } from "./i18n.js";
import { cropUrl } from "./pictures.js";
import { state } from "./state.js";

let shown = 0; // counts, so that a crop that comes late is not shown at another word

/** The pixels of a box with a little around it. */
async function crop(box) {
  const picture = state.pictures.get(box.picture);
  if (!picture) return null;
  const room = 0.12 * Math.max(box.x2 - box.x1, box.y2 - box.y1);
  const x = Math.max(0, box.x1 - room);
  const y = Math.max(0, box.y1 - room);
  const width = Math.max(1, Math.round(Math.min(picture.width, box.x2 + room) - x));
  const height = Math.max(1, Math.round(Math.min(picture.height, box.y2 + room) - y));
  return h("img", { src: await cropUrl(picture, { x, y, width, height }), alt: box.label });
}

/** Show it at an element: `word` is what `unsure` found, `box` what it means; either may be null. */
export async function peek(element, word, box) {
  const mine = (shown += 1);
  const place = $("#peek");
  const lines = [];
  if (word) {
    lines.push(h("p", { class: "peek-sure" }, t("sure", { p: Math.round(100 * word.p) })));
    if (word.others.length) {
      const list = word.others.map((one) => `${one.text} ${Math.round(100 * one.p)} %`).join(", ");
      lines.push(h("p", { class: "quiet" }, t("insteadOf", { list })));
    }
  }
  const picture = box && (await crop(box));
  if (mine !== shown || !element.isConnected) return;
  if (picture) lines.unshift(picture);
  if (!lines.length) return;
  place.replaceChildren(...lines);
  place.hidden = false;
  const at = element.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left), innerWidth - place.offsetWidth - 8);
  const above = at.top - place.offsetHeight - 8;
  place.style.left = `${left}px`;
  place.style.top = `${above > 8 ? above : at.bottom + 8}px`;
}

/** Hide it. */
export function unpeek() {
  shown += 1;
  $("#peek").hidden = true;
}
