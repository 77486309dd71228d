// Draws the maps of a report from the JSON that stands in the page, sorts its tables, and plays its clips.
"use strict";

const REACH = 12; // pixels from the pointer to a dot that it means

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// A dot a clip. The pointer names the nearest, a click plays it.
function drawMap(id, clips) {
  const [canvas, filter, colours, count] = ["map", "filter", "colour", "count"].map((part) => document.getElementById(`${id}-${part}`));
  const tip = canvas.nextElementSibling;
  const radius = Math.min(4.5, Math.max(2, 130 / Math.sqrt(clips.clip.length)));
  const place = (row) => [["x", canvas.clientWidth], ["y", canvas.clientHeight]].map(([axis, size]) => 8 + clips[axis][row] * (size - 16));
  const verdict = (row) => (clips.said[row] === null ? "never tested" : clips.said[row] === clips.truth[row] ? "right" : "wrong");
  let shown;

  function draw() {
    const verdicts = { right: colour("linear"), wrong: colour("three"), "never tested": colour("other") };
    const byClass = colours.value === "class";
    shown = [...clips.label.keys()].filter((row) => filter.value === "" || clips.label[row] === Number(filter.value));
    canvas.width = canvas.clientWidth * devicePixelRatio;
    canvas.height = canvas.clientHeight * devicePixelRatio;
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    context.globalAlpha = 0.8;
    for (const row of shown) {
      const [x, y] = place(row);
      context.fillStyle = byClass ? clips.colours[clips.label[row]] ?? colour("other") : verdicts[verdict(row)];
      context.beginPath();
      context.roundRect(x - radius, y - radius, 2 * radius, 2 * radius, !byClass && verdict(row) === "wrong" ? 0 : radius);
      context.fill();
    }
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

  canvas.addEventListener("mousemove", (event) => {
    const row = nearest(event);
    tip.hidden = row === null;
    if (row === null) return;
    const said = { right: `said: ${clips.said[row]}`, wrong: `said: ${clips.said[row]} (wrong)`, "never tested": "never tested" }[verdict(row)];
    tip.textContent = `${clips.clip[row]}\nclass: ${clips.truth[row]}\n${said}`;
    tip.style = `top: ${event.offsetY + 14}px; ${event.offsetX > canvas.clientWidth / 2 ? "right" : "left"}: 0`;
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", (event) => {
    const row = nearest(event);
    if (row !== null) play(`${id}-player`, clips.clip[row], clips.truth[row], clips.audio);
  });
  for (const control of [filter, colours]) control.addEventListener("change", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(draw).observe(canvas);
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

// The clips of a confused pair, one after another; only those of the map are known.
function hearPairs(id, clips) {
  const table = document.querySelector(`#${id} .pairs table`);
  table.tHead.rows[0].append(Object.assign(document.createElement("th"), { scope: "col", textContent: "listen" }));
  for (const row of table.tBodies[0].rows) {
    const [truth, said] = [...row.cells].map((cell) => cell.textContent);
    const wrong = [...clips.clip.keys()].filter((place) => clips.truth[place] === truth && clips.said[place] === said);
    const button = document.createElement("button");
    let heard = 0;
    button.type = "button";
    button.textContent = `play ${wrong.length}`;
    button.disabled = !wrong.length;
    button.addEventListener("click", () => {
      const place = wrong[heard++ % wrong.length];
      play(`${id}-heard`, clips.clip[place], `${truth}, taken for ${said} (${1 + (heard - 1) % wrong.length} of ${wrong.length})`, clips.audio);
    });
    row.insertCell().append(button);
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

JSON.parse(document.getElementById("data").textContent).forEach((clips, number) => {
  drawMap(`run${number}`, clips);
  hearPairs(`run${number}`, clips);
});
document.querySelectorAll("table.sorts").forEach(sortable);
document.documentElement.dataset.ready = "yes";
