// The system information: a dialog, made when it is first asked for. What it shows comes from the server clean of paths,
// names and secrets, and is copied in English, whatever language the page speaks: it is for reports.

import { ask } from "./client.js";
import { onLanguage, say, translate } from "./locale.js";
import { texts } from "./page_data.js";
import { report } from "./problems.js";
import { copy } from "./viewer.js";

const GIB = 2 ** 30;
const english = (id, values = {}) => texts.en[id].replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
let dialog = null;
let info = null;

export async function openSystemInfo() {
  dialog ??= make();
  const answer = await ask("internal/sysinfo");
  if (!answer?.ok) return report(say("problem.not_read", { status: answer?.status ?? "–" }));
  info = answer.body;
  draw();
  if (!dialog.open) dialog.showModal();
}

function make() {
  const made = document.getElementById("template-system-info").content.firstElementChild.cloneNode(true);
  document.body.append(made);
  translate(made);
  made.querySelector('[data-do="copy"]').onclick = (event) => copy(asText(), event.currentTarget);
  made.querySelector('[data-do="close"]').onclick = () => made.close();
  made.addEventListener("click", (event) => event.target === made && made.close());
  onLanguage(() => info && draw());
  return made;
}

function draw() {
  dialog.querySelector("dl").replaceChildren(
    ...rows(info, say).flatMap(([id, lines]) => [element("dt", say(id)), ...lines.map((line) => element("dd", line))]),
  );
}

const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

const asText = () => rows(info, english).map(([id, lines]) => `${english(id)}: ${lines.join("\n  ")}`).join("\n");

// [id of the label, lines]; `words` gives the sentences of a language.
function rows(info, words) {
  const { device, processor, memory, checkpoint } = info;
  const gib = (bytes) => (bytes / GIB).toFixed(1);
  const room = ({ free, total }) => words("sysinfo.room", { free: gib(free), total: gib(total) });
  const features = processor.features.length ? `, ${processor.features.join(" ")}` : "";
  const capability = device?.capability && words("sysinfo.capability", { n: device.capability });
  return [
    ["sysinfo.versions", [Object.entries(info.versions).map(([name, version]) => `${name} ${version}`).join(", ")]],
    ["sysinfo.platform", [info.platform]],
    ["sysinfo.processor", [`${words("sysinfo.cores", { name: processor.name, n: processor.cores })}${features}`]],
    ["sysinfo.memory", [`${room(memory)}, ${words("sysinfo.easel", { used: gib(memory.easel) })}`]],
    ["sysinfo.device", [device ? [device.name, capability, words("sysinfo.built_for", { what: device.built_for })].filter(Boolean).join(", ") : words("sysinfo.later")]],
    ["sysinfo.device_memory", device?.memory ? [room(device.memory)] : []],
    ["sysinfo.dtypes", device ? [Object.entries(device.dtypes).map((pair) => pair.join(" ")).join(", ")] : []],
    ["sysinfo.attention", device?.attention ? [device.attention] : []],
    ["sysinfo.memory_level", info.memory_plan?.plan ? [info.memory_plan.plan] : []],
    ["sysinfo.checkpoint", [checkpoint ? told(checkpoint) : info.model]],
    ["sysinfo.flags", [info.flags.join(" ") || "–"]],
    ["sysinfo.settings", settings(info.settings)],
    ["sysinfo.problems", info.problems.length ? info.problems : ["–"]],
  ].filter(([, lines]) => lines.length);
}

const told = ({ file, family, size, hash }) => `${file}${hash ? ` [${hash}]` : ""}, ${family}, ${(size / 1e6).toFixed(0)} MB`;

function settings(changed) {
  const lines = Object.entries(changed).map(([key, value]) => `${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
  return lines.length ? lines : ["–"];
}
