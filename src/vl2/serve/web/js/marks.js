// Which stretches of an answer mean a box, and which words the model was unsure of.
//
// The server counts characters as Unicode code points, and strings here are UTF-16: places are
// turned into indices of the string first.

export const UNSURE = 0.5; // a word whose least likely token had less is underlined

/** Index in the string of each code point, and of the end. */
export function indices(text) {
  const found = [];
  let at = 0;
  for (const point of text) {
    found.push(at);
    at += point.length;
  }
  found.push(at);
  return found;
}

/** Stretches of the text that mean boxes: {start, end, boxes}. */
export function phrases(answer) {
  const places = indices(answer.text);
  const found = new Map();
  for (const [at, box] of answer.boxes.entries()) {
    if (!box.span || box.span[0] >= box.span[1]) continue;
    const [start, end] = box.span.map((place) => places[Math.min(place, places.length - 1)]);
    const key = `${start} ${end}`;
    if (!found.has(key)) found.set(key, { start, end, boxes: [] });
    found.get(key).boxes.push(at);
  }
  return [...found.values()];
}

/** Tokens with their places in the text; ones that are halves of characters are joined. */
export function located(answer) {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const found = [];
  let [cursor, bytes, joined] = [0, [], []];
  for (const token of answer.tokens) {
    bytes.push(...(token.bytes ?? []));
    joined.push(token);
    let text;
    try {
      text = decoder.decode(Uint8Array.from(bytes));
    } catch {
      if (bytes.length < 64) continue; // the rest of the character comes with the next token
      text = "";
    }
    const start = answer.text.startsWith(text, cursor) ? cursor : answer.text.indexOf(text, cursor);
    // Between labels stands text that is no token's, such as a comma: a few characters at most.
    if (text && start >= 0 && start - cursor < 16) {
      const least = joined.reduce((a, b) => (a.logprob <= b.logprob ? a : b));
      found.push({ start, end: start + text.length, text, logprob: least.logprob, top: least.top_logprobs ?? [] });
      cursor = start + text.length;
    }
    [bytes, joined] = [[], []];
  }
  return found;
}

/** Words with a token of low probability: {start, end, p, others}. */
export function unsure(answer) {
  const tokens = located(answer);
  const found = [];
  let at = 0;
  for (const word of answer.text.matchAll(/[^\s|]*[\p{L}\p{N}][^\s|]*/gu)) {
    const [start, end] = [word.index, word.index + word[0].length];
    while (at < tokens.length && tokens[at].end <= start) at += 1;
    let least = null;
    for (let one = at; one < tokens.length && tokens[one].start < end; one += 1) {
      const readable = /[\p{L}\p{N}]/u.test(tokens[one].text);
      if (readable && (!least || tokens[one].logprob < least.logprob)) least = tokens[one];
    }
    if (!least || Math.exp(least.logprob) >= UNSURE) continue;
    const others = least.top
      .filter((one) => one.token !== least.text && one.token.trim())
      .map((one) => ({ text: one.token.trim(), p: Math.exp(one.logprob) }));
    found.push({ start, end, p: Math.exp(least.logprob), others });
  }
  return found;
}
