"use strict";
/* The page: choosing a rollout, and joining its tokens, panel, overview and controls. */

const LARGEST = 0.99;

class RolloutView {
  constructor(page, rollout) {
    Object.assign(this, { page, rollout, xray: page.xray });
    this.area = new TokenArea(this.xray, rollout);
    this.panel = new TokenPanel(this.xray, rollout, () => this.unpin(true));
    this.strip = new Strip(this.area, (index, keep) => this.jump(index, keep));
    this.legend = new Legend();
    this.filters = new Filters(rollout.tokens.interpolated.length, () => this.filter());
    this.help = keysHelp();
    this.hovered = -1;
    this.waiting = false;
    const divergence = rollout.tokens.columns.divergence;
    const limit = divergence ? quantile(divergence, LARGEST) : NaN;
    this.large = divergence ? Array.from(divergence.keys()).filter((index) => divergence[index] >= limit) : [];
    this.#listen();
  }

  elements() {
    const left = make("div", { class: "left" },
      colouringChooser(this.xray.colourings, this.page.chosen, (name) => this.choose(name)), this.legend.element, this.filters.element, this.help,
      this.strip.canvas, this.area.element, interpolatedList(this.xray, this.rollout.tokens, (index) => this.jump(index)));
    const section = make("section", { class: "columns", "aria-labelledby": "response" }, left, this.panel.element);
    section.addEventListener("keydown", (event) => this.#shortcut(event));
    return [make("h2", { id: "response" }, `Response, ${this.area.count} tokens`), section];
  }

  #listen() {
    const tokens = this.area.element;
    tokens.addEventListener("pointerover", (event) => {
      if (event.pointerType === "touch") return;
      this.hovered = this.area.indexOf(event.target);
      this.#refresh();
    });
    tokens.addEventListener("pointerleave", () => { this.hovered = -1; this.#refresh(); });
    tokens.addEventListener("focusin", (event) => {
      const index = this.area.indexOf(event.target);
      if (index < 0) return;
      this.area.rove(index);
      this.hovered = -1;
      this.visited = index;
      this.#refresh();
    });
    tokens.addEventListener("click", (event) => {
      const index = this.area.indexOf(event.target);
      if (index >= 0) this.pin(index);
    });
    tokens.addEventListener("keydown", (event) => this.#walk(event));
  }

  /* Pinned before pointed at before visited. */
  #refresh() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const visited = this.visited ?? -1;
      const index = this.area.pinned >= 0 ? this.area.pinned : this.hovered >= 0 ? this.hovered : visited;
      this.panel.show(index, this.area.pinned === index);
      if (this.strip.current !== index) this.strip.mark(index);
    });
  }

  pin(index) {
    this.area.pin(index);
    this.visited = index;
    this.#refresh();
    this.page.remember(this.rollout, index);
  }

  unpin(leave) {
    this.area.pin(-1);
    if (leave) { this.visited = -1; this.hovered = -1; }
    this.#refresh();
    this.page.remember(this.rollout, -1);
  }

  jump(index, keepFocus = false) {
    if (!this.area.count) return;
    if (this.area.pinned >= 0) this.unpin(false);
    this.visited = index;
    if (keepFocus) {
      this.area.rove(index);
      this.area.spans[index].scrollIntoView({ block: "nearest" });
      this.#refresh();
    } else {
      this.area.focus(index, "center");
    }
  }

  #move(index) {
    if (index < 0) return;
    if (this.area.pinned >= 0) this.unpin(false);
    this.area.focus(index);
  }

  #walk(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.area.focused;
    const moves = {
      ArrowRight: () => this.#move(at + 1),
      ArrowLeft: () => this.#move(Math.max(0, at - 1)),
      ArrowDown: () => this.#move(this.area.lineFrom(at, 1)),
      ArrowUp: () => this.#move(this.area.lineFrom(at, -1)),
      Home: () => this.#move(0),
      End: () => this.#move(this.area.count - 1),
      Enter: () => (this.area.pinned === at ? this.unpin(false) : this.pin(at)),
      " ": () => this.pin(at),
      Escape: () => this.unpin(false),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }

  /* Single letters work in this section only, and never while something is typed. */
  #shortcut(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || (event.target instanceof HTMLInputElement && event.target.type === "search")) return;
    const at = this.area.focused;
    const own = this.rollout.tokens.interpolated;
    const actions = {
      n: () => this.#move(nextOf(own, at, 1)),
      p: () => this.#move(nextOf(own, at, -1)),
      m: () => this.#move(nextOf(this.large, at, 1)),
      M: () => this.#move(nextOf(this.large, at, -1)),
      "?": () => { this.help.open = !this.help.open; },
    };
    const colouring = this.xray.colourings.find((one) => String(one.key) === event.key);
    if (colouring) this.choose(colouring.name);
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  }

  choose(name) {
    this.page.chosen = name;
    const input = document.querySelector(`#colouring input[value="${name}"]`);
    if (input) input.checked = true;
    this.paint();
    this.filter();
  }

  paint() {
    const colouring = this.xray.colourings.find((one) => one.name === this.page.chosen);
    if (!colouring) return;
    const { scale, table } = this.page.scaleFor(colouring);
    const values = this.rollout.tokens.columns[colouring.name];
    this.area.colour(values, scale);
    this.legend.set(colouring, scale, table, this.xray.clipped,
      { interpolated: this.rollout.tokens.interpolated.length > 0, unknown: !values || values.some(Number.isNaN) });
    this.strip.set(values, scale, table);
  }

  filter() {
    const colouring = this.xray.colourings.find((one) => one.name === this.page.chosen);
    const values = colouring && this.rollout.tokens.columns[colouring.name];
    const kept = this.area.filter(this.filters.test(this.area, values, Boolean(colouring && colouring.diverging)));
    this.filters.say(kept, this.area.count);
    this.strip.draw();
  }
}

class Page {
  constructor(raw) {
    this.xray = unpackXray(raw);
    this.chosen = this.xray.colourings.length ? this.xray.colourings[0].name : null;
    this.scales = new Map();
    this.sheet = make("style", {});
    document.head.append(this.sheet);
    this.panel = document.getElementById("rollout");
    this.tabs = this.xray.rollouts.map(rolloutTab);
    document.getElementById("chooser").append(...this.tabs);
    this.tabs.forEach((tab, index) => {
      tab.addEventListener("click", () => this.show(index));
      tab.addEventListener("keydown", (event) => this.#walk(event, index));
    });
    document.addEventListener("themechange", () => { if (this.view) this.view.paint(); });
    window.addEventListener("hashchange", () => this.#follow());
    if (!this.tabs.length) this.panel.replaceChildren(make("p", {}, "There are no rollouts."));
    else if (!this.#follow()) this.show(this.#firstScored());
  }

  #firstScored() {
    return Math.max(0, this.xray.rollouts.findIndex((one) => one.tokens));
  }

  /* #rollout-3, #rollout-3-token-17 (counted from 1). */
  #follow() {
    const asked = /^#rollout-(\d+)(?:-token-(\d+))?$/.exec(location.hash);
    const index = asked ? this.xray.rollouts.findIndex((one) => one.sibling === Number(asked[1])) : -1;
    if (index < 0) return false;
    this.show(index);
    if (asked[2] && this.view && Number(asked[2]) <= this.view.area.count && Number(asked[2]) > 0) {
      this.view.area.focus(Number(asked[2]) - 1, "center");
      this.view.pin(Number(asked[2]) - 1);
    } else {
      this.tabs[index].focus();
    }
    return true;
  }

  remember(rollout, token) {
    const hash = `#rollout-${rollout.sibling}` + (token >= 0 ? `-token-${token + 1}` : "");
    try { history.replaceState(null, "", hash); } catch { /* not every place lets a page change its address */ }
  }

  #walk(event, index) {
    const count = this.tabs.length;
    const next = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: count - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const bounded = (next + count) % count;
    this.show(bounded);
    this.tabs[bounded].focus();
  }

  /* Colours are the same for all rollouts of the page, and written as one sheet per colouring and theme. */
  scaleFor(colouring) {
    if (!this.scales.has(colouring.name)) {
      const all = this.xray.rollouts.flatMap((one) => (one.tokens && one.tokens.columns[colouring.name] ? Array.from(one.tokens.columns[colouring.name]) : []));
      this.scales.set(colouring.name, scaleOf(all, colouring.diverging, this.xray.clipped));
    }
    const table = shades(colouring.diverging, isDark());
    const key = `${colouring.diverging} ${isDark()}`;
    if (this.sheet.dataset.key !== key) {
      this.sheet.dataset.key = key;
      this.sheet.textContent = table.map(({ ground, ink }, index) => `.b${index}{background:${ground};color:${ink}}`).join("\n");
    }
    return { scale: this.scales.get(colouring.name), table };
  }

  show(index) {
    const rollout = this.xray.rollouts[index];
    this.tabs.forEach((tab, at) => {
      tab.setAttribute("aria-selected", String(at === index));
      tab.tabIndex = at === index ? 0 : -1;
    });
    this.panel.setAttribute("aria-labelledby", `tab-${index}`);
    this.view = rollout.tokens ? new RolloutView(this, rollout) : null;
    const shown = this.view ? this.view.elements() : [noSignal(rollout)];
    this.panel.replaceChildren(...rolloutFacts(rollout), contextSection(this.xray, rollout), ...shown);
    if (this.view) {
      this.view.paint();
      this.view.filter();
    }
  }
}

const xrayPage = new Page(readData("xray"));
document.documentElement.dataset.ready = "true";
