// Elements without HTML text: nothing here can be read as markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (selector) => document.querySelector(selector);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An HTML element; attributes that begin with "on" are listeners. */
export const h = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

/** An SVG element. */
export const s = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** What makes an element that is no button one for keys too. */
export function pressable(act) {
  return {
    role: "button",
    tabindex: "0",
    onclick: act,
    onkeydown: (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      act(event);
    },
  };
}

/** Tell screen readers. */
export const say = (text) => ($("#say").textContent = text);

/** Show a line that goes away by itself; errors stay longer. `action` is {text, act}. */
export function notify(text, kind = "note", action = null) {
  const line = h("p", { class: `notice ${kind}` }, h("span", {}, text));
  if (action) {
    line.append(h("button", { type: "button", class: "act", onclick: () => {
      line.remove();
      action.act();
    } }, action.text));
  }
  line.append(h("button", { type: "button", "aria-label": "×", onclick: () => line.remove() }, "×"));
  $("#notices").append(line);
  setTimeout(() => line.remove(), kind === "error" || action ? 12000 : 4000);
}

const loaded = new Map();

/** The decoded picture of a data URL, one for all who ask. */
export function imageOf(url) {
  if (!loaded.has(url)) {
    const image = new Image();
    image.src = url;
    if (loaded.size > 40) loaded.delete(loaded.keys().next().value);
    loaded.set(url, image.decode().then(() => image));
  }
  return loaded.get(url);
}
