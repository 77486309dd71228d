// Draws the charts of a report from the JSON that stands in the page; each when it comes into view.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const charts = new Map(); // element id -> function that draws it
const drawn = new Map(); // element id -> what was drawn, to draw again in other colours
const PALETTE = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#edc948", "#9c755f", "#ff9da7", "#8c96a0",
  "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#1f78b4", "#b2df8a", "#6a3d9a"];
const WEBGL_FROM = 4000; // clips

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const percent = (share) => (share === null ? "-" : (100 * share).toFixed(1));

// Plotly reads tags and entities in its texts; no name of a class or clip may bring any.
const escape = (text) => text.replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);

function draw(id, traces, layout = {}, height = null) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
  const merged = {
    margin: { l: 10, r: 10, t: 10, b: 10 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("ink"), size: 12, family: "system-ui, sans-serif" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, hovermode: "closest", ...layout,
    hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("faint"), font: { color: colour("ink") }, align: "left" },
  };
  for (const key of ["xaxis", "yaxis", "yaxis2"]) {
    if (layout[key]) merged[key] = { ...axis, ...layout[key] };
  }
  const element = document.getElementById(id);
  if (height) element.style.height = `${height}px`;
  Plotly.react(element, traces, merged, { responsive: true, displaylogo: false, displayModeBar: false });
  return element;
}

// Shares as dots, in percent; with their 95 % intervals, if they have any.
function dots(name, marker, places, names, shares, intervals) {
  const x = shares.map((share) => (share == null ? null : 100 * share));
  const reach = (side, sign) => intervals.map((ends, i) => (ends ? sign * (100 * ends[side] - x[i]) : 0));
  const error = { type: "data", symmetric: false, array: reach(1, 1), arrayminus: reach(0, -1), color: marker.color, thickness: 1.5 };
  return {
    type: "scatter", mode: "markers", name, x, y: places, customdata: names, marker, error_x: error,
    hovertemplate: `%{customdata}<br>${name}: %{x:.1f} %<extra></extra>`,
  };
}

// Both heads' scores, and what stands beside them; tasks of several encoders stand apart.
function scoresChart(id, points, size, margin, rowHeight) {
  const rows = [...points].reverse();
  let place = 0;
  const places = rows.map((row, i) => { place += i && rows[i - 1].task !== row.task ? 1.6 : 1; return place; });
  const names = rows.map((row) => escape(row.label));
  const series = [
    ["majority_class", "always the most frequent class", "other", "line-ns-open", 0],
    ["untrained_encoder", "untrained encoder", "other", "x-thin-open", 0],
    ["published_best", "best published probe of another encoder", "other", "star-open", 0],
    ["linear", "linear head", "linear", "circle", 0.13],
    ["three_layer", "three-layer head", "three", "square", -0.13],
  ];
  const traces = series.map(([key, name, mark, symbol, shift]) => {
    const marker = { color: colour(mark), symbol, size, line: { width: 1.5, color: colour(mark) } };
    return dots(name, marker, places.map((at) => at + shift), names, rows.map((row) => row[key]), rows.map((row) => row.intervals[key]));
  }).filter((trace) => trace.x.some((value) => value !== null));
  const yaxis = { tickvals: places, ticktext: names, zeroline: false };
  draw(id, traces, { xaxis: { title: { text: "accuracy, %" }, range: [0, 101] }, yaxis }, margin + rowHeight * place);
}

function summaryChart() {
  const honest = data.summary.filter((row) => row.protocol !== "random");
  scoresChart("chart-summary", honest.length ? honest : data.summary, 11, 150, 46);
}

const encodersChart = () => scoresChart("chart-encoders", data.encoders, 9, 130, 34);

function heat(id, chart) {
  const names = chart.names.map(escape);
  const text = chart.z.map((row, i) => row.map((value, j) => (value === null ? "" : (chart.uncertain && chart.uncertain[i][j] ? `(${value.toFixed(chart.digits)})` : value.toFixed(chart.digits)))));
  draw(id, [{
    type: "heatmap", z: chart.z, x: names, y: names, text, texttemplate: names.length <= 12 ? "%{text}" : "",
    colorscale: chart.diverging ? "RdBu" : "Viridis", reversescale: chart.diverging, zmid: chart.diverging ? 0 : undefined, showscale: false, xgap: 1, ygap: 1,
    hovertemplate: "%{y} / %{x}: %{z:.3f}<extra></extra>",
  }], { xaxis: { type: "category", tickangle: -40 }, yaxis: { type: "category", autorange: "reversed" } }, 190 + 34 * names.length);
}

function confusionChart(id, task) {
  const names = task.class_names.map(escape);
  const few = names.length <= 20;
  const shown = task.confusion.map((row) => { const sum = Math.max(1, row.reduce((a, b) => a + b, 0)); return row.map((n) => (100 * n) / sum); });
  const width = document.getElementById(`${id}-confusion`).clientWidth;
  const readable = task.class_names.length * 11 < width;
  draw(`${id}-confusion`, [{
    type: "heatmap", z: shown, x: names, y: names, colorscale: [[0, colour("paper")], [1, colour(few ? "heat" : "linear")]], zmin: 0, zmax: 100,
    text: shown.map((row) => row.map((value) => (value >= 0.5 ? value.toFixed(0) : ""))), texttemplate: few ? "%{text}" : "",
    showscale: !few, hovertemplate: "true: %{y}<br>said: %{x}<br>%{z:.1f} %<extra></extra>",
  }], {
    xaxis: { type: "category", tickangle: -90, showticklabels: readable, dtick: 1, title: { text: readable ? "predicted" : "predicted (hover for names)" }, tickfont: { size: few ? 11 : 8 } },
    yaxis: { type: "category", autorange: "reversed", showticklabels: readable, dtick: 1, title: { text: "true" }, tickfont: { size: few ? 11 : 8 } },
  }, few ? 460 : Math.min(760, Math.max(460, width)));
}

function classesChart(id, task) {
  const rows = task.f1;
  draw(`${id}-classes`, [{
    type: "bar", orientation: "h", x: rows.map((row) => 100 * row.f1), y: rows.map((row) => escape(row.name)), marker: { color: colour("linear") },
    text: rows.map((row) => (100 * row.f1).toFixed(0)), textposition: "outside", cliponaxis: false,
    customdata: rows.map((row) => [percent(row.precision), percent(row.recall), row.clips]),
    hovertemplate: "%{y}<br>F1 %{x:.1f} %, precision %{customdata[0]}, recall %{customdata[1]}<br>%{customdata[2]} test clips<extra></extra>",
  }], { xaxis: { range: [0, 108], title: { text: "F1, %" } }, yaxis: { type: "category", autorange: "reversed", dtick: 1, tickfont: { size: rows.length > 30 ? 9 : 11 } } },
  Math.max(320, 90 + 17 * rows.length));
}

function curvesChart(id, task) {
  const traces = [];
  const shapes = [];
  for (const [kind, mark] of [["linear", "linear"], ["three_layer", "three"]]) {
    const curves = task.curves[kind];
    const epochs = curves.train_loss.map((_, index) => index + 1);
    const name = kind.replace("_", "-");
    traces.push({ type: "scatter", mode: "lines", x: epochs, y: curves.train_loss, name: `${name}: loss`, line: { color: colour(mark) },
      hovertemplate: `${name}, epoch %{x}: loss %{y:.3f}<extra></extra>` });
    if (curves.valid_accuracy.length) {
      traces.push({ type: "scatter", mode: "lines", x: epochs, y: curves.valid_accuracy.map((value) => 100 * value), yaxis: "y2",
        name: `${name}: validation`, line: { color: colour(mark), dash: "dash" }, hovertemplate: `${name}, epoch %{x}: %{y:.1f} %<extra></extra>` });
    }
    shapes.push({ type: "line", x0: curves.epoch, x1: curves.epoch, yref: "paper", y0: 0, y1: 1, line: { color: colour(mark), width: 1, dash: "dot" } });
  }
  draw(`${id}-curves`, traces, { shapes, xaxis: { title: { text: "epoch" }, tickformat: "d", dtick: task.curves.linear.train_loss.length < 10 ? 1 : undefined }, yaxis: { title: { text: "loss" }, rangemode: "tozero" },
    yaxis2: { title: { text: "validation accuracy, %" }, overlaying: "y", side: "right", showgrid: false, tickmode: "auto", rangemode: "tozero" } }, 360);
}

function ablationChart(id, task) {
  const rows = task.ablation;
  const places = [...rows.keys()];
  const heads = [["linear", "linear", "circle", -0.15], ["three_layer", "three", "square", 0.15]];
  const traces = heads.map(([kind, mark, symbol, shift]) => {
    const effects = rows.map((row) => row.heads[kind]);
    const words = rows.map((row, i) => [escape(row.name), percent(effects[i].accuracy)]);
    const marker = { color: colour(mark), symbol, size: 8 };
    const [differences, intervals] = ["difference", "difference_interval"].map((key) => effects.map((effect) => effect[key]));
    const trace = dots(kind.replace("_", "-"), marker, places.map((at) => at + shift), words, differences, intervals);
    return { ...trace, hovertemplate: "%{customdata[0]}: %{customdata[1]} % (%{x:+.1f})<extra></extra>" };
  });
  draw(`${id}-ablation`, traces, { xaxis: { title: { text: "accuracy against the baseline, points" }, zeroline: true, zerolinecolor: colour("ink") },
    yaxis: { autorange: "reversed", tickvals: places, ticktext: rows.map((row) => escape(row.name)), zeroline: false } }, 120 + 26 * rows.length);
}

function mapChart(id, task) {
  const chosen = document.getElementById(`${id}-filter`).value;
  const by = document.getElementById(`${id}-colour`).value;
  const map = task.map;
  const said = (row) => (map.said[row] < 0 ? null : task.class_names[map.said[row]]);
  const rows = [...map.label.keys()].filter((row) => chosen === "" || map.label[row] === Number(chosen));
  const mark = (row) => by === "class" ? PALETTE[map.label[row] % PALETTE.length]
    : map.said[row] < 0 ? colour("other") : map.said[row] === map.label[row] ? colour("linear") : colour("three");
  const text = rows.map((row) => `${escape(map.clip[row])}<br>class: ${escape(task.class_names[map.label[row]])}<br>`
    + (said(row) === null ? "never tested" : `said: ${escape(said(row))}${map.said[row] === map.label[row] ? "" : " (wrong)"}`));
  const right = rows.filter((row) => map.said[row] === map.label[row]).length;
  const tested = rows.filter((row) => map.said[row] >= 0).length;
  document.getElementById(`${id}-count`).textContent = `${rows.length.toLocaleString("en")} clips`
    + (tested ? `, ${right.toLocaleString("en")} of ${tested.toLocaleString("en")} tested ones right` : "");
  const entries = by === "right" ? [["right", colour("linear")], ["wrong", colour("three")], ["never tested", colour("other")]]
    : task.class_names.length <= PALETTE.length ? task.class_names.map((name, label) => [name, PALETTE[label]]) : [];
  document.getElementById(`${id}-legend`).replaceChildren(...entries.map(([name, mark]) => {
    const item = document.createElement("li");
    item.style.setProperty("--mark", mark);
    item.textContent = name;
    return item;
  }));
  const bounds = (values) => { const low = Math.min(...map.bounds[values]); const high = Math.max(...map.bounds[values]); const pad = 0.03 * (high - low) || 1; return [low - pad, high + pad]; };
  const element = draw(`${id}-map`, [{
    type: map.label.length >= WEBGL_FROM ? "scattergl" : "scatter", mode: "markers", x: rows.map((row) => map.x[row]), y: rows.map((row) => map.y[row]),
    customdata: rows, text, hovertemplate: "%{text}<extra></extra>",
    marker: { color: rows.map(mark), size: Math.min(9, Math.max(4, Math.round(260 / Math.sqrt(map.label.length)))), opacity: 0.8, symbol: rows.map((row) => (by === "right" && map.said[row] >= 0 && map.said[row] !== map.label[row] ? "x" : "circle")) },
  }], { xaxis: { range: bounds("x"), visible: false }, yaxis: { range: bounds("y"), visible: false }, dragmode: "pan", showlegend: false },
  mapHeight(id));
  if (!element.dataset.listens) {
    element.dataset.listens = "yes";
    element.on("plotly_click", (event) => play(id, task, event.points[0].customdata));
  }
}

const mapHeight = (id) => (document.getElementById(`${id}-map`).clientWidth < 600 ? 420 : 560);

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

function play(id, task, row) {
  const clip = task.map.clip[row];
  const segment = clip.match(/^(.*)#([0-9.]+|None)-([0-9.]+|None)$/); // of a longer file, in seconds
  const path = segment ? segment[1] : clip;
  const player = document.getElementById(`${id}-player`);
  player.textContent = `${clip}: ${task.class_names[task.map.label[row]]}`;
  const audio = document.createElement("audio");
  audio.controls = true;
  const seconds = segment ? `#t=${segment.slice(2).join(",").replaceAll("None", "")}` : "";
  audio.src = `${task.audio}/${path.split("/").map(encodeURIComponent).join("/")}${seconds}`;
  audio.addEventListener("error", () => {
    player.textContent = `${clip} cannot be played from ${task.audio}; write the report again with --data FOLDER, where the sounds are`;
  });
  player.append(audio);
  audio.play().catch(() => {}); // the browser may want a click on the player first; an error is reported above
}

function drawNow(id) {
  const chart = charts.get(id);
  if (!chart || drawn.get(id)) return;
  drawn.set(id, true);
  chart();
}

charts.set("chart-summary", summaryChart);
if (data.encoders) charts.set("chart-encoders", encodersChart);
for (const chart of data.similarity) charts.set(chart.id, () => heat(chart.id, chart));
for (const [id, task] of Object.entries(data.tasks)) {
  charts.set(`${id}-confusion`, () => confusionChart(id, task));
  charts.set(`${id}-classes`, () => classesChart(id, task));
  charts.set(`${id}-curves`, () => curvesChart(id, task));
  charts.set(`${id}-map`, () => mapChart(id, task));
  if (task.ablation) charts.set(`${id}-ablation`, () => ablationChart(id, task));
  for (const control of ["filter", "colour"]) {
    document.getElementById(`${id}-${control}`).addEventListener("change", () => mapChart(id, task));
  }
}
document.querySelectorAll("table.sorts").forEach(sortable);
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawNow(entry.target.id);
}, { rootMargin: "400px" });
for (const id of charts.keys()) seen.observe(document.getElementById(id));
window.addEventListener("beforeprint", () => { for (const id of charts.keys()) drawNow(id); });
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const id of drawn.keys()) charts.get(id)();
});
document.documentElement.dataset.ready = "yes";
