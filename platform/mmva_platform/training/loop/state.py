"""The state of a run between steps: model, moving average, optimizer, schedule, position, history.

Made from a recipe, saved and loaded here only, so that a resumed run and every worker get the same state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mmva.models.model import MMVA, ModelConfig
from mmva_platform.training.loop.data import Pairing, Triplets
from mmva_platform.training.loop.probe import start_from_probes
from mmva_platform.training.recipe import OptimizerOptions, Recipe, ScheduleOptions

Row = dict[str, Any]
# Weights [2, *] with an L2 penalty, and the factors [2, 1] by which they are added to their gradient.
Penalties = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class World:
    """This process's rank among `size` processes, and their communication besides gradients."""

    rank: int = 0
    size: int = 1

    def first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values


WORLD_OF_ONE: Final = World()


class WeightAverage:
    """Exponential moving average of the weights that train; frozen ones are not copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._moving = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._parameters: list[Tensor] = [*self._moving.values()]
        self.values = [parameter.detach().clone() for parameter in self._parameters]
        self.updates = 0
        self._mix = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch does not type it

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights; the first call copies them."""
        if self.updates == 0:
            torch._foreach_copy_(self.values, self._parameters)
        else:
            self._mix(self.values, self._parameters, self.updates)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights during the block."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, own)

    def state_dict(self) -> dict[str, Any]:
        """Values by the names of the model's parameters."""
        return {"updates": self.updates, "values": dict(zip(self._moving, self.values, strict=True))}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Inverse of state_dict."""
        self.updates = content["updates"]
        for name, value in zip(self._moving, self.values, strict=True):
            value.copy_(content["values"][name])


@dataclass
class TrainState:
    """Everything that a run keeps between steps."""

    model: nn.Module  # the towers, or backbones and towers
    parallel: nn.Module  # the model itself, or DDP around it; called in each step
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    penalised: Penalties
    penalties: dict[str, list[float]]  # ridge penalties [2] by modality, from which `penalised` is made
    sums_T: Tensor  # this rank's sums of each loss term over the `done` steps, float64
    epoch: int = 0  # epochs done
    done: int = 0  # steps done of the next epoch
    step: int = 0  # steps done in total
    history: list[Row] = field(default_factory=list)  # one row per epoch
    best: dict[str, Any] | None = None  # on rank 0: epoch, value, and averaged weights of the best epoch so far

    @property
    def moving(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def keep_if_best(self, epoch: int, value: float) -> None:
        """Keep the model's weights if no earlier epoch had a smaller value; call it with the average applied."""
        if self.best is None or value < self.best["value"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in kept(self.model).items()}
            self.best = {"epoch": epoch, "value": value, "weights": weights}

    def state_dict(self, world: World = WORLD_OF_ONE) -> dict[str, Any]:
        """The state as tensors and plain values, copied to the CPU; a collective call."""
        own = {"sums": self.sums_T, "cpu": torch.get_rng_state()}
        if self.sums_T.is_cuda:
            own["cuda"] = torch.cuda.get_rng_state(self.sums_T.device)
        content = {
            "model": kept(self.model),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "penalties": self.penalties,
            "position": {"epoch": self.epoch, "done": self.done, "step": self.step},
            "ranks": world.all(on_cpu(own)),
            "history": list(self.history),
        }
        return {**on_cpu(content), "best": self.best}

    def load_state_dict(self, content: Mapping[str, Any], world: World = WORLD_OF_ONE) -> None:
        """Inverse of state_dict, in place. With another number of ranks, only dropout's draws differ."""
        missing = set(self.model.load_state_dict(content["model"], strict=False).missing_keys)
        assert missing <= _frozen(self.model), "a checkpoint holds all weights that train"
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        position, ranks = content["position"], content["ranks"]
        self.epoch, self.done, self.step = position["epoch"], position["done"], position["step"]
        self.history, self.best = list(content["history"]), content["best"]
        if len(ranks) == world.size:
            own = ranks[world.rank]
            self.sums_T.copy_(own["sums"])
            torch.set_rng_state(own["cpu"])
            if "cuda" in own and self.sums_T.is_cuda:
                torch.cuda.set_rng_state(own["cuda"], self.sums_T.device)
        elif world.rank == 0:
            self.sums_T.copy_(torch.stack([each["sums"] for each in ranks]).sum(dim=0))


def kept(module: nn.Module) -> dict[str, Tensor]:
    """A module's state without its frozen weights."""
    frozen = _frozen(module)
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _frozen(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def on_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Nested dicts, lists and tuples in which each tensor is replaced by the function's result."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: on_tensors(function, each) for key, each in value.items()}
    return type(value)(on_tensors(function, each) for each in value) if isinstance(value, list | tuple) else value


def on_cpu(value: Any) -> Any:
    """Nested values with copies of their tensors on the CPU."""
    return on_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), value)


def model_config(recipe: Recipe) -> ModelConfig:
    """The towers' options."""
    return ModelConfig(**recipe.model.model_dump(), sigma=recipe.loss.sigma)


def build_model(recipe: Recipe, train: Triplets) -> MMVA:
    """Untrained towers over the training split's embeddings: weights from the seed, statistics from the split."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = MMVA({modality: emb_ND.shape[1] for modality, emb_ND in train.emb.items()}, model_config(recipe))
    model.set_statistics(train.emb)
    return model


def new_state(model: MMVA, recipe: Recipe, train: Triplets, val: Triplets, world: World = WORLD_OF_ONE) -> TrainState:
    """The state at the start of a run: towers start as ridge probes, unless the recipe sets a penalty.

    Rank 0 computes the probes for all, because the linear algebra of two machines may differ in the last bits.
    """
    if recipe.optimizer.ridge == "auto":
        found = start_from_probes(model, train, val) if world.rank == 0 else None
        weights, penalties = world.first((on_cpu(model.state_dict()), found))
        model.load_state_dict(weights)
    else:
        penalties = dict.fromkeys(model.dims, [recipe.optimizer.ridge] * 2)
    return state_around(model, recipe, train, penalties, world)


def state_around(
    model: MMVA, recipe: Recipe, train: Triplets, penalties: dict[str, list[float]], world: World = WORLD_OF_ONE
) -> TrainState:
    """The state at the start of a run for towers with known penalties; a checkpoint is loaded into it."""
    rows = {modality: len(emb_ND) for modality, emb_ND in train.emb.items()}
    return make_state(model, model, recipe, train, penalties, rows=rows, world=world)


def make_state(
    model: nn.Module, towers: MMVA, recipe: Recipe, pairing: Pairing, penalties: dict[str, list[float]], *,
    rows: Mapping[str, int], world: World, more: Sequence[dict[str, Any]] = (),
) -> TrainState:  # fmt: skip
    """Make optimizer, schedule and average of a model, and seed this rank's random stream.

    `rows` are numbers of training rows by modality, `more` the optimizer's groups besides the towers.
    """
    optimizer = build_optimizer([{"params": list(towers.parameters())}, *more], recipe.optimizer)
    schedule = build_schedule(optimizer, recipe.schedule, total_steps=recipe.epochs * steps_per_epoch(pairing, recipe))
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, world.rank]).generate_state(1)[0]))
    average = WeightAverage(model, recipe.averaging.decay)
    sums_T = torch.zeros(len(recipe.loss.terms()), dtype=torch.float64, device=next(model.parameters()).device)
    penalised = penalty_factors(towers, rows, penalties)
    return TrainState(model, model, average, optimizer, schedule, penalised, penalties, sums_T)


def steps_per_epoch(pairing: Pairing, recipe: Recipe) -> int:
    """Optimizer steps per epoch: the smaller side's pairs in global batches, including the incomplete last one."""
    return math.ceil(min(len(pairing.image_va_N2), len(pairing.partner_va_M2)) / recipe.batch_size)


def build_optimizer(groups: list[dict[str, Any]], options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimizer. The ridge penalty is not its weight decay; see penalty_factors."""
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.betas[0], weight_decay=options.weight_decay)
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True)


def penalty_factors(model: MMVA, rows: Mapping[str, int], penalties: Mapping[str, Sequence[float]]) -> Penalties:
    """The towers' weights with an L2 penalty, from numbers of training rows and ridge penalties [2] by modality.

    A penalty is per input dimension. The loss is a mean over rows and both axes, and a sigmoid's slope at 0 is 1/4: so
    an L2 coefficient of alpha / (16 rows) has the effect of alpha in a ridge regression on the labels.
    """
    factors: Penalties = []
    for modality in model.dims:
        tower = model.tower(modality)
        if tower.config.head == "mlp":  # has no ridge penalty
            continue
        factor_2 = torch.tensor([penalty / (16 * rows[modality]) for penalty in penalties[modality]])
        factor_21 = factor_2.to(tower.linear.weight)[:, None]
        factors.append((tower.linear.weight, factor_21 * tower.dim))
        if tower.projection is not None:
            factors.append((tower.head.weight, factor_21))
    return factors


def build_schedule(
    optimizer: torch.optim.Optimizer, options: ScheduleOptions, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then cosine to 0 or constant; stepped once per optimizer step."""
    warmup = round(options.warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if options.kind == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
