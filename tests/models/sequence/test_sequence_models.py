"""What every sequence model promises, and what tells bidirectional ones from causal ones."""

from __future__ import annotations

import pytest
import torch
from sequence_doubles import ITEMS, LENGTH, SPECIALS, histories, model_of, scores, target

from recsys.embeddings import EMBEDDINGS
from recsys.embeddings.full import FullConfig
from recsys.models.sequence import SEQUENCE_MODELS
from recsys.models.sequence.bert4rec import BERT4Rec, BERT4RecConfig
from recsys.models.sequence.gru4rec import GRU4RecConfig
from recsys.models.sequence.next_item import next_item_loss
from recsys.models.sequence.sasrec import SASRecConfig
from recsys.training.optimizers import build_optimizers
from recsys.types import Batch

ROWS = [[3, 4, 5], [], [7], [2, 9, 4, 8, 6, 3, 5, 7, 10, 11]]
NAMES = list(SEQUENCE_MODELS)


def example(name: str):
    return SEQUENCE_MODELS[name].example()


@pytest.mark.parametrize("name", NAMES)
def test_any_history_has_a_finite_query_the_same_alone_and_in_a_batch(name: str) -> None:
    model, _ = model_of(example(name))
    model.eval()
    with torch.no_grad():
        together = model(histories(ROWS))
        assert together.shape == (4, 8)
        assert torch.isfinite(together).all()
        for i, row in enumerate(ROWS):
            torch.testing.assert_close(model(histories([row]))[0], together[i])
        assert model(histories([])).shape == (0, 8)


@pytest.mark.parametrize("name", NAMES)
def test_scripted_equals_eager_and_padded_equals_packed(name: str) -> None:
    model, _ = model_of(example(name))
    model.eval()
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for rows in (ROWS, [], [[]], [[5, 6]]):
            batch = histories(rows)
            torch.testing.assert_close(scripted(batch), model(batch))
        torch.testing.assert_close(scripted.item_vectors(), model.item_vectors())
        torch.testing.assert_close(scripted.item_bias(), model.item_bias())
        torch.testing.assert_close(scripted.catalogue(4, 3), model.item_vectors()[4:7])
        packed = model(histories(ROWS))
    # with gradients a scripted model takes the padded way: the definition of the encoder
    torch.testing.assert_close(scripted(histories(ROWS)), packed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_under_padding_changes_nothing(name: str) -> None:
    model, _ = model_of(example(name))
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(histories(ROWS)), model(histories(ROWS, padding=13)))
    losses = []
    for padding in (0, 13):
        torch.manual_seed(3)
        batch = histories(ROWS, padding)
        batch = Batch(batch.ids, batch.floats, [batch.lists[0][:, :LENGTH]], batch.lengths)
        batch.lengths.clamp_(max=LENGTH)
        losses.append(model.loss(batch, target(batch)).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_last_items_of_a_long_history_count(name: str) -> None:
    model, _ = model_of(example(name))
    model.eval()
    reads = LENGTH - 1 if name == "bert4rec" else LENGTH
    long = ROWS[3]
    with torch.no_grad():
        whole = model(histories([long]))
        assert torch.equal(whole, model(histories([long[-reads:]])))
        assert not torch.equal(whole, model(histories([long[1 - reads :]])))


@pytest.mark.parametrize("name", [n for n in NAMES if not SEQUENCE_MODELS[n].reads_text])
def test_input_and_output_share_one_table_and_both_give_it_gradients(name: str) -> None:
    model, _ = model_of(example(name))
    (table,) = [p for n, p in model.named_parameters() if n.startswith("embedding")]
    assert table.data_ptr() == model.embedding.tables[0].weight.data_ptr()
    model.eval()
    batch = histories([[3, 4, 5, 6]])
    query = model(batch)
    (read,) = torch.autograd.grad((query * torch.arange(8)).sum(), table)  # by the input alone
    assert read[3].abs().sum() > 0
    assert read[15].abs().sum() == 0
    query = model(batch)
    (both,) = torch.autograd.grad((query.detach() @ model.item_vectors().T)[0, 15], table)
    torch.testing.assert_close(both[15], query[0].detach())  # by the output alone


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [2])
def test_every_parameter_moves_and_training_repeats(name: str, steps: int) -> None:
    states = []
    for _ in range(2):
        model, settings = model_of(example(name), learning_rate=1e-2)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizers = build_optimizers(model, settings)
        for _ in range(steps):
            optimizers.zero_grad()
            batch = histories([[3, 4, 5, 6, 9], [7, 8], [10]])
            model.loss(batch, target(batch)).backward()
            optimizers.step()
        moved = {n: p.detach().clone() for n, p in model.named_parameters()}
        assert all(not torch.equal(before[n], moved[n]) for n in before)
        states.append(moved)
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", EMBEDDINGS)
def test_any_table_method_serves(name: str, method: str) -> None:
    kind = EMBEDDINGS[method].Config
    embedding = kind.model_validate({"method": method, "embedding_dim": 8})
    model, _ = model_of(example(name), embedding=embedding)
    batch = histories(ROWS[:3])
    model.loss(batch, target(batch)).backward()
    model.eval()
    with torch.no_grad():
        assert scores(model, batch).shape == (3, ITEMS + SPECIALS)
        assert torch.isfinite(scores(model, batch)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_anything_to_learn_costs_nothing(name: str) -> None:
    model, _ = model_of(example(name))
    for rows in ([[]], [[1], [0, 1]]):  # no item at all; unseen items only
        batch = histories(rows)
        loss = model.loss(batch, target(batch))
        assert loss.item() == 0
        loss.backward()


@pytest.mark.parametrize("per", ["position", "row"])
@pytest.mark.parametrize("loss", ["sampled_softmax", "bce", "gbce"])
def test_a_batch_without_anything_to_learn_has_no_negatives_either(loss: str, per: str) -> None:
    model, _ = model_of(SASRecConfig(loss=loss, negatives=3, negatives_per=per))
    batch = histories([[3, 1], [1]])  # an unseen item after a known one
    found = model.loss(batch, target(batch))
    assert found.item() == 0
    found.backward()


@pytest.mark.parametrize("negatives", [1, 6])
@pytest.mark.parametrize("loss", ["bce", "gbce"])
def test_equal_scores_have_no_common_way_down(loss: str, negatives: int) -> None:
    config = SASRecConfig(loss=loss, negatives=negatives, negatives_per="position", dropout=0)
    model, _ = model_of(config, num_ids=100_002)
    table = model.embedding.tables[0].weight
    with torch.no_grad():
        table[:] = torch.zeros(table.size(1))
    states, wanted = torch.randn(40, table.size(1)), torch.randint(2, 100_002, (40,))
    next_item_loss(config, model, states, torch.arange(40), wanted).backward()
    gradient = table.grad.to_dense()
    assert gradient.norm() > 1e-3  # items are pulled apart,
    assert gradient.sum(0).norm() < 1e-4 * gradient.norm()  # not moved together


def test_hidden_items_see_both_sides() -> None:
    model, _ = model_of(BERT4RecConfig(heads=2, hidden_units=16))
    model.eval()
    masked = torch.tensor([[False, False, True, False, False]])
    lengths = torch.tensor([5])

    def state(row: list[int]) -> torch.Tensor:
        return model.states(torch.tensor([row]), lengths, masked, masked).detach()

    base = state([3, 4, 5, 6, 7])
    assert not torch.allclose(base, state([3, 9, 5, 6, 7]))  # the item before
    assert not torch.allclose(base, state([3, 4, 5, 9, 7]))  # the item after
    assert torch.equal(base, state([3, 4, 9, 6, 7]))  # the hidden one itself


def test_the_loss_is_of_hidden_items_alone() -> None:
    """Against a cross-entropy by hand over states of the definition, at one hidden position."""
    model, _ = model_of(BERT4RecConfig(heads=2, hidden_units=16))
    model.eval()
    ids, lengths = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]), torch.tensor([4, 2])
    masked = torch.zeros(2, 4, dtype=torch.bool)
    assert model.masked_loss(ids, lengths, masked).item() == 0
    masked[0, 1] = masked[1, 0] = True
    loss = model.masked_loss(ids, lengths, masked)
    places = torch.arange(4).expand(2, 4)
    x = model.encoder.padded(model.tokens(ids, places, masked.unsqueeze(2)), lengths)
    logits = model.head(x) @ model.item_vectors().T + model.item_bias()
    chosen = logits[:, :, SPECIALS:].log_softmax(2)
    by_hand = -(chosen[0, 1, 4 - SPECIALS] + chosen[1, 0, 7 - SPECIALS]) / 2
    torch.testing.assert_close(loss, by_hand)


def test_rows_hide_their_share_or_their_last_item() -> None:
    lengths = torch.tensor([0, 1, 2, 5, 10])
    model, _ = model_of(BERT4RecConfig(mask_share=0.3, last_item_share=0), length=10)
    hidden = model.hide(lengths, 10)
    assert hidden.sum(1).tolist() == [0, 1, 1, 2, 3]  # max(1, round(.3 n)), half to even
    assert not (hidden & (torch.arange(10) >= lengths[:, None])).any()
    model.last_item_share = 1.0
    last = model.hide(lengths, 10)
    assert last.sum(1).tolist() == [0, 1, 1, 1, 1]
    assert last.int().argmax(1).tolist() == [0, 0, 1, 4, 9]
    model.last_item_share = 0.25
    many = torch.full((4000,), 10)
    drawn = model.hide(many, 10)
    only_last = (drawn.sum(1) == 1) & drawn[:, 9]
    assert abs(only_last.float().mean().item() - 0.25) < 0.03
    assert abs(drawn[~only_last].float().mean(0) - 0.3).max() < 0.05  # no place is favoured


@pytest.mark.parametrize("config", [SASRecConfig(), GRU4RecConfig()], ids=["sasrec", "gru4rec"])
def test_no_state_sees_the_future(config: SASRecConfig | GRU4RecConfig) -> None:
    model, _ = model_of(config)
    model.eval()
    row, other = [3, 4, 5, 6, 7], [3, 4, 5, 9, 8]

    def states(ids: list[int]) -> torch.Tensor:
        if isinstance(config, GRU4RecConfig):
            return model.output(model.states(torch.tensor([ids]))[0]).detach()
        everything = torch.ones(1, 5, dtype=torch.bool)
        return model.states(torch.tensor([ids]), torch.tensor([5]), None, everything).detach()

    a, b = states(row), states(other)
    torch.testing.assert_close(a[:3], b[:3])
    assert not torch.allclose(a[3], b[3])
    with torch.no_grad():  # what training computes at place t is what serving asks for there
        for t in range(5):
            torch.testing.assert_close(model(histories([row[: t + 1]]))[0], a[t])


@pytest.mark.parametrize("config", [SASRecConfig(dropout=0), GRU4RecConfig(dropout=0)])
def test_what_comes_next_stays_hidden_where_unseen_items_are_not_learned(
    config: SASRecConfig | GRU4RecConfig,
) -> None:
    """Id 1 is read but not predicted: after it, at the end, it must change nothing before it."""
    model, _ = model_of(config)

    def loss(rows: list[list[int]]) -> float:
        batch = histories(rows)
        return model.loss(batch, target(batch)).item()

    assert loss([[3, 4, 5, 1]]) == pytest.approx(loss([[3, 4, 5]]), rel=1e-5)
    # 5 -> 6 -> 7 in both; 3 -> 4 beside it, and the mean is of three pairs
    alone, three = loss([[3, 4]]), loss([[5, 6, 7], [3, 4, 1]])
    assert three == pytest.approx((2 * loss([[5, 6, 7]]) + alone) / 3, rel=1e-5)


def cyclic(rows: int, longest: int, generator: torch.Generator) -> tuple[Batch, torch.Tensor]:
    """Item k + 1 follows item k; the batch and the next items."""
    lengths = torch.randint(3, longest + 1, (rows, 1), generator=generator)
    first = torch.randint(0, ITEMS, (rows, 1), generator=generator)
    ids = (first + torch.arange(longest + 1)) % ITEMS + SPECIALS
    following = ids.gather(1, lengths)[:, 0]
    ids = ids[:, :longest] * (torch.arange(longest) < lengths)
    none = torch.zeros(rows, 0)
    return Batch(none.long(), none, [ids], lengths), following


def recall_after(config, steps: int) -> float:
    embedding = FullConfig(method="full", embedding_dim=16, init_std=0.3)
    model, settings = model_of(config, embedding=embedding, dim=16, learning_rate=3e-3)
    optimizers, generator = build_optimizers(model, settings), torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch, _ = cyclic(64, LENGTH, generator)
        optimizers.zero_grad()
        model.loss(batch, target(batch)).backward()
        optimizers.step()
    model.eval()
    with torch.no_grad():
        batch, following = cyclic(500, LENGTH - 1, generator)
        best = scores(model, batch)[:, SPECIALS:].argmax(1) + SPECIALS
    return float((best == following).float().mean())


def test_bert4rec_learns_cycles_and_needs_samples_of_the_last_item() -> None:
    config = BERT4RecConfig(hidden_units=32, dropout=0, init_std=0.1, last_item_share=0.3)
    assert recall_after(config, 300) > 0.9
    without = config.model_copy(update={"last_item_share": 0.0})
    assert recall_after(without, 130) < recall_after(config, 130) - 0.05


@pytest.mark.parametrize(
    "config",
    [
        SASRecConfig(dropout=0),
        SASRecConfig(dropout=0, loss="sampled_softmax", negatives=8),
        SASRecConfig(dropout=0, loss="bce", negatives=1, negatives_per="position"),
        SASRecConfig(dropout=0, loss="gbce", negatives=8, calibration=0.5),
        GRU4RecConfig(dropout=0),
    ],
    ids=["cross_entropy", "sampled_softmax", "bce", "gbce", "gru4rec"],
)
def test_causal_models_learn_cycles(config: SASRecConfig | GRU4RecConfig) -> None:
    assert recall_after(config, 150) > 0.9


def test_windows_are_those_of_each_paper() -> None:
    bert, _ = model_of(BERT4RecConfig(window_stride=0.5))
    assert isinstance(bert, BERT4Rec)
    assert (bert.windows(9).length, bert.windows(9).stride, bert.windows(9).least) == (9, 4, 1)
    for name in ("sasrec", "gru4rec"):
        windows = model_of(example(name))[0].windows(9)
        assert (windows.length, windows.stride, windows.least) == (10, 9, 2)


def test_negatives_go_with_the_losses_that_draw_them() -> None:
    with pytest.raises(ValueError, match="needs negatives"):
        SASRecConfig(loss="gbce")
    with pytest.raises(ValueError, match="has no negatives"):
        SASRecConfig(negatives=3)


def test_bfloat16_training_stays_near_float32() -> None:
    losses, grads = [], []
    for narrow in (False, True):
        model, _ = model_of(SASRecConfig(dropout=0))
        batch = histories([[3, 4, 5, 6, 9], [7, 8], [10]])
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = model.loss(batch, target(batch))
        loss.backward()
        losses.append(loss.item())
        grads.append(model.embedding.tables[0].weight.grad)
    assert abs(losses[0] - losses[1]) < 0.03 * losses[0]
    assert (grads[0] - grads[1]).norm() < 0.05 * grads[0].norm()


def test_a_step_over_a_million_items_touches_few_rows() -> None:
    config = SASRecConfig(loss="sampled_softmax", negatives=64)
    embedding = FullConfig(method="full", embedding_dim=8)
    model, settings = model_of(config, embedding=embedding, num_ids=1_000_002)
    optimizers = build_optimizers(model, settings)
    table = model.embedding.tables[0]
    assert table.sparse
    before = table.weight.detach().clone()
    batch = histories([[3, 900_000, 5, 1_000_001], [7, 8]])
    model.loss(batch, target(batch)).backward()
    assert table.weight.grad.is_sparse
    optimizers.step()
    touched = (table.weight.detach() != before).any(1).nonzero().squeeze(1)
    assert {3, 900_000, 5, 7, 8, 1_000_001} <= set(touched.tolist())
    assert len(touched) <= 6 + 2 * 64
