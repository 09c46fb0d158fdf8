// The picture: the live preview while a run goes on, else the chosen picture, with its film strip, parameters and buttons.

import { emit, on } from "./client.js";
import { fill } from "./fields.js";
import { onLanguage, say } from "./locale.js";
import { report } from "./problems.js";
import { current, pictures } from "./runs.js";

const LARGEST_SCALE = 4; // a small picture is enlarged to be seen, but not beyond recognition
let shown = null; // the picture that is chosen
let following = true; // the newest picture is shown as soon as it comes
let size = null; // what stands on the stage: {width, height} in its own pixels
let actual = false;

const $ = (id) => document.getElementById(id);

export function showViewer() {
  on("picture", (picture) => place(picture));
  on("preview-shown", (event) => following && showPreview(event));
  on("recalled", () => following && !running() && pictures.length && choose(pictures.at(-1)));
  on("forgotten", empty);
  on("changed", leavePreview);
  on("tab", ({ tab }) => tab && moveTo(tab));
  onLanguage(() => shown && describe(shown));
  new ResizeObserver(layOut).observe($("easel_stage"));
  $("easel_actual").onclick = () => setActual(!actual);
  $("easel_full").onclick = openLightbox;
  $("easel_stage").addEventListener("dblclick", openLightbox);
  $("easel_stage").addEventListener("keydown", (event) => event.key === "Enter" && event.target === $("easel_stage") && openLightbox());
  $("easel_film").addEventListener("click", (event) => pick(event.target.closest("button")));
  bindButtons();
  bindLightbox();
}

export const shownPicture = () => shown;

export function followNewest() {
  following = true;
}

// One viewer for all tabs: it stands in the open one, and its parts have that tab's names.
function moveTo(tab) {
  const place = document.getElementById(`${tab}_results`);
  const viewer = document.querySelector(".viewer");
  if (!place || place.contains(viewer)) return;
  place.append(viewer);
  for (const one of [viewer, ...viewer.querySelectorAll("[data-id]")]) one.id = one.dataset.id.replace("{tab}", tab);
  if (selected()) centre(selected());
}

const running = () => current()?.state === "running";

function place(picture) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("role", "option");
  button.setAttribute("aria-selected", "false");
  button.tabIndex = -1;
  button.picture = picture;
  const image = document.createElement("img");
  Object.assign(image, { src: picture.url, alt: "", loading: "lazy", decoding: "async" });
  button.append(image);
  $("easel_film").append(button);
  name(button);
  if (following && !picture.recalled) choose(picture);
}

function name(button) {
  button.title = say("picture_n", { n: pictures.indexOf(button.picture) + 1, seed: button.picture.seed });
  button.setAttribute("aria-label", button.title);
}

function pick(button) {
  if (!button) return;
  choose(button.picture);
  following = button.picture === pictures.at(-1);
}

export function step(by) {
  const next = pictures[pictures.indexOf(shown) + by];
  if (!next) return;
  choose(next);
  following = next === pictures.at(-1);
  if ($("easel_film").contains(document.activeElement)) selected()?.focus({ preventScroll: true });
}

const selected = () => $("easel_film").querySelector('[aria-selected="true"]');

function choose(picture) {
  shown = picture;
  for (const button of $("easel_film").children) {
    const chosen = button.picture === picture;
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    if (chosen) centre(button);
  }
  describe(picture);
  show(picture.url, () => shown === picture);
}

function centre(button) {
  button.parentElement.scrollLeft = button.offsetLeft - button.parentElement.clientWidth / 2 + button.clientWidth / 2;
}

// Swaps only once the new picture is decoded: the stage is never blank in between.
async function show(url, stillWanted, known = null) {
  const next = new Image();
  next.src = url;
  await next.decode().catch(() => null);
  if (!stillWanted() || !next.naturalWidth) return;
  size = known ?? { width: next.naturalWidth, height: next.naturalHeight };
  const picture = $("easel_picture");
  picture.src = url;
  picture.alt = shown && !known ? shown.infotext.split("\n")[0].slice(0, 300) : "";
  picture.hidden = false;
  $("easel_welcome").hidden = true;
  $("easel_stage_tools").hidden = false;
  $("easel_stage").classList.toggle("preview", known !== null);
  if ($("easel_lightbox").open && !known) $("easel_lightbox").querySelector("img").src = url;
  layOut();
}

let latest = null;

function showPreview(event) {
  latest = event;
  const { width, height } = event;
  show(event.image, () => latest === event && following && running(), { width, height });
}

// A run that ended without a picture leaves its preview behind: back to what was shown before.
function leavePreview() {
  if (running() || !$("easel_stage").classList.contains("preview")) return;
  latest = null;
  $("easel_stage").classList.remove("preview");
  if (shown) show(shown.url, () => !running());
  else empty();
}

function layOut() {
  if (!size) return;
  const stage = $("easel_stage");
  const fitting = Math.min(stage.clientWidth / size.width, stage.clientHeight / size.height, LARGEST_SCALE);
  const scale = actual ? 1 / devicePixelRatio : fitting;
  stage.classList.toggle("actual", actual);
  Object.assign($("easel_picture").style, { width: `${Math.round(size.width * scale)}px`, height: `${Math.round(size.height * scale)}px` });
}

function setActual(now) {
  actual = now;
  $("easel_actual").setAttribute("aria-pressed", String(now));
  layOut();
}

function describe(picture) {
  $("easel_infotext").textContent = picture.infotext;
  $("easel_path").textContent = picture.path ? say("saved_as", { path: picture.path }) : say("not_saved");
  $("easel_warning").textContent = picture.warning ?? "";
  $("easel_warning").hidden = !picture.warning;
  for (const button of document.querySelectorAll(".result-actions button")) button.disabled = false;
  $("easel_copy_path").disabled = !picture.path;
  for (const button of $("easel_film").children) name(button);
}

function empty() {
  shown = size = null;
  $("easel_film").replaceChildren();
  $("easel_infotext").textContent = $("easel_path").textContent = $("easel_warning").textContent = "";
  $("easel_warning").hidden = true;
  $("easel_picture").hidden = $("easel_stage_tools").hidden = true;
  $("easel_welcome").hidden = false;
  for (const button of document.querySelectorAll(".result-actions button")) button.disabled = true;
}

function bindButtons() {
  $("easel_copy_infotext").onclick = (event) => copy(shown.infotext, event.currentTarget);
  $("easel_copy_path").onclick = (event) => copy(shown.path, event.currentTarget);
  document.querySelector('.result-actions [data-do="open"]').onclick = () => window.open(shown.url, "_blank", "noopener");
  for (const button of document.querySelectorAll(".result-actions [data-send]")) button.onclick = () => sendOn(button.dataset.send);
  $("easel_reuse_all").onclick = () => fill({ infotext: shown.infotext });
}

async function sendOn(where) {
  const { url, infotext } = shown;
  const answer = await fetch(url).catch(() => null);
  if (!answer?.ok) return report(say("problem.picture_gone"));
  const { send } = await import("./sending.js");
  send(where, await answer.blob(), infotext);
}

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text, button); // plain http on another machine has no clipboard interface
  }
  button.textContent = say("copied");
  setTimeout(() => (button.textContent = say(button.dataset.text)), 1500);
}

// Beside the button: while a dialog is open, nothing outside of it can be selected.
function copyBySelection(text, button) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "wire";
  button.parentElement.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function openLightbox() {
  if (!shown) return;
  $("easel_lightbox").querySelector("img").src = shown.url;
  $("easel_lightbox").showModal();
}

function bindLightbox() {
  const lightbox = $("easel_lightbox");
  lightbox.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.step) step(Number(button.dataset.step));
    else lightbox.close();
  });
  lightbox.addEventListener("close", () => emit("lightbox-closed", {}));
}
