"""What every backbone keeps."""

import pytest
import torch
from omegaconf import OmegaConf

from contracts import node, norm
from metafew.errors import UsageError
from metafew.training.instantiate import make

T, S, Q = 2, 3, 2


def images(channels=3, image_size=32, count=S + Q, tasks=T):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tasks, count, channels, image_size, image_size, generator=generator, dtype=torch.double)


def split(batch):
    return batch[:, :S], batch[:, S:]


class BackboneContract:
    """A subclass provides ``file``, the YAML of a backbone, and may provide ``options``."""

    @pytest.fixture
    def options(self):
        """Options of the backbone, other than those of its YAML."""
        return {}

    @pytest.fixture
    def model(self, file, options):
        """Make the backbone, for images of some channels and size."""

        def made(channels=3, image_size=32):
            content = OmegaConf.merge(node(file), options)
            if "width" in content:
                content.width = 4
            for key in ("weights", "freeze"):  # the run reads them
                content.pop(key, None)
            torch.manual_seed(0)
            return make(content, channels=channels, image_size=image_size, norm=norm("tasknorm")).double()

        return made

    @pytest.mark.parametrize("size", [28, 32, 84])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_features_is_the_dimension_of_the_output(self, model, channels, size):
        made = model(channels, size).eval()
        context, targets = made.embed(images(channels, size, 2, 1), images(channels, size, 1, 1))
        assert isinstance(made.features, int)
        assert context.shape == (1, 2, made.features) and targets.shape == (1, 1, made.features)

    def test_gradient_reaches_every_weight(self, model):
        made = model()
        features = torch.cat(made.embed(*split(images())), 1)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
        (features * weights).sum().backward()
        for name, value in made.named_parameters():
            assert value.grad is not None and value.grad.abs().sum() > 0, name

    def test_twice_is_the_same_in_evaluation(self, model):
        made = model().eval()
        for first, second in zip(made.embed(*split(images())), made.embed(*split(images())), strict=True):
            assert torch.equal(first, second)

    def test_tasks_are_independent_in_evaluation(self, model):
        made, batch = model().eval(), images()
        together = torch.cat(made.embed(*split(batch)), 1)
        single = torch.cat([torch.cat(made.embed(*split(batch[t : t + 1])), 1) for t in range(T)])
        torch.testing.assert_close(single, together, rtol=1e-9, atol=1e-9)

    def test_state_survives(self, model):
        one, other = model(), model()
        one.embed(*split(images()))
        other.load_state_dict(one.state_dict())
        for first, second in zip(one.eval().embed(images()), other.eval().embed(images()), strict=True):
            assert torch.equal(first, second)

    def test_too_small_images_are_refused(self, model):
        with pytest.raises(UsageError, match=r"2x2|2: type dataset.image_size"):
            model(image_size=2)
