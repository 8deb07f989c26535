"""The networks, with stems that keep the resolution of small pictures, as ImageNet stems do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from trainer.settings import Settings

_POOLED_BLOCKS = 3  # customcnn halves the resolution this often at most, so that 8 pixels a side suffice


def build_model(settings: Settings, num_classes: int) -> nn.Module:
    """Return a freshly initialised network: float [B, 3, H, W] in, logits [B, ``num_classes``] out.

    Weights come from torch's global generator. Dropout lies before the classifier.
    """
    dropout_rate = settings.dropout_rate
    if settings.model_type.startswith("resnet"):
        return _build_resnet(settings.model_type, num_classes, dropout_rate)
    if settings.model_type == "vgg16":
        return _build_vgg16(num_classes, dropout_rate)
    if settings.model_type == "densenet121":
        return _build_densenet121(num_classes, dropout_rate)
    return _build_customcnn(num_classes, dropout_rate, settings.hidden_size or 0, settings.num_layers or 0)


def to_channels_last(model: nn.Module) -> nn.Module:
    """Return ``model`` itself, its convolutions' weights in channels_last memory."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _build_resnet(model_type: str, num_classes: int, dropout_rate: float) -> nn.Module:
    from torchvision.models import resnet

    model: Any = getattr(resnet, model_type)(weights=None, num_classes=num_classes)
    model.conv1 = _stem_convolution(64)
    model.maxpool = nn.Identity()
    model.fc = nn.Sequential(nn.Dropout(dropout_rate), model.fc)
    return _checked(model)


def _build_densenet121(num_classes: int, dropout_rate: float) -> nn.Module:
    from torchvision.models import densenet

    model: Any = densenet.densenet121(weights=None, num_classes=num_classes)
    model.features.conv0 = _stem_convolution(64)
    model.features.pool0 = nn.Identity()
    model.classifier = nn.Sequential(nn.Dropout(dropout_rate), model.classifier)
    return _checked(model)


def _build_vgg16(num_classes: int, dropout_rate: float) -> nn.Module:
    # torchvision's VGG always builds its 120 million classifier weights; only its feature layers are wanted.
    from torchvision.models import vgg

    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    model = nn.Sequential(
        features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout_rate), nn.Linear(512, num_classes)
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _build_customcnn(num_classes: int, dropout_rate: float, hidden_size: int, num_layers: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for block in range(num_layers):
        layers += [
            nn.Conv2d(channels, hidden_size, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_size),
            nn.ReLU(inplace=True),
        ]
        if block < _POOLED_BLOCKS:
            layers.append(nn.MaxPool2d(2))
        channels = hidden_size
    layers += [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout_rate),
        nn.Linear(hidden_size, num_classes),
    ]
    return nn.Sequential(*layers)


def _stem_convolution(channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(3, channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _checked(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"torchvision gave a {type(model).__name__}")
    return model
