# Two images of one service: `cpu`, which a plain `docker build .` makes, and
# `docker build --target gpu .`. CUDA comes with the wheels, so both stand on the same base.
# Neither contains torch.

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml LICENSE README.md ./
COPY service service
COPY training training
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm AS environment
RUN python -m venv /opt/pushforward
COPY constraints.txt /
COPY --from=wheel /wheels /wheels

FROM environment AS cpu-environment
RUN /opt/pushforward/bin/pip install --no-cache-dir --constraint /constraints.txt \
    "$(echo /wheels/*.whl)[cpu,otel]"

FROM environment AS gpu-environment
RUN /opt/pushforward/bin/pip install --no-cache-dir --constraint /constraints.txt \
    "$(echo /wheels/*.whl)[gpu,otel]"

FROM python:3.11-slim-bookworm AS runtime
RUN useradd --system --no-create-home --uid 10001 pushforward
ENV PATH=/opt/pushforward/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PUSHFORWARD_HOST=0.0.0.0 \
    PUSHFORWARD_MODELS=/models \
    PUSHFORWARD_PORT=8000
EXPOSE 8000
USER 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --start-interval=1s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; ready = http.client.HTTPConnection('127.0.0.1', int(os.environ['PUSHFORWARD_PORT']), timeout=4); ready.request('GET', '/readyz'); sys.exit(ready.getresponse().status != 200)"]
CMD ["python", "-m", "service"]

FROM runtime AS gpu
ENV PUSHFORWARD_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-environment /opt/pushforward /opt/pushforward
COPY models /models

# Last, so that it is what is built when no target is named.
FROM runtime AS cpu
ENV PUSHFORWARD_DEVICE=cpu
COPY --from=cpu-environment /opt/pushforward /opt/pushforward
COPY models /models
