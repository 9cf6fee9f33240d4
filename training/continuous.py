r"""Continuous flows: an ordinary differential equation carries normal noise to events and back.

    dw/dt = v(w, t),    w = z ~ N(0, I) at t = 0,    w the event at t = 1,
    log p(w(1)) = log N(z) - int_0^1 div v(w(t), t) dt.

The network v is learned in one of two ways. *Flow matching* joins noise and event by a straight
line and regresses v on its direction: no equation is solved in training. *Likelihood* solves it
backwards from each event, and raises its log-density, through the solver.

Source:
    Chen et al. 2018, arXiv:1806.07366 (continuous flows); Grathwohl et al. 2019,
    arXiv:1810.01367 (free networks, estimated divergence); Lipman et al. 2023, arXiv:2210.02747;
    Liu et al. 2023, arXiv:2209.03003 (flow matching along lines).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.interface import (
    Density,
    Estimator,
    Interface,
    Latent,
    Ode,
    Role,
    Solver,
)
from training.bounds import log_mean
from training.continuous_config import EXACT_SIZE, ContinuousFlowConfig, check
from training.coupling import Standardise
from training.data import Batch, Data
from training.dequantise import Spread
from training.divergence import estimated, exact
from training.family import Call, Family, Inexactness, Nats, Pixels, Score, Turn
from training.guidance import dropped, guided
from training.matching import miss, optimal_transport
from training.networks import normal_log_prob
from training.ode import solve
from training.told import Told
from training.velocity import Velocity

SCORE_DRAWS = 2
"""Pairs of noise, one the other's negative, in which the validation score sees each event."""
FINE: tuple[Solver, int] = ("rk4", 100)
"""What a solver is compared with, in no fewer steps and twice as many as its own: on two moons it
is off by 2e-7 standard deviations, where the default is off by 2e-3 (measured 2026-11-27)."""


class Divergence(Call):
    """The velocity and its divergence as a graph."""

    differentiates = True
    """Its forward asks for a gradient: see `training.export.to_onnx`."""


class ContinuousFlow(Family):
    """A velocity between standard normal noise and events of the same shape.

    Args:
        config: Sizes, objective and solver.
        data: Whose event, mean and standard deviation the network is built for, and of a
            conditional one whose labels or context.

    Raises:
        ValueError: The event is a continuous image, or none whose likelihood can be trained; or
            there is nothing to be told.
    """

    def __init__(self, config: ContinuousFlowConfig, data: Data) -> None:
        super().__init__()
        self.config = config
        self.event = data.event
        self.told = Told(data, conditional=config.conditional)
        check(config, data.event, self.told)
        self.scale = _scale(data)
        self.network = Velocity(
            data.event.shape,
            width=config.width,
            depth=config.depth,
            told=self.told.size,
            waves=config.waves,
            frequency=config.frequency,
        )

    @property
    def is_exact(self) -> bool:
        """Whether the divergence is the exact one."""
        return self.event.size <= EXACT_SIZE

    @property
    def interface(self) -> Interface:
        """What is served: the equation, how it is solved by default, and of which density."""
        return Interface(
            family="continuous-flow",
            event=self.event,
            latent=Latent(shape=self.event.shape),
            labels=self.told.labels,
            context=self.told.context,
            density=self._density,
            ode=Ode(
                solver=self.config.solver,
                steps=self.config.steps,
                guidance=self.config.guidance if self.config.label_dropout else None,
            ),
        )

    @property
    def _density(self) -> Density:
        event, given = self.event, self.told.what
        measure = "per unit of x"
        preprocessing = "standardised with the mean and deviation of the training rows"
        if event.levels:
            measure = f"probability of the image of {event.levels} grey levels"
            preprocessing = f"w = 2 (level + noise) / {event.levels} - 1"
        estimator: Estimator = "hutchinson"
        if self.is_exact:
            estimator = "dequantisation" if event.levels else "exact"
        return Density(
            kind="exact" if estimator == "exact" else "estimate",
            estimator=estimator,
            measure=measure + given,
            preprocessing=preprocessing,
        )

    def turns(self) -> tuple[Turn, ...]:
        """Return the one move: the objective's."""
        return (Turn(self.config.objective, tuple(self.parameters()), self._loss),)

    def score(self, batch: Batch) -> Score:
        """Return the mean squared error of the velocity, or the mean negative log-density."""
        if self.config.objective == "likelihood":
            return Score.mean(-self._log_density(batch, steps=self.config.likelihood_steps))
        w, condition = self._entered(batch)[0], self.condition(batch)
        noise = torch.randn(SCORE_DRAWS, *w.shape, dtype=w.dtype, device=w.device)
        found = [self._miss(w, each, condition) for each in (*noise, *-noise)]
        return Score(torch.stack(found).mean().item())

    def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
        """Return each event's negative log-density, by the default solver.

        Of an image with an exact divergence it is the log of a mean over noise below its grey
        levels. Of an estimated divergence it is the mean: of its draws a mean of densities,
        instead of their logarithms, would mostly be the luckiest probe's.
        """
        density = self.interface.density
        times = 1 if density.kind == "exact" else draws
        found = torch.stack([self._log_density(batch).double() for _ in range(times)], dim=1)
        noise = "dequantisation noise" if self.event.levels else ""
        if density.kind == "exact":
            nats, note = -found[:, 0], ""
        elif density.estimator == "dequantisation":
            nats = -log_mean(found)
            note = f"an upper bound on average: {noise}, draws per image: {draws}"
        else:
            nats = -found.mean(1)
            note = "an upper bound on average: the mean over " + noise if noise else "the mean over"
            note += f"{' and' if noise else ''} probes of the divergence, draws per event: {draws}"
        return {"negative log-density": Nats(nats, note)}

    def inexactness(
        self, z: Float[Tensor, "batch ..."], condition: Tensor | None = None
    ) -> Inexactness:
        """Return how far the default solver's w is from a fine solver's."""
        config, (fine, least) = self.config, FINE
        steps = max(least, 2 * config.steps)
        w, wanted = self._solved(z, condition), self._solved(z, condition, solver=fine, steps=steps)
        return Inexactness(
            squares=(w - wanted).square().flatten(1).mean(1),
            name="error of the solver, RMS",
            unit="halves of the grey scale" if self.event.levels else "standard deviations",
            note=f"each number of a sample by {config.solver} in {config.steps} steps, beside "
            f"{fine} in {steps} from the same noise",
        )

    def decode(
        self, z: Float[Tensor, "batch ..."], condition: Tensor | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the events that the default solver carries z to."""
        return self.leave(self._solved(z, condition))

    def encode(
        self,
        x: Float[Tensor, "batch ..."],
        condition: Tensor | None = None,
        noise: Float[Tensor, "batch ..."] | None = None,
        probe: Float[Tensor, "batch ..."] | None = None,
        *,
        steps: int | None = None,
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return z and log p(x), by the default solver backwards.

        Args:
            x: Events in the data's own units; an image is rounded to its grey levels.
            condition: The label or the context, if the flow is conditional.
            noise: Of an image, the place below each level, uniform in [0, 1).
            probe: Normal, where the divergence is estimated: one for the whole way, since an
                estimate of it at each step need not be independent of the others.
            steps: By default those of the recipe.
        """
        others = tuple(each for each in (condition, probe) if each is not None)
        w, before = self.enter(x, *(() if noise is None else (noise,)))
        z, log_abs_det = solve(
            guided(self.divergence, self.config.guidance, *others),
            (w, before),
            solver=self.config.solver,
            steps=steps or self.config.steps,
            start=1.0,
            end=0.0,
        )
        return z, normal_log_prob(z).flatten(1).sum(1) + log_abs_det

    def enter(
        self, x: Float[Tensor, "batch ..."], *noise: Tensor
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return w at t = 1 and log |det dw/dx|, of grey levels with -D log L for D numbers."""
        found: tuple[Tensor, Tensor] = self.scale(x, *noise)
        return found

    def leave(self, w: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the event whose w at t = 1 this is; of an image also between its levels."""
        return self.scale.inverse(w)

    def velocity(
        self, w: Float[Tensor, "batch ..."], t: Float[Tensor, " batch"], *condition: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """Return dw/dt."""
        moved: Tensor = self.network(w, t, self.told(*condition, like=w) if condition else None)
        return moved

    def divergence(
        self, w: Float[Tensor, "batch ..."], t: Float[Tensor, " batch"], *others: Tensor
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return dw/dt and its divergence.

        Args:
            w: Where.
            t: When.
            others: The label or the context, if the flow is conditional; then normal noise whose
                signs are the probe, where the divergence is estimated.
        """
        if self.is_exact:
            return exact(self.velocity, w, t, *others, shape=self.event.shape)
        *condition, probe = others
        return estimated(self.velocity, w, t, *condition, probe=probe)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the equation's right side, and the ways from events to it and back."""
        leave = Call(self, "leave")
        return {
            "velocity": Call(self, "velocity"),
            "divergence": Divergence(self, "divergence"),
            "enter": Call(self, "enter"),
            "leave": Pixels(leave) if self.event.kind == "image" else leave,
        }

    def _solved(
        self,
        z: Tensor,
        condition: Tensor | None,
        *,
        solver: Solver | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Return w at t = 1, by default as the recipe says."""
        told = () if condition is None else (condition,)
        return solve(
            guided(lambda *state: (self.velocity(*state),), self.config.guidance, *told),
            (z,),
            solver=solver or self.config.solver,
            steps=steps or self.config.steps,
        )[0]

    def _entered(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return w at t = 1 with its log-determinant, at noise of torch's global generator."""
        noise = (torch.rand_like(batch.x),) if self.event.levels else ()
        return self.enter(batch.x, *noise)

    def _log_density(self, batch: Batch, *, steps: int | None = None) -> Float[Tensor, " batch"]:
        """Return log p(x), or one draw of its estimate, at noise of torch's global generator."""
        noise = torch.rand_like(batch.x) if self.event.levels else None
        probe = None if self.is_exact else torch.randn_like(batch.x)
        return self.encode(batch.x, self.condition(batch), noise, probe, steps=steps)[1]

    def _loss(self, batch: Batch) -> Mapping[str, Float[Tensor, ""]]:
        if self.config.objective == "likelihood":
            steps = self.config.likelihood_steps
            return {"loss": -self._log_density(batch, steps=steps).mean()}
        w, condition = self._entered(batch)[0], self.condition(batch)
        return {"loss": self._miss(w, torch.randn_like(w), condition, self.config.label_dropout)}

    def _miss(
        self,
        w: Float[Tensor, "batch ..."],
        noise: Float[Tensor, "batch ..."],
        condition: Tensor | None,
        label_dropout: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Return how far the velocity misses the lines from the noise to w."""
        if self.config.pairing == "optimal-transport":
            noise = noise[optimal_transport(noise, w, condition)]
        if label_dropout and condition is not None:
            condition = dropped(condition, label_dropout)
        told = () if condition is None else (condition,)
        return miss(lambda w, t: self.velocity(w, t, *told), noise, w, times=self.config.times)


def _scale(data: Data) -> Standardise | Spread:
    """Return the way from events to w at t = 1: to numbers of about the size of the noise."""
    if data.event.levels:
        return Spread(data.event.levels)
    if data.mean is None or data.std is None:
        raise ValueError("data: a vector comes with the mean and deviation of its features")
    mean, std = (torch.as_tensor(each, dtype=torch.float32) for each in (data.mean, data.std))
    return Standardise(mean, std)
