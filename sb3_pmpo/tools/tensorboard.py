"""TensorBoard's *Custom Scalars* tab: our diagnostics in the order in which one looks at them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat, configure

from sb3_pmpo.files import whole

#: Beside the events of a run: its units, and its folder.
ABOUT = "sb3_pmpo.json"

#: Chart -> regular expressions of the tags in it, by group; docs/logged.md explains the tags.
LAYOUT: dict[str, dict[str, list[str]]] = {
    "1 return": {
        "evaluation": ["eval/mean_reward"],
        "training": ["rollout/ep_rew_mean"],
        "length of an episode": ["eval/mean_ep_length", "rollout/ep_len_mean"],
        "success": ["eval/success_rate", "rollout/success_rate"],
    },
    "2 critic": {
        "value": ["train/q_value", "train/return_scale"],
        "loss": ["train/critic_loss"],
        "prediction": ["train/auxiliary_loss"],
        "gradient": ["train/critic_grad_norm"],
    },
    "3 policy": {
        "spread": [r"train/std_(min|mean|max)", r"train/entropy_(min|mean|max)"],
        "KL to the reference": [r"train/kl_(mean|std|joint)"],
        "age of the reference": ["train/reference_age"],
        "actions outside the box": ["train/action_saturation"],
        "means near its edge": ["train/edge_barrier"],
        "loss": ["train/actor_loss"],
        "gradient": ["train/actor_grad_norm"],
    },
    "4 labels": {
        "log-likelihood": [
            r"train/(accept|reject)_log_prob_(mean|std|joint)",
            r"train/weighted_log_prob_(mean|std|joint)",
        ],
        "Q of the accepted above the rejected": ["train/q_gap"],
        "shares": ["train/accept_fraction", "train/tie_fraction"],
        "pairs (DPO)": ["train/margin", "train/pair_accuracy"],
    },
    "5 duals (MPO)": {
        "temperature": ["train/temperature", "train/penalty_temperature"],
        "KL of the weights": ["train/e_step_kl"],
        "multipliers": [r"train/(mean|std|joint)_multiplier"],
    },
    "6 run": {
        "speed": ["time/fps"],
        "learning rate": ["train/learning_rate", "train/actor_learning_rate"],
    },
}


class TensorBoardLayout(BaseCallback):
    """Write the layout into the run's logs; without TensorBoard it does nothing.

    ``PMPO(..., tensorboard_log="tb").learn(steps, callback=TensorBoardLayout())``;
    ``sb3-pmpo train`` adds it by itself.

    :param run: folder of the run, which is written beside the events; None for none.
    :param offline: whether the run's steps are gradient steps.
    """

    def __init__(self, run: Path | None = None, *, offline: bool = False) -> None:
        super().__init__()
        self._run, self._offline = run, offline

    def _on_training_start(self) -> None:
        self._say_units()
        charts = {
            group: {title: ["Multiline", tags] for title, tags in charts.items()}
            for group, charts in LAYOUT.items()
        }
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.writer.add_custom_scalars(charts)

    def _say_units(self) -> None:
        """Write beside TensorBoard's file what a decision takes in steps, and where the run is."""
        folder = self.logger.get_dir()
        if folder is None or not any(Path(folder).glob("events.out.tfevents.*")):
            return
        repeats = 1  # without ActionRepeat among the wrappers, or where nothing acts
        # A worker would die of being asked for what it has not.
        if not self._offline and self.training_env.has_attr("n_repeats"):
            repeats = self.training_env.get_attr("n_repeats")[0]
        about: dict[str, int | str] = {"action_repeat": int(repeats), "offline": self._offline}
        if self._run is not None:
            about["run"] = str(self._run.resolve())
        with whole(Path(folder) / ABOUT) as writing:
            writing.write_text(json.dumps(about) + "\n")

    def _on_step(self) -> bool:
        return True


def log_where_it_logged(model: BaseAlgorithm, run: Path | None) -> None:
    """Let a run that goes on log where it did.

    SB3 takes the latest folder of the algorithm, which is another run's if one began in between.

    :param run: folder of the run; None does nothing.
    """
    if run is None or model.tensorboard_log is None:
        return
    for path in Path(model.tensorboard_log).glob(f"*/{ABOUT}"):
        with suppress(OSError, ValueError, AttributeError):  # torn, or not ours
            if json.loads(path.read_text()).get("run") == str(run.resolve()):
                shown = ["stdout"] if model.verbose else []
                model.set_logger(configure(str(path.parent), [*shown, "tensorboard"]))
