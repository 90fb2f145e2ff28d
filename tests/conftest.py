"""For all tests: no clock in Hypothesis, no skip that hides in CI, and what takes long begins first."""

import os
import signal

import pytest
from hypothesis import settings

# Two files are tested at a time, and what computes in several threads must not turn in loops while it waits.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

settings.register_profile("mtor", deadline=None)  # a busy machine must not fail a test
settings.load_profile("mtor")

# A run in the background of a shell ignores Ctrl-C, and so would every program that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS_OF_PROTOCOL = ("protocol", "spec")  # folders
MAY_SKIP_IN_CI = ("needs a CUDA card",)  # reasons that CI's machine cannot do anything about


class NoHiddenSkips:
    """With CI=true a skipped test fails the run, unless its reason is on the list."""

    def __init__(self) -> None:
        self.hidden: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note skipped tests."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note whole files that skip themselves while they are imported."""
        if report.skipped:
            self._note(report.nodeid, report.longrepr)

    def _note(self, name: str, why: object) -> None:
        reason = str(why[2] if isinstance(why, tuple) else why)
        if not any(allowed in reason for allowed in MAY_SKIP_IN_CI):
            self.hidden.append(f"{name}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn them into a failure."""
        if self.hidden:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which."""
        for line in self.hidden:
            terminalreporter.write_line(f"FAILED because it was skipped in CI: {line}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first: two processes share them, and none should idle while the other ends with a long one.
    Coverage of `protocol/` is counted where `protocol/` itself is tested: counting makes all else a third slower."""
    for item in items:
        if item.path.parent.name not in TESTS_OF_PROTOCOL:
            item.add_marker("no_cover")
    lasting = {item.path for item in items if any(item.get_closest_marker(name) for name in ("slow", "net"))}
    items.sort(key=lambda item: item.path not in lasting)


def pytest_configure(config: pytest.Config) -> None:
    """Install the guard in CI."""
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(NoHiddenSkips())
