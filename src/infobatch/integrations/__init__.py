"""Thin modules for frameworks with a training loop of their own; each needs its framework.

Nothing here is imported by `import infobatch`. With `pruner.sampler`'s host settings,
`DataPruner.metrics`, `loaders.planned_loader` and `infobatch.schedule.ProgressScheduler` a module
for a host that is not listed is some twenty lines: see docs/hosts.md.
"""
