// Starts the page's script: fills Gradio's empty slots with our templates as they appear, and binds each part once.

import { connect } from "./client.js";
import { box, restore, save } from "./fields.js";
import { showHeader } from "./header.js";
import { bindKeys } from "./keys.js";
import { startTranslating } from "./locale.js";
import { bindParameters } from "./parameters.js";
import { bindDrop } from "./png_info.js";
import { showProblems } from "./problems.js";
import { showProgress } from "./progress.js";
import { bindPrompts } from "./prompt.js";
import { act, follow } from "./runs.js";
import { bindGenerate } from "./submit.js";
import { showViewer } from "./viewer.js";

const AFTER = { "png-info": bindDrop }; // slots of tabs that are built when they are opened
const NEEDED = [
  "#txt2img_prompt textarea", "#txt2img_seed input", "#txt2img_ticket textarea", "#txt2img_saved textarea", "#txt2img_reply",
  "#txt2img_restore", "#txt2img_gallery", "#easel_model", "#txt2img_aspects button", "#setting_sd_model_checkpoint input",
];
let started = false;

function look() {
  for (const slot of document.querySelectorAll(".slot:not([data-filled])")) fill(slot);
  if (!started && NEEDED.every((selector) => document.querySelector(selector))) start();
}

function fill(slot) {
  const name = [...slot.classList].find((one) => one.startsWith("slot-")).slice(5);
  slot.dataset.filled = name;
  slot.append(document.getElementById(`template-${name}`).content.cloneNode(true));
  AFTER[name]?.();
}

function start() {
  started = true;
  startTranslating();
  follow();
  showHeader();
  showViewer();
  showProgress();
  showProblems();
  bindGenerate();
  bindPrompts();
  bindParameters();
  bindKeys();
  document.getElementById("txt2img_interrupt").addEventListener("click", () => act("interrupt"));
  document.getElementById("txt2img_skip").addEventListener("click", () => act("skip"));
  addEventListener("pagehide", save);
  document.documentElement.dataset.ready = "true"; // shows what was built
  document.getElementById("easel_skeleton").remove();
  restore();
  connect();
  if (matchMedia("(pointer: fine)").matches && document.activeElement === document.body) box("prompt").focus({ preventScroll: true });
}

new MutationObserver(look).observe(document.querySelector("gradio-app"), { childList: true, subtree: true });
look();
