"""CIFAR-100: 60,000 colour photographs of 32x32 pixels in 100 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from infobatch.lab.cifar import cifar_task

TASK = cifar_task(classes=100, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
