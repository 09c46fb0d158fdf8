// The forms' boxes, by the names that requests use. Values are set the way a person would set them, so that Gradio notices.

import { checkpointOf, forms, selectedCheckpoint } from "./page_data.js";
import { activeTab, formTabs } from "./tabs.js";

const INPUTS = { text: "textarea, input", number: 'input[type="number"]', check: 'input[type="checkbox"]', radio: "input:checked" };
const CHOICES = ["choice", "choices"]; // Gradio's dropdowns take a value from Python only
const SAVED = "easel.forms";
const USUAL_SIZE = [512, 512];
const SIDES = ["width", "height"];

export const block = (name, tab = activeTab()) => document.getElementById(forms[tab][name]?.id);
export const box = (name, tab = activeTab()) => block(name, tab)?.querySelector(INPUTS[forms[tab][name].kind] ?? "input");
export const number = (name, tab) => Number(value(name, tab));

export function value(name, tab = activeTab()) {
  const found = box(name, tab);
  const kind = forms[tab][name]?.kind;
  if (kind === "check") return found?.checked ?? false;
  if (kind !== "choices") return found?.value ?? "";
  return [...(block(name, tab)?.querySelectorAll(".token > span") ?? [])].map((one) => one.textContent.trim());
}

export function put(element, text) {
  element.value = text;
  element.dispatchEvent(new Event("input", { bubbles: true }));
}

export function set(name, wanted, tab = activeTab()) {
  const found = box(name, tab);
  if (!found || value(name, tab) === wanted) return;
  const { kind } = forms[tab][name];
  if (kind === "check") found.click();
  else if (kind === "radio") block(name, tab).querySelector(`input[value="${CSS.escape(wanted)}"]`)?.click();
  else if (found.value !== String(wanted)) put(found, wanted);
}

// Inserts at the selection as typing would, so that Ctrl+Z takes it back.
export function type(element, text) {
  element.focus();
  if (!document.execCommand("insertText", false, text)) {
    element.setRangeText(text, element.selectionStart, element.selectionEnd, "end");
    element.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

const usualSize = (title) => checkpointOf(title)?.size ?? USUAL_SIZE;

export function defaultOf(name, tab = activeTab()) {
  const side = SIDES.indexOf(name);
  return side < 0 ? forms[tab][name].value : usualSize(value("checkpoint", tab))[side];
}

export function nameOf(element, tab = activeTab()) {
  return Object.keys(forms[tab]).find((name) => block(name, tab)?.contains(element));
}

// Calls with the form whatever changed it: a person, or Gradio, which tells nobody.
export function watch(changed) {
  let last;
  const look = () => {
    const now = changed();
    if (now?.text === last) return;
    last = now?.text;
    now?.draw();
  };
  document.addEventListener("input", look);
  setInterval(look, 500);
  look();
}

const saved = () => JSON.parse(sessionStorage.getItem(SAVED) ?? "{}");

export function save() {
  const all = saved();
  for (const tab of formTabs.filter((one) => box("prompt", one))) {
    all[tab] = Object.fromEntries(Object.keys(forms[tab]).map((name) => [name, value(name, tab)]));
  }
  sessionStorage.setItem(SAVED, JSON.stringify(all));
}

// What the tab held before its reload: boxes at once, choices by one Gradio event, which also brings today's lists.
export function restore(tab) {
  const form = saved()[tab] ?? {};
  const sent = {};
  const [width, height] = usualSize(selectedCheckpoint);
  for (const [name, kept] of Object.entries({ width, height, ...form })) {
    const kind = forms[tab][name]?.kind;
    if (!kind || (kept === "" && kind !== "text")) continue;
    if (CHOICES.includes(kind)) sent[name] = kept;
    else set(name, kept, tab);
  }
  delete sent.checkpoint;
  if (form.checkpoint && tab === formTabs[0]) sent.checkpoint = form.checkpoint;
  fill(sent, tab);
}

export function fill(values, tab = activeTab()) {
  put(document.querySelector(`#${tab}_saved textarea`), JSON.stringify(values));
  document.getElementById(`${tab}_restore`).click();
}
