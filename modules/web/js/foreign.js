// PNG Info of another program's picture: whose it is, and what of it has no place in an infotext.

import { onLanguage, say } from "./locale.js";

let told = null;

/** The answer of png-info; null clears what was said. */
export function tellForeign(body) {
  told = body?.program ? body : null;
  show();
}

function show() {
  const box = document.getElementById("easel_foreign");
  if (!box) return;
  box.hidden = !told;
  const left = told?.unmapped ?? [];
  document.getElementById("easel_foreign_program").textContent = told ? say("foreign_program", told) : "";
  document.getElementById("easel_foreign_left").hidden = !left.length;
  document.getElementById("easel_foreign_list").replaceChildren(...left.map(item));
}

function item(text) {
  const entry = document.createElement("li");
  entry.textContent = text;
  return entry;
}

onLanguage(show);
