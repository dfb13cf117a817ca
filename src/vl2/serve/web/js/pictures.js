// Pictures and PDFs from files, drops and the clipboard; how the server would cut them.

import * as api from "./api.js";
import { $, imageOf, notify } from "./dom.js";
import { number, t } from "./i18n.js";
import { addPictures, changed, id, removePicture, state } from "./state.js";

const REFUSED = new Set([400, 413, 415, 422]); // of a picture itself, whenever it is sent

const asDataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

/** A picture of a data URL, with its size. */
export async function pictureOf(url, more) {
  const image = await imageOf(url);
  return { id: id(), url, width: image.naturalWidth, height: image.naturalHeight,
    page: null, file: null, origin: null, layout: null, ...more };
}

async function pagesOf(file) {
  // The type of a file by its name is the browser's guess: the server looks at the bytes.
  const url = (await asDataUrl(file)).replace(/^data:[^,]*,/, "data:application/pdf;base64,");
  const found = await chosenPages(url, file.name);
  if (!found) return [];
  const pdf = id();
  state.files.set(pdf, { name: file.name, url });
  return Promise.all(found.pages.map((page) => pictureOf(page.url, {
    name: t("pageOf", { name: file.name, page: page.page }), file: pdf, page: page.page,
  })));
}

/** Pages of a PDF; of a long one those that are chosen, null where none are. */
async function chosenPages(url, name) {
  let chosen = null;
  for (;;) {
    try {
      return await api.pages(url, name, chosen);
    } catch (failure) {
      const again = failure instanceof api.Failure && failure.status === 400;
      if (!again || !(chosen || failure.message.includes("pages are too many"))) throw failure;
      chosen = await askForPages(failure.message);
      if (!chosen) return null;
    }
  }
}

function askForPages(why) {
  const dialog = $("#pages-dialog");
  $("#pages-why").textContent = why;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "ok" ? $("#pages").value : null);
    }, { once: true });
  });
}

async function read(file) {
  const name = file.name || "picture";
  if (file.type === "application/pdf" || /\.pdf$/i.test(name)) return pagesOf(file);
  if (!file.type.startsWith("image/")) {
    notify(t("wrongKind", { name }), "error");
    return [];
  }
  try {
    return [await pictureOf(await asDataUrl(file), { name })];
  } catch {
    notify(t("noPicture", { name }), "error");
    return [];
  }
}

/** Take files in, in their order; what cannot be read is told and left out. */
export async function take(files) {
  const list = [...files];
  if (!list.length) return;
  $("#drop").setAttribute("aria-busy", "true");
  try {
    for (const file of list) {
      try {
        const pictures = await read(file);
        if (pictures.length) addPictures(pictures);
      } catch (failure) {
        if (!(failure instanceof api.Failure)) throw failure;
        notify(`${file.name}: ${failure.message}`, "error");
      }
    }
  } finally {
    $("#drop").removeAttribute("aria-busy");
  }
}

/** A rectangle of a picture as a picture of its own. */
export async function cropOf(picture, { x, y, width, height }) {
  const url = await cropUrl(picture, { x, y, width, height });
  return pictureOf(url, {
    name: t("part", { name: picture.name }), origin: { picture: picture.id, x, y },
  });
}

/** The pixels of a rectangle as a PNG. */
export async function cropUrl(picture, { x, y, width, height }) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").drawImage(await imageOf(picture.url), x, y, width, height, 0, 0, width, height);
  return canvas.toDataURL("image/png");
}

/** Ask the server how it would cut a picture, once per picture and number of pictures. */
export async function measure(picture) {
  const pictures = Math.max(1, state.pictures.size);
  if (picture.layout?.pictures === pictures) return;
  picture.layout = { pictures, told: null, error: null };
  try {
    picture.layout.told = await api.layout(picture.url, Math.min(pictures, 1024));
  } catch (failure) {
    if (!(failure instanceof api.Failure)) throw failure;
    picture.layout.error = failure.message;
    // The same gate would refuse the question: told now, as of files that the browser cannot show.
    if (REFUSED.has(failure.status) && state.pending.includes(picture.id)) {
      notify(`${picture.name}: ${failure.message}`, "error");
      return removePicture(picture.id);
    }
  }
  return changed("layout", picture);
}

/** Size and page of a picture in words. */
export function factsOf(picture) {
  const size = `${number(picture.width)} × ${number(picture.height)}`;
  const read = picture.layout?.told?.layouts[state.tiling ?? state.model?.tiling ?? "released"];
  const tokens = read ? ` · ${t("tokens", { n: number(read.tokens) })}` : "";
  return `${picture.name} · ${size}${tokens}`;
}

/** Listen for drops, pastes and the file dialog. */
export function listen() {
  const input = $("#files");
  for (const button of ["#pick", "#pick-first"]) $(button).addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const files = [...input.files]; // a copy: the next line empties the list
    input.value = "";
    await take(files);
  });
  let depth = 0; // of elements that the pointer has entered
  const over = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("over", depth > 0);
  };
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => holdsFiles(event) && over(1));
  addEventListener("dragleave", (event) => holdsFiles(event) && over(-1));
  addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    over(-Infinity);
    take(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return; // text goes where the cursor is
    event.preventDefault();
    take(event.clipboardData.files);
  });
}
