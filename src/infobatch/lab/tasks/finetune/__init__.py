"""Fine-tuning: models that were trained before, by others, on far more data."""

from __future__ import annotations

from infobatch.lab.tasks.finetune.image import TASK as IMAGE
from infobatch.lab.tasks.finetune.text import TASK as TEXT

TASK = (TEXT, IMAGE)
