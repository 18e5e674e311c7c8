# Three images that serve, cpu (the default), gpu and edge, and one that sends load to them: loadtest.
#
#   docker build --target edge --tag kservekit:edge .
#
# A release names its base by digest, which a tag's next push does not change:
#
#   docker build --target cpu --build-arg BASE="docker.io/library/python:3.13-slim-trixie@$(docker buildx imagetools \
#       inspect docker.io/library/python:3.13-slim-trixie --format '{{.Manifest.Digest}}')" .
#
# A package index of your own: --secret id=pip.conf,src=pip.conf, which no layer keeps.
# A model of your own: FROM one of these, COPY it into /app, and CMD ["model.py:Model", "--model_name", "mine"].

ARG BASE=docker.io/library/python:3.13-slim-trixie

# All stages but the last are left behind: pip, its cache and our source with them.
FROM ${BASE} AS build
# What pip compiles is then checked by the source's hash instead of its time, so that packages installed anew are the
# same to a builder that has their layer already.
ENV SOURCE_DATE_EPOCH=0
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/kservekit && mkdir /compiled
# A secret that a build is not given leaves no file, and pip takes that for an empty one.
ENV HOME=/build PATH="/build/bin:$PATH" PIP_CONFIG_FILE=/pip.conf PIP_FIND_LINKS=/compiled
# KServe asks for a psutil that has no wheel for arm64: there it is compiled, by whichever gcc the base has packages of.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/build/.cache/pip --mount=type=secret,id=pip.conf,target=/pip.conf \
    if [ "$(uname -m)" = aarch64 ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc python3-dev \
        && rm -r /var/lib/apt/lists/* \
        && pip wheel --no-deps --wheel-dir /compiled 'psutil<6'; \
    fi
WORKDIR /source
COPY . .
# --mount=type=cache instead of --no-cache-dir: no layer has it, and the next build finds it.
RUN --mount=type=cache,target=/build/.cache/pip --mount=type=secret,id=pip.conf,target=/pip.conf \
    pip wheel --no-deps --wheel-dir /wheels . \
    && pip --python /opt/kservekit/bin/python install --no-deps --prefix /ours /wheels/*.whl

# Each stage of packages takes ours out again, which comes as a layer of its own: an update of kservekit alone moves
# one megabyte. Nothing else is compiled: a package without a wheel for this machine ends the build.
FROM build AS cpu-packages
RUN --mount=type=cache,target=/build/.cache/pip --mount=type=secret,id=pip.conf,target=/pip.conf \
    pip --python /opt/kservekit/bin/python install --only-binary :all: "$(echo /wheels/*.whl)[onnx,identity,redis]" \
    && pip --python /opt/kservekit/bin/python uninstall --yes kservekit

# CUDA and TensorRT from their Python packages: one base for all three images, and of NVIDIA's libraries those that are
# used, where nvcr.io/nvidia/tensorrt brings a compiler, another Python, and root. The driver is the node's. Some of
# NVIDIA's packages are no wheels but fetch one.
FROM build AS gpu-packages
ARG GPU_EXTRAS=tensorrt,identity,redis
RUN --mount=type=cache,target=/build/.cache/pip --mount=type=secret,id=pip.conf,target=/pip.conf \
    pip --python /opt/kservekit/bin/python install "$(echo /wheels/*.whl)[${GPU_EXTRAS}]" \
    && pip --python /opt/kservekit/bin/python uninstall --yes kservekit

# Without what serving never imports: code generators; the calls of the Kubernetes client, which KServe's control-plane
# client alone makes; ONNX Runtime's second copy, for C, and its converters; tests. What is left of a package keeps its
# metadata, for those who list or scan them.
FROM build AS edge-packages
RUN --mount=type=cache,target=/build/.cache/pip --mount=type=secret,id=pip.conf,target=/pip.conf \
    pip --python /opt/kservekit/bin/python install --only-binary :all: "$(echo /wheels/*.whl)[onnx]" \
    && pip --python /opt/kservekit/bin/python uninstall --yes kservekit grpcio-tools setuptools \
    && packages=$(echo /opt/kservekit/lib/python3*/site-packages) \
    && rm -r "$packages"/kubernetes/aio "$packages"/kubernetes/client/api \
        "$packages"/onnxruntime/transformers "$packages"/onnxruntime/tools "$packages"/onnxruntime/quantization \
    && find "$packages" -depth \( -type d -name tests -o -name '*.pyi' -o -name 'libonnxruntime.so.*' \) -exec rm -r {} +

# Its web server and its gevent have no place in an image that serves.
FROM build AS loadtest-packages
RUN --mount=type=cache,target=/build/.cache/pip --mount=type=secret,id=pip.conf,target=/pip.conf \
    pip --python /opt/kservekit/bin/python install --only-binary :all: "$(echo /wheels/*.whl)[loadtest,otlp]" \
    && pip --python /opt/kservekit/bin/python uninstall --yes kservekit

FROM ${BASE} AS runtime
# With a read-only root /tmp is what may be written, as an emptyDir. KServe refuses PYTHONPATH in a pod, so it is set
# here: the place for code that an image built on this one, or a volume, brings along. ONNX Runtime from 1.29 on sends
# usage data to its makers, and keeps a device's id for it, unless it is told not to.
ENV HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    PATH="/opt/kservekit/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1
WORKDIR /app
# KServe's Triton runs as 1000 too: tensors in shared memory need one user on both sides.
USER 1000:1000
EXPOSE 8080 8081
# Kubernetes has its own probes; this one is for docker run with the default port.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-Ic", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=4); c.request('GET', '/v2/health/live'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["kservekit", "serve"]
ARG BASE
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kservekit" \
    org.opencontainers.image.description="KServe predictors and transformers around Triton, TensorRT and ONNX Runtime" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${BASE}" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

# Each ends with an import of what it serves, so that one that cannot start is not built.
FROM runtime AS gpu
COPY --from=gpu-packages /opt/kservekit /opt/kservekit
COPY --from=build /ours /opt/kservekit
RUN ["python", "-c", "import kservekit.serving"]

FROM runtime AS edge
COPY --from=edge-packages /opt/kservekit /opt/kservekit
COPY --from=build /ours /opt/kservekit
RUN ["python", "-c", "import kservekit.serving, kservekit.transformers.image, onnxruntime"]

FROM runtime AS loadtest
COPY --from=loadtest-packages /opt/kservekit /opt/kservekit
COPY --from=build /ours /opt/kservekit
RUN ["python", "-c", "import kservekit.loadtest.roles"]
HEALTHCHECK NONE
ENTRYPOINT ["kservekit", "loadtest"]

FROM runtime AS cpu
COPY --from=cpu-packages /opt/kservekit /opt/kservekit
COPY --from=build /ours /opt/kservekit
RUN ["python", "-c", "import kservekit.serving, kservekit.transformers.image, onnxruntime, redis, blake3"]
