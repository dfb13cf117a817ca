// Puts the page together.

import * as api from "./api.js";
import * as composer from "./composer.js";
import { $, h, notify } from "./dom.js";
import * as examples from "./examples.js";
import { save } from "./export.js";
import * as glass from "./glass.js";
import * as heat from "./heat.js";
import { shown, switchLanguage, t, translate } from "./i18n.js";
import * as models from "./models.js";
import * as pictures from "./pictures.js";
import * as region from "./region.js";
import { busy, changed, clear, keep, look, on, removePicture, restore, state, written } from "./state.js";
import * as tiles from "./tiles.js";
import * as turns from "./turns.js";
import * as viewer from "./viewer.js";

const THEMES = ["auto", "light", "dark"];

/** The pictures that one can look at; parts are seen on their whole. */
function drawStrip() {
  const list = [...state.pictures.values()].filter((picture) => !picture.origin);
  const any = list.length > 0;
  $("#welcome").hidden = any;
  $("#looking").hidden = !any;
  $("#main").classList.toggle("empty", !any && !state.turns.length);
  $("#strip").replaceChildren(...list.map((picture) => {
    const fresh = state.pending.includes(picture.id);
    const item = h("li", { class: fresh ? "fresh" : "" }, h("button", {
      type: "button", class: "thumb", "aria-label": t("show", { name: picture.name }), title: picture.name,
      "aria-current": picture.id === state.picture ? "true" : null, onclick: () => look(picture.id),
    }, h("img", { src: picture.url, alt: "" })));
    if (picture.page) item.append(h("span", { class: "page" }, String(picture.page)));
    if (fresh) {
      item.append(h("button", { type: "button", class: "remove", "aria-label": t("remove", { name: picture.name }),
        onclick: () => removePicture(picture.id) }, "×"));
    }
    return item;
  }));
}

function drawTheme() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  const told = t("theme", { theme: t(theme) });
  $("#theme").setAttribute("aria-label", told);
  $("#theme").title = told;
  $("#language").textContent = shown() === "zh" ? "English" : "中文";
  $("#language").lang = shown() === "zh" ? "en" : "zh-CN";
}

function nextTheme() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  localStorage.setItem("vl2.theme", next);
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  drawTheme();
}

function listen() {
  for (const part of [models, viewer, tiles, turns, glass, heat, region, pictures, composer]) part.listen();
  on("pictures look turns language", drawStrip);
  on("language", drawTheme);
  on("pictures", () => keep());
  on("large", () => notify(t("tooLarge")));
  for (const cancel of document.querySelectorAll("dialog .cancel")) { // no submit button: Enter presses the first
    cancel.addEventListener("click", () => cancel.closest("dialog").close(""));
  }
  $("#theme").addEventListener("click", nextTheme);
  $("#language").addEventListener("click", () => {
    switchLanguage();
    changed("language");
  });
  $("#export").addEventListener("click", save);
  $("#new").addEventListener("click", () => {
    if (busy()) return;
    const before = written();
    clear();
    keep();
    notify(t("cleared"), "note", { text: t("undo"), act: () => {
      restore(before);
      keep();
    } });
    $("#pick-first").focus();
  });
}

async function start() {
  translate();
  listen();
  drawTheme();
  restore();
  drawStrip();
  changed("turns");
  examples.listen();
  try {
    await models.load();
  } catch (failure) {
    if (!(failure instanceof api.Failure)) throw failure;
    notify(failure.message, "error");
    changed("model");
  }
}

start();
