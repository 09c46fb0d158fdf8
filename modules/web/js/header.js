// The header: what the model manager does, how long the queue is, dark or light, and the language.

import { ask, on } from "./client.js";
import { inWords, language, onLanguage, say, setLanguage } from "./locale.js";
import { remind } from "./problems.js";
import { unfinished } from "./runs.js";

const OF_HEADER = ["checkpoint", "vae"]; // kinds whose lists stand there
const THEME = "easel.theme";
const system = matchMedia("(prefers-color-scheme: dark)");
let model = { state: "starting", text: "" };
let waiting = 0; // jobs of everyone
let timer = 0;
let later = 0;

export function showHeader() {
  document.getElementById("easel_theme").onclick = flipTheme;
  document.getElementById("easel_sysinfo_open").onclick = async () => (await import("./system_info.js")).openSystemInfo();
  document.getElementById("easel_language").onclick = () => setLanguage(language === "zh" ? "en" : "zh");
  on("model", (event) => ((model = event), draw()));
  on("changed", countSoon);
  on("open", countSoon);
  on("models", ({ kinds }) => kinds.some((kind) => OF_HEADER.includes(kind)) && refreshLists());
  onLanguage(draw);
  system.addEventListener("change", applyTheme);
  new MutationObserver(applyTheme).observe(document.body, { attributeFilter: ["class"] }); // Gradio has ideas of its own
  applyTheme();
  draw();
}

function draw() {
  const state = document.getElementById("easel_model");
  state.dataset.state = model.state;
  const told = model.state === "ready" ? "" : model.text; // once it is ready, its name stands in the list beside
  state.querySelector(".words").textContent = told || say(`model.${model.state}`);
  state.title = model.text || say(`model.${model.state}`);
  const queue = document.getElementById("easel_queue");
  const length = Math.max(waiting, unfinished().length);
  queue.style.visibility = length ? "visible" : "hidden"; // its place stays
  queue.textContent = say("queue", { n: length });
}

function countSoon() {
  draw();
  clearTimeout(timer);
  timer = setTimeout(count, 250);
}

async function count() {
  const answer = await ask("api/v1/status");
  if (!answer?.ok) return;
  const status = answer.body;
  waiting = status.waiting + (status.running ? 1 : 0);
  model = status.model;
  for (const problem of status.problems) remind(inWords(problem));
  draw();
}

// Once none is open: Gradio fails at an open list that becomes shorter, and nobody wants it to move under the hand.
function refreshLists() {
  clearTimeout(later);
  if (document.querySelector(".option-list")) later = setTimeout(refreshLists, 300);
  else document.getElementById("refresh_sd_model_checkpoint")?.click();
}

const wanted = () => localStorage.getItem(THEME) ?? "system";
const isDark = () => (wanted() === "system" ? system.matches : wanted() === "dark");

function flipTheme() {
  const dark = !isDark();
  localStorage.setItem(THEME, dark === system.matches ? "system" : dark ? "dark" : "light");
  applyTheme();
}

function applyTheme() {
  const dark = isDark();
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  if (document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
}
