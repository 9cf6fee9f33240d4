"""Linear layers of a flow: a scale and a shift for each channel, and a mix of all channels.

A channel is axis 1: a feature of a row, or what an image has at each of its pixels.

Source:
    Kingma & Dhariwal 2018, arXiv:1807.03039 (Glow), sections 3.1 and 3.2.
"""

import torch
from jaxtyping import Float
from sklearn.covariance import ShrunkCovariance
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from training.coupling import Bijection, Context
from training.folded import Foldable

LEAST_DEVIATION = 1e-3
"""What the deviation of a channel is at least taken for, should its first batch hardly vary: a
guess. Channels that were standardised or dequantised have about 1."""

SHRINKAGES = [10.0**power for power in range(-8, 1)]
"""By which a correlation is tried to be multiplied with one less that number."""
SEARCHED_ROWS, FOLDS = 10_000, 5
"""By which that number is chosen, and in how many parts. More rows than that hardly err."""


class ActNorm(Bijection, Foldable):
    """z = scale x + shift, by channel. In training its first batch is standardised by it.

    From then on both are parameters like others: no batch is looked at again.

    Args:
        channels: How many.
        axes: Of space, behind them: 2 of an image.
    """

    is_ready: Tensor

    def __init__(self, channels: int, *, axes: int = 0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, *[1] * axes))
        self.shift = nn.Parameter(torch.zeros(channels, *[1] * axes))
        # In the state, so that a run that is resumed does not begin anew.
        self.register_buffer("is_ready", torch.tensor(False))

    def forward(
        self, x: Float[Tensor, "batch channel *space"], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel *space"], Float[Tensor, " batch"]]:
        """Return z and the sum of the log-scales, once for each pixel."""
        if self.training and not self.is_ready:
            self._standardise(x)
        z = x * self.log_scale.to(x.dtype).exp() + self.shift
        return z, x.new_zeros(x.shape[0]) + self.log_scale.sum() * x.shape[2:].numel()

    def inverse(
        self, z: Float[Tensor, "batch channel *space"], context: Context = None
    ) -> Float[Tensor, "batch channel *space"]:
        """Return x."""
        return (z - self.shift) * (-self.log_scale.to(z.dtype)).exp()

    def folded(self) -> "Scale":
        """Return the layer with its scale worked out."""
        return Scale(self.log_scale.detach().double().exp(), self.shift.detach().double())

    @torch.no_grad()
    def unfold(self, folded: nn.Module) -> None:
        """Set scale and shift to those of a layer of constants."""
        self.log_scale.copy_(folded.get_buffer("scale").log())
        self.shift.copy_(folded.get_buffer("shift"))
        self.is_ready.fill_(True)

    @torch.no_grad()
    def _standardise(self, x: Float[Tensor, "batch channel *space"]) -> None:
        values = x.transpose(0, 1).flatten(1)
        deviation = values.std(1, correction=0).clamp_min(LEAST_DEVIATION)
        self.log_scale.copy_(-deviation.log().reshape(self.log_scale.shape))
        self.shift.copy_((-values.mean(1) / deviation).reshape(self.shift.shape))
        self.is_ready.fill_(True)


class Scale(Bijection):
    """z = scale x + shift with constants."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, scale: Float[Tensor, " channel *ones"], shift: Float[Tensor, " channel *ones"]
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(
        self, x: Float[Tensor, "batch channel *space"], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel *space"], Float[Tensor, " batch"]]:
        """Return z and the constant log-determinant."""
        log_abs_det = self.scale.log().sum() * x.shape[2:].numel()
        return x * self.scale + self.shift, x.new_zeros(x.shape[0]) + log_abs_det

    def inverse(
        self, z: Float[Tensor, "batch channel *space"], context: Context = None
    ) -> Float[Tensor, "batch channel *space"]:
        """Return x."""
        return (z - self.shift) / self.scale


class LinearMix(Bijection, Foldable):
    """z = W x, by one invertible matrix of all channels; of an image a 1 x 1 convolution.

    W = P L U: P is a permutation that stays, L is 1 on its diagonal, and U has ±s there, whose
    signs stay. So log |det W| is the sum of log s. W starts as a random rotation.

    Args:
        channels: How many, two or more.
    """

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        # Row i of W is row order[i] of L U.
        self.register_buffer("order", permutation.argmax(1))
        self.register_buffer("sign", diagonal.sign().float())
        # Below the diagonal L, above it U, on it log s: as many numbers as W has.
        factors = lower.tril(-1) + upper.triu(1) + diagonal.abs().log().diag()
        self.factors = nn.Parameter(factors.float())

    def forward(
        self, x: Float[Tensor, "batch channel *space"], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel *space"], Float[Tensor, " batch"]]:
        """Return z and the sum of log s, once for each pixel."""
        # bfloat16 would make another map of it than the one whose determinant is known.
        with torch.autocast(x.device.type, enabled=False):
            z = _mixed(self.matrix(x.dtype), x)
        return z, x.new_zeros(x.shape[0]) + self.factors.diagonal().sum() * x.shape[2:].numel()

    def inverse(
        self, z: Float[Tensor, "batch channel *space"], context: Context = None
    ) -> Float[Tensor, "batch channel *space"]:
        """Return x."""
        with torch.autocast(z.device.type, enabled=False):
            return _mixed(self.inverse_matrix(z.dtype), z)

    def matrix(self, dtype: torch.dtype) -> Float[Tensor, "channel channel"]:
        """Return W."""
        lower, upper = self._triangles(dtype)
        return (lower @ upper).index_select(0, self.order)

    def inverse_matrix(self, dtype: torch.dtype) -> Float[Tensor, "channel channel"]:
        """Return the inverse of W, by two triangular systems."""
        lower, upper = self._triangles(dtype)
        ones = torch.eye(len(self.order), dtype=dtype, device=self.order.device)
        unmixed: Tensor = torch.linalg.solve_triangular(
            lower, ones.index_select(0, self.order.argsort()), upper=False, unitriangular=True
        )
        inverse: Tensor = torch.linalg.solve_triangular(upper, unmixed, upper=True)
        return inverse

    def folded(self) -> "Mix":
        """Return the layer with its matrix and the inverse of that worked out."""
        with torch.no_grad():
            log_abs_det = self.factors.double().diagonal().sum()
            both = self.matrix(torch.float64), self.inverse_matrix(torch.float64)
        return Mix(*both, log_abs_det)

    @torch.no_grad()
    def unfold(self, folded: nn.Module) -> None:
        """Take a matrix of constants apart: by its permutation, L and U are unique."""
        rest = folded.get_buffer("matrix").index_select(0, self.order.argsort())
        for k in range(len(rest)):
            rest[k + 1 :, k] /= rest[k, k]
            rest[k + 1 :, k + 1 :] -= torch.outer(rest[k + 1 :, k], rest[k, k + 1 :])
        diagonal = rest.diagonal()
        self.sign.copy_(diagonal.sign())
        self.factors.copy_(rest - diagonal.diag() + diagonal.abs().log().diag())

    def _triangles(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return L and U."""
        factors, sign = self.factors.to(dtype), self.sign.to(dtype)
        lower = factors.tril(-1) + torch.eye(len(sign), dtype=dtype, device=sign.device)
        return lower, factors.triu(1) + (sign * factors.diagonal().exp()).diag()


class Mix(Bijection):
    """z = W x by a matrix of constants, whose inverse is known."""

    matrix: Tensor
    inverse_matrix: Tensor
    log_abs_det: Tensor

    def __init__(
        self,
        matrix: Float[Tensor, "channel channel"],
        inverse_matrix: Float[Tensor, "channel channel"],
        log_abs_det: Float[Tensor, ""],
    ) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("inverse_matrix", inverse_matrix)
        self.register_buffer("log_abs_det", log_abs_det)

    def forward(
        self, x: Float[Tensor, "batch channel *space"], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel *space"], Float[Tensor, " batch"]]:
        """Return z and the constant log-determinant."""
        log_abs_det = x.new_zeros(x.shape[0]) + self.log_abs_det * x.shape[2:].numel()
        return _mixed(self.matrix, x), log_abs_det

    def inverse(
        self, z: Float[Tensor, "batch channel *space"], context: Context = None
    ) -> Float[Tensor, "batch channel *space"]:
        """Return x."""
        return _mixed(self.inverse_matrix, z)


def _mixed(
    matrix: Float[Tensor, "channel channel"], x: Float[Tensor, "batch channel *space"]
) -> Float[Tensor, "batch channel *space"]:
    """Return the matrix times the channels of every pixel.

    A product of matrices, since ONNX Runtime has convolutions in float32 alone.
    """
    pixels = x.reshape(x.shape[0], x.shape[1], -1)
    return (matrix @ pixels).reshape(-1, *x.shape[1:])


class Whiten(Bijection):
    """z = (x - mean) W, of mean 0 and, by a guess at the covariance, independent with variance 1.

    A flow that begins with it begins as a Gaussian of full covariance, and learns what is left.

    Args:
        x: Rows that the moments are those of. The correlations of few of them are drawn towards
            none, by as much as makes a fifth of the rows most probable by the other four.
        noise: Deviation of noise that is added to rows in training, in deviations of their column.
            The moments are those with it: where columns nearly tell each other it is what varies.

    Raises:
        ValueError: The rows are fewer than five, or a column of them does not vary.
    """

    mean: Tensor
    into: Tensor
    back: Tensor
    log_abs_det: Tensor

    def __init__(self, x: Float[Tensor, "row feature"], noise: float = 0.0) -> None:
        super().__init__()
        rows = x.double()
        mean, std = rows.mean(0), rows.std(0, correction=0)
        if len(rows) < FOLDS or not (std > 0).all():
            raise ValueError(
                f"model.whiten: expected {FOLDS} training rows or more, of columns that vary; got "
                f"{len(rows)}, of which {int((std == 0).sum())} columns do not"
            )
        standard = ((rows - mean) / std).numpy()
        shrunk = ShrunkCovariance(assume_centered=True)
        search = GridSearchCV(shrunk, {"shrinkage": SHRINKAGES}, cv=FOLDS)
        correlation = search.fit(standard[:SEARCHED_ROWS]).best_estimator_.fit(standard).covariance_
        identity = torch.eye(len(std), dtype=torch.float64)
        varies = torch.from_numpy(correlation) + noise**2 * identity
        factor = torch.linalg.cholesky(varies) * std[:, None]
        into = torch.linalg.solve_triangular(factor, identity, upper=False).T
        # In float64, in which it is evaluated: two rounded matrices are not each other's inverse.
        self.register_buffer("mean", mean)
        self.register_buffer("into", into.contiguous())
        self.register_buffer("back", factor.T.contiguous())
        self.register_buffer("log_abs_det", -factor.diagonal().log().sum())

    def forward(
        self, x: Float[Tensor, "batch feature"], context: Context = None
    ) -> tuple[Float[Tensor, "batch feature"], Float[Tensor, " batch"]]:
        """Return z and the same log |det W| for each row."""
        # As in `LinearMix`: of features that nearly tell each other, bfloat16 loses the difference.
        with torch.autocast(x.device.type, enabled=False):
            z = (x - self.mean.to(x.dtype)) @ self.into.to(x.dtype)
        return z, x.new_zeros(x.shape[0]) + self.log_abs_det.to(x.dtype)

    def inverse(
        self, z: Float[Tensor, "batch feature"], context: Context = None
    ) -> Float[Tensor, "batch feature"]:
        """Return x = mean + z W^-1."""
        with torch.autocast(z.device.type, enabled=False):
            return self.mean.to(z.dtype) + z @ self.back.to(z.dtype)
