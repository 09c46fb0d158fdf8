// The form's boxes, by the names that requests use. Values are set the way a person would set them, so that Gradio notices.

import { checkpointOf, selectedCheckpoint } from "./page_data.js";

const BOXES = {
  prompt: "#txt2img_prompt textarea",
  negative_prompt: "#txt2img_neg_prompt textarea",
  sampler: "#txt2img_sampling input",
  schedule: "#txt2img_scheduler input",
  steps: '#txt2img_steps input[type="number"]',
  width: '#txt2img_width input[type="number"]',
  height: '#txt2img_height input[type="number"]',
  batch_count: '#txt2img_batch_count input[type="number"]',
  batch_size: '#txt2img_batch_size input[type="number"]',
  cfg_scale: '#txt2img_cfg_scale input[type="number"]',
  seed: "#txt2img_seed input",
  checkpoint: "#setting_sd_model_checkpoint input",
};
const CHOICES = ["sampler", "schedule", "checkpoint"]; // Gradio's dropdowns take a value from Python only
const TEXTS = ["prompt", "negative_prompt"];
const SAVED = "easel.form";
const USUAL_SIZE = [512, 512];

export const box = (name) => document.querySelector(BOXES[name]);
export const value = (name) => box(name)?.value ?? "";
export const number = (name) => Number(value(name));

export function put(element, text) {
  element.value = text;
  element.dispatchEvent(new Event("input", { bubbles: true }));
}

export function set(name, text) {
  const element = box(name);
  if (element && element.value !== String(text)) put(element, text);
}

// Inserts at the selection as typing would, so that Ctrl+Z takes it back.
export function type(element, text) {
  element.focus();
  if (!document.execCommand("insertText", false, text)) {
    element.setRangeText(text, element.selectionStart, element.selectionEnd, "end");
    element.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

export function defaultOf(name) {
  const size = checkpointOf(value("checkpoint"))?.size ?? USUAL_SIZE;
  return { steps: 20, width: size[0], height: size[1], batch_count: 1, batch_size: 1, cfg_scale: 7, seed: -1 }[name];
}

export function nameOf(element) {
  const block = element.closest(".block");
  return block && Object.keys(BOXES).find((name) => block.contains(box(name)));
}

export function save() {
  const form = Object.fromEntries(Object.keys(BOXES).map((name) => [name, value(name)]));
  sessionStorage.setItem(SAVED, JSON.stringify(form));
}

// What the tab held before its reload: boxes at once, choices by one Gradio event, which also brings today's checkpoints.
export function restore() {
  const form = JSON.parse(sessionStorage.getItem(SAVED) ?? "{}");
  const sent = {};
  const [width, height] = checkpointOf(selectedCheckpoint)?.size ?? USUAL_SIZE;
  for (const [name, text] of Object.entries({ width, height, ...form })) {
    if (text === "" && !TEXTS.includes(name)) continue;
    if (CHOICES.includes(name)) sent[name] = text;
    else set(name, text);
  }
  fill(sent);
}

export function fill(values) {
  put(document.querySelector("#txt2img_saved textarea"), JSON.stringify(values));
  document.getElementById("txt2img_restore").click();
}
