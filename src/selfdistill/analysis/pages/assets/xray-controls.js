"use strict";
/* Choosing the colouring, its legend, the filters and the list of keys. */

const KEYS = [
  ["← →", "token by token"],
  ["↑ ↓", "line by line"],
  ["Home End", "first and last token"],
  ["n p", "next and previous interpolated position"],
  ["m M", "next and previous of the 1 % of tokens with the largest divergence"],
  ["Enter", "pin the token: the panel stays while the pointer moves; a click does the same"],
  ["Escape", "let go of it"],
  ["1 to 8", "choose the colouring, where the run has it"],
  ["?", "show or hide this list"],
];

function colouringChooser(colourings, chosen, choose) {
  const options = colourings.map((one) => {
    const input = make("input", { type: "radio", name: "colouring", value: one.name, checked: one.name === chosen });
    input.addEventListener("change", () => choose(one.name));
    return make("label", { class: "pill" }, input, make("span", {}, one.label, make("kbd", {}, String(one.key))));
  });
  return make("fieldset", { id: "colouring" }, make("legend", {}, "Tokens coloured by"), ...options);
}

class Legend {
  constructor() {
    this.bar = make("div", { class: "legend-bar", "aria-hidden": "true" });
    this.ticks = make("div", { class: "legend-ticks" });
    this.words = make("p", { class: "legend-words" });
    this.element = make("div", { id: "legend" }, this.words, this.bar, this.ticks);
  }

  set(colouring, scale, table, clipped, { interpolated, unknown }) {
    this.bar.style.background = `linear-gradient(to right, ${table.map((one) => one.ground).join(",")})`;
    const marks = [0, 0.25, 0.5, 0.75, 1].map((share) => scale.low + share * (scale.high - scale.low));
    this.ticks.replaceChildren(...marks.map((value, index) => make("span", {}, this.#tick(value, index, marks.length, scale))));
    const ends = colouring.diverging ? ` Orange: ${colouring.ends[0]}; blue: ${colouring.ends[1]}.` : "";
    const beyond = scale.beyond ? ` The colours end at the ${Math.round(100 * clipped)}th percentile of this page's tokens; what lies beyond has the last one.` : "";
    this.words.replaceChildren(make("b", {}, colouring.label), `: ${colouring.description}.${ends}${beyond}`,
      interpolated ? make("span", { class: "swatches" }, " Outlined: ", make("span", { class: "sample interpolated" }, "interpolated"), ".") : "",
      unknown ? make("span", { class: "swatches" }, " Hatched: ", make("span", { class: "sample unknown" }, "unknown"), ".") : "");
  }

  #tick(value, index, count, scale) {
    const sign = scale.beyond && index === count - 1 ? "≥ " : scale.beyond && index === 0 && scale.low < 0 ? "≤ " : "";
    return sign + brief(value);
  }
}

class Filters {
  constructor(interpolated, changed) {
    this.only = make("input", { type: "checkbox", id: "only-interpolated", disabled: interpolated === 0 });
    this.share = make("input", { type: "range", id: "threshold", min: "0", max: "99", step: "1", value: "0", "aria-describedby": "threshold-value" });
    this.limit = make("output", { id: "threshold-value", for: "threshold" });
    this.search = make("input", { type: "search", id: "search", placeholder: "text of tokens", autocomplete: "off", spellcheck: "false" });
    this.count = make("p", { id: "kept", class: "soft", role: "status" });
    const clear = make("button", { type: "button", id: "clear" }, "Clear");
    clear.addEventListener("click", () => {
      this.only.checked = false;
      this.share.value = "0";
      this.search.value = "";
      changed();
    });
    for (const input of [this.only, this.share, this.search]) input.addEventListener("input", changed);
    this.element = make("div", { class: "filters" },
      make("label", {}, this.only, ` only interpolated (${interpolated})`),
      make("label", { class: "range" }, "only the largest ", this.share, this.limit),
      make("label", {}, "find ", this.search), clear, this.count);
  }

  /* Which tokens pass; also says so beside the controls. */
  test(area, values, diverging) {
    const share = Number(this.share.value) / 100;
    const size = diverging ? Math.abs : (value) => value;
    const limit = share > 0 && values ? quantile(values.map(size), share) : NaN;
    this.limit.textContent = Number.isNaN(limit) ? "all" : `top ${100 - Number(this.share.value)} % (${diverging ? "|x| " : ""}≥ ${brief(limit)})`;
    const wanted = this.search.value.toLowerCase();
    const interpolated = this.only.checked;
    return (index) => (!interpolated || area.tokens.selected[index] === 1)
      && (Number.isNaN(limit) || size(values[index]) >= limit)
      && (!wanted || area.labels[index].includes(wanted));
  }

  say(kept, total) {
    this.count.textContent = kept === total ? `${total} tokens` : `${kept} of ${total} tokens; the others are faint`;
  }
}

function keysHelp() {
  const rows = KEYS.map(([keys, what]) => make("tr", {}, make("th", { scope: "row" }, ...keys.split(" ").map((key) => (key === "to" ? " to " : make("kbd", {}, key)))), make("td", {}, what)));
  return make("details", { id: "help" }, make("summary", {}, "Keys"),
    make("p", { id: "keys-hint" }, "Move the focus into the response (a click, or the tab key), then:"),
    make("div", { class: "scroll" }, make("table", {}, make("tbody", {}, ...rows))));
}

function interpolatedList(xray, tokens, jump) {
  if (!tokens.interpolated.length) return "";
  const list = make("ul", { class: "chips" });
  const details = make("details", { id: "interpolated-list" }, make("summary", {}, `Interpolated positions (${tokens.interpolated.length})`), list);
  details.addEventListener("toggle", () => {
    if (list.firstChild) return;
    list.append(...tokens.interpolated.map((index) => {
      const id = tokens.ids[index];
      const button = make("button", { type: "button" }, make("span", { class: "soft" }, `${index + 1} `), make("bdi", { class: "mono" }, tokenLabel(xray.word(id), id)));
      button.addEventListener("click", () => jump(index));
      return make("li", {}, button);
    }));
  });
  return details;
}
