"""No network that is trained here draws random numbers of its own: what workers draw cannot depend on their number."""

import pytest
import torch

from ayf_core.conditions import class_labels
from ayf_core.data.codecs.diffusers_autoencoder import AutoencoderKLCodec
from ayf_core.evaluation.features.small_classifier import SmallClassifier
from ayf_core.networks.build import build_network
from ayf_core.networks.discriminator import build_discriminator
from tests.made import dit, labels, mlp

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
POINTS = IMAGES.flatten(1)[:, :2]
LABELS = labels(torch.arange(4) % 3)
TIMES = torch.linspace(0.2, 0.9, 4)


def velocity(kind, x):
    spec = dit(tuple(x.shape[1:]), width=8, patch_size=1, interval=True) if kind == "dit" else mlp(interval=True)
    return build_network(spec), (x, TIMES, TIMES / 2, LABELS)


def discriminator(x):
    return build_discriminator(tuple(x.shape[1:]), width=8, conditions=class_labels(3)), (x, LABELS)


def codec():
    network = AutoencoderKLCodec.create(
        image_channels=1, latent_channels=2, channels=(8, 8), layers_per_block=1, norm_num_groups=4, kl_weight=0.1
    )
    return network, (IMAGES, torch.zeros(4, *network.latent_shape(IMAGES.shape[1:])))


MAKERS = {
    "dit": lambda: velocity("dit", IMAGES),
    "mlp": lambda: velocity("mlp", POINTS),
    "image discriminator": lambda: discriminator(IMAGES),
    "point discriminator": lambda: discriminator(POINTS),
    "codec": codec,
    "classifier": lambda: (SmallClassifier(1, 3, 8), (IMAGES,)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_training_pass_leaves_the_global_generator_as_it_was(name):
    network, inputs = MAKERS[name]()
    before = torch.get_rng_state()
    output = network.train()(*inputs)
    (output[0] if isinstance(output, tuple) else output).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pass_with_dropout_would_not():
    before = torch.get_rng_state()
    torch.nn.Dropout(0.5).train()(IMAGES)
    assert not torch.equal(torch.get_rng_state(), before)
