// What is shown, as a line for a shell and as Python.
import { headersOf, predictionUrl } from "../maskx.js";

const HOLDS = "photo.jpg";

const GLOBBED = /[[\]{}]/; // signs by which curl -T finds several files

/** curl's line. The secret is not in it: it stands in the variable MASKX_TOKEN. */
export function curlLine(file, options) {
  const { token, ...open } = options;
  const { "Content-Type": type, ...asked } = headersOf(open);
  const named = GLOBBED.test(file) ? { "Content-Type": type, ...asked } : asked;
  const headers = Object.entries(named).map(([name, value]) => `-H ${quoted(`${name}: ${utf8(value)}`)}`);
  if (token) headers.push('-H "Authorization: Bearer $MASKX_TOKEN"');
  const data = GLOBBED.test(file) ? `--data-binary ${quoted(`@${file}`)}` : `-T ${quoted(file || HOLDS)}`;
  return [`curl ${data}`, ...headers, quoted(predictionUrl(options))].join(" \\\n  ");
}

/** The same with Python's client, which takes the secret from MASKX_TOKEN. */
export function pythonLine(file, options) {
  const { server, model, version } = options;
  const where = [server.replace(/\/$/, ""), ...(model === "maskx" ? [] : [["model", model]]), ...(version ? [["version", version]] : [])];
  const asked = [
    file || HOLDS,
    ["score_threshold", options.scoreThreshold],
    ["categories", options.categories],
    ["mask_format", options.maskFormat],
  ].filter((one) => !Array.isArray(one) || (one[1] !== "" && one[1] !== undefined));
  return [
    "from client import Client  # installed: from maskx_client import Client",
    "",
    `with Client(${call(where)}) as client:`,
    `    found = client.predict(${call(asked)})`,
  ].join("\n");
}

function call(values) {
  return values.map((one) => (Array.isArray(one) ? `${one[0]}=${JSON.stringify(one[1])}` : JSON.stringify(one))).join(", ");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function utf8(bytes) {
  return new TextDecoder().decode(Uint8Array.from(bytes, (one) => one.charCodeAt(0)));
}
