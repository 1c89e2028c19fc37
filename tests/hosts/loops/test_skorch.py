"""skorch itself, through the example."""

import pytest
import torch
import torch.nn.functional as F
from examples.skorch_digits import Net, build_net, digits
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch
from infobatch.errors import LossError

EPOCHS, BATCH = 6, 64


def test_a_fit_is_a_plain_loop():
    x, y = digits()
    torch.manual_seed(0)
    net = build_net(EPOCHS).set_params(train_split=None).fit(x, y)
    torch.manual_seed(0)
    data, model = TensorDataset(torch.tensor(x), torch.tensor(y)), Net()
    pruner = InfoBatch(data, EPOCHS)
    loader = DataLoader(data, BATCH, sampler=pruner.sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = []
    for _ in range(EPOCHS):
        steps.append(0)
        for inputs, labels in loader:
            optimizer.zero_grad()
            pruner.update(F.cross_entropy(model(inputs), labels, reduction="none")).backward()
            optimizer.step()
            steps[-1] += 1
    assert [row["train_batch_count"] for row in net.history] == steps
    assert repr(net.pruner_.history) == repr(pruner.history)
    assert pruner.saved_fraction > 0.2
    assert torch.equal(net.pruner_.scores, pruner.scores)
    for ours, plain in zip(net.module_.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, plain)


def test_with_a_validation_split_what_is_pruned_is_the_part_that_is_trained_on():
    x, y = digits()
    net = build_net(EPOCHS).fit(x, y)
    assert net.pruner_.epoch == EPOCHS
    assert net.pruner_.num_samples == sum(net.history[0, "batches", :, "train_batch_size"])
    assert net.pruner_.num_samples < len(x)
    # The validation loss is the plain mean over samples of the split.
    assert net.history[-1]["valid_loss"] < 0.5 < net.history[0]["train_loss"]
    assert net.score(x, y) > 0.95


def test_each_fit_of_a_grid_search_has_a_pruner_of_its_own():
    x, y = digits()
    search = GridSearchCV(build_net(2), {"max_epochs": [2, 3]}, cv=2, error_score="raise")
    search.fit(x[:600], y[:600])
    net = search.best_estimator_
    assert net.pruner_.epoch == net.pruner_.num_epochs == search.best_params_["max_epochs"]
    assert not hasattr(clone(net), "pruner_")
    before = net.pruner_
    net.fit(x[:300], y[:300])
    assert net.pruner_ is not before
    assert net.pruner_.num_samples == 240


def test_a_criterion_that_averages_is_refused():
    x, y = digits()
    net = build_net(2).set_params(criterion__reduction="mean")
    with pytest.raises(LossError, match='reduction="none"'):
        net.fit(x, y)
