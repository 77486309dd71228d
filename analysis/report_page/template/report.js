// Draws the charts of a report from the JSON that stands in the page; each when it comes into view.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const charts = new Map(); // element id -> function that draws it
const drawn = new Set(); // element ids, to draw again in other colours
const PALETTE = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#edc948", "#9c755f", "#ff9da7", "#8c96a0",
  "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#1f78b4", "#b2df8a", "#6a3d9a"];
const WEBGL_FROM = 4000; // clips
const MARKS = { // name, colour, symbol, distance from the middle of a row
  majority_class: ["without features", "other", "line-ns-open", 0],
  untrained_encoder: ["untrained encoder", "other", "x-thin-open", 0],
  published_best: ["best published probe of another encoder", "other", "star-open", 0],
  linear: ["linear head", "linear", "circle", -0.14],
  three_layer: ["three-layer head", "three", "square", 0.14],
};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Plotly reads tags and entities in its texts; no name of a class or clip may bring any.
const escape = (text) => text.replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);

function draw(id, traces, layout, height = null) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
  const usual = {
    margin: { l: 10, r: 10, t: 10, b: 10 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
    font: { color: colour("ink"), size: 12, family: "system-ui, sans-serif" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, hovermode: "closest",
    hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("faint"), font: { color: colour("ink") }, align: "left" },
  };
  const element = document.getElementById(id);
  if (height) element.style.height = `${height}px`;
  Plotly.react(element, traces, { template: { layout: usual }, ...layout }, { responsive: true, displaylogo: false, displayModeBar: false });
  return element;
}

// A line of dots for every row: what the heads have, with 95 % intervals, and what stands beside them. Rows of different tasks
// stand apart.
function dots(id, rows, xaxis, unit, size, margin, rowHeight) {
  let place = 0;
  const places = rows.map((row, i) => { place += i && rows[i - 1].task !== row.task ? 1.6 : 1; return place; });
  const traces = Object.entries(MARKS).map(([key, [name, mark, symbol, shift]]) => {
    const values = rows.map((row) => ({ ...row.beside, ...row.heads })[key] ?? [null]);
    const x = values.map(([share]) => (share === null ? null : 100 * share));
    const reach = (side, sign) => values.map(([, ends], i) => (ends ? sign * (100 * ends[side] - x[i]) : 0));
    return {
      type: "scatter", mode: "markers", name, x, y: places.map((at) => at + shift),
      customdata: rows.map((row, i) => [escape(row.label), values[i][2] ?? ""]),
      hovertemplate: `%{customdata[0]}<br>${name}: %{x:${unit === "%" ? "" : "+"}.1f} ${unit}%{customdata[1]}<extra></extra>`,
      marker: { color: colour(mark), symbol, size, line: { width: 1.5, color: colour(mark) } },
      error_x: { type: "data", symmetric: false, array: reach(1, 1), arrayminus: reach(0, -1), color: colour(mark), thickness: 1.5 },
    };
  }).filter((trace) => trace.x.some((value) => value !== null));
  const yaxis = { autorange: "reversed", tickvals: places, ticktext: rows.map((row) => escape(row.label)), zeroline: false };
  draw(id, traces, { xaxis, yaxis }, margin + rowHeight * place);
}

// A matrix between tasks; with uncertain cells, of differences.
function heat(id, { names: plain, z, uncertain }) {
  const names = plain.map(escape);
  const digits = uncertain ? 1 : 2;
  const text = z.map((row, i) => row.map((value, j) => (value === null ? "" : uncertain?.[i][j] ? `(${value.toFixed(digits)})` : value.toFixed(digits))));
  draw(id, [{
    type: "heatmap", z, x: names, y: names, text, texttemplate: names.length <= 12 ? "%{text}" : "", showscale: false, xgap: 1, ygap: 1,
    ...(uncertain ? { colorscale: "RdBu", reversescale: true, zmid: 0 } : { colorscale: "Viridis" }),
    hovertemplate: "%{y} / %{x}: %{z:.3f}<extra></extra>",
  }], { xaxis: { type: "category", tickangle: -40 }, yaxis: { type: "category", autorange: "reversed" } }, 190 + 34 * names.length);
}

function confusionChart(id, { class_names: plain, confusion: shown }) {
  const names = plain.map(escape);
  const few = names.length <= 20;
  const axis = { type: "category", tickfont: { size: few ? 11 : 8 } };
  draw(id, [{
    type: "heatmap", z: shown, x: names, y: names, colorscale: [[0, colour("paper")], [1, colour(few ? "heat" : "linear")]], zmin: 0, zmax: 100,
    text: shown.map((row) => row.map((value) => (value >= 0.5 ? value.toFixed(0) : ""))), texttemplate: few ? "%{text}" : "",
    showscale: !few, hovertemplate: "true: %{y}<br>said: %{x}<br>%{z:.1f} %<extra></extra>",
  }], {
    xaxis: { ...axis, tickangle: -90, title: { text: "predicted" } }, yaxis: { ...axis, autorange: "reversed", title: { text: "true" } },
  }, few ? 460 : Math.min(760, Math.max(460, document.getElementById(id).clientWidth)));
}

function classesChart(id, { classes: rows, class_score: score }) {
  draw(id, [{
    type: "bar", orientation: "h", x: rows.map((row) => 100 * row.value), y: rows.map((row) => escape(row.name)), marker: { color: colour("linear") },
    text: rows.map((row) => (100 * row.value).toFixed(0)), textposition: "outside", cliponaxis: false,
    customdata: rows.map((row) => row.note), hovertemplate: `%{y}<br>${score} %{x:.1f} %, %{customdata}<extra></extra>`,
  }], { xaxis: { range: [0, 108], title: { text: `${score}, %` } }, yaxis: { type: "category", autorange: "reversed", dtick: 1, tickfont: { size: rows.length > 30 ? 9 : 11 } } },
  Math.max(320, 90 + 17 * rows.length));
}

function curvesChart(id, curves) {
  const traces = [];
  const shapes = [];
  for (const [kind, { train_loss, valid, epoch }] of Object.entries(curves)) {
    const name = kind.replace("_", "-");
    const line = { color: colour(MARKS[kind][1]) };
    const curve = { type: "scatter", mode: "lines", x: train_loss.map((_, index) => index + 1) };
    traces.push({ ...curve, y: train_loss, name: `${name}: loss`, line, hovertemplate: `${name}, epoch %{x}: loss %{y:.3f}<extra></extra>` });
    if (valid.length) {
      traces.push({ ...curve, y: valid.map((value) => 100 * value), yaxis: "y2", name: `${name}: validation`,
        line: { ...line, dash: "dash" }, hovertemplate: `${name}, epoch %{x}: %{y:.1f} %<extra></extra>` });
    }
    shapes.push({ type: "line", x0: epoch, x1: epoch, yref: "paper", y0: 0, y1: 1, line: { ...line, width: 1, dash: "dot" } });
  }
  draw(id, traces, { shapes, xaxis: { title: { text: "epoch" }, tickformat: "d", dtick: traces[0].x.length < 10 ? 1 : undefined }, yaxis: { title: { text: "loss" }, rangemode: "tozero" },
    yaxis2: { title: { text: "validation score, %" }, overlaying: "y", side: "right", showgrid: false, tickmode: "auto", rangemode: "tozero" } }, 360);
}

function mapChart(id, { map, class_names: names, audio }) {
  const [chosen, by] = ["filter", "colour"].map((control) => document.getElementById(`${id}-${control}`).value);
  const rows = [...map.label.keys()].filter((row) => chosen === "" || map.label[row] === Number(chosen));
  const VERDICTS = { right: colour("linear"), wrong: colour("three"), "never tested": colour("other") };
  const verdict = (row) => ["never tested", "wrong", "right"][map.verdict[row] + 1];
  const classMark = (label) => (label < 0 ? colour("other") : PALETTE[label % PALETTE.length]);
  const mark = (row) => (by === "class" ? classMark(map.label[row]) : VERDICTS[verdict(row)]);
  const said = (row) => (map.verdict[row] < 0 ? "" : `said: ${escape(map.said[row])}`) + { right: "", wrong: " (wrong)", "never tested": "never tested" }[verdict(row)];
  const [right, wrong] = ["right", "wrong"].map((name) => rows.filter((row) => verdict(row) === name).length);
  document.getElementById(`${id}-count`).textContent = `${rows.length.toLocaleString("en")} clips`
    + (right + wrong ? `, ${right.toLocaleString("en")} of ${(right + wrong).toLocaleString("en")} tested ones right` : "");
  const few = names.length <= PALETTE.length ? names.map((name, label) => [name, PALETTE[label]]) : [];
  if (few.length && rows.some((row) => map.label[row] < 0)) few.push(["no label", colour("other")]);
  document.getElementById(`${id}-legend`).replaceChildren(...(by === "right" ? Object.entries(VERDICTS) : few).map(([name, mark]) => {
    const item = document.createElement("li");
    item.style.setProperty("--mark", mark);
    item.textContent = name;
    return item;
  }));
  const [xaxis, yaxis] = map.ranges.map((range) => ({ range, visible: false }));
  const element = draw(`${id}-map`, [{
    type: map.label.length >= WEBGL_FROM ? "scattergl" : "scatter", mode: "markers", x: rows.map((row) => map.x[row]), y: rows.map((row) => map.y[row]),
    customdata: rows, hovertemplate: "%{text}<extra></extra>",
    text: rows.map((row) => `${escape(map.clip[row])}<br>class: ${escape(map.truth[row])}<br>${said(row)}`),
    marker: { color: rows.map(mark), size: Math.min(9, Math.max(4, Math.round(260 / Math.sqrt(map.label.length)))), opacity: 0.8, symbol: rows.map((row) => (by === "right" && verdict(row) === "wrong" ? "x" : "circle")) },
  }], { xaxis, yaxis, dragmode: "pan", showlegend: false });
  element.removeAllListeners("plotly_click");
  element.on("plotly_click", ({ points: [{ customdata: row }] }) => play(`${id}-player`, map.clip[row], map.truth[row], audio));
}

// A click on a column's head sorts by it: numbers by their size, the largest first, then words.
function sortable(table) {
  const body = table.tBodies[0];
  const written = [...body.rows];
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    head.firstElementChild.addEventListener("click", () => {
      const order = head.ariaSort === "descending" ? "ascending" : "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const value = (row) => row.cells[column].textContent.replaceAll(",", "");
      const sign = order === "descending" ? -1 : 1;
      body.replaceChildren(...written.toSorted((first, second) => {
        const [a, b] = [parseFloat(value(first)), parseFloat(value(second))];
        if (isNaN(a) !== isNaN(b)) return isNaN(a) ? 1 : -1;
        return isNaN(a) ? -sign * value(first).localeCompare(value(second)) : sign * (a - b);
      }));
    });
  }
}

function play(id, clip, name, folder) {
  const [, path, start, end] = clip.match(/^(.*?)(?:#([0-9.]+|None)-([0-9.]+|None))?$/); // of a longer file, in seconds
  const seconds = start ? `#t=${start},${end}`.replaceAll("None", "") : "";
  const player = document.getElementById(id);
  const audio = new Audio(`${folder}/${path.split("/").map(encodeURIComponent).join("/")}${seconds}`);
  audio.controls = true;
  audio.addEventListener("error", () => {
    player.textContent = `${clip} cannot be played from ${folder}; write the report again with --data FOLDER, where the sounds are`;
  });
  player.replaceChildren(`${clip}: ${name}`, audio);
  audio.play().catch(() => {}); // the browser may want a click on the player first; an error is reported above
}

function drawNow(id) {
  if (!drawn.has(id)) charts.get(id)();
  drawn.add(id);
}

const score = { title: { text: `${data.quantity}, %` }, range: [0, 101] };
charts.set("chart-summary", () => dots("chart-summary", data.summary, score, "%", 11, 150, 46));
if (data.encoders) charts.set("chart-encoders", () => dots("chart-encoders", data.encoders, score, "%", 9, 130, 34));
for (const chart of data.similarity) charts.set(chart.id, () => heat(chart.id, chart));
for (const [id, task] of Object.entries(data.tasks)) {
  charts.set(`${id}-confusion`, () => confusionChart(`${id}-confusion`, task));
  charts.set(`${id}-classes`, () => classesChart(`${id}-classes`, task));
  charts.set(`${id}-curves`, () => curvesChart(`${id}-curves`, task.curves));
  charts.set(`${id}-map`, () => mapChart(id, task));
  const effect = () => ({ title: { text: "score against the baseline, points" }, zeroline: true, zerolinecolor: colour("ink") });
  if (task.ablation) charts.set(`${id}-ablation`, () => dots(`${id}-ablation`, task.ablation, effect(), "points", 8, 120, 26));
  for (const control of ["filter", "colour"]) {
    document.getElementById(`${id}-${control}`).addEventListener("change", () => mapChart(id, task));
  }
}
document.querySelectorAll("table.sorts").forEach(sortable);
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawNow(entry.target.id);
}, { rootMargin: "400px" });
for (const id of charts.keys()) seen.observe(document.getElementById(id));
window.addEventListener("beforeprint", () => [...charts.keys()].forEach(drawNow));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((id) => charts.get(id)()));
document.documentElement.dataset.ready = "yes";
