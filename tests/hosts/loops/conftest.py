"""What Ignite imports of torch warns, and the filters of tests are not yet in force then."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.distributed.optim  # noqa: F401
