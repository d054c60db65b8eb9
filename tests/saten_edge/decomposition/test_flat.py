"""FLAT's formulas: narrower heads, fewer channels, and how blocks share what is kept."""

from __future__ import annotations

import math

import pytest
import torch

from saten_edge.decomposition.angles import Angles
from saten_edge.decomposition.flat import kept_channels, narrow_values, proportional_shares, refitted, rounded
from saten_edge.decomposition.metric import Metric

HEAD, OUT = 8, 20
# The damping of the moments is 1e-6 of their mean, and so is what it changes in squared errors, at most.
DAMPED = 1e-4


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_of(width: int, seed: int = 0) -> torch.Tensor:
    """Of correlated inputs of unlike sizes."""
    x = normal(4 * width, width, seed=seed) @ normal(width, width, seed=seed + 1) * torch.linspace(0.2, 3, width)
    return x.T @ x / len(x)


def squared(moments: torch.Tensor, rest: torch.Tensor) -> float:
    return Metric.from_moments(moments).norm(rest) ** 2


def eight_bits(matrix: torch.Tensor) -> torch.Tensor:
    """Rounded to 255 steps, as one scale for all of it has them."""
    step = matrix.abs().max() / 127
    return (matrix / step).round() * step


def root(moments: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(moments)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


class TestNarrowValues:
    @pytest.mark.parametrize("width", [1, 3, 7])
    def test_the_squared_error_is_the_sum_of_the_dropped_eigenvalues(self, width):
        output, moments = normal(HEAD, OUT, seed=1), moments_of(HEAD)
        a, (b,) = narrow_values([output], [moments], width)
        assert (a.shape, b.shape) == ((HEAD, width), (width, OUT))
        dropped = torch.linalg.eigvalsh(root(moments) @ output @ output.T @ root(moments))[: HEAD - width].sum()
        assert squared(moments, output - a @ b) == pytest.approx(float(dropped), rel=DAMPED)
        # the twin: the principal components of the values alone, without the matrix that reads them, lose more
        leading = torch.linalg.eigh(moments)[1][:, -width:]
        assert squared(moments, output - leading @ leading.T @ output) > float(dropped) * 1.01

    def test_at_full_width_nothing_changes(self):
        outputs, moments = [normal(HEAD, OUT, seed=k) for k in range(3)], [moments_of(HEAD, k) for k in range(3)]
        a, bs = narrow_values(outputs, moments, HEAD)
        for output, b in zip(outputs, bs, strict=True):
            assert torch.allclose(a @ b, output, atol=1e-9)
        a, bs = narrow_values(outputs, moments, HEAD - 1)
        assert not torch.allclose(a @ bs[0], outputs[0], atol=1e-3)

    def test_a_head_of_low_rank_is_found_exactly(self):
        output, moments = normal(HEAD, 3) @ normal(3, OUT, seed=1), moments_of(HEAD)
        for width, exact in ((3, True), (2, False)):
            a, (b,) = narrow_values([output], [moments], width)
            assert (squared(moments, output - a @ b) < 1e-12 * squared(moments, output)) == exact

    def test_heads_that_share_values_each_read_them_as_well_as_they_can(self):
        outputs, moments = [normal(HEAD, OUT, seed=k) for k in range(4)], [moments_of(HEAD, k) for k in range(4)]
        a, bs = narrow_values(outputs, moments, 5)
        for output, each, b in zip(outputs, moments, bs, strict=True):
            wrong = a.T @ each @ (output - a @ b)  # the gradient of the squared error
            assert float(wrong.abs().max()) < DAMPED * float((a.T @ each @ output).abs().max())
            assert float((a.T @ each @ (output - 1.01 * a @ b)).abs().max()) > 1e-3  # the twin
            assert squared(each, output - a @ b) < squared(each, output)

    def test_values_that_texts_hardly_show_do_not_blow_up_the_matrix_in_front_of_them(self):
        output, fades = normal(HEAD, OUT, seed=1), torch.logspace(0, -5, HEAD, dtype=torch.float64)
        moments = fades[:, None] * moments_of(HEAD) * fades
        a, (b,) = narrow_values([output], [moments], HEAD - 1)
        assert torch.allclose(a.T @ a, torch.eye(HEAD - 1, dtype=torch.float64), atol=1e-12)
        # the twin: a basis of unit moments spans the same, and rounding it to 8 bits loses far more
        white = torch.linalg.cholesky(torch.linalg.inv(a.T @ moments @ a))
        lost = [
            squared(moments, (eight_bits(each) - each) @ torch.linalg.solve(each.T @ each, each.T @ a @ b))
            for each in (a, a @ white)
        ]
        assert lost[1] > 100 * lost[0]

    def test_one_token_leaves_numbers_and_the_weights_decide(self):
        token, output = normal(1, HEAD), normal(HEAD, OUT, seed=1)
        a, (b,) = narrow_values([output], [token.T @ token], HEAD)
        assert torch.allclose(a @ b, output, atol=1e-5)
        a, (b,) = narrow_values([output], [torch.zeros(HEAD, HEAD, dtype=torch.float64)], 4)
        assert float((output - a @ b).square().sum()) == pytest.approx(
            float(torch.linalg.svdvals(output)[4:].square().sum()), rel=1e-9
        )


class TestChannels:
    def test_the_ones_kept_contribute_most_ascending(self):
        down, moments = normal(6, OUT), torch.diag(torch.tensor([1.0, 9, 4, 16, 2, 3], dtype=torch.float64))
        down /= down.norm(dim=1, keepdim=True)
        assert kept_channels(moments, down, 3).tolist() == [1, 2, 3]
        assert kept_channels(moments, down * torch.tensor([9.0, 1, 1, 1, 1, 1])[:, None], 3).tolist() == [0, 1, 3]

    def test_a_channel_of_much_energy_is_kept_where_leverage_scores_drop_it(self):
        x = normal(4000, 101) * 30
        x[:, 0] = x[:, 1:].sum(1) / 2  # 25 times the energy of another channel, and all of them tell it
        moments, down = x.T @ x, normal(101, OUT)
        assert 0 in kept_channels(moments, down, 60)
        leverage = (moments @ torch.linalg.inv(moments + torch.eye(101, dtype=torch.float64))).diagonal()
        assert 0 not in leverage.topk(60).indices  # the published scores

    def test_what_is_refitted_is_the_least_squares_fit_to_the_activations(self):
        x, down = normal(500, 12) @ normal(12, 12, seed=1), normal(12, OUT, seed=2)
        kept = torch.tensor([0, 3, 4, 7, 9, 11])
        found, exact = refitted(x.T @ x / len(x), down, kept), torch.linalg.lstsq(x[:, kept], x @ down).solution
        assert torch.allclose(found, exact, atol=DAMPED * float(exact.abs().max()))
        assert not torch.allclose(down[kept], exact, atol=100 * DAMPED * float(exact.abs().max()))
        left, unfitted = (float((x @ down - x[:, kept] @ each).norm()) for each in (found, down[kept]))
        assert left < 0.9 * unfitted

    def test_channels_that_are_never_active_cost_nothing(self):
        x, down = normal(300, 12), normal(12, OUT, seed=2)
        x[:, 5:] = 0
        kept = kept_channels(x.T @ x, down, 5)
        assert kept.tolist() == [0, 1, 2, 3, 4]
        assert torch.equal(refitted(x.T @ x, down, kept), down[:5])

    def test_all_channels_are_left_as_they_are(self):
        down = normal(12, OUT)
        kept = kept_channels(moments_of(12), down, 12)
        assert torch.equal(refitted(moments_of(12), down, kept), down)

    def test_one_token_keeps_the_weights_where_it_says_nothing(self):
        token, down = normal(1, 12), normal(12, OUT, seed=1)
        kept = kept_channels(token.T @ token, down, 8)
        found = refitted(token.T @ token, down, kept)
        assert torch.allclose(token[:, kept] @ found, token @ down, atol=1e-4)  # what it says is met
        across = normal(8, 8, seed=3)
        across -= across @ token[0, kept][:, None] @ token[:, kept] / token[0, kept].square().sum()
        assert torch.allclose(across @ found, across @ down[kept], atol=1e-9)  # and nothing else is changed


class TestShares:
    @pytest.mark.parametrize(
        ("importance", "keep", "shares"),
        [
            ([0.3, 0.1, 0.1, 0.1], 0.6, [1, 1.4 / 3, 1.4 / 3, 1.4 / 3]),
            ([0.5, 0.3, 0.05, 0.05, 0.1], 0.8, [1, 1, 0.5, 0.5, 1]),
            ([0.2, 0.2], 0.5, [0.5, 0.5]),
            ([0.0, 0.0, 0.0], 0.7, [0.7, 0.7, 0.7]),
            ([1.0, 0.0], 0.5, [1, 0]),
        ],
    )
    def test_known_shares(self, importance, keep, shares):
        assert proportional_shares(importance, keep) == pytest.approx(shares)

    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
    def test_they_average_what_is_kept_and_are_in_order(self, keep):
        importance = [0.9, 0.5, 0.2, 0.1, 0.05, 0.4]
        shares = proportional_shares(importance, keep)
        assert sum(shares) / len(shares) == pytest.approx(keep)
        assert max(shares) <= 1
        pairs = sorted(zip(importance, shares, strict=True))
        assert [share for _, share in pairs] == sorted(shares)

    def test_shares_that_are_only_clipped_keep_too_little(self):
        """The twin: what is cut off above 1 has to go to the others."""
        importance, keep = [0.3, 0.1, 0.1, 0.1], 0.6
        clipped = [min(1.0, keep * 4 * each / sum(importance)) for each in importance]
        assert sum(clipped) / 4 < 0.97 * keep
        assert sum(proportional_shares(importance, keep)) / 4 == pytest.approx(keep)

    def test_sizes_are_whole_units_and_never_none(self):
        assert [rounded(1536, share, 32) for share in (0.5, 0.76, 0.001, 1.0)] == [768, 1152, 32, 1536]
        assert rounded(40, 0.9, 32) == 32
        assert rounded(40, 1.0, 32) == 32 + 8


class TestAngles:
    def test_they_are_those_of_the_mean_cosine_without_padding(self):
        torch.manual_seed(0)
        block, still = torch.nn.Linear(6, 6).double(), torch.nn.Identity()
        model = torch.nn.Sequential(block, still)
        x, mask = normal(3, 5, 6), torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
        angles = Angles(model)
        with angles.watching(), torch.no_grad():
            for batch in angles.batches(
                [{"x": x[:2], "attention_mask": mask[:2]}, {"x": x[2:], "attention_mask": mask[2:]}]
            ):
                model(batch["x"])
        made = block(x).detach()
        tokens = [(x[i, t], made[i, t]) for i in range(3) for t in range(5) if mask[i, t]]
        cosines = [float(a @ b / a.norm() / b.norm()) for a, b in tokens]
        turned, unturned = angles.found()
        assert turned == pytest.approx(math.acos(sum(cosines) / len(cosines)) / math.pi, rel=1e-9)
        assert unturned == pytest.approx(0, abs=1e-7)
        each = math.fsum(math.acos(cosine) for cosine in cosines) / len(cosines) / math.pi
        assert turned != pytest.approx(each, rel=1e-3)  # the twin: the mean of the angles
        every = torch.nn.functional.cosine_similarity(x, made, dim=-1).mean()
        assert turned != pytest.approx(math.acos(float(every)) / math.pi, rel=1e-3)  # the twin: with padding

    def test_a_token_that_is_zero_counts_as_turned_by_a_right_angle(self):
        angles = Angles([still := torch.nn.Identity()])
        with angles.watching():
            for batch in angles.batches([{"x": torch.tensor([[[1.0, 0], [0, 0]]])}]):
                still(batch["x"])
        assert angles.found() == pytest.approx([math.acos(0.5) / math.pi])

    def test_nothing_computed_is_no_angle(self):
        with pytest.raises(ValueError, match="no token went through the blocks"):
            Angles([torch.nn.Identity()]).found()
