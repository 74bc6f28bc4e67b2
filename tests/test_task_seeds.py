"""Which tasks ``seed`` and ``test.seed`` draw."""

from numbered import Numbered

from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.training.factory import make_data

FEW = [f"{split}.{option}" for split in ("train", "val", "test") for option in ("way=2", "shot=1", "query=2")]


def test_the_seed_draws_training_tasks_and_that_of_the_test_all_others(composed):
    """Runs with other seeds are compared on the same tasks, those of validation too."""
    drawn = []
    for words in ([], ["seed=1"], ["test.seed=1"]):
        data = make_data(composed(*FEW, *words)[0], Numbered(), Episodic(NoRegularizer()))
        data.prepare_data()
        samplers = [data.sampler(spec) for spec in (data.train, data.val, *data.test, data.analyzed)]
        drawn.append([[sampler.task(index).ids[1].tolist() for index in range(5)] for sampler in samplers])
    same_as_first = [[one == other for one, other in zip(drawn[0], each, strict=True)] for each in drawn]
    assert same_as_first == [[True] * 4, [False, True, True, True], [True, False, False, False]]
