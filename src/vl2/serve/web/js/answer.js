// One answer in the conversation: its text with phrases that are boxes, its figures.

import { h, pressable } from "./dom.js";
import { number, t } from "./i18n.js";
import { light, tones, unlight } from "./light.js";
import { render } from "./markdown.js";
import { phrases, unsure } from "./marks.js";
import { peek, unpeek } from "./peek.js";
import { look, state } from "./state.js";
import { goTo } from "./viewer.js";

/** The element for text in stretches: boxes, words of low confidence, or both. */
function wrapper(turn) {
  const colours = tones(turn.answer.boxes);
  return (stretches, text) => {
    const boxes = stretches.flatMap((one) => one.boxes ?? []);
    const word = stretches.find((one) => one.p !== undefined) ?? null;
    const box = turn.answer.boxes[boxes[0]] ?? null;
    const show = (event) => {
      light(turn.id, boxes);
      if (word) peek(event.currentTarget, word, box);
    };
    const hide = () => {
      unlight(turn.id, boxes);
      unpeek();
    };
    const told = word && t("sure", { p: Math.round(100 * word.p) });
    const act = boxes.length ? pressable(() => {
      goTo(turn.id, boxes[0]);
      light(turn.id, boxes);
    }) : { tabindex: "0" };
    return h("span", {
      ...act,
      class: [boxes.length && `phrase tone-${colours[boxes[0]]}`, word && "unsure"].filter(Boolean).join(" "),
      "data-box": boxes.length ? boxes.join(" ") : null, "aria-description": told,
      onpointerenter: show, onpointerleave: hide, onfocus: show, onblur: hide,
    }, text);
  };
}

/** Write the text of an answer into its element. */
export function writeText(element, turn) {
  const { answer } = turn;
  const marked = [...phrases(answer), ...unsure(answer)];
  element.replaceChildren(render(answer.text, marked, wrapper(turn)));
  if (answer.state === "streaming") element.append(h("span", { class: "cursor", "aria-hidden": "true" }));
}

/** Boxes whose label stands nowhere in the text, as chips after it. */
export function loose(turn) {
  const { answer } = turn;
  const said = new Set(phrases(answer).flatMap((one) => one.boxes));
  const colours = tones(answer.boxes);
  return answer.boxes.flatMap((box, at) => (said.has(at) ? [] : [h("button", {
    type: "button", class: `chip tone-${colours[at]}`, "data-box": at,
    onclick: () => {
      look(box.picture, turn.id);
      goTo(turn.id, at);
      light(turn.id, [at]);
    },
  }, box.label || "□")]));
}

/** Tokens and times of an answer in words. */
export function figures({ answer }) {
  const found = [];
  const seconds = (ms) => number(Math.round(ms / 10) / 100);
  const { usage } = answer;
  if (state.models.length > 1 && answer.model) found.push(answer.model);
  if (usage) found.push(t("outTokens", { n: number(usage.completion_tokens) }));
  if (answer.total !== null) found.push(t("inSeconds", { s: seconds(answer.total) }));
  if (answer.first !== null) found.push(t("firstWord", { s: seconds(answer.first) }));
  if (answer.state === "error" && !answer.text) return "";
  const made = (answer.total - answer.first) / 1000;
  if (usage?.completion_tokens > 1 && answer.first !== null && made > 0.02) {
    found.push(t("speed", { n: number(Math.round((usage.completion_tokens - 1) / made)) }));
  }
  if (usage) {
    const pictures = number(usage.prompt_tokens_details?.image_tokens ?? 0);
    found.push(t("promptTokens", { n: number(usage.prompt_tokens), pictures }));
  }
  return found.join(" · ");
}

/** What is to be said about how an answer ended. */
export function remarks({ answer }) {
  const found = [];
  if (answer.state === "stopped") found.push(t("stopped"));
  if (answer.finish === "length") found.push(t("cut"));
  if (answer.guard) found.push(t("guard"));
  for (const image of answer.usage?.images ?? []) found.push(...image.notes);
  found.push(...new Set(answer.boxes.map((box) => box.note).filter(Boolean)));
  return found;
}
