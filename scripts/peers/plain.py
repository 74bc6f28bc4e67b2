"""Training steps in plain PyTorch, as the code of their papers writes them: one task after the other.

Support and query rows are separate batches, each normalized by its own moments (nn.BatchNorm2d in training), in torch's
default memory format; ReLU comes before pooling.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .problem import Problem, Setting, Step, Steps

TITLE = "plain PyTorch"


def conv4(setting: Setting, early: bool = False) -> nn.Sequential:
    """Return Conv4 up to its flat features; ``early`` pooling, before ReLU, gives the same values faster."""

    def block(inputs: int) -> nn.Sequential:
        if setting.downsample == "stride":
            conv = nn.Conv2d(inputs, setting.width, 3, stride=2, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(setting.width), nn.ReLU())
        conv = nn.Conv2d(inputs, setting.width, 3, padding=1, bias=False)
        end = [nn.MaxPool2d(2), nn.ReLU()] if early else [nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(conv, nn.BatchNorm2d(setting.width), *end)

    return nn.Sequential(*(block(setting.width if stage else setting.channels) for stage in range(4)), nn.Flatten())


class Residual(nn.Module):
    """A block of ResNet-12 (Lee et al. 2019), without dropout."""

    def __init__(self, inputs: int, outputs: int, early: bool):
        super().__init__()

        def conv(before: int, kernel: int) -> list[nn.Module]:
            layer = nn.Conv2d(before, outputs, kernel, padding=kernel // 2, bias=False)
            return [layer, nn.BatchNorm2d(outputs)]

        first, second = ([*conv(before, 3), nn.LeakyReLU(0.1)] for before in (inputs, outputs))
        self.residual = nn.Sequential(*first, *second, *conv(outputs, 3))
        self.shortcut = nn.Sequential(*conv(inputs, 1))
        end = [nn.LeakyReLU(0.1), nn.MaxPool2d(2)]
        self.end = nn.Sequential(*(reversed(end) if early else end))

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of half the height and width."""
        return self.end(self.residual(x) + self.shortcut(x))


def resnet12(setting: Setting, early: bool = False) -> nn.Sequential:
    """Return ResNet-12 up to its flat features, which are not averaged over positions."""
    width = setting.width
    sizes = [setting.channels, width, 5 * width // 2, 5 * width, 10 * width]
    return nn.Sequential(*(Residual(sizes[i], sizes[i + 1], early) for i in range(4)), nn.Flatten())


class TwoScales(nn.Module):
    """The network of R2-D2 (Bertinetto et al. 2019) without dropout: features of its last two blocks."""

    def __init__(self, channels: int, width: int, early: bool):
        super().__init__()

        def block(inputs: int, outputs: int, *activation: nn.Module) -> nn.Sequential:
            end = [nn.MaxPool2d(2), *activation] if early else [*activation, nn.MaxPool2d(2)]
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), *end)

        sizes = [channels, width, 2 * width, 4 * width]
        self.early = nn.Sequential(*(block(sizes[i], sizes[i + 1], nn.LeakyReLU(0.1)) for i in range(3)))
        self.late = block(sizes[3], round(16 * width / 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return flat features."""
        third = self.early(x)
        return torch.cat([third.flatten(1), self.late(third).flatten(1)], 1)


def r2d2_network(setting: Setting, early: bool = False) -> nn.Sequential:
    """Return the network of R2-D2."""
    return nn.Sequential(TwoScales(setting.channels, setting.width, early))


def backbone(problem: Problem, early: bool = False) -> nn.Sequential:
    """Return the backbone, with the same weights in every process."""
    torch.manual_seed(0)
    make = {"conv4": conv4, "resnet12": resnet12, "r2d2": r2d2_network}[problem.setting.backbone]
    return make(problem.setting, early).to(problem.device, problem.dtype)


def network(problem: Problem) -> nn.Sequential:
    """Return the backbone and a linear output layer."""
    body, setting = backbone(problem), problem.setting
    width = setting.width * (10 if setting.backbone == "resnet12" else 1)
    side = -(-setting.size // 16) if setting.downsample == "stride" else setting.size // 16
    head = nn.Linear(width * side**2, setting.way).to(problem.device, problem.dtype)
    nn.init.zeros_(head.bias)
    return nn.Sequential(OrderedDict(backbone=body, head=head))


def adam(module: nn.Module) -> torch.optim.Optimizer:
    """Return the outer optimizer of every step."""
    return torch.optim.Adam(module.parameters(), lr=1e-3)


def maml(problem: Problem, second_order: bool = True) -> Step:
    """Return a step of MAML. To first order the gradient at the adapted weights is that of the weights."""
    net, tasks, setting = network(problem), problem.tasks(), problem.setting
    optimizer = adam(net)

    def take() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=problem.device, dtype=problem.dtype)
        for support, labels, query, answers in tasks:
            weights = dict(net.named_parameters())
            for _ in range(setting.inner):
                loss = F.cross_entropy(functional_call(net, weights, support), labels)
                grads = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order)
                weights = {name: w - setting.rate * g for (name, w), g in zip(weights.items(), grads, strict=True)}
            loss = F.cross_entropy(functional_call(net, weights, query), answers) / setting.tasks
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return Step(take, net)


def fomaml(problem: Problem) -> Step:
    """Return a step of first-order MAML."""
    return maml(problem, second_order=False)


def protonet(problem: Problem) -> Step:
    """Return a step of a prototypical network."""
    net, tasks, setting = backbone(problem), problem.tasks(), problem.setting
    optimizer = adam(net)

    def take() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=problem.device, dtype=problem.dtype)
        for support, _, query, answers in tasks:
            means = net(support).view(setting.way, setting.shot, -1).mean(1)
            distances = (net(query)[:, None] - means).square().sum(2)
            loss = F.cross_entropy(-distances, answers) / setting.tasks
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return Step(take, net)


def r2d2(problem: Problem) -> Step:
    """Return a step of R2-D2: ridge regression with an intercept, with the penalty 50 and the initial scale 10."""
    net, tasks, setting = backbone(problem), problem.tasks(), problem.setting
    like = {"device": problem.device, "dtype": problem.dtype}
    net.scale = nn.Parameter(torch.full((), 10.0, **like))
    optimizer = adam(net)

    def take() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), **like)
        for support, labels, query, answers in tasks:
            rows, asked = (F.pad(net(images), (0, 1), value=1.0) for images in (support, query))
            system = rows @ rows.mT + 50 * len(rows) * torch.eye(len(rows), **like)
            weights = rows.mT @ torch.linalg.solve(system, F.one_hot(labels, setting.way).to(**like))
            loss = F.cross_entropy(net.scale * (asked @ weights), answers) / setting.tasks
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return Step(take, net)


STEPS = {"maml": maml, "fomaml": fomaml, "protonet": protonet, "r2d2": r2d2}


def steps(problem: Problem) -> Steps:
    """Return what plain PyTorch takes part in: of a setting with ``heads``, theirs."""
    names = problem.setting.heads or ("maml", "fomaml", "protonet")
    return {name: STEPS[name](problem) for name in names if name in STEPS}
