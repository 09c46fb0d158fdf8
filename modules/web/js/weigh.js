// Attention weights at the cursor: (words:1.1). Pure: takes text and selection, says what to replace and what to select.

const STEP = 0.1;
const LOWEST = 0;
const BREAKS = " \t\r\n,.;:!?()[]{}<>|/\\\"'`~%^*=+";

export function weigh(text, start, end, up) {
  const inner = start === end ? wordAt(text, start) : trimmed(text, start, end);
  if (!inner) return null;
  const outer = weighted(text, ...inner);
  const [from, to] = outer ? [outer.from, outer.to] : inner;
  const words = outer ? outer.words : text.slice(...inner);
  const weight = Math.max(LOWEST, Math.round(((outer?.weight ?? 1) + (up ? STEP : -STEP)) * 100) / 100);
  const plain = weight === 1;
  const insert = plain ? words : `(${words}:${weight})`;
  const at = from + (plain ? 0 : 1);
  return { from, to, insert, start: at, end: at + words.length };
}

// The brackets around the caret if it stands in some, else the word that it touches.
function wordAt(text, caret) {
  const around = bracketsAround(text, caret);
  if (around) return around;
  let [start, end] = [caret, caret];
  while (start > 0 && !BREAKS.includes(text[start - 1])) start--;
  while (end < text.length && !BREAKS.includes(text[end])) end++;
  return start < end ? [start, end] : null;
}

// Start and end of the words of "(words:1.2)" when the caret is anywhere inside it.
function bracketsAround(text, caret) {
  let depth = 0;
  for (let i = caret - 1; i >= 0; i--) {
    if (text[i] === ")" && text[i - 1] !== "\\") depth++;
    else if (text[i] === "(" && text[i - 1] !== "\\") {
      if (depth-- > 0) continue;
      const found = /^((?:[^()\\]|\\.)*?)(:[\d.]+)?\)/.exec(text.slice(i + 1));
      return found && found[2] && i + 1 + found[0].length > caret - 1 ? [i + 1, i + 1 + found[1].length] : null;
    }
  }
  return null;
}

function trimmed(text, start, end) {
  while (start < end && /\s/.test(text[start])) start++;
  while (end > start && /\s/.test(text[end - 1])) end--;
  return start < end ? [start, end] : null;
}

// The weight around [start, end], whether the brackets are inside the selection or just outside it.
function weighted(text, start, end) {
  const whole = /^\(((?:[^()\\]|\\.)*):([\d.]+)\)$/.exec(text.slice(start, end));
  if (whole) return { from: start, to: end, words: whole[1], weight: Number(whole[2]) };
  const after = /^:([\d.]+)\)/.exec(text.slice(end));
  if (text[start - 1] !== "(" || !after) return null;
  return { from: start - 1, to: end + after[0].length, words: text.slice(start, end), weight: Number(after[1]) };
}
