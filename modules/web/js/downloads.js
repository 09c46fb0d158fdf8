// Downloads of models: a link is pasted, the server says what it is, one is chosen, and its progress is shown. Foreign text
// is only ever text here.

import { ask, on, sentenceOf } from "./client.js";
import { inWords, language, onLanguage, say } from "./locale.js";
import { kindOf, use } from "./model_use.js";

const SHOWN = 30; // of the list
const KEYS = { Civitai: "civitai_api_key", "Hugging Face": "huggingface_token" };
// What can be done with a download, and in which states.
const ACTIONS = {
  pause: ["queued", "running"],
  resume: ["paused", "failed"],
  cancel: ["queued", "running", "paused", "failed"],
  use: ["done"], // as its kind is used
};
const downloads = new Map(); // id → as the server tells it
const rows = new Map(); // id → element
let listed = { enabled: true, kinds: {}, keys: {} };
let found = null;
let typed = ""; // as it was asked for: it may hold a key, which the answer does not
let looking = null; // AbortController of the question that is under way
let asked = null; // promise of the first list: it names the folders
let told = { id: "", values: {}, text: "", bad: false };

const here = (selector) => document.querySelector(`#easel_downloads ${selector}`);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

export function bindDownloads() {
  here("#easel_download_ask").addEventListener("submit", (event) => {
    event.preventDefault();
    typed = here("#easel_download_what").value.trim();
    if (typed) look(typed);
  });
  // A link that was pasted needs no click.
  here("#easel_download_what").addEventListener("paste", () => setTimeout(() => here("#easel_download_ask").requestSubmit()));
  const form = here("#easel_download_found");
  form.addEventListener("submit", (event) => (event.preventDefault(), start()));
  form.version.onchange = () => look((typed = form.version.value));
  form.file.onchange = () => (found.source === "Hugging Face" ? look(typed, form.file.value) : chooseFile());
  form.kind.onchange = showStart;
  form.querySelector('[data-do="close"]').onclick = () => (show(null), here("#easel_download_what").focus());
  onLanguage(draw);
  draw();
  asked = refresh();
}

// An answer and an event about the same may overtake each other.
function take(one) {
  if ((downloads.get(one.id)?.revision ?? 0) < one.revision) downloads.set(one.id, one);
}

on("download", (event) => {
  take(event);
  if (here("#easel_download_list")) drawOne(event.id);
});
on("open", () => document.getElementById("easel_downloads") && refresh());

async function refresh() {
  const answer = await ask("api/v1/downloads");
  if (!answer?.ok) return tell("download.unreachable", {}, true);
  listed = answer.body;
  for (const one of listed.downloads.toReversed()) take(one);
  draw();
}

// --- what it is ------------------------------------------------------------------------------------------------------

async function look(what, file) {
  looking?.abort();
  looking = new AbortController();
  const own = looking;
  tell("download.looking");
  if (!file) show(null);
  const [answer] = await Promise.all([ask("api/v1/downloads/resolve", { what, file }, own.signal), asked]);
  if (own !== looking) return;
  looking = null;
  if (!answer?.ok) return refused(answer);
  tell("");
  show(answer.body);
  if (document.activeElement === document.body || here("#easel_download_ask").contains(document.activeElement)) {
    here('[data-do="start"]').focus({ preventScroll: true });
  }
}

function show(what) {
  found = what;
  const form = here("#easel_download_found");
  form.hidden = !found;
  if (!found) return;
  const title = form.querySelector("h3 a");
  title.textContent = found.title;
  if (found.page) title.href = found.page;
  else title.removeAttribute("href");
  const picture = here("#easel_download_preview");
  picture.hidden = !found.has_preview;
  if (found.has_preview) picture.src = `api/v1/downloads/preview?what=${encodeURIComponent(found.what)}`;
  picture.onerror = () => (picture.hidden = true);
  form.version.replaceChildren(...found.versions.map(({ what, name }) => make("option", { value: what, textContent: name || what, selected: what === found.what })));
  form.version.parentElement.hidden = found.versions.length < 2;
  form.file.replaceChildren(...found.choices.map((choice) => make("option", { value: choice.id, textContent: nameOf(choice), disabled: !!choice.refused, selected: choice.id === found.chosen })));
  chooseFile();
  drawFound();
}

const choice = () => found.choices.find(({ id }) => id === here("#easel_download_found").file.value) ?? found.choices[0];
const nameOf = (one) => [one.name, one.label, one.size === null ? "" : bytes(one.size)].filter(Boolean).join(" · ");

function chooseFile() {
  const form = here("#easel_download_found");
  const chosen = choice();
  drawKinds(chosen.kind);
  form.name.value = chosen.name;
  drawFound();
  showStart();
}

function drawKinds(selected) {
  const kinds = Object.entries(listed.kinds).map(([kind, folder]) => make("option", { value: kind, textContent: say("download.into", { kind: say(`kind.${kind}`), folder }), selected: kind === selected }));
  const none = selected ? [] : [make("option", { value: "", textContent: say("download.choose_kind"), selected: true })];
  here("#easel_download_found").kind.replaceChildren(...none, ...kinds);
}

function showStart() {
  here('[data-do="start"]').disabled = !listed.enabled || !here("#easel_download_found").kind.value || !!choice()?.refused;
}

// What changes with the language.
function drawFound() {
  const form = here("#easel_download_found");
  const chosen = choice();
  const facts = [found.source, found.version, found.base_model, found.family, chosen.size === null ? "" : bytes(chosen.size)];
  form.querySelector(".facts").textContent = [...new Set(facts.filter(Boolean))].join(" · ");
  form.querySelector(".words").textContent = found.words.length ? say("download.words", { words: found.words.join(", ") }) : "";
  const notes = [
    ...(chosen.pickled ? [say("download.pickled")] : []),
    ...(chosen.refused ? [inWords(chosen.refused)] : []),
    ...found.notes.map(inWords),
    ...found.licence.map((text) => say("download.licence", { text: inWords(text) })),
    ...(chosen.sha256 ? [`SHA-256 ${chosen.sha256.slice(0, 16)}…`] : []),
  ];
  form.querySelector(".notes").replaceChildren(...notes.map((textContent) => make("li", { textContent })));
}

async function start() {
  const form = here("#easel_download_found");
  const own = choice();
  const wish = form.name.value.trim();
  here('[data-do="start"]').disabled = true;
  const answer = await ask("api/v1/downloads", { what: typed, file: own.id, kind: form.kind.value, name: wish === own.name ? null : wish });
  showStart();
  if (!answer?.ok) return refused(answer);
  const known = downloads.get(answer.body.id);
  downloads.delete(answer.body.id); // what is asked for comes to the front
  downloads.set(answer.body.id, known ?? answer.body);
  take(answer.body);
  here("#easel_download_what").value = "";
  show(null);
  tell("");
  draw();
  here("#easel_download_what").focus({ preventScroll: true });
}

function refused(answer) {
  const sentence = sentenceOf(answer?.body);
  tell(sentence ? "" : "download.unreachable", {}, true, sentence ?? "");
  if (answer?.body?.detail?.[0]?.asks_for) here("#easel_download_keys").open = true;
}

function tell(id, values = {}, bad = false, text = "") {
  told = { id, values, text, bad };
  drawTold();
}

function drawTold() {
  const place = here("#easel_download_told");
  const usual = () => (listed.enabled ? say("download.hint") : inWords(listed.reason));
  place.textContent = told.text ? inWords(told.text) : told.id ? say(told.id, told.values) : usual();
  place.classList.toggle("failed", told.bad || !listed.enabled);
}

// --- the list --------------------------------------------------------------------------------------------------------

function draw() {
  here("#easel_download_what").placeholder = say("download.what_hint");
  for (const control of here("#easel_download_ask").elements) control.disabled = !listed.enabled;
  drawTold();
  if (found) (drawKinds(here("#easel_download_found").kind.value), drawFound(), showStart());
  const shown = [...downloads.keys()].slice(-SHOWN).reverse();
  for (const id of rows.keys()) if (!shown.includes(id)) forget(id);
  for (const id of shown) drawOne(id);
  here("#easel_download_list").append(...shown.map((id) => rows.get(id)));
  drawKeys();
}

function forget(id) {
  rows.get(id)?.remove();
  rows.delete(id);
}

function drawOne(id) {
  const one = downloads.get(id);
  if (!rows.has(id)) {
    rows.set(id, row(id));
    here("#easel_download_list").prepend(rows.get(id));
  }
  const element = rows.get(id);
  element.dataset.state = one.state;
  element.querySelector("b").textContent = one.place;
  element.querySelector("b").title = `${one.title} – ${one.source}`;
  const bar = element.querySelector("progress");
  const part = one.state === "done" ? 1 : one.size ? Math.min(1, one.received / one.size) : null;
  if (part === null) bar.removeAttribute("value");
  else bar.value = part;
  bar.hidden = !["queued", "running", "paused"].includes(one.state);
  bar.setAttribute("aria-label", one.place);
  element.querySelector("p").textContent = stateOf(one);
  element.querySelector("p").classList.toggle("failed", one.state === "failed");
  for (const button of element.querySelectorAll("button")) {
    const what = button.dataset.do;
    const words = what === "use" ? kindOf[one.kind]?.does : `download.${what}`;
    button.hidden = !words || !ACTIONS[what].includes(one.state);
    if (button.hidden) continue;
    button.textContent = say(words);
    button.setAttribute("aria-label", `${button.textContent}: ${one.place}`);
  }
  if (one.state === "failed" && one.asks_for) here("#easel_download_keys").open = true;
}

function row(id) {
  const buttons = Object.keys(ACTIONS).map((what) => {
    const button = make("button", { type: "button", className: "plain" });
    button.dataset.do = what;
    button.onclick = () => (what === "use" ? useOne(downloads.get(id)) : act(id, what));
    return button;
  });
  return make("li", {}, make("b"), make("progress", { max: 1 }), make("p"), make("span", { className: "row-actions" }, ...buttons));
}

async function act(id, what) {
  const answer = await ask(`api/v1/downloads/${id}/${what}`, {});
  if (!answer?.ok) return refused(answer);
  take(answer.body);
  drawOne(id);
}

// As a click on its card does.
async function useOne({ kind, place }) {
  const file = place.slice(place.lastIndexOf("/") + 1);
  const query = { kind, search: file.replace(/\.[^.]*$/, ""), sort: "date", order: "desc" };
  const answer = await ask(`api/v1/models?${new URLSearchParams(query)}`);
  const model = answer?.ok && answer.body.models.find((one) => !one.problem && [file, query.search].includes(one.name));
  tell("", {}, !model, model ? await use(model) : say("download.not_listed"));
}

function stateOf(one) {
  const size = one.size === null ? say("download.unknown_size") : bytes(one.size);
  const note = inWords(one.note);
  const amount = say("download.amount", { received: bytes(one.received), size });
  switch (one.state) {
    case "running": {
      const left = one.seconds_left === null ? "" : say("download.left", { time: duration(one.seconds_left) });
      const pace = one.speed > 0 ? say("download.speed", { speed: bytes(one.speed) }) : "";
      return [amount, pace, left, note].filter(Boolean).join(" · ");
    }
    case "done":
      return [say("download.done"), one.size === null ? "" : bytes(one.size), note].filter(Boolean).join(" · ");
    case "failed":
      return inWords(one.error);
    case "cancelled":
      return say("download.cancelled");
    default:
      return [say(`download.${one.state}`), amount, note].filter(Boolean).join(" · ");
  }
}

function bytes(count) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const power = Math.min(3, count > 0 ? Math.floor(Math.log10(count) / 3) : 0);
  const digits = power === 3 ? 2 : power === 2 && count < 1e8 ? 1 : 0;
  const format = { style: "unit", unit: units[power], minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(language, format).format(count / 1000 ** power);
}

function duration(seconds) {
  const [unit, value] = seconds < 90 ? ["second", seconds] : seconds < 5400 ? ["minute", seconds / 60] : ["hour", seconds / 3600];
  return new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "short", maximumFractionDigits: 0 }).format(Math.ceil(value));
}

// --- keys: written, never read ---------------------------------------------------------------------------------------

function drawKeys() {
  const place = here("#easel_download_keys");
  if (!place.querySelector("form")) place.append(...Object.entries(KEYS).map(([hub, setting]) => keyForm(hub, setting)));
  for (const form of place.querySelectorAll("form")) {
    const held = listed.keys[form.dataset.hub] ?? "";
    form.querySelector("input").placeholder = say(`download.key_${held || "none"}`);
    form.querySelector('[data-do="save"]').textContent = say("download.key_save");
    form.querySelector('[data-do="forget"]').textContent = say("download.key_forget");
    form.querySelector('[data-do="forget"]').hidden = held !== "settings";
    for (const control of form.elements) control.disabled = !listed.enabled;
  }
}

function keyForm(hub, setting) {
  const input = make("input", { type: "password", autocomplete: "off", maxLength: 512 });
  const save = make("button", { type: "submit", className: "plain" });
  const drop = make("button", { type: "button", className: "plain" });
  save.dataset.do = "save";
  drop.dataset.do = "forget";
  const label = make("label", {}, make("span", { textContent: hub, translate: false }), input);
  const form = make("form", { translate: false }, label, save, drop);
  form.dataset.hub = hub;
  const put = async (value) => {
    const answer = await ask("sdapi/v1/options", { [setting]: value });
    if (!answer?.ok) return refused(answer);
    input.value = "";
    tell("download.key_kept");
    refresh();
  };
  form.addEventListener("submit", (event) => (event.preventDefault(), input.value.trim() && put(input.value.trim())));
  drop.onclick = () => put("");
  return form;
}
