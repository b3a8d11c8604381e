"use strict";
/* What the teacher was shown for a rollout, and what is said about the rollout as a whole. */

const LONG_TEXT = 4000;
const SOURCES = {
  solution: "the reference solution",
  partial_solution: "a part of the reference solution",
  demonstration: "a sibling's response",
  buffered_demonstration: "a success of an earlier step",
  feedback: "feedback on the attempt",
  privileged_feedback: "feedback on the attempt that prints the expected answer",
};

function longText(content, label) {
  const pieces = content instanceof Node ? content : String(content);
  const long = (content instanceof Node ? content.textContent : pieces).length > LONG_TEXT;
  const attributes = long ? { class: "model-text long", tabindex: "0", role: "group", "aria-label": label } : { class: "model-text" };
  return make("div", attributes, pieces);
}

function factList(facts) {
  return make("dl", { class: "facts" }, ...facts.filter(Boolean).map(([name, value, kind]) =>
    make("div", {}, make("dt", {}, name), make("dd", { class: kind }, value))));
}

/* The list in which people choose a rollout: what decides is said in words, not in colour alone. */
function rolloutTab(rollout, index) {
  const tokens = rollout.tokens;
  const length = tokens ? `${tokens.ids.length} tokens` : "not scored";
  const divergence = tokens && tokens.columns.divergence ? `mean divergence ${brief(mean(tokens.columns.divergence))}` : "";
  return make("button", { type: "button", role: "tab", id: `tab-${index}`, "aria-controls": "rollout", "aria-selected": "false", tabindex: "-1" },
    make("b", {}, `Rollout ${rollout.sibling}`),
    make("span", { class: rollout.success ? "good" : "bad" }, rollout.success ? "✓ success" : "✗ no success"),
    make("span", {}, `reward ${brief(rollout.reward)}`),
    make("span", {}, length),
    divergence ? make("span", {}, divergence) : null);
}

function rolloutFacts(rollout) {
  const facts = factList([
    ["answer", make("bdi", {}, rollout.answer === null ? "none found" : rollout.answer)],
    ["ended by", rollout.finish],
    ["trained by", rollout.objective || "no signal"],
    ["weight of the question", brief(rollout.weight)],
    ["advantage", brief(rollout.advantage)],
  ]);
  if (rollout.feedback === null) return [facts];
  return [facts, make("h3", {}, "Feedback on this rollout"), make("div", { class: "card" }, longText(rollout.feedback, "feedback"))];
}

function noSignal(rollout) {
  const reasons = [];
  if (rollout.weight === 0) reasons.push("The weight of its question is 0.");
  if (!rollout.context) reasons.push("There was nothing to show its teacher: no other success among its siblings, and no feedback.");
  if (rollout.objective) reasons.push(`Its objective is ${rollout.objective}, but it was not scored.`);
  return make("div", { class: "card", id: "no-signal" },
    make("p", {}, make("b", {}, "No signal. "), "This rollout is not trained on, so there is nothing to show token by token. ", reasons.join(" ")),
    make("h3", {}, "Response"),
    longText(rollout.text, "response"));
}

function contextSection(xray, rollout) {
  const context = rollout.context;
  const section = make("section", { "aria-labelledby": "context" }, make("h2", { id: "context" }, "What the teacher was shown"));
  if (!context) section.append(make("p", {}, "This rollout has no teacher: nothing was shown."));
  if (context) {
    const source = context.source.split("+").map((part) => SOURCES[part] || part).join(", and ");
    section.append(make("p", {}, `Shown: ${source}.`, context.truncated ? ` ${context.truncated} tokens of it were cut to fit.` : ""));
    const numbers = [];
    if (context.overlap !== null) numbers.push(["overlap", brief(context.overlap)]);
    if (context.hiddenRatio !== null) numbers.push(["hidden ratio", brief(context.hiddenRatio)]);
    if (numbers.length) section.append(factList(numbers));
    if (context.anchors.length) section.append(anchorList(context.anchors));
  }
  section.append(...solution(xray, context));
  if (context) section.append(...shownText(xray, context), teacherPrompt(context));
  return section;
}

function anchorList(anchors) {
  const found = anchors.filter((one) => one.found).length;
  const chips = anchors.map((one) => make("li", { class: one.found ? "chip found" : "chip missing" },
    make("span", { "aria-hidden": "true" }, one.found ? "✓ " : "✗ "), make("bdi", {}, one.text),
    make("span", { class: "verdict" }, one.found ? " found" : " missing")));
  return make("div", {}, make("h3", {}, `Anchors of the solution: ${found} of ${anchors.length} are in this response`),
    make("ul", { class: "chips" }, ...chips));
}

function solution(xray, context) {
  if (context && context.parts.length) {
    const parts = make("span", {}, ...context.parts.map((part) => part.hidden
      ? make("span", { class: "hidden-part" }, make("span", { class: "hidden-mark" }, "hidden from the teacher"), part.text,
        make("span", { class: "hidden-visually" }, " (end of the hidden part) "))
      : part.text));
    return [make("h3", {}, "Reference solution"), make("div", { class: "card", id: "solution" }, longText(parts, "reference solution"))];
  }
  if (xray.solution === null) return [];
  return [make("details", {}, make("summary", {}, "Reference solution, which this rollout's teacher was not shown"),
    make("div", { class: "card", id: "solution" }, longText(xray.solution, "reference solution")))];
}

function shownText(xray, context) {
  const sibling = context.demonstrator === null ? undefined : xray.rollouts.find((one) => one.sibling === context.demonstrator);
  const parts = [];
  if (context.demonstrator !== null) {
    parts.push(make("h3", {}, `Sibling that was shown: rollout ${context.demonstrator}`));
    if (sibling) {
      parts.push(make("p", {}, make("a", { href: `#rollout-${sibling.sibling}`, class: "jump" }, `Go to the x-ray of rollout ${sibling.sibling}`)),
        make("div", { class: "card", id: "sibling" }, longText(sibling.text, "response of the sibling")));
    }
  }
  parts.push(make("details", { open: !context.parts.length && !sibling }, make("summary", {}, "Privileged text, as the teacher sees it"),
    make("div", { class: "card" }, longText(context.shown, "privileged text"))));
  return parts;
}

function teacherPrompt(context) {
  return make("details", { id: "teacher-prompt" }, make("summary", {}, "The teacher's whole prompt"),
    make("div", { class: "card" }, ...context.messages.map((message) => make("div", { class: "turn" },
      make("p", { class: "role" }, message.role || ""), longText(message.content || "", "message of the teacher's prompt")))));
}
