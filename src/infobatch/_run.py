"""Run: the course of a training run, one epoch after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch import _advice as advice
from infobatch._core.budget import part_of_run, passes_upto
from infobatch._core.headroom import some_of
from infobatch._core.history import EpochRecord
from infobatch._core.plan import EpochPlan, Rows
from infobatch._core.planner import Planner, Size
from infobatch._core.scores import FloatArray
from infobatch._core.validation import check_int
from infobatch._loading.batches import Record
from infobatch._loading.ledger import Batch, ReadAhead
from infobatch._loading.loader_facts import LoaderFacts
from infobatch._loading.loops import Loops
from infobatch._loading.sampler import PlanSampler
from infobatch._loading.streams import StreamFilter
from infobatch._ranks.agreement import EPOCH_END, SYNCHRONIZE
from infobatch._ranks.sharded import Sharded
from infobatch._ranks.share import Share
from infobatch._ranks.sharing import Sharing
from infobatch._ranks.world import Ranks, World
from infobatch._settings import Settings
from infobatch._state.snapshot import Snapshot
from infobatch._step.running import RunningEpoch
from infobatch.errors import DistributedError, EpochError, MisalignedUpdateError, StateError
from infobatch.policies import FixedSubset


class Run:
    """Prepares each epoch, begins it when the sampler is iterated, and ends it.

    An epoch ends with its last loss, or at the next iteration where the loop has been left early;
    never when the sampler is exhausted, as loaders read ahead.

    Attributes:
        settings: of the run.
        planner: has the scores, and makes plans.
        sharing: what the ranks have in common, and the way to them.
        loops: which loop over a loader is trained in.
        sampler: hands samples out.
        filter: leaves samples out of a stream, if the run is on one.
        history: of the finished epochs.
        running: the epoch that is running or due.
        batch_size: of the loader, on each rank; None until it is seen.

    Args:
        settings: of the run.
        ranks: those that share the data set.
        order_source: the user's own sampler, if there is one.
    """

    def __init__(
        self, settings: Settings, ranks: Ranks, order_source: Iterable[int] | None
    ) -> None:
        self.settings = settings
        self.sharing = Sharded(ranks, settings) if settings.sharded else Sharing(ranks, settings)
        self.planner = Planner(
            settings.policy,
            settings.num_epochs,
            settings.pruned,
            settings.seed,
            score_ema=settings.score_ema,
            order_source=order_source,
        )
        self.planner.start(self.samples_now)
        self.loops = Loops()
        self.sampler = PlanSampler(
            self.begin, self.remaining, self.set_epoch, self.has_begun, self.world
        )
        self.filter: StreamFilter | None = None
        self.history: list[EpochRecord] = []
        self.batch_size = settings.batch_size
        self._upto_of: tuple[tuple[int, int | None, World], list[int]] | None = None
        self.running = self._epoch(0)
        advice.warn_if_nothing_is_pruned(settings)

    def world(self) -> World:
        """This process's place among the ranks, as things are now."""
        return self.sharing.ranks.world()

    @property
    def samples_now(self) -> Rows:
        """The samples whose scores a process in this place keeps."""
        return self.sharing.rows(self.world())

    def _epoch(self, epoch: int, **where: Any) -> RunningEpoch:
        """An epoch that has not been planned, or one of a saved state."""
        where.setdefault("before", some_of(self.planner.scores.values))
        return RunningEpoch(
            epoch,
            self.planner,
            may_repeat=self.settings.own_sampler,
            is_stream=self.filter is not None,
            is_kept_apart=self.sharing.is_apart,
            **where,
        )

    # ------------------------------------------------------------------ planning

    def prepare(self, *, may_talk: bool = True) -> RunningEpoch:
        """Plan the epoch that is due and share it out, where that has not been done.

        That is when a loader is iterated, or its length or the plan is asked for; but where each
        rank has a plan of its own, when the epoch before ends: ranks then talk to each other.
        """
        running, world = self.running, self.world()
        if running.is_prepared:
            if world == running.world:
                return running
            if running.position > 0:
                raise DistributedError(
                    f"this epoch was begun as {running.world}, but this process is now {world}; "
                    "initialise or leave the process group between epochs"
                )
        sharing, planner = self.sharing, self.planner
        if (samples := sharing.rows(world)) != planner.samples:
            if planner.scores.has_any:
                raise DistributedError(
                    f"this rank has the scores of {planner.samples}, but it is {world} now; "
                    "initialise the process group before training"
                )
            planner.start(samples)
            running.planned = None
        sizes = self.sizes(self.batch_size, world)
        if not may_talk and world.size > 1 and sharing.talks_to_prepare(running, sizes):
            raise DistributedError(
                "under sharded=True this epoch is planned by all ranks together; ask for its plan "
                "after every rank has iterated its loader"
            )
        if running.planned is None:
            # A fixed subset is that and no other, as in any run on a subset.
            fixed = isinstance(self.settings.policy, FixedSubset)
            batch_size = None if fixed else self.batch_size
            size = sharing.size(running.epoch, batch_size, world, sizes)
            add_up = sharing.add_up(running, world)
            running.planned = planner.plan(running.epoch, size, add_up)
        running.share_out(sharing.share(running, world, sizes), world)
        return running

    def plan_anew(self) -> None:
        """What the next epoch was planned from has changed."""
        self.running = self._epoch(self.running.epoch)
        self._prepare_early()

    def _prepare_early(self) -> None:
        """Prepare the next epoch now if ranks talk for it, as all are here, or a stream waits."""
        if self.running.epoch >= self.settings.num_epochs:
            return
        if self.sharing.is_apart:
            self.prepare()
        if self.filter is not None:
            self.filter.set_plan(self.prepare().plan)

    def sizes(self, batch_size: int | None, world: World) -> list[int] | None:
        """(num_epochs,) how many samples each epoch keeps, if a budget says it."""
        if self.settings.sizes is None:
            return None
        return self.sharing.sizes(batch_size, world, [record.kept for record in self.history])

    def _full_share(self) -> Share:
        """This rank's share of a pass over all samples that is not an epoch of the run."""
        full = self._epoch(self.settings.num_epochs)
        full.planned = self.planner.plan(full.epoch, Size())
        return self.sharing.share(full, self.world(), None)

    # ------------------------------------------------------------------ what the sampler calls

    def begin(self, loader: LoaderFacts, ahead: ReadAhead) -> Iterator[int]:
        """Start the epoch that is due, or start it again."""
        if self.filter is not None:
            raise MisalignedUpdateError(
                "this pruner plans for a stream (stream_filter was called), so its sampler is "
                "not used; leave the sampler away, or build another pruner"
            )
        loader.check_usable(self.settings.num_samples)
        running, loops = self.running, self.loops
        if self.sampler.is_paused or running.epoch >= self.settings.num_epochs:
            share = self._full_share()
            return iter(share.ids(0, len(share)).tolist())
        is_reset = loops.arrive(loader, running.position, running.epoch)
        if running.position > 0 or running.is_over:
            self.end_early()
        if is_reset or not (loops.is_running and loops.has_drawn):
            self._see_batch_size(loader.batch_size)
        running = self.prepare()
        if running.start and not loader.deliverable(len(running.share)):
            self.end()  # resumed where only a batch that drop_last drops was left
            running = self.prepare()
        ledger = loops.enter(loader, ahead, len(running.share), is_reset=is_reset)
        self.planner.order_ahead(running.epoch + 1)
        return ledger.draw(running.share.ids)

    def _see_batch_size(self, size: int | None) -> None:
        """Plan in whole batches of the loader from now on; also a plan that is not yet begun."""
        if size is None or size == self.batch_size or self.settings.batch_size is not None:
            return
        self.batch_size = size
        plan = self.running.planned
        if plan is not None and not (self.running.has_begun or plan.selection.is_full):
            self.plan_anew()

    def remaining(self, batch_size: int | None) -> int:
        """Number of samples of the epoch that runs, or that the next iteration hands out."""
        if self.sampler.is_paused:
            return len(self._full_share())
        if (finishing := self.loops.still_finishing) is not None:
            return finishing.total
        self.settle()
        if not self.sharing.is_apart and not self.loops.is_running:
            self._see_batch_size(batch_size)
        return len(self.prepare().share)

    def has_begun(self) -> bool:
        """Whether any loss of the run has come."""
        return self.running.epoch > 0 or self.running.has_begun

    def set_epoch(self, epoch: int) -> None:
        """An epoch is announced.

        Raises:
            EpochError: it is not that epoch's turn.
        """
        epoch = check_int("epoch", epoch, at_least=0)
        if epoch == self.running.epoch + 1 and self.running.has_begun:
            self.end_early()
        if epoch != (due := self.running.epoch):
            raise EpochError(
                f"set_epoch({epoch}) was called, but epoch {due} (0-based) is due: every "
                "epoch must be trained once, in order. To go on from a checkpoint, call "
                "pruner.load_state_dict first and start the loop at pruner.epoch. If it is a host "
                "that calls set_epoch with a count of its own (Accelerate, Fabric and MONAI do), "
                "set pruner.sampler.host_counts_epochs = False"
            )

    def start_stream(self) -> StreamFilter:
        """The filter of a stream, on which the run is from now on."""
        if self.filter is None:
            if self.running.position > 0:
                raise MisalignedUpdateError(
                    "stream_filter was called while an epoch is being trained through the "
                    "sampler; call it before training"
                )
            self.filter = StreamFilter(self.settings.num_samples)
            self.running.is_stream = True
            self._prepare_early()
        return self.filter

    def keeps_record(self, record: Record) -> bool:
        """Whether the epoch that is due is accounted for by this record of batches."""
        ledger = self.loops.current
        return ledger is not None and ledger.loader.recorded is record

    # ------------------------------------------------------------------ losses

    def due(self, count: int | None) -> tuple[RunningEpoch, Batch]:
        """The batch whose losses are due; `count` is None where they come with indices."""
        running = self.running
        self.check_not_over()
        batch = self.loops.due(running.position, count, running.epoch)
        if not running.is_prepared:
            self.prepare()
        if running.world.size > 1:
            self.sharing.meet_once(running)
        return running, batch

    def coming(self, count: int) -> tuple[Share, Batch]:
        """This rank's share, and the next samples of it whose losses are due; for hosts."""
        self.check_not_over()
        batch = self.loops.coming(self.running.position, count)
        return self.prepare().share, batch

    def check_not_over(self) -> None:
        """Check that there is an epoch left.

        Raises:
            EpochError: there is none.
        """
        if self.running.epoch >= self.settings.num_epochs:
            raise EpochError(
                f"all num_epochs={self.settings.num_epochs} epochs are over, but training goes on; "
                "build the pruner with the number of epochs that the run really has"
            )

    def advance(self, batch: Batch, count: int) -> None:
        """A batch with `count` losses, or without any, has been accounted for."""
        running = self.running
        running.advance(batch, count)
        if running.is_stream:
            return
        if self.loops.settle(batch, running.position, len(running.share)):
            self.end()

    # ------------------------------------------------------------------ the end of an epoch

    def settle(self) -> None:
        """Close an epoch whose loop has been left, where that takes no other rank."""
        running = self.running
        if (running.position or running.is_over) and self.has_left and self.world().size == 1:
            self.end_early()

    @property
    def has_left(self) -> bool:
        """Whether an epoch is under way, and the loop over it has been left."""
        ledger, running = self.loops.current, self.running
        if running.is_stream or running.position == 0 or ledger is None:
            return running.is_over
        return ledger.is_left(running.position)

    def end_early(self) -> None:
        """Close the current epoch before its last loss."""
        if self.loops.current is not None:
            self.loops.current.check_end(self.running.position)
        self.end()

    def end_by_hand(self) -> None:
        """Close the current epoch, if anything of it has been drawn or has come from a stream."""
        if self.filter is not None:
            self.check_not_over()
        elif self.running.epoch == self.settings.num_epochs:
            return  # a look past the end of the run may have been drawn
        if self.sampler.is_paused:
            return
        if self.filter is not None or self.running.has_begun or self.loops.has_drawn:
            self.end_early()
        self.loops.finished = None

    def end(self) -> None:
        """Close the current epoch: its scores count from now on."""
        running, loops = self.running, self.loops
        if not running.is_prepared:
            self.prepare()
        if loops.current is not None and (tail := loops.current.left_out(running.position)):
            running.end(tail)
        running.flush()
        totals = self.sharing.bring_together(running, EPOCH_END)
        if not (running.is_stream or self.sharing.is_apart):
            running.tally.left_out = running.left_out
        record = totals.record(running.epoch, running.tally, running.plan.threshold)
        self.history.append(record)
        self.running = self._epoch(running.epoch + 1)
        loops.close()
        if self.sharing.is_apart or self.filter is not None:
            self._prepare_early()
        if running.world.rank == 0:
            advice.warn_if_indistinct(self.settings, self.history)
        if record.non_finite:
            advice.warn_of_non_finite(record)

    def synchronize(self) -> None:
        """Make the losses that have come so far in this epoch known to all ranks."""
        if self.running.position > 0 and not self.sharing.is_apart:
            self.running.flush()
            self.sharing.bring_together(self.running, SYNCHRONIZE)

    def rescore(self, rows: NDArray[np.int64], scores: FloatArray) -> None:
        """Record scores (M,) of samples that were only passed forward, between two epochs."""
        rows, scores = self.sharing.rescored(self.prepare(), rows, scores)
        self.planner.record(rows, scores, [len(rows)], trained=False)
        self.loops.current = None  # what was drawn of the next epoch does not count
        self.plan_anew()

    # ------------------------------------------------------------------ how far it has come

    @property
    def fractional_epoch(self) -> float:
        """Finished epochs plus the part of the current that is done, 0 to num_epochs."""
        running, ledger = self.running, self.loops.current
        if not running.has_begun:
            return float(running.epoch)
        self.prepare(may_talk=False)
        return running.epoch + running.fraction(None if ledger is None else ledger.deliverable)

    @property
    def progress(self) -> float:
        """In [0, 1]: by sample passes where a budget says their number, else by epochs."""
        return part_of_run(self.fractional_epoch, self._upto())

    def _upto(self) -> list[int]:
        """See `passes_upto`; kept while an epoch runs, as schedulers ask for it in every step."""
        key = (len(self.history), self.batch_size, self.world())
        if self._upto_of is None or self._upto_of[0] != key:
            sizes = self.sizes(self.batch_size, key[2]) or [1] * self.settings.num_epochs
            self._upto_of = (key, passes_upto(sizes))
        return self._upto_of[1]

    # ------------------------------------------------------------------ state

    def snapshot(self) -> Snapshot | None:
        """Where the run stands; None where the other ranks do not know all losses yet."""
        self.settle()
        running = self.running
        if running.has_begun:
            self.prepare()
        running.flush()
        if len(running.pending):
            return None
        return Snapshot(
            epoch=running.epoch,
            position=running.plan_position,
            steps=running.steps,
            is_over=self.has_left,
            batch_size=self.batch_size,
            scores=self.planner.scores.values,
            before=running.before,
            memory=self.planner.memory,
            plan=running.plan_as_trained,
            tally=running.tally,
            history=self.history,
            samples=self.planner.samples,
        )

    def restore(self, saved: Snapshot) -> None:
        """Go on from there."""
        self.planner.restore(saved.samples, saved.scores, saved.memory)
        self.history = saved.history
        if self.settings.batch_size is None:
            self.batch_size = saved.batch_size
        is_of_another_size = saved.position == 0 and saved.batch_size != self.batch_size
        self.running = self._epoch_of(saved, None if is_of_another_size else saved.plan)
        self.loops, self.sharing.met, self._upto_of = Loops(), None, None
        self._prepare_early()
        self.settle()

    def _epoch_of(self, saved: Snapshot, plan: EpochPlan | None) -> RunningEpoch:
        within = {"before": saved.before} if saved.position else {}
        return self._epoch(
            saved.epoch,
            **within,
            start=saved.position,
            steps_before=float(saved.steps),
            is_over=saved.is_over,
            planned=plan,
            tally=saved.tally,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy stands where the original stands, but no loader is drawing from it.
        stands = self.snapshot()
        if stands is None:
            raise StateError(
                "within an epoch of a distributed run a pruner cannot be copied before "
                "pruner.synchronize()"
            )
        running = self._epoch_of(stands, stands.plan)
        return {**self.__dict__, "running": running, "loops": self.loops.of_a_copy()}
