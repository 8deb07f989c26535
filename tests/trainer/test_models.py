from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainer.models import build_model, count_parameters, to_channels_last
from trainer.options import MINIMUM_IMAGE_SIZE
from trainer.settings import Settings

MILLIONS = {"resnet18": 11.2, "resnet34": 21.3, "resnet50": 23.7, "vgg16": 14.8, "densenet121": 7.1}


@pytest.mark.parametrize("model_type", MINIMUM_IMAGE_SIZE)
def test_build_model_any_type_classifies_small_pictures(
    make_settings: Callable[..., Settings], model_type: str
) -> None:
    # One test for all properties of a model: building the deep ones is what takes the time.
    model = build_model(make_settings(model_type=model_type, dropout_rate=0.3), num_classes=100)
    to_channels_last(model)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
        size = MINIMUM_IMAGE_SIZE[model_type]
        smallest = model.eval()(torch.randn(1, 3, size, size))
    assert logits.shape == (2, 100)
    assert smallest.shape == (1, 100)
    if model_type in MILLIONS:
        assert count_parameters(model) / 1e6 == pytest.approx(MILLIONS[model_type], abs=0.06)
    *_, dropout, classifier = [module for module in model.modules() if not list(module.children())]
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.3
    assert isinstance(classifier, nn.Linear)


def test_build_model_resnet_stem_keeps_the_resolution(make_settings: Callable[..., Settings]) -> None:
    model = build_model(make_settings(model_type="resnet18"), num_classes=10)
    sizes = []
    model.get_submodule("layer1").register_forward_hook(lambda module, inputs, output: sizes.append(output.shape))
    with torch.inference_mode():
        model.eval()(torch.randn(1, 3, 32, 32))
    assert sizes == [(1, 64, 32, 32)]


def test_build_model_customcnn_has_layers_and_channels_asked_for(make_settings: Callable[..., Settings]) -> None:
    model = build_model(make_settings(hidden_size=24, num_layers=5), num_classes=10)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [convolution.out_channels for convolution in convolutions] == [24] * 5


def test_build_model_same_seed_gives_same_weights(make_settings: Callable[..., Settings]) -> None:
    models = []
    for seed in (1, 1):
        torch.manual_seed(seed)
        models.append(build_model(make_settings(), num_classes=10))
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
