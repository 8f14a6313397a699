# One image for every role; the runner's libraries are in it, torch is not (pass EXTRAS=torch for it).
FROM python:3.11-slim
ARG EXTRAS=runner
WORKDIR /opt/vidflow
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY sql ./sql
COPY src ./src
RUN pip install --no-cache-dir ".[${EXTRAS}]" && useradd --system vidflow
USER vidflow
ENTRYPOINT ["vidflow"]
