// The keyboard: Ctrl+Enter generates, Esc interrupts, Ctrl+↑/↓ weighs, arrows walk through the pictures.

import { generate } from "./submit.js";
import { act } from "./runs.js";
import { weighAtCaret } from "./prompt.js";
import { step } from "./viewer.js";

const EDITABLE = 'input:not([type="range"]), textarea, select, [contenteditable="true"]';

export function bindKeys() {
  document.addEventListener("keydown", pressed, true);
}

function pressed(event) {
  const { key, target } = event;
  const control = event.ctrlKey || event.metaKey;
  if (control && key === "Enter") return done(event, () => event.repeat || generate());
  if (control && (key === "ArrowUp" || key === "ArrowDown") && target.matches(".prompts textarea")) {
    return done(event, () => weighAtCaret(target, key === "ArrowUp"));
  }
  if (control || event.altKey || event.shiftKey) return;
  if (key === "Escape" && !somethingOpen(target)) return act("interrupt");
  const walks = key === "ArrowLeft" || key === "ArrowRight";
  if (walks && !target.matches(EDITABLE) && !target.closest('[role="tablist"], input, .canvas') && viewerVisible()) {
    done(event, () => step(key === "ArrowLeft" ? -1 : 1));
  }
}

function done(event, action) {
  event.preventDefault();
  event.stopPropagation();
  action();
}

// Esc first closes what is open: full screen, a list of words, a dropdown.
function somethingOpen(target) {
  return document.querySelector("dialog[open], [popover]:popover-open, .canvas.full") || target.getAttribute?.("aria-expanded") === "true";
}

const viewerVisible = () => document.querySelector(".viewer")?.checkVisibility();
