// The glass box of an answer: its tokens, where each of them looked, and which experts it used.

import { $, h } from "./dom.js";
import { expertsPart, refreshExperts } from "./experts.js";
import { hottest, shownOn } from "./heat.js";
import { percent, t } from "./i18n.js";
import { changed, look, on, state, turnOf } from "./state.js";
import { looked, traceOf } from "./trace.js";

/** Show something else of the glass box that is open; the picture that it is about is looked at. */
function show(change) {
  if (!state.glass) return;
  Object.assign(state.glass, change);
  const turn = turnOf(state.glass.turn);
  const place = turn.asked.length ? shownOn(turn, state.glass.picture) : null;
  if (place && (state.picture !== place.picture || state.turn !== turn.id)) look(place.picture, turn.id);
  changed("glass");
}

/** Open the glass box of an answer, at the token that looked at the pictures most. */
export function open(turn) {
  const trace = traceOf(turn.answer);
  if (!trace?.tokens.length) return;
  const shares = trace.tokens.map((text, token) => (text.trim() ? looked(trace, token) : -1));
  const token = Math.max(0, shares.indexOf(Math.max(...shares)));
  state.glass = { turn: turn.id, token, pinned: token, picture: 0, view: "mosaic", tile: null };
  show(trace.pictures.length ? strongest(trace, token) : {});
  const place = $(`.turn[data-turn="${turn.id}"] .glass`);
  place?.querySelector(".looks, .tokens")?.scrollIntoView({ block: "nearest" });
}

/** The picture and the view that a token looked at most. */
function strongest(trace, token) {
  const all = trace.pictures.flatMap((one, picture) => Object.entries(one.views).map(([view, told]) => ({ picture, view, p: looked(trace, token, [told]) })));
  const { picture, view } = all.reduce((a, b) => (b.p > a.p ? b : a));
  return { picture, view };
}

/** Open the glass box of an answer, or close it. */
export function toggle(turn) {
  if (state.glass?.turn !== turn.id) return open(turn);
  state.glass = null;
  return changed("glass");
}

/** What a token is called where its text cannot be seen. */
function told(text, last) {
  if (text.trim()) return text.trim();
  if (text) return text.includes("\n") ? "↵" : "␣";
  return last ? "■" : "·";
}

function tokenOf(trace, at, p, most) {
  const text = trace.tokens[at];
  const last = at === trace.tokens.length - 1;
  const name = text.trim() || t(text ? "spaceToken" : last ? "endToken" : "markToken");
  const button = h("button", {
    type: "button", class: "token", "data-token": at, tabindex: "-1", "aria-pressed": "false", "aria-label": t("tokenLabel", { at: at + 1, all: trace.tokens.length, name, p: percent(p) }),
    onpointerenter: () => show({ token: at }), onfocus: () => show({ token: at, pinned: at }), onclick: () => show({ token: at, pinned: at }),
  }, told(text, last));
  button.style.setProperty("--v", most ? (p / most).toFixed(3) : "0");
  button.classList.toggle("mark", !text.trim());
  button.classList.toggle("apart", /^\s/.test(text));
  return button;
}

/** The answer as its tokens: one stop of the Tab key, arrow keys step through them. */
function tokensOf(trace) {
  const shares = trace.tokens.map((_, token) => looked(trace, token));
  const most = Math.max(...shares);
  const keys = (event) => {
    const { pinned } = state.glass;
    const to = { ArrowLeft: pinned - 1, ArrowRight: pinned + 1, Home: 0, End: trace.tokens.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.currentTarget.querySelector(`[data-token="${to}"]`)?.focus();
  };
  return [
    trace.pictures.length ? h("p", { class: "scale" }, h("span", { class: "ramp", "aria-hidden": "true" }), `0 – ${percent(most)} `, h("span", { class: "quiet" }, t("tokensScale"))) : null,
    h("div", { class: "tokens", role: "toolbar", "aria-label": t("tokensOf"), onkeydown: keys, onpointerleave: () => show({ token: state.glass.pinned }) },
      ...trace.tokens.map((_, at) => tokenOf(trace, at, shares[at], most))),
  ];
}

/** Per picture and view how much of its attention the token gave: the one that is pressed is drawn. */
function looksOf(turn, trace) {
  const view = (picture, name) => h("button", { type: "button", class: "look", "data-picture": picture, "data-view": name,
    onclick: () => show({ picture, view: name, tile: null }) },
  h("span", {}, t(name)), h("span", { class: "bar", "aria-hidden": "true" }), h("span", { class: "look-share" }));
  return h("div", { class: "looks" }, ...trace.pictures.map((_, at) => {
    const picture = state.pictures.get(turn.asked[at]);
    return h("div", { class: "look-row", role: "group", "aria-label": picture?.name ?? "" },
      picture ? h("img", { class: "look-thumb", src: picture.url, alt: "" }) : null, view(at, "overview"), view(at, "mosaic"));
  }));
}

/** Draw the glass box of a turn where it belongs, or nothing where it is not open. */
export function drawGlass(place, turn) {
  const trace = state.glass?.turn === turn.id && traceOf(turn.answer);
  place.parentElement.querySelector("[data-act=glass]").setAttribute("aria-expanded", String(Boolean(trace)));
  place.hidden = !trace;
  if (!trace) return place.replaceChildren();
  place.replaceChildren(h("h3", {}, t(trace.pictures.length ? "lookedWhere" : "tokensOf")), ...tokensOf(trace).filter(Boolean));
  if (trace.pictures.length) place.append(h("p", { class: "said", "aria-live": "polite" }), looksOf(turn, trace));
  place.append(expertsPart(trace));
  return refresh(place, trace);
}

function pin(button, pinned) {
  button.setAttribute("aria-pressed", String(pinned));
  button.tabIndex = pinned ? 0 : -1;
}

function refresh(place, trace) {
  const { glass } = state;
  // Only what changes: an answer can have a thousand tokens.
  const token = (at) => place.querySelector(`.token[data-token="${at}"]`);
  for (const one of place.querySelectorAll(".token.seen")) one.classList.remove("seen");
  token(glass.token).classList.add("seen");
  for (const one of place.querySelectorAll(".token[aria-pressed=true]")) pin(one, false);
  pin(token(glass.pinned), true);
  for (const button of place.querySelectorAll(".look")) {
    const { picture, view } = button.dataset;
    const p = looked(trace, glass.token, [trace.pictures[picture].views[view]]);
    button.setAttribute("aria-pressed", String(Number(picture) === glass.picture && view === glass.view));
    button.querySelector(".look-share").textContent = percent(p);
    button.style.setProperty("--p", p.toFixed(4));
  }
  const text = trace.tokens[glass.token].trim();
  const said = place.querySelector(".said");
  if (said) {
    const name = text ? `“${text}”` : t("markToken");
    said.textContent = `${t("tokenLooked", { name, p: percent(looked(trace, glass.token)) })} ${hottest(trace)}`;
  }
  refreshExperts(place, trace);
}

/** Go with the picture that is looked at, if the answer is about it. */
function follow() {
  const turn = turnOf(state.glass?.turn);
  if (!turn || state.turn !== turn.id || shownOn(turn, state.glass.picture)?.picture === state.picture) return;
  const at = turn.asked.findIndex((_, one) => shownOn(turn, one)?.picture === state.picture);
  if (at >= 0) show({ picture: at, tile: null });
}

/** Begin to draw. */
export function listen() {
  on("look", follow);
  on("glass", () => {
    for (const place of document.querySelectorAll(".glass")) {
      const turn = turnOf(place.closest(".turn").dataset.turn);
      const shown = state.glass?.turn === turn?.id;
      if (turn && shown === place.hidden) drawGlass(place, turn);
      else if (turn && shown) refresh(place, traceOf(turn.answer));
    }
  });
  on("model turns language", () => $("#trace").setAttribute("aria-pressed", String(state.tracing)));
  $("#trace").addEventListener("click", () => {
    state.tracing = !state.tracing;
    changed("model");
  });
}
