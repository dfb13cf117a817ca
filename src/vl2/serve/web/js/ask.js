// Questions: from the conversation to a request, and its answer while it comes.

import * as api from "./api.js";
import { open } from "./glass.js";
import { t } from "./i18n.js";
import { load } from "./models.js";
import { changed, id, keep, look, state } from "./state.js";

const MOST_TOKENS = 1024;

let running = null; // the controller that stops the answer

/** Parts of a message for pictures; neighbouring pages of one PDF travel as that PDF. */
function pictureParts(ids) {
  const parts = [];
  let last = null; // the PDF whose pages are being gathered
  for (const one of ids) {
    const picture = state.pictures.get(one);
    const file = picture.file && state.files.get(picture.file);
    if (!file) {
      parts.push({ type: "image_url", image_url: { url: picture.url } });
      last = null;
    } else if (last === picture.file) {
      parts.at(-1).file.pages += `,${picture.page}`;
    } else {
      const told = { file_data: file.url, filename: file.name, pages: String(picture.page) };
      parts.push({ type: "file", file: told });
      last = picture.file;
    }
  }
  return parts;
}

function questionParts({ question, mode }) {
  if (mode === "find") return [{ type: "grounding", query: question }];
  const text = { type: "text", text: question };
  return mode === "boxes" ? [{ type: "grounding" }, text] : [text];
}

/** The messages of turns, and the ids of their pictures in order.
 *
 * A question that got no answer is left out; its pictures go with the next one. A picture is sent
 * once, however many questions are about it.
 */
export function messagesOf(turns) {
  const messages = [];
  const order = [];
  let carried = [];
  for (const [at, turn] of turns.entries()) {
    const pictures = [...carried, ...turn.pictures].filter((one) => !order.includes(one));
    const last = at === turns.length - 1;
    if (!last && !turn.answer.text) {
      carried = pictures;
      continue;
    }
    carried = [];
    order.push(...pictures);
    messages.push({ role: "user", content: [...pictureParts(pictures), ...questionParts(turn)] });
    if (!last) messages.push({ role: "assistant", content: turn.answer.text });
  }
  return { messages, order };
}

/** Ask a question about the pictures of the conversation.
 *
 * `about` names pictures to which the question is sent without what was said before: a part of a
 * picture, or a suggestion that stands for itself. `pictures` are new in the conversation; the
 * waiting ones by default.
 */
export async function ask(question, { mode = "text", pictures = null, about = null } = {}) {
  const turn = {
    id: id(), question, mode, about,
    pictures: pictures ?? state.pending,
    answer: { text: "", boxes: [], tokens: [], usage: null, finish: null, guard: null,
      state: "streaming", error: null, first: null, total: null },
  };
  if (!pictures) state.pending = [];
  state.turns.push(turn);
  const { messages, order } = messagesOf(about ? [{ ...turn, pictures: about }] : state.turns);
  turn.asked = order;
  changed("pictures");
  changed("turns");
  const shown = (about ?? turn.pictures)[0] ?? state.picture;
  look(state.pictures.get(shown)?.origin?.picture ?? shown, turn.id);
  await answer(turn, messages);
}

/** The name of the file that a field such as "messages[0].content[1].image_url.url" holds. */
function fileOf(messages, param) {
  const [, message, at] = /^messages\[(\d+)\]\.content\[(\d+)\]/.exec(param ?? "") ?? [];
  const part = messages[message]?.content[at];
  if (part?.type === "file") return part.file.filename;
  return [...state.pictures.values()].find(({ url }) => url === part?.image_url?.url)?.name;
}

/** Stop the answer that is coming; what has come stays. */
export function stop() {
  running?.abort();
}

async function answer(turn, messages) {
  const { answer } = turn;
  const began = performance.now();
  running = new AbortController();
  const body = { messages, max_tokens: MOST_TOKENS, logprobs: true, top_logprobs: 3 };
  if (state.tiling) body.tiling = state.tiling;
  if (state.tracing) body.trace = true;
  try {
    if (!state.model) await load();
    answer.model = body.model = state.model.id;
    await api.chat(body, running.signal, (event) => take(turn, event, began));
    answer.state = "done";
  } catch (error) {
    if (error.name === "AbortError") {
      answer.state = "stopped";
    } else if (error instanceof api.Failure) {
      answer.state = "error";
      const name = fileOf(messages, error.param);
      answer.error = name ? `${name}: ${error.message}` : error.message;
    } else {
      answer.state = "error";
      answer.error = t("broken");
      console.error(error);
    }
  }
  answer.total = performance.now() - began;
  running = null;
  changed("answer", turn);
  changed("turns");
  open(turn);
  if (!keep()) changed("large");
}

function take(turn, event, began) {
  const { answer } = turn;
  if (event.usage) answer.usage = event.usage;
  const choice = event.choices[0];
  if (!choice) return;
  if (choice.delta?.content) {
    answer.first ??= performance.now() - began;
    answer.text += choice.delta.content;
  }
  for (const box of choice.delta?.boxes ?? []) {
    answer.boxes.push({ ...box, picture: turn.asked[box.image_index] });
  }
  answer.trace = choice.delta?.trace ?? answer.trace;
  answer.tokens.push(...(choice.logprobs?.content ?? []));
  answer.finish = choice.finish_reason ?? answer.finish;
  answer.guard = choice.repetition_guard ?? answer.guard;
  changed("answer", turn);
}
