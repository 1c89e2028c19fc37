"""Digits with skorch: a net for scikit-learn that prunes, also within a grid search.

    python examples/skorch_digits.py

Every fit is a run of its own with a pruner of its own, made for the data that `fit` trains on; so
`train_split`, `clone`, `GridSearchCV` and `cross_validate` work as with any net.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from torch import nn

from infobatch import InfoBatch
from infobatch.integrations.hosts import planned_loader


class PrunedClassifier(NeuralNetClassifier):
    """Needs a criterion with `reduction="none"`; `pruner_` tells what the last fit has saved."""

    def get_iterator(self, dataset, training=False):
        loader = super().get_iterator(dataset, training=training)
        if not training:
            return loader
        self.pruner_ = InfoBatch(dataset, num_epochs=self.max_epochs)
        return planned_loader(loader, self.pruner_)

    def get_loss(self, y_pred, y_true, X=None, training=False):
        losses = super().get_loss(y_pred, y_true, X=X, training=training)
        return self.pruner_.update(losses) if training else losses.mean()


class Net(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x):
        return self.layers(x)


def build_net(max_epochs: int = 10) -> PrunedClassifier:
    return PrunedClassifier(
        Net,
        criterion=nn.CrossEntropyLoss,
        criterion__reduction="none",
        optimizer__momentum=0.9,
        lr=0.1,
        batch_size=64,
        max_epochs=max_epochs,
        verbose=0,
    )


def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int64)


if __name__ == "__main__":
    torch.manual_seed(0)
    search = GridSearchCV(build_net(), {"module__hidden": [32, 64]}, cv=3, refit=True)
    search.fit(*digits())
    print(f"accuracy {search.best_score_:.3f} with {search.best_params_}")
    print(search.best_estimator_.pruner_.summary())
