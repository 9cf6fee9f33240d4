"""What every test shares: which ones wait to be asked for, and how hypothesis draws."""

import hypothesis
import pytest

ON_REQUEST = {
    "slow": "takes minutes",
    "soak": "ten minutes of too much",
    "containers": "builds and runs the images, as root",
}

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--enable",
        action="append",
        default=[],
        choices=sorted(ON_REQUEST),
        help="run the tests of this mark, which are skipped otherwise",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    enabled = config.getoption("enable")
    for item in items:
        for mark, why in ON_REQUEST.items():
            if mark not in enabled and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"{why}; run with --enable {mark}"))
