// Pictures to begin with, and questions that the embedded model answers.

import { askThis } from "./composer.js";
import { $, h } from "./dom.js";
import { shown } from "./i18n.js";
import { pictureOf } from "./pictures.js";
import { addPictures, on } from "./state.js";

let examples = [];

/** A file of the page as a data URL, as which it is also sent. */
async function dataUrl(address) {
  const blob = await (await fetch(address)).blob();
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
}

async function begin(example) {
  const url = await dataUrl(`/web/examples/${example.file}`);
  const questions = example.questions.map(({ text, mode }) => ({ text, mode }));
  addPictures([await pictureOf(url, { name: example.name[shown()], questions })]);
  await askThis(questions[0].text, questions[0].mode);
}

function draw() {
  $("#examples").replaceChildren(...examples.map((example) => h("li", {}, h("button", {
    type: "button", class: "example", onclick: () => begin(example),
  }, h("img", { src: `/web/examples/${example.file}`, alt: "", loading: "lazy" }),
  h("span", { class: "example-name" }, example.name[shown()]),
  h("span", { class: "example-ask" }, example.questions[0].text)))));
}

/** Show them. */
export async function listen() {
  examples = await (await fetch("/web/examples/examples.json")).json();
  draw();
  on("language", draw);
}
