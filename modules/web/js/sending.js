// Sends a picture and its parameters to the form of a tab: from the viewer, and from PNG Info.

import { fill } from "./fields.js";
import { receive } from "./img2img.js";
import { settings } from "./page_data.js";
import { droppedPicture } from "./png_info.js";
import { report } from "./problems.js";
import { openTab } from "./tabs.js";

const LIMITS = [64, 2048];

// The buttons of PNG Info.
export function bindSending() {
  const written = () => document.querySelector("#pnginfo_generation_info textarea").value;
  document.getElementById("txt2img_tab").onclick = () => send("txt2img", null, written());
  document.getElementById("img2img_tab").onclick = () => send("img2img", droppedPicture(), written());
  document.getElementById("inpaint_tab").onclick = () => send("inpaint", droppedPicture(), written());
}

// `where`: txt2img, or a mode of img2img. `picture`: a file, or null.
export async function send(where, picture, infotext) {
  try {
    if (where === "txt2img") {
      await openTab("txt2img");
      fill({ infotext }, "txt2img");
      return;
    }
    await openTab("img2img");
    const kept = picture && (await receive(where, picture));
    const size = kept && settings.send_size ? [kept.width, kept.height].map(fitted) : null;
    if (infotext || size) fill({ infotext, size, without: left(kept) }, "img2img");
  } catch (problem) {
    report(problem.message);
  }
}

const fitted = (side) => Math.min(LIMITS[1], Math.max(LIMITS[0], Math.floor(side / 8) * 8));

const left = (kept) => [...(settings.send_seed ? [] : ["seed"]), ...(kept && !settings.send_size ? ["width", "height"] : [])];
