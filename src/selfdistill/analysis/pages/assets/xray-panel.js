"use strict";
/* Everything about one token: a panel at the side, or at the bottom of a narrow screen. A screen reader hears one
   sentence per token, once the reader rests on it. */

const ANNOUNCE_AFTER = 350;
const PANEL_FACTS = [
  ["divergence", "divergence"],
  ["student_entropy", "entropy H_S"],
  ["teacher_entropy", "entropy H_T"],
  ["entropy_ratio", "ratio H_T / H_S"],
  ["student_logprob", "log p_S(y)"],
  ["teacher_logprob", "log p_T(y)"],
  ["log_ratio", "log p_T(y) − log p_S(y)"],
  ["rollout_logprob", "log p when drawn"],
  ["clip_fraction", "clipped share"],
  ["captured_mass", "captured mass"],
  ["weight", "weight"],
];
const SUMMARY = [["divergence", "divergence"], ["student_entropy", "H_S"], ["teacher_entropy", "H_T"], ["clip_fraction", "clipped"]];
const AFTER = [
  ["log p_S(y)", "student_logprob", "student_logprob_after"],
  ["divergence", "divergence", "divergence_after"],
];

class TokenPanel {
  constructor(xray, rollout, closed) {
    this.xray = xray;
    this.rollout = rollout;
    this.ranks = new Map(rollout.tokens.interpolated.map((index, rank) => [index, rank]));
    this.body = make("div", { class: "panel-body" });
    this.status = make("p", { class: "hidden-visually", role: "status", "aria-live": "polite" });
    const close = make("button", { type: "button", class: "close" }, "Close");
    close.addEventListener("click", closed);
    this.element = make("aside", { id: "panel", "aria-label": "The token", tabindex: "0" }, close, this.body, this.status);
    this.shown = -1;
    this.timer = 0;
    this.#hint();
  }

  #hint() {
    this.element.classList.add("idle");
    this.body.replaceChildren(make("h2", {}, "The token"), make("p", { class: "soft" },
      "Point at a token, or walk through the response with the arrow keys, to see what the student and its teacher expected there."));
  }

  hide() {
    this.shown = -1;
    clearTimeout(this.timer);
    this.#hint();
  }

  show(index, pinned) {
    if (index < 0) { this.hide(); return; }
    const again = index === this.shown;
    this.shown = index;
    this.element.classList.remove("idle");
    const id = this.rollout.tokens.ids[index];
    const label = tokenLabel(this.xray.word(id), id);
    this.body.replaceChildren(
      make("h2", {}, "Token ", make("bdi", { class: "mono token-text" }, label)),
      make("p", { class: "soft", id: "where" }, `position ${index + 1} of ${this.rollout.tokens.ids.length}, id ${id}${pinned ? ", pinned (Escape lets go)" : ""}`),
      this.#role(index),
      factList(SUMMARY.filter(([name]) => this.rollout.tokens.columns[name]).map(([name, label]) => [label, figure(this.#column(name, index))])),
      ...this.#charts(index, id),
      this.#facts(index),
      this.#effect(index),
    );
    if (!again) this.#announce(index, label);
  }

  #column(name, index) {
    const values = this.rollout.tokens.columns[name];
    return values ? values[index] : undefined;
  }

  #role(index) {
    const rank = this.ranks.get(index);
    const total = this.rollout.tokens.interpolated.length;
    if (rank !== undefined) return make("p", { class: "badge" }, `Interpolated position, ${rank + 1} of ${total}`);
    return total ? make("p", { class: "soft" }, "Not interpolated: target = teacher.") : "";
  }

  #charts(index, sampled) {
    const top = this.rollout.tokens.top;
    const rank = this.ranks.get(index);
    const charts = [this.#chart("Student", "student", top.student(index), sampled)];
    if (!top.teacher) charts.push(make("p", { class: "soft" }, "This rollout has no teacher."));
    else charts.push(this.#chart("Teacher", "teacher", top.teacher(index), sampled));
    if (top.target && rank !== undefined) charts.push(this.#chart("Interpolated target", "target", top.target(rank), sampled));
    return charts;
  }

  #chart(title, kind, rows, sampled) {
    const known = rows.filter((row) => !Number.isNaN(row.probability));
    const rest = Math.max(0, 1 - known.reduce((sum, row) => sum + row.probability, 0));
    const bars = rows.map((row) => {
      const own = row.id === sampled;
      return make("li", { class: own ? "own" : null, "data-id": row.id },
        make("bdi", { class: "mono word" }, tokenLabel(this.xray.word(row.id), row.id), own ? make("span", { class: "hidden-visually" }, " (the sampled token)") : null),
        bar(row.probability),
        make("span", { class: "share" }, percent(row.probability)));
    });
    if (known.length === rows.length) {
      bars.push(make("li", { class: "rest" }, make("span", { class: "word" }, "all others"), bar(rest), make("span", { class: "share" }, percent(rest))));
    }
    const absent = rows.some((row) => row.id === sampled) ? "" : make("p", { class: "soft" }, "The sampled token is not among these.");
    return make("div", { class: "chart " + kind }, make("h3", {}, `${title}, top ${rows.length}`), make("ol", { class: "bars" }, ...bars), absent);
  }

  #facts(index) {
    const rows = PANEL_FACTS.filter(([name]) => this.rollout.tokens.columns[name]).map(([name, label]) =>
      make("tr", {}, make("th", { scope: "row", title: this.xray.descriptions[name] }, label), make("td", { "data-column": name }, figure(this.#column(name, index)))));
    return make("div", {}, make("h3", {}, "Figures"), make("table", { class: "figures" }, make("tbody", {}, ...rows)));
  }

  #effect(index) {
    const rows = AFTER.filter(([, , after]) => this.rollout.tokens.columns[after]).map(([label, before, after]) => {
      const [old, now] = [this.#column(before, index), this.#column(after, index)];
      return make("tr", {}, make("th", { scope: "row" }, label), ...[old, now, now - old].map((value) => make("td", {}, figure(value))));
    });
    if (!rows.length) return "";
    const head = make("tr", {}, ...["", "before", "after", "change"].map((name) => name ? make("th", { scope: "col" }, name) : make("td", {})));
    return make("div", { id: "effect" }, make("h3", {}, "Effect of the update"), make("table", { class: "figures" }, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  #announce(index, label) {
    clearTimeout(this.timer);
    const said = [`Position ${index + 1}, ${label}`];
    const divergence = this.#column("divergence", index);
    if (divergence !== undefined) said.push(`divergence ${brief(divergence)}`);
    if (this.ranks.has(index)) said.push("interpolated");
    this.timer = setTimeout(() => { this.status.textContent = said.join(", "); }, ANNOUNCE_AFTER);
  }
}

function bar(probability) {
  const fill = make("span", { class: "fill" });
  fill.style.width = `${Number.isNaN(probability) ? 0 : (100 * probability).toFixed(2)}%`;
  return make("span", { class: "track", "aria-hidden": "true" }, fill);
}
