"""An archive without a network: its answer to a body is that body, and some bodies are orders.

A server of it starts within a moment. What it is asked: any bytes; "slow", answered after 0.4 seconds; "die", over
which its process ends; "hang", never answered; "lost", as a device that computes nothing more would answer;
"wrong", an image that is none; "faulty", over which the service itself fails; "wait", answered once "go" is asked
beside it; "garbage", over which something writes to the front's socket that is no message. Its model-config.yaml may
say how many batches it answers at a time. Of the time that it takes it says that a quarter was for decoding, half for
the network.
"""

import json
import zipfile
from pathlib import Path

MANIFEST = {"model": {"modelName": "maskx", "serializedFile": "maskx.pt", "configFile": "model-config.yaml"}}

SERVED = """
import json, os, sys, threading, time
from types import SimpleNamespace

class Service:
    lost = False
    gate = threading.Event()

    def answer(self, requests, headers):
        begin = time.perf_counter()
        answers = [self.one(fields) for fields in requests]
        for answer in answers:
            answer.seconds = time.perf_counter() - begin
            answer.body = answer.body.replace(b"TOGETHER", str(len(answers)).encode())
        return answers

    def one(self, fields):
        body = bytes(fields.get("body", fields.get("data", b"")))
        if body == b"die":
            os._exit(1)
        if body == b"hang":
            time.sleep(3600)
        if body == b"wait" and not self.gate.wait(60):
            os._exit(1)
        if body == b"garbage":
            os.write(int(sys.argv[1]), (1).to_bytes(8, "little") + b"?")
            time.sleep(3600)
        if body == b"go":
            self.gate.set()
        if body == b"slow":
            time.sleep(0.4)
        self.lost = self.lost or body == b"lost"
        if self.lost:
            return SimpleNamespace(status=503, content_type="application/json", kind="Restarting", body=b"{}")
        if body == b"wrong":
            return SimpleNamespace(status=400, content_type="application/json", kind="BadImage", body=b"{}")
        if body == b"faulty":
            raise KeyError("a fault of this program's own")
        asked = {"pid": os.getpid(), "thread": threading.current_thread().name, "asked": body.decode("latin-1")}
        text = json.dumps({"detections": [], "together": "TOGETHER", **asked})
        return SimpleNamespace(status=200, content_type="application/json", kind="", body=text.encode())

def load(folder, manifest, config, *, name, gpu_id, batch_size):
    if (config or {}).get("broken"):
        raise ValueError("this archive is broken")
    model = SimpleNamespace(device="cpu", memory_taken=lambda: 1)
    lanes = (config or {}).get("lanes", 1)
    told = {"description": json.dumps({"fake": True, "lanes": lanes}).encode(), "openapi": b'{"paths": {}}'}
    return SimpleNamespace(model=model, service=Service(), lanes=lanes, **told)

def sent(answer, headers):
    return answer.body, {"x-error-type": answer.kind} if answer.kind else {}
"""

METRICS = """
from types import SimpleNamespace

MEMORY_EVERY = 5.0

def samples_of(answers, protocols, queued):
    seconds = answers[0].seconds
    parts = {"decode": seconds / 4, "forward": seconds / 2, "encode": seconds / 4}
    values = {f"maskx_{name}_seconds": one for name, one in parts.items()} | {"maskx_batch_size": len(answers)}
    return [SimpleNamespace(name=name, value=one, labels=()) for name, one in values.items()]

def memory_sample(device, taken):
    return SimpleNamespace(name="maskx_device_memory_bytes", value=taken, labels=(device,))
"""

REQUEST = """
def queue_seconds(headers, now):
    return None
"""


def fake_archive(path: Path, *, version: str = "1.0", config: str = "{}") -> Path:
    """Writes the archive; `config` is its model-config.yaml."""
    manifest = {"model": {**MANIFEST["model"], "modelVersion": version}}
    with zipfile.ZipFile(path, "w") as file:
        for name, text in (
            ("MAR-INF/MANIFEST.json", json.dumps(manifest)),
            ("model-config.yaml", config),
            ("maskx_served.py", SERVED),
            ("maskx_metrics.py", METRICS),
            ("maskx_request.py", REQUEST),
        ):
            file.writestr(name, text)
    return path
