// The items of the two lists: images, and what was found in one of them. One of a list's items takes the focus; arrow keys
// move it to the others.
import { colorOf, isTaught, isTransferred } from "./draw.js";

const THUMBNAIL = 96;
const SOURCES = {
  masks: "mask learned from masks",
  some_masks: "mask learned from few masks",
  taught: "mask learned from made masks",
  boxes: "mask transferred",
};

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** An image of the strip; `mark` tells what became of it. */
export function stripItem(entry, choose) {
  const picture = element("canvas", { width: THUMBNAIL, height: THUMBNAIL });
  picture.setAttribute("aria-hidden", "true");
  entry.note = element("span", { className: "note" });
  entry.button = element("button", { type: "button", title: entry.name, onclick: choose }, picture,
    element("span", { className: "name", textContent: entry.name }), entry.note);
  thumbnail(entry.file, picture).catch(() => {}); // what no browser can show has no small picture either
  mark(entry);
  return element("li", {}, entry.button);
}

async function thumbnail(file, canvas) {
  const bitmap = await createImageBitmap(file);
  const factor = Math.max(canvas.width / bitmap.width, canvas.height / bitmap.height);
  const [width, height] = [bitmap.width * factor, bitmap.height * factor];
  canvas.getContext("2d").drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  bitmap.close();
}

/** Says beside the image whether it waits, was answered or was refused; and with `selected` which one is shown. */
export function mark(entry, selected) {
  entry.note.textContent = entry.error ? "error" : entry.answer ? `${entry.answer.detections.length} found` : "waiting";
  entry.button.classList.toggle("failed", Boolean(entry.error));
  if (selected === undefined) return;
  if (selected === entry) entry.button.setAttribute("aria-current", "true");
  else entry.button.removeAttribute("aria-current");
}

/** A detection: its colour, hatched where its mask is transferred, its name, its score, and where the mask is from. */
export function foundItem(detection, { point, pin }) {
  const swatch = element("i", { className: "swatch" });
  swatch.style.setProperty("--color", `rgb(${colorOf(detection.category_id).join(" ")})`);
  swatch.classList.toggle("hatched", isTransferred(detection));
  swatch.classList.toggle("dotted", isTaught(detection));
  const source = SOURCES[detection.mask_source] ?? SOURCES[isTransferred(detection) ? "boxes" : "masks"];
  const button = element("button", { type: "button" }, swatch,
    element("span", { className: "name", textContent: detection.category }),
    element("span", { className: "score", textContent: detection.score.toFixed(2) }),
    element("span", { className: "note", textContent: source }));
  button.addEventListener("click", () => pin(detection));
  button.addEventListener("focus", () => button.matches(":focus-visible") && point(detection));
  button.addEventListener("blur", () => point(null));
  button.addEventListener("pointerenter", () => point(detection));
  button.addEventListener("pointerleave", () => point(null));
  return element("li", { detection }, button);
}

const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

/** Makes the list one stop of the Tab key. */
export function roving(list) {
  const buttons = () => [...list.querySelectorAll("button")];
  const stopAt = (button) => buttons().forEach((one) => (one.tabIndex = one === button ? 0 : -1));
  stopAt(buttons()[0]);
  list.onfocusin = list.onkeydown = null;
  list.onkeydown = (event) => {
    const step = STEPS[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const all = buttons();
    const next = Math.max(0, Math.min(all.length - 1, all.indexOf(document.activeElement) + step));
    stopAt(all[next]);
    all[next]?.focus();
  };
}
