"""What the routes work with: the settings and the models of the app that they belong to."""

import secrets
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal

from anyio import CapacityLimiter
from starlette.requests import Request

from service.api.patience import Allowance, Drain, allowance, patience
from service.engine import Engine
from service.errors import InputInvalid
from service.interface import REFINE_DRAWS
from service.manifest import Manifest
from service.ode import Method
from service.repository import Repository
from service.session import cores
from service.settings import Settings

EXACT_IN_JAVASCRIPT = 2**53


@dataclass(frozen=True)
class Context:
    """Settings and models of one app, and whether it is shutting down."""

    settings: Settings
    repository: Repository
    drain: Drain
    comparisons: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(cores()))
    """Of two-sample tests: each takes a core, and memory."""

    def patience(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Return the context in which a request is worked on, once its body was read.

        Raises:
            InputInvalid: Its header says no time.
        """
        return patience(request.receive, self.allowance(request))

    def allowance(self, request: Request) -> Allowance:
        """Return how long a request may take, its body's arrival included.

        Raises:
            InputInvalid: Its header says no time.
        """
        return allowance(request, self.settings.timeout_s)

    async def engine(self, request: Request, name: str | None, version: int | None) -> Engine:
        """Return the engine that a call names, after loading it if it is an older version.

        Raises:
            RequestMalformed: No name, and no default either.
            ModelNotFound: No such model or version, or it is not sound.
            NotReady: It is still being loaded.
            DeadlineExceeded: Loading it takes longer than the request may.
        """
        engine = self.repository.at_hand(name, version)
        if engine is None:
            async with self.patience(request):
                engine = await self.repository.resolve(name, version)
        return engine

    def check_values(
        self,
        engine: Engine,
        rows: int,
        *,
        field: str,
        advice: str = "Ask for the others in further calls.",
    ) -> None:
        """Pass if an answer of so many events or latents is within the limit.

        Args:
            engine: The model.
            rows: How many.
            field: Who asks for them.
            advice: What to do if they are too many.

        Raises:
            InputInvalid: Naming the most rows that this model answers at once.
        """
        most = most_rows(engine, self.settings)
        if rows > most:
            raise InputInvalid(
                f"field '{field}': at most {most} rows of {engine.manifest.name} at once; got "
                f"{rows}. {advice}",
                field=field,
            )

    def check_draws(self, rows: int, draws: int) -> None:
        """Pass if the work of an estimate is within the limit.

        Raises:
            InputInvalid: Naming the limit.
        """
        most = self.settings.max_draws
        if rows * draws > most:
            raise InputInvalid(
                f"field 'draws': at most {most} draws at once, rows times draws; got "
                f"{rows} x {draws}. Send fewer rows or take fewer draws.",
                field="draws",
            )

    def check_steps(self, rows: int, steps: int) -> None:
        """Pass if the work of a refinement is within the limits.

        Raises:
            InputInvalid: Naming the one that it is over.
        """
        most, per_step = self.settings.max_draws, 2 * REFINE_DRAWS
        if steps > self.settings.max_refine:
            raise InputInvalid(
                f"field 'refine': at most {self.settings.max_refine} steps; got {steps}.",
                field="refine",
            )
        if rows * steps * per_step > most:
            raise InputInvalid(
                f"field 'refine': at most {most} draws at once, and each step of a row looks at "
                f"{per_step}; got {rows} rows x {steps} steps x {per_step}. Send fewer rows or "
                "take fewer steps.",
                field="refine",
            )

    def check_steps_of_solver(self, steps: int | None) -> None:
        """Pass if a solver may take so many steps.

        Raises:
            InputInvalid: Naming the limit.
        """
        if steps is not None and steps > self.settings.max_steps:
            raise InputInvalid(
                f"field 'steps': at most {self.settings.max_steps} steps; got {steps}.",
                field="steps",
            )

    def check_path(
        self,
        engine: Engine,
        method: Method | None,
        rows: int,
        *,
        role: Literal["velocity", "divergence"] = "velocity",
    ) -> None:
        """Pass if so many paths, if it is about any, can be solved before the answer is due.

        Raises:
            InputInvalid: They cannot, by what the graph's evaluations took when it was loaded.
        """
        if method is None:
            return
        row_s = method.evaluations * engine.lanes[role, None].row_s
        seconds, most_s = rows * row_s / engine.workers, self.settings.timeout_s
        if seconds > most_s:
            raise InputInvalid(
                f"field 'steps': {rows} rows of {engine.manifest.name} by {method.solver} in "
                f"{method.steps} steps take {seconds:.0f} s or more, and an answer at most "
                f"{most_s:g}. Ask for fewer rows or steps; samples as npy or NDJSON are streamed.",
                field="steps",
            )


def of(request: Request) -> Context:
    """Return the context of the app that a request came to."""
    context: Context = request.app.state.context
    return context


def most_rows(engine: Engine, settings: Settings) -> int:
    """Return how many rows of a model, be they x, z or q(z|x), one answer may hold."""
    return max(1, settings.max_values // _row_values(engine.manifest))


def _row_values(manifest: Manifest) -> int:
    """Return the most numbers that a row of an answer has."""
    covariance = manifest.latent.size**2 if manifest.posterior == "full" else 0
    return max(manifest.event.size, manifest.latent.size, covariance)


def seed_or_new(seed: int | None) -> int:
    """Return the seed, or a new one that every client can send back exactly."""
    return secrets.randbelow(EXACT_IN_JAVASCRIPT) if seed is None else seed


def headers(engine: Engine, *, seed: int | None = None, start: int | None = None) -> dict[str, str]:
    """Return what identifies an answer in every format."""
    values = {
        "Model": engine.manifest.name,
        "Version": engine.manifest.version,
        "Seed": seed,
        "Start": start,
    }
    return {f"Pushforward-{key}": str(value) for key, value in values.items() if value is not None}
