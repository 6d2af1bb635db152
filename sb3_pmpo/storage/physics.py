"""The state of MuJoCo's simulations, bit for bit, for Gymnasium and the Control Suite.

What follows from the state is not always up to date with it: a simulation that was stepped has the
positions of bodies from before the last step, and rewards may look at them. So all arrays are told.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Of the model, what is large and what no task changes.
_CONSTANT = ("mesh_", "tex_", "skin_", "bvh_", "oct_", "name_", "text_", "flex_", "paths", "names")


def is_data(value: Any) -> bool:
    """Say whether it is MuJoCo's MjData."""
    return type(value).__name__ == "MjData" and type(value).__module__.startswith("mujoco")


def is_model(value: Any) -> bool:
    """Say whether it is MuJoCo's MjModel."""
    return type(value).__name__ == "MjModel" and type(value).__module__.startswith("mujoco")


def is_physics(value: Any) -> bool:
    """Say whether it is a Control Suite's Physics, which has a model and data."""
    return any(kind.__module__ == "dm_control.mujoco.engine" for kind in type(value).__mro__)


def model_state(model: Any) -> dict[str, np.ndarray]:
    """Copy the arrays of a model that tasks may change, such as where a target is."""
    return {
        name: array.copy()
        for name, array in _arrays(model).items()
        if not name.startswith(_CONSTANT)
    }


def set_model_state(model: Any, state: dict[str, np.ndarray]) -> None:
    """Put the arrays of a model back."""
    _put_back(_arrays(model), state)


def data_state(model: Any, data: Any) -> dict[str, Any]:
    """Copy the state of a simulation and all that was derived from it."""
    import mujoco  # of an extra; who has such data has it

    what = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, what))
    mujoco.mj_getState(model, data, state, what)
    derived = {name: array.copy() for name, array in _arrays(data).items()}
    return {"state": state, "derived": derived}


def set_data_state(model: Any, data: Any, state: dict[str, Any]) -> None:
    """Put the state of a simulation back.

    Contacts and constraints, which are no arrays of a fixed size, are computed anew.
    """
    import mujoco

    what = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(model, data, state["state"], what)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state["state"], what)  # the solver's warm start, too
    _put_back(_arrays(data), state["derived"])


def _arrays(holder: Any) -> dict[str, np.ndarray]:
    """Return the arrays of numbers of a model or of data; views, not copies."""
    found = {}
    for name in dir(holder):
        if name.startswith("_"):
            continue
        value = getattr(holder, name, None)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
            found[name] = value
    return found


def _put_back(arrays: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> None:
    for name, value in state.items():
        if name in arrays and arrays[name].shape == value.shape and arrays[name].flags.writeable:
            arrays[name][...] = value
