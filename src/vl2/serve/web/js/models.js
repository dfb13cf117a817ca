// Which model answers: the base or one of its adapters, where there are some.

import * as api from "./api.js";
import { $, h } from "./dom.js";
import { t } from "./i18n.js";
import { changed, on, state } from "./state.js";

const PLACE = "vl2.model";

/** Ask the server what it serves; the one that was chosen in this tab answers, else the base. */
export async function load() {
  state.models = await api.models();
  const chosen = sessionStorage.getItem(PLACE);
  state.model = state.models.find((one) => one.id === chosen) ?? state.models[0];
  changed("model");
}

function choose(id) {
  sessionStorage.setItem(PLACE, id);
  state.model = state.models.find((one) => one.id === id);
  changed("model");
}

/** What a model that reads every picture as one small view is good for. */
function drawScope() {
  const { model } = state;
  const small = model?.single_questions && model.max_tiled_images === 0;
  for (const line of document.querySelectorAll(".scope")) {
    line.hidden = !small;
    line.textContent = small ? t("scope", { model: model.id, n: model.tile_size }) : "";
  }
}

function draw() {
  drawScope();
  const menu = $("#models");
  menu.hidden = state.models.length < 2;
  $("#model .name").hidden = !menu.hidden;
  menu.replaceChildren(...state.models.map(({ id }) =>
    h("option", { value: id, selected: id === state.model.id }, id)));
  drawReady();
}

async function drawReady() {
  const ready = await api.ready();
  const told = t(ready ? "ready" : "notReady");
  $("#model").classList.toggle("ready", ready);
  $("#model").title = told;
  $("#model").setAttribute("aria-label", `${state.model?.id ?? ""} ${told}`);
  $("#model .name").textContent = state.model?.id ?? told;
}

/** Begin to draw. */
export function listen() {
  on("model language", draw);
  $("#models").addEventListener("change", (event) => choose(event.target.value));
  setInterval(() => document.hidden || drawReady(), 15000);
}
