// One light for a box wherever it shows: on the picture, in the text.

/** Light these boxes of a turn, and nothing else. */
export function light(turn, boxes) {
  for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
  document.body.classList.toggle("lighting", boxes.length > 0);
  for (const box of boxes) {
    for (const element of document.querySelectorAll(`[data-turn="${turn}"] [data-box~="${box}"]`)) {
      element.classList.add("lit");
    }
  }
}

/** Listeners that light the boxes of an element while it is pointed at or has the focus. */
export function lights(turn, boxes) {
  const on = () => light(turn, boxes);
  const off = () => light(turn, []);
  return { onpointerenter: on, onpointerleave: off, onfocus: on, onblur: off };
}

/** Which of a few colours a box has: one for each label. */
export function tones(boxes) {
  const labels = [...new Set(boxes.map((box) => box.label))];
  return boxes.map((box) => labels.indexOf(box.label) % 8);
}
