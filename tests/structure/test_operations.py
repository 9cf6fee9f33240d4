"""What docs/operations.md and the compose file tell is what the code knows: no more, no less."""

import re

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.metrics import MetricWrapperBase

from service.metrics import Metrics, ModelState
from service.queue import Queue
from service.settings import Settings
from tests.structure.sources import ROOT

OF_THE_IMAGE = {"models", "host", "port", "device", "gpus"}
"""Settings that the image or the profile decides."""
PAGE = (ROOT / "docs/operations.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Return the cells of all tables under a heading, without their heads."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if row[0].startswith("`")]


def observed() -> CollectorRegistry:
    """Return the metrics of an app."""
    metrics = Metrics()
    metrics.watch(
        queue=Queue(),
        models=lambda: [ModelState("a", 1, "ready")],
        device={"kind": "cpu", "reason": ""},
        runtime="1.2.3",
    )
    return metrics.registry


def families() -> dict[str, Metric]:
    """Return every metric, by the name that stands in a query."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in observed().collect()
    }


def labels() -> dict[str, set[str]]:
    """Return the labels of each metric, those that have no series yet included."""
    registry = observed()
    seen = {
        family.name: {label for sample in family.samples for label in sample.labels}
        for family in registry.collect()
    }
    declared = {
        collector._name: set(collector._labelnames)
        for collector in registry._collector_to_names
        if isinstance(collector, MetricWrapperBase)
    }
    return seen | declared


def test_every_metric_is_documented_with_its_type_and_nothing_else_is() -> None:
    documented = {name.strip("`"): kind for name, kind, *_ in table("Metrics")}
    assert documented == {name: family.type for name, family in families().items()}


def test_every_metric_is_documented_with_its_labels() -> None:
    documented = {
        name.strip("`").removesuffix("_total"): set(re.findall(r"`(\w+)`", cell))
        for name, _, cell, _ in table("Metrics")
    }
    assert documented == labels()


def test_alerts_name_metrics_that_are_there() -> None:
    known = {
        f"{name}{suffix}"
        for name, family in families().items()
        for suffix in ("", "_bucket", "_sum", "_count")
        if not suffix or family.type == "histogram"
    }
    expressions = re.findall(r"`([^`]*\bpushforward_[^`]*)`", PAGE)
    named = {name for text in expressions for name in re.findall(r"\bpushforward_\w+", text)}
    assert named - known == set()


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {
        name.strip("`").removeprefix("PUSHFORWARD_").lower(): default.strip("`")
        for name, default, _ in table("Settings")
    }
    assert set(documented) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if field.default is not None and field.default_factory is None:
            value = field.default
            said = f"{value:g}" if isinstance(value, float) else str(value)
            assert documented[name] == said, name


def test_compose_passes_every_setting_on() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    passed = {name.lower() for name in re.findall(r"^ +PUSHFORWARD_(\w+):$", text, re.MULTILINE)}
    assert passed == set(Settings.model_fields) - OF_THE_IMAGE


def test_signal_to_stop_leaves_time_to_drain() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    grace = re.search(r"stop_grace_period: (\d+)s", text)
    assert grace
    assert int(grace[1]) > Settings.model_fields["drain_s"].default + 5
