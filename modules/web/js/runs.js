// What this tab has asked for: its runs and their pictures, kept current from the stream of events. Draws nothing.

import { ask, client, emit, on } from "./client.js";

const OPEN = ["queued", "running"];
const runs = new Map(); // job id → {id, state, position, error, images, progress, preview}
export const pictures = []; // in order of making: {job, index, url, infotext, seed, path, warning}

export const unfinished = () => [...runs.values()].filter((run) => OPEN.includes(run.state));

// The run that the page speaks of: the running one, else the next in line, else the latest.
export function current() {
  const open = unfinished();
  return open.find((run) => run.state === "running") ?? open[0] ?? [...runs.values()].at(-1) ?? null;
}

export function follow() {
  on("job", (event) => update(event));
  on("progress", (event) => {
    Object.assign(known(event.job), { progress: event, state: "running" });
    emit("changed", {});
  });
  on("preview", (event) => {
    known(event.job).preview = event;
    emit("preview-shown", event);
  });
  on("image", (event) => add(event));
  on("open", recall);
  on("renamed", forget);
}

function known(id) {
  if (!runs.has(id)) runs.set(id, { id, state: "queued", position: 1, error: null, images: 0, progress: null, preview: null });
  return runs.get(id);
}

function update(event) {
  const run = known(event.job);
  const before = run.state;
  Object.assign(run, { state: event.state, position: event.position, error: event.error });
  if (event.images !== undefined) run.images = event.images;
  if (!OPEN.includes(run.state)) run.preview = null;
  if (run.state === "failed" && before !== "failed") emit("run-failed", run);
  emit("changed", {});
}

function add(event) {
  if (pictures.some((picture) => picture.job === event.job && picture.index === event.index)) return;
  known(event.job).preview = null;
  pictures.push(event);
  emit("picture", event);
}

// After a reload, or a pause of the connection: everything of this tab that has happened meanwhile.
async function recall() {
  const answer = await ask(`api/v1/jobs?client=${encodeURIComponent(client)}`);
  if (!answer?.ok) return;
  for (const job of answer.body.toReversed()) {
    for (const image of job.images ?? []) add({ ...image, job: job.id, recalled: true });
    if (runs.has(job.id) && OPEN.includes(job.state)) continue; // the stream knows better
    update({ job: job.id, state: job.state, position: job.position, error: job.error, images: job.images?.length ?? 0 });
  }
  emit("recalled", {});
}

function forget() {
  runs.clear();
  pictures.length = 0;
  emit("changed", {});
  emit("forgotten", {});
}

export async function act(what) {
  const run = current();
  if (!run || !OPEN.includes(run.state)) return;
  const verb = run.state === "queued" ? "cancel" : what;
  run.stopping = verb === "interrupt";
  emit("changed", {});
  await ask(`api/v1/jobs/${encodeURIComponent(run.id)}/${verb}`, {});
}
