# One image for every role, with the runner's libraries; torch is in it with --build-arg EXTRA=torch.
# Versions and hashes come from locks/. The root file system may be read-only: roles write to /tmp alone (docs/how-to/containers.md).
FROM python:3.13-slim AS build
WORKDIR /build
COPY locks/build.lock ./
RUN pip install --no-cache-dir --require-hashes -r build.lock
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY sql ./sql
COPY src ./src
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.13-slim
ARG EXTRA=runner
COPY locks/${EXTRA}.txt /tmp/lock.txt
RUN pip install --no-cache-dir --require-hashes -r /tmp/lock.txt && rm /tmp/lock.txt
COPY --from=build /wheels /tmp/wheels
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl && rm -r /tmp/wheels \
    && useradd --system --uid 10001 --no-create-home --home-dir /nonexistent vidflow
# Nothing is written beside the code, and weights that torchvision names are looked for in the models folder.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 VIDFLOW_HEALTH_FILE=/tmp/vidflow.health TORCH_HOME=/models/torch
USER 10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["python", "-m", "vidflow.healthcheck"]
ENTRYPOINT ["vidflow"]
