// One light for a box wherever it shows: on the picture, in the text.

let lit = ""; // what is lit

const key = (turn, boxes) => `${turn} ${boxes.join(" ")}`;

/** Light these boxes of a turn, and nothing else. */
export function light(turn, boxes) {
  lit = key(turn, boxes);
  for (const element of document.querySelectorAll(".lit")) element.classList.remove("lit");
  document.body.classList.toggle("lighting", boxes.length > 0);
  for (const box of boxes) {
    for (const element of document.querySelectorAll(`[data-turn="${turn}"] [data-box~="${box}"]`)) {
      element.classList.add("lit");
    }
  }
}

/** Put these out, unless others are lit meanwhile: a box may slide away from a resting pointer. */
export function unlight(turn, boxes) {
  if (lit === key(turn, boxes)) light(turn, []);
}

/** Listeners that light the boxes of an element while it is pointed at or has the focus. */
export function lights(turn, boxes) {
  const on = () => light(turn, boxes);
  const off = () => unlight(turn, boxes);
  return { onpointerenter: on, onpointerleave: off, onfocus: on, onblur: off };
}

/** Which of a few colours a box has: one for each label. */
export function tones(boxes) {
  const labels = [...new Set(boxes.map((box) => box.label))];
  return boxes.map((box) => labels.indexOf(box.label) % 8);
}
