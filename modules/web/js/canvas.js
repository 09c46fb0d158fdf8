// A picture on which one may draw: brush and eraser, undo and redo, zoom and move, full screen. Knows nothing of forms: gives
// what was drawn as files. Kinds: "view" (no drawing), "paint" (in colours), "mask".

import { addressOf, takeFiles, upload } from "./inputs.js";
import { say, translate } from "./locale.js";
import { settings } from "./page_data.js";
import { report } from "./problems.js";
import { Strokes } from "./strokes.js";

const ZOOM = { step: 1.2, least: 1, most: 16 };
const BRUSH = { least: 1, most: 200, step: 1.15 };
const MASK_COLOUR = "#ffffff";
const held = { Shift: "shiftKey", Ctrl: "ctrlKey", Alt: "altKey" };

export class Canvas {
  constructor(host, kind, changed) {
    this.kind = kind;
    this.changed = changed; // called when there is another picture
    this.picture = null; // {id, width, height}
    this.zoom = { scale: 1, x: 0, y: 0 };
    this.pointers = new Map();
    this.moving = false; // the key that moves is held
    host.append(document.getElementById("template-canvas").content.cloneNode(true));
    this.root = host.querySelector(".canvas");
    this.root.dataset.kind = kind;
    for (const part of ["paper", "image", "ink", "view", "ring", "size", "colour", "caption"]) this[part] = this.root.querySelector(`.canvas-${part}`);
    this.strokes = new Strokes(this.ink, () => this.showState());
    translate(this.root);
    takeFiles(this.root, ([file]) => this.take(file));
    this.bindTools();
    this.bindPointer();
    this.root.addEventListener("keydown", (event) => this.pressed(event));
    this.root.addEventListener("keyup", (event) => key(event) === settings.canvas_hotkey_move && this.setMoving(false));
    new ResizeObserver(() => this.layOut()).observe(this.view);
    this.showState();
  }

  // A file of the user's; says what is wrong with it, and gives the picture or null.
  async take(file) {
    this.root.classList.add("busy");
    try {
      await this.show(await upload(file));
      return this.picture;
    } catch (problem) {
      report(problem.message);
      return null;
    } finally {
      this.root.classList.remove("busy");
    }
  }

  async show(picture) {
    this.image.src = addressOf(picture.id);
    await this.image.decode().catch(() => {
      throw new Error(say("problem.picture_gone"));
    });
    this.picture = picture;
    this.strokes.begin(picture.width, picture.height);
    this.caption.textContent = `${picture.width}x${picture.height}`;
    this.resetView();
    this.showState();
    this.changed();
  }

  clear() {
    this.picture = null;
    this.image.removeAttribute("src");
    this.strokes.begin(1, 1);
    this.setFull(false);
    this.showState();
    this.changed();
  }

  get drawn() {
    return this.picture !== null && !this.strokes.empty;
  }

  // The picture with what was painted on it.
  painted() {
    return toFile(this.picture, (context) => {
      context.drawImage(this.image, 0, 0, this.picture.width, this.picture.height);
      context.drawImage(this.ink, 0, 0);
    });
  }

  // White where something was drawn, black elsewhere.
  mask() {
    return toFile(this.picture, (context) => {
      context.drawImage(this.ink, 0, 0);
      context.globalCompositeOperation = "source-in";
      context.fillStyle = "#fff";
      context.fillRect(0, 0, this.picture.width, this.picture.height);
      context.globalCompositeOperation = "destination-over";
      context.fillStyle = "#000";
      context.fillRect(0, 0, this.picture.width, this.picture.height);
    });
  }

  // --- tools -----------------------------------------------------------------------------------------------------

  bindTools() {
    const actions = {
      undo: () => this.strokes.undo(),
      redo: () => this.strokes.redo(),
      wipe: () => this.strokes.wipe(),
      erase: () => this.setErasing(!this.erasing),
      reset: () => this.resetView(),
      full: () => this.setFull(!this.root.classList.contains("full")),
      remove: () => this.clear(),
    };
    this.root.querySelector(".canvas-tools").addEventListener("click", (event) => actions[event.target.closest("[data-do]")?.dataset.do]?.());
    this.size.addEventListener("input", () => this.showRing());
  }

  get brush() {
    return { size: Number(this.size.value), colour: this.kind === "mask" ? MASK_COLOUR : this.colour.value, erase: this.erasing };
  }

  setErasing(now) {
    this.erasing = now;
    this.showState();
  }

  growBrush(larger) {
    const size = Number(this.size.value);
    const next = larger ? Math.max(size + 1, size * BRUSH.step) : Math.min(size - 1, size / BRUSH.step);
    this.size.value = Math.round(Math.min(BRUSH.most, Math.max(BRUSH.least, next)));
    this.showRing();
  }

  setFull(now) {
    this.root.classList.toggle("full", now);
    this.resetView();
    this.showState();
    if (now) this.root.focus({ preventScroll: true });
  }

  showState() {
    this.root.classList.toggle("filled", this.picture !== null);
    const able = { undo: this.strokes.undoable, redo: this.strokes.redoable, wipe: !this.strokes.empty };
    for (const [name, possible] of Object.entries(able)) this.tool(name).disabled = !possible;
    this.tool("erase").setAttribute("aria-pressed", String(Boolean(this.erasing)));
    this.tool("full").setAttribute("aria-pressed", String(this.root.classList.contains("full")));
  }

  tool(name) {
    return this.root.querySelector(`[data-do="${name}"]`);
  }

  pressed(event) {
    if (!this.picture || event.target.matches("input")) return;
    const control = event.ctrlKey || event.metaKey;
    const off = settings.canvas_disabled_functions;
    const actions = {
      [settings.canvas_hotkey_shrink_brush]: !off.includes("Hotkey shrink brush") && (() => this.growBrush(false)),
      [settings.canvas_hotkey_grow_brush]: !off.includes("Hotkey enlarge brush") && (() => this.growBrush(true)),
      [settings.canvas_hotkey_fullscreen]: !off.includes("Fullscreen") && (() => this.setFull(!this.root.classList.contains("full"))),
      [settings.canvas_hotkey_reset]: !off.includes("Reset Zoom") && (() => this.resetView()),
      [settings.canvas_hotkey_move]: !off.includes("Moving canvas") && (() => this.setMoving(true)),
    };
    let action = control || event.altKey ? null : actions[key(event)];
    if (control && key(event) === "Z") action = () => (event.shiftKey ? this.strokes.redo() : this.strokes.undo());
    if (control && key(event) === "Y") action = () => this.strokes.redo();
    if (event.key === "Escape" && this.root.classList.contains("full")) action = () => this.setFull(false);
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  setMoving(now) {
    this.moving = now;
    this.root.classList.toggle("moving", now);
  }

  // --- pointer: one draws, two move and zoom ------------------------------------------------------------------------

  bindPointer() {
    const { view } = this;
    view.addEventListener("pointerdown", (event) => this.down(event));
    view.addEventListener("pointermove", (event) => this.move(event));
    for (const type of ["pointerup", "pointercancel"]) view.addEventListener(type, (event) => this.up(event));
    view.addEventListener("pointerenter", () => this.kind !== "view" && this.picture && !typing() && this.root.focus({ preventScroll: true }));
    view.addEventListener("pointerleave", () => (this.ring.hidden = true));
    view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  down(event) {
    if (!this.picture || event.target.closest("label")) return;
    this.pointers.set(event.pointerId, event);
    if (this.kind === "view" && !this.moving && event.button !== 1) return;
    this.view.setPointerCapture(event.pointerId);
    if (this.pointers.size === 2) this.strokes.drop();
    else if (this.draws(event)) this.strokes.start(this.at(event), this.brush);
  }

  draws(event) {
    return this.kind !== "view" && !this.moving && event.button === 0 && this.pointers.size === 1;
  }

  move(event) {
    if (!this.picture) return;
    this.showRing(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) return this.pinch(before, event);
    if (this.strokes.drawing) for (const one of event.getCoalescedEvents?.() ?? [event]) this.strokes.go(this.at(one));
    else if (this.moving || event.buttons === 4) this.shift(event.clientX - before.clientX, event.clientY - before.clientY);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    this.strokes.end();
  }

  pinch(before, now) {
    const other = [...this.pointers.values()].find((one) => one.pointerId !== now.pointerId);
    const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    this.zoomAt(distance(now) / (distance(before) || 1), (now.clientX + other.clientX) / 2, (now.clientY + other.clientY) / 2);
    this.shift((now.clientX - before.clientX) / 2, (now.clientY - before.clientY) / 2);
  }

  wheel(event) {
    const off = settings.canvas_disabled_functions;
    const up = (event.deltaY || event.deltaX) < 0;
    if (event[held[settings.canvas_hotkey_zoom]] && !off.includes("Zoom")) this.zoomAt(up ? ZOOM.step : 1 / ZOOM.step, event.clientX, event.clientY);
    else if (event[held[settings.canvas_hotkey_adjust]] && !off.includes("Adjust brush size")) this.growBrush(up);
    else return;
    event.preventDefault();
  }

  // --- where things are ---------------------------------------------------------------------------------------------

  // In the picture's pixels.
  at(event) {
    const place = this.ink.getBoundingClientRect();
    const scale = this.picture.width / place.width;
    return [(event.clientX - place.left) * scale, (event.clientY - place.top) * scale];
  }

  zoomAt(factor, clientX, clientY) {
    const place = this.view.getBoundingClientRect();
    const [x, y] = [clientX - place.left, clientY - place.top];
    const scale = Math.min(ZOOM.most, Math.max(ZOOM.least, this.zoom.scale * factor));
    const ratio = scale / this.zoom.scale;
    this.zoom = { scale, x: x - (x - this.zoom.x) * ratio, y: y - (y - this.zoom.y) * ratio };
    this.layOut();
  }

  shift(x, y) {
    this.zoom = { ...this.zoom, x: this.zoom.x + x, y: this.zoom.y + y };
    this.layOut();
  }

  resetView() {
    this.zoom = { scale: 1, x: 0, y: 0 };
    this.layOut();
  }

  layOut() {
    if (!this.picture) return;
    const { width, height } = this.picture;
    const [across, down] = [this.view.clientWidth, this.view.clientHeight];
    const fit = Math.min(across / width, down / height);
    const shown = [width * fit * this.zoom.scale, height * fit * this.zoom.scale];
    // It may be moved until one edge reaches the middle.
    const keep = (offset, length, room) => Math.min(room / 2, Math.max(room / 2 - length, offset));
    if (this.zoom.scale === ZOOM.least && !this.moving) [this.zoom.x, this.zoom.y] = [0, 0];
    const spare = [across - width * fit, down - height * fit].map((space) => (space / 2) * this.zoom.scale);
    const left = keep(this.zoom.x + spare[0], shown[0], across);
    const top = keep(this.zoom.y + spare[1], shown[1], down);
    Object.assign(this.paper.style, { left: `${left}px`, top: `${top}px`, width: `${shown[0]}px`, height: `${shown[1]}px` });
    this.paper.classList.toggle("pixels", shown[0] / width > 3);
    this.showRing();
  }

  showRing(event = this.lastEvent) {
    this.lastEvent = event;
    this.ring.hidden = !event || !this.picture || this.kind === "view" || event.pointerType === "touch";
    if (this.ring.hidden) return;
    const place = this.view.getBoundingClientRect();
    const size = (Number(this.size.value) * this.ink.getBoundingClientRect().width) / this.picture.width;
    Object.assign(this.ring.style, { left: `${event.clientX - place.left}px`, top: `${event.clientY - place.top}px`, width: `${size}px`, height: `${size}px` });
  }
}

const key = (event) => (event.key.length === 1 ? event.key.toUpperCase() : event.key);
const typing = () => document.activeElement?.matches('textarea, input:not([type="range"])');

function toFile({ width, height }, draw) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  draw(canvas.getContext("2d"));
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error(say("problem.picture_too_large")))), "image/png");
  });
}
