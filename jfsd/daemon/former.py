"""What a server goes on with as its predecessor had it, though its file says otherwise by now.

A mount that is live is never given up for a change of a configuration file. What the kernel
fixed at mount time stays, and so do the former store and metadata URL if the new ones are
not found to be this volume's. All of it is told in the log and in the service's status.
What a command line says is refused instead: there somebody sees the refusal.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from jfsd.config.runtime import find
from jfsd.config.settings import settings_from_texts
from jfsd.config.source import Wanted, differences
from jfsd.daemon.store import same_address, try_store, with_address
from jfsd.daemon.takeover import keeping_fixed
from jfsd.daemon.trial import check_volume_at
from jfsd.errors import JfsdError, RefusedError

if TYPE_CHECKING:
    from jfsd.config.settings import MountSettings
    from jfsd.config.source import Source
    from jfsd.config.volume import Volume
    from jfsd.daemon.takeover import Takeover

log = logging.getLogger(__name__)


class Former:
    """The predecessor of a server, as far as it decides how this one serves."""

    def __init__(
        self, takeover: Takeover | None, source: Source, *, serves: bool, aside: str = ""
    ) -> None:
        """Look at what was taken over.

        Args:
            takeover: The live mount; None if there is none, and nothing to go on with.
            source: Where the wanted settings came from.
            serves: The predecessor serves until this server is ready: what cannot be as it
                is wanted is an error, for nobody depends on this server yet.
            aside: What was set aside before.
        """
        self._takeover = takeover
        self._source = source
        self._serves = serves
        self.aside = [aside] if aside else []
        """What is not as it was configured, for people."""

    def fixed(self, asked: Wanted) -> Wanted:
        """Return what is wanted with the values that the kernel fixed at mount time."""
        if self._takeover is None or not self._source.config:
            return asked
        header = self._takeover.state.header
        place = asked.mountpoint if self._source.mountpoint else header.mountpoint
        kept = Wanted(asked.meta_url, place, keeping_fixed(asked.settings, header))
        if found := differences(kept, asked):
            self._leave_aside(
                f"fixed while mounted: {', '.join(map(str, found))};"
                " takes effect after an unmount (systemctl stop and start)"
            )
        return kept

    async def meta_url(self, asked: Wanted) -> str:
        """Return the former URL if the file names another volume's, else the one asked for.

        Raises:
            JfsdError: It does, and the predecessor still serves.
        """
        record = find(asked.mountpoint) if self._takeover and self._source.config else None
        if self._takeover is None or record is None or record.meta_url == asked.meta_url:
            return asked.meta_url
        uuid = self._takeover.state.header.volume_uuid
        if record.uuid != uuid:
            return asked.meta_url
        try:
            await check_volume_at(asked.meta_url, uuid)
        except JfsdError as error:
            if self._serves:
                raise
            self._leave_aside(f"the former metadata URL is used: {error}")
            return record.meta_url
        return asked.meta_url

    async def store(self, asked: Wanted, volume: Volume) -> MountSettings:
        """Return the settings, with the former store if another is named that is not ours.

        Raises:
            JfsdError: It is not, and the predecessor still serves.
        """
        former = last_settings(asked.mountpoint, volume) if self._takeover else None
        if former is None or same_address(former, asked.settings):
            return asked.settings
        try:
            await try_store(volume, asked.settings)
        except JfsdError as error:
            if self._serves:
                raise
            self._leave_aside(f"the former store is used: {error}")
            return with_address(asked.settings, former)
        return asked.settings

    def _leave_aside(self, what: str) -> None:
        log.warning("%s", what)
        self.aside.append(what)


def last_settings(mountpoint: str, volume: Volume) -> MountSettings | None:
    """Return what the last server of a mount went by, None if that is not known."""
    record = find(mountpoint)
    if record is None or record.uuid != volume.uuid or not record.options:
        return None
    with suppress(RefusedError):
        return settings_from_texts(record.options)
    return None
