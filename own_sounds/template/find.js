// Plays the clips of the page, and saves the labels that are typed as a table.
"use strict";

const { columns, rows } = JSON.parse(document.getElementById("data").textContent);
const figures = [...document.querySelectorAll("figure")];
const inputs = figures.map((figure) => figure.querySelector("input"));

function play(place) {
  figures.forEach((figure) => figure.querySelector("audio").pause());
  figures[place].querySelector("audio").play().catch(() => {}); // the browser may want a click first
}

function update() {
  const labels = inputs.map((input) => input.value.trim());
  const names = [...new Set(labels.filter(Boolean))].toSorted();
  document.getElementById("labels").replaceChildren(...names.map((name) => new Option(name, name)));
  document.getElementById("count").textContent = `${labels.filter(Boolean).length} of ${rows.length} clips have labels`;
}

const cell = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function save() {
  const labelled = rows.map((row, place) => row.with(columns.indexOf("label"), inputs[place].value.trim()));
  const kept = labelled.filter((row) => row[columns.indexOf("label")]);
  const text = [columns, ...kept].map((row) => `${row.map(cell).join(",")}\n`).join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
}

inputs.forEach((input, place) => {
  input.addEventListener("input", update);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || place + 1 >= inputs.length) return;
    inputs[place + 1].focus();
    play(place + 1);
  });
});
figures.forEach((figure, place) => figure.querySelector("img").addEventListener("click", () => play(place)));
document.getElementById("save").addEventListener("click", save);
document.getElementById("clear").addEventListener("click", () => { inputs.forEach((input) => { input.value = ""; }); update(); });
update();
document.documentElement.dataset.ready = "yes";
