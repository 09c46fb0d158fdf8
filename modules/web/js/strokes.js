// Strokes of a brush on a canvas, which can be taken back and brought again. A stroke: {points, size, colour, erase}, in the
// picture's pixels; {wipe: true} is one that takes all the others away.

export class Strokes {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.changed = changed;
    this.done = [];
    this.undone = [];
    this.drawing = null;
  }

  begin(width, height) {
    Object.assign(this.canvas, { width, height });
    this.done = [];
    this.undone = [];
    this.drawing = null;
    this.changed();
  }

  get empty() {
    return !this.done.some((stroke, index) => !stroke.wipe && !stroke.erase && !this.done.slice(index).some((later) => later.wipe));
  }

  get undoable() {
    return this.done.length > 0;
  }

  get redoable() {
    return this.undone.length > 0;
  }

  start(point, brush) {
    this.drawing = { points: [point], ...brush };
    this.done.push(this.drawing);
    this.undone = [];
    this.line(this.drawing, 0);
  }

  go(point) {
    this.drawing.points.push(point);
    this.line(this.drawing, this.drawing.points.length - 2);
  }

  end() {
    if (!this.drawing) return;
    this.drawing = null;
    this.changed();
  }

  // It was no stroke: a second finger came.
  drop() {
    if (!this.drawing) return;
    this.done.pop();
    this.drawing = null;
    this.redraw();
  }

  wipe() {
    if (this.empty) return;
    this.done.push({ wipe: true });
    this.undone = [];
    this.redraw();
  }

  undo() {
    if (!this.undoable || this.drawing) return;
    this.undone.push(this.done.pop());
    this.redraw();
  }

  redo() {
    if (!this.redoable || this.drawing) return;
    this.done.push(this.undone.pop());
    this.redraw();
  }

  redraw() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const from = this.done.findLastIndex((stroke) => stroke.wipe) + 1;
    for (const stroke of this.done.slice(from)) {
      for (let i = 0; i < Math.max(1, stroke.points.length - 1); i++) this.line(stroke, i);
    }
    this.changed();
  }

  // From the point with this number to the next; a single point is a dot.
  line({ points, size, colour, erase }, from) {
    const { context } = this;
    const [start, end] = [points[from], points[from + 1] ?? points[from]];
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    Object.assign(context, { lineCap: "round", lineWidth: size, strokeStyle: colour, fillStyle: colour });
    context.beginPath();
    context.arc(...start, size / 2, 0, 2 * Math.PI); // a line without length draws nothing
    context.fill();
    context.beginPath();
    context.moveTo(...start);
    context.lineTo(...end);
    context.stroke();
  }
}
