// Draws the maps of a report from the JSON that stands in the page, sorts its tables, and plays its clips.
"use strict";

const REACH = 12; // pixels from the pointer to a dot that it means
const MOST_NAMES = 60; // classes that a matrix names

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// All maps on the page; the clip under the pointer is marked in each that has it.
const maps = [];

// A dot a clip. The pointer names the nearest, a click plays it.
function drawMap(holder, id, clips, counts = true) {
  const [filter, colours, count] = ["filter", "colour", "count"].map((part) => document.getElementById(`${id}-${part}`));
  const [canvas, ring, tip] = holder.children;
  const radius = Math.min(4.5, Math.max(2, 130 / Math.sqrt(clips.clip.length)));
  const place = (row) => [["x", canvas.clientWidth], ["y", canvas.clientHeight]].map(([axis, size]) => 8 + clips[axis][row] * (size - 16));
  const verdict = (row) => (clips.said[row] === null ? "never tested" : clips.said[row] === clips.truth[row] ? "right" : "wrong");
  let shown;

  function draw() {
    const verdicts = { right: colour("linear"), wrong: colour("three"), "never tested": colour("other") };
    const byClass = colours.value === "class";
    shown = [...clips.label.keys()].filter((row) => filter.value === "" || clips.label[row] === Number(filter.value));
    const context = sized(canvas);
    context.globalAlpha = 0.8;
    for (const row of shown) {
      const [x, y] = place(row);
      context.fillStyle = byClass ? clips.colours[clips.label[row]] ?? colour("other") : verdicts[verdict(row)];
      context.beginPath();
      context.roundRect(x - radius, y - radius, 2 * radius, 2 * radius, !byClass && verdict(row) === "wrong" ? 0 : radius);
      context.fill();
    }
    if (!counts) return;
    const [right, wrong] = ["right", "wrong"].map((name) => shown.filter((row) => verdict(row) === name).length);
    count.textContent = `${shown.length.toLocaleString("en")} clips`
      + (right + wrong ? `, ${right.toLocaleString("en")} of ${(right + wrong).toLocaleString("en")} tested ones right` : "");
    for (const by of ["class", "right"]) document.getElementById(`${id}-legend-${by}`).hidden = by !== colours.value;
  }

  function nearest({ offsetX, offsetY }) {
    let [best, least] = [null, REACH];
    for (const row of shown) {
      const [x, y] = place(row);
      const distance = Math.hypot(x - offsetX, y - offsetY);
      if (distance < least) [best, least] = [row, distance];
    }
    return best;
  }

  function mark(task, clip) {
    const row = task === clips.task ? clips.clip.indexOf(clip) : -1;
    ring.hidden = row < 0;
    if (row >= 0) [ring.style.left, ring.style.top] = place(row).map((value) => `${value}px`);
  }

  canvas.addEventListener("mousemove", (event) => {
    const row = nearest(event);
    tip.hidden = row === null;
    for (const map of maps) map.mark(clips.task, clips.clip[row]);
    if (row === null) return;
    const said = { right: `said: ${clips.said[row]}`, wrong: `said: ${clips.said[row]} (wrong)`, "never tested": "never tested" }[verdict(row)];
    tip.textContent = `${clips.clip[row]}\nclass: ${clips.truth[row]}\n${said}`;
    tip.style = `top: ${event.offsetY + 14}px; ${event.offsetX > canvas.clientWidth / 2 ? "right" : "left"}: 0`;
  });
  canvas.addEventListener("mouseleave", () => {
    tip.hidden = true;
    for (const map of maps) map.mark(clips.task, undefined);
  });
  canvas.addEventListener("click", (event) => {
    const row = nearest(event);
    if (row !== null) play(`${id}-player`, clips, row, clips.truth[row]);
  });
  const changes = new AbortController();
  for (const control of [filter, colours]) control.addEventListener("change", draw, { signal: changes.signal });
  redrawn(canvas, draw);
  const map = { mark, remove: () => {
    changes.abort();
    maps.splice(maps.indexOf(map), 1);
    holder.remove();
  } };
  maps.push(map);
  return map;
}

// The map of another run of the task beside a run's own.
function offerBeside(id, clips) {
  const choice = document.getElementById(`${id}-beside`);
  let second = null;
  choice?.addEventListener("change", () => {
    second?.remove();
    second = null;
    if (choice.value === "") return;
    const first = document.getElementById(`${id}-maps`).firstElementChild;
    const other = content.runs[choice.value];
    const holder = first.cloneNode(true);
    holder.firstElementChild.removeAttribute("id");
    holder.firstElementChild.ariaLabel = `Map of the features of ${other.title}`;
    first.after(holder);
    second = drawMap(holder, id, other, false);
  });
}

// The confusion matrix; the pointer says what a cell counts, a click plays its clips, the surest first.
function drawMatrix(id, clips) {
  const canvas = document.getElementById(`${id}-matrix`);
  if (!canvas) return;
  const tip = canvas.nextElementSibling;
  const { names, confusion, seeds } = clips;
  const totals = confusion.map((row) => row.reduce((sum, count) => sum + count, 0));
  const percent = (truth, said) => 100 * confusion[truth][said] / Math.max(totals[truth], 1);
  const heard = hearing(id, clips);
  let [side, margin] = [0, 0];

  function draw() {
    const width = canvas.parentElement.clientWidth;
    margin = names.length > MOST_NAMES ? 0 : Math.min(150, 0.3 * width);
    side = Math.min(64, (width - margin) / names.length);
    canvas.style.height = canvas.style.width = `${margin + side * names.length}px`;
    const context = sized(canvas);
    const font = Math.min(13, side);
    context.font = `${font}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (const [truth, row] of confusion.entries()) {
      const middle = margin + (truth + 0.5) * side;
      context.fillStyle = colour("ink");
      if (margin) {
        context.textAlign = "right";
        context.fillText(shortened(context, names[truth], margin - 6), margin - 6, middle);
        context.save();
        context.translate(middle, margin - 6);
        context.rotate(-Math.PI / 2);
        context.textAlign = "left";
        context.fillText(shortened(context, names[truth], margin - 6), 0, 0);
        context.restore();
      }
      for (const said of row.keys()) {
        const left = margin + said * side;
        context.globalAlpha = 0.04 + 0.96 * percent(truth, said) / 100;
        context.fillStyle = colour("linear");
        context.fillRect(left, middle - side / 2, side - (side > 6), side - (side > 6));
        context.globalAlpha = 1;
        if (side < 22 || !row[said]) continue;
        context.fillStyle = colour(percent(truth, said) > 50 ? "paper" : "ink");
        context.textAlign = "center";
        const lines = [percent(truth, said).toFixed(0), ...(side < 36 ? [] : [`(${mean(row[said])})`])];
        for (const [number, line] of lines.entries()) context.fillText(line, left + side / 2, middle + (number - (lines.length - 1) / 2) * font);
      }
    }
  }

  const mean = (count) => (count / seeds).toLocaleString("en", { maximumFractionDigits: 1 });
  const cell = ({ offsetX, offsetY }) => [offsetY, offsetX].map((offset) => Math.floor((offset - margin) / side));
  const isCell = ([truth, said]) => names[truth] !== undefined && names[said] !== undefined;

  canvas.addEventListener("mousemove", (event) => {
    const [truth, said] = cell(event);
    tip.hidden = !isCell([truth, said]);
    if (tip.hidden) return;
    tip.textContent = `true: ${names[truth]}\nsaid: ${names[said]}\n${mean(confusion[truth][said])} of ${mean(totals[truth])} clips, ${percent(truth, said).toFixed(1)} %`;
    tip.style = `top: ${event.offsetY + 14}px; ${event.offsetX > canvas.clientWidth / 2 ? "right" : "left"}: 0`;
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", (event) => {
    const [truth, said] = cell(event);
    if (isCell([truth, said])) heard(names[truth], names[said]);
  });
  redrawn(canvas, draw);
}

// A name that fits into a width.
function shortened(context, name, width) {
  let length = name.length;
  while (length > 1 && context.measureText(name.slice(0, length)).width > width) length--;
  return length < name.length ? `${name.slice(0, length - 1)}…` : name;
}

// A canvas as large as it is shown, and its context in CSS pixels.
function sized(canvas) {
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  return context;
}

function redrawn(canvas, draw) {
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(draw).observe(canvas.parentElement);
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

// Plays the clips of a class that are said to be of another (or of it), the surest first and one at each call; only those of the map are known.
function hearing(id, clips) {
  const places = new Map();
  return (truth, said) => {
    const rows = clipsOf(clips, truth, said);
    const place = places.get(`${truth}\n${said}`) ?? 0;
    places.set(`${truth}\n${said}`, place + 1);
    const words = truth === said ? `${truth}, recognised` : `${truth}, taken for ${said}`;
    if (rows.length) play(`${id}-heard`, clips, rows[place % rows.length], `${words} (${1 + place % rows.length} of ${rows.length})`);
    else document.getElementById(`${id}-heard`).textContent = `${words}: no such clip on the map`;
  };
}

const clipsOf = (clips, truth, said) => [...clips.clip.keys()]
  .filter((row) => clips.truth[row] === truth && clips.said[row] === said)
  .sort((first, second) => clips.sure[second] - clips.sure[first]);

function hearPairs(id, clips) {
  const table = document.querySelector(`#${id} .pairs table`);
  const heard = hearing(id, clips);
  table.tHead.rows[0].append(Object.assign(document.createElement("th"), { scope: "col", textContent: "listen" }));
  for (const row of table.tBodies[0].rows) {
    const [truth, said] = [...row.cells].map((cell) => cell.textContent);
    const count = clipsOf(clips, truth, said).length;
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: `play ${count}`, disabled: !count });
    button.addEventListener("click", () => heard(truth, said));
    row.insertCell().append(button);
  }
}

// Plays a clip and shows its spectrogram, if the page has it.
function play(id, clips, row, words) {
  const clip = clips.clip[row];
  const [, path, start, end] = clip.match(/^(.*?)(?:#([0-9.]+|None)-([0-9.]+|None))?$/); // of a longer file, in seconds
  const seconds = start ? `#t=${start},${end}`.replaceAll("None", "") : "";
  const said = document.createTextNode(`${clip}: ${words}`);
  const picture = content.spectrograms[clips.task]?.[clip];
  const shown = picture ? [Object.assign(new Image(), { src: picture, alt: `Spectrogram of ${clip}`, className: "spectrogram" })] : [];
  const audio = new Audio(`${clips.audio}/${path.split("/").map(encodeURIComponent).join("/")}${seconds}`);
  audio.controls = true;
  audio.addEventListener("error", () => {
    said.textContent = `${clip} cannot be played from ${clips.audio}; write the report again with --data FOLDER, where the sounds are`;
    audio.remove();
  });
  document.getElementById(id).replaceChildren(said, ...shown, audio);
  audio.play().catch(() => {}); // the browser may want a click on the player first; an error is reported above
}

const content = JSON.parse(document.getElementById("data").textContent);
content.runs.forEach((clips, number) => {
  const id = `run${number}`;
  drawMap(document.getElementById(`${id}-maps`).firstElementChild, id, clips);
  offerBeside(id, clips);
  drawMatrix(id, clips);
  hearPairs(id, clips);
});
document.querySelectorAll("table.sorts").forEach(sortable);
document.documentElement.dataset.ready = "yes";
