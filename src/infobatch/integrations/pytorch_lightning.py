"""Lightning under its older name, `pytorch_lightning`: the same callback for it.

Source of what it sets right: docs/hosts.md.
"""

from __future__ import annotations

import pytorch_lightning as pl

from infobatch.integrations._lightning import PruningHooks


class InfoBatchCallback(PruningHooks, pl.Callback):
    """See `infobatch.integrations.lightning.InfoBatchCallback`."""
