// Generate: one click, one run. Gradio carries the form to Python; this file gives it a ticket and reads the answer.

import { client, online, randomKey } from "./client.js";
import { box, put, save } from "./fields.js";
import { report, sentence } from "./problems.js";
import { setSending } from "./progress.js";
import { say } from "./locale.js";
import { activeTab, formTabs, isBuilt, whenBuilt } from "./tabs.js";
import { followNewest } from "./viewer.js";

const PATIENCE_MS = 15000;
const preparers = {}; // tab → what the ticket needs beside the form, made at the click
let key = null; // of the click that has no answer yet
let passing = false; // our own click, when the ticket is ready
let timer = 0;

export function bindSubmitting() {
  document.addEventListener("click", beforeSubmit, true);
}

export function bindGenerate(tab, prepare = null) {
  if (prepare) preparers[tab] = prepare;
  const reply = document.getElementById(`${tab}_reply`);
  new MutationObserver(() => read(reply.textContent, tab)).observe(reply, { childList: true, characterData: true, subtree: true });
}

export function generate() {
  const seen = [...document.querySelectorAll("button.generate")].find((one) => one.checkVisibility()); // Merge is one too
  (seen ?? document.getElementById(`${activeTab()}_generate`))?.click();
}

function beforeSubmit(event) {
  const button = event.target.closest?.("button.generate");
  if (!button || passing) return;
  const tab = formTabs.find((one) => button.id === `${one}_generate`);
  if (!tab) return;
  const twice = key !== null || event.detail > 1; // still on its way, or the second half of a double click
  if (!online && !twice) report(say("problem.unreachable"));
  const later = !isBuilt(tab) || preparers[tab];
  if (twice || !online || later) {
    event.preventDefault();
    event.stopImmediatePropagation();
  }
  if (twice || !online) return;
  key = randomKey();
  for (const marked of document.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
  setSending(true);
  followNewest();
  setTimeout(save); // it reads every box; the click is answered first
  if (later) prepare(tab, button);
  else hand(tab, {});
}

function hand(tab, more) {
  put(document.querySelector(`#${tab}_ticket textarea`), JSON.stringify({ client, key, ...more }));
  timer = setTimeout(() => finish() || report(say("problem.unreachable")), PATIENCE_MS);
}

// The tab must be there, and pictures are sent first; then the click goes through.
async function prepare(tab, button) {
  try {
    await whenBuilt(tab);
    hand(tab, (await preparers[tab]?.()) ?? {});
  } catch (problem) {
    finish();
    report(problem.message);
    return;
  }
  passing = true;
  button.click();
  passing = false;
}

function finish() {
  clearTimeout(timer);
  key = null;
  setSending(false);
}

function read(text, tab) {
  if (!text.trim()) return;
  const answer = JSON.parse(text);
  if (answer.key !== undefined && answer.key === key) finish();
  for (const problem of answer.problems) report(sentence(problem, tab));
  const first = answer.problems.find((problem) => problem.field);
  if (first) box(first.field, tab)?.focus();
}
