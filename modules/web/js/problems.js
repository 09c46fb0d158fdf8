// What went wrong: shown as text until it is dismissed, across reloads too, and ready to be copied.

import { on } from "./client.js";
import { block, box } from "./fields.js";
import { forms } from "./page_data.js";
import { activeTab } from "./tabs.js";
import { has, say, translate } from "./locale.js";
import { copy } from "./viewer.js";

const SAVED = "easel.problems";
const SEEN = "easel.seen";
const shown = JSON.parse(sessionStorage.getItem(SAVED) ?? "[]");
const seen = JSON.parse(sessionStorage.getItem(SEEN) ?? "[]"); // failed runs and lasting troubles that were reported before

export function showProblems() {
  for (const text of shown) draw(text);
  on("run-failed", (run) => {
    if (seen.includes(run.id)) return;
    note(run.id);
    report(run.error ?? say("state.failed"));
  });
}

export function report(text) {
  if (shown.includes(text)) return;
  shown.push(text);
  sessionStorage.setItem(SAVED, JSON.stringify(shown));
  draw(text);
}

// Something that stays wrong: said once a tab, not at every look.
export function remind(text) {
  if (seen.includes(text)) return;
  note(text);
  report(text);
}

function note(what) {
  seen.push(what);
  sessionStorage.setItem(SEEN, JSON.stringify(seen.slice(-200)));
}

// A refused field, as the server describes it: {field, kind, limit, got, text}
export function sentence({ field, kind, limit, got, text }, tab = activeTab()) {
  const id = `problem.${kind}`;
  const known = forms[tab][field] !== undefined;
  if (known) box(field, tab)?.setAttribute("aria-invalid", "true");
  if (!has(id)) return text;
  return say(id, { field: (known && labelOf(field, tab)) || (has(field) ? say(field) : field), limit, got });
}

// As it stands on the page, in the page's language.
const labelOf = (field, tab) => block(field, tab)?.querySelector('[data-testid="block-info"]')?.textContent.trim();

function draw(text) {
  const problem = document.getElementById("template-problem").content.firstElementChild.cloneNode(true);
  problem.querySelector("p").textContent = text;
  problem.querySelector('[data-do="copy"]').onclick = (event) => copy(text, event.currentTarget);
  problem.querySelector('[data-do="dismiss"]').onclick = () => {
    shown.splice(shown.indexOf(text), 1);
    sessionStorage.setItem(SAVED, JSON.stringify(shown));
    problem.remove();
  };
  translate(problem);
  document.getElementById("easel_problems").append(problem);
}
