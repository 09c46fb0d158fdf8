// All that is known of one model: facts, its author's and the user's words, notes that are written beside it in A1111's
// format, and its preview. A dialog, made when it is first asked for. Foreign text is only ever text here.

import { ask, client, sentenceOf } from "./client.js";
import { takeFiles } from "./inputs.js";
import { onLanguage, say, translate } from "./locale.js";
import { insertWords, kindOf, size, use } from "./model_use.js";
import { shownPicture } from "./viewer.js";

const NOTES = ["activation_text", "negative_text", "preferred_weight", "description", "notes"];
const FACTS = ["family", "base_model", "dtype", "prediction", "format", "resolution", "size", "modified", "folder", "sha256"];
const MOST_WORDS = 40;
let dialog = null;
let model = null; // as the card has it
let known = null; // as the server told it
let done = () => {}; // says what was done, beside the cards

export async function openDetails(wanted, tell) {
  dialog ??= make();
  const answer = await ask(`api/v1/models/${wanted.id}`);
  if (!answer?.ok) return tell(sentenceOf(answer?.body) ?? say("problem.not_read", { status: answer?.status ?? "–" }));
  [model, known, done] = [wanted, answer.body, tell];
  const form = dialog.querySelector("form");
  for (const name of NOTES) form[name].value = known[name] || "";
  draw();
  told("");
  if (!dialog.open) dialog.showModal();
  dialog.querySelector(".columns").scrollTop = 0;
}

function make() {
  const made = document.getElementById("template-model-details").content.firstElementChild.cloneNode(true);
  document.body.append(made);
  translate(made);
  const button = (name) => made.querySelector(`[data-do="${name}"]`);
  button("close").onclick = () => made.close();
  button("save").onclick = save;
  button("use").onclick = async () => {
    if (!(await save())) return;
    made.close();
    done(await use(model, known));
  };
  button("hash").onclick = hash;
  button("shown").onclick = () => {
    const [, job, index] = shownPicture()?.url.match(/api\/v1\/jobs\/(\w+)\/images\/(\d+)/) ?? [];
    if (job) preview(JSON.stringify({ job, index: Number(index) }), "application/json");
    else told(say("details.nothing_shown"), true);
  };
  const drop = made.querySelector("#easel_model_drop");
  takeFiles(drop, ([file]) => preview(file, file.type));
  const chosen = made.querySelector('input[type="file"]');
  chosen.onchange = () => {
    if (chosen.files.length) preview(chosen.files[0], chosen.files[0].type);
    chosen.value = "";
  };
  made.querySelector("form").addEventListener("submit", (event) => (event.preventDefault(), save()));
  made.addEventListener("click", (event) => event.target === made && made.close());
  onLanguage(() => known && draw());
  return made;
}

const element = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more });
const terms = (pairs) => pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]);

function draw() {
  dialog.querySelector("h2").textContent = known.title || known.name;
  const picture = dialog.querySelector(".picture img");
  picture.hidden = !known.preview;
  if (known.preview) picture.src = `${known.preview.slice(1)}&side=768`;
  dialog.querySelector(".picture span").hidden = !!known.preview;
  const shown = {
    ...known,
    family: known.family === "unknown" ? say("browser.unknown") : known.family,
    size: size(known.size),
    modified: new Date(known.modified * 1000).toLocaleString(document.documentElement.lang),
    folder: known.folder || "/",
  };
  const title = known.title && known.title !== known.name ? [[say("details.file"), known.name]] : [];
  dialog.querySelector(".look .facts").replaceChildren(...terms([...title, ...FACTS.filter((name) => shown[name]).map((name) => [say(`details.${name}`), shown[name]])]));
  dialog.querySelector('[data-do="hash"]').hidden = !!known.sha256 || known.format === "folder";
  const problem = dialog.querySelector("form .problem");
  problem.hidden = !known.problem;
  problem.textContent = known.problem ?? "";
  drawWords();
  const metadata = Object.entries(known.metadata);
  dialog.querySelector(".metadata").hidden = !metadata.length;
  dialog.querySelector(".metadata dl").replaceChildren(...terms(metadata.map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])));
  const does = kindOf[known.kind]?.does;
  const action = dialog.querySelector('[data-do="use"]');
  action.hidden = !does || !!known.problem;
  action.textContent = does ? say(does) : "";
  const network = does === "browser.insert";
  for (const name of ["activation_text", "negative_text", "preferred_weight"]) dialog.querySelector(`[name="${name}"]`).closest("label").hidden = !network;
}

function drawWords() {
  const words = [...known.trigger_words.map((tag) => ({ tag })), ...known.tags].slice(0, MOST_WORDS);
  dialog.querySelector(".words").hidden = !words.length;
  dialog.querySelector(".chips").replaceChildren(
    ...words.map(({ tag, count }) => {
      const chip = element("button", tag, { type: "button", className: "plain", title: say("details.insert_word") });
      if (count) chip.append(element("small", ` ${count}`));
      chip.onclick = () => told(insertWords(tag));
      return chip;
    }),
  );
}

async function put(path, body, type) {
  try {
    const answer = await fetch(path, { method: "PUT", headers: { "X-Easel-Client": client, "Content-Type": type }, body });
    return { ok: answer.ok, status: answer.status, body: await answer.json() };
  } catch {
    return null;
  }
}

const refusal = (answer) => sentenceOf(answer?.body) ?? say("problem.not_read", { status: answer?.status ?? "–" });

// What has changed only; true when all is as the form says.
async function save() {
  const form = dialog.querySelector("form");
  if (!form.reportValidity()) return false;
  const changes = {};
  for (const name of NOTES) {
    const value = name === "preferred_weight" ? Number(form[name].value) : form[name].value;
    if (value !== (known[name] || (name === "preferred_weight" ? 0 : ""))) changes[name] = value;
  }
  if (!Object.keys(changes).length) return told(say("details.nothing_to_save")), true;
  const answer = await put(`api/v1/models/${known.id}/notes`, JSON.stringify(changes), "application/json");
  if (!answer?.ok) return told(refusal(answer), true), false;
  Object.assign(known, changes);
  told(say("details.saved"));
  return true;
}

async function preview(body, type) {
  const answer = await put(`api/v1/models/${known.id}/preview`, body, type || "application/octet-stream");
  if (!answer?.ok) return told(refusal(answer), true);
  known.preview = answer.body.preview;
  draw();
  told(say("details.saved"));
}

async function hash() {
  told(say("details.hashing"));
  const answer = await ask(`api/v1/models/${known.id}/hash`, {});
  if (!answer?.ok) return told(refusal(answer), true);
  known.sha256 = answer.body.sha256;
  draw();
  told("");
}

function told(text, bad = false) {
  const line = dialog.querySelector("form .told");
  line.textContent = text;
  line.classList.toggle("bad", bad);
}
