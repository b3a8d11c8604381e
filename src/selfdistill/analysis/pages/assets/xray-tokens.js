"use strict";
/* The response as tokens: drawn once, in blocks that the browser skips while they are out of sight; coloured by one
   class per token; walked through with the keyboard. One listener serves all tokens. */

const BLOCK = 150;
const LONGEST_BLOCK = 600;

class TokenArea {
  constructor(xray, rollout) {
    this.tokens = rollout.tokens;
    this.count = this.tokens.ids.length;
    this.texts = Array.from(this.tokens.ids, (id) => tokenInText(xray.word(id), id));
    this.labels = Array.from(this.tokens.ids, (id) => tokenLabel(xray.word(id), id).toLowerCase());
    this.element = make("div", { id: "tokens", role: "listbox", "aria-label": "Response, token by token", "aria-describedby": "keys-hint" });
    this.spans = new Array(this.count);
    this.shades = new Int16Array(this.count).fill(-1);
    this.dimmed = new Uint8Array(this.count);
    this.focused = 0;
    this.pinned = -1;
    this.jobs = 0;
    this.#draw();
    if (this.count) this.spans[0].tabIndex = 0;
  }

  /* A block ends after a line break, so that blocks break no line; only a very long line is broken where it is not. */
  #draw() {
    const pattern = make("span", { class: "t", role: "option", tabindex: "-1" });
    let block = null;
    let size = 0;
    let letters = 0;
    const close = () => {
      if (block) block.style.setProperty("--lines", String(Math.ceil(letters / 80)));
    };
    for (let index = 0; index < this.count; index += 1) {
      if (!block) {
        block = make("div", { class: "block", role: "presentation" });
        this.element.append(block);
        size = 0;
        letters = 0;
      }
      const span = pattern.cloneNode(false);
      const { shown, breaks } = this.texts[index];
      span.textContent = shown;
      span.dataset.i = index;
      this.spans[index] = span;
      block.append(span);
      size += 1;
      letters += shown.length + 80 * breaks.length;
      const last = size >= LONGEST_BLOCK || (size >= BLOCK && breaks !== "");
      block.append(last ? breaks.slice(1) : breaks); // the end of a block breaks the line already
      if (last) {
        close();
        block = null;
      }
    }
    close();
    this.element.classList.toggle("empty", this.count === 0);
  }

  /* Class names change at most a few thousand per frame; those in sight first. */
  #inFrames(change) {
    this.jobs += 1;
    const job = this.jobs;
    const start = this.#firstInSight();
    const step = (done) => {
      if (job !== this.jobs) return;
      const until = Math.min(this.count, done + 4000);
      for (let index = done; index < until; index += 1) change((start + index) % this.count);
      if (until < this.count) requestAnimationFrame(() => step(until));
    };
    if (this.count) step(0);
  }

  #firstInSight() {
    for (const block of this.element.children) {
      if (block.getBoundingClientRect().bottom > 0) return Number(block.firstChild.dataset.i);
    }
    return 0;
  }

  #name(index) {
    let name = this.shades[index] < 0 ? "t unknown" : `t b${this.shades[index]}`;
    if (this.tokens.selected[index]) name += " interpolated";
    if (this.dimmed[index]) name += " dim";
    if (index === this.pinned) name += " pinned";
    return name;
  }

  colour(values, scale) {
    for (let index = 0; index < this.count; index += 1) {
      const value = values ? values[index] : NaN;
      this.shades[index] = Number.isNaN(value) ? -1 : scale.shade(value);
    }
    this.#rename();
  }

  /* `keep(index)` says which tokens stay bright; returns how many. */
  filter(keep) {
    let kept = 0;
    for (let index = 0; index < this.count; index += 1) {
      this.dimmed[index] = keep(index) ? 0 : 1;
      kept += 1 - this.dimmed[index];
    }
    this.#rename();
    return kept;
  }

  #rename() {
    this.#inFrames((index) => { this.spans[index].className = this.#name(index); });
  }

  pin(index) {
    const before = this.pinned;
    this.pinned = index;
    for (const one of [before, index]) {
      if (one < 0) continue;
      this.spans[one].className = this.#name(one);
      if (one === index) this.spans[one].setAttribute("aria-selected", "true");
      else this.spans[one].removeAttribute("aria-selected");
    }
  }

  indexOf(node) {
    const span = node instanceof Element ? node.closest(".t") : null;
    return span ? Number(span.dataset.i) : -1;
  }

  /* The one token that the tab key reaches. */
  rove(index) {
    this.spans[this.focused].tabIndex = -1;
    this.focused = index;
    this.spans[index].tabIndex = 0;
  }

  focus(index, where = "nearest") {
    if (!this.count) return;
    const bounded = Math.min(this.count - 1, Math.max(0, index));
    this.rove(bounded);
    this.spans[bounded].focus({ preventScroll: true });
    this.spans[bounded].scrollIntoView({ block: where, inline: "nearest" });
  }

  /* The token above or below: on the next line, the nearest to where this one begins. */
  lineFrom(index, direction) {
    const from = this.spans[index].getBoundingClientRect();
    const limit = Math.min(this.count, 2000);
    let line = null;
    let best = index;
    let distance = Infinity;
    for (let step = 1; step < limit; step += 1) {
      const at = index + direction * step;
      if (at < 0 || at >= this.count) break;
      const box = this.spans[at].getBoundingClientRect();
      if (line === null && Math.abs(box.top - from.top) < from.height / 2) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) > from.height / 2) break;
      if (Math.abs(box.left - from.left) < distance) [best, distance] = [at, Math.abs(box.left - from.left)];
    }
    if (best !== index) return best;
    return direction < 0 ? 0 : this.count - 1;
  }
}

/* The next position of a sorted list after (or before) an index, going round at the end. */
function nextOf(positions, index, direction) {
  if (!positions.length) return -1;
  if (direction > 0) return positions.find((at) => at > index) ?? positions[0];
  return positions.findLast((at) => at < index) ?? positions[positions.length - 1];
}
