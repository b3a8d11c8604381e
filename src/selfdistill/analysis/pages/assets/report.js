"use strict";
/* The report: showing and hiding series, the numbers behind the figures, and reloading while a run is watched. */

const ROWS = 300; // of a table on the page; the download has all
const HERE = " " + location.pathname; // other reports in the same tab have other runs

(function series() {
  const boxes = [...document.querySelectorAll("[data-series]")];
  const hidden = new Set((remembered("hidden" + HERE) || "").split(" ").filter(Boolean));
  for (const box of boxes) {
    const show = () => document.body.classList.toggle("hide-" + box.dataset.series, !box.checked);
    box.checked = !hidden.has(box.dataset.series);
    show();
    box.addEventListener("change", () => {
      show();
      remember("hidden" + HERE, boxes.filter((one) => !one.checked).map((one) => one.dataset.series).join(" "));
    });
  }
})();

(function numbers() {
  const charts = readData("chart-data");

  /* Text in a table is a place in its list of texts: [3]. */
  function rowsOf(chart) {
    return chart.rows.map((row) => row.map((one) => (Array.isArray(one) ? chart.texts[one[0]] : one)));
  }

  function cell(value) {
    if (value === null) return "–";
    return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
  }

  function table(chart, name) {
    const head = make("tr", {}, ...chart.columns.map((column) => make("th", {scope: "col"}, column)));
    const rows = rowsOf(chart).slice(0, ROWS).map((row) => make("tr", {}, ...row.map((one) => make("td", {}, cell(one)))));
    const whole = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
    return make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of " + name}, whole);
  }

  /* A cell that a spreadsheet would take for a formula gets an apostrophe. */
  function quoted(value) {
    if (value === null) return "";
    if (typeof value === "number") return String(value);
    const safe = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
    return /[",\n\r]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
  }

  function download(chart, name) {
    const lines = [chart.columns, ...rowsOf(chart)].map((row) => row.map(quoted).join(","));
    const address = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], {type: "text/csv"}));
    make("a", {href: address, download: name + ".csv"}).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  for (const details of document.querySelectorAll(".numbers")) {
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const name = details.dataset.chart;
      const chart = charts[name];
      const button = make("button", {type: "button"}, "Download CSV");
      button.addEventListener("click", () => download(chart, name));
      const left = chart.rows.length - ROWS;
      details.append(table(chart, name), left > 0 ? make("p", {}, left + " more rows are in the download.") : "", button);
    });
  }
})();

(function watch() {
  const place = document.getElementById("watch");
  if (!place) return;
  const boxes = [...document.querySelectorAll("details")];
  for (const index of (remembered("open" + HERE) || "").split(" ").filter(Boolean)) {
    if (boxes[index]) boxes[index].open = true;
  }
  const before = remembered("scroll" + HERE);
  if (before !== null) window.scrollTo(0, Number(before));
  const button = document.getElementById("pause");
  let paused = remembered("paused" + HERE) === "yes";

  function label() {
    button.textContent = paused ? "Go on" : "Pause";
    button.setAttribute("aria-pressed", String(paused));
  }

  /* Somebody who is typing is not interrupted. */
  function reload() {
    if (paused || ["INPUT", "SELECT"].includes((document.activeElement || {}).tagName)) return;
    remember("scroll" + HERE, String(window.scrollY));
    remember("open" + HERE, boxes.flatMap((box, index) => (box.open ? [index] : [])).join(" "));
    location.reload();
  }

  button.addEventListener("click", () => {
    paused = !paused;
    remember("paused" + HERE, paused ? "yes" : "no");
    label();
  });
  label();
  setInterval(reload, 1000 * Number(place.dataset.seconds));
})();
