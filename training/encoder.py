"""The network that reads an event, and a label where there is one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from service.interface import Event
from training.networks import image_encoder, mlp, one_hot


class Encoder(nn.Module):
    """A network from an event to numbers: convolutional for an image, an MLP for a vector.

    A label enters as a learned picture, one more channel, or as one more feature for each class.

    Args:
        event: What it reads.
        width: Channels of the finest level, or units of each layer of an MLP.
        depth: Residual blocks per level, or hidden layers of an MLP.
        outputs: How many numbers.
        classes: How many labels there are, 0 if it is told none.
    """

    def __init__(
        self, event: Event, *, width: int, depth: int, outputs: int, classes: int = 0
    ) -> None:
        super().__init__()
        self.classes = classes
        self.shape = event.shape
        if event.kind == "image":
            channels, rows, columns = event.shape
            shape = (channels + bool(classes), rows, columns)
            self.network = image_encoder(shape, width=width, depth=depth, outputs=outputs)
            if classes:
                self.plane = nn.Embedding(classes, rows * columns)
        else:
            self.network = mlp([event.size + classes, *[width] * depth, outputs])

    def forward(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch outputs"]:
        """Return the numbers."""
        if label is not None and len(self.shape) == 1:
            x = torch.cat([x, one_hot(label, self.classes, like=x)], dim=1)
        elif label is not None:
            plane = self.plane(label).unflatten(1, (1, *self.shape[1:]))
            x = torch.cat([x, plane], dim=1)
        answer: Tensor = self.network(x)
        return answer
