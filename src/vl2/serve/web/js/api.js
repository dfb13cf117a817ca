// The server: one way to call it, its errors, its streams.

import { t } from "./i18n.js";

const KEY = "vl2.key";

/** What the server refused or what went wrong on the way; `message` is for people. */
export class Failure extends Error {
  constructor(message, { code = null, status = 0, param = null } = {}) {
    super(message);
    this.code = code;
    this.param = param; // the path of the field that is meant
    this.status = status;
  }
}

let asking = null; // one dialog for all calls that were refused at the same time

function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#key-dialog");
    const field = dialog.querySelector("#key");
    dialog.querySelector("#key-why").textContent = t(wrong ? "keyWrong" : "keyWhy");
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      resolve(dialog.returnValue === "ok" ? field.value.trim() : null);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function failureOf(response) {
  let error = null;
  try {
    ({ error } = await response.json());
  } catch {
    // A proxy's page, not the server's own error.
  }
  const message = error?.message ?? `${response.status} ${response.statusText}`;
  return new Failure(message, { code: error?.code, status: response.status, param: error?.param });
}

/** The response to a request; asks for a key once where the server wants one. */
export async function call(path, body = null, signal = null) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method: body ? "POST" : "GET", headers, signal,
        body: body && JSON.stringify(body), credentials: "omit",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(t("unreachable"), { code: "unreachable" });
    }
    if (response.ok) return response;
    const failure = await failureOf(response);
    if (failure.status !== 401) throw failure;
    if (sessionStorage.getItem(KEY) !== key) continue; // another call has got one meanwhile
    const given = await askForKey(Boolean(key));
    if (!given) throw failure;
    sessionStorage.setItem(KEY, given);
  }
}

/** The models that are served: the base, then its adapters. */
export async function models() {
  return (await (await call("/v1/models")).json()).data;
}

/** Whether a question would be answered now. */
export async function ready() {
  try {
    return (await fetch("/health/ready", { credentials: "omit" })).ok;
  } catch {
    return false;
  }
}

/** How both rules cut a picture, one of `pictures` of a request. */
export async function layout(url, pictures) {
  return (await call("/v1/layout", { image_url: { url }, pictures })).json();
}

/** Pages of a PDF as pictures; all of them where `pages` is null. */
export async function pages(url, name, chosen) {
  const file = { file_data: url, filename: name, ...(chosen ? { pages: chosen } : {}) };
  return (await call("/v1/pages", { file })).json();
}

/** The objects of a stream of server-sent events until its [DONE]. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Failure(t("broken"), { code: "broken" });
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/); // a last \r may be half of \r\n
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      if (line !== "" || !data.length) continue; // comments keep the connection alive
      const text = data.join("\n");
      data = [];
      if (text === "[DONE]") return;
      const event = JSON.parse(text);
      if (event.error) throw new Failure(event.error.message, { code: event.error.code });
      yield event;
    }
  }
}

/** Ask; `heard` is called with each event. */
export async function chat(body, signal, heard) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await call("/v1/chat/completions", asked, signal);
  for await (const event of events(response)) heard(event);
}
