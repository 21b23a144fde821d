// Asks a maskx server from JavaScript, and turns the masks of its answers into pixels. Depends on nothing; runs in
// browsers and in Node.js from 18 on. Types and meanings are in maskx.d.ts, examples in README.md.

/** What went wrong, in the server's words where it said some: `type` and `code` as in its table of errors. */
export class MaskxError extends Error {
  constructor(type, code, message) {
    super(message);
    this.name = "MaskxError";
    this.type = type;
    this.code = code;
  }
}

const HEADERS = {
  scoreThreshold: "score_threshold",
  maxDetections: "max_detections",
  categories: "categories",
  maskFormat: "mask_format",
};

/** What the model finds in one image file (a Blob, or bytes); see maskx.d.ts for the options. */
export async function predict(image, options = {}) {
  const url = predictionUrl(options);
  let response, text;
  try {
    response = await fetch(url, { method: "POST", body: image, headers: headersOf(options), signal: options.signal });
    text = await response.text();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new MaskxError("Unreachable", 0, `${url} does not answer: is the server running, and may this page ask it?`);
  }
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    throw new MaskxError("Unreadable", response.status, `${url} answers with status ${response.status} and no JSON`);
  }
  const wrong = content?.error ?? (response.ok ? null : content);
  if (wrong) {
    const { type = "Unreadable", code = response.status, message = `status ${response.status}` } = wrong;
    throw new MaskxError(type, code, message);
  }
  if (!Array.isArray(content?.detections) || !content.image) {
    throw new MaskxError("Unreadable", response.status, `${url} does not answer as maskx; is it another model or server?`);
  }
  return content;
}

/** Where images are sent to; without a server an address that the page's own one is put before. */
export function predictionUrl({ server = "http://127.0.0.1:8080", model = "maskx", version = "" } = {}) {
  const base = server && !server.endsWith("/") ? `${server}/` : server;
  return [`${base}predictions`, ...[model, version].filter(Boolean).map(encodeURIComponent)].join("/");
}

/** The options as the headers that carry them. Text travels as UTF-8, each byte a character, as fetch wants it. */
export function headersOf(options) {
  const headers = { "Content-Type": "application/octet-stream" };
  for (const [option, header] of Object.entries(HEADERS)) {
    const value = options[option];
    if (value === undefined || value === null || value === "") continue;
    const written = Array.isArray(value) ? JSON.stringify(value) : String(value);
    headers[header] = String.fromCharCode(...new TextEncoder().encode(written));
  }
  if (options.token) headers.Authorization = `Bearer ${options.token}`;
  return headers;
}

/** Run lengths of COCO's compressed text, or of a list as it is: background first, along columns. */
export function runLengths(counts) {
  if (typeof counts !== "string") return Array.from(counts);
  const runs = [];
  let number = 0, place = 1;
  for (let i = 0; i < counts.length; i++) {
    const group = counts.charCodeAt(i) - 48;
    if (!(group >= 0 && group < 64) || place > 32 ** 9) throw notRuns(counts);
    number += (group & 31) * place;
    place *= 32;
    if (group & 32) continue;
    if (group & 16) number -= place;
    runs.push(runs.length > 2 ? number + runs[runs.length - 2] : number);
    number = 0;
    place = 1;
  }
  if (place !== 1) throw notRuns(counts);
  return runs;
}

function notRuns(counts) {
  return unreadable(`a segmentation whose counts are no compressed run lengths: ${counts.slice(0, 40)}`);
}

/** The window of any segmentation of an answer; null where there is none or it has no pixel. */
export async function maskWindow(segmentation, height, width) {
  if (!segmentation) return null;
  if (Array.isArray(segmentation)) return polygonWindow(segmentation, height, width);
  if ("png" in segmentation) return pngWindow(segmentation, height, width);
  const [rows, columns] = segmentation.size;
  if (rows !== height || columns !== width) throw misfit(`a segmentation of ${columns} x ${rows}`, height, width);
  return runWindow(segmentation.counts, height, width);
}

function misfit(what, height, width) {
  return unreadable(`${what} does not fit an image of ${width} x ${height}`);
}

function unreadable(message) {
  return new MaskxError("Unreadable", 0, message);
}

function emptyWindow(left, top, right, bottom) {
  const [width, height] = [right - left, bottom - top];
  return { left, top, width, height, pixels: new Uint8Array(width * height) };
}

/** The smallest window that holds the mask of these run lengths; null where it has no pixel. */
export function runWindow(counts, height, width) {
  const runs = runLengths(counts);
  let end = 0, top = height, bottom = 0, left = width, right = 0;
  const strips = [];
  for (let i = 0; i < runs.length; i++) {
    const begin = end;
    end += runs[i];
    if (!(runs[i] >= 0) || end > height * width) throw misfit("a segmentation of other run lengths", height, width);
    if (i % 2 === 0 || runs[i] === 0) continue;
    const first = Math.floor(begin / height), last = Math.floor((end - 1) / height);
    left = Math.min(left, first);
    right = Math.max(right, last + 1);
    top = Math.min(top, first === last ? begin % height : 0);
    bottom = Math.max(bottom, first === last ? ((end - 1) % height) + 1 : height);
    strips.push(begin, end);
  }
  if (end !== height * width) throw misfit(`a segmentation of ${end} pixels`, height, width);
  if (strips.length === 0) return null;
  const window = emptyWindow(left, top, right, bottom);
  for (let i = 0; i < strips.length; i += 2) fillStrip(window, strips[i], strips[i + 1], height);
  return window;
}

function fillStrip(window, begin, end, height) {
  for (let at = begin; at < end; ) {
    const column = Math.floor(at / height);
    const stop = Math.min(end, (column + 1) * height);
    const x = column - window.left;
    for (let row = at - column * height; row < stop - column * height; row++) {
      window.pixels[(row - window.top) * window.width + x] = 1;
    }
    at = stop;
  }
}

/** Pixels whose centre lies within any polygon, by the even-odd rule; what lies outside the image is left out. */
export function polygonWindow(polygons, height, width) {
  const outlines = polygons.filter((one) => one.length >= 6).map((one) => one.slice(0, one.length - (one.length % 2)));
  let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
  for (const outline of outlines) {
    for (let i = 0; i < outline.length; i += 2) {
      if (!Number.isFinite(outline[i]) || !Number.isFinite(outline[i + 1])) {
        throw unreadable("a segmentation with a polygon whose coordinates are not all finite numbers");
      }
      left = Math.min(left, outline[i]);
      right = Math.max(right, outline[i]);
      top = Math.min(top, outline[i + 1]);
      bottom = Math.max(bottom, outline[i + 1]);
    }
  }
  left = clip(Math.floor(left), 0, width);
  right = clip(Math.ceil(right), 0, width);
  top = clip(Math.floor(top), 0, height);
  bottom = clip(Math.ceil(bottom), 0, height);
  if (outlines.length === 0 || left === right || top === bottom) return null;
  const window = emptyWindow(left, top, right, bottom);
  for (const outline of outlines) fillPolygon(window, outline);
  return window;
}

function clip(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** Where the centre line of a column crosses the outline, inside and outside change. */
function fillPolygon(window, outline) {
  const { width: columns, height: rows } = window;
  const changes = new Uint8Array(columns * (rows + 1));
  for (let i = 0; i < outline.length; i += 2) {
    const next = (i + 2) % outline.length;
    let [x0, y0] = [outline[i] - window.left, outline[i + 1] - window.top];
    let [x1, y1] = [outline[next] - window.left, outline[next + 1] - window.top];
    if (x0 > x1) [x0, y0, x1, y1] = [x1, y1, x0, y0];
    const first = clip(Math.ceil(x0 - 0.5), 0, columns), last = clip(Math.ceil(x1 - 0.5), 0, columns);
    const slope = (y1 - y0) / (last > first ? x1 - x0 : 1);
    for (let column = first; column < last; column++) {
      const row = clip(Math.ceil(y0 + (column + 0.5 - x0) * slope - 0.5), 0, rows);
      changes[column * (rows + 1) + row] ^= 1;
    }
  }
  for (let column = 0; column < columns; column++) {
    let inside = 0;
    for (let row = 0; row < rows; row++) {
      inside ^= changes[column * (rows + 1) + row];
      if (inside) window.pixels[row * columns + column] = 1;
    }
  }
}

/** The window of a mask as the server packs it: a grey PNG of 1 bit a pixel, at the place that `bbox` names. */
export async function pngWindow(segmentation, height, width) {
  const [left, top, columns, rows] = segmentation.bbox;
  const picture = await decodedPng(bytesOf(segmentation.png));
  const fits = left >= 0 && left <= width - columns && top >= 0 && top <= height - rows;
  if (!fits || picture.width !== columns || picture.height !== rows) {
    throw misfit(`a PNG of ${picture.width} x ${picture.height} pixels at ${segmentation.bbox}`, height, width);
  }
  return picture.pixels.includes(1) ? { left, top, width: columns, height: rows, pixels: picture.pixels } : null;
}

function bytesOf(base64) {
  try {
    return Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  } catch {
    throw unreadable("a mask's PNG is not base64");
  }
}

/** A PNG of 1 bit a pixel, grey, without interlacing: its size and its pixels. */
async function decodedPng(file) {
  const view = new DataView(file.buffer);
  const size = { width: 0, height: 0 };
  const parts = [];
  for (let at = 8; at + 12 <= file.length; at += 12 + view.getUint32(at)) {
    const name = String.fromCharCode(...file.subarray(at + 4, at + 8));
    const data = file.subarray(at + 8, at + 8 + view.getUint32(at));
    if (name === "IDAT") parts.push(data);
    if (name !== "IHDR") continue;
    if (data.subarray(8).join() !== "1,0,0,0,0") throw unreadable("a mask's PNG is not of 1 bit a pixel, grey");
    size.width = view.getUint32(at + 8);
    size.height = view.getUint32(at + 12);
  }
  const unpacked = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(unpacked).arrayBuffer().catch(() => new ArrayBuffer(0)));
  const rowBytes = (size.width + 7) >> 3;
  if (!bytes.length || bytes.length !== size.height * (rowBytes + 1)) throw unreadable("a mask's PNG is not whole");
  return { ...size, pixels: bitsOf(unfiltered(bytes, rowBytes), size.width, rowBytes) };
}

/** Undoes PNG's filters in place: each row begins with the number of its own. */
function unfiltered(bytes, rowBytes) {
  const step = rowBytes + 1;
  for (let start = 0; start < bytes.length; start += step) {
    const filter = bytes[start];
    for (let i = start + 1; filter && i < start + step; i++) {
      const left = i > start + 1 ? bytes[i - 1] : 0, above = start ? bytes[i - step] : 0;
      const corner = start && i > start + 1 ? bytes[i - step - 1] : 0;
      bytes[i] += [0, left, above, (left + above) >> 1, paeth(left, above, corner)][filter] ?? 0;
    }
  }
  return bytes;
}

function paeth(left, above, corner) {
  const guess = left + above - corner;
  const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - above), Math.abs(guess - corner)];
  return a <= b && a <= c ? left : b <= c ? above : corner;
}

function bitsOf(bytes, width, rowBytes) {
  const height = bytes.length / (rowBytes + 1);
  const pixels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = y * (rowBytes + 1) + 1;
    for (let x = 0; x < width; x++) pixels[y * width + x] = (bytes[row + (x >> 3)] >> (7 - (x & 7))) & 1;
  }
  return pixels;
}

/** The mask of the whole image, 1 inside and 0 outside, row by row. */
export function bitmap(window, height, width) {
  const whole = new Uint8Array(height * width);
  for (let y = 0; window && y < window.height; y++) {
    const row = window.pixels.subarray(y * window.width, (y + 1) * window.width);
    whole.set(row, (window.top + y) * width + window.left);
  }
  return whole;
}

/** The window as an ImageData of its own size, [red, green, blue, alpha] inside and transparent outside. */
export function imageData(window, color) {
  const data = new Uint8ClampedArray(4 * window.pixels.length);
  window.pixels.forEach((inside, i) => inside && data.set(color, 4 * i));
  return new ImageData(data, window.width, window.height);
}
