// The line under the picture: bar, step, seconds left; and which of Interrupt and Skip can be pressed.

import { on } from "./client.js";
import { onLanguage, say } from "./locale.js";
import { current, unfinished } from "./runs.js";

let sending = false;
let offline = false;
let announced = "";

export function showProgress() {
  for (const type of ["changed", "recalled", "tab"]) on(type, draw);
  on("offline", () => ((offline = true), draw()));
  on("open", () => ((offline = false), draw()));
  onLanguage(draw);
  draw();
}

export function setSending(now) {
  sending = now;
  draw();
}

export function duration(seconds) {
  if (!(seconds >= 0)) return "";
  if (seconds < 60) return say("seconds", { n: seconds < 10 ? seconds.toFixed(1) : Math.round(seconds) });
  return say("minutes", { m: Math.floor(seconds / 60), s: Math.round(seconds % 60) });
}

function draw() {
  const run = current();
  const running = run?.state === "running";
  const loaded = running && run.progress?.phase === "loading" ? run.progress.loaded : null; // of the checkpoint
  const part = running ? (loaded ?? run.progress?.progress ?? 0) : run?.state === "done" && !sending ? 1 : 0;
  const bar = document.querySelector(".viewer .bar");
  if (!bar) return;
  bar.firstElementChild.style.transform = `scaleX(${part})`;
  bar.classList.toggle("busy", sending || ["queued", "running"].includes(run?.state));
  bar.setAttribute("aria-valuenow", Math.round(part * 100));
  document.getElementById("easel_state").textContent = stateWords(run);
  document.getElementById("easel_eta").textContent = running ? etaWords(run.progress) : "";
  document.title = running && part > 0 ? `${Math.round(part * 100)} % · Easel` : "Easel";
  press("interrupt", unfinished().length > 0);
  press("skip", running);
  announce(run);
}

function press(name, possible) {
  for (const button of document.querySelectorAll(`.actions button.${name}`)) button.disabled = !possible;
}

function stateWords(run) {
  if (offline) return say("state.offline");
  if (sending && run?.state !== "running") return say("state.sending");
  if (!run) return say("state.idle");
  if (run.state === "queued") return run.position > 1 ? say("state.queued_behind", { n: run.position }) : say("state.queued");
  if (run.state === "done") return run.progress ? say("state.done", { time: duration(run.progress.elapsed_s) }) : say("state.idle");
  if (run.state === "interrupted") return say("state.interrupted", { n: run.images });
  if (run.state !== "running") return say(`state.${run.state}`);
  if (run.stopping) return say("state.stopping");
  const progress = run.progress;
  if (!progress) return say("state.encoding");
  const counted = { ...progress, batch: progress.batch + 1 }; // people count from 1
  if (progress.phase === "sampling") return say(progress.batches > 1 ? "state.sampling_batch" : "state.sampling", counted);
  if (progress.phase === "loading" && progress.loaded > 0) return say("state.loading_part", { n: Math.round(progress.loaded * 100) });
  return say(`state.${progress.phase}`);
}

function etaWords(progress) {
  const words = [];
  if (progress?.eta_s > 0) words.push(say("eta", { time: duration(progress.eta_s) }));
  if (progress?.waiting > 0) words.push(say("waiting", { n: progress.waiting }));
  return words.join(" · ");
}

// Screen readers hear when a run starts, waits or ends, not every step.
function announce(run) {
  const now = run ? `${run.id} ${run.state}` : "";
  if (now === announced || (run?.state === "running" && !run.progress)) return;
  announced = now;
  document.getElementById("easel_live").textContent = run ? stateWords(run) : "";
}
