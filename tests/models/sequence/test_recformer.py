"""Recformer: what it reads, how it learns, and what each phase leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sequence_doubles import SPECIALS, histories, model_of, scores, target

from recsys.build_sequence import build_sequence
from recsys.features.item_text import ItemText
from recsys.layers.local_attention import in_blocks
from recsys.models.sequence.masked_words import FIRST_WORD, draw_words
from recsys.models.sequence.next_item import draw_place
from recsys.models.sequence.recformer import RecformerConfig
from recsys.models.sequence.text_reader import TextReader, Tokens
from recsys.testing.sequences import SequenceWorld, sequence_world
from recsys.training.optimizers import build_optimizers
from recsys.training.ranking import ranking_metrics
from recsys.training.stopping import Interrupted
from recsys.training.trainer import Trainer

CONFIG = RecformerConfig(
    hidden_units=32,
    window=4,
    max_tokens=32,
    dropout=0,
    phases=("pretrain", "fine_tune", "fixed_items"),
)
TRAIN = {"max_epochs": 2, "learning_rate": 3e-3}


def small(folder: Path, **changes: object) -> SequenceWorld:
    return sequence_world(folder, model=CONFIG.model_copy(update=changes), train=TRAIN)


def reader(max_tokens: int = 32, window: int = 4) -> TextReader:
    """Text 1: ``a: B C, d: E`` where C is two pieces; text 2: ``a: F``."""
    torch.manual_seed(0)
    text = ItemText(
        text=torch.tensor([0, 0, 1, 2]).numpy(),
        ends=torch.tensor([0, 6, 8]).numpy(),
        tokens=torch.tensor([2, 10, 11, 12, 3, 13, 2, 14]).numpy(),
        keys=torch.tensor([True, False, False, False, True, False, True, False]).numpy(),
        pieces=torch.tensor([0, 0, 0, 1, 0, 0, 0, 0]).numpy(),
        counts=torch.ones(20).long().numpy(),
    )
    return TextReader(
        text, width=8, max_items=4, max_tokens=max_tokens, window=window, dropout=0, std=0.02
    )


def flat(tokens: Tokens) -> dict[str, list[list[int]]]:
    """The tokens of each list, without padding."""
    owner, valid = tokens.blocks.owner, tokens.blocks.valid
    return {
        name: [values[owner == i][valid[owner == i]].tolist() for i in range(int(owner.max()) + 1)]
        for name, values in tokens._asdict().items()
        if name != "blocks"
    }


def test_tokens_of_two_items_by_hand() -> None:
    found = flat(reader().tokens(torch.tensor([[2, 1, 0], [1, 0, 0]])))
    assert found["words"] == [[2, 14, 2, 10, 11, 12, 3, 13], [2, 10, 11, 12, 3, 13]]
    assert found["types"] == [[1, 2, 1, 2, 2, 2, 1, 2], [1, 2, 2, 2, 1, 2]]
    assert found["items"] == [[1, 1, 2, 2, 2, 2, 2, 2], [1] * 6]
    assert found["places"] == [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6]]
    assert found["pieces"] == [[0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]]


def test_what_is_too_long_loses_its_end_the_oldest_items() -> None:
    found = flat(reader(max_tokens=6).tokens(torch.tensor([[2, 1, 2], [1, 1, 1]])))
    assert found["words"] == [[2, 14, 2, 10, 11], [2, 10, 11, 12, 3]]


@pytest.mark.parametrize("texts", [[[0, 0]], [[0, 0], [2, 0]], []])
def test_lists_without_text(texts: list[list[int]]) -> None:
    tokens = reader().tokens(torch.tensor(texts, dtype=torch.int64).view(len(texts), 2))
    assert int(tokens.blocks.valid.sum()) == (2 if len(texts) == 2 else 0)


def test_vectors_are_sums_of_word_place_type_and_item_normalised() -> None:
    model = reader()
    tokens = model.tokens(torch.tensor([[1, 2]]))
    words = torch.randn(*tokens.words.shape, 8)
    place = tokens.places == 8  # F, of the second item
    expected = model.norm(words[place] + model.places[8] + model.types[2] + model.items[2])
    torch.testing.assert_close(model(tokens, words)[place], expected)
    first = model.norm(model.start + model.places[0] + model.types[0] + model.items[0])
    torch.testing.assert_close(model.summary(2), first.expand(2, 8))


def test_the_order_of_items_counts_and_the_latest_are_kept() -> None:
    model, _ = model_of(CONFIG.model_copy(update={"max_tokens": 5}))  # two items of two tokens
    model.eval()
    with torch.no_grad():
        asked = model(histories([[4, 5], [5, 4], [9, 7, 4, 5]]))
    assert not torch.allclose(asked[0], asked[1])
    torch.testing.assert_close(asked[0], asked[2])


def test_an_item_is_its_text_whatever_its_id(tmp_path: Path) -> None:
    """Two of the world's items have equal texts; some items nobody has seen."""
    world = small(tmp_path)
    model = world.shaken()
    text, raw = model.text.tolist(), world.items.to_pylist()
    counts = world.features.fields[0].counts
    vectors = model.item_vectors()
    new = [i for i in range(SPECIALS, len(raw)) if counts[i] == 0]
    assert new
    assert len(set(text)) == len({tuple(v) for v in vectors.tolist()})
    assert vectors[new].norm(dim=1).allclose(torch.ones(len(new)))
    assert not vectors[:SPECIALS].any()


def test_equal_texts_have_equal_vectors() -> None:
    model, _ = model_of(CONFIG)
    model.text[7] = model.text[5]
    model.encode_items()
    assert torch.equal(model.item_vectors()[7], model.item_vectors()[5])
    query = model.eval()(histories([[3, 4]]))
    found = query @ model.item_vectors().T
    assert found[0, 7] == found[0, 5] != found[0, 6]


def test_targets_are_items_with_an_item_before_them() -> None:
    torch.manual_seed(0)
    batch = histories([[1, 5, 1, 6, 7], [5], [], [1, 5], [5, 6]])
    drawn = torch.stack([draw_place(batch, SPECIALS, late=False) for _ in range(200)])
    assert set(drawn[:, 0].tolist()) == {3, 4}, "1 is no item, 5 has none before it"
    assert not drawn[:, 1:4].any()
    assert set(drawn[:, 4].tolist()) == {1}
    later = torch.stack(
        [draw_place(histories([[3, 4, 5, 6, 7, 8]]), SPECIALS, late=True) for _ in range(200)]
    )
    assert set(later[:, 0].tolist()) == {3, 4, 5}


def test_words_are_hidden_whole() -> None:
    torch.manual_seed(0)
    tokens = reader().tokens(torch.tensor([[2, 1, 1]] * 300))
    hidden = draw_words(tokens, 300, 0.3)
    assert not (hidden & ~tokens.blocks.valid).any()
    share = hidden[tokens.blocks.valid].float().mean()
    assert 0.25 < share < 0.35
    rows = [
        hidden[tokens.blocks.owner == i][tokens.blocks.valid[tokens.blocks.owner == i]]
        for i in range(300)
    ]
    split = [bool(row[4] != row[5]) or bool(row[10] != row[11]) for row in rows]
    assert not any(split), "the pieces 4, 5 and 10, 11 are one word each"
    assert any(bool(row[3] != row[4]) for row in rows)


def test_the_words_that_are_guessed_are_the_hidden_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a cross-entropy by hand with one hidden word, which the mask replaces."""
    model, _ = model_of(CONFIG)
    model.eval()
    guess, texts = model.masked_words, torch.tensor([[3, 4]])
    tokens = model.reader.tokens(texts)
    hidden = tokens.places == 2
    monkeypatch.setattr("recsys.models.sequence.masked_words.draw_words", lambda *_: hidden)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    loss = guess.loss(model.embedding, model.reader, model.encoder, texts)
    x = model.embedding.vectors(tokens.words, 0).clone()
    x[hidden] = guess.mask
    states, _ = model.encoder(
        model.reader(tokens, x), model.reader.summary(1), tokens.blocks, False
    )
    logits = guess.head(states[hidden]) @ model.embedding.all_vectors(0).T + guess.bias
    wanted = int(tokens.words[hidden])
    by_hand = -logits[0, FIRST_WORD:].log_softmax(0)[wanted - FIRST_WORD]
    torch.testing.assert_close(loss, by_hand)


def test_pretraining_teaches_both_sides() -> None:
    model, settings = model_of(CONFIG, dim=16, learning_rate=3e-3)
    rows = [[3 + (start + i) % 12 for i in range(6)] for start in range(12)]
    batch = histories(rows)
    for texts in (torch.tensor([[2, 3]]), torch.tensor([[4]])):  # a history, an item
        found = model.represent(texts) @ torch.randn(16)
        assert torch.autograd.grad(found.sum(), model.reader.types)[0].abs().sum() > 1e-4
    optimizers, losses = build_optimizers(model, settings), []
    for _ in range(200):
        optimizers.zero_grad()
        loss = model.loss(batch, target(batch))
        loss.backward()
        optimizers.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    model.eval()
    model.encode_items()
    with torch.no_grad():
        found = scores(model, histories([row[:5] for row in rows]))[:, 3:15].argmax(1) + 3
    following = torch.tensor([row[5] for row in rows])
    assert (found == following).float().mean() > 0.8, "without any fine-tuning"


def test_popular_items_are_no_stronger_negatives() -> None:
    """What popularity adds to a score as a negative is taken off it."""
    model, _ = model_of(CONFIG.model_copy(update={"mask_weight": 0.0}))
    model.eval()
    histories_, wanted = torch.tensor([[3, 4], [5, 6]]), torch.tensor([7, 8])
    with torch.no_grad():
        model.log_counts[8] = 2.0
        loss = model._pretrain_loss(histories_, wanted)
        asked, items = model.represent(histories_), model.represent(model.text[wanted][:, None])
    scores = asked @ items.T / 0.05 - torch.tensor([0.0, 2.0])
    torch.testing.assert_close(loss, -scores.log_softmax(1).diagonal().mean())


def test_equal_targets_of_a_batch_are_no_negatives() -> None:
    model, _ = model_of(CONFIG.model_copy(update={"mask_weight": 1e-9}))
    model.eval()
    once, twice = torch.tensor([[3, 4]]), torch.tensor([[3, 4], [3, 4]])
    with torch.no_grad():
        alone = model._pretrain_loss(once, torch.tensor([6]))
        same = model._pretrain_loss(twice, torch.tensor([6, 6]))
    torch.testing.assert_close(alone, same, atol=1e-6, rtol=0)


def test_phases_and_the_table_that_the_last_one_keeps(tmp_path: Path) -> None:
    world = small(tmp_path)
    model, settings = world.model, world.config.train
    phases = model.phases(settings)
    assert [(p.name, p.max_epochs) for p in phases] == [
        ("pretrain", 2),
        ("fine_tune", 2),
        ("fixed_items", 2),
    ]
    tables, weights = [], []
    for phase in phases:
        end = phase.end

        def noted(loop, end=end):
            tables.append(model.items.clone())
            weights.append(model.reader.types.detach().clone())
            return end(loop)

        phase.end = noted
    Trainer(model=model, config=settings, seed=0).fit(world.data("train"), phases=phases)
    assert not torch.equal(tables[0], tables[1])
    assert torch.equal(tables[1], tables[2]), "bit for bit"
    assert not torch.equal(weights[1], weights[2]), "while the encoder goes on"


def test_phases_are_those_of_the_config(tmp_path: Path) -> None:
    model = small(tmp_path, phases=("fine_tune",)).model
    assert [phase.name for phase in model.phases(model_of(CONFIG)[1])] == ["fine_tune"]
    assert model.pretraining_only() == []
    assert not any(
        "masked_words" in name or "blocks.1.window" in name for name, _ in model.named_parameters()
    )


@pytest.mark.parametrize("stop_at", [3, 14, 27])
def test_a_stop_in_any_phase_changes_nothing(stop_at: int, tmp_path: Path) -> None:
    world = small(tmp_path, dropout=0.1)
    again = replace(world, assembly=build_sequence(world.config, world.features))
    cut = replace(world, assembly=build_sequence(world.config, world.features))
    assert run_ranked(world, tmp_path / "a", None) == 30
    with pytest.raises(Interrupted):
        run_ranked(cut, tmp_path / "b", stop_at)
    assert run_ranked(again, tmp_path / "b", None) == 30
    found = again.model.state_dict()
    for name, tensor in world.model.state_dict().items():
        assert torch.equal(found[name], tensor), name


def run_ranked(world: SequenceWorld, out: Path, stop: int | None) -> int:
    """Trains in all phases, judged by ranking valid; asked to stop in step ``stop``."""
    settings, done = world.config.train, [0]

    def evaluate(model, rows):
        options = {"batch_size": 16, "device": torch.device("cpu"), "filter_seen": True}
        return ranking_metrics(model, rows, cutoffs=[10], **options)

    trainer = Trainer(model=world.model, config=settings, seed=3, out=out, evaluate=evaluate)
    phases = world.model.phases(settings)
    for phase in phases:
        step = phase.step

        def counted(loop, number, batch, target, step=step):
            done[0] += 1
            if done[0] == stop:
                trainer._stop.asked = True
            return step(loop, number, batch, target)

        phase.step = counted
    torch.manual_seed(7)
    return trainer.fit(world.data("train"), world.data("valid"), phases).steps


def test_a_constant_encoder_finds_nothing(tmp_path: Path) -> None:
    world = small(tmp_path)
    with torch.no_grad():
        for parameter in world.model.encoder.blocks[-1].ffn_norm.parameters():
            parameter.fill_(1.0)
        world.model.encoder.blocks[-1].ffn_norm.weight.zero_()
    world.model.encode_items()
    vectors = world.model.item_vectors()[SPECIALS:]
    assert torch.equal(vectors, vectors[:1].expand_as(vectors))
    metrics = ranking_metrics(
        world.model,
        world.data("test"),
        batch_size=16,
        device=torch.device("cpu"),
        cutoffs=[1, 10],
        filter_seen=True,
    )
    assert metrics["recall@10"] == metrics["ndcg@10"] == 0


def test_finalised_it_serves_the_same_without_what_pretraining_needs(tmp_path: Path) -> None:
    world = small(tmp_path)
    model = world.shaken()
    before, names = model(world.rows()), set(model.state_dict())
    final = world.assembly.finalise().model
    torch.testing.assert_close(final(world.rows()), before)
    gone = names - set(final.state_dict())
    assert {name.split(".")[0] for name in gone} == {"masked_words", "encoder"}
    assert all("blocks.1.window" in name for name in gone if name.startswith("encoder"))


def test_windows_are_as_wide_as_the_config_says() -> None:
    """A word changes the states of those at most ``window // 2`` away in the first block."""
    model, _ = model_of(CONFIG.model_copy(update={"layers": 1, "window": 6}), length=8)
    model.eval()
    owner, valid = torch.zeros(4, dtype=torch.int64), torch.ones(4, 3, dtype=torch.bool)
    blocks, x, summary = in_blocks(owner, valid, 6, False), torch.randn(4, 3, 8), torch.randn(1, 8)
    changed = x.clone()
    changed[1, 2] += 1  # token 5
    with torch.no_grad():
        states = [model.encoder(part, summary, blocks, False)[0] for part in (x, changed)]
    moved = (states[0] != states[1]).any(2).flatten().nonzero().flatten().tolist()
    assert moved == [2, 3, 4, 5, 6, 7, 8]
