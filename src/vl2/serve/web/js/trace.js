// The trace of an answer as numbers: which experts were used, and where a token attended.

import { indices } from "./marks.js";

const read = new WeakMap();

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** A view of a picture: where the picture lies in it, its cells, a token's attention to each. */
function viewOf(told, picture, name) {
  const [wide, high] = name === "mosaic" ? [picture.tiles_wide, picture.tiles_high] : [1, 1];
  const heat = bytes(told.attention);
  const columns = wide * picture.side;
  const size = columns * high * picture.side;
  return { area: told.area, wide, high, columns, size, heat: (token) => heat.subarray(token * size, (token + 1) * size) };
}

function pictureOf(told) {
  const { tiles_wide: wide, tiles_high: high, side, edges } = told;
  const views = { overview: viewOf(told.overview, told, "overview"), mosaic: viewOf(told.mosaic, told, "mosaic") };
  return { wide, high, side, edges, views, experts: bytes(told.tile_experts) };
}

/** The trace of an answer, null where there is none. */
export function traceOf({ text, trace }) {
  if (!trace) return null;
  if (!read.has(trace)) read.set(trace, decoded(text, trace));
  return read.get(trace);
}

function decoded(text, told) {
  const places = indices(text);
  const tokens = told.tokens.map((span) => {
    const [start, end] = span.map((place) => places[Math.min(place, places.length - 1)]);
    return text.slice(start, end);
  });
  return {
    tokens, layers: told.layers, experts: told.experts, perToken: told.experts_per_token, scale: told.scale,
    used: bytes(told.token_experts), pictures: told.pictures.map(pictureOf),
  };
}

/** The share of a token's attention that went to a view of a picture, or to several. */
export function looked(trace, token, views = trace.pictures.flatMap((picture) => Object.values(picture.views))) {
  const sum = views.reduce((all, view) => view.heat(token).reduce((a, b) => a + b, all), 0);
  return (sum / 255) * trace.scale[token];
}

/** The experts that a token used in a layer, by its place among the layers. */
export function expertsOf(trace, token, layer) {
  const from = (token * trace.layers.length + layer) * trace.perToken;
  return [...trace.used.subarray(from, from + trace.perToken)];
}

/** How many tokens of pictures used each expert: of all of them, or of one tile {picture, tile}. */
export function pictureUse(trace, chosen = null) {
  const size = trace.layers.length * trace.experts;
  const counts = new Float64Array(size);
  let tokens = 0;
  for (const [at, { experts, side }] of trace.pictures.entries()) {
    for (let tile = 0; tile * size < experts.length; tile += 1) {
      if (chosen && (chosen.picture !== at || chosen.tile !== tile)) continue;
      tokens += side ** 2;
      for (let one = 0; one < size; one += 1) counts[one] += experts[tile * size + one];
    }
  }
  return { counts, tokens };
}

/** How many tokens of the answer used each expert. */
export function answerUse(trace) {
  const counts = new Float64Array(trace.layers.length * trace.experts);
  for (const token of trace.tokens.keys()) {
    for (const layer of trace.layers.keys()) {
      for (const expert of expertsOf(trace, token, layer)) counts[layer * trace.experts + expert] += 1;
    }
  }
  return { counts, tokens: trace.tokens.length };
}
