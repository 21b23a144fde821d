// Detections over their image, in the colours and hatching of the server's overlay (handler/maskx_draw.py): tints as
// pixels of one canvas, boxes and names on a second one above it, in pixels of the screen, so that they stay readable.

const TINT = 0.45;
const STRIPE = [0.75, 0.12];
const KEYPOINT_SHOWN = 0.1;
const SMALLEST_SIDE = 640;
const LARGEST_SIDE = 2048;

/** A bright colour, [red, green, blue], the same always for one category. */
export function colorOf(categoryId) {
  const hue = (((categoryId * 0.61803398875) % 1) + 1) % 1;
  const value = categoryId % 2 ? 1 : 0.85;
  const part = (shift) => {
    const k = (shift + hue * 6) % 6;
    return Math.round(255 * (value - value * 0.85 * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [part(5), part(3), part(1)];
}

/** Whether the mask is transferred; as the overlay, those of answers that do not say so are not. */
export function isTransferred(detection) {
  return detection.mask_supervised === false;
}

/** Whether the class was taught by masks that no person drew, a segmenter's for one. */
export function isTaught(detection) {
  return detection.mask_source === "taught";
}

/** Pixels of a canvas for an image of this size: small ones are enlarged by a whole factor, large ones are reduced. */
export function canvasSize({ width, height }) {
  const side = Math.max(width, height);
  const factor = side > LARGEST_SIDE ? LARGEST_SIDE / side : Math.max(1, Math.ceil(SMALLEST_SIDE / side));
  return { width: Math.max(1, Math.round(width * factor)), height: Math.max(1, Math.round(height * factor)) };
}

/** The image on white, as large as the canvas; white alone where the browser cannot read it. */
export function drawnImage(canvas, bitmap) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (bitmap) {
    pen.imageSmoothingEnabled = bitmap.width > canvas.width;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  }
  return pen.getImageData(0, 0, canvas.width, canvas.height);
}

/** Shows `base` with the masks of the detections tinted in, the largest first. */
export function drawMasks(canvas, base, detections, size) {
  const drawn = new ImageData(new Uint8ClampedArray(base.data), base.width, base.height);
  for (const one of largestFirst(detections)) {
    if (one.window) tint(drawn, scaled(one, size, drawn), colorOf(one.category_id), isTransferred(one));
  }
  canvas.getContext("2d").putImageData(drawn, 0, 0);
}

function largestFirst(detections) {
  return [...detections].sort((a, b) => b.bbox[2] * b.bbox[3] - a.bbox[2] * a.bbox[3]);
}

/** The detection's window in the drawn image: each pixel as its centre falls. Kept, for it is drawn often. */
function scaled(detection, size, drawn) {
  const key = `${drawn.width} ${drawn.height}`;
  if (detection.scaled?.key === key) return detection.scaled;
  const { left, top, width, height, pixels } = detection.window;
  const [x, columns] = places(left, width, size.width, drawn.width);
  const [y, rows] = places(top, height, size.height, drawn.height);
  const made = { key, left: x, top: y, width: columns.length, height: rows.length };
  made.pixels = new Uint8Array(columns.length * rows.length);
  rows.forEach((row, i) => columns.forEach((column, j) => (made.pixels[i * columns.length + j] = pixels[row * width + column])));
  return (detection.scaled = made);
}

function places(first, count, side, drawn) {
  const edge = (at) => -Math.floor((side - 2 * at * drawn) / (2 * side));
  const begin = edge(first);
  const from = Array.from({ length: edge(first + count) - begin }, (_, i) => begin + i);
  return [begin, from.map((at) => Math.floor(((2 * at + 1) * side) / (2 * drawn)) - first)];
}

/** Mixes the colour into the mask's pixels; its outline is drawn full. */
function tint(drawn, window, color, hatched) {
  const { left, top, width, height, pixels } = window;
  const period = Math.max(6, Math.floor(Math.max(drawn.width, drawn.height) / 80));
  const has = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!pixels[y * width + x]) continue;
      const core = has(x - 1, y) && has(x + 1, y) && has(x, y - 1) && has(x, y + 1);
      const striped = (left + x + top + y) % period < Math.floor(period / 2);
      const share = !core ? 1 : hatched ? STRIPE[striped ? 0 : 1] : TINT;
      const at = 4 * ((top + y) * drawn.width + left + x);
      for (let c = 0; c < 3; c++) drawn.data[at + c] = Math.round(drawn.data[at + c] * (1 - share) + color[c] * share);
    }
  }
}

/** Boxes, keypoints and names; all but `chosen` step back where there is one. `canvas` is as large as it is shown. */
export function drawMarks(canvas, detections, size, chosen) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth, clientHeight } = canvas;
  canvas.width = Math.round(clientWidth * ratio);
  canvas.height = Math.round(clientHeight * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const scale = [clientWidth / size.width, clientHeight / size.height];
  const order = largestFirst(detections).filter((one) => one !== chosen);
  if (detections.includes(chosen)) order.push(chosen);
  for (const one of order) {
    pen.globalAlpha = chosen && one !== chosen ? 0.35 : 1;
    box(pen, one, scale, one === chosen ? 4 : 2);
    keypoints(pen, one, scale);
  }
  const taken = [];
  for (const one of order.reverse()) {
    if (!chosen || one === chosen) name(pen, one, scale, { width: clientWidth, height: clientHeight }, taken);
  }
}

function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

function box(pen, detection, [sx, sy], line) {
  const [x, y, width, height] = detection.bbox;
  pen.strokeStyle = css(colorOf(detection.category_id));
  pen.lineWidth = line;
  pen.setLineDash(isTaught(detection) ? [10, 4, 2, 4] : isTransferred(detection) ? [8, 6] : []);
  pen.strokeRect(x * sx, y * sy, width * sx, height * sy);
  pen.setLineDash([]);
}

function keypoints(pen, detection, [sx, sy]) {
  const values = detection.keypoints ?? [];
  for (let i = 0; i + 2 < values.length; i += 3) {
    if (values[i + 2] < KEYPOINT_SHOWN) continue;
    pen.beginPath();
    pen.arc((values[i] + 0.5) * sx, (values[i + 1] + 0.5) * sy, 3.5, 0, 2 * Math.PI);
    pen.fillStyle = css(colorOf(detection.category_id));
    pen.strokeStyle = "black";
    pen.lineWidth = 1;
    pen.fill();
    pen.stroke();
  }
}

/** Name, a star where the mask is transferred, and the score. */
export function labelOf(detection) {
  return `${detection.category}${isTransferred(detection) ? "*" : ""} ${detection.score.toFixed(2)}`;
}

function name(pen, detection, [sx, sy], shown, taken) {
  pen.font = "600 13px system-ui, sans-serif";
  const text = labelOf(detection);
  const [width, height] = [pen.measureText(text).width + 8, 19];
  const [x, y, , h] = [detection.bbox[0] * sx, detection.bbox[1] * sy, 0, detection.bbox[3] * sy];
  const left = Math.max(0, Math.min(x - 1, shown.width - width));
  const inside = [y - height, y + h, y, y + h - height].map((at) => Math.max(0, Math.min(at, shown.height - height)));
  const overlaps = (at) => taken.some((one) => left < one[0] + one[2] && one[0] < left + width && Math.abs(at - one[1]) < height);
  const top = inside.find((at) => !overlaps(at)) ?? inside[0];
  taken.push([left, top, width]);
  const color = colorOf(detection.category_id);
  pen.fillStyle = css(color);
  pen.fillRect(left, top, width, height);
  pen.fillStyle = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 128 ? "black" : "white";
  pen.textBaseline = "middle";
  pen.fillText(text, left + 4, top + height / 2 + 1);
}

/** The smallest detection whose mask, or box where it has none, holds the pixel; undefined where none does. */
export function detectionAt(detections, x, y) {
  const holds = ({ window, bbox }) => {
    if (!window) return x >= bbox[0] && y >= bbox[1] && x < bbox[0] + bbox[2] && y < bbox[1] + bbox[3];
    const [column, row] = [Math.floor(x) - window.left, Math.floor(y) - window.top];
    return column >= 0 && row >= 0 && column < window.width && row < window.height && window.pixels[row * window.width + column];
  };
  return largestFirst(detections).reverse().find(holds);
}
