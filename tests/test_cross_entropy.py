"""Blockwise cross-entropy is torch's, in value and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recbole_mm.models import cross_entropy, products
from recbole_mm.models.cross_entropy import ROWS, linear_cross_entropy
from recbole_mm.models.products import onednn_takes, product


def draw(rows, items=50, width=8, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, width, generator=generator, dtype=dtype) * scale
    vectors = torch.randn(items, width, generator=generator, dtype=dtype)
    targets = torch.randint(0, items, (rows,), generator=generator)
    return states.requires_grad_(), vectors.requires_grad_(), targets


@pytest.fixture(params=["oneDNN", "torch"])
def library(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(products, "onednn_takes", lambda *matrices: False)
    elif not onednn_takes(torch.zeros(1, 1)):
        pytest.skip("this build of torch has no oneDNN product")


@pytest.mark.parametrize("block_bytes", [1, 1 << 24])
@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS, 2 * ROWS + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients_are_those_of_torch(library, monkeypatch, rows, dtype, block_bytes):
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", block_bytes)
    states, items, targets = draw(rows, dtype=dtype)
    loss = 3 * linear_cross_entropy(states, items, targets)
    expected = 3 * F.cross_entropy(states @ items.T, targets)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, (states, items))
    for one, other in zip(found, torch.autograd.grad(expected, (states, items)), strict=True):
        torch.testing.assert_close(one, other)


def test_products_of_any_strides(library):
    left, right = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(product(left, right), left @ right.T)
    torch.testing.assert_close(product(left[:, 1:5], right[:, ::2][:, :4]), left[:, 1:5] @ right[:, ::2][:, :4].T)
    torch.testing.assert_close(product(left.T, right.T), left.T @ right)
    assert not onednn_takes(left.double())


def test_large_logits_do_not_overflow():
    states, items, targets = draw(9, dtype=torch.float32, scale=200.0)
    loss = linear_cross_entropy(states, items, targets)
    torch.testing.assert_close(loss, F.cross_entropy(states @ items.T, targets))
    loss.backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()


def test_a_nan_stays_a_nan():
    states, items, targets = draw(5)
    with torch.no_grad():
        states[2, 0] = torch.nan
    assert linear_cross_entropy(states, items, targets).isnan()


@pytest.mark.parametrize("fixed", ["states", "items"])
def test_what_needs_no_gradient_gets_none(fixed):
    states, items, targets = draw(7)
    {"states": states, "items": items}[fixed].requires_grad_(False)
    linear_cross_entropy(states, items, targets).backward()
    assert (states.grad is None) == (fixed == "states")
    assert (items.grad is None) == (fixed == "items")


def test_without_gradients_the_value_is_the_same():
    states, items, targets = draw(300)
    expected = linear_cross_entropy(states, items, targets).detach()
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(states, items, targets), expected)


def test_items_may_be_a_slice():
    states, items, targets = draw(20)
    linear_cross_entropy(states, items[1:], targets.clamp(max=48)).backward()
    assert items.grad is not None
    assert not items.grad[0].any()
    assert items.grad[1:].any()


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, True), (torch.bfloat16, False)])
def test_half_precision_takes_torchs_way(monkeypatch, dtype, autocast):
    states, items, targets = draw(6, dtype=dtype)
    monkeypatch.setattr(cross_entropy, "_Blockwise", None)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = linear_cross_entropy(states, items, targets)
        expected = F.cross_entropy(states @ items.T, targets)
    assert torch.equal(loss, expected)
