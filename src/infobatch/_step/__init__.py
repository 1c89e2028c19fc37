"""One step of training: weights out, losses in, the rescaled loss."""
