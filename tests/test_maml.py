"""MAML's meta-gradient against finite differences, its limits, and what it leaves behind."""

import copy
import weakref

import pytest
import torch
from contracts import SCHEMES, sampled
from smooth import Smooth, W, three_tasks
from torch import nn
from torch.func import functional_call

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.heads.fast_weights import FunctionalBackbone, adapting_names
from metafew.heads.inner import Adam
from metafew.heads.maml import MAML
from metafew.heads.output import Output, classify, prototypes
from metafew.heads.protonet import ProtoNet
from metafew.norms.norm import Norm
from metafew.norms.running import commit
from metafew.objectives.episodic import Episodic
from metafew.objectives.objective import in_turn
from metafew.objectives.regularizers import NoRegularizer

INNER = ("loop", "batch", "chunk", "vmap")


@pytest.fixture
def episode():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 4 * W, 1, 6, 6, generator=generator, dtype=torch.double)
    labels = torch.arange(W).repeat(2, 4)
    support = Labelled(images[:, : 2 * W], labels[:, : 2 * W])
    return Episode(support, Labelled(images[:, 2 * W :], labels[:, 2 * W :]), W, torch.arange(2))


def learner(word, **options):
    torch.manual_seed(0)
    backbone = Smooth(word).double()
    return backbone, MAML(backbone, **{"trained": True, "way": W, "steps": 2, "lr": 0.3} | options).double()


def parameters(backbone, head):
    return [*backbone.parameters(), *head.parameters()]


OPTIONS = {
    "all": {},
    "no_norm": {"output": "shared", "adapt": "no_norm"},
    "output": {"adapt": "output"},
    "body": {"adapt": "body"},
    "prototype": {"output": "prototype"},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "layer": {"rates": "layer"},
    "weight": {"rates": "weight"},
    "curvature": {"rates": "curvature"},
    "curvature for any way": {"rates": "curvature", "output": "shared"},
}
# Every norm with every execution, and every option with every execution.
CASES = [(word, "no_norm" if i % 2 else "all", inner) for i, word in enumerate(SCHEMES) for inner in INNER]
CASES += [("tasknorm", name, inner) for name in OPTIONS for inner in INNER]
CASES = [case for case in CASES if case[::2] != ("batch_shared", "batch")]  # tasks share its moments


@pytest.mark.parametrize(("word", "name", "inner"), sampled([case for case in CASES if case[0] != "batch_renorm"], 45))
def test_meta_gradient_by_finite_differences(word, name, inner, episode):
    backbone, head = learner(word, inner=inner, chunk=1, **OPTIONS[name])
    head.rule.eps = 0.01  # Adam turns on a gradient's sign within its epsilon, which differences must not step over
    Episodic(NoRegularizer())(backbone, head, [episode]).loss.backward()
    generator = torch.Generator().manual_seed(1)
    values = parameters(backbone, head)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.double) for p in values]
    ours = sum((p.grad * d).sum() for p, d in zip(values, direction, strict=True))

    def moved(step):
        with torch.no_grad():
            for p, d in zip(values, direction, strict=True):
                p += step * d
            loss = Episodic(NoRegularizer())(backbone, head, [episode]).loss
            for p, d in zip(values, direction, strict=True):
                p -= step * d
        return loss

    h = 1e-4  # fourth-order differences: an error of h^4
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert ours.item() == pytest.approx(numeric.item(), rel=1e-6, abs=1e-9)


def test_without_steps_it_is_plain_training(episode):
    backbone, head = learner("transductive", steps=0)
    loss = Episodic(NoRegularizer())(backbone, head, [episode]).loss
    _, features = backbone.embed(episode.support.images, episode.query.images)
    logits = nn.functional.linear(features, head.output.weight, head.output.bias)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.mT, episode.query.labels))


def test_first_order_is_the_gradient_at_the_adapted_weights(episode):
    backbone, head = learner("tasknorm", steps=1, first_order=True)
    first = Labelled(*(part[:1] for part in episode.support))
    single = Episode(first, Labelled(*(p[:1] for p in episode.query)), W, episode.index[:1])
    loss = Episodic(NoRegularizer())(backbone, head, [single]).loss
    loss.backward()

    adapted, top = copy.deepcopy(backbone), copy.deepcopy(head)
    adapted.zero_grad()
    top.zero_grad()
    features, _ = adapted.embed(first.images)
    inner = nn.functional.cross_entropy(
        nn.functional.linear(features[0], top.output.weight, top.output.bias), first.labels[0]
    )
    fast = [p for n, p in adapted.named_parameters() if "alpha" not in n] + [top.output.weight, top.output.bias]
    for p, g in zip(fast, torch.autograd.grad(inner, fast), strict=True):
        p.data -= 0.3 * g
    _, features = adapted.embed(first.images, episode.query.images[:1])
    outer = nn.functional.cross_entropy(
        nn.functional.linear(features[0], top.output.weight, top.output.bias), episode.query.labels[0]
    )
    outer.backward()
    for p, q in zip(parameters(backbone, head), parameters(adapted, top), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


def test_second_order_differs_from_first(episode):
    gradients = []
    for first_order in (False, True):
        backbone, head = learner("tasknorm", first_order=first_order)
        Episodic(NoRegularizer())(backbone, head, [episode]).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters()]))
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


@pytest.mark.parametrize("word", SCHEMES)
def test_evaluation_leaves_no_trace_and_builds_no_graph(word, episode):
    backbone, head = learner(word)
    backbone.eval(), head.eval()
    before = copy.deepcopy([backbone.state_dict(), head.state_dict()])
    with torch.no_grad():
        logits = head(backbone, episode.support, episode.query.images, W)
        again = head(backbone, episode.support, episode.query.images, W)
    assert torch.equal(logits, again) and not logits.requires_grad
    for old, new in zip(before, [backbone.state_dict(), head.state_dict()], strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert all(p.grad is None for p in parameters(backbone, head))


def test_adaptation_fits_the_support(episode):
    backbone, head = learner("meta_batch", test_steps=100, lr=0.5)
    backbone.eval(), head.eval()
    with torch.no_grad():
        logits = head(backbone, episode.support, episode.support.images, W)
    assert (logits.argmax(-1) == episode.support.labels).all()


def test_running_moments_are_those_of_the_final_pass(episode):
    backbone, head = learner("transductive", steps=3)
    head(backbone, episode.support, episode.query.images, W)
    norm = next(m for m in backbone.modules() if isinstance(m, Norm))
    assert norm.pending[0, -1] == 2  # two tasks, once each, whatever the number of steps
    commit(backbone)
    assert norm.running_mean.abs().sum() > 0


@pytest.mark.parametrize("adapt", ["all", "output"])
def test_a_row_that_all_classes_start_from_is_as_good_as_zero(adapt, episode):
    losses, gradients = [], []
    for output in ("shared", "zero"):
        backbone, head = learner("tasknorm", output=output, adapt=adapt, steps=3)
        logits = head.train()(backbone, episode.support, episode.query.images, W)
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), episode.query.labels.flatten()))
        row = [*head.output.parameters()]
        found = torch.autograd.grad(losses[-1], [*row, *backbone.parameters()], allow_unused=True)
        assert not any(gradient.any() for gradient in found[: len(row)])  # exactly 0
        gradients.append(found[len(row) :])
    torch.testing.assert_close(*losses)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("output", ["shared", "zero"])
def test_outputs_that_take_any_way(output, episode):
    backbone, head = learner("tasknorm", way="2..5", output=output)
    narrow = Labelled(episode.support.images[:, :2], episode.support.labels[:, :2])
    assert head(backbone, narrow, episode.query.images, 2).shape == (2, 2 * W, 2)
    assert head(backbone, episode.support, episode.query.images, W).shape == (2, 2 * W, W)


def test_the_initial_output_layer_has_the_standard_deviation_asked_for():
    torch.manual_seed(0)
    weight = Output("linear", 50, 200, trained=True, std=3).weight
    assert weight.std().item() == pytest.approx(3, rel=0.05) and weight.mean().abs() < 0.2
    bound = Output("auto", 50, 200, trained=True).weight.abs().max().item()
    assert 0.9 < bound * 200**0.5 <= 1  # uniform, as torch.nn.Linear
    assert Output("auto", 50, 200, trained=False, std=1).kind == "zero"  # in evaluation of another head's backbone


def test_a_linear_output_wants_one_way(episode):
    with pytest.raises(UsageError, match="one number of classes"):
        learner("none", way="2..5", output="linear")
    backbone, head = learner("none")
    with pytest.raises(UsageError, match=r"expected 3 classes, .* got a task of 2"):
        head(backbone, episode.support, episode.query.images, 2)


def test_embedding_with_other_weights_needs_no_copy(episode):
    """The functional call that MAML rests on leaves the backbone's own weights alone."""
    backbone, _ = learner("none")
    zeros = {f"backbone.{n}": torch.zeros_like(p) for n, p in backbone.named_parameters()}
    features, _ = functional_call(FunctionalBackbone(backbone), zeros, (episode.support.images,))
    assert features.std() == 0 and backbone.embed(episode.support.images)[0].std() > 0


def test_a_weight_of_two_names_is_one_weight(episode):
    backbone, _ = learner("none")
    first, second = backbone.norms
    first.weight = second.weight
    model = FunctionalBackbone(backbone)
    assert model.tied
    changed = {f"backbone.{name}": 2 * p[None] for name, p in backbone.named_parameters()}
    features, _ = model.embed(changed, episode.support.images[:1])
    with torch.no_grad():
        for p in backbone.parameters():
            p.mul_(2)
    torch.testing.assert_close(features, backbone.embed(episode.support.images[:1])[0])


def everything(backbone, head, episode):
    """Return loss, gradients, running moments to come, and test logits."""
    loss = Episodic(NoRegularizer())(backbone, head, [episode]).loss
    loss.backward()
    grads = [p.grad for p in parameters(backbone, head)]
    pending = [norm.pending for norm in backbone.norms if getattr(norm, "pending", None) is not None]
    backbone.eval(), head.eval()
    with torch.no_grad():
        logits = head(backbone, episode.support, episode.query.images, W)
    return [loss.detach(), *grads, *pending, logits]


SAME = [(word, "all") for word in SCHEMES if word != "batch_shared"] + [("transductive", name) for name in OPTIONS]


FIRST = {f"first_order {name}": OPTIONS[name] | {"first_order": True} for name in ("all", "prototype", "adam", "layer")}


@pytest.mark.parametrize(("word", "name"), sampled([*SAME, *(("tasknorm", name) for name in FIRST)], 14))
def test_every_execution_gives_the_same_numbers(word, name):
    options = {**OPTIONS, **FIRST}[name]
    numbers = (everything(*learner(word, inner=inner, chunk=2, **options), three_tasks()) for inner in INNER)
    for reference, *others in zip(*numbers, strict=True):
        for other in others:
            torch.testing.assert_close(other, reference, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("word", SCHEMES)
def test_queries_are_labelled_without_a_context_that_they_do_not_depend_on(word):
    backbone, task, rows = Smooth(word).double().eval(), three_tasks(), []
    images = task.support.images, task.query.images
    reference = backbone.embed(*images)[1]
    backbone.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    torch.testing.assert_close(backbone.embed(*images, targets_only=True)[1], reference, rtol=1e-12, atol=1e-12)
    dependent = word in ("meta_batch", "reptile", "tasknorm", "tasknorm_l", "tasknorm_r")
    assert sum(rows) == task.query.labels.numel() * (2 if dependent else 1)


def test_anil_is_maml_with_a_frozen_backbone(episode):
    """Computing features once, or in every step anew, makes no difference to what is learned."""
    for inner in INNER:
        results = []
        for options in ({"adapt": "output"}, {"freeze": ["body"]}):
            backbone, head = learner("batch", inner=inner, **options)
            if "freeze" in options:
                head.names = []  # what freeze arrives at, but features are computed in every step as MAML does it
                head.adapts_backbone = True
            results.append(everything(backbone, head, episode))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_prototype_output_without_steps_is_a_prototypical_network(episode):
    backbone, head = learner("tasknorm", output="prototype", steps=0)
    ours = head(backbone, episode.support, episode.query.images, W).softmax(-1)
    theirs = ProtoNet()(backbone, episode.support, episode.query.images, W).softmax(-1)
    torch.testing.assert_close(ours, theirs)


def test_inner_adam_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, generator=generator, dtype=torch.double)
    reference = nn.Parameter(w.clone())
    optimizer, rule, state = torch.optim.Adam([reference], lr=0.1, betas=(0.0, 0.999)), Adam(), None
    state = rule.start({"w": w})
    for _ in range(5):
        grad = torch.randn(4, 3, generator=generator, dtype=torch.double)
        reference.grad = grad
        optimizer.step()
        directions, state = rule({"w": grad}, state)
        w = w - 0.1 * directions["w"]
    torch.testing.assert_close(w, reference.detach(), rtol=1e-6, atol=1e-9)
    # Nothing moves where there is no gradient, and second derivatives stay finite.
    grad = torch.zeros(4, 3, dtype=torch.double, requires_grad=True)
    directions, _ = rule({"w": grad}, rule.start({"w": w}))
    assert not directions["w"].any() and torch.autograd.grad(directions["w"].sum(), grad)[0].isfinite().all()


def test_learned_rates_start_where_fixed_ones_are_and_last_beyond_training():
    for kind in ("layer", "weight", "curvature"):
        backbone, head = learner("tasknorm", rates=kind, steps=2, test_steps=4)
        fixed = learner("tasknorm", steps=2, test_steps=4)[1]
        fixed.load_state_dict(head.state_dict(), strict=False)
        backbone.eval(), head.eval(), fixed.eval()
        task = three_tasks()
        torch.testing.assert_close(
            head(backbone, task.support, task.query.images, W), fixed(backbone, task.support, task.query.images, W)
        )


def test_the_last_learned_rate_of_a_layer_goes_on_beyond_training(episode):
    backbone, head = learner("layer", rates="layer", output="zero", test_steps=4)
    backbone.eval(), head.eval()
    with torch.no_grad():
        for rate in head.rates.parameters():
            rate.copy_(torch.tensor([0.3, 0.05]))
    logits = head(backbone, episode.support, episode.query.images, W)
    for found, piece in zip(logits, episode.split(1), strict=True):
        net, layer = copy.deepcopy(backbone), nn.Linear(4, W).double()
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        for rate in (0.3, 0.05, 0.05, 0.05):
            loss = nn.functional.cross_entropy(layer(net.embed(piece.support.images)[0][0]), piece.support.labels[0])
            loss.backward()
            with torch.no_grad():
                for p in (*net.parameters(), *layer.parameters()):
                    p -= rate * p.grad
                    p.grad = None
        torch.testing.assert_close(found, layer(net.embed(piece.query.images)[0][0]))


def test_readings_are_what_each_setting_gives_alone(episode):
    backbone, head = learner("tasknorm", test_steps=[1, 3], lr=[0.1, 0.5], trained=False)
    backbone.eval(), head.eval()
    images = episode.support, episode.query.images, W
    assert head.extra_readings == ["lr0.1_steps1", "lr0.1_steps3", "lr0.5_steps1", "lr0.5_steps3"]
    readings = head.readings(backbone, *images)
    torch.testing.assert_close(readings[""], readings["lr0.1_steps1"])
    for name in head.extra_readings:
        lr, steps = head.candidates[name].values()
        alone = learner("tasknorm", test_steps=steps, lr=lr, trained=False)[1].eval()
        torch.testing.assert_close(readings[name], alone(backbone, *images))
    head.chosen = "lr0.5_steps3"
    torch.testing.assert_close(head(backbone, *images), readings["lr0.5_steps3"])
    assert head.extra_readings == []

    stepwise = learner("tasknorm", test_steps=3, each_step=True)[1].eval()
    readings = stepwise.readings(backbone, *images)
    assert list(readings) == ["step1", "step2", "", "step3"]
    torch.testing.assert_close(readings[""], readings["step3"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze": ["head"]}, "prefixes of names of adapting weights, got head: type one of"),
        ({"inner": "fast"}, "expected head.inner to be auto or loop"),
        ({"lr": 0}, "positive"),
        ({"lr": True}, "expected head.lr to be a positive number, got True"),
        ({"adapt": "body", "way": "2..5", "output_std": 1}, "no head.output_std for head.output=prototype"),
        ({"rates": "layer", "lr": [0.1, 0.2], "trained": False}, "expected one head.lr for head.rates=layer"),
        ({"rates": "layer", "steps": 0}, "type head.steps=1"),
        ({"steps": -1}, "expected head.steps to be an integer of at least 0, got -1"),
        ({"test_steps": []}, "expected head.test_steps to be an integer"),
        ({"chunk": 0}, "expected head.chunk to be an integer of at least 1"),
        ({"output": "best"}, "expected head.output to be one of"),
        ({"output_std": 0}, "expected head.output_std to be a positive number, got 0: type head.output_std=1"),
        ({"output_std": 1, "output": "zero"}, "expected no head.output_std for head.output=zero"),
        ({"adapt": "body", "output": "shared"}, "got head.output=shared: type head.output=prototype"),
        ({"adapt": "body", "freeze": ["body"]}, "got Smooth with none: type head.adapt=output"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        learner("none", **options)


def test_frozen_weights_do_not_adapt(episode):
    backbone, head = learner("tasknorm", freeze=["body.0", "body.1"])
    assert all(name.startswith(("body.4", "body.5")) for name in head.names) and head.names
    assert adapting_names(backbone, "no_norm") == ["body.0.weight", "body.4.weight"]


def test_tasks_are_differentiated_one_after_the_other():
    """The graph of a task is gone before the next is computed, and the gradient is that of the sum."""
    weight, alive = nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.double)), []

    def losses():
        for i in range(3):
            assert all(ref() is None for ref in alive)
            hidden = (weight**2).sin()
            alive.append(weakref.ref(hidden))
            loss = (hidden * (i + 1)).sum()
            del hidden
            yield loss

    for scale in (1.0, 1024.0):
        weight.grad = None
        total = in_turn(losses(), [weight], scale)
        total.backward()
        reference = (6 * (weight**2).sin()).sum()
        torch.testing.assert_close(total, reference)
        torch.testing.assert_close(weight.grad, torch.autograd.grad(reference, weight)[0])


def test_a_network_with_norms_and_unused_weights_of_its_own():
    class Own(Backbone):
        features = 4

        def __init__(self):
            super().__init__(1, 6)
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 4))
            self.unused = nn.Linear(3, 3)

        def forward(self, images):
            return self.body(images)

    torch.manual_seed(0)
    backbone, task = Own().double(), three_tasks()
    loop, vmap = (MAML(backbone, True, W, steps=2, adapt="no_norm", inner=inner).double() for inner in ("loop", "vmap"))
    vmap.load_state_dict(loop.state_dict())
    assert not any(name.startswith("body.1") for name in loop.names) and "unused.weight" in loop.names
    torch.testing.assert_close(*(head(backbone, task.support, task.query.images, W) for head in (loop, vmap)))


def test_the_output_layer_is_exact_under_autocast():
    """Only the features are rounded: 2 p.x - |p|^2 would cancel in bfloat16."""
    torch.manual_seed(0)
    features = 2 + torch.randn(1, 20, 64)
    labels = torch.arange(5).repeat(1, 4)
    weights = prototypes(features, labels, 5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = prototypes(features, labels, 5)
        logits = classify(features, cast)
    assert logits.dtype == torch.float32
    exact = nn.functional.linear(features, weights["weight"][0], weights["bias"][0])
    torch.testing.assert_close(logits, exact, rtol=0, atol=1e-4 * exact.abs().max().item())  # bfloat16 has 4e-3
