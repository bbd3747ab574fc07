"""The sizes in the model files are those of the published models."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from alignlab.compose import CONF

PARAMETERS = {  # as published with the weights; the tiny one as its card says
    "tiny": 1_246_336,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b-instruct": 8_030_261_248,
    "mistral-7b-instruct": 7_241_732_096,
    "gemma-7b-it": 8_537_680_896,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-7b-instruct": 7_615_616_512,
}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_random_weights_have_the_published_size(name):
    sizes = dict(OmegaConf.to_container(OmegaConf.load(CONF / f"model/{name}.yaml"))["architecture"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(sizes.pop("model_type"), **sizes))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_every_model_file_with_sizes_is_known():
    with_sizes = {f.stem for f in (CONF / "model").glob("*.yaml") if OmegaConf.load(f).architecture}
    chat_twins = {name for name in with_sizes if name.endswith("-chat") and name.removesuffix("-chat") in PARAMETERS}
    assert with_sizes - chat_twins == set(PARAMETERS)
