// Where questions are written, and what is suggested.

import { ask, stop } from "./ask.js";
import { $, h } from "./dom.js";
import { t } from "./i18n.js";
import { askAbout, selected } from "./region.js";
import { busy, changed, on, remembers, rewind, state } from "./state.js";
import { suggestions } from "./suggest.js";

const field = () => $("#question");

const mode = () => $("#modes input:checked").value;

function setMode(value) {
  $(`#modes input[value="${value}"]`).checked = true;
}

function grow() {
  field().style.height = "auto";
  field().style.height = `${Math.min(field().scrollHeight, 180)}px`;
}

/** What a question is about that goes alone: what is new, else what is seen. */
function lookedAt() {
  if (state.pending.length) return [...state.pending];
  return state.picture ? [state.picture] : [];
}

/** Ask what is written, if something is. */
async function send() {
  const question = field().value.trim();
  if (!question || busy()) return;
  field().value = "";
  grow();
  if (selected()) await askAbout(question, mode());
  else await ask(question, { mode: mode(), about: remembers() ? null : lookedAt() });
}

/** Ask one of the suggestions: of the picture that is looked at alone, which it is made for. */
export async function askThis(question, kind) {
  if (busy()) return;
  setMode(kind);
  await ask(question, { mode: kind, about: [state.picture] });
}

/** Put a question back to be edited; it and what follows it are taken back. */
export function rewindTo(turn) {
  if (busy()) return;
  const gone = rewind(turn.id);
  field().value = gone.question;
  setMode(gone.mode);
  grow();
  field().focus();
}

/** Ask the same once more. */
export async function askAgain(turn) {
  if (busy()) return;
  const { question, mode, about, pictures } = rewind(turn.id);
  const part = pictures.some((one) => state.pictures.get(one)?.origin);
  if (part) state.pending = state.pending.filter((one) => !pictures.includes(one));
  await ask(question, { mode, about, pictures: part ? pictures : null });
}

/** Where the keys go when a button that had them is gone; a telephone's keyboard stays away. */
function keepFocus() {
  const lost = document.activeElement === document.body || !document.activeElement.checkVisibility();
  if (lost && matchMedia("(pointer: fine)").matches) field().focus({ preventScroll: true });
}

function drawState() {
  const working = busy();
  $("#send").hidden = working;
  $("#stop").hidden = !working;
  $("#history").hidden = !state.turns.length;
  $("#history").setAttribute("aria-pressed", String(remembers()));
  $("#new").hidden = !state.turns.length && !state.pictures.size;
  $("#export").hidden = !state.turns.some((turn) => turn.answer.text);
  if (state.turns.length) keepFocus();
}

async function drawIdeas() {
  const picture = state.pictures.get(state.picture);
  const found = picture && !busy() ? await suggestions(picture) : [];
  if (picture !== (state.pictures.get(state.picture) ?? undefined)) return; // another one meanwhile
  $("#ideas").replaceChildren(...found.map((one) => h("button", {
    type: "button", class: "idea", "data-mode": one.mode, onclick: () => askThis(one.text, one.mode),
  }, one.mode === "find" ? h("span", { class: "kind" }, t("modeFind")) : null, one.text)));
  if (state.turns.length) keepFocus();
}

/** Begin to listen. */
export function listen() {
  $("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  field().addEventListener("keydown", (event) => {
    // While a word is being composed, Enter chooses its characters.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  field().addEventListener("input", grow);
  $("#stop").addEventListener("click", stop);
  $("#history").addEventListener("click", () => {
    state.history = !remembers();
    changed("model");
  });
  addEventListener("keydown", (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && stop());
  on("turns pictures look model", drawState);
  on("turns pictures look language", drawIdeas);
}
