// The page: images in, answers out. What is asked for stands in the form, what was answered with each image of the strip.
import { maskWindow, predict } from "../maskx.js";
import { camera } from "./camera.js";
import { canvasSize, detectionAt, drawMarks, drawMasks, drawnImage, isTaught, isTransferred, labelOf } from "./draw.js";
import { offerNames } from "./known.js";
import { curlLine, pythonLine } from "./lines.js";
import { foundItem, mark, roving, stripItem } from "./lists.js";

const PATIENCE = 250; // milliseconds that a slider or a list of names may rest before the server is asked

const at = (id) => document.getElementById(id);
const entries = [];
let selected = null;
let view = { entry: null, bitmap: null, base: null, size: null };
let asking = null;
const choice = { pointed: null, pinned: null };

// ---- what is asked for

function options() {
  const [model, version = ""] = at("model").value.trim().split("/");
  return {
    server: "",
    model: model || "maskx",
    version,
    scoreThreshold: Number(at("threshold").value),
    categories: at("categories").value.trim(),
    maskFormat: at("format").value,
    token: at("token").value.trim(),
  };
}

/** Whether the image's answer, or its error, is about something else than what the form says now. */
function isStale(asked) {
  const now = options();
  const same = asked && Object.keys(now).every((name) => name === "scoreThreshold" || now[name] === asked[name]);
  return !same || now.scoreThreshold < asked.scoreThreshold;
}

/** Asks for one image after the other: first the one that is shown, then those that were never asked for. */
async function work() {
  if (asking) return;
  const due = () => (selected && isStale(selected.asked) ? selected : entries.find((one) => !one.asked));
  for (let entry = due(); entry; entry = due()) {
    asking = { entry, options: options(), controller: new AbortController() };
    show();
    await ask(asking);
    asking = null;
    mark(entry);
  }
  show();
}

async function ask({ entry, options, controller }) {
  const before = entry.asked;
  entry.asked = options;
  try {
    const answer = await predict(entry.file, { ...options, signal: controller.signal });
    const { height, width } = answer.image;
    for (const one of answer.detections) one.window = await maskWindow(one.segmentation, height, width);
    Object.assign(entry, { answer, error: null });
  } catch (error) {
    if (controller.signal.aborted) entry.asked = before;
    else Object.assign(entry, { answer: null, error });
  }
}

let timer;
function settingsChanged() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    if (asking && isStale(asking.options)) asking.controller.abort();
    work();
  }, PATIENCE);
}

// ---- images

function add(files) {
  for (const file of files) {
    const entry = { file, name: file.name || "pasted image", asked: null, answer: null, error: null };
    entries.push(entry);
    at("strip").append(stripItem(entry, () => select(entry)));
  }
  if (files.length) select(entries[entries.length - files.length]);
}

async function select(entry) {
  selected = entry;
  Object.assign(choice, { pointed: null, pinned: null });
  for (const one of entries) mark(one, selected);
  view.bitmap?.close();
  view = { entry, bitmap: null, base: null, size: null };
  show();
  work();
  // browsers turn a photograph upright, as the server does
  const bitmap = await createImageBitmap(entry.file).catch(() => null);
  if (view.entry === entry) {
    Object.assign(view, { bitmap, base: null });
    show();
  } else bitmap?.close();
}

function clear() {
  asking?.controller.abort();
  entries.length = 0;
  at("strip").replaceChildren();
  selected = null;
  view = { entry: null, bitmap: null, base: null, size: null };
  show();
  at("files").focus();
}

// ---- what is shown

function shown() {
  const threshold = Number(at("threshold").value);
  return (selected?.answer?.detections ?? []).filter((one) => one.score > threshold);
}

function show() {
  const detections = shown();
  at("threshold-shown").textContent = Number(at("threshold").value).toFixed(2);
  at("strip").hidden = entries.length < 2;
  at("clear").hidden = at("lines").hidden = !selected;
  at("again").hidden = !selected?.error || asking?.entry === selected;
  at("error").hidden = !selected?.error;
  at("error").textContent = selected?.error ? told(selected.error) : "";
  if (selected?.error?.code === 401) at("more").open = true;
  const words = selected ? said(detections) : "";
  if (at("status").textContent !== words) at("status").textContent = words; // else it would be read out again
  at("legend-transferred").hidden = !detections.some(isTransferred);
  at("legend-taught").hidden = !detections.some(isTaught);
  if (!detections.includes(choice.pinned)) choice.pinned = null;
  if (!detections.includes(choice.pointed)) choice.pointed = null;
  at("picture").setAttribute("aria-label", `The image, with what was found: ${detections.map(labelOf).join(", ") || "nothing"}`);
  showFound(detections);
  showLines();
  showImage();
}

/** Lists the detections; a list that says so already is left, with the focus that one of its items may have. */
function showFound(detections) {
  const listed = [...at("found").children].map((item) => item.detection);
  if (listed.length !== detections.length || listed.some((one, k) => one !== detections[k])) {
    at("found").replaceChildren(...detections.map((one) => foundItem(one, hands)));
    roving(at("found"));
  }
  showPinned();
}

function showPinned() {
  for (const item of at("found").children) {
    item.firstChild.setAttribute("aria-pressed", String(item.detection === choice.pinned));
  }
}

function told({ type, code, message }) {
  return type ? `${message} (${code ? `${type}, ${code}` : type})` : `this page failed: ${message}`;
}

function said(detections) {
  const { name, answer } = selected;
  if (asking?.entry === selected) return `${name}: asking the server`;
  if (!answer) return "";
  const transferred = detections.filter((one) => isTransferred(one) && !isTaught(one)).length;
  const hidden = answer.detections.length - detections.length;
  const parts = [`${name}: ${detections.length} found in ${answer.image.width} x ${answer.image.height} pixels`];
  if (transferred) parts.push(`${transferred} with a transferred mask`);
  if (hidden) parts.push(`${hidden} below the score`);
  if (view.entry === selected && !view.bitmap) parts.push("this browser cannot show the image itself");
  return parts.join("; ");
}

/** The form's words without those that change nothing. */
function showLines() {
  const asked = options();
  if (asked.maskFormat === "rle") asked.maskFormat = "";
  const server = new URL(".", document.baseURI).href;
  at("curl").textContent = curlLine(selected?.file.name, { ...asked, server });
  at("python").textContent = pythonLine(selected?.file.name, { ...asked, server });
}

function showImage() {
  const size = selected?.answer?.image ?? view.bitmap;
  at("figure").hidden = !size;
  at("empty").hidden = entries.length > 0;
  if (!size) return;
  if (!view.base || view.size.width !== size.width || view.size.height !== size.height) {
    view.size = { width: size.width, height: size.height };
    Object.assign(at("picture"), canvasSize(view.size));
    view.base = drawnImage(at("picture"), view.bitmap);
  }
  redraw();
}

function redraw() {
  const detections = shown();
  const chosen = choice.pointed ?? choice.pinned;
  drawMasks(at("picture"), view.base, chosen ? [chosen] : detections, view.size);
  drawMarks(at("marks"), detections, view.size, chosen);
  for (const item of at("found").children) item.classList.toggle("chosen", item.detection === chosen);
}

// ---- one detection among many

function point(detection) {
  if (choice.pointed === (detection ?? null) || !view.base) return;
  choice.pointed = detection ?? null;
  requestAnimationFrame(() => view.base && redraw());
}

function pin(detection) {
  choice.pinned = choice.pinned === detection ? null : (detection ?? null);
  showPinned();
  if (view.base) redraw();
}

const hands = { point, pin };

function underPointer(event) {
  const place = at("picture").getBoundingClientRect();
  const x = ((event.clientX - place.left) / place.width) * view.size.width;
  const y = ((event.clientY - place.top) / place.height) * view.size.height;
  return detectionAt(shown(), x, y);
}

// ---- what people do

function listen() {
  for (const id of ["files", "shot"]) {
    at(id).addEventListener("change", ({ target }) => {
      add([...target.files]);
      target.value = "";
    });
  }
  document.addEventListener("paste", ({ clipboardData }) => add([...clipboardData.files]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    add([...event.dataTransfer.files]);
  });
  at("settings").addEventListener("submit", (event) => event.preventDefault());
  at("settings").addEventListener("input", () => {
    show();
    settingsChanged();
  });
  at("again").addEventListener("click", () => {
    selected.asked = null;
    work();
  });
  at("clear").addEventListener("click", clear);
  at("marks").addEventListener("pointermove", (event) => event.pointerType === "mouse" && point(underPointer(event)));
  at("marks").addEventListener("pointerleave", () => point(null));
  at("marks").addEventListener("click", (event) => pin(underPointer(event)));
  for (const id of ["curl", "python"]) at(`copy-${id}`).addEventListener("click", () => copy(at(id)));
  roving(at("strip"));
  new ResizeObserver(() => view.base && redraw()).observe(at("figure"));
}

async function copy(line) {
  getSelection().selectAllChildren(line);
  const copied = await navigator.clipboard?.writeText(line.textContent).then(() => true, () => false);
  at("status").textContent = copied ? "Copied" : "Press Ctrl+C, or Cmd+C, to copy what is marked";
}

listen();
camera(add);
offerNames({ place: at("known"), title: at("known-title"), list: at("names"), field: at("categories") });
show();
