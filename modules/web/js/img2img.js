// img2img: its sub-tabs with their pictures, and what Generate sends of them.

import { Canvas } from "./canvas.js";
import { number, value, watch } from "./fields.js";
import { takeFiles, upload } from "./inputs.js";
import { onLanguage, say } from "./locale.js";
import { checkpointOf } from "./page_data.js";
import { setSize } from "./parameters.js";
import { report } from "./problems.js";

const KINDS = { img2img: "view", sketch: "paint", inpaint: "mask", inpaint_sketch: "paint", upload_base: "view", upload_mask: "view" };
const MASKED = ["inpaint", "inpaint_sketch", "inpaint_upload"];
const SAVED = "easel.img2img";
const TAB = "img2img";
const canvases = {};
const batch = { images: [], masks: [] }; // {id, width, height, name}
let mode = "img2img";
let byScale = false;

const $ = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(`#img2img_settings ${selector}`);

// Returns what must be done before each Generate.
export function bindImg2img() {
  for (const [name, kind] of Object.entries(KINDS)) {
    canvases[name] = new Canvas(document.querySelector(`[data-canvas="${name}"]`), kind, remember);
  }
  bindTabList($("mode_img2img"), "mode", setMode);
  bindTabList($("img2img_resize_tabs"), "by", (by) => setResizing(by === "scale"));
  for (const button of all("[data-copy]")) button.onclick = () => copyTo(button.dataset.copy);
  for (const [kind, list] of [["images", "img2img_batch_upload"], ["masks", "img2img_batch_masks"]]) bindBatch(kind, $(list));
  $("img2img_detect_image_size_btn").addEventListener("click", detectSize);
  recall();
  watch(() => ({ text: scaledWords(), draw: drawScaled }));
  watch(() => ({ text: String(edits()), draw: () => $("img2img_settings").classList.toggle("edits", edits()) }));
  onLanguage(() => [drawScaled(), drawBatch()]);
  return prepare;
}

// A picture from elsewhere, for one of the modes.
export async function receive(where, file) {
  setMode(where);
  return mainCanvas().take(file);
}

// --- sub-tabs ---------------------------------------------------------------------------------------------------------

function bindTabList(list, key, choose) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) choose(tab.dataset[key]);
  });
  list.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = by && tabs[tabs.indexOf(document.activeElement) + by];
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.click();
  });
}

function select(list, key, chosen) {
  for (const tab of list.querySelectorAll("[role=tab]")) {
    const selected = tab.dataset[key] === chosen;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
  }
}

function setMode(chosen) {
  mode = chosen;
  select($("mode_img2img"), "mode", mode);
  for (const panel of all("[data-panel]")) panel.hidden = panel.dataset.panel !== mode;
  for (const button of all("[data-copy]")) button.hidden = button.dataset.copy === mode;
  $("img2img_copy").hidden = mode === "batch";
  $("img2img_settings").dataset.mode = mode;
  remember();
}

function setResizing(by) {
  byScale = by;
  select($("img2img_resize_tabs"), "by", by ? "scale" : "size");
  $("img2img_resizing").classList.toggle("by-scale", by);
  drawScaled();
  remember();
}

const mainCanvas = () => canvases[mode === "inpaint_upload" ? "upload_base" : mode];
const firstPicture = () => (mode === "batch" ? batch.images[0] : mainCanvas()?.picture) ?? null;

// With what was painted on it, but without a mask.
async function copyTo(where) {
  const from = mainCanvas();
  if (!from?.picture) return report(say("problem.no_picture"));
  const file = from.kind === "paint" && from.drawn ? await from.painted() : null;
  setMode(where);
  try {
    await mainCanvas().show(file ? await upload(file) : from.picture);
  } catch (problem) {
    report(problem.message);
  }
}

// --- sizes --------------------------------------------------------------------------------------------------------------

function detectSize() {
  const picture = firstPicture();
  if (!picture) return report(say("problem.no_picture"));
  setSize(...[picture.width, picture.height].map((side) => Math.min(2048, Math.max(64, Math.round(side / 8) * 8))));
}

function scaledWords() {
  const picture = firstPicture();
  if (!byScale || !picture) return "";
  const sides = [picture.width, picture.height];
  const to = sides.map((side) => Math.floor(Math.trunc(side * number("scale", TAB)) / 8) * 8);
  return say("size_change", { from: sides.join("x"), to: to.join("x") });
}

const drawScaled = () => (document.querySelector("#img2img_resizing .slot-scaled-size .words").textContent = scaledWords() || say("no_size_yet"));

const edits = () => checkpointOf(value("checkpoint", TAB))?.edits === true;

// --- a batch of files ---------------------------------------------------------------------------------------------------

function bindBatch(kind, drop) {
  takeFiles(drop, async (files) => {
    drop.classList.add("busy");
    for (const file of files) {
      try {
        batch[kind].push({ ...(await upload(file)), name: file.name });
      } catch (problem) {
        report(`${file.name}: ${problem.message}`);
      }
      drawBatch();
    }
    drop.classList.remove("busy");
    remember();
  });
  drop.parentElement.querySelector("[data-clear]").onclick = () => {
    batch[kind] = [];
    drawBatch();
    remember();
  };
  drawBatch();
}

function drawBatch() {
  for (const [kind, id] of [["images", "img2img_batch_upload"], ["masks", "img2img_batch_masks"]]) {
    const row = $(id).parentElement;
    const names = batch[kind].map(({ name }) => name);
    row.querySelector(".batch-names").textContent = names.length ? say("batch_files", { n: names.length, names: names.join(", ") }) : "";
    row.querySelector("[data-clear]").hidden = names.length === 0;
  }
}

// --- what Generate sends ------------------------------------------------------------------------------------------------

async function prepare() {
  const init = { mode, by_scale: byScale, ...(await pictures()) };
  remember();
  return { init };
}

const ids = (...kept) => kept.map(({ id }) => id);

async function pictures() {
  const canvas = mainCanvas();
  if (!firstPicture()) throw new Error(say("problem.no_picture"));
  if (mode === "batch") return { images: ids(...batch.images), masks: ids(...batch.masks) };
  if (mode === "img2img") return { images: ids(canvas.picture) };
  if (mode === "inpaint_upload") {
    if (!canvases.upload_mask.picture) throw new Error(say("problem.no_mask"));
    return { images: ids(canvas.picture), masks: ids(canvases.upload_mask.picture) };
  }
  const everything = mode === "inpaint" && value("init.mask.invert", TAB) === "Inpaint not masked";
  if (MASKED.includes(mode) && !canvas.drawn && !everything) throw new Error(say("problem.nothing_drawn"));
  if (mode === "inpaint") return { images: ids(canvas.picture), masks: ids(await upload(await canvas.mask())) };
  if (!canvas.drawn) return { images: ids(canvas.picture) };
  const painted = ids(await upload(await canvas.painted()));
  return mode === "sketch" ? { images: painted } : { images: painted, original: canvas.picture.id };
}

// --- across a reload: the pictures, not what was drawn on them --------------------------------------------------------

let recalling = false;

function remember() {
  if (recalling || !canvases.upload_mask) return;
  const kept = Object.fromEntries(Object.entries(canvases).map(([name, canvas]) => [name, canvas.picture]));
  sessionStorage.setItem(SAVED, JSON.stringify({ mode, byScale, kept, batch }));
}

function recall() {
  const saved = JSON.parse(sessionStorage.getItem(SAVED) ?? "{}");
  recalling = true;
  setMode(saved.mode ?? mode);
  setResizing(saved.byScale ?? byScale);
  Object.assign(batch, saved.batch);
  drawBatch();
  const shown = Object.entries(saved.kept ?? {}).filter(([, picture]) => picture);
  // A picture that the server has forgotten meanwhile is just not there any more.
  Promise.allSettled(shown.map(([name, picture]) => canvases[name].show(picture))).then(() => {
    recalling = false;
    remember();
  });
}
