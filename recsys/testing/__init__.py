"""The laws: what every model and every table method must obey, for whoever adds one.

    from recsys.testing import MODEL_LAWS, world

    @pytest.mark.parametrize("law", MODEL_LAWS, ids=lambda law: law.__name__)
    def test_my_model(law, tmp_path):
        law(world(tmp_path, model=MyModel.example()))

A law takes a `World`: a small log with every kind of field, fitted, and the modules of one run.
`MemoryRows` are rows to train on without a log.
"""

from __future__ import annotations

from collections.abc import Callable

from recsys.testing import models, tables
from recsys.testing.rows import MemoryRows
from recsys.testing.world import World, world

__all__ = ["MODEL_LAWS", "TABLE_LAWS", "Law", "MemoryRows", "World", "world"]

Law = Callable[[World], None]

MODEL_LAWS: list[Law] = [
    models.check_any_batch_size,
    models.check_every_parameter_gets_a_gradient,
    models.check_a_row_scores_the_same_alone,
    models.check_same_seed_same_weights,
    models.check_script_equals_eager,
    models.check_export_equals_eager,
    models.check_weights_round_trip,
]

TABLE_LAWS: list[Law] = [
    tables.check_shape,
    tables.check_empty_list_gives_zeros,
    tables.check_fields_do_not_leak,
    tables.check_every_id_has_a_vector,
    tables.check_memory_equals_tensors,
    tables.check_finalise_keeps_outputs,
    models.check_every_trained_tensor_moves,
    models.check_weights_round_trip,
    models.check_script_equals_eager,
    models.check_export_equals_eager,
]
