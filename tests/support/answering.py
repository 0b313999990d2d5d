"""A control socket that answers what a test wants, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jfsd.daemon.control import Control

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jfsd.daemon.control import Handler


@contextmanager
def answering(place: str, **handlers: Handler) -> Iterator[Control]:
    """Serve the handlers by the name of their verb while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Control:
        control = Control(place)
        for verb, handler in handlers.items():
            control.on(verb, handler)
        control.start()
        return control

    control = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield control
    finally:
        asyncio.run_coroutine_threadsafe(control.close(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
