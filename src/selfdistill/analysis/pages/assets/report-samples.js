"use strict";
/* Sample rollouts: filters, and a few at a time. Everything that a model wrote becomes text nodes. */

(function samples() {
  const form = document.getElementById("filters");
  if (!form) return;
  const all = readData("sample-data");
  const labels = readData("series-data");
  const list = document.getElementById("rollouts");
  const found = document.getElementById("found");
  const pages = document.getElementById("pages");
  const PAGE = 10;
  let first = 0;

  function choice(name, label, options) {
    const select = make("select", {name}, ...options.map(([value, shown]) => make("option", {value}, shown)));
    form.append(make("label", {}, label, select));
    return select;
  }

  const unique = (name) => [...new Set(all.map((one) => one[name]))];
  const any = ["", "all"];
  const source = choice("source", "From", [any, ...unique("source").map((one) => [one, one])]);
  const series = labels.length > 1
    ? choice("run", "Run", [any, ...unique("series").map((one) => [String(one), labels[one]])])
    : {value: ""};
  const question = choice("question", "Question", [any, ...unique("question").map((one) => [one, visible(one)])]);
  const step = choice("step", "Step", [any, ...unique("step").sort((a, b) => a - b).map((one) => [String(one), String(one)])]);
  const outcome = choice("outcome", "Verdict", [any, ["right", "right"], ["wrong", "wrong"]]);
  const search = make("input", {type: "search", name: "text"});
  form.append(make("label", {}, "Text", search));

  function wanted(one) {
    const words = search.value.toLowerCase();
    return (!source.value || one.source === source.value)
      && (!series.value || String(one.series) === series.value)
      && (!question.value || one.question === question.value)
      && (!step.value || String(one.step) === step.value)
      && (!outcome.value || one.success === (outcome.value === "right"))
      && (!words || one.response.toLowerCase().includes(words) || one.prompt.toLowerCase().includes(words));
  }

  function heading(one) {
    return make("div", {class: "question"},
      make("strong", {}, one.question), " ", make("span", {class: "soft"}, one.source + (labels.length > 1 ? ", " + labels[one.series] : "")),
      make("pre", {class: "model-text", tabindex: "0"}, one.prompt));
  }

  function rollout(one) {
    const verdict = make("strong", {class: one.success ? "good" : "bad"}, one.success ? "✓ right" : "✗ wrong");
    const facts = ["step " + one.step, "sibling " + one.sibling, one.answer === null ? "no answer" : "answer " + one.answer];
    if (one.truncated) facts.push("ran out of budget");
    return make("article", {class: "rollout " + (one.success ? "right" : "wrong")},
      make("p", {}, verdict, " ", facts.join(" · ")), make("pre", {class: "model-text", tabindex: "0"}, one.response));
  }

  function turn(label, to, possible) {
    const button = make("button", {type: "button", disabled: !possible}, label);
    button.addEventListener("click", () => {
      first = to;
      show();
      found.scrollIntoView({block: "nearest"});
    });
    return button;
  }

  function show() {
    const kept = all.filter(wanted);
    const part = kept.slice(first, first + PAGE);
    const parts = [];
    let before = null;
    for (const one of part) {
      const place = [one.source, one.series, one.question].join("\u0000");
      if (place !== before) parts.push(heading(one));
      before = place;
      parts.push(rollout(one));
    }
    list.replaceChildren(...parts);
    found.textContent = kept.length === 0 ? "No rollout matches."
      : "Rollouts " + (first + 1) + " to " + (first + part.length) + " of " + kept.length + ".";
    pages.replaceChildren(
      turn("Previous", Math.max(0, first - PAGE), first > 0), turn("Next", first + PAGE, first + PAGE < kept.length));
  }

  /* A page that reloads itself while a run is watched comes back with the same filters. */
  const fields = [...form.elements];
  JSON.parse(remembered("filters" + HERE) || "[]").forEach((value, index) => {
    const field = fields[index];
    if (field && (field.tagName === "INPUT" || [...field.options].some((one) => one.value === value))) field.value = value;
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    first = 0;
    remember("filters" + HERE, JSON.stringify(fields.map((field) => field.value)));
    show();
  });
  show();
})();
