// An answer as elements: Markdown and tables, nothing that acts, loads or looks like the page.

import DOMPurify from "../vendor/dompurify.js";
import { marked } from "../vendor/marked.js";

const TAGS = [
  ..."p br hr h1 h2 h3 h4 h5 h6 strong em b i del s u sub sup code pre blockquote".split(" "),
  ..."ul ol li table caption thead tbody tfoot tr th td a".split(" "),
];
// No class, style or id: an answer must not take the looks of the page's own parts.
const ALLOWED = {
  ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "colspan", "rowspan", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i, ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
// Places in the text travel through Markdown as characters of a private area, which it passes on.
const FIRST = 0xe000;
const MOST = 0x1800;
const PRIVATE = /[\uE000-\uF8FF]/g;
const BLOCK = /[ \t]*(?:(?:#{1,6}|[-*+>]|\d{1,9}[.)])[ \t]+|\|[ \t]*)*/y; // begins a line

/** Where a place may be marked: after what makes a line a heading, an item or a row. */
function movable(text, place) {
  const line = text.lastIndexOf("\n", place - 1) + 1;
  BLOCK.lastIndex = line;
  BLOCK.exec(text);
  return Math.max(place, BLOCK.lastIndex);
}

/** The text with marks at the ends of stretches, and the stretches after each mark. */
function marking(text, stretches) {
  const placed = stretches
    .map((one) => ({ ...one, start: movable(text, one.start) }))
    .filter((one) => one.start < one.end);
  const places = [...new Set(placed.flatMap((one) => [one.start, one.end]))]
    .sort((a, b) => a - b).slice(0, MOST);
  let [marked_, done] = ["", 0];
  for (const [at, place] of places.entries()) {
    marked_ += text.slice(done, place) + String.fromCharCode(FIRST + at);
    done = place;
  }
  const within = places.map((place) => placed.filter((one) => one.start <= place && place < one.end));
  return { text: marked_ + text.slice(done), within };
}

/** Elements of an answer; `wrap(stretches, text)` makes one for text in marked stretches. */
export function render(text, stretches = [], wrap = null) {
  // The same number of characters, so that places stay right.
  const marks = marking(text.replace(PRIVATE, "\uFFFD"), stretches);
  const html = marked.parse(marks.text, { gfm: true, breaks: true, async: false });
  const fragment = DOMPurify.sanitize(html, ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    const href = link.getAttribute("href")?.replace(PRIVATE, "").replace(/%EE%(8|9|A|B)[0-9A-F]%[0-9A-F]{2}|%EF%(8|9|A)[0-9A-F]%[0-9A-F]{2}/gi, "");
    if (href) link.setAttribute("href", href);
    link.setAttribute("rel", "noopener noreferrer nofollow");
    link.setAttribute("target", "_blank");
  }
  for (const table of fragment.querySelectorAll("table")) {
    const around = document.createElement("div"); // a wide table scrolls, not the page
    around.className = "wide";
    around.tabIndex = 0;
    table.replaceWith(around);
    around.append(table);
  }
  unmark(fragment, marks.within, wrap);
  return fragment;
}

/** Take the marks out; what lies between two of them that came through is wrapped. */
function unmark(fragment, within, wrap) {
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  const came = new Set();
  for (const node of nodes) {
    for (const [mark] of node.data.matchAll(PRIVATE)) came.add(mark.charCodeAt(0) - FIRST);
  }
  let now = [];
  for (const node of nodes) {
    const pieces = node.data.split(/([\uE000-\uF8FF])/);
    if (pieces.length === 1 && !now.length) continue;
    const made = [];
    for (const piece of pieces) {
      const mark = piece.length === 1 ? piece.charCodeAt(0) - FIRST : -1;
      if (mark >= 0 && mark < MOST) now = came.has(mark + 1) ? within[mark] ?? [] : [];
      else if (piece) made.push(now.length && piece.trim() ? wrap(now, piece) : piece);
    }
    node.replaceWith(...made);
  }
}
