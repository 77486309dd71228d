// Draws recordings over time: spectrogram, probabilities, events; plays them, and follows what is played.
"use strict";

const [GUTTER, PICTURE, ROW, AXIS] = [130, 170, 20, 22]; // pixels
const STEP = 5; // seconds that an arrow key goes
const TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600]; // seconds
const DRAGGED = 4; // pixels from which a click is a drag

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const clock = (seconds) => new Date(1000 * seconds).toISOString().slice(seconds < 3600 ? 14 : 11, seconds < 600 ? 21 : 19);

function timeline(section, recording) {
  const canvas = section.querySelector("canvas");
  const count = recording.spans.length / 2;
  const [first, last] = [recording.spans[0], recording.spans.at(-1)];
  const values = bytes(recording.values);
  const audio = new Audio();
  const pictures = new Map(); // address -> image, once it has been in sight
  let [start, stop] = [first, last]; // what is in sight, in seconds
  let cursor = first;

  const width = () => canvas.clientWidth - GUTTER;
  const x = (seconds) => GUTTER + ((seconds - start) / (stop - start)) * width();
  const seconds = (offset) => start + ((offset - GUTTER) / width()) * (stop - start);

  function picture(address) {
    if (!pictures.has(address)) {
      const image = new Image();
      image.onload = draw;
      image.src = address;
      pictures.set(address, image);
    }
    return pictures.get(address);
  }

  function drawPictures(context) {
    const inSight = (stop - start) / recording.tile_s;
    const [length, addresses] = inSight > 8 ? [last - first, [recording.overview]] : [recording.tile_s, recording.tiles];
    addresses.forEach((address, place) => {
      const [from, to] = [first + place * length, Math.min(first + (place + 1) * length, last)];
      if (to < start || from > stop) return;
      const image = picture(address);
      if (image.complete && image.naturalWidth) context.drawImage(image, x(from), 0, x(to) - x(from) + 0.5, PICTURE);
    });
  }

  function drawFrequencies(context) {
    context.fillStyle = colour("faint");
    context.textAlign = "right";
    for (const [name, share] of recording.hertz) {
      context.fillText(name, GUTTER - 8, Math.max(10, share * PICTURE + 4));
      context.fillRect(GUTTER - 5, share * PICTURE, 5, 1);
    }
    context.textAlign = "left";
  }

  // The first moment that ends after a time.
  function momentAt(time) {
    let [low, high] = [0, count - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (recording.spans[2 * middle + 1] > time) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  // Of moments that share a pixel, the highest probability.
  function drawClasses(context) {
    const classes = recording.classes.length;
    const columns = new Float32Array(Math.ceil(width()) * classes);
    for (let place = momentAt(start); place < count && recording.spans[2 * place] < stop; place++) {
      const from = Math.max(0, Math.floor(x(recording.spans[2 * place]) - GUTTER));
      const to = Math.min(Math.ceil(width()), Math.max(from + 1, Math.floor(x(recording.spans[2 * place + 1]) - GUTTER)));
      for (let row = 0; row < classes; row++) {
        const value = values[place * classes + row];
        for (let column = from; column < to; column++) {
          columns[column * classes + row] = Math.max(columns[column * classes + row], value);
        }
      }
    }
    context.fillStyle = colour("linear");
    for (let place = 0; place < columns.length; place++) {
      if (columns[place] < 3) continue;
      context.globalAlpha = columns[place] / 255;
      context.fillRect(GUTTER + Math.floor(place / classes), PICTURE + 4 + ROW * (place % classes), 1, ROW - 4);
    }
    context.globalAlpha = 1;
    context.fillStyle = colour("ink");
    recording.classes.forEach((name, row) => context.fillText(name, 0, PICTURE + ROW * (row + 0.5) + 6, GUTTER - 8));
    context.strokeStyle = colour("three");
    context.lineWidth = 2;
    for (const event of recording.events) {
      const row = recording.classes.indexOf(event.label);
      if (row < 0 || event.end_s < start || event.start_s > stop) continue;
      context.strokeRect(x(event.start_s), PICTURE + 3 + ROW * row, Math.max(2, x(event.end_s) - x(event.start_s)), ROW - 2);
    }
  }

  function drawAxis(context) {
    const base = PICTURE + ROW * recording.classes.length + 6;
    const step = TICKS.find((tick) => (tick / (stop - start)) * width() > 70) ?? 7200;
    context.fillStyle = colour("faint");
    for (let tick = Math.ceil(start / step) * step; tick <= stop; tick += step) {
      context.fillRect(x(tick), base, 1, 5);
      context.fillText(clock(tick), x(tick) + 3, base + 12);
    }
  }

  function draw() {
    canvas.style.height = `${PICTURE + ROW * recording.classes.length + AXIS}px`;
    canvas.width = canvas.clientWidth * devicePixelRatio;
    canvas.height = canvas.clientHeight * devicePixelRatio;
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    context.font = "13px system-ui, sans-serif";
    context.save();
    context.beginPath();
    context.rect(GUTTER, 0, width(), canvas.clientHeight);
    context.clip();
    drawPictures(context);
    context.restore();
    drawFrequencies(context);
    drawClasses(context);
    drawAxis(context);
    if (cursor >= start && cursor <= stop) {
      context.fillStyle = colour("three");
      context.fillRect(x(cursor), 0, 2, PICTURE + ROW * recording.classes.length);
    }
    section.querySelector(".clock").textContent = `${clock(cursor)} of ${clock(last)}`;
  }

  function show(from, length) {
    const span = Math.min(Math.max(length, 1), last - first);
    start = Math.min(Math.max(from, first), last - span);
    stop = start + span;
    draw();
  }

  const zoom = (factor, around = cursor) => {
    const centre = Math.min(Math.max(around, start), stop);
    show(centre - (centre - start) * factor, (stop - start) * factor);
  };

  function go(time, plays) {
    cursor = Math.min(Math.max(time, first), last);
    if (!audio.src) audio.src = recording.sound;
    audio.currentTime = cursor - recording.sound_s;
    if (plays) audio.play().catch(() => {}); // an error is reported below
    if (cursor < start || cursor > stop) show(cursor - (stop - start) / 4, stop - start);
    else draw();
  }

  function follow() {
    if (audio.paused) return;
    cursor = Math.min(audio.currentTime + recording.sound_s, last);
    if (cursor > stop) show(cursor, stop - start);
    else draw();
    requestAnimationFrame(follow);
  }

  const toggle = () => (audio.paused ? go(cursor >= last ? first : cursor, true) : audio.pause());
  const play = section.querySelector(".play");
  audio.addEventListener("play", () => { play.textContent = "Pause"; follow(); });
  audio.addEventListener("pause", () => { play.textContent = "Play"; });
  audio.addEventListener("error", () => { section.querySelector(".clock").textContent = `cannot be played: ${recording.sound.slice(0, 200)}`; });
  play.addEventListener("click", toggle);
  section.querySelector(".in").addEventListener("click", () => zoom(0.5));
  section.querySelector(".out").addEventListener("click", () => zoom(2));
  section.querySelector(".all").addEventListener("click", () => show(first, last - first));
  section.querySelectorAll(".events button").forEach((button) => button.addEventListener("click", () => go(Number(button.dataset.start), true)));

  const starts = recording.events.map((event) => event.start_s);
  const keys = {
    " ": toggle,
    ArrowLeft: () => go(cursor - STEP, !audio.paused),
    ArrowRight: () => go(cursor + STEP, !audio.paused),
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    0: () => show(first, last - first),
    n: () => go(starts.find((time) => time > cursor + 0.05) ?? cursor, true),
    p: () => go(starts.findLast((time) => time < cursor - 0.5) ?? first, true),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  let pressed = null; // where the pointer went down, and what was in sight
  canvas.addEventListener("pointerdown", (event) => { pressed = [event.offsetX, start]; });
  canvas.addEventListener("pointermove", (event) => {
    if (!pressed || event.buttons !== 1 || Math.abs(event.offsetX - pressed[0]) < DRAGGED) return;
    show(pressed[1] - ((event.offsetX - pressed[0]) / width()) * (stop - start), stop - start);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (pressed && Math.abs(event.offsetX - pressed[0]) < DRAGGED && event.offsetX >= GUTTER) go(seconds(event.offsetX), true);
    pressed = null;
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.deltaX) return; // the page scrolls
    event.preventDefault();
    if (event.ctrlKey) zoom(event.deltaY > 0 ? 1.25 : 0.8, seconds(event.offsetX));
    else show(start + (event.deltaX / width()) * (stop - start), stop - start);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(draw).observe(section);
  show(first, last - first);
}

const recordings = JSON.parse(document.getElementById("data").textContent);
document.querySelectorAll("section").forEach((section, place) => timeline(section, recordings[place]));
document.documentElement.dataset.ready = "yes";
