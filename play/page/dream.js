// The dream page. The server holds the dream; the page sends events and draws what comes back, one message at a time.
// A message is a head in JSON and arrays, see `pack` in play/session.py.
"use strict";

const $ = (id) => document.getElementById(id);
const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const HISTORY = 150; // steps of a curve
const WORLD = -1; // the place of the world among the moments
const SMALL_CURVES = 12; // numbers of vectors that are drawn

let about; // of the agent, from the server
let frame; // the last message: its head, with arrays by name
let playing = null, agentPlays = false; // `playing`: a token of the loop that takes steps
let toldEnd = false; // of the episode in the world
let chosen = []; // the action, an entry for each choice
let history = []; // of the numbers that curves show
const pressed = new Set();
const levels = {}; // the parts of the page for each level

// ---- Messages

function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const types = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };
  let start = 4 + length;
  const arrays = {};
  for (const { name, shape, dtype } of head.arrays) {
    const count = shape.reduce((product, side) => product * side, 1), end = start + count * types[dtype].BYTES_PER_ELEMENT;
    arrays[name] = { shape, data: new types[dtype](buffer.slice(start, end)) };
    start = end;
  }
  return { ...head, arrays };
}

async function post(name, body) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(name, { method: "POST", headers, body: JSON.stringify(body) }).catch(() => null);
  if (!answer) throw new Error("The server does not answer. Start python dream.py again, and open its new address.");
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

let last = Promise.resolve();
// Sends events after all earlier ones. Returns whether they could be done.
function send(...events) {
  const next = last.then(async () => {
    try {
      const answer = await post("do", { events, mean: $("mean").checked });
      draw(unpack(await answer.arrayBuffer()), events);
      return true;
    } catch (error) {
      pause();
      say(error.message);
      return false;
    }
  });
  last = next;
  return next;
}

let hiding;
function say(text, seconds = 12) {
  $("message").textContent = text;
  $("message").hidden = !text;
  clearTimeout(hiding);
  hiding = setTimeout(() => ($("message").hidden = true), 1000 * seconds);
}

// ---- Playing

const takeStep = () => send(["step", agentPlays ? null : chosen]);

async function play() {
  if (playing) return;
  const mine = (playing = {});
  $("play").textContent = "Pause";
  while (playing === mine) { // not a later one, after a pause that was shorter than a step
    const began = performance.now();
    if (frame.world?.ended && !toldEnd) {
      toldEnd = true;
      pause();
      return say(`In the world the episode has ended after ${frame.world.steps} steps. Play goes on in the dream alone, Restart begins both again.`);
    }
    if (!(await takeStep())) return;
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, 1000 / $("speed").value - (performance.now() - began))));
  }
}

function pause() {
  playing = null;
  $("play").textContent = "Play";
}

function letAgentPlay(on) {
  agentPlays = on;
  $("agent").setAttribute("aria-pressed", on);
}

function choose(index, value, step = true) {
  letAgentPlay(false);
  chosen[index] = value;
  showAction(chosen);
  if (step && !playing && about.controls.length === 1) takeStep();
}

const restart = () => send(["restart", frame.start ?? 0]);

// ---- Actions

function makeActions() {
  chosen = about.controls.map((choice) => (choice.classes ? (choice.idle ?? 0) : 0));
  about.controls.forEach((choice, index) => {
    const row = element("div", { className: "choice" });
    if (about.controls.length > 1 || !choice.classes) row.append(element("span", { textContent: choice.name }));
    if (choice.classes) {
      choice.classes.forEach(({ name }, value) =>
        row.append(element("button", { textContent: name, title: value < 9 && !index ? `key ${value + 1}` : "", onclick: () => choose(index, value) })));
    } else {
      const slider = element("input", { type: "range", min: -1, max: 1, step: 0.01, value: 0, ariaLabel: choice.name });
      slider.oninput = () => choose(index, Number(slider.value), false);
      row.append(slider, element("output"));
    }
    $("actions").append(row);
  });
  showAction(chosen);
}

function showAction(action) {
  [...$("actions").children].forEach((row, index) => {
    const value = action[index];
    if (about.controls[index].classes) row.querySelectorAll("button").forEach((button, number) => button.setAttribute("aria-pressed", number === value));
    else {
      row.querySelector("input").value = value;
      row.querySelector("output").textContent = value.toFixed(2);
    }
  });
}

// The class whose keys are those that are pressed, or most of them.
function pressedClass(choice) {
  let best = null, most = 0;
  choice.classes.forEach(({ keys }, value) => {
    if (keys.length > most && keys.every((key) => pressed.has(key))) [best, most] = [value, keys.length];
  });
  return best;
}

const AXES = [["ArrowLeft", "ArrowRight"], ["ArrowDown", "ArrowUp"]];
function usesKey(code) {
  return about.controls.some((choice, index) =>
    choice.classes ? choice.classes.some(({ keys }) => keys.includes(code)) : AXES[continuousBefore(index)]?.includes(code));
}
const continuousBefore = (index) => about.controls.slice(0, index).filter((choice) => !choice.classes).length;

function applyKeys(step) {
  about.controls.forEach((choice, index) => {
    if (choice.classes) {
      const value = pressedClass(choice) ?? choice.idle;
      if (value != null && (value !== chosen[index] || step)) choose(index, value, step);
    } else {
      const axis = AXES[continuousBefore(index)];
      if (axis) choose(index, pressed.has(axis[1]) - pressed.has(axis[0]), false);
    }
  });
}

function keyDown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("open").open || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
  const commands = { KeyP: () => (playing ? pause() : play()), KeyN: takeStep, KeyR: restart, KeyG: () => letAgentPlay(!agentPlays) };
  const level = about.levels.find(({ name }) => event.code === `Key${name[0].toUpperCase()}`)?.name;
  const digit = /^Digit[1-9]$/.test(event.code) && about.controls[0].classes ? Number(event.code[5]) - 1 : -1;
  if (usesKey(event.code)) {
    if (!event.repeat) pressed.add(event.code);
    if (!event.repeat || !playing) applyKeys(true);
  } else if (digit >= 0 && digit < about.controls[0].classes.length) choose(0, digit);
  else if (event.repeat && event.code !== "KeyN") return;
  else if (level) send(event.shiftKey ? ["redraw", level] : ["hold", level, !frame.held.includes(level)]);
  else if (commands[event.code]) commands[event.code]();
  else return;
  event.preventDefault();
}

function keyUp(event) {
  if (pressed.delete(event.code)) applyKeys(false);
}

// ---- Levels

function makeLevels() {
  for (const level of about.levels) {
    const { name, stoch, discrete } = level;
    const follow = element("button", { textContent: "Follow", onclick: () => send(["hold", name, false]), title: "drawn from its prior at every step" });
    const hold = element("button", { textContent: "Hold", onclick: () => send(["hold", name, true]), title: `keeps its code; key ${name[0].toUpperCase()}` });
    const redraw = element("button", { textContent: "Redraw", onclick: () => send(["redraw", name]), title: `draws from its prior now; key shift ${name[0].toUpperCase()}` });
    const take = element("select", { ariaLabel: `take the code of ${name} from a moment` }, element("option", { textContent: "take from", value: "" }),
      ...about.moments.map((moment, number) => element("option", { textContent: moment, value: number })));
    take.onchange = () => {
      if (take.value !== "") send(["take", name, Number(take.value)]);
      take.value = "";
      take.blur();
    };
    take.hidden = !about.moments.length;
    const canvas = element("canvas", { className: discrete ? "" : "plain" });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `prior and code of the level ${name}`);
    const note = element("p", { className: "faint" });
    const segments = element("span", { className: "segments" }, follow, hold);
    const title = element("header", {}, element("h2", { textContent: name }), element("span", { className: "faint", textContent: discrete ? `${stoch} categoricals of ${discrete} classes` : `${stoch} Gaussians` }));
    const card = element("div", { className: "level", id: `level-${name}` }, title, element("div", { className: "row" }, segments, redraw, take),
      element("div", { className: "grid" }, canvas), note);
    $("levels").append(card);
    levels[name] = { ...level, card, follow, hold, canvas, note, text: "" };
    if (discrete) listen(levels[name]);
  }
}

function cellAt(level, event) {
  const box = level.canvas.getBoundingClientRect();
  const row = Math.floor((level.stoch * (event.clientY - box.top)) / box.height), column = Math.floor((level.discrete * (event.clientX - box.left)) / box.width);
  return row >= 0 && row < level.stoch && column >= 0 && column < level.discrete ? [row, column] : null;
}

function listen(level) {
  level.canvas.onclick = (event) => {
    const cell = cellAt(level, event);
    if (cell) send(["set_class", level.name, ...cell]);
  };
  level.canvas.onmousemove = (event) => {
    level.over = cellAt(level, event);
    note(level);
  };
  level.canvas.onmouseleave = () => {
    level.over = null;
    note(level);
  };
}

function note(level) {
  const probs = frame.arrays[`probs/${level.name}`];
  const over = level.over && `categorical ${level.over[0] + 1}, class ${level.over[1] + 1}: prior ${(probs.data[level.over[0] * level.discrete + level.over[1]] / 255).toFixed(2)}`;
  level.note.textContent = over ? over : level.text;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A canvas of this size in CSS pixels, sharp on any screen.
function context(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const drawing = canvas.getContext("2d");
  drawing.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawing.clearRect(0, 0, width, height);
  return drawing;
}

function drawLevel(level, before) {
  const held = frame.held.includes(level.name), code = frame.arrays[`code/${level.name}`].data;
  level.card.classList.toggle("held", held);
  level.follow.setAttribute("aria-pressed", !held);
  level.hold.setAttribute("aria-pressed", held);
  if (level.discrete) {
    const old = before?.arrays[`code/${level.name}`].data, changed = old ? code.filter((value, index) => value !== old[index]).length : 0;
    if (before) level.text = `${changed} of ${level.stoch} have changed`;
    drawGrid(level, code);
  } else {
    level.text = "point: drawn number; bar: prior, mean and deviation";
    drawGaussians(level, code);
  }
  note(level);
}

function drawGrid({ canvas, stoch, discrete, name }, code) {
  const probs = frame.arrays[`probs/${name}`].data, room = canvas.parentElement.clientWidth;
  const wide = Math.max(6, Math.min(22, Math.floor(room / discrete))), high = Math.max(8, Math.min(18, Math.floor(300 / stoch)));
  canvas.style.width = `${wide * discrete}px`;
  canvas.style.height = `${high * stoch}px`;
  const drawing = context(canvas, wide * discrete, high * stoch);
  const line = color("--line"), shade = color("--dream"), mark = color("--mean");
  for (let row = 0; row < stoch; row++) {
    for (let column = 0; column < discrete; column++) {
      drawing.globalAlpha = 0.5;
      drawing.fillStyle = line;
      drawing.fillRect(column * wide, row * high, wide - 1, high - 1);
      drawing.globalAlpha = Math.sqrt(probs[row * discrete + column] / 255); // small probabilities are seen too
      drawing.fillStyle = shade;
      drawing.fillRect(column * wide, row * high, wide - 1, high - 1);
    }
  }
  drawing.globalAlpha = 1;
  drawing.strokeStyle = mark;
  drawing.lineWidth = 2;
  code.forEach((column, row) => drawing.strokeRect(column * wide + 1, row * high + 1, wide - 3, high - 3));
}

function drawGaussians({ canvas, stoch, name }, code) {
  const mean = frame.arrays[`mean/${name}`].data, std = frame.arrays[`std/${name}`].data, width = canvas.parentElement.clientWidth, height = 150;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const drawing = context(canvas, width, height), gap = width / stoch;
  const most = Math.max(3, ...code.map(Math.abs)), place = (value) => (height / 2) * (1 - Math.max(-1, Math.min(1, value / most)));
  code.forEach((value, index) => {
    const x = (index + 0.5) * gap;
    drawing.fillStyle = color("--dream");
    drawing.globalAlpha = 0.4;
    drawing.fillRect(x - gap * 0.3, place(mean[index] + std[index]), gap * 0.6, place(mean[index] - std[index]) - place(mean[index] + std[index]));
    drawing.globalAlpha = 1;
    drawing.fillRect(x - gap * 0.3, place(mean[index]) - 0.5, gap * 0.6, 1);
    drawing.fillStyle = color("--mean");
    drawing.beginPath();
    drawing.arc(x, place(value), Math.min(3, gap * 0.35), 0, 7);
    drawing.fill();
  });
}

// ---- Pictures

const picture = {}; // figures by view and key
function figureOf(view, key, title, hint) {
  const name = `${view}/${key}`;
  if (!picture[name]) {
    const canvas = element("canvas"), small = element("small");
    const caption = element("figcaption", {}, element("span", { textContent: title }), small);
    const figure = element("figure", { id: name.replace(/\W/g, "-") }, canvas, caption);
    figure.dataset.order = ["dream", "world", "mean", "difference"].indexOf(view);
    picture[name] = { figure, canvas, small };
    $("pictures").append(figure);
    [...$("pictures").children].sort((a, b) => a.dataset.order - b.dataset.order).forEach((each) => $("pictures").append(each));
  }
  picture[name].small.textContent = hint;
  picture[name].shown = true;
  return picture[name].canvas;
}

function paint(canvas, { shape, data }) {
  const [height, width] = shape;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let from = 0, to = 0; from < data.length; from += 3, to += 4) {
    image.data[to] = data[from];
    image.data[to + 1] = data[from + 1];
    image.data[to + 2] = data[from + 2];
    image.data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const twoLevels = () => about.levels.length > 1;
const meanTitle = () => (twoLevels() ? "Top alone" : "State alone");

function drawPictures() {
  Object.values(picture).forEach((each) => (each.shown = false));
  const several = about.images.length > 1;
  for (const [name, array] of Object.entries(frame.arrays)) {
    const view = name.split("/", 1)[0], key = name.slice(view.length + 1);
    if (array.shape.length !== 3 || !["dream", "mean", "world"].includes(view)) continue;
    const world = frame.world, title = { dream: "Dream", mean: meanTitle(), world: "World" }[view];
    const hint = { dream: `step ${frame.steps}`, mean: twoLevels() ? "bottom: mean of its prior" : "latent: mean of its prior", world: world && `step ${world.steps}, return ${number(world.return)}${world.ended ? ", ended" : ""}` }[view];
    paint(figureOf(view, key, several ? `${title}: ${key}` : title, hint), array);
    if (view === "mean") {
      const other = frame.arrays[`dream/${key}`].data, data = Uint8ClampedArray.from(array.data, (value, index) => other[index] - value + 128);
      paint(figureOf("difference", key, several ? `Difference: ${key}` : "Difference", twoLevels() ? "what the bottom adds" : "what the latent adds"), { shape: array.shape, data });
    }
  }
  Object.values(picture).forEach(({ figure, shown }) => (figure.hidden = !shown));
  const count = Object.values(picture).filter(({ shown }) => shown).length;
  $("pictures").hidden = !count;
  $("pictures").classList.toggle("odd", count % 2 === 1);
}

// ---- Curves

const number = (value) => (value == null ? "" : Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3))));
const charts = {};

function chartIn(place, name) {
  if (!charts[name]) {
    const value = element("b"), canvas = element("canvas");
    $(place).append(element("div", { className: "chart" }, element("div", {}, element("span", { textContent: name }), value), canvas));
    charts[name] = { value, canvas };
  }
  return charts[name];
}

// Curves of a number over the last steps. `series`: by the name of a colour, null where there is no number. `limits` are within
// the axis, whose length is at least `least`.
function drawChart({ canvas, value }, series, limits = [], least = 1e-3) {
  value.textContent = number(series.dream.at(-1));
  const width = canvas.clientWidth, height = canvas.clientHeight, drawing = context(canvas, width, height);
  const values = [...Object.values(series).flat().filter((each) => each != null), ...limits];
  let low = Math.min(...values), high = Math.max(...values);
  if (high - low < least) [low, high] = [low - least, high + least];
  const y = (each) => height - 2 - ((height - 4) * (each - low)) / (high - low);
  drawing.strokeStyle = color("--line");
  drawing.lineWidth = 1;
  drawing.strokeRect(0.5, 0.5, width - 1, height - 1);
  if (low < 0 && high > 0) drawing.strokeRect(0, y(0), width, 0);
  for (const [name, points] of Object.entries(series)) {
    drawing.strokeStyle = color(`--${name}`);
    drawing.lineWidth = name === "world" ? 3 : 1.5;
    drawing.beginPath();
    let down = false;
    points.forEach((each, index) => {
      if (each == null) return (down = false);
      drawing[down ? "lineTo" : "moveTo"](1 + ((width - 2) * index) / (HISTORY - 1), y(each));
      down = true;
    });
    drawing.stroke();
  }
}

function drawCurves() {
  const of = (name) => history.map((entry) => entry[name] ?? null);
  drawChart(chartIn("curves", "reward"), { ...(frame.world && { world: of("world reward") }), dream: of("reward") }, [], 0.1);
  drawChart(chartIn("curves", "continue"), { dream: of("cont") }, [0, 1]);
  drawChart(chartIn("curves", "value"), { dream: of("value") }, [], 0.1);
  for (const [, , name] of numbers()) {
    const series = { world: of(`world/${name}`), mean: of(`mean/${name}`), dream: of(`dream/${name}`) };
    for (const view of ["world", "mean"]) if (series[view].every((each) => each == null)) delete series[view];
    drawChart(chartIn("numbers", name), series);
  }
}

function drawLegend() {
  const shown = { dream: "dream", ...(frame.world && { world: "world" }), ...($("mean").checked && numbers().length && { mean: meanTitle().toLowerCase() }) };
  $("legend").replaceChildren(...Object.entries(shown).map(([name, title]) => element("span", { className: `key ${name}`, textContent: title })));
  $("legend").hidden = Object.keys(shown).length < 2;
}

// The first numbers of the vectors, which are drawn: key, index and name.
const numbers = () =>
  Object.entries(about.vectors).flatMap(([key, size]) => Array.from({ length: size }, (_, index) => [key, index, `${key}[${index}]`])).slice(0, SMALL_CURVES);

function remember() {
  const entry = { steps: frame.steps, reward: frame.reward, cont: frame.cont, value: frame.value, "world reward": frame.world?.reward };
  for (const [key, index, name] of numbers())
    for (const view of ["dream", "mean", "world"]) entry[`${view}/${name}`] = frame.arrays[`${view}/${key}`]?.data[index];
  if (history.at(-1)?.steps === frame.steps) history.pop(); // a change at the same step
  history.push(entry);
  history = history.slice(-HISTORY);
}

// ---- One message

const BEGINS = ["restart", "restore", "wake"];
function draw(message, events) {
  const before = frame;
  frame = message;
  if (events.some(([name]) => BEGINS.includes(name))) [history, toldEnd] = [[], false];
  remember();
  drawPictures();
  about.levels.forEach(({ name }) => drawLevel(levels[name], before));
  drawCurves();
  drawLegend();
  if (agentPlays && frame.action) showAction(frame.action);
  [...$("moments").children].forEach((button) => button.setAttribute("aria-pressed", Number(button.value) === frame.start));
  $("wake").hidden = frame.start !== WORLD;
  if (frame.problem) say(`No world beside the dream: ${frame.problem}`, 60);
}

// Draws what depends on the size and the colours of the window.
function fit() {
  about.levels.forEach(({ name }) => drawLevel(levels[name]));
  drawCurves();
}

// ---- Moments, links, films

async function makeMoments() {
  const world = element("button", { className: "world", value: WORLD, textContent: "Dream and world side by side", onclick: () => begin(WORLD) });
  $("moments").append(world);
  const pictures = unpack(await (await fetch("pictures")).arrayBuffer()).arrays;
  about.moments.forEach((name, index) => {
    const button = element("button", { value: index, onclick: () => begin(index) });
    if (pictures[index]) paint(button.appendChild(element("canvas")), pictures[index]);
    button.append(name);
    $("moments").append(button);
  });
  if (!about.moments.length) $("moments").append(element("button", { value: 0, textContent: "The first step of an episode, dreamt", onclick: () => begin(0) }));
  const wake = element("button", { id: "wake", value: "", textContent: "Wake up: dream from where the world is now", onclick: () => send(["wake"]) });
  $("moments").append(wake);
}

function begin(number) {
  if (number === WORLD && frame.start !== WORLD) say("The environment starts; its first step may take some seconds.", 4);
  return send(["restart", number]);
}

async function copyLink() {
  const link = new URL(location.href);
  link.hash = await (await post("link", {})).text();
  window.history.replaceState(null, "", link);
  await navigator.clipboard.writeText(link.href).then(() => say("The link is copied. It opens this state on a page of the same agent.", 5),
    () => say("The link is in the address bar.", 5));
}

async function openLink(text) {
  const state = text.includes("#") ? text.slice(text.indexOf("#") + 1) : text.trim();
  pause();
  if (state && (await send(["restore", state]))) say("The state is restored.", 4);
}

async function saveGif() {
  say("The film is drawn …", 60);
  const film = await (await post("gif", { fps: Math.min(40, Number($("speed").value)) })).blob();
  const link = element("a", { href: URL.createObjectURL(film), download: `dream-${about.task}.gif` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(`${link.download} is saved: the last 300 changes of this dream at most.`, 6);
}

const reporting = (task) => () => task().catch((error) => say(error.message));

async function main() {
  about = await (await fetch("about")).json();
  const names = about.levels.map(({ name }) => name);
  document.title = `${about.task} - step into the dream`;
  $("about").textContent = `${about.task}: ${about.agent}, ${twoLevels() ? "two levels" : "one level"}`;
  $("mean-label").textContent = `${meanTitle().toLowerCase()}${about.images.length ? ", difference" : ""}`;
  const keys = names.map((name) => `${name[0].toUpperCase()} holds ${name}, shift ${name[0].toUpperCase()} redraws it`).join("; ");
  $("help").textContent = `Rows of a grid are categoricals, columns are classes, the shade is the prior, the frame is the drawn class; a click sets a class. A change applies to one level, others follow with the next step. Keys: P play, N step, R restart, G agent plays, arrows and space or digits act; ${keys}.`;
  makeActions();
  makeLevels();
  await makeMoments();
  const rate = () => ($("rate").textContent = `${$("speed").value} steps/s`);
  $("speed").oninput = rate;
  rate();
  $("play").onclick = () => (playing ? pause() : play());
  $("step").onclick = takeStep;
  $("restart").onclick = restart;
  $("agent").onclick = () => letAgentPlay(!agentPlays);
  $("mean").onchange = () => send();
  $("gif").onclick = reporting(saveGif);
  $("copy").onclick = reporting(copyLink);
  $("paste").onclick = () => $("open").showModal();
  $("open").onclose = () => {
    if ($("open").returnValue === "open") openLink($("link").value);
    $("link").value = "";
  };
  addEventListener("keydown", keyDown);
  addEventListener("keyup", keyUp);
  addEventListener("blur", () => pressed.clear());
  addEventListener("hashchange", () => openLink(location.hash));
  addEventListener("resize", fit);
  matchMedia("(prefers-color-scheme: dark)").onchange = fit;
  // A click must not leave the focus on a button, where a key would press it again.
  document.body.addEventListener("click", (event) => event.detail && event.target.closest("button, input[type=range], input[type=checkbox]")?.blur());
  await send();
  if (location.hash.length > 1) await openLink(location.hash);
  document.body.dataset.ready = "true";
}

main().catch((error) => say(error.message, 3600));
