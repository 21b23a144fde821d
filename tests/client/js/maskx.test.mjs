// Run by tests/client/test_js.py, which writes the cases and says in MASKX_CASES where: masks as pycocotools and the
// server write them, and what Python's client makes of each.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";

import { MaskxError, bitmap, headersOf, maskWindow, predict, predictionUrl, runLengths } from "../../../client/js/maskx.js";

const cases = JSON.parse(readFileSync(process.env.MASKX_CASES, "utf8"));
const { masks, broken } = cases;

for (const form of new Set(masks.map((one) => one.form))) {
  const some = masks.filter((one) => one.form === form);
  test(`${some.length} masks as ${form} have the pixels that Python's client finds`, async () => {
    for (const { name, segmentation, height, width, window, pixels } of some) {
      const found = await maskWindow(segmentation, height, width);
      assert.deepEqual(found && [found.left, found.top, found.width, found.height], window, name);
      assert.equal(Buffer.from(bitmap(found, height, width)).toString("base64"), pixels, name);
    }
  });
}

test("run lengths are those that pycocotools reads", () => {
  for (const { name, segmentation, runs } of masks) {
    if (runs) assert.deepEqual(runLengths(segmentation.counts), runs, name);
  }
});

test("what is no mask, or fits another image, is refused by what is wrong", async () => {
  assert.ok(broken.length > 5);
  for (const { segmentation, message } of broken) {
    await assert.rejects(maskWindow(segmentation, 3, 4), (error) => {
      assert.ok(error instanceof MaskxError && error.type === "Unreadable", String(error));
      assert.match(error.message, new RegExp(message));
      return true;
    });
  }
});

test("the address has the model and its version, escaped", () => {
  assert.equal(predictionUrl(), "http://127.0.0.1:8080/predictions/maskx");
  assert.equal(predictionUrl({ server: "https://host/path/", version: "2.0" }), "https://host/path/predictions/maskx/2.0");
  assert.equal(predictionUrl({ server: "", model: "a b" }), "predictions/a%20b");
});

test("options travel as headers, text as UTF-8 that fetch takes", () => {
  const headers = headersOf({ scoreThreshold: 0, categories: ["bleu é", 7], maskFormat: "png", token: "s", maxDetections: null });
  assert.equal(headers.score_threshold, "0");
  assert.equal(Buffer.from(headers.categories, "latin1").toString("utf8"), '["bleu é",7]');
  assert.equal(headers.Authorization, "Bearer s");
  assert.deepEqual(Object.keys(headers).sort(), ["Authorization", "Content-Type", "categories", "mask_format", "score_threshold"]);
  new Headers(headers);
});

const answering = (answer, use) =>
  new Promise((resolve, reject) => {
    const seen = [];
    const server = createServer((request, response) => {
      const parts = [];
      request.on("data", (part) => parts.push(part));
      request.on("end", () => {
        seen.push({ url: request.url, method: request.method, headers: request.headers, body: Buffer.concat(parts) });
        answer(response);
      });
    });
    server.listen(0, "127.0.0.1", () => {
      use(`http://127.0.0.1:${server.address().port}`, seen)
        .then(resolve, reject)
        .finally(() => server.close().closeAllConnections());
    });
  });

const refusal = async (promise) => {
  const error = await promise.then(() => assert.fail("it was answered"), (one) => one);
  assert.ok(error instanceof MaskxError, String(error));
  return [error.type, error.code, error.message];
};

test("an image is sent as it is, and the answer comes back", async () => {
  const answer = { model: { name: "maskx", version: "1.0" }, image: { height: 3, width: 4 }, detections: [] };
  await answering((response) => response.end(JSON.stringify(answer)), async (server, seen) => {
    assert.deepEqual(await predict(new Blob(["an image"]), { server, scoreThreshold: 0.25 }), answer);
    const [{ url, method, headers, body }] = seen;
    assert.deepEqual([url, method, headers.score_threshold, String(body)], ["/predictions/maskx", "POST", "0.25", "an image"]);
  });
});

test("errors of handler, proxy and TorchServe come as one, with the server's own words", async () => {
  const said = { code: 400, type: "InvalidImage", message: "no image" };
  for (const body of [{ error: said }, said]) {
    await answering((response) => response.writeHead(400).end(JSON.stringify(body)), async (server) => {
      assert.deepEqual(await refusal(predict(new Blob(), { server })), ["InvalidImage", 400, "no image"]);
    });
  }
});

test("an answer that is not one of maskx is refused, whatever its status", async () => {
  for (const [status, body] of [[200, "<html>"], [200, "{}"], [200, "null"], [502, "Bad Gateway"], [500, "null"], [413, ""]]) {
    await answering((response) => response.writeHead(status).end(body), async (server) => {
      const [type, code] = await refusal(predict(new Blob(), { server }));
      assert.deepEqual([type, code], ["Unreadable", status]);
    });
  }
});

test("where nobody answers the error says so, and an ended request is no error of the server", async () => {
  const gone = await answering(() => {}, async (server) => server);
  const [type, code, message] = await refusal(predict(new Blob(), { server: gone }));
  assert.deepEqual([type, code], ["Unreachable", 0]);
  assert.ok(message.includes(gone));
  const reason = new Error("no longer wanted");
  await assert.rejects(predict(new Blob(), { server: gone, signal: AbortSignal.abort(reason) }), reason);
});
