"""The service: wires the layers of one mount, serves it, and takes everything down again.

Start: metadata, volume, store, session, data path, mount, serve. Whatever starts pushes
its own teardown on one exit stack, so that the end is the beginning backwards: the
mount goes first, then what was written is stored, then the session is closed.

What a SIGKILL leaves at each step is in docs/LIFECYCLE.md.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial

import uvloop

from jfsd import __version__
from jfsd import log as logs
from jfsd.config.credentials import with_credentials
from jfsd.config.runtime import MountRecord, register
from jfsd.config.settings import MountSettings
from jfsd.config.source import Source, Wanted, given
from jfsd.config.volume import Volume
from jfsd.daemon.aftermath import clear_away, settle
from jfsd.daemon.answers import Answers, reloading, upgrading
from jfsd.daemon.control import Control
from jfsd.daemon.datapath import DataPath
from jfsd.daemon.ending import Ending
from jfsd.daemon.former import Former
from jfsd.daemon.handover import HANDOVER_SIGNAL, Handover
from jfsd.daemon.holder import WATCHDOG_S, start_holder
from jfsd.daemon.holder_link import keep_holder
from jfsd.daemon.holder_store import Kept
from jfsd.daemon.holder_successor import Standby
from jfsd.daemon.jobs import JobSwitch
from jfsd.daemon.journal import HandleJournal, SliceJournal, restore_handles
from jfsd.daemon.memory import bound_heap
from jfsd.daemon.phase import Life, Phase
from jfsd.daemon.reload import Reload, Tuner
from jfsd.daemon.report import Report
from jfsd.daemon.root import find_root
from jfsd.daemon.state import CRASHED_AT, LAYOUT, RUNNING_AT, Header, State, StateError
from jfsd.daemon.stop import Leaver, Stopper, cut_off
from jfsd.daemon.store import VolumeStore
from jfsd.daemon.succession import UPGRADE_SIGNAL, Succession, own_command
from jfsd.daemon.takeover import (
    ARENA,
    FUSE,
    REQUESTS,
    STATE,
    Fresh,
    Takeover,
    check_same_mount,
    fixed_options,
    park,
    take_over,
)
from jfsd.daemon.telling import Telling
from jfsd.daemon.timing import Timing
from jfsd.daemon.watching import Watching
from jfsd.errors import ExitCode, JfsdError, RefusedError
from jfsd.failpoint import reach
from jfsd.fuse import inflight, native
from jfsd.fuse import mount as mounting
from jfsd.fuse.inflight import RequestJournal
from jfsd.fuse.mount import Mounted
from jfsd.fuse.session import Session, Suspicion, Terms
from jfsd.meta.client import Meta
from jfsd.meta.connection import Connection
from jfsd.meta.engine import FencedError
from jfsd.meta.jobs.housekeeping import Housekeeping
from jfsd.meta.session import Session as MetaSession
from jfsd.meta.session import SessionInfo
from jfsd.meta.url import Kind, parse_meta_url
from jfsd.record import replace
from jfsd.systemd.notify import Notifier
from jfsd.types import Ino
from jfsd.vfs.ports import Options
from jfsd.vfs.vfs import Vfs

log = logging.getLogger(__name__)

META_PATIENCE_S = 300.0
"""How long an operation waits for a Redis that is away; then it fails with EIO."""

STOPPED = 128 + signal.SIGTERM
"""Exit code of a start that a signal undid."""

START_BEAT_S = 5.0
"""How often a start that takes long asks for more time."""


def run_mount(
    meta_url: str,
    mountpoint: str,
    settings: MountSettings,
    source: Source | None = None,
    *,
    set_aside: str = "",
) -> int:
    """Serve the volume at the directory until it is unmounted; return the exit code.

    Args:
        meta_url: The volume.
        mountpoint: The directory.
        settings: How to serve it.
        source: Where these three came from, to be read again at a reload.
        set_aside: What of it was not used, and why; the service's status tells it.

    Raises:
        RefusedError: It cannot be mounted as asked; nothing was changed.
    """
    bound_heap()
    try:
        return uvloop.run(_Server(meta_url, mountpoint, settings, source, set_aside).run())
    except asyncio.CancelledError:
        return STOPPED


class _Server:
    """One mount from its first connection to its last flush."""

    def __init__(
        self,
        meta_url: str,
        mountpoint: str,
        settings: MountSettings,
        source: Source | None,
        set_aside: str = "",
    ) -> None:
        self._source = source or Source("", meta_url, mountpoint, given(settings))
        self._meta_url = meta_url
        self._mountpoint = mountpoint
        self._settings = settings
        self._timing = Timing()
        self._life = Life()
        self._notifier = Notifier.from_environ()
        self._control: Control
        self._takeover: Takeover | None = None
        self._fresh: Fresh | None = None
        self._ending: Ending
        self._standby: Standby | None = None
        self._waits_for = "its turn"
        self._telling = Telling(self._timing)
        self._hangup = False
        self._set_aside = set_aside
        self._former = Former(None, self._source, serves=False)

    async def run(self) -> int:
        """Start, serve, end."""
        self._standby = Standby.from_environ()
        found = take_over(self._notifier)
        if isinstance(found, Fresh):
            self._fresh = found
        else:
            self._takeover = found
        self._go_on_with_what_is_fixed()
        ending = self._ending = Ending(
            self._mountpoint,
            self._life,
            self._notifier,
            adopted=self._takeover is not None,
            fresh=self._fresh is not None,
        )
        reach("adopt.loaded")
        self._on_early_signals()
        async with AsyncExitStack() as stack:
            patience = asyncio.create_task(self._ask_for_time(), name="start")
            stack.callback(patience.cancel)
            ending.push_first(stack)
            meta, session, volume = await self._open_meta(stack)
            store = await self._open_store(stack, volume)
            root = await self._find_root(meta)
            if not await self._await_turn():
                return ExitCode.OK
            await self._open_session(stack, meta, session)
            self._timing.mark("session")
            state = self._open_state(meta, volume, root)
            reach("start.state")
            path = DataPath(
                meta,
                store,
                volume,
                self._settings,
                arena_fd=self._takeover.arena_fd if self._takeover else None,
                journal=SliceJournal(state),
            )
            await path.start(stack, partial(ending.settle, meta, state, path.blocks))
            self._timing.mark("data")
            jobs = Housekeeping(meta, path.blocks.delete_slice)
            stack.push_async_callback(jobs.close)

            def follow(changed: Volume) -> None:
                meta.apply(changed)
                store.follow(changed)

            session.on_volume = follow
            acls = self._terms(volume).acls
            vfs = Vfs(meta, path.writer, path.reader, _options(self._settings, root, acls=acls))
            path.on_commit = vfs.committed
            jobs.trees.open_inos = vfs.handles.open_inos
            stack.push_async_callback(self._control.close)
            watching = self._watching(stack, volume, state, vfs, path)
            Answers(
                volume,
                lambda: self._settings,
                self._life,
                state,
                vfs,
                path,
                store,
                self._notifier,
                watching,
            ).listen(self._control)
            stack.push_async_callback(ending.flush, path.writer)
            await self._restore(state, vfs, path)
            self._timing.mark("restore")
            patience.cancel()
            switch = JobSwitch(jobs, session, allowed=not self._settings.read_only)
            stack.push_async_callback(switch.set, False)
            await self._serve(stack, vfs, volume, session, switch, state, path, store, watching)
        self._life.enter(Phase.ENDED)
        return ending.verdict()

    # -- start --------------------------------------------------------------------------------

    @property
    def _wanted(self) -> Wanted:
        return Wanted(self._meta_url, self._mountpoint, self._settings)

    def _go_on_with_what_is_fixed(self) -> None:
        """Serve a live mount as it was made, if it is a file that says otherwise by now."""
        self._former = Former(
            self._takeover,
            self._source,
            serves=self._standby is not None,
            aside=self._set_aside,
        )
        _, self._mountpoint, self._settings = self._former.fixed(self._wanted)
        self._control = Control(self._mountpoint)

    async def _ask_for_time(self) -> None:
        """Let the keeper wait: a start takes as long as Redis or the store are away."""
        while True:
            await asyncio.sleep(START_BEAT_S)
            self._notifier.extend_timeout(4 * START_BEAT_S)
            self._notifier.watchdog()
            if self._standby is None:
                self._notifier.status(f"starting: waits for {self._waits_for}")

    async def _await_turn(self) -> bool:
        """Return when nobody else serves the mount; False if we shall not either."""
        if self._takeover is None:
            return True
        if self._standby is not None:
            loop, called = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(self._standby.fileno(), called.set)
            self._standby.warm()
            try:
                await called.wait()
            finally:
                loop.remove_reader(self._standby.fileno())
            kept = self._standby.take()
            if kept is None:
                return False
            for fd in (fd for fds in kept.values() for fd in fds):
                os.close(fd)  # those that we were started with are duplicates
            self._standby = None
            self._timing.mark("standby")
        self._takeover.begin()
        return True

    async def _open_meta(self, stack: AsyncExitStack) -> tuple[Meta, MetaSession, Volume]:
        self._meta_url = await self._former.meta_url(self._wanted)
        url = parse_meta_url(self._meta_url, with_credentials(os.environ))
        kept = self._takeover.state.header if self._takeover else None
        if kept and kept.cluster:
            url = url.as_cluster()
        connection = Connection(url, deadline_s=META_PATIENCE_S)
        await connection.open(wait=kept is not None)
        stack.push_async_callback(connection.close)
        meta = Meta(
            connection,
            mount_id=kept.mount_id if kept else os.urandom(8).hex(),
            generation=kept.generation + 1 if kept else 1,
            read_only=self._settings.read_only,
        )
        stack.push_async_callback(meta.close_engine)
        session = MetaSession(
            meta,
            SessionInfo.of_this_process(self._mountpoint),
            heartbeat_s=self._settings.heartbeat_s,
        )
        session.clean_others = not self._settings.no_bgjob
        self._waits_for = "Redis"
        volume = await session.load_volume()
        self._timing.mark("meta")
        logs.about(volume=volume.name)
        volume.check_mountable(read_only=self._settings.read_only)
        if kept:
            check_same_mount(kept, self._mountpoint, volume.uuid, self._settings)
        meta.apply(volume)
        return meta, session, volume

    async def _open_store(self, stack: AsyncExitStack, volume: Volume) -> VolumeStore:
        self._settings = await self._former.store(self._wanted, volume)
        store = VolumeStore(volume, self._settings)
        stack.push_async_callback(store.close)
        if self._takeover is None:
            await store.check_ours(volume)
        self._timing.mark("store")
        return store

    async def _find_root(self, meta: Meta) -> Ino:
        if self._takeover:
            return self._takeover.state.header.root
        return await find_root(meta, self._settings)

    async def _open_session(self, stack: AsyncExitStack, meta: Meta, session: MetaSession) -> None:
        if self._settings.read_only:
            return
        if self._takeover:  # before the claim: no two servers ever write under one number
            meta.generation = self._takeover.state.header.generation + 1
            self._takeover.state.change(generation=meta.generation)
        await meta.claim()
        reach("start.claimed")
        await session.open(self._takeover.state.header.sid if self._takeover else 0)
        reach("start.session")
        stack.push_async_callback(self._ending.close_session, meta, session)

    def _open_state(self, meta: Meta, volume: Volume, root: Ino) -> State:
        """Return the mount's state: the one handed over, with our generation, or a new one."""
        if self._takeover:
            state = self._takeover.state
            state.change(generation=meta.generation, sid=meta.sid, sealed=False, leaving={})
            return state
        return State.create(
            Header(
                mount_id=meta.mount_id,
                volume_uuid=volume.uuid,
                mountpoint=self._mountpoint,
                device="",
                block_size=volume.block_size_bytes,
                sid=meta.sid,
                root=root,
                cluster=meta.connection.url.kind is Kind.CLUSTER,
                options=fixed_options(self._settings),
            )
        )

    async def _restore(self, state: State, vfs: Vfs, path: DataPath) -> None:
        """Go on where the last server stopped: its handles, its locks, its pending slices."""
        if self._takeover is None:
            vfs.handles.journal = HandleJournal(state)
            return
        files = await restore_handles(state, vfs, vfs.meta)
        reach("adopt.handles")
        slices = state.slices()
        try:
            owed = {int(ino): number for ino, number in state.header.owed.items()}
            path.writer.adopt(slices, vfs.handles.open_inos(), owed)
        except ValueError as error:
            raise StateError(f"does not fit the write buffer that came with it ({error})") from None
        reach("adopt.slices")
        log.info("takes over %d open files and %d pending slices", files, len(slices))

    def _terms(self, volume: Volume) -> Terms:
        """Return what is agreed with the kernel: once for the life of the mount."""
        if self._takeover and self._takeover.state.header.init_out:
            return Terms.agreed(self._takeover.state.header.init_out)
        return Terms(volume.enable_acl, self._settings.max_readahead_bytes)

    # -- serve --------------------------------------------------------------------------------

    def _mount(self, volume: Volume, state: State) -> Mounted:
        """Return the mount to be served: a new one, or the one handed over."""
        if self._takeover:
            header = state.header
            return Mounted(self._mountpoint, header.device, self._takeover.fuse_fd, header.init_in)
        if self._fresh:
            fresh = self._fresh
            state.change(init_in=fresh.init_in, device=fresh.device)
            return Mounted(fresh.mountpoint, fresh.device, fresh.fuse_fd, fresh.init_in)
        settings = self._settings
        options = replace(
            settings.fuse, read_only=settings.read_only, allow_other=settings.allow_other
        )
        mounted = mounting.mount(self._mountpoint, volume.name, options)
        reach("start.mounted")
        state.change(init_in=mounted.init_in, device=mounted.device)
        return mounted

    def _register(self, volume: Volume) -> None:
        """Let commands find the mount."""
        settings = self._settings
        record = self._ending.record = MountRecord(
            self._mountpoint,
            self._meta_url,
            volume.name,
            volume.uuid,
            os.getpid(),
            settings.subdir,
            settings.read_only,
            options=settings.as_texts(),
            source=self._source.as_dict(),
            version=__version__,
            layout=LAYOUT,
        )
        register(record)

    def _request_journal(self, init_in: bytes) -> RequestJournal | None:
        """Return what must be kept of requests in flight, None if the kernel does it."""
        if inflight.repeats(init_in):
            return None
        log.info("this kernel does not send requests again: they are noted")
        return RequestJournal(self._takeover.requests_fd if self._takeover else None)

    async def _serve(
        self,
        stack: AsyncExitStack,
        vfs: Vfs,
        volume: Volume,
        session: MetaSession,
        jobs: JobSwitch,
        state: State,
        path: DataPath,
        store: VolumeStore,
        watching: Watching,
    ) -> None:
        settings = self._settings
        self._register(volume)
        mounted = self._mount(volume, state)
        stack.callback(os.close, mounted.fd)
        stack.callback(self._ending.detach, mounted)
        journal = self._request_journal(mounted.init_in)
        kernel = Session(
            vfs,
            mounted.fd,
            mounted.init_in,
            adopted=self._takeover is not None,
            init_out=state.header.init_out,
            terms=self._terms(volume),
            suspicion=Suspicion(
                state.memory,
                RUNNING_AT,
                self._takeover.poisoned if self._takeover else frozenset(),
            ),
            journal=journal,
        )
        vfs.meta.ack_source = native.take_answered
        kept = [Kept(STATE, state.fd), Kept(ARENA, path.arena.fd), Kept(FUSE, mounted.fd)]
        if journal is not None:  # before the descriptor that it belongs to
            kept.insert(0, Kept(REQUESTS, journal.fd))
        native.note_crashes(state.memory, CRASHED_AT)
        handover = Handover(kernel, vfs, state, self._telling.complete)
        stopper = self._ending.stopper(mounted, kernel, handover, path.writer, settings.stop_wait_s)
        succession = Succession(handover, self._notifier, lambda: kept)
        self._on_signals(stopper, handover, succession)
        self._control.on("upgrade", upgrading(succession, state))
        tuner = Tuner(
            vfs=vfs,
            path=path,
            store=store,
            session=session,
            jobs=jobs,
            device=mounted.device,
            exporter=watching.exporter,
        )
        reload = self._reloader(tuner, f"serving {volume.name}")
        stack.push_async_callback(reload.close)

        def push() -> None:
            park(self._notifier, kept)

        def ready(resent: bool) -> None:
            reach("adopt.resent")
            self._timing.mark("serve")
            self._life.enter(Phase.SERVING)
            if self._takeover is None:
                state.change(init_out=kernel.init_out)
            self._say_ready(push, "; ".join((reload.status, *self._former.aside)))
            mounting.set_readahead(mounted.device, settings.max_readahead_bytes)
            self._listen(watching, kernel)
            log.info(
                "%s is ready at %s (generation %d%s)",
                volume.name,
                self._mountpoint,
                state.header.generation,
                ", requests come again" if resent else "",
            )
            self._telling.begin(self._takeover, kernel, state)
            gc.freeze()
            gc.enable()
            self._on_hangup(reload)

        work = {
            "heartbeat": self._beat(session, stopper, kernel),
            "holder": keep_holder(push, self._revive),
            **self._after_a_takeover(kernel, vfs, jobs, state, path),
        }
        if self._notifier.watchdog_interval_s:
            work["watchdog"] = self._feed_watchdog()
        helpers = [asyncio.create_task(each, name=name) for name, each in work.items()]
        await jobs.set(not settings.no_bgjob)
        try:
            await kernel.serve(ready)
            self._ending.cut_off = await cut_off(mounted)
            self._life.enter(Phase.FLUSHING)
        finally:
            for task in helpers:
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    def _watching(
        self, stack: AsyncExitStack, volume: Volume, state: State, vfs: Vfs, path: DataPath
    ) -> Watching:
        """Return what tells how the mount is; it serves metrics once it is started."""
        report = Report(volume, lambda: self._settings, state, vfs, path)
        watching = Watching(report, inherits=self._takeover is not None)
        watching.listen(self._control)
        stack.push_async_callback(watching.close)
        return watching

    def _listen(self, watching: Watching, kernel: Session) -> None:
        """Be there for commands, and for whoever watches the mount."""
        self._control.start()
        watching.start(kernel)

    def _say_ready(self, push: Callable[[], None], status: str) -> None:
        push()
        reach("start.parked")
        self._notifier.ready(status)
        reach("start.ready")

    def _after_a_takeover(
        self, kernel: Session, vfs: Vfs, jobs: JobSwitch, state: State, path: DataPath
    ) -> dict[str, Coroutine[None, None, None]]:
        """Return what is to be done about the former server; called before we leave anything."""
        if self._takeover is None or self._settings.read_only:
            return {}
        drafts = state.drafts()
        aftermath = clear_away(
            kernel,
            vfs.meta,
            vfs.handles.open_inos,
            lambda: [record.id for record in path.writer.records()],
            lambda: settle(drafts, state, vfs.meta, path.blocks.delete_slice),
        )
        if self._settings.no_bgjob:
            return {"aftermath": aftermath}
        return {"aftermath": aftermath, "catch-up": jobs.catch_up()}

    async def _feed_watchdog(self) -> None:
        """Tell the keeper that this event loop turns."""
        while True:
            self._notifier.watchdog()
            await asyncio.sleep(self._notifier.watchdog_interval_s or 1.0)

    def _revive(self) -> None:
        """Start a new holder for this running server: the one that started it is gone."""
        command = own_command()
        start_holder(
            self._mountpoint,
            command.argv,
            command.env,
            adopt=True,
            listening=True,
            watchdog_s=WATCHDOG_S,
        )

    def _on_signals(
        self, stopper: Stopper | Leaver, handover: Handover, succession: Succession
    ) -> None:
        def stop() -> None:
            self._life.enter(Phase.STOPPING)
            self._notifier.stopping()
            reach("stop.asked")
            if self._life.phase is Phase.STOPPING:  # not when the mount is gone already
                stopper.request()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(HANDOVER_SIGNAL, handover.request)
        loop.add_signal_handler(UPGRADE_SIGNAL, succession.request)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)

    async def _beat(self, session: MetaSession, stopper: Stopper | Leaver, kernel: Session) -> None:
        """Keep the session alive.

        A volume that is gone, or another, ends the mount; a newer server of this mount
        ends this process and leaves the mount to it.
        """
        try:
            await session.run()
        except FencedError as error:
            log.error("this server ends: %s", error)  # noqa: TRY400
            self._ending.failure = JfsdError(str(error))
            self._ending.fenced = True
            kernel.stop()
        except RefusedError as error:
            log.error("the mount ends: %s", error)  # noqa: TRY400 - the error is the message
            self._ending.failure = error
            stopper.request()

    def _on_early_signals(self) -> None:
        """Let a signal during the start undo what was started; nobody uses the mount yet."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        loop.add_signal_handler(signal.SIGHUP, self._on_early_hangup)
        if task is not None and self._takeover is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, task.cancel)

    def _on_early_hangup(self) -> None:
        """Note a reload that is asked for during the start; it follows when all is there."""
        self._hangup = True

    def _on_hangup(self, reload: Reload) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.request)
        if self._hangup:
            reload.request()

    def _reloader(self, tuner: Tuner, status: str) -> Reload:
        """Return what reads the configuration again, when a signal or a command asks for it."""
        reload = Reload(
            self._source,
            self._wanted,
            tuner,
            self._notifier,
            status=status,
            on_change=self._changed,
        )
        self._control.on("reload", reloading(reload.run))
        return reload

    def _changed(self, settings: MountSettings) -> None:
        """Note what a reload has changed; who looks at the record sees it, too."""
        self._settings = settings
        record = self._ending.record
        if record is not None:
            self._ending.record = replace(record, options=settings.as_texts())
            register(self._ending.record)


def _options(settings: MountSettings, root: Ino, *, acls: bool) -> Options:
    return Options(
        attr_timeout_s=settings.attr_cache_s,
        entry_timeout_s=settings.entry_cache_s,
        dir_entry_timeout_s=settings.dir_entry_cache_s,
        open_cache_s=settings.open_cache_s,
        read_only=settings.read_only,
        xattrs=settings.enable_xattr,
        acls=acls,
        root=root,
    )
