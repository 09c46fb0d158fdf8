// Starts the page's script: fills Gradio's empty slots with our templates as they appear, and binds each part once.

import { connect } from "./client.js";
import { box, restore, save } from "./fields.js";
import { showHeader } from "./header.js";
import { bindHires } from "./hires.js";
import { bindKeys } from "./keys.js";
import { say, startTranslating } from "./locale.js";
import { bindParameters } from "./parameters.js";
import { report, showProblems } from "./problems.js";
import { showProgress } from "./progress.js";
import { bindPrompts } from "./prompt.js";
import { act, follow } from "./runs.js";
import { bindStyles, bindStylesButton } from "./styles.js";
import { bindGenerate, bindSubmitting } from "./submit.js";
import { followTabs, formTabs, noticeTab, tabFailed, tabIsBuilt } from "./tabs.js";
import { showViewer } from "./viewer.js";

// Tabs are built when they are opened, and bring their scripts then (LATER in shell.py).
const BRINGERS = {
  downloads: async () => (await import("./downloads.js")).bindDownloads,
  "png-info": async () => (await import("./png_info.js")).bindDrop,
  browser: async () => (await import("./browser.js")).bindBrowser,
  merger: async () => (await import("./merger.js")).bindMerger,
  send: async () => (await import("./sending.js")).bindSending,
  init: async () => void (await import("./img2img.js")), // bound with the rest of its tab
};
// Each may return what must be done before Generate.
const BINDERS = { txt2img: bindHires, img2img: async () => (await import("./img2img.js")).bindImg2img() };
const OF_TAB = [
  "_prompt textarea", "_neg_prompt textarea", "_seed input", "_ticket textarea", "_saved textarea", "_reply", "_restore", "_results",
  "_aspects button", "_res_switch_btn", "_clear_prompt", "_styles_edit_button", "_random_seed", "_reuse_subseed", "_skip",
];
const NEEDED = {
  txt2img: ["#txt2img_gallery", "#txt2img_hires_size > *"],
  img2img: ["#img2img_pictures > *", "#img2img_resizing .slot-resizing > *", ".slot-scaled-size > *", "#img2img_detect_image_size_btn"],
};
const OF_PAGE = ["#easel_model", "#setting_sd_model_checkpoint input", "#easel_styles", "#styles_answer"];
const built = [];
let started = false;

const there = (selectors) => selectors.every((selector) => document.querySelector(selector));

function look() {
  for (const slot of document.querySelectorAll(".slot:not([data-filled])")) fill(slot);
  for (const tab of formTabs) {
    if (!built.includes(tab) && there([...OF_TAB.map((end) => `#${tab}${end}`), ...NEEDED[tab], ...OF_PAGE])) build(tab);
  }
}

async function fill(slot) {
  const name = [...slot.classList].find((one) => one.startsWith("slot-")).slice(5);
  slot.dataset.filled = name;
  const bind = await brought(BRINGERS[name]); // what can be seen can be used
  const template = document.getElementById(`template-${name}`);
  if (template) slot.append(template.content.cloneNode(true));
  bind?.();
}

async function build(tab) {
  built.push(tab);
  if (!started) start();
  bindPrompts(tab);
  bindParameters(tab);
  bindStylesButton(tab);
  document.getElementById(`${tab}_interrupt`).addEventListener("click", () => act("interrupt"));
  document.getElementById(`${tab}_skip`).addEventListener("click", () => act("skip"));
  const first = built.length === 1;
  if (first) show();
  restore(tab);
  noticeTab();
  if (first) connect();
  const prepare = brought(BINDERS[tab]);
  prepare.catch(() => tabFailed(tab));
  bindGenerate(tab, await prepare); // a click that comes sooner waits
  tabIsBuilt(tab);
}

// What comes with a script of its own; where that cannot be had, the page says so.
async function brought(bring) {
  try {
    return await bring?.();
  } catch (problem) {
    report(say("problem.not_loaded"));
    throw problem;
  }
}

function start() {
  started = true;
  startTranslating();
  follow();
  showHeader();
  showViewer();
  showProgress();
  showProblems();
  bindSubmitting();
  bindStyles();
  bindKeys();
  followTabs();
  addEventListener("pagehide", save);
}

function show() {
  document.documentElement.dataset.ready = "true"; // shows what was built
  document.getElementById("easel_skeleton").remove();
  if (matchMedia("(pointer: fine)").matches && document.activeElement === document.body) box("prompt").focus({ preventScroll: true });
}

new MutationObserver(look).observe(document.querySelector("gradio-app"), { childList: true, subtree: true });
look();
