// Questions that suit a picture, by what a small copy of it looks like. Nothing is sent for it.

import { imageOf } from "./dom.js";
import { t } from "./i18n.js";

const SIDE = 96;
const kinds = new Map(); // by picture

/** Share of pale pixels, of flat neighbours, of colourful ones, and the number of colours. */
async function figuresOf(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(await imageOf(picture.url), 0, 0, SIDE, SIDE);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  let [pale, flat, colourful] = [0, 0, 0];
  const colours = new Set();
  for (let at = 0; at < data.length; at += 4) {
    const [red, green, blue] = [data[at], data[at + 1], data[at + 2]];
    const spread = Math.max(red, green, blue) - Math.min(red, green, blue);
    if (spread < 24 && red > 215) pale += 1;
    if (spread > 60) colourful += 1;
    colours.add(((red >> 5) << 6) | ((green >> 5) << 3) | (blue >> 5));
    const next = at + 4;
    if (next < data.length && Math.abs(data[next] - red) + Math.abs(data[next + 1] - green) + Math.abs(data[next + 2] - blue) < 6) flat += 1;
  }
  const all = SIDE * SIDE;
  return { pale: pale / all, flat: flat / all, colourful: colourful / all, colours: colours.size };
}

/** "page", "chart", "screen", "shapes" or "photo". */
export async function kindOf(picture) {
  if (picture.page) return "page";
  if (!kinds.has(picture.id)) {
    const { pale, flat, colourful, colours } = await figuresOf(picture);
    const ratio = picture.width / picture.height;
    let kind = "photo";
    if (colours <= 24 && flat > 0.8 && colourful > 0.03 && pale < 0.9) kind = "shapes";
    else if (pale > 0.55 && colourful > 0.03 && colours < 90) kind = "chart";
    else if (pale > 0.6 && ratio < 1.15) kind = "page";
    else if (flat > 0.55) kind = "screen";
    if (kind !== "photo" && kind !== "page" && ratio > 1.25 && picture.width >= 1000) kind = "screen";
    kinds.set(picture.id, kind);
  }
  return kinds.get(picture.id);
}

const IDEAS = {
  page: [["ideaSum", "text"], ["ideaRead", "text"], ["ideaTable", "text"], ["ideaTitle", "find"]],
  chart: [["ideaChart", "text"], ["ideaTrend", "text"], ["ideaTable", "text"]],
  screen: [["ideaScreen", "text"], ["ideaRead", "text"], ["ideaButtons", "find"]],
  shapes: [["ideaBoxes", "boxes"], ["ideaDescribe", "text"], ["ideaCount", "text"]],
  photo: [["ideaDescribe", "text"], ["ideaBoxes", "boxes"], ["ideaRead", "text"], ["ideaPeople", "find"]],
};

/** Questions for a picture: its own where it is an example. */
export async function suggestions(picture) {
  if (picture.questions) return picture.questions;
  return IDEAS[await kindOf(picture)].map(([key, mode]) => ({ text: t(key), mode }));
}
