"""A router in a module outside of the package, selected and configured by a gin file."""

import dataclasses

import gin
import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from tests.support.features import random_features


def bind(config: ModelConfig, *bindings: str) -> None:
    """Binds the settings of `config`, and the given ones, as a gin file would."""
    names = [field.name for field in dataclasses.fields(config) if field.init]
    gin.parse_config([f"ModelConfig.{name} = {getattr(config, name)!r}" for name in names])
    gin.parse_config(["import tests.support.own_router", *bindings])


def test_a_gin_file_brings_its_own_router(tiny_config):
    bind(tiny_config, 'ModelConfig.router = "position_modulo"', 'ModelConfig.router_settings = {"stride": 2}')
    config = ModelConfig()
    assert config.experts_per_token(is_decoder=True) == 1
    model = EncoderDecoder(config)
    model.build()
    output = model(random_features(), training=True, return_routing=True)
    assert list(output.routings) == ["encoder/layer_1", "decoder/layer_1"]
    for routing in output.routings.values():
        np.testing.assert_array_equal(routing.expert[0, :10, 0], [0, 0, 1, 1, 2, 2, 3, 3, 0, 0])


def test_its_settings_are_checked_like_those_of_any_router(tiny_config):
    bind(tiny_config, 'ModelConfig.router = "position_modulo"', 'ModelConfig.router_settings = {"strides": 2}')
    with pytest.raises(SettingError, match="no setting of router = 'position_modulo': it has priority, stride"):
        ModelConfig()
