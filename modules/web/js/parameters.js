// The smaller controls of the form: swap and aspect, seed buttons, and wheel and double click on sliders.

import { box, defaultOf, nameOf, number, put, set } from "./fields.js";
import { shownPicture } from "./viewer.js";

const LIMITS = [64, 2048];

export function bindParameters(tab) {
  press(`${tab}_res_switch_btn`, () => setSize(number("height"), number("width")));
  press(`${tab}_random_seed`, () => set("seed", -1));
  press(`${tab}_reuse_seed`, () => shownPicture() && set("seed", shownPicture().seed));
  press(`${tab}_random_subseed`, () => set("variation_seed", -1));
  press(`${tab}_reuse_subseed`, () => shownPicture() && set("variation_seed", variationSeedOf(shownPicture())));
  document.getElementById(`${tab}_aspects`).addEventListener("click", (event) => {
    const ratio = event.target.dataset?.ratio;
    if (ratio) applyRatio(...ratio.split(":").map(Number));
  });
  const form = document.getElementById(`${tab}_settings`);
  form.addEventListener("wheel", turn, { passive: false });
  form.addEventListener("dblclick", reset);
}

function press(id, action) {
  document.getElementById(id).addEventListener("click", action);
}

// Its infotext names it if it has one; else its seed would have been it.
function variationSeedOf(picture) {
  return Number(/(?:^|, )Variation seed: (\d+)/m.exec(picture.infotext.split("\n").at(-1))?.[1] ?? picture.seed);
}

export function setSize(width, height) {
  set("width", width);
  set("height", height);
}

// Keeps the number of pixels near the present one, on multiples of 8; a second click on the same ratio turns it upright.
function applyRatio(across, down) {
  const area = number("width") * number("height");
  const side = (length) => Math.min(LIMITS[1], Math.max(LIMITS[0], Math.round(length / 8) * 8));
  const [width, height] = [side(Math.sqrt((area * across) / down)), side(Math.sqrt((area * down) / across))];
  const again = number("width") === width && number("height") === height;
  setSize(again ? height : width, again ? width : height);
}

// The wheel turns a control only when it has the focus: scrolling the form must not change it.
function turn(event) {
  const input = event.target.closest('input[type="number"], input[type="range"]');
  if (!input || document.activeElement !== input) return;
  event.preventDefault();
  if (event.deltaY < 0) input.stepUp();
  else input.stepDown();
  put(input, input.value);
}

function reset(event) {
  if (event.target.matches('input[type="number"]')) return; // there it selects the number
  const name = nameOf(event.target);
  if (name && box(name).matches('input[type="number"]')) put(box(name), defaultOf(name));
}
