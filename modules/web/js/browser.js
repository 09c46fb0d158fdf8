// The models that there are: cards with previews, found by kind, folder, family and words. A click uses one: a checkpoint or
// VAE is chosen, a network goes into the prompts of the form that was open last. Foreign text is only ever text here.

import { ask, on, sentenceOf } from "./client.js";
import { onLanguage, say } from "./locale.js";
import { openDetails } from "./model_details.js";
import { kindOf, size, use } from "./model_use.js";

const AT_ONCE = 60; // cards that come when the end of the list is near
const PAUSE_MS = 200;
const SORTS = ["name", "-name", "date", "-date", "size", "-size", "folder"];
const KEPT = "easel.browser";
let models = [];
let total = 0;
let families = {};
let folders = [];
let asking = null;
let duplicates = false;
let order = 0; // of the questions: an old answer draws nothing

const here = (selector) => document.querySelector(`#easel_browser ${selector}`);
const tools = () => document.getElementById("easel_browser_tools");
const cards = () => document.getElementById("easel_cards");

export function bindBrowser() {
  const form = tools();
  let timer = 0;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.search.addEventListener("input", () => (clearTimeout(timer), (timer = setTimeout(look, PAUSE_MS))));
  for (const name of ["folder", "family", "sort"]) form[name].onchange = look;
  form.kind.onchange = () => ((form.folder.value = form.family.value = ""), begin());
  form.querySelector('[data-do="refresh"]').onclick = refresh;
  form.querySelector('[data-do="duplicates"]').onclick = () => ((duplicates = !duplicates), look());
  cards().addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    const model = models[Number(card.dataset.place)];
    if (event.target.closest(".more")) openDetails(model, tell);
    else take(model);
  });
  cards().addEventListener("keydown", walk);
  new IntersectionObserver(([end]) => end.isIntersecting && more()).observe(document.getElementById("easel_browser_end"));
  onLanguage(() => (drawTools(), draw()));
  drawTools(JSON.parse(sessionStorage.getItem(KEPT) ?? "{}"));
  begin();
}

on("models", (event) => {
  const kind = document.getElementById("easel_browser") && tools().kind.value;
  if (kind && (!event.kinds || event.kinds.includes(kind))) begin();
});

// --- asking ----------------------------------------------------------------------------------------------------------

async function begin() {
  const kind = tools().kind.value;
  const answer = await ask(`api/v1/models/folders?kind=${kind}`);
  if (tools().kind.value !== kind) return; // another one was chosen meanwhile, and has asked for its own
  folders = answer?.ok ? answer.body.folders : [];
  look();
}

async function refresh() {
  const answer = await ask(`api/v1/models/refresh?kind=${tools().kind.value}`, {});
  if (!answer?.ok) return tell(sentenceOf(answer?.body) ?? say("problem.not_read", { status: answer?.status ?? "–" }));
  tell(say("browser.refreshed", { n: answer.body.total }));
  begin();
}

async function look() {
  const kept = Object.fromEntries(["kind", "search", "sort"].map((name) => [name, tools()[name].value]));
  sessionStorage.setItem(KEPT, JSON.stringify(kept));
  const own = ++order;
  asking?.abort();
  asking = new AbortController();
  const answer = duplicates ? await ask(`api/v1/models/duplicates?kind=${kept.kind}`, undefined, asking.signal) : await page(0);
  if (own !== order || !answer) return;
  if (!answer.ok) return tell(sentenceOf(answer.body) ?? say("problem.not_read", { status: answer.status }));
  if (duplicates) {
    models = answer.body.groups.flatMap((group, place) => group.models.map((model) => ({ ...model, group: place, certain: group.certain })));
    total = models.length;
    tell(total ? say("browser.wasted", { n: answer.body.groups.length, size: size(answer.body.wasted) }) : say("browser.no_duplicates"));
  } else {
    ({ models, total, families } = answer.body);
  }
  drawTools();
  draw();
}

function page(offset) {
  const { kind, search, folder, family, sort } = tools();
  const query = { kind: kind.value, search: search.value.trim(), folder: folder.value, family: family.value };
  const [by, falling] = sort.value.startsWith("-") ? [sort.value.slice(1), true] : [sort.value, false];
  const wanted = { ...query, sort: by, order: falling ? "desc" : "asc", offset, limit: AT_ONCE };
  return ask(`api/v1/models?${new URLSearchParams(wanted)}`, undefined, asking.signal);
}

async function more() {
  if (duplicates || !models.length || models.length >= total) return;
  const own = ++order;
  const answer = await page(models.length);
  if (own !== order || !answer?.ok) return;
  const first = models.length;
  models.push(...answer.body.models);
  append(first);
}

// --- drawing ---------------------------------------------------------------------------------------------------------

const option = (value, text, selected) => Object.assign(document.createElement("option"), { value, textContent: text, selected });

function drawTools(kept = {}) {
  const form = tools();
  const { kind, folder, family, sort } = form;
  const chosen = { kind: kept.kind || kind.value || "checkpoint", sort: kept.sort || sort.value || "name" };
  kind.replaceChildren(...Object.keys(kindOf).map((one) => option(one, say(`kind.${one}`), one === chosen.kind)));
  sort.replaceChildren(...SORTS.map((one) => option(one, say(`sort.${one}`), one === chosen.sort)));
  const [inside, of] = [folder.value, family.value];
  folder.replaceChildren(option("", say("browser.all_folders")), ...folders.filter((one) => one.folder).map((one) => option(one.folder, `${one.folder} · ${one.count}`, one.folder === inside)));
  family.replaceChildren(option("", say("browser.all_families")), ...Object.entries(families).map(([name, n]) => option(name, `${name === "unknown" ? say("browser.unknown") : name} · ${n}`, name === of)));
  if (kept.search) form.search.value = kept.search;
  form.search.placeholder = say("browser.search");
  folder.parentElement.hidden = folders.length < 2;
  family.parentElement.hidden = !of && Object.keys(families).length < 2;
  for (const name of ["search", "folder", "family", "sort"]) form[name].disabled = duplicates;
  form.querySelector('[data-do="duplicates"]').setAttribute("aria-pressed", String(duplicates));
}

function draw() {
  const focused = document.activeElement?.closest("#easel_cards .card")?.dataset.id;
  cards().replaceChildren();
  append(0);
  if (!focused) return;
  const same = [...cards().children].find((card) => card.dataset.id === focused) ?? cards().firstElementChild;
  same?.querySelector(".use").focus({ preventScroll: true }); // whoever walks by keyboard stays there
}

function append(first) {
  cards().append(...models.slice(first).map((model, place) => drawn(model, first + place)));
  const end = document.getElementById("easel_browser_end");
  const search = tools().search.value.trim();
  end.textContent = total ? say("browser.shown", { n: models.length, total }) : duplicates ? "" : say(search ? "browser.none_found" : "browser.none", { search });
}

function drawn(model, place) {
  const card = document.getElementById("template-model-card").content.firstElementChild.cloneNode(true);
  card.dataset.place = place;
  Object.assign(card.dataset, { kind: model.kind, id: model.id });
  if (model.group !== undefined) card.classList.toggle("odd", model.group % 2 === 1);
  const [button, details] = card.querySelectorAll("button");
  const picture = card.querySelector("img");
  card.querySelector("b").textContent = model.name;
  const facts = [model.family === "unknown" ? "" : model.family, model.dtype, size(model.size)];
  if (duplicates) facts.push(model.folder || "/", say(model.certain ? "browser.certain" : "browser.likely"));
  card.querySelector(".facts").textContent = facts.filter(Boolean).join(" · ");
  card.querySelector(".picture").dataset.letter = (model.name.match(/[\p{L}\p{N}]/u)?.[0] ?? "?").toUpperCase();
  if (model.preview) {
    picture.onload = () => (picture.hidden = false);
    picture.hidden = false; // what is hidden is never loaded
    picture.onerror = () => (picture.hidden = true);
    picture.src = model.preview.slice(1);
  }
  const problem = card.querySelector(".problem");
  problem.hidden = !model.problem;
  problem.textContent = model.problem ?? "";
  button.title = [model.name, model.folder, kindOf[model.kind]?.does && !model.problem ? say(kindOf[model.kind].does) : ""].filter(Boolean).join("\n");
  button.tabIndex = place ? -1 : 0;
  details.tabIndex = -1;
  details.title = say("browser.details");
  details.setAttribute("aria-label", `${say("browser.details")}: ${model.name}`);
  return card;
}

// --- using -----------------------------------------------------------------------------------------------------------

async function take(model) {
  if (model.problem || !kindOf[model.kind]?.does) return openDetails(model, tell);
  tell(await use(model));
}

const tell = (text) => (document.getElementById("easel_browser_told").textContent = text);

// Arrows go from card to card, I opens the details of the one that is focused.
function walk(event) {
  const card = event.target.closest(".card");
  if (!card) return;
  const all = [...cards().children];
  const place = all.indexOf(card);
  const columns = all.findIndex((one) => one.offsetTop > all[0].offsetTop);
  const row = columns < 0 ? all.length : columns;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row, Home: -place, End: all.length - 1 - place };
  if (event.key.toLowerCase() === "i" && !event.ctrlKey && !event.metaKey && !event.altKey) return openDetails(models[Number(card.dataset.place)], tell);
  const next = event.key in moves ? all[place + moves[event.key]]?.querySelector(".use") : null;
  if (!next) return;
  event.preventDefault();
  card.querySelector(".use").tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}
