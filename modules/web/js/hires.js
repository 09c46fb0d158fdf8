// Hires. fix: tells what it makes of the size while its boxes change.

import { number, value, watch } from "./fields.js";
import { onLanguage, say } from "./locale.js";

const TAB = "txt2img";

export function bindHires() {
  const place = document.querySelector("#txt2img_hires_size .words");
  const words = () => {
    const [width, height] = [number("width", TAB), number("height", TAB)];
    return say("size_change", { from: `${width}x${height}`, to: target(width, height).join("x") });
  };
  const draw = () => (place.textContent = words());
  watch(() => ({ text: value("hires", TAB) ? words() : "", draw }));
  onLanguage(draw);
}

// One side alone keeps the proportions.
function target(width, height) {
  const [x, y] = [number("hires.resize_width", TAB), number("hires.resize_height", TAB)];
  if (!x && !y) return [width, height].map((side) => Math.trunc(side * (number("hires.scale", TAB) || 1)));
  return [x || Math.trunc((y * width) / height), y || Math.trunc((x * height) / width)];
}
