"use strict";
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const POINTS = 32, PICTURES = 12, MOST_LIVE = 40, PAUSE = 250;
const state = { model: null, answer: null, series: [], length: 0, request: null, stream: null, url: null };

/** An element with attributes, text and children. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const percent = (p) => `${(100 * p).toFixed(p < 0.0995 || p > 0.9995 ? 1 : 0)} %`;
const clock = (s) => (s < 60 ? `${s.toFixed(state.length && state.length < 5 ? 2 : 1)} s` : `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`);
const ms = (x) => (x < 1000 ? `${x < 10 ? x.toFixed(1) : Math.round(x)} ms` : `${(x / 1000).toFixed(1)} s`);
const size = (n) => (n < 2 ** 20 ? `${Math.max(1, Math.round(n / 1024))} KiB` : `${(n / 2 ** 20).toFixed(1)} MiB`);
const gmacs = (n) => `${Number(n.toPrecision(2))} GMACs`;
const show = (id, shown) => { $(id).hidden = !shown; };

// The service

const key = () => { try { return sessionStorage.getItem("stillmotion-key") || ""; } catch { return ""; } };
class Failed extends Error {
  constructor(status, text, retry) { super(text); this.status = status; this.retry = retry; }
}

/** Sends a file; tells the share that was sent. */
function send(blob, name, query, onSent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(), form = new FormData();
    state.request = request;
    form.append("file", blob, name);
    request.open("POST", `predict?${new URLSearchParams(query)}`);
    if (key()) request.setRequestHeader("X-API-Key", key());
    request.upload.onprogress = (event) => event.lengthComputable && onSent && onSent(event.loaded / event.total);
    request.onload = () => {
      let data = {};
      try { data = JSON.parse(request.responseText); } catch { /* told below */ }
      if (request.status === 200) resolve(data);
      else reject(new Failed(request.status, data.detail || `The service answered ${request.status}.`,
                             Number(request.getResponseHeader("Retry-After"))));
    };
    request.onerror = () => reject(new Failed(0, "The service does not answer. Is it still running?"));
    request.onabort = () => reject(new Failed(-1, ""));
    request.send(form);
  });
}

/** As `send`; a service that is busy is asked again. */
async function ask(blob, name, query, onSent) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await send(blob, name, query, onSent);
    } catch (error) {
      if (error.status !== 429 || attempt === 3) throw error;
      step("The service is busy; waiting …");
      await new Promise((done) => setTimeout(done, 1000 * (error.retry || 1)));
    }
  }
}

async function begin() {
  let answer;
  try {
    answer = await fetch("model", { headers: key() ? { "X-API-Key": key() } : {} });
  } catch { return tell("The service does not answer. Is it still running?"); }
  show("locked", answer.status === 401);
  show("give", answer.status !== 401);
  if (answer.status === 401) {
    if (key()) tell("This key is not the service's.");
    return $("key").focus();
  }
  tell("");
  const model = state.model = await answer.json();
  document.title = `${model.student.name} · stillmotion`;
  $("name").textContent = model.student.name;
  const teacher = model.teacher ? ` Its teacher (${model.teacher.name}) sees ${model.teacher.sees}.` : "";
  const what = model.classes.length ? `Knows ${model.classes.length} classes` : `Tells ${model.targets.join(", ")}`;
  $("lead").textContent = `${what}; sees ${model.student.sees}.${teacher}`;
  $("limits").textContent = `Up to ${model.max_mib} MiB and ${Number((model.max_seconds / 60).toFixed(1))} minutes of video, or a picture. ` +
    "The camera's pictures go to this service only.";
  $("version").textContent = model.version;
  document.body.dataset.ready = "yes";
}

// What goes on

function tell(text) { $("problem").textContent = text; show("problem", Boolean(text)); }
function step(text, share) {
  show("progress", Boolean(text));
  document.body.classList.toggle("busy", Boolean(text));
  $("step").textContent = text;
  if (share === undefined) $("bar").removeAttribute("value"); else $("bar").value = share;
}
function fail(error) {
  step("");
  if (error.status === 401) return begin();
  if (error.status !== -1) tell(error.message.charAt(0).toUpperCase() + error.message.slice(1));
}
const query = (more) => ({ pictures: PICTURES, heat: Boolean(state.model.student.grad_cam || state.model.teacher?.grad_cam), ...more });

async function take(file) {
  stopCamera();
  state.request?.abort();
  tell("");
  if (file.size > state.model.max_mib * 2 ** 20) {
    return tell(`${file.name} has ${size(file.size)}; at most ${state.model.max_mib} MiB are taken.`);
  }
  step(`Sending ${file.name} …`, 0);
  try {
    const answer = await ask(file, file.name, query({ timeline: POINTS }),
                             (share) => share < 1 ? step(`Sending ${file.name} …`, share) : step("Looking at it …"));
    step("");
    playFile(file);
    showAnswer(answer, file.name);
    $("result").focus({ preventScroll: true });
    $("result").scrollIntoView({ block: "nearest" });
  } catch (error) { fail(error); }
}

// The camera

async function startCamera() {
  state.request?.abort();
  tell("");
  if (!navigator.mediaDevices) return tell("The browser gives a camera to pages of https or of this computer only.");
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } } });
  } catch (error) {
    return tell(`No camera: ${error.name === "NotAllowedError" ? "the browser was not allowed to use it" : error.message}.`);
  }
  const stream = state.stream, video = $("video");
  showMedia("video");
  video.controls = false;
  video.removeAttribute("src");
  video.srcObject = stream;
  await video.play();
  show("stop", true);
  const history = [], began = performance.now();
  while (state.stream === stream) {
    const start = performance.now();
    try {
      const [blob, name] = state.model.live === "frame" ? [await still(video), "camera.jpg"] : [await clip(stream), "camera.webm"];
      if (state.stream !== stream) return;
      const answer = await send(blob, name, query());
      if (state.stream !== stream) return;
      history.push([(performance.now() - began) / 1000, answer]);
      history.splice(0, history.length - MOST_LIVE);
      showAnswer({ ...answer, timeline: liveSeries(history) }, "Camera", true);
    } catch (error) {
      if (state.stream !== stream) return;
      if (error.status !== 429) { stopCamera(); return fail(error); }
    }
    await new Promise((done) => setTimeout(done, Math.max(0, PAUSE - (performance.now() - start))));
  }
}
function still(video) {
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
}
function clip(stream) {
  return new Promise((done, failed) => {
    const recorder = new MediaRecorder(stream), parts = [];
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = () => done(new Blob(parts));
    recorder.onerror = () => failed(new Failed(-2, "The browser cannot record this camera."));
    recorder.start();
    setTimeout(() => recorder.state !== "inactive" && recorder.stop(), 1000 * state.model.clip_seconds);
  });
}
function stopCamera() {
  if (!state.stream) return;
  state.stream.getTracks().forEach((track) => track.stop());
  state.stream = null;
  state.request?.abort();
  $("video").srcObject = null;
  $("video").controls = true;
  show("stop", false);
  showMedia("still");
  const last = state.answer?.looked_at?.at(-1);
  if (last) $("still").src = last.image; else show("result", false);
}
function liveSeries(history) {
  const times = history.map(([time]) => time), targets = columns(history.at(-1)[1]);
  return targets.map(({ target, labels, value }) => {
    const of = (answer) => columns(answer).find((c) => c.target === target);
    if (!labels) return { target, kind: "score", names: [target], times, values: [history.map(([, a]) => Number(of(a).value))] };
    const names = labels.slice(0, 5).map((l) => l.label);
    const values = names.map((n) => history.map(([, a]) => of(a).labels.find((l) => l.label === n)?.probability ?? 0));
    return { target, kind: "classes", names, times, values };
  });
}

// Media

function showMedia(which) { for (const id of ["video", "still", "unplayable"]) show(id, id === which); }
function playFile(file) {
  if (state.url) URL.revokeObjectURL(state.url);
  state.url = URL.createObjectURL(file);
  const video = $("video"), image = $("still");
  video.removeAttribute("src");
  image.onerror = video.onerror = () => unplayable();
  if (file.type.startsWith("image/")) {
    showMedia("still");
    image.alt = file.name;
    image.src = state.url;
  } else {
    showMedia("video");
    video.src = state.url;
    video.play().catch(() => {});
  }
}
/** The browser has no decoder for it, but the service had. */
function unplayable() {
  const seen = state.answer?.looked_at?.[0];
  $("still").onerror = null;
  showMedia("still");
  if (seen) $("still").src = seen.image; else show("still", false);
  $("unplayable").textContent = "This browser cannot play the file. The frame is one that the service read.";
  show("unplayable", true);
}

// The answer

function columns(said) {
  if (said.labels) return [{ target: "", value: said.text, labels: said.labels }];
  return Object.entries(said.targets || {}).map(([target, t]) => ({ target, ...t }));
}

function showAnswer(answer, name, live = false) {
  state.answer = answer;
  if (!live) state.length = answer.num_frames / (answer.fps || answer.num_frames);
  document.body.classList.add("shown");
  $("hint").textContent = "Drop another video or still";
  show("result", true);
  $("title").textContent = name;
  show("fault", Boolean(answer.fault));
  $("fault").textContent = answer.fault ? `Read in part: ${answer.fault}` : "";
  const each = [["Student", state.model.student, answer], ["Teacher", state.model.teacher, answer.teacher]].filter(([, , said]) => said);
  const longest = Math.max(...each.map(([, , said]) => total(said.cost)));
  $("said").replaceChildren(...each.map(([role, network, said]) => card(each.length > 1 ? role : "", network, said, longest)));
  showSeries(answer, live);
  showLooked(each);
  const notes = (answer.notes || []).map((note) => ` ${note}.`).join("");
  const rate = answer.fps ? `, ${answer.num_frames} frames, ${clock(answer.num_frames / answer.fps)}` : "";
  $("cost").textContent = `${size(answer.bytes)}${rate}; answered ${ms(1000 * answer.seconds)} after the upload` +
    `${answer.timeline && !live ? ", timeline included" : ""}.${notes}`;
}
const total = (cost) => cost.decode_ms + cost.preprocess_ms + cost.network_ms;

function card(role, network, said, longest) {
  const parts = columns(said), single = parts.length === 1 && parts[0].labels;
  const result = make("article", { class: "answer" },
    make("p", { class: "who" }, [role, network.name].filter(Boolean).join(" · ")),
    make("p", { class: "text" }, said.text, ...(single ? [" ", make("small", {}, percent(parts[0].labels[0].probability))] : [])));
  for (const part of parts.filter((p) => p.labels)) {
    if (!single) result.append(make("h4", {}, part.target));
    for (const { label, probability } of part.labels.slice(0, single ? 5 : 3)) {
      result.append(make("div", { class: "score" }, make("span", { title: label }, label),
        make("span", { class: "track" }, make("i", { style: `width:${100 * probability}%` })), make("b", {}, percent(probability))));
    }
  }
  const { cost } = said, stages = [["decode", cost.decode_ms, "--c0"], ["pre-process", cost.preprocess_ms, "--c4"], ["network", cost.network_ms, "--c2"]];
  result.append(
    make("div", { class: "ms", "aria-hidden": "true" }, ...stages.map(([, value, colour]) => make("i", { style: `width:${(100 * value) / longest}%;background:var(${colour})` }))),
    make("div", { class: "ms-words" },
      ...stages.map(([name, value, colour]) => make("span", { class: "dot", style: `--dot:var(${colour})` }, `${name} ${ms(value)}`)),
      make("span", {}, `${said.frames} frame${said.frames === 1 ? "" : "s"}${cost.gmacs ? `, ${gmacs(cost.gmacs)}` : ""}`)));
  return result;
}

// Over time

function showSeries(answer, live) {
  state.series = (answer.timeline || []).filter((s) => s.times.length > 1);
  state.live = live;
  show("over", state.series.length > 0);
  if (!state.series.length) return;
  const chosen = $("column").value;
  $("column").replaceChildren(...state.series.map((s) => make("option", {}, s.target)));
  if (state.series.some((s) => s.target === chosen)) $("column").value = chosen;
  show("column-label", state.series.length > 1);
  state.from = live ? state.series[0].times[0] : 0;
  state.length = live ? state.series[0].times.at(-1) : answer.num_frames / (answer.fps || 1);
  show("seek", !live);
  $("over-title").textContent = live ? "So far" : "Over time";
  $("seek").max = state.length;
  draw();
}
const current = () => state.series.find((s) => s.target === $("column").value) || state.series[0];
const now = () => (state.live ? state.length : Number($("seek").value));

function draw() {
  const series = current();
  if (!series) return;
  const box = $("chart"), width = Math.max(240, box.clientWidth), height = box.firstChild?.clientHeight || 190;
  const left = 44, right = 8, top = 10, bottom = 24;
  const all = series.values.flat(), classes = series.kind === "classes";
  let [low, high] = classes ? [0, 1] : [Math.min(...all), Math.max(...all)];
  if (low === high) [low, high] = [low - 1, high + 1];
  const x = (t) => left + ((t - state.from) / (state.length - state.from || 1)) * (width - left - right);
  const y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(series) });
  for (const v of [low, (low + high) / 2, high]) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
               make("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, classes ? `${Math.round(100 * v)} %` : v.toPrecision(3)));
  }
  const marks = width < 500 ? 3 : 6;
  for (let i = 0; i <= marks; i++) {
    const t = state.from + ((state.length - state.from) * i) / marks;
    svg.append(make("text", { x: x(t), y: height - 5, "text-anchor": i === 0 ? "start" : i === marks ? "end" : "middle" }, clock(t)));
  }
  for (let k = series.names.length - 1; k >= 0; k--) {
    const line = series.values[k].map((v, i) => `${i ? "L" : "M"}${x(series.times[i]).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    svg.append(make("path", { d: line, stroke: `var(--c${k})`, ...(k > 2 ? { "stroke-dasharray": "5 3" } : {}) }));
  }
  svg.append(make("line", { class: "now", id: "now", x1: 0, x2: 0, y1: top, y2: height - bottom }));
  box.replaceChildren(svg);
  box.scale = { x, left, width, right };
  mark();
}
const nearest = (series, time) => series.times.reduce((best, t, i) => (Math.abs(t - time) < Math.abs(series.times[best] - time) ? i : best), 0);
function describe(series) {
  const first = series.names[0], values = series.values[0], best = values.indexOf(Math.max(...values));
  const peak = series.kind === "classes" ? percent(values[best]) : values[best].toPrecision(3);
  return `${series.names.join(", ")} over time; ${first} is highest at ${clock(series.times[best])}, ${peak}`;
}
/** Shows the time that the video is at. */
function mark() {
  const series = current(), line = $("now");
  if (!series || !line) return;
  const time = now(), at = nearest(series, time), place = $("chart").scale.x(time);
  line.setAttribute("x1", place);
  line.setAttribute("x2", place);
  const value = (k) => (series.kind === "classes" ? percent(series.values[k][at]) : series.values[k][at].toPrecision(3));
  $("legend").replaceChildren(...series.names.map((name, k) =>
    make("li", {}, make("span", { class: "dot", style: `--dot:var(--c${k})` }, `${name} `), make("b", {}, value(k)))));
  $("seek").setAttribute("aria-valuetext", `${clock(time)}: ${series.names.map((n, k) => `${n} ${value(k)}`).join(", ")}`);
  for (const shot of document.querySelectorAll(".shot")) {
    shot.classList.toggle("now", !state.live && Math.abs(Number(shot.dataset.time) - time) < state.length / 100);
  }
}
function seek(time) {
  $("seek").value = time;
  if (!$("video").hidden && !state.stream) {
    $("video").pause();
    $("video").currentTime = Math.min(time, state.length);
  }
  mark();
}

// What it looked at

function showLooked(each) {
  const rows = each.filter(([, , said]) => said.looked_at?.length);
  show("looked", rows.length > 0);
  const hot = rows.some(([, , said]) => said.looked_at.some((f) => f.heat));
  $("heat").disabled = !hot;
  $("heat-label").classList.toggle("off", !hot);
  show("heat-why", !hot);
  $("heat-why").textContent = hot ? "" : state.answer.notes ? "" :
    "There is no Grad-CAM here: an exported file has no gradients. Serve the run folder to see it.";
  $("strips").replaceChildren(...rows.flatMap(([role, network, said]) => [
    ...(rows.length > 1 ? [make("p", { class: "strip-name" }, `${role} · ${network.name}`)] : []),
    make("div", { class: "strip" }, ...said.looked_at.map(shot)),
  ]));
}
function shot(frame) {
  const image = $("heat").checked && frame.heat ? frame.heat : frame.image;
  const when = state.answer.fps ? clock(frame.time) : "";
  const button = make("button", { class: "shot", type: "button", "data-time": frame.time },
    make("img", { src: image, alt: `Frame${when ? ` at ${when}` : ""}${image === frame.heat ? ", with what speaks for the answer" : ""}` }), when);
  button.onclick = () => seek(frame.time);
  return button;
}

// Hands

$("file").onchange = (event) => { if (event.target.files[0]) take(event.target.files[0]); event.target.value = ""; };
$("camera").onclick = startCamera;
$("stop").onclick = stopCamera;
$("cancel").onclick = () => state.request?.abort();
$("heat").onchange = () => showLooked([["Student", state.model.student, state.answer], ["Teacher", state.model.teacher, state.answer.teacher]].filter(([, , s]) => s));
$("column").onchange = draw;
$("seek").oninput = () => seek(Number($("seek").value));
$("video").ontimeupdate = () => {
  if (!state.stream && !$("video").paused) { $("seek").value = $("video").currentTime; mark(); }
};
$("chart").onpointerdown = (event) => {
  if (state.live) return;
  const { left, width, right } = $("chart").scale, x = event.clientX - $("chart").getBoundingClientRect().left;
  seek(Math.min(1, Math.max(0, (x - left) / (width - left - right))) * state.length);
};
$("unlock").onsubmit = (event) => {
  event.preventDefault();
  try { sessionStorage.setItem("stillmotion-key", $("key").value); } catch { /* asked for again next time */ }
  begin();
};
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (state.model && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
new ResizeObserver(() => state.series.length && draw()).observe($("chart"));
begin();
