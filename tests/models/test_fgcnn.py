"""FGCNN: what the generator adds, in front of every classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lookup_double import Lookup, batch, build, fields
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from recsys.models import CLASSIFIERS, MODELS
from recsys.models.fgcnn import FGCNN, Augmented, FGCNNConfig
from recsys.models.pnn import PNNConfig
from recsys.testing import world
from recsys.types import Batch, Target

READS_VECTORS = [
    name for name, kind in CLASSIFIERS.items() if "embedding" in kind.tables(kind.example(), 4)
]


def fgcnn(name: str = "pnn", **settings: Any) -> FGCNNConfig:
    small = {
        "channels": (3, 4),
        "kernel_heights": (3, 3),
        "pooling": (2, 2),
        "recombined": (2, 1),
        "classifier": CLASSIFIERS[name].example(),
    }
    return FGCNNConfig(**(small | settings))


@pytest.mark.parametrize("name", READS_VECTORS)
def test_stands_in_front_of_every_classifier(name: str) -> None:
    model = build(fgcnn(name))
    model(batch(64)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    model.eval()
    scripted = torch.jit.script(model)
    rows = {0: torch.export.Dim.DYNAMIC}
    shapes = (Batch(rows, rows, [], rows),)
    exported = torch.export.export(model, (batch(3),), dynamic_shapes=shapes).module()
    for count in (0, 1, 2, 7, 1000):
        data = batch(count)
        with torch.no_grad():
            expected = model(data)
            assert expected.shape == (count,)
            torch.testing.assert_close(scripted(data), expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(exported(data), expected, rtol=0, atol=1e-6)


def test_a_classifier_that_reads_no_vectors_is_refused() -> None:
    assert set(CLASSIFIERS) - set(READS_VECTORS) == {"lr"}
    with pytest.raises(ValidationError, match="classifier lr reads no field vectors"):
        fgcnn("lr")


def test_the_classifier_refuses_fields_as_it_would_alone() -> None:
    gates = {"hidden_units": [8], "context1": ["usr"]}
    config = fgcnn(classifier={"name": "final_mlp", "gates": gates})
    with pytest.raises(ValueError, match="usr"):
        FGCNN.check(config, fields(2, 3))
    FGCNN.check(fgcnn("pnn"), fields(2, 3))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"kernel_heights": (3, 4)}, "use the odd height 3 or 5"),
        ({"kernel_heights": (3,)}, "kernel_heights has 1 entries and channels 2"),
        ({"pooling": (2, 2, 2)}, "pooling has 3 entries and channels 2"),
        ({"recombined": (2, 0)}, "recombined"),
        ({"channels": ()}, "channels"),
    ],
)
def test_blocks_that_cannot_work_are_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        fgcnn(**settings)


def test_the_classifier_sees_raw_fields_then_new_ones() -> None:
    model, data = build(fgcnn("fm")).eval(), batch(4)
    vectors = model.classifier.embedding
    assert isinstance(vectors, Augmented)
    x = vectors(data)  # 5 fields, ceil(5 / 2) * 2 + ceil(3 / 2) * 1 new ones
    assert x.shape == (4, 5 + 6 + 2, 4)
    assert torch.equal(x[:, :5], vectors.embedding(data))
    assert torch.equal(x[:, 5:], vectors.generate(vectors.generation(data)))
    first = model.classifier.first_order(data).sum((1, 2))
    pairs = sum((x[:, i] * x[:, j]).sum(1) for i in range(13) for j in range(i))
    torch.testing.assert_close(model(data), first + pairs + model.classifier.bias)


def test_two_tables_and_no_gradient_from_one_path_to_the_other() -> None:
    vectors = build(fgcnn()).classifier.embedding
    raw, own = vectors.embedding.rows, vectors.generation.rows
    assert raw is not own
    x = vectors(batch(8))
    given = torch.autograd.grad(x[:, :5].sum(), (raw, own), allow_unused=True, retain_graph=True)
    made = torch.autograd.grad(x[:, 5:].sum(), (raw, own), allow_unused=True)
    assert given[0].abs().sum() > 0
    assert made[1].abs().sum() > 0
    for untouched in (given[1], made[0]):
        assert untouched is None or not untouched.any()


class NoFeatures(nn.Module):
    """A generator of none."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


def test_without_new_features_it_is_its_classifier() -> None:
    torch.manual_seed(0)
    embedding, generation = Lookup(2, 3, 4), Lookup(2, 3, 4)
    vectors = Augmented(embedding=embedding, generation=generation, generate=NoFeatures())
    config = PNNConfig(hidden_units=(8,))
    with_none = CLASSIFIERS["pnn"](config, fields(2, 3), {"embedding": vectors})
    plain = CLASSIFIERS["pnn"](config, fields(2, 3), {"embedding": embedding})
    plain.mlp.load_state_dict(with_none.mlp.state_dict())
    assert torch.equal(with_none(batch(7)), plain(batch(7)))


def test_with_silent_new_features_it_is_ipnn_on_the_raw_fields() -> None:
    model, data = build(fgcnn("pnn")).eval(), batch(7)
    plain = build(PNNConfig(hidden_units=(8, 8))).eval()
    plain.embedding = model.classifier.embedding.embedding
    assert not torch.allclose(model(data), plain(data))
    with torch.no_grad():
        for linear in model.classifier.embedding.generate.recombinations:
            linear.weight.zero_()  # tanh(0): the new features are zero, and so their products
        weight = model.classifier.mlp.layers[0].weight
        raw = [5 * 13 - 65 + i for i in range(5 * 4)]
        pairs = [(i, j) for i in range(13) for j in range(i + 1, 13)]
        raw += [13 * 4 + at for at, (_, j) in enumerate(pairs) if j < 5]
        plain.mlp.load_state_dict(
            model.classifier.mlp.state_dict() | {"layers.0.weight": weight[:, raw]}
        )
    torch.testing.assert_close(model(data), plain(data))


def test_new_features_take_the_width_of_the_classifiers_table() -> None:
    widths = {"embedding": 6, "generation": 3}
    layers = {name: Lookup(2, 3, width) for name, width in widths.items()}
    model = FGCNN(fgcnn(), fields(2, 3), layers)
    assert model.classifier.embedding(batch(4)).shape == (4, 13, 6)
    assert model(batch(4)).shape == (4,)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 33, 39, 60])
def test_any_number_of_fields(count: int) -> None:
    model = build(MODELS["fgcnn"].Config(), numerics=0, categoricals=count)
    rows = [-(-count // 2 ** (i + 1)) for i in range(3)]
    assert model.classifier.embedding(batch(3, numerics=0, categoricals=count)).shape == (
        3,
        count + 2 * sum(rows),
        4,
    )
    model(batch(3, numerics=0, categoricals=count)).sum().backward()


@pytest.mark.parametrize("name", ["pnn", "deepfm", "afn"])
def test_tables_are_those_of_the_classifier_and_one_more(name: str) -> None:
    config = fgcnn(name)
    asked = CLASSIFIERS[name].tables(config.classifier, 16)
    assert FGCNN.tables(config, 16) == {**asked, "generation": 16}


def test_both_tables_are_counted_and_finalised(tmp_path: Path) -> None:
    plain, made = world(tmp_path, model=fgcnn().classifier), world(tmp_path, model=fgcnn())
    one, two = plain.assembly.memory(), made.assembly.memory()
    assert two.trainable_params == 2 * one.trainable_params
    assert two.lookups_per_row == 2 * one.lookups_per_row
    before = made.model.eval()(made.rows())
    made.assembly.finalise()
    assert torch.equal(made.model(made.rows()), before)
    assert made.assembly.memory() == two


@pytest.mark.parametrize("name", ["final_net", "pnn"])
def test_training_minimises_the_classifiers_loss(name: str) -> None:
    model, data = build(fgcnn(name)).eval(), batch(6)
    target = Target(torch.tensor([0.0, 1, 1, 0, 1, 0]), torch.arange(1.0, 7), torch.zeros(6).long())
    if name == "final_net":
        expected = model.classifier.loss(data, target)
    else:
        losses = torch.nn.functional.softplus(model(data)) - target.label * model(data)
        expected = (losses * target.weight).sum() / 21
    torch.testing.assert_close(model.loss(data, target), expected)


def test_generated_features_let_fm_learn_a_product_of_three_neighbours() -> None:
    """The label is the parity of three neighbours: no pair of fields says anything about it."""
    torch.manual_seed(0)
    count, rows, train = 6, 6000, 5000
    ids = torch.randint(0, 10, (rows, count))
    label = (ids[:, 1:4] % 2).sum(1) % 2
    empty = torch.zeros(rows, 0)

    def part(which: Tensor) -> Batch:
        return Batch(ids[which], empty[which], [], empty[which].long())

    def auc(config: Any) -> float:
        model = build(config, numerics=0, categoricals=count, dim=4)
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(12):
            for which in torch.randperm(train).split(250):
                loss = nn.functional.binary_cross_entropy_with_logits(
                    model(part(which)), label[which].float()
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        test = torch.arange(train, rows)
        with torch.no_grad():
            return float(roc_auc_score(label[test], model.eval()(part(test))))

    assert auc(MODELS["fm"].example()) < 0.6
    assert auc(fgcnn("fm", channels=(8, 8))) > 0.95
