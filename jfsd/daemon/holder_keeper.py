"""The holder's heart: one mount's descriptors, and always one server for them.

Invariants: at most one process has been told to serve and has not ended; a server is
started with everything that is kept; nothing that is kept is closed but by its server's
word, or with the holder itself.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from enum import Enum

from jfsd.daemon.holder_child import Command, ServerProcess, reap_strangers, signal_name, spawn
from jfsd.daemon.holder_control import Control, Order
from jfsd.daemon.holder_kernel import become_subreaper
from jfsd.daemon.holder_log import OWN_LOGGER, LogFile
from jfsd.daemon.holder_loop import Loop
from jfsd.daemon.holder_place import HolderError, Place
from jfsd.daemon.holder_policy import Death, Delays, Verdict, judge
from jfsd.daemon.holder_store import FUSE, Store
from jfsd.daemon.holder_successor import Successor
from jfsd.daemon.holder_wire import Json, Notice, close_all, descends, receive_notice
from jfsd.errors import ExitCode
from jfsd.record import Record

log = logging.getLogger(OWN_LOGGER)

ABORT_GRACE_S = 2.0
"""From SIGABRT, which leaves a traceback, to SIGKILL, which leaves nothing."""

STOP_GRACE_S = 5.0
"""From SIGTERM to SIGKILL for a server that never came up."""

_TRIM_EVERY_S = 60.0
_EVENTS = 32
_CALLS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD))


class Stage(Enum):
    """What the holder is about."""

    ADOPTING = "adopting"
    """A server runs somewhere and is to push its descriptors."""
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    """The server was asked to hand over."""
    WAITING = "waiting"
    """No server runs; the next start is due soon."""
    ENDED = "ended"


class Terms(Record):
    """What the holder may expect of its server, in seconds."""

    ready_s: float = 60.0
    drain_s: float = 30.0
    watchdog_s: float = 0.0
    """0: the server's silence means nothing."""


class Keeper:
    """Keeps one mount served; `run` returns when it is gone."""

    def __init__(
        self,
        place: Place,
        command: Command,
        terms: Terms,
        *,
        logfile: LogFile | None = None,
        report: Callable[[Json], None] = lambda _: None,
    ) -> None:
        """Prepare; the lock of `place` is ours.

        Args:
            place: Where to listen.
            command: How to start the server.
            terms: Time limits.
            logfile: Where the server's last words can be read.
            report: Told {"holder": pid}, then {"ready": pid} or {"error": …} once.
        """
        self.store = Store()
        self.stage = Stage.WAITING
        self.left_mount = False
        """Whether a mount was made that nobody has served."""
        self._place = place
        self._command = command
        self._former: Command | None = None
        self._terms = terms
        self._log = logfile or LogFile(None)
        self._log_began = 0
        self._report = report

        self._server: ServerProcess | None = None
        self._successor: Successor | None = None
        self._orders: deque[Order] = deque()
        self._stops: list[Order] = []
        self._stop_wanted = False

        self._first = True
        self._expired = False
        self._delays = Delays()
        self._cause = "start"
        self._ended_s = 0.0
        self._drain_ms: float | None = None
        self._restarts = 0
        self._events: deque[Json] = deque(maxlen=_EVENTS)
        self._exit_code = 0

        self._loop = Loop()

    # -- the loop -----------------------------------------------------------------------------

    def run(self, *, adopt: bool = False) -> int:
        """Start a server, or wait for one that runs; return when the mount is gone.

        Returns:
            The last server's exit code; of a server that never came up, too.
        """
        with ExitStack() as stack:
            stack.callback(self.store.close)
            self._listen(stack)
            self._report({"holder": os.getpid()})
            if adopt:
                self.stage = Stage.ADOPTING
                self._loop.after("ready", self._terms.ready_s, self._nobody_came)
            else:
                self._start()
                self._loop.after("ready", self._terms.ready_s, self._not_ready)
            self._loop.after("trim", _TRIM_EVERY_S, self._trim)
            while self.stage is not Stage.ENDED:
                self._loop.turn(self._look)
            self._control.close()
        return self._exit_code

    def _listen(self, stack: ExitStack) -> None:
        become_subreaper()
        self._loop.listen_to(_CALLS, stack)
        self._notices = stack.enter_context(self._place.listen_notify())
        self._loop.watch(self._notices)
        self._control = Control(self, self._place.listen_control(), self._loop)
        stack.callback(self._control.close)

    def _look(self) -> None:
        """Hear what was said, then see who has ended: words come before the end."""
        server, successor = self._server, self._successor
        server_ended = server is not None and server.ended
        successor_ended = successor is not None and successor.process.ended
        while (notice := receive_notice(self._notices)) is not None:
            self._on_notice(notice)
        if successor_ended and successor is self._successor:
            self._successor_died()
        if server_ended and server is self._server:
            self._on_end()
        mine = (self._server, self._successor.process if self._successor else None)
        reap_strangers({process.pid for process in mine if process})
        self._answer_calls()

    def _trim(self) -> None:
        with suppress(OSError):
            self._log.trim()
        self._loop.after("trim", _TRIM_EVERY_S, self._trim)

    def _answer_calls(self) -> None:
        """Do what signals to the holder ask for."""
        calls = self._loop.take_calls()
        if calls & {signal.SIGTERM, signal.SIGINT}:
            self.stop(Order("stop"))
        if signal.SIGHUP in calls and self._server and self.stage is Stage.SERVING:
            self._server.send_signal(signal.SIGHUP)
        if signal.SIGUSR2 in calls:
            self.replace(Order("restart"))

    # -- start --------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the server now."""
        self._loop.cancel("start")
        self._log_began = self._log.size()
        try:
            pid = spawn(self._command, self.store.all(), self._variables())
        except OSError as error:
            self._could_not_start(error)
            return
        self._expired = False
        self._attend(ServerProcess(pid))
        self.stage = Stage.STARTING
        if not self._first:
            self._loop.after("ready", self._terms.ready_s, self._not_ready)
        log.info("server %d starts (%s)", pid, self._cause)

    def _variables(self) -> dict[str, str]:
        found = {
            "NOTIFY_SOCKET": os.fspath(self._place.notify),
            "JFSD_HOLDER": os.fspath(self._place.control),
        }
        if self._terms.watchdog_s:
            found["WATCHDOG_USEC"] = str(round(self._terms.watchdog_s * 1e6))
        return found

    def _attend(self, process: ServerProcess | None) -> None:
        """Make `process` the server, and be woken when it ends."""
        if self._server is not None:
            self._loop.forget(self._server.fd)
            self._server.close()
        self._server = process
        if process is not None:
            self._loop.watch(process.fd)

    def _could_not_start(self, error: OSError) -> None:
        log.error("cannot run %s: %s", self._command.argv[0], error.strerror)
        self._dispose(self._death(127 << 8), str(error))

    def _not_ready(self) -> None:
        """End a server that has not said that it is ready: it hangs."""
        self._expired = True
        if self._server is None:  # between two attempts of a first start
            self._fail("", ExitCode.FAILURE)
            return
        log.warning("server %d is not ready in time", self._server.pid)
        if self._first:
            self._server.send_signal(signal.SIGTERM)
            self._loop.after("kill", STOP_GRACE_S, self._kill)
        else:
            self._abort()

    def _nobody_came(self) -> None:
        if self._server is None and FUSE in self.store:
            log.warning("filled, but without a server: one is started")
            self._loop.after("ready", self._terms.ready_s, self._not_ready)
            self._start()
            return
        self._fail("no running server has come to this holder", ExitCode.FAILURE)

    # -- what the server says -----------------------------------------------------------------

    def _on_notice(self, notice: Notice) -> None:
        fields, fds = notice.fields, notice.fds
        if not self._is_ours(notice):
            log.warning(
                "a message of process %d of user %d is ignored",
                notice.sender.pid,
                notice.sender.uid,
            )
            close_all(fds)
            return
        if fields.get("FDSTORE") == "1":
            self.hold(fields.get("FDNAME") or "stored", fds)
            fds = []
        if fields.get("FDSTOREREMOVE") == "1":
            self.store.remove(fields.get("FDNAME", ""))
        close_all(fds)  # a barrier's among them: its sender sees the hang-up
        if "MAINPID" in fields:
            self._take_main(_number(fields["MAINPID"]))
        if self._server is not None and notice.sender.pid == self._server.pid:
            self._on_state(self._server, fields)

    def _is_ours(self, notice: Notice) -> bool:
        """Whether the sender may speak: our user, and the server or a descendant of ours."""
        if not notice.sender.is_trusted:
            return False
        return descends(notice.sender.pid, self._family())

    def _family(self) -> set[int]:
        return {os.getpid(), self._server.pid} if self._server else {os.getpid()}

    def _on_state(self, server: ServerProcess, fields: dict[str, str]) -> None:
        if "STATUS" in fields:
            server.text = fields["STATUS"]
        if fields.get("STOPPING") == "1":
            server.said_stopping = True
        if "EXTEND_TIMEOUT_USEC" in fields:
            self._extend(_number(fields["EXTEND_TIMEOUT_USEC"]) / 1e6)
        if fields.get("READY") == "1" and self.stage is Stage.STARTING:
            self._on_ready(server)
        if fields.get("WATCHDOG") == "1":
            self._arm_watchdog()
        elif fields.get("WATCHDOG") == "trigger":
            self._abort()

    def _extend(self, seconds: float) -> None:
        if self._first:
            self._report({"more_s": seconds})
        for name in ("ready", "drain"):
            self._loop.extend(name, seconds)

    def hold(self, name: str, fds: Sequence[int]) -> None:
        """Keep the descriptors; a running server that fills an empty holder is adopted by it."""
        if self.store.put(name, fds):
            log.error("too many descriptors: one named %s is not kept", name)
        if self.stage is Stage.ADOPTING and self._server is not None and FUSE in self.store:
            self._cause = "adopt"
            self.stage = Stage.STARTING
            self._on_ready(self._server)

    def _take_main(self, pid: int) -> None:
        """Follow the server's word that another process, which it prepared, serves now."""
        old = self._server
        if old is None or pid == old.pid or not descends(pid, {os.getpid(), old.pid}):
            return
        try:
            server = ServerProcess(pid)
        except ProcessLookupError:
            log.warning("the server hands over to process %d, which is gone", pid)
            return
        self._dismiss_successor("another server took over")
        self._cause = "handover"
        self._ended_s = time.monotonic()
        self._loop.cancel("ready", "drain", "kill")
        self._attend(server)
        self.stage = Stage.STARTING
        self._on_ready(server)

    def _on_ready(self, server: ServerProcess) -> None:
        server.ready_s = time.monotonic()
        self.stage = Stage.SERVING
        self._loop.cancel("ready", "kill", "drain")
        self._arm_watchdog()
        self._former = None
        event = self._record_event(server)
        if self._first:
            self._first = False
            self._report({"ready": server.pid})
        if self._orders and self._orders[0].begun:
            order = self._orders.popleft()
            failed = {"ok": False, "error": order.failure} if order.failure else {"ok": True}
            order.answer({**failed, "pid": server.pid, "phases": event})
        self._cause = "crash"
        self._drain_ms = None
        if self._stop_wanted:
            self._ask_to_stop()
        self._next_order()

    def _record_event(self, server: ServerProcess) -> Json:
        now_s = time.monotonic()
        event: Json = {
            "event": self._cause,
            "at": round(time.time(), 3),
            "pid": server.pid,
            "start_ms": _ms(now_s - server.started_s),
        }
        for name, value in (("drain_ms", self._drain_ms), ("warm_ms", server.warm_ms)):
            if value is not None:
                event[name] = value
        if not self._first:
            event["gap_ms"] = _ms(now_s - self._ended_s)
        self._events.append(event)
        log.info(
            "server %d is ready: %s", server.pid, " ".join(f"{k}={v}" for k, v in event.items())
        )
        return event

    # -- the server hangs ---------------------------------------------------------------------

    def _arm_watchdog(self) -> None:
        if self._terms.watchdog_s and self.stage is Stage.SERVING:
            self._loop.after("watchdog", self._terms.watchdog_s, self._bark)

    def _bark(self) -> None:
        if self._server is not None and self.stage is Stage.SERVING:
            log.error("server %d has been silent for too long", self._server.pid)
            self._cause = "watchdog"
            self._abort()

    def _abort(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGABRT)
            self._loop.after("kill", ABORT_GRACE_S, self._kill)

    def _kill(self) -> None:
        if self._server is not None:
            log.warning("server %d is killed", self._server.pid)
            self._server.send_signal(signal.SIGKILL)

    # -- the server ends ----------------------------------------------------------------------

    def _death(self, status: int | None, ready_s: float | None = None) -> Death:
        return Death(
            status,
            was_ready=ready_s is not None,
            ready_for_s=0.0 if ready_s is None else self._ended_s - ready_s,
            expired=self._expired,
            first=self._first,
            has_former=self._former is not None,
            holds_fuse=FUSE in self.store,
            holds_any=len(self.store) > 0,
        )

    def _on_end(self) -> None:
        server = self._server
        assert server is not None  # noqa: S101 - the caller has seen it end
        self._ended_s = time.monotonic()
        death = self._death(server.status, server.ready_s)
        words = "" if death.was_ready else self._log.last_words(self._log_began)
        level = logging.INFO if server.exit_code == 0 else logging.WARNING
        log.log(
            level, "server %d %s%s", server.pid, server.ended_how, f": {words}" if words else ""
        )
        self._exit_code = server.exit_code or 0
        self._loop.cancel("kill", "watchdog", "drain", *(() if self._first else ("ready",)))
        if server.said_stopping and len(self.store):
            self._stop_wanted = True  # it was killed on its way: the next one goes on there
        if self.stage is Stage.DRAINING and self._orders:
            self._drain_ms = _ms(self._ended_s - self._orders[0].began_s)
        if self._expired:
            words = f"not ready within {self._terms.ready_s:g} s" + (f": {words}" if words else "")
        self._dispose(death, words or f"the server {server.ended_how} before it was ready")

    def _dispose(self, death: Death, words: str) -> None:
        """Do what is to be done after this death."""
        drained = self.stage is Stage.DRAINING
        if self._server is not None and self._first:
            self._exit_code = self._server.exit_code or ExitCode.FAILURE
        self._attend(None)
        verdict = judge(death)
        if verdict is Verdict.FAIL:
            self._fail(words, self._exit_code or ExitCode.FAILURE)
            return
        if verdict is Verdict.END:
            self._end()
            return
        self._restarts += 1
        self.stage = Stage.WAITING
        if verdict is Verdict.FALL_BACK:
            self._fall_back(words)
        successor = self._take_successor()
        if successor is not None:
            self._promote(successor)
            return
        at_once = drained or verdict is Verdict.FALL_BACK
        self._loop.after("start", 0.0 if at_once else self._delays.after(death), self._start)
        self._next_order()

    def _fall_back(self, words: str) -> None:
        log.error("the new server refuses; the former is started again: %s", words)
        if self._orders and self._orders[0].begun:
            self._orders[0].failure = words
        if self._former is not None:
            self._command, self._former = self._former, None
        self._cause = "fall back"

    def _fail(self, words: str, code: int) -> None:
        """Give up a first start: nobody has used the mount yet."""
        message = words or f"not ready within {self._terms.ready_s:g} s"
        self._exit_code = code or ExitCode.FAILURE
        self.left_mount = FUSE in self.store
        self._report({"error": message, "exit_code": self._exit_code})
        self._end()

    def _end(self) -> None:
        self._dismiss_successor("the mount is gone")
        self.stage = Stage.ENDED
        for order in self._orders:
            order.answer({"ok": False, "error": "the mount is gone"})
        for order in self._stops:
            order.answer({"ok": True, "exit_code": self._exit_code})

    # -- orders -------------------------------------------------------------------------------

    def stop(self, order: Order) -> None:
        """Have the server take the mount away; answered when it is gone."""
        self._stops.append(order)
        if self._stop_wanted:
            return
        self._stop_wanted = True
        log.info("asked to stop")
        self._dismiss_successor("the mount is being stopped")
        for waiting in [order for order in self._orders if not order.begun]:
            waiting.answer({"ok": False, "error": "the mount is being stopped"})
            self._orders.remove(waiting)
        if self.stage in {Stage.SERVING, Stage.STARTING}:
            self._ask_to_stop()
        elif self.stage is Stage.ADOPTING or self._first:
            self._fail("stopped before a server was ready", ExitCode.FAILURE)

    def _ask_to_stop(self) -> None:
        """Send SIGTERM, once in a server's life: a second one would not wait for open files."""
        if self._server is not None and signal.SIGTERM not in self._server.signalled:
            self._server.send_signal(signal.SIGTERM)

    def replace(self, order: Order) -> None:
        """Have the next server take over from this one; answered when it is ready."""
        if self._stop_wanted:
            order.answer({"ok": False, "error": "the mount is being stopped"})
            return
        self._orders.append(order)
        self._next_order()

    def _next_order(self) -> None:
        """Begin with the next order, if one waits and the server is in a state for it."""
        if not self._orders or self._orders[0].begun or self._stop_wanted:
            return
        order = self._orders[0]
        if self.stage is Stage.SERVING:
            order.begin()
            if order.warm:
                self._prepare(order)
            else:
                self._drain(order)
        elif self.stage is Stage.WAITING and not self._first:
            order.begin()  # no server runs anyway: the next start is the order's
            self._adopt_command(order)
            self._loop.after("start", 0.0, self._start)

    def _drain(self, order: Order) -> None:
        """Ask the server to hand over; what it has not finished comes again to the next."""
        self._adopt_command(order)
        self.stage = Stage.DRAINING
        self._loop.cancel("watchdog")
        order.began_s = time.monotonic()
        if self._server is not None:
            self._server.send_signal(signal.SIGUSR2)
        self._loop.after("drain", order.drain_s or self._terms.drain_s, self._kill)

    def _adopt_command(self, order: Order) -> None:
        self._cause = order.kind
        if order.command is not None and order.command is not self._command:
            self._former, self._command = self._command, order.command

    # -- a server beside the server -----------------------------------------------------------

    def _prepare(self, order: Order) -> None:
        """Start the next server beside the running one; it takes over when it is warm."""
        self._log_began = self._log.size()
        command = order.command or self._command
        try:
            successor = Successor(command, self.store.all(), self._variables())
        except OSError as error:
            self._refuse_successor(str(error))
            return
        self._successor = successor
        self._loop.watch(successor.process.fd)
        self._loop.watch(successor, self._on_successor)
        self._loop.after("warm", order.ready_s or self._terms.ready_s, self._too_cold)
        log.info("server %d warms up", successor.process.pid)

    def _on_successor(self) -> None:
        """Hear that it is warm; or that it went, which its end will tell more of."""
        if self._successor is None:
            return
        self._loop.forget(self._successor)
        if self._successor.hear() and self.stage is Stage.SERVING and self._orders:
            self._loop.cancel("warm")
            self._drain(self._orders[0])

    def _too_cold(self) -> None:
        if self._successor is not None:
            log.warning("server %d is not warm in time", self._successor.process.pid)
            self._successor.process.send_signal(signal.SIGKILL)

    def _successor_died(self) -> None:
        """Go on with the server that runs; if it is on its way out, start the next anew."""
        successor = self._take_successor()
        if successor is None:
            return
        words = self._log.last_words(self._log_began) or f"it {successor.process.ended_how}"
        successor.close()
        if self.stage is not Stage.DRAINING:
            self._refuse_successor(words)

    def _refuse_successor(self, words: str) -> None:
        log.error("the next server cannot take over: %s", words)
        if self._orders and self._orders[0].begun:
            self._orders.popleft().answer({"ok": False, "error": words})
        self._next_order()

    def _promote(self, successor: Successor) -> None:
        """Let the prepared server serve: the former has ended."""
        self._adopt_command(self._orders[0])  # not yet, if the former died before it was asked
        self._expired = False
        self._attend(successor.promote(self.store.all()))
        self.stage = Stage.STARTING
        self._loop.after("ready", self._terms.ready_s, self._not_ready)

    def _dismiss_successor(self, why: str) -> None:
        """End a server that is not needed any more; it serves nothing yet."""
        successor = self._take_successor()
        if successor is None:
            return
        successor.dismiss()
        if self._orders and self._orders[0].begun:
            self._orders.popleft().answer({"ok": False, "error": why})

    def _take_successor(self) -> Successor | None:
        successor, self._successor = self._successor, None
        if successor is not None:
            self._loop.cancel("warm")
            self._loop.forget(successor.process.fd)
            self._loop.forget(successor)
        return successor

    # -- for the control socket ---------------------------------------------------------------

    def guard(self, pid: int) -> None:
        """Accept a server that wants to know when this holder is gone.

        Raises:
            HolderError: It is not the server of this mount.
        """
        if self.stage is Stage.ADOPTING and self._server is None:
            self._attend(ServerProcess(pid))
            log.info("server %d is being adopted", pid)
        elif not descends(pid, self._family()):
            raise HolderError(f"process {pid} is not the server of this mount")

    def status(self) -> Json:
        """Return how things are."""
        server = self._server
        found: Json = {
            "holder": os.getpid(),
            "stage": self.stage.value,
            "stopping": self._stop_wanted,
            "descriptors": self.store.counts(),
            "restarts": self._restarts,
            "events": list(self._events),
        }
        if server is not None:
            found["server"] = {
                "pid": server.pid,
                "status": server.text,
                "ready": server.ready_s is not None,
                "uptime_s": round(time.monotonic() - server.started_s, 3),
                "signals": sorted(signal_name(number) for number in server.signalled),
            }
        return found


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
