import math
from collections.abc import Callable

import pytest
import torch

from tests.training.cases import case
from training import latent
from training.bbvi import BBVI
from training.bounds import Terms
from training.vae import VAE


@pytest.mark.parametrize("label", ["vae of binary images", "bbvi of images"])
@torch.no_grad()
def test_chunks_change_only_the_draws(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = case(label)
    assert isinstance(model, VAE | BBVI)
    terms: Callable[..., Terms] = model.terms
    seen: list[Terms] = []

    def record(*given: object, **named: object) -> Terms:
        seen.append(terms(*given, **named))
        return seen[-1]

    monkeypatch.setattr(model, "terms", record)
    monkeypatch.setattr(latent, "CHUNK_ROWS", 7 * len(data.test) + 1)
    found = model.nats(data.test, 100)
    assert [part.elbo.shape[1] for part in seen] == [7] * 14 + [2]
    elbo = torch.cat([part.elbo for part in seen], dim=1).double().mean(1)
    weights = torch.cat([part.log_weight for part in seen], dim=1).double()
    evidence = weights.logsumexp(1) - math.log(100)
    for name, whole in (("negative ELBO", elbo), ("negative log-likelihood", evidence)):
        torch.testing.assert_close(found[name].values, -whole, rtol=0, atol=1e-9)
