"""Models that come and go while the node runs: loaded, offered, asked, kept; and ended in order."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import trio

from node.clock import now_ms
from node.config_file import load_config
from node.config_keeper import ConfigKeeper
from node.engines.fake import FakeEngine
from node.engines.process import EngineStartError, ModelFolder, ProcessEngine, Seat
from node.engines.tiny import make_tiny_model
from node.model_operations import ModelOperations
from node.models import ModelError, ModelStore
from node.operations import OperationFailed, dispatch, dispatch_stream
from node.services import ModelService
from node.serving import Serving
from node.serving_operations import ServingOperations
from protocol.errors import Refused
from tests.node.federation import Answered, MemoryNode, memory_federation, question
from tests.node.model_world import model_folder

CARD = {"name": "GT 710", "vram_mib": 600, "processes": []}
LONG_TOKENS = 100
FILE = """\
# mine
guard: {{enabled: false}}
hardware: {{declared: {cards}}}  # a small one
"""
LINE = "realms:\n  - model: {model}\n    slots: 1\n    price_out: 7\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that only a fake engine would load."""
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


class FakeProcess(FakeEngine):
    """An engine that seems to have a process. `slow`: it loads when that is set. `broken`: it never does."""

    broken = False
    slow: trio.Event | None = None

    def __init__(self, model: ModelFolder, *settings: Any, **more: Any) -> None:
        super().__init__(model.name)
        self.ready = self.loaded_before = False
        self.lives = 0

    @property
    def process_id(self) -> int | None:
        """No process: a number that is nobody's."""
        return 1 << 30 if self.ready else None

    async def run(self) -> None:
        """Live until the node ends, or the model is stopped."""
        self.lives += 1
        try:
            await trio.sleep_forever()
        finally:
            self.lives -= 1

    async def suspend(self) -> None:
        """End at once."""
        self.ready = False

    async def resume(self, seat: Seat) -> None:
        """Load."""
        if self.slow is not None:
            await self.slow.wait()
        if self.broken:
            raise EngineStartError(f"{self.name} cannot be loaded: it is broken")
        self.ready = self.loaded_before = True


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Engines load when this is set."""
    event = trio.Event()
    monkeypatch.setattr(FakeProcess, "slow", event)
    return event


@dataclass
class Home:
    """A node without a model, whose operator is at the panel."""

    node: MemoryNode
    serving: Serving
    operations: ServingOperations
    path: Path
    told: list[dict[str, Any]] = field(default_factory=list)

    async def start(self, model: Path | str, **wishes: Any) -> dict[str, Any]:
        """`serving.start`: what was said last."""

        async def emit(progress: dict[str, Any]) -> None:
            self.told.append(progress)

        await dispatch_stream(self.operations.streams, "serving.start", {"model": str(model)} | wishes, emit)
        return self.told[-1]

    async def stop(self, model: Path | str, **wishes: Any) -> dict[str, Any]:
        """`serving.stop`."""
        return await dispatch(self.operations.methods, "serving.stop", {"model": str(model)} | wishes)

    async def refusal(self, run: Callable[..., Any], *arguments: Any, **wishes: Any) -> str:
        """Why it cannot be done."""
        with pytest.raises((OperationFailed, ModelError)) as failed:  # a running node tells both alike
            await run(*arguments, **wishes)
        return str(failed.value)

    @property
    def steps(self) -> list[str]:
        """Each step once, in order."""
        return list(dict.fromkeys(progress["step"] for progress in self.told))

    @property
    def offered(self) -> dict[str, int]:
        """Slots on offer by model."""
        return {offer.model: offer.slots for offer in self.node.services.offers()}

    @property
    def kept(self) -> list[str]:
        """The models of realms.yml."""
        return [section.model for section in load_config(self.path, {}).realms]


@asynccontextmanager
async def home(
    folder: Path, flags: dict[str, Any] | None = None, more: str = "", engines: Any = None
) -> AsyncIterator[Home]:
    """It runs until the block ends, and leaves no process behind."""
    (folder / "cards.json").write_text(json.dumps({"cards": [CARD]}))
    path = folder / "realms.yml"
    path.write_text(FILE.format(cards=folder / "cards.json") + more)
    config = load_config(path, {}, flags)
    others = set(psutil.Process().children())
    async with memory_federation() as federation:
        node = federation.gateway
        serving = Serving(config, folder, [], node.services, node.worker, now_ms, engines or FakeProcess)
        keeper = ConfigKeeper(path, config, flags, {})
        operations = ServingOperations(serving, node.services, ModelStore(folder / "store"), keeper)
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                await nursery.start(serving.run)
                yield Home(node, serving, operations, path)
                nursery.cancel_scope.cancel()
    assert set(psutil.Process().children()) <= others


async def until(seen: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    while not seen():
        await trio.sleep(0.005)


# --- it comes --------------------------------------------------------------------------------------------


async def test_a_model_comes_answers_and_goes_and_realms_yml_follows(tmp_path: Path) -> None:
    make_tiny_model(tiny := tmp_path / "tiny")
    async with home(tmp_path, engines=ProcessEngine) as here:
        before = here.path.read_text()
        done = await here.start(tiny, slots=1, price_out=7)
        assert done["done"] and (done["model"], done["realm"], done["kept"]) == ("tiny", "$CHAT", True)
        assert here.steps == ["looking", "waiting", "loading", "ready"] and "note" not in done
        assert here.offered == {"tiny": 1} and here.serving.loading() == []
        assert here.path.read_text() == before + LINE.format(model=tiny)
        await until(lambda: bool(own_offers(here)))  # it goes out by itself
        [engine] = [served.engine for served in here.serving._served.values()]
        process = psutil.Process(engine.process_id)

        again = await here.start(tiny)  # nothing changes
        assert again["done"] and here.path.read_text() == before + LINE.format(model=tiny)
        assert engine.process_id == process.pid and here.offered == {"tiny": 1}
        await here.start(tiny, price_out=9)
        assert [offer.price_out for offer in here.node.services.offers()] == [9]
        assert here.path.read_text() == before + LINE.format(model=tiny).replace("7", "9")
        assert "served with slots: 1; stop it first" in await here.refusal(here.start, tiny, slots=3)

        answered = Answered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                here.node.router.answer, question("go on", max_tokens=LONG_TOKENS, deadline_ms=120_000), answered.emit
            )
            await until(lambda: bool(answered.text))
            stopped = await here.stop(tiny)
            assert answered.completed.units_out == len(answered.text) == LONG_TOKENS  # it could end
        assert stopped == {"stopped": "tiny", "realms": ["$CHAT"], "kept": True}
        assert not process.is_running() and here.offered == {} and here.serving.residency.models == ()
        assert here.kept == [] and here.path.read_text().startswith(before)
        await until(lambda: not own_offers(here))
        assert "not served here; this node serves nothing" in await here.refusal(here.stop, "tiny")


def own_offers(here: Home) -> list[str]:
    """Models in the node's own entry of its directory: what is told to others."""
    known = here.node.directory.known(here.node.signer.node)
    return [model.model for model in known.offer.models] if known else []


async def test_who_does_not_wait_has_asked_all_the_same_and_two_get_one(
    tmp_path: Path, tiny: Path, slowly: trio.Event
) -> None:
    async with home(tmp_path) as here:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.start, tiny)
                await until(lambda: "loading" in here.steps)
                assert here.serving.loading()[0]["step"] == "loading"
                scope.cancel()  # the page is closed
        assert here.kept == [] and here.node.services.uses("tiny")
        slowly.set()
        await here.start(tiny, keep=False)
        assert here.kept == [str(tiny)]  # as the first one wanted
        assert len(here.serving.residency.models) == 1 and here.offered == {"tiny": 2}
        assert here.node.services.loading == ()
        stopped = await here.stop("tiny", keep=False)
        assert stopped["kept"] is False and here.kept == [str(tiny)] and here.offered == {}


async def test_one_that_is_being_loaded_can_be_stopped_and_started_again(
    tmp_path: Path, tiny: Path, slowly: trio.Event
) -> None:
    async with home(tmp_path) as here:
        async with trio.open_nursery() as nursery:
            why: list[str] = []

            async def start() -> None:
                why.append(await here.refusal(here.start, tiny))

            nursery.start_soon(start)
            await until(lambda: "loading" in here.steps)
            assert (await here.stop(tiny))["stopped"] == "tiny"
        assert why == ["tiny was stopped while it was being loaded"]
        assert here.kept == [] and here.offered == {} and here.serving.loading() == []
        slowly.set()
        assert (await here.start(tiny))["done"] and here.offered == {"tiny": 2}


async def test_what_runs_for_too_long_is_continued_elsewhere_and_the_rest_is_refused(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.serving.DRAIN_SECONDS", 0.1)
    async with home(tmp_path) as here:
        await here.start(tiny, slots=1)
        [service] = here.node.services
        service.engine.seconds_per_token = 60.0
        running, waiting = Answered(), Answered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.node.router.answer, question(), running.emit)
            await until(lambda: service.scheduler.busy == 1)
            nursery.start_soon(here.node.router.answer, question(), waiting.emit)
            await until(lambda: service.scheduler.queued == 1)
            await here.stop("tiny")
            assert not service.engine.ready and service.engine.lives == 0 and service.scheduler.queued == 0
            with pytest.raises(Refused, match="no longer served here"):
                async with service.scheduler.place(here.node.signer.node, paid=True):
                    pass
            nursery.cancel_scope.cancel()


# --- it cannot come --------------------------------------------------------------------------------------


async def test_what_does_not_fit_leaves_nothing_behind_and_says_what_would(tmp_path: Path, tiny: Path) -> None:
    async with home(tmp_path) as here:
        before = here.path.read_text()
        said = await here.refusal(here.start, tiny, device="cuda")
        assert "does not fit" in said and "this would help" in said and "device: auto" in said
        assert here.path.read_text() == before and here.serving.residency.models == () and here.offered == {}
        assert here.serving.loading() == [] and here.node.services.loading == () and here.serving.problems() == []


async def test_a_model_that_breaks_costs_neither_the_node_nor_a_second_try(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home(tmp_path) as here:
        before = here.path.read_text()
        with monkeypatch.context() as patch:
            patch.setattr(FakeProcess, "broken", True)
            for _ in range(2):
                assert await here.refusal(here.start, tiny) == "tiny cannot be loaded: it is broken"
                assert here.path.read_text() == before and here.serving.loading() == []
                assert here.serving.residency.models == () and here.serving.models() == {}
        assert (await here.start(tiny))["done"] and here.offered == {"tiny": 2}


@pytest.mark.parametrize(
    ("model", "wishes", "said"),
    [
        ("absent", {}, "there is no model 'absent'"),
        ("../tiny", {}, "write all of it"),
        ("absent", {"slots": 0}, "slots: Input should be greater than or equal to 1"),
        ("absent", {"device": "gpu"}, "device: Input should be 'auto', 'cpu' or 'cuda'"),
        ("absent", {"price_in": -1}, "price_in: Input should be greater than or equal to 0"),
        ("absent", {"realm": "CHAT"}, "'CHAT' is not a realm"),
    ],
)
async def test_a_wrong_wish_is_told(tmp_path: Path, model: str, wishes: dict[str, Any], said: str) -> None:
    async with home(tmp_path) as here:
        assert said in await here.refusal(here.start, model, **wishes)
        assert here.serving.models() == {}


async def test_while_the_owner_has_the_machine_nothing_is_loaded(tmp_path: Path, tiny: Path) -> None:
    async with home(tmp_path) as here:
        await here.serving.guard.pause(None)
        assert "`mtor resume`" in await here.refusal(here.start, tiny)


# --- realms.yml ------------------------------------------------------------------------------------------


async def test_a_file_that_cannot_be_read_is_left_alone(tmp_path: Path, tiny: Path) -> None:
    async with home(tmp_path) as here:
        here.path.write_text("realms:\n\t- model: mine\n")
        assert "realms.yml:2:1: not valid YAML" in await here.refusal(here.start, tiny)
        assert here.path.read_text() == "realms:\n\t- model: mine\n" and here.offered == {}


async def test_models_of_flags_are_told_apart_from_those_of_the_file(tmp_path: Path, tiny: Path) -> None:
    flags = {"realms": [{"model": "another"}]}
    lines = f"realms:\n  - model: {tiny}\n    threads: 1\n"
    async with home(tmp_path, flags, lines) as here:
        done = await here.start(tiny)
        assert not done["kept"] and "the command line names what is served" in done["note"]
        [served] = here.serving._served.values()
        assert served.section.threads == 1  # what the file says of it holds
        stopped = await here.stop(tiny)
        assert not stopped["kept"] and "leave tiny out there, too" in stopped["note"] and here.kept == []


async def test_a_server_beside_the_node_is_not_ended_from_here(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        engine = FakeEngine()
        section = load_config(
            tmp_path / "none.yml",
            {},
            {
                "realms": [
                    {"model": engine.info.name, "realm": "$CHAT", "engine": "openai", "url": "http://127.0.0.1:1"}
                ]
            },
        ).realms[0]
        service = MemoryNode._service(engine, {})
        here.node.services.add(ModelService(section, engine, service.scheduler))
        assert "a server of yours" in await here.refusal(here.stop, engine.info.name)


async def test_a_model_that_is_served_is_not_removed(tmp_path: Path) -> None:
    async with memory_federation(FakeEngine()) as federation:
        services = federation.workers[0].services
        operations = ModelOperations(ModelStore(tmp_path), services.uses)
        name = services.offers()[0].model
        with pytest.raises(OperationFailed, match=rf"stop that first: `mtor unserve {name}`"):
            await dispatch(operations.methods, "models.rm", {"model": name})


# --- what became of the queries --------------------------------------------------------------------------


async def test_answers_are_counted_where_they_are_made() -> None:
    async with memory_federation(FakeEngine()) as federation:
        [service] = federation.workers[0].services
        done = (await federation.gateway.ask(question())).completed
        await until(lambda: service.tally.answered == 1)
        tally = service.tally
        assert (tally.units_in, tally.units_out) == (done.units_in, done.units_out)
        assert (tally.failed, tally.last_error) == (0, "")
