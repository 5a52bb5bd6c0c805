"""The loss: as written down, with a finite gradient everywhere, and the same however a batch is cut up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmva.affect import matching_score
from mmva.losses import LossConfig, Rows, loss_counts, loss_scales, loss_sums, mmva_loss, score
from mmva.matching import EpochPlan, batches
from mmva.modalities import MODALITIES

Batch = dict[str, torch.Tensor]


def random_batch(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Batch, Batch, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    va = {m: torch.rand(rows, 2, generator=generator, dtype=dtype) for m in MODALITIES}
    labels = {m: torch.rand(rows, 2, generator=generator, dtype=dtype) for m in ("image", "music")}
    labels["caption"] = labels["music"]
    return va, labels, torch.rand(rows, generator=generator) > 0.4


def test_loss_is_the_written_formula() -> None:
    va, labels, mask = random_batch(9)
    config = LossConfig(image_weight=2.0, caption_weight=0.5, similarity_weight=3.0, sigma=0.3)
    total, parts = mmva_loss(va, labels, {"caption": mask}, config)
    a, y, keep = ({k: v.numpy() for k, v in d.items()} for d in (va, labels, {"keep": mask}))
    rows = {"image": slice(None), "music": slice(None), "caption": keep["keep"]}
    for modality in MODALITIES:
        expected = np.mean((a[modality][rows[modality]] - y[modality][rows[modality]]) ** 2)
        assert parts[f"va/{modality}"] == pytest.approx(expected, rel=1e-9)
    for other in ("music", "caption"):
        r = rows[other]
        error = matching_score(a["image"][r], a[other][r], 0.3) - matching_score(y["image"][r], y[other][r], 0.3)
        assert parts[f"sim/image-{other}"] == pytest.approx(np.mean(error**2), rel=1e-4)
    expected = 2 * parts["va/image"] + parts["va/music"] + 0.5 * parts["va/caption"]
    expected += 3 * (parts["sim/image-music"] + parts["sim/image-caption"]) / 2
    assert total.item() == pytest.approx(expected, rel=1e-9)


def test_similarity_over_all_pairs_is_the_mean_over_every_image_and_partner_of_the_batch() -> None:
    va, labels, mask = random_batch(9)
    config = LossConfig(similarity_over="all", sigma=0.3)
    total, parts = mmva_loss(va, labels, {"caption": mask}, config)
    a, y = ({m: value.numpy() for m, value in points.items()} for points in (va, labels))
    a["caption"], y["caption"] = a["caption"][mask.numpy()], y["caption"][mask.numpy()]
    for other in ("music", "caption"):
        predicted, wanted = (matching_score(x["image"][:, None], x[other][None], 0.3) for x in (a, y))
        assert parts[f"sim/image-{other}"] == pytest.approx(np.mean((predicted - wanted) ** 2), rel=1e-4)
    assert total.item() == pytest.approx(sum(term.weight * parts[term.name] for term in config.terms()), rel=1e-9)


@pytest.mark.parametrize("over", ["drawn", "all"])
def test_similarity_of_projections_is_their_cosine_and_leaves_the_points_alone(over: str) -> None:
    va, labels, _ = random_batch(9)
    hidden = {m: torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(len(m))) for m in va}
    both = {m: torch.cat([va[m], hidden[m]], dim=1).requires_grad_() for m in va}
    config = LossConfig.model_validate({"similarity_by": "projections", "similarity_over": over, "sigma": 0.3})
    _, parts = mmva_loss(both, labels, config=config)
    points_only, _ = mmva_loss(va, labels, config=LossConfig(similarity_weight=0))
    assert sum(parts[f"va/{m}"] for m in va) == pytest.approx(points_only.item(), rel=1e-9)
    for other in ("music", "caption"):
        a, b = (hidden[m].numpy() for m in ("image", other))
        cosine_AB = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
        wanted_AB = matching_score(labels["image"].numpy()[:, None], labels[other].numpy()[None], 0.3)
        error_AB = np.square(cosine_AB - wanted_AB)
        expected = error_AB.mean() if over == "all" else np.diag(error_AB).mean()
        assert parts[f"sim/image-{other}"] == pytest.approx(expected, rel=1e-4)
    mmva_loss(both, labels, config=LossConfig.model_validate({**config.model_dump(), "image_weight": 0.0}))[
        0
    ].backward()
    grad = both["image"].grad
    assert grad is not None
    assert torch.count_nonzero(grad[:, :2]) == 0
    assert grad[:, 2:].abs().min() > 0


def test_perfect_predictions_cost_nothing_and_stay_put() -> None:
    _, labels, mask = random_batch(6)
    va = {m: labels[m].clone().requires_grad_() for m in MODALITIES}
    total, _ = mmva_loss(va, labels, {"caption": mask})
    assert total.item() == 0
    total.backward()
    assert all(torch.count_nonzero(point.grad) == 0 for point in va.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_and_small_where_points_coincide(dtype: torch.dtype) -> None:
    for offset in (0.0, 1e-12, 1e-7, 1e-3):
        point = torch.full((4, 2), 0.4, dtype=dtype, requires_grad=True)
        score(point, point.detach() + offset, sigma=0.38).sum().backward()
        assert torch.isfinite(point.grad).all()
        assert point.grad.norm(dim=1).max() <= 1 / 0.38 + 1e-3
    assert score(torch.zeros(1, 2), torch.zeros(1, 2), 0.38).item() == 1.0


def test_gradients_are_the_numerical_ones() -> None:
    va, labels, mask = random_batch(5)
    points = [va[m].requires_grad_() for m in MODALITIES]

    def total(*values: torch.Tensor) -> torch.Tensor:
        return mmva_loss(dict(zip(MODALITIES, values, strict=True)), labels, {"caption": mask})[0]

    assert torch.autograd.gradcheck(total, points)


def test_clips_without_caption_do_not_count() -> None:
    va, labels, mask = random_batch(8)
    without = {m: v.clone() for m, v in va.items()}
    without["caption"][~mask] = float("nan")
    leaf = {m: v.clone().requires_grad_() for m, v in without.items()}
    total, parts = mmva_loss(leaf, labels, {"caption": mask})
    reference, reference_parts = mmva_loss(va, labels, {"caption": mask})
    assert total.item() == pytest.approx(reference.item())
    assert parts == pytest.approx(reference_parts)
    nobody, parts = mmva_loss(va, labels, {"caption": torch.zeros(8, dtype=torch.bool)})
    assert parts["va/caption"] == parts["sim/image-caption"] == 0
    assert torch.isfinite(nobody)


def test_captions_without_clips_and_no_captions_at_all() -> None:
    va, labels, mask = random_batch(8)
    broken = va | {"music": torch.where(mask[:, None], va["music"], float("nan"))}
    total, parts = mmva_loss(broken, labels, {"music": mask})
    assert torch.isfinite(total)
    assert parts["va/music"] == pytest.approx((va["music"] - labels["music"])[mask].square().mean().item())
    two = {m: va[m] for m in ("image", "music")}
    total, parts = mmva_loss(two, {m: labels[m] for m in two})
    assert parts["va/caption"] == parts["sim/image-caption"] == 0
    assert total.item() == pytest.approx(parts["va/image"] + parts["va/music"] + parts["sim/image-music"] / 2)


def test_masked_nan_leaves_gradients_finite() -> None:
    va, labels, mask = random_batch(8)
    assert not mask.all()
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    va["caption"] = torch.where(mask[:, None], va["caption"], 0.0) * weight
    mmva_loss(va, labels, {"caption": mask})[0].backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("over", ["drawn", "all"])
@pytest.mark.parametrize("by", ["points", "projections"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("pairs", [1, 5, 13, 24])
def test_any_number_of_ranks_gives_one_process_loss_and_gradients(
    world_size: int, pairs: int, over: str, by: str
) -> None:
    """What DDP does, without processes: gradients of each rank's loss, averaged."""
    _, labels, mask = random_batch(pairs)
    config = LossConfig.model_validate({"similarity_over": over, "similarity_by": by})
    generator = torch.Generator().manual_seed(1)
    start, change = (
        {
            m: torch.rand(pairs, 5 if by == "projections" else 2, generator=generator, dtype=torch.float64)
            for m in labels
        }
        for _ in range(2)
    )
    weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def loss(rows: slice, counts: torch.Tensor, ranks: int) -> torch.Tensor:
        predicted = {m: start[m][rows] + weight * change[m][rows] for m in labels}
        every = {m: torch.ones(pairs, dtype=torch.bool) for m in labels} | {"caption": mask}
        whole = {m: start[m] + weight.detach() * change[m] for m in labels}
        everyone = None if ranks == 1 else Rows(whole, labels, every)
        local = {m: v[rows] for m, v in labels.items()}
        sums = loss_sums(predicted, local, {"caption": mask[rows]}, config, everyone)
        return (sums * loss_scales(counts, config, ranks)).sum()

    everywhere = torch.ones(pairs, dtype=torch.bool)
    counts = loss_counts({"image": everywhere, "music": everywhere, "caption": mask}, config)
    whole = loss(slice(None), counts, 1)
    (expected,) = torch.autograd.grad(whole, weight)
    plan = EpochPlan(np.arange(pairs), np.arange(pairs), np.ones(pairs))
    slices = [batches(plan, 24, rank, world_size)[0] for rank in range(world_size)]
    losses = [loss(rows, counts, world_size) for rows in slices]
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in losses]
    assert torch.stack(losses).mean().item() == pytest.approx(whole.item(), rel=1e-12)
    assert torch.stack(gradients).mean().item() == pytest.approx(expected.item(), rel=1e-12)


def test_config_refuses_pairs_without_sense() -> None:
    with pytest.raises(ValidationError, match="two different modalities"):
        LossConfig(similarity_pairs=(("image", "image"),))
    with pytest.raises(ValidationError, match="similarity_weight to 0"):
        LossConfig(similarity_pairs=())
    assert len(LossConfig(similarity_pairs=(), similarity_weight=0).terms()) == 3
    assert all(field.description for field in LossConfig.model_fields.values())
