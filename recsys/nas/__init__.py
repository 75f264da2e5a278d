"""Architecture search: NASRec's supernet and regularised evolution."""

from recsys.nas.evolution import Evolution
from recsys.nas.phases import Evolve, Supernet
from recsys.nas.picture import search_figure
from recsys.nas.space import Space
from recsys.nas.weights import SharedNASRec

__all__ = ["Evolution", "Evolve", "SharedNASRec", "Space", "Supernet", "search_figure"]
