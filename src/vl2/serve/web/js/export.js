// The conversation as one HTML file that needs nothing else: pictures, answers, boxes.

import { h, notify, s } from "./dom.js";
import { figures } from "./answer.js";
import { shown, t } from "./i18n.js";
import { tones } from "./light.js";
import { render } from "./markdown.js";
import { phrases } from "./marks.js";
import { state } from "./state.js";
import { placed } from "./viewer.js";

const TONES = ["#d9480f", "#7c3aed", "#0e7490", "#be185d", "#4d7c0f", "#b45309", "#1d4ed8", "#9f1239"];
// Without scripts: a phrase and its box are linked by rules that are written for this file.
const STYLE = `
:root{color-scheme:light dark;--ink:#1c1d21;--paper:#faf9f6;--line:#dedad0;--quiet:#666a73}
@media(prefers-color-scheme:dark){:root{--ink:#eceae5;--paper:#15171b;--line:#33373e;--quiet:#a0a4ad}}
body{font:16px/1.6 "Segoe UI",Roboto,"Noto Sans","Liberation Sans","PingFang SC",sans-serif;color:var(--ink);
background:var(--paper);max-width:60rem;margin:3rem auto;padding:0 1.5rem}
h1{font-size:1.5rem}.turn{border-top:1px solid var(--line);padding:1.5rem 0}.q{font-weight:600}
.quiet{color:var(--quiet);font-size:.85rem}svg{max-width:100%;max-height:34rem;display:block;margin:.5rem 0}
.edge{fill:transparent;stroke-width:2.5;vector-effect:non-scaling-stroke}table{border-collapse:collapse}
td,th{border:1px solid var(--line);padding:.3rem .6rem}.phrase{border-bottom:3px solid var(--tone);cursor:default}
pre{overflow:auto}.box:hover .edge{stroke-width:5}`;

function drawing(turn, picture, colours) {
  const boxes = turn.answer.boxes
    .map((_, at) => at)
    .filter((at) => placed(turn, at)?.picture === picture.id)
    .map((at) => {
      const box = placed(turn, at);
      return s("g", { class: `box b${at}` },
        s("title", {}, `${box.label} ${Math.round(100 * box.score)} %`),
        s("rect", { class: "edge", x: box.x1, y: box.y1, width: box.x2 - box.x1,
          height: box.y2 - box.y1, stroke: TONES[colours[at]] }));
    });
  return s("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${picture.width} ${picture.height}`,
    width: picture.width, height: picture.height, role: "img", "aria-label": picture.name },
  s("image", { href: picture.url, width: picture.width, height: picture.height }), ...boxes);
}

function part(turn, number) {
  const { answer } = turn;
  const colours = tones(answer.boxes);
  const text = render(answer.text, phrases(answer), (stretches, words) => {
    const boxes = stretches.flatMap((one) => one.boxes);
    return h("span", { class: ["phrase", `t${colours[boxes[0]]}`, ...boxes.map((at) => `p${at}`)].join(" ") }, words);
  });
  const shownOn = answer.boxes.map((_, at) => placed(turn, at)?.picture);
  const ids = new Set([...turn.pictures, ...shownOn].filter((one) => state.pictures.has(one)));
  const pictures = [...ids].map((one) => drawing(turn, state.pictures.get(one), colours));
  return h("section", { class: "turn", id: `turn${number}` }, ...pictures,
    h("p", { class: "q" }, turn.question), h("div", {}, text),
    answer.error ? h("p", { class: "quiet" }, answer.error) : null,
    h("p", { class: "quiet" }, figures(turn)));
}

function rules() {
  const tints = TONES.map((tone, at) => `.t${at}{--tone:${tone}}`);
  const links = state.turns.flatMap((turn, number) => turn.answer.boxes.map((_, at) =>
    `#turn${number}:has(.p${at}:hover) .b${at} .edge{stroke-width:6}` +
    `#turn${number}:has(.b${at}:hover) .p${at}{background:color-mix(in srgb,var(--tone) 25%,transparent)}`));
  return [...tints, ...links].join("\n");
}

/** The file's text. Its style is no element here: this page's policy would forbid it. */
export function page() {
  const model = `${state.model?.id ?? ""} · ${new Date().toLocaleString()} · ${t("exportNote")}`;
  const body = h("body", {}, h("h1", {}, t("exportTitle")), h("p", { class: "quiet" }, model),
    ...state.turns.filter((turn) => turn.answer.text || turn.answer.error).map(part));
  return `<!doctype html>
<html lang="${shown()}"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${t("exportTitle")}</title>
<style>${STYLE}${rules()}</style></head>
${body.outerHTML}</html>
`;
}

/** Save it. */
export function save() {
  const url = URL.createObjectURL(new Blob([page()], { type: "text/html" }));
  h("a", { href: url, download: "vl2.html" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  notify(t("exported"));
}
