"""`make run`: real work on a real volume, with nothing but the installed `jfsd` command.

Starts a private Redis, formats a volume on a directory, mounts it, copies a tree onto it,
verifies every byte through the mount, mounts it again with cold caches and verifies once
more. Then it mounts in the background, and while a load that checks itself runs, the server
is restarted, reloaded, upgraded and killed; a table shows what programs felt of it, beside
the reference's smooth upgrade where `juicefs` is installed.

Prints what it did and how long it took; the exit status says whether all was well.
Whatever happens, nothing is left: no mount, no process, no file.

The servers are children of this process and the load runs in children of its own, so a
server never inherits files of the mount, and a mount that hangs can be aborted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.events import Background, Outcome, table, under_load

HERE = Path(__file__).resolve().parent
JFSD = Path(sys.executable).with_name("jfsd")
SOURCES = ("/usr/share", "/usr/lib/python3", "/usr/include", "/usr/lib")
START_LIMIT_S = 30
WORK_LIMIT_S = 900
CONNECTIONS = Path("/sys/fs/fuse/connections")


class RunFailedError(Exception):
    """The run did not do what it should; the text says what."""


class Step(NamedTuple):
    """One line of the table at the end."""

    what: str
    seconds: float
    amount: str = ""


class Run:
    """One run: its directory, its children, what it has done so far."""

    def __init__(self, files: int, large_mib: int, rounds: int) -> None:
        self.files = files
        self.rounds = rounds
        self.tables: list[str] = []
        self.large_mib = large_mib
        self.steps: list[Step] = []
        self.stack = contextlib.ExitStack()
        self.root = Path(tempfile.mkdtemp(prefix="jfsd-run-"))
        self.stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        self.mountpoint = self.root / "mnt"
        self.meta_url = f"unix://{self.root}/redis.sock?db=1"
        self.server: subprocess.Popen[bytes] | None = None

    def main(self) -> None:
        """Do everything, in order."""
        self.mountpoint.mkdir()
        with self.timed("start a private Redis"):
            self.start_redis()
        with self.timed("format a volume on a directory"):
            self.call("format", self.meta_url, "demo", "--storage", "file", "--bucket", "objects/")
        with self.timed("mount"):
            self.mount("cache-1")
        tree = self.work("plan", "--files", str(self.files), "--large-mib", str(self.large_mib))
        self.work_step(f"copy {tree['files']} files and links", "copy")
        self.work_step("verify checksums through the mount", "verify")
        with self.timed("unmount"):
            self.unmount()
        dropped = drop_page_cache()
        with self.timed("mount again, cache empty" + (", page cache dropped" if dropped else "")):
            self.mount("cache-2")
        self.work_step("verify checksums once more, cold", "verify")
        self.show_usage()
        with self.timed("unmount"):
            self.unmount()
        self.events()

    def events(self) -> None:
        """Let servers come and go under a load; fail if a program notices."""
        rounds = self.rounds
        if not rounds:
            return
        with self.timed("mount in the background"):
            command = self.mount_background()
        mount = Background(command, self.mountpoint, self.environment())
        series = [("restart", mount.restart), ("reload", mount.reload)]
        series += [("upgrade", mount.upgrade), ("kill", mount.kill)]
        felt = {}
        with self.timed("restart, reload, upgrade and kill it under a checked load"):
            felt["jfsd"] = self.felt(self.mountpoint / "load", series * rounds)
        with self.timed("unmount"):
            self.call("umount", str(self.mountpoint), limit_s=WORK_LIMIT_S)
        program = shutil.which("juicefs", path=f"{JFSD.parent}:{os.environ.get('PATH', '')}")
        if program:
            with self.timed("the same load beside the reference's smooth upgrade"):
                felt["juicefs"] = self.reference(program, rounds)
        self.tables += ["what a program felt, the longest of each kind of event:", *table(felt)]
        if not felt["jfsd"].fine:
            complaints = felt["jfsd"].errors + felt["jfsd"].wrong
            raise RunFailedError("a program noticed: " + "; ".join(complaints[:10]))

    def felt(self, top: Path, series: list[tuple[str, Callable[[], None]]]) -> Outcome:
        """Run the load in a child; a mount that hangs is aborted at the time limit."""
        top.mkdir()
        return in_child(lambda: under_load(top, series), lambda: abort(self.mountpoint))

    def mount_background(self) -> list[str]:
        """Mount under a holder; return the command, which upgrades when it is run again."""
        arguments = ["mount", "-d", self.meta_url, str(self.mountpoint)]
        arguments += ["--cache-dir", str(self.root / "cache-3")]
        self.stack.callback(take_away, self.mountpoint)
        self.stack.callback(self.end_background)
        self.call(*arguments)
        return [str(JFSD), *arguments]

    def end_background(self) -> None:
        """Unmount what runs in the background, if it still does."""
        if device_of(self.mountpoint):
            with contextlib.suppress(RunFailedError):
                self.call("umount", str(self.mountpoint))

    def reference(self, program: str, rounds: int) -> Outcome:
        """Let the reference serve the same volume, and upgrade it a few times."""
        command = [program, "mount", "-d", "--no-usage-report", "--no-syslog", "--no-agent"]
        command += ["--enable-xattr", "--backup-meta", "0", "--log", f"{self.root}/juicefs.log"]
        command += ["--cache-dir", f"{self.root}/cache-4", self.meta_url, str(self.mountpoint)]

        def upgrade() -> None:
            subprocess.run(command, check=True, timeout=120, capture_output=True, cwd=self.root)

        self.stack.callback(take_away, self.mountpoint)
        try:
            upgrade()
            return self.felt(self.mountpoint / "reference", [("upgrade", upgrade)] * rounds)
        finally:
            subprocess.run([program, "umount", self.mountpoint], check=False, capture_output=True)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Measure a step and say that it is being done."""
        print(f"  {what} ...", flush=True)
        started = time.monotonic()
        yield
        self.steps.append(Step(what, time.monotonic() - started))

    def environment(self) -> dict[str, str]:
        """Return the environment of the children: records of mounts stay in our directory."""
        return {**os.environ, "JFSD_RUNTIME_DIR": str(self.root / "run")}

    def start_redis(self) -> None:
        """Start a Redis that listens on a socket in our directory only."""
        program = shutil.which("redis-server")
        if program is None:
            raise RunFailedError("redis-server is not installed; run `make packages`")
        socket = self.root / "redis.sock"
        arguments = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
        with (self.root / "redis.log").open("wb") as log:
            child = subprocess.Popen(
                [program, *arguments], stdout=log, stderr=log, cwd=self.root, start_new_session=True
            )
        self.stack.callback(end, child)
        wait_for(socket.exists, child, "redis-server", self.root / "redis.log")

    def call(self, *arguments: str, limit_s: float = 60) -> str:
        """Run the command to its end and return what it printed."""
        arguments = tuple(a.replace("objects/", f"{self.root}/objects/") for a in arguments)
        try:
            done = subprocess.run(
                [JFSD, *arguments],
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
                env=self.environment(),
            )
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"jfsd {arguments[0]} took longer than {limit_s} s") from None
        if done.returncode:
            raise RunFailedError(f"jfsd {arguments[0]} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def mount(self, cache: str) -> None:
        """Start the daemon in the foreground and return when it serves."""
        log_path = self.root / f"{cache}.log"
        arguments = ["mount", self.meta_url, str(self.mountpoint)]
        arguments += ["--cache-dir", str(self.root / cache)]
        with log_path.open("wb") as log:
            self.server = subprocess.Popen(
                [JFSD, *arguments],
                stdout=log,
                stderr=log,
                cwd=self.root,
                start_new_session=True,
                env=self.environment(),
            )
        self.stack.callback(end, self.server)
        self.stack.callback(take_away, self.mountpoint)
        wait_for(lambda: bool(device_of(self.mountpoint)), self.server, "jfsd mount", log_path)

    def unmount(self) -> None:
        """Unmount; the daemon has stored everything and ended well."""
        self.call("umount", str(self.mountpoint), limit_s=WORK_LIMIT_S)
        assert self.server is not None
        status = self.server.wait(timeout=WORK_LIMIT_S)
        if status:
            raise RunFailedError(f"jfsd mount ended with {status}")

    def work(self, verb: str, *arguments: str) -> dict[str, int]:
        """Run a verb of the load in a child; a mount that hangs is aborted at the time limit."""
        command = [sys.executable, HERE / "load.py", verb, *arguments]
        paths = ["--manifest", self.root / "manifest.json", "--target", self.mountpoint / "tree"]
        child = subprocess.Popen(
            [*command, *paths], stdout=subprocess.PIPE, cwd=self.root, start_new_session=True
        )
        try:
            output, _ = child.communicate(timeout=WORK_LIMIT_S)
        except subprocess.TimeoutExpired:
            abort(self.mountpoint)
            raise RunFailedError(f"{verb} took longer than {WORK_LIMIT_S} s") from None
        finally:
            end(child)
        if child.returncode:
            raise RunFailedError(f"{verb} failed; see above")
        return dict(json.loads(output))

    def work_step(self, what: str, verb: str) -> None:
        """Run a verb of the load as a step with its rate."""
        with self.timed(what):
            done = self.work(verb)
        step = self.steps.pop()
        mib = done["bytes"] / (1 << 20)
        rate = f"{mib:.0f} MiB, {mib / step.seconds:.0f} MiB/s, "
        self.steps.append(
            step._replace(amount=rate + f"{done['files'] / step.seconds:.0f} files/s")
        )

    def show_usage(self) -> None:
        """Ask the command what it says about the volume."""
        usage = json.loads(self.call("status", str(self.mountpoint)))["Stat"]
        used = usage["UsedSpace"] / (1 << 20)
        print(f"  jfsd status: {used:.0f} MiB in {usage['UsedInodes']} inodes", flush=True)

    def report(self) -> None:
        """Print the table of steps."""
        width = max((len(step.what) for step in self.steps), default=0)
        print()
        for step in self.steps:
            print(f"  {step.what:<{width}}  {step.seconds:7.2f} s  {step.amount}")
        print(f"  {'in all':<{width}}  {sum(step.seconds for step in self.steps):7.2f} s")
        if self.tables:
            print("", *self.tables, sep="\n")

    def show_logs(self) -> None:
        """Print the end of the daemon's logs, for a failure."""
        for log in sorted(self.root.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-20:]
            print(f"--- {log.name}", *lines, sep="\n", file=sys.stderr)


def in_child(work: Callable[[], Outcome], on_hang: Callable[[], None]) -> Outcome:
    """Do the work in a child of ours, so that no server inherits what it has open."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            with os.fdopen(writer, "wb") as sink:
                pickle.dump(work(), sink)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    hang = threading.Timer(WORK_LIMIT_S, on_hang)
    hang.start()
    try:
        with os.fdopen(reader, "rb") as source:
            answer = source.read()
    finally:
        hang.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not answer:
        raise RunFailedError("the load under events failed; see above")
    outcome: Outcome = pickle.loads(answer)
    return outcome


def device_of(mountpoint: Path) -> str:
    """Return major:minor of what is mounted there, "" if nothing is; does not touch it."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if fields[4] == str(mountpoint):
            return fields[2]
    return ""


def drop_page_cache() -> bool:
    """Drop the kernel's caches; False where this machine does not allow it."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def wait_for(
    ready: Callable[[], bool], child: subprocess.Popen[bytes], name: str, log: Path
) -> None:
    """Return when `ready`; fail if the child ends before, or time is over."""
    limit = time.monotonic() + START_LIMIT_S
    while not ready():
        if child.poll() is not None:
            text = log.read_text(errors="replace").strip()
            raise RunFailedError(f"{name} ended with {child.returncode}: {text}")
        if time.monotonic() > limit:
            raise RunFailedError(f"{name} did not get ready in {START_LIMIT_S} s")
        time.sleep(0.02)


def abort(mountpoint: Path) -> None:
    """Free everything that hangs on a mount whose server does not answer."""
    device = device_of(mountpoint)
    if not device:
        return
    if not any(CONNECTIONS.glob("*")):
        subprocess.run(["mount", "-t", "fusectl", "none", CONNECTIONS], check=False)
    with contextlib.suppress(OSError):
        (CONNECTIONS / device.partition(":")[2] / "abort").write_text("1")


def take_away(mountpoint: Path) -> None:
    """Remove a mount that is still there."""
    if device_of(mountpoint):
        abort(mountpoint)
        subprocess.run(["umount", "-l", mountpoint], check=False)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child, the hard way if need be."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def stop(number: int, _frame: object) -> None:
    """Turn a signal into an orderly end."""
    raise SystemExit(128 + number)


def main() -> int:
    """Run it all and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=12_000, help="at most so many files")
    parser.add_argument("--large-mib", type=int, default=384, help="MiB in a few large files")
    parser.add_argument("--rounds", type=int, default=4, help="events of each kind")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    print("jfsd: real work on a volume of its own", flush=True)
    run = Run(options.files, options.large_mib, options.rounds)
    with run.stack:
        try:
            run.main()
        except RunFailedError as failure:
            run.report()
            run.show_logs()
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
        except SystemExit:
            print("interrupted; cleaning up", file=sys.stderr)
            raise
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        run.report()
    print("OK: every file was read back as it was written, warm and cold", flush=True)
    if options.rounds:
        print("OK: no program noticed that its server was replaced", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
