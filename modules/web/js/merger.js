// The tab Checkpoint Merger: sends its boxes to the server, and shows how the merge goes that was begun last, on whatever page.

import { ask, lastOf, on, sentenceOf } from "./client.js";
import { onLanguage, say } from "./locale.js";
import { report } from "./problems.js";

const BOXES = { // field of the request → id
  primary: "modelmerger_primary_model_name",
  secondary: "modelmerger_secondary_model_name",
  tertiary: "modelmerger_tertiary_model_name",
  method: "modelmerger_interp_method",
  multiplier: "modelmerger_interp_amount",
  name: "modelmerger_custom_name",
  half: "modelmerger_save_as_half",
  overwrite: "modelmerger_overwrite",
  config_from: "modelmerger_config_method",
  vae: "modelmerger_bake_in_vae",
  discard: "modelmerger_discard_weights",
  save_metadata: "modelmerger_save_metadata",
  add_recipe: "modelmerger_add_recipe",
  copy_metadata: "modelmerger_copy_metadata",
  metadata: "modelmerger_metadata_json",
};
const FORMULAS = { "Weighted sum": "A · (1 − M) + B · M", "Add difference": "A + (B − C) · M", "No interpolation": "A" };
const NEEDS = { "Weighted sum": 2, "Add difference": 3, "No interpolation": 1 };
const UNFINISHED = ["queued", "running"];
const own = new Set(); // merges that this page began
let merge = lastOf("merge");
let sending = false;

const element = (name) => document.getElementById(BOXES[name]);
const KINDS = ["textarea", 'input[type="checkbox"]', "input:checked", 'input[type="number"]', "input"]; // the first that is there
const input = (name) => KINDS.map((kind) => element(name)?.querySelector(kind)).find(Boolean);
const button = (name) => document.getElementById(`modelmerger_${name}`);

function valueOf(name) {
  const found = input(name);
  return found?.type === "checkbox" ? found.checked : (found?.value ?? "");
}

// Bound when the tab's own slot is filled; its other parts may come a moment later.
export function bindMerger() {
  const panel = document.getElementById("modelmerger_panel");
  panel.addEventListener("click", (event) => {
    if (event.target.closest("#modelmerger_merge") && event.detail < 2) begin(); // 2: the second half of a double click
    if (event.target.closest("#modelmerger_cancel")) cancel();
  });
  panel.addEventListener("input", explain);
  panel.addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));
  onLanguage(() => (explain(), draw()));
  explain();
  draw();
}

function hear(event) {
  const ended = merge && merge.job === event.job && UNFINISHED.includes(merge.state) && !UNFINISHED.includes(event.state);
  if (merge && merge.job !== event.job && UNFINISHED.includes(merge.state) && event.state === "queued") return; // it waits behind
  merge = event;
  if (ended) finished();
  draw();
}

on("merge", hear);

async function begin() {
  if (sending) return;
  for (const name of Object.keys(BOXES)) input(name)?.removeAttribute("aria-invalid");
  const request = Object.fromEntries(Object.keys(BOXES).map((name) => [name, valueOf(name)]));
  request.multiplier = Number(request.multiplier);
  try {
    request.metadata = JSON.parse(request.metadata.trim() || "{}");
  } catch (error) {
    return refuse("metadata", say("merge.no_json", { why: error.message }));
  }
  sending = true;
  draw();
  const answer = await ask("api/v1/merges", request);
  sending = false;
  if (answer?.ok) {
    own.add(answer.body.id);
    if (!merge || !UNFINISHED.includes(merge.state)) merge = { ...answer.body, job: answer.body.id };
  } else refuse(answer?.body?.detail?.[0]?.field, sentenceOf(answer?.body) ?? say("merge.unreachable"));
  draw();
}

function refuse(field, sentence) {
  input(field)?.setAttribute("aria-invalid", "true");
  report(sentence);
}

async function cancel() {
  if (merge && UNFINISHED.includes(merge.state)) await ask(`api/v1/merges/${merge.job}/cancel`, {});
}

// The lists of the header and of this tab offer the result.
function finished() {
  if (merge.state === "failed" && own.has(merge.job)) report(say("merge.failed", { file: merge.file, why: merge.error }));
  if (merge.state !== "done") return;
  document.getElementById("refresh_sd_model_checkpoint")?.click();
  document.getElementById("refresh_checkpoint_A")?.click();
}

function explain() {
  const method = valueOf("method") || "Weighted sum";
  document.getElementById("modelmerger_panel").dataset.needs = NEEDS[method];
  document.getElementById("easel_merge_formula").textContent = FORMULAS[method];
  document.getElementById("easel_merge_explained").textContent = say(`merge.explained_${NEEDS[method]}`);
}

function draw() {
  const bar = document.getElementById("easel_merge_bar");
  if (!bar) return;
  const busy = merge && UNFINISHED.includes(merge.state);
  const part = merge?.state === "done" ? 1 : merge?.state === "running" && merge.total ? merge.done / merge.total : 0;
  bar.firstElementChild.style.transform = `scaleX(${part})`;
  bar.setAttribute("aria-valuenow", Math.round(part * 100));
  document.getElementById("easel_merge_state").textContent = words();
  const counted = merge?.state === "running" && merge.total > 0;
  document.getElementById("easel_merge_bytes").textContent = counted
    ? say("merge.bytes", { done: megabytes(merge.done), total: megabytes(merge.total) })
    : "";
  const shown = merge?.state === "failed" ? merge.error : (merge?.file ?? "");
  document.getElementById("easel_merge_file").textContent = shown;
  document.getElementById("easel_merge_file").classList.toggle("failed", merge?.state === "failed");
  const items = (merge?.warnings ?? []).map((text) => Object.assign(document.createElement("li"), { textContent: text }));
  document.getElementById("easel_merge_warnings").replaceChildren(...items);
  if (button("merge")) button("merge").disabled = sending;
  if (button("cancel")) button("cancel").disabled = !busy;
}

const megabytes = (bytes) => Math.round(bytes / 1e6);

function words() {
  if (sending) return say("state.sending");
  if (!merge) return say("merge.idle");
  return say(merge.state === "running" ? `merge.phase_${merge.phase}` : `merge.${merge.state === "failed" ? "not_made" : merge.state}`);
}
