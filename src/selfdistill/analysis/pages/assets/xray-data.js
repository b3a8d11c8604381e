"use strict";
/* From the page's JSON to typed arrays, and from numbers and tokens to what people read. */

/* What tokens may be coloured by, in the order of the keys 1 to 8. */
const COLOURINGS = [
  { name: "divergence", label: "Divergence" },
  { name: "entropy_ratio", label: "Entropy ratio" },
  { name: "log_ratio", label: "Log-ratio", diverging: true, ends: ["the student likes it more", "the teacher likes it more"] },
  { name: "weight", label: "Weight", ends: ["pushed away", "pulled towards"] },
  { name: "change", label: "Effect of the update", diverging: true, ends: ["less likely now", "more likely now"] },
  { name: "clip_fraction", label: "Clipped share" },
  { name: "student_entropy", label: "Student's entropy" },
  { name: "teacher_entropy", label: "Teacher's entropy" },
];
const CHANGE = "log p_S(y) after the update minus before";

function unpackXray(raw) {
  const words = raw.vocabulary;
  const rollouts = raw.rollouts.map((one) => ({ ...one, tokens: one.tokens && unpackTokens(one.tokens, raw.probabilitySteps) }));
  const descriptions = { ...raw.columns, change: CHANGE };
  const available = COLOURINGS.map((one, index) => ({ ...one, key: index + 1, description: descriptions[one.name] }))
    .filter((one) => rollouts.some((rollout) => rollout.tokens && rollout.tokens.columns[one.name]))
    .map((one) => ({ ...one, diverging: one.diverging === true || (one.name === "weight" && anyBelowZero(rollouts, one.name)) }));
  return { ...raw, rollouts, descriptions, colourings: available, word: (id) => words[id] };
}

/* Advantages weigh tokens of rollouts that are worse than their siblings with less than nothing. */
function anyBelowZero(rollouts, name) {
  return rollouts.some((one) => one.tokens && one.tokens.columns[name] && one.tokens.columns[name].some((value) => value < 0));
}

function unpackTokens(packed, steps) {
  const columns = {};
  for (const [name, values] of Object.entries(packed.columns)) columns[name] = decodeColumn(values, Float32Array);
  if (columns.student_logprob_after && columns.student_logprob) {
    columns.change = columns.student_logprob_after.map((after, index) => after - columns.student_logprob[index]);
  }
  const selected = decodeColumn(packed.selected, Uint8Array);
  const interpolated = [];
  selected.forEach((flag, index) => { if (flag) interpolated.push(index); });
  return {
    ids: decodeColumn(packed.ids, Int32Array),
    columns,
    selected,
    interpolated,
    top: {
      student: unpackTop(packed.student, steps),
      teacher: unpackTop(packed.teacher, steps),
      target: unpackTop(packed.interpolated, steps),
    },
  };
}

function unpackTop(packed, steps) {
  if (!packed) return null;
  const ids = decodeColumn(packed.ids, Int32Array);
  const quantised = decodeColumn(packed.probabilities, Uint16Array);
  const probability = (at) => (quantised[at] > steps ? NaN : (quantised[at] / steps) ** 2);
  return (row) => Array.from({ length: packed.k }, (_, column) => {
    const at = row * packed.k + column;
    return { id: ids[at], probability: probability(at) };
  });
}

/* A token's text on one line: breaks, tabs, halves of characters, and spaces that stand alone, are signs. */
function tokenLabel(text, id) {
  if (text === undefined || text === "") return `⟨#${id}⟩`;
  const shown = text.trim() === "" ? text.replace(/ /g, "␣") : text;
  return visible(shown).replace(/\n/g, "↵").replace(/\t/g, "→").replace(/\ufffd+/g, "⟨bytes⟩");
}

/* The same inside of a response, where breaks also break the line: those at the end of a token do so after it. */
function tokenInText(text, id) {
  if (text === undefined || text === "") return { shown: `⟨#${id}⟩`, breaks: "" };
  const breaks = /\n*$/.exec(text)[0];
  const inner = text.slice(0, text.length - breaks.length).replace(/\n/g, "↵\n") + "↵".repeat(breaks.length);
  return { shown: visible(inner).replace(/\t/g, "→\t").replace(/\ufffd+/g, "⟨bytes⟩"), breaks };
}

function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "unknown";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  const shown = size < 1e-3 || size >= 1e5 ? value.toExponential(2) : value.toFixed(size < 10 ? 4 : 2);
  return shown.replace(/-/g, "−");
}

function brief(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? "unknown" : String(Number(value.toPrecision(3))).replace(/-/g, "−");
}

/* What is below a hundred-millionth was rounded too much to be told. */
function percent(value) {
  if (Number.isNaN(value)) return "unknown";
  if (value < 1e-8) return "≈ 0 %";
  return (value < 5e-5 ? (100 * value).toExponential(0).replace("-", "−") : (100 * value).toFixed(2)) + " %";
}

function mean(values) {
  let sum = 0;
  let count = 0;
  for (const value of values || []) {
    if (!Number.isNaN(value)) { sum += value; count += 1; }
  }
  return count ? sum / count : NaN;
}

/* The value at a share of the sorted known ones. */
function quantile(values, share) {
  const known = values.filter((value) => !Number.isNaN(value)).sort();
  return known.length ? known[Math.min(known.length - 1, Math.floor(share * known.length))] : NaN;
}
