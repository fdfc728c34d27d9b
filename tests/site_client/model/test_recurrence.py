"""The recurrences: independence of padding, the library's GRU as reference, and the reach of gradients."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from site_client.model.recurrence import Recurrence, RecurrenceName

INPUTS, HIDDEN, LAYERS = 5, 4, 2
LENGTHS = (6, 1, 4)


def _make(name: RecurrenceName, layers: int = LAYERS) -> Recurrence:
    torch.manual_seed(0)
    return Recurrence(name, INPUTS, HIDDEN, layers)


def _padded() -> tuple[Tensor, Tensor]:
    x = torch.randn(len(LENGTHS), max(LENGTHS), INPUTS, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    return torch.where(mask.unsqueeze(-1), x, 7.0), mask


@pytest.mark.parametrize("name", get_args(RecurrenceName))
def test_padding_changes_no_output_of_a_study(name: RecurrenceName) -> None:
    recurrence, (x, mask) = _make(name), _padded()
    together = recurrence(x, mask)
    for row, length in enumerate(LENGTHS):
        separate = recurrence(x[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(together[row, :length], separate[0])
        assert not together[row, length:].any()


@pytest.mark.parametrize("name", get_args(RecurrenceName))
def test_every_weight_of_a_recurrence_learns_and_no_padding_is_learned_from(name: RecurrenceName) -> None:
    recurrence, (x, mask) = _make(name), _padded()
    x.requires_grad_()
    (recurrence(x, mask) ** 2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in recurrence.parameters())
    assert x.grad is not None
    assert not x.grad[~mask].any()


def _only_layer(recurrence: Recurrence) -> nn.Module:
    assert isinstance(recurrence.layers, nn.ModuleList)
    (layer,) = recurrence.layers
    return layer


def test_the_parallel_scan_is_the_recurrence_taken_step_by_step() -> None:
    recurrence = _make("mingru", layers=1)
    x = torch.randn(1, 320, INPUTS, generator=torch.Generator().manual_seed(2)) * 3
    forwards = _only_layer(recurrence).get_submodule("forwards")
    gate, candidate = forwards(x).chunk(2, dim=-1)
    state, states = torch.zeros(1, HIDDEN), []
    for step in range(x.shape[1]):
        take = torch.sigmoid(gate[:, step])
        wanted = torch.where(candidate[:, step] >= 0, candidate[:, step] + 0.5, torch.sigmoid(candidate[:, step]))
        state = (1 - take) * state + take * wanted
        states.append(state)
    scanned = recurrence(x, torch.ones(1, x.shape[1], dtype=torch.bool))[..., :HIDDEN]
    torch.testing.assert_close(scanned, torch.stack(states, dim=1), rtol=1e-4, atol=1e-5)


def test_the_separated_gru_answers_as_the_librarys_gru_of_the_same_weights() -> None:
    separated, (x, mask) = _make("gru-sep", layers=1), _padded()
    whole = Recurrence("gru", INPUTS, HIDDEN, 1)
    library = _only_layer(separated).get_submodule("gru")
    assert isinstance(library, nn.GRU)
    whole.layers = library
    torch.testing.assert_close(separated(x, mask), whole(x, mask))


def test_the_separated_grus_gradient_is_that_of_a_gru_whose_state_is_detached_at_every_step() -> None:
    separated = _make("gru-sep", layers=1)
    x = torch.randn(1, 6, INPUTS, generator=torch.Generator().manual_seed(3))
    (separated(x, torch.ones(1, 6, dtype=torch.bool))[..., :HIDDEN] ** 2).sum().backward()
    gru = _only_layer(separated).get_submodule("gru")
    cell = nn.GRUCell(INPUTS, HIDDEN)
    for name, parameter in cell.named_parameters():
        parameter.data = getattr(gru, f"{name}_l0").data.clone()
    state, total = torch.zeros(1, HIDDEN), torch.zeros(())
    for step in range(6):
        state = cell(x[:, step], state.detach())
        total = total + (state**2).sum()
    torch.autograd.backward(total)
    for name, parameter in cell.named_parameters():
        torch.testing.assert_close(getattr(gru, f"{name}_l0").grad, parameter.grad)


def test_no_gradient_of_the_separated_gru_passes_from_one_slice_to_another() -> None:
    separated, whole = _make("gru-sep", layers=1), _make("gru", layers=1)
    for recurrence, reaches in ((separated, False), (whole, True)):
        x = torch.randn(1, 6, INPUTS, generator=torch.Generator().manual_seed(4)).requires_grad_()
        recurrence(x, torch.ones(1, 6, dtype=torch.bool))[0, 3].sum().backward()
        assert x.grad is not None
        assert bool(x.grad[0, [0, 1, 2, 4, 5]].any()) is reaches
        assert x.grad[0, 3].any()
