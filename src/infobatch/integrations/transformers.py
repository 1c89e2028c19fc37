"""Transformers' Trainer and TRL's SFTTrainer (`pip install "infobatch[transformers]"`).

Source of what it sets right: docs/hosts.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from infobatch.errors import EpochError, LossError, MisalignedUpdateError, StateError
from infobatch.infobatch import InfoBatch
from infobatch.integrations._cross_entropy import cross_entropies
from infobatch.integrations._loss_check import Form, LossCheck, nonzero, refusal
from infobatch.integrations.accelerate import keep_shares
from infobatch.integrations.hosts import check_host, coming_divisor
from infobatch.pruner import DataPruner
from infobatch.schedule import ProgressScheduler, counts_steps

_Base: Any = Trainer if TYPE_CHECKING else object

STATE_FILE = "infobatch.pt"
_IGNORED = -100  # the label of tokens that do not count, throughout transformers
_CLOSE, _CLOSE_IN_HALF = 0.001, 0.01  # of the stock loss: what rounding may amount to


class InfoBatchMixin(_Base):
    """Makes any `transformers.Trainer` train with a pruner: put it first among the bases.

        class PrunedSFTTrainer(InfoBatchMixin, SFTTrainer):
            pass

    The loss is that of the trainer itself, as the model and its settings give it, plus
    sum_i (w_i - 1) * l_i in the same normalisation, where l_i is the loss of sample i: at weight
    1 it is the stock loss to the last bit. A sequence is scored by its mean token loss.

    That the samples' losses add up to the stock loss is checked with every batch: at once as long
    as too few batches could tell, as the losses of an untrained head are all alike, and then when
    the next batch comes, or on an accelerator every 32 batches and at an epoch's end. Another loss,
    such as a focal loss or one with class weights, is said by overriding `per_token_losses`, and
    what is no sample's own in it by `extra_loss`:

        class Weighted(Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
                logits = model(input_ids=inputs["input_ids"]).logits
                return F.cross_entropy(logits, inputs["labels"], CLASS_WEIGHTS)

        class PrunedWeighted(InfoBatchMixin, Weighted):
            def per_token_losses(self, outputs, labels):
                losses = F.cross_entropy(outputs.logits, labels, CLASS_WEIGHTS, reduction="none")
                return losses, CLASS_WEIGHTS[labels]

    Args:
        args, kwargs: of the trainer.
        pruner: the pruner, or what builds it from data set and number of epochs: `InfoBatch`
            (the default), or `functools.partial(InfoBatch, budget=0.7)`.

    Attributes:
        pruner: the run's pruner, over the trainer's own `train_dataset`, which may be a prepared
            version of what was passed.

    Raises:
        EpochError: `num_train_epochs` is not whole or not the pruner's, or `max_steps` is set.
        MisalignedUpdateError: an option under which samples cannot be told apart; the message
            says what to change.
        LossError: in training: the per-sample losses do not add up to the trainer's loss, or a
            `compute_loss` of yours does not call that of the mixin.
        StateError: a checkpoint without a pruner's state, or of other settings.
    """

    def __init__(
        self,
        *args: Any,
        pruner: DataPruner | Callable[[Any, int], DataPruner] = InfoBatch,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._check_settings()
        if not isinstance(pruner, DataPruner):
            pruner = pruner(self.train_dataset, int(self.args.num_train_epochs))
        self.pruner = pruner
        self._check_pruner()
        self._check: LossCheck | None = None
        self._shifts = False  # whether the losses are those of the next tokens
        self._at_start: dict[str, Any] | None = None  # the pruner's state where train() began
        self._rng_of: str | None = None  # the checkpoint whose random state is still to be loaded
        self._is_drawing = False
        self._plain = False  # whether per_token_losses is asked for plain cross-entropies
        self.add_callback(_Bookkeeping(self))

    def _check_settings(self) -> None:
        args = self.args
        if isinstance(self.train_dataset, IterableDataset):
            raise MisalignedUpdateError(
                "an IterableDataset cannot be drawn from by index; for a stream write a loop of "
                "your own with pruner.stream_filter(), or load the data as a datasets.Dataset"
            )
        if args.max_steps > 0 or args.num_train_epochs != int(args.num_train_epochs):
            raise EpochError(
                "pruned epochs have fewer steps, and the last ones are annealed, so the run must "
                f"have a whole number of epochs, got max_steps={args.max_steps}, "
                f"num_train_epochs={args.num_train_epochs}; set num_train_epochs alone"
            )
        if args.n_gpu > 1:
            raise MisalignedUpdateError(
                "DataParallel splits batches among devices; start one process for each device, "
                "with torchrun"
            )
        if args.train_sampling_strategy != "random":
            raise MisalignedUpdateError(
                f"train_sampling_strategy={args.train_sampling_strategy!r} chooses the order; "
                "leave it at its default and give the pruner a sampler of your own: "
                "InfoBatch(dataset, num_epochs, sampler=...)"
            )
        if getattr(self, "padding_free", False):
            raise MisalignedUpdateError(
                "padding_free, which packing in SFTConfig implies by default, joins the sequences "
                "of a batch into one row, so that they have no loss each; use padding_free=False "
                'and no packing, or packing_strategy="wrapped", where a packed row is the sample'
            )

    def _check_pruner(self) -> None:
        check_host(self.pruner, num_epochs=self.args.num_train_epochs)
        if self.pruner.num_samples != len(self.train_dataset):
            raise ValueError(
                f"the trainer trains on {len(self.train_dataset)} samples, the pruner was built "
                f"for {self.pruner.num_samples}; pass pruner=InfoBatch or "
                "pruner=functools.partial(InfoBatch, ...), which is built from the trainer's own "
                "train_dataset"
            )

    # ------------------------------------------------------------------ the loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.pruner.sampler

    def get_train_dataloader(self) -> Any:
        """The trainer's loader, with the pruner's shares for each process."""
        self.pruner.sampler.batches_at_once = self.args.gradient_accumulation_steps
        loader = super().get_train_dataloader()
        keep_shares(loader, self.pruner)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """The batches of a step; behind the first of a resumed epoch the random state is loaded.

        The loader has drawn the seed of its workers by then, which the run that was saved had
        drawn before.
        """
        self._is_drawing = True
        try:
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        finally:
            self._is_drawing = False
        if self._rng_of is not None:
            self._load_rng_state(self._rng_of)
            self._rng_of = None
        return batches, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """Count the tokens of samples that are not padding of a distributed run."""
        if not self._is_drawing:  # in evaluation
            return super()._get_num_items_in_batch(batch_samples, device)
        if "labels" not in batch_samples[0]:
            raise LossError(
                f"a sample's loss is found by its labels, but a batch has {list(batch_samples[0])} "
                'only; have the data set or the collator give them as "labels"'
            )
        sizes = [len(batch["labels"]) for batch in batch_samples]
        weights = self.pruner.coming_weights(sum(sizes)).split(sizes)
        counted = [_without_padding(*pair) for pair in zip(batch_samples, weights, strict=True)]
        items = super()._get_num_items_in_batch(counted, device)
        return items.clamp(min=1) if isinstance(items, Tensor) else items

    # ------------------------------------------------------------------ epochs

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own."""
        self._at_start = None
        return super().train(*args, **kwargs)

    def _inner_training_loop(self, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Anew with smaller batches where memory has run out: the pruner begins anew, too."""
        if self._at_start is None:
            self._at_start = self.pruner.state_dict()
        else:
            self.pruner.load_state_dict(self._at_start)
        self._check = None
        return super()._inner_training_loop(batch_size, **kwargs)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Those of a full run, whatever epoch the pruner stands at."""
        if self.pruner.epoch > 0 or self.pruner.is_within_epoch:
            raise StateError(
                f"the pruner stands at epoch {self.pruner.epoch}: it has been trained before. "
                "Build a new trainer and pruner; to go on, call train(resume_from_checkpoint=...)"
            )
        return super().set_initial_training_values(args, dataloader)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Where the run stands: what the pruner says, as epochs are not equally long."""
        if trial is not None:
            raise StateError(
                "hyperparameter_search trains one trainer several times, but a pruner is of one "
                "run; build a trainer in each trial of a search of your own"
            )
        super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return 0, 0
        file = Path(resume_from_checkpoint) / STATE_FILE
        if not file.exists():
            raise StateError(
                f"{resume_from_checkpoint} has no {STATE_FILE}, so it was not saved by a trainer "
                "with a pruner; resume it with that trainer, or start anew from its model"
            )
        self.pruner.load_state_dict(torch.load(file, weights_only=True))
        return self.pruner.epoch, 0  # the sampler itself goes on within the epoch

    def _run_epoch(self, *, train_dataloader: Any, **kwargs: Any) -> Any:
        """With the length of this epoch: the trainer has kept that of the first."""
        batches = len(train_dataloader)
        is_resumed = kwargs["epoch"] == kwargs["epochs_trained"]
        if is_resumed and self.pruner.is_within_epoch:
            self._rng_of = kwargs["resume_from_checkpoint"]
        kwargs.update(
            steps_in_epoch=batches,
            num_update_steps_per_epoch=math.ceil(batches / self.args.gradient_accumulation_steps),
            steps_trained_in_current_epoch=0,
        )
        return super()._run_epoch(train_dataloader=train_dataloader, **kwargs)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """The trainer's schedule, built for a full run, follows the progress of this one."""
        scheduler = super().create_scheduler(num_training_steps, *args, **kwargs)
        if counts_steps(scheduler):
            steps = getattr(scheduler, "total_steps", num_training_steps)
            scheduler = ProgressScheduler(scheduler, self.pruner, total_steps=steps)
            self.lr_scheduler = scheduler
        return scheduler

    # ------------------------------------------------------------------ the loss

    def per_token_losses(self, outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The losses whose mean over a batch is the trainer's loss; override for other losses.

        Args:
            outputs: of the model, for a batch of B samples.
            labels: (B, ...) as the collator gave them.

        Returns:
            (B, ...) losses, and a tensor of the same shape with what each counts in the divisor of
            the mean: True, or False where one does not count, in which case its loss is 0. Under
            class weights both are multiplied by the weight of the class.

        Raises:
            LossError: logits and labels of unknown kind.
        """
        if getattr(outputs, "log_probs", None) is not None:  # TRL's fused head
            losses, counts = -outputs.log_probs, outputs.label_mask.bool()
            if self._is_dft and not self._plain:
                losses = losses * outputs.log_probs.exp().detach()
            return losses, counts
        logits = outputs.get("logits")
        if (
            logits is not None
            and logits.shape[:-1] == labels.shape
            and not labels.is_floating_point()
        ):
            if self._shifts and labels.dim() > 1:
                labels = F.pad(labels, (0, 1), value=_IGNORED)[..., 1:]
            smooths = self.label_smoother is not None and not self._plain
            smoothing = self.args.label_smoothing_factor if smooths else 0.0
            losses = cross_entropies(logits, labels, ignore_index=_IGNORED, smoothing=smoothing)
            return losses, labels != _IGNORED
        if logits is not None and labels.is_floating_point() and logits.numel() == labels.numel():
            targets = labels.view_as(logits)
            if getattr(self.model.config, "problem_type", None) == "multi_label_classification":
                losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            else:
                losses = F.mse_loss(logits.float(), targets.float(), reduction="none")
            return losses, torch.ones_like(losses, dtype=torch.bool)
        shape = None if logits is None else tuple(logits.shape)
        raise LossError(
            f"no per-sample loss is known for logits {shape} and labels {tuple(labels.shape)} of "
            f"{labels.dtype}; override per_token_losses(outputs, labels) in your trainer"
        )

    def extra_loss(self, outputs: Any) -> Tensor | float:
        """The part of the trainer's loss that is no sample's own, a scalar; it is not weighted.

        That of the experts' balance, where the model has experts; override for other losses.

        Args:
            outputs: of the model, for a batch.
        """
        if getattr(outputs, "aux_loss", None) is None:
            return 0.0
        model = self._bare_model()
        for holder in (self, model, *_configs(model)):
            for name in ("router_aux_loss_coef", "aux_loss_coef"):
                if getattr(holder, name, None) is not None:
                    return cast(Tensor, getattr(holder, name) * outputs.aux_loss.detach())
        return 0.0

    def _bare_model(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        base = getattr(model, "get_base_model", None)  # of PEFT
        return model if base is None else base()

    def _shifts_by_its_loss_function(self) -> bool:
        """Whether the loss that the trainer uses is that of the next tokens."""
        model = self._bare_model()
        if self.label_smoother is not None:
            return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        has_encoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return getattr(model, "loss_function", None) is ForCausalLMLoss and not has_encoder

    @property
    def _is_dft(self) -> bool:
        """Whether it is TRL's dynamic fine-tuning, whose loss is the cross-entropy times p."""
        return getattr(self.args, "loss_type", None) == "dft"

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The trainer's own loss, corrected for the weights; in evaluation, as it is."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        labels = inputs["labels"]
        seen: list[Any] = []  # return_outputs would cost SFTTrainer a second forward pass
        hook = model.register_forward_hook(lambda _model, _inputs, output: seen.append(output))
        try:
            result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        finally:
            hook.remove()
        if not seen:
            raise LossError(
                "compute_loss has not called the model that it was given, so the samples' losses "
                "cannot be seen; call model(**inputs) in it"
            )
        loss, *rest = result if return_outputs else (result,)
        loss = loss + self._correction(loss, seen[0], labels, kwargs.get("num_items_in_batch"))
        return (loss, *rest) if return_outputs else loss

    def _correction(self, stock: Tensor, outputs: Any, labels: Tensor, items: Any) -> Tensor:
        """sum_i (w_i - 1) * l_i, divided as the stock loss is; 0 where all weights are 1."""
        weights = self.pruner.coming_weights(len(labels)).numpy()
        divisor = coming_divisor(self.pruner, len(labels))
        is_plain = divisor == len(labels) and bool((weights == 1).all())
        with torch.set_grad_enabled(not is_plain):
            form, sums, counts = self._explained(stock, outputs, labels, items)
        tokens = nonzero(counts)
        scores = self._scores(outputs, labels, tokens)
        weighted = tokens * self.pruner.update(sums / tokens, scores=scores, reduction="none")
        if is_plain:
            return torch.zeros((), dtype=stock.dtype, device=stock.device)
        if form.by_items:  # those of all ranks, without padding
            return cast(Tensor, form.scale * (weighted - sums).sum() / items)
        total = real = nonzero(counts.sum())
        share = len(labels) / divisor  # of what ranks have on average
        if not (weights > 0).all():
            share = int((weights > 0).sum()) / divisor
            is_real = torch.from_numpy(weights > 0).to(counts.device)
            real = nonzero((counts * is_real).sum())
        return form.scale * (share * weighted.sum() / real - sums.sum() / total)

    def _explained(
        self, stock: Tensor, outputs: Any, labels: Tensor, items: Any
    ) -> tuple[Form, Tensor, Tensor]:
        """The samples' losses that the stock loss is seen to come from.

        Returns:
            in which form it does, (B,) the samples' losses, summed over tokens, and (B,) what they
            count in a mean.

        Raises:
            LossError: it comes from something else.
        """
        common = 1.0 if items is None else items, self._extras(outputs, items, stock.device)
        loss = stock.detach()
        if self._check is None:
            self._choose_shift(loss, outputs, labels, items)
            self._check = LossCheck(self._forms(items), self._closeness())
        sums, counts = self._sums(outputs, labels)
        if not self._check.admits(loss, sums.detach(), counts, *common):
            raise refusal(loss, self._check.form.loss(sums, counts, *common))
        return self._check.form, sums, counts

    @torch.no_grad()
    def _choose_shift(self, loss: Tensor, outputs: Any, labels: Tensor, items: Any) -> None:
        """See by the first batch whether the losses are those of the next tokens.

        The model's loss function says so, but not where a model has another way of its own.
        """
        self._shifts = self._shifts_by_its_loss_function()
        if labels.dim() < 2:
            return
        common = 1.0 if items is None else items, self._extras(outputs, items, loss.device)
        away = []
        for _ in range(2):
            sums = self._sums(outputs, labels)
            values = [form.loss(*sums, *common) for form in self._forms(items)]
            away.append(min(float((value - loss).abs()) for value in values))
            self._shifts = not self._shifts
        if away[1] < away[0]:
            self._shifts = not self._shifts

    def look_back(self) -> None:
        """Check now those batches whose losses have not been compared yet.

        Raises:
            LossError: the samples' losses do not add up to the trainer's.
        """
        if self._check is not None:
            self._check.look()

    def _extras(self, outputs: Any, items: Any, device: torch.device) -> list[Tensor]:
        """What the part of the loss that is no sample's may be: scaled as the rest, or not."""
        extra = self.extra_loss(outputs)
        extra = (
            extra.detach() if isinstance(extra, Tensor) else torch.full((), extra, device=device)
        )
        steps = 1 if items is None else getattr(self, "current_gradient_accumulation_steps", 1)
        return [self._scale(items) * extra, extra, extra / steps]

    def _scale(self, items: Any) -> float:
        """By what the trainer multiplies what it takes to be divided by the items of all ranks."""
        across = items is not None and self.args.average_tokens_across_devices
        return float(self.accelerator.num_processes) if across else 1.0

    def _sums(self, outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses, counts = self.per_token_losses(outputs, labels)
        return losses.reshape(len(labels), -1).sum(1), counts.reshape(len(labels), -1).sum(1)

    def _forms(self, items: Any) -> Iterator[Form]:
        """The forms that the stock loss may have, the likeliest first."""
        scale = self._scale(items)
        for by_items, factor in ((items is not None, scale), (False, scale), (False, 1.0)):
            for extra in range(3):
                yield Form(by_items, factor, extra)

    def _closeness(self) -> float:
        wide = {torch.float32, torch.float64}
        is_wide = wide.issuperset(parameter.dtype for parameter in self.model.parameters())
        in_half = self.accelerator.mixed_precision != "no" or not is_wide
        return _CLOSE_IN_HALF if in_half else _CLOSE

    @torch.no_grad()
    def _scores(self, outputs: Any, labels: Tensor, tokens: Tensor) -> Tensor | None:
        """(B,) plain cross-entropies, for policies that read probabilities from scores.

        None if the losses are that already, or if the policy does not.
        """
        differ = self.label_smoother is not None or self._is_dft
        if not (differ and self.pruner.policy.reads_probability):
            return None
        self._plain = True
        try:
            losses, _ = self.per_token_losses(outputs, labels)
        finally:
            self._plain = False
        return losses.reshape(len(labels), -1).sum(1) / tokens


class InfoBatchTrainer(InfoBatchMixin, Trainer):
    """`transformers.Trainer` with a pruner.

        trainer = InfoBatchTrainer(
            model, args, train_dataset=train_set, pruner=functools.partial(InfoBatch, budget=0.7)
        )
        trainer.train()

    For other trainers, such as TRL's `SFTTrainer`, and for arguments and errors: `InfoBatchMixin`.
    """


class _Bookkeeping(TrainerCallback):
    """Step counts, logs and checkpoints of a trainer with a pruner."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._stood = 0.0

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any
    ) -> None:
        """The number of steps: exact with a budget, else as if no later epoch were pruned."""
        pruner = self.trainer.pruner
        self._stood = pruner.fractional_epoch
        drop_last, accumulate = args.dataloader_drop_last, args.gradient_accumulation_steps
        batch_size = train_dataloader.batch_sampler.batch_size
        try:
            state.max_steps = pruner.total_steps(
                batch_size, drop_last=drop_last, accumulate=accumulate
            )
        except ValueError:
            samples = math.ceil(pruner.num_samples / args.world_size)
            full = samples // batch_size if drop_last else math.ceil(samples / batch_size)
            later = pruner.num_epochs - pruner.epoch - 1
            this = math.ceil(len(train_dataloader) / accumulate)
            state.max_steps = state.global_step + this + later * math.ceil(full / accumulate)
        for callback in self.trainer.callback_handler.callbacks:
            bar = getattr(callback, "training_bar", None)
            if bar is not None:
                bar.total = state.max_steps
                bar.refresh()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where the run stands, in a resumed epoch too; that losses have come in this step."""
        state.epoch = self.trainer.pruner.fractional_epoch
        if state.epoch == self._stood:
            raise LossError(
                f"no losses came in step {state.global_step}: the trainer's compute_loss has not "
                "called that of InfoBatchMixin. Put the mixin first among the bases, before the "
                "class whose compute_loss is yours"
            )
        self._stood = state.epoch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what the epoch has saved."""
        pruner = self.trainer.pruner
        self.trainer.look_back()
        pruner.end_epoch()  # where drop_last has left something
        self.trainer.log(pruner.metrics())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the pruner's state into the checkpoint; on all ranks, as its losses are gathered."""
        self.trainer.pruner.synchronize()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save(self.trainer.pruner.state_dict(), folder / STATE_FILE)


def _configs(model: Any) -> list[Any]:
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    return [config] if text is None else [text(), config]


def _without_padding(batch: Any, weights: Tensor) -> Any:
    """The batch for counting: labels of samples with weight 0 are set to be ignored in a copy."""
    if bool((weights > 0).all()):
        return batch
    masked = {}
    for name in {"labels", "shift_labels"} & set(batch):
        padding = (weights == 0).to(batch[name].device)
        masked[name] = batch[name].clone()
        masked[name][padding] = _IGNORED
    return {**batch, **masked}
