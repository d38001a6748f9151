"""The optimizer's states by the name of the parameter they belong to, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hpcgemma.train.adafactor import Adafactor

States = dict[str, dict[str, torch.Tensor]]
"""By parameter and by the optimizer's own name of a state; each has at least one dimension."""


def states_by_name(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> States:
    """Return the states of an optimizer that steps on the parameters themselves."""
    if isinstance(optimizer, Adafactor):
        return adafactor_states(optimizer)
    return {
        # A scalar has no part that a checkpoint could be read by.
        name: {key: value if value.ndim else value.reshape(1) for key, value in optimizer.state[parameter].items()}
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    }


def put_states(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], states: States) -> None:
    """Give an optimizer the states that ``states_by_name`` returned."""
    if isinstance(optimizer, Adafactor):
        put_adafactor_states(optimizer, states)
        return
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = {id(parameter): place for place, parameter in enumerate(ordered)}
    numbered = {
        places[id(parameters[name])]: {
            key: value.reshape(()) if key == "step" else value for key, value in found.items()
        }
        for name, found in states.items()
    }
    # Through load_state_dict, which puts each state where its parameter is.
    content = optimizer.state_dict()
    optimizer.load_state_dict({"state": numbered, "param_groups": content["param_groups"]})


def adafactor_states(optimizer: Adafactor) -> States:
    """Return Adafactor's statistics, which are the same on all ranks."""
    statistics: dict[str, dict[str, Any]] = optimizer.state_dict()["statistics"]
    return {
        name: {key: value if isinstance(value, torch.Tensor) else torch.tensor([value]) for key, value in each.items()}
        for name, each in statistics.items()
    }


def put_adafactor_states(optimizer: Adafactor, states: States) -> None:
    """Give Adafactor its statistics."""
    statistics = {
        name: {key: int(value) if key == "step" else value for key, value in each.items()}
        for name, each in states.items()
    }
    optimizer.load_state_dict({"statistics": statistics})
