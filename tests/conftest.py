"""What all tests share: private servers, the two programs, and proof that nothing is left.

Set JFSD_TEST_IMPL=juicefs to run the file system tests on the reference, which
checks the tests themselves. Tests marked `slow` run with JFSD_SLOW=1.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from support import mounts
from support.clients import Client, Jfsd, JuiceFS, Mounted, Storage
from support.redis import RedisServer
from support.session import Session
from support.volume import Volume
from support.weed import WeedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

IMPLEMENTATION = os.environ.get("JFSD_TEST_IMPL", "jfsd")
SLOW = os.environ.get("JFSD_SLOW") == "1"
ABORT_BEFORE_TIMEOUT_S = 10

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")  # how long an example takes, the machine decides

SESSION = pytest.StashKey[Session]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers that this harness gives a meaning."""
    config.addinivalue_line("markers", "slow: minutes long; runs with JFSD_SLOW=1")
    config.addinivalue_line("markers", "jfsd_only: states what the reference does not do")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this run does not ask for; pytest's summary counts it."""
    left = [item for item in items if not _selected(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if _selected(item)]


def _selected(item: pytest.Item) -> bool:
    if item.get_closest_marker("slow") and not SLOW:
        return False
    return not (item.get_closest_marker("jfsd_only") and IMPLEMENTATION != "jfsd")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the steward, and with it whatever the session left running."""
    session = config.stash.get(SESSION, None)
    if session:
        session.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the end of the servers' logs to a failure."""
    report = (yield).get_result()
    session = item.config.stash.get(SESSION, None)
    if report.failed and session and "bed" in getattr(item, "fixturenames", ()):
        for log in sorted(session.root.glob("*.log")):
            if log.stat().st_mtime >= getattr(item, "began", 0) and log.stat().st_size:
                text = log.read_text(errors="replace").splitlines()[-40:]
                report.sections.append((f"log {log.name}", "\n".join(text)))


@pytest.fixture(scope="session")
def bed(pytestconfig: pytest.Config) -> Session:
    """The session's directory and its steward, which outlives every test."""
    session = pytestconfig.stash.get(SESSION, None)
    if session is None:
        session = pytestconfig.stash[SESSION] = Session()
    return session


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a mount, a process or a task; abort mounts that hang."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_task_left")
    if "bed" not in request.fixturenames:
        yield
        return
    bed: Session = request.getfixturevalue("bed")
    request.node.began = _now()
    before, processes = set(mounts.below(bed.root)), bed.processes()
    bed.deadline(_limit_s(request.node) - ABORT_BEFORE_TIMEOUT_S)
    yield
    hung = bed.deadline(None)
    left = [m.path for m in mounts.below(bed.root) if m not in before | _shared(bed)]
    for path in left:
        bed.request("abort", path=path)
        bed.request("detach", path=path)
    extra = _settle(bed, processes)
    for pid in extra:
        with contextlib.suppress(RuntimeError):
            bed.request("kill", pid=pid, sig=9, group=False)
    assert not hung, f"mounts that hung until the time limit: {hung}"
    assert not left, f"mounts left behind: {left}"
    assert not extra, f"processes left behind: {extra}"


def _shared(bed: Session) -> set[mounts.Mount]:
    return {m for m in mounts.below(bed.root) if m.path in bed.shared_mounts}


def _now() -> float:
    import time

    return time.time()


def _settle(bed: Session, before: set[int]) -> set[int]:
    import time

    end = time.monotonic() + 2
    while (extra := bed.processes() - before) and time.monotonic() < end:
        time.sleep(0.02)
    return extra


def _limit_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    if marker:
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    return float(item.config.getini("timeout"))


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """Fail an async test that leaves a task behind."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = [t for t in asyncio.all_tasks() - before if t is not asyncio.current_task()]
    for task in left:
        task.cancel()
    assert not left, f"tasks left behind: {left}"


@pytest.fixture(scope="session")
def redis_server(bed: Session) -> Iterator[RedisServer]:
    """A private Redis on a unix socket, shared by the session; it keeps nothing."""
    server = RedisServer(bed, shared=True)
    yield server
    server.service.end()


@pytest.fixture
def meta_db(redis_server: RedisServer) -> Iterator[int]:
    """The number of an empty database of its own."""
    yield from redis_server.lease()


@pytest.fixture
def meta_url(redis_server: RedisServer, meta_db: int) -> str:
    """The metadata URL of an empty database of its own."""
    return redis_server.url(meta_db)


@pytest.fixture(scope="session")
def weed(bed: Session) -> Iterator[WeedServer]:
    """A private S3 server, shared by the session; take a `bucket()` of it."""
    server = WeedServer(bed, shared=True)
    yield server
    server.service.kill()


@pytest.fixture(scope="session")
def juicefs(bed: Session) -> JuiceFS:
    """The reference program."""
    return JuiceFS(bed)


@pytest.fixture(scope="session")
def jfsd(bed: Session) -> Jfsd:
    """The program of this checkout."""
    return Jfsd(bed)


@pytest.fixture(scope="session")
def client(request: pytest.FixtureRequest) -> Client:
    """The program that the file system tests run on."""
    return request.getfixturevalue(IMPLEMENTATION)


@pytest.fixture
def new_volume(
    request: pytest.FixtureRequest, bed: Session, juicefs: JuiceFS, redis_server: RedisServer
) -> Iterator[Callable[..., Volume]]:
    """A function that formats volumes: `new_volume("file", "--compress", "lz4")`.

    Keyword arguments: `by` (the formatting program) and `redis` (another server).
    Trash is off unless a flag says otherwise. At the end every volume is unmounted.
    """
    with contextlib.ExitStack() as stack:

        def build(
            kind: str = "file",
            *flags: str,
            by: Client | None = None,
            redis: RedisServer | None = None,
            store: WeedServer | None = None,
        ) -> Volume:
            lease = contextlib.contextmanager((redis or redis_server).lease)()
            url = (redis or redis_server).url(stack.enter_context(lease))
            return stack.enter_context(
                make_volume(request, bed, juicefs, url, kind, flags, by=by, store=store)
            )

        yield build


@contextlib.contextmanager
def make_volume(
    request: pytest.FixtureRequest,
    bed: Session,
    juicefs: JuiceFS,
    url: str,
    kind: str,
    flags: tuple[str, ...],
    *,
    by: Client | None = None,
    store: WeedServer | None = None,
) -> Iterator[Volume]:
    """Format a volume; at the end unmount it and remove its objects."""
    client = by or request.getfixturevalue("client")
    if kind == "s3":
        storage = Storage(bucket=(store or request.getfixturevalue("weed")).bucket())
    else:
        storage = Storage(directory=bed.directory("o"))
    if "--trash-days" not in flags:
        flags = ("--trash-days", "0", *flags)
    name = f"vol{bed.directory('v').name[1:]}"
    client.format(url, name, storage, *flags)
    volume = Volume(bed, client, juicefs, url, storage, name)
    try:
        yield volume
    finally:
        volume.close()
        if storage.directory:
            shutil.rmtree(storage.directory)


@pytest.fixture(params=["file", "s3"])
def volume(request: pytest.FixtureRequest, new_volume: Callable[..., Volume]) -> Volume:
    """A volume on Redis and each kind of store; give the kinds by indirect parametrization."""
    return new_volume(*_as_tuple(request.param))


def _as_tuple(param: object) -> tuple[str, ...]:
    return (param,) if isinstance(param, str) else tuple(param)


@pytest.fixture
def mount(volume: Volume) -> object:
    """The `volume`, mounted."""
    return volume.mount()


def _shared_volume(
    request: pytest.FixtureRequest, kind: str, flags: tuple[str, ...]
) -> Iterator[Volume]:
    """Yield a volume, mounted; at the end unmount it and let the reference check it."""
    redis: RedisServer = request.getfixturevalue("redis_server")
    bed, juicefs = request.getfixturevalue("bed"), request.getfixturevalue("juicefs")
    with contextlib.ExitStack() as stack:
        url = redis.url(stack.enter_context(contextlib.contextmanager(redis.lease)()))
        volume = stack.enter_context(make_volume(request, bed, juicefs, url, kind, flags))
        mounted = volume.mount()
        bed.shared.update(mounted.pids())
        bed.shared_mounts.add(str(mounted.path))
        yield volume
        mounted.unmount()
        volume.check()


@pytest.fixture(scope="session")
def shared_volume(request: pytest.FixtureRequest) -> Iterator[Volume]:
    """One volume (Redis and a directory, ACLs on) that many small tests share, mounted."""
    yield from _shared_volume(request, "file", ("--enable-acl",))


@pytest.fixture(scope="session")
def shared_mount(shared_volume: Volume) -> Mounted:
    """The shared volume's mount, one for the session."""
    return shared_volume.mounted[0]


@pytest.fixture(scope="session")
def shared_s3_mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """The mount of a volume on Redis and S3, one for the session."""
    for volume in _shared_volume(request, "s3", ()):
        yield volume.mounted[0]


@pytest.fixture
def work(shared_mount: object) -> Iterator[Path]:
    """An empty directory of its own on the shared mount."""
    yield from _own_directory(shared_mount.path)


@pytest.fixture
def ref(bed: Session) -> Iterator[Path]:
    """An empty directory of its own on the machine's file system, to compare with."""
    (bed.root / "ref").mkdir(exist_ok=True)
    yield from _own_directory(bed.root / "ref")


_numbers = iter(range(1, 1 << 30))


def _own_directory(parent: Path) -> Iterator[Path]:
    path = parent / f"t{next(_numbers)}"
    path.mkdir()
    path.chmod(0o777)
    yield path
    with contextlib.suppress(OSError):
        shutil.rmtree(path)
