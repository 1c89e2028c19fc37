"""Thin modules for frameworks with a training loop of their own; each needs its framework.

Nothing here is imported by `import infobatch`. What they have in common is not here either: the
sampler's host settings (`infobatch.sampler.PlanSampler`), `DataPruner.metrics`,
`infobatch.loaders.planned_loader` and `infobatch.schedule.ProgressScheduler`; with them, a module
for a host that is not listed is some twenty lines: see docs/hosts.md.
"""
