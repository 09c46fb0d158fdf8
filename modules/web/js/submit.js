// Generate: one click, one run. Gradio carries the form to Python; this file gives it a ticket and reads the answer.

import { client, online, randomKey } from "./client.js";
import { box, put, save } from "./fields.js";
import { report, sentence } from "./problems.js";
import { setSending } from "./progress.js";
import { say } from "./locale.js";
import { followNewest } from "./viewer.js";

const PATIENCE_MS = 15000;
let key = null; // of the click that has no answer yet
let timer = 0;

export function bindGenerate() {
  document.addEventListener("click", beforeSubmit, true);
  const reply = document.getElementById("txt2img_reply");
  new MutationObserver(() => read(reply.textContent)).observe(reply, { childList: true, characterData: true, subtree: true });
}

export function generate() {
  document.getElementById("txt2img_generate")?.click();
}

function beforeSubmit(event) {
  if (!event.target.closest?.("#txt2img_generate")) return;
  const twice = key !== null || event.detail > 1; // still on its way, or the second half of a double click
  if (!online && !twice) report(say("problem.unreachable"));
  if (twice || !online) {
    event.preventDefault();
    event.stopImmediatePropagation();
    return;
  }
  key = randomKey();
  put(document.querySelector("#txt2img_ticket textarea"), JSON.stringify({ client, key }));
  for (const marked of document.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
  save();
  followNewest();
  setSending(true);
  timer = setTimeout(() => finish() || report(say("problem.unreachable")), PATIENCE_MS);
}

function finish() {
  clearTimeout(timer);
  key = null;
  setSending(false);
}

function read(text) {
  if (!text.trim()) return;
  const answer = JSON.parse(text);
  if (answer.key !== undefined && answer.key === key) finish();
  for (const problem of answer.problems ?? []) report(sentence(problem));
  if (answer.problems?.length) box(answer.problems[0].field)?.focus();
}
