"""CIFAR-10: 60,000 colour photographs of 32x32 pixels in 10 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from infobatch.lab.cifar import cifar_task

TASK = cifar_task(classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
