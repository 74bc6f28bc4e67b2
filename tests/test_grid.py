"""Whole runs over the grid of choices: what goes together trains and is finite, what does not is refused."""

import copy
import csv
import math
from itertools import combinations, product

import pytest
import torch
from contracts import SCHEMES, is_alike, node, sampled, takes_steps
from contracts import norm as make_norm
from contracts.steps import evaluate, make_episode, prepare_tables, train, without_loops
from runs import TINY
from torch import nn

from metafew.config.groups import CONF
from metafew.errors import UsageError
from metafew.heads.maps import MapHead
from metafew.training import checkpoint
from metafew.training.checks import check_options, check_parts
from metafew.training.instantiate import make, make_head
from metafew.training.parts import make_parts
from metafew.training.run import run
from metafew.training.schedules import piecewise

HEADS = sorted(file.stem for file in (CONF / "head").glob("*.yaml"))
WIDTHS = {"conv4": 4, "r2d2": 6, "resnet12": 4, "resnet18": 4}
OURS = sorted({file.stem for file in (CONF / "backbone").glob("*.yaml")} - {"module", "identity"})


def make_network(word):
    options = node(CONF / "backbone" / f"{word}.yaml")
    for key in ("weights", "freeze"):  # the run reads them
        options.pop(key, None)
    return make(options, channels=1, image_size=28, norm=make_norm("layer"))


MADE = {word: make_head(node(CONF / "head" / f"{word}.yaml"), make_network("conv4"), trained=True) for word in HEADS}
STEPPING = set(filter(takes_steps, HEADS))
ADAPTING = {word for word, head in MADE.items() if head.adapts_backbone}
WEIGHTLESS = {word for word, head in MADE.items() if not list(head.parameters())}
ALIKE = set(filter(is_alike, HEADS))
"""Heads most of whose runs are slow."""


COUPLING = {word for word in SCHEMES if make_norm(word)(64).couples_tasks}
"""Norms that treat a meta-batch as one batch: heads that adapt the backbone cannot be trained with them."""
MODULATED = {word for word in OURS if make_network(word).films}
"""Backbones with FiLM layers, which only head=cnaps needs."""
MAPPED = {word for word in OURS if make_network(word).map_shape}
"""Backbones whose features have positions by default, which the heads of ON_MAPS need."""
ON_MAPS = {word for word, head in MADE.items() if isinstance(head, MapHead)}

QUICK = [word for word in TINY if not word.startswith("backbone.")]
QUICK += ["trainer.max_steps=1", "train.query=1", "val.every=1", "val.total=2", "test.total=2", "test.query=1"]


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(3))


class BatchNormed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(3))


@pytest.fixture
def carry_out(tmp_path, monkeypatch):
    """Run a configuration; all that it measures must be finite."""

    def go(cfg, choices, overrides, folder):
        folder.mkdir(exist_ok=True)
        report = run(cfg, choices, overrides, folder)
        assert all(math.isfinite(value["mean"]) for value in report["metrics"].values())
        assert bool(report["metrics"]) == ("test" in cfg.stages)
        return report, folder

    return go


@pytest.fixture
def quick(carry_out, composed, tmp_path):
    """Run an experiment of one step, unless the words say more; returns its report and its folder."""

    def go(*words, name="run"):
        return carry_out(*composed(*QUICK, *words), tmp_path / name)

    return go


@pytest.fixture(scope="module")
def memory():
    return {}


@pytest.fixture
def configured(composed, memory):
    """Configure a cell of the grid. Words of each group are composed once: what they say depends on no other group."""

    def go(head, norm, backbone):
        chosen = {"norm": norm, "backbone": backbone}
        for group, word in {"head": head, **chosen}.items():
            if (group, word) not in memory:
                memory[group, word] = composed(*QUICK, *choose(**{group: word}))
        cfg, choices, _ = copy.deepcopy(memory["head", head])
        for group, word in chosen.items():
            cfg[group] = copy.deepcopy(memory[group, word][0][group])
        return cfg, choices | chosen, []

    return go


@pytest.fixture
def built(configured, tmp_path):
    """Build the parts of a cell of the grid, and check that they fit together."""

    def go(*cell):
        cfg, *rest = configured(*cell)
        check_options(cfg)
        parts = make_parts(cfg, *rest, tmp_path)
        check_parts(parts)
        return parts

    return go


def state(folder):
    return checkpoint.read(folder / "checkpoints" / "last.ckpt")["state_dict"]


def choose(head="protonet", norm="tasknorm", backbone="conv4"):
    """Return words that choose these; a head that takes steps takes few."""
    words = [f"head={head}", f"norm={norm}", f"backbone={backbone}", f"backbone.width={WIDTHS[backbone]}"]
    return words + ["norm.groups=2"] * (norm == "group") + ["head.steps=1", "head.test_steps=1"] * (head in STEPPING)


def sentence(head, norm, backbone):
    """Return what is said of choices that do not go together, or None."""
    if head == "cnaps" and backbone not in MODULATED:
        return "expected a backbone with FiLM layers"
    if head in ON_MAPS and backbone not in MAPPED:
        return f"expected a backbone whose features have positions for head={head}, .*: type backbone.readout=map"
    if head in ADAPTING and norm in COUPLING:
        return f"head={head} adapts the backbone to one task at a time, and this norm"
    return None


def subsets(cell, size):
    return set(combinations(enumerate(cell), size))


def covering(cells, size):
    """Choose cells one by one until ``size`` choices that some cell holds together are held by a chosen one."""
    missing, chosen = set().union(*(subsets(cell, size) for cell in cells)), []
    while missing:
        chosen.append(max(cells, key=lambda cell: len(missing & subsets(cell, size))))
        missing -= subsets(chosen[-1], size)
    return chosen


CELLS = list(product(HEADS, SCHEMES, OURS))
SENSIBLE = [cell for cell in CELLS if sentence(*cell) is None]
DIFFERENT = [cell for cell in SENSIBLE if cell[0] not in ALIKE]
PAIRS, ONCE = covering(DIFFERENT, 2), covering(DIFFERENT, 1)
"""Cells that hold every pair of choices, and every choice, but for heads like others."""
GRID = [pytest.param(*cell, marks=[] if cell in ONCE else pytest.mark.slow) for cell in SENSIBLE]


def test_the_suite_meets_every_pair_of_choices():
    met, heads = set().union(*(subsets(cell, 2) for cell in PAIRS)), [head for head in HEADS if head not in ALIKE]
    for choices in ((heads, SCHEMES), (heads, None, OURS), (None, SCHEMES, OURS)):
        (i, first), (j, second) = ((k, words) for k, words in enumerate(choices) if words)
        for a, b in product(first, second):
            senseless = (a == "cnaps" and b in set(OURS) - MODULATED) or (a in ADAPTING and b in COUPLING)
            senseless |= a in ON_MAPS and b in set(OURS) - MAPPED
            assert (((i, a), (j, b)) in met) == (not senseless), (a, b)
    assert set(OURS) == set(WIDTHS) and len(PAIRS) < len(SENSIBLE) / 3
    assert [{*words} for words in zip(*ONCE, strict=True)] == [{*heads}, {*SCHEMES}, {*OURS}]


@pytest.mark.parametrize(
    ("head", "norm", "backbone"), sampled(PAIRS + [(head, "tasknorm", "conv4") for head in sorted(ALIKE)], 30)
)
def test_every_pair_of_choices_takes_steps_of_training_and_of_a_test(built, head, norm, backbone):
    parts = built(head, norm, backbone)
    assert parts.learner.backbone.transductive == (norm == "transductive")
    learner = without_loops(parts.learner)
    learner.base_mean.value = torch.zeros(learner.backbone.features)  # as a run computes it before a test
    episode = make_episode(torch.device("cpu"), tasks=2, way=5, shot=1, query=1, size=28)
    assert train(learner, episode).isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in learner.parameters())
    prepare_tables(learner)
    assert evaluate(learner, episode)[head].rows[-1].isfinite().all()


@pytest.mark.parametrize(("head", "norm", "backbone"), GRID)
def test_every_head_norm_and_backbone_go_together(carry_out, configured, tmp_path, head, norm, backbone):
    report, _ = carry_out(*configured(head, norm, backbone), tmp_path)
    assert report["choices"].items() >= {"head": head, "norm": norm, "backbone": backbone}.items()
    assert report["transductive"] == (norm == "transductive" or MADE[head].transductive) and report["steps"] == 1


@pytest.mark.parametrize(("head", "norm", "backbone"), sampled([cell for cell in CELLS if sentence(*cell)], 40))
def test_what_does_not_go_together_is_refused(built, head, norm, backbone):
    with pytest.raises(UsageError, match=sentence(head, norm, backbone)):
        built(head, norm, backbone)


UNEQUAL = [(head, norm) for head, norm in product(HEADS, SCHEMES) if norm not in COUPLING]
DIAGONAL = {(head, SCHEMES[i % len(SCHEMES)]) for i, head in enumerate(head for head in HEADS if head not in ALIKE)}
NATURAL = [
    f"{split}.{word}" for split in ("train", "val", "test") for word in ("way=2..4", "shot=natural", "support=9")
]


@pytest.mark.parametrize(
    ("head", "norm"),
    [pytest.param(*cell, marks=[] if cell in DIAGONAL else pytest.mark.slow) for cell in UNEQUAL],
)
def test_shots_that_differ_from_class_to_class_go_through_every_head_and_norm(quick, head, norm):
    report, out = quick(*choose(head, norm), *NATURAL, "test.total=4")
    with (out / "tasks.csv").open() as file:
        assert len({row["shot"] for row in csv.DictReader(file)}) > 1
    assert report["choices"]["norm"] == norm


def test_shots_that_differ_is_refused_where_all_tasks_are_one_batch(quick):
    with pytest.raises(UsageError, match=r"tasks all of one size, .* got train\.way=2\.\.4 with train\.shot=natural"):
        quick(*choose(norm="batch_shared"), *NATURAL)


@pytest.mark.parametrize("network", [pytest.param("Plain", marks=pytest.mark.slow), "BatchNormed"])
@pytest.mark.parametrize("head", [pytest.param(head, marks=[pytest.mark.slow] * (head in ALIKE)) for head in HEADS])
def test_every_head_takes_a_network_of_the_user(quick, head, network):
    words = [f"head={head}", "backbone=module", f"backbone.target={__name__}.{network}"]
    said = {"cnaps": "expected a backbone with FiLM layers for head=cnaps, got Wrapped"}
    if network == "BatchNormed":
        # Without a 3x3 convolution, tsa has no adapters.
        said |= dict.fromkeys(ADAPTING - {"tsa"}, "this network .* type norm=tasknorm backbone.norms=convert")
    if head in said:
        with pytest.raises(UsageError, match=said[head]):
            quick(*words)
    else:
        assert quick(*words)[0]["choices"]["norm"] == "own"


ON_FEATURES = ("feature_clustering", "hyperplane_variation")


@pytest.mark.parametrize("regularizer", ["none", *ON_FEATURES])
def test_classical_training_takes_regularizers_on_features(quick, regularizer):
    _, out = quick("backbone.width=4", "objective=classical", "train.batch_size=8", f"regularizer={regularizer}")
    assert "objective.classifier.weight" in state(out)


@pytest.mark.parametrize("head", sampled(sorted(set(HEADS) - {"protonet"}), 4))
def test_classical_training_is_measured_by_any_head(quick, head):
    report, _ = quick(*choose(head), "objective=classical", "train.batch_size=8", "schedule=constant")
    assert report["choices"]["objective"] == "classical"


@pytest.mark.parametrize("regularizer", ON_FEATURES)
@pytest.mark.parametrize("head", sampled(["protonet", "svm", "anil", "maml", "cnaps"], 2))
def test_episodic_training_takes_regularizers_on_features(quick, head, regularizer):
    quick(*choose(head), "train.shot=2", f"regularizer={regularizer}")


@pytest.mark.parametrize("norm", ["tasknorm", "batch"])
def test_weight_clustering_changes_what_reptile_learns(quick, norm):
    words = ["head=reptile", f"norm={norm}", "backbone.width=4", "head.test_steps=1"]
    _, plain = quick(*words, name="plain")
    _, drawn = quick(*words, "regularizer=weight_clustering", name="drawn")
    _, idle = quick(*words, "regularizer=weight_clustering", "regularizer.weight=0", name="idle")
    weights = [state(out)["backbone.blocks.0.0.weight"] for out in (plain, drawn, idle)]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["regularizer=weight_clustering"], "type head=reptile, or regularizer=feature_clustering"),
        (["objective=classical", "regularizer=weight_clustering"], "type head=reptile"),
        (["head=reptile", "regularizer=feature_clustering"], "objective=reptile has no loss on features"),
        (["head=reptile", "regularizer=hyperplane_variation"], "objective=reptile has no loss on features"),
        (["objective=reptile"], "inner loop that objective=reptile can drive, got .*: type head=reptile"),
        (["objective=reptile", "head=maml"], "inner loop that objective=reptile can drive, got .*: type head=reptile"),
        (["head=cnaps", "objective=reptile"], "inner loop that objective=reptile can drive, got .*: type head=reptile"),
        (["train.query=0"], "expected train.query to be at least 1, as this objective needs queries"),
        (["objective=classical", "train.batch_size=9"], "type train.batch_size=10"),
        (
            ["objective=classical", "train.shot=5"],
            "expected no train.shot with objective=classical, .* got train.shot=5",
        ),
        (
            ["objective=classical", "train.batch_size=6", "regularizer=feature_clustering"],
            "pairs of classes with two images each, got 6: type train.batch_size=8",
        ),
        (
            ["head=maml", "head.output=linear", "train.way=2..6"],
            "expected one number of classes",
        ),
        (["head=reptile", "head.output=shared"], "type head.output=zero"),
        (
            ["backbone.downsample=stride", "dataset.image_size=16", "norm=instance"],
            r"of several positions, got maps \(20, 4, 1, 1\), .*: type norm=layer",
        ),
    ],
)
def test_objectives_that_do_not_fit_are_refused(quick, words, said):
    with pytest.raises(UsageError, match=said):
        quick("backbone.width=4", *words)


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_a_regularizer_of_features_of_a_frozen_network_warns(quick, caplog, freeze):
    words = ["head=cosine", "norm=batch", f"backbone.freeze={freeze}", "regularizer=feature_clustering"]
    quick("backbone.width=4", "stages=[fit]", *words)
    assert ("regularizer has no effect here" in caplog.text) == (freeze == "all")


def test_a_head_that_only_evaluates_may_adapt_a_network_that_is_trained_on_one_batch(quick):
    words = ["objective=classical", "norm=batch_shared", "head=maml", "head.test_steps=1", "backbone.width=4"]
    report, _ = quick(*words, "train.batch_size=10", "train.tasks=1")
    assert report["metrics"]["test/maml/accuracy"]["failed"] == 0


RANGES = [f"{split}.{word}" for split in ("train", "val", "test") for word in ("way=2..20", "shot=1..10", "query=2")]


@pytest.mark.parametrize("head", ["protonet", "maml", "reptile"])
def test_tasks_of_2_to_20_classes_and_1_to_10_shots_are_mixed(quick, head):
    others = {"protonet": [h for h in HEADS if h not in ("protonet", "fomaml", "reptile")]}.get(head, ["protonet"])
    words = [*choose(head), f"evaluate=[{','.join(others)}]", "train.tasks=4", "test.total=6", "val.total=1"]
    words += [f"evaluate.{name}.test_steps=1" for name in others if name in STEPPING]
    report, out = quick(*words, *RANGES)
    with (out / "tasks.csv").open() as file:
        sizes = [(int(row["way"]), float(row["shot"])) for row in csv.DictReader(file) if row["head"] == head]
    assert len(set(sizes)) == 6 and all(2 <= way <= 20 and 1 <= shot <= 10 for way, shot in sizes)
    assert all(report["metrics"][f"test/{name}/accuracy"]["tasks"] == 6 for name in (head, *others))
    if head == "maml":  # one row that all classes start from
        assert state(out)["heads.maml.output.weight"].shape[0] == 1


def test_every_head_measures_the_features_of_another(quick):
    _, fit = quick("backbone.width=4", "stages=[fit]", name="fit")
    words = ["stages=[test]", f"ckpt={fit}/checkpoints/last.ckpt", f"evaluate=[{','.join(HEADS)}]", "test.total=3"]
    report, _ = quick("backbone.width=4", *words)
    assert {f"test/{head}/accuracy" for head in HEADS} <= set(report["metrics"])
    assert report["metrics"]["test/maml/loss"] == report["metrics"]["test/fomaml/loss"]


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        (["constant"], 1),
        (["step", "schedule.step_size=2"], 0.125),
        (["linear"], 0),
        (["cosine"], 0),
        (["metaoptnet"], 0.0024),
    ],
)
def test_every_schedule_is_where_it_should_be_after_six_steps(quick, schedule, factor):
    words = ["optimizer=sgd", f"schedule={schedule[0]}", *schedule[1:], "trainer.max_steps=6", "val.every=6"]
    clip = ["trainer.gradient_clip_val=10", "trainer.gradient_clip_algorithm=value"]
    _, out = quick("backbone.width=4", "stages=[fit]", *words, *clip)
    (schedule,) = checkpoint.read(out / "checkpoints" / "last.ckpt")["lr_schedulers"]
    assert schedule["_last_lr"] == pytest.approx([0.1 * factor] * 2, abs=1e-12)


def test_piecewise_schedule_changes_at_its_boundaries():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, met = piecewise(optimizer, 12, [1.0, 0.06, 0.012, 0.0024], [0.0, 1 / 3, 2 / 3, 5 / 6]), []
    for _ in range(14):
        met.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        schedule.step()
    assert met == pytest.approx([1.0] * 4 + [0.06] * 4 + [0.012] * 2 + [0.0024] * 4)


@pytest.mark.parametrize(
    ("word", "factors"),
    [
        ("classical", [1.0] * 4 + [0.1] * 2 + [0.01] * 2 + [0.001] * 2 + [0.0001] * 2),
        ("metaoptnet", [1.0] * 4 + [0.06] * 4 + [0.012] * 2 + [0.0024] * 2),
    ],
)
def test_published_schedules_have_these_rates(composed, word, factors):
    cfg, *_ = composed(f"schedule={word}", "trainer.max_steps=12")
    optimizer, met = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0), []
    schedule = make(cfg.schedule)(optimizer)
    for _ in range(12):
        met.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        schedule.step()
    assert met == pytest.approx(factors)


@pytest.mark.parametrize(
    ("factors", "since"), [([1, 0.1], [0.0]), ([1, 0.1], [0.1, 0.5]), ([1, 0.1, 0.01], [0.0, 0.5, 0.2]), ([], [])]
)
def test_a_piecewise_schedule_that_makes_no_sense_is_refused(factors, since):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(UsageError, match="one increasing fraction from 0"):
        piecewise(optimizer, 12, factors, since)


@pytest.fixture
def pretrained(composed, carry_out, memory, tmp_path_factory):
    """Weights from classical training under batch norm, and the words that take them."""
    if "pretrained" not in memory:
        words = ["backbone.width=4", "norm=batch", "objective=classical", "train.batch_size=8", "stages=[fit]"]
        memory["pretrained"] = carry_out(*composed(*QUICK, *words), tmp_path_factory.mktemp("pretrained"))[1]
    out = memory["pretrained"]
    return state(out), ["backbone.width=4", f"backbone.weights={out}/checkpoints/last.ckpt"]


def moved(before, after):
    """Return the names of backbone weights that both hold and that differ, and those that only ``after`` holds."""
    after = {key: value for key, value in after.items() if key.startswith("backbone.")}
    assert {key for key in before if key.startswith("backbone.") and "running" not in key} <= after.keys()
    return {k for k in after if k in before and not torch.equal(after[k], before[k])}, after.keys() - before.keys()


def test_cnaps_and_tasknorm_learn_on_frozen_weights(quick, pretrained, caplog):
    before, words = pretrained
    _, out = quick("head=cnaps", "norm=tasknorm", *words)
    after = state(out)
    changed, new = moved(before, after)
    assert not changed and len(new) == 8 and all(".alpha." in key for key in new)
    assert all(after[key].item() != 0 for key in new)
    assert "pre-trained" not in caplog.text


def test_frozen_norm_keeps_the_moments_of_the_weights(quick, pretrained):
    before, words = pretrained
    _, out = quick("head=cnaps", "norm=frozen", *words)
    assert moved(before, state(out)) == (set(), set())
    assert before["backbone.blocks.0.1.running_mean"].abs().sum() > 0


def test_cnaps_without_weights_warns_once(quick, caplog):
    quick("head=cnaps", "backbone.width=4")
    assert caplog.text.count("head=cnaps is meant for a pre-trained, frozen backbone") == 1


@pytest.mark.parametrize("head", sampled(HEADS, 6))
def test_every_head_trains_on_frozen_weights_or_says_that_nothing_is_left(quick, pretrained, head):
    before, words = pretrained
    words = ["norm=frozen", *words, f"head={head}"] + ["head.steps=1", "head.test_steps=1"] * (head in STEPPING)
    if head in WEIGHTLESS:
        with pytest.raises(UsageError, match=f"a parameter to train, and the backbone and head={head} have none"):
            quick(*words)
    else:
        _, out = quick(*words)
        assert moved(before, state(out)) == (set(), set())


def test_a_head_without_weights_trains_only_tasknorm_on_frozen_weights(quick, pretrained):
    before, words = pretrained
    with pytest.raises(UsageError, match="expected a parameter to train, and the backbone and head=protonet have none"):
        quick("norm=batch", *words, name="batch")
    _, out = quick("norm=tasknorm", *words)
    changed, new = moved(before, state(out))
    assert not changed and all(".alpha." in key for key in new)
    assert all(state(out)[key].item() != 0 for key in new)


def test_weights_of_another_width_is_refused(quick, pretrained):
    with pytest.raises(UsageError, match=r"expected backbone\.blocks\.0\.0\.weight of shape .* type backbone="):
        quick("head=cnaps", *pretrained[1], "backbone.width=8")


def test_lr_and_steps_are_chosen_on_validation_tasks(quick):
    rates, marks = (0.05, 5.0), (1, 10)
    words = ["backbone.width=4", "evaluate=[maml]", "val.total=6", "val.query=4", "test.query=4", "test.select=last"]
    grid = [f"evaluate.maml.lr={[*rates]}", f"evaluate.maml.test_steps={[*marks]}"]
    report, out = quick(*words, *grid, name="grid")
    with (out / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/maml/lr5_steps1/accuracy"]]
    found = {(lr, k): float(rows[-1][f"val/maml/lr{lr:g}_steps{k}/accuracy"]) for lr, k in product(rates, marks)}
    chosen = report["chosen"]["maml"]
    lr, steps = chosen["lr"], chosen["test_steps"]
    assert found[lr, steps] == max(found.values()) > min(found.values())
    assert chosen["validation_accuracy"] == pytest.approx(found[lr, steps])
    words += ["stages=[test]", f"ckpt={out}/checkpoints/last.ckpt"]
    alone, _ = quick(*words, f"evaluate.maml.lr={lr}", f"evaluate.maml.test_steps={steps}", name="alone")
    assert alone["chosen"] == {} and alone["metrics"] == report["metrics"]


def test_the_best_step_is_the_maximum_of_all_steps(quick):
    words = [
        "backbone.width=4",
        "head=maml",
        "head.each_step=true",
        "head.test_steps=4",
        "test.total=6",
        "test.query=4",
    ]
    metrics = quick(*words)[0]["metrics"]
    steps = {step: metrics[f"test/maml/step{step}/accuracy"]["mean"] for step in (1, 2, 3, 4)}
    best = metrics["test/maml/best_step/accuracy"]
    assert best["mean"] == max(steps.values()) == steps[best["step"]]
    assert metrics["test/maml/step4/accuracy"] == metrics["test/maml/accuracy"] and len(set(steps.values())) > 1
    assert "test/maml/step5/accuracy" not in metrics
