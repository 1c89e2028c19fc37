"""What the user of the command line can put right."""

from __future__ import annotations

from infobatch.errors import InfoBatchError


class LabError(InfoBatchError, ValueError):
    """A request that cannot be carried out; the message says what to do instead.

    The command line prints it without a traceback and exits with code 2.
    """
