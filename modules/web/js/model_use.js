// What a click on a model does: a checkpoint or VAE is chosen as a person would choose it, a network goes into the prompts of
// the form that was open last, or out of them if it is there.

import { ask } from "./client.js";
import { box, put } from "./fields.js";
import { literal, say } from "./locale.js";
import { settings } from "./page_data.js";
import { activeTab } from "./tabs.js";

export const kindOf = {
  checkpoint: { does: "browser.choose" },
  lora: { does: "browser.insert", tag: "lora" },
  embedding: { does: "browser.insert" },
  hypernetwork: { does: "browser.insert", tag: "hypernet" },
  vae: { does: "browser.choose" },
  upscaler: {},
  controlnet: {},
  unet: {},
  text_encoder: {},
};
const BOXES = { checkpoint: ["setting_sd_model_checkpoint", "sd_model_checkpoint"], vae: ["setting_sd_vae", "sd_vae"] };
const UNITS = ["B", "KB", "MB", "GB"];

export function size(bytes) {
  let unit = 0;
  for (; bytes >= 1000 && unit < 3; unit++) bytes /= 1000;
  return `${unit > 2 ? bytes.toFixed(2) : Math.round(bytes)} ${UNITS[unit]}`;
}

// What was done, in a sentence. `details`: of the model, where they are known already.
export async function use(model, details = null) {
  if (BOXES[model.kind]) return choose(model);
  details ??= (await ask(`api/v1/models/${model.id}`))?.body ?? {};
  return insert(model, details);
}

async function choose(model) {
  const [id, setting] = BOXES[model.kind];
  const input = document.querySelector(`#${id} input`);
  if (input) {
    input.focus();
    put(input, model.value);
    input.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    input.blur();
  } else {
    const answer = await ask("sdapi/v1/options", { [setting]: model.value });
    if (!answer?.ok) return say("problem.not_read", { status: answer?.status ?? "–" });
  }
  return say("browser.chosen", { name: model.name });
}

function insert(model, details) {
  const tab = activeTab();
  const [prompt, negative] = [box("prompt", tab), box("negative_prompt", tab)];
  const { tag } = kindOf[model.kind];
  const known = tag ? new RegExp(`\\s*<${tag}:${literal(model.value)}(?::[^<>]*)?>`, "g") : new RegExp(`(?:,\\s*|\\s+)?(?<![\\w-])${literal(model.value)}(?![\\w-])`, "g");
  const { activation_text: words = "", negative_text: unwanted = "" } = details;
  if (known.test(prompt.value)) {
    put(prompt, without(prompt.value, words).replace(known, "").trim());
    put(negative, without(negative.value, unwanted));
    return say("browser.taken_out", { name: model.name, tab });
  }
  const weight = details.preferred_weight || settings.extra_networks_default_multiplier;
  const added = tag ? `<${tag}:${model.value}:${weight}>` : model.value;
  const named = !tag && words.search(known) >= 0; // trigger words of an embedding may be its name, or begin with it
  put(prompt, joined(prompt.value, named ? words : [added, words].filter(Boolean).join(" ")));
  if (unwanted) put(negative, joined(negative.value, unwanted));
  return say("browser.inserted", { name: model.name, tab });
}

export function insertWords(words) {
  const prompt = box("prompt", activeTab());
  put(prompt, prompt.value.trim() ? `${prompt.value.trimEnd().replace(/,$/, "")}, ${words}` : words);
  return say("browser.inserted", { name: words, tab: activeTab() });
}

const joined = (before, added) => (before.trim() ? `${before.trimEnd()}${settings.extra_networks_add_text_separator}${added}` : added);

// A text that was added whole is taken out whole.
function without(text, added) {
  const place = added ? text.lastIndexOf(added) : -1;
  return (place < 0 ? text : text.slice(0, place).trimEnd() + text.slice(place + added.length)).trim();
}
