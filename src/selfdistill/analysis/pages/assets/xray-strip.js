"use strict";
/* The whole response at a glance: the chosen column over all tokens, in as many bars as there are pixels. A click, or
   the arrow keys, go to a token. */

const STRIP_HEIGHT = 56;

class Strip {
  constructor(area, jump) {
    this.area = area;
    this.canvas = make("canvas", { class: "strip", id: "strip", role: "slider", tabindex: "0", "aria-label": "Overview of the response", "aria-valuemin": "1",
      "aria-valuemax": String(Math.max(1, area.count)), "aria-valuenow": "1" });
    this.pending = false;
    this.current = -1;
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      jump(Math.min(area.count - 1, Math.floor(((event.clientX - box.left) / box.width) * area.count)));
    });
    this.canvas.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(area.count / 20));
      const from = Math.max(0, this.current);
      const to = { ArrowRight: from + 1, ArrowUp: from + 1, ArrowLeft: from - 1, ArrowDown: from - 1, PageUp: from + page, PageDown: from - page,
        Home: 0, End: area.count - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      jump(Math.min(area.count - 1, Math.max(0, to)), true);
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  set(values, scale, shades) {
    Object.assign(this, { values, scale, shades });
    this.draw();
  }

  mark(index) {
    this.current = index;
    this.canvas.setAttribute("aria-valuenow", String(Math.max(0, index) + 1));
    this.canvas.setAttribute("aria-valuetext", `token ${Math.max(0, index) + 1} of ${this.area.count}`);
    this.draw();
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.#draw(); });
  }

  /* Each bar is the extreme value of its tokens. */
  #extremes(bars) {
    const found = new Float32Array(bars).fill(NaN);
    const bright = new Uint8Array(bars);
    const count = this.area.count;
    for (let index = 0; index < count; index += 1) {
      const value = this.values[index];
      const first = Math.floor((index / count) * bars);
      const last = Math.max(first + 1, Math.floor(((index + 1) / count) * bars));
      for (let at = first; at < last; at += 1) {
        if (!this.area.dimmed[index]) bright[at] = 1;
        if (!Number.isNaN(value) && !(Math.abs(found[at]) >= Math.abs(value))) found[at] = value;
      }
    }
    return { found, bright };
  }

  #draw() {
    const width = this.canvas.clientWidth;
    if (!width || !this.scale) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(STRIP_HEIGHT * ratio);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const ink = getComputedStyle(this.canvas).color;
    const { low, high } = this.scale;
    const level = (value) => 4 + (1 - (Math.min(high, Math.max(low, value)) - low) / (high - low)) * (STRIP_HEIGHT - 14);
    const ground = level(0);
    const { found, bright } = this.values ? this.#extremes(Math.floor(width)) : { found: [], bright: [] };
    found.forEach((value, at) => {
      if (Number.isNaN(value)) return;
      const top = level(value);
      context.globalAlpha = bright[at] ? 1 : 0.25;
      context.fillStyle = ink;
      context.fillRect(at, Math.min(top, ground), 1, Math.max(1, Math.abs(ground - top)));
      context.fillStyle = this.shades[this.scale.shade(value)].ground;
      context.fillRect(at, Math.min(top, ground) + (top < ground ? 1 : 0), 1, Math.max(0, Math.abs(ground - top) - 1));
    });
    context.globalAlpha = 1;
    context.fillStyle = ink;
    for (const index of this.area.tokens.interpolated) context.fillRect((index / this.area.count) * width, STRIP_HEIGHT - 6, 1, 6);
    if (this.current >= 0) this.#needle(context, ((this.current + 0.5) / this.area.count) * width);
  }

  #needle(context, x) {
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--focus");
    context.fillRect(x - 1, 0, 2, STRIP_HEIGHT);
    context.beginPath();
    context.moveTo(x - 5, 0);
    context.lineTo(x + 5, 0);
    context.lineTo(x, 7);
    context.fill();
  }
}
