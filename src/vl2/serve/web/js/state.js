// What the page knows, and who wants to hear that it changed.
//
// picture: {id, name, url (data URL), width, height, page, file (id of its PDF), origin, layout}
//   origin of a part: {picture, x, y}; layout is what /v1/layout said.
// turn: {id, question, mode, pictures (new ones, ids), asked (ids of all pictures of the request,
//   in its order), about (the pictures of a question that was sent without history), answer}
// answer: {model, text, boxes, tokens, usage, finish, guard, state, error, first, total}
//   trace: what the server told of a question that asked for it
//   state: "streaming", "done", "stopped" or "error"; times in milliseconds.

const PLACE = "vl2.conversation";

const listeners = new Map();

export const state = {
  pictures: new Map(), // by id
  files: new Map(), // PDFs by id: {name, url}
  turns: [],
  pending: [], // ids of pictures that the next question brings
  picture: null, // id of the one that is looked at
  turn: null, // id of the turn whose boxes are drawn
  models: [], // what /v1/models told
  model: null, // the one of them that answers
  tiling: null, // rule that the next question asks for; null is the model's own
  history: null, // whether questions go with what was said before; null is the model's habit
  grid: null, // rule whose tiles are drawn
  tracing: false, // whether the next question asks for a trace
  glass: null, // the glass box that is open: {turn, token (shown), pinned, picture, view, tile}
};

/** Call `listener` after changes of these kinds: pictures, turns, answer, look, layout, model, glass. */
export function on(kinds, listener) {
  for (const kind of kinds.split(" ")) {
    if (!listeners.has(kind)) listeners.set(kind, []);
    listeners.get(kind).push(listener);
  }
}

/** Tell that something of a kind changed; `detail` goes to the listeners. */
export function changed(kind, detail) {
  for (const listener of listeners.get(kind) ?? []) listener(detail);
}

export const id = () => crypto.getRandomValues(new Uint32Array(2)).join("-");

export const turnOf = (turn) => state.turns.find((one) => one.id === turn) ?? null;

export const busy = () => state.turns.some((turn) => turn.answer.state === "streaming");

/** Whether questions go with what was said before; some models have learnt single ones alone. */
export const remembers = () => state.history ?? !state.model?.single_questions;

/** Look at a picture, and at the boxes of a turn. */
export function look(picture, turn = state.turn) {
  state.picture = picture;
  state.turn = turn;
  changed("look");
}

/** Take pictures in; the next question brings them. */
export function addPictures(pictures) {
  for (const picture of pictures) {
    state.pictures.set(picture.id, picture);
    state.pending.push(picture.id);
  }
  changed("pictures");
  look(pictures[0].id, null);
}

/** Take a picture out that no question has brought yet. */
export function removePicture(picture) {
  state.pending = state.pending.filter((one) => one !== picture);
  state.pictures.delete(picture);
  if (state.picture === picture) {
    look([...state.pictures.keys()].find((one) => !state.pictures.get(one).origin) ?? null);
  }
  changed("pictures");
}

/** Forget everything. */
export function clear() {
  state.pictures.clear();
  state.files.clear();
  state.turns = [];
  state.pending = [];
  state.glass = null;
  look(null, null);
  changed("pictures");
  changed("turns");
}

/** Take back a turn and all after it; their pictures come with the next question again. */
export function rewind(turn) {
  const at = state.turns.findIndex((one) => one.id === turn);
  const gone = state.turns.splice(at);
  const pictures = gone.flatMap((one) => one.pictures);
  const first = new Set(gone[0].pictures);
  if (gone.some((one) => one.id === state.glass?.turn)) state.glass = null;
  for (const picture of pictures) {
    // A part of a picture belongs to the question that was asked about it.
    if (state.pictures.get(picture)?.origin && !first.has(picture)) state.pictures.delete(picture);
  }
  state.pending = [...pictures, ...state.pending].filter((one) => state.pictures.has(one));
  changed("pictures");
  changed("turns");
  look(state.picture, state.turns.at(-1)?.id ?? null);
  return gone[0];
}

/** The conversation as text; what `leave` names is left out. */
export const written = (leave = []) => JSON.stringify({
  pictures: [...state.pictures.values()],
  files: [...state.files],
  turns: state.turns,
  pending: state.pending,
  picture: state.picture,
  turn: state.turn,
  tiling: state.tiling,
  history: state.history,
  tracing: state.tracing,
}, (key, value) => (leave.includes(key) ? undefined : value));

/** Keep the conversation for a reload of this tab, without traces if they are too much for it.
 *
 * Says false where it is too large without them, too.
 */
export function keep() {
  for (const leave of [[], ["trace"]]) {
    try {
      sessionStorage.setItem(PLACE, written(leave));
      return true;
    } catch {
      sessionStorage.removeItem(PLACE); // half of a conversation would be worse than none
    }
  }
  return false;
}

/** Take up a written conversation, by default what was kept before a reload. */
export function restore(text = sessionStorage.getItem(PLACE)) {
  if (!text) return;
  const kept = JSON.parse(text);
  state.pictures = new Map(kept.pictures.map((picture) => [picture.id, picture]));
  state.files = new Map(kept.files);
  state.turns = kept.turns;
  for (const { answer } of state.turns) {
    if (answer.state === "streaming") answer.state = "stopped";
  }
  state.pending = kept.pending;
  state.tiling = kept.tiling;
  state.history = kept.history;
  state.tracing = kept.tracing ?? false;
  look(kept.picture, kept.turn);
  changed("pictures");
  changed("turns");
}
