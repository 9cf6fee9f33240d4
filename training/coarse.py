"""Images from fine to coarse: the pixels between, then every second pixel of every second row.

The pixels between move by one coupling each, which sees those around them. What is left, the
*coarse* image, is still a legible picture; it moves by a stack of couplings that see all of it.
Sampling goes the other way: what is drawn first is the shape, what is drawn last are the edges.

Source: Dinh et al. 2017, arXiv:1605.08803 (masks); Reed et al. 2017, arXiv:1703.03664 (pixels
from coarse to fine).
"""

from training.conditioner import Sizes, convolutional
from training.coupling import Chain, Coupling, First, Squeeze, Unsqueeze
from training.elementwise import Elementwise

# Which phases of a squeezed image move, as (known, moved): checkerboard, rows, columns, each
# both ways. Phases are (0, 0), (0, 1), (1, 0), (1, 1) of every 2 x 2 block.
_MASKS = (
    ((0, 3), (1, 2)),
    ((1, 2), (0, 3)),
    ((0, 1), (2, 3)),
    ((2, 3), (0, 1)),
    ((0, 2), (1, 3)),
    ((1, 3), (0, 2)),
)


def coarse_to_fine(
    shape: tuple[int, ...], *, layers: int, transform: Elementwise, coarse: Sizes, fine: Sizes
) -> Chain:
    """Return the flow from the finest pixels to the coarse image and then within it.

    Args:
        shape: (channels, height, width) of an image.
        layers: Couplings within the coarse image.
        transform: What kind of map, of all couplings.
        coarse: Of each network within the coarse image.
        fine: Of each network before it.

    Raises:
        ValueError: The sides are no multiples of 4.
    """
    channels, height, width = shape
    if height % 4 or width % 4:
        raise ValueError(
            f"model.family: a flow needs image sides that are multiples of 4; got "
            f"{height} x {width}. Resize the images first."
        )

    def coupling(known: tuple[int, ...], moved: tuple[int, ...], *, is_fine: bool) -> Coupling:
        """Move whole phases, given whole phases."""
        known, moved = (
            tuple(phase * channels + c for phase in phases for c in range(channels))
            for phases in (known, moved)
        )
        network = convolutional(
            known=len(known),
            free=len(moved) * transform.free,
            side=(height // 2, width // 2) if is_fine else (height // 4, width // 4),
            **(fine if is_fine else coarse),
        )
        return Coupling(
            channels=4 * channels, known=known, moved=moved, network=network, transform=transform
        )

    masks = (_MASKS[layer % len(_MASKS)] for layer in range(layers))
    within = Chain(
        [Squeeze(), *(coupling(*mask, is_fine=False) for mask in masks), Unsqueeze()],
    )
    return Chain(
        [
            Squeeze(),
            # The other colour of the checkerboard has all its four neighbours among the known.
            coupling((0, 3), (1, 2), is_fine=True),
            coupling((0,), (3,), is_fine=True),
            First(channels, within),
            Unsqueeze(),
        ]
    )
