"""Settings from the environment, checked once at the start. Units end the names."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import DirectoryPath, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "PUSHFORWARD_"


class Settings(BaseSettings):
    """What an operator can choose, each as PUSHFORWARD_<NAME>. docs/operations.md lists them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    models: DirectoryPath = Field(
        Path("models"), description="Folder of bundles, <name>/<version>/."
    )
    default_model: str | None = Field(
        None, description="Model of a request that names none. One served model is its own default."
    )
    poll_s: float = Field(
        2.0,
        ge=0,
        description="Seconds from one look at the folder of models to the next; 0 looks once, at "
        "the start.",
    )
    old_versions: int = Field(
        2,
        ge=0,
        description="Older versions of each model that stay loaded for requests that name them; "
        "with 0 the newest alone is served.",
    )
    max_load_s: float = Field(
        60.0,
        gt=0,
        description="Longest time that the golden vectors and the warm-up of a version may run; "
        "one that takes longer is refused.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where graphs run. `cuda` refuses to start where CUDA cannot be proved; "
        "`auto` then uses the CPU and says why in /models.",
    )
    threads: int | None = Field(
        None, ge=1, description="Graphs run at once on a CPU. Default: the cores it may use."
    )
    gpus: int = Field(1, ge=1, le=16, description="How many GPUs serve, the first ones there are.")
    max_batch_rows: int = Field(
        512,
        ge=8,
        le=4096,
        multiple_of=8,  # Graph.rows_exact_at
        description="Most rows of one run, a multiple of 8; a larger request is cut into slices.",
    )
    max_batch_ms: float = Field(
        25.0,
        gt=0,
        description="Longest run, in milliseconds, where smaller batches can make it shorter: "
        "what a request may have to wait for another one's.",
    )
    max_wait_s: float = Field(
        10.0,
        gt=0,
        description="A request that others would hold up for longer is refused with 429.",
    )
    timeout_s: float = Field(
        60.0, gt=0, description="A request that is not answered by then gets 504."
    )
    drain_s: float = Field(
        20.0,
        gt=0,
        description="How long what has begun may take after SIGTERM; compose waits for 30 s.",
    )
    max_stream_rows: int = Field(
        100_000_000, ge=1, description="Most rows of an answer that streams (npy, NDJSON)."
    )
    max_values: int = Field(
        2**22, ge=1024, description="Most numbers in one answer: rows times values of a row."
    )
    max_draws: int = Field(
        100_000, ge=1, description="Most Monte-Carlo draws of one request: rows times draws."
    )
    max_refine: int = Field(
        200,
        ge=1,
        le=2**18,  # refinement.MOST_STEPS
        description="Most steps of a request that refines q(z|x).",
    )
    max_steps: int = Field(
        200,
        ge=1,
        le=1000,  # interface.MAX_STEPS
        description="Most steps of a solver, of a request to a continuous flow.",
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Most bytes of a request's body.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Of what is logged to stderr: lines for people or for programs."
    )
    access_log: Literal["json", "off"] = Field(
        "json", description="A line of JSON on stdout for each request, or none."
    )
    otlp_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
        validate_default=True,
        description="Collector of traces: the base address of OTLP over HTTP. Needs the extra "
        "`otel`. Default: OTEL_EXPORTER_OTLP_ENDPOINT; where neither is set, nothing is traced.",
    )

    @field_validator("default_model")
    @classmethod
    def _default_is_there(cls, name: str | None, info: ValidationInfo) -> str | None:
        models = info.data.get("models")
        if name is not None and models is not None and not (models / name).is_dir():
            raise ValueError(f"there is no such model in {models}")
        return name

    @field_validator("otlp_endpoint")
    @classmethod
    def _traces_can_be_sent(cls, endpoint: str | None) -> str | None:
        if not endpoint:
            return None
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError("expected http://HOST:PORT of a collector that speaks OTLP over HTTP")
        if not _is_installed("opentelemetry.exporter.otlp.proto.http"):
            raise ValueError(
                "traces need the extra `otel`, which is not installed. Install it, or unset this"
            )
        return endpoint


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor is the package that it would be in
        return False


def misspelt(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that is named like a setting and is none."""
    sentences = []
    for variable in environment:
        prefix, name = variable[: len(PREFIX)], variable[len(PREFIX) :].lower()
        if prefix.upper() == PREFIX and name not in Settings.model_fields:
            near = get_close_matches(name, Settings.model_fields, n=1)
            advice = "docs/operations.md lists them."
            if near:
                advice = f"Did you mean {PREFIX}{near[0].upper()}?"
            sentences.append(f"{variable}: there is no such setting. {advice}")
    return sentences
