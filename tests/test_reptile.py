"""Reptile against the published in-place update, and weight clustering."""

import copy

import pytest
import torch
import torch.nn.functional as F
from contracts import SCHEMES
from smooth import Smooth, W, three_tasks
from torch import nn

from metafew.errors import UsageError
from metafew.heads.inner import entry
from metafew.heads.protonet import ProtoNet
from metafew.heads.reptile import Reptile as Head
from metafew.norms.running import commit
from metafew.objectives.regularizers import FeatureClustering, NoRegularizer, WeightClustering
from metafew.objectives.reptile import Reptile, mean_over_tasks

OFF = NoRegularizer()


def learner(word="layer", **options):
    torch.manual_seed(0)
    backbone = Smooth(word).double()
    defaults = {"trained": True, "way": W, "steps": 4, "test_steps": 3, "lr": 0.01, "batch": 4}
    return backbone, Head(backbone, **defaults | options).double()


def outer_step(backbone, head, regularizer=OFF, tasks=None):
    """Do one step of plain SGD with learning rate 1, as training does; return the loss."""
    objective = Reptile(regularizer)
    objective.prepare(backbone, head)
    parameters = [p for p in (*backbone.parameters(), *head.parameters()) if p.requires_grad]
    loss = objective(backbone, head, [tasks or three_tasks()]).loss
    loss.backward()
    commit(head)
    torch.optim.SGD(parameters, lr=1.0).step()
    return loss.detach()


def values(backbone, head):
    return [p.detach().clone() for p in (*backbone.parameters(), *head.output.parameters())]


@pytest.mark.parametrize(("word", "inner"), [("layer", "batch"), ("transductive", "batch"), ("transductive", "loop")])
def test_one_step_of_sgd_is_the_published_update(word, inner):
    """Theta <- theta + mean_i(theta_i - theta), theta_i by torch's own Adam on the same rows."""
    backbone, head = learner(word, inner=inner)
    head.rule.eps = 1e-14  # which ours adds within the root
    before, ends, losses = values(backbone, head), [], []
    task = three_tasks()
    for images, labels, index in zip(*task.support, task.index.tolist(), strict=True):
        net, layer = copy.deepcopy(backbone), copy.deepcopy(head.output)
        optimizer = torch.optim.Adam([*net.parameters(), *layer.parameters()], lr=0.01, betas=(0.0, 0.999), eps=1e-14)
        for step in range(4):
            rows = head.rows(step, len(labels), index)
            features, _ = net.embed(images[rows].unsqueeze(0))
            loss = F.cross_entropy(F.linear(features[0], layer.weight, layer.bias), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append([p.detach() for p in (*net.parameters(), *layer.parameters())])
        losses.append(loss.detach())
    loss = outer_step(backbone, head)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    for start, now, *adapted in zip(before, values(backbone, head), *ends, strict=True):
        torch.testing.assert_close(now, start + torch.stack([a - start for a in adapted]).mean(0), rtol=1e-6, atol=1e-9)


def test_a_coefficient_of_zero_is_plain_reptile():
    results = []
    for regularizer in (OFF, WeightClustering(0.0)):
        backbone, head = learner()
        outer_step(backbone, head, regularizer)
        results.append(values(backbone, head))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def spread(weight):
    """The mean distance of adapted weights from their mean after an outer step, through what the step noted."""
    backbone, head = learner(lr=0.02, steps=20)
    ends = {}

    class Spy(WeightClustering):
        def forward(self, weights, mean):
            ends.update((name, value.detach()) for name, value in weights.items())
            return super().forward(weights, mean)

    outer_step(backbone, head, Spy(weight))
    middle = mean_over_tasks([ends], [name for name, value in ends.items() if value.ndim > 2])
    return sum((ends[name] - middle[name]).square().sum() for name in middle)


def test_weight_clustering_draws_tasks_together():
    assert spread(1.0) < 0.5 * spread(0.0)


def test_weight_clustering_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv": (4, 2, 3, 3), "linear": (3, 5), "bias": (3,)}
    tasks = {n: torch.randn(3, *s, generator=generator, dtype=torch.double) for n, s in shapes.items()}
    mean = mean_over_tasks([tasks], ["conv", "linear"])
    expected = torch.zeros(3, dtype=torch.double)
    for name in mean:
        for f in range(shapes[name][0]):
            centre = sum(weight[f] for weight in tasks[name]) / 3
            expected += 0.7 * torch.stack([((w[f] - centre) ** 2).sum() / (centre**2).sum() for w in tasks[name]])
    torch.testing.assert_close(WeightClustering(0.7)(tasks, mean), expected)


@pytest.mark.parametrize("output", ["zero", "prototype"])
def test_output_layers_made_anew_are_neither_moved_nor_drawn_together(output):
    """The gradient is mean_i(theta - theta_i) in the backbone, whatever the output layer was computed from."""
    means = []

    class Spy(WeightClustering):
        def forward(self, weights, mean):
            means.append(set(mean))
            return super().forward(weights, mean)

    backbone, head = learner(output=output)
    reference, ends = learner(output=output), []
    Reptile(OFF).prepare(*reference)
    descend = reference[1].rates.descend
    reference[1].rates.descend = lambda *args: ends.append(descend(*args)) or ends[-1]
    Reptile(OFF)(*reference, [three_tasks()]).loss.backward()
    for name, p in reference[0].named_parameters():
        expected = (p.detach() - ends[-1]["backbone." + name]).mean(0)
        torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-12)
    outer_step(backbone, head, Spy(0.1))
    assert means and all("weight" not in names and names for names in means)


def test_second_moments_go_on_as_their_mean_over_tasks():
    backbone, head = learner()
    seen, keep = [], head.keep
    head.keep = lambda states: (seen.append(states), keep(states))
    outer_step(backbone, head)
    ((state,),) = seen
    for name in head.lasting:
        mean = state[name].mean(0) if state[name].ndim else state[name]
        torch.testing.assert_close(getattr(head, entry(name)), mean)
        assert mean.ndim or mean == 4
    before = copy.deepcopy(head.state_dict())
    backbone.eval(), head.eval()
    with torch.no_grad():
        head(backbone, *three_tasks()[:1], three_tasks().query.images, W)
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())
    assert not learner(fresh=True)[1].lasting
    assert learner(output="zero")[1].lasting[::2] == [f"backbone.{name}" for name in head.names]


@pytest.mark.parametrize("inner", ["batch", "chunk", "vmap"])
def test_executions_agree_in_evaluation(inner):
    reference, other = (learner("transductive", inner=name, chunk=2, test_batch=2) for name in ("loop", inner))
    task = three_tasks()
    logits = []
    for backbone, head in (reference, other):
        backbone.eval(), head.eval()
        logits.append(head(backbone, task.support, task.query.images, W))
    torch.testing.assert_close(*logits, rtol=1e-8, atol=1e-10)


def test_minibatches_go_through_whole_orders():
    _, head = learner(batch=4)
    rows = torch.cat([head.rows(step, 6) for step in range(6)])
    for order in rows.split(6):
        assert sorted(order.tolist()) == list(range(6))
    assert len({tuple(order.tolist()) for order in rows.split(6)}) > 1
    assert torch.equal(head.rows(2, 6, 7), head.rows(2, 6, 7)) and len(head.rows(0, 3)) == 3
    assert len({tuple(head.rows(0, 6, task).tolist()) for task in range(9)}) > 1
    head.eval()
    assert len(head.rows(0, 9)) == 5


@pytest.mark.parametrize("word", [word for word in SCHEMES if word != "batch_shared"])
def test_what_no_task_adapts_is_frozen_and_all_else_moves(word):
    backbone, head = learner(word)
    before = values(backbone, head)
    outer_step(backbone, head)
    names = [name for name, _ in backbone.named_parameters()] + ["weight", "bias"]
    for name, old, new in zip(names, before, values(backbone, head), strict=True):
        assert torch.equal(old, new) == ("alpha" in name), name


@pytest.mark.parametrize(
    ("options", "adapting"),
    [
        ({"adapt": "no_norm"}, {"body.0.weight", "body.4.weight"}),
        ({"adapt": "output"}, set()),
        ({"freeze": ["body.0", "body.1"]}, {"body.4.weight", "body.5.weight", "body.5.bias"}),
        ({"freeze": ["body.5.bias"], "adapt": "all"}, {f"body.{name}" for name in
         ("0.weight", "1.weight", "1.bias", "4.weight", "5.weight")}),
    ],
)  # fmt: skip
def test_only_weights_that_adapt_move(options, adapting):
    backbone, head = learner(**options)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    output = head.output.weight.detach().clone()
    outer_step(backbone, head)
    assert {name for name, p in backbone.named_parameters() if not torch.equal(p, before[name])} == adapting
    assert {*head.names} == adapting and not torch.equal(head.output.weight, output)


def test_the_seed_draws_the_minibatches_of_training_only():
    heads = [learner(seed=seed)[1] for seed in (0, 0, 1)]
    train = [[head.rows(step, 6, task=3).tolist() for step in range(4)] for head in heads]
    assert train[0] == train[1] != train[2]
    steps = [learner(seed=seed) for seed in (0, 0, 1)]
    for backbone, head in steps:
        outer_step(backbone, head)
    moved = [backbone.body[0].weight for backbone, _ in steps]
    assert torch.equal(moved[0], moved[1]) and not torch.allclose(moved[0], moved[2])
    test = [[head.eval().rows(step, 6).tolist() for step in range(4)] for head in heads]
    assert test[0] == test[1] == test[2]


def test_running_moments_see_every_task_once():
    backbone, head = learner("batch")
    Reptile(OFF)(backbone, head, [three_tasks()])
    norm = backbone.norms[0]
    assert norm.pending[0, -1] == 3
    commit(backbone)
    assert norm.running_mean.abs().sum() > 0


def test_queries_play_no_part_in_training():
    task = three_tasks()
    empty = task._replace(query=type(task.query)(*(part[:, :0] for part in task.query)))
    results = []
    for tasks in (task, empty):
        backbone, head = learner()
        outer_step(backbone, head, tasks=tasks)
        results.append(values(backbone, head))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_another_optimizer_is_advised_against(caplog):
    weights = [nn.Parameter(torch.zeros(1))]
    Reptile(OFF).advise(torch.optim.SGD(weights, lr=1.0))
    assert not caplog.records
    for optimizer in (torch.optim.Adam(weights), torch.optim.SGD(weights, lr=1.0, momentum=0.9)):
        Reptile(OFF).advise(optimizer)
    assert caplog.text.count("optimizer=plain_sgd") == 2


def test_what_does_not_go_together_is_refused():
    backbone, _ = learner()
    with pytest.raises(UsageError, match="type head=reptile"):
        Reptile(OFF).prepare(backbone, ProtoNet())
    with pytest.raises(UsageError, match="no loss on features"):
        Reptile(FeatureClustering()).prepare(backbone, ProtoNet())
    with pytest.raises(UsageError, match=r"head\.output=zero"):
        learner(output="shared")
    with pytest.raises(UsageError, match=r"head\.batch to be an integer"):
        learner(batch=0)


def test_weight_clustering_wants_weights_that_adapt():
    backbone, head = learner("layer", output="zero", freeze=["body.0", "body.4"])
    with pytest.raises(UsageError, match="which regularizer=weight_clustering draws together, got none"):
        Reptile(WeightClustering(1.0)).prepare(backbone, head)
    Reptile(OFF).prepare(backbone, head)
