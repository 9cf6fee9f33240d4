"""Integrands as people write them, right and wrong, of which recipes name one."""

import numpy as np
from jaxtyping import Float64, Shaped

Points = Float64[np.ndarray, "points dimension"]
Values = Shaped[np.ndarray, "..."]


def slope(x: Points) -> Values:
    """Over [low, high]^D: the mean of the x_i, times the volume."""
    return np.asarray(x.sum(axis=1))


def negative(x: Points) -> Values:
    return np.asarray(x.sum(axis=1) - 1)


def missing(x: Points) -> Values:
    return np.where(x[:, 0] < 0.5, np.nan, 1.0)


def infinite(x: Points) -> Values:
    return np.where(x[:, 0] < 0.5, np.inf, 1.0)


def a_column(x: Points) -> Values:
    return x[:, :1]


def one_number(x: Points) -> Values:
    return np.asarray(x.mean())


def words(x: Points) -> Values:
    return np.array(["1"] * len(x))


def nothing(x: Points) -> Values:
    return np.zeros(len(x))


number = 3.0
